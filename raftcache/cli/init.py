"""`raftcache init`: fresh nodes become one cluster, by one call to one of them."""

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from raftcache.cli.exits import Exit, Failure
from raftcache.cli.options import Target, patient, target_options
from raftcache.cli.output import JSON, note, output_option, write_json
from raftcache.errors import RaftCacheError
from raftcache.ids import CATALOG_SHARD, SHARDS_MAX

if TYPE_CHECKING:
    from raftcache.admin.v1 import admin_pb2
    from raftcache.cli.admin import AdminClient

INIT_SECONDS = 60.0
"""Every node creates and syncs its first replicas, for which the asked one gives each of them 20 s."""
LEADERS_SECONDS = 10.0
"""For every shard to elect its first leader; it takes one or two."""
LOOK_SECONDS = 0.1
SHARDS = 8
"""Enough to spread over three to five nodes; each costs every node that holds it an environment and a checkpoint."""


@click.command()
@click.argument("addresses", metavar="[PEER_ADDRESS]...", nargs=-1)
@click.option("--peers", metavar="HOST:PORT,...", help="The peer addresses of all first nodes, as those are started.")
@click.option(
    "--shards", type=click.IntRange(1, SHARDS_MAX), default=SHARDS, show_default=True, help="Slices of the key space."
)
@target_options
@output_option
@click.pass_context
def init(
    ctx: click.Context, addresses: tuple[str, ...], peers: str | None, shards: int, target: Target, output: str
) -> None:
    """Make a cluster of fresh nodes.

    Asks one of them, by its client address, and names all of them by their peer addresses. Every node must run and belong to
    no cluster yet. Returns when every shard has a leader, or after some 10 s. Asked again, it reports the cluster that is there and
    changes nothing.

    \b
    raftcache init --endpoint 10.0.0.1:7400 --peers 10.0.0.1:7401,10.0.0.2:7401,10.0.0.3:7401
    raftcache init --peers 127.0.0.1:7401 --shards 1       a cluster of one node, which no failure spares

    The number of shards stays; choose some per node that you may ever have. Three or five nodes are usual: a majority of
    the voters of each shard must be up.
    """
    from raftcache.admin.v1 import admin_pb2
    from raftcache.cli.admin import AdminClient
    from raftcache.cli.endpoints import check_address
    from raftcache.cli.failures import reported

    wanted = [part.strip() for part in (*addresses, *(peers or "").split(",")) if part.strip()]
    if not wanted:
        raise click.UsageError("name the peer addresses of all first nodes with --peers, as in --peers n1:7401,n2:7401")
    for address in wanted:
        check_address(address, "--peers")
    twice = [address for address in wanted if wanted.count(address) > 1]
    if twice:
        raise click.UsageError(f"{twice[0]} stands twice among the peers")
    one = patient(ctx, replace(target, endpoints=target.endpoints[:1]), INIT_SECONDS)
    with reported(writes=True), AdminClient(one) as admin:
        existing = _existing(admin, wanted)
        if existing is None:
            identity = admin.init(admin_pb2.InitRequest(peer_addresses=wanted, shards=shards)).cluster
            if not _all_have_leaders(admin):
                note("not every shard has a leader yet; `raftcache status` says what is wrong")
        else:
            identity = existing.cluster
            found = sum(shard.shard != CATALOG_SHARD for shard in existing.shards)
            if found != shards and ctx.get_parameter_source("shards") is not ParameterSource.DEFAULT:
                note(f"the cluster has {found} shards, not {shards}; their number stays")
    made = existing is None
    if output == JSON:
        write_json("init", {"cluster": str(identity), "made": made})
    elif made:
        click.echo(f"made cluster {identity} of {len(wanted)} nodes and {shards} shards; `raftcache status` shows it")
    else:
        click.echo(f"these nodes are cluster {identity} already; nothing was changed")


def _all_have_leaders(admin: "AdminClient") -> bool:
    """Waits for them: who looks at the status of a new cluster should not be alarmed."""
    until = max(admin.seconds_left - LEADERS_SECONDS, admin.seconds_left / 2)
    while admin.seconds_left > until:
        # The cluster is made: a question about it that fails is no failure of that.
        with suppress(Failure, RaftCacheError):
            if all(shard.leader for shard in admin.cluster().shards):
                return True
        time.sleep(LOOK_SECONDS)
    return False


def _existing(admin: "AdminClient", wanted: list[str]) -> "admin_pb2.GetClusterResponse | None":
    """The cluster that these very nodes are in already; None if the node is in none. Raises: `Failure` if it is another one."""
    try:
        cluster = admin.cluster()
    except Failure as failure:
        if "does not belong to a cluster" in failure.message:
            return None
        raise
    members = {node.peer_address for node in cluster.nodes}
    if set(wanted) <= members:
        return cluster
    strangers = ", ".join(sorted(set(wanted) - members))
    raise Failure(
        f"this node belongs to cluster {cluster.cluster} already, and {strangers} to another one or to none",
        code=Exit.PRECONDITION,
        hint="`raftcache node join PEER_ADDRESS` takes a fresh node into a cluster that is there",
    )
