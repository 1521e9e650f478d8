"""A counter: increments under sessions, sent until they are answered, so that each counts exactly once."""

from collections.abc import Sequence

from faults.checkers import Verdict
from faults.clients import Client, Outcome
from faults.history import Op
from faults.workloads import judging
from faults.workloads.workload import Workload, pause_unless, within_session


class Counter(Workload):
    """See the module."""

    keys_at_once = 3
    ops_per_key = 400

    async def step(self, client: Client) -> None:
        key = self.key()
        if client.dice.random() < 0.2:
            await pause_unless(await self.read(client, key))
        else:
            delta = client.dice.randint(1, 3)
            await within_session(client, key, lambda stamp: client.increment(key, delta, stamp))

    async def read(self, client: Client, key: str) -> Outcome:
        return await client.read(key)

    def check(self, history: Sequence[Op]) -> list[Verdict]:
        return judging.counters(history)
