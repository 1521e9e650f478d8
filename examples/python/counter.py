"""Counts visits, exactly once each, whatever happens to the cluster meanwhile.

    python counter.py [HOST:PORT,HOST:PORT...]

Kill the leader (kill -9) while it runs: the count goes on, and at the end it is right.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import raftcache

VISITS = 200


def main() -> None:
    endpoints = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7400"
    # One client for the whole program: it is safe with threads, and after a fork.
    with raftcache.Client(endpoints, timeout=30) as rc:
        before = rc.incr("example/visits", 0)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: rc.incr("example/visits"), range(VISITS)))
        after = rc.incr("example/visits", 0)
        print(f"{after - before} visits counted")
        assert after - before == VISITS

        # Optimistic concurrency: write only what nobody has changed meanwhile.
        rc.put("example/greeting", b"hello")
        entry = rc.get("example/greeting")
        assert entry is not None
        rc.put("example/greeting", entry.value + b", world", if_revision=entry.revision)
        try:
            rc.put("example/greeting", b"too late", if_revision=entry.revision)
        except raftcache.ConditionFailed as error:
            stored = error.current.value.decode() if error.current else "nothing"
            print(f"somebody was faster; stored is: {stored}")


if __name__ == "__main__":
    main()
