"""The tables of names, and that the code keeps to them."""

import ast
import re
from pathlib import Path

from raftcache.telemetry import names
from raftcache.telemetry.metrics import Metrics

PACKAGE = Path(__file__).parents[2] / "raftcache"


def test_names_have_the_agreed_form() -> None:
    """Events and spans are snake_case; metrics begin with the product and end in a base unit or `_total`."""
    for name in (*names.EVENTS, *names.SPANS):
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name), name
    for metric in names.METRICS:
        assert re.fullmatch(r"raftcache_[a-z]+(_[a-z]+)+", metric.name), metric.name
        counter = metric.kind in (names.MetricKind.COUNTER, names.MetricKind.SCRAPED_COUNTER)
        assert counter == metric.name.endswith("_total"), metric.name
        assert not re.search(r"_(ms|us|ns|kb|mib|millis)(_|$)", metric.name), f"{metric.name} is not in a base unit"
    assert len(names.METRICS) == len({metric.name for metric in names.METRICS})


def test_few_metrics_carry_a_shard() -> None:
    """Every shard of every node is a series of each: the number may shrink."""
    assert 14 >= sum("shard" in metric.labels for metric in names.METRICS)


def test_every_event_in_the_code_is_in_the_table() -> None:
    """A name that nobody can look up would be reported as a bug at run time; here it is found before."""
    unknown = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.args[0].value}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("event", "report")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
        and node.args[0].value not in names.EVENTS
    ]
    assert [] == unknown


def test_every_event_in_the_table_is_spoken_of_somewhere() -> None:
    """Nobody should wait for an event that never comes."""
    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "names.py")
    assert [] == [name for name in names.EVENTS if f'"{name}"' not in source]


UNFED: dict[str, str] = {}
"""What `Metrics` offers and nobody uses. May only shrink."""


def test_every_metric_that_is_pushed_is_fed_by_somebody() -> None:
    """A series that is always zero says that all is well."""
    offered = {name for name in (*Metrics.__slots__, *vars(Metrics)) if not name.startswith("_")}
    offered -= {"registry", "describe", "collect"}  # The registry's.
    sources = [path for path in PACKAGE.rglob("*.py") if path.name != "metrics.py"]
    used = {match for path in sources for match in re.findall(r"metrics\.(\w+)", path.read_text())}
    assert set(UNFED) == offered - used
