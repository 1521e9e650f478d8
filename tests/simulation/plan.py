"""What one seed will do: rates, settings and the script of its faults, all drawn before anything runs.

Rules of this file:
- a plan is data. The same seed draws the same plan, and a plan can be run in part: that is what shrinks a failure;
- *swarm*: each kind of fault and each unusual setting is on in some seeds and off in others, and its rate is the seed's.
  Faults that are all on at once hide each other's bugs;
- *legal but rare* choices ("buggify") need no hook in the product: its settings go down to one command per entry and one
  message in flight, its random numbers are injected (`Extremes` draws their ends), its ticks come when the world says so,
  and some faults here are calls that are legal at any moment (a campaign, a checkpoint, a state that is given up).

Faults that nobody promises to survive are kept within their budget: bits flip on one node at most, and what a flip may do
to that node is stated in `faults.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from raftcache.node.settings import MS, EngineSettings

SAFETY_MS = 8_000
"""Simulated time under faults."""
ENDS = ("kill", "cut", "torn")
"""How a node ends: kill -9 (nothing is lost), a power cut (all that was not synced), one that tears (a random part)."""
PROMISES = ("VoteReply", "AppendReply", "RequestVote", "Append", "InstallSnapshot", "TimeoutNow")
"""Messages after which a node may be made to end at once."""


class Extremes(random.Random):
    """A source of random numbers that prefers the ends of a range: rare choices become usual, and stay legal."""

    def randint(self, a: int, b: int) -> int:
        luck = self.random()
        return a if luck < 0.3 else b if luck < 0.4 else super().randint(a, b)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, at one moment."""

    at_ms: int
    kind: str
    node: int = 0
    """The node concerned; 0: all of them, or none in particular."""
    to: int = 0
    """The other node, where there are two."""
    for_ms: int = 0
    how: str = ""
    number: int = 0
    """What `kind` makes of it: a random number to choose by, operations to wait, milliseconds to jump."""

    def __str__(self) -> str:
        who = f" n{self.node}" if self.node else ""
        other = f"->n{self.to}" if self.to else ""
        rest = [self.how] if self.how else []
        if self.for_ms:
            rest.append(f"for {self.for_ms} ms")
        if self.number:
            rest.append(f"[{self.number}]")
        return f"{self.at_ms:6} ms  {self.kind}{who}{other} {' '.join(rest)}".rstrip()


@dataclass(frozen=True, slots=True)
class Plan:
    """See the module."""

    seed: int
    nodes: int
    """First members. Replicas of all shards are on the first three of them."""
    spares: int
    """Nodes that wait to be taken in."""
    shards: int
    loss: float
    duplicate: float
    delay_ms_max: int
    reorder: bool
    """Messages overtake each other, as they never do on one connection."""
    sync_ms_max: int
    """A sync in its thread takes up to this long."""
    turn_us_max: int
    """How late a node's loop may be with what was asked for "soon"; 0: never."""
    slow_node_ticks: int
    """Per cent by which the first node's ticks are longer than they should be."""
    operate_every_ms: int
    """How often the operator does something; 0: there is none."""
    clients: int
    client_timeout_ms: int
    """After which a client leaves an operation without an answer, and goes on through another node."""
    faithful: bool
    """Clients stay with a node as long as it answers, deposed or not; else each operation goes through any."""
    counters: int
    pause_ms_max: int
    """Between two operations of a client."""
    reads: float
    """Share of reads among what the clients do."""
    value_bytes_max: int
    """Values have up to this many bytes more than they need: what is torn must be longer than a sector."""
    extremes: bool
    left_out: str
    """What becomes of the minority that is not healed in the liveness phase: it stays "down", "cut" off, or is "none"."""
    one_at_a_time: bool
    """What takes a node away for a while does not happen while another is away: a majority goes on, and the one that comes
    back has missed something."""
    flips_node: int
    """The node whose files bits flip in; 0: none. At most one, so that the others hold what it loses."""
    settings: EngineSettings
    faults: tuple[Fault, ...] = ()
    safety_ms: int = SAFETY_MS

    def only(self, chosen: list[int]) -> Plan:
        """The same plan with these of its faults."""
        return replace(self, faults=tuple(self.faults[place] for place in sorted(set(chosen))))


@dataclass(slots=True)
class _Script:
    """Draws the moments of one kind of fault after the other."""

    draw: random.Random
    safety_ms: int
    faults: list[Fault] = field(default_factory=list)

    def every(self, mean_ms: int, make: Callable[[int], Fault]) -> None:
        if not mean_ms:
            return
        at_ms = self.draw.randrange(2 * mean_ms)
        while at_ms < self.safety_ms:
            self.faults.append(make(at_ms))
            at_ms += 1 + self.draw.randrange(2 * mean_ms)


