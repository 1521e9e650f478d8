"""The report: one file that needs nothing else, shows every verdict, and tells silences and recoveries rightly."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from checkers.histories import Shape, cas, op, read, register_history, write
from faults.checkers import judge
from faults.checkers.verdict import unknown
from faults.history import Op
from faults.report import NemesisEvent, RunFacts, write_report
from faults.report.availability import SECOND, recoveries, silences, together
from faults.report.facts import write_facts
from faults.report.lanes import label, lanes
from faults.report.overview import line_of, write_overview
from faults.report.svg import ticks

RUN = RunFacts("register", "chaos", 7, {"nodes": 3}, (), (), (), {"operations": 0})


def page_of(tmp_path: Path, run: RunFacts) -> str:
    path = write_report(tmp_path, run)
    assert tmp_path / "report.html" == path
    return path.read_text(encoding="utf-8")


def pictures(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_a_report_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    """No address, script or image; and its pictures are well-formed."""
    history = register_history(random.Random(3), Shape(operations=300, info_rate=0.1, fail_rate=0.1))
    events = [(1_000, 4_000, "kill leader", "n1"), NemesisEvent(5_000, None, "partition", "n2 | n1 n3")]
    facts = replace(RUN, history=history, nemesis_events=events, verdicts=judge(history), files=("n1.log",))
    page = page_of(tmp_path, facts)
    assert "http" not in page.replace("http-equiv", "")
    assert not re.search(r"<script|<img|<link|@import|url\(", page)
    assert 1 == len(pictures(page))
    for words in ("No violation", "kill leader", "n2 | n1 n3", "n1.log", "linearizable"):
        assert words in page


def test_a_violation_comes_with_its_picture(tmp_path: Path) -> None:
    """The counter-example in lanes, and its moment in the timeline."""
    history = [write(1, 0, 10), write(2, 20, 30), read(1, 40, 50)]
    page = page_of(tmp_path, replace(RUN, history=history, verdicts=judge(history)))
    assert 2 == len(pictures(page))
    for words in ("Violation", "write 1", "read = 1", "a newer value was overlooked", 'class="wrong"'):
        assert words in page


def test_unknown_is_not_shown_as_passed(tmp_path: Path) -> None:
    """Neither is what the machine could not do."""
    facts = replace(RUN, verdicts=(unknown("register", "took too long"),), skipped={"power cut": "needs root"})
    page = page_of(tmp_path, facts)
    assert "No violation" not in page
    for words in ("Unknown", "took too long", "not passed", "needs root"):
        assert words in page


@pytest.mark.parametrize("history", [[], [read(None, 5, 5)], [write(1, 5, None)], [write(1, 0, 10, status="fail")]])
def test_a_report_of_nearly_nothing_can_be_written(tmp_path: Path, history: list[Op]) -> None:
    """A run that broke off early is the one that somebody looks at."""
    pictures(page_of(tmp_path, replace(RUN, history=history, verdicts=judge(history))))


def test_words_from_a_run_are_text_not_markup(tmp_path: Path) -> None:
    """Keys, values and messages may hold anything."""
    nasty = "<b>&\"'"
    history = [write(nasty, 0, 10, key=nasty), read("other" + nasty, 20, 30, key=nasty)]
    facts = replace(
        RUN, workload=nasty, history=history, verdicts=judge(history), nemesis_events=[(0, 9, nasty, nasty)],
        config={nasty: nasty}, files=(nasty,), skipped={nasty: nasty}, counts={nasty: 1},
    )  # fmt: skip
    page = page_of(tmp_path, facts)
    assert '<b>&"' not in page
    assert 2 == len(pictures(page))


def test_lanes_have_one_row_for_each_client_and_room_for_all_words() -> None:
    """Boxes of one lane do not overlap."""
    history = [write(1, 0, 10, client=1), cas(1, 2, 5, None, client=2), read([1, 2, 3] * 9, 12, 13, client=1)]
    picture = ElementTree.fromstring(lanes(history))
    boxes = sorted(
        (float(box.attrib["y"]), float(box.attrib["x"]), float(box.attrib["width"])) for box in picture.iter("rect")
    )
    assert 3 == len(boxes)
    assert boxes[0][0] == boxes[1][0] != boxes[2][0]
    assert boxes[0][1] + boxes[0][2] <= boxes[1][1]


def test_labels_say_what_was_asked_and_answered() -> None:
    """In the words of the history."""
    assert "read = nothing" == label(read(None, 0, 1))
    assert "write 3  ?" == label(write(3, 0, None))
    assert "cas 1 to 2: no, 7" == label(cas(1, 2, 0, 1, swapped=False, found=7))
    assert "list = [1, 2]" == label(op("list", 0, 1, result=[1, 2]))
    assert "increment 1 = 5" == label(op("increment", 0, 1, argument=1, result=5))
    assert "a to b: 3 refused" == label(op("txn", 0, 1, argument={"from": "a", "to": "b", "amount": 3}, result=False))


def test_a_box_names_the_node_that_was_asked() -> None:
    """Two nodes that answer differently are seen to be two."""
    picture = ElementTree.fromstring(lanes([write(1, 0, 10, node="n1"), read(None, 20, 30, node="n3")]))
    assert {"n1", "n3"} <= {text.text for text in picture.iter("text")}


def test_the_overview_shows_every_run_the_worst_first(tmp_path: Path) -> None:
    """One page leads to all reports, and says what was not done."""
    history = [write(1, 0, 10), write(2, 20, 30), read(1, 40, 50)]
    good = replace(RUN, seed=1, history=history[:2], verdicts=judge(history[:2]), nemesis_events=[(0, 9, "kill", "n1")])
    bad = replace(RUN, seed=2, history=history, verdicts=judge(history))
    lines = [line_of(good, "001/report.html"), line_of(bad, "002/report.html")]
    page = write_overview(tmp_path, lines, {"operations": 5}, {"power cut": "needs root"}, title="seed 1").read_text()
    assert "http" not in page
    assert 2 == len(pictures(page))
    assert page.index("002/report.html") < page.index("001/report.html")
    for words in ("Violation", "a newer value was overlooked", "needs root", "not passed", "<b>1</b> of <b>2</b> runs"):
        assert words in page


def test_an_overview_of_no_runs_is_no_success(tmp_path: Path) -> None:
    """Nothing was judged."""
    assert "Not all could be judged" in write_overview(tmp_path, [], {}, {}, title="").read_text()


def test_the_facts_of_a_run_are_json_for_others(tmp_path: Path) -> None:
    """Settings, verdicts and faults, beside the history."""
    facts = replace(RUN, verdicts=(unknown("register", "took too long"),), nemesis_events=[(1, None, "kill", "n1")])
    write_facts(tmp_path / "run.json", facts)
    found = json.loads((tmp_path / "run.json").read_text())
    assert {"nodes": 3} == found["config"]
    assert ["unknown"] == [each["kind"] for each in found["verdicts"]]
    assert {"start_ns": 1, "end_ns": None, "name": "kill", "detail": "n1"} == found["faults"][0]


# --- Availability -----------------------------------------------------------------------------------------------------


def every(step: float, start: float, end: float, shard: int) -> list[Op]:
    """A client that is answered within a millisecond, again and again. Times in seconds."""
    moments = [int((start + number * step) * SECOND) for number in range(int((end - start) / step))]
    extra = {"shard": shard}
    return [read(None, at, at + SECOND // 1000, key=f"k{shard}", extra=extra) for at in moments]


def test_a_silence_is_a_time_in_which_somebody_waited() -> None:
    """Shard 1 answered nobody for two seconds; shard 2 was not asked."""
    waiting = read(None, 3 * SECOND, None, key="k1")
    history = [*every(0.01, 0, 3, 1), waiting, *every(0.01, 5, 8, 1), *every(0.01, 0, 1, 2), *every(0.01, 6, 8, 2)]
    found = silences(replace(RUN, history=history, nemesis_events=[(2 * SECOND, 4 * SECOND, "kill leader", "n1")]))
    assert [("1", 2, ("kill leader",))] == [(each.shard, round(each.seconds), each.during) for each in found]


def test_a_time_in_which_nobody_asked_is_no_silence() -> None:
    """Clients that stop leave a refusal behind the last answer; who reads after a while is answered at once."""
    refused = read(None, int(2.99 * SECOND), int(3.05 * SECOND), key="k1", status="fail")
    assert [] == silences(replace(RUN, history=[*every(0.01, 0, 3, 1), refused, *every(0.01, 9, 10, 1)]))


def test_whoever_is_refused_and_tries_again_still_waits() -> None:
    """An outage is one silence, however many refusals came in it."""
    refusals = [
        read(None, at, at + SECOND // 100, key="k1", status="fail") for at in range(3 * SECOND, 5 * SECOND, SECOND // 6)
    ]
    (silence,) = silences(replace(RUN, history=[*every(0.01, 0, 3, 1), *refusals, *every(0.01, 5, 8, 1)]))
    assert 2.0 == pytest.approx(silence.seconds, abs=0.05)


def test_a_silence_is_laid_to_the_fault_in_force_before_the_one_healed() -> None:
    """Of two faults, the one that was over is not accused."""
    history = [*every(0.01, 0, 3, 1), read(None, 3 * SECOND, None, key="k1"), *every(0.01, 5, 8, 1)]
    events = [(SECOND, 2 * SECOND, "pause", ""), (int(2.5 * SECOND), 4 * SECOND, "kill", "")]
    assert [("kill",)] == [each.during for each in silences(replace(RUN, history=history, nemesis_events=events))]
    healed = silences(replace(RUN, history=history, nemesis_events=events[:1]))
    assert [("pause",)] == [each.during for each in healed]


def test_recovery_is_complete_when_every_shard_has_answered() -> None:
    """Counted from healing, by operations that began after it."""
    history = [
        *every(0.01, 0, 10, 1),
        *every(0.01, 0, 2, 2),
        read(None, 2 * SECOND, None, key="k2"),
        *every(0.01, 6, 10, 2),
    ]
    run = replace(RUN, history=history, nemesis_events=[(2 * SECOND, 5 * SECOND, "partition", "")])
    (line,) = recoveries(run, silences(run))
    assert ("partition", 1, 3) == (line.name, line.times, line.seconds)
    assert 1.0 == pytest.approx(line.recovered_max, abs=0.01)
    assert 4.0 == pytest.approx(line.longest_silence, abs=0.02)
    assert 100 == pytest.approx(line.ok_per_second, abs=1)


def test_silences_of_several_shards_at_one_time_are_told_together() -> None:
    """A killed node is one event, whichever shards it led."""
    waiting = [read(None, 3 * SECOND, None, key=f"k{shard}") for shard in (1, 2)]
    history = waiting + [each for shard in (1, 2) for each in every(0.01, 0, 3, shard) + every(0.01, 5, 8, shard)]
    groups = together(silences(replace(RUN, history=history)))
    assert [["1", "2"]] == [sorted(each.shard for each in group) for group in groups]


@pytest.mark.parametrize("limit", [0.003, 1, 7, 90, 1_800, 123_456])
def test_ticks_are_round_and_few(limit: float) -> None:
    """From 0 to the limit."""
    found = ticks(limit, 8)
    assert 0 == found[0]
    assert 3 <= len(found) <= 11
    assert found[-1] <= limit * 1.0001
