"""Which nodes a command asks when it is not told: those of the cluster that `raftcache dev` runs on this machine."""

import click

from raftcache.cli.dev_state import DEFAULT_TAG, running_clusters
from raftcache.config.rules import parse_address

DEFAULT_ENDPOINT = "127.0.0.1:7400"
"""Where a node listens whose settings say nothing else."""


def find_endpoints(given: str | None) -> tuple[tuple[str, ...], str]:
    """Client addresses, and in words where they come from. Raises: `UsageError`, `ConfigError` for what is no list of addresses."""
    if given is not None:
        from raftcache.client.options import parse_endpoints

        return parse_endpoints(given), "--endpoints or RAFTCACHE_ENDPOINTS"
    clusters = {cluster.tag: cluster for cluster in running_clusters()}
    if len(clusters) > 1 and DEFAULT_TAG not in clusters:
        raise click.UsageError(
            f"there are several development clusters here ({', '.join(sorted(clusters))}): say which one with --endpoints; "
            "`raftcache dev ps` lists their addresses"
        )
    chosen = clusters.get(DEFAULT_TAG) or next(iter(clusters.values()), None)
    if chosen is not None:
        return chosen.endpoints, f"the development cluster {chosen.tag!r}"
    return (DEFAULT_ENDPOINT,), "the default address"


def check_address(address: str, option: str) -> None:
    """Raises: `UsageError` where `address` cannot be dialled."""
    try:
        port = parse_address(address)[1]
    except ValueError as error:
        raise click.UsageError(f'{option}: "{address}" {error}') from error
    if port == 0:
        raise click.UsageError(f'{option}: "{address}" has port 0, which nobody can dial')
