"""The queues behind ReadIndex."""

from raftcache.ids import NO_REPLICA, Index, ReplicaId
from raftcache.raft.reads import ForwardedReads, ReadQueue


def test_reads_of_one_turn_share_a_round() -> None:
    """One position confirms all reads that waited when it was opened, and no later one."""
    queue = ReadQueue()
    queue.add(NO_REPLICA, 1)
    queue.add(ReplicaId(2), 7)
    first = queue.open_round(index=Index(10), tick=0)
    queue.add(NO_REPLICA, 2)
    second = queue.open_round(index=Index(11), tick=1)
    rounds = queue.confirm(first)
    assert [(Index(10), [1, 7])] == [(r.index, [read.context for read in r.reads]) for r in rounds]
    assert second == queue.pending_position
    assert 1 == len(queue)


def test_later_position_confirms_all_earlier_rounds() -> None:
    """Who echoed a later position did so after every earlier round was opened."""
    queue = ReadQueue()
    for context in range(3):
        queue.add(NO_REPLICA, context)
        queue.open_round(index=Index(context), tick=0)
    assert [0, 1, 2] == [r.index for r in queue.confirm(3)]
    assert (0, 0) == (len(queue), queue.pending_position)


def test_position_is_never_used_twice() -> None:
    """Dropping the queue, as with every change of role, does not bring positions back."""
    queue = ReadQueue()
    queue.add(NO_REPLICA, 1)
    before = queue.open_round(index=Index(1), tick=0)
    queue.drop()
    queue.add(NO_REPLICA, 1)
    assert before < queue.open_round(index=Index(1), tick=0)


def test_dropping_names_the_own_reads_in_order() -> None:
    """Reads of followers are theirs to give up."""
    queue = ReadQueue()
    queue.add(NO_REPLICA, 1)
    queue.add(ReplicaId(3), 99)
    queue.open_round(index=Index(1), tick=0)
    queue.add(NO_REPLICA, 2)
    assert [1, 2] == queue.drop()
    assert (0, False) == (len(queue), queue.waiting)


def test_forwarded_reads_are_answered_by_position() -> None:
    """An answer to an unknown position, such as one of the previous life, answers nothing; a repeated one neither."""
    reads = ForwardedReads(first_position=1_000)
    reads.add(1)
    reads.add(2)
    first = reads.open_batch(tick=0)
    reads.add(3)
    second = reads.open_batch(tick=0)
    assert [] == reads.answer(1)
    assert [3] == reads.answer(second)
    assert [1, 2] == reads.answer(first)
    assert [] == reads.answer(first)
    assert 0 == len(reads)


def test_forwarded_reads_expire() -> None:
    """A request that is not answered in time is given up; younger ones wait on."""
    reads = ForwardedReads(first_position=0)
    reads.add(1)
    reads.open_batch(tick=5)
    reads.add(2)
    reads.open_batch(tick=6)
    assert [] == reads.expire(sent_before=5)
    assert [1] == reads.expire(sent_before=6)
    assert [2] == reads.drop()
