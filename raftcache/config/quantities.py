"""Sizes and durations as people write them: `1GiB`, `150ms`.

Rules of this file:
- `KiB MiB GiB TiB` are powers of 1024, `kB MB GB TB` powers of 1000, as in IEC 80000-13; the case of the letters does not
  matter, except that nothing here makes a difference between `b` and `B`;
- a bare number counts in the unit of the setting's name (`_bytes_`, `_ms`, `_us`);
- what is written by `format_*` is read back by `parse_*` as the same number.
"""

import re
from collections.abc import Mapping
from fractions import Fraction

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_SIZES: Mapping[str, int] = {
    "b": 1,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": TIB,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
}
_DURATIONS_US: Mapping[str, int] = {
    "us": 1,
    "ms": 1000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
}
# ASCII digits only: `\d` would also take digits of other scripts.
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,6})?)\s*([A-Za-z]*)")

SIZE_EXAMPLES = '"512KiB", "64MiB", "1GiB"'
DURATION_EXAMPLES = '"150ms", "2s", "300us"'


def parse_size(text: str) -> int:
    """Bytes. Raises `ValueError` with a sentence where `text` is not a whole number of bytes."""
    return _parse(text, _SIZES, bare="b", unit="bytes", examples=SIZE_EXAMPLES)


def parse_duration(text: str, *, unit: str) -> int:
    """A duration counted in `unit` (`ms`, `us`). Raises `ValueError` where it is not a whole number of that unit."""
    scale_us = _DURATIONS_US[unit]
    units = {name: Fraction(us, scale_us) for name, us in _DURATIONS_US.items()}
    return _parse(text, units, bare=unit, unit=unit, examples=DURATION_EXAMPLES)


def _parse(text: str, units: Mapping[str, int | Fraction], *, bare: str, unit: str, examples: str) -> int:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"is not a number with a unit; write {examples}")
    number, suffix = match.groups()
    scale = units.get(suffix.lower() or bare)
    if scale is None:
        raise ValueError(f"has the unknown unit {suffix!r}; write {examples}")
    # Exact arithmetic: 0.1 of a second is 100 ms, and not 99.
    value = Fraction(number) * scale
    if value.denominator != 1:
        raise ValueError(f"is not a whole number of {unit}")
    return int(value)


def format_size(size: int) -> str:
    """The shortest exact spelling in powers of 1024."""
    for name, scale in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= scale and size % scale == 0:
            return f"{size // scale}{name}"
    return f"{size}B"


def format_duration(duration: int, *, unit: str) -> str:
    """The shortest exact spelling of a duration counted in `unit`."""
    duration_us = duration * _DURATIONS_US[unit]
    for name in ("h", "m", "s", "ms"):
        scale = _DURATIONS_US[name]
        if duration_us >= scale and duration_us % scale == 0:
            return f"{duration_us // scale}{name}"
    return f"{duration_us}us"
