"""Requests and responses as bytes, and the requests that wait for their answers. Sans-IO.

    REQUEST   id u64 | kind u8 | payload          (payload: the node's business)
    RESPONSE  id u64 | status u8 | payload
    GOODBYE   id of the last request that will be answered u64

Rules of this file:
- every request ends exactly once: with its answer, or with an error whose class tells whether it may have reached the
  peer. *Definite* only where that is certain: it was never handed to the socket, or the peer says that it did not take it.
  Everything else is `OutcomeUnknown`;
- callbacks are never called from inside `add`.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from raftcache.errors import (
    ANSWER_DROPPED,
    BatchTooLarge,
    DeadlineExpired,
    OutcomeUnknown,
    Overloaded,
    ProtocolError,
    RaftCacheError,
    Unavailable,
)
from raftcache.transport.codec import Payload
from raftcache.transport.frames import FrameType
from raftcache.transport.local_node import OnReply
from raftcache.transport.outbox import Call

_REQUEST = struct.Struct("<QB")
_RESPONSE = struct.Struct("<QB")
_GOODBYE = struct.Struct("<Q")
CALL_OVERHEAD_BYTES = _REQUEST.size
ANSWER_BYTES_MAX = 128 << 20
"""Of one answer, in all its parts: the largest page of a scan that can be configured (`limits.scan_bytes_max`), twice."""


class Status(IntEnum):
    """What became of a request at the peer's door. The values are part of the wire format."""

    ANSWER = 0
    """The payload is the node's answer (which may itself say no)."""
    OVERLOADED = 1
    """Not taken: too many are in flight."""
    NOT_INITIALISED = 2
    """Not taken: one of both nodes belongs to no cluster, and this is no bootstrap request."""
    ANSWER_TOO_LARGE = 3
    """Carried out, but the answer has more than `ANSWER_BYTES_MAX`, or too much waits already to be taken."""
    PART = 4
    """The payload is the next part of an answer that is larger than a frame; its last part comes as `ANSWER`."""


def encode_request(request_id: int, kind: int, payload: bytes) -> Call:
    return Call(FrameType.REQUEST, [_REQUEST.pack(request_id, kind), payload])


def decode_request(payload: Payload) -> tuple[int, int, bytes]:
    """(id, kind, payload). Raises: `ProtocolError`."""
    if len(payload) < _REQUEST.size:
        raise ProtocolError(f"a request of {len(payload)} bytes has no head")
    request_id, kind = _REQUEST.unpack_from(payload)
    return request_id, kind, bytes(payload[_REQUEST.size :])


def encode_response(request_id: int, status: Status, payload: bytes) -> Call:
    return Call(FrameType.RESPONSE, [_RESPONSE.pack(request_id, status), payload])


def decode_response(payload: Payload) -> tuple[int, Status, bytes]:
    """(id, status, payload). Raises: `ProtocolError`."""
    if len(payload) < _RESPONSE.size:
        raise ProtocolError(f"a response of {len(payload)} bytes has no head")
    request_id, number = _RESPONSE.unpack_from(payload)
    if number > Status.PART:
        raise ProtocolError(f"a response has the unknown status {number}")
    return request_id, Status(number), bytes(payload[_RESPONSE.size :])


def encode_goodbye(last_request_id: int) -> bytes:
    return _GOODBYE.pack(last_request_id)


def decode_goodbye(payload: Payload) -> int:
    """Raises: `ProtocolError`."""
    if len(payload) != _GOODBYE.size:
        raise ProtocolError(f"a goodbye has {len(payload)} bytes, not {_GOODBYE.size}")
    last_request_id: int = _GOODBYE.unpack(payload)[0]
    return last_request_id


@dataclass(slots=True)
class _Waiting:
    call: Call
    kind: int
    on_reply: OnReply
    deadline_ns: int
    parts: bytearray | None = None
    """Of its answer, what has come so far; None: nothing."""


