"""A coverage-guided fuzzer of what clients' bytes reach first: HTTP/2 with HPACK, and gRPC's messages. `make fuzz`.

Not a test that pytest collects. It needs atheris, which `make fuzz` installs; arguments are libFuzzer's, as in
`-max_total_time=600 corpus/`. What it finds becomes a named test.
"""

import sys

import atheris

with atheris.instrument_imports():
    from raftcache.wire import http2_frames as frames
    from raftcache.wire.grpc_wire import OK_RESPONSE, MessageReader, WireError, framed, request_head
    from raftcache.wire.http2 import Http2Limits
    from raftcache.wire.http2_server import ServerConnection
    from raftcache.wire.http2_stream import ConnectionEnded, DataReceived, HeadersReceived


def run(data: bytes) -> None:
    """One input: its first byte says how it is cut, and whether a hello stands before it."""
    cut = data[0] if data else 0
    server = ServerConnection(Http2Limits(streams_max=8, stream_window=4_096), 0)
    if cut & 1:
        server.receive(frames.PREFACE + frames.settings({}), 0)
    size = (cut >> 1) + 1
    readers: dict[int, MessageReader] = {}
    for position in range(1, len(data), size):
        for event in server.receive(data[position : position + size], position):
            if isinstance(event, HeadersReceived):
                readers[event.stream.id] = MessageReader(2_000, gzip=request_head(event.headers).gzip)
            if isinstance(event, HeadersReceived | DataReceived) and event.stream.id in readers:
                reader = readers[event.stream.id]
                try:
                    reader.feed(event.data)
                    while reader.next() is not None:
                        pass
                except WireError:
                    del readers[event.stream.id]
                if event.ended and event.stream.id in server.streams:
                    server.sender.respond(event.stream, OK_RESPONSE, framed(b"x" * 100))
            if isinstance(event, ConnectionEnded):
                assert not server.streams, server.streams
    server.sender.data_to_send()
    queued = sum(len(chunk) for stream in server.streams.values() for chunk in stream.queue or ())
    assert server.sender.unsent == queued, f"{server.sender.unsent} counted, {queued} queued"


if __name__ == "__main__":
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()
