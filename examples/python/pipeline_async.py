"""Fills the cache with a pipeline, moves something with a transaction, and reads it back by prefix.

python pipeline_async.py [HOST:PORT,HOST:PORT...]
"""

import asyncio
import sys

import raftcache
from raftcache import ops, when

COUNT = 500


async def main() -> None:
    endpoints = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7400"
    async with raftcache.AsyncClient(endpoints, timeout=30) as rc:
        # Many writes under way at once, on one stream; each has its own result.
        async with rc.pipeline() as pipeline:
            futures = [await pipeline.put(f"example/item/{number:04}", b"%d" % number) for number in range(COUNT)]
        failed = [future for future in futures if future.exception() is not None]
        print(f"{COUNT - len(failed)} items written")

        # All keys of a transaction lie in one slot: the part in braces decides which.
        await rc.batch([ops.put("{example/account}.a", b"100"), ops.put("{example/account}.b", b"0")])
        moved = await rc.txn(
            [when.value("{example/account}.a") == b"100"],
            then=[ops.incr("{example/account}.a", -30), ops.incr("{example/account}.b", 30)],
            otherwise=[ops.get("{example/account}.a")],
        )
        print(f"moved: {moved.succeeded}, {moved.results}")

        found = [entry async for entry in rc.scan(prefix="example/item/", limit=3)]
        print(
            f"{await rc.count(prefix='example/item/')} items, the first are {[entry.key.decode() for entry in found]}"
        )


if __name__ == "__main__":
    asyncio.run(main())
