"""A development cluster of real processes, used as a newcomer would: what the README promises, typed."""

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from raftcache.cli import dev
from raftcache.cli.dev_state import DevCluster
from raftcache.cli.exits import Exit
from tests.cli.conftest import SECONDS, Run, Shell, alive
from tests.support.cluster import wait_until

QUICK = ("--set", "raft.tick_ms=20ms")
"""A node that is alone need not wait for others before it leads."""
BINARY = bytes(range(256)) + b"\n\x00\xff"


def test_the_first_minute(cluster: Shell) -> None:
    """Put, get, status: nothing is said of where the cluster is."""
    assert b"ok (shard " in cluster.process("put", "greeting", "hello")
    assert b"hello" == cluster.process("get", "greeting")
    assert b"healthy" in cluster.process("status")
    assert b"" == cluster("get", "nobody", status=Exit.NOT_FOUND)


def test_a_value_goes_through_pipes_byte_by_byte(cluster: Shell, tmp_path: Path) -> None:
    """In from standard input or a file, out to a pipe; keys of any bytes in base64."""
    cluster.process("put", "blob", stdin=BINARY)
    assert BINARY == cluster.process("get", "blob")
    file = tmp_path / "value"
    file.write_bytes(BINARY[::-1])
    cluster("put", "--key-b64", "AP8=", "--file", str(file))
    assert BINARY[::-1] == cluster("get", "--key-b64", "AP8=")
    cluster("put", "empty", stdin=b"")
    assert b"" == cluster("get", "empty")


def test_a_name_that_is_no_text_is_refused_by_the_real_shell_too(cluster: Shell) -> None:
    """What Python makes of such bytes depends on how it was started."""
    command = [*map(os.fsencode, cluster.command("get")), b"\xff\xfe"]
    done = subprocess.run(command, capture_output=True, env=cluster.environ, timeout=SECONDS, check=False)
    assert (Exit.USAGE, b"", True) == (done.returncode, done.stdout, b"is not UTF-8 text: '\\xff\\xfe'" in done.stderr)


def test_reads_in_json_say_everything(here: Run) -> None:
    """Text as text, bytes as base64, numbers as text; absence as well."""
    here("put", "doc/text", "grüße")
    here("put", "doc/text", "grüße", "--if-version", "1")
    entry = json.loads(here("get", "doc/text", "-o", "json").stdout)
    assert ("raftcache.entry/v1", True, {"text": "grüße"}, "2") == (
        entry["schema"],
        entry["found"],
        entry["value"],
        entry["version"],
    )
    here("put", "doc/bytes", input=b"\xff")
    assert {"b64": "/w=="} == json.loads(here("get", "doc/bytes", "-o", "json").stdout)["value"]
    missing = here("get", "doc/none", "-o", "json")
    assert (Exit.NOT_FOUND, False) == (missing.exit_code, json.loads(missing.stdout)["found"])
    stale = json.loads(here("get", "doc/text", "--consistency", "stale", "-o", "json").stdout)
    assert "age_seconds" in stale


def test_conditions_refuse_with_what_is_there(here: Run) -> None:
    """Exit code 6; nothing is changed."""
    assert Exit.OK == here("put", "lock", "me", "--if-absent").exit_code
    refused = here("put", "lock", "you", "--if-absent")
    assert (Exit.PRECONDITION, "") == (refused.exit_code, refused.stdout)
    assert "its value: me" in refused.stderr
    document = json.loads(here("put", "lock", "you", "--if-version", "7", "-o", "json").stdout)
    assert (False, {"text": "me"}) == (document["succeeded"], document["current"]["value"])
    revision = document["current"]["revision"]
    assert Exit.PRECONDITION == here("del", "lock", "--if-revision", str(int(revision) + 1)).exit_code
    assert Exit.OK == here("put", "lock", "again", "--if-revision", revision).exit_code
    assert Exit.PRECONDITION == here("put", "unlocked", "x", "--if-exists").exit_code
    assert Exit.OK == here("del", "lock", "--if-exists").exit_code
    assert Exit.NOT_FOUND == here("del", "lock").exit_code
    assert Exit.OK == here("del", "lock", "--ignore-missing").exit_code
    assert json.loads(here("del", "lock", "-o", "json").stdout)["deleted"] is False


