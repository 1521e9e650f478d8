"""The rules of the project that no linter knows (CONTRIBUTING.md): executed, so that nobody has to remember them.

The lists of exceptions here are ratchets: each entry has a reason and a number that may only fall. An entry that is no longer
needed fails the test as well, so that it is taken out.
"""

import ast
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from raftcache.version import VERSION

TOP = Path(__file__).parents[1]
PACKAGE = TOP / "raftcache"
GENERATED = (PACKAGE / "v1", PACKAGE / "admin")

FUNCTION_LINES_MAX = 75
"""A function fits a screen. Counted from `def` to its last line, without its docstring."""

LONG_FUNCTIONS: Mapping[str, tuple[int, str]] = {
    "raftcache/raft/core.py:Raft.__init__": (92, "all state of a replica, each field with its meaning, in one place"),
}

NAMES_THAT_SAY_NOTHING = frozenset(
    {"utils", "util", "common", "helpers", "helper", "base", "interfaces", "managers", "misc"}
)

BANNED_CALLS: Mapping[str, str] = {
    "asyncio.create_task": "tasks live in a TaskGroup and have names",
    "asyncio.ensure_future": "tasks live in a TaskGroup and have names",
    "asyncio.gather": "use a TaskGroup: gather leaves the other tasks running when one fails",
    "time.time": "take a raftcache.clock.Clock",
    "time.time_ns": "take a raftcache.clock.Clock",
    "time.monotonic": "take a raftcache.clock.Clock",
    "time.monotonic_ns": "take a raftcache.clock.Clock",
    "time.perf_counter": "take a raftcache.clock.Clock",
    "time.perf_counter_ns": "take a raftcache.clock.Clock",
    "time.sleep": "wait for a condition, or use a timer of the loop",
    "datetime.now": "take a raftcache.clock.Clock",
    "datetime.utcnow": "take a raftcache.clock.Clock",
    "random.random": "take a random.Random, seeded by the caller",
    "random.randrange": "take a random.Random, seeded by the caller",
    "random.randint": "take a random.Random, seeded by the caller",
    "random.choice": "take a random.Random, seeded by the caller",
    "random.shuffle": "take a random.Random, seeded by the caller",
    "print": "a library does not print; use the log",
    "breakpoint": "left over from debugging",
    "eval": "never",
    "exec": "never",
    "pickle.loads": "bytes from a file or a socket must not be able to run code",
    "pickle.load": "bytes from a file or a socket must not be able to run code",
}

ALLOWED_CALLS: Mapping[str, str] = {
    "raftcache/clock.py: time.monotonic_ns": "the one place that reads a clock",
    "raftcache/clock.py: time.time_ns": "the one place that reads a clock",
    "raftcache/server/certs.py: datetime.now": "the default of a parameter: certificates are valid by the wall clock",
    "raftcache/transport/tls.py: datetime.now": "the default of a parameter: certificates are valid by the wall clock",
}
"""By exact call. Besides, the command line prints and measures, and the client, which runs in others' programs without our
clock, may read the monotonic one."""

MACHINE_PATH = re.compile(r"(?<![\w.])/(?:root|home/[a-z]\w*|work|Users/\w+)/")
"""Paths that exist on one machine only. `/tmp` and `/var/lib/raftcache` exist everywhere."""


@dataclass(frozen=True)
class Module:
    """One source file of the package, parsed once."""

    path: Path
    tree: ast.Module

    @property
    def name(self) -> str:
        """Its path from the top of the repository."""
        return self.path.relative_to(TOP).as_posix()


def tracked(*patterns: str) -> list[Path]:
    """Files that are, or are about to be, part of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns],
        cwd=TOP,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = [TOP / name for name in listed.stdout.decode().split("\0") if name]
    else:
        # A source archive has no git; then everything that is no environment counts.
        paths = [path for pattern in patterns for path in TOP.rglob(pattern)]
        paths = [
            path for path in paths if not any(part.startswith(".venv") or part == "node_modules" for part in path.parts)
        ]
    return sorted(path for path in paths if path.is_file())


def own_modules() -> list[Module]:
    """All of the package but generated code."""
    paths = [path for path in tracked("*.py") if path.is_relative_to(PACKAGE)]
    paths = [path for path in paths if not any(path.is_relative_to(directory) for directory in GENERATED)]
    return [Module(path, ast.parse(path.read_text(), str(path))) for path in paths]


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    """Parsed once for all tests here."""
    found = own_modules()
    assert len(found) > 20, "the package was not found"
    return found


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function with its dotted name."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + child.name, child
                yield from walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.")
            else:
                yield from walk(child, prefix)

    yield from walk(tree, "")


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From `def` to the last line, without the docstring, however long that is."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


def dotted(node: ast.expr) -> str:
    """`asyncio.create_task` of the expression that it is; empty for what is no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


