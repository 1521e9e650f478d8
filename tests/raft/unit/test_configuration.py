"""The algebra of memberships, and the bytes of a configuration."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.errors import Corruption, PreconditionFailed, UnsupportedVersion
from raftcache.ids import ReplicaId
from raftcache.raft.configuration import (
    ConfigurationChange,
    change_configuration,
    check,
    decode_configuration,
    encode_configuration,
    is_joint,
    leave_joint,
    members_of,
    voters_of,
)
from raftcache.raft.messages import Configuration

IDS = range(1, 7)
THREE = Configuration(voters=(ReplicaId(1), ReplicaId(2), ReplicaId(3)))


def ids(*numbers: int) -> tuple[ReplicaId, ...]:
    """Replica ids as they stand."""
    return tuple(ReplicaId(number) for number in numbers)


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    """Any legal configuration that is not joint."""
    roles = {number: draw(st.sampled_from(["voter", "learner", "none"])) for number in IDS}
    voters = ids(*[n for n in IDS if roles[n] == "voter"]) or ids(7)
    return Configuration(voters=voters, learners=ids(*[n for n in IDS if roles[n] == "learner"]))


@st.composite
def changes(draw: st.DrawFn) -> ConfigurationChange:
    """Any change that names nobody twice."""
    wishes = {number: draw(st.sampled_from(["voter", "learner", "out", "-", "-"])) for number in IDS}
    return ConfigurationChange(
        add_voters=ids(*[n for n in IDS if wishes[n] == "voter"]),
        add_learners=ids(*[n for n in IDS if wishes[n] == "learner"]),
        remove=ids(*[n for n in IDS if wishes[n] == "out"]),
    )


def relevant(current: Configuration, change: ConfigurationChange) -> ConfigurationChange:
    """The change without what is so already, which would be refused."""
    members = members_of(current)
    return ConfigurationChange(
        add_voters=tuple(r for r in change.add_voters if r not in current.voters),
        add_learners=tuple(r for r in change.add_learners if r not in current.learners),
        remove=tuple(r for r in change.remove if r in members),
    )


@settings(max_examples=200, deadline=None)
@given(configurations(), changes())
def test_a_change_ends_where_single_steps_would(current: Configuration, change: ConfigurationChange) -> None:
    """Simple or joint, the outcome is each named replica in its new place and all others where they were."""
    change = relevant(current, change)
    voters = {*current.voters, *change.add_voters} - {*change.add_learners, *change.remove}
    learners = {*current.learners, *change.add_learners} - {*change.add_voters, *change.remove}
    try:
        after = change_configuration(current, change)
    except PreconditionFailed:
        assert not voters or (voters == {*current.voters} and learners == {*current.learners})
        return
    check(after)
    changed = len({*current.voters} ^ voters)
    assert is_joint(after) == (changed > 1)
    if is_joint(after):
        # Thesis §4.3: the old voters keep their say until the joint configuration is left.
        assert current.voters == after.voters_outgoing
        assert {*current.voters, *voters} == {*voters_of(after)}
        assert {*members_of(current), *voters, *learners} - {*change.remove} - {*current.voters} <= {*members_of(after)}
        after = leave_joint(after)
    assert Configuration(voters=tuple(sorted(voters)), learners=tuple(sorted(learners))) == after


@settings(max_examples=100, deadline=None)
@given(configurations(), changes())
def test_bytes_of_a_configuration_round_trip(current: Configuration, change: ConfigurationChange) -> None:
    """What is decoded is what was encoded, joint or not."""
    assert current == decode_configuration(encode_configuration(current))
    try:
        after = change_configuration(current, relevant(current, change))
    except PreconditionFailed:
        return
    assert after == decode_configuration(encode_configuration(after))


@settings(max_examples=100, deadline=None)
@given(configurations(), st.data())
def test_damaged_bytes_are_refused_or_another_legal_configuration(current: Configuration, data: st.DataObject) -> None:
    """Cut or changed bytes raise an operating error, never anything else."""
    encoded = encode_configuration(current)
    at = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises((Corruption, UnsupportedVersion)):
        decode_configuration(encoded[:at])
    with pytest.raises(Corruption):
        decode_configuration(encoded + b"\0")
    damaged = bytearray(encoded)
    damaged[at] ^= data.draw(st.integers(1, 255))
    try:
        check(decode_configuration(bytes(damaged)))
    except (Corruption, UnsupportedVersion):
        pass


def test_newer_version_of_a_configuration_is_named() -> None:
    """Bytes of a newer release say so, and are not taken for damage."""
    with pytest.raises(UnsupportedVersion, match="version 9"):
        decode_configuration(b"\x09" + encode_configuration(THREE)[1:])


def test_empty_configuration_of_a_newcomer_is_legal() -> None:
    """A replica that waits for its first snapshot has no members."""
    empty = Configuration()
    check(empty)
    assert empty == decode_configuration(encode_configuration(empty))
    assert () == members_of(empty)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (ConfigurationChange(), "changes nothing"),
        (ConfigurationChange(add_voters=ids(1)), "voters already"),
        (ConfigurationChange(remove=ids(9)), "not members"),
        (ConfigurationChange(add_voters=ids(4), remove=ids(4)), "named twice"),
        (ConfigurationChange(add_voters=ids(4, 4)), "named twice"),
        (ConfigurationChange(remove=ids(1, 2, 3)), "no voter would be left"),
        (ConfigurationChange(add_voters=ids(0)), "start at 1"),
    ],
)
def test_senseless_change_is_refused_with_its_reason(change: ConfigurationChange, reason: str) -> None:
    """A contradiction, a change that is none, and an empty group are refused before anything is appended."""
    with pytest.raises(PreconditionFailed, match=reason):
        change_configuration(THREE, change)


def test_joint_configuration_admits_no_further_change() -> None:
    """Until the joint configuration is left, nothing else may change."""
    joint = change_configuration(THREE, ConfigurationChange(add_voters=ids(4, 5)))
    with pytest.raises(PreconditionFailed, match="joint"):
        change_configuration(joint, ConfigurationChange(remove=ids(4)))


def test_demoted_voter_waits_until_the_joint_configuration_is_left() -> None:
    """A replica is never voter of one half and learner at the same time."""
    joint = change_configuration(THREE, ConfigurationChange(add_voters=ids(4), add_learners=ids(1)))
    assert Configuration(voters=ids(2, 3, 4), voters_outgoing=ids(1, 2, 3), learners_next=ids(1)) == joint
    assert Configuration(voters=ids(2, 3, 4), learners=ids(1)) == leave_joint(joint)


@pytest.mark.parametrize(
    "broken",
    [
        Configuration(voters=ids(2, 1)),
        Configuration(voters=ids(1, 1)),
        Configuration(voters=ids(1), learners=ids(1)),
        Configuration(voters=ids(1), voters_outgoing=ids(2), learners=ids(2)),
        Configuration(voters=ids(1), learners_next=ids(2)),
        Configuration(voters=ids(1, 2), voters_outgoing=ids(1, 2), learners_next=ids(2)),
        Configuration(learners=ids(1)),
        Configuration(voters=ids(0)),
    ],
)
def test_impossible_configuration_is_noticed(broken: Configuration) -> None:
    """Each invariant of a configuration can fail."""
    with pytest.raises(AssertionError):
        check(broken)
