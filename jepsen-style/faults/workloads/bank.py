"""A bank: transfers between accounts of one slot by transactions. Money is neither made nor lost."""

from collections.abc import Sequence
from functools import partial

from faults.checkers import Verdict
from faults.clients import Client, Outcome, Wanted, decode, encode
from faults.history import Json, Op, Status
from faults.workloads import judging
from faults.workloads.workload import Workload, pause_unless, until_answered
from raftcache.v1 import kv_pb2, types_pb2

ACCOUNTS = 5
OPENING_BALANCE = 100
BANKS = 2


class Bank(Workload):
    """A transfer reads all balances at one moment, and writes two of them if they are still what was read."""

    async def prepare(self, client: Client) -> None:
        for number in range(BANKS):
            bank = f"bank{number}"
            self.keys.append(bank)
            # An opening that comes too late finds the bank open and does nothing.
            await until_answered(partial(self._open, client, bank))

    async def _open(self, client: Client, bank: str) -> Outcome:
        opening: dict[str, Json] = {_name(number): OPENING_BALANCE for number in range(ACCOUNTS)}
        then = [
            kv_pb2.Operation(put=kv_pb2.PutRequest(key=_key(bank, name), value=encode(balance)))
            for name, balance in opening.items()
        ]
        absent = types_pb2.Condition(key=_key(bank, _name(0)), exists=False)
        request = kv_pb2.TransactionRequest(conditions=[absent], then=then)
        wanted = Wanted("write", bank, opening)
        return await client.attempt(wanted, "Transaction", request, lambda response: None, status_of=_status_of)

    async def step(self, client: Client) -> None:
        bank = client.dice.choice(self.keys)
        outcome = await self.read(client, bank)
        if not outcome.ok or client.dice.random() < 0.2:
            await pause_unless(outcome)
            return
        assert isinstance(outcome.result, dict)
        balances = {str(name): int(balance) for name, balance in outcome.result.items()}
        source, target = client.dice.sample(sorted(balances), 2)
        amount = client.dice.randint(1, 20)
        if balances[source] < amount:
            return
        request = kv_pb2.TransactionRequest()
        for name, change in ((source, -amount), (target, amount)):
            key = _key(bank, name)
            request.conditions.append(
                types_pb2.Condition(key=key, comparison=types_pb2.COMPARISON_EQUAL, value=encode(balances[name]))
            )
            put = kv_pb2.PutRequest(key=key, value=encode(balances[name] + change))
            request.then.append(kv_pb2.Operation(put=put))
        wanted = Wanted("txn", bank, {"from": source, "to": target, "amount": amount})
        await pause_unless(
            await client.attempt(wanted, "Transaction", request, lambda response: True, status_of=_status_of)
        )

    async def read(self, client: Client, key: str) -> Outcome:
        names = [_name(number) for number in range(ACCOUNTS)]
        then = [kv_pb2.Operation(get=kv_pb2.GetRequest(key=_key(key, name))) for name in names]

        def balances(response: kv_pb2.TransactionResponse) -> Json:
            return {
                name: decode(result.get.entry.value)
                for name, result in zip(names, response.results, strict=True)
                if result.get.HasField("entry")
            }

        return await client.attempt(Wanted("read", key), "Transaction", kv_pb2.TransactionRequest(then=then), balances)

    def check(self, history: Sequence[Op]) -> list[Verdict]:
        return judging.banks(history)


def _name(number: int) -> str:
    return f"a{number}"


def _key(bank: str, account: str) -> bytes:
    """All accounts of a bank in one slot."""
    return f"{{{bank}}}.{account}".encode()


def _status_of(response: kv_pb2.TransactionResponse) -> Status:
    # Something had changed meanwhile: nothing was written, for certain.
    return "ok" if response.succeeded else "fail"