def test_compare_and_swap_swaps_only_what_is_expected(here: Run) -> None:
    """By text, by absence, and by files."""
    assert Exit.OK == here("cas", "state", "open", "--if-absent").exit_code
    assert Exit.PRECONDITION == here("cas", "state", "x", "--if-absent").exit_code
    assert Exit.OK == here("cas", "state", "open", "closed").exit_code
    refused = here("cas", "state", "open", "closed", "-o", "json")
    assert (Exit.PRECONDITION, {"text": "closed"}) == (
        refused.exit_code,
        json.loads(refused.stdout)["current"]["value"],
    )
    assert Exit.PRECONDITION == here("cas", "no such", "a", "b").exit_code


def test_numbers_are_counted_up_and_down(here: Run) -> None:
    """A negative number is no option."""
    assert "1\n" == here("incr", "visits").stdout
    assert "-4\n" == here("incr", "visits", "-5").stdout
    assert "110\n" == here("incr", "stock", "10", "--initial", "100").stdout
    assert (
        "-9223372036854775808" == json.loads(here("incr", "min", "-9223372036854775808", "-o", "json").stdout)["value"]
    )
    here("put", "word", "seven")
    assert Exit.USAGE == here("incr", "word").exit_code


def test_a_scan_lists_keys_in_order_and_says_if_there_are_more(here: Run) -> None:
    """By prefix or range, with a limit; escapes in a table, exact in JSON."""
    for name in ("b", "a", "c\t"):
        here("put", f"scan/{name}", f"value {name}")
    assert "scan/a\tvalue a\nscan/b\tvalue b\nscan/c\\t\tvalue c\\t\n" == here("scan", "scan/").stdout
    limited = here("scan", "--prefix", "scan/", "--limit", "2", "--keys-only")
    assert ("scan/a\nscan/b\n", True) == (limited.stdout, "more than 2" in limited.stderr)
    document = json.loads(here("scan", "--from", "scan/b", "--to", "scan/d", "-o", "json").stdout)
    assert ([{"text": "scan/b"}, {"text": "scan/c\t"}], "2", False) == (
        [entry["key"] for entry in document["entries"]],
        document["count"],
        document["more"],
    )
    assert "3\n" == here("scan", "scan/", "--count").stdout
    nothing = here("scan", "no such prefix")
    assert (Exit.OK, "", "no keys\n") == (nothing.exit_code, nothing.stdout, nothing.stderr)


def test_a_transaction_runs_one_branch_or_the_other(here: Run) -> None:
    """Exit code 6 where the conditions did not hold."""
    transaction = {
        "conditions": [{"key": "{t}.name", "exists": False}],
        "then": [{"put": {"key": "{t}.name", "value": {"b64": "/w=="}}}, {"incr": {"key": "{t}.count"}}],
        "otherwise": [{"get": {"key": "{t}.name"}}, {"get": {"key": "{t}.none"}}, {"del": {"key": "{t}.count"}}],
    }
    first = here("txn", "-o", "json", input=json.dumps(transaction))
    assert (Exit.OK, [{"put": {}}, {"incr": {"value": "1"}}]) == (first.exit_code, json.loads(first.stdout)["results"])
    second = here("txn", input=json.dumps(transaction))
    assert (Exit.PRECONDITION, "1  get   \\xff\n2  get   (no such key)\n3  del   deleted\n") == (
        second.exit_code,
        second.stdout,
    )
    apart = {"then": [{"put": {"key": "a", "value": ""}}, {"put": {"key": "b", "value": ""}}]}
    refused = here("txn", input=json.dumps(apart))
    assert (Exit.USAGE, True) == (refused.exit_code, "{user1}" in refused.stderr)


