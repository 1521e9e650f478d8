"""Commands for operators, against a node that answers as it is told."""

import json
import threading

import pytest

from raftcache.admin.v1 import admin_pb2
from raftcache.cli import replicas
from raftcache.cli.exits import Exit
from raftcache.errors import (
    Corruption,
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    PreconditionFailed,
    RaftCacheError,
    Unauthenticated,
    Unavailable,
)
from raftcache.ids import SHARDS_MAX, ClusterId, NodeId
from raftcache.node.directory import DirectoryNode, first_directory
from tests.cli.conftest import Run
from tests.cli.fake_admin import CLUSTER, A, B, C, FakeAdmin, small_cluster

DEAD = "127.0.0.1:9"
"""Nobody listens there."""


def test_status_of_a_healthy_cluster_ends_with_zero(run: Run, admin: FakeAdmin) -> None:
    """And shows nodes, shards and how many may fail."""
    result = run("status", "--endpoint", admin.address)
    assert Exit.OK == result.exit_code
    assert f"cluster {CLUSTER}: healthy; any 1 more node may fail" in result.stdout
    assert "catalog  n1" in result.stdout
    assert "n1 n2 n3" in result.stdout


def test_status_of_an_unhealthy_cluster_ends_with_five_and_says_why(run: Run, admin: FakeAdmin) -> None:
    """Who does not answer, who is behind, who learns, what waits."""
    (cluster,) = admin.clusters
    cluster.healthy, cluster.failure_tolerance = False, 0
    cluster.problems.append("node n3 does not answer")
    cluster.nodes[2].alive = False
    shard = cluster.shards[1]
    shard.leader, shard.change = 0, "move, waits"
    shard.ClearField("keys")
    shard.replicas[1].lag_entries = 12
    shard.replicas[2].role, shard.replicas[2].membership = "unknown", "learner"
    result = run("status", "--endpoint", admin.address)
    assert Exit.UNHEALTHY == result.exit_code
    for text in (
        "UNHEALTHY; no node may fail",
        "DOWN",
        "NONE",
        "n2(12 behind)",
        "n3(learner,no answer)",
        "move, waits",
    ):
        assert text in result.stdout, text
    assert "problems:\n  node n3 does not answer" in result.stdout
    assert Exit.UNHEALTHY == run("status", "-o", "json", "--endpoint", admin.address).exit_code


def test_status_in_json_has_a_schema_and_no_number_that_jq_would_round(run: Run, admin: FakeAdmin) -> None:
    """Ids, terms, indexes and counts are text."""
    document = json.loads(run("status", "-o", "json", "--endpoint", admin.address).stdout)
    assert ("raftcache.status/v1", str(CLUSTER), True) == (document["schema"], document["cluster"], document["healthy"])
    shard = document["shards"][1]
    assert ([[0, 16384]], "12", "n1", str(A)) == (
        shard["ranges"],
        shard["keys"],
        shard["leader_name"],
        shard["leader_node"],
    )

    def numbers(value: object) -> list[int]:
        if isinstance(value, dict):
            return [number for each in value.values() for number in numbers(each)]
        if isinstance(value, list):
            return [number for each in value for number in numbers(each)]
        return [value] if isinstance(value, int) else []

    assert max(numbers(document)) < 2**32


def test_a_large_cluster_shows_the_shards_that_need_attention(run: Run, admin: FakeAdmin) -> None:
    """A screen is enough at 3 am; all of them are in `shard list`."""
    (cluster,) = admin.clusters
    for number in range(2, 100):
        cluster.shards.add().CopyFrom(cluster.shards[1])
        cluster.shards[number].shard = number
    cluster.shards[77].leader = 0
    lines = run("status", "--endpoint", admin.address).stdout.splitlines()
    assert ["77"] == [line.split()[0] for line in lines if "16384" in line]
    assert any(line.startswith("99 more shards") for line in lines)
    listed = run("shard", "list", "--endpoint", admin.address).stdout.splitlines()
    assert 101 == len(listed)


