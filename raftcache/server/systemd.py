"""What systemd wants to hear from a service of `Type=notify`: that it is ready, that it stops, that it lives.

The protocol is one datagram of `KEY=value` lines to the socket that NOTIFY_SOCKET names (sd_notify(3)). Without that variable
nobody listens, and every call does nothing.
"""

import os
import socket
from collections.abc import Mapping

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"


def notify(*lines: str, environ: Mapping[str, str] | None = None) -> bool:
    """Send `lines`; True if somebody was there to hear it. Never blocks and never raises for an absent listener."""
    path = (os.environ if environ is None else environ).get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    # A leading @ stands for the abstract namespace.
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as channel:
            channel.sendto("\n".join(lines).encode(), address)
    except OSError:
        # systemd is not there, or its queue is full. The service goes on; the watchdog's next sign comes soon.
        return False
    return True


def watchdog_seconds(environ: Mapping[str, str] | None = None) -> float | None:
    """How often to send `ALIVE`: half of what the unit's WatchdogSec allows (sd_watchdog_enabled(3)); None: never."""
    environ = os.environ if environ is None else environ
    limit_us, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not limit_us.isascii() or not limit_us.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(limit_us) / 2 / 1_000_000 or None