def test_the_cluster_is_shown_from_any_node(here: Run, cluster: Shell) -> None:
    """Status, shards, and where a key is: the same whoever is asked."""
    nodes = cluster.nodes("default")
    seen = set()
    for node in nodes.values():
        document = json.loads(here("status", "-o", "json", "--endpoint", node["client"]).stdout)
        assert (5, 3, 1) == (len(document["shards"]), len(document["nodes"]), document["failure_tolerance"])
        seen.add(document["cluster"])
        located = json.loads(here("shard", "locate", "{user7}.name", "-o", "json", "--endpoint", node["client"]).stdout)
        seen.add((located["slot"], located["shard"]))
    assert 2 == len(seen)


def test_the_lead_of_a_shard_is_handed_over(here: Run) -> None:
    """To the one that is named; asked again, it is so already."""
    shard = json.loads(here("shard", "list", "-o", "json").stdout)["shards"][1]
    to = next(replica["name"] for replica in shard["replicas"] if replica["name"] != shard["leader_name"])
    for _ in range(2):
        assert Exit.OK == here("leader", "transfer", "1", "--to", to).exit_code


def test_a_short_benchmark_reports_and_leaves_nothing(here: Run) -> None:
    """Keys of its own, gone afterwards."""
    result = here("bench", "--duration", "300ms", "--clients", "4", "--keys", "20", "-o", "json")
    assert Exit.OK == result.exit_code, result.stderr
    document = json.loads(result.stdout)
    assert int(document["operations"]) > 0
    assert {} == document["errors"]
    assert document["all"]["p50_ms"] <= document["all"]["p99_ms"] <= document["all"]["max_ms"]
    assert "0\n" == here("scan", "raftcache-bench/", "--count").stdout


def test_a_node_is_killed_and_comes_back(cluster: Shell, here: Run) -> None:
    """The others go on; the status says who is missing; what was written meanwhile is there."""
    before = cluster.nodes("default")["n2"]
    cluster("dev", "kill", "2")
    assert set() == alive({before["pid"]})
    assert "dead" == cluster.nodes("default")["n2"]["state"]
    assert Exit.OK == here("put", "meanwhile", "written", "--timeout", "60s").exit_code
    unhealthy = here("status", "-o", "json")
    assert Exit.UNHEALTHY == unhealthy.exit_code
    assert any("n2" in problem for problem in json.loads(unhealthy.stdout)["problems"])
    assert b"started n2" in cluster("dev", "start", "n2")
    wait_until(lambda: here("status").exit_code == Exit.OK, "a healthy cluster", SECONDS)
    assert "written" == here("get", "meanwhile", "--endpoint", before["client"]).stdout


def test_a_node_is_paused_resumed_and_restarted(cluster: Shell, here: Run) -> None:
    """Paused, it is there and does not answer; restarted, it is another process on the same data."""
    before = cluster.nodes("default")["n3"]
    cluster("dev", "pause", "3")
    assert "paused" == cluster.nodes("default")["n3"]["state"]
    assert Exit.UNHEALTHY == here("status").exit_code
    cluster("dev", "resume", "3")
    assert "running" == cluster.nodes("default")["n3"]["state"]
    cluster("dev", "restart", "3")
    after = cluster.nodes("default")["n3"]
    assert ("running", False, before["client"]) == (after["state"], before["pid"] == after["pid"], after["client"])
    wait_until(lambda: here("status").exit_code == Exit.OK, "a healthy cluster", SECONDS)


def test_what_nodes_say_is_shown_in_the_order_of_time(here: Run) -> None:
    """For people, or as it was written."""
    shown = here("dev", "logs", "-n", "1000").stdout.splitlines()
    assert {"n1", "n2", "n3"} == {line.split()[0] for line in shown}
    assert any("node_started" in line for line in shown)
    records = [json.loads(line) for line in here("dev", "logs", "1", "-o", "json").stdout.splitlines()]
    stamps = [record["ts"] for record in records if "ts" in record]
    assert sorted(stamps) == stamps


