"""What the nodes of a development cluster say, put together in the order of time."""

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from raftcache.cli.dev_state import DevCluster, DevNode
from raftcache.cli.output import printable

FOLLOW_SECONDS = 0.2
TAIL_BYTES_PER_LINE = 2_000
"""More than a line has; what is not read cannot be shown, and a log of a gigabyte is not read for fifty lines."""
_HEAD = ("ts", "level", "event", "node", "node_id", "schema")


def show(cluster: DevCluster, nodes: list[DevNode], *, lines: int, follow: bool, as_json: bool) -> None:
    """Writes the last `lines` of each node, oldest first, and then, with `follow`, what comes."""
    with contextlib.ExitStack() as stack:
        tails = [stack.enter_context(contextlib.closing(Tail(node.name, cluster.log(node)))) for node in nodes]
        found = [line for tail in tails for line in tail.last(lines)]
        _write(found, as_json=as_json)
        while follow:
            time.sleep(FOLLOW_SECONDS)
            _write([line for tail in tails for line in tail.more()], as_json=as_json)


def _write(lines: list[tuple[str, str, str]], *, as_json: bool) -> None:
    # Stable: what has no time of its own has that of the line before.
    for _, name, line in sorted(lines, key=lambda each: each[0]):
        click.echo(line if as_json else f"{name}  {pretty(line)}")


@dataclass
class Tail:
    """The end of one log, as it grows."""

    name: str
    path: Path
    _file: BinaryIO | None = None
    _partial: bytes = b""
    _stamp: str = ""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def last(self, lines: int) -> list[tuple[str, str, str]]:
        """The last `lines`: time, node, line."""
        try:
            self._file = self.path.open("rb")
        except FileNotFoundError:
            return []
        size = self._file.seek(0, 2)
        start = max(0, size - lines * TAIL_BYTES_PER_LINE)
        self._file.seek(start)
        found = self.more()
        # Cut within a line.
        found = found[1:] if start else found
        return found[-lines:] if lines else []

    def more(self) -> list[tuple[str, str, str]]:
        """Whole lines that were written since."""
        if self._file is None:
            return self.last(1_000_000) if self.path.exists() else []
        *whole, self._partial = (self._partial + self._file.read()).split(b"\n")
        return [self._stamped(line) for line in whole if line]

    def _stamped(self, line: bytes) -> tuple[str, str, str]:
        text = printable(line)
        try:
            self._stamp = str(json.loads(text)["ts"])
        except (ValueError, KeyError, TypeError):
            pass
        return self._stamp, self.name, text


def pretty(line: str) -> str:
    """A line of the log for people: time, level, event, fields."""
    try:
        record = json.loads(line)
        head = f"{record['ts'][11:23]} {record['level']:7} {record['event']:24}"
    except (ValueError, KeyError, TypeError):
        return line
    fields = " ".join(f"{name}={_plain(value)}" for name, value in record.items() if name not in _HEAD)
    return f"{head} {fields}".rstrip()


def _plain(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return json.dumps(text) if " " in text or not text else text
