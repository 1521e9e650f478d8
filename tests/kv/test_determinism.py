"""The same log amounts to the same records, to the byte, wherever and however it is applied."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import raftcache.kv
from raftcache.kv.operations import Delete, Put
from tests.kv.sample_log import amount, sample_log
from tests.kv.shard import Shard

ROOT = Path(__file__).parents[2]
SOURCES = sorted(Path(raftcache.kv.__path__[0]).glob("*.py"))

PURE_MODULES = {
    "ast",
    "binascii",
    "bisect",
    "collections",
    "dataclasses",
    "enum",
    "hashlib",
    "itertools",
    "struct",
    "typing",
    "xxhash",
    "zlib",
}
"""What kv/ may import: pure modules of the standard library, and one hash function."""
PROJECT = ("raftcache.kv", "raftcache.ids", "raftcache.errors")


def test_interpreters_with_other_hash_seeds_agree() -> None:
    """Two processes with different PYTHONHASHSEED write the same records and give the same answers as this one."""
    expected = amount(sample_log(7), flush_every=0, reload_every=0)
    for hash_seed in ("1", "4242"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.kv.sample_log", "7", "3", "0"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert expected == done.stdout.strip()


@pytest.mark.parametrize("seed", range(6))
def test_flushes_and_restarts_leave_no_trace(seed: int) -> None:
    """When a replica flushed or reloaded shows neither in its records nor in its answers."""
    log = sample_log(seed, entries=60)
    expected = amount(log, flush_every=0, reload_every=0)
    assert expected == amount(log, flush_every=1, reload_every=0)
    assert expected == amount(log, flush_every=4, reload_every=7)
    assert expected == amount(log, flush_every=0, reload_every=1)


def test_the_sample_log_meets_what_it_should() -> None:
    """A log that only fails, or never does, would prove nothing."""
    shard = Shard()
    kinds: dict[str, int] = {}
    for data in sample_log(7):
        for result in shard.apply(data):
            name = getattr(result, "reason", type(result).__name__)
            kinds[name] = kinds.get(name, 0) + 1
    for name in ("WriteResult", "IncrementResult", "TransactionResult", "SessionResult", "INVALID_REQUEST",
                 "SESSION_WINDOW", "SESSION_EXPIRED", "WRONG_SHARD", "PRECONDITION_FAILED"):  # fmt: skip
        assert kinds.get(name, 0) >= 2, kinds


def test_the_state_hash_of_version_1_stays_what_it_is() -> None:
    """Releases of one format version compare hashes: neither records nor hash may change without a new version."""
    shard = Shard()
    shard.run(Put(b"foo", b"1"), Put(b"{foo}bar", b"2"), Put(b"gone", b""), Delete(b"gone"), Put(b"foo", b"3"))
    assert "0100" "0000000000000001" "0000000000000005" "0000000000000002" "33" == (
        shard.records.get(b"D\0\0\0\0foo") or b""
    )[:-8].hex()  # fmt: skip
    assert "0000000000000001968d915eb35b2c9e" == f"{shard.machine.state_hash:032x}"


def imports_of(tree: ast.Module) -> list[str]:
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def is_set(node: ast.expr) -> bool:
    """A set that can be recognised as one."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in ("set", "frozenset")
    return isinstance(node, (ast.Set, ast.SetComp))


def findings(source: str) -> list[str]:
    """What makes an apply differ between interpreters: foreign imports, hash(), id(), floats, iteration over sets."""
    tree = ast.parse(source)
    found = [
        f"import of {name}"
        for name in imports_of(tree)
        if name.split(".")[0] not in PURE_MODULES and not name.startswith(PROJECT) and name != "raftcache.errors"
    ]
    sets: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and is_set(node.value):
            sets |= {ast.unparse(target) for target in node.targets}
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).startswith(("set", "frozenset")):
            sets.add(ast.unparse(node.target))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("hash", "id", "float", "open", "input", "eval", "exec", "globals", "__import__"):
                found.append(f"call of {node.func.id}()")
            # These take the elements in the set's order; sorted, len, min, max, any and all do not show it.
            elif node.func.id in ("list", "tuple", "iter", "next", "enumerate", "zip", "map", "dict", "sum") and any(
                is_set(argument) or ast.unparse(argument) in sets for argument in node.args
            ):
                found.append(f"order of a set: {ast.unparse(node)}")
        elif isinstance(node, (ast.For, ast.comprehension)):
            if is_set(node.iter) or ast.unparse(node.iter) in sets:
                found.append(f"iteration over a set: {ast.unparse(node.iter)}")
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            found.append(f"division to a float: {ast.unparse(node)}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, float):
            found.append(f"a float: {node.value}")
        elif isinstance(node, ast.AsyncFunctionDef):
            found.append(f"a coroutine: {node.name}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_in_kv_depends_on_the_interpreter(path: Path) -> None:
    """No clock, randomness, environment, hash order or float anywhere in kv/."""
    assert [] == findings(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from os import environ",
        "import random",
        "from raftcache import clock",
        "def f(x): return hash(x)",
        "for x in {1, 2}: pass",
        "s = set()\nfor x in s: pass",
        "class A:\n    def f(self):\n        self.s: set[int] = set()\n        return [x for x in self.s]",
        "y = list({1, 2})",
        "y = 1 / 2",
        "y = 0.5",
    ],
)
def test_the_lint_finds_what_it_is_for(source: str) -> None:
    """A canary for each of its rules."""
    assert findings(source)
