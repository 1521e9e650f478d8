"""Nodes become a cluster: once, whatever is interrupted, repeated, mistyped or asked for twice at the same time."""

import asyncio

import pytest

from raftcache.errors import InvalidRequest, OutcomeUnknown, PreconditionFailed, RaftCacheError, Unavailable
from raftcache.ids import ClusterId, NodeId
from raftcache.kv.operations import Put, WriteResult
from raftcache.kv.slots import slot_of
from raftcache.node.administration import format_address, parse_address, unwrap, wrap, wrap_error
from raftcache.node.api import Request
from raftcache.node.directory import Directory, DirectoryNode, first_directory
from raftcache.node.forwarding import decode_replies, encode_requests
from raftcache.node.kinds import KIND_FORWARD, KIND_IDENTIFY, KIND_INIT, KIND_JOIN
from raftcache.storage.simulated_disk import SimulatedCrash
from tests.node.nodes import CATALOG, SHARD, Call, Ended, Node, Nodes, administer


def blank(count: int = 3) -> Nodes:
    return Nodes(count, init=False)


def init(nodes: Nodes, asked: Node, members: list[Node] | None = None, *, shards: int = 1) -> ClusterId:
    assert asked.host is not None
    addresses = [node.address for node in members or list(nodes)]
    return administer(nodes, asked.host.administration.init(addresses, shards))


def works(nodes: Nodes) -> None:
    """One cluster, all of whose members began with the very same states."""
    clusters = {node.host.cluster for node in nodes if node.host is not None}
    assert 1 == len(clusters), clusters
    leader = nodes.lead()
    nodes.lead(CATALOG)
    assert isinstance(nodes.put(leader, b"k").result, WriteResult)
    nodes.until(lambda: nodes.level() and nodes.level(CATALOG), "all to be level")


def test_three_nodes_become_one_cluster() -> None:
    """One call on one of them; the id is the same everywhere."""
    nodes = blank()
    cluster = init(nodes, nodes[2])
    assert {cluster} == {node.host.cluster for node in nodes if node.host is not None}
    works(nodes)


def test_node_that_is_asked_need_not_be_named() -> None:
    """It is one of the first members in any case."""
    nodes = blank()
    init(nodes, nodes[1], [nodes[2], nodes[3]])
    works(nodes)
    assert {1, 2, 3} == set(nodes[1].engine.directory.nodes)


@pytest.mark.parametrize("asked", [1, 3])
def test_init_that_is_repeated_reports_what_it_finds(asked: int) -> None:
    """The answer was lost: asked again, of the same node or another, it says the same id."""
    nodes = blank()
    cluster = init(nodes, nodes[1])
    assert cluster == init(nodes, nodes[asked])
    works(nodes)


@pytest.mark.parametrize("again", [1, 2, 3])
@pytest.mark.parametrize("told", [0, 1, 2])
def test_init_that_was_interrupted_is_finished_from_any_node(told: int, again: int) -> None:
    """The node that makes the cluster dies after it has told some of the others: whoever is asked next goes on with its plan."""
    nodes = blank()
    counted: list[Call] = []

    def die(call: Call) -> bool:
        if call.kind != KIND_INIT:
            return False
        counted.append(call)
        return len(counted) > told

    nodes.hold_calls = die
    # Where both others are told, the last answer is lost instead.
    nodes.lose_answers = lambda call: told == 2 and call.kind == KIND_INIT and len(counted) == 2
    with pytest.raises((AssertionError, RaftCacheError)):
        administer(nodes, nodes[1].host.administration.init([node.address for node in nodes], 1), ticks=40)  # type: ignore[union-attr]
    nodes[1].crash()
    nodes.hold_calls = nodes.lose_answers = lambda call: False
    nodes[1].start()
    nodes.run()
    init(nodes, nodes[again])
    works(nodes)


