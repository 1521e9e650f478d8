"""Where settings come from: command line over environment over file over default.

Rules of this file:
- nothing is ignored: an unknown section or key, a wrong type or a value out of range is a `ConfigError` that names the path,
  where the value was found, the value, and what is allowed; for an unknown name also the nearest known one;
- each source yields `{(section, key): Found}`, so that there is one way to read a value, whatever its source: TOML gives
  numbers and flags, the environment and the command line give text;
- rules between settings are checked once, at the end, over the result (`check`);
- no clocks, no network, no name resolution. Certificates are opened where they are used.

Environment variables are `RAFTCACHE_SECTION__KEY` with two underscores. Those with a single one (`RAFTCACHE_ENDPOINTS`) are
the client's and not looked at.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import assert_never

from raftcache.config.quantities import (
    DURATION_EXAMPLES,
    SIZE_EXAMPLES,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)
from raftcache.config.rules import check, parse_address
from raftcache.config.settings import Config, Kind, Setting
from raftcache.errors import ConfigError

ENVIRONMENT_PREFIX = "RAFTCACHE_"

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Found:
    """A value as it stood in its source, and where that was, in words for an error message."""

    raw: object
    where: str


def load(
    *,
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Config:
    """The settings in force. `flags` maps `section.key` to a value or its text; `environ` is usually `os.environ`.

    Raises: `ConfigError` (definite) at the first thing that is wrong; `metadata["path"]` is the setting.
    """
    found: dict[tuple[str, str], Found] = {}
    # Later sources win.
    if path is not None:
        found.update(_from_file(path))
    found.update(_from_environment(environ or {}))
    found.update(_from_flags(flags or {}))

    values: dict[str, dict[str, Value]] = {}
    for (section, key), item in found.items():
        setting = setting_of(_field(section, key))
        values.setdefault(section, {})[key] = _read(f"{section}.{key}", setting, item)
    config = Config(
        **{section.name: section_type(section)(**values.get(section.name, {})) for section in fields(Config)}
    )
    check(config)
    return config


def parse_assignment(text: str) -> tuple[str, str]:
    """`limits.value_bytes_max=2MiB`, as `--set` takes it, into path and text. Raises: `ConfigError`."""
    path, equals, value = text.partition("=")
    if not equals or path.count(".") != 1:
        raise ConfigError(f"{text!r} is not an assignment; write section.key=value", metadata={"path": path})
    return path.strip(), value.strip()


# --- What is known of the settings --------------------------------------------------------------------------------


def section_type(section: "Field[object]") -> type:
    """The dataclass of a section of `Config`."""
    factory = section.default_factory
    assert factory is not MISSING, section.name
    assert isinstance(factory, type), section.name
    return factory


def setting_of(item: "Field[object]") -> Setting:
    """What is known of the setting that a section's field declares."""
    setting = item.metadata["setting"]
    assert isinstance(setting, Setting), item.name
    return setting


def section_names() -> list[str]:
    """All sections, in the order of the file."""
    return [section.name for section in fields(Config)]


def section_fields(section: str) -> "dict[str, Field[object]]":
    """The settings of a section, in the order of the file."""
    by_name = {item.name: item for item in fields(Config)}
    return {item.name: item for item in fields(section_type(by_name[section]))}


def _field(section: str, key: str) -> "Field[object]":
    return section_fields(section)[key]


# --- The sources --------------------------------------------------------------------------------------------------


def _from_file(path: Path) -> dict[tuple[str, str], Found]:
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", metadata={"file": str(path)}) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text", metadata={"file": str(path)}) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}", metadata={"file": str(path)}) from error

    found = {}
    for section, table in document.items():
        _require_section(section, where=str(path))
        if not isinstance(table, dict):
            raise _error(section, str(path), f"{table!r} is not a section; write [{section}] on a line of its own")
        for key, raw in table.items():
            _require_key(section, key, where=str(path))
            found[section, key] = Found(raw, str(path))
    return found


