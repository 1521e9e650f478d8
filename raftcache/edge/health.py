"""gRPC's health service (grpc.health.v1), on the contract of `front`."""

from collections.abc import Iterable
from typing import Final

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from raftcache.edge.front import AwaitedMethod, Call, Refusal, StreamService, StreamSink
from raftcache.wire.grpc_wire import INVALID_ARGUMENT, NOT_FOUND

SERVICE: Final = "grpc.health.v1.Health"
_NOT_A_REQUEST: Final = Refusal(INVALID_ARGUMENT, "not a HealthCheckRequest")

_Status = health_pb2.HealthCheckResponse


class Health:
    """Statuses by name, and who watches them. Is the `StreamService` of Watch."""

    def __init__(self, names: Iterable[str], liveness: str) -> None:
        """`liveness` serves from the beginning, `names` when they are told to."""
        self._statuses: dict[str, int] = dict.fromkeys(names, _Status.NOT_SERVING) | {liveness: _Status.SERVING}
        self._watchers: list[_Watcher] = []
        self._shut_down = False

    @property
    def services(self) -> tuple[str, ...]:
        """For reflection."""
        return (SERVICE,)

    def awaited(self) -> dict[str, AwaitedMethod]:
        """The methods that answer once."""
        return {f"/{SERVICE}/Check": self._check, f"/{SERVICE}/List": self._list}

    def streams(self) -> dict[str, StreamService]:
        """The others."""
        return {f"/{SERVICE}/Watch": self}

    def set(self, serving: bool, names: Iterable[str]) -> None:
        """Sets the status of `names`, and tells who watches them."""
        if not self._shut_down:
            self._statuses |= dict.fromkeys(names, _Status.SERVING if serving else _Status.NOT_SERVING)
            for watcher in list(self._watchers):
                watcher.tell()

    def shut_down(self) -> None:
        """Nothing serves any more, for good."""
        self.set(False, list(self._statuses))
        self._shut_down = True

    def status(self, name: str) -> int | None:
        """None for a name that nobody has set."""
        return self._statuses.get(name)

    async def _check(self, call: Call) -> bytes | Refusal:
        name = _name_in(call.message)
        if name is None:
            return _NOT_A_REQUEST
        status = self._statuses.get(name)
        if status is None:
            return Refusal(NOT_FOUND, f"there is no service {name!r} here")
        return _encoded(status)

    async def _list(self, call: Call) -> bytes | Refusal:
        response = health_pb2.HealthListResponse()
        for name, status in self._statuses.items():
            response.statuses[name].status = status
        encoded: bytes = response.SerializeToString()
        return encoded

    def open(self, call: Call, sink: StreamSink) -> "_Watcher":
        """Begins a Watch."""
        watcher = _Watcher(self, sink)
        self._watchers.append(watcher)
        return watcher

    def forget(self, watcher: "_Watcher") -> None:
        """A Watch has ended."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)


class _Watcher:
    """One Watch; a `Stream`. It has at most one status under way: who reads slowly gets the latest."""

    def __init__(self, health: Health, sink: StreamSink) -> None:
        self._health = health
        self._sink = sink
        self._name: str | None = None
        self._told: int | None = None
        self._waiting = False
        """A status is on its way."""

    @property
    def reading(self) -> bool:
        return self._name is None

    def receive(self, messages: list[bytes]) -> None:
        name = _name_in(messages[0])
        if name is None:
            self._sink.finish(_NOT_A_REQUEST)
            return
        self._name = name
        self.tell()

    def tell(self) -> None:
        """Sends the status, if it is news and there is room."""
        if self._name is None or self._waiting:
            return
        status = self._health.status(self._name)
        # An unknown name is no error here: it may become known.
        number = _Status.SERVICE_UNKNOWN if status is None else status
        if number != self._told:
            self._told = number
            self._waiting = True
            self._sink.send([_encoded(number)])

    def half_close(self) -> None:
        if self._name is None:
            self._sink.finish(_NOT_A_REQUEST)

    def sent(self, count: int) -> None:
        self._waiting = False
        self.tell()

    def drain(self) -> None:
        self._sink.finish(None)

    def cancel(self) -> None:
        self._health.forget(self)


def _name_in(message: bytes) -> str | None:
    try:
        name: str = health_pb2.HealthCheckRequest.FromString(message).service
    except DecodeError:
        return None
    return name


def _encoded(status: int) -> bytes:
    encoded: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
    return encoded
