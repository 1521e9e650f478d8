"""The admin port: its answers, and what strangers can do to it."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.server import admin_http
from raftcache.server.admin_http import HEAD_BYTES_MAX, AdminServer, Check, Handlers, _parse, _Refused


@dataclass
class Port:
    """A running admin port, and what it shows."""

    server: AdminServer
    address: tuple[str, int]
    checks: list[Check]
    accepts: list[str] = field(default_factory=list)

    async def open(self) -> "Client":
        """A new connection, for which the kernel keeps 64 KiB: a buffer that grows takes 20 MB of answers from some machines."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        return Client(reader, writer)


@dataclass
class Client:
    """One connection to the port."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def response(self, *, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one answer."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        status_line, *lines = head.decode().rstrip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = 0 if head_only else int(headers["content-length"])
        return int(status_line.split()[1]), headers, await self.reader.readexactly(length)

    async def get(self, target: str, *, headers: str = "") -> tuple[int, dict[str, str], bytes]:
        """One GET on this connection."""
        self.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
        return await self.response()

    async def closed(self) -> bool:
        """Whether the port has closed the connection; waits until it has."""
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


@asynccontextmanager
async def running(*, connections_max: int = 64, metrics: bytes = b"up 1\n") -> AsyncIterator[Port]:
    """A port on a free number."""
    checks: list[Check] = []
    accepts: list[str] = []

    def show_metrics(accept: str) -> tuple[str, bytes]:
        accepts.append(accept)
        return "text/plain; version=0.0.4", metrics

    server = AdminServer(
        Handlers(metrics=show_metrics, ready=lambda: checks, version={"version": "1.2.3"}),
        connections_max=connections_max,
    )
    address = await server.start("127.0.0.1", 0)
    try:
        yield Port(server, address, checks, accepts)
    finally:
        await server.stop()
        await server.stop()


async def exchange(data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes on a connection of their own; return the first answer, after which the port must have closed."""
    async with running() as port:
        client = await port.open()
        client.send(data)
        answer = await client.response()
        if answer[1]["connection"] == "close":
            assert await client.closed()
        await client.close()
        return answer


async def test_all_four_pages_are_answered_on_one_connection() -> None:
    """Keep-alive is HTTP/1.1's default."""
    async with running() as port:
        client = await port.open()
        status, headers, body = await client.get("/metrics", headers="Accept: application/openmetrics-text\r\n")
        assert (200, "text/plain; version=0.0.4", b"up 1\n") == (status, headers["content-type"], body)
        assert ["application/openmetrics-text"] == port.accepts
        assert (200, b"ok\n") == (await client.get("/livez"))[::2]
        assert (200, b"ready\n") == (await client.get("/readyz"))[::2]
        status, headers, body = await client.get("/version")
        assert (200, "application/json", {"version": "1.2.3"}) == (status, headers["content-type"], json.loads(body))
        await client.close()


async def test_readiness_fails_with_its_reasons_and_liveness_does_not() -> None:
    """A node without quorum must not be restarted by its liveness probe."""
    async with running() as port:
        client = await port.open()
        port.checks[:] = [Check("recovered", True), Check("leaders", False, "shard 3 has no leader")]
        status, _, body = await client.get("/readyz")
        assert (503, b"[-] leaders: shard 3 has no leader\nnot ready\n") == (status, body)
        status, _, body = await client.get("/readyz?verbose")
        assert (503, b"[+] recovered\n[-] leaders: shard 3 has no leader\nnot ready\n") == (status, body)
        assert 200 == (await client.get("/livez"))[0]
        await client.close()


async def test_head_is_answered_without_a_body() -> None:
    """With the length that GET would have; the next answer is not disturbed."""
    async with running() as port:
        client = await port.open()
        client.send(b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        status, headers, body = await client.response(head_only=True)
        assert (200, "3", b"") == (status, headers["content-length"], body)
        assert 200 == (await client.get("/livez"))[0]
        await client.close()


async def test_an_unknown_path_is_404_and_tells_the_known_ones() -> None:
    """The connection can be used further."""
    async with running() as port:
        client = await port.open()
        status, headers, body = await client.get("/debug/../../etc/passwd")
        assert (404, "keep-alive") == (status, headers["connection"])
        assert b"/metrics" in body
        await client.close()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
async def test_other_methods_are_405_and_end_the_connection(method: str) -> None:
    """What would follow might be a body that looks like a request."""
    status, headers, _ = await exchange(f"{method} /metrics HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (405, "get, head", "close") == (status, headers["allow"], headers["connection"])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET /livez\r\n\r\n", 400),
        (b"GET  /livez HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n", 400),
        (b"GET livez HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 0, 5\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"\xff\xfe\xfd", 400),
        (b"GET /" + b"a" * HEAD_BYTES_MAX + b" HTTP/1.1\r\n", 431),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 2000, 431),
    ],
)
async def test_what_is_no_proper_request_is_refused_and_ends_the_connection(data: bytes, expected: int) -> None:
    """Requests are read strictly: what two readers could understand differently is refused."""
    status, headers, _ = await exchange(data)
    assert (expected, "close") == (status, headers["connection"])