def _from_environment(environ: Mapping[str, str]) -> dict[tuple[str, str], Found]:
    found = {}
    for name, raw in sorted(environ.items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or "__" not in name:
            continue
        section, _, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        where = f"environment variable {name}"
        _require_section(section, where=where)
        _require_key(section, key, where=where)
        found[section, key] = Found(raw, where)
    return found


def _from_flags(flags: Mapping[str, object]) -> dict[tuple[str, str], Found]:
    found = {}
    for path, raw in flags.items():
        section, _, key = path.partition(".")
        where = "command line"
        _require_section(section, where=where)
        _require_key(section, key, where=where)
        found[section, key] = Found(raw, where)
    return found


def _require_section(section: str, *, where: str) -> None:
    names = section_names()
    if section not in names:
        hint = _near(section, names)
        if not hint:
            # Somebody wrote `tick_ms = 100` above the first section, or in the wrong one.
            owners = [f"{name}.{section}" for name in names if section in section_fields(name)]
            hint = f"; did you mean {owners[0]}?" if owners else f"; there are {', '.join(names)}"
        raise _error(section, where, f"there is no such section{hint}")


def _require_key(section: str, key: str, *, where: str) -> None:
    known = list(section_fields(section))
    if key in known:
        return
    path = f"{section}.{key}"
    owners = [f"{name}.{key}" for name in section_names() if key in section_fields(name)]
    if owners:
        raise _error(path, where, f"there is no such setting; did you mean {owners[0]}?")
    hint = _near(key, known) or f"; there are {', '.join(known)}"
    raise _error(path, where, f"there is no such setting{hint}")


def _near(word: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else ""


def _error(path: str, where: str, problem: str) -> ConfigError:
    return ConfigError(f"{path} ({where}): {problem}", metadata={"path": path, "where": where})


# --- Reading one value --------------------------------------------------------------------------------------------

_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


def _read(path: str, setting: Setting, found: Found) -> Value:
    """The value, of the field's type and within its range. Raises: `ConfigError`."""
    raw = found.raw
    try:
        match setting.kind:
            case Kind.TEXT:
                return _text(raw)
            case Kind.ADDRESS:
                text = _text(raw)
                if text:
                    parse_address(text)
                return text
            case Kind.SIZE | Kind.DURATION_MS | Kind.DURATION_US | Kind.COUNT:
                return _in_range(setting, _whole_number(setting, raw))
            case Kind.RATIO:
                return _ratio(setting, raw)
            case Kind.FLAG:
                return _flag(raw)
            case Kind.CHOICE:
                text = _text(raw)
                if text not in setting.choices:
                    raise ValueError(f"is not one of {', '.join(setting.choices)}{_near(text, setting.choices)}")
                return text
            case _:
                assert_never(setting.kind)
    except ValueError as error:
        raise _error(path, found.where, f"{_quote(raw)} {error}") from error


def _quote(raw: object) -> str:
    """The bad value as its author would write it, cut where it is long."""
    text = f'"{raw}"' if isinstance(raw, str) else str(raw).lower() if isinstance(raw, bool) else str(raw)
    # The environment may hold bytes that are not UTF-8; the message must stay printable.
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:77]}..."


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError("is not text; write it in quotes")
    return raw


def _whole_number(setting: Setting, raw: object) -> int:
    # TOML's true is Python's 1.
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    examples = {Kind.SIZE: SIZE_EXAMPLES, Kind.COUNT: "1000"}.get(setting.kind, DURATION_EXAMPLES)
    if not isinstance(raw, str):
        raise ValueError(f"is not a number; write {examples}")
    if setting.kind is Kind.SIZE:
        return parse_size(raw)
    if setting.kind is Kind.COUNT:
        if not re.fullmatch(r"[0-9]{1,15}", raw.strip()):
            raise ValueError("is not a whole number")
        return int(raw)
    return parse_duration(raw, unit=setting.kind.value)


def format_value(setting: Setting, number: int) -> str:
    """A whole number in the unit of its setting, as a person writes it, without quotes."""
    if setting.kind is Kind.SIZE:
        return format_size(number)
    if setting.kind is Kind.COUNT:
        return str(number)
    return format_duration(number, unit=setting.kind.value)


def _in_range(setting: Setting, number: int) -> int:
    if not setting.lo <= number <= setting.hi:
        lo, hi = format_value(setting, int(setting.lo)), format_value(setting, int(setting.hi))
        raise ValueError(f"is out of range; allowed are {lo} to {hi}")
    return number


def _ratio(setting: Setting, raw: object) -> float:
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise ValueError("is not a number; write 0.01")
    try:
        number = float(raw)
    except ValueError:
        raise ValueError("is not a number; write 0.01") from None
    # Also refuses NaN, which compares false with everything.
    if not setting.lo <= number <= setting.hi:
        raise ValueError(f"is out of range; allowed are {setting.lo:g} to {setting.hi:g}")
    return number


def _flag(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw.lower() in _TRUE:
        return True
    if isinstance(raw, str) and raw.lower() in _FALSE:
        return False
    raise ValueError("is not true or false")
