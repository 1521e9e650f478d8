"""Taking a guard out of the core fails a named test: the suite is tested against broken cores.

Each `Guard` names a rule, the lines that obey it, the same lines without the rule, and the test that must notice. The
source of the module is patched in memory (the text must occur exactly once, so a guard that has moved is noticed),
executed, and put in the place of the real core while the test runs. The same test must pass with the core rebuilt in the
same way but unpatched, so that it is the missing guard that fails it.

To add a guard: add a row. If a row fails with "not found exactly once", the core has changed: bring the text up to date.
"""

import importlib
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import raftcache.raft.core as core
from raftcache.ids import Index, ReplicaId, Term
from raftcache.raft.messages import Append, Heartbeat, Role, VoteReply
from tests.raft import cluster as cluster_module

RAFT = Path(core.__file__).parent


@dataclass(frozen=True)
class Guard:
    """One rule of Raft and the proof that the suite would miss it."""

    rule: str
    noticed_by: str
    """`file::test`, the file below tests/raft."""
    patches: tuple[tuple[str, str], ...]
    """(what the source says, what it says without the rule)."""
    module: str = "core"
    arguments: dict[str, Any] = field(default_factory=dict)
    """What a parametrized test is called with."""


GUARDS = [
    # --- Elections ------------------------------------------------------------------------------------------------------
    Guard(
        "a vote goes only to a log that is up to date",
        "test_paper::test_voter_refuses_a_log_behind_its_own",
        (("granted = free and self.log.is_up_to_date(", "granted = free or self.log.is_up_to_date("),),
        arguments={"log": (2, 2), "last": (2, 2), "granted": False, "pre": False},
    ),
    Guard(
        "one vote in a term",
        "test_paper::test_one_vote_in_a_term_first_come_first_served",
        (("or (self.vote == NO_REPLICA and self.leader == NO_REPLICA)", "or True"),),
        arguments={"vote": 2, "candidate": 3, "granted": False},
    ),
    Guard(
        "a vote is written down",
        "test_elections::test_vote_survives_a_restart",
        (("self.vote = candidate", "pass"),),
    ),
    Guard(
        "a vote leaves only when it is durable",
        "test_ready::test_promises_wait_and_the_rest_leaves_at_once",
        (
            (
                "self._owed.messages_after_persist.append(VoteReply(candidate,",
                "self._owed.messages.append(VoteReply(candidate,",
            ),
        ),
    ),
    Guard(
        "a candidate asks only when its own vote is durable",
        "test_ready::test_vote_request_leaves_only_when_the_own_vote_is_durable",
        (
            (
                "queue = self._owed.messages if pre else self._owed.messages_after_persist",
                "queue = self._owed.messages",
            ),
        ),
    ),
    Guard(
        "the own vote counts only when durable",
        "test_elections::test_single_voter_elects_itself",
        (
            (
                "self._request_votes(term=self.term, pre=False, transfer=transfer)",
                "self._request_votes(term=self.term, pre=False, transfer=transfer)\n"
                "        self._record_vote(self.id, granted=True)",
            ),
        ),
        arguments={"pre_vote": False},
    ),
    Guard(
        "the own vote of another campaign does not count",
        "test_guards::test_own_vote_of_an_earlier_campaign",
        (("if self._campaign_write == ready.number:", "if True:"),),
    ),
    Guard(
        "a voter answers once",
        "test_elections::test_voter_that_answers_twice_counts_once",
        (("self._votes.setdefault(voter, granted)", "self._votes[voter] = granted"),),
    ),
    Guard(
        "messages of an old term are turned away",
        "test_paper::test_messages_of_an_old_term_change_nothing",
        (
            (
                "        self._answer_lower(message)\n        return False",
                "        self._answer_lower(message)\n        return True",
            ),
        ),
        arguments={"role": Role.FOLLOWER},
    ),
    Guard(
        "a newer term is adopted",
        "test_paper::test_higher_term_makes_any_role_a_follower",
        (
            (
                "                self._become_follower(message.term, message.from_)\n            case _:",
                "                pass\n            case _:",
            ),
        ),
        arguments={
            "role": Role.LEADER,
            "message": Heartbeat(ReplicaId(1), ReplicaId(2), Term(5), Index(0)),
        },
    ),
    Guard(
        "a pre-vote changes nothing at the voter",
        "test_elections::test_vote_of_a_newer_term_is_answered_in_any_role",
        (
            (
                "                if message.pre:\n                    return True",
                "                if False:\n                    return True",
            ),
        ),
        arguments={"role": Role.FOLLOWER, "pre": True},
    ),
    Guard(
        "whoever hears a leader refuses candidates",
        "test_pitfalls::test_pitfall_11_leader_cannot_be_stolen_while_it_is_heard",
        (("if not message.transfer and self._hears_a_leader():", "if False:"),),
        arguments={"pre": True, "transfer": False},
    ),
    Guard(
        "a leader without a quorum steps down",
        "test_check_quorum::test_leader_steps_down_when_a_quorum_is_silent",
        (("if self.config.check_quorum and not self._quorum_is_active():", "if False:"),),
    ),
    Guard(
        "timeouts are drawn at random",
        "test_paper::test_election_timeouts_are_spread_over_the_whole_range",
        (("self._random.randint(timeout, 2 * timeout - 1)", "timeout"),),
        arguments={"role": Role.FOLLOWER},
    ),
    Guard(
        "removed replicas and learners do not campaign",
        "test_membership::test_only_voters_campaign",
        (("        if is_voter(self.configuration, self.id):\n            return True", "        return True"),),
        arguments={"voters": (2, 3), "learners": (1,), "promotable": False},
    ),
    Guard(
        "a replica without its state does not campaign",
        "test_snapshots::test_replica_without_its_state_votes_but_does_not_campaign",
        (
            (
                "if self.log.state_lost or self.log.restoring or self.vote_floor is not None:",
                "if self.log.restoring or self.vote_floor is not None:",
            ),
        ),
    ),
    Guard(
        "in limbo a vote goes only to a log that reaches what was lost",
        "test_pitfalls::test_pitfall_38_damaged_log_votes_only_for_logs_that_reach_what_it_lost",
        (("        if granted and self.vote_floor is not None:", "        if False:"),),
    ),
    # --- Replication and commit -------------------------------------------------------------------------------------------
    Guard(
        "entries of an old term are not committed by counting",
        "test_paper::test_leader_commits_by_counting_only_in_its_own_term",
        (("if index > self.log.commit and index >= self._term_start:", "if index > self.log.commit:"),),
        arguments={"acknowledged": 3, "commit": 1},
    ),
    Guard(
        "entries of an old term are not committed by counting (Figure 8)",
        "test_guards::test_figure_8_script",
        (("if index > self.log.commit and index >= self._term_start:", "if index > self.log.commit:"),),
    ),
    Guard(
        "the consistency check",
        "test_paper::test_follower_checks_the_entry_before_and_hints_where_to_go",
        (("if log.term(previous) != message.previous_term:", "if previous > log.last_index:"),),
        arguments={"previous": (3, 1), "accepted_to": None, "hint": (2, 1)},
    ),
    Guard(
        "only a conflict truncates",
        "test_pitfalls::test_pitfall_19_late_append_does_not_truncate",
        (("            if term(entry.index) != entry.term:", "            if True:"),),
    ),
    Guard(
        "a conflict does truncate",
        "test_paper::test_follower_removes_only_what_conflicts",
        (("            if term(entry.index) != entry.term:", "            if False:"),),
        arguments={"previous": (2, 1), "terms": (3, 4), "log": (1, 3, 4)},
    ),
    Guard(
        "an acknowledgement leaves only when durable",
        "test_pitfalls::test_pitfall_21_duplicates_do_not_acknowledge_ahead_of_the_disk",
        (
            (
                "        queue = self._owed.messages_after_persist\n        if queue:",
                "        queue = self._owed.messages\n        if queue:",
            ),
        ),
    ),
    Guard(
        "the leader counts itself only when durable",
        "test_pitfalls::test_pitfall_23_leader_counts_itself_only_when_durable",
        (
            (
                "        self._replicate_due = True\n        if configuration is not None:",
                "        self._replicate_due = True\n        self.progress[self.id].maybe_update(index)\n"
                "        self._maybe_commit()\n        if configuration is not None:",
            ),
        ),
    ),
    Guard(
        "a follower commits only what is proved to match",
        "test_replication::test_follower_handles_an_append",
        (("self._commit_to(min(message.commit, matched))", "self._commit_to(min(message.commit, log.last_index))"),),
        arguments={
            "message": Append(ReplicaId(1), ReplicaId(2), Term(2), Index(1), Term(1), Index(3)),
            "accepted": True,
            "last": 3,
            "commit": 1,
        },
    ),
    Guard(
        "a heartbeat's commit index is clamped",
        "test_replication::test_heartbeat_commit_never_exceeds_what_the_follower_has",
        (("commit = min(progress.match, self.log.commit)", "commit = self.log.commit"),),
    ),
    Guard(
        "what is proved cannot be refused",
        "test_replication::test_stale_rejection_does_not_move_next_below_match",
        (("            if rejected <= self.match:\n                return False", "            pass"),),
        module="progress",
    ),
    Guard(
        "the window of unanswered messages is bounded",
        "test_progress::test_pipelined_messages_are_bounded_by_count",
        (("return len(self._window) >= self._messages_max or self._bytes >= self._bytes_max", "return False"),),
        module="progress",
    ),
    Guard(
        "a lost window is found by an empty append",
        "test_progress::test_full_window_recovers_by_heartbeats_after_loss",
        (("if progress.state is ProgressState.REPLICATE and progress.probe_due:", "if False:"),),
    ),
    Guard(
        "proposals are bounded",
        "test_pitfalls::test_pitfall_29_proposals_are_bounded_without_a_quorum",
        (("if size and self._uncommitted_bytes and", "if False and"),),
    ),
    Guard(
        "nothing is applied that is not durable here",
        "test_ready::test_committed_entries_wait_for_the_local_disk",
        (
            ("            and self.applying < self.durable\n", ""),
            ("hi = Index(min(self.commit, self.durable) + 1)", "hi = Index(self.commit + 1)"),
        ),
        module="log",
    ),
    Guard(
        "a truncated write does not count",
        "test_ready::test_truncated_write_is_not_counted_when_it_finishes",
        (("            write.reach = min(write.reach, keep)", "            pass"),),
        module="log",
    ),
    Guard(
        "an old snapshot is ignored",
        "test_snapshots::test_old_snapshot_is_ignored",
        (
            (
                "        elif meta.index > log.commit:\n            log.restore(meta)",
                "        else:\n            log.restore(meta)",
            ),
        ),
    ),
    # --- Reads ------------------------------------------------------------------------------------------------------------
    Guard(
        "no read index before the first commit of the term",
        "test_pitfalls::test_pitfall_13_read_waits_for_the_first_commit_of_the_term",
        (
            ("        if self._reads.waiting and self.committed_in_own_term():", "        if self._reads.waiting:"),
            ("or (self._reads.waiting and self.committed_in_own_term())", "or self._reads.waiting"),
        ),
    ),
    Guard(
        "a read needs a quorum's answers",
        "test_reads::test_read_waits_for_a_quorum_of_heartbeat_answers",
        (("self._reads.confirm(joint_index(incoming, outgoing))", "self._reads.confirm(newest)"),),
    ),
    Guard(
        "reads end with the leadership",
        "test_reads::test_reads_are_dropped_when_leadership_ends",
        (
            (
                "        self.checkpoint_wanted = Index(0)\n        self._drop_reads()",
                "        self.checkpoint_wanted = Index(0)",
            ),
        ),
    ),
    Guard(
        "a lease is forfeited by a transfer",
        "test_reads::test_lease_is_given_up_with_a_transfer",
        (("            self._lease_forfeited = True", "            pass"),),
    ),
    # --- Membership and transfer ------------------------------------------------------------------------------------------
    Guard(
        "one configuration change at a time",
        "test_pitfalls::test_pitfall_02_second_change_while_one_is_uncommitted",
        (
            (
                "        if self.configuration_index > self.log.commit:\n            raise",
                "        if False:\n            raise",
            ),
        ),
    ),
    Guard(
        "no configuration change before the first commit of the term",
        "test_membership::test_new_leader_refuses_changes_before_its_first_commit",
        (("        if not self.committed_in_own_term():\n            raise", "        if False:\n            raise"),),
    ),
    Guard(
        "a configuration is in force when it is appended",
        "test_membership::test_change_is_in_force_when_it_is_appended",
        (("                adopt = True", "                adopt = False"),),
    ),
    Guard(
        "a truncated configuration is rolled back",
        "test_membership::test_uncommitted_change_goes_with_its_entry",
        (("                while self._configurations[-1][0] >= entry.index:", "                while False:"),),
    ),
    Guard(
        "a joint commit needs the outgoing majority",
        "test_membership::test_joint_change_needs_both_majorities_to_commit_and_to_elect",
        (("outgoing = [progress[voter].match for voter in configuration.voters_outgoing]", "outgoing = []"),),
    ),
    Guard(
        "a joint election needs the outgoing majority",
        "test_membership::test_joint_change_needs_both_majorities_to_commit_and_to_elect",
        (
            (
                "joint_vote(self.configuration.voters, self.configuration.voters_outgoing, self._votes)",
                "joint_vote(self.configuration.voters, (), self._votes)",
            ),
        ),
    ),
    Guard(
        "a joint configuration is left",
        "test_membership::test_joint_configuration_is_left_on_its_own",
        (
            (
                "            if is_joint(self.configuration):\n                self._leave_joint()",
                "            if is_joint(self.configuration):\n                pass",
            ),
        ),
    ),
    Guard(
        "a removed leader steps down",
        "test_membership::test_removed_leader_does_not_count_itself_and_steps_down",
        (("            elif self.id not in self.configuration.voters:", "            elif False:"),),
    ),
    Guard(
        "no proposals during a transfer",
        "test_transfer::test_proposals_are_refused_while_leadership_is_handed_over",
        (
            (
                "        if self.lead_transferee != NO_REPLICA:\n            # Thesis §3.10: or",
                "        if False:\n            # Thesis §3.10: or",
            ),
        ),
    ),
    Guard(
        "a transfer is given up in time",
        "test_transfer::test_transfer_is_given_up_after_an_election_timeout",
        (("            if self._transfer_elapsed >= self.config.election_timeout_ticks:", "            if False:"),),
    ),
    Guard(
        "the successor has the whole log",
        "test_transfer::test_acknowledgement_of_less_than_everything_does_not_start_the_target",
        (("if progress is not None and progress.match == self.log.last_index:", "if progress is not None:"),),
    ),
]