def test_every_function_fits_a_screen(modules: list[Module]) -> None:
    """Those that do not are listed with a reason, and may only shrink."""
    long = {
        f"{module.name}:{name}": body_lines(function)
        for module in modules
        for name, function in functions(module.tree)
        if body_lines(function) > FUNCTION_LINES_MAX
    }
    grown = {name: lines for name, lines in long.items() if lines > LONG_FUNCTIONS.get(name, (0, ""))[0]}
    assert {} == grown, f"longer than {FUNCTION_LINES_MAX} lines, or longer than they were"
    shrunk = {name: long.get(name) for name, (lines, _) in LONG_FUNCTIONS.items() if long.get(name) != lines}
    assert {} == shrunk, "these have become shorter: take the new number, or take them out of LONG_FUNCTIONS"


def test_every_module_says_what_it_is_for(modules: list[Module]) -> None:
    """Its docstring is the chapter's beginning; a bare file name is none."""
    silent = [module.name for module in modules if len(ast.get_docstring(module.tree) or "") < 20]
    assert [] == silent


def test_no_file_has_a_name_that_says_nothing() -> None:
    """A file is named after an idea that a newcomer would name."""
    named = [
        path.relative_to(TOP).as_posix()
        for path in tracked("*.py")
        if NAMES_THAT_SAY_NOTHING & {part.removesuffix(".py").strip("_") for part in path.relative_to(TOP).parts}
    ]
    assert [] == named


def banned_calls(modules: list[Module]) -> tuple[list[str], set[str]]:
    """What is banned and not allowed, with its place and reason; and which of the allowed calls there are."""
    found, used = [], set()
    for module in modules:
        # A parameter `random: random.Random` is what the style asks for; only the module of that name is meant.
        imported = {alias.asname or alias.name for node in ast.walk(module.tree) for alias in _imported(node)}
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            call = ".".join(dotted(node.func).split(".")[-2:])
            key = f"{module.name}: {call}"
            if key in ALLOWED_CALLS:
                used.add(key)
            elif call.startswith("random.") and "random" not in imported:
                continue
            elif call in BANNED_CALLS and not _program_may(module, call):
                found.append(f"{module.name}:{node.lineno}: {call}: {BANNED_CALLS[call]}")
    return found, used


def test_nobody_calls_what_the_style_bans(modules: list[Module]) -> None:
    """Bare tasks, the machine's clocks and global randomness are out of tests' control."""
    found, used = banned_calls(modules)
    assert [] == found
    assert set(ALLOWED_CALLS) == used, "no longer needed: take it out of ALLOWED_CALLS"


CANARY = (
    """
import asyncio, random, time
from datetime import datetime

async def a() -> None:
    asyncio.create_task(b())
    await asyncio.gather(b(), b())
    time.time(); datetime.now(); random.choice([1]); print(1)

def long() -> None:
    '''Not counted.'''
"""
    + "    pass\n" * (FUNCTION_LINES_MAX + 1)
)


def test_the_rules_find_a_module_that_breaks_them() -> None:
    """The canary: rules that see nothing would pass everything."""
    canary = Module(PACKAGE / "node" / "canary.py", ast.parse(CANARY))
    found, _ = banned_calls([canary])
    broken = {"asyncio.create_task", "asyncio.gather", "time.time", "datetime.now", "random.choice", "print"}
    assert broken == {line.split(": ")[1] for line in found}
    assert FUNCTION_LINES_MAX + 2 == {name: body_lines(function) for name, function in functions(canary.tree)}["long"]


def _imported(node: ast.AST) -> list[ast.alias]:
    return node.names if isinstance(node, ast.Import) else []


