"""The fuzzer's targets without the fuzzer: what they found before they find no more, and each finds what is broken on purpose."""

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from h2.exceptions import H2Error
from hpack import HPACKError

from raftcache.edge import fast_calls
from raftcache.edge.fast_connection import FastConnection
from raftcache.edge.fast_front import FastFront
from raftcache.wire import grpc_wire, hpack, http2_sending, huffman
from raftcache.wire import http2_frames as frames
from raftcache.wire.http2_client import ClientConnection
from raftcache.wire.http2_errors import HpackError
from raftcache.wire.http2_server import ServerConnection
from raftcache.wire.http2_stream import Stream, StreamRefused
from tests.edge.fuzz import corpus
from tests.edge.fuzz.on_frames import mutate_frames, taken_apart
from tests.edge.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_finds_nothing(target: str) -> None:
    """Every committed input."""
    inputs = corpus.load(target)
    assert len(inputs) > 10, "a corpus is missing; `python -m tests.edge.fuzz keep` makes it"
    for data in (*TARGETS[target].seeds, *inputs):
        TARGETS[target].run(data)


def test_mutated_frames_stay_frames() -> None:
    """Most of what the mutator makes is whole frames, of all kinds; a fuzzer of raw bytes would hardly get beyond the first."""
    data, whole, kinds = b"\1\0\0", 0, set()
    for seed in range(2_000):
        data = mutate_frames(data, 1_000, seed, lambda data, size: (data + b"\xff")[:size])
        _, found, tail = taken_apart(data[3:])
        whole += bool(found) and not tail
        kinds |= {kind for kind, *_ in found}
        if tail or len(data) > 900:
            data = b"\1\0\0"
    assert set(range(10)) <= kinds
    assert whole > 1_000


# --- Canaries ---------------------------------------------------------------------------------------------------------


def _raises(*arguments: object) -> Any:
    raise ValueError("a bug")


def _nothing(*arguments: object) -> None:
    """In the place of what should be done."""


class _Hoarder(hpack.Decoder):
    """Keeps decoded blocks when the table has changed."""

    class Hoard(dict[bytes, hpack.HeaderList]):
        clear = _nothing

    def __init__(self, *arguments: int) -> None:
        super().__init__(*arguments)
        self._cache = self.Hoard()


def _unpacks_everything(self: grpc_wire.MessageReader, message: bytes) -> bytes:
    unpacker = grpc_wire.zlib.decompressobj(wbits=31)
    try:
        return unpacker.decompress(message)
    except grpc_wire.zlib.error:
        raise grpc_wire.WireError(grpc_wire.INTERNAL, "") from None


def _takes_any_continuation(self: ServerConnection, flags: int, stream_id: int, payload: bytes) -> None:
    assert self._block is not None
    self._block.data += payload
    self._block.continuations += 1


def _acknowledges_late(self: ServerConnection, flags: int, stream_id: int, payload: bytes) -> None:
    before = len(self.sender.out)
    _ON_SETTINGS(self, flags, stream_id, payload)
    self.sender.out[before:] = self.sender.out[before:][::-1]


_ON_SETTINGS = ServerConnection._on_settings


def _forgets_padding(self: ServerConnection, flags: int, stream_id: int, payload: bytes) -> None:
    _ON_DATA(self, flags, stream_id, payload)
    self._window += bool(flags & frames.PADDED)


_ON_DATA = ServerConnection._on_data


def _forgets_what_it_refuses(self: ClientConnection, last_stream_id: int, code: int, reason: bytes) -> None:
    for stream in [stream for stream in self.streams.values() if stream.id > last_stream_id]:
        del self.streams[stream.id]
        self.sender.discard(stream)


def _believes_any_refusal(self: ClientConnection, stream: Stream, code: int) -> None:
    self._events.append(StreamRefused(stream))


def _counts_no_whole_answers(self: ClientConnection, data: bytes, position: int, pattern: Any) -> int:
    before = self._window
    position = _ON_ALIKE(self, data, position, pattern)
    self._window = before
    return position


