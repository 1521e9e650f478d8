"""`raftcache config`, `raftcache certs`, and settings that `raftcache serve` refuses."""

import json
import tomllib
from pathlib import Path

import pytest

from raftcache.cli.exits import Exit
from tests.cli.conftest import Run, Shell


def test_a_good_file_is_said_to_be_good(run: Run, tmp_path: Path) -> None:
    """Exit code 0, and no words on standard output."""
    path = tmp_path / "raftcache.toml"
    path.write_text('[limits]\nvalue_bytes_max = "2MiB"\n')
    for arguments in ((str(path),), ("--config", str(path)), ()):
        result = run("config", "check", *arguments)
        assert (Exit.OK, "", True) == (result.exit_code, result.stdout, result.stderr.startswith("ok"))


@pytest.mark.parametrize("arguments", [("config", "check"), ("config", "show"), ("serve",), ("dev",)], ids=" ".join)
def test_an_unknown_setting_is_refused_with_the_near_one(arguments: tuple[str, ...], run: Run) -> None:
    """A check says no (1); the others were given a wrong command line (2). Nothing is started."""
    result = run(*arguments, "--set", "limits.value_byte_max=1")
    assert (Exit.FAILURE if "check" in arguments else Exit.USAGE) == result.exit_code
    assert "did you mean value_bytes_max?" in result.stderr
    assert "" == result.stdout


def test_a_bad_file_is_named(run: Run, tmp_path: Path) -> None:
    """With the place."""
    path = tmp_path / "raftcache.toml"
    path.write_text("[limts]\n")
    result = run("config", "check", str(path))
    assert Exit.FAILURE == result.exit_code
    assert f"limts ({path})" in result.stderr
    assert "did you mean limits?" in result.stderr
    missing = run("config", "check", str(tmp_path / "missing"), "-o", "json")
    assert (Exit.FAILURE, False) == (missing.exit_code, json.loads(missing.stdout)["ok"])


def test_settings_are_shown_as_a_node_reads_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, the defaults, or what differs; from every source."""
    monkeypatch.setenv("RAFTCACHE_RAFT__TICK_MS", "50ms")
    shown = tomllib.loads(run("config", "show").stdout)
    assert ("50ms", "1MiB") == (shown["raft"]["tick_ms"], shown["limits"]["value_bytes_max"])
    assert "100ms" == tomllib.loads(run("config", "show", "--default").stdout)["raft"]["tick_ms"]
    assert {"raft": {"tick_ms": "50ms"}} == tomllib.loads(run("config", "show", "--diff").stdout)
    document = json.loads(run("config", "show", "--diff", "-o", "json").stdout)
    assert {"raft": {"tick_ms": "50ms"}} == document["settings"]
    monkeypatch.delenv("RAFTCACHE_RAFT__TICK_MS")
    result = run("config", "show", "--diff")
    assert ("", True) == (result.stdout, "every setting has its default" in result.stderr)


def test_the_sample_is_a_file_that_passes_the_check(run: Run, tmp_path: Path) -> None:
    """What one begins with is right."""
    path = tmp_path / "raftcache.toml"
    path.write_text(run("config", "sample").stdout)
    assert Exit.OK == run("config", "check", str(path)).exit_code


@pytest.mark.parametrize("port", ["client", "peer"])
def test_certificates_are_read_by_the_check_and_wrong_ones_are_wrong_settings(
    run: Run, shell: Shell, tmp_path: Path, port: str
) -> None:
    """A node that is restarted with what passed must start; and a supervisor need not restart one that cannot."""
    files = ("cert", "key", "ca")
    there = [f"--set=tls.{port}_{what}={tmp_path}/missing.{what}" for what in files]
    result = run("config", "check", *there)
    assert (Exit.FAILURE, True) == (result.exit_code, "does not exist" in result.stderr)
    anywhere = [f"--set=listen.{which}=127.0.0.1:0" for which in ("client", "peer", "admin")]
    shell.process("serve", "--data-dir", str(tmp_path / "data"), *there, *anywhere, status=Exit.USAGE)
    certs = str(tmp_path / "certs")
    for made in (("ca",), ("node", "n1", "--host", "127.0.0.1")):
        assert Exit.OK == run("certs", *made, "--dir", certs).exit_code
    names = ("node-n1.crt", "node-n1.key", "ca.crt")
    good = [f"--set=tls.{port}_{what}={certs}/{name}" for what, name in zip(files, names, strict=True)]
    result = run("config", "check", *good)
    assert Exit.OK == result.exit_code, result.output


def test_a_node_does_not_listen_beyond_this_machine_by_accident(run: Run, tmp_path: Path) -> None:
    """Without TLS that needs a word of its own."""
    result = run("serve", "--data-dir", str(tmp_path), "--listen-client", "cache.example.com:7400")
    assert Exit.USAGE == result.exit_code
    assert "tls.insecure" in result.stderr


def test_certificates_are_made_and_not_overwritten(run: Run, tmp_path: Path) -> None:
    """An authority, a node, a client; the second time it takes --force."""
    directory = str(tmp_path / "certs")
    assert Exit.USAGE == run("certs", "node", "n1", "--dir", directory).exit_code
    made = json.loads(run("certs", "ca", "--dir", directory, "-o", "json").stdout)
    assert (f"{directory}/ca.crt", "raftcache.certificate/v1") == (made["certificate"], made["schema"])
    assert Exit.OK == run("certs", "node", "n1", "--host", "n1.example.com", "--dir", directory).exit_code
    result = run("certs", "client", "backup", "--dir", directory, "--days", "1")
    assert f"{directory}/client-backup.crt" in result.stdout
    assert Exit.USAGE == run("certs", "ca", "--dir", directory).exit_code
    assert Exit.OK == run("certs", "ca", "--dir", directory, "--force").exit_code
