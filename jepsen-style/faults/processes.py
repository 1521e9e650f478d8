"""Node processes: started, killed, paused and restarted, with a line of orders into each (`launch.py`).

Rules of this file:
- only processes that were started here are signalled, by their id;
- every wait has a bound;
- `kill` is kill -9, always: a clean stop has a name of its own.
"""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tests.support.ports import free_port

START_SECONDS = 60.0
ORDER_SECONDS = 6.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.02
PACKAGE_ROOT = Path(__file__).resolve().parents[1]
"""`jepsen-style/`, where this package is found by the nodes too."""
PROJECT_ROOT = PACKAGE_ROOT.parent


class OrderFailed(Exception):
    """The node did not do it: dead, paused, or it said why not."""


class Volume(Protocol):
    """Where a node's data lie, if not in an ordinary directory (`disks.py`)."""

    path: Path

    def close(self) -> None: ...


async def came_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Polls; whether it came true in this time."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + seconds
    while not condition():
        if loop.time() > give_up:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


async def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Polls. Raises: `TimeoutError` that says what was waited for."""
    if not await came_true(condition, seconds):
        raise TimeoutError(f"waited {seconds:.0f} s for {what}")


class Node:
    """One node: its place and its settings outlive its processes."""

    def __init__(self, name: str, directory: Path, settings: Mapping[str, object], *, bug: str = "") -> None:
        self.name = name
        self.directory = directory
        self.settings = dict(settings)
        self.bug = bug
        self.client_port, self.peer_port, self.admin_port = free_port(), free_port(), free_port()
        self.volume: Volume | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.paused = False
        self.starts = 0
        self.exits: list[int] = []
        """The status of every process that ended, in order; -9: killed."""
        self.routes: dict[str, str] = {}
        """What it dials in the place of the others' peer addresses."""
        self._control: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._orders = itertools.count(1)
        self._ordering = asyncio.Lock()
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def data(self) -> Path:
        return (self.volume.path if self.volume is not None else self.directory) / "data"

    @property
    def log(self) -> Path:
        return self.directory / "log.jsonl"

    @property
    def address(self) -> str:
        """The client port itself, past the proxy: for the harness's own questions."""
        return f"127.0.0.1:{self.client_port}"

    @property
    def peer_address(self) -> str:
        return f"127.0.0.1:{self.peer_port}"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def up(self) -> bool:
        """Running, and not paused."""
        return self.running and not self.paused

    @property
    def listening(self) -> bool:
        """Up, and done with its start."""
        return self.up and self._ready_file.exists()

    # --- Life ---------------------------------------------------------------------------------------------------------

    async def start(self, *, arm: Mapping[str, int] | None = None, wait: bool = True) -> None:
        """A new process on the data as it is, with failpoints armed from the start; nothing to do where one runs.

        Raises: `TimeoutError`, `RuntimeError` if it ends before it listens (with `wait`, and nothing armed).
        """
        if self.running:
            return
        if self.exit_status is not None:
            self.exits.append(self.exit_status)
        self._ready_file.unlink(missing_ok=True)
        settings = {
            "node.name": self.name,
            "node.data_dir": self.data,
            "listen.client": self.address,
            "listen.peer": self.peer_address,
            "listen.admin": f"127.0.0.1:{self.admin_port}",
            "log.format": "json",
        } | self.settings
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "faults.launch", "--control", str(theirs.fileno())]
        command += [f"--arm={point}:{passes}" for point, passes in (arm or {}).items()]
        command += [f"--route={source}={target}" for source, target in self.routes.items()]
        command += [f"--bug={self.bug}"] if self.bug else []
        command += ["--", "serve", "--ready-file", str(self._ready_file)]
        command += [f"--set={key}={value}" for key, value in settings.items()]
        paths = f"{PACKAGE_ROOT}{os.pathsep}{PROJECT_ROOT}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - a fork of a few milliseconds, in a test harness
                command,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                cwd=PROJECT_ROOT,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": paths},
            )
        theirs.close()
        self._close_control()
        self._control = await asyncio.open_connection(sock=ours)
        self.paused = False
        self.starts += 1
        if wait:
            await self.wait_ready(may_die=bool(arm))

    async def wait_ready(self, *, may_die: bool = False) -> None:
        """Until it listens, or, where it may, is dead."""

        def ready() -> bool:
            if self._ready_file.exists():
                return True
            if not self.running:
                if may_die:
                    return True
                raise RuntimeError(f"{self.name} ended with {self.exit_status}:\n{self.tail()}")
            return False

        await wait_until(ready, f"{self.name} to listen")

    @property
    def _ready_file(self) -> Path:
        return self.directory / "ready.json"

    @property
    def exit_status(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def kill(self) -> bool:
        """kill -9, and it is gone on return; whether there was anything to kill."""
        if self.process is None or not self.running:
            return False
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.paused = False
        return True

    def pause(self) -> bool:
        if self.process is None or not self.up:
            return False
        os.kill(self.process.pid, signal.SIGSTOP)
        self.paused = True
        return True

    def resume(self) -> None:
        if self.process is not None and self.running and self.paused:
            os.kill(self.process.pid, signal.SIGCONT)
        self.paused = False

    async def stop(self) -> int | None:
        """SIGTERM, and until it has ended. Raises: `TimeoutError`."""
        if self.process is None or not self.up:
            return self.exit_status
        os.kill(self.process.pid, signal.SIGTERM)
        await wait_until(lambda: not self.running, f"{self.name} to stop", STOP_SECONDS)
        return self.exit_status

    def wipe(self) -> None:
        """The disk is lost. The process must be dead."""
        assert not self.running, f"{self.name} runs"
        shutil.rmtree(self.data, ignore_errors=True)

    def close(self) -> None:
        """No process and no mount remain."""
        self.resume()
        self.kill()
        self._close_control()
        if self.volume is not None:
            self.volume.close()
            self.volume = None

    def _close_control(self) -> None:
        if self._control is not None:
            self._control[1].close()
            self._control = None

    # --- Orders -------------------------------------------------------------------------------------------------------

    async def order(self, do: str, **details: object) -> dict[str, Any]:
        """One order to the process (`launch.Handles.handle`) and its answer. Raises: `OrderFailed`."""
        async with self._ordering:
            if self._control is None or not self.up:
                raise OrderFailed(f"{self.name} does not run")
            reader, writer = self._control
            number = next(self._orders)
            try:
                async with asyncio.timeout(ORDER_SECONDS):
                    writer.write(json.dumps({"do": do, "id": number, **details}).encode() + b"\n")
                    answer: dict[str, Any] = {}
                    while answer.get("id") != number:  # earlier ones may have come too late for their asker
                        line = await reader.readline()
                        if not line:
                            raise OrderFailed(f"{self.name} has ended")
                        answer = json.loads(line)
            except (OSError, TimeoutError) as error:
                raise OrderFailed(f"{self.name}: {error!r}") from error
        if "error" in answer:
            raise OrderFailed(f"{self.name}: {answer['error']}")
        return answer

    async def try_order(self, do: str, **details: object) -> None:
        """As `order`; a node that is down or stands still is left alone."""
        with contextlib.suppress(OrderFailed):
            await self.order(do, **details)

    # --- What it said -------------------------------------------------------------------------------------------------

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The lines of its log with these events, of all its processes."""
        found = []
        if self.log.exists():
            for line in self.log.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    record = json.loads(line)
                    if isinstance(record, dict) and record.get("event") in names:
                        found.append(record)
        return found
