"""What `raftcache dev` remembers, and what it deletes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raftcache.cli import dev_state
from raftcache.cli.dev_cluster import ports_from, random_ports
from raftcache.cli.dev_state import DevCluster, DevNode
from raftcache.cli.exits import Exit, Failure
from raftcache.cli.processes import ProcessIdentity, identity_of
from tests.cli.conftest import Run

GONE = ProcessIdentity(os.getpid(), "before this process had its number")


def cluster(tag: str, directory: Path, *, ephemeral: bool, process: ProcessIdentity | None = GONE) -> DevCluster:
    """One node, whose process is `process`."""
    node = DevNode("n1", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", process)
    return DevCluster(tag, directory, ephemeral, shards=2, settings=["log.level=debug"], nodes=[node])


def test_a_record_comes_back_as_it_was(state_home: Path, tmp_path: Path) -> None:
    """With its processes; the shape beside the data has none."""
    written = cluster("a", tmp_path, ephemeral=False)
    dev_state.save(written)
    dev_state.save_shape(written)
    assert written == dev_state.load("a")
    shape = dev_state.load_shape(tmp_path)
    assert shape is not None
    assert shape.nodes[0].process is None
    assert (["a"], None) == (dev_state.all_tags(), dev_state.load("b"))
    assert state_home in (dev_state.state_directory().parents)


def test_the_dead_are_told_from_the_living(state_home: Path, tmp_path: Path) -> None:
    """By start as well as by number."""
    dev_state.save(cluster("dead", tmp_path, ephemeral=False))
    dev_state.save(cluster("alive", tmp_path, ephemeral=False, process=identity_of(os.getpid())))
    assert ["alive"] == [found.tag for found in dev_state.running_clusters()]
    assert state_home.exists()


def test_ephemeral_data_goes_with_the_record_and_other_data_stays(state_home: Path, tmp_path: Path) -> None:
    """And a directory that does not say that it is ours is never deleted, whatever the record says."""
    for tag, ephemeral in (("ours", True), ("theirs", False), ("forged", True)):
        found = cluster(tag, tmp_path / tag, ephemeral=ephemeral)
        found.directory.mkdir()
        (found.directory / "data").write_text("x")
        if tag != "forged":
            dev_state.save_shape(found)
        dev_state.save(found)
        dev_state.forget(found)
    left = {path.name for path in tmp_path.iterdir() if (path / "data").exists()}
    assert {"theirs", "forged"} == left
    assert [] == dev_state.all_tags()
    assert state_home.exists()


def test_a_record_of_dead_processes_is_cleared_by_the_next_start(run: Run, tmp_path: Path) -> None:
    """Here the next start ends at a port in use, before it starts anything."""
    stale = cluster("default", tmp_path / "stale", ephemeral=True)
    stale.directory.mkdir()
    dev_state.save_shape(stale)
    dev_state.save(stale)
    assert '"state": "dead"' in run("dev", "ps", "-o", "json").stdout
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("dev", "--base-port", str(port), "--detach")
    assert (Exit.FAILURE, True) == (result.exit_code, f"port {port} (n1, for clients) is in use" in result.stderr)
    assert "whose processes are gone" in result.stderr
    assert not stale.directory.exists()
    assert '"clusters": []' in run("dev", "ps", "-o", "json").stdout


def test_a_record_that_is_none_is_not_guessed_at(run: Run, state_home: Path) -> None:
    """It may be all that leads to processes; so a person has to look."""
    (state_home / "raftcache" / "dev").mkdir(parents=True)
    (state_home / "raftcache" / "dev" / "default.json").write_text('{"schema": "raftcache.dev-state/v9"}')
    for arguments in (("dev",), ("dev", "stop"), ("dev", "ps"), ("dev", "kill", "1")):
        result = run(*arguments)
        assert Exit.FAILURE == result.exit_code, arguments
        assert "raftcache.dev-state/v9" in result.stderr


@pytest.mark.parametrize("command", ["stop", "logs", "start", "kill 1", "pause 1", "resume 1", "restart 1"])
def test_without_a_cluster_commands_say_how_to_get_one(command: str, run: Run) -> None:
    """Exit code 3."""
    result = run("dev", *command.split())
    assert (Exit.NOT_FOUND, True) == (result.exit_code, "`raftcache dev` starts one" in result.stderr)


def test_a_cluster_is_changed_by_one_command_at_a_time(
    state_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second waits, and says so; at the end of its patience it says what to look for."""
    monkeypatch.setattr(dev_state, "LOCK_SECONDS", 0.1)
    script = "from raftcache.cli.dev_state import locked\nwith locked('t'):\n    print('held', flush=True)\n    input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert b"held\n" == other.stdout.readline()
        with pytest.raises(Failure, match="another `raftcache dev`"), dev_state.locked("t"):
            pass
        other.communicate(b"\n")
    with dev_state.locked("t"):
        pass
    assert "waiting for another" in capsys.readouterr().err
    assert state_home.exists()


def test_ports_are_spaced_to_be_remembered_or_random_and_distinct() -> None:
    """And never beyond what there is."""
    assert [(7400, 7401, 7402), (7410, 7411, 7412)] == ports_from(7400, 2)
    with pytest.raises(Failure):
        ports_from(65_534, 1)
    ports = [port for triple in random_ports(3) for port in triple]
    assert 9 == len(set(ports))


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Its error must not be taken for one of standard output."""
    with pytest.raises(Failure, match=r"missing/t\.json cannot be written: No such file"):
        dev_state.write_file(tmp_path / "missing" / "t.json", "{}")
