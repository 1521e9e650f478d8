"""`raftcache shard`: where keys are, and which nodes hold them."""

import click

from raftcache.cli.options import Target, key_option, no_more, take_key, target_options
from raftcache.cli.output import JSON, bytes_document, output_option, write_json
from raftcache.cli.replicas import replicas


@click.group()
def shard() -> None:
    """List shards, find a key's, change their replicas.

    \b
    raftcache shard list
    raftcache shard locate user:7
    raftcache shard replicas move 3 n2 n4 --wait
    """


@shard.command("list")
@target_options
@output_option
def list_(target: Target, output: str) -> None:
    """List all shards: who leads, who holds a replica, who is behind. Shard 0 is the catalog.

    \b
    raftcache shard list
    raftcache shard list -o json | jq '.shards[] | {shard, leader_name, keys}'
    """
    from raftcache.cli.admin import AdminClient
    from raftcache.cli.cluster_view import shard_document, shards_text
    from raftcache.cli.failures import reported

    with reported(writes=False), AdminClient(target) as admin:
        cluster = admin.cluster()
    if output == JSON:
        write_json("shards", {"shards": [shard_document(cluster, each) for each in cluster.shards]})
    else:
        click.echo(shards_text(cluster, list(cluster.shards)))


@shard.command()
@click.argument("words", metavar="KEY", nargs=-1)
@key_option
@target_options
@output_option
def locate(words: tuple[str, ...], key_b64: bytes | None, target: Target, output: str) -> None:
    """Say which slot and shard a key belongs to, and who holds it. The key need not exist.

    \b
    raftcache shard locate user:7
    raftcache shard locate '{user7}.name'      keys with the same {tag} share a slot, and so transactions
    """
    from raftcache.cli.admin import AdminClient
    from raftcache.cli.cluster_view import find_shard, name_of
    from raftcache.cli.failures import reported

    left = list(words)
    key = take_key(left, key_b64)
    no_more(left)
    with reported(writes=False), AdminClient(target) as admin:
        place = admin.locate(key)
        cluster = admin.cluster()
    found = find_shard(cluster, place.shard)
    names = [name_of(cluster, replica.node) for replica in found.replicas]
    led_by = name_of(cluster, found.leader_node) if found.leader else None
    if output == JSON:
        document = {"key": bytes_document(key), "slot": place.slot, "shard": place.shard}
        write_json("location", {**document, "leader_name": led_by, "replica_names": names})
    else:
        click.echo(f"slot {place.slot}, shard {place.shard}, leader {led_by or 'NONE'}, replicas on {', '.join(names)}")


shard.add_command(replicas)
