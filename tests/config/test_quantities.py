"""Sizes and durations: what people write is what the node takes, exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftcache.config.quantities import GIB, KIB, MIB, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("17", 17),
        ("17B", 17),
        ("4KiB", 4 * KIB),
        ("1.5 MiB", 3 * MIB // 2),
        ("1gib", GIB),
        ("2MB", 2_000_000),
    ],
)
def test_sizes_are_read_in_powers_of_1024_and_of_1000(text: str, size: int) -> None:
    """KiB and kB differ, a bare number is bytes."""
    assert size == parse_size(text)


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1e3", "1 MiB MiB", "1XB", "0x10", "٣MiB", "1_000", "0.3B", "NaN"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """No guess is made, not even for digits of other scripts."""
    with pytest.raises(ValueError):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("150ms", "ms", 150),
        ("150", "ms", 150),
        ("0.1s", "ms", 100),
        ("2m", "ms", 120_000),
        ("300us", "us", 300),
        ("1ms", "us", 1000),
    ],
)
def test_durations_are_counted_in_the_unit_of_their_setting(text: str, unit: str, expected: int) -> None:
    """0.1s is 100 ms and not 99: the arithmetic is exact."""
    assert expected == parse_duration(text, unit=unit)


def test_a_duration_finer_than_its_setting_is_refused() -> None:
    """Rounding would hide a mistake."""
    with pytest.raises(ValueError, match="whole number of ms"):
        parse_duration("1500us", unit="ms")


@given(st.integers(0, 2**50))
def test_a_formatted_size_is_read_back_as_itself(size: int) -> None:
    """`config show` loses nothing."""
    assert size == parse_size(format_size(size))


@given(st.integers(0, 10**9), st.sampled_from(["ms", "us"]))
def test_a_formatted_duration_is_read_back_as_itself(duration: int, unit: str) -> None:
    """`config show` loses nothing."""
    assert duration == parse_duration(format_duration(duration, unit=unit), unit=unit)
