"""What holds for all tests.

Random tests print what replays them (`print_blob`) and have no deadline: a timing is never a pass criterion. A longer run:
HYPOTHESIS_PROFILE=long make test.

`make test` runs two workers. What starts processes of its own runs in one of them, one test after the other: two clusters at
a time would take each other's processor, and what they show is what happens when time passes.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("default", deadline=None, print_blob=True, max_examples=100)
settings.register_profile("long", settings.get_profile("default"), max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

TOP = Path(__file__).parents[1]
STARTS_PROCESSES = (
    "tests/integration",
    "tests/cli",
    "tests/client",
    "tests/server",
    "tests/benchmarks",
    "jepsen-style/tests",
)
STARTS_NONE = ("jepsen-style/tests/checkers",)
"""Below the others, and pure: the other worker's."""


# The workers read the groups in a hook of the same name, and come first in all but wrappers.
@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Names the one group and puts it first: a worker takes a group as a whole, and this one takes longest."""
    for item in items:
        if _starts_processes(item):
            item.add_marker(pytest.mark.xdist_group("processes"))
    items.sort(key=_starts_processes, reverse=True)
    yield
    if items and config.getoption("loadgroup", False) and _starts_processes(items[0]):
        # pytest 9.2 took away what xdist 3.8 names groups by, silently: clusters ran beside each other.
        assert items[0].nodeid.endswith("@processes"), "the tests that start processes are not kept in one worker"


def _starts_processes(item: pytest.Item) -> bool:
    if not item.path.is_relative_to(TOP):
        return False
    path = item.path.relative_to(TOP).as_posix()
    return path.startswith(STARTS_PROCESSES) and not path.startswith(STARTS_NONE)
