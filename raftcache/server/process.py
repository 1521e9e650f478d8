"""The composition root: from a configuration to a serving node, until SIGTERM.

    config ─► data directory (locked) ─► peer network ─► host ─► gateway ─► front
                                             │            └► engine, once there is a cluster
                                          admin HTTP: /livez from the first moment, /readyz when shards have leaders

Rules of this file:
- everything is built here and handed down; nothing below reaches for a global;
- the order of stopping is the order in which clients notice least: not ready, leaderships handed over, front drained,
  state closed clean, peers told goodbye;
- an error that an operator can mend is a `RaftCacheError` with a sentence that says how; it ends `serve` with exit status 1.
"""

import asyncio
import contextlib
import gc
import os
import random
import secrets
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn

from raftcache.clock import NS_PER_MS, NS_PER_SECOND, SystemClock
from raftcache.config.rules import parse_address
from raftcache.config.settings import Config
from raftcache.edge import front_config
from raftcache.edge.fast_front import FastFront
from raftcache.edge.front_config import READINESS, FrontConfig
from raftcache.edge.grpcio_front import GrpcFront
from raftcache.errors import ConfigError, RaftCacheError
from raftcache.gateway.gateway import Gateway, GatewaySettings
from raftcache.gateway.handlers import handlers_of
from raftcache.gateway.routes import DirectoryRoutes
from raftcache.ids import NO_REPLICA, NodeId, ReplicaId, ShardId
from raftcache.kv.limits import KvLimits
from raftcache.node.directory import Directory, DirectoryNode
from raftcache.node.host import Host
from raftcache.node.kinds import KIND_IDENTIFY, KIND_INIT, KIND_JOIN
from raftcache.node.settings import EngineSettings
from raftcache.node.tracing import TracedSubmit
from raftcache.server import admin_http, systemd
from raftcache.server.home import DiskHome
from raftcache.server.interpreter import require_assertions
from raftcache.server.loop import LoopScheduler, Ticker
from raftcache.server.peer_handler import HostHandler
from raftcache.server.sampling import sample
from raftcache.server.tls_files import client_files, peer_files
from raftcache.storage.data_directory import NO_CLUSTER, DataDirectory
from raftcache.storage.disk import OsDisk, exit_process
from raftcache.storage.lmdb_records import LmdbConfig
from raftcache.storage.lmdb_state import lmdb_state_store
from raftcache.storage.state import StateConfig, StateStore
from raftcache.storage.wal import WalConfig
from raftcache.telemetry.logging import Logging, standard_error
from raftcache.telemetry.loop_lag import LoopLag
from raftcache.telemetry.metrics import Metrics, NodeCollector, render
from raftcache.telemetry.observer import TelemetryObserver
from raftcache.telemetry.tracing import Tracer, make_tracer
from raftcache.transport.local_node import PeerSettings
from raftcache.transport.peers import PeerNetwork
from raftcache.transport.tls import PeerTls, check_listen_address, peer_tls, read_pem
from raftcache.version import VERSION

BOOTSTRAP_KINDS = frozenset({KIND_IDENTIFY, KIND_INIT, KIND_JOIN})
DRAIN_SECONDS = 5.0
"""To hand over all leaderships: each takes one round trip; five seconds are for a successor that must catch up first."""
DRAIN_POLL_SECONDS = 0.02
MESSAGE_SLACK_BYTES = 64 << 10
"""Received beyond the largest request, so that the gateway's refusal, which says what to do, is what callers see."""
GIL_SWITCH_SECONDS = 0.0005
"""How long a thread whose fdatasync has returned waits for the loop to let it say so; CPython's own 5 ms is a whole batch."""
GARBAGE_THRESHOLDS = (10_000, 20, 100)
"""For Python's collector of cycles, of which a node makes hardly any. By default (700, 10, 10) it takes up to a tenth of a busy node's
time, and with many shards looks at everything several times a second, 10 to 30 ms each."""
HEALTH_SECONDS = 0.2
"""Between looks at what gRPC's health says: quick beside any probe, and nothing beside a tick."""
FRONT_GRACE_SECONDS = 5.0
"""For calls in flight when the front stops; they are answered in milliseconds, or wait for a leader elsewhere."""


