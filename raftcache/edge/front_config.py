"""Where a front listens and what it accepts: the same for every front."""

from dataclasses import dataclass
from typing import Final

from raftcache.errors import ConfigError, Overloaded, Unavailable

LIVENESS: Final = "liveness"
READINESS: Final = "readiness"
"""Names of the health service beside "" and the services' own."""

KEEPALIVE_TIME_MS: Final = 60_000
KEEPALIVE_TIMEOUT_MS: Final = 20_000
"""An idle connection whose peer vanished without a word is found and freed within this sum."""

BUG: Final = "a bug in this node, which its log tells of; the request may have been carried out or not"
"""What a caller gets whose handler raised."""


def overloaded(in_flight: int, limit: int) -> Overloaded:
    """For a call or stream beyond `FrontConfig.in_flight_max`."""
    return Overloaded(
        f"this node has {in_flight} calls in flight; limits.in_flight_requests_max is {limit}: retry later",
        metadata={"setting": "limits.in_flight_requests_max", "limit": str(limit)},
    )


def stopping() -> Unavailable:
    """For a stream that comes while the front says goodbye."""
    return Unavailable("this node is stopping")


def cannot_listen(address: str, why: object) -> ConfigError:
    """For a port that is in use, an address that is not of this machine, or one that is not allowed."""
    return ConfigError(
        f"cannot listen on {address} for clients: {why}. Is the port in use by another process?",
        metadata={"setting": "listen.client"},
    )


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM data of the client port."""

    certificate_chain: bytes
    private_key: bytes
    client_authorities: bytes = b""
    """Set: clients must show a certificate of one of these (mutual TLS)."""


@dataclass(frozen=True, slots=True)
class FrontConfig:
    """Where to listen, and the limits."""

    address: str
    """`host:port`; port 0 takes any free one."""
    message_bytes_max: int
    """Of one received message: what the gateway accepts, and some more, so that the gateway's refusal with its details
    reaches those who are only a little above."""
    in_flight_max: int = 20_000
    """Calls and open streams; `limits.in_flight_requests_max`."""
    connections_max: int = 10_000
    """`limits.connections_max`."""
    streams_per_connection_max: int = 1_000
    """Calls of one connection at a time; the rest waits in the client. etcd leaves it open; grpc-java uses 100 to 1,000."""
    buffered_bytes_max: int = 256 << 20
    """Requests that have arrived in part, and answers that their clients do not take, of all connections;
    `limits.in_flight_bytes_max`. Beyond it, the connection that holds most is closed. The grpcio front has no such limit."""
    connection_age_max_ms: int = 0
    """A connection this old is asked to end, so that clients spread over nodes anew; 0: never. `front.connection_age_max_ms`.
    The grpcio front has no such limit."""
    reflection: bool = True
    tls: TlsFiles | None = None
