"""The proxy: what passes, what waits, what is lost, and that healing makes a good link again."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import cast

import pytest

from faults.network import CLIENTS, Network, worsen
from faults.proxy import Link

SECONDS = 10.0
"""To wait for what must happen."""
MOMENT = 0.1
"""To see that something does not happen; too short a moment can only hide a failure, never make one."""


class Echo:
    """A server that sends back what it gets."""

    def __init__(self) -> None:
        self.received = b""
        self.transports: list[asyncio.Transport] = []
        self.port = 0

    async def start(self) -> asyncio.Server:
        server = await asyncio.get_running_loop().create_server(lambda: EchoProtocol(self), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server


class EchoProtocol(asyncio.Protocol):
    """One connection of `Echo`."""

    def __init__(self, echo: Echo) -> None:
        self._echo = echo

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._echo.transports.append(self._transport)

    def data_received(self, data: bytes) -> None:
        self._echo.received += data
        self._transport.write(data)


@contextlib.asynccontextmanager
async def proxied() -> AsyncIterator[tuple[Echo, Link]]:
    echo = Echo()
    server = await echo.start()
    async with asyncio.TaskGroup() as tasks:
        link = Link("test", ("127.0.0.1", echo.port), random.Random(1), tasks)
        await link.start()
        try:
            yield echo, link
        finally:
            await link.close()
            server.close()
            for transport in echo.transports:
                transport.abort()
            await asyncio.sleep(MOMENT)  # asyncio closes sockets with the next turns


@contextlib.asynccontextmanager
async def dialed(link: Link) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def nothing_comes(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(MOMENT):
            return not await reader.read(1)
    except TimeoutError:
        return True


async def test_bytes_pass_in_both_directions_and_so_does_the_end() -> None:
    """A good link is as if it were not there."""
    async with proxied() as (_, link), dialed(link) as (reader, writer):
        payload = random.Random(2).randbytes(3_000_000)
        writer.write(payload)
        async with asyncio.timeout(SECONDS):
            assert payload == await reader.readexactly(len(payload))
        writer.write_eof()
        async with asyncio.timeout(SECONDS):
            assert b"" == await reader.read()


async def test_what_is_blocked_waits_and_comes_in_order_after_healing() -> None:
    """As behind a real partition: nothing is lost that the sender's kernel still has."""
    async with proxied() as (echo, link), dialed(link) as (reader, writer):
        writer.write(b"one")
        assert b"one" == await reader.readexactly(3)
        link.forward.blocked = True
        link.changed()
        writer.write(b"two")
        assert await nothing_comes(reader)
        assert b"one" == echo.received
        await link.heal()
        async with asyncio.timeout(SECONDS):
            assert b"two" == await reader.readexactly(3)


async def test_a_block_of_one_direction_leaves_the_other_alone() -> None:
    """One way: the target hears, and its answer does not come."""
    async with proxied() as (echo, link), dialed(link) as (reader, writer):
        link.backward.blocked = True
        link.changed()
        writer.write(b"heard")
        assert await nothing_comes(reader)
        assert b"heard" == echo.received
        await link.heal()
        async with asyncio.timeout(SECONDS):
            assert b"heard" == await reader.readexactly(5)


async def test_a_connection_made_behind_a_block_reaches_nobody_before_healing() -> None:
    """The dialer waits for an answer, and the target does not know of it."""
    async with proxied() as (echo, link):
        link.forward.blocked = True
        async with dialed(link) as (reader, writer):
            writer.write(b"x")
            assert await nothing_comes(reader)
            assert 0 == len(echo.transports)
            await link.heal()
            async with asyncio.timeout(SECONDS):
                assert b"x" == await reader.readexactly(1)


async def test_lost_answers_are_never_made_up_for_and_the_connection_ends_at_healing() -> None:
    """A stream with a hole in it must not go on."""
    async with proxied() as (echo, link), dialed(link) as (reader, writer):
        link.backward.discard = True
        link.changed()
        writer.write(b"asked")
        assert await nothing_comes(reader)
        assert b"asked" == echo.received
        await link.heal()
        with pytest.raises(OSError):
            async with asyncio.timeout(SECONDS):
                await reader.readexactly(1)


