"""Ports for listeners, from below the range out of which the kernel draws those of outgoing connections.

A port drawn there by `bind(0)` may be some connection's own a moment later, while its node is down for a restart.
"""

import os
import socket

FIRST, LAST = 20_000, 32_000
"""Linux draws from 32768 (net.ipv4.ip_local_port_range)."""


class _Ports:
    def __init__(self) -> None:
        # Another run at the same time begins elsewhere.
        self._next = FIRST + os.getpid() * 61 % (LAST - FIRST)

    def free(self) -> int:
        for _ in range(LAST - FIRST):
            port = self._next
            self._next = port + 1 if port + 1 < LAST else FIRST
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
        raise RuntimeError(f"no port from {FIRST} to {LAST} is free")


_ports = _Ports()


def free_port() -> int:
    """A port that nobody listens on now, and that this process was not given lately."""
    return _ports.free()
