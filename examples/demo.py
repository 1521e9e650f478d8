"""The demo: a cluster with real data and clients that never pause, kill -9, and then the proof that nothing was lost.

    make demo

1. Three nodes with eight shards are started on this machine, as `raftcache dev` does it, on a data directory of their own.
2. Every *.py file of the running Python's standard library is loaded: path -> content.
3. Clients write unique values, and read back what was acknowledged, until step 6. Two writers stay with each shard.
4. kill -9 of the node that leads most shards. The others go on; then it is started again.
5. kill -9 of all three nodes at once. All are started again.
6. Every acknowledged write is read, and compared byte for byte with what was sent.

Rules of this file:
- what is true is what the clients remember (`ledger.py`); nothing is asked of the cluster but its answers;
- exit status 0 means that everything was read back, and everything was right;
- no process is left behind, whatever happens; data and logs are, where something was wrong.

"The longest time without a leader" is measured where it hurts: the longest time that a shard acknowledged no write. It holds
the failure's detection, the election and the clients' way to the new leader; after the kill of all, the restart as well.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from ledger import Ledger, Verdict, chunks, verify

import raftcache
from raftcache import ops
from raftcache.config.settings import Config

NODES = 3
SHARDS = 8
WRITERS_PER_SHARD = 2
READERS = 4
LIMITS = Config().limits
"""The nodes run with the defaults: what is larger is not sent, but counted as skipped."""
VALUE_BYTES_MAX = 1_000
"""Of what the writers write; the large values are the library's files."""
COMMAND_SECONDS = 120.0
"""For one `raftcache` command; the slowest starts three processes and waits for eight elections."""
COMEBACK_SECONDS = 60.0
"""For every shard to acknowledge again."""
POLL_SECONDS = 0.05
SHOWN_MAX = 5
"""Of the keys that are wrong."""


class Failed(Exception):
    """The demo cannot go on; the message is for its user."""


# --- The cluster --------------------------------------------------------------------------------------------------


class Cluster:
    """Three nodes on this machine, handled as a person would: with `raftcache dev`."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "cluster"
        self.endpoints: list[str] = []
        # A state directory of its own, and no settings: a development cluster of the user's is neither touched nor found.
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("RAFTCACHE_")}
        self._environment["XDG_STATE_HOME"] = str(root / "state")

    def start(self) -> None:
        """Until every shard has a leader. Raises: `Failed`."""
        ready = self._run(
            "dev", "--nodes", NODES, "--shards", SHARDS, "--detach", "--random-ports", "--data-dir", self.directory
        )
        self.endpoints = json.loads(ready)["endpoints"]

    def kill(self, names: list[str]) -> float:
        """kill -9, all of them at the same moment, which is returned (monotonic seconds)."""
        listed = json.loads(self._run("dev", "ps", "-o", "json"))
        processes = {node["name"]: node["pid"] for node in listed["clusters"][0]["nodes"]}
        dead = [name for name in names if processes[name] is None]
        if dead:
            raise Failed(f"{', '.join(dead)} ended by itself; its log says why")
        moment = time.monotonic()
        for name in names:
            os.kill(processes[name], signal.SIGKILL)
        return moment

    def restart_dead(self) -> None:
        """Until they listen; they may have no leader yet."""
        self._run("dev", "start")

    def is_healthy(self) -> bool:
        """Whether all nodes answer and all shards have leaders."""
        return self._call("status").returncode == 0

    def stop(self) -> None:
        """Ends all nodes cleanly, if there are any. Raises: `Failed`."""
        if self.directory.exists():
            self._call("dev", "stop")

    def _run(self, *arguments: object) -> str:
        done = self._call(*arguments)
        if done.returncode != 0:
            raise Failed(f"`raftcache {' '.join(map(str, arguments))}` failed:\n{done.stderr.strip()}")
        return done.stdout

    def _call(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "raftcache.cli", *map(str, arguments)]
        try:
            # In a session of its own: Ctrl-C is for the demo, which then ends the cluster.
            return subprocess.run(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(
                f"`raftcache {' '.join(map(str, arguments))}` takes longer than {COMMAND_SECONDS:.0f} s"
            ) from error


# --- Data and load --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Library:
    """The standard library's files, read."""

    files: dict[bytes, bytes] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    """By reason."""

    @property
    def size(self) -> int:
        return sum(map(len, self.files.values()))


