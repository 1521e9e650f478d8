"""raftcache: a sharded, strongly consistent key-value cache, replicated with Raft.

The client's names are here: `raftcache.Client`, `raftcache.AsyncClient`, results, errors, `raftcache.ops` and `raftcache.when`.
They are imported when they are first used, so that a node or the command line does not pay for them, and the other way round.
Type checkers read `__init__.pyi`.
"""

from importlib import import_module

__all__ = [
    "AmbiguousResult",
    "AsyncClient",
    "AsyncPipeline",
    "BatchTooLarge",
    "CasResult",
    "Client",
    "ClientClosed",
    "Condition",
    "ConditionFailed",
    "ConfigError",
    "Corruption",
    "CrossSlot",
    "DeadlineExceeded",
    "DeleteResult",
    "Entry",
    "IdentityMismatch",
    "InvalidRequest",
    "KeyTooLong",
    "NodeInfo",
    "NotLeader",
    "Operation",
    "Overloaded",
    "PermissionDenied",
    "Pipeline",
    "Pong",
    "PutResult",
    "RaftCacheError",
    "ShardInfo",
    "ShardMap",
    "StorageFull",
    "Tls",
    "TxnResult",
    "Unauthenticated",
    "Unavailable",
    "UnsupportedVersion",
    "ValueTooLarge",
    "__version__",
    "ops",
    "when",
]

_HOMES = {
    "raftcache.client.async_client": ("AsyncClient",),
    "raftcache.client.async_pipeline": ("AsyncPipeline",),
    "raftcache.client.errors": ("AmbiguousResult", "ClientClosed", "ConditionFailed", "DeadlineExceeded"),
    "raftcache.client.ops": ("Operation",),
    "raftcache.client.options": ("Tls",),
    "raftcache.client.results": (
        "CasResult",
        "DeleteResult",
        "Entry",
        "NodeInfo",
        "Pong",
        "PutResult",
        "ShardInfo",
        "ShardMap",
        "TxnResult",
    ),
    "raftcache.client.sync_client": ("Client",),
    "raftcache.client.sync_pipeline": ("Pipeline",),
    "raftcache.client.when": ("Condition",),
}
"""Where the names live that are neither modules nor errors of `raftcache.errors`."""


def __getattr__(name: str) -> object:
    """Imports what is asked for, and keeps it."""
    found: object
    if name in ("ops", "when"):
        found = import_module(f"raftcache.client.{name}")
    elif name == "__version__":
        found = import_module("raftcache.version").VERSION
    elif name in __all__:
        home = next((home for home, names in _HOMES.items() if name in names), "raftcache.errors")
        found = getattr(import_module(home), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
