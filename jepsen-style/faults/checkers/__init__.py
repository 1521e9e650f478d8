"""Judges of histories. Each is a pure function `check_x(history, *, budget=None) -> Verdict`; `judge` calls all that apply."""

from faults.checkers.bank import check_bank
from faults.checkers.counter import check_counter
from faults.checkers.form import check_form
from faults.checkers.judge import judge
from faults.checkers.objects import check_list, check_register
from faults.checkers.sessions import check_sessions
from faults.checkers.sets import check_set
from faults.checkers.stale import check_stale_reads
from faults.checkers.verdict import Budget, Verdict, combine
from faults.checkers.witness import check_index_order, check_witness

__all__ = [
    "Budget",
    "Verdict",
    "check_bank",
    "check_counter",
    "check_form",
    "check_index_order",
    "check_list",
    "check_register",
    "check_sessions",
    "check_set",
    "check_stale_reads",
    "check_witness",
    "combine",
    "judge",
]
