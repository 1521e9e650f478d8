"""One run: a cluster, clients, a nemesis; then healing, final reads, a comparison of the replicas, and the verdict.

    start ─► prepare ─► clients + ballast + nemesis, for some seconds ─► heal ─► final reads ─► replicas equal? ─► checkers

Rules of this file:
- everything random comes from the seed, in streams of their own (clients, nemesis, network, settings); what a run does is
  still not a replay: processes and the kernel are not deterministic;
- a run is ok only if the cluster came back, every key could be read, all replicas are equal, and every checker says ok;
- all that a run leaves behind is in its folder.
"""

import asyncio
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvloop

from faults.checkers import Verdict, combine
from faults.clients import Client, Gateway, Recorder
from faults.cluster import REPLICAS, Cluster, ClusterUnavailable
from faults.disks import DiskFailed
from faults.history import Json, Op, write_history
from faults.nemeses import NEMESES, Nemesis
from faults.processes import OrderFailed
from faults.report import write_report
from faults.report.facts import NemesisEvent, RunFacts, write_facts
from faults.scene import Scene
from faults.workloads import WORKLOADS
from faults.workloads.workload import Workload
from raftcache.v1 import kv_pb2

CHAOS = "chaos"
NONE = "none"
FRONTS = ("grpcio", "fast")
"""What may speak gRPC to clients; the proxies, the clients and the checkers do not know which it is."""
CLIENTS = 12
THINK_SECONDS_MAX = 0.06
"""Between two operations of a client, drawn from 0 to this: 200 to 300 operations a second in all, on two cores."""
BALLAST_BYTES = 6_000
BALLAST_SECONDS = 0.05
"""One value of ballast each: it makes the logs grow, so that checkpoints and snapshots happen within a run."""
REST_SECONDS = (0.3, 2.0)
"""Between the healing of a fault and the next one."""
LEVEL_SECONDS = 30.0
HISTORY, FACTS = "history.jsonl", "run.json"
KILLED = -9
FATAL = 70

Progress = Callable[[str], None]
HARNESS_ERRORS = (TimeoutError, RuntimeError, OrderFailed, DiskFailed, ClusterUnavailable)
"""What a nemesis may end with: it is told as a problem of the run."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What reproduces a run, as far as a run can be reproduced."""

    workload: str
    nemesis: str
    """A name of `NEMESES`, `chaos` or `none`."""
    seed: int
    seconds: float
    folder: Path
    nodes: int = 3
    bug: str = ""
    """A deliberate one, see `launch.py`."""
    front: str = ""
    """`FRONTS`, of all nodes; empty: the seed draws one."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Nemeses that cannot be done here, and why. Chaos leaves them out."""

    def command(self) -> str:
        """What a person types to have it once more."""
        words = [f"WORKLOAD={self.workload}", f"NEMESIS={self.nemesis}", f"SEED={self.seed}", "MINUTES=1"]
        words += [f"NODES={self.nodes}"] if self.nodes != REPLICAS else []
        words += [f"FRONT={self.front}"] if self.front else []
        words += [f"BUG={self.bug}"] if self.bug else []
        return f"make jepsen {' '.join(words)}"


def settings_of(seed: int) -> dict[str, object]:
    """Settings drawn from the seed: each run looks at another corner (small logs, threads for syncs, quick ticks)."""
    dice = random.Random(f"{seed}/settings")
    return {
        "raft.tick_ms": dice.choice(["50ms", "100ms"]),
        "storage.segment_bytes": "8MiB",
        "storage.log_bytes_per_checkpoint": dice.choice(["64KiB", "64KiB", "256KiB", "64MiB"]),
        "storage.trailing_log_bytes": dice.choice(["0", "64KiB", "16MiB"]),
        "storage.sync_inline_below_us": dice.choice(["0us", "1000us"]),
        "storage.commit_interval_ms": dice.choice(["20ms", "500ms"]),
        "storage.disk_free_bytes_min": "16MiB",
        "raft.entry_commands_max": dice.choice([1, 64, 4096]),
        "raft.batches_in_flight_max": dice.choice([1, 2, 8]),
        "raft.append_bytes_max": dice.choice(["4KiB", "1MiB"]),
        "front.kind": dice.choice(FRONTS),
    }


