"""The listening side: connections that other nodes dialed. They bring Raft messages, requests and snapshots.

Rules of this file:
- nothing is believed, and nothing larger than a HELLO is buffered, before the handshake;
- one link per node: a newer one replaces the older, whose end of the wire is likely dead;
- until both ends are in one cluster only bootstrap requests pass;
- answers that wait for a peer are bounded: beyond that large ones are dropped, which their requests are told; and while not even
  small ones are taken, we read nothing more.
"""

import asyncio
import socket
from collections.abc import Callable
from functools import partial

from raftcache.errors import ConfigError, Overloaded, ProtocolError, RaftCacheError, Unavailable
from raftcache.ids import NodeId
from raftcache.transport.calls import (
    ANSWER_BYTES_MAX,
    CALL_OVERHEAD_BYTES,
    Status,
    decode_request,
    encode_goodbye,
    encode_response,
)
from raftcache.transport.codec import decode_section
from raftcache.transport.connections import Connection, Traffic
from raftcache.transport.frames import FrameType
from raftcache.transport.handshake import (
    Address,
    Hello,
    Purpose,
    Refusal,
    Refused,
    decode_hello,
    encode_hello_reply,
    encode_refusal,
    judge_hello,
)
from raftcache.transport.links import PING
from raftcache.transport.local_node import LocalNode
from raftcache.transport.outbox import Outbox
from raftcache.transport.snapshots import IncomingSnapshots, SnapshotStream
from raftcache.transport.tls import PeerTls, check_listen_address

ANSWER_BYTES_WAITING_FACTOR = 4
"""Past so many times `call_bytes_max` a large answer is dropped, so that the link, which is Raft's too, goes on."""
SMALL_ANSWER_BYTES = 16 << 10
"""An answer that passes all the same: the outcome of a write is worth it, and the requests in flight bound how many there are."""
LISTEN_BACKLOG = 128


class Listener:
    """The listening socket and everything accepted on it."""

    def __init__(self, local: LocalNode, snapshots: IncomingSnapshots, *, heard_from: Callable[[NodeId], None]) -> None:
        self.refusals = 0
        """Connections that ended in, or before, the handshake."""
        self._local = local
        self._snapshots = snapshots
        self._heard_from = heard_from
        self._accepted: set[Accepted] = set()
        self._links: dict[NodeId, Accepted] = {}
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._stopped = False

    async def start(self, *, insecure: bool) -> Address:
        """Listens. Returns the address, with the port that was given. Raises: `ConfigError`, `OSError`."""
        host, port = self._local.settings.listen
        check_listen_address(host, tls=self._local.tls is not None, insecure=insecure)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise ConfigError(f"the address to listen on, {host}:{port}, has no meaning here: {error}") from None
        family, _, _, _, address = found[0]
        dual_stack = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
        self._socket = socket.create_server(
            address[:2], family=family, backlog=LISTEN_BACKLOG, dualstack_ipv6=dual_stack
        )
        await self._listen()
        bound: tuple[str, int] = self._socket.getsockname()[:2]
        return bound[0], bound[1]

    async def _listen(self) -> None:
        assert self._socket is not None, "start comes first"
        tls = self._local.tls.accept if self._local.tls is not None else None
        # A duplicate: the asyncio server closes its socket, and a reload of the certificates needs another server on it.
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Accepted(self, self._local, self._snapshots).connection,
            sock=self._socket.dup(),
            backlog=LISTEN_BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=self._local.settings.dial_timeout_ms / 1000 if tls is not None else None,
        )

    async def reload_tls(self, tls: PeerTls) -> None:
        """New connections get the new certificates; connections that are up stay. (The kernel's queue bridges the gap.)"""
        self._local.tls = tls
        if self._server is not None:
            self._server.close()
        await self._listen()

    def housekeep(self) -> None:
        for accepted in list(self._accepted):
            accepted.housekeep()

    def drop_bootstrap_links(self) -> None:
        """This node has become a member: whoever called before must introduce itself anew."""
        for accepted in list(self._accepted):
            # Whoever told this node to become a member is still owed the answer; an errand ends with it by itself.
            if accepted.bootstrap_only and accepted.purpose is not Purpose.ERRAND:
                accepted.say_goodbye()

    def stop(self) -> None:
        """Takes no more connections, says goodbye on those that are."""
        if self._server is not None:
            self._server.close()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._stopped = True
        for accepted in list(self._accepted):
            accepted.say_goodbye()

    @property
    def connections(self) -> list[Connection]:
        return [accepted.connection for accepted in self._accepted]

    def answer_bytes_waiting(self, node: NodeId) -> int:
        """Answers on the node's link that it has not taken."""
        accepted = self._links.get(node)
        return 0 if accepted is None else accepted.answer_bytes_waiting

    # --- Called by what was accepted --------------------------------------------------------------------------------------

    def made(self, accepted: "Accepted") -> bool:
        """False: there are too many, or the end has begun while it shook hands with TLS."""
        if self._stopped or len(self._accepted) >= self._local.settings.accepted_max:
            return False
        self._accepted.add(accepted)
        return True

    def proved(self, accepted: "Accepted", hello: Hello) -> None:
        """The handshake went well, in one cluster."""
        node = hello.identity.node
        if hello.purpose is Purpose.LINK:
            older = self._links.get(node)
            self._links[node] = accepted
            if older is not None:
                older.connection.abort(Unavailable(f"node {node} opened a newer link"))
            self._heard_from(node)
            self._local.handler.on_connected(node, hello.identity.address)

    def ended(self, accepted: "Accepted") -> None:
        self._accepted.discard(accepted)
        node = accepted.node
        if node is None:
            self.refusals += 1
        elif self._links.get(node) is accepted:
            del self._links[node]


