"""Tells in sentences what happens in a group: the golden lines of the scripts.

A line states what a replica did and the facts it did it on. Positions are written (index, term). What happens at every
heartbeat (heartbeats themselves, acknowledgements, applying) is left out: the lines tell a story, not a packet dump.

The reasons are worked out here, from the observations and the paper, and not asked of the core: where the core decides
otherwise than the sentence claims, the golden does not match.
"""

from typing import Any

from raftcache.ids import NO_REPLICA, Index, ReplicaId, Term
from raftcache.raft.configuration import decode_configuration
from raftcache.raft.messages import (
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    InstallSnapshot,
    Message,
    Ready,
    RequestVote,
    Role,
    TimeoutNow,
    VoteReply,
)
from tests.raft.cluster import Shell
from tests.raft.invariants import State


def position(index: int, term: int | None) -> str:
    """(index, term), the way the scripts write it."""
    return f"({index},{term if term is not None else '?'})"


def configuration_words(configuration: Configuration) -> str:
    """Who votes and who learns, in words."""
    words = "voters " + " ".join(map(str, configuration.voters))
    if configuration.voters_outgoing:
        words += " jointly with " + " ".join(map(str, configuration.voters_outgoing))
    if configuration.learners:
        words += ", learners " + " ".join(map(str, configuration.learners))
    if configuration.learners_next:
        words += ", soon learners " + " ".join(map(str, configuration.learners_next))
    return words


def entry_words(item: Entry) -> str:
    """One entry as a reader wants to see it."""
    match item.kind:
        case EntryKind.COMMANDS:
            return f"{position(item.index, item.term)} {item.data.decode()}"
        case EntryKind.EMPTY:
            return f"{position(item.index, item.term)} empty"
        case EntryKind.CONFIGURATION:
            return f"{position(item.index, item.term)} {configuration_words(decode_configuration(item.data))}"


