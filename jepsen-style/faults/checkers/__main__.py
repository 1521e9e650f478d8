"""Judges histories: `python -m faults.checkers history.jsonl ...`, in the folder `jepsen-style`.

Exit status: 0 if nothing is wrong, 1 for a violation, 2 if it is not known.
"""

import sys
from pathlib import Path

from faults.checkers import combine, judge
from faults.checkers.verdict import Verdict
from faults.history import encode, read_history

STATUS = {"ok": 0, "violation": 1, "unknown": 2}


def main(paths: list[str]) -> int:
    verdicts: list[Verdict] = []
    for path in paths:
        for verdict in judge(read_history(Path(path))):
            print(f"{verdict.kind:10}{verdict.checker:14}{verdict.reason}")
            for op in verdict.counterexample:
                print(f"          {encode(op)}")
            verdicts.append(verdict)
    return STATUS[combine(verdicts).kind]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
