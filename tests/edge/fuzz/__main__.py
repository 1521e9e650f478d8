"""`make fuzz`: shares time between targets, keeps corpora, and tells what was done.

    python -m tests.edge.fuzz run [--minutes N] [TARGET...]     fuzz each for its share of the time
    python -m tests.edge.fuzz keep [TARGET...]                  minimise what was found into the committed corpora
    python -m tests.edge.fuzz replay [TARGET...]                run every input once, here (under coverage.py, say)

What a run finds new is in `.fuzz/TARGET`, and an input that fails in `.fuzz/TARGET-crash-...`:
`python -m tests.edge.fuzz.atheris_run TARGET FILE` runs it alone. Totals of all runs are in `.fuzz/totals.json`.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.edge.fuzz import corpus
from tests.edge.fuzz.targets import TARGETS

SCRATCH = Path(".fuzz")
RSS_MB_MAX = 1_500
INPUT_SECONDS_MAX = 20
"""One input takes milliseconds. libFuzzer reports what takes longer than this as a hang."""
STATUS = re.compile(r"^#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+)(?: corp: (\d+)/(\S+))?", re.MULTILINE)


def atheris(target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs libFuzzer on a target, in a process of its own."""
    command = [sys.executable, "-m", "tests.edge.fuzz.atheris_run", target, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def fuzz(target: str, seconds: int) -> bool:
    """Fuzzes for so long; whether nothing was found."""
    found, seeds = SCRATCH / target, SCRATCH / f"{target}-seeds"
    found.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(seeds, ignore_errors=True)
    write(seeds, committed(target))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = atheris(
        target,
        f"-max_total_time={seconds}",
        f"-rss_limit_mb={RSS_MB_MAX}",
        f"-timeout={INPUT_SECONDS_MAX}",
        f"-artifact_prefix={SCRATCH / target}-",
        str(found),
        str(seeds),
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    shutil.rmtree(seeds)
    status = STATUS.findall(ran.stdout)
    executions, edges, features, inputs, size = status[-1] if status else ("0", "0", "0", "0", "0b")
    add_to_totals(target, int(executions), processor_s)
    print(
        f"{target}: {executions} executions, {int(executions) / max(processor_s, 0.1):.0f} a second of processor time,"
        f" {processor_s:.0f} s; {edges} edges, {features} features; corpus {inputs} inputs, {size}",
        flush=True,
    )
    if ran.returncode:
        print(ran.stdout[-4_000:])
    return ran.returncode == 0


def add_to_totals(target: str, executions: int, processor_s: float) -> None:
    """Sums over all runs in this directory."""
    path = SCRATCH / "totals.json"
    totals = json.loads(path.read_text()) if path.exists() else {}
    mine = totals.setdefault(target, {"executions": 0, "processor_s": 0.0})
    mine["executions"] += executions
    mine["processor_s"] = round(mine["processor_s"] + processor_s, 1)
    path.write_text(json.dumps(totals, indent=1))


def committed(target: str) -> list[bytes]:
    """The seeds and the corpus."""
    return [*TARGETS[target].seeds, *corpus.load(target)]


def write(directory: Path, inputs: list[bytes]) -> None:
    """Each input as a file, as libFuzzer wants it."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(inputs):
        (directory / f"{number:05}").write_bytes(data)


def keep(target: str) -> None:
    """The fewest and shortest inputs that reach all that the committed corpus and the found ones reach."""
    with tempfile.TemporaryDirectory() as name:
        merged, seeds = Path(name) / "merged", Path(name) / "seeds"
        merged.mkdir()
        write(seeds, committed(target))
        ran = atheris(target, "-merge=1", str(merged), str(seeds), str(SCRATCH / target))
        assert ran.returncode == 0, ran.stdout[-4_000:]
        inputs = [path.read_bytes() for path in merged.iterdir()]
        assert inputs, ran.stdout[-4_000:]
        corpus.save(target, inputs)
    inputs = corpus.load(target)
    print(f"{target}: {len(inputs)} inputs, {sum(map(len, inputs))} bytes", flush=True)


def replay(target: str) -> None:
    """Runs the committed corpus, and what was found beside it, in this process."""
    found = SCRATCH / target
    inputs = committed(target) + [path.read_bytes() for path in sorted(found.iterdir() if found.exists() else ())]
    for data in inputs:
        TARGETS[target].run(data)
    print(f"{target}: {len(inputs)} inputs", flush=True)


def main() -> int:
    """The exit status: 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "keep", "replay"))
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=1, help="for all of them together")
    arguments = parser.parse_intermixed_args()
    targets = arguments.targets or list(TARGETS)
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"no target {sorted(unknown)}; there are {list(TARGETS)}")
    if arguments.verb != "run":
        for target in targets:
            keep(target) if arguments.verb == "keep" else replay(target)
        return 0
    os.environ.setdefault("PYTHONHASHSEED", "0")
    seconds = max(int(arguments.minutes * 60 / len(targets)), 1)
    outcomes = [fuzz(target, seconds) for target in targets]
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