class Narrator:
    """Collects the lines of one command; `drain` hands them out."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[int, str] = {}
        """Reads by their number, as the script calls them."""
        self._reasons: dict[tuple[ReplicaId, ReplicaId, Term, bool], str] = {}
        self._unanswered: dict[tuple[ReplicaId, ReplicaId], tuple[ReplicaId, ReplicaId, ReplicaId | None]] = {}
        """Voters that were asked and have not said anything, with the leader whom they follow."""

    def say(self, line: str) -> None:
        """One more sentence."""
        self.lines.append(line)

    def drain(self) -> list[str]:
        """The sentences since the last call."""
        for voter, candidate, reason in self._unanswered.values():
            if reason is not None:
                why = "it leads" if reason == voter else f"it heard leader {reason}"
                self.say(f"{voter} gave {candidate} no answer: {why}")
        self._unanswered.clear()
        lines, self.lines = self.lines, []
        return lines

    # --- Observer ---------------------------------------------------------------------------------------------------

    def called(self, shell: Shell, name: str, argument: Any, before: State, after: State) -> None:
        """A call into a core: role, term, leader, commit, configuration and hand-over changes."""
        if isinstance(argument, RequestVote) and name == "step":
            key = (shell.id, argument.from_, argument.term, argument.pre)
            self._reasons[key] = self._voting_reason(before, argument)
            follows = before.leader if before.leader != NO_REPLICA and not argument.transfer else None
            self._unanswered[shell.id, argument.from_] = (shell.id, argument.from_, None if shell.stalled else follows)
        self._tell_role(shell, name, argument, before, after)
        if after.commit > before.commit:
            self._tell_commit(shell, before, after)
        if after.configuration != before.configuration and name != "persisted":
            back = "returns to" if after.configuration_index < before.configuration_index else "acts under"
            self.say(f"{shell.id} {back} {configuration_words(after.configuration)}")
        if after.transferee != before.transferee:
            if after.transferee != NO_REPLICA:
                self.say(
                    f"{shell.id} prepares to hand leadership to {after.transferee} and takes no proposals meanwhile"
                )
            elif after.role is Role.LEADER:
                self.say(f"{shell.id} gives up handing leadership to {before.transferee}")

    def taken(self, shell: Shell, ready: Ready) -> None:
        """A `Ready`: what goes to disk, and what may be read."""
        if ready.snapshot is not None:
            self.say(f"{shell.id} installs the snapshot at {position(ready.snapshot.index, ready.snapshot.term)}")
        if ready.entries:
            first = ready.entries[0].index
            removed = [item for item in shell.written.entries if item.index >= first]
            if removed and ready.snapshot is None:
                words = " ".join(position(item.index, item.term) for item in removed)
                self.say(f"{shell.id} removes {words}: the leader has another entry at {first}")
            tail = ", not yet on disk" if shell.stalled else ""
            self.say(f"{shell.id} writes {', '.join(map(entry_words, ready.entries))}{tail}")
        for state in ready.read_states:
            self.say(f"{shell.id} may serve read {self._name(state.context)} once {state.index} is applied")
        for context in ready.reads_dropped:
            self.say(f"{shell.id} drops read {self._name(context)}")

    def sent(self, shell: Shell, message: Message) -> None:
        """A message leaves: votes, refusals, snapshots, the word to stand."""
        match message:
            case VoteReply():
                self._unanswered.pop((shell.id, message.to), None)
                reason = self._reasons.get((shell.id, message.to, message.term, message.pre))
                if reason is None:
                    # A refusal carries the voter's own term; find the question it answers.
                    asked = [
                        key for key in self._reasons if key[:2] == (shell.id, message.to) and key[3] == message.pre
                    ]
                    reason = self._reasons[asked[-1]] if asked else "?"
                verb = {
                    (True, False): "grants its vote to",
                    (True, True): "would vote for",
                    (False, False): "refuses its vote to",
                    (False, True): "would not vote for",
                }[message.granted, message.pre]
                self.say(f"{shell.id} {verb} {message.to} in term {message.term}: {reason}")
            case AppendReply(rejected=True):
                self.say(
                    f"{shell.id} refuses entries after index {message.index}; it points {message.to} to "
                    f"{position(message.hint_index, message.hint_term)}"
                )
            case InstallSnapshot():
                self.say(
                    f"{shell.id} sends {message.to} the snapshot at {position(message.meta.index, message.meta.term)}: "
                    f"its own log begins at {shell.log.first_index()}"
                )
            case TimeoutNow():
                self.say(f"{shell.id} tells {message.to} to stand at once")
            case _:
                pass

    # --- Sentences --------------------------------------------------------------------------------------------------

    def _name(self, number: int) -> str:
        return self.names.get(number, str(number))

    def _voting_reason(self, voter: State, request: RequestVote) -> str:
        """Why the paper lets this voter say yes or no."""
        mine, theirs = (voter.last_term, voter.last_index), (request.last_term, request.last_index)
        if request.term < voter.term:
            return f"its term {voter.term} is newer"
        if request.term == voter.term and voter.vote not in (NO_REPLICA, request.from_):
            return f"it has voted for {voter.vote}"
        if request.term == voter.term and voter.vote == NO_REPLICA and voter.leader != NO_REPLICA:
            return f"the term has leader {voter.leader}"
        if mine > theirs:
            return (
                f"its log ends at {position(voter.last_index, voter.last_term)}, beyond "
                f"{position(request.last_index, request.last_term)}"
            )
        return f"log up to date {position(request.last_index, request.last_term)}"

    def _tell_role(self, shell: Shell, name: str, argument: Any, before: State, after: State) -> None:
        me, end = shell.id, position(after.last_index, after.last_term)
        sender = getattr(argument, "from_", None)
        match before.role, after.role:
            case _, Role.PRE_CANDIDATE if before.role is not Role.PRE_CANDIDATE:
                why = "has heard from no leader for too long" if name == "tick" else "is asked to campaign"
                self.say(f"{me} {why}: would the others elect it in term {after.term + 1}? Its log ends at {end}")
            case _, Role.CANDIDATE if (before.role, before.term) != (after.role, after.term):
                why = f" because {sender} says so" if isinstance(argument, TimeoutNow) else ""
                self.say(f"{me} stands for election in term {after.term}{why}, and votes for itself")
            case _, Role.LEADER if before.role is not Role.LEADER:
                self.say(f"{me} leads term {after.term}")
            case Role.LEADER, Role.FOLLOWER:
                if after.term > before.term:
                    why = f"{sender} is in term {after.term}"
                elif me not in after.configuration.voters and not after.configuration.voters_outgoing:
                    why = "it is a voter no more"
                else:
                    why = "no majority has answered for an election timeout"
                self.say(f"{me} steps down from term {before.term}: {why}")
            case ((Role.CANDIDATE | Role.PRE_CANDIDATE), Role.FOLLOWER):
                if after.leader != NO_REPLICA:
                    why = f"{after.leader} leads term {after.term}"
                elif after.term > before.term:
                    why = f"{sender} is in term {after.term}"
                else:
                    why = "a majority refuses"
                self.say(f"{me} gives up its candidacy: {why}")
            case Role.FOLLOWER, Role.FOLLOWER:
                if after.leader not in (before.leader, NO_REPLICA):
                    self.say(f"{me} follows {after.leader} in term {after.term}")
                elif after.term > before.term:
                    self.say(f"{me} moves on to term {after.term}")
            case _:
                pass

    def _tell_commit(self, shell: Shell, before: State, after: State) -> None:
        if before.role is not Role.LEADER:
            self.say(f"{shell.id} learns that all up to {after.commit} is committed")
            return
        term = shell.raft.log.term(after.commit)
        assert term is not None, f"{shell.id} commits {after.commit} without knowing its term"
        # The configuration of before: with this commit the leader may have moved on to the next one.
        halves = [before.configuration.voters, before.configuration.voters_outgoing]
        shells = shell.group.shells
        holders = [
            member
            for member in sorted({*halves[0], *halves[1]})
            if member in shells and shells[member].durable().holds(Index(after.commit), term)
        ]
        electorate = " and of ".join(" ".join(map(str, half)) for half in halves if half)
        self.say(
            f"{shell.id} commits up to {after.commit}: on the disks of {' '.join(map(str, holders))}, voters are {electorate}"
        )