def test_a_second_cluster_needs_a_name(here: Run) -> None:
    """Nothing is started over the one that runs."""
    result = here("dev", "--detach", "--random-ports")
    assert (Exit.PRECONDITION, True) == (result.exit_code, "--tag NAME" in result.stderr)
    result = here("dev", "kill", "7")
    assert (Exit.NOT_FOUND, True) == (result.exit_code, "n3" in result.stderr)


def test_a_port_in_use_is_named_before_anything_is_started(run: Run) -> None:
    """With what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("dev", "--base-port", str(port), "--nodes", "1")
    assert (Exit.FAILURE, "") == (result.exit_code, result.stdout)
    assert f"port {port} (n1, for clients) is in use" in result.stderr
    assert "--random-ports" in result.stderr


# --- Clusters of their own ----------------------------------------------------------------------------------------


def test_kept_data_is_started_from_again(shell: Shell, tmp_path: Path) -> None:
    """Stopped cleanly, started as it was made; another shape is refused."""
    kept, ready_file = ("--data-dir", str(tmp_path / "data")), tmp_path / "ready.json"
    made = shell.start(
        "kept", *kept, "--random-ports", "--nodes", "1", "--shards", "1", "--ready-file", str(ready_file), *QUICK
    )
    assert made == json.loads(ready_file.read_text())
    endpoint = ("--endpoint", made["endpoints"][0])
    shell("put", "kept", "value", *endpoint)
    shell("dev", "stop", "--tag", "kept")
    assert set() == alive({node["pid"] for node in made["nodes"]})
    refused = shell.run("dev", "--tag", "kept", "--detach", *kept, "--nodes", "3")
    assert (Exit.PRECONDITION, True) == (refused.exit_code, "was made with --nodes 1" in refused.stderr)
    again = shell.start("kept", *kept, *QUICK)
    assert (made["cluster"], made["endpoints"]) == (again["cluster"], again["endpoints"])
    assert b"value" == shell("get", "kept", *endpoint)
    # Killed is soon enough: what ends it cleanly was seen above.
    shell("dev", "kill", "1", "--tag", "kept")
    shell("dev", "stop", "--tag", "kept")
    assert (tmp_path / "data" / "n1").is_dir()


def in_the_foreground(shell: Shell, tag: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """A cluster of one node, ready, and the command that watches over it."""
    command = shell.command("dev", "--tag", tag, "--nodes", "1", "--shards", "1", "--random-ports", *QUICK)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=shell.environ)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()
    ready = json.loads(line)
    shell.pids |= {node["pid"] for node in ready["nodes"]}
    return process, ready


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Exit status and standard error."""
    _, errors = process.communicate(timeout=SECONDS)
    return process.returncode, errors.decode()


def test_a_cluster_in_the_foreground_ends_with_ctrl_c_and_leaves_no_trace(shell: Shell) -> None:
    """One line of JSON when it is ready, a word when a node dies; then no process and no data is left.

    Not even the node that another command has brought back.
    """
    process, ready = in_the_foreground(shell, "foreground")
    assert ("ready", "raftcache.dev-ready/v1", True) == (ready["event"], ready["schema"], ready["ephemeral"])
    shell("dev", "kill", "1", "--tag", "foreground")
    assert process.stderr is not None
    while b"n1 is dead" not in (line := process.stderr.readline()):
        assert line, "it ended"
    shell("dev", "start", "--tag", "foreground")
    again = shell.nodes("foreground")["n1"]["pid"]
    process.send_signal(signal.SIGINT)
    status, errors = ended(process)
    assert (0, True) == (status, "no process is left" in errors)
    assert set() == alive({again, *(node["pid"] for node in ready["nodes"])})
    assert not Path(ready["data_dir"]).exists()
    shell("dev", "ps", "--tag", ready["tag"], status=Exit.NOT_FOUND)


