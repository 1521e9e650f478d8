"""Snapshots on their way: one checkpoint, on a connection of its own, so that tens of GB never stand before a heartbeat.

    sender   -> HELLO (for a snapshot)
    receiver -> HELLO_REPLY, or REFUSE
    sender   -> SNAPSHOT_BEGIN   the InstallSnapshot message, size u64, digest
    sender   -> SNAPSHOT_CHUNK*  bytes
    sender   -> SNAPSHOT_END     crc32c of all chunks u32
    receiver -> SNAPSHOT_RESULT  good u8, words        (at any time, if it is bad)

Rules of this file:
- every chunk has its frame's checksum, all together have the one of SNAPSHOT_END, and the receiver's storage compares the
  digest with what it wrote: a snapshot is either all there or was never there;
- a cut, at whatever byte, ends in `abort` at the receiver and in a failure at the sender; there is no resuming;
- the sender reads ahead one chunk in a thread, waits while the socket is full, and keeps below a rate;
- one snapshot per shard and receiving replica, a few per node, in each direction.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Protocol, TypeVar

from crc32c import crc32c

from raftcache.clock import NS_PER_SECOND
from raftcache.errors import Overloaded, ProtocolError, RaftCacheError, Unavailable
from raftcache.ids import NodeId, ReplicaId, ShardId
from raftcache.raft.messages import InstallSnapshot
from raftcache.transport.codec import decode_message, encode_message
from raftcache.transport.connections import (
    WRITE_BUFFER_HIGH_BYTES,
    WRITE_BUFFER_LOW_BYTES,
    Connection,
    set_socket_options,
)
from raftcache.transport.frames import FrameParser, FrameType, encode_frame
from raftcache.transport.handshake import (
    Address,
    Hello,
    Purpose,
    decode_hello_reply,
    decode_refusal,
    encode_hello,
    judge_reply,
    same_cluster,
)
from raftcache.transport.local_node import LocalNode, PeerSettings
from raftcache.transport.tls import check_peer_certificate

_SIZE = struct.Struct("<QB")
"""Bytes of all chunks; length of the digest, which follows."""
_CHECKSUM = struct.Struct("<I")
READ_BYTES = 64 << 10

T = TypeVar("T")


class SnapshotSource(Protocol):
    """A checkpoint to be sent."""

    @property
    def size(self) -> int: ...
    @property
    def digest(self) -> bytes:
        """Up to 255 bytes that mean something to the receiver's storage."""
        ...

    def chunk(self) -> bytes:
        """The next bytes, empty at the end. Called in a thread, never twice at a time, never after the transfer's end."""
        ...


class SnapshotSink(Protocol):
    """A checkpoint being received. All of it is called on the loop."""

    def add(self, chunk: bytes) -> None:
        """Raises: `RaftCacheError` where it cannot be taken; it is aborted then."""
        ...

    def finish(self, done: Callable[[bool], None]) -> None:
        """All bytes are there. `done` says, now or later, whether the snapshot is good."""
        ...

    def abort(self) -> None:
        """The rest will not come. Not called after `finish`."""
        ...


class BeginSnapshot(Protocol):
    """Offers a snapshot to the node."""

    def __call__(
        self, from_node: NodeId, shard: ShardId, message: InstallSnapshot, *, size: int, digest: bytes
    ) -> SnapshotSink:
        """Raises: `RaftCacheError` where it is not wanted; the sender is told."""
        ...


def encode_begin(shard: ShardId, message: InstallSnapshot, *, size: int, digest: bytes) -> bytes:
    assert len(digest) < 256, f"a digest of {len(digest)} bytes"
    buffers: list[bytes] = []
    encode_message(shard, message, buffers)
    return b"".join([*buffers, _SIZE.pack(size, len(digest)), digest])


