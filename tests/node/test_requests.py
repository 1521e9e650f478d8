"""Requests on their way: routed, forwarded, parked, refused; each gets exactly one reply, and nothing is counted for ever."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from raftcache.errors import (
    ANSWER_DROPPED,
    Corruption,
    DeadlineExpired,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RaftCacheError,
    Unavailable,
)
from raftcache.ids import Index, NodeId, Revision, ShardId, Slot
from raftcache.kv.codec import decode_batch
from raftcache.kv.machine import Machine
from raftcache.kv.operations import (
    Command,
    CompareAndSwap,
    Get,
    GetResult,
    Increment,
    Put,
    PutMany,
    PutManyResult,
    Scan,
    ScanResult,
    WriteResult,
)
from raftcache.kv.slots import slot_of
from raftcache.node.api import Consistency, Reply, Request
from raftcache.node.forwarding import AGAIN, decode_replies, encode_requests
from raftcache.node.kinds import KIND_FORWARD
from raftcache.node.replica import READ_BYTES_PER_TURN
from raftcache.node.router import ANSWER_BYTES_WAITING_MAX
from raftcache.node.settings import MS
from tests.node.nodes import SHARD, Asked, Node, Nodes, at_end_nothing_in_flight


def others(nodes: Nodes, node: Node) -> list[Node]:
    return [other for other in nodes if other is not node]


# --- Proposals and what becomes of them ---------------------------------------------------------------------------


def test_replaced_proposals_do_not_stop_their_replica_when_it_leads_again() -> None:
    """Batches of an old term beyond the log's new end: their indexes are proposed again, and the replica goes on."""
    nodes = Nodes(3, batches_in_flight_max=4, entry_commands_max=1)
    with at_end_nothing_in_flight(nodes):
        old = nodes.lead()
        nodes.isolate(old)
        lost = [nodes.put(old, b"k%d" % number, timeout_ns=60_000 * MS, ordered=True) for number in range(4)]
        new = others(nodes, old)[0]
        nodes.until(lambda: any(node.leads() for node in others(nodes, old)), "another leader")
        nodes.heal()
        nodes.until(lambda: old.replica().raft.leader != 0 and not old.leads(), "the old leader to follow")
        nodes.make_leader(old)
        again = [nodes.put(old, b"again%d" % number) for number in range(4)]
        nodes.until(lambda: all(asked.replies for asked in (*lost, *again)), "all replies")
        assert "" == old.replica().stopped
        assert all(isinstance(asked.result, WriteResult) for asked in again)
        assert all(isinstance(asked.result, (NotLeader, OutcomeUnknown)) for asked in lost)
        assert nodes.get(new, b"k3").result.entry is None  # type: ignore[attr-defined]


def test_replaced_proposal_is_refused_definitely_once_another_term_commits_at_its_index() -> None:
    """What was appended by a deposed leader and replaced never had an effect, and its caller is told so."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        old = nodes.lead()
        nodes.isolate(old)
        lost = nodes.put(old, b"k", timeout_ns=60_000 * MS, ordered=True)
        nodes.until(lambda: any(node.leads() for node in others(nodes, old)), "another leader")
        assert [] == lost.replies
        nodes.heal()
        nodes.until(lambda: bool(lost.replies), "the reply")
        assert isinstance(lost.result, NotLeader)
        assert lost.result.definite


def test_a_commit_and_a_round_of_reads_are_timed_one_at_a_time() -> None:
    """From the proposal until the majority has it, outages included; what waits beside the timed one is not timed itself."""
    nodes = Nodes(3, batches_in_flight_max=4, entry_commands_max=1, read_rounds_in_flight_max=4)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        told = leader.observer
        told.replicated_ns.clear()
        told.confirmed_ns.clear()
        nodes.isolate(leader)
        asked = [nodes.put(leader, b"k%d" % number, ordered=True) for number in range(3)]
        asked += [nodes.get(leader, b"k%d" % number) for number in range(3)]
        began_ns = leader.clock.monotonic_ns()
        nodes.tick(2)
        nodes.heal()
        nodes.until(lambda: all(each.replies for each in asked), "all replies")
        for took_ns in (told.replicated_ns, told.confirmed_ns):
            assert 1 == len(took_ns)
            assert 2 * nodes.settings.tick_ns <= took_ns[0] <= leader.clock.monotonic_ns() - began_ns


def test_what_another_leader_committed_in_its_place_is_not_timed() -> None:
    """The timed entry was replaced; the next one that this node proposes is timed as if nothing had been."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        old = nodes.lead()
        old.observer.replicated_ns.clear()
        nodes.isolate(old)
        lost = nodes.put(old, b"k", timeout_ns=60_000 * MS, ordered=True)
        nodes.until(lambda: any(node.leads() for node in others(nodes, old)), "another leader")
        nodes.heal()
        nodes.until(lambda: bool(lost.replies), "the reply")
        assert [] == old.observer.replicated_ns
        nodes.make_leader(old)
        again = nodes.put(old, b"again")
        nodes.until(lambda: bool(again.replies), "the reply")
        assert 1 == len(old.observer.replicated_ns)


