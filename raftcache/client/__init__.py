"""The Python client: routing, retries and exactly-once writes over gRPC.

    caller ──► Client / AsyncClient       names and signatures
                  │ a flow
                  ▼
               flows, batch, stream       every decision: sans-IO, one copy for both
                  │ steps: Call, Together, Pause, Wait
                  ▼
               sync_driver / async_driver a thread or a task that waits
                  │ calls
                  ▼
               fast_sync / fast_async     HTTP/2 of our own (fast_channel, fast_connection, fast_calls, and `raftcache.wire`)
               grpcio_sync / grpcio_async gRPC's library, where it is asked for

Rules of this package:
- it imports protobuf and googleapis-common-protos, grpcio where it is used, and nothing of the server;
- a flow decides and never waits; a driver waits and never decides; a transport says what became of a call, and how certainly;
- an outcome that is not known is reported as unknown (`AmbiguousResult`), never as a failure and never as a success.
"""

from raftcache.client.async_client import AsyncClient
from raftcache.client.errors import AmbiguousResult, ClientClosed, ConditionFailed, DeadlineExceeded
from raftcache.client.options import Tls
from raftcache.client.results import CasResult, DeleteResult, Entry, PutResult, TxnResult
from raftcache.client.sync_client import Client

__all__ = [
    "AmbiguousResult",
    "AsyncClient",
    "CasResult",
    "Client",
    "ClientClosed",
    "ConditionFailed",
    "DeadlineExceeded",
    "DeleteResult",
    "Entry",
    "PutResult",
    "Tls",
    "TxnResult",
]
