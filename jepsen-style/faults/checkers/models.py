"""The sequential objects: what a register, a list, a counter and a bank answer when nothing goes wrong.

Each model numbers the states that it meets, so that a state is an int, compared and hashed at once, whatever it stands for.
A step gives -1 where no correct object would answer so. Unknown outcomes have no answer to disagree with: their step is the
effect that they have *if* they have one.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeAlias

from faults.checkers.calls import Footprint, Model, NotJudged, State, Step
from faults.history import Json, Op

Balances: TypeAlias = tuple[tuple[str, int], ...]


def name_of(value: Json) -> Hashable:
    """A name for a JSON value: equal for equal values, also where Python's `==` is laxer (1 and True)."""
    return value if type(value) is str or type(value) is int else (json.dumps(value, sort_keys=True),)


ABSENT = name_of(None)


class RegisterModel:
    """`read`, `write` and `cas` on one value, absent at first."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, State] = {ABSENT: 0}

    def initial(self) -> Hashable | None:
        return ABSENT

    def _number(self, value: Json) -> State:
        return self._numbers.setdefault(name_of(value), len(self._numbers))

    def footprint(self, op: Op) -> Footprint:
        match op.op:
            case "read":
                return Footprint(sees=(name_of(op.result),))
            case "write":
                return Footprint(writes=name_of(op.argument))
            case "cas":
                expected, new = pair(op)
                if not op.ok or answer(op)["swapped"]:
                    return Footprint(writes=name_of(new), sees=(name_of(expected),))
                if "value" in answer(op):
                    return Footprint(sees=(name_of(answer(op)["value"]),))
                return Footprint(blurred=True)
            case _:
                raise NotJudged(f"a register knows no {op.op!r}")

    def step(self, op: Op) -> Step:
        match op.op:
            case "read":
                return _expects(self._number(op.result))
            case "write":
                return _becomes(self._number(op.argument))
            case "cas":
                expected, new = (self._number(value) for value in pair(op))
                if not op.ok or answer(op)["swapped"]:
                    return lambda state: new if state == expected else -1
                if "value" in answer(op):
                    found = self._number(answer(op)["value"])
                    return lambda state: state if state == found != expected else -1
                return lambda state: state if state != expected else -1
            case _:
                raise NotJudged(f"a register knows no {op.op!r}")


class ListModel:
    """`append` and `list`; a state is a node of the tree of all lists, so that appending does not copy.

    A list only grows, so every list that was answered is still to come or a beginning of the present one. From a node from
    which an answered list goes on, therefore only such a list leads on: that decides nearly all of the search.
    """

    def __init__(self) -> None:
        self._children: dict[tuple[State, Hashable], State] = {}
        self._answered: set[State] = set()
        """Nodes on the way to an answered list."""
        self._continued: set[State] = set()
        """Nodes from which an answered list goes on."""

    def initial(self) -> Hashable | None:
        return None

    def _child(self, state: State, name: Hashable) -> State:
        return self._children.setdefault((state, name), len(self._children) + 1)

    def _node(self, value: Json) -> State:
        state = 0
        for element in elements(value):
            self._continued.add(state)
            state = self._child(state, name_of(element))
            self._answered.add(state)
        return state

    def _append(self, state: State, name: Hashable) -> State:
        if state in self._continued:
            child = self._children.get((state, name), -1)
            return child if child in self._answered else -1
        return self._child(state, name)

    def footprint(self, op: Op) -> Footprint:
        if op.op in ("list", "read"):
            return Footprint(sees=tuple(name_of(element) for element in elements(op.result)) if op.ok else ())
        if op.op == "append":
            mine = name_of(op.argument)
            seen = elements(op.result) if op.ok else []
            return Footprint(mine, tuple(name for name in map(name_of, seen) if name != mine))
        raise NotJudged(f"a list knows no {op.op!r}")

    def step(self, op: Op) -> Step:
        if op.op in ("list", "read"):
            return _expects(self._node(op.result))
        mine, append = name_of(op.argument), self._append
        if op.ok and op.result is not None:
            after = self._node(op.result)
            return lambda state: after if append(state, mine) == after else -1
        return lambda state: append(state, mine)


class CounterModel:
    """`increment` and `read`; absent is 0. Its states are not small, so they are numbered like all others."""

    def __init__(self) -> None:
        self._values: list[int] = [0]
        self._numbers: dict[int, State] = {0: 0}

    def initial(self) -> Hashable | None:
        return None

    def _number(self, value: int) -> State:
        if value not in self._numbers:
            self._numbers[value] = len(self._values)
            self._values.append(value)
        return self._numbers[value]

    def footprint(self, op: Op) -> Footprint:
        # Two increments cannot be told apart by what others see, so nothing may be left out: `blurred`.
        if op.op == "increment":
            return Footprint(writes=(id(op),), blurred=True)
        if op.op == "read":
            return Footprint(blurred=True)
        raise NotJudged(f"a counter knows no {op.op!r}")

    def step(self, op: Op) -> Step:
        if op.op == "read":
            return _expects(self._number(number(op.result)))
        difference, values = number(op.argument), self._values
        if op.ok and op.result is not None:
            after = self._number(number(op.result))
            before = self._number(values[after] - difference)
            return lambda state: after if state == before else -1
        return lambda state: self._number(values[state] + difference)


class BankModel:
    """`write` opens it, `txn` moves money within it, `read` sees all accounts at one moment."""

    def __init__(self) -> None:
        self._numbers: dict[Balances | None, State] = {None: 0}
        self._balances: list[Balances | None] = [None]

    def initial(self) -> Hashable | None:
        return None

    def _number(self, value: Mapping[str, int] | None) -> State:
        balances = tuple(sorted(value.items())) if value else None
        if balances not in self._numbers:
            self._numbers[balances] = len(self._balances)
            self._balances.append(balances)
        return self._numbers[balances]

    def footprint(self, op: Op) -> Footprint:
        if op.op in ("write", "txn") and not (op.ok and op.result is False):
            return Footprint(writes=(id(op),), blurred=True)
        if op.op in ("read", "txn"):
            return Footprint(blurred=True)
        raise NotJudged(f"a bank knows no {op.op!r}")

    def step(self, op: Op) -> Step:
        if op.op == "read":
            return _expects(self._number(accounts(op.result)))
        if op.op == "write":
            return _becomes(self._number(accounts(op.argument)))
        source, target, amount = transfer(op)
        expected = expectation(op)

        def move(state: State) -> State:
            balances = dict(self._balances[state] or ())
            enough = balances.get(source, 0) >= amount
            if any(balances.get(account) != balance for account, balance in expected.items()):
                return -1
            if op.ok and op.result is False:
                return -1 if enough else state
            if not enough:
                return -1
            balances[source] -= amount
            balances[target] = balances.get(target, 0) + amount
            return self._number(balances)

        return move


def _expects(expected: State) -> Step:
    return lambda state: state if state == expected else -1


def _becomes(new: State) -> Step:
    return lambda _: new


def model_for(ops: Sequence[Op]) -> Model | None:
    """The model of a key, by what was done to it; None for a set, whose checker needs none."""
    kinds = {op.op for op in ops}
    if "add" in kinds:
        return None
    if kinds & {"append", "list"}:
        return ListModel()
    if "increment" in kinds:
        return CounterModel()
    return BankModel() if "txn" in kinds else RegisterModel()


# --- The form of arguments and answers: `NotJudged` where it is another --------------------------------------------


def pair(op: Op) -> tuple[Json, Json]:
    if isinstance(op.argument, list | tuple) and len(op.argument) == 2:
        return op.argument[0], op.argument[1]
    raise NotJudged(f"the argument of a cas is [expected, new], not {op.argument!r}")


def answer(op: Op) -> Mapping[str, Json]:
    if isinstance(op.result, dict) and isinstance(op.result.get("swapped"), bool):
        return op.result
    raise NotJudged(f'the result of a cas is {{"swapped": ...}}, not {op.result!r}')


def elements(value: Json) -> Sequence[Json]:
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return value
    raise NotJudged(f"{value!r} is no list")


def number(value: Json) -> int:
    if value is None:
        return 0
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise NotJudged(f"{value!r} is no whole number")


def accounts(value: Json) -> Mapping[str, int] | None:
    if value is None:
        return None
    if isinstance(value, dict):
        return {str(account): number(balance) for account, balance in value.items()}
    raise NotJudged(f"{value!r} is no object of accounts")


def transfer(op: Op) -> tuple[str, str, int]:
    if isinstance(op.argument, dict) and {"from", "to", "amount"} <= op.argument.keys():
        return str(op.argument["from"]), str(op.argument["to"]), number(op.argument["amount"])
    raise NotJudged(f"the argument of a txn is from, to and amount, not {op.argument!r}")


def expectation(op: Op) -> Mapping[str, int]:
    """The balances without which a transfer does nothing. They tell which unknown transfers can have happened."""
    if isinstance(op.argument, dict) and op.argument.get("expected") is not None:
        return accounts(op.argument["expected"]) or {}
    return {}
