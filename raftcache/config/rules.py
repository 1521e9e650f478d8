"""The rules between settings: what each may be on its own stands in `settings.py`, what they may be together stands here.

Every rule is one function that yields the violations it finds, each with the paths of the settings concerned and a sentence
that gives both values. The first violation is raised; `config check` may list them all.
"""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from raftcache.config.quantities import format_size
from raftcache.config.settings import FRAME_OVERHEAD_BYTES, OPERATION_OVERHEAD_BYTES, Config
from raftcache.errors import ConfigError

HEARTBEATS_PER_ELECTION_MIN = 5
"""etcd's rule: with fewer, one lost heartbeat and a slow disk together start an election."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule. `path` is the setting to change first."""

    path: str
    problem: str


def check(config: Config) -> None:
    """Raises: `ConfigError` for the first violation, if there is one."""
    for violation in violations(config):
        raise ConfigError(f"{violation.path}: {violation.problem}", metadata={"path": violation.path})


def violations(config: Config) -> Iterator[Violation]:
    """All broken rules."""
    yield from _timing(config)
    yield from _sizes(config)
    yield from _addresses(config)
    yield from _tls(config)


def _timing(config: Config) -> Iterator[Violation]:
    raft = config.raft
    # Raft §5.6: broadcast time << election timeout.
    if raft.election_timeout_ticks < HEARTBEATS_PER_ELECTION_MIN * raft.heartbeat_ticks:
        yield Violation(
            "raft.election_timeout_ticks",
            f"{raft.election_timeout_ticks} is less than {HEARTBEATS_PER_ELECTION_MIN} heartbeats of "
            f"{raft.heartbeat_ticks} ticks: with it set raft.heartbeat_ticks to "
            f"{raft.election_timeout_ticks // HEARTBEATS_PER_ELECTION_MIN} at most",
        )


_Demand = tuple[str, int, int, str]
"""What must be large enough, its value, the least it may be, and what needs that."""


def _sizes(config: Config) -> Iterator[Violation]:
    """Whatever is allowed in has to fit into everything that it will pass through."""
    for path, value, least, why in (*_limits(config), *_room_for_limits(config)):
        if value < least:
            yield Violation(path, f"{format_size(value)} is less than {format_size(least)}, which is needed for {why}")


def _limits(config: Config) -> tuple[_Demand, ...]:
    limits, raft = config.limits, config.raft
    record = limits.key_bytes_max + limits.value_bytes_max
    return (
        (
            "limits.batch_bytes_max",
            limits.batch_bytes_max,
            record + OPERATION_OVERHEAD_BYTES,
            "one put of limits.key_bytes_max + limits.value_bytes_max",
        ),
        (
            "limits.batch_reply_bytes_max",
            limits.batch_reply_bytes_max,
            limits.value_bytes_max,
            "one value of limits.value_bytes_max",
        ),
        ("limits.scan_bytes_max", limits.scan_bytes_max, record, "one record of the largest key and value"),
        (
            "limits.transaction_bytes_max",
            limits.transaction_bytes_max,
            record,
            "one record of the largest key and value",
        ),
        (
            "limits.batch_bytes_max",
            limits.batch_bytes_max,
            limits.transaction_bytes_max,
            "one transaction of limits.transaction_bytes_max",
        ),
        (
            "limits.frame_bytes_max",
            limits.frame_bytes_max,
            max(raft.append_bytes_max, raft.entry_bytes_max)
            + max(limits.batch_bytes_max, limits.scan_bytes_max)
            + FRAME_OVERHEAD_BYTES,
            "raft.append_bytes_max (or entry_bytes_max), limits.batch_bytes_max (or scan_bytes_max) and headers",
        ),
        (
            "limits.session_reply_bytes_total_max",
            limits.session_reply_bytes_total_max,
            limits.session_reply_bytes_max,
            "one session's limits.session_reply_bytes_max",
        ),
        (
            "limits.in_flight_bytes_max",
            limits.in_flight_bytes_max,
            limits.batch_bytes_max,
            "one limits.batch_bytes_max",
        ),
        (
            # The front closes the connection that holds most when all of them hold more (`edge.fast_front`).
            "limits.in_flight_bytes_max",
            limits.in_flight_bytes_max,
            2 * max(limits.batch_reply_bytes_max, limits.scan_bytes_max),
            "two answers of limits.batch_reply_bytes_max (or scan_bytes_max)",
        ),
    )


