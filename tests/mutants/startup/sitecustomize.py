"""Run by the interpreter itself at its start, where `tests.mutants.force` has put this directory on the path."""

import sys
from pathlib import Path

_TOP = str(Path(__file__).parents[3])
sys.path.insert(0, _TOP)
try:
    from tests.mutants.force import force_in_child
finally:
    sys.path.remove(_TOP)

force_in_child()
