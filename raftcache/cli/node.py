"""`raftcache node`: the nodes of a cluster, taken in and let go."""

import click

from raftcache.cli.options import Target, patient, target_options
from raftcache.cli.output import JSON, output_option, write_json

JOIN_SECONDS = 60.0
"""The new node sets itself up, for which it is given 20 s, after two questions and a change of the catalog."""


@click.group()
def node() -> None:
    """List nodes, take them in, let them go.

    \b
    raftcache node list
    raftcache node join 10.0.0.4:7401        a fresh node, which runs and belongs to no cluster
    raftcache node remove n2 --dry-run
    """


@node.command("list")
@target_options
@output_option
def list_(target: Target, output: str) -> None:
    """List the nodes of the cluster.

    \b
    raftcache node list
    raftcache node list -o json | jq -r '.nodes[] | select(.alive | not) | .name'
    """
    from raftcache.cli.admin import AdminClient
    from raftcache.cli.cluster_view import node_document, nodes_text
    from raftcache.cli.failures import reported

    with reported(writes=False), AdminClient(target) as admin:
        cluster = admin.cluster()
    if output == JSON:
        write_json("nodes", {"nodes": [node_document(each) for each in cluster.nodes]})
    else:
        click.echo(nodes_text(cluster))


@node.command()
@click.argument("peer_address")
@target_options
@output_option
@click.pass_context
def join(ctx: click.Context, peer_address: str, target: Target, output: str) -> None:
    """Take a fresh node into the cluster.

    PEER_ADDRESS is where it listens for other nodes. It holds no replicas at first; `raftcache shard replicas add` or `move`
    gives it some. Asked again, it refreshes the node's addresses.

    \b
    raftcache serve --data-dir ./n4 --listen-client ... &
    raftcache node join 10.0.0.4:7401
    raftcache shard replicas move 3 n2 n4 --wait
    """
    from raftcache.admin.v1 import admin_pb2
    from raftcache.cli.admin import AdminClient
    from raftcache.cli.endpoints import check_address
    from raftcache.cli.failures import reported

    check_address(peer_address, "PEER_ADDRESS")
    with reported(writes=True), AdminClient(patient(ctx, target, JOIN_SECONDS)) as admin:
        admin.cluster()
        identity = admin.join_node(admin_pb2.JoinNodeRequest(peer_address=peer_address)).node
    if output == JSON:
        write_json("node-join", {"node": str(identity), "peer_address": peer_address})
    else:
        click.echo(f"node {identity} at {peer_address} is in the cluster")


@node.command()
@click.argument("name", metavar="NODE")
@click.option("--dry-run", is_flag=True, help="Check and say what would be done.")
@target_options
@output_option
def remove(name: str, dry_run: bool, target: Target, output: str) -> None:
    """Let a node go that holds no replicas. It need not be up.

    NODE is a name or an id. Refused (exit code 6) while it holds replicas: move them first.

    \b
    raftcache shard replicas move 1 n2 n4 --wait      for each of its shards
    raftcache node remove n2
    """
    from raftcache.admin.v1 import admin_pb2
    from raftcache.cli.admin import AdminClient
    from raftcache.cli.cluster_view import find_node
    from raftcache.cli.failures import reported

    with reported(writes=not dry_run), AdminClient(target) as admin:
        found = find_node(admin.cluster(), name)
        request = admin_pb2.RemoveNodeRequest(node=found.node, dry_run=dry_run)
        description = admin.remove_node(request).description
    if output == JSON:
        write_json("node-remove", {"node": str(found.node), "dry_run": dry_run, "description": description})
    else:
        click.echo(description)
