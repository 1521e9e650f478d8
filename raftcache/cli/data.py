"""`raftcache get put del cas incr`: one key, as a person or a script reads and writes it.

Rules of this file:
- what comes in is stored byte by byte, what goes out to a pipe is exactly what is stored;
- a negative answer (no such key, a condition that does not hold) is an exit code of its own, and with `-o json` a document
  as well: scripts need not read words;
- a write whose outcome is unknown says so (exit code 7). Until `--timeout` the client repeats writes by itself, and the
  cluster applies them once.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from raftcache.cli.exits import Exit, Failure
from raftcache.cli.options import (
    Target,
    TextCommand,
    key_option,
    no_more,
    read_file,
    take_key,
    target_options,
    text_bytes,
)
from raftcache.cli.output import JSON, Document, bytes_document, note, output_option, printable, write_json, write_value

if TYPE_CHECKING:
    from raftcache.client import Client, Entry
    from raftcache.client.options import Consistency

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
"""What the cluster counts with."""
UINT64_MAX = (1 << 64) - 1
DIGITS_MAX = 20
"""Of 18446744073709551615."""
SHOWN_BYTES_MAX = 200
"""Of a value in a message."""


def open_client(target: Target, consistency: "Consistency" = "linearizable") -> "Client":
    """A client of the target's cluster. A context manager.

    It asks the endpoints that were named and no others: the nodes' own addresses may mean nothing from here, as in front of
    containers. One hop more is no matter for one command.
    """
    from raftcache.client import Client

    return Client(target.endpoints, routing="gateway", timeout=target.timeout, consistency=consistency, tls=target.tls)


def consistency_option(function: Decorated) -> Decorated:
    """Adds `--consistency`, as the parameter `consistency`."""
    return click.option(
        "--consistency",
        type=click.Choice(["linearizable", "stale"]),
        default="linearizable",
        show_default=True,
        help="stale: what one replica has, at once, even without a majority; it may be old.",
    )(function)


def whole_number(value: str | int) -> int:
    """A signed 64-bit number. Raises: `BadParameter`, `NoSuchOption` for what looks like an option."""
    text = str(value)
    digits = text[1:] if text[:1] in ("-", "+") else text
    # Python refuses to read thousands of digits, which are out of range anyway.
    if digits.isascii() and digits.isdigit() and len(digits) < DIGITS_MAX and INT64_MIN <= int(text) <= INT64_MAX:
        return int(text)
    if text.startswith("-") and not digits.isdigit():
        raise click.NoSuchOption(text)
    raise click.BadParameter(f"{text!r} is not a whole number of 64 bits")


def unsigned_number(value: str | int) -> int:
    """An unsigned 64-bit number, as versions and revisions are. Raises: `BadParameter`."""
    text = str(value)
    if text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX and int(text) <= UINT64_MAX:
        return int(text)
    raise click.BadParameter(f"{text!r} is not a whole number from 0 on")


def condition_options(function: Decorated) -> Decorated:
    """Adds the conditions of a write, as the parameter `conditions`."""

    @functools.wraps(function)
    def run(
        *args: Any, if_absent: bool, if_exists: bool, if_version: int | None, if_revision: int | None, **options: Any
    ) -> Any:
        if if_absent and if_exists:
            raise click.UsageError("--if-absent and --if-exists exclude each other")
        conditions = {
            "if_absent": if_absent,
            "if_exists": if_exists,
            "if_version": if_version,
            "if_revision": if_revision,
        }
        return function(*args, conditions=conditions, **options)

    decorated: Any = run
    for option in (
        click.option(
            "--if-revision", type=unsigned_number, metavar="N", help="Only if it was last written at revision N."
        ),
        click.option(
            "--if-version", type=unsigned_number, metavar="N", help="Only if it was written N times; 0: is absent."
        ),
        click.option("--if-exists", is_flag=True, help="Only if the key exists."),
        click.option("--if-absent", is_flag=True, help="Only if the key does not exist."),
    ):
        decorated = option(decorated)
    result: Decorated = decorated
    return result


def entry_document(entry: "Entry | None") -> Document | None:
    """A key as it is stored, in JSON."""
    if entry is None:
        return None
    return {
        "key": bytes_document(entry.key),
        "value": bytes_document(entry.value),
        "version": str(entry.version),
        "revision": str(entry.revision),
        "create_revision": str(entry.create_revision),
    }


# --- Reading ------------------------------------------------------------------------------------------------------


@click.command(cls=TextCommand)
@click.argument("words", metavar="KEY", nargs=-1)
@key_option
@consistency_option
@target_options
@output_option
def get(words: tuple[str, ...], key_b64: bytes | None, consistency: "Consistency", target: Target, output: str) -> None:
    """Read one key. Exit code 3: there is no such key.

    To a pipe or a file goes exactly the value, without a line end; a terminal gets it as text.

    \b
    raftcache get greeting
    raftcache get photo > photo.jpg
    raftcache get greeting -o json | jq -r .value.text
    """
    from raftcache.cli.failures import reported

    key = _only_key(words, key_b64)
    with reported(writes=False), open_client(target, consistency) as client:
        entry = client.get(key)
    if output == JSON:
        document: Document = {"found": entry is not None, **(entry_document(entry) or {"key": bytes_document(key)})}
        if entry is not None and consistency == "stale":
            document["age_seconds"] = entry.age
        write_json("entry", document)
    elif entry is not None:
        write_value(entry.value)
    if entry is None:
        raise not_found(key)


def not_found(key: bytes) -> Failure:
    """There is no such key."""
    return Failure(f"there is no key {printable(key)}", code=Exit.NOT_FOUND)


def _only_key(words: tuple[str, ...], key_b64: bytes | None) -> bytes:
    left = list(words)
    key = take_key(left, key_b64)
    no_more(left)
    return key


# --- Writing ------------------------------------------------------------------------------------------------------


@click.command(cls=TextCommand)
@click.argument("words", metavar="KEY [VALUE]", nargs=-1)
@key_option
@click.option("--file", type=click.Path(path_type=Path), help="The value is this file; - is standard input.")
@condition_options
@target_options
@output_option
def put(
    words: tuple[str, ...],
    key_b64: bytes | None,
    file: Path | None,
    conditions: dict[str, Any],
    target: Target,
    output: str,
) -> None:
    """Write one key. When it returns, a majority has the value on disk.

    Without VALUE and --file the value is standard input, byte by byte. A VALUE that begins with a dash goes behind `--`.

    \b
    raftcache put greeting hello
    raftcache put photo --file photo.jpg
    date | raftcache put now
    raftcache put lock me --if-absent            exit code 6: somebody has it
    raftcache put config new --if-version 3      nobody has changed it since
    raftcache put -- offset -5
    """
    from raftcache.cli.failures import reported
    from raftcache.client.errors import ConditionFailed

    left = list(words)
    key = take_key(left, key_b64)
    value = _value(left, file)
    with reported(writes=True), open_client(target) as client:
        try:
            result = client.put(key, value, **conditions)
        except ConditionFailed as error:
            raise _refused("put", key, error.current, output) from error
    if output == JSON:
        document = {"key": bytes_document(key), "succeeded": True}
        write_json("put", {**document, "shard": result.shard, "revision": str(result.revision)})
    else:
        click.echo(f"ok (shard {result.shard}, revision {result.revision})")


def _value(left: list[str], file: Path | None) -> bytes:
    """The value: an argument, a file, or standard input. Raises: `UsageError`."""
    if file is not None and left:
        raise click.UsageError("give the value as VALUE or with --file, not both")
    if file is not None:
        return read_file(file)
    if left:
        value = text_bytes(left.pop(0))
        no_more(left)
        return value
    if sys.stdin.isatty():
        raise click.UsageError("Missing argument 'VALUE': write it, name a --file, or pipe it in.")
    return read_file(Path("-"))


def _refused(schema: str, key: bytes, current: "Entry | None", output: str) -> Failure:
    """A condition did not hold: the document, and how the command ends."""
    if output == JSON:
        write_json(schema, {"key": bytes_document(key), "succeeded": False, "current": entry_document(current)})
    if current is None:
        return Failure(f"nothing was changed: there is no key {printable(key)}", code=Exit.PRECONDITION)
    return Failure(
        f"nothing was changed: {printable(key)} has version {current.version}, revision {current.revision}",
        code=Exit.PRECONDITION,
        hint=f"its value: {_brief(current.value)}",
    )


def _brief(value: bytes) -> str:
    shown = printable(value[:SHOWN_BYTES_MAX])
    return shown if len(value) <= SHOWN_BYTES_MAX else f"{shown}... ({len(value)} bytes)"


@click.command("del", cls=TextCommand)
@click.argument("words", metavar="KEY", nargs=-1)
@key_option
@click.option("--ignore-missing", is_flag=True, help="It is no failure if there is no such key.")
@condition_options
@target_options
@output_option
def delete(
    words: tuple[str, ...],
    key_b64: bytes | None,
    ignore_missing: bool,
    conditions: dict[str, Any],
    target: Target,
    output: str,
) -> None:
    """Remove one key. Exit code 3: there was no such key.

    \b
    raftcache del greeting
    raftcache del greeting --ignore-missing
    raftcache del lock --if-version 1
    """
    from raftcache.cli.failures import reported
    from raftcache.client.errors import ConditionFailed

    key = _only_key(words, key_b64)
    with reported(writes=True), open_client(target) as client:
        try:
            result = client.delete(key, **conditions)
        except ConditionFailed as error:
            raise _refused("delete", key, error.current, output) from error
    if output == JSON:
        document = {"key": bytes_document(key), "succeeded": True, "deleted": result.deleted}
        write_json("delete", {**document, "shard": result.shard, "revision": str(result.revision)})
    elif result.deleted:
        click.echo(f"deleted (shard {result.shard}, revision {result.revision})")
    elif ignore_missing:
        note(f"there was no key {printable(key)}")
    if not result.deleted and not ignore_missing:
        raise not_found(key)


@click.command(cls=TextCommand)
@click.argument("words", metavar="KEY [EXPECTED] [NEW]", nargs=-1)
@key_option
@click.option("--if-absent", is_flag=True, help="Expect that there is no such key; then EXPECTED is left out.")
@click.option("--expected-file", type=click.Path(path_type=Path), help="EXPECTED is this file.")
@click.option("--file", type=click.Path(path_type=Path), help="NEW is this file; - is standard input.")
@target_options
@output_option
def cas(
    words: tuple[str, ...],
    key_b64: bytes | None,
    if_absent: bool,
    expected_file: Path | None,
    file: Path | None,
    target: Target,
    output: str,
) -> None:
    """Replace a value if it is the expected one.

    The value of KEY becomes NEW if it is EXPECTED, byte by byte. Exit code 6: it is not, and nothing was changed. NEW is read from standard input where it is left out.

    \b
    raftcache cas state open closed
    raftcache cas lock me --if-absent
    raftcache cas blob --expected-file old.bin --file new.bin
    """
    from raftcache.cli.failures import reported

    left = list(words)
    key = take_key(left, key_b64)
    expected: bytes | None = None
    if expected_file is not None:
        if if_absent:
            raise click.UsageError("--if-absent and --expected-file exclude each other")
        expected = read_file(expected_file)
    elif not if_absent:
        if not left:
            raise click.UsageError("Missing argument 'EXPECTED'; --if-absent expects that there is no such key.")
        expected = text_bytes(left.pop(0))
    value = _value(left, file)
    with reported(writes=True), open_client(target) as client:
        result = client.cas(key, expected, value)
    if not result.succeeded:
        raise _refused("cas", key, result.current, output)
    if output == JSON:
        document = {"key": bytes_document(key), "succeeded": True}
        write_json("cas", {**document, "shard": result.shard, "revision": str(result.revision)})
    else:
        click.echo(f"ok (shard {result.shard}, revision {result.revision})")


# A negative number is no option. What else is unknown and begins with a dash is refused by `whole_number`.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", metavar="KEY [BY]", nargs=-1)
@key_option
@click.option(
    "--initial", type=whole_number, metavar="N", default=0, show_default=True, help="What an absent key counts as."
)
@target_options
@output_option
def incr(words: tuple[str, ...], key_b64: bytes | None, initial: int, target: Target, output: str) -> None:
    """Add to a number.

    Adds BY (1 if not given) to the number at KEY, and prints the sum. Numbers are decimal text of 64 bits with sign. However often the client has to repeat itself, it is added once.

    \b
    raftcache incr visits
    raftcache incr stock -5
    raftcache incr stock 10 --initial 100
    """
    from raftcache.cli.failures import reported

    left = list(words)
    key = take_key(left, key_b64)
    by = whole_number(left.pop(0)) if left else 1
    no_more(left)
    with reported(writes=True), open_client(target) as client:
        number = client.incr(key, by, initial=initial)
    if output == JSON:
        write_json("number", {"key": bytes_document(key), "value": str(number)})
    else:
        click.echo(str(number))
