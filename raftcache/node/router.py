"""From a list of requests to the shards' leaders, and back: routing, forwarding, waiting for a leader.

    front ──submit──► Router ──► own replica that leads        (offer)
                         ├─────► another node, one hop         (Network.request)
                         └─────► parked, until there is a leader

Rules of this file:
- a request is forwarded to a leader that is known, never to a guess, and at most once; a forwarded one that does not find
  its leader here is answered `NotLeader` with a hint;
- only a refusal that precedes the proposal (definite and retryable) is tried again here, until `give_up_ns`; a shard's
  parked requests are tried with each tick, and between two ticks once more where there is news of its leader;
- parked requests of a shard keep their order, and later requests of that shard wait behind them: a stream's order holds;
- a request that is part of an ordered stream is not tried again after it has left this node: it could overtake;
- where a slot belongs is looked up anew with each try: it may have moved.

Invariant: `in_flight` counts exactly the requests that were submitted and not delivered.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, assert_never

from raftcache.clock import Clock
from raftcache.errors import (
    ANSWER_DROPPED,
    Corruption,
    DeadlineExpired,
    InvalidRequest,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RaftCacheError,
    StorageFull,
    Unavailable,
    UnsupportedVersion,
    WrongShard,
)
from raftcache.ids import NodeId, ShardId
from raftcache.kv.limits import TRANSACTION_REPLY_BYTES_CEILING
from raftcache.kv.operations import (
    SYSTEM_NAMESPACE,
    CloseSession,
    CompareAndSwap,
    Condition,
    Delete,
    Get,
    Increment,
    OpenSession,
    Operation,
    Put,
    PutMany,
    Scan,
    SetOwnership,
    Transaction,
)
from raftcache.kv.slots import SLOT_COUNT
from raftcache.node.api import Consistency, Reply, ReplySink, Request
from raftcache.node.forwarding import (
    AGAIN,
    REPLY_BYTES_MAX,
    decode_replies,
    decode_requests,
    encode_replies,
    encode_requests,
    not_read,
)
from raftcache.node.replica import READ_BYTES_PER_TURN, Replica, Waiting, result_bytes
from raftcache.node.settings import EngineSettings
from raftcache.storage.state import StateLost

REQUEST_OVERHEAD_BYTES = 256
"""What a request holds in memory beside its key and value."""
CONDITION_OVERHEAD_BYTES = 32
"""Of a condition's encoding beside its key and value: kinds, lengths and a number."""
PUT_OVERHEAD_BYTES = 128
"""Of one put of many, beside its key and value."""
RANGE_BYTES = 8
"""Of one slot range."""
FORWARD_OPERATIONS_MAX = 1000
"""Operations in one forwarded payload; with `FORWARD_BYTES_MAX` keeps a frame far below the transport's bound."""
FORWARD_BYTES_MAX = 4 << 20
FORWARD_REPLY_BYTES_MAX = 32 << 20
"""What the writes of one payload may return: as much as one transaction may."""
ANSWER_BYTES_WAITING_MAX = 16 << 20
"""Answers that a node has not taken or that are not complete, beyond which nothing is read for it. What comes on top are values that
writes return; the transport drops those beyond 128 MiB."""


class Forward(Protocol):
    """Sends a payload to another node; `on_reply` gets the answer, or an error that says whether it was surely not received."""

    def __call__(
        self, node: NodeId, payload: bytes, on_reply: Callable[[bytes | RaftCacheError], None], deadline_ns: int
    ) -> None: ...


class Places(Protocol):
    """Where things are, as the engine knows it."""

    def local(self, shard: ShardId) -> Replica | None: ...
    def leader_node(self, shard: ShardId) -> NodeId | None:
        """Another node that is *known* to lead the shard."""
        ...

    def nearest_node(self, shard: ShardId) -> NodeId | None: ...
    def owner(self, slot: int) -> ShardId: ...
    def address(self, node: NodeId) -> str: ...
    def resting(self, node: NodeId) -> bool: ...
    def learned_leader(self, shard: ShardId, node: NodeId | None) -> None:
        """`node` leads the shard; None: whoever was taken for its leader is not, or nobody was, and somebody should ask."""
        ...


