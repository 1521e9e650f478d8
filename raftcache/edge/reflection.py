"""gRPC's server reflection, on the contract of `front`: the answers are made by the grpcio-reflection package.

Its messages are of v1alpha. Those of v1 are the same on the wire, so both names are served, and tools that know only one of
them find what they look for.
"""

from collections.abc import Iterator
from typing import Final

from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2

from raftcache.edge.front import Call, Refusal, StreamService, StreamSink
from raftcache.wire.grpc_wire import INVALID_ARGUMENT

SERVICES: Final = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")
_ANSWERS_MAX: Final = 16
"""Not taken by the transport; the largest, a file and all that it imports, has some 50 KiB."""


class Reflection:
    """Knows the services by name. Is the `StreamService` of both versions."""

    def __init__(self, services: tuple[str, ...]) -> None:
        self._servicer = reflection.ReflectionServicer((*services, SERVICES[0]))

    def streams(self) -> dict[str, StreamService]:
        """The methods."""
        return {f"/{service}/ServerReflectionInfo": self for service in SERVICES}

    def open(self, call: Call, sink: StreamSink) -> "_Conversation":
        """Begins a conversation."""
        return _Conversation(self, sink)

    def answer(self, message: bytes) -> bytes:
        """The answer to one question. Raises: `DecodeError`."""
        request = reflection_pb2.ServerReflectionRequest.FromString(message)
        responses: Iterator[reflection_pb2.ServerReflectionResponse]
        responses = self._servicer.ServerReflectionInfo(iter([request]), None)
        encoded: bytes = next(responses).SerializeToString()
        return encoded


class _Conversation:
    """One stream of questions and answers."""

    def __init__(self, reflected: Reflection, sink: StreamSink) -> None:
        self._reflected = reflected
        self._sink = sink
        self._untaken = 0

    @property
    def reading(self) -> bool:
        return self._untaken < _ANSWERS_MAX

    def receive(self, messages: list[bytes]) -> None:
        try:
            answers = [self._reflected.answer(message) for message in messages]
        except DecodeError:
            self._sink.finish(Refusal(INVALID_ARGUMENT, "not a ServerReflectionRequest"))
            return
        self._untaken += len(answers)
        self._sink.send(answers)

    def half_close(self) -> None:
        self._sink.finish(None)

    def sent(self, count: int) -> None:
        was_reading, self._untaken = self.reading, self._untaken - count
        if not was_reading and self.reading:
            self._sink.resume()

    def drain(self) -> None:
        self._sink.finish(None)

    def cancel(self) -> None:
        """Nothing is kept."""