def test_crash_of_a_member_at_any_step_of_its_init_is_made_good_by_repeating_it() -> None:
    """The disk stops at the n-th operation, for every n: the member starts again, is told again, and begins byte for byte
    as the others did."""
    steps = 0
    for step in range(0, 400, 9):
        nodes = blank()
        victim = nodes[2]
        victim.disk.crash_at = victim.disk.operations + step
        try:
            administer(nodes, nodes[1].host.administration.init([n.address for n in nodes], 1), ticks=5)  # type: ignore[union-attr]
        except (AssertionError, RaftCacheError, SimulatedCrash, Ended, OSError):
            steps += 1
        else:
            if victim.disk.crash_at is not None and victim.disk.operations < victim.disk.crash_at:
                break
        victim.crash(power_cut=bool(step % 2))
        victim.start()
        nodes.run()
        assert nodes[1].host is not None
        nodes[1].host.making = None
        init(nodes, nodes[1])
        works(nodes)
    assert steps > 5, "the init of a member was interrupted at many steps"


def test_member_whose_disk_was_full_is_told_again_in_the_same_process() -> None:
    """A failed attempt leaves nothing open behind it: when there is room, the same call goes through."""
    nodes = blank()
    victim = nodes[2]
    victim.disk.capacity_bytes = victim.disk.used_bytes() + 100_000
    with pytest.raises(RaftCacheError):
        init(nodes, nodes[1])
    assert victim.host is not None
    victim.disk.capacity_bytes = None
    init(nodes, nodes[1])
    works(nodes)


def test_member_that_is_down_is_named_and_nothing_is_lost() -> None:
    """The call fails; repeated when the member is there, it goes on."""
    nodes = blank()
    nodes[3].crash()
    with pytest.raises(RaftCacheError):
        init(nodes, nodes[1])
    nodes[3].start()
    init(nodes, nodes[1])
    works(nodes)


def test_member_on_another_port_by_now_is_told_there() -> None:
    """Between two attempts it was restarted elsewhere: the plan has the old address, and is not changed for it."""
    nodes = blank()
    nodes.hold_calls = lambda call: call.kind == KIND_INIT and call.target == 3
    with pytest.raises((AssertionError, RaftCacheError)):
        administer(nodes, nodes[1].host.administration.init([n.address for n in nodes], 1), ticks=300)  # type: ignore[union-attr]
    nodes[3].crash()
    nodes[3].port = 7333
    nodes[3].start()
    nodes.hold_calls = lambda call: False
    init(nodes, nodes[1])
    works(nodes)
    nodes.until(
        lambda: nodes[1].engine.directory.nodes[NodeId(3)].peer_address == nodes[3].address, "its entry to be corrected"
    )


def test_two_addresses_of_one_node_are_refused() -> None:
    """Named twice, it would have two votes."""
    nodes = blank()
    assert nodes[1].host is not None
    addresses = [nodes[1].address, nodes[2].address, nodes[2].address]
    with pytest.raises(InvalidRequest, match="the same node 2"):
        administer(nodes, nodes[1].host.administration.init(addresses, 1))
    assert nodes[1].host.cluster is None


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":7401", "host:0", "host:65536", "host:-1", "::1", "::1:7401"]
)
def test_address_that_is_none_is_refused(address: str) -> None:
    """Before anybody is asked."""
    nodes = blank(1)
    assert nodes[1].host is not None
    with pytest.raises(InvalidRequest, match="is not an address"):
        administer(nodes, nodes[1].host.administration.init([address], 1))


@pytest.mark.parametrize("address", [("10.0.0.5", 7401), ("node-1.example", 1), ("::1", 65535), ("fd00::5", 7401)])
def test_addresses_come_back_as_they_were(address: tuple[str, int]) -> None:
    """IPv6 ones in brackets."""
    assert address == parse_address(format_address(address))


@pytest.mark.parametrize("where", ["nowhere", "elsewhere"])
def test_node_that_tells_others_a_wrong_address_is_refused(where: str) -> None:
    """It answers where the operator says, but what it advertises leads to nobody, or to another node."""
    nodes = blank()
    host = nodes[3].host
    assert host is not None
    wrong = "127.0.0.1:9" if where == "nowhere" else nodes[2].address
    host._entry = DirectoryNode(host.node, "n3", wrong, wrong, wrong)
    with pytest.raises(InvalidRequest, match="advertise_peer"):
        init(nodes, nodes[1])
    assert nodes[1].host is not None
    assert nodes[1].host.cluster is None


def test_node_of_another_cluster_is_refused() -> None:
    """It is named, and nothing happens to any of them."""
    nodes = blank(4)
    init(nodes, nodes[4], [nodes[4]])
    with pytest.raises(PreconditionFailed, match="belongs to cluster"):
        init(nodes, nodes[1], [nodes[1], nodes[2], nodes[4]])
    assert nodes[1].host is not None
    assert nodes[1].host.cluster is None
    init(nodes, nodes[1], [nodes[1], nodes[2], nodes[3]])
    assert nodes[4].host is not None
    assert nodes[4].host.cluster != nodes[1].host.cluster