def test_proposal_without_a_quorum_ends_as_unknown_at_its_deadline() -> None:
    """Whether it will ever be committed is open, and that is what the caller is told."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        nodes.isolate(leader)
        asked = nodes.put(leader, b"k", timeout_ns=500 * MS)
        nodes.until(lambda: bool(asked.replies), "the reply", ticks=6)
        assert isinstance(asked.result, OutcomeUnknown)


def test_unproposed_writes_of_a_stream_are_not_overtaken_when_leadership_moves() -> None:
    """A write that comes between the news of another leader and the next turn waits behind those that came before."""
    nodes = Nodes(3, batches_in_flight_max=1, entry_commands_max=1)
    with at_end_nothing_in_flight(nodes):
        old = nodes.lead()
        nodes.isolate(old)
        first = nodes.put(old, b"k", b"1", timeout_ns=60_000 * MS, ordered=True)
        second = nodes.put(old, b"k", b"2", timeout_ns=60_000 * MS, ordered=True)
        nodes.until(lambda: any(node.leads() for node in others(nodes, old)), "another leader")
        new = nodes.lead()
        # The old leader hears of the new one ...
        nodes.heal()
        for _ in range(new.engine.settings.heartbeat_ticks):
            new.engine.tick()
        while new.scheduler.step():
            pass
        mail = [entry for entry in nodes.mail if entry[1] == old.node]
        nodes.mail.clear()
        for _, _, function in mail:
            function(old)
        assert not old.leads()
        # ... and before its next turn another write of the same stream is there.
        third = nodes.put(old, b"k", b"3", timeout_ns=60_000 * MS, ordered=True)
        nodes.until(lambda: all(asked.replies for asked in (first, second, third)), "all replies")
        assert isinstance(second.result, WriteResult)
        assert isinstance(third.result, WriteResult)
        assert second.result.revision < third.result.revision
        assert b"3" == nodes.get(new, b"k").result.entry.value  # type: ignore[attr-defined]


def test_writes_of_a_stream_keep_their_order_through_a_handover() -> None:
    """Parked while leadership is handed over, and sent on: in the order in which they came, none refused."""
    nodes = Nodes(3, batches_in_flight_max=1, entry_commands_max=2)
    with at_end_nothing_in_flight(nodes):
        old = nodes.lead()
        target = others(nodes, old)[0]
        asked = [nodes.put(old, b"k", b"%d" % n, ordered=True, run=False) for n in range(5)]
        old.engine.transfer(old.replica(), target.replica().replica_id)
        asked += [nodes.put(old, b"k", b"%d" % n, ordered=True, run=False) for n in range(5, 10)]
        nodes.until(lambda: all(each.replies for each in asked), "all replies")
        assert target.leads()
        revisions = [each.result.revision for each in asked]  # type: ignore[attr-defined]
        assert sorted(revisions) == revisions
        assert b"9" == nodes.get(old, b"k").result.entry.value  # type: ignore[attr-defined]


def test_writes_of_a_stream_keep_their_order_when_their_replica_loses_leadership() -> None:
    """What it gives back came before what is parked, and goes in front of it."""
    nodes = Nodes(3, sync_inline_below_ns=0)
    old = nodes.lead()
    node, third = others(nodes, old)
    key, sink = b"{s}k", _Many()

    def submit(token: str, *, ordered: bool) -> None:
        put = Put(key if ordered else b"{s}other", token.encode())
        deadline_ns = node.clock.monotonic_ns() + 8_000 * MS
        node.engine.submit([Request(token, put, slot_of(key), deadline_ns, ordered=ordered)], sink)

    def parked() -> list[object]:
        return [request.token for request, _ in node.engine.router._parked.get(SHARD, ())]

    # Two puts are on their way to the old leader when leadership comes here.
    nodes.hold_calls = lambda call: call.kind == KIND_FORWARD and call.origin is node
    submit("u1", ordered=False)
    submit("u2", ordered=False)
    nodes.run()
    old.engine.transfer(old.replica(), node.replica().replica_id)
    nodes.run()
    assert node.leads()
    # A slow sync: the stream's first writes wait in the leader's queue.
    node.scheduler.hold = True
    submit("u0", ordered=False)
    while node.scheduler.step():
        pass
    assert node.engine.commit.syncing
    submit("w1", ordered=True)
    submit("w2", ordered=True)
    # The old leader refuses; one of the two is tried again before the next tick, the other stays parked.
    held, nodes.held = nodes.held, []
    for call in held:
        nodes.let_go(call)
        while nodes.mail or node.scheduler.soon or old.scheduler.soon:
            if nodes.mail:
                _, to, deliver = nodes.mail.popleft()
                deliver(nodes.nodes[to])
            node.scheduler.step()
            old.scheduler.step()
    submit("w3", ordered=True)
    assert ["u2", "w3"] == parked()
    # Leadership is lost before that sync ends.
    nodes.hold_calls = lambda call: False
    raft = third.replica().raft
    raft._become_candidate(transfer=True)
    third.engine.touch(third.replica())
    nodes.run()
    node.scheduler.hold = False
    nodes.until(lambda: len(sink.replies) == 6, "all replies")
    revisions = {reply.token: reply.result.revision for reply in sink.replies}  # type: ignore[attr-defined]
    assert revisions["w1"] < revisions["w2"] < revisions["w3"]
    assert b"w3" == nodes.get(nodes.lead(), key).result.entry.value  # type: ignore[attr-defined]


# --- Reads --------------------------------------------------------------------------------------------------------


def test_damage_met_by_one_read_loses_none_of_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads that were confirmed together with the one that meets a damaged record are answered, too."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        nodes.put(leader, b"a")
        read, damaged = Machine.read, [True]

        def maybe_damaged(self: Machine, operation: Get | Scan, slot: Slot) -> object:
            if damaged and isinstance(operation, Get) and operation.key == b"b":
                damaged.clear()
                raise Corruption("a record is damaged")
            return read(self, operation, slot)

        monkeypatch.setattr(Machine, "read", maybe_damaged)
        asked = [nodes.get(leader, key, run=False) for key in (b"a", b"b", b"c", b"d")]
        nodes.until(lambda: all(each.replies for each in asked), "all replies", ticks=60)
        assert all(isinstance(each.result, GetResult) for each in asked), [each.result for each in asked]
        nodes.until(nodes.level, "the rebuilt replica to be level")


def test_stale_reads_after_damage_do_not_touch_the_discarded_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of several stale reads meets damage: the state is given up, and the others are not read from it."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        follower = others(nodes, nodes.lead())[0]
        machine = follower.replica().machine
        read, touched = Machine.read, []

        def damaged(self: Machine, operation: Get | Scan, slot: Slot) -> object:
            if self is machine:
                touched.append(operation)
                raise Corruption("a record is damaged")
            return read(self, operation, slot)

        monkeypatch.setattr(Machine, "read", damaged)
        sink = _Many()
        deadline_ns = follower.clock.monotonic_ns() + 5_000 * MS
        stale = Consistency.STALE
        requests = [Request(n, Get(b"k"), slot_of(b"k"), deadline_ns, consistency=stale) for n in range(3)]
        follower.engine.submit(requests, sink)
        nodes.until(lambda: len(sink.replies) == 3, "all replies", ticks=60)
        assert 1 == len(touched)


@pytest.mark.parametrize("ask", [Nodes.get, Nodes.put])
def test_what_came_during_a_round_or_a_batch_goes_on_by_itself(ask: Callable[..., Asked]) -> None:
    """With a follower gone no later answer of that round or batch comes, and until the next tick nobody would think of it."""
    nodes = Nodes(3, batches_in_flight_max=1)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        nodes.put(leader, b"k")
        others(nodes, leader)[0].crash()
        asked = []
        for _ in range(3):
            asked.append(ask(nodes, leader, b"k", run=False))
            while leader.scheduler.step():
                pass
        assert not asked[0].replies
        nodes.run()
        assert all(isinstance(each.result, (GetResult, WriteResult)) for each in asked)


def test_reads_wait_until_their_index_is_applied() -> None:
    """Pitfall 15: a new leader has much to apply that was acknowledged by the one before, and reads see all of it."""
    nodes = Nodes(3, committed_bytes_per_ready=1, entry_commands_max=1, batches_in_flight_max=100)
    with at_end_nothing_in_flight(nodes):
        old = nodes.lead()
        nodes.run()
        writes = [nodes.put(old, b"k", b"%d" % number, run=False) for number in range(20)]
        nodes.run()
        assert all(isinstance(each.result, WriteResult) for each in writes)
        nodes.isolate(old)
        nodes.tick(10)
        # They wait for a leader, and are asked the moment that there is one.
        reads = [nodes.get(node, b"k", timeout_ns=60_000 * MS) for node in others(nodes, old)]
        nodes.until(lambda: all(read.replies for read in reads), "the replies")
        for read in reads:
            assert isinstance(read.result, GetResult)
            assert read.result.entry is not None
            assert b"19" == read.result.entry.value


def test_superseded_leader_answers_no_linearizable_read() -> None:
    """Pitfall 17: cut off from the others, a leader that was replaced finds no quorum for its read index."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        old = nodes.lead()
        nodes.put(old, b"k", b"old")
        nodes.isolate(old)
        read = nodes.get(old, b"k")
        nodes.until(lambda: any(node.leads() for node in others(nodes, old)), "another leader")
        nodes.put(nodes.lead(), b"k", b"new")
        nodes.tick(30)
        assert isinstance(read.result, (NotLeader, Unavailable))


