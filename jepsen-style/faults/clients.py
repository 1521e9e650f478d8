"""Sequential clients that write down what they were told, and say nothing about what they think.

Rules of this file:
- no retries here, and none in gRPC: an attempt is an operation. Who wants another sends another (`workloads/`), with the
  same stamp if it must not count twice;
- connect first, then send: an attempt at a node that cannot be reached is no operation at all, and is not written down;
- the outcome is what docs/errors.md says of the error: definite is `fail`, all else is `info`;
- after an `info` a client has a new number: its old one may still be at work.
"""

import asyncio
import itertools
import json
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio

from faults.history import Json, Op, Status
from raftcache.client.grpcio_async import failure_of_aio
from raftcache.v1 import kv_pb2, kv_pb2_grpc, types_pb2

CALL_SECONDS = (0.5, 1.0, 2.5)
"""A call's patience, drawn for each. The short ones are for looking at both sides of a partition before the old leader has
stepped down, the long ones for waiting out an election."""
CONNECT_SECONDS = 0.4
HOME_SHARE = 0.75
"""Of the calls that go to a client's own gateway."""
RATE_SECONDS = 2.0
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own for each client
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]

STALE = types_pb2.CONSISTENCY_STALE


class Recorder:
    """The history as it grows, and the numbers of the clients."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.statuses: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._recent: deque[int] = deque()

    def new_client(self) -> int:
        return next(self._numbers)

    def add(self, op: Op, reason: str) -> None:
        self.ops.append(op)
        self.statuses[op.status] += 1
        if reason:
            self.reasons[reason] += 1
        if op.ok:
            self._recent.append(time.monotonic_ns())

    def rate(self) -> float:
        """Acknowledged operations a second, of the last two."""
        since = time.monotonic_ns() - int(RATE_SECONDS * 1e9)
        while self._recent and self._recent[0] < since:
            self._recent.popleft()
        return len(self._recent) / RATE_SECONDS


@dataclass(frozen=True, slots=True)
class Gateway:
    """A node as clients reach it."""

    name: str
    address: str
    """Of the proxy."""
    incarnation: int | None
    """Which life of the node answers what it can; None where it may have to ask another one."""


@dataclass(slots=True)
class Wanted:
    """What the history says was asked for."""

    op: str
    key: str
    argument: Json = None
    extra: dict[str, Json] = field(default_factory=dict)


@dataclass(slots=True)
class Outcome:
    """What an attempt came to. `None` for `status`: nobody could be reached, and nothing was written down."""

    status: Status | None
    reason: str = ""
    response: Any = None
    result: Json = None

    @property
    def ok(self) -> bool:
        return self.status == "ok"


class Client:
    """See the module. One operation at a time."""

    def __init__(self, recorder: Recorder, dice: random.Random, gateways: Callable[[], list[Gateway]]) -> None:
        self.recorder = recorder
        self.dice = dice
        self.number = recorder.new_client()
        self.memory: dict[str, Any] = {}
        """For the workload: what this client knows from earlier answers."""
        self._gateways = gateways
        self._home = dice.randrange(1_000)
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def attempt(
        self,
        wanted: Wanted,
        method: str,
        request: Any,
        result_of: Callable[[Any], Json],
        *,
        status_of: Callable[[Any], Status] = lambda response: "ok",
    ) -> Outcome:
        """One call through a gateway, written down."""
        reached = await self._reach()
        if reached is None:
            return Outcome(None, "nobody was reached")
        gateway, stub = reached
        start_ns = time.monotonic_ns()
        try:
            response = await getattr(stub, method)(request, timeout=self.dice.choice(CALL_SECONDS))
        except grpc.aio.AioRpcError as error:
            failure = failure_of_aio(gateway.name, error)
            status: Status = "fail" if failure.definite else "info"
            self._record(wanted, gateway, start_ns, status, reason=failure.reason)
            return Outcome(status, failure.reason)
        except asyncio.CancelledError:
            self._record(wanted, gateway, start_ns, "info", reason="CANCELLED")
            raise
        status, result = status_of(response), result_of(response)
        if isinstance(response, kv_pb2.DeleteResponse) and not response.deleted:
            # It changed nothing, has no revision of its own, and says what a read says: there was nothing.
            wanted = replace(wanted, op="read", extra=wanted.extra | {"asked": "delete"})
        self._record(wanted, gateway, start_ns, status, result=result, header=header_of(response))
        return Outcome(status, "", response, result)

    def _record(
        self,
        wanted: Wanted,
        gateway: Gateway,
        start_ns: int,
        status: Status,
        *,
        reason: str = "",
        result: Json = None,
        header: types_pb2.ResponseHeader | None = None,
    ) -> None:
        end_ns = time.monotonic_ns()
        extra = dict(wanted.extra)
        if reason:
            extra["reason"] = reason
        if header is not None:
            extra["shard"] = header.shard
        if wanted.op == "stale_read" and gateway.incarnation is not None:
            # Of a node that was restarted meanwhile it is not known which life answered.
            if gateway.incarnation == self._incarnation(gateway.name):
                extra["incarnation"] = gateway.incarnation
        op = Op(
            client=self.number,
            key=wanted.key,
            op=wanted.op,
            argument=wanted.argument,
            result=result,
            start_ns=start_ns,
            end_ns=end_ns,
            status=status,
            index=header.index if header is not None else None,
            node=gateway.name,
            revision=header.revision if header is not None else None,
            extra=extra,
        )
        self.recorder.add(op, reason)
        if status == "info":
            self.number = self.recorder.new_client()

    async def call(self, method: str, request: Any) -> Any:
        """A call that is no operation of the history (a session's opening). None where it failed."""
        reached = await self._reach()
        if reached is None:
            return None
        try:
            return await getattr(reached[1], method)(request, timeout=self.dice.choice(CALL_SECONDS))
        except grpc.aio.AioRpcError:
            return None

    async def _reach(self) -> tuple[Gateway, Any] | None:
        """A gateway to which there is a connection: mostly the client's own, else any.

        With clients at random a few writes at a node that is cut off would hold all of them up, and nobody would be left to
        look at both sides.
        """
        gateways = self._gateways()
        if not gateways:
            await asyncio.sleep(CONNECT_SECONDS)
            return None
        home = gateways[self._home % len(gateways)]
        gateway = home if self.dice.random() < HOME_SHARE else self.dice.choice(gateways)
        channel = self._channels.get(gateway.address)
        if channel is None:
            channel = self._channels[gateway.address] = grpc.aio.insecure_channel(gateway.address, OPTIONS)
        if channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await channel.channel_ready()
            except TimeoutError:
                return None
        return gateway, kv_pb2_grpc.KvServiceStub(channel)

    def _incarnation(self, name: str) -> int | None:
        return next((each.incarnation for each in self._gateways() if each.name == name), None)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()

    # --- The operations that several workloads share ------------------------------------------------------------------

    async def read(self, key: str) -> Outcome:
        return await self.attempt(Wanted("read", key), "Get", kv_pb2.GetRequest(key=key.encode()), value_of_get)

    async def stale_read(self, key: str) -> Outcome:
        request = kv_pb2.GetRequest(key=key.encode(), consistency=STALE)
        return await self.attempt(Wanted("stale_read", key), "Get", request, value_of_get)

    async def write(self, key: str, value: Json, stamp: "Stamp | None" = None) -> Outcome:
        """A put, or, with None, a delete."""
        wanted = Wanted("write", key, value, dict(facts_of(stamp)))
        if value is None:
            delete = kv_pb2.DeleteRequest(key=key.encode(), stamp=message_of(stamp))
            return await self.attempt(wanted, "Delete", delete, lambda response: None)
        put = kv_pb2.PutRequest(key=key.encode(), value=encode(value), stamp=message_of(stamp))
        return await self.attempt(wanted, "Put", put, lambda response: None)

    async def cas(self, key: str, expected: Json, new: Json, stamp: "Stamp | None" = None) -> Outcome:
        request = kv_pb2.CompareAndSwapRequest(key=key.encode(), value=encode(new), stamp=message_of(stamp))
        if expected is not None:
            request.expected = encode(expected)
        wanted = Wanted("cas", key, [expected, new], dict(facts_of(stamp)))
        return await self.attempt(wanted, "CompareAndSwap", request, result_of_cas)

    async def increment(self, key: str, delta: int, stamp: "Stamp | None" = None) -> Outcome:
        request = kv_pb2.IncrementRequest(key=key.encode(), delta=delta, stamp=message_of(stamp))
        wanted = Wanted("increment", key, delta, dict(facts_of(stamp)))
        return await self.attempt(wanted, "Increment", request, lambda response: int(response.value))


# --- Values and stamps ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stamp:
    """One write of a session. Sent again with the same stamp it is the same write."""

    session: int
    seq: int
    shard: int
    """Sessions belong to a shard: another one may give the same number to another session."""


def message_of(stamp: Stamp | None) -> types_pb2.SessionStamp | None:
    # One write at a time: all before this one were answered, or given up together with their session.
    if stamp is None:
        return None
    return types_pb2.SessionStamp(session=stamp.session, sequence=stamp.seq, first_unacked=stamp.seq)


def facts_of(stamp: Stamp | None) -> Mapping[str, Json]:
    return {"session": f"{stamp.shard}/{stamp.session}", "seq": stamp.seq} if stamp else {}


def encode(value: Json) -> bytes:
    """Values are stored as JSON; a counter's decimal digits are JSON, too."""
    return json.dumps(value, separators=(",", ":")).encode()


def decode(value: bytes) -> Json:
    found: Json = json.loads(value)
    return found


def value_of_get(response: kv_pb2.GetResponse) -> Json:
    return decode(response.entry.value) if response.HasField("entry") else None


def result_of_cas(response: kv_pb2.CompareAndSwapResponse) -> Json:
    if response.succeeded:
        return {"swapped": True}
    return {"swapped": False, "value": decode(response.current.value) if response.HasField("current") else None}


def header_of(response: Any) -> types_pb2.ResponseHeader | None:
    """Of a scan, that of its only shard."""
    if isinstance(response, kv_pb2.ScanResponse):
        return response.headers[0] if len(response.headers) == 1 else None
    header: types_pb2.ResponseHeader = response.header
    return header
