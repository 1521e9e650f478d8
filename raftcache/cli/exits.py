"""How a command ends: the exit codes, and the error that carries one.

Rules of this file:
- a code says what a script can do next, not which part of the program failed; `docs/cli.md` has this table for people, and a
  test holds the two equal;
- a `Failure` has two parts: what happened, and what to do now. Both go to standard error, whatever `-o` says.
"""

from enum import IntEnum

import click


class Exit(IntEnum):
    """The exit codes. 128 + n for a signal n is the shell's own convention."""

    OK = 0
    FAILURE = 1
    """It did not work, or the answer is no."""
    USAGE = 2
    """The command line, a file or a value given is wrong as it stands; nothing was tried."""
    NOT_FOUND = 3
    """There is no such key, node, shard or cluster."""
    UNAVAILABLE = 4
    """Nobody answered in time, or no leader is there; nothing was changed. Try again later."""
    UNHEALTHY = 5
    """The cluster answered, and something in it needs attention."""
    PRECONDITION = 6
    """A condition did not hold, or a safety check refused; nothing was changed."""
    UNKNOWN = 7
    """A write was sent and its outcome is not known. Read before you decide."""
    PERMISSION = 8
    """Not allowed, or not known who you are."""
    INTERRUPTED = 130


class Failure(Exception):
    """A command's bad end, as the person who typed it should read it."""

    def __init__(self, message: str, *, code: Exit = Exit.FAILURE, hint: str = "") -> None:
        """`hint` is what to do now: one or more lines."""
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint

    def show(self) -> None:
        """Writes it to standard error."""
        lines = [f"raftcache: {self.message}", *(f"  {line}" for line in self.hint.splitlines())]
        click.echo("\n".join(lines), err=True)
