"""What the documents say exists, exists: links, paths, names in the code, commands and their options, settings, metrics.

A document that names what is no longer there misleads exactly those who need it. So every `code span` of the form of a name is
looked up, and what has another form is left alone. Files are parsed, not imported, but for the command line, whose
commands are asked for their options.
"""

import ast
import builtins
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

import raftcache
from raftcache.config.settings import Config
from raftcache.errors import RaftCacheError
from raftcache.telemetry.names import EVENTS, METRICS

TOP = Path(__file__).parents[1]
SKIPPED = {".venv", ".venv-proto", "node_modules", ".git", ".hypothesis", ".pytest_cache"}
DOCUMENTS = sorted(
    path for path in TOP.rglob("*.md") if not any(part in SKIPPED for part in path.relative_to(TOP).parts)
)
CHECKED_NAMES = [TOP / "ARCHITECTURE.md", TOP / "README.md"]
"""The documents in which every name is looked up. `docs/properties.md` has a test of its own."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
VARIABLE = re.compile(r"\b[A-Z_]+=\S+\s+")


def ids(path: Path) -> str:
    return path.relative_to(TOP).as_posix()


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return FENCE.sub("", path.read_text())


def spans(path: Path) -> list[str]:
    return SPAN.findall(prose(path))


def blocks(path: Path, *languages: str) -> list[str]:
    return [code for language, code in FENCE.findall(path.read_text()) if language in languages]


# --- Links ----------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_every_link_leads_somewhere(path: Path) -> None:
    """Links within the repository: the file is there, and so is the heading."""
    broken = []
    for link in LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert [] == broken


def test_index_of_the_documents_is_complete() -> None:
    """Whoever adds a document adds its line."""
    index = (TOP / "docs" / "README.md").read_text()
    assert [] == [
        path.name for path in (TOP / "docs").glob("*.md") if f"({path.name})" not in index and path.name != "README.md"
    ]


# --- Names in the code ------------------------------------------------------------------------------------------------


@cache
def code() -> tuple[dict[str, set[str]], dict[str, set[str]], frozenset[str]]:
    """Of the package and the simulator: class -> its members, module -> its names, and all names together."""
    classes: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}
    modules: dict[str, set[str]] = {}
    for path in [*TOP.glob("raftcache/**/*.py"), *TOP.glob("tests/simulation/*.py"), *TOP.glob("examples/*.py")]:
        tree = ast.parse(path.read_text())
        modules.setdefault(path.stem, set()).update(_defined(tree.body))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                members = classes.setdefault(node.name, set())
                members |= _defined(node.body) | _assigned_to_self(node)
                bases.setdefault(node.name, []).extend(ast.unparse(base) for base in node.bases)
    for name, parents in bases.items():
        for parent in parents:
            classes[name] |= classes.get(parent, set())
    every = set(classes).union(*classes.values(), *modules.values())
    return classes, modules, frozenset(every)


def _defined(body: list[ast.stmt]) -> set[str]:
    found: set[str] = set()
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case ast.Assign(targets=targets):
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def _assigned_to_self(node: ast.ClassDef) -> set[str]:
    return {
        inner.attr
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "self"
    }


def is_setting(name: str) -> bool:
    """`section.key` of the configuration."""
    section, _, key = name.partition(".")
    return hasattr(getattr(Config(), section, None), key)


def unknown(span: str) -> bool:
    """Whether a code span has the form of a name of ours and is none."""
    classes, modules, every = code()
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/|[\w.-]+(/[\w.-]+)*\.(py|md|toml|json|mjs|proto|yaml|service|sh)", span):
        # A package may be named as the layers name it; a plain file name may lie anywhere.
        return not any((top / span).exists() for top in (TOP, TOP / "raftcache")) and (
            "/" in span or not any(path.name == span for path in TOP.glob("*/**/*") if ".venv" not in path.parts)
        )
    if re.fullmatch(r"_?[A-Z]\w*[a-z]\w*(\.\w+)+", span):
        owner, *members = span.split(".")
        return owner not in classes or members[0] not in classes[owner]
    if re.fullmatch(r"_?[A-Z][a-z]+\w*", span) and span != "Protocol" and not hasattr(builtins, span):
        return span not in every
    if re.fullmatch(r"raftcache_[a-z_]+", span):
        return not any(metric.name == span for metric in METRICS)
    if re.fullmatch(r"[a-z_]+\.[a-z]\w+", span):
        module, _, name = span.partition(".")
        return not is_setting(span) and name not in modules.get(module, ()) and not hasattr(raftcache, name)
    if re.fullmatch(r"[A-Z]+(_[A-Z]+)+", span):
        reasons = {error.reason for error in _errors(RaftCacheError)}
        return span not in reasons and span not in every and not span.startswith("RAFTCACHE_")
    if re.fullmatch(r"[a-z]+(_[a-z]+)+", span):
        return span not in every and span not in EVENTS
    return False


def _errors(root: type[RaftCacheError]) -> Iterator[type[RaftCacheError]]:
    yield root
    for child in root.__subclasses__():
        yield from _errors(child)


def test_layers_are_those_that_are_enforced() -> None:
    """The picture of the layers has the words of the contract, in its order."""
    layers = re.search(r"^layers = \[(.*?)^\]", (TOP / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert layers is not None
    enforced = [re.findall(r"\w+", line) for line in layers[1].strip().splitlines()]
    picture = next(block for block in blocks(TOP / "ARCHITECTURE.md", "") if block.startswith("cli "))
    drawn = [re.findall(r"\w+", re.split(r"\s{2,}", line)[0]) for line in picture.splitlines()]
    assert enforced == drawn


@pytest.mark.parametrize("path", CHECKED_NAMES, ids=ids)
def test_every_name_exists(path: Path) -> None:
    """Paths, classes, members, functions, settings, metrics, reasons and events that a document names."""
    assert [] == [span for span in spans(path) if unknown(span)]


@pytest.mark.parametrize(
    "span",
    [
        "raftcache/node/motor.py",
        "Engine.explode",
        "Motor.turn",
        "wal_recovery.guess",
        "storage.log_bytes_minimum",
        "raftcache_wal_fsync_mood",
        "NOT_A_REASON",
        "log_bytes_minimum",
    ],
)
def test_a_name_that_does_not_exist_is_noticed(span: str) -> None:
    """The canary of the test above, one for each form of a name."""
    assert unknown(span)


@pytest.mark.parametrize(
    "span",
    ["raftcache/node/engine.py", "raft/", "Engine.turn", "Raft.leader", "wal_recovery.recover", "raft.tick_ms", "Wal"],
)
def test_a_name_that_exists_is_found(span: str) -> None:
    """One for each form of a name."""
    assert not unknown(span)


# --- Commands ---------------------------------------------------------------------------------------------------------


def commands(path: Path) -> list[list[str]]:
    """The command lines of a document, in blocks and in spans, as words; each part of a pipe is one."""
    lines = [span for span in spans(path) if re.match(r"(make|raftcache) ", span)]
    for block in blocks(path, "", "bash", "sh", "console"):
        lines += [re.sub(r"^\$ ", "", line.strip()) for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()]
    found = []
    for line in lines:
        command = VARIABLE.sub("", line).removeprefix(".venv/bin/")
        if re.match(r"(make|raftcache) \w|(make|raftcache) -", command):
            # What stands behind a wide gap or a `#` is a comment.
            words = shlex.split(re.sub(r"\s#.*$|\s{2,}.*$", "", command))
            cut = next((at for at, word in enumerate(words) if word in ("|", ">", "<", "&", "&&", ";")), len(words))
            found.append(words[:cut])
    return found


@cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z][a-z-]*):", (TOP / "Makefile").read_text(), re.MULTILINE))


def wrong(words: list[str]) -> str:
    """What is wrong with a command line; empty if nothing is."""
    if words[0] == "make":
        named = [word for word in words[1:] if "=" not in word]
        return "".join(f"no target {word} " for word in named if word not in make_targets())
    from raftcache.cli.main import main

    command: click.Command = main
    rest = words[1:]
    while rest:
        word = rest.pop(0)
        if word == "--":
            return (
                ""
                if any(isinstance(each, click.Argument) for each in command.params)
                else f"{command.name} takes no argument"
            )
        context = click.Context(command)
        if word.startswith("-") and len(word) > 1:
            name, _, value = word.partition("=")
            option = next(
                (each for each in command.get_params(context) if name in (*each.opts, *each.secondary_opts)), None
            )
            if option is None:
                return f"{command.name} has no option {name}"
            if isinstance(option, click.Option) and not option.is_flag and not option.count and not value and rest:
                rest.pop(0)
        elif isinstance(command, click.Group):
            inner = command.get_command(context, word)
            if inner is None:
                return f"{command.name} has no command {word}"
            command = inner
        elif not any(isinstance(each, click.Argument) for each in command.params):
            return f"{command.name} takes no argument ({word})"
    return ""


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_every_command_exists_with_its_options(path: Path) -> None:
    """Targets of make, and subcommands of `raftcache` down to the option."""
    assert [] == [(" ".join(words), problem) for words in commands(path) if (problem := wrong(words))]


@pytest.mark.parametrize(
    "line",
    ["make coffee", "raftcache brew", "raftcache dev --sugar 2", "raftcache dev brew", "raftcache put k v --sugar"],
)
def test_a_command_that_does_not_exist_is_noticed(line: str) -> None:
    """The canary of the test above."""
    assert wrong(line.split())


def test_a_command_that_exists_is_found() -> None:
    """Options before and after subcommands, and what they take."""
    assert "" == wrong(["raftcache", "dev", "--nodes", "3", "--shards=8", "--detach"])
    assert "" == wrong(["raftcache", "get", "k", "-o", "json"])
    assert "" == wrong(["make", "test"])


# --- Code -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_python_in_documents_parses_and_uses_names_that_exist(path: Path) -> None:
    """What is taken from `raftcache` is exported by it; methods of the client are called by their names."""
    client = {"rc", "client"}
    for block in blocks(path, "python"):
        tree = compile(block, str(path), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "raftcache":
                assert [] == [alias.name for alias in node.names if not hasattr(raftcache, alias.name)]
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == "raftcache":
                    assert hasattr(raftcache, node.attr), f"raftcache.{node.attr}"
                if node.value.id in client:
                    assert hasattr(raftcache.Client, node.attr), f"Client.{node.attr}"


def test_readme_begins_with_what_the_system_must_have_and_the_demo() -> None:
    """The first block of commands gets somebody with a fresh machine to a demo."""
    first = blocks(TOP / "README.md", "", "bash", "sh", "console")[0]
    assert "apt install" in first
    for needed in ("make", "python3-venv"):
        assert needed in first
    assert "make demo" in first
    assert "make test" in first


def test_changelog_says_how_to_find_the_release() -> None:
    """Its commit is found by the subject of its message."""
    assert "git log --grep" in (TOP / "CHANGELOG.md").read_text()