def read_library(files_max: int | None) -> Library:
    """Every *.py file of this Python's standard library; installed packages are none of it."""
    library = Library()
    top = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(top.rglob("*.py")):
        place = path.relative_to(top)
        if {"site-packages", "dist-packages"} & set(place.parts):
            continue
        if files_max is not None and len(library.files) >= files_max:
            library.skipped["beyond --files"] += 1
            continue
        key = f"stdlib/{place.as_posix()}".encode()
        try:
            content = path.read_bytes()
        except OSError:
            library.skipped["not readable"] += 1
            continue
        if len(key) > LIMITS.key_bytes_max:
            library.skipped[f"path longer than {LIMITS.key_bytes_max} bytes"] += 1
        elif len(content) > LIMITS.value_bytes_max:
            library.skipped[f"larger than {LIMITS.value_bytes_max:,} bytes"] += 1
        else:
            library.files[key] = content
    return library


def load(client: raftcache.Client, ledger: Ledger, files: dict[bytes, bytes]) -> None:
    """Writes the files, in batches."""
    for chunk in chunks(files):
        results = client.batch([ops.put(key, value) for key, value in chunk], timeout=30.0)
        for (key, value), result in zip(chunk, results, strict=True):
            if isinstance(result, raftcache.RaftCacheError):
                ledger.fail(key, value, result)
            else:
                ledger.acknowledge(key, value)


class Load:
    """Writers and readers, each in a thread, from `start` until `stop`."""

    def __init__(self, client: raftcache.Client, ledger: Ledger) -> None:
        self._client = client
        self._ledger = ledger
        self._stopping = threading.Event()
        self._tags = tags(client)
        self._threads = ThreadPoolExecutor(len(self._tags) * WRITERS_PER_SHARD + READERS, "client")
        self._running: list[Future[None]] = []

    def start(self) -> None:
        for shard, tag in self._tags.items():
            self._ledger.acknowledged_at[shard] = []
            for writer in range(WRITERS_PER_SHARD):
                self._running.append(self._threads.submit(self._write, shard, f"demo/{{{tag}}}/{writer}"))
        for reader in range(READERS):
            self._running.append(self._threads.submit(self._read, reader))

    def stop(self) -> None:
        """Ends all threads. Raises: what one of them raised and should not have."""
        self._stopping.set()
        self._threads.shutdown()
        for thread in self._running:
            thread.result()

    def has_answered_since(self, moment: float) -> bool:
        """Whether every shard has acknowledged a write after `moment`."""
        return all(times and times[-1] > moment for times in self._ledger.acknowledged_at.values())

    def _write(self, shard: int, prefix: str) -> None:
        ledger, dice = self._ledger, random.Random(prefix)
        times = ledger.acknowledged_at[shard]
        number = 0
        while not self._stopping.is_set():
            key, value = f"{prefix}/{number}".encode(), dice.randbytes(dice.randint(1, VALUE_BYTES_MAX))
            number += 1
            try:
                self._client.put(key, value)
            except raftcache.RaftCacheError as error:
                ledger.fail(key, value, error)
            else:
                times.append(time.monotonic())
                ledger.acknowledge(key, value)

    def _read(self, reader: int) -> None:
        ledger, dice = self._ledger, random.Random(reader)
        while not self._stopping.is_set():
            if not ledger.order:
                self._stopping.wait(POLL_SECONDS)
                continue
            key = dice.choice(ledger.order)
            try:
                entry = self._client.get(key)
            except raftcache.RaftCacheError as error:
                ledger.errors[error.reason] += 1
                continue
            ledger.reads += 1
            if entry is None or entry.value != ledger.acknowledged[key]:
                ledger.wrong_reads.append(key)