class WaitingRequests:
    """The requests to one peer that have not ended. Ids grow and are never used twice on a link."""

    def __init__(self, peer: str, *, count_max: int) -> None:
        self._peer = peer
        """For messages: `node 17` or `10.0.0.1:7401`."""
        self._count_max = count_max
        self._waiting: dict[int, _Waiting] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, kind: int, payload: bytes, on_reply: OnReply, deadline_ns: int) -> Call:
        """The call to queue. Raises: `Overloaded`."""
        if len(self._waiting) >= self._count_max:
            raise Overloaded(
                f"{len(self._waiting)} requests to {self._peer} are in flight, the most that are allowed",
                metadata={"limit": "requests_in_flight_max"},
            )
        self._last_id += 1
        call = encode_request(self._last_id, kind, payload)
        self._waiting[self._last_id] = _Waiting(call, kind, on_reply, deadline_ns)
        return call

    def forget_last(self) -> None:
        """Takes the newest request back, as if it had never been added: its queue was full."""
        self._waiting.pop(self._last_id)

    def on_response(self, payload: Payload) -> None:
        """Raises: `ProtocolError`. An answer that nobody waits for any more (its deadline passed) is dropped."""
        request_id, status, answer = decode_response(payload)
        if request_id > self._last_id:
            raise ProtocolError(f"{self._peer} answers request {request_id}; the last one was {self._last_id}")
        if status is Status.PART:
            self._on_part(request_id, answer)
            return
        waiting = self._waiting.pop(request_id, None)
        if waiting is None:
            return
        match status:
            case Status.ANSWER:
                waiting.on_reply(answer if waiting.parts is None else bytes(waiting.parts) + answer)
            case Status.OVERLOADED:
                waiting.on_reply(Overloaded(f"{self._peer} has too many requests in flight"))
            case Status.NOT_INITIALISED:
                waiting.on_reply(Unavailable(f"{self._peer} and this node are not in one initialised cluster"))
            case Status.ANSWER_TOO_LARGE:
                waiting.on_reply(
                    OutcomeUnknown(
                        f"{self._peer} carried it out and dropped the answer: it has more than {ANSWER_BYTES_MAX} bytes, or "
                        "too many answers wait already",
                        metadata=dict(ANSWER_DROPPED),
                    )
                )

    def _on_part(self, request_id: int, part: bytes) -> None:
        waiting = self._waiting.get(request_id)
        if waiting is None:
            return
        if waiting.parts is None:
            waiting.parts = bytearray()
        waiting.parts += part
        if len(waiting.parts) > ANSWER_BYTES_MAX:
            raise ProtocolError(f"{self._peer} answers request {request_id} with more than {ANSWER_BYTES_MAX} bytes")

    def on_goodbye(self, last_request_id: int) -> None:
        """The peer is leaving: what it has not taken, it never will."""
        refused = [self._waiting.pop(n) for n in list(self._waiting) if n > last_request_id]
        for waiting in refused:
            waiting.call.cancelled = True
            waiting.on_reply(Unavailable(f"{self._peer} is shutting down and did not take the request"))

    def expire(self, now_ns: int) -> None:
        if not self._waiting:
            return
        expired = [n for n, waiting in self._waiting.items() if waiting.deadline_ns <= now_ns]
        for number in expired:
            waiting = self._waiting.pop(number)
            if waiting.call.handed_over:
                waiting.on_reply(OutcomeUnknown(f"no answer from {self._peer} within the deadline"))
            else:
                waiting.call.cancelled = True
                waiting.on_reply(
                    DeadlineExpired(f"the deadline passed before the request could leave for {self._peer}")
                )

    def fail_unsent(self, why: str) -> None:
        """This node is shutting down: what did not leave never will; answers to the rest may still come."""
        for number, request in list(self._waiting.items()):
            if not request.call.handed_over:
                del self._waiting[number]
                request.call.cancelled = True
                request.on_reply(Unavailable(f"{self._peer} was not asked: {why}"))

    def fail_all(self, why: str, refusal: RaftCacheError | None = None) -> None:
        """The connection is gone, or never was; `refusal`: the peer's own, definite one, for what did not leave."""
        waiting, self._waiting = self._waiting, {}
        for request in waiting.values():
            request.call.cancelled = True
            if request.call.handed_over:
                request.on_reply(OutcomeUnknown(f"the connection to {self._peer} ended before the answer: {why}"))
            else:
                request.on_reply(refusal or Unavailable(f"{self._peer} is not reachable: {why}"))

    def fail_unsendable(self, *, frame_bytes_max: int, kinds: frozenset[int] | None) -> None:
        """After the handshake: what this peer does not accept never leaves. `kinds`: the only ones, None for all."""
        for number, request in list(self._waiting.items()):
            error: RaftCacheError
            if request.call.handed_over:
                continue
            if kinds is not None and request.kind not in kinds:
                error = Unavailable(f"{self._peer} and this node are not in one initialised cluster")
            elif request.call.size > frame_bytes_max:
                error = too_large(self._peer, request.call.size, frame_bytes_max)
            else:
                continue
            del self._waiting[number]
            request.call.cancelled = True
            request.on_reply(error)


def too_large(peer: str, size: int, frame_bytes_max: int) -> BatchTooLarge:
    return BatchTooLarge(
        f"a request of {size} bytes to {peer} is larger than a frame of {frame_bytes_max} bytes",
        metadata={"limit": "limits.frame_bytes_max", "limit_value": str(frame_bytes_max)},
    )
