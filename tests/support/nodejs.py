"""The Node.js example, installed: with the packages that `make setup` put beside it, or in a copy with its own."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "nodejs"
NODE, NPM = shutil.which("node"), shutil.which("npm")
INSTALL_SECONDS = 90.0

needs_node = pytest.mark.skipif(not (NODE and NPM), reason="node and npm are not installed")


def installed_example(root: Path) -> Path:
    """The directory of `client.mjs`, beside which `../../proto` is. Skips the test where npm gets no packages."""
    if (EXAMPLE / "node_modules" / ".installed").exists():
        return EXAMPLE
    assert NPM, "the test is to be marked with needs_node"
    shutil.copytree(ROOT / "proto", root / "proto")
    directory = root / "examples" / "nodejs"
    shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("node_modules"))
    command = [NPM, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    try:
        installed = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm install did not finish in {INSTALL_SECONDS:.0f} s")
    if installed.returncode:
        pytest.skip(f"npm install failed: {installed.stderr[-500:]}")
    return directory
