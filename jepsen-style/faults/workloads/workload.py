"""What every workload has in common: keys that rotate, sessions that survive lost replies, final reads."""

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from faults.checkers import Verdict
from faults.clients import Client, Outcome, Stamp
from faults.history import Op
from raftcache.v1 import kv_pb2

FINAL_SECONDS = 60.0
"""For one final read, on a healed cluster."""
ATTEMPTS_MAX = 12
"""Of one write under one stamp: half a minute of lost replies."""
PAUSE_SECONDS = 0.15
"""After a refusal: an election takes about a second, and a busy loop of refusals says nothing new."""


class Workload(ABC):
    """See the package. One instance for one run."""

    ops_per_key = 200
    """Then a fresh key takes its place: the search over one key's history must stay short."""
    keys_at_once = 4

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.keys: list[str] = []
        """All that were ever used."""
        self._active: list[str] = []
        self._uses: dict[str, int] = {}
        self._values = 0

    @abstractmethod
    async def step(self, client: Client) -> None:
        """One thing that one client does."""

    @abstractmethod
    async def read(self, client: Client, key: str) -> Outcome:
        """A linearizable read of a whole object."""

    @abstractmethod
    def check(self, history: Sequence[Op]) -> list[Verdict]:
        """The verdicts of all checkers that fit."""

    async def prepare(self, client: Client) -> None:
        """Before the first fault."""
        return

    async def finish(self, client: Client) -> None:
        """Reads every object. Raises: `TimeoutError` where one cannot be read."""
        for key in self.keys:
            await until_answered(partial(self.read, client, key))

    def name(self, number: int) -> str:
        """The name of the n-th key."""
        return f"k{number}"

    def key(self) -> str:
        """A key to use now."""
        while len(self._active) < self.keys_at_once:
            self._active.append(self.name(len(self.keys)))
            self.keys.append(self._active[-1])
        key = self.dice.choice(self._active)
        self._uses[key] = self._uses.get(key, 0) + 1
        if self._uses[key] >= self.ops_per_key:
            self._active.remove(key)
        return key

    def fresh(self) -> int:
        """A value that no write had before."""
        self._values += 1
        return self._values


async def within_session(client: Client, key: str, write: Callable[[Stamp], Awaitable[Outcome]]) -> Outcome | None:
    """Sends one write until it is answered, always under the same stamp, each time through a gateway at random.

    None where there was no session, or none any more; what became of the write is then in the history.
    """
    sessions: dict[str, Stamp] = client.memory.setdefault("sessions", {})
    stamp = sessions.get(key)
    if stamp is None:
        answer = await client.call("OpenSession", kv_pb2.OpenSessionRequest(key=key.encode()))
        if answer is None:
            await asyncio.sleep(PAUSE_SECONDS)
            return None
        stamp = Stamp(answer.session, 1, answer.header.shard)
    for _ in range(ATTEMPTS_MAX):
        outcome = await write(stamp)
        if outcome.ok:
            sessions[key] = Stamp(stamp.session, stamp.seq + 1, stamp.shard)
            return outcome
        if outcome.reason in ("SESSION_EXPIRED", "SESSION_WINDOW"):
            break
        await asyncio.sleep(PAUSE_SECONDS)
    # Never reuse the number of a write whose outcome is unknown for another one.
    sessions.pop(key, None)
    return None


async def until_answered(attempt: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """Tries again and again, on a cluster that should be well. Raises: `TimeoutError`."""
    async with asyncio.timeout(FINAL_SECONDS):
        while True:
            outcome = await attempt()
            if outcome.response is not None:
                return outcome
            await asyncio.sleep(PAUSE_SECONDS)


async def pause_unless(outcome: Outcome) -> None:
    """A moment's rest after anything but success."""
    if not outcome.ok:
        await asyncio.sleep(PAUSE_SECONDS)