def engine_settings(config: Config) -> EngineSettings:
    """The engine's limits from the configuration's sections."""
    raft, storage, limits = config.raft, config.storage, config.limits
    return EngineSettings(
        tick_ns=raft.tick_ms * NS_PER_MS,
        election_timeout_ticks=raft.election_timeout_ticks,
        heartbeat_ticks=raft.heartbeat_ticks,
        entry_bytes_max=raft.entry_bytes_max,
        entry_commands_max=raft.entry_commands_max,
        batches_in_flight_max=raft.batches_in_flight_max,
        in_flight_requests_max=limits.in_flight_requests_max,
        in_flight_bytes_max=limits.in_flight_bytes_max,
        frame_bytes_max=limits.frame_bytes_max,
        patience_ns=limits.patience_ms * NS_PER_MS,
        commit_commands_max=storage.commit_commands_max,
        commit_bytes_max=storage.commit_bytes_max,
        commit_interval_ns=storage.commit_interval_ms * NS_PER_MS,
        log_bytes_per_checkpoint=storage.log_bytes_per_checkpoint,
        trailing_log_bytes=storage.trailing_log_bytes,
        log_bytes_max=storage.log_bytes_max,
        learner_lag_entries_max=raft.learner_lag_entries_max,
        snapshots_out_max=raft.snapshots_out_max,
        sync_inline_below_ns=storage.sync_inline_below_us * 1000,
        committed_bytes_per_ready=raft.committed_bytes_max_per_ready,
        append_bytes_max=raft.append_bytes_max,
        inflight_messages_max=raft.inflight_messages_max,
        inflight_bytes_max=raft.inflight_bytes_max,
        uncommitted_bytes_max=raft.uncommitted_bytes_max,
        reads_pending_max=raft.reads_pending_max,
        disk_free_bytes_min=storage.disk_free_bytes_min,
    )


def kv_limits(config: Config) -> KvLimits:
    """The data model's limits from the configuration."""
    limits = config.limits
    return KvLimits(
        key_bytes_max=limits.key_bytes_max,
        value_bytes_max=limits.value_bytes_max,
        transaction_operations_max=limits.transaction_operations_max,
        transaction_bytes_max=limits.transaction_bytes_max,
        scan_entries_max=limits.scan_entries_max,
        scan_bytes_max=limits.scan_bytes_max,
        session_window=limits.session_window,
        session_reply_bytes_max=limits.session_reply_bytes_max,
        session_reply_bytes_total_max=limits.session_reply_bytes_total_max,
        sessions_max=limits.sessions_max,
    )


@dataclass(slots=True)
class Ports:
    """The addresses that a started node got."""

    client: tuple[str, int]
    peer: tuple[str, int]
    admin: tuple[str, int]


@dataclass(slots=True, frozen=True)
class Reporting:
    """How the process tells of itself."""

    log: Logging
    metrics: Metrics
    observer: TelemetryObserver
    tracer: Tracer

    def fatal(self, reason: str) -> NoReturn:
        """Ends the process at once: going on could lose or invent data."""
        self.observer.event("node_fatal", reason=reason)
        exit_process(reason)


