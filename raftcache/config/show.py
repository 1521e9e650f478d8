"""How settings are shown: as TOML that `load` reads back to the same settings.

`effective` is all of them, `diff` those that differ from the defaults, `sample` the commented file that ships in `deploy/`.
"""

import json
import textwrap
from dataclasses import fields

from raftcache.config.load import format_value, section_fields, section_names, section_type, setting_of
from raftcache.config.settings import Config, Kind, Setting

_WIDTH = 120


def effective(config: Config) -> str:
    """Every setting."""
    return _dump(config, Config(), only_changed=False)


def default() -> str:
    """Every setting as it is when nobody sets it."""
    return effective(Config())


def diff(config: Config) -> str:
    """The settings that differ from the defaults; empty if none does."""
    return _dump(config, Config(), only_changed=True)


def _dump(config: Config, reference: Config, *, only_changed: bool) -> str:
    blocks = []
    for section in section_names():
        values, defaults = getattr(config, section), getattr(reference, section)
        lines = [
            f"{key} = {_toml(setting_of(item), getattr(values, key))}"
            for key, item in section_fields(section).items()
            if not only_changed or getattr(values, key) != getattr(defaults, key)
        ]
        if lines:
            blocks.append("\n".join([f"[{section}]", *lines]))
    return "\n\n".join(blocks) + "\n" if blocks else ""


def sample() -> str:
    """The commented sample file: every setting with its default, its range and its reason, each commented out."""
    parts = [
        "# raftcache: every setting of a node, with its default.\n"
        "# Uncomment what you change. Precedence: command line, then RAFTCACHE_SECTION__KEY in the environment, then this\n"
        '# file, then the default. Sizes and durations are text with a unit ("64MiB", "150ms"), or bare numbers in the unit\n'
        "# of the setting's name. `raftcache config check` reads this file as the server does.\n"
    ]
    reference = Config()
    for section in fields(Config):
        doc = section_type(section).__doc__ or ""
        parts.append(f"\n# {doc}\n[{section.name}]\n")
        for key, item in section_fields(section.name).items():
            setting = setting_of(item)
            about = f"{setting.about}{_allowed(setting)}".replace("\n", " ")
            parts.append("\n" + textwrap.fill(about, _WIDTH, initial_indent="# ", subsequent_indent="# ") + "\n")
            parts.append(f"#{key} = {_toml(setting, getattr(getattr(reference, section.name), key))}\n")
    return "".join(parts)


def _allowed(setting: Setting) -> str:
    if setting.choices:
        return f" One of {', '.join(setting.choices)}."
    if setting.kind is Kind.RATIO:
        return f" {setting.lo:g} to {setting.hi:g}."
    if setting.hi:
        return f" {format_value(setting, int(setting.lo))} to {format_value(setting, int(setting.hi))}."
    return ""


def _toml(setting: Setting, value: object) -> str:
    """A value in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        text = format_value(setting, value)
        return text if setting.kind is Kind.COUNT else _quote(text)
    if isinstance(value, float):
        return repr(value)
    assert isinstance(value, str), value
    return _quote(value)


def _quote(text: str) -> str:
    # A TOML basic string has JSON's escapes; what JSON leaves alone and TOML forbids is DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
