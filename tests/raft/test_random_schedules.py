"""Random schedules: everything that can go wrong, in random order, with every invariant after every step.

Each run is one seed. It has two phases: *safety*, in which messages are lost, repeated and reordered, disks stall, replicas
crash and members change; then *liveness*, in which everything heals and the group must converge soon.

A failing seed prints itself; replay it with `pytest "tests/raft/test_random_schedules.py::...[seed]"`. A bug found here gets
a named test of its own.
"""

import random
from typing import Any

import pytest

from raftcache.errors import RaftCacheError
from raftcache.ids import ReplicaId
from raftcache.raft.configuration import ConfigurationChange, members_of
from raftcache.raft.messages import InstallSnapshot, Role
from tests.raft.cluster import Cluster, ids

SEEDS = 40
STEPS = 2_000
REPLICAS_MAX = 8
"""Replica ids are never reused; after this many the membership no longer grows."""
LIVENESS_TICKS_MAX = 300
"""Thirty election timeouts: far beyond what a healed group needs."""
MODES: list[dict[str, Any]] = [
    {},
    {"pre_vote": False},
    {"check_quorum": False},
    {"pre_vote": False, "check_quorum": False},
    {"append_bytes_max": 8, "inflight_messages_max": 2, "committed_bytes_max_per_ready": 8},
    {"lease_reads": True},
    {"heartbeat_ticks": 3},
    {"uncommitted_bytes_max": 30, "inflight_bytes_max": 10},
]