class NodeProcess:
    """One node. `run` serves until `stop` is called or a signal comes."""

    def __init__(self, config: Config, *, on_ready: Callable[[Ports], None] = lambda ports: None) -> None:
        require_assertions()
        self._config = config
        self._on_ready = on_ready
        self._clock = SystemClock()
        self._stopping = asyncio.Event()
        self._draining = False
        self._disk = OsDisk()

    def stop(self) -> None:
        """Begins a clean shutdown; `run` returns when it is done."""
        self._stopping.set()

    async def run(self) -> None:
        """Raises: `RaftCacheError` with what to do, where the node cannot start."""
        config = self._config
        self._check_addresses()
        data = DataDirectory.open(
            self._disk,
            os.path.abspath(config.node.data_dir),  # noqa: ASYNC240 - before anything is served
            process_id=os.getpid(),
            new_node_id=lambda: NodeId(secrets.randbits(62) + 1),
        )
        try:
            await self._serve(data)
        finally:
            data.close()

    def _check_addresses(self) -> None:
        listen, tls = self._config.listen, self._config.tls
        check_listen_address(parse_address(listen.client)[0], tls=bool(tls.client_cert), insecure=tls.insecure)
        check_listen_address(parse_address(listen.peer)[0], tls=bool(tls.peer_cert), insecure=tls.insecure)
        check_listen_address(parse_address(listen.admin)[0], tls=False, insecure=tls.insecure or bool(tls.peer_cert))

    async def _serve(self, data: DataDirectory) -> None:
        config, clock = self._config, self._clock
        name = config.node.name or socket.gethostname()
        reporting = self._reporting(data.identity.node, name)
        home = DiskHome(self._disk, data, WalConfig(segment_bytes=config.storage.segment_bytes), reporting.fatal)
        scheduler = LoopScheduler(
            asyncio.get_running_loop(), lambda error: reporting.fatal(f"{type(error).__name__}: {error}")
        )
        handler = HostHandler(data)
        network = PeerNetwork(
            self._peer_settings(),
            cluster=home.cluster or NO_CLUSTER,
            node=data.identity.node,
            incarnation=data.identity.incarnation,
            handler=handler,
            address_of=handler.address_of,
            clock=clock,
            random=random.Random(secrets.randbits(64)),
            tls=self._peer_tls(),
            insecure=config.tls.insecure,
            begin_snapshot=handler.on_snapshot,
            bootstrap_kinds=BOOTSTRAP_KINDS,
            incarnations=handler.incarnations,
            report=reporting.observer.event,
        )
        try:
            with reporting.log.routed_stdlib():
                async with asyncio.TaskGroup() as tasks:
                    peer = await _listening("listen.peer", config.listen.peer, lambda *_: network.start(tasks))
                    try:
                        entry = self._entry(data.identity.node, name, peer)
                        handler.host = self._build_host(entry, data, home, network, scheduler, reporting)
                        await self._serve_cluster(handler.host, network, peer, reporting)
                    finally:
                        await network.aclose()
                        scheduler.close()
                        reporting.tracer.close()
        except BaseExceptionGroup as group:
            # The group wraps what its own body raised too; an operator is owed the one sentence inside.
            refusals, others = group.split(RaftCacheError)
            if refusals is not None and others is None:
                raise refusals.exceptions[0] from None
            raise
        reporting.observer.event("node_stopped")
        reporting.log.close()

    def _reporting(self, node: NodeId, name: str) -> Reporting:
        config, clock = self._config, self._clock
        fields = {"node_id": str(node), "node": name}
        log = Logging(
            stream=standard_error(),
            level=config.log.level,
            format=config.log.format,
            monotonic_ns=clock.monotonic_ns,
            wall_ms=clock.wall_ms,
            fields=fields,
        )
        metrics = Metrics()
        telemetry = config.telemetry
        tracer = make_tracer(
            telemetry.tracing,
            sample_ratio=telemetry.trace_sample_ratio,
            otlp_endpoint=telemetry.otlp_endpoint,
            attributes=fields,
        )
        return Reporting(log, metrics, TelemetryObserver(metrics, log), tracer)

    def _entry(self, node: NodeId, name: str, peer: tuple[str, int]) -> DirectoryNode:
        """This node as the directory should have it. `peer` is where it listens, also where the setting says port 0."""
        listen = self._config.listen
        return DirectoryNode(
            node, name, listen.advertise_peer or _joined(peer), listen.advertised_client, listen.advertised_admin
        )

    def _build_host(
        self,
        entry: DirectoryNode,
        data: DataDirectory,
        home: DiskHome,
        network: PeerNetwork,
        scheduler: LoopScheduler,
        reporting: Reporting,
    ) -> Host:
        config = self._config
        loop = asyncio.get_running_loop()

        def open_state(replica: ReplicaId, shard: ShardId) -> StateStore:
            del shard
            return lmdb_state_store(
                data.replica_directory(replica),
                post=loop.call_soon_threadsafe,
                lmdb_config=LmdbConfig(map_bytes=config.storage.map_bytes),
                config=StateConfig(free_bytes_min=config.storage.disk_free_bytes_min),
                disk=self._disk,
            )

        return Host(
            entry=entry,
            cluster=home.cluster,
            version=VERSION,
            settings=engine_settings(config),
            limits=kv_limits(config),
            home=home,
            open_state=open_state,
            network=network,
            scheduler=scheduler,
            clock=self._clock,
            random=random.Random(secrets.randbits(64)),
            new_id=lambda: secrets.randbits(62) + 1,
            observer=reporting.observer,
            fatal=reporting.fatal,
            disk_free=lambda: self._disk.free_bytes(data.path),
            tracer=reporting.tracer,
        )

    async def _serve_cluster(
        self, host: Host, network: PeerNetwork, peer: tuple[str, int], reporting: Reporting
    ) -> None:
        config, clock = self._config, self._clock
        metrics, observer = reporting.metrics, reporting.observer
        metrics.registry.register(
            NodeCollector(
                lambda: sample(host, network, self._disk.free_bytes(config.node.data_dir)),
                version=VERSION,
                shard_metrics_max=config.telemetry.shard_metrics_max,
            )
        )
        admin = admin_http.AdminServer(
            admin_http.Handlers(
                metrics=lambda accept: render(metrics.registry, accept),
                ready=lambda: self._checks(host),
                version={"version": VERSION, "python": sys.version.split()[0]},
            )
        )
        admin_address = await _listening("listen.admin", config.listen.admin, admin.start)
        ticker = Ticker(clock, config.raft.tick_ms * NS_PER_MS, host.tick)
        lag = LoopLag(
            metrics.loop_lag,
            clock.monotonic_ns,
            stall_ns=config.raft.tick_ms * NS_PER_MS,
            on_stall=lambda lag_ns: observer.event("loop_stalled", seconds=lag_ns / NS_PER_SECOND),
        )
        front = self._front(host, reporting)
        try:
            host.open()
            # What recovery built lives as long as the process: no collection needs to look at it again.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GARBAGE_THRESHOLDS)
            await front.start()
            ticker.start()
            lag.start()
            ports = Ports((parse_address(config.listen.client)[0], front.port), peer, admin_address)
            observer.event(
                "node_started", client=_joined(ports.client), peer=_joined(peer), admin=_joined(admin_address)
            )
            systemd.notify(systemd.READY)
            alive = systemd.watchdog_seconds()
            watchdog = Ticker(clock, int(alive * NS_PER_SECOND), _alive) if alive is not None else None
            if watchdog is not None:
                watchdog.start()
            self._on_ready(ports)
            await self._tell_health(host, front)
            systemd.notify(systemd.STOPPING)
            await self._shut_down(host, front, observer)
        finally:
            ticker.stop()
            lag.stop()
            if host.engine is not None:
                host.engine.close()
            await admin.stop()

    async def _tell_health(self, host: Host, front: GrpcFront | FastFront) -> None:
        """Keeps gRPC's health as it is, until the node is told to stop.

        The services are healthy in any cluster: with one shard down, requests for the others still pass through here.
        Readiness is /readyz.
        """
        told: tuple[bool, bool] | None = None
        while not self._stopping.is_set():
            checks = self._checks(host)
            now = (host.engine is not None, all(check.ok for check in checks))
            if now != told:
                told = now
                await front.set_serving(now[0], *front.handlers.health_names)
                await front.set_serving(now[1], READINESS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEALTH_SECONDS):
                    await self._stopping.wait()
        await front.set_serving(False)

    async def _shut_down(self, host: Host, front: GrpcFront | FastFront, observer: TelemetryObserver) -> None:
        """Leaderships first, while everything still works; then the front; the rest is the caller's `finally`."""
        self._draining = True
        observer.event("node_draining")
        engine = host.engine
        if engine is not None:
            give_up_ns = self._clock.monotonic_ns() + int(DRAIN_SECONDS * NS_PER_SECOND)
            led = left = engine.drain()
            # Polled: whether a leadership is gone is decided in the core, which knows no events of a loop.
            while left and self._clock.monotonic_ns() < give_up_ns:
                await asyncio.sleep(DRAIN_POLL_SECONDS)
                left = engine.drain()
            observer.event("node_drained", led=led, left=left)
        await front.stop(FRONT_GRACE_SECONDS)

    def _front(self, host: Host, reporting: Reporting) -> GrpcFront | FastFront:
        config, tracer, observer = self._config, reporting.tracer, reporting.observer
        limits, tls = config.limits, config.tls
        nowhere = Directory(NO_CLUSTER, 0)
        unowned = nowhere.slot_table()
        routes = DirectoryRoutes(
            lambda: host.engine.directory if host.engine is not None else nowhere,
            lambda: host.engine.places.slot_owners() if host.engine is not None else unowned,
            lambda shard: host.engine.known_leader(shard) if host.engine is not None else None,
            host.node,
        )
        gateway = Gateway(
            node=TracedSubmit(host, tracer) if tracer.active else host,
            routes=routes,
            clock=self._clock,
            kv_limits=kv_limits(config),
            settings=GatewaySettings(
                batch_operations_max=limits.batch_operations_max,
                batch_bytes_max=limits.batch_bytes_max,
                batch_reply_bytes_max=limits.batch_reply_bytes_max,
                unfinished_bytes_max=limits.in_flight_bytes_max,
            ),
        )
        files = None
        if paths := client_files(tls):
            key, chain, authorities = read_pem(paths)
            files = front_config.TlsFiles(chain, key, authorities if tls.client_ca else b"")
        make = FastFront if config.front.kind == "fast" else GrpcFront
        return make(
            handlers_of(gateway, host.administration),
            FrontConfig(
                address=config.listen.client,
                message_bytes_max=limits.batch_bytes_max + MESSAGE_SLACK_BYTES,
                in_flight_max=limits.in_flight_requests_max,
                connections_max=limits.connections_max,
                buffered_bytes_max=limits.in_flight_bytes_max,
                connection_age_max_ms=config.front.connection_age_max_ms,
                tls=files,
            ),
            self._clock,
            on_ended=reporting.metrics.rpc,
            on_bug=lambda error: observer.event("request_failed", reason=_told(error)),
        )

    def _checks(self, host: Host) -> list[admin_http.Check]:
        """What readiness means: in a cluster, not draining, and every replica here works and knows a leader."""
        engine = host.engine
        checks = [
            admin_http.Check("cluster", engine is not None, "" if engine is not None else "run `raftcache init`"),
            admin_http.Check("draining", not self._draining, "shutting down" if self._draining else ""),
        ]
        if engine is None:
            return checks
        stopped = [f"shard {shard}: {reason}" for shard, reason in engine.not_serving()]
        leaderless = [str(r.shard) for r in engine.replicas.values() if r.raft.leader == NO_REPLICA]
        checks.append(admin_http.Check("replicas", not stopped, "; ".join(stopped)))
        checks.append(
            admin_http.Check(
                "leaders", not leaderless, f"no leader known: {', '.join(leaderless)}" if leaderless else ""
            )
        )
        checks.append(admin_http.Check("disk", not engine.router.refusing, engine.router.refusing))
        # Every node that holds such a shard says this. None is less ready for it: reads, deletes and other shards go on.
        checks.append(admin_http.Check("space", True, "; ".join(r.full for r in engine.replicas.values() if r.full)))
        return checks

    def _peer_settings(self) -> PeerSettings:
        config = self._config
        advertise = config.listen.advertise_peer
        return PeerSettings(
            listen=parse_address(config.listen.peer),
            advertise=parse_address(advertise) if advertise else None,
            frame_bytes_max=config.limits.frame_bytes_max,
            snapshots_out_max=config.raft.snapshots_out_max,
        )

    def _peer_tls(self) -> PeerTls | None:
        files = peer_files(self._config.tls)
        return None if files is None else peer_tls(files)


def _alive() -> None:
    # From the loop, so that a stalled one is found by the supervisor.
    systemd.notify(systemd.ALIVE)


def _told(error: Exception) -> str:
    """What was raised, and where."""
    found = traceback.extract_tb(error.__traceback__)
    place = f" at {found[-1].filename}:{found[-1].lineno}" if found else ""
    return f"{type(error).__name__}: {error}{place}"


def _joined(address: tuple[str, int]) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


async def _listening(
    setting: str, address: str, start: Callable[[str, int], Awaitable[tuple[str, int]]]
) -> tuple[str, int]:
    try:
        return await start(*parse_address(address))
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address} ({setting}): {error.strerror}. Is the port in use by another process?",
            metadata={"setting": setting},
        ) from error


def main_loop(process: NodeProcess) -> None:
    """Runs a node on uvloop, where there is one, with SIGTERM and SIGINT as a clean stop."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, process.stop)
        await process.run()

    sys.setswitchinterval(GIL_SWITCH_SECONDS)
    try:
        import uvloop
    except ImportError:
        asyncio.run(run())
        return
    uvloop.run(run())
