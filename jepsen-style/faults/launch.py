"""Starts a node with handles on it: `python -m faults.launch --control FD ... -- serve --set ...`.

    harness ──── socket pair, a line of JSON each way ────► thread in the node's process ──► failpoints, disk, clock, loop

The node's own code is unchanged; before it starts, this wraps the few functions on which a fault acts:
- `PeerNetwork`: which address is dialed for which (so that each directed link has its own proxy);
- `SystemClock.wall_ms`: an offset;
- `OsFile.fdatasync`: a delay;
- the failpoints (`failpoints.py`);
- with `--bug NAME`, one of the deliberate bugs of `tests/simulation/zoo.py`, to see that the suite notices.

When the harness ends, the socket does, and the node ends with it: no process is left behind.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import importlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from faults.failpoints import Failpoints

if TYPE_CHECKING:
    from raftcache.node.engine import Engine

ZOO = "tests.simulation.zoo"
"""Has `infect(name)`: from then on this process has the bug."""
ANSWER_SECONDS = 5.0
"""For what is asked of the node's loop."""
Address = tuple[str, int]


class Handles:
    """What the harness can do to this process."""

    def __init__(self) -> None:
        self.failpoints = Failpoints()
        self.routes: dict[Address, Address] = {}
        self.clock_offset_ms = 0
        self.sync_delay_s = 0.0
        self.engine: Engine | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def install(self) -> None:
        """Wraps what the faults act on."""
        self.failpoints.install()
        self._install_routes()
        self._install_clock()
        self._install_disk()
        self._install_engine()

    def route(self, address: Address | None) -> Address | None:
        return None if address is None else self.routes.get(address, address)

    def _install_routes(self) -> None:
        from raftcache.transport.peers import PeerNetwork

        make, request = PeerNetwork.__init__, PeerNetwork.request_address

        def made(network: PeerNetwork, *args: Any, address_of: Callable[[Any], Address | None], **rest: Any) -> None:
            make(network, *args, address_of=lambda node: self.route(address_of(node)), **rest)

        def request_address(network: PeerNetwork, address: Address, *args: Any, **rest: Any) -> None:
            request(network, self.routes.get(address, address), *args, **rest)

        _replace(PeerNetwork, "__init__", made)
        _replace(PeerNetwork, "request_address", request_address)

    def _install_clock(self) -> None:
        from raftcache.clock import SystemClock

        wall_ms = SystemClock.wall_ms
        _replace(SystemClock, "wall_ms", lambda clock: wall_ms(clock) + self.clock_offset_ms)

    def _install_disk(self) -> None:
        from raftcache.storage.disk import OsFile

        fdatasync = OsFile.fdatasync

        def slow_fdatasync(file: OsFile) -> None:
            if self.sync_delay_s:
                time.sleep(self.sync_delay_s)
            fdatasync(file)

        _replace(OsFile, "fdatasync", slow_fdatasync)

    def _install_engine(self) -> None:
        from raftcache.node.engine import Engine

        start = Engine.start

        def noticed_start(engine: Engine) -> None:
            self.engine, self.loop = engine, asyncio.get_running_loop()
            start(engine)

        _replace(Engine, "start", noticed_start)

    # --- What the harness asks ----------------------------------------------------------------------------------------

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Does what one line says; returns the answer."""
        match request["do"]:
            case "arm":
                self.failpoints.arm(request["point"], request["passes"])
            case "disarm":
                self.failpoints.disarm()
            case "clock":
                self.clock_offset_ms = request["offset_ms"]
            case "disk":
                self.sync_delay_s = request["delay_ms"] / 1000
            case "stall":
                if self.loop is not None:
                    self.loop.call_soon_threadsafe(time.sleep, request["ms"] / 1000)
            case "route":
                self.set_routes(request["routes"])
            case "states":
                return {"states": self._on_loop(self._states)}
            case other:
                raise ValueError(f"unknown request {other!r}")
        return {}

    def set_routes(self, routes: dict[str, str]) -> None:
        self.routes |= {_address(source): _address(target) for source, target in routes.items()}

    def _on_loop(self, function: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        if self.loop is None:
            return []
        answer: concurrent.futures.Future[list[dict[str, Any]]] = concurrent.futures.Future()

        def run() -> None:
            try:
                answer.set_result(function())
            except Exception as error:  # noqa: BLE001 - handed on to whoever asked
                answer.set_exception(error)

        self.loop.call_soon_threadsafe(run)
        return answer.result(ANSWER_SECONDS)

    def _states(self) -> list[dict[str, Any]]:
        """Each replica's state as it is between two turns of the loop."""
        assert self.engine is not None
        return [
            {
                "shard": replica.shard,
                "replica": replica.replica_id,
                "applied": replica.machine.applied_index,
                "term": replica.raft.term,
                "leads": replica.leads,
                "learner": replica.replica_id not in replica.raft.configuration.voters,
                "records": replica.machine.record_count,
                "hash": f"{replica.machine.state_hash:032x}",
            }
            for replica in self.engine.replicas.values()
            if replica.machine is not None and not replica.stopped
        ]

    def serve(self, control: socket.socket) -> None:
        """Answers until the harness goes; then this process goes too."""
        with control.makefile("rwb") as lines:
            for line in lines:
                request = json.loads(line)
                try:
                    answer = self.handle(request)
                except Exception as error:  # noqa: BLE001 - the harness reports it
                    answer = {"error": f"{type(error).__name__}: {error}"}
                with contextlib.suppress(OSError):
                    lines.write(json.dumps(answer | {"id": request["id"]}).encode() + b"\n")
                    lines.flush()
        os._exit(1)


def _replace(owner: type, name: str, function: Callable[..., Any]) -> None:
    setattr(owner, name, function)


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    parser = argparse.ArgumentParser(description="Starts a node with handles for faults.")
    parser.add_argument("--control", type=int, required=True, metavar="FD", help="a socket on which orders come")
    parser.add_argument("--bug", help="a deliberate bug of tests/simulation/zoo.py")
    parser.add_argument(
        "--arm", action="append", default=[], metavar="POINT:PASSES", help="a failpoint, from the start"
    )
    parser.add_argument(
        "--route", action="append", default=[], metavar="ADDRESS=ADDRESS", help="dial the second instead"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- serve ...")
    arguments = parser.parse_args()
    handles = Handles()
    handles.set_routes(dict(each.split("=") for each in arguments.route))
    for each in arguments.arm:
        name, _, passes = each.partition(":")
        handles.failpoints.arm(name, int(passes or 0))
    handles.install()
    control = socket.socket(fileno=arguments.control)
    control.set_inheritable(False)
    threading.Thread(target=handles.serve, args=(control,), name="faults", daemon=True).start()
    if arguments.bug:
        importlib.import_module(ZOO).infect(arguments.bug)
    from raftcache.cli import main as cli

    sys.argv = ["raftcache", *(word for word in arguments.command if word != "--")]
    cli()


if __name__ == "__main__":
    main()