_ON_ALIKE = ClientConnection._on_alike


def _learns_any_answer(self: ClientConnection, head: hpack.HeaderList, trailers: hpack.HeaderList) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self._decoder, "knows", lambda block: head if block is self._blocks[0] else trailers)
        _LEARN(self, head, trailers)


_LEARN = ClientConnection._learn


def _keeps_what_it_promised(self: FastConnection, call: fast_calls.FastCall) -> None:
    call.promised = 0


def _discards_and_still_counts(self: http2_sending.Sender, stream: Stream) -> None:
    stream.queue = deque()
    stream.local_ended = True


CANARIES: dict[str, tuple[str, object, str, Callable[..., Any] | object]] = {
    "an exception for a client's fault": ("frames", frames, "settings_of", _raises),
    "a reset of an idle stream": ("frames", ServerConnection, "_is_idle", lambda self, stream_id: False),
    "queues that are over stay counted": ("frames", http2_sending.Sender, "discard", _discards_and_still_counts),
    "CONTINUATIONs without a limit": ("frames", ServerConnection, "_on_continuation", _takes_any_continuation),
    "calls that a goodbye forgets": ("answers", ClientConnection, "_on_goodbye", _forgets_what_it_refuses),
    "a refusal of what was answered in part": ("answers", ClientConnection, "_on_reset", _believes_any_refusal),
    "whole answers that no window counts": ("answers", ClientConnection, "_on_alike", _counts_no_whole_answers),
    "a pattern of what changes the table": ("answers", ClientConnection, "_learn", _learns_any_answer),
    "a table that never evicts": ("hpack", hpack.DynamicTable, "_evict", _nothing),
    "a secret in the table": ("hpack", hpack, "NEVER_INDEXED", frozenset()),
    "a block that means what it meant before": ("hpack", hpack, "Decoder", _Hoarder),
    "any padding": ("huffman", huffman, "_PADDING_NODES", frozenset(range(256))),
    "another code": ("huffman", huffman, "_CODES", [*huffman._CODES[:97], huffman._CODES[98], *huffman._CODES[98:]]),
    "a bomb that is unpacked": ("grpc", grpc_wire.MessageReader, "_decompressed", _unpacks_everything),
    "messages of statuses as they are": (
        "grpc",
        grpc_wire,
        "_PERCENT_ENCODED",
        tuple(bytes((byte,)) for byte in range(256)),
    ),
    "timeouts that nobody reads": ("grpc", grpc_wire, "_TIMEOUT_DIGITS_MAX", 0),
    "data before the acknowledgement that allows it": ("peer", ServerConnection, "_on_settings", _acknowledges_late),
    "padding that does not count": ("peer", ServerConnection, "_on_data", _forgets_padding),
    "windows that settings do not move": ("peer", http2_sending.Sender, "on_initial_window", _nothing),
    "promised room that is never given back": ("front", FastConnection, "release", _keeps_what_it_promised),
    "a front that does not evict": ("front", FastFront, "_evict", _nothing),
    "requests that are over stay counted": ("front", fast_calls.FastCall, "release", _nothing),
}
"""What is broken, which target must notice, and how it is done."""


@pytest.mark.parametrize("what", CANARIES)
def test_a_target_notices(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken product fails on some input of the corpus, by an assertion, an exception of its own, or one of the oracle's."""
    target, where, name, broken = CANARIES[what]
    monkeypatch.setattr(where, name, broken)
    if where is huffman:
        monkeypatch.setattr(huffman, "_steps", {})
    with pytest.raises((AssertionError, LookupError, ValueError, HpackError, HPACKError, H2Error)):
        for data in (*TARGETS[target].seeds, *corpus.load(target)):
            TARGETS[target].run(data)


def test_every_target_has_a_canary() -> None:
    """A target that nothing can fail would say that all is well."""
    assert set(TARGETS) == {target for target, *_ in CANARIES.values()}
