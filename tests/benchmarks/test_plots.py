"""The pictures: well-formed, everything within the frame, and drawn of what was measured."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import plots
from benchmarks.measurement import Measurement, summarise
from benchmarks.plots import Line, axis, chart, pictures

SVG = "{http://www.w3.org/2000/svg}"
VALUES = st.lists(st.floats(0.001, 1e9), min_size=1, max_size=20)


@given(VALUES, VALUES, st.booleans())
def test_every_point_lies_within_the_axes(across: list[float], up: list[float], log: bool) -> None:
    """Whatever the values are, one alone and equal ones among them."""
    points = list(zip(across, up, strict=False))
    root = ElementTree.fromstring(chart("a < b", "x & y", "z", [Line("one", points, "#000")], log=log))
    circles = root.findall(f"{SVG}circle")
    assert len(points) == len(circles)
    for circle in circles:
        assert plots.LEFT <= float(circle.attrib["cx"]) <= plots.WIDTH - plots.RIGHT
        assert plots.TOP <= float(circle.attrib["cy"]) <= plots.HEIGHT - plots.BOTTOM


def test_larger_values_stand_higher_and_further_right() -> None:
    """The vertical axis of SVG points down."""
    root = ElementTree.fromstring(chart("t", "x", "y", [Line("one", [(1, 10), (10, 1000)], "#000")]))
    low, high = root.findall(f"{SVG}circle")
    assert float(low.attrib["cx"]) < float(high.attrib["cx"])
    assert float(low.attrib["cy"]) > float(high.attrib["cy"])


def test_ticks_are_round_numbers_within() -> None:
    """Powers of ten on a logarithmic axis, and numbers between where these are few; equal steps on another."""
    assert [1, 10, 100, 1000] == pytest.approx(axis("", [1, 1000], log=True).ticks())
    assert [1, 2, 5, 10, 20] == pytest.approx(axis("", [1, 20], log=True).ticks())
    assert [2, 3, 4] == pytest.approx(axis("", [2, 4], log=True).ticks())
    assert [0, 10, 20, 30, 40, 50] == pytest.approx(axis("", [3, 50], log=False).ticks())
    assert ["0.5", "20", "5k", "2M"] == [plots.short(number) for number in (0.5, 20, 5000, 2e6)]


def test_nothing_below_zero_is_drawn_on_a_logarithmic_axis() -> None:
    """A latency of nothing has no place there; a line of nothing else is left out."""
    lines = [Line("one", [(1, 0), (2, 5)], "#000"), Line("none", [(0, 0)], "#000")]
    root = ElementTree.fromstring(chart("t", "x", "y", lines))
    assert 1 == len(root.findall(f"{SVG}circle"))
    assert not re.search("none<", ElementTree.tostring(root, encoding="unicode"))


def point(load: str, system: str, generator: str = "loader", run: int = 1, **details: float) -> Measurement:
    return Measurement(
        load,
        generator,
        system,
        64,
        run,
        operations=100,
        seconds=60.0,
        p50_us=1.0,
        p99_us=2.0,
        p999_us=3.0,
        anonymous_bytes={"n1": 10, "n2": 20, "n3": 30},
        details=details,
    )


def test_each_part_has_its_pictures() -> None:
    """Of parts that were not run there are none."""
    measurements = [
        *(
            point(f"put, {rate} offered", name, "open", offered=rate)
            for rate in (1, 2)
            for name in ("raftcache", "etcd")
        ),
        *(point(f"get, {keys} keys", "raftcache", keys=keys, value_bytes=100) for keys in (10, 20)),
        *(point(f"get, {size} B", "raftcache", keys=10_000, value_bytes=size) for size in (1024, 2048)),
        *(point(load, "raftcache", run=run) for run in (1, 2, 3) for load in ("put, soak", "get, soak")),
    ]
    found = pictures(summarise(measurements), measurements)
    circles = {name: len(ElementTree.fromstring(text).findall(f"{SVG}circle")) for name, text in found.items()}
    assert {
        "openloop-put": 2 * 2 * 3,
        "sizes-keys-throughput": 2,
        "sizes-keys-p99": 2,
        "sizes-values-throughput": 2,
        "sizes-values-p99": 2,
        "soak-p99": 2 * 3,
        "soak-memory": 3 * 3,
    } == circles
    assert {} == pictures(summarise([point("put, one key", "raftcache")]), [])