def _program_may(module: Module, call: str) -> bool:
    """The command line and the client are guests in others' programs."""
    measures = call.startswith("time.") and call != "time.time"
    if module.path.is_relative_to(PACKAGE / "cli"):
        return call == "print" or measures
    return module.path.is_relative_to(PACKAGE / "client") and measures


def test_tasks_have_names(modules: list[Module]) -> None:
    """A task without one shows up in a stack dump as Task-17."""
    nameless = [
        f"{module.name}:{node.lineno}"
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "create_task"
        and not any(keyword.arg == "name" for keyword in node.keywords)
    ]
    assert [] == nameless


def test_every_broad_except_says_why(modules: list[Module]) -> None:
    """`except Exception` is for supervisors, a bare `except:` for nobody. To clean up and raise again needs no reason."""
    silent = []
    for module in modules:
        lines = module.path.read_text().splitlines()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or dotted(node.type) in ("Exception", "BaseException")
            ):
                last = node.body[-1]
                raises_again = isinstance(last, ast.Raise) and last.exc is None
                if not raises_again and (node.type is None or "noqa: BLE001" not in lines[node.lineno - 1]):
                    silent.append(f"{module.name}:{node.lineno}")
    assert [] == silent


def test_every_test_says_what_it_shows() -> None:
    """One sentence; the name says it in words, the sentence says why it matters."""
    silent = []
    for path in tracked("*.py"):
        if not path.is_relative_to(TOP / "tests") or not path.name.startswith("test_"):
            continue
        for name, function in functions(ast.parse(path.read_text())):
            if name.split(".")[-1].startswith("test_") and not ast.get_docstring(function):
                silent.append(f"{path.relative_to(TOP).as_posix()}:{function.lineno}: {name}")
    assert [] == silent


def test_no_test_sleeps_for_a_fixed_time() -> None:
    """A test waits for a condition. `asyncio.sleep` below 20 ms is the pause of such a loop."""
    sleepers = []
    for path in tracked("*.py"):
        if not path.is_relative_to(TOP / "tests"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or dotted(node.func) not in ("time.sleep", "asyncio.sleep"):
                continue
            argument = node.args[0] if node.args else None
            if (
                isinstance(argument, ast.Constant)
                and isinstance(argument.value, int | float)
                and argument.value >= 0.02
            ):
                sleepers.append(f"{path.relative_to(TOP).as_posix()}:{node.lineno}")
    assert [] == sleepers


def test_every_suppression_is_of_something_by_name() -> None:
    """`noqa` and `type: ignore` without a code hide the next mistake too."""
    pattern = re.compile(r"#\s*(?:noqa(?!:\s*[A-Z]+[0-9]+)|type:\s*ignore(?!\[))")
    bare = [
        f"{path.relative_to(TOP).as_posix()}:{number}"
        for path in tracked("*.py")
        if not any(path.is_relative_to(directory) for directory in GENERATED) and path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]
    assert [] == bare


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    """Neither paths of a home directory, nor addresses of a network that is not everywhere."""
    found = []
    for path in tracked("*"):
        if path == Path(__file__) or path.suffix in (".png", ".svg", ".lock", ".bin"):
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(TOP).as_posix()}:{number}: {line.strip()[:80]}"
            for number, line in enumerate(text.splitlines(), start=1)
            if MACHINE_PATH.search(line)
        ]
    assert [] == found


def test_every_make_target_exists_and_is_explained() -> None:
    """`make` alone lists them; what is listed is there, and what it calls is there as well."""
    text = (TOP / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, flags=re.MULTILINE))
    explained = set(re.findall(r"\bmake ([a-z-]+)", text)) - {"alone"}
    internal = {"help", "versions", "native-tree"}
    assert targets - internal == explained & targets
    assert set() == explained - targets
    for script in re.findall(r"(?:examples|benchmarks|proto)/\w+\.(?:py|sh)", text):
        assert (TOP / script).exists(), f"the Makefile calls {script}, which does not exist"


def test_the_licence_is_the_one_that_is_declared() -> None:
    """Its full text, not a line about it."""
    text = (TOP / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert 'license = "Apache-2.0"' in (TOP / "pyproject.toml").read_text()


def test_the_list_of_changes_knows_the_version() -> None:
    """Whoever raises it says what is new."""
    assert f"## {VERSION}" in (TOP / "CHANGELOG.md").read_text()
