"""The settings of a node: what they are (`settings`), where they come from (`load`), how they are shown (`show`)."""

from raftcache.config.settings import (
    FRAME_OVERHEAD_BYTES,
    KEY_BYTES_CEILING,
    OPERATION_OVERHEAD_BYTES,
    VALUE_BYTES_CEILING,
    Cluster,
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

__all__ = [
    "FRAME_OVERHEAD_BYTES",
    "KEY_BYTES_CEILING",
    "OPERATION_OVERHEAD_BYTES",
    "VALUE_BYTES_CEILING",
    "Cluster",
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
]
