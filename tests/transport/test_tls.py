"""Who gets through the door with which certificate, and what is said to whom who does not."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from raftcache.errors import ConfigError
from raftcache.ids import NodeId, ShardId
from raftcache.raft.messages import InstallSnapshot
from raftcache.server.certs import Issued, create_authority, issue_client, issue_node
from raftcache.transport.snapshots import SnapshotSink
from raftcache.transport.tls import (
    PeerTls,
    TlsFiles,
    check_listen_address,
    client_port_tls,
    client_tls,
    peer_tls,
    read_pem,
)
from tests.transport.network import Node, outcome, rig, soon_ns
from tests.transport.test_snapshots import Receiver, Source, transfer

TWO = NodeId(2)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority with two nodes and a client."""
    made = tmp_path_factory.mktemp("certs")
    create_authority(made)
    issue_node(made, "one")
    issue_node(made, "two")
    issue_client(made, "tool")
    return made


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another authority altogether, with a node."""
    made = tmp_path_factory.mktemp("strangers")
    create_authority(made)
    issue_node(made, "one")
    return made


def files(directory: Path, name: str, *, authority: Path | None = None) -> TlsFiles:
    return TlsFiles(directory / f"{name}.crt", directory / f"{name}.key", (authority or directory) / "ca.crt")


def unchecked_dial(tls_files: TlsFiles) -> ssl.SSLContext:
    """What somebody dials with who follows none of our rules."""
    dial = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    dial.check_hostname = False
    dial.load_verify_locations(tls_files.authority)
    dial.load_cert_chain(tls_files.certificate, tls_files.key)
    return dial


async def greet(one: Node, two: Node) -> None:
    await one.beat_until(2, lambda: bool(two.messages))


async def refusal(one: Node) -> str:
    await one.beat_until(2, lambda: bool(one.reported("peer_unreachable")))
    return one.reported("peer_unreachable")[0]


async def test_nodes_with_certificates_of_one_authority_talk(directory: Path) -> None:
    """Messages, requests and snapshots all pass, encrypted, in both directions."""
    receiver = Receiver()
    async with rig() as net:
        one = await net.node(1, tls=peer_tls(files(directory, "node-one")))
        two = await net.node(2, tls=peer_tls(files(directory, "node-two")), begin_snapshot=receiver.begin)
        await greet(one, two)
        assert await one.ask(2, bytes(1 << 20)) == b"answer to " + bytes(1 << 20)
        assert await transfer(one, Source(bytes(3 << 20)))
        await two.beat_until(1, lambda: bool(one.messages))
        link = one.network._links[TWO].connection
        assert link is not None
        assert link._transport is not None
        assert link._transport.get_extra_info("ssl_object").version() == "TLSv1.3"


async def test_node_of_another_authority_is_refused(directory: Path, strangers: Path) -> None:
    """The dialer does not trust the acceptor, and says why."""
    async with rig() as net:
        one = await net.node(1, tls=peer_tls(files(strangers, "node-one")))
        two = await net.node(2, tls=peer_tls(files(directory, "node-two")))
        assert "CERTIFICATE_VERIFY_FAILED" in await refusal(one)
        assert two.messages == []


async def test_stranger_that_trusts_us_is_refused_all_the_same(directory: Path, strangers: Path) -> None:
    """Its certificate is of another authority; that it accepts ours does not help it."""
    async with rig() as net:
        mixed = files(strangers, "node-one", authority=directory)
        tls = peer_tls(files(directory, "node-two"))
        one = await net.node(1, tls=PeerTls(tls.accept, unchecked_dial(mixed), tls.expires))
        two = await net.node(2, tls=tls)
        await refusal(one)
        assert two.messages == []
        assert two.heard("connected", 1) == 0


async def test_dialer_without_certificate_is_refused(directory: Path) -> None:
    """The peer port is always mutual."""
    async with rig() as net:
        tls = peer_tls(files(directory, "node-two"))
        dial = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        dial.check_hostname = False
        dial.load_verify_locations(directory / "ca.crt")
        one = await net.node(1, tls=PeerTls(tls.accept, dial, tls.expires))
        two = await net.node(2, tls=tls)
        await refusal(one)
        assert two.messages == []


async def test_client_certificate_does_not_open_the_peer_port(directory: Path) -> None:
    """It is of the right authority, but no node's: whoever may read keys may not vote."""
    async with rig() as net:
        tls = peer_tls(files(directory, "node-two"))
        dial = unchecked_dial(files(directory, "client-tool"))
        one = await net.node(1, tls=PeerTls(tls.accept, dial, tls.expires))
        two = await net.node(2, tls=tls)
        await refusal(one)
        await two.until(lambda: bool(two.reported("peer_refused")))
        assert "client's certificate" in two.reported("peer_refused")[0]
        assert two.messages == []


