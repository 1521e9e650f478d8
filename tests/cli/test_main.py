"""What holds for every command: help, names, exit codes, arguments, and what is not imported."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from raftcache.cli import main
from raftcache.cli.exits import Exit
from raftcache.cli.main import COMMANDS
from raftcache.cli.options import target_options
from raftcache.errors import error_classes
from raftcache.version import VERSION
from tests.cli.conftest import Run

TOP = Path(__file__).parents[2]


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands and groups with what one types to get there."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands(main))


def test_the_list_of_commands_says_what_their_own_help_says() -> None:
    """It is written twice, so that help imports no command."""
    for section in COMMANDS.values():
        for name, (_, about) in section.items():
            assert (ALL[name,].help or "").startswith(about), name


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...], run: Run) -> None:
    """Help is read by people who do not know yet what to type."""
    result = run(*path, "--help")
    assert Exit.OK == result.exit_code
    command = ALL[path]
    if path not in (("leader",), ("dev", "resume")):
        assert "raftcache " in result.output.partition("\n")[2], "no example"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path}: {parameter.name} has no help"


@pytest.mark.parametrize(
    "path", [path for path, command in ALL.items() if not isinstance(command, click.Group)], ids=" ".join
)
def test_every_command_that_answers_knows_json(path: tuple[str, ...]) -> None:
    """All but those whose answer has a form of its own, or is an exit code."""
    options = {option for parameter in ALL[path].params for option in parameter.opts}
    assert path in (("serve",), ("config", "sample")) or "--output" in options


def test_help_imports_neither_grpc_nor_the_server() -> None:
    """Nobody waits for what is not used."""
    script = (
        "import sys\n"
        "from raftcache.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print([name for name in sys.modules if name.split('.')[0] in\n"
        "       ('grpc', 'google', 'asyncio', 'rich', 'structlog', 'lmdb', 'cryptography')\n"
        "       or name.startswith(('raftcache.server', 'raftcache.config', 'raftcache.client'))], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "[]" == done.stderr.strip()


def test_the_version_is_the_release(run: Run) -> None:
    """`raftcache --version` in one line."""
    assert f"raftcache, version {VERSION}" == run("--version").output.strip()


def test_a_misspelt_command_is_named_with_the_near_one(run: Run) -> None:
    """Exit code 2, and what was meant."""
    result = run("statsu")
    assert (Exit.USAGE, True) == (result.exit_code, "Did you mean status?" in result.stderr)


@pytest.mark.parametrize("argument", ["\udcff\udcfe", "a\udc80"])
def test_an_argument_that_is_no_text_is_refused_with_another_way(argument: str, run: Run) -> None:
    """The shell hands any bytes over; stored as something else they would be lost."""
    result = run("get", argument)
    assert Exit.USAGE == result.exit_code
    assert "argument 2 is not UTF-8 text: '" in result.stderr
    assert "--key-b64" in result.stderr


def test_ctrl_c_ends_with_the_shells_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """130, as for every program that SIGINT ends."""

    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("raftcache.cli.status._ask", interrupted)
    assert Exit.INTERRUPTED == run("status").exit_code


@pytest.mark.parametrize("arguments", [["--version"], ["config", "sample"], ["config", "show", "-o", "json"]])
def test_an_answer_that_cannot_be_written_is_a_failure_in_one_line(arguments: list[str]) -> None:
    """A full disk behind `>`: exit code 1 and the reason, no traceback."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "raftcache.cli", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert Exit.FAILURE == done.returncode, done.stderr
    assert done.stderr.startswith("raftcache: standard output cannot be written: No space left on device")
    assert 1 == done.stderr.count("\n"), done.stderr


def test_what_nobody_reads_to_its_end_ends_without_a_word() -> None:
    """As in `raftcache config sample | head -1`."""
    line = f"{sys.executable} -m raftcache.cli config sample | head -1"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert (1, "") == (done.stdout.count("\n"), done.stderr)


def test_no_cluster_anywhere_says_how_to_get_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 4, with the two ways to go on."""
    monkeypatch.setattr("raftcache.cli.endpoints.DEFAULT_ENDPOINT", "127.0.0.1:9")
    result = run("status")
    assert Exit.UNAVAILABLE == result.exit_code
    assert "raftcache dev" in result.stderr
    assert "--endpoints" in result.stderr
    assert "" == result.stdout


def test_the_documented_exit_codes_are_those_there_are() -> None:
    """docs/cli.md is what people write scripts by."""
    text = (TOP / "docs" / "cli.md").read_text()
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert [str(int(code)) for code in Exit] == rows


def test_every_command_is_documented() -> None:
    """With the words that one types."""
    text = (TOP / "docs" / "cli.md").read_text()
    assert [] == [" ".join(path) for path in ALL if f"raftcache {' '.join(path)}" not in text]


def test_every_error_has_an_exit_code_and_an_unknown_outcome_its_own() -> None:
    """A write whose error is not definite must never look like one that certainly failed."""
    from raftcache.cli.failures import exit_of

    for cls in error_classes().values():
        error = cls.__new__(cls)
        assert (Exit.UNKNOWN == exit_of(error, writes=True)) == (not cls.definite), cls
        assert Exit.OK != exit_of(error)


def test_options_that_name_the_cluster_do_not_change_a_commands_own() -> None:
    """The decorator hands on what it does not know."""

    @click.command()
    @click.option("--mine")
    @target_options
    def command(**options: Any) -> None:
        click.echo(json.dumps(sorted(options)))

    from click.testing import CliRunner

    assert '["mine", "target"]' == CliRunner().invoke(command, ["--endpoints", "a:1"]).output.strip()