# --- Stale reads --------------------------------------------------------------------------------------------------


def test_stale_read_of_a_level_follower_is_young_in_an_idle_cluster() -> None:
    """Heartbeats of a leader whose log it has completely are enough to know oneself level."""
    nodes = Nodes(3)
    leader = nodes.lead()
    nodes.put(leader, b"k")
    nodes.tick(50)
    follower = others(nodes, leader)[0]
    asked = nodes.get(follower, b"k", consistency=Consistency.STALE)
    assert isinstance(asked.result, GetResult)
    assert asked.reply.age_ms <= 200, asked.reply


def test_follower_that_is_behind_does_not_take_itself_for_level() -> None:
    """Heartbeats reach it but nothing else does: its stale reads grow old, although the heartbeats' commit is its own."""
    nodes = Nodes(3)
    leader = nodes.lead()
    follower = others(nodes, leader)[0]
    nodes.put(leader, b"k", b"1")
    nodes.tick(2)
    hold_back = leader.network.send

    def heartbeats_only(node: NodeId, shard: ShardId, message: object) -> None:
        if node != follower.node or type(message).__name__ == "Heartbeat" or shard != SHARD:
            hold_back(node, shard, message)  # type: ignore[arg-type]

    leader.network.send = heartbeats_only  # type: ignore[method-assign]
    assert isinstance(nodes.put(leader, b"k", b"2").result, WriteResult)
    nodes.tick(30)
    asked = nodes.get(follower, b"k", consistency=Consistency.STALE)
    assert b"1" == asked.result.entry.value  # type: ignore[attr-defined]
    assert asked.reply.age_ms >= 2_900, asked.reply


def test_stale_read_goes_to_another_node_where_there_is_no_replica() -> None:
    """A node without a replica of the shard asks one that has it."""
    nodes = Nodes(4)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        nodes.put(leader, b"k")
        nodes.tick(3)
        stranger = next(node for node in nodes if node.engine.local(SHARD) is None)
        asked = nodes.get(stranger, b"k", consistency=Consistency.STALE)
        assert isinstance(asked.result, GetResult)
        assert asked.reply.index > 0


# --- Deadlines ----------------------------------------------------------------------------------------------------


def test_each_forwarded_request_keeps_its_own_deadline() -> None:
    """Two requests leave in one payload and no answer comes: each is answered at its own deadline, not at the later one."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        follower = others(nodes, leader)[0]
        nodes.hold_calls = lambda call: call.kind == KIND_FORWARD
        sink = _Many()
        now_ns = follower.clock.monotonic_ns()
        soon = Request("soon", Put(b"a", b""), slot_of(b"a"), now_ns + 300 * MS)
        read = Request("read", Get(b"a"), slot_of(b"a"), now_ns + 300 * MS)
        late = Request("late", Put(b"a", b""), slot_of(b"a"), now_ns + 30_000 * MS)
        follower.engine.submit([soon, read, late], sink)
        nodes.run()
        nodes.tick(4)
        results = {reply.token: reply.result for reply in sink.replies}
        assert isinstance(results["soon"], OutcomeUnknown)
        assert isinstance(results["read"], DeadlineExpired)
        assert "late" not in results
        # The late answer finds the one that still waits, and nobody else.
        nodes.let_go(nodes.held.pop())
        nodes.run()
        assert 3 == len(sink.replies)
        assert isinstance(sink.replies[-1].result, WriteResult)


def test_parked_requests_are_refused_when_the_patience_ends() -> None:
    """Without a leader a request is kept for a while, then refused definitely; its deadline, if earlier, ends it before."""
    nodes = Nodes(3, patience_ns=1_000 * MS)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        survivor = others(nodes, leader)[0]
        for node in others(nodes, survivor):
            node.crash()
        nodes.until(lambda: survivor.replica().raft.leader == 0, "the leader to be missed")
        patient = nodes.put(survivor, b"k", timeout_ns=60_000 * MS)
        hasty = nodes.put(survivor, b"k", timeout_ns=300 * MS)
        nodes.tick(12)
        assert isinstance(patient.result, Unavailable)
        assert isinstance(hasty.result, DeadlineExpired)


def test_limit_of_requests_in_flight_refuses_the_rest_at_once() -> None:
    """Pitfall 29: without a quorum what is taken is bounded; beyond it callers are refused, definitely."""
    nodes = Nodes(3, in_flight_requests_max=10)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        nodes.isolate(leader)
        asked = [nodes.put(leader, b"k%d" % n, timeout_ns=300 * MS) for n in range(15)]
        refused = [each for each in asked if each.replies]
        assert 5 == len(refused)
        assert all(isinstance(each.result, Overloaded) for each in refused)
        nodes.tick(5)
        assert all(each.replies for each in asked)


# --- Forwarding ---------------------------------------------------------------------------------------------------


def test_forwarded_request_is_never_forwarded_again() -> None:
    """A node that is taken for the leader and is not answers with what it knows, and sends nothing on."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        follower, third = others(nodes, leader)
        forwarded: list[tuple[NodeId, NodeId]] = []

        def watch(call: object) -> bool:
            if call.kind == KIND_FORWARD:  # type: ignore[attr-defined]
                forwarded.append((call.origin.node, call.target))  # type: ignore[attr-defined]
            return False

        nodes.hold_calls = watch  # type: ignore[assignment]
        follower.engine.places.leader_node = lambda shard: third.node  # type: ignore[method-assign, assignment]
        asked = nodes.put(follower, b"k", ordered=True)
        assert isinstance(asked.result, NotLeader)
        assert str(leader.node) == asked.result.metadata["leader_node"]
        assert [(follower.node, third.node)] == forwarded