def reply_cost_of(request: Request, value_bytes_max: int) -> int:
    """Bytes that the reply to a write may hold: what it returns cannot be asked for again.

    Replies to reads are not counted: what does not fit is not read, and asked for again (`forwarding.AGAIN`).
    """
    operation = request.operation
    if isinstance(operation, (Get, Scan)):
        return 0
    if isinstance(operation, Transaction):
        branches = (operation.then, operation.otherwise)
        values = max(sum(_returns_value(inner) for inner in branch) for branch in branches)
        return min(values * value_bytes_max, TRANSACTION_REPLY_BYTES_CEILING)
    return value_bytes_max if _returns_value(operation) else 0


def _returns_value(operation: Operation) -> bool:
    if isinstance(operation, (Put, Delete)):
        return bool(operation.return_previous or operation.conditions)
    return isinstance(operation, (Get, CompareAndSwap))


def cost_of(request: Request) -> int:
    """Bytes that the request holds while it is in flight; never less than its encoding.

    Entries and payloads between nodes are filled by this number: were it too small, an entry could outgrow the frame that
    is to carry it, and would never be replicated.
    """
    operation = request.operation
    match operation:
        case Put():
            return REQUEST_OVERHEAD_BYTES + len(operation.key) + len(operation.value) + _bytes_of(operation.conditions)
        case PutMany():
            size = sum(map(len, operation.keys)) + sum(map(len, operation.values))
            return REQUEST_OVERHEAD_BYTES + PUT_OVERHEAD_BYTES * len(operation.keys) + size
        case CompareAndSwap():
            values = len(operation.value) + len(operation.expected or b"")
            return REQUEST_OVERHEAD_BYTES + len(operation.key) + values
        case Delete():
            return REQUEST_OVERHEAD_BYTES + len(operation.key) + _bytes_of(operation.conditions)
        case Get() | Increment():
            return REQUEST_OVERHEAD_BYTES + len(operation.key)
        case Scan():
            return REQUEST_OVERHEAD_BYTES + len(operation.lo) + len(operation.hi or b"")
        case Transaction():
            cost = REQUEST_OVERHEAD_BYTES + _bytes_of(operation.conditions)
            for inner in (*operation.then, *operation.otherwise):
                cost += REQUEST_OVERHEAD_BYTES + len(inner.key)
                if isinstance(inner, (Put, CompareAndSwap)):
                    cost += len(inner.value)
                if isinstance(inner, (Put, Delete)):
                    cost += _bytes_of(inner.conditions)
                if isinstance(inner, CompareAndSwap):
                    cost += len(inner.expected or b"")
            return cost
        case SetOwnership():
            return REQUEST_OVERHEAD_BYTES + RANGE_BYTES * len(operation.ranges)
        case OpenSession() | CloseSession():
            return REQUEST_OVERHEAD_BYTES
        case _:
            assert_never(operation)


def _bytes_of(conditions: tuple[Condition, ...]) -> int:
    return sum(CONDITION_OVERHEAD_BYTES + len(condition.key) + len(condition.value) for condition in conditions)