class Run:
    """See the module."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan = plan
        self.recorder = Recorder()
        self.events: list[NemesisEvent] = []
        self.now: dict[str, str] = {}
        """The faults in force, by group: what the progress display shows."""
        self.workload: Workload = WORKLOADS[plan.workload](random.Random(f"{plan.seed}/workload"))
        self.shards = random.Random(f"{plan.seed}/shards").choice([1, 2, 3])
        self.settings = settings_of(plan.seed)
        if plan.nemesis in NEMESES:
            self.settings |= NEMESES[plan.nemesis].settings
        if plan.front:
            self.settings["front.kind"] = plan.front
        self._progress = progress
        self._clients: list[Client] = []
        self._running = True
        self._scene: Scene
        self._started_at = time.strftime("%Y-%m-%d %H:%M:%S")
        self._verdicts: list[Verdict] = []

    async def run(self) -> RunFacts:
        """All of it. Raises only where the harness itself fails."""
        plan = self.plan
        plan.folder.mkdir(parents=True, exist_ok=True)
        async with asyncio.TaskGroup() as tasks:
            cluster = Cluster(
                plan.folder,
                random.Random(f"{plan.seed}/network"),
                tasks,
                nodes=plan.nodes,
                shards=self.shards,
                settings=self.settings,
                volume=self._volume(),
                bug=plan.bug,
            )
            self._scene = Scene(cluster, random.Random(f"{plan.seed}/nemesis"))
            try:
                if await self._started(cluster):
                    await self._disturb()
                    await self._settle()
            finally:
                for client in self._clients:
                    await client.close()
                await cluster.close()
        return self._judge()

    async def _started(self, cluster: Cluster) -> bool:
        try:
            await cluster.start()
        except HARNESS_ERRORS as error:
            self._verdicts.append(Verdict("unknown", "cluster", f"it could not be started: {error}"))
            return False
        return True

    def _volume(self) -> str:
        if self.plan.nemesis == CHAOS:
            return "" if "power-cut-one" in self.plan.skipped else "loop"
        return NEMESES[self.plan.nemesis].volume if self.plan.nemesis != NONE else ""

    # --- While it lasts -----------------------------------------------------------------------------------------------

    def _client(self, name: str) -> Client:
        client = Client(self.recorder, random.Random(f"{self.plan.seed}/client/{name}"), self._gateways)
        self._clients.append(client)
        return client

    def _gateways(self) -> list[Gateway]:
        """The nodes that clients may ask: those that listen, whatever else is wrong with them."""
        network, own = self._scene.network, self._scene.cluster.everything_everywhere
        return [
            Gateway(node.name, network.client_address(node.name), node.starts if own else None)
            for node in self._scene.nodes
            if node.listening or node.paused
        ]

    async def _disturb(self) -> None:
        """Clients and nemesis, for the seconds of the plan."""
        plan, loop = self.plan, asyncio.get_running_loop()
        await self.workload.prepare(self._client("prepare"))
        until = loop.time() + plan.seconds
        async with asyncio.TaskGroup() as tasks:
            display = tasks.create_task(self._display(until), name="display")
            for number in range(CLIENTS):
                tasks.create_task(self._work(self._client(str(number))), name=f"client {number}")
            tasks.create_task(self._weigh_down(self._client("ballast")), name="ballast")
            async with asyncio.TaskGroup() as nemeses:
                for choices in self._choices():
                    nemeses.create_task(self._torment(choices, until), name="nemesis")
                await asyncio.sleep(plan.seconds)
            self._running = False
            display.cancel()

    def _choices(self) -> list[list[Nemesis]]:
        """What each of the nemesis tasks may do: chaos has one task for each group."""
        plan = self.plan
        if plan.nemesis == NONE:
            return []
        if plan.nemesis != CHAOS:
            return [[NEMESES[plan.nemesis]]]
        groups: dict[str, list[Nemesis]] = {}
        for each in NEMESES.values():
            if each.chaos and each.name not in plan.skipped and each.volume in ("", self._volume()):
                groups.setdefault(each.group, []).append(each)
        return [*groups.values()]

    async def _torment(self, choices: list[Nemesis], until: float) -> None:
        scene, loop = self._scene, asyncio.get_running_loop()
        while True:
            await asyncio.sleep(scene.between(*REST_SECONDS))
            if loop.time() >= until:
                return
            nemesis = scene.dice.choice(choices)
            hold = scene.between(*nemesis.hold)
            self.now[nemesis.group] = f"{nemesis.name} ..."
            start_ns, detail = time.monotonic_ns(), ""
            try:
                async with nemesis.strike(scene) as detail:
                    self.now[nemesis.group] = f"{nemesis.name}: {detail}"
                    await asyncio.sleep(hold)
            except HARNESS_ERRORS as error:
                scene.problems.append(f"{nemesis.name} ({detail}): {error}")
                return
            finally:
                self.now.pop(nemesis.group, None)
                self.events.append(NemesisEvent(start_ns, time.monotonic_ns(), nemesis.name, detail))
            scene.counts["faults"] += 1

    async def _work(self, client: Client) -> None:
        while self._running:
            await self.workload.step(client)
            await asyncio.sleep(client.dice.random() * THINK_SECONDS_MAX)

    async def _weigh_down(self, client: Client) -> None:
        while self._running:
            key = b"ballast%d" % client.dice.randrange(64)
            await client.call("Put", kv_pb2.PutRequest(key=key, value=client.dice.randbytes(BALLAST_BYTES)))
            await asyncio.sleep(BALLAST_SECONDS)

    async def _display(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            counts = self.recorder.statuses
            self._progress(
                f"{self.plan.workload} x {self.plan.nemesis}  {max(0, until - loop.time()):3.0f} s left  "
                f"{self.recorder.rate():4.0f} ops/s  ok {counts['ok']:,}  fail {counts['fail']:,}  "
                f"info {counts['info']:,}  {'; '.join(self.now.values())}"
            )
            await asyncio.sleep(1.0)

    # --- Afterwards ---------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Heals, waits, reads everything, and compares the replicas."""
        scene = self._scene
        self._progress(f"{self.plan.workload} x {self.plan.nemesis}  healing, and reading everything")
        await scene.network.heal()
        for node in scene.nodes:
            if not node.running and node.exit_status not in (KILLED, FATAL):
                scene.problems.append(f"{node.name} ended by itself with {node.exit_status}: {node.tail(5)}")
        try:
            await scene.cluster.start_all()
            await scene.cluster.wait_serving()
            await self.workload.finish(self._client("final"))
        except HARNESS_ERRORS as error:
            scene.problems.append(f"the cluster did not come back: {error}")
            return
        self._verdicts.append(await self._compare())

    async def _compare(self) -> Verdict:
        """Whether all replicas of a shard are equal at an equal index. Raises nothing: no answer is unknown."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + LEVEL_SECONDS
        said = "nobody was asked"
        while loop.time() < give_up:
            try:
                states = await self._scene.cluster.states()
            except OrderFailed as error:
                said = str(error)
            else:
                at: dict[tuple[int, int], dict[str, Any]] = {}
                for state in states:
                    first = at.setdefault((state["shard"], state["applied"]), state)
                    if (first["hash"], first["records"]) != (state["hash"], state["records"]):
                        both = "; ".join(f"{each['node']} has {_state(each)}" for each in (first, state))
                        where = f"shard {state['shard']}, index {state['applied']}"
                        return Verdict("violation", "replicas", f"two replicas differ at one index: {where}: {both}")
                said = f"indexes {sorted(at)} of {len(states)} replicas"
                if len(at) == self.shards + 1:
                    return Verdict(
                        "ok", "replicas", f"all {len(states)} replicas are equal", facts={"replicas": len(states)}
                    )
            await asyncio.sleep(0.2)
        return Verdict("unknown", "replicas", f"they were not level in {LEVEL_SECONDS:.0f} s: {said}")

    def _judge(self) -> RunFacts:
        plan, scene = self.plan, self._scene
        everybody = (*scene.nodes, *scene.cluster.left)
        lost = {node.name for node in everybody if node.events("state_lost")}
        history = sorted(without_lives(self.recorder.ops, lost), key=lambda op: op.start_ns)
        write_history(plan.folder / HISTORY, history)
        self._progress(f"{plan.workload} x {plan.nemesis}  judging {len(history):,} operations")
        self._look_at_logs()
        verdicts = self._verdicts
        for problem in scene.problems:
            verdicts.append(Verdict("violation", "cluster", problem))
        verdicts.extend(self.workload.check(history))
        counts = {
            "operations": len(history),
            **{status: self.recorder.statuses[status] for status in ("ok", "fail", "info")},
            **dict(sorted(scene.counts.items())),
        }
        logs = [node.log for node in everybody]
        facts = RunFacts(
            workload=plan.workload,
            nemesis=plan.nemesis,
            seed=plan.seed,
            config=self._config(),
            history=history,
            nemesis_events=sorted(self.events),
            verdicts=verdicts,
            counts=counts,
            files=[HISTORY, FACTS, *(str(log.relative_to(plan.folder.resolve())) for log in logs)],
            skipped=plan.skipped,
            started_at=self._started_at,
        )
        write_facts(plan.folder / FACTS, facts)
        write_report(plan.folder, facts)
        if combine(verdicts).ok:
            for log in logs:
                shutil.rmtree(log.parent / "data", ignore_errors=True)
        return facts

    def _config(self) -> dict[str, Json]:
        plan = self.plan
        return {
            "nodes": plan.nodes,
            "shards": self.shards,
            "clients": CLIENTS,
            "seconds": round(plan.seconds, 1),
            "bug": plan.bug,
            **{name: str(value) for name, value in self.settings.items()},
            "errors": dict(self.recorder.reasons.most_common()),
        }

    def _look_at_logs(self) -> None:
        """What the nodes say of themselves that must never be said."""
        scene = self._scene
        disk_faults = bool(self._volume())
        for node in (*scene.nodes, *scene.cluster.left):
            # What is damaged stops a replica, or ends the process in good order; never by a signal.
            damaged = node.name in scene.damaged
            said: Counter[str] = Counter()
            for event in node.events("replica_stopped", "replies_lost", "unknown_event", "node_fatal"):
                if damaged and event["event"] in ("replica_stopped", "node_fatal"):
                    continue
                # A disk that fails stops the node, or a replica that was just about to read from it.
                if not (disk_faults and (event["event"] == "node_fatal" or "StateLost" in str(event.get("reason")))):
                    details = {name: event[name] for name in event if name not in ("ts", "level", "node_id", "node")}
                    said[", ".join(f"{name} {value}" for name, value in details.items())] += 1
            for words, times in said.items():
                scene.problems.append(f"{node.name} says: {words}" + (f" ({times} times)" if times > 1 else ""))
            for status in node.exits:
                if status not in (KILLED, 0) and not (disk_faults and status == FATAL) and not (damaged and status > 0):
                    scene.problems.append(f"a process of {node.name} ended with {status}")


def _state(replica: dict[str, Any]) -> str:
    return f"{replica['records']} records, hash {replica['hash']}"


def without_lives(history: Iterable[Op], nodes: Collection[str]) -> list[Op]:
    """The history, without a claim to know which life answered stale reads at these nodes.

    A replica that loses its state while its process lives begins anew, as after a restart; and until it has one again, its
    node asks another one.
    """
    return [
        replace(op, extra={name: fact for name, fact in op.extra.items() if name != "incarnation"})
        if op.node in nodes and "incarnation" in op.extra
        else op
        for op in history
    ]


def run(plan: Plan, progress: Progress) -> RunFacts:
    """One run, on an event loop of its own."""
    return uvloop.run(Run(plan, progress).run())


def outcome(facts: RunFacts) -> Verdict:
    """The verdict on a run."""
    return combine(facts.verdicts)
