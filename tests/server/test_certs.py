"""The development authority: what it issues, where it writes, and what it refuses."""

import ipaddress
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from raftcache.errors import ConfigError
from raftcache.server.certs import create_authority, issue_client, issue_node

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def usages(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_node_certificate_serves_and_dials_under_all_its_names(tmp_path: Path) -> None:
    """Names and addresses that were asked for, the loopback ones besides, each once."""
    create_authority(tmp_path, now=NOW)
    issued = issue_node(tmp_path, "n1", hosts=["n1.example", "10.0.0.1", "localhost"], now=NOW)
    certificate = load(issued.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["n1.example", "localhost"]
    expected = [ipaddress.ip_address(host) for host in ("10.0.0.1", "127.0.0.1", "::1")]
    assert names.get_values_for_type(x509.IPAddress) == expected
    assert usages(certificate) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def test_client_certificate_only_dials(tmp_path: Path) -> None:
    """It lacks what the peer port asks for."""
    create_authority(tmp_path, now=NOW)
    assert usages(load(issue_client(tmp_path, "tool", now=NOW).certificate)) == {ExtendedKeyUsageOID.CLIENT_AUTH}


def test_certificates_are_of_the_authority(tmp_path: Path) -> None:
    """The signature verifies, and the authority can issue but nothing below it can."""
    authority = load(create_authority(tmp_path, now=NOW).certificate)
    certificate = load(issue_node(tmp_path, "n1", now=NOW).certificate)
    certificate.verify_directly_issued_by(authority)
    for made, may_issue in ((authority, True), (certificate, False)):
        assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is may_issue
        assert made.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign is may_issue


def test_validity_begins_a_little_earlier_and_never_outlives_the_authority(tmp_path: Path) -> None:
    """Clocks differ; and an authority's end is its certificates' end."""
    authority = load(create_authority(tmp_path, days=30, now=NOW).certificate)
    issued = issue_node(tmp_path, "n1", days=365, now=NOW)
    certificate = load(issued.certificate)
    assert certificate.not_valid_before_utc == NOW - timedelta(minutes=5)
    assert certificate.not_valid_after_utc == authority.not_valid_after_utc == NOW + timedelta(days=30)
    assert issued.expires == certificate.not_valid_after_utc


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    """Modes 0600 and 0700, and no temporary file is left."""
    directory = tmp_path / "new" / "certs"
    create_authority(directory, now=NOW)
    issue_node(directory, "n1", now=NOW)
    issue_client(directory, "tool", now=NOW)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    expected = ["ca.crt", "ca.key", "client-tool.crt", "client-tool.key", "node-n1.crt", "node-n1.key"]
    assert sorted(found) == expected
    assert set(found.values()) == {0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_nothing_is_overwritten_unless_forced(tmp_path: Path) -> None:
    """A second authority would orphan all that the first one signed; the message says so."""
    first = create_authority(tmp_path, now=NOW)
    before = first.certificate.read_bytes()
    with pytest.raises(ConfigError, match=r"ca\.crt and .*ca\.key exist already.*would stop being accepted"):
        create_authority(tmp_path, now=NOW)
    assert first.certificate.read_bytes() == before
    issued = issue_node(tmp_path, "n1", now=NOW)
    with pytest.raises(ConfigError, match=r"node-n1\.crt and .*node-n1\.key exist already"):
        issue_node(tmp_path, "n1", now=NOW)
    before = issued.key.read_bytes()
    assert issue_node(tmp_path, "n1", force=True, now=NOW).key.read_bytes() != before
    create_authority(tmp_path, force=True, now=NOW)
    assert first.certificate.read_bytes() != before


def test_leftover_key_alone_is_not_overwritten(tmp_path: Path) -> None:
    """Half of a pair may be the half that matters."""
    create_authority(tmp_path, now=NOW)
    (tmp_path / "ca.crt").unlink()
    with pytest.raises(ConfigError, match=r"ca\.key exist already"):
        create_authority(tmp_path, now=NOW)


def test_authority_comes_first(tmp_path: Path) -> None:
    """The message says how to make one."""
    with pytest.raises(ConfigError, match=r"ca\.crt does not exist; make the authority first: `raftcache certs ca`"):
        issue_node(tmp_path, "n1", now=NOW)


def test_damaged_authority_is_refused(tmp_path: Path) -> None:
    """A key that is not the certificate's, or no key at all."""
    create_authority(tmp_path, now=NOW)
    other = create_authority(tmp_path / "other", now=NOW)
    (tmp_path / "ca.key").write_bytes(other.key.read_bytes())
    with pytest.raises(ConfigError, match=r"ca\.key is not the key of"):
        issue_node(tmp_path, "n1", now=NOW)
    (tmp_path / "ca.key").write_bytes(b"noise")
    with pytest.raises(ConfigError, match="cannot be used"):
        issue_node(tmp_path, "n1", now=NOW)


def test_expired_authority_issues_nothing(tmp_path: Path) -> None:
    """A certificate that is dead at birth helps nobody."""
    create_authority(tmp_path, days=1, now=NOW)
    with pytest.raises(ConfigError, match=r"expired at 2026-01-03; begin a new authority"):
        issue_node(tmp_path, "n1", now=NOW + timedelta(days=2))


@pytest.mark.parametrize("name", ["", "../n1", "a/b", "a b", ".hidden", "ü", "x" * 64])
def test_name_must_be_a_plain_word(tmp_path: Path, name: str) -> None:
    """It becomes a file name and a common name (at most 64 characters, X.520)."""
    create_authority(tmp_path, now=NOW)
    with pytest.raises(ConfigError, match="is no name for a certificate"):
        issue_node(tmp_path, name, now=NOW)


@pytest.mark.parametrize("host", ["", "n1:7401", "http://n1", "[::1]", "a b"])
def test_host_must_be_a_name_or_an_address(tmp_path: Path, host: str) -> None:
    """Ports and URLs are the usual slips."""
    create_authority(tmp_path, now=NOW)
    with pytest.raises(ConfigError, match="neither a host name nor an IP address"):
        issue_node(tmp_path, "n1", hosts=[host], now=NOW)
    assert not (tmp_path / "node-n1.key").exists()


def test_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file stands where the directory should be."""
    (tmp_path / "certs").write_bytes(b"")
    with pytest.raises(ConfigError, match="certs cannot be written"):
        create_authority(tmp_path / "certs", now=NOW)
