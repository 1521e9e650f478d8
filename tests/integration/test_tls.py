"""A cluster with mutual TLS on client and peer ports, its certificates made by `raftcache certs`.

Who shows no certificate of the cluster's authority gets nowhere, whichever port is tried and whoever is asked.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import raftcache
from raftcache.admin.v1 import admin_pb2
from raftcache.storage.data_directory import NO_CLUSTER
from raftcache.v1 import kv_pb2, kv_pb2_grpc
from tests.support.cluster import Cluster, Node, running, wait_until
from tests.support.refusals import refused


def certs(directory: Path, *arguments: str) -> None:
    """Runs `raftcache certs`, as an operator would."""
    command = [sys.executable, "-m", "raftcache.cli", "certs", *arguments, "--dir", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert 0 == done.returncode, done.stderr


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cluster's authority, one certificate for its nodes and one for a client."""
    directory = tmp_path_factory.mktemp("certs")
    certs(directory, "ca")
    certs(directory, "node", "n")
    certs(directory, "client", "app")
    return directory


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody else's authority, with a node and a client of its own."""
    directory = tmp_path_factory.mktemp("strangers")
    certs(directory, "ca")
    certs(directory, "node", "n")
    certs(directory, "client", "app")
    return directory


def settings_of(directory: Path) -> dict[str, object]:
    """What a node is told about its certificates."""
    certificate, key, authority = (directory / name for name in ("node-n.crt", "node-n.key", "ca.crt"))
    ports = ("client", "peer")
    return {
        f"tls.{port}_{what}": path
        for port in ports
        for what, path in (("cert", certificate), ("key", key), ("ca", authority))
    }


def credentials_of(authority: Path, client: Path | None) -> grpc.ChannelCredentials:
    """A client that trusts `authority` and shows the certificate of `client`, if it has one."""
    if client is None:
        return grpc.ssl_channel_credentials((authority / "ca.crt").read_bytes())
    return grpc.ssl_channel_credentials(
        (authority / "ca.crt").read_bytes(),
        private_key=(client / "client-app.key").read_bytes(),
        certificate_chain=(client / "client-app.crt").read_bytes(),
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, ours: Path) -> Iterator[Cluster]:
    """Three nodes that speak nothing but mutual TLS. That it has leaders says that the peers' port works."""
    root = tmp_path_factory.mktemp("tls")
    credentials = credentials_of(ours, ours)
    with running(root, nodes=3, shards=2, settings=settings_of(ours), credentials=credentials) as cluster:
        yield cluster


def test_client_with_a_certificate_is_served_by_every_node(cluster: Cluster, ours: Path) -> None:
    """Put and get with our own client; the nodes forward to each other over TLS."""
    tls = raftcache.Tls(str(ours / "ca.crt"), str(ours / "client-app.crt"), str(ours / "client-app.key"))
    for number, node in enumerate(cluster.nodes):
        with raftcache.Client(node.address, routing="gateway", tls=tls) as client:
            for key in (b"a%d" % number, b"b%d" % number, b"c%d" % number, b"d%d" % number):
                client.put(key, b"secret")
                entry = client.get(key)
                assert entry is not None
                assert b"secret" == entry.value
    with raftcache.Client(cluster.endpoints, tls=tls) as client:
        assert 4 * len(cluster.nodes) == client.count()


@pytest.mark.parametrize("who", ["without a certificate", "with another authority's certificate", "without TLS"])
def test_client_that_cannot_prove_itself_is_refused(cluster: Cluster, ours: Path, theirs: Path, who: str) -> None:
    """No call of such a client reaches the node."""
    node = cluster.nodes[0]
    own_pool = [("grpc.use_local_subchannel_pool", 1)]
    channel = {
        "without a certificate": lambda: grpc.secure_channel(node.address, credentials_of(ours, None), own_pool),
        "with another authority's certificate": lambda: grpc.secure_channel(
            node.address, credentials_of(ours, theirs), own_pool
        ),
        "without TLS": lambda: grpc.insecure_channel(node.address, own_pool),
    }[who]()
    handled = node.metric("raftcache_rpc_handled_total", method="Get")
    with channel:
        stub = kv_pb2_grpc.KvServiceStub(channel)
        refusal = refused(lambda: stub.Get(kv_pb2.GetRequest(key=b"a"), timeout=10))
    assert grpc.StatusCode.UNAVAILABLE is refusal.code
    assert handled == node.metric("raftcache_rpc_handled_total", method="Get")
    # A stranger's failed handshakes put nothing of gRPC's own among the node's lines.
    assert [] == [line for line in node.log.read_text().splitlines() if not line.startswith("{")]