def test_the_next_endpoint_is_asked_where_one_does_not_answer(run: Run, admin: FakeAdmin) -> None:
    """One of them lives: that is enough."""
    assert Exit.OK == run("status", "--endpoints", f"{DEAD},{admin.address}").exit_code


def test_status_watched_sees_a_cluster_come_back(run: Run, admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not end with the first failure; Ctrl-C ends it."""
    admin.cluster_error = Unavailable("this node does not belong to a cluster yet")
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        admin.cluster_error = None
        if len(naps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("raftcache.cli.status.time.sleep", nap)
    result = run("status", "--watch", "--interval", "7s", "--endpoint", admin.address)
    assert ([7.0, 7.0], Exit.INTERRUPTED) == (naps, result.exit_code)
    assert "does not belong to a cluster yet" in result.stderr
    assert "healthy" in result.stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PreconditionFailed("the quorum would be at risk"), Exit.PRECONDITION),
        (InvalidRequest("there is no such thing"), Exit.USAGE),
        (PermissionDenied("not you"), Exit.PERMISSION),
        (Unauthenticated("who are you"), Exit.PERMISSION),
        (Overloaded("later"), Exit.UNAVAILABLE),
        (Unavailable("no leader"), Exit.UNAVAILABLE),
        (Corruption("damaged"), Exit.UNKNOWN),
        (RaftCacheError("of a newer release"), Exit.UNKNOWN),
    ],
    ids=lambda value: value.reason if isinstance(value, RaftCacheError) else None,
)
def test_what_a_node_refuses_becomes_an_exit_code_and_its_own_words(
    error: RaftCacheError, code: Exit, run: Run, admin: FakeAdmin
) -> None:
    """Of a change; what may have been done is never called a failure."""
    admin.error = error
    result = run("leader", "transfer", "1", "--endpoint", admin.address)
    assert (code, "") == (result.exit_code, result.stdout)
    assert error.message in result.stderr


def test_a_change_that_is_not_answered_in_time_has_an_unknown_outcome(run: Run, admin: FakeAdmin) -> None:
    """It may be under way."""
    admin.held = threading.Event()
    result = run("leader", "transfer", "1", "--endpoint", admin.address, "--timeout", "500ms")
    admin.held.set()
    assert Exit.UNKNOWN == result.exit_code
    assert "may be under way" in result.stderr


def test_nodes_are_named_by_name_or_id(run: Run, admin: FakeAdmin) -> None:
    """Both lead to the same request."""
    for node in ("n2", str(B)):
        assert Exit.OK == run("leader", "transfer", "1", "--to", node, "--endpoint", admin.address).exit_code
    assert [admin_pb2.TransferLeaderRequest(shard=1, target_node=B)] * 2 == admin.changes


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("leader", "transfer", "1", "--to", "n9"), Exit.NOT_FOUND, "n1 ("),
        (("leader", "transfer", "9"), Exit.NOT_FOUND, "raftcache shard list"),
        (("node", "remove", "n9"), Exit.NOT_FOUND, "n1 ("),
        (("shard", "replicas", "add", "1", "twin"), Exit.USAGE, "by its id"),
    ],
)
def test_what_does_not_exist_is_said_before_anything_is_asked(
    arguments: tuple[str, ...], code: Exit, words: str, run: Run, admin: FakeAdmin
) -> None:
    """With what there is instead. A name that two nodes have is none."""
    for node in (1, 2):
        admin.clusters[0].nodes.add(node=node, name="twin")
    result = run(*arguments, "--endpoint", admin.address)
    assert (code, []) == (result.exit_code, admin.changes)
    assert words in result.stderr


# --- init and nodes -----------------------------------------------------------------------------------------------


def test_init_asks_one_node_with_all_peers(run: Run, admin: FakeAdmin) -> None:
    """As words or as a list; the cluster's id is shown, once every shard has a leader."""
    peers = ["a:1", "b:1", "c:1"]
    for arguments in (("--peers", "a:1,b:1,c:1"), ("a:1", "b:1", "c:1")):
        admin.cluster_error = Unavailable("this node does not belong to a cluster yet: run `raftcache init`")
        electing = small_cluster()
        electing.shards[0].leader = 0
        admin.clusters = [electing, electing, small_cluster()]
        result = run("init", "--endpoint", admin.address, "--shards", "4", *arguments)
        assert (Exit.OK, True) == (result.exit_code, str(CLUSTER) in result.stdout)
        assert 1 == len(admin.clusters), "it looked until all was well"
        assert "leader" not in result.stderr
    assert [admin_pb2.InitRequest(peer_addresses=peers, shards=4)] * 2 == admin.changes


def test_init_says_where_a_shard_stays_without_a_leader(run: Run, admin: FakeAdmin) -> None:
    """The cluster is made all the same. It does not look for longer than half of what is left of the timeout."""
    admin.cluster_error = Unavailable("this node does not belong to a cluster yet: run `raftcache init`")
    electing = small_cluster()
    electing.shards[0].leader = 0
    admin.clusters = [electing]
    result = run("init", "--endpoint", admin.address, "--peers", "a:1", "--timeout", "4")
    assert (Exit.OK, True) == (result.exit_code, str(CLUSTER) in result.stdout)
    assert "not every shard has a leader yet" in result.stderr


def test_init_takes_as_many_shards_as_a_directory_does(run: Run, admin: FakeAdmin) -> None:
    """The number that the nodes would refuse is refused before they are asked, with the numbers that are possible."""
    admin.cluster_error = Unavailable("this node does not belong to a cluster yet: run `raftcache init`")
    refused = run("init", "--endpoint", admin.address, "--peers", "a:1", "--shards", str(SHARDS_MAX + 1))
    assert Exit.USAGE == refused.exit_code
    assert f"{SHARDS_MAX + 1} is not in the range 1<=x<={SHARDS_MAX}" in refused.stderr
    assert [] == admin.changes
    assert Exit.OK == run("init", "--endpoint", admin.address, "--peers", "a:1", "--shards", str(SHARDS_MAX)).exit_code
    member = DirectoryNode(NodeId(A), "a", "a:1", "", "")
    assert SHARDS_MAX + 1 == len(first_directory(ClusterId(CLUSTER), [member], SHARDS_MAX).shards), "and the catalog"


def test_init_of_a_cluster_that_is_there_changes_nothing(run: Run, admin: FakeAdmin) -> None:
    """The same nodes: fine. Other nodes: refused, with the command that is meant."""
    peers = ",".join(node.peer_address for node in small_cluster().nodes)
    result = run("init", "--endpoint", admin.address, "--peers", peers, "-o", "json")
    assert {"schema": "raftcache.init/v1", "cluster": str(CLUSTER), "made": False} == json.loads(result.stdout)
    result = run("init", "--endpoint", admin.address, "--peers", peers, "--shards", "5")
    assert (Exit.OK, "the cluster has 1 shards, not 5; their number stays\n") == (result.exit_code, result.stderr)
    result = run("init", "--endpoint", admin.address, "--peers", f"{peers},x:1")
    assert Exit.PRECONDITION == result.exit_code
    assert "raftcache node join" in result.stderr
    assert [] == admin.changes


def test_nodes_are_listed_taken_in_and_let_go(run: Run, admin: FakeAdmin) -> None:
    """Ids are text in JSON."""
    listed = json.loads(run("node", "list", "-o", "json", "--endpoint", admin.address).stdout)["nodes"]
    assert [str(A), str(B), str(C)] == [node["node"] for node in listed]
    joined = run("node", "join", "127.0.0.1:7431", "-o", "json", "--endpoint", admin.address)
    assert str(C) == json.loads(joined.stdout)["node"]
    assert "was removed" in run("node", "remove", "n3", "--dry-run", "--endpoint", admin.address).stdout
    assert [
        admin_pb2.JoinNodeRequest(peer_address="127.0.0.1:7431"),
        admin_pb2.RemoveNodeRequest(node=C, dry_run=True),
    ] == admin.changes


# --- Replicas -----------------------------------------------------------------------------------------------------


def test_a_key_is_located_with_who_holds_it(run: Run, admin: FakeAdmin) -> None:
    """Binary keys too."""
    result = run("shard", "locate", "--key-b64", "AP8=", "-o", "json", "--endpoint", admin.address)
    document = json.loads(result.stdout)
    assert ({"b64": "AP8="}, 2780, 1, "n1", ["n1", "n2", "n3"]) == (
        document["key"],
        document["slot"],
        document["shard"],
        document["leader_name"],
        document["replica_names"],
    )
    assert [admin_pb2.LocateKeyRequest(key=b"\x00\xff")] == admin.changes


@pytest.mark.parametrize(
    ("action", "nodes", "request_"),
    [
        ("add", ("n3",), {"node": C}),
        ("remove", ("n3",), {"node": C}),
        ("promote", ("n3",), {"node": C}),
        ("move", ("n3", "n2"), {"node": C, "target_node": B}),
    ],
)
def test_each_change_of_a_replica_is_asked_for_as_named(
    action: str, nodes: tuple[str, ...], request_: dict[str, int], run: Run, admin: FakeAdmin
) -> None:
    """A dry run is one."""
    result = run("shard", "replicas", action, "1", *nodes, "--dry-run", "--wait", "--endpoint", admin.address)
    assert (Exit.OK, "will change\n") == (result.exit_code, result.stdout)
    number = admin_pb2.ReplicaAction.Value(f"REPLICA_ACTION_{action.upper()}")
    assert [admin_pb2.ChangeReplicasRequest(shard=1, action=number, dry_run=True, **request_)] == admin.changes


def changing(*changes: str) -> list[admin_pb2.GetClusterResponse]:
    """The cluster while shard 1 changes; then without n3 in it."""
    clusters = []
    for change in changes:
        clusters.append(small_cluster())
        clusters[-1].shards[1].change = change
    done = small_cluster()
    del done.shards[1].replicas[2]
    return [*clusters, done]


def test_a_wait_says_what_it_waits_for_until_it_is_done(
    run: Run, admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On standard error, each reason once; and survives a node that does not answer for a moment."""
    monkeypatch.setattr(replicas, "POLL_SECONDS", 0.001)
    admin.clusters = [small_cluster(), *changing("goes; waits for x", "goes; waits for x", "goes; waits for y")]
    result = run("shard", "replicas", "remove", "1", "n3", "--wait", "--endpoint", admin.address)
    assert (Exit.OK, "will change\nshard 1: done\n") == (result.exit_code, result.stdout)
    assert "shard 1: goes; waits for x\nshard 1: goes; waits for y\n" == result.stderr


def test_a_wait_that_is_over_says_what_is_missing(run: Run, admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 4: the cluster goes on with it."""
    monkeypatch.setattr(replicas, "POLL_SECONDS", 0.001)
    admin.clusters = changing("goes; waits for x")[:1]
    arguments = ("shard", "replicas", "remove", "1", "n3", "--wait", "--timeout", "500ms")
    result = run(*arguments, "--endpoint", admin.address)
    assert Exit.UNAVAILABLE == result.exit_code
    assert "is not done after 0.5 s: goes; waits for x" in result.stderr


def test_a_change_that_was_undone_meanwhile_is_no_success(run: Run, admin: FakeAdmin) -> None:
    """No change is under way any more, and the replica is still there."""
    result = run("shard", "replicas", "remove", "1", "n3", "--wait", "--endpoint", admin.address)
    assert Exit.FAILURE == result.exit_code
    assert "is not as asked" in result.stderr
    for action, nodes in (("add", ("n3",)), ("promote", ("n3",))):
        assert Exit.OK == run("shard", "replicas", action, "1", *nodes, "--wait", "--endpoint", admin.address).exit_code
