"""What servers claim, against what clients saw: the witness check, log indexes, stale reads, sessions."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkers.histories import Shape, cas, counter_history, list_history, mutate, op, read, register_history, write
from faults.checkers import check_index_order, check_register, check_sessions, check_stale_reads, check_witness
from faults.history import Json, Op

seeds = st.integers(0, 2**32)
shapes = st.builds(
    Shape,
    operations=st.just(40),
    clients=st.integers(1, 5),
    info_rate=st.sampled_from((0.0, 0.2)),
    fail_rate=st.sampled_from((0.0, 0.2)),
    keys=st.integers(1, 2),
)

# --- Witness ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [register_history, list_history, counter_history])
@given(seed=seeds, shape=shapes)
def test_a_right_order_is_accepted(make: Callable[[random.Random, Shape], list[Op]], seed: int, shape: Shape) -> None:
    """The order in which effects happened, with unknown ones in between that nobody claims."""
    verdict = check_witness(make(random.Random(seed), shape))
    assert verdict.kind == "ok" or (make is counter_history and verdict.kind == "unknown"), verdict


@given(seed=seeds, shape=shapes)
def test_what_the_witness_check_accepts_is_linearizable(seed: int, shape: Shape) -> None:
    """Of damaged histories, too: an order that explains everything is an order."""
    rng = random.Random(seed)
    history = mutate(rng, register_history(rng, shape))
    if check_witness(history).kind == "ok":
        assert "ok" == check_register(history).kind


WRONG_CLAIMS = {
    "stale read": [write(1, 0, 10, revision=1), write(2, 20, 30, revision=2), read(1, 40, 50, revision=2)],
    "revision goes back": [write(1, 0, 10, revision=2), write(2, 20, 30, revision=1), read(2, 40, 50, revision=3)],
    "read from before": [write(1, 0, 10, revision=1), read(None, 20, 30, revision=0)],
    "two at one revision": [write(1, 0, 10, revision=1), write(2, 0, 10, revision=1)],
    "swap of what was not there": [write(1, 0, 10, revision=1), cas(2, 3, 20, 30, revision=2)],
    "lost unknown write": [
        *(write(1, 0, None), read(1, 10, 20, revision=1), read(None, 30, 40, revision=1)),
    ],
    "unknown write that began later": [read(1, 0, 10, revision=1), write(1, 20, None)],
    "by index": [write(1, 0, 10, index=5), write(2, 20, 30, index=9), read(1, 40, 50, index=9)],
    "list without its element": [
        op("append", 0, 10, argument=1, revision=1),
        op("list", 20, 30, result=[], revision=1),
    ],
    "increment counted twice": [
        op("increment", 0, 10, argument=1, result=1, revision=1),
        op("read", 20, 30, result=2, revision=1),
    ],
}


@pytest.mark.parametrize("name", WRONG_CLAIMS)
def test_a_wrong_order_is_found(name: str) -> None:
    """Each with an example of few operations."""
    verdict = check_witness(WRONG_CLAIMS[name])
    assert "violation" == verdict.kind
    assert 1 <= len(verdict.counterexample) <= 5


def test_claims_that_contradict_each_other_are_found_where_answers_are_possible() -> None:
    """Another order would do, and yet no correct server claims this one."""
    history = [write(1, 0, 10, revision=2), write(2, 20, 30, revision=1)]
    assert "ok" == check_register(history).kind
    assert "violation" == check_witness(history).kind


def test_without_claims_there_is_no_witness() -> None:
    """Unknown, not ok; and two writes at one index without a revision have no order either."""
    assert "unknown" == check_witness([write(1, 0, 10)]).kind
    assert "unknown" == check_witness([write(1, 0, 10, index=4), write(2, 0, 10, index=4)]).kind
    assert "unknown" == check_index_order([write(1, 0, 10)]).kind


def test_a_deletion_of_nothing_names_the_revision_that_deleted_it() -> None:
    """It changed nothing, so it has no revision of its own."""
    history = [write(1, 0, 10, revision=1), write(None, 20, 30, revision=2), write(None, 40, 50, revision=2)]
    assert "ok" == check_witness(history).kind
    later = [read(None, 0, 10, revision=7), write(None, 20, 30, revision=7), read(None, 40, 50, revision=7)]
    assert "ok" == check_witness(later).kind
    found = [write(1, 0, 10, revision=6), read(None, 15, 40, revision=7), write(None, 20, 30, revision=7)]
    assert "ok" == check_witness(found).kind
    assert "violation" == check_witness([found[0], read(None, 12, 15, revision=7), found[2]]).kind


def test_a_read_of_a_revision_cannot_see_an_unknown_write_that_began_after_it() -> None:
    """Of those that share a revision real time decides, for the unknown ones among them, too."""
    history = [write(1, 0, 10, revision=1), read(2, 20, 30, revision=1), write(2, 40, None)]
    assert "violation" == check_witness(history).kind


@pytest.mark.parametrize("keys", [("x", "x"), ("x", "y")])
def test_a_log_index_that_goes_back_is_found(keys: tuple[str, str]) -> None:
    """Also between keys, where they name the same shard."""
    shard: Json = {"shard": 3}
    one = write(1, 0, 10, index=7, key=keys[0], extra=shard)
    other = write(2, 20, 30, index=6, key=keys[1], extra=shard)
    assert "violation" == check_index_order([one, other]).kind
    assert "violation" == check_index_order([one, replace(other, index=7)]).kind
    assert "ok" == check_index_order([one, replace(other, index=8)]).kind
    assert "ok" == check_index_order([one, replace(other, op="read", index=7)]).kind
    assert "ok" == check_index_order([one, replace(other, start_ns=9)]).kind


def test_indexes_of_different_shards_do_not_compare() -> None:
    """Each shard has a log of its own."""
    one = write(1, 0, 10, index=7, key="x", extra={"shard": 1})
    assert "ok" == check_index_order([one, write(2, 20, 30, index=1, key="y", extra={"shard": 2})]).kind


# --- Stale reads ------------------------------------------------------------------------------------------------------


def stale(value: Json, start: int, end: int, node: str = "n1", **fields: object) -> Op:
    return op("stale_read", start, end, result=value, node=node, **{"extra": {"incarnation": 1}, **fields})


WRITES = [write(1, 0, 10), write(2, 20, 30)]

WRONG_STALE_READS = {
    "never written": [*WRITES, stale(9, 40, 50)],
    "refused": [*WRITES, write(3, 32, 34, status="fail"), stale(3, 40, 50)],
    "from the future": [*WRITES, stale(3, 40, 50), write(3, 60, 70)],
    "back to an overwritten value": [*WRITES, stale(2, 40, 50), stale(1, 60, 70)],
    "back to the beginning": [*WRITES, stale(1, 40, 50), stale(None, 60, 70)],
    "back by revision": [*WRITES, stale(2, 40, 50, revision=2), stale(2, 60, 70, revision=1)],
    "back by index": [*WRITES, stale(2, 40, 50, index=2), stale(2, 60, 70, index=1)],
}


@pytest.mark.parametrize("name", WRONG_STALE_READS)
def test_a_wrong_stale_read_is_found(name: str) -> None:
    """Old it may be, but not wrong, and not older than before."""
    assert "violation" == check_stale_reads(WRONG_STALE_READS[name]).kind


RIGHT_STALE_READS = {
    "old": [*WRITES, stale(1, 40, 50), stale(None, 40, 50, "n2")],
    "unknown write": [*WRITES, write(3, 35, None), stale(3, 40, 50)],
    "another node is older": [*WRITES, stale(2, 40, 50), stale(1, 60, 70, "n2")],
    "a new life is older": [
        *(*WRITES, stale(2, 40, 50, extra={"incarnation": 1}), stale(1, 60, 70, extra={"incarnation": 2})),
    ],
    "nobody knows which life": [*WRITES, stale(2, 40, 50, extra={}), stale(1, 60, 70, extra={})],
    "one was refused": [*WRITES, stale(2, 40, 50), stale(None, 60, 70, status="fail")],
    "concurrent reads": [*WRITES, stale(2, 40, 70), stale(1, 60, 80)],
    "concurrent writes": [write(1, 0, 50), write(2, 0, 50), stale(2, 60, 70), stale(1, 80, 90)],
}


@pytest.mark.parametrize("name", RIGHT_STALE_READS)
def test_a_stale_read_may_be_old(name: str) -> None:
    """What is not certainly wrong is no violation."""
    assert "ok" == check_stale_reads(RIGHT_STALE_READS[name]).kind


def test_stale_reads_of_unknown_lives_are_not_compared() -> None:
    """While nodes join and leave, two reads at one gateway may be answered by two replicas: the later one may be older."""
    verdict = check_stale_reads([*WRITES, stale(2, 40, 50, extra={}), stale(1, 60, 70, extra={})])
    assert "ok" == verdict.kind
    assert "which lives answered is not known" in verdict.reason


@pytest.mark.parametrize("status", ["ok", "fail", "info"])
def test_stale_reads_leave_the_register_to_be_judged(status: str) -> None:
    """They say nothing about it, so they are no reason to say nothing either."""
    old = stale(1, 60, 70, status=status)
    assert "ok" == check_register([*WRITES, old, read(2, 80, 90)]).kind
    assert "violation" == check_register([*WRITES, old, read(1, 80, 90)]).kind


def test_without_stale_reads_there_is_nothing_to_say() -> None:
    """Nothing checked is unknown."""
    assert "unknown" == check_stale_reads(WRITES).kind


# --- Sessions ---------------------------------------------------------------------------------------------------------


def numbered(seq: int, start: int, end: int | None, *, result: Json = None, **fields: object) -> Op:
    chosen = {"client": 1, **fields}
    return op("increment", start, end, argument=1, result=result, extra={"session": 5, "seq": seq}, **chosen)


WRONG_SESSIONS = {
    "another answer": [numbered(1, 0, 10, result=1), numbered(1, 20, 30, result=2)],
    "applied twice": [numbered(1, 0, 10, result=1, revision=1), numbered(1, 20, 30, result=1, revision=2)],
    "against their order": [numbered(1, 0, 10, revision=5), numbered(2, 20, 30, revision=4)],
    "own write not seen": [numbered(1, 0, 10, revision=5), read(None, 20, 30, client=1, revision=4)],
}


@pytest.mark.parametrize("name", WRONG_SESSIONS)
def test_a_broken_session_is_found(name: str) -> None:
    """Each with the two operations that contradict each other."""
    verdict = check_sessions(WRONG_SESSIONS[name])
    assert "violation" == verdict.kind
    assert 2 == len(verdict.counterexample)


def test_a_session_that_repeats_itself_is_right() -> None:
    """An unknown attempt and two equal answers are one operation."""
    attempts = [
        numbered(1, 0, None),
        numbered(1, 20, 30, result=1, revision=1),
        numbered(1, 40, 50, result=1, revision=1),
    ]
    verdict = check_sessions([*attempts, numbered(2, 60, 70, result=2, revision=2)])
    assert "ok" == verdict.kind
    assert 2 == verdict.facts["numbers"]


def test_without_sessions_there_is_no_verdict() -> None:
    """Nothing checked is unknown."""
    assert "unknown" == check_sessions(WRITES).kind
