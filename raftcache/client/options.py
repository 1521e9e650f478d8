"""What a client is told when it is made: where the cluster is, and how to behave. Plain data, checked at once.

Environment variables of `from_env`: RAFTCACHE_ENDPOINTS, RAFTCACHE_TIMEOUT (seconds), RAFTCACHE_TRANSPORT, RAFTCACHE_CA,
RAFTCACHE_CERT and RAFTCACHE_KEY (paths of PEM files).
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from raftcache.errors import ConfigError

Routing = Literal["direct", "gateway"]
"""`direct`: each request goes to the leader of its shard, as the shard map has it, and to any node where it is not known.
`gateway`: all requests go to one of the endpoints, which forwards them. For clients that reach a load balancer only."""

Consistency = Literal["linearizable", "stale"]
"""`linearizable`: a read sees every write that was acknowledged before it. `stale`: any one replica answers from what it
has; `Entry.age` says how old that may be."""

Transport = Literal["fast", "grpcio"]
"""`fast`: HTTP/2 and gRPC of this project's own, in Python. `grpcio`: gRPC's own library."""

DEFAULT_PORT = 7400
DEFAULT_TIMEOUT_SECONDS = 5.0
"""A new leader takes one to two seconds; this leaves a margin for a second election and the retries in between."""

SCHEME = "raftcache://"

CHANNEL_OPTIONS = (
    # For grpcio. The other transport behaves alike: see `fast_connection` and `fast_channel`.
    # Through NAT and load balancers idle connections die silently after some minutes, or less; the server allows a ping
    # every 5 s. A node that vanished is noticed after 25 s by itself, and by the attempt's deadline long before.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A node that restarts is back in a second or two.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Retries are ours: gRPC's own knows nothing of definite and indefinite.
    ("grpc.enable_retries", 0),
    # Answers are bounded by the limits of what was asked. A bound here could only turn an applied write into an error.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Connections of this process and client alone: the global pool would hand a forked child its parent's.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True, repr=False)
class Tls:
    """TLS towards the nodes. Paths of PEM files, read when a connection is first made."""

    ca: str | None = None
    """Authorities that the nodes' certificates are checked by; None: those of the system, or with grpcio those of its own list."""
    cert: str | None = None
    """The client's own certificate, where the cluster asks for one (mutual TLS)."""
    key: str | None = None
    """Its private key."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("a client certificate needs its key, and the other way round: give both cert and key")

    def __repr__(self) -> str:
        return f"Tls(ca={self.ca!r}, cert={self.cert!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A client's settings, checked."""

    endpoints: tuple[str, ...]
    """`host:port`, each once; at least one."""
    routing: Routing = "direct"
    timeout: float = DEFAULT_TIMEOUT_SECONDS
    """Seconds that one call may take in all, retries included."""
    consistency: Consistency = "linearizable"
    """Of reads that do not say their own."""
    sessions: bool = True
    """Whether writes are exactly-once: repeated until the deadline, and applied once."""
    tls: Tls | None = None
    transport: Transport = "fast"

    def __post_init__(self) -> None:
        if self.transport not in get_args(Transport):
            raise ConfigError(f"transport is {' or '.join(get_args(Transport))}, not {self.transport!r}")
        if self.routing not in get_args(Routing):
            raise ConfigError(f"routing is {' or '.join(get_args(Routing))}, not {self.routing!r}")
        check_consistency(self.consistency)
        if not self.timeout > 0:
            raise ConfigError(f"timeout is a number of seconds above 0, not {self.timeout!r}")


def check_consistency(consistency: str) -> None:
    """Raises: `ConfigError` for what is none."""
    if consistency not in get_args(Consistency):
        raise ConfigError(f"consistency is {' or '.join(get_args(Consistency))}, not {consistency!r}")


def parse_endpoints(endpoints: str | Iterable[str]) -> tuple[str, ...]:
    """`host:port` of each endpoint of `"h:p,h:p"`, `"raftcache://h:p,h:p"` or a list; the port is 7400 where none is given.

    Raises: `ConfigError`.
    """
    if isinstance(endpoints, str):
        endpoints = endpoints.removeprefix(SCHEME).rstrip("/").split(",")
    found = dict.fromkeys(_with_port(endpoint.strip()) for endpoint in endpoints if endpoint.strip())
    if not found:
        raise ConfigError("name at least one endpoint, as in 'host:7400,host:7400'")
    return tuple(found)


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """A client's parameters as the environment has them. Raises: `ConfigError`."""
    endpoints = environ.get("RAFTCACHE_ENDPOINTS", "")
    if not endpoints:
        raise ConfigError("RAFTCACHE_ENDPOINTS is not set; it names the nodes, as in 'host:7400,host:7400'")
    timeout_text = environ.get("RAFTCACHE_TIMEOUT") or str(DEFAULT_TIMEOUT_SECONDS)
    try:
        timeout = float(timeout_text)
    except ValueError as error:
        raise ConfigError(f"RAFTCACHE_TIMEOUT is a number of seconds, not {timeout_text!r}") from error
    ca, cert, key = (environ.get(f"RAFTCACHE_{name}") or None for name in ("CA", "CERT", "KEY"))
    tls = Tls(ca, cert, key) if ca or cert or key else None
    transport = environ.get("RAFTCACHE_TRANSPORT") or "fast"
    return {"endpoints": endpoints, "timeout": timeout, "tls": tls, "transport": transport}


def _with_port(endpoint: str) -> str:
    endpoint = endpoint.removeprefix(SCHEME).rstrip("/")
    host, colon, port = endpoint.rpartition(":")
    # `[::1]` and `host` have no port; `::1` without brackets could be read either way.
    if not colon or endpoint.endswith("]"):
        return f"{endpoint}:{DEFAULT_PORT}"
    bracketed = host.startswith("[") and host.endswith("]")
    if not port.isdecimal() or not 0 < int(port) < 1 << 16 or not host or (":" in host and not bracketed):
        raise ConfigError(f"the endpoint {endpoint!r} is not host:port; IPv6 addresses stand in brackets")
    return endpoint


class Configured:
    """What both clients have in common before they do anything: how they are made, and how they show themselves."""

    def __init__(
        self,
        endpoints: str | Iterable[str],
        *,
        routing: Routing = "direct",
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        consistency: Consistency = "linearizable",
        sessions: bool = True,
        tls: Tls | None = None,
        transport: Transport = "fast",
    ) -> None:
        """Connects to nothing yet.

        `endpoints`: `"host:port,host:port"`, `"raftcache://host:port,host:port"`, or a list. `timeout`: seconds that one call
        may take in all, retries included. `sessions`: writes are repeated after a lost answer, and applied once.

        Raises: `ConfigError`.
        """
        self._options = Options(
            endpoints=parse_endpoints(endpoints),
            routing=routing,
            timeout=timeout,
            consistency=consistency,
            sessions=sessions,
            tls=tls,
            transport=transport,
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """A client as RAFTCACHE_ENDPOINTS, _TIMEOUT, _TRANSPORT and _CA, _CERT, _KEY say. Raises: `ConfigError`."""
        return cls(**from_environment(os.environ if environ is None else environ))

    def __repr__(self) -> str:
        options = self._options
        secure = ", tls" if options.tls is not None else ""
        return f"<{type(self).__name__} {','.join(options.endpoints)}, {options.routing}{secure}>"
