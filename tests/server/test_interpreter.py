"""What the server demands of its interpreter."""

import subprocess
import sys

import pytest

from raftcache.server.interpreter import require_assertions

PROGRAM = "from raftcache.server.interpreter import require_assertions; require_assertions()"


def test_with_assertions_nothing_is_said() -> None:
    """The tests themselves run with them."""
    require_assertions()


@pytest.mark.parametrize("options", [["-O"], ["-OO"]])
def test_an_interpreter_that_strips_assertions_is_refused(options: list[str]) -> None:
    """Going on without the invariants' checks could harm data."""
    done = subprocess.run([sys.executable, *options, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ConfigError: raftcache checks its invariants with assertions" in done.stderr
