"""`raftcache serve`: one node, from its settings to a clean end on SIGTERM.

Rules of this file:
- standard output gets one line of JSON, when the node listens; the log goes to standard error;
- what is wrong with the settings ends with `USAGE`, what goes wrong later with `FAILURE`: a supervisor need not restart the
  first;
- the server is imported when it runs, and nothing else of this package with it: a restart must be quick.
"""

import contextlib
import gc
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raftcache.cli.config import check_certificates
from raftcache.cli.exits import Exit, Failure

if TYPE_CHECKING:
    from raftcache.server.process import Ports

FLAGS = {
    "data_dir": "node.data_dir",
    "name": "node.name",
    "listen_client": "listen.client",
    "listen_peer": "listen.peer",
    "listen_admin": "listen.admin",
    "advertise_client": "listen.advertise_client",
    "advertise_peer": "listen.advertise_peer",
    "advertise_admin": "listen.advertise_admin",
    "log_level": "log.level",
    "log_format": "log.format",
}
"""The settings that have a flag of their own; all others are set with --set."""


@click.command()
@click.option("--config", "config_path", type=click.Path(path_type=Path), metavar="FILE", help="TOML file of settings.")
@click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="One setting; may be repeated.")
@click.option("--data-dir", metavar="DIR", help="Everything the node keeps on disk.")
@click.option("--name", help="Shown in lists and logs; the host's name if not given.")
@click.option("--listen-client", metavar="HOST:PORT", help="For clients.  [default: 127.0.0.1:7400]")
@click.option("--listen-peer", metavar="HOST:PORT", help="For the other nodes.  [default: 127.0.0.1:7401]")
@click.option("--listen-admin", metavar="HOST:PORT", help="Metrics and probes, HTTP.  [default: 127.0.0.1:7402]")
@click.option("--advertise-client", metavar="HOST:PORT", help="What clients are told to dial.")
@click.option("--advertise-peer", metavar="HOST:PORT", help="What the other nodes are told to dial.")
@click.option("--advertise-admin", metavar="HOST:PORT", help="What operators' tools are told to dial.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
@click.option("--log-format", metavar="FORMAT", help="json, console or auto.")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without TLS.")
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Written when the node listens: its addresses, as JSON.",
)
def serve(
    config_path: Path | None, assignments: tuple[str, ...], ready_file: Path | None, insecure: bool, **flags: str | None
) -> None:
    """Run one node until SIGTERM.

    Settings come from flags, then RAFTCACHE_SECTION__KEY in the environment, then the file, then the defaults; `raftcache
    config sample` explains all of them. The first nodes become a cluster with `raftcache init`. When the node listens, one
    line of JSON with its addresses appears on standard output.

    \b
    raftcache serve --data-dir ./n1
    raftcache serve --config /etc/raftcache/raftcache.toml
    raftcache serve --data-dir ./n2 --listen-client 127.0.0.1:7410 \\
        --listen-peer 127.0.0.1:7411 --listen-admin 127.0.0.1:7412
    RAFTCACHE_LIMITS__VALUE_BYTES_MAX=2MiB raftcache serve --set log.level=debug
    """
    from raftcache.config.load import load, parse_assignment
    from raftcache.errors import RaftCacheError

    given: dict[str, object] = {FLAGS[name]: value for name, value in flags.items() if value is not None}
    if insecure:
        given["tls.insecure"] = True
    if ready_file is not None:
        # One of an earlier run would be believed.
        ready_file.unlink(missing_ok=True)
    given |= dict(parse_assignment(text) for text in assignments)
    config = load(path=config_path, environ=os.environ, flags=given)
    check_certificates(config)

    _import_quickly()
    from raftcache.server.process import NodeProcess, main_loop

    gc.enable()
    try:
        main_loop(NodeProcess(config, on_ready=lambda ports: _tell(ports, ready_file)))
    except RaftCacheError as error:
        raise Failure(error.message, code=Exit.FAILURE) from error


def _import_quickly() -> None:
    """Half of a quick restart is imports: some 600 modules, two thirds of a second."""
    # structlog imports rich, where that is installed, for tracebacks in colour, which a node never prints: 50 ms.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type] # that is how an import is refused
    # Nothing that is imported becomes garbage. The node collects, and freezes, once when it has recovered.
    gc.disable()


def _tell(ports: "Ports", ready_file: Path | None) -> None:
    document: dict[str, Any] = {
        "schema": "raftcache.ready/v1",
        "event": "ready",
        "client": _joined(ports.client),
        "peer": _joined(ports.peer),
        "admin": _joined(ports.admin),
        "pid": os.getpid(),
    }
    line = json.dumps(document)
    if ready_file is not None:
        temporary = ready_file.with_name(f"{ready_file.name}.new")
        temporary.write_text(f"{line}\n")
        temporary.replace(ready_file)
    # Nobody may be reading; the node serves all the same.
    with contextlib.suppress(OSError):
        click.echo(line)


def _joined(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
