"""The first exchange on every connection: who are you, and are you who I think? Sans-IO.

    dialer   -> HELLO        versions, purpose, cluster, node, incarnation, node that is expected, own address
    acceptor -> HELLO_REPLY  version, cluster, node, incarnation, own address       or
             -> REFUSE       why, in a code and in words

An address is only a hint: after a restart of a whole rack it may be somebody else's. So both sides *prove by comparison*
that they speak to whom they mean before a single Raft message passes: the same cluster, the expected node, and not an
older life of it (a data directory restored from a copy has voted already in its newer life).

Rules of this file:
- pure functions of two identities; the connection only carries out what is decided here;
- the layout of HELLO begins with the range of versions, so that two releases that share none still understand *that*;
- a node without a cluster id is not initialised. It may speak, and be spoken to, in bootstrap requests only.

Caveats: nobody's identity is secret. Against an attacker only mutual TLS helps (`tls.py`).
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from raftcache.errors import IdentityMismatch, Overloaded, ProtocolError, RaftCacheError, UnsupportedVersion
from raftcache.ids import ClusterId, NodeId

PROTOCOL_VERSION_MIN = 1
PROTOCOL_VERSION_MAX = 1

NO_CLUSTER = ClusterId(0)
ANY_NODE = NodeId(0)
"""In `Hello.target`: whoever answers. Only for asking a bare address who it is."""

HOST_BYTES_MAX = 255
"""RFC 1035 §2.3.4: a domain name is at most 255 octets."""
EXPLANATION_BYTES_MAX = 1024

Address = tuple[str, int]


class Purpose(IntEnum):
    """What a connection is for. The values are part of the wire format."""

    LINK = 0
    """The one connection of this direction: Raft messages and requests. A newer one replaces it."""
    SNAPSHOT = 1
    """One snapshot, then the end."""
    ERRAND = 2
    """One request to an address, whoever lives there, then the end."""


class Refused(IntEnum):
    """Why an acceptor refuses. The values are part of the wire format."""

    VERSION = 1
    CLUSTER = 2
    TARGET = 3
    """The address belongs to another node than the one that was expected."""
    INCARNATION = 4
    SELF = 5
    BUSY = 6


@dataclass(slots=True, frozen=True)
class Identity:
    """Who a node is, and where it wants to be dialed."""

    cluster: ClusterId
    """`NO_CLUSTER` until the cluster is initialised."""
    node: NodeId
    incarnation: int
    """Grows each time the data directory begins another life."""
    address: Address
    frame_bytes_max: int
    """The largest payload that it accepts."""


@dataclass(slots=True, frozen=True)
class Hello:
    """The dialer's introduction."""

    identity: Identity
    target: NodeId
    purpose: Purpose
    version_min: int = PROTOCOL_VERSION_MIN
    version_max: int = PROTOCOL_VERSION_MAX


@dataclass(slots=True, frozen=True)
class HelloReply:
    """The acceptor's consent."""

    identity: Identity
    version: int


@dataclass(slots=True, frozen=True)
class Refusal:
    """The acceptor's refusal, in words for the dialer's log."""

    why: Refused
    explanation: str

    def as_error(self) -> RaftCacheError:
        match self.why:
            case Refused.VERSION:
                return UnsupportedVersion(self.explanation)
            case Refused.BUSY:
                return Overloaded(self.explanation)
            case _:
                return IdentityMismatch(self.explanation, metadata={"refused": self.why.name})


# --- The decisions ------------------------------------------------------------------------------------------------


def judge_hello(hello: Hello, mine: Identity, newest_incarnation: int) -> HelloReply | Refusal:
    """The acceptor's answer. `newest_incarnation` is the newest life of that node seen so far (0: none)."""
    theirs = hello.identity
    version = min(hello.version_max, PROTOCOL_VERSION_MAX)
    if version < max(hello.version_min, PROTOCOL_VERSION_MIN):
        return Refusal(
            Refused.VERSION,
            f"node {mine.node} speaks the peer protocol {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION_MAX}, "
            f"node {theirs.node} speaks {hello.version_min} to {hello.version_max}: upgrade the older one by single steps",
        )
    if theirs.node == mine.node and hello.purpose is not Purpose.ERRAND:
        # An errand goes to whoever lives at an address, and that may be oneself: `init` asks every first member.
        return Refusal(
            Refused.SELF,
            f"node {mine.node} was dialed by its own id: either the address is its own, or a data directory was copied",
        )
    if hello.target not in (ANY_NODE, mine.node):
        return Refusal(Refused.TARGET, f"this address belongs to node {mine.node}, not to node {hello.target}")
    if theirs.cluster != mine.cluster and NO_CLUSTER not in (theirs.cluster, mine.cluster):
        return Refusal(
            Refused.CLUSTER,
            f"node {mine.node} belongs to cluster {mine.cluster}, node {theirs.node} to cluster {theirs.cluster}",
        )
    if theirs.incarnation < newest_incarnation:
        return Refusal(
            Refused.INCARNATION,
            f"node {theirs.node} is in its life {theirs.incarnation}, and was seen in its life {newest_incarnation}: "
            "its data directory was restored from a copy; remove the node and add it as a new one",
        )
    return HelloReply(mine, version)


