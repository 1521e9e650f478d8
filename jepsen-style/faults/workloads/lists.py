"""Lists, grown by compare-and-swap: a lost append, a doubled one, or two in the wrong order cannot hide."""

from collections.abc import Sequence

from faults.checkers import Verdict
from faults.clients import Client, Outcome, Wanted, encode, result_of_cas, value_of_get
from faults.history import Json, Op, Status
from faults.workloads import judging
from faults.workloads.workload import Workload, pause_unless
from raftcache.v1 import kv_pb2


class Lists(Workload):
    """See the module. The client appends to the list as it knows it; where that is not the latest, nothing happens."""

    keys_at_once = 3
    ops_per_key = 150

    async def step(self, client: Client) -> None:
        key = self.key()
        known: dict[str, list[Json]] = client.memory.setdefault("known", {})
        if key not in known or client.dice.random() < 0.3:
            outcome = await self.read(client, key)
            if outcome.ok and isinstance(outcome.result, list):
                known[key] = outcome.result
            await pause_unless(outcome)
            return
        before, element = known[key], self.fresh()
        after = [*before, element]
        request = kv_pb2.CompareAndSwapRequest(key=key.encode(), value=encode(after))
        if before:
            request.expected = encode(before)
        outcome = await client.attempt(
            Wanted("append", key, element),
            "CompareAndSwap",
            request,
            lambda response: after if response.succeeded else None,
            status_of=_status_of,
        )
        if outcome.response is not None:
            current = result_of_cas(outcome.response)
            assert isinstance(current, dict)
            found = after if current["swapped"] else current["value"] or []
            assert isinstance(found, list)
            known[key] = found
        elif not outcome.ok:
            known.pop(key)
            await pause_unless(outcome)

    async def read(self, client: Client, key: str) -> Outcome:
        return await client.attempt(
            Wanted("list", key), "Get", kv_pb2.GetRequest(key=key.encode()), lambda answer: value_of_get(answer) or []
        )

    def check(self, history: Sequence[Op]) -> list[Verdict]:
        return judging.lists(history)


def _status_of(response: kv_pb2.CompareAndSwapResponse) -> Status:
    # The list had grown: this append did nothing, for certain.
    return "ok" if response.succeeded else "fail"