def test_refusal_with_a_hint_is_followed_at_once() -> None:
    """A request that met the wrong node goes to the one it names, without waiting for the next tick."""
    nodes = Nodes(4)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        stranger = next(node for node in nodes if node.engine.local(SHARD) is None)
        wrong = next(node for node in nodes if node not in (leader, stranger))
        stranger.engine.places.learned_leader(SHARD, wrong.node)
        asked = nodes.put(stranger, b"k")
        assert isinstance(asked.result, WriteResult)


def test_two_nodes_that_name_each_other_do_not_play_ball() -> None:
    """Hints that lead in a circle are followed a bounded number of times a tick."""
    nodes = Nodes(4)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        stranger = next(node for node in nodes if node.engine.local(SHARD) is None)
        a, b = [node for node in nodes if node not in (leader, stranger)]
        a.engine.router.not_leader = lambda shard: _hint(shard, b.node)  # type: ignore[method-assign]
        b.engine.router.not_leader = lambda shard: _hint(shard, a.node)  # type: ignore[method-assign]
        stranger.engine.places.learned_leader(SHARD, a.node)
        forwarded_before = stranger.engine.router.forwarded
        asked = nodes.put(stranger, b"k")
        nodes.tick(10)
        assert stranger.engine.router.forwarded - forwarded_before <= 30
        nodes.until(lambda: bool(asked.replies), "the reply", ticks=60)


def _hint(shard: ShardId, node: NodeId) -> NotLeader:
    return NotLeader("not here", metadata={"shard": str(shard), "leader_node": str(node), "leader_address": ""})


def test_stranger_without_a_hint_asks_before_it_forwards() -> None:
    """A stream's first writes through a node without a replica are not risked on a guess."""
    for seed in range(4):
        nodes = Nodes(4, seed=seed)
        with at_end_nothing_in_flight(nodes):
            nodes.lead()
            stranger = next(node for node in nodes if node.engine.local(SHARD) is None)
            asked = [nodes.put(stranger, b"k", b"%d" % n, ordered=True, run=False) for n in range(3)]
            nodes.tick(3)
            assert all(isinstance(each.result, WriteResult) for each in asked), [each.result for each in asked]


def test_forwarding_to_a_guess_does_not_storm_while_there_is_no_leader() -> None:
    """Many requests that wait for a leader are not sent around with every tick."""
    nodes = Nodes(4, patience_ns=60_000 * MS)
    leader = nodes.lead()
    stranger = next(node for node in nodes if node.engine.local(SHARD) is None)
    alive = next(node for node in nodes if node not in (leader, stranger))
    for node in nodes:
        if node not in (alive, stranger):
            node.crash()
    nodes.tick(30)
    forwarded_before = stranger.engine.router.forwarded
    asked = [nodes.put(stranger, b"k%d" % n, timeout_ns=60_000 * MS) for n in range(50)]
    nodes.tick(50)
    assert stranger.engine.router.forwarded - forwarded_before <= 100
    for node in nodes:
        if node.host is None:
            node.start()
    nodes.until(lambda: all(each.replies for each in asked), "all replies")
    assert all(isinstance(each.result, WriteResult) for each in asked)


def test_nothing_is_encoded_for_a_leader_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until another is elected it is the one that is known; what waits for it is not tried at every tick."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        node = others(nodes, leader)[0]
        resting = [leader.node]
        monkeypatch.setattr(node.engine.network, "resting", lambda other: other in resting)
        asked = [nodes.put(node, b"k%d" % number) for number in range(20)]
        nodes.tick(5)
        assert (20, 0) == (node.engine.router.parked(), node.engine.router.forwarded)
        resting.clear()
        nodes.until(lambda: all(each.replies for each in asked), "all replies")
        assert all(isinstance(each.result, WriteResult) for each in asked)


def test_payloads_for_other_nodes_fit_their_frames() -> None:
    """What one turn brings is divided, also where frames are small, and answers with large values go alone."""
    nodes = Nodes(3, frame_bytes_max=256 << 10)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        node = others(nodes, leader)[0]
        sizes: list[int] = []
        nodes.hold_calls = lambda call: bool(sizes.append(len(call.payload)))  # type: ignore[func-returns-value]
        sink, deadline_ns = _Many(), node.clock.monotonic_ns() + 5_000 * MS
        puts = [Put(b"k%d" % number, bytes(60 << 10), return_previous=number % 2 == 0) for number in range(30)]
        node.engine.submit([Request(put.key, put, slot_of(put.key), deadline_ns) for put in puts], sink)
        nodes.run()
        assert 30 == len(sink.replies)
        assert max(sizes) <= 256 << 10
        assert len(sizes) >= 15


@pytest.mark.parametrize("consistency", [*Consistency])
def test_large_values_are_read_as_they_are_taken(consistency: Consistency) -> None:
    """No limit counts values that are read and not handed out, so there are few of them, however many are asked for."""
    nodes = Nodes(1)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        nodes.put(leader, b"big", bytes(512 << 10))
        sink, deadline_ns = _Lists(), leader.clock.monotonic_ns() + 5_000 * MS
        leader.engine.submit(
            [Request(n, Get(b"big"), slot_of(b"big"), deadline_ns, consistency=consistency) for n in range(100)], sink
        )
        nodes.run()
        assert sorted(reply.token for reply in sink.replies) == list(range(100)), "no tick is needed for the rest"
        assert 0 < sink.most <= READ_BYTES_PER_TURN + (512 << 10)


