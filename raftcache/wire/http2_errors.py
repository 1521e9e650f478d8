"""What may be wrong with what a peer sends, by blame and by reach.

A `HpackError` is an undecodable header block. The HTTP/2 layer turns it into a `ConnectionViolation`, because after it
the two ends disagree about the compression state. None of these leaves the connection's `receive`.
"""

from typing import Final

NO_ERROR: Final = 0x0
PROTOCOL_ERROR: Final = 0x1
FLOW_CONTROL_ERROR: Final = 0x3
STREAM_CLOSED: Final = 0x5
FRAME_SIZE_ERROR: Final = 0x6
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
COMPRESSION_ERROR: Final = 0x9
ENHANCE_YOUR_CALM: Final = 0xB
"""The error codes of RFC 9113 §7 that we send or look at. Plain integers: they are compared in hot code."""


class HpackError(Exception):
    """A header block that cannot be decoded."""


class ConnectionViolation(Exception):
    """The peer broke the protocol for the whole connection: it ends with a GOAWAY."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class StreamViolation(Exception):
    """The peer broke the protocol on one stream: it ends with a RST_STREAM, the connection goes on."""

    def __init__(self, stream_id: int, code: int, reason: str) -> None:
        super().__init__(reason)
        self.stream_id = stream_id
        self.code = code
        self.reason = reason
