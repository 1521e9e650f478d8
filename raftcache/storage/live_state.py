"""The parts that a `StateStore` is made of: the engine that holds live records, and who verifies closed state files.

Two implementations each: `lmdb_state.py` and `simulated_state.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from raftcache.errors import RaftCacheError
from raftcache.ids import Index, Term
from raftcache.kv.meta import State, StoredConfiguration
from raftcache.kv.records import Records
from raftcache.kv.verification import verify
from raftcache.storage.background import Job

PROBLEMS_SHOWN = 3
"""The first findings say what kind of damage it is; the replica is rebuilt whatever the rest say."""


class StateLost(RaftCacheError):
    """The live records failed in a way that may have undone answered writes.

    An LMDB error, or a full map or disk in apply or commit. Indefinite. The replica stops serving at once, calls
    `discard_live`, opens again and applies the log from there.
    """

    reason: ClassVar[str] = "STATE_LOST"


class Damaged(Exception):
    """A state file holds what was written to it, and that does not add up. Says what was found."""


@dataclass(slots=True, frozen=True)
class Verified:
    """What was found in a state, all of it read or recomputed from the state itself."""

    index: Index
    term: Term
    configuration: bytes
    record_count: int
    state_hash: int
    digest: bytes
    """Of the file's bytes."""

    @staticmethod
    def of(records: Records, digest: bytes) -> "Verified":
        """Scan everything. Raises: `Damaged`, and what reading `records` raises."""
        found = verify(records)
        if found.problems:
            rest = len(found.problems) - PROBLEMS_SHOWN
            raise Damaged("; ".join(found.problems[:PROBLEMS_SHOWN]) + (f"; and {rest} more" if rest > 0 else ""))
        state = State.load(records)
        configuration = StoredConfiguration.load(records).data
        return Verified(
            state.applied_index, state.applied_term, configuration, found.record_count, found.state_hash, digest
        )


class Verifier(Protocol):
    """Reads closed state files. Called from jobs."""

    def verify(self, path: str, job: Job) -> Verified:
        """Recompute everything. Raises: `Damaged`, `RaftCacheError` (it could not be done), `Cancelled`."""
        ...

    def convert(self, source: str, target: str, *, to_logical: bool, job: Job) -> None:
        """Fill `target`, an empty file, from `source`: native to logical, or back. Raises: as `verify`."""
        ...


class LiveCopy(Protocol):
    """The live state as of one commit."""

    def draw(self, write: Callable[[bytes], None]) -> None:
        """Pass it all to `write`, in the native format. Runs in a job.

        Raises: what `write` raises, `Damaged`, `OSError`.
        """
        ...

    def release(self) -> None:
        """Let the engine forget that commit. Called once, before the live records are closed."""
        ...


class LiveState(Protocol):
    """The live records and the engine that holds them.

    More than six methods, because it is the engine's whole life cycle, and nothing else names an engine.
    """

    format: str
    """Names the form of its state files; see `CheckpointHeader.format`."""

    def create(self) -> Records:
        """Begin anew, without records. Raises: `StateLost`, `OSError`."""
        ...

    def prepare(self, blocks: Iterator[bytes]) -> None:
        """Make a state file, proven only when it is read to its end, ready for `load`. May run in a job.

        Raises: what `blocks` raises, `OSError`; then nothing is prepared.
        """
        ...

    def load(self) -> Records:
        """Replace the live records by what was prepared. Raises: `StateLost`, `OSError`."""
        ...

    def resume(self, proof: dict[str, str]) -> Records:
        """Open the live records as they were closed. Raises: `Corruption` where `proof` does not hold, `StateLost`."""
        ...

    def commit(self) -> None:
        """From here on the records so far are one state, for `copy`. Raises: `StateLost`."""
        ...

    def copy(self) -> LiveCopy:
        """The state of the last commit. Raises: `StateLost`."""
        ...

    def close(self, *, synced: bool) -> dict[str, str]:
        """Close; idempotent. With `synced` all is committed and durable before, and the result proves it to `resume`.

        Raises: only with `synced`: `StateLost`, `OSError`.
        """
        ...

    def space(self) -> tuple[int, int]:
        """Bytes that the records take, and the most that they can take; 0 where the engine has no such figure. Cheap.

        Raises: `StateLost`.
        """
        ...

    def grown(self) -> bool:
        """Whether more than half of its space is waste, and the waste worth a rebuild."""
        ...

    def sweep(self) -> None:
        """Remove what `load` replaced. May run in a job."""
        ...
