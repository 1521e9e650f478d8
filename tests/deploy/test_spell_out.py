"""What is compiled instead of the sources is the same: every class that is spelled out takes and keeps what it did."""

import dataclasses
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

TOP = Path(__file__).parents[2]


def loaded(path: Path, name: str) -> ModuleType:
    """A file as a module that nobody else sees."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


spelling = loaded(TOP / "deploy" / "spell_out.py", "spell_out")
FILES: list[Path] = list(spelling.compiled_files(TOP))


def spelled_classes(path: Path) -> list[tuple[type, type]]:
    """(as written, as spelled out) of the file's dataclasses that are changed."""
    source = path.read_text()
    spelled = spelling.spell_out(source)
    if spelled == source:
        return []
    name = ".".join(path.relative_to(TOP).with_suffix("").parts)
    original = import_module(name)
    copy = ModuleType(name)
    # Dataclasses look their module up to understand their annotations.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, copy)
        exec(compile(spelled, str(path), "exec"), vars(copy))
    pairs = [(value, vars(copy)[key]) for key, value in vars(original).items() if dataclasses.is_dataclass(value)]
    return [
        (ours, theirs)
        for ours, theirs in pairs
        if isinstance(ours, type) and ours.__module__ == name and theirs.__dataclass_params__.init is False
    ]


PAIRS = [pair for path in FILES for pair in spelled_classes(path)]


def test_the_messages_of_the_hot_path_are_among_them() -> None:
    """Were the rule to miss them, the build would be slow and nothing would say so."""
    names = {ours.__qualname__ for ours, _ in PAIRS}
    assert {
        "Request",
        "Reply",
        "Get",
        "Put",
        "GetResult",
        "KeyEntry",
        "Call",
        "HeadersReceived",
        "Append",
        "Ready",
    } <= names


def kept(instance: object, names: Iterable[str]) -> dict[str, object]:
    """Its fields; of what cannot be compared, the types."""
    found = {name: getattr(instance, name) for name in names}
    return {name: value if is_comparable(value) else type(value) for name, value in found.items()}


def is_comparable(value: object) -> bool:
    """Whether it is equal to more than itself."""
    return any("__eq__" in vars(parent) for parent in type(value).__mro__ if parent is not object)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda value: value.__qualname__)
def test_a_class_takes_and_keeps_the_same(ours: type, theirs: type) -> None:
    """Parameters, their order and defaults; every field; comparison and repr."""
    parameters = inspect.signature(ours).parameters
    assert list(parameters) == list(inspect.signature(theirs).parameters)
    values: dict[str, object] = {name: f"the {name}" for name in parameters}
    needed = {name: values[name] for name, parameter in parameters.items() if parameter.default is parameter.empty}
    for given in (values, needed):
        assert kept(ours(**given), values) == kept(theirs(**given), values)
    made = theirs(**values)
    assert repr(ours(**values)) == repr(made)
    assert ours.__dataclass_params__.eq == (made == theirs(**values))  # type: ignore[attr-defined] # a dataclass has it
    with pytest.raises(TypeError):
        theirs(**needed, unheard_of=1)
    for name in needed:
        with pytest.raises(TypeError):
            theirs(**{other: value for other, value in needed.items() if other != name})


def test_what_a_factory_makes_is_not_shared() -> None:
    """Each object has a list of its own."""
    ready = next(theirs for ours, theirs in PAIRS if ours.__name__ == "Ready")
    assert ready(number=1).entries is not ready(number=2).entries


FROZEN = "from dataclasses import dataclass, field\n@dataclass(slots=True, frozen=True)\nclass A:\n    a: int\n"


@pytest.mark.parametrize(
    "source",
    [
        FROZEN,
        FROZEN.replace(", frozen=True", "").replace("int", "int = field(default=3, repr=False)"),
        FROZEN.replace(", frozen=True", "").replace("int", "dict[int, int] = field(default_factory=lambda: {})"),
        FROZEN.replace(", frozen=True", "").replace("int", "int = dataclasses.field(default=3)"),
        FROZEN.replace(", frozen=True", "").replace("int", "InitVar[int]"),
        FROZEN.replace(", frozen=True", "").replace("int", "ClassVar[int] = 1\n    b: int"),
        FROZEN.replace(", frozen=True", "").replace("int", "int\n    _: KW_ONLY\n    b: int"),
        FROZEN.replace(", frozen=True", "") + "\n    def __init__(self) -> None:\n        self.a = 1\n",
        FROZEN.replace(", frozen=True", "") + "\n    def __post_init__(self) -> None:\n        self.a += 1\n",
        FROZEN.replace(", frozen=True", "").replace("class A:", "class A(B):"),
        FROZEN.replace(", frozen=True", ", kw_only=True"),
        FROZEN.replace("@dataclass(slots=True, frozen=True)\n", ""),
    ],
)
def test_where_it_would_not_be_the_same_nothing_is_changed(source: str) -> None:
    """Frozen, with more said about a field, with more to do, with a base, by keyword, or no dataclass at all."""
    assert source == spelling.spell_out(source)
