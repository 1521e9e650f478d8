"""`raftcache status`: the whole cluster from any of its nodes, and an exit code that a monitor can use."""

import sys
import time
from typing import TYPE_CHECKING

import click

from raftcache.cli.exits import Exit, Failure
from raftcache.cli.options import Target, duration, target_options
from raftcache.cli.output import JSON, note, output_option, write_json

if TYPE_CHECKING:
    from raftcache.admin.v1 import admin_pb2

CLEAR = "\x1b[H\x1b[2J"
"""To the top left, and nothing below (ECMA-48 CUP, ED)."""


@click.command()
@target_options
@output_option
@click.option("-w", "--watch", is_flag=True, help="Again and again, until Ctrl-C; --timeout is each look's.")
@click.option(
    "--interval", type=duration, metavar="DURATION", default="2s", show_default=True, help="With --watch: how often."
)
def status(target: Target, output: str, watch: bool, interval: float) -> None:
    """The whole cluster, and what is wrong with it.

    Nodes, shards, who leads, who is behind, and how many more nodes may fail before some shard stops. Any node answers
    for all. Exit code 0: nothing needs attention; 5: something does; 4: nobody answers.

    \b
    raftcache status
    raftcache status --watch
    raftcache status -o json | jq -r '.problems[]'
    raftcache status -o json | jq '.shards[] | select(.leader == null) | .shard'
    """
    if not watch:
        cluster = _ask(target)
        _show(cluster, output)
        if not cluster.healthy:
            sys.exit(Exit.UNHEALTHY)
        return
    while True:
        try:
            cluster = _ask(target)
        except Failure as failure:
            # To watch is to see it come back as well.
            note(f"raftcache: {failure.message}")
        else:
            if output != JSON and sys.stdout.isatty():
                click.echo(CLEAR, nl=False)
            _show(cluster, output)
        time.sleep(interval)


def _ask(target: Target) -> "admin_pb2.GetClusterResponse":
    from raftcache.cli.admin import AdminClient
    from raftcache.cli.failures import reported

    with reported(writes=False), AdminClient(target) as admin:
        return admin.cluster()


def _show(cluster: "admin_pb2.GetClusterResponse", output: str) -> None:
    from raftcache.cli.cluster_view import status_document, status_text

    if output == JSON:
        write_json("status", status_document(cluster))
    else:
        click.echo(status_text(cluster))
