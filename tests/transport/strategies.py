"""Hypothesis strategies for Raft messages of every kind."""

from hypothesis import strategies as st

from raftcache.ids import Index, ReplicaId, ShardId, Term
from raftcache.raft.messages import (
    Append,
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    RequestVote,
    SnapshotMeta,
    SnapshotRequest,
    TimeoutNow,
    VoteReply,
)

u64 = st.integers(0, 2**64 - 1)
u63 = st.integers(0, 2**63)
shards = st.integers(0, 2**32 - 1).map(ShardId)
replicas = u64.map(ReplicaId)
terms = u64.map(Term)
indexes = u63.map(Index)
header = {"to": replicas, "from_": replicas, "term": terms}


@st.composite
def appends(draw: st.DrawFn) -> Append:
    previous = draw(indexes)
    bodies = draw(st.lists(st.tuples(terms, st.sampled_from(EntryKind), st.binary(max_size=200)), max_size=6))
    entries = [
        Entry(term, Index(previous + 1 + offset), kind, data) for offset, (term, kind, data) in enumerate(bodies)
    ]
    return Append(draw(replicas), draw(replicas), draw(terms), previous, draw(terms), draw(indexes), entries)


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    members = sorted(draw(st.sets(st.integers(1, 2**64 - 1).map(ReplicaId), min_size=4, max_size=12)))
    a, b, c = sorted(draw(st.lists(st.integers(1, len(members)), min_size=3, max_size=3)))
    outgoing = tuple(members[a:b])
    return Configuration(
        voters=tuple(members[:a]),
        voters_outgoing=outgoing,
        learners=tuple(members[b:c]),
        learners_next=outgoing[: draw(st.integers(0, len(outgoing)))],
    )


def _meta() -> st.SearchStrategy[SnapshotMeta]:
    return st.builds(SnapshotMeta, index=indexes, term=terms, configuration=configurations())


install_snapshots = st.builds(InstallSnapshot, **header, meta=_meta())

MESSAGES: dict[type, st.SearchStrategy[Message]] = {
    Append: appends(),
    AppendReply: st.builds(
        AppendReply, **header, index=indexes, rejected=st.booleans(), hint_index=indexes, hint_term=terms
    ),
    Heartbeat: st.builds(Heartbeat, **header, commit=indexes, read_position=u64, level=st.booleans()),
    HeartbeatReply: st.builds(HeartbeatReply, **header, read_position=u64),
    RequestVote: st.builds(
        RequestVote, **header, last_index=indexes, last_term=terms, pre=st.booleans(), transfer=st.booleans()
    ),
    VoteReply: st.builds(VoteReply, **header, granted=st.booleans(), pre=st.booleans()),
    InstallSnapshot: install_snapshots,
    TimeoutNow: st.builds(TimeoutNow, **header),
    ReadIndexRequest: st.builds(ReadIndexRequest, **header, context=u64),
    ReadIndexReply: st.builds(ReadIndexReply, **header, context=u64, index=indexes),
    SnapshotRequest: st.builds(SnapshotRequest, **header, min_index=indexes),
}

messages: st.SearchStrategy[Message] = st.one_of(list(MESSAGES.values()))
sections = st.lists(st.tuples(shards, messages), max_size=5)
