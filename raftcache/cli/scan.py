"""`raftcache scan`: keys in their order, one after the other as they come."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from raftcache.cli.data import consistency_option, entry_document, open_client
from raftcache.cli.options import Target, target_options, text_bytes
from raftcache.cli.output import JSON, note, output_option, printable, write_json

if TYPE_CHECKING:
    from raftcache.client import Entry
    from raftcache.client.options import Consistency

LIMIT = 1_000
"""One page of the client: nobody means to print a million keys by leaving an option out."""


@click.command()
@click.argument("words", metavar="[PREFIX]", nargs=-1)
@click.option("--prefix", type=text_bytes, metavar="TEXT", help="Keys that begin with it; the same as PREFIX.")
@click.option("--from", "start", type=text_bytes, metavar="KEY", help="From this key on.")
@click.option("--to", "end", type=text_bytes, metavar="KEY", help="Up to this key, without it.")
@click.option("--limit", type=click.IntRange(0), default=LIMIT, show_default=True, help="At most so many; 0: all.")
@click.option("--keys-only", is_flag=True, help="Without values.")
@click.option("--count", "only_count", is_flag=True, help="Only how many there are.")
@consistency_option
@target_options
@output_option
def scan(
    words: tuple[str, ...],
    prefix: bytes | None,
    start: bytes | None,
    end: bytes | None,
    limit: int,
    keys_only: bool,
    only_count: bool,
    consistency: "Consistency",
    target: Target,
    output: str,
) -> None:
    """List keys and values, in key order.

    Each shard's part is consistent in itself; there is no common snapshot of all shards. A table shows what is no text with
    escapes; JSON has it exactly.

    \b
    raftcache scan
    raftcache scan user: --limit 20
    raftcache scan --from a --to b --keys-only
    raftcache scan user: --count
    raftcache scan user: --limit 0 -o json | jq -r '.entries[].key.text'
    """
    from raftcache.cli.failures import reported

    prefix = _one_prefix(words, prefix)
    if prefix is not None and (start is not None or end is not None):
        raise click.UsageError("give either a prefix, or --from and --to")
    with reported(writes=False), open_client(target, consistency) as client:
        if only_count:
            _show_count(client.count(prefix=prefix, start=start, end=end), output)
            return
        # One more than wanted tells whether there are more.
        entries = client.scan(
            prefix=prefix, start=start, end=end, limit=limit + 1 if limit else None, keys_only=keys_only
        )
        _show(entries, limit, keys_only, output)


def _one_prefix(words: tuple[str, ...], prefix: bytes | None) -> bytes | None:
    if len(words) > 1 or (words and prefix is not None):
        raise click.UsageError("give one prefix, as PREFIX or with --prefix")
    return text_bytes(words[0]) if words else prefix


def _show_count(count: int, output: str) -> None:
    if output == JSON:
        write_json("count", {"count": str(count)})
    else:
        click.echo(str(count))


def _show(entries: "Iterable[Entry]", limit: int, keys_only: bool, output: str) -> None:
    """Writes entries as they come: there may be more than memory holds."""
    shown, more = 0, False
    if output == JSON:
        click.echo('{"schema": "raftcache.scan/v1", "entries": [', nl=False)
    for entry in entries:
        if limit and shown == limit:
            more = True
            break
        if output == JSON:
            document = entry_document(entry)
            assert document is not None
            if keys_only:
                del document["value"]
            click.echo((", " if shown else "") + json.dumps(document, ensure_ascii=False), nl=False)
        else:
            # A tab, not columns that line up: they cannot before the last key is known.
            click.echo(printable(entry.key) + ("" if keys_only else f"\t{printable(entry.value)}"))
        shown += 1
    if output == JSON:
        click.echo(f'], "count": "{shown}", "more": {json.dumps(more)}}}')
    elif more:
        note(f"there are more than {limit}; --limit 0 shows all")
    elif not shown:
        note("no keys")
