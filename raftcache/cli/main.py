"""The command `raftcache`: which subcommands there are, and what holds for all of them.

Rules of this file:
- a subcommand's module is imported when it runs, so that `raftcache --help` and a misspelt word cost no gRPC and no server.
  The list of commands below therefore says their names and short helps itself; a test holds it to the commands;
- arguments are UTF-8 text. A shell hands any bytes over; those that are not text are refused here, once, rather than stored
  as something else. Binary values come by file or pipe, binary keys in base64.
"""

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from raftcache.cli.exits import Exit, Failure
from raftcache.cli.failures import failure_of
from raftcache.errors import RaftCacheError
from raftcache.version import VERSION

Table = dict[str, dict[str, tuple[str, str]]]

COMMANDS: Table = {
    "Try it": {
        "dev": ("raftcache.cli.dev:dev", "A cluster on this machine, in one command."),
    },
    "Data": {
        "get": ("raftcache.cli.data:get", "Read one key."),
        "put": ("raftcache.cli.data:put", "Write one key."),
        "del": ("raftcache.cli.data:delete", "Remove one key."),
        "scan": ("raftcache.cli.scan:scan", "List keys and values, in key order."),
        "cas": ("raftcache.cli.data:cas", "Replace a value if it is the expected one."),
        "incr": ("raftcache.cli.data:incr", "Add to a number."),
        "txn": ("raftcache.cli.transaction:txn", "Compare, then write, atomically."),
    },
    "Cluster": {
        "status": ("raftcache.cli.status:status", "The whole cluster, and what is wrong with it."),
        "init": ("raftcache.cli.init:init", "Make a cluster of fresh nodes."),
        "node": ("raftcache.cli.node:node", "List nodes, take them in, let them go."),
        "shard": ("raftcache.cli.shard:shard", "List shards, find a key's, change their replicas."),
        "leader": ("raftcache.cli.leader:leader", "Hand the lead of a shard over."),
        "bench": ("raftcache.cli.bench:bench", "Put load on a cluster and measure it."),
    },
    "Node": {
        "serve": ("raftcache.cli.serve:serve", "Run one node until SIGTERM."),
        "config": ("raftcache.cli.config:config", "Check, show and explain a node's settings."),
        "certs": ("raftcache.cli.certs:certs", "Make certificates for TLS."),
    },
}
"""Heading -> command -> where it is, and what it does."""


UNWRITABLE = {errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC}
"""What becomes of a write to standard output that cannot be made. A pipe that nobody reads any more is left to click, which
ends the command without a word."""


class Root(click.Group):
    """Finds subcommands by the table, and turns errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for commands in COMMANDS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for commands in COMMANDS.values():
            if cmd_name in commands:
                module, _, attribute = commands[cmd_name][0].partition(":")
                command = getattr(import_module(module), attribute)
                assert isinstance(command, click.Command), cmd_name
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and self.get_command(ctx, name) is None:
            import difflib

            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, about) for name, (_, about) in commands.items()])

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        # Read when gRPC is first imported. Its own lines, in a form of their own, would stand among a command's words and
        # a node's JSON; each failed handshake with a stranger is one.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        given = list(sys.argv[1:] if args is None else args)
        try:
            return super().main(given, *rest, **options)
        except OSError as error:
            if error.filename is not None or error.errno not in UNWRITABLE:
                raise
            Failure(f"standard output cannot be written: {error.strerror}; what was asked for may be done").show()
            # What could not be written would be tried again at the interpreter's end.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open until the end
            sys.exit(Exit.FAILURE)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for number, argument in enumerate(args, 1):
            _require_text(ctx, number, argument)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Failure as failure:
            failure.show()
            ctx.exit(failure.code)
        except RaftCacheError as error:
            unforeseen = failure_of(error)
            unforeseen.show()
            ctx.exit(unforeseen.code)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("raftcache"):
                raise
            Failure(
                f"this command needs the package {error.name}, which is not installed",
                hint="what a node needs, certificates included, comes with pip install 'raftcache[server]'",
            ).show()
            ctx.exit(Exit.FAILURE)
        except KeyboardInterrupt:
            click.echo("raftcache: interrupted", err=True)
            ctx.exit(Exit.INTERRUPTED)


def _require_text(ctx: click.Context, number: int, argument: str) -> None:
    # What is not valid in the locale's encoding arrives with surrogates, which no text has.
    data = os.fsencode(argument)
    try:
        data.decode()
    except UnicodeDecodeError:
        shown = ascii(data)[1:]
        ctx.fail(
            f"argument {number} is not UTF-8 text: {shown}. "
            "Give a binary value with --file or on standard input, a binary key with --key-b64."
        )


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION, "--version", prog_name="raftcache")
def main() -> None:
    """A Raft-replicated, strongly consistent, sharded key-value cache.

    \b
    raftcache dev                    a cluster of three nodes on this machine
    raftcache put greeting hello     in another terminal: finds that cluster by itself
    raftcache get greeting
    raftcache status

    Every command has examples: raftcache COMMAND --help. Exit codes: 0 done, 1 failed, 2 wrong command line, 3 not found,
    4 unavailable, 5 unhealthy, 6 a condition did not hold, 7 outcome unknown, 8 not allowed, 130 interrupted.
    """
