"""TLS and mutual TLS on the client port."""

import asyncio
import contextlib
import ssl
from collections.abc import Sequence

import grpc
import pytest

from raftcache.edge.fast_front import FastFront
from raftcache.edge.front import Peer
from raftcache.edge.front_config import TlsFiles
from raftcache.gateway.gateway import Gateway, GatewaySettings
from raftcache.gateway.handlers import handlers_of
from raftcache.v1 import kv_pb2, kv_pb2_grpc
from raftcache.wire.http2_frames import PREFACE, settings
from tests.edge.certificates import Authority
from tests.edge.conftest import AnyFront, FrontClass, front_config
from tests.gateway.memory_node import MemoryAdministration, MemoryNode


class Witness:
    """An authorizer that lets everybody pass and remembers who it was."""

    def __init__(self) -> None:
        self.identities: list[str] = []
        self.metadata: dict[str, str | bytes] = {}
        self.address = ""

    def authorize(
        self, peer: Peer, method: str, keys: Sequence[bytes], scanned: tuple[bytes, bytes | None] | None = None
    ) -> None:
        self.identities = list(peer.identities)
        self.metadata = dict(peer.metadata)
        self.address = peer.address


async def front_with(front_class: FrontClass, tls: TlsFiles | None, witness: Witness) -> AnyFront:
    node = MemoryNode()
    gateway = Gateway(node, node, node.clock, node.limits, GatewaySettings(), witness)
    front = front_class(handlers_of(gateway, MemoryAdministration()), front_config(tls=tls), node.clock)
    await front.start()
    return front


async def get(channel: grpc.aio.Channel) -> None:
    stub: kv_pb2_grpc.KvServiceAsyncStub = kv_pb2_grpc.KvServiceStub(channel)
    await stub.Get(kv_pb2.GetRequest(key=b"k"), metadata=[("x-token", "t"), ("x-token-bin", b"\x00\xff")])


async def test_the_peer_is_known_by_address_and_metadata(front_class: FrontClass) -> None:
    """Without TLS a caller has an address and metadata, and no identity."""
    witness = Witness()
    front = await front_with(front_class, None, witness)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.port}") as channel:
        await get(channel)
    await front.stop(0)
    assert [] == witness.identities
    assert "127.0.0.1" in witness.address
    assert ("t", b"\x00\xff") == (witness.metadata["x-token"], witness.metadata["x-token-bin"])


async def test_tls_needs_no_client_certificate(front_class: FrontClass) -> None:
    """With a certificate of its own and no client authority, the port speaks TLS to anybody who trusts it, and nothing else."""
    authority, witness = Authority(), Witness()
    server = authority.issue("node.test")
    front = await front_with(front_class, TlsFiles(server.chain, server.key), witness)
    address = f"127.0.0.1:{front.port}"
    async with grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(authority.chain)) as channel:
        await get(channel)
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await front.stop(0)


async def test_mutual_tls_names_the_client_and_refuses_strangers(front_class: FrontClass) -> None:
    """With a client authority, callers show a certificate of it and are known by its names; others get no connection."""
    authority, witness = Authority(), Witness()
    server, client, stranger = (
        authority.issue("node.test"),
        authority.issue("client.test"),
        Authority().issue("client.test"),
    )
    front = await front_with(front_class, TlsFiles(server.chain, server.key, authority.chain), witness)
    address = f"127.0.0.1:{front.port}"
    credentials = grpc.ssl_channel_credentials(authority.chain, client.key, client.chain)
    async with grpc.aio.secure_channel(address, credentials) as channel:
        await get(channel)
    assert "client.test" in witness.identities
    for credentials in (
        grpc.ssl_channel_credentials(authority.chain),
        grpc.ssl_channel_credentials(authority.chain, stranger.key, stranger.chain),
    ):
        async with grpc.aio.secure_channel(address, credentials) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await get(channel)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await front.stop(0)


@pytest.mark.parametrize(
    ("protocols", "version"),
    [(["http/1.1"], ssl.TLSVersion.TLSv1_3), ([], ssl.TLSVersion.TLSv1_3), (["h2"], ssl.TLSVersion.TLSv1_2)],
    ids=["another protocol", "no ALPN", "TLS 1.2"],
)
async def test_tls_is_1_3_with_h2_agreed(protocols: list[str], version: ssl.TLSVersion) -> None:
    """RFC 9113 §3.2, §3.3, §9.2: who does not agree to h2, or speaks an older TLS, is hung up on before any frame."""
    authority = Authority()
    server = authority.issue("node.test")
    front = await front_with(FastFront, TlsFiles(server.chain, server.key), Witness())
    context = ssl.create_default_context(cadata=authority.chain.decode())
    context.maximum_version = version
    context.check_hostname = False
    if protocols:
        context.set_alpn_protocols(protocols)
    received = b""
    with contextlib.suppress(OSError):  # refused in the handshake, or cut off behind it
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=context)
        writer.write(PREFACE + settings({}))
        received = await reader.read()
        writer.close()
    assert b"" == received
    await front.stop(0)
