"""The types of what `__init__.py` imports when it is first used; a test holds the two together."""

from raftcache.client import ops, when
from raftcache.client.async_client import AsyncClient
from raftcache.client.async_pipeline import AsyncPipeline
from raftcache.client.errors import AmbiguousResult, ClientClosed, ConditionFailed, DeadlineExceeded
from raftcache.client.ops import Operation
from raftcache.client.options import Tls
from raftcache.client.results import (
    CasResult,
    DeleteResult,
    Entry,
    NodeInfo,
    Pong,
    PutResult,
    ShardInfo,
    ShardMap,
    TxnResult,
)
from raftcache.client.sync_client import Client
from raftcache.client.sync_pipeline import Pipeline
from raftcache.client.when import Condition
from raftcache.errors import (
    BatchTooLarge,
    ConfigError,
    Corruption,
    CrossSlot,
    IdentityMismatch,
    InvalidRequest,
    KeyTooLong,
    NotLeader,
    Overloaded,
    PermissionDenied,
    RaftCacheError,
    StorageFull,
    Unauthenticated,
    Unavailable,
    UnsupportedVersion,
    ValueTooLarge,
)

__version__: str

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
