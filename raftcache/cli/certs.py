"""`raftcache certs`: a certificate authority for trying TLS out, and for deployments that one person looks after."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from raftcache.cli.output import JSON, output_option, write_json

if TYPE_CHECKING:
    from raftcache.server.certs import Issued

_directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default="certs",
    show_default=True,
    help="Where the authority is, and the files go.",
)
_force_option = click.option("--force", is_flag=True, help="Replace files that exist.")
_days_option = click.option("--days", type=click.IntRange(1, 36_500), help="How long it is valid.")


@click.group()
def certs() -> None:
    """Make certificates for TLS.

    \b
    raftcache certs ca                                 an authority, in ./certs
    raftcache certs node n1 --host n1.example.com      for a node: serves and dials
    raftcache certs client backup                      for a client

    A node then runs with

    \b
    --set tls.client_cert=certs/node-n1.crt --set tls.client_key=certs/node-n1.key \\
    --set tls.client_ca=certs/ca.crt \\
    --set tls.peer_cert=certs/node-n1.crt --set tls.peer_key=certs/node-n1.key --set tls.peer_ca=certs/ca.crt

    and a client with --tls-ca certs/ca.crt --tls-cert certs/client-backup.crt --tls-key certs/client-backup.key.
    """


@certs.command()
@_directory_option
@_days_option
@_force_option
@output_option
def ca(directory: Path, days: int | None, force: bool, output: str) -> None:
    """Make a certificate authority. Whoever has its key can be any node and any client.

    \b
    raftcache certs ca --dir certs
    """
    from raftcache.server.certs import AUTHORITY_DAYS, create_authority

    _show(create_authority(directory, days=days or AUTHORITY_DAYS, force=force), output)


@certs.command()
@click.argument("name")
@click.option("--host", "hosts", multiple=True, help="A name or address under which it is dialled; may be repeated.")
@_directory_option
@_days_option
@_force_option
@output_option
def node(name: str, hosts: tuple[str, ...], directory: Path, days: int | None, force: bool, output: str) -> None:
    """Make a node's certificate, for its client port and its peer port.

    \b
    raftcache certs node n1 --host n1.example.com --host 10.0.0.5
    """
    from raftcache.server.certs import CERTIFICATE_DAYS, issue_node

    _show(issue_node(directory, name, hosts=hosts, days=days or CERTIFICATE_DAYS, force=force), output)


@certs.command()
@click.argument("name")
@_directory_option
@_days_option
@_force_option
@output_option
def client(name: str, directory: Path, days: int | None, force: bool, output: str) -> None:
    """Make a client's certificate.

    \b
    raftcache certs client backup
    """
    from raftcache.server.certs import CERTIFICATE_DAYS, issue_client

    _show(issue_client(directory, name, days=days or CERTIFICATE_DAYS, force=force), output)


def _show(issued: "Issued", output: str) -> None:
    if output == JSON:
        write_json(
            "certificate",
            {
                "certificate": str(issued.certificate),
                "key": str(issued.key),
                "authority": str(issued.authority),
                "expires": issued.expires.isoformat(),
            },
        )
        return
    click.echo(f"certificate  {issued.certificate}")
    click.echo(f"key          {issued.key}")
    click.echo(f"valid until  {issued.expires:%Y-%m-%d}")
