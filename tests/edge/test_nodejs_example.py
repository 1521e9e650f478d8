"""The Node.js example works: a client made from the .proto files alone, by another gRPC library."""

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from raftcache.errors import Overloaded
from tests.edge.conftest import Bench
from tests.support.nodejs import NODE, installed_example, needs_node

pytestmark = needs_node


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its packages."""
    return installed_example(tmp_path_factory.mktemp("nodejs"))


async def run(example: Path, bench: Bench, *arguments: str) -> tuple[int, list[Any], list[Any]]:
    """Runs the client against the front; its exit code, and the JSON lines it wrote to both outputs."""
    assert NODE
    address = f"127.0.0.1:{bench.front.port}"
    process = await asyncio.create_subprocess_exec(
        NODE,
        "client.mjs",
        "--address",
        address,
        *arguments,
        cwd=example,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ) | {"NODE_NO_WARNINGS": "1"},
    )
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, lines_of(out), lines_of(err)


def lines_of(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines()]


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--nonsense", 2), ("nonsense", 2)])
def test_usage_is_told_in_a_line(example: Path, argument: str, code: int) -> None:
    """And not in a stack trace."""
    assert NODE
    done = subprocess.run([NODE, "client.mjs", argument], cwd=example, capture_output=True, text=True, check=False)
    assert code == done.returncode
    assert (done.stdout or done.stderr).splitlines()[-1].startswith("usage: ")


async def test_a_value_is_written_and_read(example: Path, bench: Bench) -> None:
    """Put and get of one key, and the get of a key that is not there."""
    code, (written,), _ = await run(example, bench, "put", "grüße", "wörld")
    assert (0, True) == (code, written["succeeded"])
    _, (read,), _ = await run(example, bench, "get", "grüße")
    assert ("wörld", "1") == (read["value"], read["version"])
    _, (absent,), _ = await run(example, bench, "get", "nothing")
    assert absent["value"] is None


async def test_error_details_are_decoded(example: Path, bench: Bench) -> None:
    """A refused call ends with exit code 1 and the facts of google.rpc.Status."""
    bench.node.fail = lambda _: Overloaded("too much", metadata={"setting": "limits.x"})
    code, out, (facts,) = await run(example, bench, "put", "k", "v")
    assert (1, []) == (code, out)
    assert {
        "reason": "OVERLOADED",
        "definite": True,
        "retryable": True,
        "retryAfterMs": 100,
        "metadata": {"setting": "limits.x", "shard": facts["metadata"]["shard"]},
        "code": 8,
        "message": "too much",
    } == facts


async def test_a_pipeline_keeps_its_order(example: Path, bench: Bench) -> None:
    """Each get on the stream sees the put that was sent before it."""
    code, answers, _ = await run(example, bench, "pipeline", "100")
    assert 0 == code
    assert [(str(number), str(number)) for number in range(1, 101)] == [(a["request_id"], a["got"]) for a in answers]


async def test_load_prints_what_was_acknowledged(example: Path, bench: Bench) -> None:
    """Every key is printed once, when its write is acknowledged, however often it had to be sent."""
    failed: set[bytes] = set()

    def fail_once(request: Any) -> Overloaded | None:
        key = request.operation.key
        if key.endswith(b"7") and key not in failed:
            failed.add(key)
            return Overloaded("later")
        return None

    bench.node.fail = fail_once
    code, acknowledged, _ = await run(example, bench, "--load", "--prefix", "p/", "--first", "5", "--count", "50")
    assert 0 == code
    assert {f"p/{number}" for number in range(5, 55)} == {line["key"] for line in acknowledged}
    assert 50 == len(acknowledged)
    assert {line["key"] for line in acknowledged if line["attempt"] > 1} == {key.decode() for key in failed}
