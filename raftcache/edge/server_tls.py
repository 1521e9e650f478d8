"""TLS of the client port, from PEM data in memory."""

import os
import ssl

from raftcache.edge.front_config import TlsFiles
from raftcache.errors import ConfigError


def server_context(tls: TlsFiles) -> ssl.SSLContext:
    """TLS 1.3, HTTP/2 by ALPN, and a client certificate if there are authorities for it. Raises: `ConfigError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    try:
        _load_chain(context, tls)
        if tls.client_authorities:
            context.load_verify_locations(cadata=tls.client_authorities.decode("ascii"))
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the certificates of the client port are refused by OpenSSL: {error}") from error
    return context


def _load_chain(context: ssl.SSLContext, tls: TlsFiles) -> None:
    # OpenSSL's binding reads chains and keys from files only. This one exists in memory alone.
    file = os.memfd_create("client-port-certificate", os.MFD_CLOEXEC)
    try:
        with os.fdopen(file, "wb", closefd=False) as writer:
            writer.write(tls.private_key + b"\n" + tls.certificate_chain)
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