def test_a_cluster_that_was_stopped_from_elsewhere_needs_nobody_to_watch_it(
    state_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command in the foreground ends by itself."""
    monkeypatch.setattr(dev, "WATCH_SECONDS", 0.01)
    reader, writer = os.pipe()
    dev._supervise(DevCluster("gone", tmp_path, ephemeral=True, shards=1), reader)
    os.close(reader)
    os.close(writer)
    assert "stopped by another command" in capsys.readouterr().err
    assert not state_home.exists()


def test_a_node_that_does_not_start_shows_its_last_words(shell: Shell, tmp_path: Path) -> None:
    """And nothing of the cluster is left running."""
    (tmp_path / "n1").mkdir()
    (tmp_path / "n1" / "data").write_text("this is no directory")
    command = shell.command(
        "dev", "--tag", "broken", "--detach", "--nodes", "2", "--random-ports", "--data-dir", str(tmp_path)
    )
    done = subprocess.run(command, capture_output=True, text=True, env=shell.environ, timeout=SECONDS, check=False)
    assert (Exit.FAILURE, "") == (done.returncode, done.stdout)
    assert "n1 ended; the last lines of its log:" in done.stderr
    shell("dev", "ps", "--tag", "broken", status=Exit.NOT_FOUND)
    command_lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _readable(path)]
    assert [] == [line for line in command_lines if os.fsencode(tmp_path / "n2") in line]


def _readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


# --- Nodes one by one, with certificates --------------------------------------------------------------------------


def test_a_node_with_tls_is_served_made_a_cluster_and_used(shell: Shell, run: Run, tmp_path: Path) -> None:
    """By hand, as in production: certificates, serve, init, and clients that must show who they are."""
    certs = tmp_path / "certs"
    for arguments in (("ca",), ("node", "n1"), ("client", "me")):
        assert Exit.OK == run("certs", *arguments, "--dir", str(certs)).exit_code
    ready_file = tmp_path / "ready.json"
    settings = {
        "client_cert": "node-n1.crt",
        "client_key": "node-n1.key",
        "client_ca": "ca.crt",
        "peer_cert": "node-n1.crt",
        "peer_key": "node-n1.key",
        "peer_ca": "ca.crt",
    }
    command = shell.command("serve", "--data-dir", str(tmp_path / "data"), "--ready-file", str(ready_file))
    for port in ("client", "peer", "admin"):
        command += [f"--listen-{port}", f"127.0.0.1:{_free_port()}"]
    for name, file in settings.items():
        command += ["--set", f"tls.{name}={certs / file}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=shell.environ)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()
        addresses = json.loads(line)
        assert addresses == json.loads(ready_file.read_text())
        endpoint, ca = ("--endpoint", addresses["client"]), ("--tls-ca", str(certs / "ca.crt"))
        mine = ("--tls-cert", str(certs / "client-me.crt"), "--tls-key", str(certs / "client-me.key"))
        made = run("init", "--peers", addresses["peer"], "--shards", "1", *endpoint, *ca, *mine)
        assert Exit.OK == made.exit_code, made.stderr
        assert Exit.OK == run("put", "secret", "kept", "--timeout", "60s", *endpoint, *ca, *mine).exit_code
        assert "kept" == run("get", "secret", *endpoint, *ca, *mine).stdout
        assert Exit.UNAVAILABLE == run("status", "--timeout", "1s", *endpoint, *ca).exit_code
    finally:
        process.send_signal(signal.SIGTERM)
        status, errors = ended(process)
    assert 0 == status, errors


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def test_a_second_node_on_the_same_data_is_refused(cluster: Shell, run: Run) -> None:
    """Exit code 1, in words."""
    (document,) = json.loads(cluster("dev", "ps", "--tag", "default", "-o", "json"))["clusters"]
    command = cluster.command(
        "serve", "--data-dir", f"{document['data_dir']}/n1/data", "--listen-client", "127.0.0.1:0"
    )
    done = subprocess.run(command, capture_output=True, text=True, env=cluster.environ, timeout=SECONDS, check=False)
    assert (Exit.FAILURE, "") == (done.returncode, done.stdout)
    assert "raftcache: " in done.stderr
