"""One TCP connection between two nodes: bytes in, frames out to its owner; the owner's outbox in, bytes out.

This is the thin asyncio part: what a frame means is decided by its owner (`links.py` for connections that we dialed,
`accepted.py` for those that we accepted).

Rules of this file:
- at most `WRITE_BYTES` are handed to the transport at a time, and none while it is paused: what is urgent at the next tick
  must find a short queue before it, in this process and in the kernel (`TCP_NOTSENT_LOWAT`);
- a peer is dead when it has said nothing for a number of housekeeping rounds. Rounds, not clock readings: after a stall
  of our own loop the next round is one round, and nobody else is declared dead for our sleep;
- `closed` reaches the owner exactly once, whatever ends the connection.
"""

import asyncio
import socket
from dataclasses import dataclass
from typing import Protocol, cast

from raftcache.errors import ProtocolError, RaftCacheError, UnsupportedVersion
from raftcache.transport.frames import HELLO_FRAME_BYTES_MAX, FrameParser, FrameType, encode_frame
from raftcache.transport.outbox import Outbox
from raftcache.transport.tls import check_peer_certificate

WRITE_BYTES = 1 << 20
"""Handed to the transport at once: 8 ms at 1 Gbit/s, a twelfth of a tick."""
WRITE_BUFFER_HIGH_BYTES = 256 << 10
"""Above it the transport says pause: 2 ms at 1 Gbit/s."""
WRITE_BUFFER_LOW_BYTES = 64 << 10
KERNEL_UNSENT_BYTES = 256 << 10
"""What the kernel may hold that is not even sent yet; without it the send buffer grows to 4 MiB and more (tcp_wmem)."""
KEEPALIVE_PROBES = 3


@dataclass(slots=True)
class Traffic:
    """Counters of one peer, over all its connections; they only grow."""

    bytes_sent: int = 0
    bytes_received: int = 0
    writes: int = 0
    messages_dropped: int = 0
    dial_failures: int = 0


class Owner(Protocol):
    """Who decides what happens on a connection."""

    def on_made(self, connection: "Connection") -> None: ...
    def on_frame(self, connection: "Connection", kind: FrameType, payload: memoryview) -> None:
        """`payload` is valid during the call. Raises: `ProtocolError`, `UnsupportedVersion`; the connection is then closed."""
        ...

    def on_closed(self, connection: "Connection", error: RaftCacheError | OSError | None) -> None:
        """The end. `error`: None where this side closed it on purpose."""
        ...


class Connection(asyncio.Protocol):
    """See the module. One instance per socket."""

    def __init__(self, owner: Owner, outbox: Outbox, traffic: Traffic, *, idle_timeout_ms: int) -> None:
        self.outbox = outbox
        self.traffic = traffic
        self.parser = FrameParser(HELLO_FRAME_BYTES_MAX)
        self.established = False
        """The handshake is done. Before it only the owner writes, and the outbox waits."""
        self.ended = False
        """Closed or closing: nothing more is read or written."""
        self.gone = asyncio.Event()
        """Set after `on_closed`."""
        self.silent_rounds = 0
        """Housekeeping rounds since the peer last sent a byte. Reset here, counted by the owner."""
        self._owner = owner
        self._idle_timeout_ms = idle_timeout_ms
        self._transport: asyncio.Transport | None = None
        self.paused = False
        """The transport holds enough; it will say when to go on."""
        self._reading_paused = False
        self._continuing = False
        """A `_continue` is scheduled."""
        self._error: RaftCacheError | OSError | None = None

    # --- Called by asyncio ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_HIGH_BYTES, low=WRITE_BUFFER_LOW_BYTES)
        set_socket_options(transport.get_extra_info("socket"), self._idle_timeout_ms)
        secured = transport.get_extra_info("ssl_object")
        if secured is not None:
            try:
                check_peer_certificate(secured.getpeercert(binary_form=True))
            except RaftCacheError as error:
                self.abort(error)
                return
        self._owner.on_made(self)

    def data_received(self, data: bytes) -> None:
        if self.ended:
            return
        self.silent_rounds = 0
        parser = self.parser
        self.traffic.bytes_received += len(data)
        parser.receive(data)
        try:
            while (frame := parser.next_frame()) is not None:
                self._owner.on_frame(self, *frame)
                if self.ended:
                    return
        except (ProtocolError, UnsupportedVersion) as error:
            self.abort(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        if self._error is None and isinstance(exc, OSError):
            self._error = exc
        self._transport = None
        self._owner.on_closed(self, self._error)
        self.gone.set()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.pump()

    # --- Called by the owner ----------------------------------------------------------------------------------------------

    def establish(self, payload_bytes_max: int) -> None:
        """The handshake is done: larger frames are welcome, and the outbox may leave."""
        self.established = True
        self.parser.payload_bytes_max = payload_bytes_max

    def write_frame(self, kind: FrameType, payload: bytes) -> None:
        """Past the outbox: for the handshake and the last word only."""
        if self._transport is not None and not self.ended:
            self._write(encode_frame(kind, payload))

    def pump(self) -> None:
        """Hands the next part of the outbox to the transport, if that takes any."""
        outbox = self.outbox
        if not self._writable() or outbox.is_empty():
            return
        data = outbox.take(WRITE_BYTES)
        if data:
            self._write(data)
        # The kernel took it all: nobody will call `resume_writing`. Others on the loop go first, though.
        if self._writable() and not outbox.is_empty() and not self._continuing:
            self._continuing = True
            asyncio.get_running_loop().call_soon(self._continue)

    def _writable(self) -> bool:
        return self.established and not self.paused and not self.ended

    def _continue(self) -> None:
        self._continuing = False
        self.pump()

    def _write(self, data: bytearray) -> None:
        assert self._transport is not None
        self.traffic.writes += 1
        self.traffic.bytes_sent += len(data)
        self._transport.write(data)

    def pause_reading(self) -> None:
        """Stops taking bytes from the peer, whose own queue then fills: for one that does not read our answers."""
        if not self._reading_paused and self._transport is not None and not self.ended:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused and self._transport is not None and not self.ended:
            self._reading_paused = False
            self._transport.resume_reading()

    @property
    def reading_paused(self) -> bool:
        return self._reading_paused

    def close(self) -> None:
        """Ends on purpose, after what was written has left. The owner bounds the wait (`abort`)."""
        if not self.ended and self._transport is not None:
            self.ended = True
            self._transport.close()

    def abort(self, error: RaftCacheError | OSError | None) -> None:
        """Ends at once; what was written may be lost."""
        self.ended = True
        if self._error is None:
            self._error = error
        if self._transport is not None:
            self._transport.abort()


def set_socket_options(sock: socket.socket | None, idle_timeout_ms: int) -> None:
    """No Nagle; little unsent data in the kernel; a peer that is gone without a word is noticed by the kernel too."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probe_s = max(1, idle_timeout_ms // 1000 // KEEPALIVE_PROBES)
    for name, value in (
        ("TCP_KEEPIDLE", probe_s),
        ("TCP_KEEPINTVL", probe_s),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
        # RFC 5482: how long sent data may stay unacknowledged. Without it a cut cable shows after 15 minutes.
        ("TCP_USER_TIMEOUT", idle_timeout_ms),
        ("TCP_NOTSENT_LOWAT", KERNEL_UNSENT_BYTES),
    ):
        option = getattr(socket, name, None)  # Linux has all of them, other systems some
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
