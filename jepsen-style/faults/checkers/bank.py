"""A bank within one shard: transfers move money, and every snapshot of all accounts has the same total.

Arithmetic only: a snapshot's total, its accounts, and that none is overdrawn. Which transfers a snapshot must contain is the
witness check's to say, by replaying them.
"""

from collections.abc import Mapping, Sequence

from faults.checkers.calls import NotJudged, by_key, judged_by_key, merge_attempts
from faults.checkers.models import accounts, transfer
from faults.checkers.verdict import Budget, Verdict, ok, unknown
from faults.history import Op


def check_bank(history: Sequence[Op], *, budget: Budget | None = None) -> Verdict:
    """Each snapshot adds up to what the bank was opened with, without debts and without accounts from nowhere."""
    del budget
    keys = by_key(merge_attempts(history))
    verdict = judged_by_key("bank", keys, _judge)
    if verdict is not None:
        return verdict
    snapshots = sum(op.ok and op.op == "read" for ops in keys.values() for op in ops)
    if not snapshots:
        return unknown("bank", "no snapshot was read")
    return ok("bank", f"{snapshots} snapshots add up", snapshots=snapshots, keys=len(keys))


def _judge(ops: Sequence[Op]) -> tuple[str, list[Op]] | None:
    openings = [op for op in ops if op.op == "write" and op.status != "fail"]
    if len(openings) != 1:
        raise NotJudged(f"a bank is opened once, not {len(openings)} times, else its total is not known")
    opening = openings[0]
    funds = accounts(opening.argument) or {}
    known = set(funds)
    for op in ops:
        if op.op == "txn":
            known |= set(transfer(op)[:2])
        elif op.op not in ("read", "write", "stale_read"):
            raise NotJudged(f"a bank knows no {op.op!r}")
    for op in ops:
        if op.ok and op.op in ("read", "stale_read"):
            wrong = _snapshot(op, funds, known, opening)
            if wrong:
                return wrong, [opening, *_around(ops, op), op]
    return None


def _snapshot(op: Op, funds: Mapping[str, int], known: set[str], opening: Op) -> str:
    balances = accounts(op.result)
    if not balances:
        late = op.op == "read" and opening.ok and opening.end < op.start_ns
        return "the bank is gone" if late else ""
    total, expected = sum(balances.values()), sum(funds.values())
    if total != expected:
        return f"the total is {total}, not {expected}"
    if min(balances.values()) < 0:
        return "an account is overdrawn"
    strange = sorted(set(balances) - known)
    return f"account {strange[0]} is nobody's" if strange else ""


def _around(ops: Sequence[Op], snapshot: Op) -> list[Op]:
    """The last transfers that the snapshot may have seen half of."""
    return [op for op in ops if op.op == "txn" and op.status != "fail" and op.start_ns < snapshot.end][-2:]
