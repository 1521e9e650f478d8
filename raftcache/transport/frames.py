"""Frames: how bytes on a connection between two nodes fall into pieces. Sans-IO.

    crc32c u32 | magic u8 | version u8 | type u8 | flags u8 | length u32 | payload (length bytes)

The checksum covers everything after itself, so a flipped type or length is caught as a flipped payload is.

Rules of this file:
- no sockets, no clock: bytes in, frames out, and the reverse;
- nothing is believed before it is checked: the magic, version, type and length as soon as the header is there (a
  wrong length must not make us wait, or allocate, for what never comes), the checksum before a payload is handed out;
- after an error the parser is finished, as is the connection: there is no resynchronising with a damaged stream;
- every byte is copied a bounded number of times, however the stream is cut. A payload is a view of what was received:
  whoever keeps a part of it copies that part (a second copy of a 1 MiB Append was measured at 1 ms: page faults).
"""

import struct
from enum import IntEnum

from crc32c import crc32c

from raftcache.errors import ProtocolError, UnsupportedVersion

MAGIC = 0xC5
FRAME_VERSION = 1

_HEADER = struct.Struct("<IBBBBI")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEADER.size
_BLANK_HEADER = bytes(HEADER_BYTES)

FRAME_BYTES_MAX = 128 << 20
"""The hard cap of a payload: the most that `limits.frame_bytes_max` may be set to. A connection allows what is configured
(8 MiB by default: a full Append of 1 MiB, a request of `limits.batch_bytes_max`, and headers)."""

HELLO_FRAME_BYTES_MAX = 4096
"""Before the handshake nobody makes us buffer more: a HELLO is two numbers of identity and a host name (255 bytes)."""


class FrameType(IntEnum):
    """What a payload means. The values are part of the wire format."""

    HELLO = 1
    HELLO_REPLY = 2
    REFUSE = 3
    RAFT = 4
    REQUEST = 5
    RESPONSE = 6
    SNAPSHOT_BEGIN = 7
    SNAPSHOT_CHUNK = 8
    SNAPSHOT_END = 9
    SNAPSHOT_RESULT = 10
    PING = 11
    PONG = 12
    GOODBYE = 13


_TYPES: tuple[FrameType | None, ...] = (None, *FrameType)
assert all(kind is None or kind == number for number, kind in enumerate(_TYPES))


class FrameWriter:
    """Collects frames and joins them once: one copy of every byte, one buffer, one write.

    Usage: `add` as often as needed, `finish` once.
    """

    __slots__ = ("_buffers", "_frames", "size")

    def __init__(self) -> None:
        self._buffers: list[bytes] = []
        self._frames: list[tuple[int, FrameType, int]] = []
        """(offset of the header, type, payload bytes) of each frame."""
        self.size = 0
        """Bytes of everything added, headers included."""

    def add(self, kind: FrameType, buffers: list[bytes], payload_bytes: int) -> None:
        """Adds a frame whose payload is `buffers`, together `payload_bytes` long."""
        assert payload_bytes <= FRAME_BYTES_MAX, (
            f"a {kind.name} frame of {payload_bytes} bytes, at most {FRAME_BYTES_MAX}"
        )
        self._frames.append((self.size, kind, payload_bytes))
        self._buffers.append(_BLANK_HEADER)
        self._buffers += buffers
        self.size += HEADER_BYTES + payload_bytes

    def finish(self) -> bytearray:
        """The bytes to write. The caller must not change them afterwards: a transport may hold on to them."""
        data = bytearray().join(self._buffers)
        assert len(data) == self.size, f"frames announced {self.size} bytes and have {len(data)}"
        with memoryview(data) as view:
            for offset, kind, payload_bytes in self._frames:
                _HEADER.pack_into(data, offset, 0, MAGIC, FRAME_VERSION, kind, 0, payload_bytes)
                end = offset + HEADER_BYTES + payload_bytes
                with view[offset + 4 : end] as covered:
                    _CHECKSUM.pack_into(data, offset, crc32c(covered))
        return data


def encode_frame(kind: FrameType, payload: bytes) -> bytearray:
    """One frame of one buffer."""
    writer = FrameWriter()
    writer.add(kind, [payload], len(payload))
    return writer.finish()


class FrameParser:
    """Cuts a stream into frames: `receive(data)`, then `next_frame()` until it returns None.

    Invariant: what waits is less than one frame (`payload_bytes_max` plus header) plus one chunk of the socket.
    """

    __slots__ = ("_available", "_chunks", "_data", "_need", "_position", "payload_bytes_max")

    def __init__(self, payload_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.payload_bytes_max = payload_bytes_max
        """The connection raises it from `HELLO_FRAME_BYTES_MAX` once the peer has proved itself."""
        self._data = b""
        """What is being parsed, from `_position`."""
        self._position = 0
        self._chunks: list[bytes] = []
        """Received after `_data`; joined to it when a frame, or a header, is complete."""
        self._available = 0
        """Unparsed bytes in `_data` and `_chunks` together."""
        self._need = HEADER_BYTES
        """Bytes that must be available before there is anything to do."""

    def receive(self, data: bytes) -> None:
        self._chunks.append(data)
        self._available += len(data)

    def next_frame(self) -> tuple[FrameType, memoryview] | None:
        """The next complete frame, or None if more bytes are needed.

        Raises: `ProtocolError` (not our protocol, or damaged), `UnsupportedVersion`. The connection is then to be
        closed, and whatever it still holds is worth nothing.
        """
        if self._available < self._need:
            return None
        if len(self._data) - self._position < self._need:
            self._join()
        data, position = self._data, self._position
        checksum, magic, version, number, flags, length = _HEADER.unpack_from(data, position)
        self._check_header(magic, version, number, flags, length)
        self._need = HEADER_BYTES + length
        if self._available < self._need:
            return None
        if len(data) - position < self._need:
            self._join()
            data, position = self._data, self._position
        end = position + self._need
        covered = memoryview(data)[position + 4 : end]
        computed = crc32c(covered)
        if computed != checksum:
            raise ProtocolError(f"a frame of {length} bytes has the checksum {computed:#010x}, not {checksum:#010x}")
        kind = _TYPES[number]
        assert kind is not None
        payload = covered[HEADER_BYTES - 4 :]
        self._available -= self._need
        self._need = HEADER_BYTES
        if end == len(data):
            self._data, self._position = b"", 0
        else:
            self._position = end
        return kind, payload

    def _join(self) -> None:
        # Linear in total: a join happens when a header or a frame has just become complete, so it copies at most
        # that frame and the one chunk that completed it.
        if self._position == len(self._data) and len(self._chunks) == 1:
            self._data = self._chunks[0]
        else:
            self._data = b"".join([self._data[self._position :], *self._chunks])
        self._position = 0
        self._chunks.clear()

    def _check_header(self, magic: int, version: int, number: int, flags: int, length: int) -> None:
        if magic != MAGIC:
            raise ProtocolError(
                f"a frame begins with {magic:#04x}, not {MAGIC:#04x}: this is not a raftcache peer port, "
                "or one side speaks TLS and the other does not"
            )
        if version > FRAME_VERSION:
            raise UnsupportedVersion(
                f"a peer sends frames of version {version}; this release reads up to {FRAME_VERSION}: upgrade this node"
            )
        if version != FRAME_VERSION or flags or not 0 < number < len(_TYPES):
            raise ProtocolError(f"a frame has version {version}, type {number}, flags {flags:#x}")
        if length > self.payload_bytes_max:
            raise ProtocolError(f"a frame announces {length} bytes; at most {self.payload_bytes_max} are allowed here")
