"""`raftcache config`: a node's settings, checked and shown as the node would read them."""

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raftcache.cli.exits import Exit, Failure
from raftcache.cli.output import JSON, note, output_option, write_json

if TYPE_CHECKING:
    from raftcache.config.settings import Config


@click.group()
def config() -> None:
    """Check, show and explain a node's settings.

    Settings come from flags of `raftcache serve`, then RAFTCACHE_SECTION__KEY in the environment, then the TOML file, then
    the defaults.

    \b
    raftcache config sample > raftcache.toml           every setting, with its default and its reason
    raftcache config check --config raftcache.toml     before a node is restarted with it
    raftcache config show --diff --config raftcache.toml
    """


_file_option = click.option(
    "--config", "path", type=click.Path(path_type=Path), metavar="FILE", help="TOML file of settings."
)
_set_option = click.option(
    "--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="One setting; may be repeated."
)


@config.command()
@_file_option
@click.argument("file", required=False, type=click.Path(path_type=Path))
@_set_option
@output_option
def check(path: Path | None, file: Path | None, assignments: tuple[str, ...], output: str) -> None:
    """Say whether a node would start with these settings, and read the certificates that they name. Exit code 0: yes, 1: no,
    and why. What another program may change in between, such as ports and disks, is found when the node starts.

    \b
    raftcache config check raftcache.toml
    RAFTCACHE_LISTEN__CLIENT=0.0.0.0:7400 raftcache config check
    """
    from raftcache.config.load import load, parse_assignment
    from raftcache.errors import ConfigError

    if path is not None and file is not None:
        raise click.UsageError("give the file once, with --config or without")
    try:
        settings = load(
            path=path or file, environ=os.environ, flags=dict(parse_assignment(text) for text in assignments)
        )
        check_certificates(settings)
    except ConfigError as error:
        if output == JSON:
            write_json("config-check", {"ok": False, "problem": error.message})
        raise Failure(
            error.message, code=Exit.FAILURE, hint="`raftcache config sample` explains every setting"
        ) from None
    if output == JSON:
        write_json("config-check", {"ok": True})
    else:
        note("ok: a node would start with these settings")


def check_certificates(settings: "Config") -> None:
    """Reads the certificates that the settings name. Raises: `ConfigError`."""
    if settings.tls.client_cert or settings.tls.peer_cert:
        # Its library comes with the server, and only who has certificates needs it.
        from raftcache.server.tls_files import check as check_files

        check_files(settings.tls)


@config.command()
@_file_option
@_set_option
@click.option(
    "--effective", "what", flag_value="effective", default="effective", help="All settings in force.  [default]"
)
@click.option("--default", "what", flag_value="default", help="All settings as they are when nobody sets them.")
@click.option("--diff", "what", flag_value="diff", help="Those that differ from the defaults.")
@output_option
def show(path: Path | None, assignments: tuple[str, ...], what: str, output: str) -> None:
    """Print settings as TOML that a node reads back.

    \b
    raftcache config show --diff --config raftcache.toml
    raftcache config show --set limits.value_bytes_max=2MiB
    """
    from raftcache.config.load import load, parse_assignment
    from raftcache.config.show import default, diff, effective

    if what == "default":
        text = default()
    else:
        flags = dict(parse_assignment(text) for text in assignments)
        settings = load(path=path, environ=os.environ, flags=flags)
        text = diff(settings) if what == "diff" else effective(settings)
    if output == JSON:
        write_json("config", {"settings": tomllib.loads(text)})
        return
    if not text:
        note("every setting has its default")
    click.echo(text, nl=False)


@config.command()
def sample() -> None:
    """Print a commented file of all settings.

    \b
    raftcache config sample > raftcache.toml
    """
    from raftcache.config.show import sample as text

    click.echo(text(), nl=False)