def judge_reply(reply: HelloReply, mine: Identity, expected: NodeId, newest_incarnation: int) -> RaftCacheError | None:
    """The dialer's check of the answer: it does not trust the acceptor to have checked. None: all is well."""
    theirs = reply.identity
    if not PROTOCOL_VERSION_MIN <= reply.version <= PROTOCOL_VERSION_MAX:
        return UnsupportedVersion(f"node {theirs.node} chose the peer protocol {reply.version}, which was not offered")
    if expected not in (ANY_NODE, theirs.node):
        return IdentityMismatch(f"node {theirs.node} answered where node {expected} was expected")
    if theirs.cluster != mine.cluster and NO_CLUSTER not in (theirs.cluster, mine.cluster):
        return IdentityMismatch(
            f"node {theirs.node} belongs to cluster {theirs.cluster}, this node to cluster {mine.cluster}"
        )
    if theirs.incarnation < newest_incarnation:
        return IdentityMismatch(
            f"node {theirs.node} answered in its life {theirs.incarnation}, and was seen in its life {newest_incarnation}: "
            "its data directory was restored from a copy; remove the node and add it as a new one"
        )
    return None


def same_cluster(mine: Identity, theirs: Identity) -> bool:
    """Whether both are initialised, in one cluster; otherwise only bootstrap requests pass."""
    return mine.cluster == theirs.cluster != NO_CLUSTER


# --- Bytes --------------------------------------------------------------------------------------------------------

_VERSIONS = struct.Struct("<HH")
_IDENTITY = struct.Struct("<QQQIHB")
"""cluster, node, incarnation, largest payload, port, length of the host."""
_TARGET = struct.Struct("<QB")
"""expected node, purpose."""


def encode_hello(hello: Hello) -> bytes:
    head = _VERSIONS.pack(hello.version_min, hello.version_max)
    return head + _TARGET.pack(hello.target, hello.purpose) + _encode_identity(hello.identity)


def decode_hello(payload: bytes) -> Hello:
    """Raises: `ProtocolError`, or `UnsupportedVersion` where the dialer speaks no version of ours."""
    try:
        version_min, version_max = _VERSIONS.unpack_from(payload)
        if version_min > PROTOCOL_VERSION_MAX:
            raise UnsupportedVersion(
                f"a peer speaks the protocol {version_min} to {version_max}; this release speaks "
                f"{PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION_MAX}: upgrade this node"
            )
        target, number = _TARGET.unpack_from(payload, _VERSIONS.size)
        identity, end = _decode_identity(payload, _VERSIONS.size + _TARGET.size)
        purpose = Purpose(number)
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"a peer's introduction is malformed: {error}") from None
    # A newer release that still speaks our version may say more; we need not understand it.
    if end != len(payload) and version_max <= PROTOCOL_VERSION_MAX:
        raise ProtocolError(f"a peer's introduction ends at byte {end} of {len(payload)}")
    return Hello(identity, NodeId(target), purpose, version_min, version_max)


def encode_hello_reply(reply: HelloReply) -> bytes:
    return _VERSIONS.pack(reply.version, 0) + _encode_identity(reply.identity)


def decode_hello_reply(payload: bytes) -> HelloReply:
    """Raises: `ProtocolError`."""
    try:
        version, _ = _VERSIONS.unpack_from(payload)
        identity, end = _decode_identity(payload, _VERSIONS.size)
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"a peer's answer to the introduction is malformed: {error}") from None
    if end != len(payload):
        raise ProtocolError(f"a peer's answer to the introduction ends at byte {end} of {len(payload)}")
    return HelloReply(identity, version)


def encode_refusal(refusal: Refusal) -> bytes:
    return bytes([refusal.why]) + refusal.explanation.encode()[:EXPLANATION_BYTES_MAX]


def decode_refusal(payload: bytes) -> Refusal:
    """Raises: `ProtocolError`."""
    try:
        why = Refused(payload[0])
    except (IndexError, ValueError):
        raise ProtocolError("a peer refused for no reason that is known here") from None
    return Refusal(why, payload[1:].decode(errors="replace"))


def _encode_identity(identity: Identity) -> bytes:
    host, port = identity.address
    name = host.encode()
    assert len(name) <= HOST_BYTES_MAX, f"a host name of {len(name)} bytes; the configuration allows {HOST_BYTES_MAX}"
    numbers = (identity.cluster, identity.node, identity.incarnation, identity.frame_bytes_max, port, len(name))
    return _IDENTITY.pack(*numbers) + name


def _decode_identity(payload: bytes, start: int) -> tuple[Identity, int]:
    cluster, node, incarnation, frame_bytes_max, port, size = _IDENTITY.unpack_from(payload, start)
    start += _IDENTITY.size
    end = start + size
    if end > len(payload):
        raise ValueError(f"a host name ends at byte {end} of {len(payload)}")
    if node == ANY_NODE:
        raise ValueError("a node has the id 0")
    host = payload[start:end].decode()
    return Identity(ClusterId(cluster), NodeId(node), incarnation, (host, port), frame_bytes_max), end
