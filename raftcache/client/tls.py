"""TLS towards the nodes, from the files that `Tls` names, for either transport.

Files are read when a connection is first made, and what is wrong with them is said before anybody is dialled.
"""

import ssl
from pathlib import Path

from raftcache.client.options import Tls
from raftcache.errors import ConfigError


def client_context(tls: Tls) -> ssl.SSLContext:
    """TLS 1.2 or newer, HTTP/2 by ALPN. Without authorities named, the system's.

    Raises: `ConfigError` for a file that cannot be read, or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    for path in (tls.ca, tls.cert, tls.key):
        if path is not None:
            _check_readable(path)
    if tls.ca is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(Path(tls.ca).expanduser())
        except ssl.SSLError as error:
            raise ConfigError(f"{tls.ca!r} has no certificate of an authority in PEM form") from error
    if tls.cert is not None and tls.key is not None:
        try:
            context.load_cert_chain(Path(tls.cert).expanduser(), Path(tls.key).expanduser(), password="")
        except ssl.SSLError as error:
            raise ConfigError(f"{tls.cert!r} and {tls.key!r} are no certificate and its key in PEM form") from error
    return context


def _check_readable(path: str) -> None:
    try:
        with Path(path).expanduser().open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename!r} for TLS: {error.strerror}") from error