def decode_begin(payload: bytes) -> tuple[ShardId, InstallSnapshot, int, bytes]:
    """(shard, message, size, digest). Raises: `ProtocolError`."""
    shard, message, position = decode_message(payload, 0)
    if not isinstance(message, InstallSnapshot):
        raise ProtocolError(f"a snapshot begins with a {type(message).__name__}")
    if len(payload) < position + _SIZE.size:
        raise ProtocolError("the beginning of a snapshot is cut")
    size, digest_bytes = _SIZE.unpack_from(payload, position)
    digest = payload[position + _SIZE.size :]
    if len(digest) != digest_bytes:
        raise ProtocolError(f"a snapshot's digest has {len(digest)} bytes, not {digest_bytes}")
    return shard, message, size, digest


# --- Receiving ----------------------------------------------------------------------------------------------------


class IncomingSnapshots:
    """The snapshots that this node receives now."""

    def __init__(self, begin: BeginSnapshot | None, *, count_max: int) -> None:
        self._begin = begin
        self._count_max = count_max
        self._streams: dict[tuple[ShardId, ReplicaId], SnapshotStream] = {}

    @property
    def has_room(self) -> bool:
        return len(self._streams) < self._count_max

    def begin(
        self, stream: "SnapshotStream", shard: ShardId, message: InstallSnapshot, size: int, digest: bytes
    ) -> SnapshotSink:
        """Raises: `RaftCacheError`."""
        if self._begin is None:
            raise Unavailable("this node takes no snapshots")
        key = shard, message.to
        older = self._streams.get(key)
        if older is not None:
            # Its sender lost patience or leadership; were it alive, it would not have been replaced.
            older.fail(f"a newer snapshot of shard {shard} for replica {message.to} began")
        if not self.has_room:
            raise Overloaded("this node receives as many snapshots as it may")
        sink = self._begin(stream.node, shard, message, size=size, digest=digest)
        self._streams[key] = stream
        return sink

    def ended(self, stream: "SnapshotStream") -> None:
        self._streams = {key: other for key, other in self._streams.items() if other is not stream}


class SnapshotStream:
    """One snapshot connection, seen from the receiver."""

    def __init__(self, owner: IncomingSnapshots, node: NodeId, connection: Connection) -> None:
        self.node = node
        self._owner = owner
        self._connection = connection
        self._sink: SnapshotSink | None = None
        """Set between BEGIN and END: whom to `abort`."""
        self._left = 0
        """Bytes that are still to come."""
        self._checksum = 0
        self._verifying = False
        """All is there; the sink has the word."""

    def on_frame(self, kind: FrameType, payload: bytes) -> None:
        """Raises: `ProtocolError`."""
        if self._verifying:
            raise ProtocolError(f"node {self.node} sent a {kind.name} frame after the snapshot's end")
        match kind:
            case FrameType.SNAPSHOT_BEGIN:
                self._on_begin(payload)
            case FrameType.SNAPSHOT_CHUNK:
                self._on_chunk(payload)
            case _:
                self._on_end(payload)

    def _on_begin(self, payload: bytes) -> None:
        if self._sink is not None:
            raise ProtocolError(f"node {self.node} began a second snapshot on one connection")
        shard, message, size, digest = decode_begin(payload)
        try:
            self._sink = self._owner.begin(self, shard, message, size, digest)
        except RaftCacheError as error:
            self.fail(error.message)
            return
        self._left = size

    def _sink_in_use(self) -> SnapshotSink:
        if self._sink is None:
            raise ProtocolError(f"node {self.node} sent a part of a snapshot that has not begun")
        return self._sink

    def _on_chunk(self, chunk: bytes) -> None:
        sink = self._sink_in_use()
        self._left -= len(chunk)
        if self._left < 0:
            raise ProtocolError(f"node {self.node} sent {-self._left} bytes more than the snapshot was said to have")
        self._checksum = crc32c(chunk, self._checksum)
        try:
            sink.add(chunk)
        except RaftCacheError as error:
            self.fail(error.message)

    def _on_end(self, payload: bytes) -> None:
        sink = self._sink_in_use()
        if self._left or len(payload) != _CHECKSUM.size:
            raise ProtocolError(f"node {self.node} ended a snapshot {self._left} bytes before its end")
        announced = _CHECKSUM.unpack(payload)[0]
        if announced != self._checksum:
            self.fail(f"the snapshot's bytes have the checksum {self._checksum:#010x}, not {announced:#010x}")
            return
        self._verifying = True
        self._sink = None
        sink.finish(self._finished)

    def _finished(self, good: bool) -> None:
        self._owner.ended(self)
        words = b"" if good else b"the receiver found the snapshot damaged, or could not keep it"
        self._connection.write_frame(FrameType.SNAPSHOT_RESULT, bytes([good]) + words)
        self._connection.close()

    def fail(self, why: str) -> None:
        """Tells the sender and ends."""
        self._connection.write_frame(FrameType.SNAPSHOT_RESULT, b"\0" + why.encode()[:1024])
        self._connection.close()
        self._abort_sink()

    def cut(self, error: RaftCacheError | OSError | None) -> None:
        """The connection is gone. What is being verified goes on: it is all there."""
        self._abort_sink()

    def _abort_sink(self) -> None:
        sink, self._sink = self._sink, None
        if not self._verifying:
            self._owner.ended(self)
        if sink is not None:
            sink.abort()

    def patience_ms(self, settings: PeerSettings) -> int:
        """How long the sender may be silent: while we verify, it has nothing to say."""
        return settings.snapshot_verify_ms if self._verifying else settings.snapshot_stall_ms


