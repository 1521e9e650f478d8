"""`raftcache leader`: the lead of a shard, handed over without a failed request."""

import click

from raftcache.cli.options import Target, target_options
from raftcache.cli.output import JSON, output_option, write_json


@click.group()
def leader() -> None:
    """Hand the lead of a shard over."""


@leader.command()
@click.argument("shard", type=click.IntRange(0, 2**31))
@click.option("--to", "to", metavar="NODE", help="Who shall lead; without it, the voter that is furthest on.")
@target_options
@output_option
def transfer(shard: int, to: str | None, target: Target, output: str) -> None:
    """Hand the lead of SHARD to another of its voters.

    Any node may be asked. Waits until the other one leads. Leaders return to the nodes that they are spread over when
    these have been up for a while.

    \b
    raftcache leader transfer 3
    raftcache leader transfer 3 --to n2
    """
    from raftcache.admin.v1 import admin_pb2
    from raftcache.cli.admin import AdminClient
    from raftcache.cli.cluster_view import find_node, find_shard
    from raftcache.cli.failures import reported

    with reported(writes=True), AdminClient(target) as admin:
        cluster = admin.cluster()
        find_shard(cluster, shard)
        request = admin_pb2.TransferLeaderRequest(shard=shard)
        if to is not None:
            request.target_node = find_node(cluster, to).node
        description = admin.transfer_leader(request).description
    if output == JSON:
        write_json("leader-transfer", {"shard": shard, "description": description})
    else:
        click.echo(description)