def test_client_does_not_take_a_stranger_for_the_cluster(cluster: Cluster, theirs: Path) -> None:
    """A client that trusts another authority sends nothing to these nodes."""
    with grpc.secure_channel(cluster.nodes[0].address, credentials_of(theirs, theirs)) as channel:
        stub = kv_pb2_grpc.KvServiceStub(channel)
        refusal = refused(lambda: stub.Get(kv_pb2.GetRequest(key=b"a"), timeout=10))
    assert grpc.StatusCode.UNAVAILABLE is refusal.code
    assert "certificate" in refusal.message.lower()


@pytest.mark.parametrize("certified", [True, False], ids=["another authority", "no TLS"])
def test_node_of_strangers_is_not_taken_in(cluster: Cluster, theirs: Path, certified: bool) -> None:
    """Nor does it hear anything: the handshake ends before a word about the cluster is said."""
    stranger = cluster.add_node()
    try:
        stranger.settings = settings_of(theirs) if certified else {}
        stranger.start()
        request = admin_pb2.JoinNodeRequest(peer_address=stranger.peer_address)
        refusal = refused(lambda: cluster.admin(cluster.nodes[0]).JoinNode(request, timeout=20))
        assert grpc.StatusCode.UNAVAILABLE is refusal.code, refusal
        assert "not reachable" in refusal.message
        assert 3 == len(cluster.info().nodes)
        assert NO_CLUSTER == cluster_of(stranger)
    finally:
        stranger.kill()
        cluster.nodes.remove(stranger)


def cluster_of(node: Node) -> int:
    """The cluster that the node believes it belongs to."""
    cluster: int = json.loads((node.data / "identity.json").read_text())["cluster"]
    return cluster


def test_member_with_a_wrong_certificate_is_shut_out_until_it_has_the_right_one(
    cluster: Cluster, ours: Path, theirs: Path
) -> None:
    """Its identity alone does not help it: TLS comes first. The others go on; with its certificate back it catches up."""
    other, _, member = cluster.nodes
    member.kill()
    right = member.settings
    member.settings = right | {name: value for name, value in settings_of(theirs).items() if "peer" in name}
    member.start()
    wait_until(lambda: bool(member.events("peer_unreachable")), "the member to find nobody who speaks to it")
    assert "certificate" in str(member.events("peer_unreachable")[0]["error"]).lower()
    assert cluster.kv(other).Put(kv_pb2.PutRequest(key=b"meanwhile", value=b"v"), timeout=10).succeeded
    member.kill()
    member.settings = right
    member.start()
    wait_until(cluster.level, "the member to be level")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"tls.peer_cert": "absent.crt", "tls.peer_key": "absent.key", "tls.peer_ca": "absent.crt"},
            ("absent.crt", "raftcache certs"),
        ),
        ({"tls.client_cert": "only.crt"}, ("client_cert and client_key go together",)),
    ],
    ids=["missing file", "half a pair"],
)
def test_node_with_unusable_certificates_refuses_to_start(
    tmp_path: Path, settings: dict[str, object], words: tuple[str, ...]
) -> None:
    """The file or the setting is named, and what makes it."""
    [node] = Cluster(tmp_path, nodes=1, settings=settings).nodes
    try:
        node.start(wait=False)
        wait_until(lambda: not node.running, "the node to refuse")
        assert node.exit_status in (1, 2)
        for word in words:
            assert word in node.tail(5), node.tail()
        assert "Traceback" not in node.tail(100)
    finally:
        node.kill()