def test_large_values_of_many_shards_are_read_as_they_are_taken() -> None:
    """The bytes of one turn are all replicas' together; those that got none come first in the next."""
    nodes = Nodes(1, shards=16)
    with at_end_nothing_in_flight(nodes):
        node = nodes[1]
        keys: dict[ShardId, bytes] = {}
        for number in range(1_000):
            keys.setdefault(node.engine.owner(slot_of(b"k%d" % number)), b"k%d" % number)
        for shard, key in keys.items():
            nodes.lead(shard)
            assert isinstance(nodes.put(node, key, bytes(1 << 20)).result, WriteResult)
        sink, deadline_ns = _Lists(), node.clock.monotonic_ns() + 5_000 * MS
        asked = [
            Request((n, shard), Get(key), slot_of(key), deadline_ns) for n in range(3) for shard, key in keys.items()
        ]
        node.engine.submit(asked, sink)
        nodes.run()
        assert sorted(reply.token for reply in sink.replies) == sorted(request.token for request in asked)
        assert 0 < sink.most <= READ_BYTES_PER_TURN + (1 << 20)
        first = {reply.token[1] for reply in sink.replies[:16]}  # type: ignore[attr-defined]
        assert set(keys) == first, "every shard has its turn before one has a second"


def test_stale_reads_that_wait_are_not_overtaken() -> None:
    """With new ones in every turn they would wait for ever."""
    nodes = Nodes(1)
    with at_end_nothing_in_flight(nodes):
        node = nodes.lead()
        nodes.put(node, b"big", bytes(1 << 20))
        sink = _Many()
        for turn in range(10):
            deadline_ns = node.clock.monotonic_ns() + 5_000 * MS
            tokens = range(10 * turn, 10 * turn + (8 if turn == 0 else 4))
            node.engine.submit(
                [Request(n, Get(b"big"), slot_of(b"big"), deadline_ns, consistency=Consistency.STALE) for n in tokens],
                sink,
            )
            node.scheduler.step()
        nodes.run()
        tokens_answered = [reply.token for reply in sink.replies]  # type: ignore[attr-defined]
        assert 44 == len(tokens_answered)
        assert sorted(tokens_answered) == tokens_answered


def test_stale_reads_that_wait_end_at_their_deadline() -> None:
    """Whether or not their turn comes."""
    nodes = Nodes(1)
    node = nodes.lead()
    nodes.put(node, b"big", bytes(1 << 20))
    sink, deadline_ns = _Many(), node.clock.monotonic_ns() + 50 * MS
    stale = Consistency.STALE
    requests = [Request(n, Get(b"big"), slot_of(b"big"), deadline_ns, consistency=stale) for n in range(20)]
    node.engine.router.submit(requests, sink)
    node.clock.advance_ns(100 * MS)
    node.engine.router.tick(node.clock.monotonic_ns())
    node.engine.router.flush()
    late = [reply for reply in sink.replies if isinstance(reply.result, DeadlineExpired)]  # type: ignore[attr-defined]
    assert (20, 16) == (len(sink.replies), len(late))
    assert 0 == node.engine.router.in_flight


