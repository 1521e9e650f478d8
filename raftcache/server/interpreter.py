"""What the server demands of the interpreter that runs it."""

import sys

from raftcache.errors import ConfigError


def require_assertions() -> None:
    """Refuse `python -O` and PYTHONOPTIMIZE.

    The invariants of consensus and storage are `assert`s: when one fails, the replica stops before it harms data. Without
    them it would go on. Raises: `ConfigError`.
    """
    if sys.flags.optimize:
        raise ConfigError(
            "raftcache checks its invariants with assertions, and this interpreter strips them: "
            "start it without -O and without PYTHONOPTIMIZE"
        )
