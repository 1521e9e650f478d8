"""What a leader knows of one follower, and how much it may send it.

Rules of this file:
- plain state and its legal transitions; nothing here builds a message or reads a log;
- `match` is what the follower has proved (durable there), `next` what will be sent next: `match < next` always;
- `match` only grows, but for `regress`: a follower that proves to have *lost* what it acknowledged.

Three states, after etcd-io/raft's tracker:

    PROBE      where the logs agree is not known: one message, then silence until an answer or a heartbeat's answer
    REPLICATE  it is known: messages are pipelined, bounded by `Inflights`, and `next` runs ahead optimistically
    SNAPSHOT   what it needs is compacted away: silence until the snapshot is reported or an acknowledgement reconnects it
"""

from collections import deque
from enum import IntEnum

from raftcache.ids import Index


class ProgressState(IntEnum):
    """How entries flow to a follower. The values appear in metrics."""

    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


class Inflights:
    """The window of messages with entries that are sent and not acknowledged, bounded by count and by bytes.

    Invariant: the last indexes in the window ascend. The byte limit is soft by one message, so that an entry larger
    than the whole window can still pass when the window is empty.
    """

    __slots__ = ("_bytes", "_bytes_max", "_messages_max", "_window")

    def __init__(self, *, messages_max: int, bytes_max: int) -> None:
        assert messages_max >= 1, messages_max
        assert bytes_max >= 1, bytes_max
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._window: deque[tuple[Index, int]] = deque()

    def __len__(self) -> int:
        return len(self._window)

    @property
    def bytes_in_flight(self) -> int:
        """The payload bytes of the window."""
        return self._bytes

    def full(self) -> bool:
        """Whether no further message with entries may be sent."""
        return len(self._window) >= self._messages_max or self._bytes >= self._bytes_max

    def add(self, last: Index, size: int) -> None:
        """Notes a message whose last entry is `last`, with `size` payload bytes."""
        assert not self.full(), f"window full: {len(self._window)} messages, {self._bytes} bytes"
        assert not self._window or self._window[-1][0] < last, f"{last} after {self._window[-1][0]}"
        self._window.append((last, size))
        self._bytes += size

    def free_to(self, index: Index) -> None:
        """Slides the window past all messages whose last entry is at or below `index`; never backwards."""
        window = self._window
        while window and window[0][0] <= index:
            self._bytes -= window.popleft()[1]

    def clear(self) -> None:
        """Forgets everything in flight (it is no longer known what arrived)."""
        self._window.clear()
        self._bytes = 0


class Progress:
    """One follower as its leader sees it."""

    __slots__ = (
        "inflights",
        "match",
        "next",
        "paused",
        "pending_snapshot",
        "probe_due",
        "read_position",
        "recent_active",
        "sent_commit",
        "snapshot_requested",
        "state",
    )

    def __init__(self, *, match: Index, next_: Index, inflights: Inflights) -> None:
        assert match < next_, f"match {match} must stay below next {next_}"
        self.match: Index = match
        """The last entry proved to be the same as ours *and* durable there."""
        self.next: Index = next_
        """The first entry of the next message. Invariant: `match < next`."""
        self.state = ProgressState.PROBE
        self.inflights = inflights
        self.paused = False
        """PROBE only: a probe is out; wait for its answer, or for a heartbeat's (it may be lost)."""
        self.probe_due = False
        """REPLICATE only: a heartbeat was answered while acknowledgements are missing. An empty message is due, whatever
        the window says: if something was lost, its refusal will tell."""
        self.pending_snapshot: Index = Index(0)
        """SNAPSHOT only: the index of the snapshot on its way."""
        self.snapshot_requested = False
        """A snapshot that the follower asked for (its state is lost, its log is not) is on its way; replication goes on."""
        self.recent_active = True
        """Something was heard from it since the last quorum check. True at first, so that a newcomer gets its time."""
        self.sent_commit: Index = Index(0)
        """The commit index in the last message to it; a larger one is pushed at once."""
        self.read_position = 0
        """The newest read position it has confirmed (thesis §6.4)."""

    # --- transitions ------------------------------------------------------------------------------------------------

    def become_probe(self) -> None:
        """It is no longer known where the logs agree. After a snapshot, what it brought is taken for the best guess."""
        if self.state is ProgressState.SNAPSHOT:
            self.next = Index(max(self.match, self.pending_snapshot) + 1)
        else:
            self.next = Index(self.match + 1)
        self._reset(ProgressState.PROBE)

    def become_replicate(self) -> None:
        """The logs agree through `match`: pipeline from there."""
        self.next = Index(self.match + 1)
        self._reset(ProgressState.REPLICATE)

    def become_snapshot(self, index: Index) -> None:
        """A snapshot at `index` is on its way."""
        self._reset(ProgressState.SNAPSHOT)
        self.pending_snapshot = index

    def _reset(self, state: ProgressState) -> None:
        self.state = state
        self.paused = False
        self.probe_due = False
        self.pending_snapshot = Index(0)
        self.inflights.clear()
        # What was sent may be lost; say it again.
        self.sent_commit = Index(min(self.sent_commit, self.match))

    # --- sending ----------------------------------------------------------------------------------------------------

    def is_paused(self) -> bool:
        """Whether no message with entries may go out now."""
        if self.state is ProgressState.PROBE:
            return self.paused
        if self.state is ProgressState.REPLICATE:
            return self.inflights.full()
        return True

    def sent(self, count: int, size: int, commit: Index) -> None:
        """Notes a message with `count` entries of `size` bytes and the commit index `commit`."""
        if self.state is ProgressState.REPLICATE:
            if count:
                self.next = Index(self.next + count)
                self.inflights.add(Index(self.next - 1), size)
        else:
            assert self.state is ProgressState.PROBE, self.state
            self.paused = True
        self.probe_due = False
        self.sent_commit = commit

    # --- answers ----------------------------------------------------------------------------------------------------

    def maybe_update(self, index: Index) -> bool:
        """An acknowledgement of `index`. Returns whether it is news; reordered old ones change nothing."""
        if index <= self.match:
            return False
        self.match = index
        if self.next <= index:
            self.next = Index(index + 1)
        return True

    def maybe_decrease(self, *, rejected: Index, hint: Index) -> bool:
        """A refusal of `rejected`, with the largest index at which the logs may agree. Returns whether it is news."""
        if self.state is ProgressState.REPLICATE:
            # Messages may overtake each other: what is proved cannot be refused.
            if rejected <= self.match:
                return False
            self.next = Index(self.match + 1)
            return True
        if self.next - 1 != rejected:
            return False  # an answer to another probe than the last
        self.next = Index(max(min(rejected, hint + 1), self.match + 1))
        self.paused = False
        return True

    def regress(self, *, rejected: Index, hint: Index) -> bool:
        """Whether the follower refuses exactly what it once acknowledged: it has lost entries. Then `match` goes back.

        Only a refused *probe at `match`* proves this. A duplicate of an old refusal can imitate it; that costs a few
        entries sent twice, nothing more, as a smaller `match` is always safe.
        """
        if self.state is not ProgressState.PROBE or rejected != self.match or self.next - 1 != rejected:
            return False
        if rejected == 0 or hint >= rejected:
            return False
        self.match = hint
        self.next = Index(hint + 1)
        self.sent_commit = Index(min(self.sent_commit, hint))
        self.paused = False
        return True