# --- Sending ------------------------------------------------------------------------------------------------------


class OutgoingSnapshots:
    """The snapshots that this node sends now."""

    def __init__(self, local: LocalNode, address_of: Callable[[NodeId], Address | None]) -> None:
        self._local = local
        self._address_of = address_of
        self._tasks: dict[tuple[ShardId, ReplicaId], asyncio.Task[None]] = {}

    def send(
        self,
        node: NodeId,
        shard: ShardId,
        message: InstallSnapshot,
        source: SnapshotSource,
        on_done: Callable[[bool], None],
    ) -> None:
        """Begins to send. `on_done` is called once, later, on the loop; the source is not used after that."""
        key = shard, message.to
        if key in self._tasks or len(self._tasks) >= self._local.settings.snapshots_out_max:
            self._local.report("snapshot_not_sent", peer=node, shard=shard, error="too many snapshots are on their way")
            asyncio.get_running_loop().call_soon(on_done, False)
            return
        task = self._local.tasks.create_task(
            self._run(node, shard, message, source, on_done), name=f"snapshot-{shard}-{message.to}"
        )
        self._tasks[key] = task

    def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _run(
        self,
        node: NodeId,
        shard: ShardId,
        message: InstallSnapshot,
        source: SnapshotSource,
        on_done: Callable[[bool], None],
    ) -> None:
        good = False
        try:
            address = self._address_of(node)
            if address is None:
                raise Unavailable(f"no address of node {node} is known")
            await send_snapshot(self._local, node, address, shard, message, source)
            good = True
        except TimeoutError:
            self._local.report("snapshot_not_sent", peer=node, shard=shard, error="the receiver does not go on")
        except (OSError, UnicodeError, RaftCacheError) as error:
            self._local.report("snapshot_not_sent", peer=node, shard=shard, error=str(error))
        finally:
            del self._tasks[shard, message.to]
            on_done(good)


async def send_snapshot(
    local: LocalNode, node: NodeId, address: Address, shard: ShardId, message: InstallSnapshot, source: SnapshotSource
) -> None:
    """Sends one snapshot and waits for the receiver's word. Cancelling it cuts the connection.

    Raises: `RaftCacheError` (refused, damaged), `OSError`, `TimeoutError`. The receiver then has nothing; but where the
    last byte was sent, it may have all of it.
    """
    settings = local.settings
    patience_s = settings.dial_timeout_ms / 1000
    async with asyncio.timeout(patience_s):
        tls = local.tls.dial if local.tls is not None else None
        reader, writer = await asyncio.open_connection(*address, ssl=tls, limit=READ_BYTES)
    try:
        _prepare(writer, settings)
        answers = _Answers(reader)
        async with asyncio.timeout(patience_s):
            writer.write(encode_frame(FrameType.HELLO, encode_hello(Hello(local.identity, node, Purpose.SNAPSHOT))))
            frame_bytes_max = _check_greeting(local, node, *await answers.next_frame())
        begin = encode_begin(shard, message, size=source.size, digest=source.digest)
        writer.write(encode_frame(FrameType.SNAPSHOT_BEGIN, begin))
        async with asyncio.TaskGroup() as group:
            # The receiver may say no at any time; whichever of the two fails, ends both.
            result = group.create_task(_await_result(answers), name=f"snapshot-result-{shard}")
            await _stream(local, writer, source, frame_bytes_max)
            async with asyncio.timeout(settings.snapshot_verify_ms / 1000):
                await result
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    finally:
        writer.transport.abort()


