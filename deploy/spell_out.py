"""What `make native` does to its copy of the sources before mypyc compiles it: dataclasses get an `__init__` in plain code.

`@dataclass` writes `__init__` while the program runs, where no compiler sees it, and so the objects of a compiled build were made
by the interpreter: some ten for each request, which cost a get a quarter of its time. Spelled out, they are compiled too.

    python deploy/spell_out.py TREE      changes the files of TREE that pyproject.toml compiles, in place

Only classes for which that is the same are changed: not frozen, without bases, without an `__init__` or `__post_init__` of their own,
and with no more said about a field than its default or its factory. The others stay as they are.
"""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path


def main(tree: Path) -> None:
    """Changes the files."""
    for path in compiled_files(tree):
        path.write_text(spell_out(path.read_text()))


def compiled_files(tree: Path) -> Iterator[Path]:
    """The files that the build hook compiles."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())
    hook = project["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["mypyc"]
    for pattern in hook["include"]:
        for path in sorted(tree.glob(pattern.removeprefix("/"))):
            if not {path.name, f"/{path.relative_to(tree)}"} & set(hook["exclude"]):
                yield path


def spell_out(source: str) -> str:
    """The same module, with an `__init__` in each dataclass where that is all that changes."""
    lines = source.splitlines(keepends=True)
    changed = False
    # From the last to the first, so that line numbers stay true.
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.ClassDef) and (decorator := _plain_dataclass(node)) is not None:
            lines.insert(_end(node), _init(_fields(node)))
            options = [*(ast.unparse(keyword) for keyword in decorator.keywords), "init=False"]
            lines[decorator.lineno - 1 : _end(decorator)] = [f"@dataclass({', '.join(options)})\n"]
            changed = True
        elif isinstance(node, ast.ImportFrom) and node.module == "dataclasses" and changed:
            lines.insert(_end(node), "from dataclasses import MISSING\n")
    return "".join(lines)


def _init(fields: list[ast.AnnAssign]) -> str:
    """The method. A factory's parameter is of any type, because what stands for its absence is."""
    parameters, sets = ["self"], []
    for statement in fields:
        name = ast.unparse(statement.target)
        factory = _factory(statement)
        if factory is not None:
            parameters.append(f"{name}: object = MISSING")
            sets.append(
                f"        self.{name} = {factory}() if {name} is MISSING else {name}  # type: ignore[assignment]\n"
            )
        else:
            parameters.append(ast.unparse(statement))
            sets.append(f"        self.{name} = {name}\n")
    return f"\n    def __init__({', '.join(parameters)}) -> None:\n{''.join(sets)}"


def _plain_dataclass(node: ast.ClassDef) -> ast.Call | None:
    """The only decorator of the class, if it is `@dataclass(...)`, whose `__init__` sets the fields and does nothing else."""
    match node.decorator_list:
        case [ast.Call(func=ast.Name(id="dataclass")) as decorator]:
            options = {keyword.arg for keyword in decorator.keywords}
        case _:
            return None
    methods = {statement.name for statement in node.body if isinstance(statement, ast.FunctionDef)}
    if node.bases or options & {"frozen", "init", "kw_only"} or methods & {"__init__", "__post_init__"}:
        return None
    fields = _fields(node)
    return decorator if fields and all(_is_plain_field(field) for field in fields) else None


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]


def _is_plain_field(statement: ast.AnnAssign) -> bool:
    """Whether it is a field, with no more than a default, or a factory."""
    if any(special in ast.unparse(statement.annotation) for special in ("ClassVar", "InitVar", "KW_ONLY")):
        return False
    more = isinstance(statement.value, ast.Call) and ast.unparse(statement.value.func).split(".")[-1] == "field"
    return not more or _factory(statement) is not None


def _factory(statement: ast.AnnAssign) -> str | None:
    """The name of what makes the field's default, if a factory does."""
    match statement.value:
        case ast.Call(
            func=ast.Name(id="field"), args=[], keywords=[ast.keyword(arg="default_factory", value=ast.Name(id=name))]
        ):
            return name
        case _:
            return None


def _end(node: ast.ClassDef | ast.Call | ast.ImportFrom) -> int:
    """The number of its last line."""
    assert node.end_lineno is not None, "parsed from text"
    return node.end_lineno


if __name__ == "__main__":
    main(Path(sys.argv[1]))