@cache
def source_of(module: str) -> str:
    """The text of one module of the core."""
    return (RAFT / f"{module}.py").read_text()


def patched(module: str, patches: tuple[tuple[str, str], ...]) -> str:
    """The text with each patch applied exactly once."""
    text = source_of(module)
    for old, new in patches:
        found = text.count(old)
        assert found == 1, (
            f"{module}.py: guard not found exactly once but {found} times; bring the row up to date: {old!r}"
        )
        text = text.replace(old, new)
    return text


def executed(module: str, text: str) -> types.ModuleType:
    """A module made from a text, beside the real one."""
    made = types.ModuleType(f"raftcache.raft.{module}")
    exec(compiled(module, text), made.__dict__)
    return made


@cache
def compiled(module: str, text: str) -> types.CodeType:
    """Compiled once: most guards are compared with the same sound core."""
    return compile(text, f"<{module} of a guard test>", "exec")


def core_with(module: str, text: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A core that runs this text in place of one of its modules."""
    if module == "core":
        return executed("core", text)
    leaf = executed(module, text)
    made = executed("core", source_of("core"))
    real = importlib.import_module(f"raftcache.raft.{module}")
    for name, value in vars(leaf).items():
        if isinstance(value, type) and value.__module__ == real.__name__ and name in vars(made):
            if issubclass(value, int):
                # An enumeration must stay the one that the tests compare with, also for the leaf itself.
                setattr(leaf, name, getattr(real, name))
            else:
                monkeypatch.setattr(made, name, value)
    return made


def resolve(path: str) -> Callable[..., None]:
    """The test that `file::test` names."""
    file, name = path.split("::")
    test = getattr(importlib.import_module(f"tests.raft.{file}"), name)
    assert callable(test), path
    return test  # type: ignore[no-any-return]


def run_against(guard: Guard, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the guard's test with a core made from this text."""
    made = core_with(guard.module, text, monkeypatch)
    for name in ("Raft", "RaftConfig"):
        monkeypatch.setattr(cluster_module, name, getattr(made, name))
        monkeypatch.setattr(core, name, getattr(made, name))
    resolve(guard.noticed_by)(**guard.arguments)


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.rule.replace(" ", "-"))
def test_taking_the_guard_out_is_noticed(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the guard the test passes; without it the same test fails."""
    run_against(guard, source_of(guard.module), monkeypatch)
    without = patched(guard.module, guard.patches)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run_against(guard, without, monkeypatch)


def test_guard_that_has_moved_is_noticed() -> None:
    """A patch that does not fit the source fails, rather than proving nothing."""
    with pytest.raises(AssertionError, match="not found exactly once"):
        patched("core", (("no such line in the core", "pass"),))


def test_every_guard_names_a_test_of_its_own_rule() -> None:
    """Rules are told once, and the tests exist."""
    rules = [guard.rule for guard in GUARDS]
    assert len(rules) == len(set(rules))
    assert len(rules) >= 15
    for guard in GUARDS:
        resolve(guard.noticed_by)


# --- Tests that only the guards need -----------------------------------------------------------------------------------


def test_own_vote_of_an_earlier_campaign() -> None:
    """Two campaigns while the disk is slow: the first write's end is not the second campaign's vote."""
    shell = cluster_module.Shell(1, voters=(1, 2), pre_vote=False)
    shell.stalled = True
    shell.call("campaign")
    shell.run()
    shell.call("campaign")
    shell.run()
    assert shell.raft.term == 3
    shell.step(VoteReply(ReplicaId(1), ReplicaId(2), Term(3), granted=True))
    roles = [shell.raft.role]
    for _ in range(2):
        shell.sync(1)
        roles.append(shell.raft.role)
    assert roles == [Role.CANDIDATE, Role.CANDIDATE, Role.LEADER]


def test_figure_8_script() -> None:
    """The script of Figure 8, by its expectations alone."""
    from tests.raft.script import Script

    path = Path(__file__).parent / "scripts" / "figure_8_old_entries_are_not_committed_by_counting.txt"
    Script(path.read_text()).render()
