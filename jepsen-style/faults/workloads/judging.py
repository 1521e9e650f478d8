"""Which checkers judge which workload. Each history is judged at least twice: by the order that the replies claim, and by
what clients saw alone."""

from collections.abc import Sequence

from faults.checkers.bank import check_bank
from faults.checkers.counter import check_counter
from faults.checkers.objects import check_list, check_register
from faults.checkers.sessions import check_sessions
from faults.checkers.sets import check_set
from faults.checkers.stale import check_stale_reads
from faults.checkers.verdict import Verdict
from faults.checkers.witness import check_index_order, check_witness
from faults.history import Op


def registers(history: Sequence[Op]) -> list[Verdict]:
    return [check_witness(history), check_index_order(history), check_register(history)]


def sessions(history: Sequence[Op]) -> list[Verdict]:
    return [check_sessions(history), *registers(history)]


def stale_reads(history: Sequence[Op]) -> list[Verdict]:
    return [check_stale_reads(history), *registers(history)]


def lists(history: Sequence[Op]) -> list[Verdict]:
    return [check_witness(history), check_index_order(history), check_list(history)]


def counters(history: Sequence[Op]) -> list[Verdict]:
    return [check_counter(history), check_sessions(history), check_witness(history), check_index_order(history)]


def banks(history: Sequence[Op]) -> list[Verdict]:
    return [check_bank(history), check_witness(history), check_index_order(history)]


def sets(history: Sequence[Op]) -> list[Verdict]:
    return [check_set(history), check_index_order(history)]
