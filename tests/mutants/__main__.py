"""`make mutants`: 200 small deliberate bugs, who catches each of them, and how soon; `python -m tests.mutants --help`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from tests.mutants.campaign import EXAMINED, SIMULATION_S, Campaign, report
from tests.mutants.mutations import TOP, by_name

COUNT, SEED = 200, 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument(
        "what", choices=["run", "report", "stored", "show"], help="stored: what the document says of the last"
    )
    parser.add_argument("mutant", nargs="?", help="show: module:place:choice")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--minutes", type=float, default=60.0, help="start nothing after that; run again to go on")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--simulate", type=float, default=SIMULATION_S, help="seconds of processor time per mutant")
    parser.add_argument("--again", action="store_true", help="ask the tests again about what they let through")
    parser.add_argument("--directory", type=Path, default=TOP / "build" / "mutants", help="what was found is kept here")
    arguments = parser.parse_args()
    if arguments.what == "show":
        print(by_name(arguments.mutant))
        return 0
    if arguments.what == "stored":
        tables = EXAMINED.read_text().partition("## What came out\n\n")[2]
        print(tables.partition("\n## Who caught which")[0])
        return 0
    campaign = Campaign.open(arguments.directory, count=arguments.count, seed=arguments.seed)
    if arguments.what == "run":
        if arguments.again:
            campaign.forget_survivors_of_tests()
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # the children end with it
        until = time.monotonic() + arguments.minutes * 60
        campaign.run(
            jobs=arguments.jobs,
            simulation_s=arguments.simulate,
            go_on=lambda: time.monotonic() < until,
            say=lambda line: print(line, flush=True),
        )
    text = report(campaign)
    print(text)
    return 1 if "NOT EXAMINED" in text or campaign.open_questions() else 0


if __name__ == "__main__":
    sys.exit(main())
