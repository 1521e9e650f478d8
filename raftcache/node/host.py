"""A node before, while and after it belongs to a cluster: identity, first directory, and the engine once there is one.

    empty directory ──serve──► no cluster ──init / join──► engine ──SIGTERM──► closed
                                               ▲
    directory with a cluster id ──serve────────┘

Rules of this file:
- the cluster id in the data directory is the commit point: it is written *after* the first replicas are durable, so a
  node that died half-way through `init` starts again from nothing and is told again;
- before that only the kinds of request from `KIND_IDENTIFY` on are answered;
- a first member keeps the plan of its cluster: an `init` that was interrupted is finished with the same plan, byte for byte,
  from whichever node it is asked for again;
- what a request raises goes back as its refusal; nothing that another node sends can end this one.
"""

from __future__ import annotations

import json
import random as random_module
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn, Protocol

from raftcache.clock import Clock
from raftcache.errors import (
    Corruption,
    InvalidRequest,
    PreconditionFailed,
    RaftCacheError,
    StorageFull,
    Unavailable,
    UnsupportedVersion,
)
from raftcache.ids import NO_REPLICA, ClusterId, NodeId, ReplicaId, ShardId
from raftcache.kv.limits import KvLimits
from raftcache.node.administration import Administrator, wrap, wrap_error
from raftcache.node.api import Reply, ReplySink, Request
from raftcache.node.directory import Directory, DirectoryNode
from raftcache.node.engine import Engine, Network
from raftcache.node.first_state import create_first_replicas
from raftcache.node.forwarding import refuse_requests
from raftcache.node.group_commit import Scheduler
from raftcache.node.kinds import (
    KIND_DIRECTORY,
    KIND_DIRECTORY_PUSH,
    KIND_FORWARD,
    KIND_IDENTIFY,
    KIND_INIT,
    KIND_JOIN,
    KIND_LEADER,
    KIND_STATUS,
    KIND_TRANSFER,
    KIND_WILLING,
)
from raftcache.node.observer import Observer
from raftcache.node.settings import EngineSettings
from raftcache.node.status import local_status
from raftcache.storage.state import StateStore
from raftcache.storage.wal import Wal
from raftcache.telemetry.tracing import NO_TRACER, Tracer


class HostNetwork(Network, Protocol):
    """What a host needs beyond an engine's network: to ask an address, and to say which cluster it now belongs to."""

    def request_address(
        self,
        address: tuple[str, int],
        kind: int,
        payload: bytes,
        on_reply: Callable[[bytes | RaftCacheError], None],
        deadline_ns: int,
    ) -> None: ...
    def set_cluster(self, cluster: ClusterId) -> None: ...


class Home(Protocol):
    """The data directory, as a host uses it."""

    def load_directory(self) -> Directory | None: ...
    def save_directory(self, directory: Directory) -> bool:
        """False where the disk has no room for it: it is a copy, and may be saved later."""
        ...

    def load_plan(self) -> Directory | None: ...
    def save_plan(self, plan: Directory) -> bool: ...
    def join_cluster(self, cluster: ClusterId) -> None:
        """The commit point: durable on return."""
        ...

    def open_wal(self, cluster: ClusterId, *, fresh: bool) -> Wal:
        """`fresh` removes what a half-done init left."""
        ...


