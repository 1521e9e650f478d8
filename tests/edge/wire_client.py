"""A client that speaks HTTP/2 by hand, well or badly, over a socket: what no proper client would send can be sent."""

import asyncio
import socket
from dataclasses import dataclass, field

from hpack import Decoder as OracleDecoder

from raftcache.wire import http2_frames as frames
from raftcache.wire.grpc_wire import framed
from raftcache.wire.hpack import Encoder, Fields

SHARD_MAP = b"/raftcache.v1.KvService/ShardMap"
PUT = b"/raftcache.v1.KvService/Put"
PIPELINE = b"/raftcache.v1.KvService/Pipeline"


@dataclass
class Frame:
    """A frame that was received."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


def request_fields(path: bytes = SHARD_MAP, *more: tuple[bytes, bytes]) -> Fields:
    """A gRPC request's header list."""
    return (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"test"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *more,
    )


@dataclass
class WireClient:
    """One connection. Reads on its own only when asked to."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    encoder: Encoder = field(default_factory=Encoder)
    decoder: OracleDecoder = field(default_factory=OracleDecoder)
    next_id: int = 1

    @classmethod
    async def connect(
        cls, port: int, settings: dict[int, int] | None = None, *, limit: int = 1 << 24, receive_buffer: int = 0
    ) -> "WireClient":
        """A connection that has said hello. `receive_buffer`: bytes that the kernel keeps for it; 0: it grows as it likes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
        if receive_buffer:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client = cls(reader, writer)
        client.send(frames.PREFACE + frames.settings(settings or {}))
        return client

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def open(self, fields: Fields | None = None, *, end: bool = False) -> int:
        """HEADERS; the stream's id."""
        stream_id, self.next_id = self.next_id, self.next_id + 2
        block = self.encoder.encode(fields or request_fields())
        self.send(frames.headers(stream_id, block, end_stream=end, frame_bytes_max=16_384))
        return stream_id

    def call(self, message: bytes = b"", fields: Fields | None = None) -> int:
        """A whole unary call."""
        stream_id = self.open(fields)
        self.send(frames.frame(frames.DATA, frames.END_STREAM, stream_id, framed(message)))
        return stream_id

    async def frame(self) -> Frame | None:
        """The next frame; None at the end of the connection."""
        async with asyncio.timeout(10):
            try:
                head = await self.reader.readexactly(frames.FRAME_HEADER_BYTES)
                upper, lower, kind, flags, stream_id = frames.FRAME_HEADER.unpack(head)
                return Frame(kind, flags, stream_id, await self.reader.readexactly(upper << 8 | lower))
            except (asyncio.IncompleteReadError, ConnectionError):
                return None

    async def until(self, kind: int, stream_id: int | None = None) -> Frame | None:
        """Reads on to a frame of this kind; None if the connection ends before."""
        while (found := await self.frame()) is not None:
            if found.kind == kind and stream_id in (None, found.stream_id):
                return found
        return None

    async def goaway(self) -> int | None:
        """The error code of the next GOAWAY; None if the connection ends without."""
        found = await self.until(frames.GOAWAY)
        return None if found is None else int.from_bytes(found.payload[4:8], "big")

    async def reset_code(self, stream_id: int) -> int | None:
        """The error code of the stream's RST_STREAM."""
        found = await self.until(frames.RST_STREAM, stream_id)
        return None if found is None else int.from_bytes(found.payload, "big")

    async def answer(self, stream_id: int) -> tuple[dict[str, str], bytes]:
        """Reads to the end of the stream: the fields of head and trailers, and the DATA."""
        fields: dict[str, str] = {}
        data = b""
        while (found := await self.frame()) is not None:
            if found.kind == frames.HEADERS:
                decoded = self.decoder.decode(found.payload)
                if found.stream_id == stream_id:
                    fields |= {str(name): str(value) for name, value in decoded}
            elif found.kind == frames.DATA and found.stream_id == stream_id:
                data += found.payload
            if found.stream_id == stream_id and found.kind in (frames.HEADERS, frames.DATA):
                if found.flags & frames.END_STREAM:
                    break
        return fields, data

    async def round_trip(self) -> bool:
        """Whether a ping is answered: by then everything sent before has been dealt with."""
        self.send(frames.frame(frames.PING, 0, 0, b"finished"))
        while (found := await self.until(frames.PING)) is not None:
            if found.payload == b"finished":
                return True
        return False

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return
