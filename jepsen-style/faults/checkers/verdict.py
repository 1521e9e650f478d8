"""What a checker says: ok, violation, or unknown. Unknown never counts as ok."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from faults.history import Json, Op

Kind: TypeAlias = Literal["ok", "violation", "unknown"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What a search may spend. A search that runs out says unknown."""

    states_max: int = 1_000_000
    """Configurations that a search of one key remembers; each takes about 200 bytes."""
    seconds_max: float = 10.0
    """For one key: valid histories take milliseconds, and what takes longer than this takes hours."""
    total_seconds_max: float = 120.0
    """For all keys of one history."""

    def deadline(self) -> float:
        """The moment at which a search of one key that begins now gives up, on `time.monotonic`."""
        return time.monotonic() + self.seconds_max


@dataclass(frozen=True, slots=True)
class Verdict:
    """One checker's judgement of one history."""

    kind: Kind
    checker: str
    reason: str
    """One sentence for people. Of a violation: what must never happen, and did."""
    counterexample: tuple[Op, ...] = ()
    """Of a violation: few operations that no correct system can have answered so, in the order of their starts."""
    facts: Mapping[str, Json] = field(default_factory=dict)
    """Numbers: how much was checked, how long it took."""

    @property
    def ok(self) -> bool:
        return self.kind == "ok"


def ok(checker: str, reason: str, **facts: Json) -> Verdict:
    return Verdict("ok", checker, reason, (), facts)


def unknown(checker: str, reason: str, **facts: Json) -> Verdict:
    return Verdict("unknown", checker, reason, (), facts)


def violation(checker: str, reason: str, counterexample: Sequence[Op], **facts: Json) -> Verdict:
    shown = tuple(sorted(counterexample, key=lambda op: op.start_ns))
    return Verdict("violation", checker, reason, shown, facts)


def combine(verdicts: Sequence[Verdict], *, checker: str = "all") -> Verdict:
    """One violation makes a violation, one unknown makes unknown, and nothing at all is unknown, too.

    The reason and the counterexample are those of the violation with the smallest counterexample.
    """
    found = [each for each in verdicts if each.kind == "violation"]
    facts: dict[str, Json] = {
        kind: sum(each.kind == kind for each in verdicts) for kind in ("ok", "violation", "unknown")
    }
    if found:
        clearest = min(found, key=lambda each: len(each.counterexample) or len(found) + 1_000_000)
        return Verdict("violation", checker, f"{clearest.checker}: {clearest.reason}", clearest.counterexample, facts)
    open_ = [each for each in verdicts if each.kind == "unknown"]
    if open_:
        return Verdict("unknown", checker, f"{open_[0].checker}: {open_[0].reason}", (), facts)
    if not verdicts:
        return Verdict("unknown", checker, "nothing was checked", (), facts)
    return Verdict("ok", checker, f"all {len(verdicts)} checks passed", (), facts)
