"""A development certificate authority: `raftcache certs`.

It makes what the settings ask for, `ca.crt`, `node-NAME.crt/.key` and `client-NAME.crt/.key`, for trying things out, for
tests, and for a deployment small enough that one person holds the authority's key. Where an organisation has a PKI of its
own, use that: a node's certificate needs the extended key usages serverAuth *and* clientAuth (nodes dial each other),
a client's only clientAuth. That difference keeps clients from the peer port.

Rules of this file:
- every file is created with mode 0600, and appears whole or not at all;
- nothing is overwritten unless forced: a new `ca.key` orphans every certificate that the old one signed;
- EC P-256 and SHA-256 throughout, which every TLS 1.3 stack has (RFC 8446 §9.1).

Caveats: there is no revocation. Certificates are short-lived instead; to lock somebody out, begin a new authority.
"""

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from raftcache.errors import ConfigError

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 397
"""The longest life that public authorities give (CA/Browser Forum ballot SC-31), for want of revocation."""
BACKDATED = timedelta(minutes=5)
"""Valid a little earlier than now: the clocks of the machines that will check it differ."""
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")

AUTHORITY_CERTIFICATE = "ca.crt"
AUTHORITY_KEY = "ca.key"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(slots=True, frozen=True)
class Issued:
    """What was written."""

    certificate: Path
    key: Path
    authority: Path
    expires: datetime


def create_authority(
    directory: Path,
    *,
    name: str = "raftcache development authority",
    days: int = AUTHORITY_DAYS,
    force: bool = False,
    now: datetime | None = None,
) -> Issued:
    """Makes the authority's certificate and key in `directory`, which is created with mode 0700 if it does not exist.

    Raises: `ConfigError` where one is there already and `force` is not set, or the directory cannot be written.
    """
    now = now or datetime.now(UTC)
    certificate_path, key_path = directory / AUTHORITY_CERTIFICATE, directory / AUTHORITY_KEY
    _refuse_to_overwrite(
        [certificate_path, key_path], force=force, loss="every certificate that it signed would stop being accepted"
    )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    expires = now + timedelta(days=days)
    certificate = (
        _builder(subject, subject, key.public_key(), now=now, expires=expires)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_pair(certificate_path, certificate, key_path, key)
    return Issued(certificate_path, key_path, certificate_path, expires)


def issue_node(
    directory: Path,
    name: str,
    *,
    hosts: Sequence[str] = (),
    days: int = CERTIFICATE_DAYS,
    force: bool = False,
    now: datetime | None = None,
) -> Issued:
    """A certificate for a node's client port and peer port, good to serve and to dial.

    `hosts` are the names and IP addresses under which clients dial it; the loopback ones are always added.
    Raises: `ConfigError` (no authority in `directory`, a bad name or host, files that exist and `force` not set).
    """
    names = _host_names([*hosts, *(host for host in LOOPBACK_HOSTS if host not in hosts)])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return _issue(directory, f"node-{name}", name, names=names, usages=usages, days=days, force=force, now=now)


def issue_client(
    directory: Path, name: str, *, days: int = CERTIFICATE_DAYS, force: bool = False, now: datetime | None = None
) -> Issued:
    """A certificate for a client. It is of no use on the peer port. Raises: `ConfigError`, as `issue_node`."""
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    return _issue(directory, f"client-{name}", name, names=[], usages=usages, days=days, force=force, now=now)


def _issue(
    directory: Path,
    file_name: str,
    name: str,
    *,
    names: list[x509.GeneralName],
    usages: list[x509.ObjectIdentifier],
    days: int,
    force: bool,
    now: datetime | None,
) -> Issued:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for a certificate: letters, digits, '.', '_' and '-', at most 63 of them"
        )
    now = now or datetime.now(UTC)
    authority, authority_key = _load_authority(directory)
    # A certificate that outlives its authority promises what it cannot keep.
    expires = min(now + timedelta(days=days), authority.not_valid_after_utc)
    if expires <= now:
        raise ConfigError(
            f"{directory / AUTHORITY_CERTIFICATE} expired at {authority.not_valid_after_utc:%Y-%m-%d}; "
            "begin a new authority: `raftcache certs ca --force`"
        )
    certificate_path, key_path = directory / f"{file_name}.crt", directory / f"{file_name}.key"
    _refuse_to_overwrite([certificate_path, key_path], force=force, loss="whoever uses them would have to be restarted")
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(_name(name), authority.subject, key.public_key(), now=now, expires=expires)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    _write_pair(certificate_path, builder.sign(authority_key, hashes.SHA256()), key_path, key)
    return Issued(certificate_path, key_path, directory / AUTHORITY_CERTIFICATE, expires)


def _load_authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate_path, key_path = directory / AUTHORITY_CERTIFICATE, directory / AUTHORITY_KEY
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        key = load_pem_private_key(key_path.read_bytes(), password=None)
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename} does not exist; make the authority first: `raftcache certs ca`") from None
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the authority in {directory} cannot be used: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"{key_path} is not the key of {certificate_path}")
    return certificate, key


# --- Parts of a certificate ---------------------------------------------------------------------------------------


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, now: datetime, expires: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(expires)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
            continue
        except ValueError:
            pass
        if not host or not host.isascii() or any(character in " /:[]" for character in host):
            raise ConfigError(
                f"{host!r} is neither a host name nor an IP address; ports do not belong into certificates"
            )
        names.append(x509.DNSName(host))
    return names


# --- Files --------------------------------------------------------------------------------------------------------


def _refuse_to_overwrite(paths: list[Path], *, force: bool, loss: str) -> None:
    existing = [str(path) for path in paths if path.exists()]
    if existing and not force:
        raise ConfigError(f"{' and '.join(existing)} exist already; with --force they are replaced, and {loss}")


def _write_pair(
    certificate_path: Path, certificate: x509.Certificate, key_path: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        certificate_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(key_path, key_pem)
        _write(certificate_path, certificate.public_bytes(Encoding.PEM))
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be written: {error.strerror}") from None


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, and never readable by others, not even for an instant."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