class Accepted:
    """One accepted connection: its handshake, and what its frames mean."""

    def __init__(self, listener: Listener, local: LocalNode, snapshots: IncomingSnapshots) -> None:
        settings = local.settings
        self.node: NodeId | None = None
        """Who is at the other end; None before the handshake."""
        self.bootstrap_only = False
        self._listener = listener
        self._local = local
        self._snapshots = snapshots
        self.purpose = Purpose.LINK
        self._answer_bytes_max = settings.call_bytes_max * ANSWER_BYTES_WAITING_FACTOR
        small = settings.requests_in_flight_max * (SMALL_ANSWER_BYTES + CALL_OVERHEAD_BYTES)
        self._outbox = Outbox(bulk_bytes_max=0, call_bytes_max=self._answer_bytes_max + small)
        self._stream: SnapshotStream | None = None
        self._last_request_id = 0
        self._unanswered = 0
        self._dirty = False
        self._leaving = False
        self._greeting_rounds = 0
        """Housekeeping rounds without a handshake; bytes that trickle in do not prolong it."""
        self._bytes_sent = 0
        """At the last round, to tell a slow reader from one that does not read at all."""
        self.connection = Connection(self, self._outbox, Traffic(), idle_timeout_ms=settings.idle_timeout_ms)

    # --- Called by the connection -----------------------------------------------------------------------------------------

    def on_made(self, connection: Connection) -> None:
        if not self._listener.made(self):
            connection.abort(Overloaded("too many connections of other nodes"))

    def on_frame(self, connection: Connection, kind: FrameType, payload: memoryview) -> None:
        node = self.node
        if node is None:
            self._on_hello(connection, kind, bytes(payload))
            return
        match kind:
            case FrameType.RAFT:
                if self.bootstrap_only or self.purpose is not Purpose.LINK:
                    raise ProtocolError(f"node {node} sent Raft messages on a connection that is not for them")
                self._local.handler.on_messages(node, decode_section(payload))
            case FrameType.REQUEST:
                self._on_request(node, payload)
            case FrameType.PING:
                if len(payload) != PING.size:
                    raise ProtocolError(f"node {node} sent a ping of {len(payload)} bytes")
                self._outbox.add_control(FrameType.PONG, bytes(payload))
                connection.pump()
            case FrameType.SNAPSHOT_BEGIN | FrameType.SNAPSHOT_CHUNK | FrameType.SNAPSHOT_END:
                if self._stream is None:
                    raise ProtocolError(
                        f"node {node} sent a {kind.name} frame on a connection that is not for snapshots"
                    )
                self._stream.on_frame(kind, bytes(payload))
            case FrameType.GOODBYE:
                connection.close()
            case _:
                raise ProtocolError(f"node {node} sent a {kind.name} frame on a connection that it dialed")

    def on_closed(self, connection: Connection, error: RaftCacheError | OSError | None) -> None:
        if self._stream is not None:
            self._stream.cut(error)
        if error is not None and not isinstance(error, OSError | Unavailable | Overloaded):
            self._local.report("peer_refused", peer=self.node or 0, error=str(error))
        self._listener.ended(self)

    # --- The handshake ------------------------------------------------------------------------------------------------

    def _on_hello(self, connection: Connection, kind: FrameType, payload: bytes) -> None:
        if kind is not FrameType.HELLO:
            raise ProtocolError(f"a connection began with a {kind.name} frame")
        local = self._local
        hello = decode_hello(payload)
        theirs = hello.identity
        verdict = judge_hello(hello, local.identity, local.incarnations.get(theirs.node, 0))
        if not isinstance(verdict, Refusal) and hello.purpose is Purpose.SNAPSHOT and not self._snapshots.has_room:
            verdict = Refusal(Refused.BUSY, f"node {local.identity.node} receives as many snapshots as it may")
        if isinstance(verdict, Refusal):
            local.report("peer_refused", peer=theirs.node, error=verdict.explanation)
            connection.write_frame(FrameType.REFUSE, encode_refusal(verdict))
            connection.close()
            return
        self.node = theirs.node
        self.purpose = hello.purpose
        self._outbox.frame_bytes_max = min(theirs.frame_bytes_max, local.settings.frame_bytes_max)
        connection.traffic = local.traffic_of(theirs.node)
        connection.write_frame(FrameType.HELLO_REPLY, encode_hello_reply(verdict))
        connection.establish(local.settings.frame_bytes_max)
        self.bootstrap_only = not local.seen(theirs)
        if self.bootstrap_only:
            return
        if hello.purpose is Purpose.SNAPSHOT:
            self._stream = SnapshotStream(self._snapshots, theirs.node, connection)
        self._listener.proved(self, hello)

    # --- Requests -----------------------------------------------------------------------------------------------------

    def _on_request(self, node: NodeId, payload: memoryview) -> None:
        request_id, kind, body = decode_request(payload)
        if request_id <= self._last_request_id:
            raise ProtocolError(f"node {node} sent request {request_id} after {self._last_request_id}")
        if self._leaving:
            return  # past our goodbye, which told the last request that counts
        self._last_request_id = request_id
        self._unanswered += 1
        if self.bootstrap_only and kind not in self._local.bootstrap_kinds:
            self._answer(request_id, Status.NOT_INITIALISED, b"")
        elif self._unanswered > self._local.settings.requests_in_flight_max:
            self._answer(request_id, Status.OVERLOADED, b"")
        else:
            self._local.handler.on_request(node, kind, body, partial(self._answer, request_id, Status.ANSWER))

    def _answer(self, request_id: int, status: Status, payload: bytes) -> None:
        if self.connection.ended:
            return
        self._unanswered -= 1
        assert self._unanswered >= 0, f"request {request_id} of node {self.node} was answered twice"
        waiting = self._outbox.call_bytes_waiting
        crowded = waiting > 0 and waiting + len(payload) > self._answer_bytes_max and len(payload) > SMALL_ANSWER_BYTES
        if crowded or len(payload) > min(ANSWER_BYTES_MAX, self._answer_bytes_max):
            status, payload = Status.ANSWER_TOO_LARGE, b""
        room = self._outbox.frame_bytes_max - CALL_OVERHEAD_BYTES
        last = max(0, len(payload) - 1) // room * room
        parts = [encode_response(request_id, Status.PART, payload[at : at + room]) for at in range(0, last, room)]
        for call in (*parts, encode_response(request_id, status, payload[last:])):
            if not self._outbox.add_call(call):
                self.connection.abort(Overloaded(f"node {self.node} does not read the answers to its requests"))
                return
        if self._outbox.call_bytes_waiting > self._answer_bytes_max:
            self.connection.pause_reading()
        if not self._dirty:
            self._dirty = True
            self._local.dirty.append(self)
            self._local.flush_soon()

    @property
    def answer_bytes_waiting(self) -> int:
        return self._outbox.call_bytes_waiting

    def flush(self) -> None:
        self._dirty = False
        self.connection.pump()

    # --- Housekeeping -------------------------------------------------------------------------------------------------

    def say_goodbye(self) -> None:
        """Requests that came so far are still answered, later ones are not taken."""
        if self.node is None or self._stream is not None:
            self.connection.close()
            return
        self._leaving = True
        self._outbox.add_control(FrameType.GOODBYE, encode_goodbye(self._last_request_id))
        self.connection.pump()

    def housekeep(self) -> None:
        settings, connection = self._local.settings, self.connection
        if self.node is None:
            self._greeting_rounds += 1
            if self._greeting_rounds * settings.housekeeping_ms >= settings.dial_timeout_ms:
                connection.abort(Unavailable("a connection did not introduce itself"))
            return
        connection.silent_rounds += 1
        if connection.reading_paused:
            # We do not read, so its silence says nothing; whether it takes our answers does.
            if self._outbox.call_bytes_waiting <= self._answer_bytes_max // 2:
                connection.resume_reading()
            if connection.traffic.bytes_sent != self._bytes_sent:
                self._bytes_sent = connection.traffic.bytes_sent
                connection.silent_rounds = 0
        if self._stream is not None and not connection.ended:
            patience_ms = self._stream.patience_ms(settings)
        else:
            patience_ms = settings.idle_timeout_ms
        silent_ms = connection.silent_rounds * settings.housekeeping_ms
        if silent_ms >= patience_ms:
            connection.abort(Unavailable(f"node {self.node} was silent for {silent_ms} ms"))
