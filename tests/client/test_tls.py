"""TLS: both clients prove themselves, check the node, and say what is wrong."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from raftcache.client import AsyncClient, Client, Tls
from raftcache.client.errors import DeadlineExceeded
from raftcache.client.options import Transport
from raftcache.errors import ConfigError
from raftcache.v1 import shard_map_pb2
from tests.client.scripted import table
from tests.edge.certificates import Authority


class ShardMapOnly(grpc.GenericRpcHandler):
    """A node that knows nothing but its map."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            response: shard_map_pb2.ShardMapResponse = table()
            return response.SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    """The client's files; the node's are beside them."""
    authority = Authority()
    for name in ("node", "client"):
        certificate = authority.issue(name)
        (tmp_path / f"{name}.pem").write_bytes(certificate.chain)
        (tmp_path / f"{name}.key").write_bytes(certificate.key)
    (tmp_path / "ca.pem").write_bytes(authority.chain)
    (tmp_path / "other-ca.pem").write_bytes(Authority().chain)
    return Tls(str(tmp_path / "ca.pem"), str(tmp_path / "client.pem"), str(tmp_path / "client.key"))


@pytest.fixture
def endpoint(tls: Tls, tmp_path: Path) -> Iterator[str]:
    """A node that asks for certificates."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[ShardMapOnly()])
        pair = ((tmp_path / "node.key").read_bytes(), (tmp_path / "node.pem").read_bytes())
        credentials = grpc.ssl_server_credentials([pair], (tmp_path / "ca.pem").read_bytes(), require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


async def test_both_sides_prove_themselves(endpoint: str, tls: Tls, transport: Transport) -> None:
    """Mutual TLS, by both clients."""
    with Client(endpoint, tls=tls, timeout=30, transport=transport) as rc:
        assert 7 == rc.ping().cluster
    async with AsyncClient(endpoint, tls=tls, timeout=30, transport=transport) as rc_of_loop:
        assert 7 == (await rc_of_loop.ping()).cluster


def test_who_is_not_trusted_is_not_talked_to(endpoint: str, tls: Tls, tmp_path: Path, transport: Transport) -> None:
    """A node of another authority, a client without a certificate, a client without TLS."""
    for wrong in (replace(tls, ca=str(tmp_path / "other-ca.pem")), Tls(tls.ca), None):
        with Client(endpoint, tls=wrong, timeout=0.5, transport=transport) as rc:
            with pytest.raises(DeadlineExceeded):
                rc.ping()


def test_files_that_cannot_be_read_are_named(endpoint: str, tls: Tls, transport: Transport) -> None:
    """At the first call; half a key pair at once."""
    with Client(endpoint, tls=replace(tls, ca="/nowhere/ca.pem"), transport=transport) as rc:
        with pytest.raises(ConfigError, match=r"/nowhere/ca\.pem"):
            rc.ping()
    with pytest.raises(ConfigError, match="key"):
        Tls(cert="me.pem")


def test_files_that_are_something_else_are_named_before_anybody_is_dialled(
    tls: Tls, tmp_path: Path, transport: Transport
) -> None:
    """gRPC would take them, and fail at each connection until the deadline."""
    (tmp_path / "note.txt").write_text("no certificate")
    note = str(tmp_path / "note.txt")
    for wrong, named in (
        (replace(tls, ca=note), r"note\.txt' has no certificate of an authority"),
        (replace(tls, cert=note), r"note\.txt' and '.*client\.key' are no certificate and its key"),
        (
            replace(tls, key=str(tmp_path / "node.key")),
            r"client\.pem' and '.*node\.key' are no certificate and its key",
        ),
    ):
        with Client("127.0.0.1:1", tls=wrong, transport=transport) as rc:
            with pytest.raises(ConfigError, match=named):
                rc.ping()
