"""Where the code can be changed into something wrong, and a fair sample of such changes.

Rules of this file:
- a *place* is one node of the syntax tree inside a function, with all that may stand there instead. Places are numbered in the
  order of the source, so (module, place, choice) names a mutant for as long as the file stays the same;
- what no user could ever notice is left alone: docstrings, annotations, assertions and their messages, the texts of errors,
  `__repr__`. So are decorators, defaults and module level: what is wrong there is wrong in every test;
- the sample cuts the list of all places into as many equal runs as mutants are asked for, and takes one of each run:
  every function gets its share, by its size.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).parents[2]
PACKAGES = ("raft", "kv", "storage")
NOT_JUDGED = frozenset({"raftcache.storage.simulated_disk", "raftcache.storage.simulated_state"})
"""The simulator's own disk and state: instruments. What is wrong in them is wrong in no product."""

NOT_NOTICED = frozenset({"__repr__", "__str__"})
NOT_DELETED = frozenset({"assert_never", "super"})
SHOWN_CHARACTERS_MAX = 90

_FLIPPED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_OTHER_OPERATOR: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_OTHER_NAME = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(slots=True)
class Place:
    """One node that can be replaced, and by what."""

    function: str
    """Its qualified name, as `co_qualname` without `<locals>`."""
    parent: ast.AST
    field: str
    position: int | None
    node: ast.AST
    choices: list[ast.AST]

    def replace(self, choice: int) -> None:
        """In the tree that this place is of."""
        if self.position is None:
            setattr(self.parent, self.field, self.choices[choice])
        else:
            getattr(self.parent, self.field)[self.position] = self.choices[choice]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one module."""

    module: str
    place: int
    choice: int
    function: str = field(compare=False, default="")
    line: int = field(compare=False, default=0)
    before: str = field(compare=False, default="")
    after: str = field(compare=False, default="")

    @property
    def name(self) -> str:
        """What names it in an environment variable and on the command line."""
        return f"{self.module}:{self.place}:{self.choice}"

    @property
    def package(self) -> str:
        """`raft`, `kv` or `storage`."""
        return self.module.split(".")[1]

    @property
    def change(self) -> str:
        return f"`{self.before}` → `{self.after}`"

    def __str__(self) -> str:
        return f"{self.module.removeprefix('raftcache.')}:{self.line} {self.function}: {self.change}"


# --- One module -----------------------------------------------------------------------------------------------------


def source_of(module: str) -> Path:
    """Its file."""
    path = TOP.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def places(tree: ast.Module) -> list[Place]:
    """All of a module, in the order of its source."""
    found: list[Place] = []
    for node in tree.body:
        _functions(node, "", found)
    return found


def mutated(source: str, place: int, choice: int) -> ast.Module:
    """The module's tree with this one change."""
    tree = ast.parse(source)
    places(tree)[place].replace(choice)
    return ast.fix_missing_locations(tree)


def _functions(node: ast.AST, prefix: str, found: list[Place]) -> None:
    match node:
        case ast.ClassDef(name=name, body=body):
            for child in body:
                _functions(child, f"{prefix}{name}.", found)
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name not in NOT_NOTICED:
            function = _Function(prefix + name, node, found)
            for position, statement in enumerate(node.body):
                function.visit(node, "body", position, statement)


