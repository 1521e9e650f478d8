"""Histories to judge: simulated ones, which are right by construction, and what damages them."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, permutations

from faults.checkers.calls import NEVER, Call, calls_of
from faults.checkers.models import Model
from faults.history import Json, Op


def op(what: str, start: int, end: int | None, *, argument: Json = None, result: Json = None, **fields: object) -> Op:
    """An operation of a hand-made history: answered, unless it has no end."""
    status = "info" if end is None else "ok"
    chosen = {"client": start, "key": "x", "status": status, **fields}
    return Op(op=what, argument=argument, result=result, start_ns=start, end_ns=end, **chosen)  # type: ignore[arg-type]


def write(value: Json, start: int, end: int | None, **fields: object) -> Op:
    return op("write", start, end, argument=value, **fields)


def read(value: Json, start: int, end: int | None, **fields: object) -> Op:
    return op("read", start, end, result=value, **fields)


def cas(
    expected: Json,
    new: Json,
    start: int,
    end: int | None,
    *,
    swapped: bool = True,
    found: Json = None,
    **fields: object,
) -> Op:
    result: Json = None if end is None else {"swapped": True} if swapped else {"swapped": False, "value": found}
    return op("cas", start, end, argument=[expected, new], result=result, **fields)


# --- Simulation -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    """How a simulated history looks."""

    operations: int = 50
    clients: int = 3
    info_rate: float = 0.0
    fail_rate: float = 0.0
    values: int | None = None
    """How many different values are written; None: each write has its own."""
    keys: int = 1
    silent_cas: bool = False
    """Refused compare-and-swaps do not say what they found."""


Answer = Callable[[str, Json], Json]
"""A sequential object: takes an operation and its argument, changes its state, and answers."""


class Register:
    """What a correct register answers."""

    def __init__(self, *, silent_cas: bool = False) -> None:
        self.value: Json = None
        self.silent_cas = silent_cas

    def __call__(self, what: str, argument: Json) -> Json:
        if what == "write":
            self.value = argument
            return None
        if what == "cas":
            assert isinstance(argument, list)
            if self.value == argument[0]:
                self.value = argument[1]
                return {"swapped": True}
            return {"swapped": False} if self.silent_cas else {"swapped": False, "value": self.value}
        return self.value


class AppendList:
    """What a correct list answers."""

    def __init__(self) -> None:
        self.value: list[Json] = []

    def __call__(self, what: str, argument: Json) -> Json:
        if what == "append":
            self.value.append(argument)
            return None
        return list(self.value)


class Counter:
    """What a correct counter answers."""

    def __init__(self) -> None:
        self.value = 0

    def __call__(self, what: str, argument: Json) -> Json:
        if what == "increment":
            assert isinstance(argument, int)
            self.value += argument
        return self.value


class Bank:
    """What a correct bank answers."""

    def __init__(self) -> None:
        self.value: dict[str, int] | None = None

    def __call__(self, what: str, argument: Json) -> Json:
        if what == "write":
            assert isinstance(argument, dict)
            self.value = dict(argument)  # type: ignore[arg-type]
            return None
        if what == "txn":
            assert self.value is not None
            assert isinstance(argument, dict)
            source, target, amount = str(argument["from"]), str(argument["to"]), argument["amount"]
            assert isinstance(amount, int)
            if self.value[source] < amount:
                return False
            self.value[source] -= amount
            self.value[target] += amount
            return True
        return None if self.value is None else dict(self.value)


def simulate(
    rng: random.Random, shape: Shape, thing: Callable[[], Answer], choose: Callable[[], tuple[str, Json]]
) -> list[Op]:
    """A linearizable history: each operation takes effect at one random moment between its start and its end.

    Some lose their reply (`info`; then they took effect later, or never), some are refused (`fail`). `revision` and `index`
    are those that a correct server would claim.
    """
    things = {f"k{number}": thing() for number in range(shape.keys)}
    revisions = dict.fromkeys(things, 0)
    next_client = count(shape.clients)
    free_at = [(0, number) for number in range(shape.clients)]
    planned = []
    for _ in range(shape.operations):
        slot = rng.randrange(len(free_at))
        free, client = free_at[slot]
        start = free + rng.randint(1, 100)
        end = start + rng.randint(2, 200)
        what, argument = choose()
        fate = rng.random()
        status = "info" if fate < shape.info_rate else "fail" if fate < shape.info_rate + shape.fail_rate else "ok"
        effect = rng.randint(start + 1, end - 1) if status == "ok" else start + rng.randint(1, 2_000)
        free_at[slot] = (end, client if status != "info" else next(next_client))
        happens = status == "ok" or (status == "info" and rng.random() < 0.5)
        planned.append(
            (effect, happens, Op(client, rng.choice(list(things)), what, argument, None, start, end, status))
        )
    history = []
    for effect, happens, each in sorted(planned, key=lambda plan: (plan[0], plan[2].start_ns, plan[2].client)):
        if happens:
            before = repr(things[each.key].__dict__)
            result = things[each.key](each.op, each.argument)
            revisions[each.key] += before != repr(things[each.key].__dict__) or each.op == "write"
            if each.status == "ok":
                each = replace(each, result=result, revision=revisions[each.key], index=effect)
        history.append(each)
    history.sort(key=lambda each: (each.start_ns, each.client))
    return history


def register_history(rng: random.Random, shape: Shape) -> list[Op]:
    """Reads, writes and compare-and-swaps."""
    values = count(1)
    written: list[Json] = [None]

    def fresh() -> Json:
        value = next(values) if shape.values is None else rng.randrange(shape.values)
        written.append(value)
        return value

    def choose() -> tuple[str, Json]:
        kind = rng.choice(("read", "read", "write", "cas"))
        if kind == "cas":
            return kind, [rng.choice(written[-4:]), fresh()]
        return kind, fresh() if kind == "write" else None

    return simulate(rng, shape, lambda: Register(silent_cas=shape.silent_cas), choose)


def list_history(rng: random.Random, shape: Shape) -> list[Op]:
    """Appends and lists."""
    values = count(1)

    def choose() -> tuple[str, Json]:
        return ("append", next(values)) if rng.random() < 0.5 else ("list", None)

    return simulate(rng, shape, AppendList, choose)


def counter_history(rng: random.Random, shape: Shape) -> list[Op]:
    """Increments by small numbers, and reads."""

    def choose() -> tuple[str, Json]:
        return ("increment", rng.randint(1, 3)) if rng.random() < 0.6 else ("read", None)

    return simulate(rng, shape, Counter, choose)


def bank_history(rng: random.Random, shape: Shape) -> list[Op]:
    """Transfers among three accounts, and snapshots."""
    names = ("a", "b", "c")
    opening = Op(-1, "k0", "write", dict.fromkeys(names, 10), None, -2, -1, "ok", index=0, revision=0)

    def thing() -> Bank:
        bank = Bank()
        bank("write", opening.argument)
        return bank

    def choose() -> tuple[str, Json]:
        if rng.random() < 0.4:
            return "read", None
        source, target = rng.sample(names, 2)
        return "txn", {"from": source, "to": target, "amount": rng.randint(1, 8)}

    return [opening, *simulate(rng, replace(shape, keys=1), thing, choose)]


def mutate(rng: random.Random, history: list[Op]) -> list[Op]:
    """One answer is exchanged for that of another operation of the same kind. It may still be a possible one."""
    answered = [number for number, each in enumerate(history) if each.ok and each.result is not None]
    if len(answered) < 2:
        return history
    mutated = list(history)
    one = rng.choice(answered)
    same = [number for number in answered if history[number].op == history[one].op]
    mutated[one] = replace(history[one], result=history[rng.choice(same)].result)
    return mutated


# --- The naive checker --------------------------------------------------------------------------------------------------


def brute_force(ops: list[Op], model: Model) -> bool:
    """Whether any subset of the unknown ones, in any order at all, explains the answers. For a handful of operations."""
    calls = calls_of(ops, model)
    return any(_explains(order) for order in _orders(calls))


def _orders(calls: list[Call]) -> Iterator[tuple[Call, ...]]:
    must = [call for call in calls if call.end < NEVER]
    may = [call for call in calls if call.end == NEVER]
    for chosen in range(1 << len(may)):
        yield from permutations(must + [call for number, call in enumerate(may) if chosen >> number & 1])


def _explains(order: tuple[Call, ...]) -> bool:
    state, latest_start = 0, -NEVER
    for call in order:
        # Somebody before it started after it had ended.
        if call.end < latest_start:
            return False
        latest_start = max(latest_start, call.start)
        state = call.step(state)
        if state < 0:
            return False
    return True
