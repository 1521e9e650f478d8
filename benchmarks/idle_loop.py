"""How late an event loop is that does nothing: what the machine adds to every lag, its processors being shared.

python -m benchmarks.idle_loop SECONDS     prints {"probes": ..., "p99_9_seconds": ..., "max_seconds": ...}
"""

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns

import uvloop

from raftcache.telemetry.loop_lag import LoopLag


@dataclass
class Lags:
    """Takes what `LoopLag` notes. Seconds."""

    noted: list[float]

    def observe(self, amount: float) -> None:
        self.noted.append(amount)


async def measure(seconds: float) -> dict[str, float]:
    """Probes the running loop, as a node does its own."""
    lags = Lags([])
    probe = LoopLag(lags, monotonic_ns)
    probe.start()
    await asyncio.sleep(seconds)
    probe.stop()
    noted = sorted(lags.noted)
    assert noted, f"no probe in {seconds} s"
    return {
        "probes": len(noted),
        "p99_9_seconds": noted[int(len(noted) * 0.999)],
        "max_seconds": noted[-1],
    }


def start(seconds: float) -> subprocess.Popen[str]:
    """The same in a process of its own; `finish` waits for what it says."""
    command = [sys.executable, "-m", "benchmarks.idle_loop", str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[1])


def finish(process: subprocess.Popen[str], timeout_seconds: float) -> dict[str, float]:
    """What the process measured."""
    output, _ = process.communicate(timeout=timeout_seconds)
    found: dict[str, float] = json.loads(output)
    return found


if __name__ == "__main__":
    print(json.dumps(uvloop.run(measure(float(sys.argv[1])))))
