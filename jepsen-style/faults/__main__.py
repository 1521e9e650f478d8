"""`python -m faults run` and `python -m faults doctor`: the commands behind `make jepsen` and `make jepsen-doctor`.

Exit status of `run`: 0 all runs ok; 1 a violation; 2 something could not be judged.
"""

import argparse
import secrets
import sys
import time
from pathlib import Path

from faults import doctor, matrix, namespace
from faults.nemeses import NEMESES
from faults.processes import PACKAGE_ROOT
from faults.runner import CHAOS, FRONTS, NONE
from faults.workloads import WORKLOADS


def main() -> int:
    arguments = _arguments()
    namespace.enter()
    namespace.inside()
    if arguments.command == "doctor":
        print(doctor.report(arguments.nodes))
        return 0
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(1_000_000_000)
    folder = Path(arguments.folder) / time.strftime(f"%Y-%m-%d-%H%M%S-{seed}")
    return matrix.run_matrix(
        matrix.Request(
            minutes=arguments.minutes,
            workloads=_chosen(arguments.workload, [*WORKLOADS], "workload"),
            nemeses=_chosen(arguments.nemesis, [*NEMESES, CHAOS, NONE], "nemesis"),
            seed=seed,
            nodes=arguments.nodes,
            folder=folder,
            bug=arguments.bug,
            front=arguments.front,
        )
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="faults on real nodes, and what the clients may conclude")
    run.add_argument("--minutes", type=float, default=10.0, help="for everything together")
    run.add_argument("--workload", help=f"one or several, by commas: {', '.join(WORKLOADS)}")
    run.add_argument("--nemesis", help="one or several, by commas; `doctor` lists them; also chaos and none")
    run.add_argument("--seed", type=int, help="of the first run; the others count on from it")
    run.add_argument("--nodes", type=int, default=3)
    run.add_argument("--folder", default=str(PACKAGE_ROOT / "runs"), help="where the runs' folders go")
    run.add_argument("--bug", default="", help="a deliberate bug of tests/simulation/zoo.py")
    run.add_argument("--front", default="", choices=["", *FRONTS], help="of all nodes; left out: each seed draws one")
    look = commands.add_parser("doctor", help="which faults this machine can do")
    look.add_argument("--nodes", type=int, default=3)
    return parser.parse_args()


def _chosen(given: str | None, known: list[str], what: str) -> list[str]:
    """The names that were asked for; none: all."""
    names = given.split(",") if given else []
    for name in names:
        if name not in known:
            sys.exit(f"there is no {what} {name!r}; there are: {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
