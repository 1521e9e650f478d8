"""The command `raftcache` and its subcommands. Heavy modules are imported by the commands that need them."""

import sys
from pathlib import Path

import click

from raftcache.version import VERSION


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, "--version", prog_name="raftcache")
def main() -> None:
    """A Raft-replicated, strongly consistent, sharded key-value cache."""


@main.command()
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="TOML file of settings.")
@click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="One setting; may be repeated.")
@click.option("--ready-file", type=click.Path(path_type=Path), help="Written when the node listens: its addresses, as JSON.")
def serve(config_path: Path | None, assignments: tuple[str, ...], ready_file: Path | None) -> None:
    """Run one node until SIGTERM."""
    import json
    import os

    from raftcache.config.load import load, parse_assignment
    from raftcache.errors import RaftCacheError
    from raftcache.server.process import NodeProcess, Ports, main_loop

    def on_ready(ports: Ports) -> None:
        addresses = {name: f"{host}:{port}" for name, (host, port) in vars_of(ports).items()}
        if ready_file is not None:
            temporary = ready_file.with_suffix(".tmp")
            temporary.write_text(json.dumps(addresses))
            temporary.replace(ready_file)

    def vars_of(ports: Ports) -> dict[str, tuple[str, int]]:
        return {"client": ports.client, "peer": ports.peer, "admin": ports.admin}

    try:
        flags: dict[str, object] = dict(parse_assignment(text) for text in assignments)
        main_loop(NodeProcess(load(path=config_path, environ=os.environ, flags=flags), on_ready=on_ready))
    except RaftCacheError as error:
        click.echo(f"raftcache: {error.message}", err=True)
        sys.exit(1)
