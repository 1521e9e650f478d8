"""A link: our connection *to* one other node. It carries our Raft messages and requests there, and their answers back.

              send/request                HELLO_REPLY
    IDLE ─────────────────────► DIALING ─────────────► UP ──── GOODBYE ───► LEAVING
      ▲                            │ refused, timeout   │ cut, silent          │ the last answer, or cut
      │        back-off over       ▼                    ▼                      ▼
      └───────────────────────── RESTING ◄─────────────────────────────────────┘

Rules of this file:
- dialed on demand; while dialing, what is urgent waits (a first vote must not be lost to the handshake) and Appends are
  dropped; while resting, everything is dropped or refused at once: a caller that can go elsewhere should;
- the name is resolved anew at each dial, and the address asked for anew: both are hints;
- a request that was handed to the socket is never sent again: its outcome is for its owner to find out.
"""

import asyncio
import struct
from collections.abc import Callable
from enum import IntEnum

from raftcache.clock import NS_PER_MS
from raftcache.errors import (
    IdentityMismatch,
    Overloaded,
    ProtocolError,
    RaftCacheError,
    Unavailable,
    UnsupportedVersion,
)
from raftcache.ids import NodeId, ShardId
from raftcache.raft.messages import Append, Message
from raftcache.transport.calls import (
    CALL_OVERHEAD_BYTES,
    WaitingRequests,
    decode_goodbye,
    encode_goodbye,
    too_large,
)
from raftcache.transport.connections import Connection
from raftcache.transport.frames import FrameType
from raftcache.transport.handshake import (
    ANY_NODE,
    Address,
    Hello,
    HelloReply,
    Purpose,
    decode_hello_reply,
    decode_refusal,
    encode_hello,
    judge_reply,
)
from raftcache.transport.local_node import LocalNode, OnReply
from raftcache.transport.outbox import Outbox

PING = struct.Struct("<Q")
"""The sender's monotonic nanoseconds; echoed."""


class LinkState(IntEnum):
    """The values appear in metrics."""

    IDLE = 0
    DIALING = 1
    UP = 2
    LEAVING = 3
    """The peer said goodbye: it answers what it took, and takes nothing more."""
    RESTING = 4
    """Waiting before the next dial."""


