"""A transaction as JSON: what it may say, and how mistakes are named."""

import json
from typing import Any

import pytest

from raftcache.cli.exits import Exit
from raftcache.cli.transaction import parse
from raftcache.client import ops, when
from tests.cli.conftest import Run

WHOLE = {
    "conditions": [
        {"key": "k", "exists": False},
        {"key": "k", "value": {"b64": "AP8="}, "compare": "!="},
        {"key": {"text": "k"}, "version": "18446744073709551615"},
        {"key": "k", "revision": 3, "compare": ">"},
    ],
    "then": [
        {"put": {"key": "k", "value": "v"}},
        {"incr": {"key": "n{k}", "by": "-9223372036854775808", "initial": 5}},
        {"get": {"key": {"b64": "AQ=="}}},
    ],
    "otherwise": [{"del": {"key": "k"}}],
}


def test_everything_that_there_is_can_be_said() -> None:
    """Text and bytes, numbers as numbers and as text."""
    conditions, then, otherwise = parse(json.dumps(WHOLE).encode())
    assert [
        when.absent("k"),
        when.value("k") != b"\x00\xff",
        when.version("k") == (1 << 64) - 1,
        when.revision("k") > 3,
    ] == conditions
    expected = [ops.put("k", b"v"), ops.incr("n{k}", -(1 << 63), initial=5), ops.get(b"\x01")]
    assert [operation.message for operation in expected] == [operation.message for operation in then]
    assert [ops.delete("k").message] == [operation.message for operation in otherwise]


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("{", "the transaction is not JSON"),
        ([], "the transaction: is not an object"),
        ({}, "the transaction is empty"),
        ({"els": []}, 'the transaction: there is no "els"'),
        ({"conditoins": []}, "Did you mean conditions?"),
        ({"then": {}}, "then: is not a list"),
        ({"then": [{"put": {"key": "k"}}]}, 'then[0].put: "value" is missing'),
        ({"then": [{"put": {"key": "", "value": ""}}]}, "then[0].put.key: is empty"),
        ({"then": [{"put": {"key": "k", "value": 1}}]}, "then[0].put.value: is not text"),
        ({"then": [{"put": {"key": "k", "value": {"b64": "?"}}}]}, "then[0].put.value: is not base64"),
        ({"then": [{"put": {"key": "\ud800", "value": ""}}]}, "then[0].put.key: is not text"),
        ({"then": [{"get": {"key": "k"}}, {"pot": {}}]}, "then[1].pot: is no operation"),
        ({"then": [{"get": {}, "put": {}}]}, "then[0]: is not one operation"),
        ({"then": [{"incr": {"key": "k", "by": 1 << 63}}]}, "then[0].incr.by: is out of range"),
        ({"then": [{"incr": {"key": "k", "by": "9" * 5000}}]}, "then[0].incr.by: is out of range"),
        ({"then": [{"incr": {"key": "k", "by": True}}]}, "then[0].incr.by: is not a whole number"),
        ({"then": [{"incr": {"key": "k", "by": 1.5}}]}, "then[0].incr.by: is not a whole number"),
        ({"conditions": [{"key": "k"}]}, "conditions[0]: needs exactly one of"),
        ({"conditions": [{"key": "k", "exists": 1}]}, "conditions[0].exists: is not true or false"),
        ({"conditions": [{"key": "k", "exists": True, "compare": ">"}]}, "conditions[0].compare: has no meaning"),
        ({"conditions": [{"key": "k", "version": -1}]}, "conditions[0].version: is out of range"),
        ({"conditions": [{"key": "k", "version": 1, "compare": "="}]}, 'conditions[0].compare: "=" is not one of'),
    ],
)
def test_a_mistake_is_named_with_its_place(document: Any, problem: str, run: Run) -> None:
    """Nothing is sent; the exit code is that of a wrong command line."""
    text = document if isinstance(document, str) else json.dumps(document)
    result = run("txn", input=text)
    assert (Exit.USAGE, "") == (result.exit_code, result.stdout)
    assert problem in result.stderr
