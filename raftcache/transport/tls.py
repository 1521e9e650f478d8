"""TLS for the client port and the peer port: contexts from files, and errors that say which file and what to do.

TLS 1.3, certificates on both sides. What a certificate proves:

- on the client port: to the client, that the name it dialed is the node's (host name check); to the node, that the client
  holds a certificate of the configured authority;
- on the peer port: that the other side is a *node* of this deployment. The host name is not checked there: addresses are
  hints, and the handshake compares cluster and node id. But the certificate must be good for a *server* too (extended key
  usage), so that a client's certificate, issued by the same authority, does not open the peer port.

Rules of this file:
- a context is never changed once it is in use: a reload builds new ones, and new connections take them;
- every error names the file, and the setting or command that mends it;
- `cryptography` is imported by the functions that need it: a node without TLS starts without it, 40 ms sooner.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from raftcache.config.rules import is_loopback
from raftcache.errors import ConfigError, Unauthenticated

if TYPE_CHECKING:
    from cryptography import x509


@dataclass(slots=True, frozen=True)
class TlsFiles:
    """Paths of PEM files: a certificate chain, its key, and the authorities of the other side's certificates."""

    certificate: Path
    key: Path
    authority: Path


@dataclass(slots=True, frozen=True)
class PeerTls:
    """Both ends of the peer port, from the same files."""

    accept: ssl.SSLContext
    dial: ssl.SSLContext
    expires: datetime
    """Of this node's certificate."""


def peer_tls(files: TlsFiles, *, now: datetime | None = None) -> PeerTls:
    """Contexts for the peer port. Raises: `ConfigError` naming the file and what to do."""
    certificate = check_files(files, now=now)
    if not _good_for_servers(certificate):
        raise ConfigError(
            f"{files.certificate} is a client's certificate (its extended key usage lacks serverAuth); a node needs one "
            "for servers and clients: `raftcache certs node`"
        )
    accept = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    dial = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    dial.check_hostname = False  # addresses are hints: see above
    for context in (accept, dial):
        _configure(context, files)
    # Peers reconnect seldom; tickets would only be more bytes in the first flight, and a way around a replaced authority.
    accept.num_tickets = 0
    return PeerTls(accept, dial, certificate.not_valid_after_utc)


def client_port_tls(
    files: TlsFiles, *, alpn: tuple[str, ...] = ("h2",), client_certificates: bool = True, now: datetime | None = None
) -> ssl.SSLContext:
    """The context of the client port. Raises: `ConfigError`. `client_certificates=False` lets anybody connect."""
    check_files(files, now=now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _configure(context, files)
    if not client_certificates:
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(alpn))
    return context


def client_tls(files: TlsFiles, *, alpn: tuple[str, ...] = ("h2",), now: datetime | None = None) -> ssl.SSLContext:
    """The dialing side of the client port: tools and tests. Checks the host name. Raises: `ConfigError`."""
    check_files(files, now=now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _configure(context, files)
    context.set_alpn_protocols(list(alpn))
    return context


def read_pem(files: TlsFiles, *, now: datetime | None = None) -> tuple[bytes, bytes, bytes]:
    """(key, certificate chain, authorities), checked: for a front that takes bytes. Raises: `ConfigError`."""
    check_files(files, now=now)
    return files.key.read_bytes(), files.certificate.read_bytes(), files.authority.read_bytes()


def check_listen_address(host: str, *, tls: bool, insecure: bool) -> None:
    """Without TLS a node listens on loopback only. Raises: `ConfigError` saying what to do."""
    if tls or insecure or is_loopback(host):
        return
    raise ConfigError(
        f"refusing to listen on {host or 'every address'} without TLS: whoever reaches the port would own the data. "
        "Set tls.peer_cert, tls.peer_key and tls.peer_ca (tls.client_* for the client port; `raftcache certs` makes them), "
        "listen on 127.0.0.1, or, on a network that you trust, set tls.insecure (--insecure)"
    )


def check_peer_certificate(certificate: bytes | None) -> None:
    """The other side's certificate, whose chain OpenSSL has verified: is it a node's? Raises: `Unauthenticated`."""
    from cryptography import x509

    if not certificate:
        raise Unauthenticated("the peer showed no certificate")
    if not _good_for_servers(x509.load_der_x509_certificate(certificate)):
        raise Unauthenticated(
            "the peer showed a client's certificate (its extended key usage lacks serverAuth); nodes need their own"
        )


def _good_for_servers(certificate: x509.Certificate) -> bool:
    from cryptography import x509

    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True  # RFC 5280 §4.2.1.12: without the extension a certificate is good for any purpose
    oids = x509.oid.ExtendedKeyUsageOID
    return oids.SERVER_AUTH in usages or oids.ANY_EXTENDED_KEY_USAGE in usages


def check_files(files: TlsFiles, *, now: datetime | None = None) -> x509.Certificate:
    """Everything that can be said before the first handshake fails. Returns the node's certificate.

    Raises: `ConfigError` for a missing or unreadable file, a key that belongs to another certificate, a certificate that is
    expired or not yet valid.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    now = now or datetime.now(UTC)
    chain = _certificates(files.certificate, "certificate chain")
    certificate = chain[0]
    key_pem = _read(files.key, "private key")
    try:
        key = load_pem_private_key(key_pem, password=None)
    except TypeError:
        raise ConfigError(
            f"{files.key} is encrypted; give a key without a passphrase, readable by the node only"
        ) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{files.key} is not a private key in PEM form: {error}") from None
    ours, theirs = (
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for public in (key.public_key(), certificate.public_key())
    )
    if ours != theirs:
        raise ConfigError(f"{files.key} is not the key of {files.certificate}; set the pair that was issued together")
    _check_validity(certificate, files.certificate, now)
    for authority in _certificates(files.authority, "authorities"):
        _check_validity(authority, files.authority, now)
    return certificate


def _check_validity(certificate: x509.Certificate, path: Path, now: datetime) -> None:
    name = certificate.subject.rfc4514_string()
    if now >= certificate.not_valid_after_utc:
        raise ConfigError(
            f"{path}: the certificate of {name} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; "
            "issue a new one (`raftcache certs`) and restart, or send SIGHUP"
        )
    if now < certificate.not_valid_before_utc:
        raise ConfigError(
            f"{path}: the certificate of {name} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; "
            f"it is {now:%Y-%m-%d %H:%M} here: check the clock"
        )


def _certificates(path: Path, what: str) -> list[x509.Certificate]:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(_read(path, what))
    except ValueError as error:
        raise ConfigError(f"{path} holds no certificate in PEM form ({what}): {error}") from None


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"{path} ({what}) does not exist; correct the setting, or make it with `raftcache certs`"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} ({what}) cannot be read: {error.strerror}; check its owner and mode") from None


def _configure(context: ssl.SSLContext, files: TlsFiles) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(files.certificate, files.key)
    except ssl.SSLError as error:
        raise ConfigError(f"{files.certificate} and {files.key} are refused by OpenSSL: {error.reason}") from None
    try:
        context.load_verify_locations(files.authority)
    except ssl.SSLError as error:
        raise ConfigError(f"{files.authority} is refused by OpenSSL: {error.reason}") from None
    context.verify_mode = ssl.CERT_REQUIRED