def test_init_of_part_of_a_cluster_is_refused() -> None:
    """Neither fewer nor more nodes than it was made of: that would be another cluster."""
    nodes = blank(4)
    init(nodes, nodes[1], [nodes[1], nodes[2], nodes[3]])
    for members in ([nodes[1]], [nodes[1], nodes[2]], list(nodes)):
        with pytest.raises(PreconditionFailed, match="already"):
            init(nodes, nodes[1], members)


def test_init_is_repeated_with_as_many_shards_or_refused() -> None:
    """What the others were told stands."""
    nodes = blank()
    init(nodes, nodes[1], shards=2)
    with pytest.raises(PreconditionFailed, match="2 shards"):
        init(nodes, nodes[1], shards=3)
    assert init(nodes, nodes[2], shards=2)


def test_plan_that_nobody_was_told_can_be_made_anew() -> None:
    """The first attempt found a member down before anybody was told; the second one wants other members and shards."""
    nodes = blank(4)
    nodes.hold_calls = lambda call: call.kind == KIND_INIT
    with pytest.raises((AssertionError, RaftCacheError)):
        administer(nodes, nodes[1].host.administration.init([n.address for n in nodes], 1), ticks=300)  # type: ignore[union-attr]
    nodes.hold_calls = lambda call: False
    nodes.held.clear()
    init(nodes, nodes[1], [nodes[1], nodes[2], nodes[3]], shards=2)
    assert {1, 2, 3} == set(nodes[1].engine.directory.nodes)
    assert 3 == len(nodes[1].engine.directory.shards)


def test_two_inits_at_once_do_not_tear_the_nodes_apart() -> None:
    """Two operators, two nodes, one moment: at most one goes through, and a repetition ends with one cluster."""
    for seed in range(5):
        nodes = Nodes(3, init=False, seed=seed)
        addresses = [node.address for node in nodes]

        async def both(nodes: Nodes = nodes, addresses: list[str] = addresses) -> list[object]:
            calls = [nodes[n].host.administration.init(addresses, 1) for n in (1, 2)]  # type: ignore[union-attr]
            return await asyncio.gather(*calls, return_exceptions=True)

        outcomes = administer(nodes, both())
        assert all(isinstance(outcome, (int, RaftCacheError)) for outcome in outcomes), outcomes
        for attempt in (1, 2):
            try:
                init(nodes, nodes[attempt])
            except RaftCacheError:
                continue
        works(nodes)


def test_member_that_makes_a_cluster_itself_joins_no_other() -> None:
    """Neither by an init of somebody else nor by a join."""
    nodes = blank(2)
    host = nodes[1].host
    assert host is not None
    host.making = ClusterId(5)
    other = first_directory(ClusterId(6), [host.own_entry()], 1)
    with pytest.raises(Unavailable):
        unwrap(host.answer(KIND_INIT, other.encode()))
    with pytest.raises(Unavailable):
        unwrap(host.answer(KIND_JOIN, (1).to_bytes(8, "little") + other.encode()))
    assert host.cluster is None


def test_restart_in_the_midst_of_an_init_begins_again_from_nothing() -> None:
    """Before the cluster's id is durable nothing of the attempt counts."""
    nodes = blank()
    entries = [node.host.own_entry() for node in nodes if node.host is not None]
    plan = first_directory(ClusterId(5), entries, 1)
    host = nodes[1].host
    assert host is not None
    steps = host._init_steps(plan)
    next(steps)
    nodes[1].crash(power_cut=False)
    nodes[1].start()
    assert nodes[1].host is not None
    assert nodes[1].host.cluster is None
    init(nodes, nodes[2])
    works(nodes)


# --- Joining ------------------------------------------------------------------------------------------------------


def member_and_stranger() -> tuple[Nodes, Node, Node]:
    nodes = Nodes(3)
    nodes.lead(CATALOG)
    return nodes, nodes[1], nodes.add()


