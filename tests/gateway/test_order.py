"""Operations on one slot keep their order."""

from hypothesis import given
from hypothesis import strategies as st

from raftcache.gateway.order import SlotOrder
from raftcache.ids import Slot
from raftcache.kv.operations import Get, Put
from raftcache.node.api import Request

A, B = Slot(1), Slot(2)


def write(slot: Slot = A, token: object = None) -> Request:
    return Request(token, Put(b"k", b"v"), slot, 0)


def read(slot: Slot = A, token: object = None) -> Request:
    return Request(token, Get(b"k"), slot, 0)


def test_slots_do_not_wait_for_each_other() -> None:
    """Requests of different slots are ready at once, and free to be tried again by the node."""
    order = SlotOrder()
    first, second = write(A), read(B)
    order.admit(first, writes=True)
    order.admit(second, writes=False)
    assert order.take_ready() == [first, second]
    assert (False, False) == (first.ordered, second.ordered)


def test_a_read_waits_for_the_write_before_it() -> None:
    """A read of a slot is handed out only when the writes before it are answered."""
    order = SlotOrder()
    before, after = write(), read()
    order.admit(before, writes=True)
    order.admit(after, writes=False)
    assert order.take_ready() == [before]
    order.answered(A)
    assert order.take_ready() == [after]


def test_a_write_waits_for_the_reads_before_it() -> None:
    """A write is handed out when the last of the reads before it is answered."""
    order = SlotOrder()
    reads = [read(), read()]
    for request in reads:
        order.admit(request, writes=False)
    last = write()
    order.admit(last, writes=True)
    assert order.take_ready() == reads
    order.answered(A)
    assert order.take_ready() == []
    order.answered(A)
    assert order.take_ready() == [last]


def test_writes_that_come_together_go_together_and_in_order() -> None:
    """Several writes of one slot in one turn are all ready, and forbid the node to try one of them again."""
    order = SlotOrder()
    writes = [write(), write(), write()]
    for request in writes:
        order.admit(request, writes=True)
    assert order.take_ready() == writes
    assert [True, True, True] == [request.ordered for request in writes]


def test_a_lone_write_may_be_tried_again_and_is_not_overtaken() -> None:
    """A write that is in flight alone stays free; those that come later wait, then go together."""
    order = SlotOrder()
    lone = write()
    order.admit(lone, writes=True)
    assert order.take_ready() == [lone]
    later = [write(), write()]
    for request in later:
        order.admit(request, writes=True)
    assert order.take_ready() == []
    order.answered(A)
    assert order.take_ready() == later
    assert [False, True, True] == [request.ordered for request in (lone, *later)]
    joining = write()
    order.admit(joining, writes=True)
    assert order.take_ready() == [joining], "ordered writes let further ones join"


def test_nothing_is_handed_out_after_the_stream_is_over() -> None:
    """What waited when the stream ended is dropped."""
    order = SlotOrder()
    order.admit(write(), writes=True)
    order.admit(read(), writes=False)
    order.take_ready()
    order.forget_waiting()
    order.answered(A)
    assert order.take_ready() == []


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("admit"), st.integers(0, 2), st.booleans()),
            st.tuples(st.just("hand over"), st.just(0), st.just(False)),
            st.tuples(st.just("answer"), st.integers(0, 50), st.just(False)),
        ),
        max_size=60,
    )
)
def test_effects_on_a_slot_are_in_the_order_of_admission(steps: list[tuple[str, int, bool]]) -> None:
    """Whatever comes when: reads and writes of a slot are never in flight together, free writes are alone, all get out in order."""
    order = SlotOrder()
    in_flight: list[tuple[Request, bool]] = []
    admitted: dict[Slot, list[int]] = {}
    handed: dict[Slot, list[int]] = {}
    number = 0

    def hand_over() -> None:
        for request in order.take_ready():
            assert isinstance(request.token, tuple)
            in_flight.append((request, request.token[1]))
            handed.setdefault(request.slot, []).append(request.token[0])
        for slot in admitted:
            kinds = [(request, writes) for request, writes in in_flight if request.slot == slot]
            assert len({writes for _, writes in kinds}) <= 1, f"reads and writes of slot {slot} are in flight together"
            free_writes = [request for request, writes in kinds if writes and not request.ordered]
            assert not free_writes or len(kinds) == 1, f"a write of slot {slot} could be tried again behind another"

    def answer(position: int) -> None:
        request, _ = in_flight.pop(position % len(in_flight))
        order.answered(request.slot)

    for what, argument, writes in steps:
        if what == "admit":
            number += 1
            slot = Slot(argument)
            admitted.setdefault(slot, []).append(number)
            order.admit((write if writes else read)(slot, (number, writes)), writes=writes)
        elif what == "hand over":
            hand_over()
        elif in_flight:
            answer(argument)
    hand_over()
    while in_flight:
        answer(0)
        hand_over()
    assert handed == admitted
