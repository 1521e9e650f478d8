"""The algebra of memberships: which configuration follows from which, and its bytes in the log.

Rules of this file:
- pure functions over the frozen `Configuration`; nothing here knows terms, logs or roles;
- a change of at most one voter is *simple* (thesis §4.1: any two majorities overlap); a larger one goes through
  a *joint* configuration (thesis §4.3), which the leader leaves on its own once it is committed;
- every configuration that leaves this file passed `check`.

The result of a change is the same whichever way is taken: `leave_joint(joint)` equals what a sequence of simple changes
would have produced. An outgoing voter that shall stay as a learner waits in `learners_next`, because one replica must
not be a voter of one half and a learner at the same time.

Caveat: whether a learner has caught up before it is promoted is for the node to check; here ids are only ids.
"""

import struct
from dataclasses import dataclass

from raftcache.errors import Corruption, PreconditionFailed, UnsupportedVersion
from raftcache.ids import ReplicaId
from raftcache.raft.messages import Configuration

_VERSION = 1
_HEADER = struct.Struct("<BHHHH")
"""Version, then the lengths of voters, voters_outgoing, learners and learners_next; the ids follow, 8 bytes each."""

MEMBERS_MAX = 1024
"""Far above any sane group (five voters, a few learners); it bounds what a damaged or hostile record can allocate."""


@dataclass(frozen=True, slots=True)
class ConfigurationChange:
    """What an operator or the balancer wants changed. Ids must not repeat within or across the fields."""

    add_voters: tuple[ReplicaId, ...] = ()
    """Become voters: newcomers, or learners that are promoted."""
    add_learners: tuple[ReplicaId, ...] = ()
    """Become learners: newcomers, or voters that are demoted."""
    remove: tuple[ReplicaId, ...] = ()
    """Leave the group, whatever they are now."""


def is_joint(configuration: Configuration) -> bool:
    """Thesis §4.3: whether elections and commits need a majority of both halves now."""
    return bool(configuration.voters_outgoing)


def is_voter(configuration: Configuration, replica: ReplicaId) -> bool:
    """Whether the replica's vote and acknowledgement count, in either half."""
    return replica in configuration.voters or replica in configuration.voters_outgoing


def voters_of(configuration: Configuration) -> tuple[ReplicaId, ...]:
    """The voters of both halves, ascending."""
    if not configuration.voters_outgoing:
        return configuration.voters
    return _sorted({*configuration.voters, *configuration.voters_outgoing})


def members_of(configuration: Configuration) -> tuple[ReplicaId, ...]:
    """Everybody whom a leader replicates to, ascending. (`learners_next` are outgoing voters, thus members already.)"""
    return _sorted({*configuration.voters, *configuration.voters_outgoing, *configuration.learners})


def check(configuration: Configuration) -> None:
    """Asserts what must hold for every configuration. The empty one (a newcomer's) is legal.

    Invariants: tuples are ascending without duplicates; a learner is no voter of either half; `learners_next` are
    outgoing voters that do not vote in the incoming half; a group that has members has incoming voters.
    """
    voters, outgoing = configuration.voters, configuration.voters_outgoing
    learners, learners_next = configuration.learners, configuration.learners_next
    for ids in (voters, outgoing, learners, learners_next):
        assert ids == _sorted(set(ids)), f"ids must be ascending without duplicates: {ids}"
        assert all(replica > 0 for replica in ids), f"0 names nobody: {ids}"
    assert not set(learners) & {*voters, *outgoing}, f"both voter and learner: {configuration}"
    assert set(learners_next) <= set(outgoing), f"learners_next must be outgoing voters: {configuration}"
    assert not set(learners_next) & set(voters), f"learners_next must not vote in the incoming half: {configuration}"
    assert voters or not (outgoing or learners), f"members but no voters: {configuration}"