def _prepare(writer: asyncio.StreamWriter, settings: PeerSettings) -> None:
    set_socket_options(writer.get_extra_info("socket"), settings.idle_timeout_ms)
    writer.transport.set_write_buffer_limits(high=WRITE_BUFFER_HIGH_BYTES, low=WRITE_BUFFER_LOW_BYTES)
    secured = writer.get_extra_info("ssl_object")
    if secured is not None:
        check_peer_certificate(secured.getpeercert(binary_form=True))


class _Answers:
    """The receiver's frames, which are few."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._parser = FrameParser(READ_BYTES)

    async def next_frame(self) -> tuple[FrameType, bytes]:
        """Raises: `ProtocolError`, `Unavailable` at the end of the stream, `OSError`."""
        while (frame := self._parser.next_frame()) is None:
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise Unavailable("the receiver closed the snapshot's connection")
            self._parser.receive(data)
        return frame[0], bytes(frame[1])


def _check_greeting(local: LocalNode, node: NodeId, kind: FrameType, payload: bytes) -> int:
    """Returns the largest payload that the receiver accepts. Raises: `RaftCacheError`."""
    if kind is FrameType.REFUSE:
        raise decode_refusal(payload).as_error()
    if kind is not FrameType.HELLO_REPLY:
        raise ProtocolError(f"node {node} answered the introduction with a {kind.name} frame")
    reply = decode_hello_reply(payload)
    refused = judge_reply(reply, local.identity, node, local.incarnations.get(node, 0))
    if refused is not None:
        raise refused
    if not same_cluster(local.identity, reply.identity):
        raise Unavailable(f"node {node} is in no cluster yet")
    return min(local.settings.frame_bytes_max, reply.identity.frame_bytes_max)


async def _await_result(answers: _Answers) -> None:
    kind, payload = await answers.next_frame()
    if kind is not FrameType.SNAPSHOT_RESULT or not payload:
        raise ProtocolError(f"a {kind.name} frame came where the result of a snapshot was expected")
    if payload[0] != 1:
        raise Unavailable(f"the receiver refused the snapshot: {payload[1:].decode(errors='replace')}")


async def _stream(local: LocalNode, writer: asyncio.StreamWriter, source: SnapshotSource, frame_bytes_max: int) -> None:
    """All chunks, then the end."""
    loop = asyncio.get_running_loop()
    settings, clock = local.settings, local.clock
    rate = settings.snapshot_bytes_per_second_max
    began_ns = clock.monotonic_ns()
    sent, checksum = 0, 0
    chunk = await _finish(loop.run_in_executor(None, source.chunk))
    while chunk:
        following = loop.run_in_executor(None, source.chunk)
        try:
            for lo in range(0, len(chunk), frame_bytes_max):
                writer.write(encode_frame(FrameType.SNAPSHOT_CHUNK, chunk[lo : lo + frame_bytes_max]))
            sent += len(chunk)
            checksum = crc32c(chunk, checksum)
            async with asyncio.timeout(settings.snapshot_stall_ms / 1000):
                await writer.drain()
            if rate:
                ahead_s = sent / rate - (clock.monotonic_ns() - began_ns) / NS_PER_SECOND
                if ahead_s > 0:
                    await asyncio.sleep(ahead_s)
        finally:
            # Whatever happens, the thread is done with the source before anybody closes it.
            chunk = await _finish(following)
    writer.write(encode_frame(FrameType.SNAPSHOT_END, _CHECKSUM.pack(checksum)))


async def _finish(future: "asyncio.Future[T]") -> T:
    """The future's result; a cancellation waits for the future's end first."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