async def test_a_refusing_link_resets_what_is_there_and_listens_again_on_the_same_port() -> None:
    """Refused, as by a machine that is up and a process that is not."""
    async with proxied() as (_, link):
        port = link.port
        async with dialed(link) as (reader, _writer):
            await asyncio.sleep(0)
            await link.refuse()
            with pytest.raises(OSError):
                async with asyncio.timeout(SECONDS):
                    await reader.readexactly(1)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)
        await link.heal()
        assert port == link.port
        async with dialed(link) as (reader, writer):
            writer.write(b"again")
            async with asyncio.timeout(SECONDS):
                assert b"again" == await reader.readexactly(5)


async def test_the_dialer_of_a_half_open_connection_hears_nothing_until_healing() -> None:
    """The target's end has gone, and nobody told the dialer."""
    async with proxied() as (_, link), dialed(link) as (reader, writer):
        writer.write(b"x")
        assert b"x" == await reader.readexactly(1)
        link.leave_half_open()
        writer.write(b"y")
        assert await nothing_comes(reader)
        assert not reader.at_eof()
        await link.heal()
        with pytest.raises(OSError):
            async with asyncio.timeout(SECONDS):
                await reader.readexactly(1)


async def test_a_cut_comes_in_the_middle_of_what_was_sent() -> None:
    """Half a chunk passes, then both sides see a reset."""
    async with proxied() as (echo, link), dialed(link) as (reader, writer):
        writer.write(b"x")
        assert b"x" == await reader.readexactly(1)
        link.forward.cut_chance = 1.0
        writer.write(b"abcdef")
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            async with asyncio.timeout(SECONDS):
                await reader.readexactly(6)
        assert len(echo.received) < 7


async def test_delays_with_jitter_keep_the_order() -> None:
    """TCP never swaps bytes, however late they are."""
    async with proxied() as (_, link), dialed(link) as (reader, writer):
        link.forward.delay_ms = 5
        link.forward.jitter_ms = 20
        link.backward.bytes_per_second = 100_000
        link.changed()
        sent = b""
        for number in range(20):
            chunk = b"%03d" % number
            sent += chunk
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(0.001)
        async with asyncio.timeout(SECONDS):
            assert sent == await reader.readexactly(len(sent))


async def test_a_narrow_link_lets_bytes_wait_and_loses_none() -> None:
    """A byte a second is next to nothing; healed, it owes nothing."""
    async with proxied() as (_, link), dialed(link) as (reader, writer):
        link.forward.bytes_per_second = 1
        link.changed()
        for number in range(20):
            writer.write(b"%05d" % number)
            await writer.drain()
        assert await nothing_comes(reader)
        await link.heal()
        async with asyncio.timeout(SECONDS):
            assert b"".join(b"%05d" % number for number in range(20)) == await reader.readexactly(100)


async def test_a_blocked_pair_of_nodes_is_blocked_in_one_direction_on_both_their_links() -> None:
    """What goes from a to b travels forward on a's link, and backward, as answers, on b's."""
    async with asyncio.TaskGroup() as tasks:
        network = Network(random.Random(1), tasks)
        for name in ("a", "b", "c"):
            await network.add_node(name, client_port=1, peer_port=2)
        network.block("a", "b")
        blocked = {
            (pair, way)
            for pair, link in network.links.items()
            for way, conditions in (("forward", link.forward), ("backward", link.backward))
            if conditions.blocked
        }
        assert {(("a", "b"), "forward"), (("b", "a"), "backward")} == blocked
        await network.heal()
        assert all(link.forward.clear and link.backward.clear for link in network.links.values())
        assert 3 == len([*network.of_clients()])
        assert 6 == len([*network.between()])
        assert 4 == len([*network.touching("b")])
        await network.remove_node("b")
        assert {(CLIENTS, "a"), (CLIENTS, "c"), ("a", "c"), ("c", "a")} == {*network.links}
        await network.close()


def test_a_change_of_a_link_is_a_change_of_both_directions() -> None:
    """`worsen` is for what has no direction."""
    link = Link("x", ("127.0.0.1", 1), random.Random(1), asyncio.TaskGroup())
    worsen([link], delay_ms=7)
    assert (7, 7) == (link.forward.delay_ms, link.backward.delay_ms)
