"""The files in deploy/: linted by those who know them, and held to the code that they start."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raftcache.config import load

TOP = Path(__file__).parents[2]
DEPLOY = TOP / "deploy"
BIN = Path(sys.executable).parent
UNIT = DEPLOY / "raftcache.service"

# What Docker Compose and the image set for every node.
IMAGE = {"RAFTCACHE_NODE__DATA_DIR": "/var/lib/raftcache"}


def run(*command: str | Path) -> str:
    """Output of a command that must succeed and must have nothing to say against us."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd=TOP)
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def compose() -> dict[str, dict[str, dict[str, object]]]:
    """The compose file, its anchors resolved."""
    document: dict[str, dict[str, dict[str, object]]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return document


def test_the_dockerfile_satisfies_hadolint() -> None:
    """Without an exception."""
    run(BIN / "hadolint", "--config", DEPLOY / ".hadolint.yaml", DEPLOY / "Dockerfile")


def test_yaml_satisfies_yamllint() -> None:
    """Warnings count."""
    run(
        BIN / "yamllint",
        "--strict",
        "-c",
        DEPLOY / ".yamllint",
        *sorted(DEPLOY.glob("*.yaml")),
        DEPLOY / ".hadolint.yaml",
    )


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` knows every directive; only the path of the program is ours to replace."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("NOT CHECKED: deploy/raftcache.service, because this machine has no systemd-analyze")
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE))
    assert "" == run("systemd-analyze", "verify", unit)


def test_the_unit_speaks_of_readiness_exactly_if_the_server_does() -> None:
    """`Type=notify` without a READY=1 would never start; a READY=1 to a unit that does not wait for it helps nobody."""
    servers = [path for path in (TOP / "raftcache" / "server").glob("*.py") if path.name != "systemd.py"]
    told = any(re.search(r"import systemd|server\.systemd|systemd\.notify", path.read_text()) for path in servers)
    assert told == ("Type=notify" in UNIT.read_text()), "set Type=notify and WatchdogSec= in deploy/raftcache.service"


def test_wrong_settings_are_not_tried_again(tmp_path: Path) -> None:
    """The status that `serve` ends with then is the one that the unit does not restart after; the others it does."""
    settings = tmp_path / "raftcache.toml"
    settings.write_text("[limits]\nno_such_setting = 1\n")
    served = subprocess.run(
        [str(BIN / "raftcache"), "serve", "--config", str(settings)], capture_output=True, text=True, check=False
    )
    assert "no_such_setting" in served.stderr
    assert f"RestartPreventExitStatus={served.returncode}\n" in UNIT.read_text()
    assert "Restart=on-failure\n" in UNIT.read_text()


@pytest.mark.parametrize("name", ["n1", "n2", "n3"])
def test_each_node_of_the_compose_file_has_settings_that_load(name: str) -> None:
    """With the addresses that the others look for."""
    service = compose()["services"][name]
    environment = service["environment"]
    assert isinstance(environment, dict)
    config = load(environ={**IMAGE, **environment})
    assert (f"{name}:7400", f"{name}:7401") == (config.listen.advertised_client, config.listen.advertise_peer)
    assert name == service["hostname"]


def test_the_compose_file_publishes_ports_on_loopback_only() -> None:
    """There is no TLS in it."""
    for service in compose()["services"].values():
        ports = service.get("ports", [])
        assert isinstance(ports, list)
        assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_cluster_is_made_of_the_nodes_that_are_started() -> None:
    """All three, by their peer addresses."""
    services = compose()["services"]
    command = services["init"]["command"]
    assert isinstance(command, list)
    assert [f"{name}:7401" for name in services if name != "init"] == [
        word for word in command if word.endswith(":7401")
    ]


def test_the_image_sets_what_the_tests_here_take_for_granted() -> None:
    """The data directory, a user that is not root, a signal that drains."""
    text = (DEPLOY / "Dockerfile").read_text()
    for name, value in IMAGE.items():
        assert f"{name}={value}" in text
    assert "USER 10001:10001" in text
    assert "STOPSIGNAL SIGTERM" in text


def test_every_file_for_the_image_exists_and_is_sent_to_the_builder() -> None:
    """COPY of something that the ignore file holds back fails only on somebody else's machine."""
    dockerfile, ignore = (DEPLOY / "Dockerfile").read_text(), (DEPLOY / "Dockerfile.dockerignore").read_text()
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, flags=re.MULTILINE):
        for source in line.split():
            assert (TOP / source).exists(), source
            assert f"!{source}\n" in ignore, source


def test_ci_runs_what_a_person_runs() -> None:
    """One executable script that calls `make check`, and fails when that fails."""
    script = TOP / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert "make check" in text