def draw_plan(seed: int, *, safety_ms: int = SAFETY_MS) -> Plan:
    """The plan of a seed."""
    draw = random.Random(f"plan {seed}")
    operated = draw.random() < 0.6
    spares = draw.choice([1, 2]) if operated else 0
    nodes = 3
    delay_ms_max = draw.choice([1, 1, 10, 100, 400])
    sync_ms_max = draw.choice([2, 20, 100, 500])
    flips = not operated and draw.random() < 0.45
    plan = Plan(
        seed=seed,
        nodes=nodes,
        spares=spares,
        shards=draw.choice([1, 2, 2, 3]),
        loss=draw.choice([0.0, 0.0, 0.01, 0.05, 0.2]),
        duplicate=draw.choice([0.0, 0.0, 0.02, 0.2]),
        delay_ms_max=delay_ms_max,
        reorder=draw.random() < 0.4,
        sync_ms_max=sync_ms_max,
        turn_us_max=draw.choice([0, 0, 1_000, 20_000]),
        slow_node_ticks=draw.choice([0, 0, 5, 20]),
        operate_every_ms=draw.choice([150, 600]) if operated else 0,
        clients=draw.choice([2, 4, 6]),
        client_timeout_ms=draw.choice([400, 1_000, 3_000]),
        faithful=draw.random() < 0.5,
        counters=draw.choice([1, 3]),
        pause_ms_max=draw.choice([5, 40, 120]),
        reads=draw.choice([0.2, 0.5, 0.8]),
        value_bytes_max=draw.choice([1, 700, 6_000]),
        extremes=draw.random() < 0.5,
        left_out=draw.choice(["down", "cut", "cut", "none"]),
        one_at_a_time=draw.random() < 0.6,
        flips_node=draw.randint(1, nodes) if flips else 0,
        settings=_settings(draw, slow=max(delay_ms_max, sync_ms_max) > 200),
        safety_ms=safety_ms,
    )
    return replace(plan, faults=_faults(plan, draw))


def _settings(draw: random.Random, *, slow: bool) -> EngineSettings:
    patience_ns = draw.choice([300, 1_000]) * MS
    # A timeout that no round trip keeps within elects nobody: the operator's mistake, and a seed without commands.
    election_timeout_ticks = 10 if slow else draw.choice([5, 5, 10])
    return EngineSettings(
        patience_ns=patience_ns,
        election_timeout_ticks=election_timeout_ticks,
        heartbeat_ticks=election_timeout_ticks // 5,
        log_bytes_per_checkpoint=draw.choice([2_000, 20_000, 1 << 20]),
        trailing_log_bytes=draw.choice([0, 1_000]),
        log_bytes_max=draw.choice([200 << 10, 1 << 30]),
        commit_commands_max=draw.choice([1, 7, 1000]),
        commit_interval_ns=draw.choice([1, 500]) * MS,
        batches_in_flight_max=draw.choice([1, 2, 4]),
        read_rounds_in_flight_max=draw.choice([1, 1, 3]),
        entry_commands_max=draw.choice([1, 3, 100]),
        sync_inline_below_ns=draw.choice([-1, -1, 1_000_000]),
        append_bytes_max=draw.choice([1, 200, 1 << 20]),
        inflight_messages_max=draw.choice([1, 3, 256]),
        committed_bytes_per_ready=draw.choice([1, 500, 4 << 20]),
        uncommitted_bytes_max=draw.choice([500, 64 << 20]),
        reads_pending_max=draw.choice([2, 1024]),
        snapshots_out_max=draw.choice([1, 2]),
        learner_lag_entries_max=draw.choice([0, 64]),
        push_commits=draw.choice([True, False]),
    )