class Host:
    """See the module. One per process; everything runs on the loop."""

    def __init__(
        self,
        *,
        entry: DirectoryNode,
        cluster: ClusterId | None,
        version: str,
        settings: EngineSettings,
        limits: KvLimits,
        home: Home,
        open_state: Callable[[ReplicaId, ShardId], StateStore],
        network: HostNetwork,
        scheduler: Scheduler,
        clock: Clock,
        random: random_module.Random,
        new_id: Callable[[], int],
        observer: Observer,
        fatal: Callable[[str], NoReturn],
        disk_free: Callable[[], int],
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self.node = entry.node
        self.cluster = cluster
        self.network = network
        self.clock = clock
        self.new_id = new_id
        self.engine: Engine | None = None
        self.making: ClusterId | None = None
        """The cluster that an `init` asked of this node is making now: meanwhile it joins no other."""
        self._initialising = False
        self.administration = Administrator(self)
        self.on_started: Callable[[Engine], None] = lambda engine: None
        self._entry = entry
        self._version = version
        self._settings = settings
        self._limits = limits
        self._home = home
        self._open_state = open_state
        self._scheduler = scheduler
        self._random = random
        self._observer = observer
        self._fatal = fatal
        self._disk_free = disk_free
        self._tracer = tracer

    # --- Life ---------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Starts the engine if this node belongs to a cluster. Raises: `Corruption` and its kin, with what to do."""
        if self.cluster is None:
            return
        try:
            directory = self._home.load_directory()
            lost = "it is not there" if directory is None else ""
        except Corruption as damage:
            directory, lost = None, damage.message
        if directory is None:
            # A copy: the log says which replicas are here, and a catalog replica, or another node, has the directory.
            self._observer.event("directory_lost", reason=lost)
            directory = Directory(self.cluster, 0)
        self._start(directory, self._home.open_wal(self.cluster, fresh=False))

    def _start(self, directory: Directory, wal: Wal) -> None:
        engine = Engine(
            entry=self._entry,
            settings=self._settings,
            limits=self._limits,
            wal=wal,
            open_state=self._open_state,
            network=self.network,
            scheduler=self._scheduler,
            clock=self.clock,
            random=self._random,
            observer=self._observer,
            directory=directory,
            on_directory=self._home.save_directory,
            fatal=self._fatal,
            disk_free=self._disk_free,
            tracer=self._tracer,
        )
        engine.start()
        self.engine = engine
        self.on_started(engine)

    def tick(self) -> None:
        """For whoever drives the node. What the engine raises here is no replica's doing, and ends the process."""
        if self.engine is None:
            return
        try:
            self.engine.tick()
        except Exception as error:  # noqa: BLE001 - the supervisor of the process, as in `server.loop`
            self._fatal(f"{type(error).__name__}: {error}")

    def running(self) -> Engine:
        """The engine. Raises: `Unavailable` before this node belongs to a cluster."""
        if self.engine is None:
            raise Unavailable(
                "this node does not belong to a cluster yet: run `raftcache init` on one of the first nodes, "
                "or `raftcache node join` against a running cluster"
            )
        return self.engine

    def submit(self, requests: Sequence[Request], sink: ReplySink) -> None:
        """See `node.api.Submit`."""
        try:
            engine = self.running()
        except Unavailable as error:
            sink.deliver([Reply(request.token, error) for request in requests])
            return
        engine.submit(requests, sink)

    def session_limits(self) -> dict[str, int]:
        """The limits that a cluster made by this node gets for good."""
        limits = self._limits
        return {
            "session_window": limits.session_window,
            "session_reply_bytes_max": limits.session_reply_bytes_max,
            "session_reply_bytes_total_max": limits.session_reply_bytes_total_max,
            "sessions_max": limits.sessions_max,
        }

    def own_entry(self) -> DirectoryNode:
        return self._entry

    def load_plan(self) -> Directory | None:
        """The plan of the cluster that this node made or was made a member of, if it has one and can read it."""
        try:
            return self._home.load_plan()
        except (Corruption, UnsupportedVersion):
            # Whoever became a member by it has a copy.
            return None

    def save_plan(self, plan: Directory) -> None:
        """Durable on return. Raises: `StorageFull`."""
        if not self._home.save_plan(plan):
            raise StorageFull("there is no room on the disk for the plan of the new cluster; free some and ask again")

    # --- What other nodes ask -----------------------------------------------------------------------------------------

    def on_request(self, from_node: NodeId, kind: int, payload: bytes, respond: Callable[[bytes], None]) -> None:
        """Answers a request of another node, now or, for forwarded ones, when their replies are there."""
        try:
            self._on_request(from_node, kind, payload, respond)
        except (ValueError, KeyError, TypeError, AttributeError, struct.error, RaftCacheError) as error:
            self._observer.event("bad_request_from_node", from_node=from_node, error=str(error) or repr(error))
            respond(b"")

    def _on_request(self, from_node: NodeId, kind: int, payload: bytes, respond: Callable[[bytes], None]) -> None:
        """Raises before it answers, or not at all."""
        engine = self.engine
        match kind:
            case _ if kind == KIND_FORWARD:
                if engine is not None:
                    waiting = partial(engine.network.answer_bytes_waiting, from_node)
                    engine.router.on_forwarded(from_node, payload, respond, waiting)
                else:
                    respond(refuse_requests(payload, Unavailable(f"node {self.node} is starting")))
            case _ if kind in (KIND_DIRECTORY, KIND_DIRECTORY_PUSH, KIND_LEADER, KIND_WILLING) and engine is None:
                respond(b"")
            case _ if kind == KIND_WILLING and engine is not None:
                respond(engine.keeper.on_willing_asked())
            case _ if kind == KIND_DIRECTORY_PUSH and engine is not None:
                engine.keeper.on_push(payload)
                respond(b"")
            case _ if kind == KIND_DIRECTORY and engine is not None:
                respond(engine.keeper.on_asked(payload))
            case _ if kind == KIND_LEADER and engine is not None:
                respond(engine.places.on_asked(payload))
            case _ if kind == KIND_INIT:
                self.begin_init(payload, respond)
            case _:
                respond(self.answer(kind, payload))

    def answer(self, kind: int, payload: bytes) -> bytes:
        """The answer to a request that needs no waiting, wrapped; a refusal is an answer too."""
        try:
            return wrap(self._answer(kind, payload))
        except RaftCacheError as error:
            return wrap_error(error)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return wrap_error(InvalidRequest(f"request of kind {kind} between nodes cannot be read: {error!r}"))

    def _answer(self, kind: int, payload: bytes) -> dict[str, Any]:
        match kind:
            case _ if kind == KIND_STATUS:
                return local_status(self.running(), self._version)
            case _ if kind == KIND_TRANSFER:
                return self._on_transfer(json.loads(payload))
            case _ if kind == KIND_IDENTIFY:
                return self._identify(with_plan=json.loads(payload).get("plan", False))
            case _ if kind == KIND_INIT:
                for _ in self._init_steps(Directory.decode(payload, 1)):
                    continue
                return {}
            case _ if kind == KIND_JOIN:
                return self._on_join(Directory.decode(payload[8:], int.from_bytes(payload[:8], "little")))
            case _:
                raise InvalidRequest(f"unknown kind of request between nodes: {kind}")

    def _identify(self, *, with_plan: bool) -> dict[str, Any]:
        entry = self._entry
        plan = self.load_plan() if with_plan and self.cluster is not None else None
        return {
            "plan": "" if plan is None or plan.cluster != self.cluster else plan.encode().decode(),
            "node": str(entry.node),
            "cluster": str(self.cluster or 0),
            "name": entry.name,
            "peer_address": entry.peer_address,
            "client_address": entry.client_address,
            "admin_address": entry.admin_address,
        }

    def begin_init(self, payload: bytes, respond: Callable[[bytes], None]) -> None:
        """Becomes a first member, one replica per loop turn: with many shards it takes seconds, and peers must be heard."""

        def step() -> None:
            try:
                next(steps)
            except StopIteration:
                respond(wrap({}))
            except RaftCacheError as error:
                respond(wrap_error(error))
            else:
                self._scheduler.call_soon(step)

        try:
            steps = self._init_steps(Directory.decode(payload, 1))
        except (RaftCacheError, ValueError, KeyError, TypeError, AttributeError) as error:
            respond(wrap_error(error if isinstance(error, RaftCacheError) else InvalidRequest(f"no plan: {error!r}")))
        else:
            step()

    def _init_steps(self, plan: Directory) -> Iterator[None]:
        """Raises: `PreconditionFailed`, `InvalidRequest`, `Unavailable` (another init is at it)."""
        if self.cluster is not None:
            if self.cluster == plan.cluster:
                return
            raise PreconditionFailed(f"node {self.node} belongs to cluster {self.cluster} already")
        if self.node not in plan.nodes:
            raise InvalidRequest(f"node {self.node} is not in the plan of cluster {plan.cluster}")
        if self._initialising or self.making not in (None, plan.cluster):
            raise Unavailable(f"an init of node {self.node} is in progress; ask again when it is done")
        self._initialising = True
        try:
            known = self.load_plan()
            if known is None or known.cluster != plan.cluster:
                self.save_plan(plan)
            wal = self._home.open_wal(plan.cluster, fresh=True)
            try:
                yield from create_first_replicas(plan, self.node, wal, self._open_state, self._limits)
                self._enter(plan, wal)
            except Exception:
                if self.engine is None:
                    wal.close()
                raise
        finally:
            self._initialising = False

    def _on_join(self, directory: Directory) -> dict[str, Any]:
        if self.cluster is not None:
            if self.cluster == directory.cluster:
                self.running().adopt(directory)
                return {}
            raise PreconditionFailed(f"node {self.node} belongs to cluster {self.cluster} already")
        if self.node not in directory.nodes:
            raise InvalidRequest(f"node {self.node} is not in the directory of cluster {directory.cluster}")
        if self._initialising or self.making is not None:
            raise Unavailable(f"an init of node {self.node} is in progress; ask again when it is done")
        self._enter(directory, self._home.open_wal(directory.cluster, fresh=True))
        return {}

    def _enter(self, directory: Directory, wal: Wal) -> None:
        """The last steps into a cluster. Raises: `StorageFull`; nothing has happened then."""
        if not self._home.save_directory(directory):
            raise StorageFull("there is no room on the disk for the directory; free some and ask again")
        self._home.join_cluster(directory.cluster)
        self.cluster = directory.cluster
        self.network.set_cluster(directory.cluster)
        self._observer.event("joined_cluster", cluster=directory.cluster, epoch=directory.epoch)
        self._start(directory, wal)

    def _on_transfer(self, document: dict[str, Any]) -> dict[str, Any]:
        engine = self.running()
        shard, target = ShardId(int(document["shard"])), NodeId(int(document["target"]))
        replica = engine.local(shard)
        if replica is None or not replica.leads:
            raise engine.router.not_leader(shard)
        to = NO_REPLICA
        if target:
            placed = engine.directory.shards[shard].on_node(target)
            if placed is None or placed.replica not in replica.raft.configuration.voters:
                raise PreconditionFailed(f"node {target} has no voter of shard {shard} to hand over to")
            to = placed.replica
        to = engine.transfer(replica, to)
        if to == NO_REPLICA:
            raise PreconditionFailed(f"shard {shard} has no other live voter to hand over to")
        return {"to": to}
