"""What the node shows of itself when it is scraped: plain numbers, taken from its own attributes at that moment.

The node fills these from a callback that the composition root hands to the collector. Counters count from the start of the
process and never go back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class ShardSample:
    """One replica."""

    shard: int
    role: str
    """`leader`, `follower`, `candidate` or `pre-candidate`; `stopped` for one that does not serve; `learner`."""
    has_leader: bool
    term: int
    commit_index: int
    applied_index: int
    last_index: int
    leader_changes: int = 0
    elections: int = 0
    proposals_applied: int = 0
    proposals_failed: int = 0
    proposals_pending: int = 0
    follower_lag_entries: int = 0
    records: int = 0
    state_bytes: int = 0
    full: bool = False
    """Its state nears the most that it can take."""


@dataclass(slots=True)
class PeerSample:
    """One other node. `peer` is its id."""

    peer: str
    connected: bool
    round_trip_seconds: float = 0.0
    """Smoothed; 0 = never measured."""
    send_failures: int = 0
    queue_bytes: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


@dataclass(slots=True)
class NodeSample:
    """Everything at one moment."""

    shards: Sequence[ShardSample] = field(default_factory=tuple)
    peers: Sequence[PeerSample] = field(default_factory=tuple)
    disk_free_bytes: int = 0
    wal_bytes: int = 0
    in_flight_requests: int = 0
    in_flight_bytes: int = 0
    forwarded: int = 0
    overloaded: int = 0
