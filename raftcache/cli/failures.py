"""From the errors of the layers below to how a command ends.

Rules of this file:
- one table from an error's class to an exit code; a *write's* error that is not definite is `UNKNOWN`, whatever else it is:
  a script that decides whether to repeat it must not do so on a guess;
- a hint stands here where there is something to do that the error, which does not know of this command line, cannot say.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from raftcache import errors
from raftcache.cli.exits import Exit, Failure

EXIT_OF: dict[str, Exit] = {
    "INTERNAL": Exit.FAILURE,
    "INVALID_REQUEST": Exit.USAGE,
    "CONFIG": Exit.USAGE,
    "NOT_LEADER": Exit.UNAVAILABLE,
    "WRONG_SHARD": Exit.UNAVAILABLE,
    "UNAVAILABLE": Exit.UNAVAILABLE,
    "OVERLOADED": Exit.UNAVAILABLE,
    "STORAGE_FULL": Exit.UNAVAILABLE,
    "DEADLINE_EXPIRED": Exit.UNAVAILABLE,
    "DEADLINE_EXCEEDED": Exit.UNAVAILABLE,
    "PRECONDITION_FAILED": Exit.PRECONDITION,
    "CONDITION_FAILED": Exit.PRECONDITION,
    "UNAUTHENTICATED": Exit.PERMISSION,
    "PERMISSION_DENIED": Exit.PERMISSION,
    "OUTCOME_UNKNOWN": Exit.UNKNOWN,
    "AMBIGUOUS_RESULT": Exit.UNKNOWN,
}
"""By reason; a class whose reason is not in it has the code of its nearest ancestor."""

_LATER = "`raftcache status` shows what is wrong; --timeout gives it longer"
_READ_FIRST = "the write may have happened, or may yet: read before you repeat it"

HINTS: dict[str, str] = {
    "NOT_LEADER": "an election is under way; `raftcache status` shows who leads",
    "OVERLOADED": "the node is at a limit: send less at once, or try again in a moment",
    "STORAGE_FULL": "an operator must make room; reads still work",
    "DEADLINE_EXPIRED": _LATER,
    "DEADLINE_EXCEEDED": _LATER,
    "UNAUTHENTICATED": "name a client certificate with --tls-cert and --tls-key",
}

_Value = TypeVar("_Value")


def exit_of(error: errors.RaftCacheError, *, writes: bool = False) -> Exit:
    """The exit code that `error` means for a command that `writes`, or does not."""
    if writes and not error.definite:
        return Exit.UNKNOWN
    return _nearest(EXIT_OF, error, Exit.FAILURE)


def failure_of(error: errors.RaftCacheError, *, writes: bool = False) -> Failure:
    """`error` as a command ends with it."""
    code = exit_of(error, writes=writes)
    hint = _READ_FIRST if code is Exit.UNKNOWN else _nearest(HINTS, error, "")
    return Failure(error.message, code=code, hint=hint)


@contextmanager
def reported(*, writes: bool) -> Iterator[None]:
    """While inside, what is raised ends the command. Raises: `Failure`."""
    try:
        yield
    except errors.RaftCacheError as error:
        raise failure_of(error, writes=writes) from error


def _nearest(table: dict[str, _Value], error: errors.RaftCacheError, otherwise: _Value) -> _Value:
    for cls in type(error).__mro__:
        if issubclass(cls, errors.RaftCacheError) and cls.reason in table:
            return table[cls.reason]
    return otherwise