class Link:
    """See the module. `node` is `ANY_NODE` for an errand to a bare address."""

    def __init__(
        self,
        local: LocalNode,
        node: NodeId,
        address: Callable[[], Address | None],
        *,
        on_idle: Callable[[], None] | None,
    ) -> None:
        self.node = node
        self.state = LinkState.IDLE
        self.bootstrap_only = False
        """The handshake found that the two nodes are not (yet) in one cluster."""
        self.round_trip_ns = 0
        """Smoothed over the last eight pings or so; 0 = not known yet."""
        self.error = ""
        """Why the last dial or connection failed."""
        self._reported = ""
        """The last failure that was told; another is told again."""
        self.outbox = Outbox(bulk_bytes_max=local.settings.bulk_bytes_max, call_bytes_max=local.settings.call_bytes_max)
        self.traffic = local.traffic_of(node)
        self._local = local
        self._address = address
        self._dialed: Address | None = None
        self._on_idle = on_idle
        """Errands only: called when the last request ended."""
        self._peer = f"node {node}" if node != ANY_NODE else f"the node at {_shown(address())}"
        self._waiting = WaitingRequests(self._peer, count_max=local.settings.requests_in_flight_max)
        self._connection: Connection | None = None
        self._dialing: asyncio.Task[None] | None = None
        self._greeted: asyncio.Future[None] | None = None
        """Resolved when the handshake ends, well or badly. Only while dialing."""
        self._failures = 0
        """Dials in a row that failed; sets the back-off."""
        self._rest: asyncio.TimerHandle | None = None
        self._dirty = False
        self._dropped = False
        self._ping_sent_ns = 0
        self._ping_pending = False
        self._too_large_reported = 0
        self._closed = False

    # --- Called by the node -------------------------------------------------------------------------------------------

    def send(self, shard: ShardId, message: Message) -> None:
        state = self.state
        if state is LinkState.UP or (state <= LinkState.DIALING and type(message) is not Append):
            if not self.bootstrap_only and self.outbox.add_message(shard, message):
                if not self._dirty:
                    self._mark_dirty()
                return
        self.traffic.messages_dropped += 1
        if not self._dropped:
            self._dropped = True
            self._mark_dirty()

    def request(self, kind: int, payload: bytes, on_reply: OnReply, deadline_ns: int) -> None:
        refused = self._refuse(kind, payload)
        if refused is None:
            try:
                call = self._waiting.add(kind, payload, on_reply, deadline_ns)
            except Overloaded as error:
                refused = error
            else:
                if self.outbox.add_call(call):
                    self._mark_dirty()
                    self._local.flush_soon()
                    return
                self._waiting.forget_last()
                waiting_bytes = self.outbox.call_bytes_waiting
                refused = Overloaded(f"{waiting_bytes} bytes of requests wait for {self._peer} already")
        asyncio.get_running_loop().call_soon(on_reply, refused)

    def _refuse(self, kind: int, payload: bytes) -> RaftCacheError | None:
        if self._closed:
            return Unavailable("this node is shutting down")
        if self.state is LinkState.RESTING:
            return Unavailable(f"{self._peer} is not reachable: {self.error}")
        if self.state is LinkState.LEAVING:
            return Unavailable(f"{self._peer} is shutting down")
        if self.bootstrap_only and self.state is LinkState.UP and kind not in self._local.bootstrap_kinds:
            return Unavailable(f"{self._peer} and this node are not in one initialised cluster")
        size, size_max = (
            len(payload) + CALL_OVERHEAD_BYTES,
            min(self.outbox.frame_bytes_max, self._local.settings.frame_bytes_max),
        )
        return too_large(self._peer, size, size_max) if size > size_max else None

    def flush(self) -> None:
        """Writes what waits; dials if there is a demand and no connection."""
        self._dirty = False
        if self._dropped:
            self._dropped = False
            self._local.handler.on_dropped(self.node)
        if self.state is LinkState.UP:
            assert self._connection is not None
            self._connection.pump()
        elif self.state is LinkState.IDLE and not self._closed:
            self.state = LinkState.DIALING
            self._dialing = self._local.tasks.create_task(self._dial(), name=f"dial-{self.node}")

    def _mark_dirty(self) -> None:
        if not self._dirty:
            self._dirty = True
            self._local.dirty.append(self)

    def heard_from(self) -> None:
        """The node has dialed us: it is alive, so there is no point in resting any longer."""
        self._failures = 0
        if self._rest is not None:
            self._rest.cancel()
            self._end_rest()

    def housekeep(self, now_ns: int) -> None:
        """One round: deadlines, pings, silence."""
        self._waiting.expire(now_ns)
        if self.outbox.messages_too_large != self._too_large_reported:
            self._too_large_reported = self.outbox.messages_too_large
            bytes_max = self.outbox.frame_bytes_max
            self._local.report("peer_message_too_large", peer=self.node, frame_bytes_max=bytes_max)
        settings = self._local.settings
        connection = self._connection
        if connection is None:
            self._check_idle()
            return
        connection.silent_rounds += 1
        if self.state not in (LinkState.UP, LinkState.LEAVING):
            return
        if connection.silent_rounds * settings.housekeeping_ms >= settings.idle_timeout_ms:
            connection.abort(Unavailable(f"{self._peer} was silent for {settings.idle_timeout_ms} ms"))
        elif self.state is LinkState.UP and not self._ping_pending:
            if now_ns - self._ping_sent_ns >= settings.ping_interval_ms * NS_PER_MS:
                self._ping_sent_ns, self._ping_pending = now_ns, True
                self.outbox.add_control(FrameType.PING, PING.pack(now_ns))
                connection.pump()
        elif self.state is LinkState.LEAVING and not self._waiting:
            connection.close()
        self._check_idle()

    def close(self, why: str) -> None:
        """Says goodbye and lets what was written leave; `abort` ends the wait."""
        self._closed = True
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        connection = self._connection
        if connection is not None and self.state in (LinkState.UP, LinkState.LEAVING):
            connection.write_frame(FrameType.GOODBYE, encode_goodbye(0))
            connection.close()
        elif self._dialing is not None:
            self._dialing.cancel()
        self._waiting.fail_unsent(why)

    def abort(self, why: str) -> None:
        """Ends the connection at once. The link itself may dial again, unless it was closed."""
        if self._connection is not None:
            self._connection.abort(Unavailable(why))

    @property
    def connection(self) -> Connection | None:
        """The connection that is up; None otherwise."""
        return self._connection if self.state in (LinkState.UP, LinkState.LEAVING) else None

    @property
    def dialed(self) -> Address | None:
        return self._dialed

    # --- Dialing --------------------------------------------------------------------------------------------------------

    async def _dial(self) -> None:
        """One attempt. Whatever becomes of it, the state says so afterwards."""
        local = self._local
        loop = asyncio.get_running_loop()
        connection = Connection(self, self.outbox, self.traffic, idle_timeout_ms=local.settings.idle_timeout_ms)
        greeted = self._greeted = loop.create_future()
        try:
            async with asyncio.timeout(local.settings.dial_timeout_ms / 1000):
                address = self._dialed = self._address()
                if address is None:
                    raise Unavailable(f"no address of {self._peer} is known")
                host, port = address
                tls = local.tls.dial if local.tls is not None else None
                self._connection = connection
                await loop.create_connection(lambda: connection, host, port, ssl=tls)
                await greeted
        except TimeoutError:
            self._dial_failed(connection, Unavailable(f"no answer within {local.settings.dial_timeout_ms} ms"))
        except (OSError, UnicodeError, RaftCacheError) as error:  # UnicodeError: a host name that is none (IDNA)
            self._dial_failed(connection, error)
        except asyncio.CancelledError:
            self._dial_failed(connection, Unavailable("this node is shutting down"))
            raise
        finally:
            self._dialing = None
            if greeted.done() and not greeted.cancelled():
                greeted.exception()  # if it has one, it was reported by another way: asyncio need not warn
            if self._greeted is greeted:
                self._greeted = None

    def _dial_failed(self, connection: Connection, error: Exception) -> None:
        if self.state is not LinkState.DIALING:
            return  # the handshake ended in the same instant as the patience
        connection.abort(None)
        self._connection = None
        self.traffic.dial_failures += 1
        self.error = str(error) or type(error).__name__
        # Once for each reason: after a lost connection it is refused first, and perhaps somebody else answers later.
        if self.error != self._reported and not self._closed:
            self._reported = self.error
            address = "unknown" if self._dialed is None else f"{self._dialed[0]}:{self._dialed[1]}"
            self._local.report("peer_unreachable", peer=self.node, address=address, error=self.error)
        # An errand asks one address, and nobody else can answer it: who refuses there is not merely out of reach.
        if self.node == ANY_NODE and isinstance(error, (IdentityMismatch, UnsupportedVersion)):
            self._to_rest(error)
        else:
            self._to_rest()

    def _to_rest(self, refusal: RaftCacheError | None = None) -> None:
        """What waits is dropped or refused, and the next dial comes after a pause, drawn between half and all of it."""
        self.traffic.messages_dropped += self.outbox.clear()
        settings = self._local.settings
        pause_ms = min(settings.backoff_min_ms << min(self._failures, 16), settings.backoff_max_ms)
        self._failures += 1
        self.state = LinkState.RESTING
        self.bootstrap_only = False
        if not self._closed:
            pause_s = pause_ms / 1000 * (0.5 + self._local.random.random() / 2)
            self._rest = asyncio.get_running_loop().call_later(pause_s, self._end_rest)
        self._waiting.fail_all(self.error, refusal)
        self._check_idle()

    def _end_rest(self) -> None:
        self._rest = None
        self.state = LinkState.IDLE

    def _check_idle(self) -> None:
        if self._on_idle is not None and not self._waiting:
            on_idle, self._on_idle = self._on_idle, None
            on_idle()

    # --- Called by the connection -----------------------------------------------------------------------------------------

    def on_made(self, connection: Connection) -> None:
        purpose = Purpose.LINK if self.node != ANY_NODE else Purpose.ERRAND
        connection.write_frame(FrameType.HELLO, encode_hello(Hello(self._local.identity, self.node, purpose)))

    def on_frame(self, connection: Connection, kind: FrameType, payload: memoryview) -> None:
        if self.state is LinkState.DIALING:
            self._on_greeting(connection, kind, bytes(payload))
            return
        match kind:
            case FrameType.RESPONSE:
                self._waiting.on_response(payload)
            case FrameType.PONG:
                self._on_pong(payload)
            case FrameType.GOODBYE:
                self.state = LinkState.LEAVING
                self.traffic.messages_dropped += self.outbox.clear()
                self._waiting.on_goodbye(decode_goodbye(payload))
            case _:
                raise ProtocolError(f"{self._peer} sent a {kind.name} frame on a connection that it accepted")
        if self.state is LinkState.LEAVING and not self._waiting:
            self.error = f"{self._peer} is shutting down"
            connection.close()
        self._check_idle()

    def _on_greeting(self, connection: Connection, kind: FrameType, payload: bytes) -> None:
        greeted = self._greeted
        assert greeted is not None, "dialing without anybody waiting for the greeting"
        if greeted.done():
            return
        if kind is FrameType.REFUSE:
            greeted.set_exception(decode_refusal(payload).as_error())
            return
        if kind is not FrameType.HELLO_REPLY:
            raise ProtocolError(f"{self._peer} answered the introduction with a {kind.name} frame")
        reply = decode_hello_reply(payload)
        local = self._local
        newest = local.incarnations.get(reply.identity.node, 0)
        refused = judge_reply(reply, local.identity, self.node, newest)
        if refused is not None:
            greeted.set_exception(refused)
            return
        greeted.set_result(None)
        self._up(connection, reply)

    def _up(self, connection: Connection, reply: HelloReply) -> None:
        local = self._local
        theirs = reply.identity
        self.bootstrap_only = not local.seen(theirs)
        self.state = LinkState.UP
        self.error = ""
        self._reported = ""
        self._failures = 0
        self._ping_pending, self._ping_sent_ns = False, 0
        self.outbox.frame_bytes_max = min(local.settings.frame_bytes_max, theirs.frame_bytes_max)
        if self.bootstrap_only:
            self.traffic.messages_dropped += self.outbox.clear_messages()
        connection.establish(local.settings.frame_bytes_max)
        self._waiting.fail_unsendable(
            frame_bytes_max=self.outbox.frame_bytes_max,
            kinds=local.bootstrap_kinds if self.bootstrap_only else None,
        )
        if self.node != ANY_NODE and not self.bootstrap_only:
            local.report("peer_connected", peer=self.node)
            local.handler.on_connected(self.node, theirs.address)
        connection.pump()

    def _on_pong(self, payload: memoryview) -> None:
        if len(payload) != PING.size or PING.unpack(payload)[0] != self._ping_sent_ns or not self._ping_pending:
            raise ProtocolError(f"{self._peer} echoed a ping that was not sent")
        self._ping_pending = False
        took_ns = self._local.clock.monotonic_ns() - self._ping_sent_ns
        # RFC 6298 §2.3: the smoothed round trip moves by an eighth.
        self.round_trip_ns = (
            took_ns if not self.round_trip_ns else self.round_trip_ns + (took_ns - self.round_trip_ns) // 8
        )

    def on_closed(self, connection: Connection, error: RaftCacheError | OSError | None) -> None:
        if connection is not self._connection:
            return
        greeted = self._greeted
        if greeted is not None and self.state is LinkState.DIALING:
            if not greeted.done():
                greeted.set_exception(error or Unavailable("the connection was closed before the handshake was done"))
            return
        self._connection = None
        if error is not None or not self.error:
            self.error = str(error) if error is not None else "the connection was closed"
        was_connected = not self.bootstrap_only
        self._to_rest()
        if self.node != ANY_NODE and was_connected:
            self._local.report("peer_disconnected", peer=self.node, error=self.error)
            self._local.handler.on_disconnected(self.node)


def _shown(address: Address | None) -> str:
    """For a person: IPv6 addresses stand in brackets."""
    host, port = address or ("nowhere", 0)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