class Router:
    """Routes lists of requests. Synchronous; the engine calls it and is called back through `Places` and `touch`."""

    def __init__(
        self,
        *,
        settings: EngineSettings,
        value_bytes_max: int,
        clock: Clock,
        places: Places,
        forward: Forward,
        touch: Callable[[Replica], None],
        replica_failed: Callable[[Replica, Exception], None],
        wake: Callable[[], None],
        sink_failed: Callable[[Exception], None],
    ) -> None:
        self._settings = settings
        self._value_bytes_max = value_bytes_max
        self._forward_bytes_max = min(FORWARD_BYTES_MAX, settings.frame_bytes_max // 2)
        self._clock = clock
        self._sink_failed = sink_failed
        self._places = places
        self._forward = forward
        self._touch = touch
        self._replica_failed = replica_failed
        self._wake = wake
        self._parked: dict[ShardId, deque[Waiting]] = {}
        """By the shard that was tried last."""
        self._due: set[ShardId] = set()
        """Shards whose parked requests the next turn tries again: there is news of their leader."""
        self._tried: set[ShardId] = set()
        """Shards that had their one extra try since the last tick, so that wrong hints cannot make a circle spin."""
        self._away: dict[int, list[Waiting]] = {}
        """What was forwarded and is not answered, by payload; each request keeps its own deadline."""
        self._payloads = 0
        self._stale: list[tuple[ShardId, list[Waiting]]] = []
        """Stale reads that wait for the next turn."""
        self._stale_bytes = 0
        """Read for such since replies were handed out."""
        self._incomplete: dict[NodeId, int] = {}
        """Bytes in the replies to payloads that are not answered yet, because others of the payload are still missing."""
        self._later: dict[tuple[ShardId, NodeId, bool], list[Waiting]] = {}
        """Reads for which a node had no room at all, and whether they go to it as the leader: asked again with the next tick."""
        self._outbox: dict[ReplySink, list[Reply]] = {}
        self._closed = False
        self.in_flight = 0
        self.in_flight_bytes = 0
        self.overloaded = 0
        """Requests refused because a limit was reached."""
        self.forwarded = 0
        """Requests sent on to another node since the start."""
        self.refusing = ""
        """Why new writes are refused (disk full); empty while they are taken."""

    # --- In -----------------------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], sink: ReplySink) -> None:
        """Takes requests of any shards; each gets exactly one reply through `sink`, in this turn or a later one."""
        now_ns = self._clock.monotonic_ns()
        settings, owner = self._settings, self._places.owner
        requests_max, bytes_max = settings.in_flight_requests_max, settings.in_flight_bytes_max
        give_up_ns = now_ns + settings.patience_ns
        by_shard: dict[ShardId, list[Waiting]] = {}
        for request in requests:
            assert not request.answered, f"a request is submitted twice: {request}"
            request.cost = cost_of(request)
            request.reply_cost = reply_cost_of(request, self._value_bytes_max)
            request.give_up_ns = min(request.deadline_ns, give_up_ns)
            self.in_flight += 1
            self.in_flight_bytes += request.cost
            if self.in_flight > requests_max or self.in_flight_bytes > bytes_max or self._closed:
                self._deliver(request, sink, Reply(request.token, self._refusal()))
                continue
            shard = request.shard
            if shard is None:
                if not 0 <= request.slot < SLOT_COUNT:
                    nowhere = InvalidRequest(f"slot {request.slot} is not in [0, {SLOT_COUNT})")
                    self._deliver(request, sink, Reply(request.token, nowhere))
                    continue
                shard = owner(request.slot)
            by_shard.setdefault(shard, []).append((request, sink))
        for shard, waiting in by_shard.items():
            self._route(shard, waiting, now_ns)
        self._wake()

    def _refusal(self) -> RaftCacheError:
        """Why nothing is taken now."""
        if self._closed:
            return Unavailable("the node is shutting down")
        self.overloaded += 1
        settings = self._settings
        return Overloaded(
            f"this node has {self.in_flight - 1} requests of {self.in_flight_bytes} bytes in flight; "
            f"limits.in_flight_requests_max is {settings.in_flight_requests_max}, "
            f"limits.in_flight_bytes_max is {settings.in_flight_bytes_max}: retry later"
        )

    def _shard_of(self, request: Request) -> ShardId:
        """Where the request belongs by the directory; -1 where nobody owns its slot."""
        return request.shard if request.shard is not None else self._places.owner(request.slot)

    def _route(self, shard: ShardId, waiting: list[Waiting], now_ns: int) -> None:
        stale = [pair for pair in waiting if pair[0].consistency is Consistency.STALE]
        if stale:
            if self._stale:
                # Those that wait were first, and would wait for ever.
                self._stale.append((shard, stale))
            else:
                self._route_stale(shard, stale, now_ns)
            waiting = [pair for pair in waiting if pair[0].consistency is not Consistency.STALE]
        if not waiting:
            return
        if self._parked.get(shard):
            replica = self._places.local(shard)
            if replica is None or not replica.leads:
                waiting = self._refuse_forwarded(shard, waiting)
            self.park(shard, waiting)
            return
        self._route_to_leader(shard, waiting, now_ns)

    def _route_to_leader(self, shard: ShardId, waiting: list[Waiting], now_ns: int) -> None:
        replica = self._places.local(shard)
        if replica is not None and replica.leads:
            if self.refusing or replica.full:
                waiting = self._without_writes(waiting, replica.full)
            replica.offer(waiting)
            self._touch(replica)
            return
        waiting = self._refuse_forwarded(shard, waiting)
        if not waiting:
            return
        if replica is not None and replica.holds_unproposed():
            # The replica has lost leadership in this turn, and what waited there comes first.
            self.return_unplaced(shard, replica.release_unproposed())
            self.park(shard, waiting)
            return
        leader = self._places.leader_node(shard)
        if leader is None or self._places.resting(leader):
            # A node that is down is the leader that is known until another is elected: nothing is encoded for it at every tick.
            self.park(shard, waiting)
            self._places.learned_leader(shard, None)
        else:
            self._send(shard, leader, waiting, now_ns, to_leader=True)

    def _refuse_forwarded(self, shard: ShardId, waiting: list[Waiting]) -> list[Waiting]:
        """One hop only: the node that sent them knows better what to do with the hint. Returns the others."""
        if not any(request.forwarded for request, _ in waiting):
            return waiting
        hint = self.not_leader(shard)
        for request, sink in waiting:
            if request.forwarded:
                self._deliver(request, sink, Reply(request.token, hint, shard))
        return [pair for pair in waiting if not pair[0].forwarded]

    def _without_writes(self, waiting: list[Waiting], full: str) -> list[Waiting]:
        """Reads go on, and so does the directory: taking a replica away is a way out of a full disk.

        A full disk has no room for the log of a delete either. Where it is only the shard's state that is full, deletes are
        the way out, and the sessions that clients make them in are bounded.
        """
        kept = []
        passing = (Get, Scan) if self.refusing else (Get, Scan, Delete, OpenSession, CloseSession)
        refusal = self.refusing or full
        for request, sink in waiting:
            operation = request.operation
            system = isinstance(operation, Put) and operation.namespace == SYSTEM_NAMESPACE
            if system or isinstance(operation, passing):
                kept.append((request, sink))
            else:
                self._deliver(request, sink, Reply(request.token, StorageFull(refusal)))
        return kept

    def _route_stale(self, shard: ShardId, waiting: list[Waiting], now_ns: int) -> None:
        replica = self._places.local(shard)
        for position, (request, sink) in enumerate(waiting):
            if self._stale_bytes >= READ_BYTES_PER_TURN:
                self._stale.append((shard, waiting[position:]))
                self._wake()
                return
            if request.deadline_ns <= now_ns:
                late = DeadlineExpired("the deadline passed before the read was served")
                self._deliver(request, sink, Reply(request.token, late, shard))
                continue
            if not request.has_room:
                self._deliver(request, sink, Reply(request.token, not_read(), shard))
                continue
            if replica is None or replica.machine is None or replica.stopped:
                self._route_stale_elsewhere(shard, waiting[position:], now_ns)
                return
            machine = replica.machine
            try:
                reply = replica.read(request, machine, machine.applied_index, replica.age_ms(now_ns))
                size = result_bytes(reply.result)
                request.take_room(size)
                self._stale_bytes += size
            except Exception as error:  # noqa: BLE001 - the supervisor of replicas
                # From here on the replica is stopped, and its state must not be touched: the rest is read elsewhere.
                self._replica_failed(replica, error)
                failure: RaftCacheError = Unavailable(f"this node's replica of shard {shard} is damaged")
                if not isinstance(error, (Corruption, StateLost)):
                    # A bug, and perhaps of this very read: tried again elsewhere it would stop the other replicas as well.
                    failure = RaftCacheError(
                        f"a read of shard {shard} met a bug, and its replica here stopped: {error!r}"
                    )
                reply = Reply(request.token, failure, shard)
            self.settle(request, sink, reply)

    def _route_stale_elsewhere(self, shard: ShardId, waiting: list[Waiting], now_ns: int) -> None:
        nearest = self._places.nearest_node(shard)
        onward = []
        for request, sink in waiting:
            if request.forwarded or nearest is None:
                nowhere = Unavailable(f"no reachable node has a replica of shard {shard}")
                self._deliver(request, sink, Reply(request.token, nowhere, shard))
            else:
                onward.append((request, sink))
        if onward and nearest is not None:
            self._send(shard, nearest, onward, now_ns, to_leader=False)

    def not_leader(self, shard: ShardId) -> NotLeader:
        """The refusal, with what this node knows of the leader as its metadata."""
        metadata = {"shard": str(shard)}
        leader = self._places.leader_node(shard)
        if leader is None:
            return NotLeader(f"shard {shard} has no known leader here; retry", metadata=metadata)
        metadata |= {"leader_node": str(leader), "leader_address": self._places.address(leader)}
        return NotLeader(f"shard {shard} is led by node {leader} at {metadata['leader_address']}", metadata=metadata)

    # --- One hop ------------------------------------------------------------------------------------------------------

    def _send(self, shard: ShardId, node: NodeId, waiting: list[Waiting], now_ns: int, *, to_leader: bool) -> None:
        start = 0
        while start < len(waiting):
            # A part is closed *before* what would cross the limit; a request larger than that goes alone.
            end, size, returned = start, 0, 0
            while end < len(waiting) and end - start < FORWARD_OPERATIONS_MAX:
                size += waiting[end][0].cost
                returned += waiting[end][0].reply_cost
                if (size > self._forward_bytes_max or returned > FORWARD_REPLY_BYTES_MAX) and end > start:
                    break
                end += 1
            self._send_part(shard, node, waiting[start:end], now_ns, to_leader=to_leader)
            start = end

    def _send_part(self, shard: ShardId, node: NodeId, part: list[Waiting], now_ns: int, *, to_leader: bool) -> None:
        requests = [request for request, _ in part]
        self.forwarded += len(part)
        self._payloads += 1
        number = self._payloads
        self._away[number] = part

        def on_reply(payload: bytes | RaftCacheError) -> None:
            if self._away.pop(number, None) is None:
                return
            if isinstance(payload, RaftCacheError):
                self._on_forward_failed(shard, part, payload, to_leader=to_leader)
            else:
                self._on_forward_answered(shard, node, part, payload, to_leader=to_leader)
            self._wake()

        payload = encode_requests(shard, requests, now_ns)
        self._forward(node, payload, on_reply, max(request.deadline_ns for request in requests))

    def _on_forward_answered(
        self, shard: ShardId, node: NodeId, part: list[Waiting], payload: bytes, *, to_leader: bool
    ) -> None:
        try:
            replies = decode_replies(payload, [request for request, _ in part])
        except (ValueError, UnsupportedVersion) as error:
            unreadable = OutcomeUnknown(f"the leader's reply could not be read: {error}")
            self._on_forward_failed(shard, part, unreadable, to_leader=to_leader)
            return
        again: list[Waiting] = []
        refused: NotLeader | None = None
        for (request, sink), reply in zip(part, replies, strict=True):
            result = reply.result
            if isinstance(result, NotLeader):
                refused = result
            elif isinstance(result, Unavailable) and result.metadata == AGAIN and not request.answered:
                again.append((request, sink))
                continue
            self.settle(request, sink, reply)
        if refused is not None and to_leader:
            hint = refused.metadata.get("leader_node")
            self._places.learned_leader(shard, NodeId(int(hint)) if hint else None)
            self.retry(shard)
        elif to_leader:
            self._places.learned_leader(shard, node)
        if again and len(again) < len(part):
            # Each round brings some of them, so there is an end to it.
            self._send(shard, node, again, self._clock.monotonic_ns(), to_leader=to_leader)
        elif again:
            self._later.setdefault((shard, node, to_leader), []).extend(again)

    def _on_forward_failed(
        self, shard: ShardId, part: list[Waiting], error: RaftCacheError, *, to_leader: bool
    ) -> None:
        dropped = error.metadata == ANSWER_DROPPED
        if to_leader and not dropped:
            self._places.learned_leader(shard, None)
        message = error.message if dropped else f"the leader of shard {shard} did not answer: {error.message}"
        for request, sink in part:
            failure = error
            if not error.definite and isinstance(request.operation, (Get, Scan)):
                # A read has no effect: whether it was received does not matter.
                failure = Unavailable(message)
            elif not error.definite:
                failure = OutcomeUnknown(message)
            self.settle(request, sink, Reply(request.token, failure, shard))

    def on_forwarded(
        self, node: NodeId, payload: bytes, respond: Callable[[bytes], None], answer_bytes_waiting: Callable[[], int]
    ) -> None:
        """A list of requests from another node, and how much that has to take already.

        Raises: `ValueError`, `UnsupportedVersion` for a payload it cannot read.
        """

        def crowded() -> bool:
            return answer_bytes_waiting() + self._incomplete.get(node, 0) > ANSWER_BYTES_WAITING_MAX

        def collected(size: int) -> None:
            self._incomplete[node] = self._incomplete.get(node, 0) + size

        shard, requests = decode_requests(payload, self._clock.monotonic_ns(), crowded)
        if requests:
            self.submit(requests, _ForwardSink(shard, len(requests), respond, collected))
        else:
            respond(encode_replies(shard, [], bytes_max=REPLY_BYTES_MAX))
        if self._closed:
            self.flush()

    # --- Waiting for a leader -----------------------------------------------------------------------------------------

    def park(self, shard: ShardId, waiting: list[Waiting]) -> None:
        """Keeps requests until the shard has a leader, in order."""
        if waiting:
            self._parked.setdefault(shard, deque()).extend(waiting)

    def return_unplaced(self, shard: ShardId, waiting: list[Waiting]) -> None:
        """What a replica could not propose (it does not lead any more): to the next leader, or back with a hint."""
        kept = self._refuse_forwarded(shard, waiting)
        if kept:
            # What is parked came later, and waits behind: a stream's order holds.
            self._parked.setdefault(shard, deque()).extendleft(reversed(kept))
        self.retry(shard)

    def retry(self, shard: ShardId) -> None:
        """There is news of the shard's leader: its parked requests are tried in the next turn, once between two ticks."""
        if shard not in self._tried and self._parked.get(shard):
            self._tried.add(shard)
            self._due.add(shard)
            self._wake()

    def try_due(self) -> None:
        """At the beginning of a turn."""
        if self._stale:
            stale, self._stale = self._stale, []
            now_ns = self._clock.monotonic_ns()
            for shard, waiting in stale:
                self._route_stale(shard, waiting, now_ns)
        if self._due:
            due, self._due = sorted(self._due), set()
            for shard in due:
                self.unpark(shard)

    def unpark(self, shard: ShardId) -> None:
        """The shard has a leader, perhaps: try its parked requests, in order."""
        parked = self._parked.pop(shard, None)
        if not parked:
            return
        now_ns = self._clock.monotonic_ns()
        by_shard: dict[ShardId, list[Waiting]] = {}
        for pair in parked:
            by_shard.setdefault(self._shard_of(pair[0]), []).append(pair)
        for owner, waiting in by_shard.items():
            if owner != shard and self._parked.get(owner):
                self.park(owner, waiting)
            else:
                self._route_to_leader(owner, waiting, now_ns)

    def tick(self, now_ns: int) -> None:
        """Refuses what is late, and tries the rest again."""
        self._stale = [(shard, self._without_late(shard, waiting, now_ns)) for shard, waiting in self._stale]
        self._expire_away(now_ns)
        self._expire_parked(now_ns)
        self._tried.clear()
        later, self._later = self._later, {}
        for (shard, node, to_leader), waiting in later.items():
            self._send(shard, node, self._without_late(shard, waiting, now_ns), now_ns, to_leader=to_leader)
        for shard in list(self._parked):
            self.unpark(shard)

    def _without_late(self, shard: ShardId, reads: list[Waiting], now_ns: int) -> list[Waiting]:
        """Those whose deadline has not passed; the others are answered."""
        for request, sink in reads:
            if request.deadline_ns <= now_ns:
                late = DeadlineExpired("the deadline passed before the read was served")
                self._deliver(request, sink, Reply(request.token, late, shard))
        return [pair for pair in reads if not pair[0].answered]

    def _expire_away(self, now_ns: int) -> None:
        """The payload's own deadline is that of its most patient request; the others are answered at theirs."""
        for part in self._away.values():
            for request, sink in part:
                if request.deadline_ns <= now_ns and not request.answered:
                    late: RaftCacheError = OutcomeUnknown("the deadline passed before the leader's answer came")
                    if isinstance(request.operation, (Get, Scan)):
                        late = DeadlineExpired("the deadline passed before the leader's answer came")
                    self._deliver(request, sink, Reply(request.token, late))

    def _expire_parked(self, now_ns: int) -> None:
        for shard, parked in list(self._parked.items()):
            kept: deque[Waiting] = deque()
            for request, sink in parked:
                if request.give_up_ns > now_ns:
                    kept.append((request, sink))
                elif request.deadline_ns <= now_ns:
                    late = DeadlineExpired(
                        f"the deadline passed while shard {shard} had no leader; nothing was proposed"
                    )
                    self._deliver(request, sink, Reply(request.token, late, shard))
                else:
                    self._deliver(request, sink, Reply(request.token, self._no_leader(shard), shard))
            if kept:
                self._parked[shard] = kept
            else:
                del self._parked[shard]

    def _no_leader(self, shard: ShardId) -> Unavailable:
        if shard < 0:
            return Unavailable("no shard owns this slot, by the newest directory that this node has")
        return Unavailable(
            f"shard {shard} has no reachable leader: a majority of its voters must be up and connected "
            "(`raftcache status` shows which are not)",
            metadata={"shard": str(shard)},
        )

    def parked(self) -> int:
        """Requests that wait for a leader."""
        return sum(len(waiting) for waiting in self._parked.values())

    # --- Out ----------------------------------------------------------------------------------------------------------

    def settle(self, request: Request, sink: ReplySink, reply: Reply) -> None:
        """Delivers a reply, unless it is a refusal that this node may try again elsewhere."""
        result = reply.result
        if (
            isinstance(result, (NotLeader, Unavailable, WrongShard))
            and not request.forwarded
            and not request.ordered
            and not request.answered
            and not self._closed
            and request.give_up_ns > self._clock.monotonic_ns()
        ):
            self.park(reply.shard, [(request, sink)])
            self.retry(reply.shard)
            return
        self._deliver(request, sink, reply)

    def _deliver(self, request: Request, sink: ReplySink, reply: Reply) -> None:
        if request.answered:
            return
        request.answered = True
        self.in_flight -= 1
        self.in_flight_bytes -= request.cost
        outbox = self._outbox.get(sink)
        if outbox is None:
            self._outbox[sink] = [reply]
        else:
            outbox.append(reply)

    def flush(self) -> None:
        """Hands each sink its replies of this turn, as one list. A sink that raises loses its own replies and nobody else's."""
        self._stale_bytes = 0
        while self._outbox:
            outbox, self._outbox = self._outbox, {}
            for sink, replies in outbox.items():
                try:
                    sink.deliver(replies)
                except Exception as error:  # noqa: BLE001 - the supervisor of sinks: what a caller sent must end no node
                    self._sink_failed(error)

    def close(self) -> None:
        """No more is taken, and nothing is tried again; the replicas may still answer what they hold. Then `finish`."""
        self._closed = True

    def finish(self) -> None:
        """Answers all that waits here or elsewhere, and hands the replies out."""
        ending = Unavailable("the node is shutting down")
        for shard, reads in (*self._stale, *((shard, waiting) for (shard, _, _), waiting in self._later.items())):
            for request, sink in reads:
                self._deliver(request, sink, Reply(request.token, ending, shard))
        self._stale.clear()
        self._later.clear()
        for shard, parked in self._parked.items():
            for request, sink in parked:
                self._deliver(request, sink, Reply(request.token, ending, shard))
        self._parked.clear()
        for part in self._away.values():
            for request, sink in part:
                read = isinstance(request.operation, (Get, Scan))
                unknown = OutcomeUnknown("the node is shutting down and will not see the leader's answer")
                self._deliver(request, sink, Reply(request.token, ending if read else unknown))
        self._away.clear()
        self.flush()


class _ForwardSink:
    """Collects the replies to one forwarded payload and answers it when the last one is there."""

    def __init__(
        self, shard: ShardId, expected: int, respond: Callable[[bytes], None], collected: Callable[[int], None]
    ) -> None:
        """`collected` is told how many bytes are held here, and, with a minus, that they are not any more."""
        self._shard = shard
        self._expected = expected
        self._respond = respond
        self._collected = collected
        self._replies: list[Reply] = []
        self._bytes = 0

    def deliver(self, replies: list[Reply]) -> None:
        self._replies.extend(replies)
        assert len(self._replies) <= self._expected, f"{len(self._replies)} replies to {self._expected} requests"
        if len(self._replies) < self._expected:
            size = sum(result_bytes(reply.result) for reply in replies)
            self._bytes += size
            self._collected(size)
            return
        self._collected(-self._bytes)
        self._respond(encode_replies(self._shard, self._replies, bytes_max=REPLY_BYTES_MAX))
