"""Judges of histories. Each is a pure function `check_x(history, *, budget=None) -> Verdict`."""

from faults.checkers.verdict import Budget, Verdict, combine

__all__ = ["Budget", "Verdict", "combine"]