class _Function:
    """Looks for places in one function."""

    def __init__(self, name: str, node: ast.AST, found: list[Place]) -> None:
        self._name = name
        self._found = found
        self._returned = [
            each.value
            for each in ast.walk(node)
            if isinstance(each, ast.Return) and isinstance(each.value, ast.Constant | ast.Name | ast.Attribute)
        ]

    def visit(self, parent: ast.AST, name: str, position: int | None, node: ast.AST) -> None:
        match node:
            case ast.Assert() | ast.JoinedStr() | ast.Expr(value=ast.Constant()) | ast.pattern():
                return
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                _functions(node, f"{self._name}.", self._found)
                return
        choices = list(self._choices(parent, name, node))
        if choices:
            for choice in choices:
                ast.copy_location(choice, node)
            self._found.append(Place(self._name, parent, name, position, node, choices))
        for child_name, value in ast.iter_fields(node):
            if isinstance(node, ast.Raise) or child_name in ("annotation", "ctx", "op", "ops"):
                continue  # a raise may be missing; what it says is for people
            children = enumerate(value) if isinstance(value, list) else [(None, value)]
            for child_position, child in children:
                if isinstance(child, ast.AST):
                    self.visit(node, child_name, child_position, child)

    def _choices(self, parent: ast.AST, name: str, node: ast.AST) -> Iterator[ast.AST]:
        if isinstance(node, ast.expr) and (name == "test" or (name == "ifs" and isinstance(parent, ast.comprehension))):
            yield node.operand if _is_not(node) else ast.UnaryOp(ast.Not(), node)
            if not isinstance(node, ast.Constant):
                yield ast.Constant(False)
                if not isinstance(parent, ast.While):
                    yield ast.Constant(True)
        match node:
            case ast.Compare(left=left, ops=[operator], comparators=comparators):
                for other in _FLIPPED[type(operator)]:
                    yield ast.Compare(left, [other()], comparators)
            case ast.BoolOp(op=operator, values=values):
                yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
                for left_out in range(len(values)):
                    rest = values[:left_out] + values[left_out + 1 :]
                    yield rest[0] if len(rest) == 1 else ast.BoolOp(operator, rest)
            case ast.BinOp(left=left, op=operator, right=right) if _is_number(left, right, operator):
                yield ast.BinOp(left, _OTHER_OPERATOR[type(operator)](), right)
            case ast.AugAssign(target=target, op=operator, value=value):
                if _is_number(target, value, operator):
                    yield ast.AugAssign(target, _OTHER_OPERATOR[type(operator)](), value)
                yield ast.Pass()
            case ast.Constant(value=bool(value)):
                yield ast.Constant(not value)
            case ast.Constant(value=int(value)):
                yield ast.Constant(value + 1)
                yield ast.Constant(value - 1)
            case ast.Call(func=ast.Name(id=called), args=args, keywords=keywords) if called in _OTHER_NAME:
                yield ast.Call(ast.Name(_OTHER_NAME[called], ast.Load()), args, keywords)
            case ast.Expr(value=ast.Call(func=called)) if _last_name(called) not in NOT_DELETED:
                yield ast.Pass()
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) if not self._name.endswith(".__init__"):
                yield ast.Pass()
            case ast.Raise() | ast.Break() | ast.Continue() | ast.Delete():
                yield ast.Pass()
            case ast.Return(value=ast.expr() as value):
                for other in self._returned:
                    if ast.dump(other) != ast.dump(value):
                        yield ast.Return(deepcopy(other))


def _is_number(left: ast.expr, right: ast.expr, operator: ast.operator) -> bool:
    """Whether another operator may be meant: of what is seen to be a sequence there is no difference."""
    sequence = (ast.Tuple, ast.List, ast.JoinedStr)
    return type(operator) in _OTHER_OPERATOR and not any(
        isinstance(side, sequence) or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
        for side in (left, right)
    )


def _is_not(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _last_name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=called):
            return _last_name(called)
    return ""


# --- Many -----------------------------------------------------------------------------------------------------------


def modules() -> list[str]:
    """What is judged, by name, in a fixed order."""
    found = []
    for package in PACKAGES:
        for path in sorted((TOP / "raftcache" / package).glob("*.py")):
            name = ".".join(path.relative_to(TOP).with_suffix("").parts)
            if path.stem != "__init__" and name not in NOT_JUDGED:
                found.append(name)
    return found


def mutant(module: str, place: int, choice: int, all_places: Sequence[Place] | None = None) -> Mutant:
    """With what there is to say of it."""
    here = (all_places or places(ast.parse(source_of(module).read_text())))[place]
    return Mutant(
        module,
        place,
        choice,
        here.function,
        getattr(here.node, "lineno", 0),
        _shown(here.node),
        _shown(here.choices[choice]),
    )


def by_name(name: str) -> Mutant:
    """The other way round."""
    module, place, choice = name.split(":")
    return mutant(module, int(place), int(choice))


def sample(count: int, seed: int) -> list[Mutant]:
    """So many, spread evenly over all code that is judged; the same seed and code give the same ones."""
    rng = random.Random(seed)
    everywhere = []
    for module in modules():
        here = places(ast.parse(source_of(module).read_text()))
        everywhere += [(module, number, here) for number in range(len(here))]
    assert count <= len(everywhere), f"{len(everywhere)} places"
    chosen = []
    for part in range(count):
        first, end = part * len(everywhere) // count, (part + 1) * len(everywhere) // count
        module, number, here = everywhere[rng.randrange(first, end)]
        chosen.append(mutant(module, number, rng.randrange(len(here[number].choices)), here))
    return chosen


def _shown(node: ast.AST) -> str:
    if isinstance(node, ast.Pass):
        return "(nothing)"
    text = " ".join(ast.unparse(node).split()).replace("`", "'").replace("|", "¦")
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[: SHOWN_CHARACTERS_MAX - 1] + "…"
