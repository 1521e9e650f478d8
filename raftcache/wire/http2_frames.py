"""The frames of HTTP/2 as bytes (RFC 9113 §4 and §6): constants, and what builds a frame.

Taking them apart is the connection's, in `http2.py`, because what a frame may hold depends on where it comes.
"""

import struct
from collections.abc import Mapping
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (§3.4)."""

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PADDING_BYTES_MAX: Final = 256
"""Of a frame, its length included."""
PRIORITY_FIELDS: Final = 0x20
"""The flag PRIORITY of HEADERS."""

HEADER_TABLE_SIZE: Final = 0x1
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6

FRAME_BYTES_DEFAULT: Final = 16_384
"""The largest payload unless settings say otherwise; also the least that everybody must take (§4.2)."""
FRAME_BYTES_CEILING: Final = (1 << 24) - 1
WINDOW_DEFAULT: Final = 65_535
WINDOW_MAX: Final = (1 << 31) - 1
"""Of a flow-control window (§6.9.1); also the largest stream id."""

FRAME_HEADER_BYTES: Final = 9
FRAME_HEADER: Final = struct.Struct(">HBBBL")
"""Length (its upper 16 bits, its lower 8), kind, flags, stream id."""

_SETTING = struct.Struct(">HL")
_UINT32 = struct.Struct(">L")
_GOAWAY = struct.Struct(">LL")


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """A frame."""
    length = len(payload)
    return FRAME_HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream_id) + payload


def settings(values: Mapping[int, int]) -> bytes:
    """SETTINGS."""
    return frame(SETTINGS, 0, 0, b"".join([_SETTING.pack(key, value) for key, value in values.items()]))


def settings_of(payload: bytes) -> list[tuple[int, int]]:
    """The settings in a payload, whose length is a multiple of six, in order."""
    return list(_SETTING.iter_unpack(payload))


def window_update(stream_id: int, increment: int) -> bytes:
    """WINDOW_UPDATE."""
    return frame(WINDOW_UPDATE, 0, stream_id, _UINT32.pack(increment))


def rst_stream(stream_id: int, code: int) -> bytes:
    """RST_STREAM."""
    return frame(RST_STREAM, 0, stream_id, _UINT32.pack(code))


def goaway(last_stream_id: int, code: int, reason: bytes = b"") -> bytes:
    """GOAWAY."""
    return frame(GOAWAY, 0, 0, _GOAWAY.pack(last_stream_id, code) + reason)


def goaway_of(payload: bytes) -> tuple[int, int]:
    """The last stream id and the error code in a GOAWAY's payload of at least eight bytes."""
    last_stream_id, code = _GOAWAY.unpack_from(payload)
    return last_stream_id & WINDOW_MAX, code


def headers(stream_id: int, block: bytes, *, end_stream: bool, frame_bytes_max: int) -> bytes:
    """HEADERS, and as many CONTINUATIONs as the block needs."""
    parts = []
    kind, flags = HEADERS, END_STREAM if end_stream else 0
    while len(block) > frame_bytes_max:
        parts.append(frame(kind, flags, stream_id, block[:frame_bytes_max]))
        block = block[frame_bytes_max:]
        kind, flags = CONTINUATION, 0
    parts.append(frame(kind, flags | END_HEADERS, stream_id, block))
    return b"".join(parts)
