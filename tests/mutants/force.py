"""One mutant in force in this process, and in every interpreter that it starts. No file is changed.

In this process an import hook compiles the changed tree where the module is imported. Children find `startup/sitecustomize.py` on
their path, which the interpreter runs before all else, and the mutant's name in their environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from tests.mutants.mutations import mutated

ENVIRONMENT = "RAFTCACHE_MUTANT"
STARTUP = Path(__file__).parent / "startup"


class _Loader(SourceFileLoader):
    """Compiles what the module would be with the change; caches nothing."""

    def __init__(self, name: str, path: str, place: int, choice: int) -> None:
        super().__init__(name, path)
        self._place = place
        self._choice = choice

    def get_code(self, fullname: str) -> CodeType:
        return compile(mutated(Path(self.path).read_text(), self._place, self._choice), self.path, "exec")


class Hook(MetaPathFinder):
    """Finds one module, changed; all others are found as ever."""

    def __init__(self, name: str) -> None:
        self._module, place, choice = name.split(":")
        self._place, self._choice = int(place), int(choice)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None, f"{fullname} is not to be found"
        assert spec.origin is not None, fullname
        spec.loader = _Loader(fullname, spec.origin, self._place, self._choice)
        return spec


def force(name: str) -> None:
    """This mutant, from now on, here and in all children. Nothing of the product may have been imported: whoever has seen
    the module as it is would keep it."""
    module = name.split(":")[0]
    assert module not in sys.modules, f"{module} was imported before it was changed"
    os.environ[ENVIRONMENT] = name
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTUP), os.environ.get("PYTHONPATH")]))
    sys.meta_path.insert(0, Hook(name))


def force_in_child() -> None:
    """What `startup/sitecustomize.py` does in an interpreter that a process with a mutant has started."""
    name = os.environ.get(ENVIRONMENT)
    if name is not None:
        sys.meta_path.insert(0, Hook(name))
