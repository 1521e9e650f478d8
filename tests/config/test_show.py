"""Showing settings: what is shown can be loaded, and the sample that ships is the truth."""

import re
import tomllib
from pathlib import Path

from raftcache.config import Config, default, diff, effective, load, sample

SAMPLE = Path(__file__).parents[2] / "deploy" / "raftcache.toml"

FLAGS: dict[str, object] = {
    "node.name": 'quotes " and \\ and \u007f and ü',
    "limits.value_bytes_max": 1_000_001,
    "storage.sync_inline_below_us": 1_250,
    "telemetry.trace_sample_ratio": 0.125,
    "tls.insecure": True,
    "log.format": "json",
}


def test_what_is_shown_loads_as_the_same_settings(tmp_path: Path) -> None:
    """`config show` of one node can be another's file, odd characters and odd sizes included."""
    config = load(flags=FLAGS)
    for number, text in enumerate((effective(config), diff(config))):
        path = tmp_path / f"{number}.toml"
        path.write_text(text)
        assert config == load(path=path)


def test_the_difference_to_the_defaults_is_what_was_set() -> None:
    """No more and no less; nothing at all for the defaults."""
    document = tomllib.loads(diff(load(flags=FLAGS)))
    assert set(FLAGS) == {f"{section}.{key}" for section, table in document.items() for key in table}
    assert "" == diff(Config())


def test_the_default_dump_has_every_setting() -> None:
    """As many keys as the sections have fields."""
    document = tomllib.loads(default())
    assert list(document) == list(Config.__dataclass_fields__)
    for section, table in document.items():
        assert set(getattr(Config(), section).__dataclass_fields__) == set(table)


def test_every_setting_is_read_by_somebody() -> None:
    """A setting that does nothing would be a lie. Looked for by name, which is crude and has found some."""
    package = Path(__file__).parents[2] / "raftcache"
    code = "\n".join(path.read_text() for path in package.rglob("*.py") if path.parent.name != "config")
    document = tomllib.loads(default())
    assert [] == [key for table in document.values() for key in table if not re.search(rf"\.{key}\b", code)]


def test_the_sample_file_that_ships_is_the_generated_one() -> None:
    """Regenerate with: python -c 'import raftcache.config as c; print(c.sample(), end="")' > deploy/raftcache.toml"""
    assert sample() == SAMPLE.read_text()


def test_the_sample_file_says_the_defaults(tmp_path: Path) -> None:
    """As it is, it changes nothing; with every setting uncommented it changes nothing either."""
    assert Config() == load(path=SAMPLE)
    lines = [
        line.removeprefix("#") if line.startswith("#") and line[1:2] != " " else line for line in sample().splitlines()
    ]
    path = tmp_path / "uncommented.toml"
    path.write_text("\n".join(lines))
    assert default() == effective(load(path=path))
    assert len(tomllib.loads(path.read_text())["limits"]) == len(Config().limits.__dataclass_fields__)