@pytest.mark.parametrize("consistency", [*Consistency])
def test_a_bug_met_by_a_read_that_waited_stops_its_replica_only(
    consistency: Consistency, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn goes on, and everybody is answered."""
    read = Machine.read

    def with_a_bug(self: Machine, operation: Get | Scan, slot: Slot) -> object:
        assert operation != Get(b"bad"), "a bug"
        return read(self, operation, slot)

    monkeypatch.setattr(Machine, "read", with_a_bug)
    nodes = Nodes(1)
    with at_end_nothing_in_flight(nodes):
        node = nodes.lead()
        nodes.put(node, b"big", bytes(1 << 20))
        sink, deadline_ns = _Many(), node.clock.monotonic_ns() + 5_000 * MS
        keys = [b"big"] * 6 + [b"bad"] + [b"big"] * 10
        node.engine.submit(
            [Request(n, Get(key), slot_of(key), deadline_ns, consistency=consistency) for n, key in enumerate(keys)],
            sink,
        )
        nodes.until(lambda: len(sink.replies) == len(keys), "all replies", ticks=60)
        assert "a bug" in node.replica().stopped


def test_a_stale_read_that_meets_a_bug_does_not_go_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would stop one replica after the other."""
    nodes = Nodes(3)
    leader = nodes.lead()
    node = others(nodes, leader)[0]
    monkeypatch.setattr(Machine, "read", lambda self, operation, slot: 1 // 0)
    deadline_ns = node.clock.monotonic_ns() + 5_000 * MS
    sink = _Many()
    node.engine.submit([Request(0, Get(b"k"), slot_of(b"k"), deadline_ns, consistency=Consistency.STALE)], sink)
    nodes.tick(60)
    (reply,) = sink.replies
    assert type(reply.result) is RaftCacheError  # type: ignore[attr-defined]
    assert [node] == [each for each in nodes if each.replica().stopped]


@pytest.mark.parametrize("consistency", [*Consistency])
def test_large_reads_for_another_node_are_not_done_in_vain(
    consistency: Consistency, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit into the answer is not read before it is asked for again."""
    read, done = Machine.read, [0]

    def counted(self: Machine, operation: Get | Scan, slot: Slot) -> object:
        done[0] += 1
        return read(self, operation, slot)

    monkeypatch.setattr(Machine, "read", counted)
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        follower = others(nodes, leader)[0]
        nodes.put(leader, b"big", bytes(512 << 10))
        now_ns = follower.clock.monotonic_ns()
        requests = [
            Request(n, Get(b"big"), slot_of(b"big"), now_ns + 5_000 * MS, consistency=consistency) for n in range(100)
        ]
        rounds = 0
        while requests:
            answers: list[bytes] = []
            leader.host.on_request(
                follower.node, KIND_FORWARD, encode_requests(SHARD, requests, now_ns), answers.append
            )
            nodes.run()
            replies = decode_replies(answers[0], requests)
            requests = [each for each, reply in zip(requests, replies, strict=True) if is_again(reply)]
            rounds += 1
        assert (rounds, done[0]) <= (17, 150)


def test_nothing_is_read_for_a_node_that_does_not_take_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would pile up, until the transport cuts the link that Raft needs as well."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        nodes.put(leader, b"k")
        now_ns = leader.clock.monotonic_ns()
        request = Request(0, Get(b"k"), slot_of(b"k"), now_ns + 5_000 * MS)
        waiting = [ANSWER_BYTES_WAITING_MAX + 1, 0]
        monkeypatch.setattr(leader.engine.network, "answer_bytes_waiting", lambda node: waiting[0])
        found = []
        for _ in range(2):
            answers: list[bytes] = []
            payload = encode_requests(SHARD, [request], now_ns)
            leader.host.on_request(NodeId(3), KIND_FORWARD, payload, answers.append)
            nodes.run()
            (reply,) = decode_replies(answers[0], [request])
            found.append((is_again(reply), type(reply.result)))
            waiting.pop(0)
        assert [(True, Unavailable), (False, GetResult)] == found


def test_reads_wait_while_answers_to_their_node_are_incomplete() -> None:
    """Their values are held until the last write of their payload is committed; beyond 16 MiB nothing is read for that node."""
    nodes = Nodes(3, sync_inline_below_ns=-1)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        follower = others(nodes, leader)[0]
        nodes.put(leader, b"big", bytes(1 << 20))
        for node in nodes:
            node.scheduler.hold = True
        sink, deadline_ns = _Many(), follower.clock.monotonic_ns() + 5_000 * MS
        for number in range(20):
            gets = [Request((number, n), Get(b"big"), slot_of(b"big"), deadline_ns) for n in range(4)]
            put = Request((number, 4), Put(b"w", b"v"), slot_of(b"w"), deadline_ns)
            follower.engine.submit([*gets, put], sink)
            nodes.run()
        assert not sink.replies
        held = leader.engine.router._incomplete[follower.node]
        assert ANSWER_BYTES_WAITING_MAX < held <= ANSWER_BYTES_WAITING_MAX + (5 << 20)
        for node in nodes:
            node.scheduler.hold = False
        nodes.until(lambda: len(sink.replies) == 100, "all replies", ticks=60)
        wrong = [reply for reply in sink.replies if isinstance(reply.result, RaftCacheError)]  # type: ignore[attr-defined]
        assert not wrong
        assert 0 == leader.engine.router._incomplete[follower.node]


def test_writes_that_may_return_large_values_share_entries_and_payloads_within_limits() -> None:
    """What they return is there at once when their entry is applied, and goes back in one answer. What returns nothing does not
    count."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        payloads: list[int] = []
        nodes.hold_calls = lambda call: bool(payloads.append(len(call.payload)))  # type: ignore[func-returns-value]
        for node, most in ((leader, 0), (others(nodes, leader)[0], 1_000 // 32 + 1)):
            first = leader.replica().log.last_index() + 1
            sink, deadline_ns = _Many(), node.clock.monotonic_ns() + 5_000 * MS
            swaps = [CompareAndSwap(b"k%d" % number, None, b"v") for number in range(1_000)]
            node.engine.submit([Request(n, swap, slot_of(swap.key), deadline_ns) for n, swap in enumerate(swaps)], sink)
            nodes.run()
            assert 1_000 == len(sink.replies)
            last = leader.replica().log.last_index()
            entries = leader.replica().log.entries(Index(first), Index(last + 1), 1 << 30)
            counts = [len(decode_batch(entry.data).commands) for entry in entries]
            assert 1_000 == sum(counts)
            assert max(counts) <= 128
            assert len(payloads) == most
        payloads.clear()
        increments = [Request(n, Increment(b"n%d" % n), slot_of(b"n%d" % n), deadline_ns) for n in range(1_000)]
        before = leader.replica().log.last_index()
        others(nodes, leader)[0].engine.submit(increments, _Many())
        nodes.run()
        assert (1, before + 1) == (len(payloads), leader.replica().log.last_index())


def test_reads_without_any_room_are_asked_for_with_each_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in one payload, and none after its deadline; at once they would go to and fro for ever."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        follower = others(nodes, leader)[0]
        nodes.put(leader, b"k")
        waiting = [ANSWER_BYTES_WAITING_MAX + 1]
        monkeypatch.setattr(leader.engine.network, "answer_bytes_waiting", lambda node: waiting[0])
        kinds: list[int] = []
        nodes.hold_calls = lambda call: bool(kinds.append(call.kind))  # type: ignore[func-returns-value]
        sink, now_ns = _Many(), follower.clock.monotonic_ns()
        ticks_ns = [now_ns + count * nodes.settings.tick_ns for count in range(100)]
        for token, deadline_ns in enumerate((ticks_ns[3], ticks_ns[50], ticks_ns[50])):
            follower.engine.submit([Request(token, Get(b"k"), slot_of(b"k"), deadline_ns)], sink)
            nodes.run()
        assert 3 == kinds.count(KIND_FORWARD)
        nodes.tick(2)
        assert 5 == kinds.count(KIND_FORWARD), "all of them in one payload"
        nodes.tick(2)
        (late,) = sink.replies
        assert isinstance(late.result, DeadlineExpired)  # type: ignore[attr-defined]
        assert leader.node == follower.engine.known_leader(SHARD)
        waiting[0] = 0
        nodes.tick(1)
        assert [GetResult] * 2 == [type(reply.result) for reply in sink.replies[1:]]  # type: ignore[attr-defined]


def test_a_leader_whose_answer_was_dropped_still_leads() -> None:
    """It did answer: the write's outcome is unknown, a read may be repeated, and nobody looks for another leader."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        follower = others(nodes, leader)[0]
        nodes.put(follower, b"k")
        dropped = OutcomeUnknown("it carried it out and dropped the answer", metadata=dict(ANSWER_DROPPED))
        deadline_ns, sink = follower.clock.monotonic_ns() + 5_000 * MS, _Many()
        operations = (Put(b"k", b"v"), Get(b"k"))
        part = [
            (Request(n, each, slot_of(b"k"), deadline_ns, give_up_ns=deadline_ns), sink)
            for n, each in enumerate(operations)
        ]
        router = follower.engine.router
        router.in_flight += 2
        router._on_forward_failed(SHARD, part, dropped, to_leader=True)
        router._wake()
        assert leader.node == follower.engine.known_leader(SHARD)
        nodes.run()
        put, get = sink.replies
        assert isinstance(put.result, OutcomeUnknown)  # type: ignore[attr-defined]
        assert "did not answer" not in put.result.message  # type: ignore[attr-defined]
        assert isinstance(get.result, GetResult)  # type: ignore[attr-defined]


def test_what_is_forwarded_to_a_node_that_ends_is_answered() -> None:
    """With a definite refusal; without, its sender would have to take it for unknown."""
    nodes = Nodes(3)
    leader = nodes.lead()
    now_ns = leader.clock.monotonic_ns()
    request = Request(0, Put(b"k", b"v"), slot_of(b"k"), now_ns + 5_000 * MS)
    answers: list[bytes] = []
    leader.engine.close()
    leader.host.on_request(NodeId(3), KIND_FORWARD, encode_requests(SHARD, [request], now_ns), answers.append)
    (reply,) = decode_replies(answers[0], [request])
    assert isinstance(reply.result, Unavailable)
    assert reply.result.definite


def test_large_reads_through_another_node_all_come_back_without_delay() -> None:
    """What does not fit into one payload between nodes is asked for again at once, gets and scans alike."""
    nodes = Nodes(3, segment_bytes=32 << 20)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        follower = others(nodes, leader)[0]
        for number in range(12):
            assert isinstance(nodes.put(leader, b"big%d" % number, b"x" * 900_000).result, WriteResult)
        sink = _Many()
        deadline_ns = follower.clock.monotonic_ns() + 5_000 * MS
        gets = [Request(n, Get(b"big%d" % n), slot_of(b"big%d" % n), deadline_ns) for n in range(12)]
        scan = Scan(b"big5", None, limit=1)
        scans = [Request(12 + n, scan, Slot(-1), deadline_ns, shard=SHARD) for n in range(10)]
        follower.engine.submit([*gets, *scans], sink)
        nodes.run()
        results = {reply.token: reply.result for reply in sink.replies}
        assert all(isinstance(results[n], GetResult) for n in range(12)), results
        assert all(isinstance(results[n], ScanResult) for n in range(12, 22)), results
        assert nodes.answer_bytes_max <= 6 << 20


def test_reply_that_is_lost_between_nodes_is_unknown_for_a_write_and_asked_again_for_a_read() -> None:
    """The leader carried it out, perhaps: the write is unknown; the read is simply read again."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        follower = others(nodes, leader)[0]
        nodes.lose_answers = lambda call: call.kind == KIND_FORWARD
        write = nodes.put(follower, b"k", timeout_ns=400 * MS)
        read = nodes.get(follower, b"k", timeout_ns=400 * MS)
        nodes.tick(5)
        assert isinstance(write.result, OutcomeUnknown)
        assert isinstance(read.result, (Unavailable, DeadlineExpired))
        nodes.lose_answers = lambda call: False
        assert nodes.get(follower, b"k").result.entry is not None  # type: ignore[attr-defined]


@pytest.mark.parametrize("slot", [-2, -1, 16384, 1 << 30])
def test_impossible_slot_from_another_node_is_refused_and_leaks_nothing(slot: int) -> None:
    """What another node sends can end neither this one nor its count of requests in flight."""
    from raftcache.node.forwarding import encode_requests

    nodes = Nodes(1)
    with at_end_nothing_in_flight(nodes):
        node = nodes.lead()
        assert node.host is not None
        answers: list[bytes] = []
        payload = encode_requests(SHARD, [Request(0, Put(b"k", b""), Slot(slot), 10**12)], 0)
        node.host.on_request(NodeId(9), KIND_FORWARD, payload, answers.append)
        nodes.run()
        assert 1 == len(answers)


@pytest.mark.parametrize("payload", [b"", b"\1", b"\1" + b"\0" * 8, b"\1" + b"\xff" * 8, b"\xff" * 40])
def test_unreadable_forwarded_payload_gets_an_answer(payload: bytes) -> None:
    """Garbage of kind `FORWARD` is answered with nothing, and counted nowhere."""
    nodes = Nodes(1)
    with at_end_nothing_in_flight(nodes):
        node = nodes.lead()
        assert node.host is not None
        answers: list[bytes] = []
        node.host.on_request(NodeId(9), KIND_FORWARD, payload, answers.append)
        nodes.run()
        assert 1 == len(answers)


@pytest.mark.parametrize("payload", [b"", b"\1", b"\1" + b"\0" * 8, b"\1\1\0\0\0\1\0\0\0" + b"\0" * 16, b"\xff" * 40])
def test_unreadable_answer_to_a_forwarded_write_is_an_unknown_outcome(payload: bytes) -> None:
    """Whatever comes back instead of replies: the write may have been carried out."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        follower = others(nodes, leader)[0]
        nodes.hold_calls = lambda call: call.kind == KIND_FORWARD
        asked = nodes.put(follower, b"k")
        nodes.held.pop().answer(payload)
        nodes.run()
        assert isinstance(asked.result, OutcomeUnknown)


# --- Slots and shards ---------------------------------------------------------------------------------------------


def test_request_for_a_slot_that_nobody_owns_finds_its_shard_when_the_directory_comes() -> None:
    """It waits for a directory that names an owner, and then goes there."""
    nodes = Nodes(1)
    with at_end_nothing_in_flight(nodes):
        node = nodes.lead()
        directory = node.engine.directory
        bare = replace(directory, shards={s: replace(d, ranges=()) for s, d in directory.shards.items()})
        node.engine.adopt(replace(bare, epoch=directory.epoch + 1))
        nodes.run()
        asked = nodes.put(node, b"k")
        assert [] == asked.replies
        node.engine.adopt(replace(directory, epoch=directory.epoch + 2))
        nodes.tick(2)
        assert isinstance(asked.result, WriteResult)


def test_request_that_met_the_wrong_shard_goes_to_the_owner_of_the_newer_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slot that has moved: the request is sent again by the slot, not to the shard that refused it."""
    nodes = Nodes(1, shards=2)
    with at_end_nothing_in_flight(nodes):
        node = nodes.lead()
        nodes.lead(ShardId(2))
        slot = slot_of(b"k")
        old = node.engine.owner(slot)
        new = ShardId(3 - old)
        apply = Machine._put

        def moved(self: Machine, keys: Sequence[bytes], values: Sequence[bytes]) -> list[int]:
            if self.shard == old:
                return list(range(len(keys)))
            self._owned = b"\1" * 16384
            return apply(self, keys, values)

        monkeypatch.setattr(Machine, "_put", moved)
        asked = nodes.put(node, b"k")
        assert [] == asked.replies
        directory = node.engine.directory
        ranges = {old: directory.shards[new].ranges, new: directory.shards[old].ranges, ShardId(0): ()}
        shards = {s: replace(d, ranges=ranges[s]) for s, d in directory.shards.items()}
        node.engine.adopt(replace(directory, shards=shards, epoch=directory.epoch + 1))
        nodes.tick(2)
        assert isinstance(asked.result, WriteResult)
        assert new == asked.reply.shard


def test_puts_next_to_each_other_are_one_command_and_keep_results_of_their_own() -> None:
    """Plain puts are put together in the log, other writes stand between them; each gets its own revision, or its refusal. One by
    itself stays what it is, which costs less."""
    nodes = Nodes(1)
    node = nodes.lead()
    replica = node.replica()
    machine = replica.machine
    assert machine is not None
    gone = slot_of(b"gone")
    machine._owned = machine._owned[:gone] + b"\0" + machine._owned[gone + 1 :]
    before = machine.revision
    operations = [
        Put(b"a", b"1"),
        Put(b"gone", b"1"),
        Put(b"b", b"1"),
        Put(b"a", b"2", return_previous=True),
        PutMany([b"c", b"gone", b"d"], [b"1", b"1", b"1"]),
        Put(b"c", b"2"),
        Put(b"gone", b"2"),
        Put(b"a", b"3", return_previous=True),
        Put(b"e", b"3"),
    ]
    asked = [
        nodes.ask(node, operation, run=False, shard=SHARD if isinstance(operation, PutMany) else None)
        for operation in operations
    ]
    nodes.run()
    index = asked[0].reply.index
    (entry,) = replica.log.entries(index, Index(index + 1), 1 << 20)
    commands = decode_batch(entry.data).commands
    assert [PutMany, Put, PutMany, PutMany, Put, Put] == [type(each.operation) for each in commands]
    assert Command(Put(b"e", b"3"), slot_of(b"e")) == commands[-1]
    found = [one.replies[0].result if one.replies else None for one in asked]
    assert None is found[1] is found[6], "the router waits for a directory that says where they belong"
    revisions = [before + 1, before + 2, before + 3, before + 5, before + 6, before + 7, before + 8]
    assert revisions == [result.revision for result in found if isinstance(result, (WriteResult, PutManyResult))]
    assert isinstance(found[3], WriteResult)
    assert found[3].previous is not None
    assert PutManyResult(Revision(before + 5), 3, (1,)) == found[4]


# --- The end ------------------------------------------------------------------------------------------------------


def test_clean_shutdown_answers_everything_that_waits() -> None:
    """Parked, queued, proposed and forwarded requests: each gets its reply before the node is gone."""
    nodes = Nodes(3, shards=2, batches_in_flight_max=1, entry_commands_max=1)
    node = nodes.make_leader(nodes[1], SHARD)
    nodes.make_leader(nodes[2], ShardId(2))
    key = {
        shard: next(k for k in (b"k%d" % n for n in range(99)) if node.engine.owner(slot_of(k)) == shard)
        for shard in (1, 2)
    }
    nodes.hold_calls = lambda call: call.kind == KIND_FORWARD
    forwarded = [nodes.put(node, key[2]), nodes.get(node, key[2])]
    nodes.isolate(node)
    waiting = [nodes.put(node, key[1]) for _ in range(3)] + [nodes.get(node, key[1])]
    router = node.engine.router
    node.stop()
    assert all(each.replies for each in (*forwarded, *waiting))
    assert isinstance(forwarded[0].result, OutcomeUnknown)
    assert isinstance(waiting[0].result, OutcomeUnknown)
    assert all(isinstance(each.result, Unavailable) for each in (forwarded[1], *waiting[1:]))
    assert (0, 0) == (router.in_flight, router.in_flight_bytes)


def test_sink_that_raises_loses_its_own_replies_only() -> None:
    """A bug in a front, met by one caller: the turn goes on, the other callers have their replies, the node lives."""
    nodes = Nodes(1)
    with at_end_nothing_in_flight(nodes):
        node = nodes.lead()

        class Broken:
            def deliver(self, replies: list[Reply]) -> None:
                raise KeyError("a bug")

        deadline_ns = node.clock.monotonic_ns() + 5_000 * MS
        node.engine.submit([Request("t", Put(b"k", b""), slot_of(b"k"), deadline_ns)], Broken())
        asked = nodes.put(node, b"k")
        assert isinstance(asked.result, WriteResult)
        assert "replies_lost" in node.observer.names()


def test_request_after_the_shutdown_is_refused() -> None:
    """The front may still hand one over while it stops."""
    nodes = Nodes(1)
    node = nodes.lead()
    node.engine.close()
    asked = nodes.put(node, b"k", run=False)
    assert isinstance(asked.result, Unavailable)


def test_requests_leave_no_cycles_behind() -> None:
    """The collector of cycles runs seldom: what only it could take away would pile up."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        follower = others(nodes, leader)[0]

        def some_of_everything() -> None:
            for number in range(20):
                for node in (leader, follower):
                    nodes.put(node, b"k%d" % number)
                    nodes.get(node, b"k%d" % number)
                    nodes.get(node, b"k%d" % number, consistency=Consistency.STALE)
                    nodes.ask(node, CompareAndSwap(b"k", b"not this", b"v"))
                    nodes.ask(node, Increment(b"k0"))
                    nodes.ask(node, Put(b"k", b"v"), timeout_ns=0)
            nodes.calls.clear()

        some_of_everything()
        gc.collect()
        gc.disable()
        try:
            some_of_everything()
            assert gc.collect() < 20, "one in twelve requests, at the most"
        finally:
            gc.enable()


class _Many:
    """A sink for many requests."""

    def __init__(self) -> None:
        self.replies: list[object] = []

    def deliver(self, replies: list[object]) -> None:
        self.replies.extend(replies)


class _Lists(_Many):
    """... and how much came in one list."""

    most = 0

    def deliver(self, replies: list[Reply]) -> None:
        super().deliver(replies)
        self.most = max(self.most, sum(len(reply.result.entry.value) for reply in replies))  # type: ignore[union-attr]


def is_again(reply: Reply) -> bool:
    return isinstance(reply.result, Unavailable) and reply.result.metadata == AGAIN


def errors_of(asked: list[Asked]) -> list[RaftCacheError]:
    return [each.result for each in asked if isinstance(each.result, RaftCacheError)]
