"""Everything that a node offers to its fronts."""

from raftcache.edge.front import Handlers
from raftcache.gateway import admin_service, kv_service
from raftcache.gateway.admin_service import AdminService
from raftcache.gateway.errors import refusal_of
from raftcache.gateway.gateway import Gateway
from raftcache.gateway.kv_service import PIPELINE, KvService
from raftcache.node.api import Administration


def handlers_of(gateway: Gateway, administration: Administration) -> Handlers:
    """The key-value and the admin service."""
    kv = KvService(gateway)
    return Handlers(
        refusal=refusal_of,
        unary=dict.fromkeys(kv.unary_methods, kv),
        awaited=AdminService(administration, gateway.authorizer).methods(),
        streams={PIPELINE: kv},
        services=(kv_service.SERVICE, admin_service.SERVICE),
    )
