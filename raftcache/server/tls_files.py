"""Which certificates a node's settings name: for the node, and for who checks its settings before it starts."""

from pathlib import Path

from raftcache.config.settings import Tls
from raftcache.transport.tls import TlsFiles, client_port_tls, peer_tls


def client_files(tls: Tls) -> TlsFiles | None:
    """Those of the port for clients; None without TLS."""
    if not tls.client_cert:
        return None
    # Without authorities of clients the certificate stands in for them in the check, and nobody is asked for one.
    return TlsFiles(Path(tls.client_cert), Path(tls.client_key), Path(tls.client_ca or tls.client_cert))


def peer_files(tls: Tls) -> TlsFiles | None:
    """Those of the port for other nodes; None without TLS."""
    if not tls.peer_cert:
        return None
    return TlsFiles(Path(tls.peer_cert), Path(tls.peer_key), Path(tls.peer_ca))


def check(tls: Tls) -> None:
    """Reads them all. Raises: `ConfigError`."""
    if client := client_files(tls):
        client_port_tls(client)
    if peer := peer_files(tls):
        peer_tls(peer)
