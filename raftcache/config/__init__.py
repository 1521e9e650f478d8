"""The settings of a node: what they are (`settings`), where they come from (`load`), how they are shown (`show`)."""

from raftcache.config.load import load, parse_assignment
from raftcache.config.rules import check, is_loopback, is_wildcard, parse_address, violations
from raftcache.config.settings import (
    FRAME_OVERHEAD_BYTES,
    KEY_BYTES_CEILING,
    OPERATION_OVERHEAD_BYTES,
    VALUE_BYTES_CEILING,
    Config,
    Front,
    Limits,
    Listen,
    Log,
    Node,
    Raft,
    Storage,
    Telemetry,
    Tls,
)
from raftcache.config.show import default, diff, effective, sample

__all__ = [
    "FRAME_OVERHEAD_BYTES",
    "KEY_BYTES_CEILING",
    "OPERATION_OVERHEAD_BYTES",
    "VALUE_BYTES_CEILING",
    "Config",
    "Front",
    "Limits",
    "Listen",
    "Log",
    "Node",
    "Raft",
    "Storage",
    "Telemetry",
    "Tls",
    "check",
    "default",
    "diff",
    "effective",
    "is_loopback",
    "is_wildcard",
    "load",
    "parse_address",
    "parse_assignment",
    "sample",
    "violations",
]
