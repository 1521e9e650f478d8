"""What systemd hears."""

import os
import socket
from pathlib import Path

import pytest

from raftcache.server import systemd


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_what_it_is_told(tmp_path: Path, abstract: bool) -> None:
    """On a socket in the file system, or in the abstract namespace."""
    address = f"@raftcache-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + address[1:] if abstract else address)
        assert systemd.notify(systemd.READY, "STATUS=3 shards", environ={"NOTIFY_SOCKET": address})
        assert b"READY=1\nSTATUS=3 shards" == listener.recv(1024)


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    """No variable, an absent socket, or a kind of address that is not ours."""
    assert not systemd.notify(systemd.READY, environ={})
    assert not systemd.notify(systemd.READY, environ={"NOTIFY_SOCKET": str(tmp_path / "absent")})
    assert not systemd.notify(systemd.READY, environ={"NOTIFY_SOCKET": "vsock:2:1234"})


def test_signs_of_life_are_due_twice_as_often_as_the_watchdog_asks() -> None:
    """For this process only; never where no watchdog is set."""
    mine = str(os.getpid())
    assert 5.0 == systemd.watchdog_seconds({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": mine})
    assert 5.0 == systemd.watchdog_seconds({"WATCHDOG_USEC": "10000000"})
    for environ in ({}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}):
        assert systemd.watchdog_seconds(environ) is None
