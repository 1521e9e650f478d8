"""Replicas that come and go, carried out by the shards' leaders through crashes, partitions and changes of mind."""

from dataclasses import replace

import pytest

from raftcache.errors import OutcomeUnknown, PreconditionFailed, RaftCacheError, UnsupportedVersion
from raftcache.ids import NodeId, ReplicaId, ShardId
from raftcache.kv.operations import GetResult, WriteResult
from raftcache.node import administration
from raftcache.node.directory import Directory, DirectoryReplica, ReplicaChange
from raftcache.node.keeper import ASK_EVERY_TICKS, BALANCE_TENURE_NS
from raftcache.node.kinds import KIND_DIRECTORY, KIND_DIRECTORY_PUSH, KIND_FORWARD
from raftcache.node.settings import MS
from raftcache.raft.configuration import ConfigurationChange
from tests.node.nodes import (
    CATALOG,
    SHARD,
    Node,
    Nodes,
    administer,
    change,
    join,
    settled,
    voters,
)


@pytest.fixture(autouse=True)
def no_real_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polling costs ticks here, not seconds."""
    monkeypatch.setattr(administration, "POLL_SECONDS", 0)


def others(nodes: Nodes, node: Node) -> list[Node]:
    return [other for other in nodes if other is not node]


def four(**options: object) -> Nodes:
    """Three members and a fourth node that has joined and holds nothing."""
    nodes = Nodes(3, **options)  # type: ignore[arg-type]
    nodes.lead(CATALOG)
    nodes.lead()
    newcomer = nodes.add()
    join(nodes, newcomer, nodes[1])
    return nodes


def done(nodes: Nodes, shard: ShardId = SHARD) -> bool:
    """Whether all running nodes know that no change is in progress."""
    running = [node for node in nodes if node.host is not None and node.host.engine is not None]
    newest = max(node.engine.directory.epoch for node in running)
    return all(node.engine.directory.epoch == newest and settled(nodes, node, shard) for node in running)


def reads_back(nodes: Nodes, node: Node, key: bytes) -> None:
    asked = nodes.get(node, key)
    nodes.until(lambda: bool(asked.replies), "the read")
    assert isinstance(asked.result, GetResult)
    assert asked.result.entry is not None


# --- Coming and going ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", [SHARD, CATALOG])
@pytest.mark.parametrize("leads", [True, False])
def test_replica_moves_while_writes_go_on(shard: ShardId, leads: bool) -> None:
    """Of the leader or of a follower, of a shard or of the catalog: the newcomer catches up, then takes the place at once."""
    nodes = four()
    source = nodes[2]
    if leads:
        nodes.make_leader(source, shard)
    else:
        nodes.make_leader(nodes[1], shard)
    nodes.put(nodes[1], b"before")
    change(nodes, nodes[1], "move", source, nodes[4], shard)
    written = []
    for number in range(60):
        written.append(nodes.put(nodes[1], b"k%d" % number, timeout_ns=20_000 * MS))
        nodes.tick()
    nodes.until(lambda: done(nodes, shard), "the move")
    leader = nodes.lead(shard)
    assert {1, 3, 4} == voters(leader, shard)
    assert source.engine.local(shard) is None
    nodes.until(lambda: all(each.replies for each in written), "all replies")
    assert all(isinstance(each.result, WriteResult) for each in written)
    nodes.until(lambda: nodes.level(shard), "the replicas to be level")
    reads_back(nodes, nodes[4], b"before")


def test_group_grows_to_five_and_shrinks_to_three() -> None:
    """One by one, and it is the leader that goes each time."""
    nodes = four()
    fifth = nodes.add()
    join(nodes, fifth, nodes[1])
    for node in (nodes[4], fifth):
        change(nodes, nodes[1], "add", node)
        nodes.until(lambda: done(nodes), f"{node.node} to be added")
    assert {1, 2, 3, 4, 5} == voters(nodes.lead())
    nodes.put(nodes[1], b"k")
    for node in (nodes[1], nodes[2]):
        nodes.make_leader(node)
        change(nodes, nodes[1], "remove", node)
        nodes.until(lambda: done(nodes), f"{node.node} to be removed")
        assert not node.leads()
    assert {3, 4, 5} == voters(nodes.lead())
    nodes.until(nodes.level, "all to be level")
    reads_back(nodes, fifth, b"k")


def test_blank_learner_is_not_promoted() -> None:
    """Pitfall 33: before it has received a first snapshot, and caught up with what came since, it gets no vote."""
    nodes = four()
    nodes.put(nodes[1], b"k")
    nodes.hold_snapshots = True
    change(nodes, nodes[1], "add", nodes[4])
    nodes.tick(50)
    leader = nodes.lead()
    assert {1, 2, 3} == voters(leader)
    assert 1 == len(leader.replica().raft.configuration.learners)
    assert "first snapshot" in leader.engine.keeper.waiting_for[SHARD]
    # Asked for by name, too, it waits.
    change(nodes, nodes[1], "add", nodes[4])
    nodes.tick(10)
    assert {1, 2, 3} == voters(leader)
    nodes.hold_snapshots = False
    for start in nodes.held_snapshots:
        start()
    nodes.until(lambda: done(nodes), "the promotion")
    assert {1, 2, 3, 4} == voters(nodes.lead())


def test_learner_that_lags_is_not_promoted() -> None:
    """Pitfall 33: it has a state and does not keep up: no vote."""
    nodes = four(learner_lag_entries_max=5)
    nodes.hold_snapshots = True
    change(nodes, nodes[1], "add", nodes[4])
    nodes.tick(5)
    leader = nodes.lead()
    nodes.hold_snapshots = False
    learner = leader.replica().raft.configuration.learners
    assert learner
    for start in nodes.held_snapshots:
        start()
    # It takes the snapshot, and then its link is slow: nothing more arrives.
    send = leader.network.send

    def slow(node: NodeId, shard: ShardId, message: object) -> None:
        if not (node == 4 and shard == SHARD and type(message).__name__ == "Append"):
            send(node, shard, message)  # type: ignore[arg-type]

    leader.network.send = slow  # type: ignore[method-assign]
    for number in range(20):
        nodes.put(leader, b"k%d" % number)
    nodes.tick(30)
    assert {1, 2, 3} == voters(leader)
    leader.network.send = send  # type: ignore[method-assign]
    nodes.until(lambda: done(nodes), "the promotion")
    assert {1, 2, 3, 4} == voters(nodes.lead())


def test_dead_node_is_replaced() -> None:
    """Its replica moves although it does not answer, although the tolerance is 0: what is missing can only get better."""
    nodes = four()
    nodes.put(nodes[1], b"k")
    nodes.make_leader(nodes[1])
    nodes.make_leader(nodes[1], CATALOG)
    nodes[3].crash()
    nodes.tick(15)
    for shard in (SHARD, CATALOG):
        change(nodes, nodes[1], "move", nodes[3], nodes[4], shard)
        nodes.until(lambda shard=shard: done(nodes, shard), "the move")  # type: ignore[misc]
        assert {1, 2, 4} == voters(nodes.lead(shard), shard)
    assert nodes[1].host is not None
    assert "removed" in administer(nodes, nodes[1].host.administration.node_remove(NodeId(3)))
    # The dead node comes back with what it had: its replicas are gone for good, and nobody is disturbed.
    term = nodes.lead().replica().raft.term
    nodes[3].start()
    nodes.tick(3 * ASK_EVERY_TICKS)
    assert nodes[3].engine.local(SHARD) is None
    assert term == nodes.lead().replica().raft.term
    assert NodeId(3) not in nodes[1].engine.directory.nodes, "a removed node does not list itself again"


def test_removed_replica_in_a_partition_comes_back_to_nothing() -> None:
    """It was cut off while its group removed it; when it returns it disturbs nobody and is taken away."""
    nodes = Nodes(3)
    nodes.make_leader(nodes[1], CATALOG)
    leader = nodes.make_leader(nodes[1])
    removed = nodes[3]
    nodes.isolate(removed)
    change(nodes, leader, "remove", removed)
    nodes.until(lambda: settled(nodes, leader), "the removal")
    nodes.tick(30)
    term = leader.replica().raft.term
    nodes.heal()
    nodes.until(lambda: removed.engine.local(SHARD) is None, "the replica to be taken away", ticks=3 * ASK_EVERY_TICKS)
    assert leader.leads()
    assert term == leader.replica().raft.term
    reads_back(nodes, removed, b"k") if nodes.put(leader, b"k").replies else None


# --- Interrupted --------------------------------------------------------------------------------------------------


def test_joint_configuration_outlives_the_leader_that_began_it() -> None:
    """The leader dies between the two configurations: its successor leaves the joint one and brings the change to its end."""
    nodes = four()
    leader = nodes.make_leader(nodes[1])
    nodes.make_leader(nodes[2], CATALOG)
    change(nodes, leader, "move", nodes[3], nodes[4])
    nodes.until(lambda: bool(nodes[4].engine.local(SHARD)), "the replica to be created")
    for _ in range(100):
        if any(node.engine.local(SHARD) and node.replica().raft.configuration.voters_outgoing for node in nodes):
            break
        leader.clock.advance_ns(nodes.settings.tick_ns)
        leader.engine.tick()
        # Step by step, so that the moment is not missed.
        while not leader.replica().raft.configuration.voters_outgoing and (leader.scheduler.step() or nodes.mail):
            if nodes.mail:
                _origin, target, function = nodes.mail.popleft()
                function(nodes.nodes[target])
            for node in others(nodes, leader):
                while node.scheduler.step():
                    pass
    assert leader.replica().raft.configuration.voters_outgoing, "the joint configuration was begun"
    leader.crash()
    nodes.until(lambda: any(node.leads() for node in nodes), "a successor", ticks=100)
    nodes.until(lambda: done(nodes), "the end of the change", ticks=300)
    assert 3 not in voters(nodes.lead())
    leader.start()
    nodes.until(nodes.level, "all to be level")


@pytest.mark.parametrize("seed", range(6))
def test_change_survives_the_crash_of_every_leader_on_its_way(seed: int) -> None:
    """Whoever leads decides from facts: crashes at arbitrary moments delay a move and do not confuse it."""
    nodes = four(seed=seed)
    nodes.put(nodes[1], b"k")
    change(nodes, nodes[1], "move", nodes[2], nodes[4])
    for _ in range(4):
        nodes.tick(nodes.random.randrange(1, 12))
        victim = nodes.random.choice([node for node in nodes if node.host is not None])
        victim.crash()
        nodes.tick(nodes.random.randrange(1, 25))
        victim.start()
    nodes.until(lambda: done(nodes), "the move", ticks=400)
    assert {1, 3, 4} == voters(nodes.lead())
    nodes.until(nodes.level, "all to be level")
    reads_back(nodes, nodes.lead(), b"k")


def test_change_whose_node_never_comes_is_cancelled_by_removing_it() -> None:
    """The node died after it was named: `remove` of the replica that comes gives the change up, and another one can begin."""
    nodes = four()
    nodes.make_leader(nodes[1])
    nodes.hold_snapshots = True
    change(nodes, nodes[1], "move", nodes[2], nodes[4])
    nodes.tick(10)
    nodes[4].crash()
    nodes.tick(30)
    with pytest.raises(PreconditionFailed, match="cancels"):
        change(nodes, nodes[1], "remove", nodes[3])
    said = change(nodes, nodes[1], "remove", nodes[4])
    assert "cancel" in said
    nodes.until(lambda: done(nodes), "the change to be given up")
    leader = nodes.lead()
    assert {1, 2, 3} == voters(leader)
    assert () == leader.replica().raft.configuration.learners
    assert {1, 2, 3} == {placed.node for placed in leader.engine.directory.shards[SHARD].replicas}
    # Asked again it is so already; and another change may begin.
    assert "already" in change(nodes, nodes[1], "remove", nodes[4])
    nodes.hold_snapshots = False
    nodes[4].start()
    nodes.tick(30)
    change(nodes, nodes[1], "add", nodes[4])
    nodes.until(lambda: done(nodes), "the next change")
    assert {1, 2, 3, 4} == voters(nodes.lead())


def test_cancelling_before_anything_was_done_leaves_no_trace() -> None:
    """The shard had no leader to take the first step: the directory is as before, and the id is not used again."""
    nodes = four()
    leader = nodes.make_leader(nodes[1])
    nodes.make_leader(nodes[1], CATALOG)
    # The leader does not look at changes for now.
    step, leader.engine.keeper._step_changes = leader.engine.keeper._step_changes, lambda: None  # type: ignore[method-assign]
    change(nodes, leader, "add", nodes[4])
    incoming = leader.engine.directory.shards[SHARD].change
    assert incoming is not None
    change(nodes, leader, "remove", nodes[4])
    leader.engine.keeper._step_changes = step  # type: ignore[method-assign]
    nodes.until(lambda: done(nodes), "the change to be given up")
    directory = leader.engine.directory
    assert {1, 2, 3} == {placed.node for placed in directory.shards[SHARD].replicas}
    assert directory.next_replica > incoming.incoming
    nodes.until(lambda: nodes[4].engine.local(SHARD) is None, "its replica to be gone")


def test_cancelling_too_late_finishes_the_change() -> None:
    """The newcomer votes already: taking it out again would be another change, so this one is brought to its end."""
    nodes = four()
    leader = nodes.make_leader(nodes[1])
    nodes.make_leader(nodes[1], CATALOG)
    change(nodes, leader, "move", nodes[3], nodes[4])
    clear, leader.engine.keeper._clear = leader.engine.keeper._clear, lambda *_: None  # type: ignore[method-assign]
    nodes.until(lambda: {1, 2, 4} == voters(leader), "the newcomer to vote")
    change(nodes, leader, "remove", nodes[4])
    leader.engine.keeper._clear = clear  # type: ignore[method-assign]
    nodes.until(lambda: done(nodes), "the end of the change")
    assert {1, 2, 4} == voters(nodes.lead())
    assert {1, 2, 4} == {placed.node for placed in leader.engine.directory.shards[SHARD].replicas}


def test_member_that_the_directory_no_longer_lists_is_removed_from_the_group() -> None:
    """A leader with an old directory added a learner after the change was given up: the next look takes it out again."""
    nodes = four()
    leader = nodes.make_leader(nodes[1])
    directory = leader.engine.directory
    stray = ReplicaId(directory.next_replica)
    nodes.make_leader(nodes[1], CATALOG)
    outcomes: list[object] = []
    leader.engine.keeper.update(lambda d: replace(d, next_replica=d.next_replica + 1), outcomes.append)
    leader.replica().raft.propose_configuration(ConfigurationChange(add_learners=(stray,)))
    leader.engine.touch(leader.replica())
    nodes.tick(10)
    assert () == leader.replica().raft.configuration.learners
    assert leader.engine.directory.next_replica == stray + 1


def test_member_that_is_newer_than_the_directory_is_left_alone() -> None:
    """This node has not heard yet of the change that brings it."""
    nodes = four()
    leader = nodes.make_leader(nodes[1])
    stray = ReplicaId(leader.engine.directory.next_replica)
    leader.replica().raft.propose_configuration(ConfigurationChange(add_learners=(stray,)))
    leader.engine.touch(leader.replica())
    nodes.tick(10)
    assert (stray,) == leader.replica().raft.configuration.learners


# --- What is refused ----------------------------------------------------------------------------------------------


def test_change_that_risks_the_quorum_is_refused_with_the_numbers() -> None:
    """From three healthy voters to two, and from two live of three to one: the tolerance before and after is in the message."""
    nodes = Nodes(3)
    nodes.make_leader(nodes[1])
    with pytest.raises(PreconditionFailed, match="failure tolerance 1 now, 0 after"):
        change(nodes, nodes[1], "remove", nodes[2])
    nodes[3].crash()
    nodes.tick(15)
    with pytest.raises(PreconditionFailed, match="failure tolerance 0 now, -1 after"):
        change(nodes, nodes[1], "remove", nodes[2])
    # The dead one may go: that loses nothing.
    change(nodes, nodes[1], "remove", nodes[3])
    nodes.until(lambda: settled(nodes, nodes[1]), "the removal")
    assert {1, 2} == voters(nodes.lead())


def test_change_without_a_quorum_is_refused() -> None:
    """Nothing could be committed: it says so instead of waiting for ever."""
    nodes = four()
    nodes.make_leader(nodes[1])
    nodes[2].crash()
    nodes[3].crash()
    nodes.tick(25)
    with pytest.raises(PreconditionFailed, match="no quorum"):
        change(nodes, nodes[1], "add", nodes[4])


@pytest.mark.parametrize("action", ["add", "move"])
def test_dead_node_gets_no_replica(action: str) -> None:
    """A replica on a node that does not answer would keep every other change waiting."""
    nodes = four()
    nodes[4].crash()
    target = nodes[4] if action == "move" else None
    with pytest.raises(PreconditionFailed, match="does not answer"):
        change(nodes, nodes[1], action, nodes[2] if action == "move" else nodes[4], target)


def test_node_with_replicas_is_not_removed() -> None:
    """Dead or alive: the commands that move its replicas are in the message; once they have moved, it goes."""
    nodes = four()
    nodes.make_leader(nodes[1])
    nodes.make_leader(nodes[1], CATALOG)
    nodes[3].crash()
    nodes.tick(15)
    assert nodes[1].host is not None
    with pytest.raises(PreconditionFailed, match="raftcache shard replicas move 1 3"):
        administer(nodes, nodes[1].host.administration.node_remove(NodeId(3)))


# --- The directory on its way ------------------------------------------------------------------------------------


def test_node_that_missed_many_epochs_gets_the_newest_directory() -> None:
    """It was away while the directory changed a dozen times; two seconds after its return it has the last one."""
    nodes = four()
    nodes.make_leader(nodes[1], CATALOG)
    nodes.isolate(nodes[4])
    for number in range(12):
        outcomes: list[object] = []
        nodes[1].engine.keeper.update(
            lambda d, n=number: replace(d, session_limits=d.session_limits | {"sessions_max": n + 1}),  # type: ignore[misc]
            outcomes.append,
        )
        nodes.tick(2)
        assert isinstance(outcomes[0], Directory)
    nodes.heal()
    nodes.tick(3 * ASK_EVERY_TICKS)
    assert nodes[1].engine.directory == nodes[4].engine.directory


def test_lost_push_is_made_up_for_by_asking() -> None:
    """No push arrives anywhere: every node has the directory within a few seconds all the same."""
    nodes = four()
    nodes.hold_calls = lambda call: call.kind == KIND_DIRECTORY_PUSH
    leader = nodes.make_leader(nodes[1], CATALOG)
    outcomes: list[object] = []
    leader.engine.keeper.update(lambda d: replace(d, next_replica=d.next_replica + 1), outcomes.append)
    nodes.until(
        lambda: len({node.engine.directory.epoch for node in nodes}) == 1, "all to know", ticks=5 * ASK_EVERY_TICKS
    )


def test_directory_of_another_cluster_or_nonsense_is_not_adopted() -> None:
    """Whatever another node sends as a directory: it is refused, reported, and ends nothing."""
    nodes = Nodes(3)
    node = nodes.lead()
    assert node.host is not None
    directory = node.engine.directory
    foreign = replace(directory, cluster=type(directory.cluster)(5), epoch=99)
    newer = foreign.encode().replace(b'"format":1', b'"format":9')
    answers: list[bytes] = []
    epoch = (99).to_bytes(8, "little")
    for payload in (epoch + foreign.encode(), epoch + newer, epoch + b"{}", epoch + b"\xff", epoch + b"[]", b"\1" * 9):
        node.host.on_request(NodeId(2), KIND_DIRECTORY_PUSH, payload, answers.append)
        node.engine.keeper._on_told(payload)
    for payload in (b"", b"\1", b"\1" * 9):
        node.host.on_request(NodeId(2), KIND_DIRECTORY, payload, answers.append)
    assert 9 == len(answers)
    assert directory == node.engine.directory
    assert "bad_request_from_node" in node.observer.names()


def test_change_of_the_directory_with_a_lost_answer_is_made_once() -> None:
    """The compare-and-swap may or may not have gone through: it is read again, and not made twice."""
    nodes = four()
    nodes.make_leader(nodes[1], CATALOG)
    asking = nodes[4]
    lost: list[object] = []

    def lose(call: object) -> bool:
        # The first two answers of the catalog's leader: one to the read, one to the write.
        if call.kind == KIND_FORWARD and len(lost) < 4:  # type: ignore[attr-defined]
            lost.append(call)
            return len(lost) % 2 == 0
        return False

    nodes.lose_answers = lose  # type: ignore[assignment]
    before = nodes[1].engine.directory.next_replica
    outcomes: list[Directory | RaftCacheError] = []
    made: list[int] = []

    def once(directory: Directory) -> Directory:
        if directory.next_replica > before:
            return directory
        made.append(directory.epoch)
        return replace(directory, next_replica=before + 1)

    asking.engine.keeper.update(once, outcomes.append)
    nodes.until(lambda: bool(outcomes), "the outcome", ticks=300)
    assert isinstance(outcomes[0], Directory), outcomes
    assert before + 1 == outcomes[0].next_replica
    nodes.tick(5)
    assert before + 1 == nodes[1].engine.directory.next_replica


def test_change_of_the_directory_in_a_newer_format_is_an_error_and_no_crash() -> None:
    """A newer release wrote the directory: this one says so, to whoever wants to change it."""
    nodes = Nodes(1)
    node = nodes.lead(CATALOG)
    nodes.lead()

    def newer(data: bytes, epoch: int) -> Directory:
        raise UnsupportedVersion("format 9")

    outcomes: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Directory, "decode", staticmethod(newer))
        node.engine.keeper.update(lambda d: d, outcomes.append)
        nodes.tick(2)
    assert isinstance(outcomes[0], UnsupportedVersion)
    assert isinstance(nodes.put(node, b"k").result, WriteResult)


def test_change_that_is_cleared_twice_is_cleared_once() -> None:
    """Two leaders, one after the other, see it done: the second finds nothing to clear."""
    nodes = four()
    leader = nodes.make_leader(nodes[1])
    nodes.make_leader(nodes[1], CATALOG)
    change(nodes, leader, "add", nodes[4])
    nodes.until(lambda: done(nodes), "the change")
    epoch = leader.engine.directory.epoch
    directory = leader.engine.directory
    old = ReplicaChange("add", directory.shards[SHARD].replicas[-1].replica)
    for node in (nodes[1], nodes[2]):
        node.engine.keeper._clear(node.replica(), old)
        node.engine.keeper._clear(node.replica(), old)
    nodes.tick(5)
    assert epoch == leader.engine.directory.epoch


def test_node_that_was_restarted_on_other_ports_corrects_its_entry() -> None:
    """Its addresses in the directory follow by themselves, and all others learn them."""
    nodes = Nodes(3)
    nodes.lead(CATALOG)
    moved = nodes[2]
    moved.crash()
    moved.port = 7777
    moved.start()
    nodes.until(
        lambda: all(node.engine.directory.nodes[moved.node].peer_address == moved.address for node in nodes),
        "everybody to know the new address",
    )
    epoch = nodes[1].engine.directory.epoch
    nodes.tick(200)
    assert epoch == nodes[1].engine.directory.epoch, "once is enough"


# --- Leaders go home ----------------------------------------------------------------------------------------------


def preferred(nodes: Nodes) -> Node:
    placed = nodes[1].engine.directory.shards[SHARD].replicas[0]
    return nodes.nodes[placed.node]


def test_leadership_goes_home_after_a_while() -> None:
    """A leader that is not the preferred one hands over when it has led for long enough, and everything is level."""
    nodes = Nodes(3)
    home = preferred(nodes)
    away = others(nodes, home)[0]
    nodes.make_leader(away)
    nodes.tick(BALANCE_TENURE_NS // nodes.settings.tick_ns + 20)
    assert home.leads()


@pytest.mark.parametrize("reason", ["draining", "disk"])
def test_leadership_does_not_go_home_to_a_node_that_hands_it_off(reason: str) -> None:
    """A node that is leaving or has no room is left in peace: no shard goes back and forth between two nodes."""
    nodes = Nodes(3)
    home = preferred(nodes)
    away = others(nodes, home)[0]
    nodes.make_leader(away)
    if reason == "draining":
        home.engine.draining = True
    else:
        home.disk_free = 0
        nodes.tick(10)
    changes = away.replica().leader_changes
    nodes.tick(4 * BALANCE_TENURE_NS // nodes.settings.tick_ns)
    assert away.leads()
    assert changes == away.replica().leader_changes
    # When it is well again, the shard comes home.
    home.engine.draining = False
    home.disk_free = 1 << 40
    nodes.until(home.leads, "the leadership to go home", ticks=4 * BALANCE_TENURE_NS // nodes.settings.tick_ns)


def test_drained_node_leads_nothing_within_a_few_ticks_and_nobody_is_refused() -> None:
    """Planned hand-over: all shards move, writes that come meanwhile wait and succeed."""
    nodes = Nodes(3, shards=2)
    node = nodes[1]
    for shard in (CATALOG, SHARD, ShardId(2)):
        nodes.make_leader(node, shard)
    assert 3 == node.engine.drain()
    asked = [nodes.put(node, b"k%d" % number, run=False) for number in range(20)]
    nodes.run()
    nodes.tick(3)
    assert 0 == node.engine.drain()
    assert all(isinstance(each.result, WriteResult) for each in asked), [each.result for each in asked]


def test_transfer_of_leadership_is_waited_for() -> None:
    """The operator's call ends when the other node leads, and says so when asked again."""
    nodes = Nodes(3)
    nodes.make_leader(nodes[1])
    assert nodes[3].host is not None
    said = administer(nodes, nodes[3].host.administration.transfer_leader(SHARD, NodeId(2)))
    assert nodes[2].leads(), said
    assert "already" in administer(nodes, nodes[3].host.administration.transfer_leader(SHARD, NodeId(2)))


