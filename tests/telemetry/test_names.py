"""The tables of names, and that the code keeps to them."""

import ast
import re
from pathlib import Path

from raftcache.telemetry import names

PACKAGE = Path(__file__).parents[2] / "raftcache"


def test_names_have_the_agreed_form() -> None:
    """Events and spans are snake_case; metrics begin with the product and end in a base unit or `_total`."""
    for name in (*names.EVENTS, *names.SPANS):
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name), name
    for metric in names.METRICS:
        assert re.fullmatch(r"raftcache_[a-z]+(_[a-z]+)+", metric.name), metric.name
        counter = metric.kind in (names.MetricKind.COUNTER, names.MetricKind.SCRAPED_COUNTER)
        assert counter == metric.name.endswith("_total"), metric.name
        assert not re.search(r"_(ms|us|ns|kb|mib|millis)(_|$)", metric.name), f"{metric.name} is not in a base unit"
    assert len(names.METRICS) == len({metric.name for metric in names.METRICS})


def test_few_metrics_carry_a_shard() -> None:
    """Every shard of every node is a series of each: the number may shrink."""
    assert 14 >= sum("shard" in metric.labels for metric in names.METRICS)


def test_every_event_in_the_code_is_in_the_table() -> None:
    """A name that nobody can look up would be reported as a bug at run time; here it is found before."""
    unknown = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.args[0].value}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "event"
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
        and node.args[0].value not in names.EVENTS
    ]
    assert [] == unknown
