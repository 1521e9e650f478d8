"""Every setting of a node: its name, default, allowed range, and why.

Rules of this file:
- one frozen dataclass per section of the file; a field is declared by one of the functions at the end of "how a setting is
  declared", which keep its range and its description beside it. The loader, the sample file and the documentation read them
  there, so that none of the three can differ from this file;
- the description of a limit says where its number comes from;
- settings are per node and may differ between nodes while a rolling restart is under way. What the state machine checks at
  *apply* has to be equal on every replica, or replicas diverge: it takes the ceilings of `kv.limits`, never a setting.

Nothing here reads a file or an environment variable; that is `load.py`.
"""

from dataclasses import dataclass, field
from enum import Enum

from raftcache.config.quantities import GIB, KIB, MIB, TIB

# --- Ceilings: constants of the format, equal in every node of this release ---------------------------------------

KEY_BYTES_CEILING = 506
"""What LMDB's keys of 511 bytes leave for the user's."""

VALUE_BYTES_CEILING = 16 * MIB
"""A value travels whole, in one frame and one log entry; larger things belong in an object store."""

TRANSACTION_OPERATIONS_CEILING = 1_024
TRANSACTION_BYTES_CEILING = 32 * MIB
SESSION_REPLY_BYTES_CEILING = 32 * MIB
"""A transaction stands in one log entry, a session with its kept replies in one record. These five are `kv.limits`'
constants, which this layer cannot import; a test compares them."""

FRAME_OVERHEAD_BYTES = 64 * KIB
"""Room in a frame for headers, message fields and the sessions' stamps around the bytes that are counted."""

OPERATION_OVERHEAD_BYTES = 1 * KIB
"""Room in a request for what surrounds one key and one value."""

# --- How a setting is declared ------------------------------------------------------------------------------------