def test_join_that_was_interrupted_is_finished_by_repeating_it() -> None:
    """The node is in the directory and was not told: asked again, it is told."""
    nodes, member, newcomer = member_and_stranger()
    nodes.hold_calls = lambda call: call.kind == KIND_JOIN
    assert member.host is not None
    assert newcomer.host is not None
    with pytest.raises((AssertionError, RaftCacheError)):
        administer(nodes, member.host.administration.node_join(newcomer.address), ticks=40)
    assert newcomer.node in member.engine.directory.nodes
    assert newcomer.host.cluster is None
    nodes.hold_calls = lambda call: False
    newcomer.crash()
    newcomer.start()
    for _ in range(2):
        assert newcomer.node == administer(nodes, member.host.administration.node_join(newcomer.address))
    nodes.tick(5)
    assert member.engine.directory == newcomer.engine.directory


def test_join_of_a_node_of_another_cluster_is_refused() -> None:
    """It keeps what it has."""
    nodes, member, newcomer = member_and_stranger()
    init(nodes, newcomer, [newcomer])
    assert member.host is not None
    with pytest.raises(PreconditionFailed, match="belongs to cluster"):
        administer(nodes, member.host.administration.node_join(newcomer.address))
    assert newcomer.node not in member.engine.directory.nodes


def test_joined_node_serves_clients_before_it_has_a_replica() -> None:
    """It finds the leaders by asking."""
    nodes, member, newcomer = member_and_stranger()
    nodes.lead()
    assert member.host is not None
    administer(nodes, member.host.administration.node_join(newcomer.address))
    asked = nodes.put(newcomer, b"k")
    nodes.tick(2)
    assert isinstance(asked.result, WriteResult)


def test_directory_that_does_not_name_the_node_makes_it_no_member() -> None:
    """A join with somebody else's invitation is refused."""
    _nodes, member, newcomer = member_and_stranger()
    assert newcomer.host is not None
    payload = (7).to_bytes(8, "little") + member.engine.directory.encode()
    with pytest.raises(InvalidRequest):
        unwrap(newcomer.host.answer(KIND_JOIN, payload))
    assert newcomer.host.cluster is None


def test_node_that_is_starting_refuses_forwarded_requests_definitely() -> None:
    """Its ports are open before its replicas are: whoever forwards to it is not left to an unknown outcome."""
    nodes = blank(1)
    request = Request("t", Put(b"k", b""), slot_of(b"k"), 10**12)
    answers: list[bytes] = []
    assert nodes[1].host is not None
    nodes[1].host.on_request(NodeId(2), KIND_FORWARD, encode_requests(SHARD, [request], 0), answers.append)
    [reply] = decode_replies(answers[0], [request])
    assert isinstance(reply.result, Unavailable)


# --- What goes between nodes --------------------------------------------------------------------------------------


def test_refusals_between_nodes_keep_their_class() -> None:
    """What one node raises, the other raises."""
    assert {"a": 1} == unwrap(wrap({"a": 1}))
    with pytest.raises(PreconditionFailed, match="because"):
        unwrap(wrap_error(PreconditionFailed("because")))


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"{}", b'{"error": 1}', b'{"error": ["X"]}', b"\xff\xfe", b"1"])
def test_answer_that_is_none_is_an_unknown_outcome(payload: bytes) -> None:
    """Of another release, or a bug: an operator sees an error, and no traceback."""
    with pytest.raises(OutcomeUnknown):
        unwrap(payload)


@pytest.mark.parametrize("kind", [*range(9), KIND_IDENTIFY, KIND_INIT, KIND_JOIN, 99])
@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"\xff" * 20, b"1"])
@pytest.mark.parametrize("joined", [True, False])
def test_nonsense_of_every_kind_gets_one_answer_and_ends_nothing(kind: int, payload: bytes, joined: bool) -> None:
    """Nothing that another node sends can end this one."""
    nodes = Nodes(1, init=joined)
    node = nodes[1]
    assert node.host is not None
    answers: list[bytes] = []
    node.host.on_request(NodeId(9), kind, payload, answers.append)
    nodes.run()
    assert 1 == len(answers)
    assert "" == node.fatal_reason
    assert node.host.cluster == (77 if joined else None)


def test_directory_survives_its_bytes() -> None:
    """Encoded and decoded it is the same, epoch and all."""
    nodes = Nodes(3, shards=3)
    directory = nodes[1].engine.directory
    assert directory == Directory.decode(directory.encode(), directory.epoch)