class Schedule:
    """One seeded run."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.cluster = Cluster(self.random.choice([1, 2, 3, 3, 3, 4, 5]), seed=seed, **MODES[seed % len(MODES)])
        self.proposed = 0
        self.reads = 0
        # Swarm: each run has its own mix of faults, so that some runs are gentle and some brutal.
        self.loss = self.random.choice([0.0, 0.02, 0.2])
        self.repeat = self.random.choice([0.0, 0.05])
        self.reorder = self.random.choice([0.0, 0.3, 1.0])
        self.crashes = self.random.choice([0, 1, 2])
        self.stalls = self.random.choice([0, 1, 2])
        self.changes = self.random.choice([0, 2, 4])
        self.ticks = self.random.choice([8, 25])

    def run(self) -> None:
        """Both phases."""
        # Deliveries outnumber everything, so that between two faults there is time for something to fail at.
        actions = [
            *[self.deliver] * 200,
            *[self.tick] * self.ticks,
            *[self.propose] * 15,
            *[self.read] * 6,
            *[self.partition] * 1,
            *[self.heal] * 3,
            *[self.crash] * self.crashes,
            *[self.restart] * (4 * self.crashes),
            *[self.stall] * self.stalls,
            *[self.unstall] * (4 * self.stalls),
            *[self.change] * self.changes,
            *[self.compact] * 3,
            self.transfer,
            self.campaign,
            self.lose_state,
            self.unreachable,
        ]
        for _ in range(STEPS):
            self.random.choice(actions)()
        self.converge()

    # --- Actions ----------------------------------------------------------------------------------------------------

    def some(self, role: Role | None = None):  # type: ignore[no-untyped-def]
        """A running replica (in a role, if there is one)."""
        running = [s for s in self.cluster.running if role is None or s.raft.role is role] or self.cluster.running
        return self.random.choice(running) if running else None

    def deliver(self) -> None:
        cluster = self.cluster
        if not cluster.queue:
            return
        position = self.random.randrange(len(cluster.queue)) if self.random.random() < self.reorder else 0
        if self.random.random() < self.loss:
            message = cluster.queue[position]
            del cluster.queue[position]
            cluster._lost(message)
            return
        if self.random.random() < self.repeat and not isinstance(cluster.queue[position], InstallSnapshot):
            cluster.queue.append(cluster.queue[position])
        cluster.deliver_next(position)

    def tick(self) -> None:
        if self.random.random() < 0.7:
            shells = self.cluster.running
        else:
            shells = [shell for shell in [self.some()] if shell]
        for shell in shells:
            shell.tick()
            self.cluster.post(shell.run())

    def propose(self) -> None:
        shell = self.some(Role.LEADER)
        if shell is None:
            return
        self.proposed += 1
        self.attempt(shell, "propose", b"%d" % self.proposed)

    def attempt(self, shell, name: str, *arguments: object) -> None:  # type: ignore[no-untyped-def]
        try:
            shell.call(name, *arguments)
        except RaftCacheError as error:
            assert error.definite
        self.cluster.post(shell.run())

    def read(self) -> None:
        shell = self.some()
        if shell is None:
            return
        self.reads += 1
        if self.cluster.options.get("lease_reads"):
            # By ticks that run apart the lease is not safe; the shell's clock is what makes it so.
            self.attempt(shell, "read_index", self.reads)
            return
        shell.reads_asked[self.reads] = self.cluster.group.ghost.commit_max
        self.attempt(shell, "read_index", self.reads)

    def partition(self) -> None:
        numbers = [shell.id for shell in self.cluster.shells]
        left, right = self.random.choice(numbers), self.random.choice(numbers)
        if left == right:
            self.cluster.isolate(left)
        else:
            self.cluster.cut(left, right, one_way=self.random.random() < 0.5)

    def heal(self) -> None:
        self.cluster.heal()

    def crash(self) -> None:
        shell = self.some()
        if shell is not None:
            shell.crash(reached_the_disk=self.random.randrange(3))

    def restart(self) -> None:
        down = [shell for shell in self.cluster.shells if not shell.running]
        if down:
            self.random.choice(down).restart()

    def stall(self) -> None:
        shell = self.some()
        if shell is not None:
            shell.stalled = True

    def unstall(self) -> None:
        shell = self.some()
        if shell is None:
            return
        if self.random.random() < 0.5 and shell.pending:
            shell.sync(1)
        else:
            shell.stalled = False
            shell.sync()
        self.cluster.post(shell.run())

    def change(self) -> None:
        shell = self.some(Role.LEADER)
        if shell is None or shell.raft.role is not Role.LEADER:
            return
        members = list(members_of(shell.raft.configuration))
        strangers = [n for n in range(1, REPLICAS_MAX + 1) if ReplicaId(n) not in self.cluster.group.shells]
        voters: list[int] = []
        learners: list[int] = []
        remove: list[int] = []
        for number in [*self.random.sample(members, self.random.randrange(min(3, len(members)))), *strangers[:2]]:
            self.random.choice([voters, learners, remove, []]).append(number)
        change = ConfigurationChange(ids(*voters), ids(*learners), ids(*[n for n in remove if n in members]))
        try:
            shell.call("propose_configuration", change)
        except RaftCacheError as error:
            assert error.definite
            return
        for number in [*voters, *learners]:
            if number in strangers:
                self.cluster.add(number)
        self.cluster.post(shell.run())

    def compact(self) -> None:
        shell = self.some()
        if shell is not None and not shell.pending and not shell.raft.snapshot_wanted:
            shell.checkpoint()
            index = shell.image.checkpoint.meta.index
            shell.compact(self.random.choice([index, max(shell.image.start.index, index - 3)]))

    def transfer(self) -> None:
        shell = self.some(Role.LEADER)
        if shell is not None:
            target = self.random.choice([other.id for other in self.cluster.shells])
            self.attempt(shell, "transfer_leadership", target)

    def campaign(self) -> None:
        shell = self.some()
        if shell is not None and self.random.random() < 0.3:
            self.attempt(shell, "campaign")

    def lose_state(self) -> None:
        shell = self.some()
        if shell is not None and self.random.random() < 0.2 and len(self.cluster.running) > 2:
            if any(other.raft.snapshot_wanted for other in self.cluster.running):
                return
            shell.to_apply.clear()
            self.attempt(shell, "request_snapshot", shell.log.first_index() - 1)

    def unreachable(self) -> None:
        shell = self.some(Role.LEADER)
        if shell is not None:
            shell.call("report_unreachable", self.random.choice([other.id for other in self.cluster.shells]))
            self.cluster.post(shell.run())

    # --- Liveness ---------------------------------------------------------------------------------------------------

    def converge(self) -> None:
        """Everything works again: soon there is a leader, and every member has the same log and state."""
        cluster = self.cluster
        cluster.heal()
        for shell in cluster.shells:
            if not shell.running:
                shell.restart()
        configurations = [shell.raft.configuration for shell in cluster.shells]
        smallest = min(len(half) for c in configurations for half in (c.voters, c.voters_outgoing) if half)
        for shell in cluster.shells:
            if shell.raft.snapshot_wanted and smallest < 3:
                # Of two voters, one without its state but with the longer log: neither can win (it must not campaign, the
                # other has too little). The operator's way out is to bring the state back.
                shell.crash()
                shell.restart()
        cluster.unstall(*[shell.id for shell in cluster.running])

        def converged() -> bool:
            leaders = cluster.leaders()
            if not leaders:
                return False
            leader = leaders[-1]
            for shell in cluster.running:
                if shell.raft.snapshot_wanted and leader.raft.checkpoint_wanted:
                    leader.checkpoint()
            if leader.raft.checkpoint_wanted:
                leader.checkpoint()
            members = [cluster[member] for member in members_of(leader.raft.configuration)]
            return (
                not leader.raft.configuration.voters_outgoing
                and leader.raft.lead_transferee == 0
                and leader.raft.committed_in_own_term()
                and all(
                    (shell.raft.commit, shell.raft.applied, shell.raft.last_index)
                    == (leader.raft.last_index, leader.raft.last_index, leader.raft.last_index)
                    for shell in members
                )
            )

        cluster.tick_until(converged, ticks_max=LIVENESS_TICKS_MAX)
        leader = cluster.leader()
        cluster.propose(leader.id, b"the end")
        cluster.tick_until(converged, ticks_max=LIVENESS_TICKS_MAX)
        for member in members_of(leader.raft.configuration):
            assert cluster[member].data() == leader.data()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_schedule_keeps_every_promise_and_converges(seed: int) -> None:
    """Whatever happens in whatever order, no invariant breaks, and a healed group converges."""
    Schedule(seed).run()