def _faults(plan: Plan, draw: random.Random) -> tuple[Fault, ...]:
    script = _Script(draw, plan.safety_ms)
    last = plan.nodes + plan.spares

    def node() -> int:
        return draw.randint(1, last)

    def pair() -> tuple[int, int]:
        a, b = draw.sample(range(1, last + 1), 2)
        return a, b

    calm = draw.choice([0.5, 0.7, 0.85])
    """Of the kinds of fault, how many are off in this seed: a cluster that never gets anything done proves little."""

    def rate(*means_ms: int) -> int:
        return 0 if draw.random() < calm else draw.choice(means_ms)

    def down() -> int:
        return draw.choice([10, 200, 1_000, 3_000])

    ends = draw.sample(ENDS, draw.randint(1, 3))

    def end() -> str:
        return draw.choice(ends)

    def linked(at_ms: int, kind: str, for_ms: int, number: int = 0) -> Fault:
        a, b = pair()
        return Fault(at_ms, kind, a, b, for_ms, number=number)

    # Ends of processes and machines.
    script.every(rate(500, 2_000, 5_000), lambda t: Fault(t, "crash", node(), for_ms=down(), how=end()))
    script.every(rate(4_000, 8_000), lambda t: Fault(t, "crash all", for_ms=down(), how=end()))
    script.every(
        rate(500, 2_000),
        lambda t: Fault(t, "crash at write", node(), for_ms=down(), how=end(), number=draw.randrange(8)),
    )
    script.every(
        rate(500, 2_000),
        lambda t: Fault(
            t, f"crash on {draw.choice(PROMISES)}", node(), for_ms=down(), how=end(), number=draw.randrange(3)
        ),
    )
    # Disks.
    script.every(rate(3_000, 8_000), lambda t: Fault(t, "failed sync", node()))
    script.every(
        rate(6_000), lambda t: Fault(t, "failed call", node(), how=draw.choice(["pwrite", "pread", "rename", "create"]))
    )
    script.every(
        rate(2_000, 6_000),
        lambda t: Fault(t, "full disk", node(), for_ms=draw.choice([200, 2_000]), number=draw.choice([0, 50_000])),
    )
    script.every(rate(2_000, 6_000), lambda t: Fault(t, "slow disk", node(), for_ms=draw.choice([100, 1_000, 3_000])))
    if plan.flips_node:
        what = ["checkpoint", "checkpoint", "hard state"]
        script.every(
            3_000,
            lambda t: Fault(t, "flip", plan.flips_node, how=draw.choice(what), number=draw.getrandbits(30)),
        )
        if draw.random() < 0.9:
            # Damage to the log ends the node for good where it is found, and that is where the log is read again.
            at_ms = draw.randrange(plan.safety_ms // 2, plan.safety_ms - 1_000)
            script.faults += [
                Fault(at_ms, "flip", plan.flips_node, how="log", number=draw.getrandbits(30)),
                Fault(at_ms + draw.randrange(1_000), "crash", plan.flips_node, for_ms=down(), how=end()),
            ]
    # The network.
    script.every(rate(1_000, 4_000), lambda t: Fault(t, "isolate", node(), for_ms=draw.choice([300, 1_500, 4_000])))
    script.every(rate(1_000, 4_000), lambda t: linked(t, "cut", draw.choice([300, 1_500, 4_000])))
    script.every(rate(1_000, 4_000), lambda t: linked(t, "cut one way", draw.choice([300, 1_500, 4_000])))
    script.every(
        rate(2_000), lambda t: linked(t, "slow link", draw.choice([300, 2_000]), number=draw.choice([50, 500, 2_000]))
    )
    # Whoever leads: what happens to leaders tells more than what happens to others.
    script.every(
        rate(1_000, 3_000),
        lambda t: Fault(t, "isolate leader", for_ms=draw.choice([700, 1_500, 3_000]), number=draw.getrandbits(8)),
    )
    script.every(
        draw.choice([0, 2_500, 2_500, 5_000]),
        lambda t: Fault(
            t,
            "pause leader",
            # Long enough for another to be elected and to commit; seldom enough that there is another.
            for_ms=draw.choice([1_500, 3_000, 4_500, 4_500]),
            # Cut off as well, it wakes up and does not hear that it was replaced.
            how=draw.choice(["", "cut", "cut"]),
            number=draw.getrandbits(8),
        ),
    )
    script.every(
        rate(1_000, 3_000),
        lambda t: Fault(t, "crash leader", for_ms=down(), how=end(), number=draw.getrandbits(8)),
    )
    if plan.operate_every_ms:
        # A change of membership that its leader alone has: the next one truncates it.
        script.every(
            draw.choice([0, 1_000, 2_000]),
            lambda t: Fault(t, "isolate on change", for_ms=draw.choice([2_000, 3_500])),
        )
    # Processes and clocks.
    script.every(rate(2_000, 6_000), lambda t: Fault(t, "pause", node(), for_ms=draw.choice([150, 1_200, 3_000])))
    script.every(
        rate(1_000, 4_000),
        lambda t: Fault(t, "clock", node(), number=draw.choice([-3_600_000, -5_000, 5_000, 3_600_000])),
    )
    # Legal at any moment.
    script.every(rate(1_000, 4_000), lambda t: Fault(t, "campaign", node(), number=draw.getrandbits(8)))
    script.every(rate(1_000, 4_000), lambda t: Fault(t, "checkpoint", node(), number=draw.getrandbits(8)))
    script.every(rate(1_000, 4_000), lambda t: Fault(t, "lose state", node(), number=draw.getrandbits(8)))
    script.every(rate(1_000, 4_000), lambda t: Fault(t, "disconnect", node(), number=draw.getrandbits(8)))
    script.every(rate(2_000), lambda t: Fault(t, "transfer", node(), number=draw.getrandbits(8)))
    return tuple(sorted(script.faults, key=lambda fault: (fault.at_ms, str(fault))))
