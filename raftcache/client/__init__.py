"""The Python client: routing, retries and exactly-once writes over gRPC.

    caller ──► Client / AsyncClient       names and signatures
                  │ a flow
                  ▼
               flows, batch, stream       every decision: sans-IO, one copy for both
                  │ steps: Call, Together, Pause, Wait
                  ▼
               sync_driver / async_driver grpcio, grpc.aio

Rules of this package:
- it imports grpcio, protobuf and googleapis-common-protos, and nothing of the server;
- a flow decides and never waits; a driver waits and never decides. Another transport is another driver;
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
