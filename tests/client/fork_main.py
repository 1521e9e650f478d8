"""A program with a client for all of it, which forks: `python -m tests.client.fork_main ENDPOINTS KEY TRANSPORT`. Run as a child process
by a test, because a test's own process must not fork.

Prints what each process counted to. A child that hangs or fails is told by its exit status.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable

from raftcache import AsyncClient, Client

ENDPOINTS, KEY, TRANSPORT = sys.argv[1:]
PATIENCE_SECONDS = 60.0

rc = Client(ENDPOINTS, timeout=PATIENCE_SECONDS, transport=TRANSPORT)  # type: ignore[arg-type] # the test names it
async_rc = AsyncClient(ENDPOINTS, timeout=PATIENCE_SECONDS, transport=TRANSPORT)  # type: ignore[arg-type]


def in_child(work: Callable[[], None]) -> None:
    """Runs `work` in a forked child and waits for it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 # a child must not return into the parent's code
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    give_up = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < give_up:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"the child ended with status {status}"
            return
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


def count(times: int) -> None:
    for _ in range(times):
        last = rc.incr(KEY)
    print(last, flush=True)


def count_on_a_loop() -> None:
    print(asyncio.run(async_rc.incr(KEY)), flush=True)


def main() -> None:
    in_child(lambda: count(5))  # the client is unused so far
    count(5)
    in_child(lambda: count(5))  # it has connections and a session now
    count(5)
    in_child(count_on_a_loop)
    in_child(count_on_a_loop)
    in_child(lambda: in_child(lambda: count(5)))
    in_child(rc.close)
    count(1)
    rc.close()
    in_child(rc.close)
    # Last: once grpc.aio's own thread runs, gRPC does not survive a fork.
    count_on_a_loop()
    if TRANSPORT != "grpcio":
        in_child(count_on_a_loop)
        count_on_a_loop()


if __name__ == "__main__":
    main()
