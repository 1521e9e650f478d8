"""h2load: started, and its words read.

It sends one and the same request again and again and knows HTTP, not gRPC: a refused call is a 200 to it, with no data. So
the caller is told how many bytes of data came back, and compares them with what one real answer has.
"""

import re
import shutil
import subprocess
from array import array
from dataclasses import dataclass
from pathlib import Path

RUN_SECONDS_MAX = 180.0

_FINISHED = re.compile(r"^finished in ([\d.]+)(s|ms|us|m|h)", re.MULTILINE)
_REQUESTS = re.compile(
    r"^requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout",
    re.MULTILINE,
)
_TRAFFIC = re.compile(r"^traffic: .*?, \S+ \((\d+)\) data", re.MULTILINE)
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class H2loadReport:
    """What h2load says of one run."""

    seconds: float
    requests: int
    succeeded: int
    """HTTP status 2xx, whatever gRPC says."""
    failed: int
    data_bytes: int


def installed() -> bool:
    """Whether there is an h2load here."""
    return shutil.which("h2load") is not None


def parse_report(text: str) -> H2loadReport:
    """Raises: `ValueError` where a line is missing."""
    finished, requests, traffic = _FINISHED.search(text), _REQUESTS.search(text), _TRAFFIC.search(text)
    if finished is None or requests is None or traffic is None:
        raise ValueError(f"h2load's report cannot be read:\n{text}")
    total, _, _, succeeded, failed, errored, timeout = (int(number) for number in requests.groups())
    return H2loadReport(
        seconds=float(finished[1]) * _UNITS[finished[2]],
        requests=total,
        succeeded=succeeded,
        failed=max(failed, errored, timeout, total - succeeded),
        data_bytes=int(traffic[1]),
    )


def parse_log(text: str) -> "array[int]":
    """Microseconds of each request that HTTP calls a success. A line has start, status and duration."""
    taken = array("q")
    for line in text.splitlines():
        _, status, microseconds = line.split("\t")
        if status == "200":
            taken.append(int(microseconds))
    return taken


def run(
    address: str, path: str, body: bytes, *, outstanding: int, requests: int, directory: Path
) -> tuple[H2loadReport, "array[int]"]:
    """One run on one connection. Returns the report and the microseconds of each request, ascending.

    Raises: `ValueError`, `subprocess.SubprocessError`.
    """
    body_file, log_file = directory / "h2load.body", directory / "h2load.log"
    body_file.write_bytes(body)
    log_file.unlink(missing_ok=True)
    done = subprocess.run(
        [
            "h2load",
            *("-n", str(requests), "-c", "1", "-t", "1", "-m", str(outstanding), "-d", str(body_file)),
            *("-H", "content-type: application/grpc", "-H", "te: trailers", "--log-file", str(log_file)),
            f"http://{address}{path}",
        ],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=True,
    )
    return parse_report(done.stdout), array("q", sorted(parse_log(log_file.read_text())))
