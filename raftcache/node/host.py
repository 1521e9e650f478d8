"""A node before, while and after it belongs to a cluster: identity, first directory, and the engine once there is one.

    empty directory ──serve──► no cluster ──init / join──► engine ──SIGTERM──► closed
                                               ▲
    directory with a cluster id ──serve────────┘

Rules of this file:
- the cluster id in the data directory is the commit point: it is written *after* the first replicas are durable, so a
  node that died half-way through `init` starts again from nothing and is told again;
- before that only the kinds of request from `KIND_IDENTIFY` on are answered;
- what a request raises goes back as its refusal; nothing that another node sends can end this one.
"""

from __future__ import annotations

import json
import random as random_module
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, Protocol

from raftcache.clock import Clock
from raftcache.errors import InvalidRequest, PreconditionFailed, RaftCacheError, Unavailable
from raftcache.ids import NO_REPLICA, ClusterId, NodeId, ReplicaId, ShardId
from raftcache.kv.limits import KvLimits
from raftcache.node.administration import Administrator, wrap, wrap_error
from raftcache.node.api import Reply, ReplySink, Request
from raftcache.node.directory import Directory, DirectoryNode
from raftcache.node.engine import Engine, Network, Scheduler
from raftcache.node.first_state import create_first_replicas
from raftcache.node.kinds import (
    KIND_DIRECTORY,
    KIND_DIRECTORY_PUSH,
    KIND_FORWARD,
    KIND_IDENTIFY,
    KIND_INIT,
    KIND_JOIN,
    KIND_STATUS,
    KIND_TRANSFER,
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
    def save_directory(self, directory: Directory) -> None: ...
    def load_plan(self) -> Directory | None: ...
    def save_plan(self, plan: Directory) -> None: ...
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
        directory = self._home.load_directory()
        if directory is None:
            raise PreconditionFailed("the data directory names a cluster but has no directory of it: restore the file")
        self._start(directory, self._home.open_wal(self.cluster, fresh=False))

    def _start(self, directory: Directory, wal: Wal) -> None:
        self.engine = Engine(
            node=self.node,
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
        self.engine.start()
        self.on_started(self.engine)

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
        return self._home.load_plan()

    def save_plan(self, plan: Directory) -> None:
        self._home.save_plan(plan)

    # --- What other nodes ask -----------------------------------------------------------------------------------------

    def on_request(self, from_node: NodeId, kind: int, payload: bytes, respond: Callable[[bytes], None]) -> None:
        """Answers a request of another node, now or, for forwarded ones, when their replies are there."""
        if kind == KIND_FORWARD and self.engine is not None:
            try:
                self.engine.router.on_forwarded(payload, respond)
            except (ValueError, RaftCacheError) as error:
                self._observer.event("bad_request_from_node", from_node=from_node, error=str(error))
                respond(b"")
            return
        if kind == KIND_DIRECTORY_PUSH and self.engine is not None:
            self.engine.keeper.on_push(payload)
            respond(b"")
            return
        if kind == KIND_DIRECTORY and self.engine is not None:
            respond(self.engine.keeper.on_asked(payload))
            return
        if kind == KIND_INIT:
            self.begin_init(payload, respond)
            return
        respond(self.answer(kind, payload))

    def answer(self, kind: int, payload: bytes) -> bytes:
        """The answer to a request that needs no waiting, wrapped; a refusal is an answer too."""
        try:
            return wrap(self._answer(kind, payload))
        except RaftCacheError as error:
            return wrap_error(error)
        except (ValueError, KeyError, TypeError) as error:
            return wrap_error(InvalidRequest(f"request of kind {kind} between nodes cannot be read: {error!r}"))

    def _answer(self, kind: int, payload: bytes) -> dict[str, Any]:
        match kind:
            case _ if kind == KIND_STATUS:
                return local_status(self.running(), self._version)
            case _ if kind == KIND_TRANSFER:
                return self._on_transfer(json.loads(payload))
            case _ if kind == KIND_IDENTIFY:
                return self._identify()
            case _ if kind == KIND_INIT:
                for _ in self._init_steps(Directory.decode(payload, 1)):
                    continue
                return {}
            case _ if kind == KIND_JOIN:
                return self._on_join(Directory.decode(payload[8:], int.from_bytes(payload[:8], "little")))
            case _:
                raise InvalidRequest(f"unknown kind of request between nodes: {kind}")

    def _identify(self) -> dict[str, Any]:
        entry = self._entry
        return {
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
        except (RaftCacheError, ValueError, KeyError, TypeError) as error:
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
        if self._initialising:
            raise Unavailable("an init of this node is in progress; ask again when it is done")
        self._initialising = True
        try:
            wal = self._home.open_wal(plan.cluster, fresh=True)
            yield from create_first_replicas(plan, self.node, wal, self._open_state, self._limits)
            self._enter(plan, wal)
        finally:
            self._initialising = False

    def _on_join(self, directory: Directory) -> dict[str, Any]:
        if self.cluster is not None:
            if self.cluster == directory.cluster:
                self.running().adopt(directory)
                return {}
            raise PreconditionFailed(f"node {self.node} belongs to cluster {self.cluster} already")
        self._enter(directory, self._home.open_wal(directory.cluster, fresh=True))
        return {}

    def _enter(self, directory: Directory, wal: Wal) -> None:
        self._home.save_directory(directory)
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
