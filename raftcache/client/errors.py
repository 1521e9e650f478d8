"""The errors that only a client can have: outcomes that the library, and not a node, decides.

All others are those of `raftcache.errors`, as the nodes report them. Every error that a client raises carries `reason`,
`definite`, and, where they are known, `shard`, `node`, `attempts` and `elapsed`.
"""

from raftcache.client.results import Entry
from raftcache.errors import RaftCacheError


class AmbiguousResult(RaftCacheError):
    """The write may have been applied, or may yet be: an attempt was lost on its way, and could not be settled.

    Not definite. Read before you decide, or repeat what is harmless to repeat. With sessions (the default) this is rare: the
    library repeats such a write until the deadline, and the cluster applies it once. `__cause__` is the last error seen.
    """

    reason = "AMBIGUOUS_RESULT"
    definite = False


class DeadlineExceeded(RaftCacheError):
    """The time given was over, and the call certainly had no effect: a read, or a write of which nothing was sent, or
    whose every attempt was refused. `__cause__` is the last refusal.

    A write that may have been applied by then raises `AmbiguousResult` instead.
    """

    reason = "DEADLINE_EXCEEDED"
    definite = True


class ConditionFailed(RaftCacheError):
    """A condition of a put or a delete does not hold; nothing was changed. `current` is what is stored, None if nothing."""

    reason = "CONDITION_FAILED"
    definite = True

    def __init__(self, message: str, *, current: Entry | None, metadata: dict[str, str] | None = None) -> None:
        super().__init__(message, metadata=metadata)
        self.current = current


class ClientClosed(RaftCacheError):
    """The client, or the pipeline, was closed before this was sent."""

    reason = "CLIENT_CLOSED"
    definite = True
