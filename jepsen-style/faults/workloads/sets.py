"""Sets: every element a key of its own, all of one slot, read by a scan."""

import random
from collections.abc import Sequence

from faults.checkers import Verdict
from faults.clients import Client, Outcome, Wanted
from faults.history import Json, Op
from faults.workloads import judging
from faults.workloads.workload import Workload, pause_unless
from raftcache.v1 import kv_pb2

PAGE = 2_000
"""More than a set ever holds, so that one page is all of it, read at one moment."""


class Sets(Workload):
    """See the module."""

    keys_at_once = 2
    ops_per_key = 500

    def __init__(self, dice: random.Random) -> None:
        super().__init__(dice)
        self._shards: dict[str, int] = {}

    async def step(self, client: Client) -> None:
        key = self.key()
        if client.dice.random() < 0.15:
            await pause_unless(await self.read(client, key))
            return
        element = self.fresh()
        request = kv_pb2.PutRequest(key=_key(key, element), value=b"1")
        outcome = await client.attempt(Wanted("add", key, element), "Put", request, lambda response: None)
        if outcome.ok:
            self._shards[key] = outcome.response.header.shard
        await pause_unless(outcome)

    async def read(self, client: Client, key: str) -> Outcome:
        prefix = f"{{{key}}}/".encode()
        # The shard is known once something was added; without it all shards are asked.
        request = kv_pb2.ScanRequest(
            lo=prefix, hi=prefix[:-1] + b"0", limit=PAGE, keys_only=True, shard=self._shards.get(key)
        )

        def elements(response: kv_pb2.ScanResponse) -> Json:
            assert not response.next_page_token, "a set does not fit on a page"
            return [int(entry.key[len(prefix) :]) for entry in response.entries]

        return await client.attempt(Wanted("read", key), "Scan", request, elements)

    def check(self, history: Sequence[Op]) -> list[Verdict]:
        return judging.sets(history)


def _key(name: str, element: int) -> bytes:
    return f"{{{name}}}/{element:06d}".encode()  # the braces: one slot, one shard