def tags(client: raftcache.Client) -> dict[int, str]:
    """For each shard a `{tag}` whose keys it owns."""
    shard_map = client.shard_map()
    found: dict[int, str] = {}
    number = 0
    while len(found) < len(shard_map.shards):
        tag = f"t{number}"
        found.setdefault(shard_map.shard_of(f"{{{tag}}}").shard, tag)
        number += 1
    return found


def busiest(client: raftcache.Client) -> tuple[str, int]:
    """The node that leads most shards, and how many those are."""
    shard_map = client.shard_map()
    names = {node.address: node.name for node in shard_map.nodes}
    leads = Counter(names[shard.leader] for shard in shard_map.shards if shard.leader)
    if not leads:
        raise Failed("no shard has a leader")
    return leads.most_common(1)[0]


# --- The story ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Story:
    """What happened, for the summary."""

    began: float = field(default_factory=time.monotonic)
    library: Library = field(default_factory=Library)
    loaded: int = 0
    load_seconds: float = 0.0
    calm_seconds: float = 0.0
    calm_writes: int = 0
    calm_reads: int = 0
    victim: str = ""
    victim_led: int = 0
    silence_of_one: float = 0.0
    silence_of_all: float = 0.0

    def say(self, text: str) -> None:
        """Progress, for who watches."""
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", file=sys.stderr, flush=True)


def wait(condition: Callable[[], bool], what: str) -> None:
    """Raises: `Failed`."""
    give_up = time.monotonic() + COMEBACK_SECONDS
    while not condition():
        if time.monotonic() > give_up:
            raise Failed(f"waited {COMEBACK_SECONDS:.0f} s for {what}")
        time.sleep(POLL_SECONDS)


def run(cluster: Cluster, story: Story, ledger: Ledger, options: argparse.Namespace) -> Verdict:
    """Steps 1 to 6. Raises: `Failed`."""
    story.say(f"starting {NODES} nodes with {SHARDS} shards; their data: {cluster.directory}")
    cluster.start()
    with raftcache.Client(cluster.endpoints) as client:
        story.library = read_library(options.files)
        story.say(f"loading {len(story.library.files):,} files of the standard library")
        began = time.monotonic()
        load(client, ledger, story.library.files)
        story.load_seconds, story.loaded = time.monotonic() - began, len(ledger.acknowledged)

        clients = Load(client, ledger)
        clients.start()
        try:
            stay_calm(story, ledger, options.seconds)
            kill_one(cluster, client, clients, story, ledger, options.seconds)
            kill_all(cluster, clients, story, ledger, options.seconds)
        finally:
            story.say("stopping the clients")
            clients.stop()
        if options.sabotage:
            key = random.choice(ledger.order)
            client.delete(key)
            story.say(f"sabotage: removed {key!r} behind the ledger's back")
        sent = len(ledger.acknowledged) + len(ledger.unknown) + len(ledger.refused)
        story.say(f"reading back everything that was ever sent: {sent:,} keys")
        return verify(client, ledger)


def stay_calm(story: Story, ledger: Ledger, seconds: float) -> None:
    """How fast it is while nothing is wrong."""
    story.say(f"{SHARDS * WRITERS_PER_SHARD} writers and {READERS} readers at work")
    began, writes, reads = time.monotonic(), len(ledger.order), ledger.reads
    time.sleep(seconds)
    story.calm_seconds = time.monotonic() - began
    story.calm_writes, story.calm_reads = len(ledger.order) - writes, ledger.reads - reads


def kill_one(
    cluster: Cluster, client: raftcache.Client, clients: Load, story: Story, ledger: Ledger, seconds: float
) -> None:
    """kill -9 of the node that leads most; the others go on; it comes back."""
    story.victim, story.victim_led = busiest(client)
    story.say(f"kill -9 {story.victim}, which leads {story.victim_led} of {SHARDS} shards")
    killed = cluster.kill([story.victim])
    dead = time.monotonic()
    wait(lambda: clients.has_answered_since(dead), "every shard to acknowledge writes again")
    story.say(f"every shard acknowledges writes again, {time.monotonic() - killed:.1f} s later")
    time.sleep(seconds)
    story.silence_of_one = ledger.longest_silence(killed, time.monotonic())
    story.say(f"starting {story.victim} again")
    cluster.restart_dead()
    wait(cluster.is_healthy, f"{story.victim} to be back")
    time.sleep(seconds)