async def test_plain_dialer_at_a_tls_port_is_refused(directory: Path) -> None:
    """One side configured, the other forgotten."""
    async with rig() as net:
        one = await net.node(1)
        two = await net.node(2, tls=peer_tls(files(directory, "node-two")))
        await refusal(one)
        assert two.messages == []


async def test_tls_dialer_at_a_plain_port_is_refused(directory: Path) -> None:
    """The other way round: the plain side says what is likely wrong."""
    async with rig() as net:
        one = await net.node(1, tls=peer_tls(files(directory, "node-one")))
        two = await net.node(2)
        await refusal(one)
        await two.until(lambda: bool(two.reported("peer_refused")))
        assert "one side speaks TLS and the other does not" in two.reported("peer_refused")[0]


async def test_snapshot_sender_checks_certificates_too(directory: Path, strangers: Path) -> None:
    """A snapshot holds all the data: it goes to nobody who could not be a peer."""

    def begin(from_node: NodeId, shard: ShardId, message: InstallSnapshot, *, size: int, digest: bytes) -> SnapshotSink:
        raise AssertionError("nothing may arrive")

    async with rig() as net:
        one = await net.node(1, tls=peer_tls(files(directory, "node-one")))
        await net.node(2, tls=peer_tls(files(strangers, "node-one")), begin_snapshot=begin)
        assert not await transfer(one, Source(b"all the data"))
        assert "CERTIFICATE_VERIFY_FAILED" in one.reported("snapshot_not_sent")[0]


async def test_reloaded_certificates_count_for_new_connections(directory: Path, strangers: Path) -> None:
    """After a reload with another authority the port stays, old links stay, and who dials anew needs the new one."""
    async with rig() as net:
        one = await net.node(1, tls=peer_tls(files(directory, "node-one")))
        two = await net.node(2, tls=peer_tls(files(directory, "node-two")))
        await greet(one, two)
        await two.network.reload_tls(peer_tls(files(strangers, "node-one")))
        assert await one.ask(2, b"still") == b"answer to still"
        other = await net.node(3, tls=peer_tls(files(strangers, "node-one")))
        count = len(two.messages)
        await other.beat_until(2, lambda: len(two.messages) > count)
        late = await net.node(4, tls=peer_tls(files(directory, "node-one")))
        assert "CERTIFICATE_VERIFY_FAILED" in await refusal(late)
        ask = one.network.request_address
        answer = await outcome(lambda done: ask(one.address, 1, b"self", done, soon_ns()))
        assert answer == b"answer to self"


# --- Errors that say what to do -----------------------------------------------------------------------------------


def test_missing_file_is_named(directory: Path) -> None:
    """With what it was to be, and how to make one."""
    with pytest.raises(ConfigError, match=r"node-nine\.crt \(certificate chain\) does not exist.*raftcache certs"):
        peer_tls(files(directory, "node-nine"))


def test_unreadable_file_is_named(directory: Path, tmp_path: Path) -> None:
    """A wrong owner or mode, or, as here, a directory."""
    with pytest.raises(ConfigError, match=r"\(private key\) cannot be read: Is a directory"):
        peer_tls(TlsFiles(directory / "node-one.crt", tmp_path, directory / "ca.crt"))


def test_key_of_another_certificate_is_named(directory: Path) -> None:
    """Both files are named, since either may be the wrong one."""
    mixed = TlsFiles(directory / "node-one.crt", directory / "node-two.key", directory / "ca.crt")
    with pytest.raises(ConfigError, match=r"node-two\.key is not the key of .*node-one\.crt"):
        peer_tls(mixed)


def test_file_of_the_wrong_kind_is_named(directory: Path) -> None:
    """Certificate and key swapped, or an empty authority file."""
    with pytest.raises(ConfigError, match=r"node-one\.key holds no certificate"):
        peer_tls(TlsFiles(directory / "node-one.key", directory / "node-one.crt", directory / "ca.crt"))
    with pytest.raises(ConfigError, match=r"node-one\.crt is not a private key"):
        peer_tls(TlsFiles(directory / "node-one.crt", directory / "node-one.crt", directory / "ca.crt"))
    with pytest.raises(ConfigError, match=r"ca\.key holds no certificate"):
        peer_tls(TlsFiles(directory / "node-one.crt", directory / "node-one.key", directory / "ca.key"))