@pytest.mark.parametrize(
    ("data", "connection"),
    [
        (b"GET /livez HTTP/1.0\r\n\r\n", "close"),
        (b"GET /livez HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "keep-alive"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "close"),
        (b"\r\nGET /livez HTTP/1.1\r\nHost:x\r\n\r\n", "keep-alive"),
        (b"GET http://x:7402/livez?a=b HTTP/1.1\r\nHost: x\r\n\r\n", "keep-alive"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "keep-alive"),
    ],
)
async def test_odd_but_proper_requests_are_answered(data: bytes, connection: str) -> None:
    """HTTP/1.0, an empty line before, a target with its scheme."""
    status, headers, body = await exchange(data)
    assert (200, connection, b"ok\n") == (status, headers["connection"], body)


async def test_a_request_may_arrive_byte_by_byte_and_many_at_once() -> None:
    """Packets mean nothing to HTTP."""
    async with running() as port:
        client = await port.open()
        for byte in b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n":
            client.send(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0)
        assert 200 == (await client.response())[0]
        client.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        for _ in range(50):
            assert 200 == (await client.response())[0]
        await client.close()


async def test_a_client_that_only_half_closes_gets_its_answer() -> None:
    """`printf ... | nc` closes its side before it reads."""
    async with running(metrics=b"x" * 1_000_000) as port:
        client = await port.open()
        client.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        client.writer.write_eof()
        status, _, body = await client.response()
        assert (200, 1_000_000) == (status, len(body))
        await client.close()


async def test_a_slow_request_is_cut_however_steadily_it_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time runs from its first byte, not from its latest."""
    monkeypatch.setattr(admin_http, "HEAD_SECONDS_MAX", 0.05)
    async with running() as port:
        client = await port.open()
        client.send(b"GET /livez HTTP/1.1\r\n")

        async def drip() -> None:
            while not client.reader.at_eof():
                client.send(b"A: b\r\n")
                await asyncio.sleep(0.001)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(drip(), name="drip")
            status, headers, _ = await client.response()
            assert (408, "close") == (status, headers["connection"])
            assert await client.closed()
            client.reader.feed_eof()
        await client.close()


@pytest.mark.parametrize("limit", ["HEAD_SECONDS_MAX", "IDLE_SECONDS_MAX"])
async def test_a_silent_connection_is_cut(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """Before its first request as well as between two."""
    monkeypatch.setattr(admin_http, limit, 0.02)
    async with running() as port:
        client = await port.open()
        if limit == "IDLE_SECONDS_MAX":
            assert 200 == (await client.get("/livez"))[0]
        assert await client.closed()
        await client.close()


async def test_a_client_that_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers may not pile up in memory; while one waits, no further request is served."""
    monkeypatch.setattr(admin_http, "WRITE_SECONDS_MAX", 0.05)
    async with running(metrics=b"x" * 20_000_000) as port:
        client = await port.open()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        await until(lambda: not port.server.connections and bool(port.accepts))
        assert 1 == len(port.accepts)
        await client.close()


async def test_connections_beyond_the_limit_are_turned_away() -> None:
    """With an answer, and without harm to those who are in; when one leaves there is room again."""
    async with running(connections_max=2) as port:
        inside = [await port.open() for _ in range(2)]
        for client in inside:
            assert 200 == (await client.get("/livez"))[0]
        outside = await port.open()
        assert 503 == (await outside.response())[0]
        assert await outside.closed()
        assert 1 == port.server.refused
        await outside.close()
        await inside[0].close()
        await until(lambda: len(port.server.connections) == 1)
        again = await port.open()
        assert 200 == (await again.get("/livez"))[0]
        await again.close()
        await inside[1].close()


async def test_stopping_cuts_what_is_open() -> None:
    """A scrape must not delay the end of the process."""
    async with running() as port:
        client = await port.open()
        assert 200 == (await client.get("/livez"))[0]
        await port.server.stop()
        assert await client.closed()
        with pytest.raises(ConnectionRefusedError):
            await port.open()
        await client.close()


@settings(max_examples=300)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from(
                [
                    b"GET",
                    b"HEAD",
                    b" ",
                    b"/livez",
                    b"http://x",
                    b"HTTP/1.1",
                    b"\r\n",
                    b"Host",
                    b":",
                    b"x",
                    b"\n",
                    b"\x00",
                    b",",
                ]
            ),
            max_size=30,
        ).map(b"".join),
    )
)
def test_no_bytes_are_more_than_a_request_or_a_refusal(head: bytes) -> None:
    """The parser raises nothing but its own refusal."""
    statuses = []
    try:
        assert _parse(head).path.startswith(b"/")
    except _Refused as refused:
        statuses.append(refused.status)
    assert statuses in ([], [400], [505])


async def until(condition: Callable[[], bool], pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
    """Let the loop run until `condition` holds; the test's own timeout is the bound."""
    while not condition():
        await pause(0.001)