def kill_all(cluster: Cluster, clients: Load, story: Story, ledger: Ledger, seconds: float) -> None:
    """kill -9 of all nodes at once; all come back."""
    story.say("kill -9 of all three nodes at once")
    killed = cluster.kill([f"n{number}" for number in range(1, NODES + 1)])
    dead = time.monotonic()
    story.say("starting them again")
    cluster.restart_dead()
    wait(lambda: clients.has_answered_since(dead), "every shard to acknowledge writes again")
    story.say(f"every shard acknowledges writes again, {time.monotonic() - killed:.1f} s later")
    time.sleep(seconds)
    story.silence_of_all = ledger.longest_silence(killed, time.monotonic())


def summary(story: Story, ledger: Ledger, verdict: Verdict) -> str:
    """What happened, for a person."""
    library = story.library
    skipped = ", ".join(f"{count:,} {why}" for why, count in library.skipped.items()) or "0"
    written = len(ledger.acknowledged) - story.loaded
    calm = story.calm_seconds or 1.0
    rows = [
        (
            "files loaded",
            f"{story.loaded:,} of {len(library.files):,}, {library.size / 1e6:.1f} MB in {story.load_seconds:.1f} s",
        ),
        ("files skipped", skipped),
        ("writes acknowledged", f"{len(ledger.acknowledged):,}: the files, and {written:,} small ones"),
        ("writes of unknown outcome", f"{len(ledger.unknown):,}, of which {verdict.unknown_there:,} took effect"),
        ("writes refused", f"{len(ledger.refused):,}"),
        ("reads meanwhile", f"{ledger.reads:,}, wrong {len(ledger.wrong_reads):,}"),
        (
            "speed before the first kill",
            f"{story.calm_writes / calm:,.0f} writes/s, {story.calm_reads / calm:,.0f} reads/s",
        ),
        ("longest time without a leader", ""),
        (f"  kill -9 of {story.victim}", f"{story.silence_of_one:.1f} s; it led {story.victim_led} of {SHARDS} shards"),
        ("  kill -9 of all three", f"{story.silence_of_all:.1f} s, their restart included"),
        ("verified byte for byte", f"{verdict.verified:,} acknowledged writes"),
        ("lost", f"{len(verdict.lost):,}"),
    ]
    for name, keys in (
        ("CHANGED", verdict.changed),
        ("COULD NOT BE READ", verdict.unread),
        ("LOST", verdict.lost),
        ("READ WRONGLY", ledger.wrong_reads),
    ):
        if keys:
            rows.append((name, f"{len(keys):,}: " + ", ".join(map(repr, keys[:SHOWN_MAX]))))
    lines = [f"{name:<31}{text}".rstrip() for name, text in rows]
    return "\n".join([f"demo of {NODES} nodes and {SHARDS} shards, {time.monotonic() - story.began:.0f} s", *lines])


# --- The program ----------------------------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill nodes of a cluster under load and prove that nothing was lost.")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each of the four phases [default: 8]")
    parser.add_argument("--files", type=int, metavar="N", help="load at most so many files [default: all]")
    # For the demo's own test: removes one acknowledged key behind its back, which it must notice.
    parser.add_argument("--sabotage", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 if every acknowledged write was read back as it was sent, 1 otherwise, 130 if interrupted."""
    options = parse(arguments)
    root = Path(tempfile.mkdtemp(prefix="raftcache-demo-"))
    cluster, story, ledger = Cluster(root), Story(), Ledger()
    status = 1
    try:
        verdict = run(cluster, story, ledger, options)
        print(summary(story, ledger, verdict))
        status = 0 if verdict.good and not ledger.wrong_reads else 1
    except Failed as failure:
        print(f"demo: {failure}", file=sys.stderr)
    except KeyboardInterrupt:
        status = 130
    finally:
        story.say("stopping the nodes")
        cluster.stop()
        if status == 1:
            print(f"demo: the nodes' data and logs are kept in {root}", file=sys.stderr)
        else:
            shutil.rmtree(root, ignore_errors=True)
    return status


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
