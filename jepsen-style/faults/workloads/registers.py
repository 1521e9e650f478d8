"""Registers: reads, writes, deletes and compare-and-swaps of unique values."""

from collections.abc import Sequence

from faults.checkers import Verdict
from faults.clients import Client, Outcome
from faults.history import Json, Op
from faults.workloads import judging
from faults.workloads.workload import Workload, pause_unless, within_session

READ_SHARES = (0.15, 0.4, 0.95)
"""Of a client's operations; each client has one of these."""


class Registers(Workload):
    """Each operation once, without a session: an unknown outcome stays unknown."""

    async def step(self, client: Client) -> None:
        key, chance = self.key(), client.dice.random()
        known: dict[str, Json] = client.memory.setdefault("known", {})
        # Some clients hardly write: a node that is cut off cannot hold them up, and if it answers them it must not be wrong.
        if client.dice.random() < client.memory.setdefault("reads", client.dice.choice(READ_SHARES)):
            outcome = await self.read(client, key)
            if outcome.ok:
                known[key] = outcome.result
        elif chance < 0.5:
            outcome = await client.write(key, self.fresh())
        elif chance < 0.55:
            outcome = await client.write(key, None)
        else:
            outcome = await client.cas(key, known.get(key), self.fresh())
            if outcome.ok and isinstance(outcome.result, dict):
                known[key] = outcome.result.get("value")
        await pause_unless(outcome)

    async def read(self, client: Client, key: str) -> Outcome:
        return await client.read(key)

    def check(self, history: Sequence[Op]) -> list[Verdict]:
        return judging.registers(history)


class Sessions(Registers):
    """The writes are sent until they are answered: across lost replies, leader changes and restarts they count once."""

    async def step(self, client: Client) -> None:
        key, chance = self.key(), client.dice.random()
        known: dict[str, Json] = client.memory.setdefault("known", {})
        if chance < 0.35:
            outcome = await self.read(client, key)
            if outcome.ok:
                known[key] = outcome.result
            await pause_unless(outcome)
        elif chance < 0.6:
            value = self.fresh()
            await within_session(client, key, lambda stamp: client.write(key, value, stamp))
        else:
            expected, value = known.get(key), self.fresh()
            swap = await within_session(client, key, lambda stamp: client.cas(key, expected, value, stamp))
            if swap is not None and isinstance(swap.result, dict):
                known[key] = value if swap.result["swapped"] else swap.result["value"]

    def check(self, history: Sequence[Op]) -> list[Verdict]:
        return judging.sessions(history)


class StaleReads(Registers):
    """Writes and linearizable reads on few keys, and many reads that may be old."""

    keys_at_once = 2
    ops_per_key = 400

    async def step(self, client: Client) -> None:
        key, chance = self.key(), client.dice.random()
        if chance < 0.25:
            outcome = await client.write(key, self.fresh())
        elif chance < 0.35:
            outcome = await self.read(client, key)
        else:
            outcome = await client.stale_read(key)
        await pause_unless(outcome)

    def check(self, history: Sequence[Op]) -> list[Verdict]:
        return judging.stale_reads(history)