class Kind(Enum):
    """How a setting is written in the file and read from text."""

    TEXT = "text"
    ADDRESS = "address"
    SIZE = "size"
    DURATION_MS = "ms"
    DURATION_US = "us"
    COUNT = "count"
    RATIO = "ratio"
    FLAG = "flag"
    CHOICE = "choice"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one setting apart from its name and default. `lo` and `hi` are both allowed values."""

    kind: Kind
    about: str
    lo: float = 0
    hi: float = 0
    choices: tuple[str, ...] = ()


_KEY = "setting"


def _text(default: str, *, about: str) -> str:
    return field(default=default, metadata={_KEY: Setting(Kind.TEXT, about)})


def _address(default: str, *, about: str) -> str:
    return field(default=default, metadata={_KEY: Setting(Kind.ADDRESS, about)})


def _size(default: int, lo: int, hi: int, *, about: str) -> int:
    return field(default=default, metadata={_KEY: Setting(Kind.SIZE, about, lo, hi)})


def _duration_ms(default: int, lo: int, hi: int, *, about: str) -> int:
    return field(default=default, metadata={_KEY: Setting(Kind.DURATION_MS, about, lo, hi)})


def _duration_us(default: int, lo: int, hi: int, *, about: str) -> int:
    return field(default=default, metadata={_KEY: Setting(Kind.DURATION_US, about, lo, hi)})


def _count(default: int, lo: int, hi: int, *, about: str) -> int:
    return field(default=default, metadata={_KEY: Setting(Kind.COUNT, about, lo, hi)})


def _ratio(default: float, *, about: str) -> float:
    return field(default=default, metadata={_KEY: Setting(Kind.RATIO, about, 0.0, 1.0)})


def _flag(default: bool, *, about: str) -> bool:
    return field(default=default, metadata={_KEY: Setting(Kind.FLAG, about)})


def _choice(default: str, *choices: str, about: str) -> str:
    assert default in choices, (default, choices)
    return field(default=default, metadata={_KEY: Setting(Kind.CHOICE, about, choices=choices)})


# --- The sections, in the order of the file -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Node:
    """Who this node is to people. Its identity is generated into the data directory and is not a setting."""

    name: str = _text("", about="Shown in lists and logs. Empty: the host's name.")
    data_dir: str = _text(
        "raftcache-data",
        about="Everything the node keeps on disk; one directory per node, on a local file system.\n"
        "Relative paths start at the working directory.",
    )


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the node listens, and which addresses it tells others to dial."""

    client: str = _address("127.0.0.1:7400", about="gRPC, for clients. Port 0 takes any free port.")
    peer: str = _address("127.0.0.1:7401", about="The other nodes.")
    admin: str = _address(
        "127.0.0.1:7402",
        about="Plain HTTP, read only: /metrics /livez /readyz /version. Shows no keys and no values.",
    )
    advertise_client: str = _address(
        "", about="What clients should dial. Empty: the same as `client`; needed where that is a wildcard (0.0.0.0)."
    )
    advertise_peer: str = _address("", about="What the other nodes should dial. Empty: the same as `peer`.")
    advertise_admin: str = _address("", about="What operators' tools should dial. Empty: the same as `admin`.")

    @property
    def advertised_client(self) -> str:
        """The address that clients are told to dial."""
        return self.advertise_client or self.client

    @property
    def advertised_admin(self) -> str:
        """The address that operators' tools are told to dial."""
        return self.advertise_admin or self.admin


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates, as paths of PEM files. Without them a node listens on loopback addresses only."""

    client_cert: str = _text("", about="The client port's certificate chain.")
    client_key: str = _text("", about="Its private key.")
    client_ca: str = _text("", about="Authorities whose certificates clients must show. Empty: clients need none.")
    peer_cert: str = _text("", about="The peer port's certificate chain, used both to listen and to dial.")
    peer_key: str = _text("", about="Its private key.")
    peer_ca: str = _text("", about="Authorities of the other nodes' certificates; the peer port is always mutual TLS.")
    insecure: bool = _flag(
        False,
        about="Listen on other than loopback addresses without TLS. Whoever reaches the ports then owns the data.",
    )


@dataclass(frozen=True, slots=True)
class Storage:
    """The log, the state and the disk they share."""

    segment_bytes: int = _size(
        32 * MIB,
        1 * MIB,
        1 * GIB,
        about="Size of one log segment, filled with zeros before use (etcd: 64 MB, preallocated). Smaller ones free disk\n"
        "sooner, larger ones roll more rarely.",
    )
    log_bytes_per_checkpoint: int = _size(
        64 * MIB,
        64 * KIB,
        64 * GIB,
        about="A shard is checkpointed after this much log at most. Bounds what a restart replays: 64 MiB of commands of\n"
        "130 bytes are about half a million, some 5 s. Where checkpoints take long (a state of gigabytes) they take a third\n"
        "of a node's time at most: the log is longer then, up to log_bytes_max. A node of many shards takes them sooner:\n"
        "each has its share of half of log_bytes_max.",
    )
    trailing_log_bytes: int = _size(
        16 * MIB,
        0,
        64 * GIB,
        about="Log kept below a checkpoint, so that a follower which was away for a moment needs no snapshot\n"
        "(etcd: 5,000 entries). With many shards each keeps its share of a quarter of log_bytes_max.",
    )
    log_bytes_max: int = _size(
        1 * GIB,
        4 * MIB,
        1 * TIB,
        about="Log of all shards together. Past it, the shard that holds the oldest segment gives up what it keeps below its\n"
        "checkpoint, and is checkpointed anew where that is not enough.",
    )
    map_bytes: int = _size(
        16 * GIB,
        16 * MIB,
        16 * TIB,
        about="Most that one shard's live state can grow to. Reserves addresses, not disk; a map cannot be enlarged while\n"
        "in use, so it is large from the start. At 90 % the shard refuses writes, and serves reads and deletes; the rest must\n"
        "hold all writes in flight.",
    )
    commit_commands_max: int = _count(
        1_000,
        1,
        1_000_000,
        about="The live state is committed (not synced: the log is) after this many commands. 1,000 random puts take 3 to\n"
        "5 ms to commit, during which the event loop waits.",
    )
    commit_bytes_max: int = _size(
        8 * MIB, 4 * KIB, 1 * GIB, about="... or after this many bytes: bounds the changed pages held in memory."
    )
    commit_interval_ms: int = _duration_ms(
        2_000,
        1,
        60_000,
        about="... or after this time, whichever comes first. With many shards it is this that counts: a commit writes every\n"
        "changed page, and the next puts change the same ones again.",
    )
    sync_inline_below_us: int = _duration_us(
        1_000,
        0,
        100_000,
        about="While an fdatasync takes less than this on average, it runs on the event loop: the hop to a thread costs\n"
        "50 us idle and 500 us beside a busy loop (measured), and 1 ms is a hundredth of a tick. While a checkpoint is\n"
        "written, or other requests wait at the node, it runs in a thread all the same.\n"
        "0: always in a thread.",
    )
    disk_free_bytes_min: int = _size(
        256 * MIB,
        0,
        1 * TIB,
        about="With less free space the node refuses writes, hands leadership off and keeps voting. Several segments, so\n"
        "that the log never meets a full disk.",
    )


@dataclass(frozen=True, slots=True)
class Raft:
    """Consensus. The timing must be the same on all nodes."""

    tick_ms: int = _duration_ms(100, 5, 1_000, about="Length of a tick, the unit of the two settings below.")
    heartbeat_ticks: int = _count(
        2,
        1,
        10,
        about="A leader's heartbeat interval. At 200 ms 64 idle shards take two thirds of the processor time that they take at\n"
        "100 ms (etcd's), and five heartbeats must be lost before anybody campaigns.",
    )
    election_timeout_ticks: int = _count(
        10,
        5,
        100,
        about="A follower that hears nothing for T to 2T-1 ticks campaigns, T being this (etcd: 1 s). At least five\n"
        "heartbeats, so that one lost message starts no election.",
    )
    entry_bytes_max: int = _size(
        1 * MIB,
        4 * KIB,
        64 * MIB,
        about="A log entry takes commands until it has this many bytes; one larger command goes alone.",
    )
    entry_commands_max: int = _count(
        4_096, 1, 65_536, about="... or this many commands: bounds one apply to some tens of milliseconds."
    )
    batches_in_flight_max: int = _count(
        2,
        1,
        64,
        about="Log entries of one shard on their way to disk. While one is made durable the next fills: natural group\n"
        "commit, no timer. More were measured to be slower, because the entries get smaller.",
    )
    append_bytes_max: int = _size(
        1 * MIB, 4 * KIB, 64 * MIB, about="Entries in one append message, at least one entry (etcd: 1 MiB)."
    )
    inflight_messages_max: int = _count(
        256, 1, 65_536, about="Append messages on their way to one follower (etcd: 512; TiKV: 256)."
    )
    inflight_bytes_max: int = _size(
        8 * MIB,
        64 * KIB,
        1 * GIB,
        about="... and their bytes: a gigabit link at 50 ms round trip holds 6 MiB.",
    )
    uncommitted_bytes_max: int = _size(
        64 * MIB,
        1 * MIB,
        4 * GIB,
        about="A leader that cannot commit refuses proposals beyond this; CockroachDB's is twice its 16 MiB log limit,\n"
        "this is one checkpoint's worth of log.",
    )
    committed_bytes_max_per_ready: int = _size(
        4 * MIB,
        64 * KIB,
        256 * MIB,
        about="Applied at one go. At about 100 MiB/s of applying this holds the event loop for at most 40 ms.",
    )
    reads_pending_max: int = _count(
        1_024, 1, 65_536, about="Rounds of linearizable reads of one shard that wait; one round carries many reads."
    )
    learner_lag_entries_max: int = _count(
        64,
        1,
        1_000_000,
        about="A learner this close to its leader has caught up and may be made a voter (thesis section 4.2.1).",
    )
    snapshots_out_max: int = _count(
        2, 1, 64, about="Snapshots that the node sends at once: each is read and sent at the cost of other traffic."
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """What callers may send and how much the node takes on at once. At a limit callers get an error that names it."""

    key_bytes_max: int = _size(
        400,
        1,
        KEY_BYTES_CEILING,
        about="Longest key. The engine's own limit is 511 bytes, of which the record format takes some; 400 leaves room for\n"
        "what later formats add.",
    )
    value_bytes_max: int = _size(
        1 * MIB, 1, VALUE_BYTES_CEILING, about="Largest value (memcached: 1 MiB; etcd: 1.5 MiB per request)."
    )
    batch_operations_max: int = _count(
        1_000, 1, 100_000, about="Operations in one batch: about 10 ms of work for one shard, measured at 7.5 us each."
    )
    batch_bytes_max: int = _size(
        4 * MIB,
        4 * KIB,
        32 * MIB,
        about="Bytes of one request, be it a single put, a batch or a transaction (gRPC's default for received messages).",
    )
    batch_reply_bytes_max: int = _size(
        32 * MIB,
        1 * MIB,
        1 * GIB,
        about="Values in the answer to one batch: one transaction's most. Reads beyond it are refused, to be asked for again;\n"
        "what a write would have returned is then reported as unknown. Bounds what one caller can make a node hold.",
    )
    transaction_operations_max: int = _count(
        128, 1, TRANSACTION_OPERATIONS_CEILING, about="Per branch of a transaction, and for its conditions (etcd: 128)."
    )
    transaction_bytes_max: int = _size(
        4 * MIB,
        4 * KIB,
        TRANSACTION_BYTES_CEILING,
        about="Keys and values of one transaction, both branches and the conditions together.",
    )
    scan_entries_max: int = _count(
        4_096,
        1,
        1 << 20,
        about="Records in one page of a scan. At about 1.2 us each a page holds the event loop for 5 ms.",
    )
    scan_bytes_max: int = _size(
        4 * MIB, 4 * KIB, 64 * MIB, about="... and the bytes of their keys and values; a page has at least one record."
    )
    frame_bytes_max: int = _size(
        8 * MIB,
        128 * KIB,
        128 * MIB,
        about="One frame between nodes. Holds a full append message, a request of batch_bytes_max, and headers.",
    )
    in_flight_requests_max: int = _count(
        20_000,
        1,
        1_000_000,
        about="Operations accepted and not yet answered: about 80 connections of 256 outstanding. The plain puts of a batch\n"
        "count as one for each shard; their bytes count all the same. Of calls and open streams at the front, as many.",
    )
    in_flight_bytes_max: int = _size(
        256 * MIB,
        1 * MIB,
        64 * GIB,
        about="... and their bytes: what the uncommitted tails of four busy shards may hold. As much again may clients have\n"
        "sent in part or left untaken, all connections together; beyond it the one that holds most is closed.",
    )
    patience_ms: int = _duration_ms(
        5_000,
        10,
        600_000,
        about="How long a request waits for its shard to have a leader: two elections and a restart's margin. A request\n"
        "with an earlier deadline waits until then.",
    )
    connections_max: int = _count(
        10_000,
        1,
        1_000_000,
        about="Client connections (Redis: 10,000). Files must be allowed to match: LimitNOFILE.",
    )
    sessions_max: int = _count(
        10_000,
        1,
        1 << 24,
        about="Client sessions of one shard; beyond, the least recently used one goes. About 1 KiB of memory each. This and\n"
        "the other limits of sessions are written into a shard when it is created: a change concerns later shards.",
    )
    session_window: int = _count(
        1_024, 1, 65_536, about="Sequence numbers from the first unacknowledged one that a session may have in flight."
    )
    session_reply_bytes_max: int = _size(
        1 * MIB,
        1,
        SESSION_REPLY_BYTES_CEILING,
        about="Replies kept for one session's retries; beyond, its new commands are refused.",
    )
    session_reply_bytes_total_max: int = _size(
        32 * MIB,
        1,
        4 * GIB,
        about="Replies kept for all sessions of a shard; beyond, the least recently used sessions go.",
    )


@dataclass(frozen=True, slots=True)
class Front:
    """What speaks gRPC to clients."""

    kind: str = _choice(
        "fast",
        "fast",
        "grpcio",
        about="The implementation of the client port: HTTP/2 and gRPC of this project's, or gRPC's own library, which costs a\n"
        "call more than everything behind it.",
    )
    connection_age_max_ms: int = _duration_ms(
        0,
        0,
        7 * 24 * 3_600_000,
        about="`fast` only: a connection this old is asked to end, so that clients spread over the nodes anew. 0: never.",
    )


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Metrics and traces."""

    tracing: str = _choice(
        "off", "off", "otlp", "console", about="Where spans go. `otlp` needs the package's extra of the same name."
    )
    trace_sample_ratio: float = _ratio(0.01, about="Share of requests that are traced, unless their caller decided.")
    otlp_endpoint: str = _text("http://127.0.0.1:4317", about="The OpenTelemetry collector, gRPC.")
    shard_metrics_max: int = _count(
        256,
        0,
        100_000,
        about="A node with more shards than this reports no metrics per shard, only their sums: 12 series each add up.",
    )


@dataclass(frozen=True, slots=True)
class Log:
    """What the node says of itself, on standard error."""

    level: str = _choice("info", "debug", "info", "warning", "error", about="The least severe events that are written.")
    format: str = _choice(
        "auto",
        "auto",
        "json",
        "console",
        about="`auto` is `console` on a terminal and `json` (one object a line) elsewhere.",
    )


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one node. Field names are the section names."""

    node: Node = field(default_factory=Node)
    listen: Listen = field(default_factory=Listen)
    tls: Tls = field(default_factory=Tls)
    storage: Storage = field(default_factory=Storage)
    raft: Raft = field(default_factory=Raft)
    limits: Limits = field(default_factory=Limits)
    front: Front = field(default_factory=Front)
    telemetry: Telemetry = field(default_factory=Telemetry)
    log: Log = field(default_factory=Log)
