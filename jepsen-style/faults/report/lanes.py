"""A counter-example as a picture: one lane for each client, one box for each operation, from its start to its end.

Times are stretched so that every box has room for its words; their order is exact, their lengths are not. Equal values have
equal colours, so that an old value that comes back is seen before anything is read.
"""

import json
from collections.abc import Sequence

from faults.history import Json, Op
from faults.report import svg

GUTTER = 92
LANE = 46
BOX = 30
COLUMN_MIN = 60
"""Room for the time below it."""
CHARACTER = 7.3
"""Width of one, in the boxes' font."""
LABEL_MAX = 44
OPERATIONS_MAX = 40
"""Of more, the last ones are shown: what is wrong shows at the end."""
HUES = ("#3b7dd8", "#e08a2e", "#2f9e6e", "#c2549b", "#7d6bd6", "#b7902a")


def lanes(counterexample: Sequence[Op]) -> str:
    """One SVG. Operations come by start."""
    ops = list(counterexample)[-OPERATIONS_MAX:]
    ends = [op.end_ns if op.status != "info" else None for op in ops]
    moments = sorted({op.start_ns for op in ops} | {end for end in ends if end is not None})
    last = len(moments)
    rank = {moment: number for number, moment in enumerate(moments)}
    columns = [rank[op.start_ns] for op in ops], [last if end is None else rank[end] for end in ends]
    x = _columns(ops, *columns, last + 1)
    rows = {client: number for number, client in enumerate(dict.fromkeys(op.client for op in ops))}
    hues = _hues(ops)
    height = 30 + LANE * len(rows)
    shapes = [
        shape
        for client, row in rows.items()
        for shape in (
            svg.text(0, 34 + LANE * row, f"client {client}", "lane"),
            svg.line(GUTTER, 30 + LANE * row, x[-1] + 8, 30 + LANE * row, "rule"),
        )
    ]
    for number, moment in enumerate(moments):
        shapes += [
            svg.line(x[number], 4, x[number], height - 16, "moment"),
            svg.text(x[number], height, _since(moment - moments[0]), "tick", anchor="middle" if number else "start"),
        ]
    for op, first, final in zip(ops, *columns, strict=True):
        y = 15 + LANE * rows[op.client]
        width = x[final] - x[first]
        hue = hues.get(_value(op), "#8a8f98")
        style = "box open" if op.status == "info" else "box refused" if op.status == "fail" else "box"
        shapes += [
            svg.rect(x[first], y, width, BOX, style, title=_title(op), radius=6, fill=hue),
            svg.text(x[first] + 9, y + 20, label(op), "words"),
            svg.text(x[final] - 9, y + 20, op.node, "words asked", anchor="end"),
        ]
    return svg.figure(x[-1] + 16, height + 8, shapes, "the counter-example, one lane for each client")


def _columns(ops: Sequence[Op], firsts: Sequence[int], finals: Sequence[int], count: int) -> list[float]:
    """Where each moment is drawn: far enough from the ones before that each box has room for its words."""
    x = [GUTTER + COLUMN_MIN * number for number in range(count)]
    places: list[float] = [float(each) for each in x]
    for first, final, op in sorted(zip(firsts, finals, ops, strict=True), key=lambda entry: entry[1]):
        words = len(label(op)) + (len(op.node) + 2 if op.node else 0)
        lacking = words * CHARACTER + 20 - (places[final] - places[first])
        if lacking > 0:
            for number in range(final, count):
                places[number] += lacking
    return places


def label(op: Op) -> str:
    """What was asked and answered, in as few characters as can be understood."""
    if op.op == "cas" and isinstance(op.argument, list | tuple) and len(op.argument) == 2:
        words = f"cas {_short(op.argument[0])} to {_short(op.argument[1])}"
        if op.ok and isinstance(op.result, dict) and not op.result.get("swapped"):
            words += f": no, {_short(op.result['value'])}" if "value" in op.result else ": no"
    elif op.op == "txn" and isinstance(op.argument, dict):
        words = f"{op.argument.get('from')} to {op.argument.get('to')}: {op.argument.get('amount')}"
        words += " refused" if op.result is False else ""
    else:
        words = op.op.replace("_", " ")
        words += "" if op.argument is None and op.op != "write" else f" {_short(op.argument)}"
        words += (
            f" = {_short(op.result)}"
            if op.ok and (op.result is not None or op.argument is None) and op.op != "write"
            else ""
        )
    words += {"info": "  ?", "fail": "  refused"}.get(op.status, "")
    return words if len(words) <= LABEL_MAX else words[: LABEL_MAX - 1] + "…"


def _short(value: Json) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _value(op: Op) -> str:
    """The value that gives a box its colour: what it wrote, or what it saw."""
    value: Json = op.result if op.ok and op.op in ("read", "stale_read", "list") else op.argument
    if op.op == "cas" and isinstance(op.argument, list | tuple) and len(op.argument) == 2:
        refused = op.ok and isinstance(op.result, dict) and not op.result.get("swapped")
        value = op.result.get("value") if refused and isinstance(op.result, dict) else op.argument[1]
    return json.dumps(value, sort_keys=True)


def _hues(ops: Sequence[Op]) -> dict[str, str]:
    """A colour for each value that more than one operation has to do with."""
    values = [_value(op) for op in ops]
    shared = [value for value in dict.fromkeys(values) if value != "null"]
    return {value: HUES[number % len(HUES)] for number, value in enumerate(shared)}


def _title(op: Op) -> str:
    parts = [label(op), f"status {op.status}"]
    parts += [
        f"{name} {value}"
        for name, value in (("node", op.node), ("index", op.index), ("revision", op.revision))
        if value
    ]
    if "list_length" in op.extra:
        parts.append(f"shortened to the elements that matter, of {op.extra['list_length']}")
    return "\n".join(parts)


def _since(nanoseconds: int) -> str:
    millis = nanoseconds / 1e6
    if millis >= 10_000:
        return f"{millis / 1000:.1f} s"
    return f"{millis:.0f} ms" if millis >= 10 else f"{millis:.2f} ms" if nanoseconds else "0"