def test_expired_certificate_is_named_with_its_date(directory: Path) -> None:
    """At startup, not at the first failed handshake at night."""
    later = datetime.now(UTC) + timedelta(days=400)
    with pytest.raises(ConfigError, match=r"node-one\.crt: the certificate of CN=one expired at \d{4}-\d\d-\d\d"):
        peer_tls(files(directory, "node-one"), now=later)


def test_clock_that_is_behind_is_suspected(directory: Path) -> None:
    """A certificate that is not valid yet usually means a wrong clock."""
    earlier = datetime.now(UTC) - timedelta(days=1)
    with pytest.raises(ConfigError, match="check the clock"):
        peer_tls(files(directory, "node-one"), now=earlier)


def test_expired_authority_is_named(tmp_path: Path) -> None:
    """The authority's end is everybody's end."""
    create_authority(tmp_path, days=10)
    issue_node(tmp_path, "one")
    later = datetime.now(UTC) + timedelta(days=11)
    with pytest.raises(ConfigError, match=r"node-one\.crt: the certificate of CN=one expired"):
        peer_tls(files(tmp_path, "node-one"), now=later)


def test_client_certificate_is_none_for_a_node(directory: Path) -> None:
    """Said at startup by the node that was given it."""
    with pytest.raises(ConfigError, match="is a client's certificate"):
        peer_tls(files(directory, "client-tool"))


def test_expiry_is_known_for_the_metric(directory: Path) -> None:
    """`raftcache_cert_expiry_timestamp_seconds` comes from here."""
    assert peer_tls(files(directory, "node-one")).expires > datetime.now(UTC) + timedelta(days=300)


def handshake(accept: ssl.SSLContext, dial: ssl.SSLContext, host: str) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends in memory. Raises `ssl.SSLError` of whichever end refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = accept.wrap_bio(to_server, to_client, server_side=True)
    client = dial.wrap_bio(to_client, to_server, server_hostname=host)
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for end in (client, server):
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                pass
    return client, server


def test_client_port_is_mutual_and_speaks_h2(directory: Path) -> None:
    """TLS 1.3, ALPN, and the name that was dialed is checked."""
    accept = client_port_tls(files(directory, "node-one"))
    dial = client_tls(files(directory, "client-tool"))
    client, server = handshake(accept, dial, "localhost")
    assert (client.version(), client.selected_alpn_protocol()) == ("TLSv1.3", "h2")
    assert server.getpeercert() is not None
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(accept, dial, "elsewhere.example")


def test_client_port_refuses_strangers(directory: Path, strangers: Path) -> None:
    """A client's certificate must be of the configured authority, unless anybody is to connect."""
    dial = unchecked_dial(files(strangers, "node-one", authority=directory))
    with pytest.raises(ssl.SSLError):
        handshake(client_port_tls(files(directory, "node-one")), dial, "localhost")
    handshake(client_port_tls(files(directory, "node-one"), client_certificates=False), dial, "localhost")


def test_pem_bytes_are_checked_before_they_are_handed_out(directory: Path) -> None:
    """For fronts that take bytes: in the order that they take them in."""
    key, certificate, authority = read_pem(files(directory, "node-one"))
    assert b"PRIVATE KEY" in key
    assert b"CERTIFICATE" in certificate
    assert authority == (directory / "ca.crt").read_bytes()
    with pytest.raises(ConfigError):
        read_pem(files(directory, "node-nine"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_tls(host: str) -> None:
    """Trying things out is one command."""
    check_listen_address(host, tls=False, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "example.org", "fe80::1"])
def test_other_addresses_need_tls_or_a_word(host: str) -> None:
    """The message names the settings that mend it."""
    with pytest.raises(ConfigError, match=r"tls\.peer_cert.*tls\.insecure"):
        check_listen_address(host, tls=False, insecure=False)
    check_listen_address(host, tls=True, insecure=False)
    check_listen_address(host, tls=False, insecure=True)


def test_issued_files_are_what_the_settings_want(tmp_path: Path) -> None:
    """What the authority returns can be put into the settings as it is."""
    create_authority(tmp_path)
    issued: Issued = issue_node(tmp_path, "one")
    assert peer_tls(TlsFiles(issued.certificate, issued.key, issued.authority)).expires == issued.expires.replace(
        microsecond=0
    )
