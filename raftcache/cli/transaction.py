"""`raftcache txn`: a transaction written as JSON, and its outcome as JSON.

    {"conditions": [{"key": "{u7}.name", "value": "ann"}, {"key": "{u7}.lock", "exists": false}],
     "then":       [{"put": {"key": "{u7}.name", "value": "bob"}}, {"incr": {"key": "{u7}.changes"}}],
     "otherwise":  [{"get": {"key": "{u7}.name"}}]}

Rules of this file:
- what is wrong is refused before anything is sent, with its place: `then[1].put: "value" is missing`;
- keys and values are text, or `{"text": ...}`, or `{"b64": ...}`, which is also how answers write them;
- 64-bit numbers may be written as numbers or as text; answers have text.
"""

import base64
import binascii
import difflib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from raftcache.cli.exits import Exit, Failure
from raftcache.cli.options import Target, read_file, target_options
from raftcache.cli.output import JSON, Document, note, output_option, printable, write_json

if TYPE_CHECKING:
    from raftcache.client import TxnResult
    from raftcache.client.ops import Operation
    from raftcache.client.when import Condition

INT_DIGITS_MAX = 20
"""Of 64 bits: 18446744073709551615, -9223372036854775808."""
COMPARISONS = ("==", "!=", ">", "<")


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@target_options
@output_option
def txn(file: Path | None, target: Target, output: str) -> None:
    """Compare, then write, atomically.

    FILE, or standard input, is JSON: if all `conditions` hold, the operations of `then` run, else those of `otherwise`.
    Exit code 6: they did not all hold. All keys must lie in one slot: give them a common part in braces.

    \b
    {"conditions": [{"key": "{u7}.name", "value": "ann"},
                    {"key": "{u7}.lock", "exists": false}],
     "then":       [{"put": {"key": "{u7}.name", "value": "bob"}},
                    {"incr": {"key": "{u7}.changes", "by": 1}},
                    {"del": {"key": "{u7}.draft"}}],
     "otherwise":  [{"get": {"key": "{u7}.name"}}]}

    \b
    A condition has a key and one of
      "exists": true or false
      "value": TEXT               "version": N
      "revision": N               "create_revision": N
    and may have "compare": "==" (not given), "!=", ">" or "<".
    A key or value is TEXT, {"text": TEXT} or {"b64": BASE64}.

    \b
    raftcache txn rename.json
    echo '{"then": [{"put": {"key": "a", "value": "1"}}]}' | raftcache txn -o json
    """
    from raftcache.cli.data import open_client
    from raftcache.cli.failures import reported

    if file is None and sys.stdin.isatty():
        raise click.UsageError("Missing argument 'FILE': name one, or pipe the transaction in.")
    conditions, then, otherwise = parse(read_file(file or Path("-")))
    with reported(writes=True), open_client(target) as client:
        result = client.txn(conditions, then=then, otherwise=otherwise)
    document = result_document(result, then if result.succeeded else otherwise)
    if output == JSON:
        write_json("txn", document)
    else:
        for number, line in enumerate(document["results"], 1):
            click.echo(f"{number}  {_line(line)}")
        branch = "then" if result.succeeded else "otherwise"
        note(f"{branch}: {len(document['results'])} operations (shard {result.shard}, revision {result.revision})")
    if not result.succeeded:
        raise Failure("a condition does not hold", code=Exit.PRECONDITION)


# --- Reading ------------------------------------------------------------------------------------------------------

Operations = list["Operation[Any]"]


