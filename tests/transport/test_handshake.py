"""Who may speak to whom: every way in which two nodes can be the wrong ones for each other."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftcache.errors import IdentityMismatch, Overloaded, ProtocolError, UnsupportedVersion
from raftcache.ids import ClusterId, NodeId
from raftcache.transport.handshake import (
    ANY_NODE,
    NO_CLUSTER,
    PROTOCOL_VERSION_MAX,
    Hello,
    HelloReply,
    Identity,
    Purpose,
    Refusal,
    Refused,
    decode_hello,
    decode_hello_reply,
    decode_refusal,
    encode_hello,
    encode_hello_reply,
    encode_refusal,
    judge_hello,
    judge_reply,
    same_cluster,
)

MINE = Identity(ClusterId(70), NodeId(1), 5, ("127.0.0.1", 7401), 8 << 20)
THEIRS = Identity(ClusterId(70), NodeId(2), 3, ("127.0.0.1", 7411), 8 << 20)
HELLO = Hello(THEIRS, NodeId(1), Purpose.LINK)

identities = st.builds(
    Identity,
    cluster=st.integers(0, 2**63 - 1).map(ClusterId),
    node=st.integers(1, 2**63 - 1).map(NodeId),
    incarnation=st.integers(0, 2**63 - 1),
    address=st.tuples(st.text(max_size=60), st.integers(0, 65535)),
    frame_bytes_max=st.integers(0, 2**32 - 1),
)


def test_right_node_of_the_right_cluster_is_welcome() -> None:
    """The usual case: the reply carries the acceptor's own identity."""
    assert judge_hello(HELLO, MINE, newest_incarnation=3) == HelloReply(MINE, PROTOCOL_VERSION_MAX)
    assert judge_reply(HelloReply(THEIRS, 1), MINE, NodeId(2), newest_incarnation=3) is None


@pytest.mark.parametrize(
    ("hello", "why", "words"),
    [
        (replace(HELLO, identity=replace(THEIRS, cluster=ClusterId(71))), Refused.CLUSTER, "belongs to cluster 70"),
        (replace(HELLO, target=NodeId(9)), Refused.TARGET, "belongs to node 1, not to node 9"),
        (replace(HELLO, identity=replace(THEIRS, incarnation=2)), Refused.INCARNATION, "restored from a copy"),
        (replace(HELLO, identity=replace(THEIRS, node=NodeId(1))), Refused.SELF, "dialed by its own id"),
        (replace(HELLO, version_min=2, version_max=3), Refused.VERSION, "speaks 2 to 3: upgrade the older one"),
        (replace(HELLO, version_min=0, version_max=0), Refused.VERSION, "speaks 0 to 0"),
    ],
    ids=["cluster", "target", "incarnation", "self", "newer version", "older version"],
)
def test_wrong_dialer_is_refused_with_the_reason(hello: Hello, why: Refused, words: str) -> None:
    """Each mismatch has its code, and words that an operator can act on."""
    verdict = judge_hello(hello, MINE, newest_incarnation=3)
    assert isinstance(verdict, Refusal)
    assert verdict.why is why
    assert words in verdict.explanation


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (HelloReply(replace(THEIRS, cluster=ClusterId(71)), 1), IdentityMismatch),
        (HelloReply(replace(THEIRS, node=NodeId(9)), 1), IdentityMismatch),
        (HelloReply(replace(THEIRS, incarnation=2), 1), IdentityMismatch),
        (HelloReply(THEIRS, 2), UnsupportedVersion),
        (HelloReply(THEIRS, 0), UnsupportedVersion),
    ],
    ids=["cluster", "node", "incarnation", "newer version", "older version"],
)
def test_wrong_acceptor_is_left(reply: HelloReply, error: type) -> None:
    """The dialer checks too: an acceptor that checks nothing gets no Raft messages either."""
    assert type(judge_reply(reply, MINE, NodeId(2), newest_incarnation=3)) is error


def test_newer_life_of_a_node_is_welcome() -> None:
    """A restart is not a mismatch."""
    assert isinstance(judge_hello(HELLO, MINE, newest_incarnation=0), HelloReply)


def test_release_that_also_speaks_newer_versions_is_welcome() -> None:
    """During an upgrade the common version is spoken, and what a newer HELLO says besides is ignored."""
    hello = replace(HELLO, version_max=9)
    assert judge_hello(hello, MINE, newest_incarnation=0) == HelloReply(MINE, 1)
    assert decode_hello(encode_hello(hello) + b"new fields") == hello
    with pytest.raises(ProtocolError):
        decode_hello(encode_hello(HELLO) + b"new fields")


def test_release_without_a_common_version_is_told_before_the_rest_is_read() -> None:
    """Even if the newer HELLO is laid out otherwise behind its versions."""
    with pytest.raises(UnsupportedVersion, match="speaks the protocol 2 to 9"):
        decode_hello(b"\x02\x00\x09\x00whatever")


@pytest.mark.parametrize(("mine", "theirs"), [(NO_CLUSTER, 70), (70, NO_CLUSTER), (NO_CLUSTER, NO_CLUSTER)])
def test_node_without_a_cluster_may_only_bootstrap(mine: int, theirs: int) -> None:
    """It is let in, for `init` and `join`, but the two do not count as one cluster."""
    me, them = replace(MINE, cluster=ClusterId(mine)), replace(THEIRS, cluster=ClusterId(theirs))
    hello = Hello(them, ANY_NODE, Purpose.ERRAND)
    assert isinstance(judge_hello(hello, me, newest_incarnation=0), HelloReply)
    assert judge_reply(HelloReply(them, 1), me, ANY_NODE, newest_incarnation=0) is None
    assert not same_cluster(me, them)


def test_refusals_become_the_errors_that_the_dialer_reports() -> None:
    """The class survives the wire as well as the words."""
    for why, error in (
        (Refused.VERSION, UnsupportedVersion),
        (Refused.BUSY, Overloaded),
        (Refused.CLUSTER, IdentityMismatch),
        (Refused.TARGET, IdentityMismatch),
    ):
        refusal = decode_refusal(encode_refusal(Refusal(why, "because")))
        assert type(refusal.as_error()) is error
        assert refusal.as_error().message == "because"


@given(identities, st.integers(0, 2**63 - 1), st.sampled_from(Purpose))
def test_introductions_survive_the_wire(identity: Identity, target: int, purpose: Purpose) -> None:
    """Both sides of the handshake round-trip."""
    hello = Hello(identity, NodeId(target), purpose)
    assert decode_hello(encode_hello(hello)) == hello
    reply = HelloReply(identity, 1)
    assert decode_hello_reply(encode_hello_reply(reply)) == reply


@given(st.data())
def test_malformed_introductions_are_refused(data: st.DataObject) -> None:
    """Cut or random bytes raise the declared errors and nothing else."""
    good = encode_hello(HELLO)
    bad = data.draw(st.one_of(st.binary(max_size=80), st.integers(0, len(good) - 1).map(lambda end: good[:end])))
    for decode in (decode_hello, decode_hello_reply, decode_refusal):
        try:
            decode(bad)
        except (ProtocolError, UnsupportedVersion):
            pass