def change_configuration(current: Configuration, change: ConfigurationChange) -> Configuration:
    """The configuration to append for `change`: a simple one, or a joint one where more than one voter changes.

    Raises:
        PreconditionFailed: definite; the change contradicts itself, changes nothing, leaves no voter, or `current`
            is still joint.
    """
    if is_joint(current):
        raise PreconditionFailed("the group is in a joint configuration; it is left on its own once that is committed")
    named = [*change.add_voters, *change.add_learners, *change.remove]
    if len(named) != len(set(named)):
        raise PreconditionFailed(f"a replica is named twice: {sorted(named)}")
    if any(replica <= 0 for replica in named):
        raise PreconditionFailed(f"replica ids start at 1: {sorted(named)}")
    members = {*current.voters, *current.learners}
    if strangers := sorted(set(change.remove) - members):
        raise PreconditionFailed(f"not members, cannot be removed: {strangers}")
    if already := sorted(set(change.add_voters) & set(current.voters)):
        raise PreconditionFailed(f"voters already: {already}")
    if already := sorted(set(change.add_learners) & set(current.learners)):
        raise PreconditionFailed(f"learners already: {already}")

    voters = ({*current.voters, *change.add_voters} - {*change.remove}) - {*change.add_learners}
    learners = ({*current.learners, *change.add_learners} - {*change.remove}) - {*change.add_voters}
    if not voters:
        raise PreconditionFailed(f"no voter would be left of {list(current.voters)}")
    if voters == set(current.voters) and learners == set(current.learners):
        raise PreconditionFailed("the change changes nothing")
    if len(voters) + len(learners) + len(current.voters) > MEMBERS_MAX:
        raise PreconditionFailed(f"a group has at most {MEMBERS_MAX} members")

    if len(voters ^ set(current.voters)) <= 1:
        # Thesis §4.1: adding or removing a single voter keeps every old majority overlapping every new one.
        after = Configuration(voters=_sorted(voters), learners=_sorted(learners))
    else:
        # Thesis §4.3: more than one, so both halves decide until the joint configuration is left.
        demoted = learners & set(current.voters)
        after = Configuration(
            voters=_sorted(voters),
            voters_outgoing=current.voters,
            learners=_sorted(learners - demoted),
            learners_next=_sorted(demoted),
        )
    check(after)
    return after


def leave_joint(current: Configuration) -> Configuration:
    """Thesis §4.3: the incoming half alone; outgoing voters that were to stay become learners now."""
    assert is_joint(current), f"not joint: {current}"
    after = Configuration(voters=current.voters, learners=_sorted({*current.learners, *current.learners_next}))
    check(after)
    return after


def encode_configuration(configuration: Configuration) -> bytes:
    """The `data` of a CONFIGURATION entry, and what the state machine and checkpoints keep."""
    check(configuration)
    parts = (
        configuration.voters,
        configuration.voters_outgoing,
        configuration.learners,
        configuration.learners_next,
    )
    lengths = [len(ids) for ids in parts]
    header = _HEADER.pack(_VERSION, *lengths)
    return header + struct.pack(f"<{sum(lengths)}Q", *(replica for ids in parts for replica in ids))


def decode_configuration(data: bytes) -> Configuration:
    """The inverse of `encode_configuration`.

    Raises:
        UnsupportedVersion: written by a newer release.
        Corruption: not the bytes of any configuration.
    """
    if data[:1] and data[0] > _VERSION:
        raise UnsupportedVersion(f"a configuration of version {data[0]}; this release reads up to {_VERSION}")
    if len(data) < _HEADER.size or data[0] != _VERSION:
        raise Corruption(f"not a configuration: {data[:16]!r}")
    lengths = _HEADER.unpack_from(data)[1:]
    total = sum(lengths)
    if total > 2 * MEMBERS_MAX or len(data) != _HEADER.size + 8 * total:
        raise Corruption(f"a configuration of {total} ids in {len(data)} bytes")
    ids = [ReplicaId(value) for value in struct.unpack_from(f"<{total}Q", data, _HEADER.size)]
    parts: list[tuple[ReplicaId, ...]] = []
    for length in lengths:
        parts.append(tuple(ids[:length]))
        ids = ids[length:]
    configuration = Configuration(*parts)
    try:
        check(configuration)
    except AssertionError as error:
        raise Corruption(f"an impossible configuration: {error}") from error
    return configuration


def _sorted(ids: set[ReplicaId]) -> tuple[ReplicaId, ...]:
    return tuple(sorted(ids))