def parse(data: bytes) -> "tuple[list[Condition], Operations, Operations]":
    """The transaction that `data` describes. Raises: `UsageError` with the place of what is wrong."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"the transaction is not JSON: {error}") from error
    fields = _fields(document, "the transaction", required=(), optional=("conditions", "then", "otherwise"))
    branches = [_list(fields, name, _operation) for name in ("then", "otherwise")]
    conditions = _list(fields, "conditions", _condition)
    if not conditions and not any(branches):
        raise click.UsageError("the transaction is empty: it has neither conditions nor operations")
    return conditions, branches[0], branches[1]


def _list(fields: Document, name: str, read: Callable[[Any, str], Any]) -> list[Any]:
    items = fields.get(name, [])
    if not isinstance(items, list):
        _wrong(name, "is not a list")
    return [read(item, f"{name}[{number}]") for number, item in enumerate(items)]


def _condition(item: Any, where: str) -> "Condition":
    from raftcache.client.when import Condition

    targets = ("exists", "value", "version", "revision", "create_revision")
    fields = _fields(item, where, required=("key",), optional=(*targets, "compare"))
    given = [name for name in targets if name in fields]
    if len(given) != 1:
        _wrong(where, f"needs exactly one of {', '.join(targets)}")
    name = given[0]
    comparison = fields.get("compare", "==")
    if comparison not in COMPARISONS:
        _wrong(f"{where}.compare", f"{json.dumps(comparison)} is not one of {', '.join(COMPARISONS)}")
    operand: bool | int | bytes
    if name == "exists":
        operand = fields[name]
        if not isinstance(operand, bool):
            _wrong(f"{where}.exists", "is not true or false")
        if "compare" in fields:
            _wrong(f"{where}.compare", "has no meaning beside exists")
    elif name == "value":
        operand = _bytes(fields[name], f"{where}.value")
    else:
        operand = _number(fields[name], f"{where}.{name}", lo=0, hi=(1 << 64) - 1)
    target = "mod_revision" if name == "revision" else name
    return Condition(_key(fields, where), target, comparison, operand)


def _operation(item: Any, where: str) -> "Operation[Any]":
    from raftcache.client import ops

    if not isinstance(item, dict) or len(item) != 1:
        _wrong(where, 'is not one operation; write {"put": {"key": ..., "value": ...}}')
    ((name, body),) = item.items()
    where = f"{where}.{name}"
    match name:
        case "get":
            return ops.get(_key(_fields(body, where, required=("key",)), where))
        case "put":
            fields = _fields(body, where, required=("key", "value"))
            return ops.put(_key(fields, where), _bytes(fields["value"], f"{where}.value"))
        case "del":
            return ops.delete(_key(_fields(body, where, required=("key",)), where))
        case "incr":
            fields = _fields(body, where, required=("key",), optional=("by", "initial"))
            lo, hi = -(1 << 63), (1 << 63) - 1
            by = _number(fields.get("by", 1), f"{where}.by", lo=lo, hi=hi)
            initial = _number(fields.get("initial", 0), f"{where}.initial", lo=lo, hi=hi)
            return ops.incr(_key(fields, where), by, initial=initial)
        case _:
            _wrong(
                where, f"is no operation; there are get, put, del and incr{_near(name, ('get', 'put', 'del', 'incr'))}"
            )


def _fields(item: Any, where: str, *, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Document:
    if not isinstance(item, dict):
        _wrong(where, "is not an object")
    known = (*required, *optional)
    for name in item:
        if name not in known:
            _wrong(where, f"there is no {json.dumps(name)}; there are {', '.join(known)}{_near(name, known)}")
    for name in required:
        if name not in item:
            _wrong(where, f'"{name}" is missing')
    return item


def _near(name: str, known: tuple[str, ...]) -> str:
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f". Did you mean {matches[0]}?" if matches else ""


def _key(fields: Document, where: str) -> bytes:
    key = _bytes(fields["key"], f"{where}.key")
    if not key:
        _wrong(f"{where}.key", "is empty; keys have at least one byte")
    return key


def _bytes(value: Any, where: str) -> bytes:
    if isinstance(value, dict) and len(value) == 1:
        ((form, text),) = value.items()
        if form == "b64" and isinstance(text, str):
            try:
                return base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                _wrong(where, "is not base64")
        value = text if form == "text" else value
    if not isinstance(value, str):
        _wrong(where, 'is not text, nor {"b64": ...}')
    try:
        return value.encode()
    except UnicodeEncodeError:
        # JSON can write half a surrogate pair; no text has one.
        _wrong(where, "is not text")


def _number(value: Any, where: str, *, lo: int, hi: int) -> int:
    if isinstance(value, str) and value.removeprefix("-").isascii() and value.removeprefix("-").isdigit():
        # Python refuses to read thousands of digits, which are out of range anyway.
        value = int(value) if len(value) <= INT_DIGITS_MAX else hi + 1
    if not isinstance(value, int) or isinstance(value, bool):
        _wrong(where, "is not a whole number")
    if not lo <= value <= hi:
        _wrong(where, f"is out of range; allowed are {lo} to {hi}")
    return value


def _wrong(where: str, what: str) -> NoReturn:
    raise click.UsageError(f"{where}: {what}")


# --- Writing ------------------------------------------------------------------------------------------------------


def result_document(result: "TxnResult", operations: Operations) -> Document:
    """The outcome: which branch ran, and what its operations gave, in their order."""
    results = [_result(operation, value) for operation, value in zip(operations, result.results, strict=True)]
    return {
        "succeeded": result.succeeded,
        "shard": result.shard,
        "revision": str(result.revision),
        "results": results,
    }


def _result(operation: "Operation[Any]", value: Any) -> Document:
    from raftcache.cli.data import entry_document
    from raftcache.client import ops

    if operation.kind is ops.GET:
        return {"get": entry_document(value)}
    if operation.kind is ops.DELETE:
        return {"del": {"deleted": value.deleted}}
    if operation.kind is ops.INCR:
        return {"incr": {"value": str(value)}}
    return {"put": {}}


def _line(result: Document) -> str:
    """One operation's result for people."""
    ((name, body),) = result.items()
    match name:
        case "get":
            return f"get   {_shown(body['value']) if body is not None else '(no such key)'}"
        case "del":
            return f"del   {'deleted' if body['deleted'] else '(no such key)'}"
        case "incr":
            return f"incr  {body['value']}"
        case _:
            return "put   ok"


def _shown(value: dict[str, str]) -> str:
    data = base64.b64decode(value["b64"]) if "b64" in value else value["text"].encode()
    return printable(data)
