"""`raftcache shard replicas`: one replica of one shard added, removed, moved or promoted.

The cluster writes the change down and the shard's leader carries it out; `--wait` watches it. What is safe is decided by the
cluster alone: here a change is only named, and what became of it read back.
"""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from raftcache.cli.exits import Exit, Failure
from raftcache.cli.options import Target, patient, target_options
from raftcache.cli.output import JSON, note, output_option, write_json
from raftcache.clock import NS_PER_SECOND, SystemClock

if TYPE_CHECKING:
    from raftcache.admin.v1 import admin_pb2

POLL_SECONDS = 0.25
TELL_SECONDS = 5.0
"""How often a wait says again what it waits for."""
CALL_SECONDS = 10.0
"""For one question to the cluster while the whole may take minutes."""
WAIT_SECONDS = 600.0
"""The default with --wait: a replica of some gigabytes is copied in minutes."""


@click.group()
def replicas() -> None:
    """Add, remove, move or promote one replica of a shard.

    The cluster writes a change down and the shard's leader carries it out: the command returns before it is done, unless told
    to --wait. New replicas learn first and vote when they have caught up. A change that would put the shard's majority at
    risk is refused (exit code 6). NODE is a name or an id.

    \b
    raftcache shard replicas move 3 n2 n4 --dry-run     how many more nodes may fail, before and after
    raftcache shard replicas move 3 n2 n4 --wait        shows on standard error what it waits for
    """


def _options(function: Any) -> Any:
    """What all four take besides the nodes."""
    decorated = target_options(output_option(function))
    decorated = click.option("--wait", is_flag=True, help="Until it is done, for --timeout, then by default 10m.")(
        decorated
    )
    decorated = click.option("--dry-run", is_flag=True, help="Check and say what would be done.")(decorated)
    return click.pass_context(decorated)


_shard_argument = click.argument("shard", type=click.IntRange(0, 2**31))
_node_argument = click.argument("node")


@replicas.command()
@_shard_argument
@_node_argument
@_options
def add(ctx: click.Context, shard: int, node: str, **options: Any) -> None:
    """Add a replica of SHARD on NODE: a learner first, then a voter.

    \b
    raftcache shard replicas add 3 n4 --wait
    """
    _change(ctx, "add", shard, node, None, **options)


@replicas.command()
@_shard_argument
@_node_argument
@_options
def remove(ctx: click.Context, shard: int, node: str, **options: Any) -> None:
    """Remove the replica of SHARD from NODE.

    \b
    raftcache shard replicas remove 3 n4 --dry-run
    """
    _change(ctx, "remove", shard, node, None, **options)


@replicas.command()
@_shard_argument
@_node_argument
@click.argument("to")
@_options
def move(ctx: click.Context, shard: int, node: str, to: str, **options: Any) -> None:
    """Replace the replica of SHARD on NODE by one on TO. As many nodes may fail on the way as before.

    \b
    raftcache shard replicas move 3 n2 n4 --wait --timeout 5m
    """
    _change(ctx, "move", shard, node, to, **options)


@replicas.command()
@_shard_argument
@_node_argument
@_options
def promote(ctx: click.Context, shard: int, node: str, **options: Any) -> None:
    """Make the learner of SHARD on NODE a voter.

    \b
    raftcache shard replicas promote 3 n4
    """
    _change(ctx, "promote", shard, node, None, **options)


def _change(
    ctx: click.Context,
    action: str,
    shard: int,
    node: str,
    to: str | None,
    *,
    dry_run: bool,
    wait: bool,
    target: Target,
    output: str,
) -> None:
    from raftcache.admin.v1 import admin_pb2
    from raftcache.cli.admin import AdminClient
    from raftcache.cli.cluster_view import find_node, find_shard
    from raftcache.cli.failures import reported

    call = replace(target, timeout=min(target.timeout, CALL_SECONDS))
    with reported(writes=not dry_run), AdminClient(call) as admin:
        cluster = admin.cluster()
        find_shard(cluster, shard)
        request = admin_pb2.ChangeReplicasRequest(
            shard=shard,
            action=admin_pb2.ReplicaAction.Value(f"REPLICA_ACTION_{action.upper()}"),
            node=find_node(cluster, node).node,
            dry_run=dry_run,
        )
        if to is not None:
            request.target_node = find_node(cluster, to).node
        description = admin.change_replicas(request).description
    waits = wait and not dry_run
    if output != JSON:
        click.echo(description)
    if waits:
        _wait(call, request, patient(ctx, target, WAIT_SECONDS).timeout)
    if output == JSON:
        document = {"shard": shard, "action": action, "dry_run": dry_run, "done": waits, "description": description}
        write_json("replica-change", document)
    elif waits:
        click.echo(f"shard {shard}: done")


def _wait(call: Target, request: "admin_pb2.ChangeReplicasRequest", seconds: float) -> None:
    """Until the change is carried out. Raises: `Failure` where time is up, or the shard is not as it should be then."""
    from raftcache.cli.admin import AdminClient
    from raftcache.cli.cluster_view import find_shard

    clock = SystemClock()
    give_up_ns = clock.monotonic_ns() + int(seconds * NS_PER_SECOND)
    told, told_ns = "", 0
    while True:
        try:
            with AdminClient(call) as admin:
                found = find_shard(admin.cluster(), request.shard)
        except Failure as failure:
            if failure.code != Exit.UNAVAILABLE:
                raise
            waits_for = failure.message
        else:
            if not found.change:
                break
            waits_for = found.change
        now_ns = clock.monotonic_ns()
        if now_ns > give_up_ns:
            raise Failure(
                f"shard {request.shard} is not done after {seconds:g} s: {waits_for}",
                code=Exit.UNAVAILABLE,
                hint="the cluster goes on with it; `raftcache status --watch` shows it",
            )
        if waits_for != told or now_ns - told_ns > TELL_SECONDS * NS_PER_SECOND:
            note(f"shard {request.shard}: {waits_for}")
            told, told_ns = waits_for, now_ns
        time.sleep(POLL_SECONDS)
    if not _as_asked(found, request):
        raise Failure(
            f"shard {request.shard} has no change under way any more, and is not as asked",
            hint="somebody else has changed it meanwhile; `raftcache shard list` shows it",
        )


def _as_asked(shard: "admin_pb2.Shard", request: "admin_pb2.ChangeReplicasRequest") -> bool:
    from raftcache.admin.v1 import admin_pb2

    voters = {replica.node for replica in shard.replicas if replica.membership == "voter"}
    holders = {replica.node for replica in shard.replicas}
    if request.action == admin_pb2.REPLICA_ACTION_REMOVE:
        return request.node not in holders
    if request.action == admin_pb2.REPLICA_ACTION_MOVE:
        return request.target_node in voters and request.node not in holders
    return request.node in voters
