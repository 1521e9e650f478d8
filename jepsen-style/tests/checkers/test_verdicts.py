"""Histories on disk, verdicts together, and the smallest counter-example."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkers.histories import Shape, brute_force, list_history, op, read, register_history, write
from faults.checkers import Verdict, check_form, check_list, check_register, combine, judge
from faults.checkers.__main__ import main
from faults.checkers.models import ListModel, RegisterModel
from faults.history import HistoryError, Op, read_history, write_history

seeds = st.integers(0, 2**32)


def test_a_history_survives_the_disk(tmp_path: Path) -> None:
    """All fields, whatever JSON values hold."""
    history = register_history(random.Random(1), Shape(info_rate=0.2, fail_rate=0.2))
    history.append(op("txn", 9_000, 9_001, argument={"from": "ä", "amount": 1}, result=True, extra={"shard": 3}))
    history.sort(key=lambda each: each.start_ns)
    assert len(history) == write_history(tmp_path / "history.jsonl", history)
    assert history == read_history(tmp_path / "history.jsonl")


@pytest.mark.parametrize(
    "flaw",
    [
        {"status": "done"},
        {"end_ns": -1},
        {"end_ns": None},
        {"start_ns": 1.5},
        {"colour": "red"},
    ],
)
def test_a_line_that_is_no_operation_is_refused(tmp_path: Path, flaw: dict[str, object]) -> None:
    """With its place: a history with holes must not be judged as one without."""
    good = {
        "client": 1,
        "key": "x",
        "op": "read",
        "argument": None,
        "result": 1,
        "start_ns": 0,
        "end_ns": 1,
        "status": "ok",
    }
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, **flaw}) + "\n")
    with pytest.raises(HistoryError, match=r"history\.jsonl:2"):
        read_history(path)


def test_a_file_is_judged_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit status is the verdict, and a violation shows its operations."""
    right = [write(1, 0, 10), read(1, 20, 30)]
    for status, history in ((0, right), (1, [write(1, 0, 10), read(2, 20, 30)]), (2, [])):
        write_history(tmp_path / "history.jsonl", history)
        assert status == main([str(tmp_path / "history.jsonl")])
    assert '"result":2' in capsys.readouterr().out
    assert 2 == main([])


def test_unknown_never_counts_as_ok() -> None:
    """A violation outweighs it, and nothing at all is unknown, too."""
    kinds = {kind: Verdict(kind, kind, "") for kind in ("ok", "unknown", "violation")}  # type: ignore[arg-type]
    assert "ok" == combine([kinds["ok"], kinds["ok"]]).kind
    assert "unknown" == combine([kinds["ok"], kinds["unknown"]]).kind
    assert "violation" == combine([kinds["unknown"], kinds["violation"], kinds["ok"]]).kind
    assert "unknown" == combine([]).kind


def test_verdicts_together_show_the_smallest_counterexample() -> None:
    """That is the one to look at first."""
    small = Verdict("violation", "a", "", (read(1, 0, 10),))
    large = Verdict("violation", "b", "", tuple(read(1, 0, 10) for _ in range(9)))
    assert small.counterexample == combine([large, small]).counterexample


def test_a_history_with_impatient_clients_is_not_judged() -> None:
    """Two operations of one client at a time, or a client that goes on after an unknown outcome, is a fault of ours."""
    one = write(1, 0, 10, client=1)
    assert "ok" == check_form([one, write(2, 20, 30, client=1)]).kind
    assert "unknown" == check_form([one, write(2, 5, 30, client=1)]).kind
    assert "unknown" == check_form([replace(one, status="info"), write(2, 20, 30, client=1)]).kind
    assert "unknown" == check_form([replace(one, status="fail")]).kind


def test_attempts_of_one_number_may_follow_an_unknown_one() -> None:
    """They are the same operation."""
    first = write(1, 0, 10, client=1, status="info", extra={"session": 1, "seq": 4})
    again = write(1, 20, 30, client=1, extra={"session": 1, "seq": 4})
    assert "ok" == check_form([first, again]).kind


def test_the_checks_follow_from_what_was_done() -> None:
    """Each key is judged as what it is."""
    history = [
        *(write(1, 0, 10, key="r", revision=1, index=1), read(1, 20, 30, key="r", revision=1, index=1)),
        *(op("add", 40, 50, argument=1, key="s"), op("read", 60, 70, result=[1], key="s")),
        *(op("append", 80, 90, argument=1, key="l", revision=3), op("list", 91, 92, result=[1], key="l", revision=3)),
        op("increment", 93, 94, argument=1, result=1, key="c", revision=4),
        op("stale_read", 95, 96, result=1, key="r", node="n1"),
    ]
    verdicts = judge(history)
    assert ["ok"] * len(verdicts) == [each.kind for each in verdicts], verdicts
    names = {each.checker for each in verdicts}
    assert {"form", "index order", "witness", "register", "list", "counter", "set", "stale reads"} == names


def test_a_key_that_was_only_read_is_what_all_others_are() -> None:
    """An empty set that is read is no register with a value from nowhere."""
    history = [op("add", 0, 10, argument=1, key="s"), read([1], 20, 30, key="s"), read([], 40, 50, key="empty")]
    assert {"form", "set"} == {each.checker for each in judge(history)}


# --- The smallest counter-example -------------------------------------------------------------------------------------


@given(seeds)
def test_a_counterexample_is_a_violation_of_its_own_and_has_nothing_to_spare(seed: int) -> None:
    """It is found in a long history, fails by trying all orders, and each of its answers is needed."""
    rng = random.Random(seed)
    history = register_history(rng, Shape(operations=80, clients=4, info_rate=0.05))
    reads = [number for number, each in enumerate(history) if each.op == "read" and each.ok]
    at = rng.choice(reads)
    history[at] = replace(history[at], result=rng.choice([history[number].result for number in reads]))
    verdict = check_register(history)
    if verdict.kind == "violation":
        example = list(verdict.counterexample)
        assert len(example) <= 7
        assert not brute_force(example, RegisterModel())
        for each in example:
            if each.op == "read":
                assert brute_force([other for other in example if other is not each], RegisterModel())


def test_a_list_is_shown_by_its_few_elements_that_matter() -> None:
    """Of a list of hundreds two elements tell what happened, and `extra` says how long it was."""
    history = list_history(random.Random(4), Shape(operations=400, clients=3))
    last = max((each for each in history if each.op == "list"), key=lambda each: each.start_ns)
    assert isinstance(last.result, list)
    assert len(last.result) > 100
    lost = [each for each in last.result if each != last.result[50]]
    broken: list[Op] = [each for each in history if each is not last] + [replace(last, result=lost)]
    verdict = check_list(broken)
    assert "violation" == verdict.kind
    assert not brute_force(list(verdict.counterexample), ListModel())
    assert len(verdict.counterexample) <= 3
    shown = [each.result for each in verdict.counterexample if isinstance(each.result, list)]
    assert max(len(each) for each in shown) <= 2