def test_transfer_to_a_dead_node_ends_as_unknown_in_time() -> None:
    """Its successor is not there: the call does not wait longer than it says, however slow the others answer."""
    nodes = Nodes(3)
    nodes.make_leader(nodes[1])
    nodes.make_leader(nodes[1], CATALOG)
    nodes[3].crash()
    nodes.tick(3)
    assert nodes[2].host is not None
    started_ns = nodes[2].clock.monotonic_ns()
    with pytest.raises(OutcomeUnknown):
        administer(nodes, nodes[2].host.administration.transfer_leader(SHARD, NodeId(3)))
    assert nodes[2].clock.monotonic_ns() - started_ns <= 8_000 * MS
    assert isinstance(nodes.put(nodes[2], b"k", timeout_ns=10_000 * MS).result, WriteResult)


def test_status_of_a_stopped_leader_is_not_that_of_a_leader() -> None:
    """A replica that a bug stopped while it led is shown as stopped, and does not count for the quorum."""
    nodes = Nodes(3)
    leader = nodes.lead()
    leader.engine.lifecycle.stop(leader.replica(), AssertionError("a bug"))
    assert leader.host is not None
    info = administer(nodes, leader.host.administration.cluster())
    shard = next(each for each in info.shards if each.shard == SHARD)
    assert shard.leader_node != leader.node
    assert 0 == shard.failure_tolerance
    assert any("a bug" in problem for problem in info.problems)
    assert leader.engine.leaders() == sum(r.leads for r in leader.engine.replicas.values())
    nodes.tick(30)
    info = administer(nodes, leader.host.administration.cluster())
    shard = next(each for each in info.shards if each.shard == SHARD)
    assert shard.leader_node not in (0, leader.node)


def test_status_names_a_replica_that_is_not_running() -> None:
    """A voter whose log is gone is a problem that an operator sees."""
    nodes = Nodes(1)
    node = nodes.lead()
    directory = node.engine.directory
    lost = DirectoryReplica(ReplicaId(directory.next_replica), NodeId(node.node), "voter")
    shard = replace(directory.shards[SHARD], shard=ShardId(2), ranges=(), replicas=(lost,))
    shards = directory.shards | {ShardId(2): shard}
    node.engine.adopt(
        replace(directory, epoch=directory.epoch + 1, shards=shards, next_replica=directory.next_replica + 1)
    )
    nodes.run()
    assert node.host is not None
    info = administer(nodes, node.host.administration.cluster())
    assert any("was a voter here" in problem for problem in info.problems), info.problems