def _room_for_limits(config: Config) -> tuple[_Demand, ...]:
    limits, raft, storage = config.limits, config.raft, config.storage
    return (
        ("storage.segment_bytes", storage.segment_bytes, limits.frame_bytes_max, "all that one frame brings"),
        ("storage.log_bytes_max", storage.log_bytes_max, 4 * storage.segment_bytes, "four segments"),
        ("storage.log_bytes_max", storage.log_bytes_max, storage.log_bytes_per_checkpoint, "log_bytes_per_checkpoint"),
        (
            # Writes are refused at nine tenths (`node.engine`): what was taken until then goes into the last one.
            "storage.map_bytes",
            storage.map_bytes,
            10 * (limits.in_flight_bytes_max + storage.commit_bytes_max),
            "ten times limits.in_flight_bytes_max and commit_bytes_max",
        ),
        ("raft.inflight_bytes_max", raft.inflight_bytes_max, raft.append_bytes_max, "one message of append_bytes_max"),
        (
            "raft.uncommitted_bytes_max",
            raft.uncommitted_bytes_max,
            limits.batch_bytes_max,
            "one limits.batch_bytes_max",
        ),
    )


def _addresses(config: Config) -> Iterator[Violation]:
    listen = config.listen
    taken: dict[tuple[str, int], str] = {}
    for name, advertised in (
        ("client", listen.advertise_client),
        ("peer", listen.advertise_peer),
        ("admin", listen.advertise_admin),
    ):
        address = getattr(listen, name)
        if not address:
            yield Violation(f"listen.{name}", "is empty; write host:port")
            continue
        host, port = parse_address(address)
        if is_wildcard(host) and not advertised:
            yield Violation(
                f"listen.advertise_{name}",
                f"is needed, because listen.{name} is the wildcard {address}, which nobody can dial",
            )
        if advertised and is_wildcard(parse_address(advertised)[0]):
            yield Violation(f"listen.advertise_{name}", f"{advertised} is a wildcard, which nobody can dial")
        if port and (host, port) in taken:
            yield Violation(f"listen.{name}", f"{address} is taken by listen.{taken[host, port]}")
        taken[host, port] = name


def _tls(config: Config) -> Iterator[Violation]:
    tls, listen = config.tls, config.listen
    if bool(tls.client_cert) != bool(tls.client_key):
        yield Violation("tls.client_cert", "client_cert and client_key go together; only one of them is set")
    if tls.client_ca and not tls.client_cert:
        yield Violation("tls.client_ca", "is set, but client_cert and client_key are not")
    if len({bool(tls.peer_cert), bool(tls.peer_key), bool(tls.peer_ca)}) > 1:
        yield Violation("tls.peer_cert", "peer_cert, peer_key and peer_ca go together; only some of them are set")
    # The admin port has no TLS of its own and shows no data; beyond loopback it opens where the operator has thought of
    # security at all, one way or the other.
    for name, address, certificate, needed in (
        ("client", listen.client, tls.client_cert, "client_cert"),
        ("peer", listen.peer, tls.peer_cert, "peer_cert"),
        ("admin", listen.admin, tls.peer_cert, "peer_cert"),
    ):
        if address and not certificate and not tls.insecure and not is_loopback(parse_address(address)[0]):
            yield Violation(
                f"listen.{name}",
                f"{address} is not a loopback address, and anybody there could use the port; "
                f"set tls.{needed} (with its key and CA), or tls.insecure = true",
            )


# --- Addresses ----------------------------------------------------------------------------------------------------


def parse_address(text: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port`. Raises `ValueError` with a sentence."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError('is not host:port; write "127.0.0.1:7400" or "[::1]:7400"')
    if not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError(f"has the bad port {port!r}; allowed are 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError('has an IPv6 address without brackets; write "[::1]:7400"')
    if not host or any(character.isspace() or character in "/[]" for character in host):
        raise ValueError(f"has the bad host {host!r}")
    return host, int(port)


def is_wildcard(host: str) -> bool:
    """Whether listening there means every interface."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. A name other than `localhost` may mean anything, so it does not count."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
