"""What clients saw, one operation a line: the only thing that the checkers judge by.

Rules of the file: plain JSON lines, one object for each operation, in any order; the schema is in `jepsen-style/README.md`
("History format"), so that another checker can judge the same file. All times come from one monotonic clock of one
process: an operation starts before its first byte is sent and ends after its last byte has come in.

- `ok`: the answer came; `result` says what it was. A refused condition (a CAS that did not swap) is an answer, too.
- `fail`: it certainly had no effect and never will. It says nothing about the state.
- `info`: nobody knows. It may have taken effect at any time after its start, also after `end_ns`, or never.

Caveat: `fail` is a claim of the client library. A checker believes it, and so a failed write that is read is a violation.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""What JSON can say. Read-only types, so that a `list[int]` is one, too."""
Status: TypeAlias = Literal["ok", "fail", "info"]

STATUSES: tuple[Status, ...] = ("ok", "fail", "info")


class HistoryError(ValueError):
    """A line that is no operation. The message names file and line."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of one client."""

    client: int
    """A sequential client: one operation at a time. After an `info` its number is never used again."""
    key: str
    op: str
    """What was asked: `read`, `write`, `cas`, `increment`, `append`, `list`, `add`, `txn`, `stale_read`."""
    argument: Json
    result: Json
    start_ns: int
    end_ns: int | None
    """None where no answer came, or the time when the client gave up (`info`)."""
    status: Status
    index: int | None = None
    """The log index that the reply claims: of a write its own, of a read the index that it waited for."""
    node: str = ""
    """The gateway that was asked."""
    revision: int | None = None
    """The shard's revision that the reply claims. A command that changed something has one of its own."""
    extra: Mapping[str, Json] = field(default_factory=dict)
    """Further facts; those that checkers know are in the schema (`session`, `seq`, `shard`, `incarnation`, ...)."""

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def end(self) -> float:
        """When its effect is certainly in the past: infinity, where the outcome is unknown."""
        return self.end_ns if self.status != "info" and self.end_ns is not None else float("inf")


def encode(op: Op) -> str:
    """One line of a history, without its end."""
    return json.dumps(asdict(op), ensure_ascii=False, separators=(",", ":"))


def decode(line: str) -> Op:
    """Reads what `encode` wrote. Unknown fields are refused: a misspelt one would silently weaken a check.

    Raises: HistoryError, with what is wrong.
    """
    try:
        op = Op(**json.loads(line))
    except (TypeError, ValueError) as error:
        raise HistoryError(str(error)) from error
    flaw = flaw_of(op)
    if flaw:
        raise HistoryError(flaw)
    return op


def flaw_of(op: Op) -> str:
    """Why this cannot be an operation of any history; empty if it can."""
    if op.status not in STATUSES:
        return f"status {op.status!r} is none of {', '.join(STATUSES)}"
    if type(op.start_ns) is not int or not (op.end_ns is None or type(op.end_ns) is int):
        return "times are whole nanoseconds"
    if op.end_ns is not None and op.end_ns < op.start_ns:
        return f"it ends at {op.end_ns}, before it starts at {op.start_ns}"
    if op.status == "ok" and op.end_ns is None:
        return "an operation that was answered has an end"
    return ""


def write_history(path: Path, ops: Iterable[Op]) -> int:
    """Writes all operations, one a line. Returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for op in ops:
            file.write(encode(op) + "\n")
            count += 1
    return count


def read_history(path: Path) -> list[Op]:
    """All operations, in the order of their starts. Raises: HistoryError, with the line."""
    ops = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                ops.append(decode(line))
            except HistoryError as error:
                raise HistoryError(f"{path.name}:{number}: {error}") from error
    ops.sort(key=lambda op: op.start_ns)
    return ops
