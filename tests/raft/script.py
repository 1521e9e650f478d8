"""The script language: scenes of Raft that read as teaching text and run as tests.

A script is a text file: `#` lines explain, other lines are commands, and below each command stands, indented, what
happened because of it, told by `narrator.py`. The runner executes the commands, renders the file anew with what really
happened, and the test compares. Positions are written (index, term).

    nodes 3 [learners 4 5] [pre_vote=no] ...     a group of voters 1..3; options go into `RaftConfig`
    log 2 = 1 1 4 4                              terms of replica 2's log; (1,1) is where every group begins; before all else
    term 2 = 7                                   ... and the term on its disk
    tick 1 [5]            tick all [5]           virtual time
    tick 1 until leader   tick all until leader  ... until somebody of a new term leads and its first entry is committed
    campaign 1                                   1 stands for election now, whatever its timeout says
    impatient 2 3                                an election timeout of silence passes for 2 and 3, but they do not campaign
    lead 1                                       1 leads the next term and everyone knows: one line instead of an election
    propose 1 x y         propose 1 x unsettled  proposals; `unsettled`: nothing is delivered before the next command
    settle                                       deliver everything
    isolate 1    cut 1 2    cut 1 -> 2    split 1 2 | 3 4 5    heal
    hold Append 1 -> 2    release                keep messages of a kind (or `all`) back; let them go
    stop holding                                 what is held stays held, later messages pass
    lose VoteReply        lose nothing           messages of a kind vanish
    lose all 1 -> 3 once log 3 = 1 2 2           ... from the moment when that is replica 3's log
    crash 2      restart 2      stall 2     unstall 2      compact 1
    add 4        change 1 + 4   change 1 + learner 4   change 1 - 2 + 5      newcomers and configuration changes
    transfer 1 -> 2
    read 1 as a
    expect leader 1 | nobody leads | role 2 follower | term 1 = 3 | commit 1 = 4 | log 1 = 1 1 2 | data 1 = x y
    expect converged | voters 1 = 1 2 3 | read a at 4 | refused NotLeader (the command before)

Everything that is sent is delivered after each command, unless it is cut, held or lost.
"""

import re
from collections.abc import Callable
from pathlib import Path

from raftcache.errors import RaftCacheError
from raftcache.ids import ReplicaId
from raftcache.raft.configuration import ConfigurationChange
from raftcache.raft.messages import Message, Role
from tests.raft.cluster import Cluster, Held, ids
from tests.raft.narrator import Narrator, configuration_words

GOLDEN_MARK = "    "


class Script:
    """One run of one script."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.narrator = Narrator()
        self.setup: dict[str, object] = {}
        self.logs: dict[int, list[int]] = {}
        self.terms: dict[int, int] = {}
        self._cluster: Cluster | None = None
        self.held: list[Held] = []
        self.lost: list[Callable[[Message], bool]] = []
        self.reads: dict[str, tuple[int, int]] = {}
        self.refused: str | None = None

    def render(self) -> str:
        """Runs the script; its text with what really happened."""
        lines: list[str] = []
        for line in self.text.splitlines():
            if line.startswith(GOLDEN_MARK):
                continue
            lines.append(line.rstrip())
            command = line.split("#")[0].strip()
            if not command:
                continue
            try:
                self.execute(command)
            except (AssertionError, KeyError, ValueError) as error:
                raise AssertionError(f"at `{command}`: {error}") from error
            lines.extend(GOLDEN_MARK + told for told in self.narrator.drain())
        return "\n".join(lines) + "\n"

    @property
    def cluster(self) -> Cluster:
        """The group, made when the first command needs it."""
        if self._cluster is None:
            size = self.setup.pop("size")
            assert isinstance(size, int), size
            self._cluster = Cluster(size, logs=self.logs, terms=self.terms, **self.setup)  # type: ignore[arg-type]
            self._cluster.group.observer = self.narrator
        return self._cluster

    def execute(self, command: str) -> None:
        """One command."""
        verb, *words = command.split()
        if verb != "expect":
            self.refused = None
        try:
            getattr(self, f"do_{verb}")(words)
        except RaftCacheError as error:
            self.refused = type(error).__name__
            self.narrator.say(f"refused: {self.refused}")
        if verb not in {"nodes", "log", "term", "expect"} and "unsettled" not in words:
            self.cluster.settle()

    # --- Commands ---------------------------------------------------------------------------------------------------

    def do_nodes(self, words: list[str]) -> None:
        size, *rest = words
        self.setup["size"] = int(size)
        learners: list[int] = []
        for word in rest:
            if "=" in word:
                name, value = word.split("=")
                self.setup[name] = {"yes": True, "no": False}.get(value) if not value.isdigit() else int(value)
            elif word != "learners":
                learners.append(int(word))
        self.setup["learners"] = learners

    def do_log(self, words: list[str]) -> None:
        number, equals, first, *terms = words
        assert (equals, first) == ("=", "1"), "every log begins with (1,1)"
        self.logs[int(number)] = [int(term) for term in terms]

    def do_term(self, words: list[str]) -> None:
        number, _, term = words
        self.terms[int(number)] = int(term)

    def do_tick(self, words: list[str]) -> None:
        who = None if words[0] == "all" else int(words[0])
        if words[1:] == ["until", "leader"]:
            term = max(shell.raft.term for shell in self.cluster.running)
            known = {(shell.id, shell.raft.term) for shell in self.cluster.leaders()}

            def new_leader() -> bool:
                found = [s for s in self.cluster.leaders() if (s.id, s.raft.term) not in known and s.raft.term >= term]
                return bool(found) and found[-1].raft.log.term(found[-1].raft.commit) == found[-1].raft.term

            self.cluster.tick_until(new_leader, only=who)
        else:
            self.cluster.tick(int(words[1]) if len(words) > 1 else 1, only=who)

    def do_campaign(self, words: list[str]) -> None:
        self.cluster[int(words[0])].call("campaign")

    def do_lead(self, words: list[str]) -> None:
        self.narrator.drain()
        leader = self.cluster.elect(int(words[0]))
        self.cluster.tick(2)
        self.narrator.drain()
        self.narrator.say(
            f"{leader.id} leads term {leader.raft.term}, everything up to {leader.raft.commit} is committed"
        )

    def do_impatient(self, words: list[str]) -> None:
        self.cluster.lose_patience(*map(int, words))

    def do_propose(self, words: list[str]) -> None:
        for data in words[1:]:
            if data != "unsettled":
                self.cluster[int(words[0])].propose(data.encode())
        if "unsettled" in words:
            self.cluster.collect()

    def do_settle(self, words: list[str]) -> None:
        pass

    def do_isolate(self, words: list[str]) -> None:
        self.cluster.isolate(*map(int, words))

    def do_cut(self, words: list[str]) -> None:
        numbers = [int(word) for word in words if word != "->"]
        self.cluster.cut(*numbers, one_way="->" in words)

    def do_split(self, words: list[str]) -> None:
        self.cluster.split(*[[int(n) for n in side.split()] for side in " ".join(words).split("|")])

    def do_heal(self, words: list[str]) -> None:
        self.cluster.heal()

    def do_hold(self, words: list[str]) -> None:
        self.held.append(self.cluster.hold(self._matcher(words)))

    def do_stop(self, words: list[str]) -> None:
        for held in self.held:
            held.active = False

    def do_release(self, words: list[str]) -> None:
        for held in self.held:
            self.cluster.release(held)
        self.held.clear()

    def do_lose(self, words: list[str]) -> None:
        if words == ["nothing"]:
            self.cluster.drops.clear()
        else:
            self.cluster.drops.append(self._matcher(words))

    def do_crash(self, words: list[str]) -> None:
        self.cluster.crash(*map(int, words))

    def do_restart(self, words: list[str]) -> None:
        self.cluster.restart(*map(int, words))

    def do_stall(self, words: list[str]) -> None:
        self.cluster.stall(*map(int, words))

    def do_unstall(self, words: list[str]) -> None:
        self.cluster.unstall(*map(int, words))

    def do_compact(self, words: list[str]) -> None:
        self.cluster[int(words[0])].compact()

    def do_add(self, words: list[str]) -> None:
        self.cluster.add(int(words[0]))

    def do_change(self, words: list[str]) -> None:
        leader, *rest = words
        parts: dict[str, list[ReplicaId]] = {"add_voters": [], "add_learners": [], "remove": []}
        target = ""
        for word in rest:
            if word in "+-":
                target = "add_voters" if word == "+" else "remove"
            elif word == "learner":
                target = "add_learners"
            else:
                parts[target].append(ReplicaId(int(word)))
        change = ConfigurationChange(**{name: ids(*numbers) for name, numbers in parts.items()})
        self.cluster[int(leader)].call("propose_configuration", change)

    def do_transfer(self, words: list[str]) -> None:
        self.cluster[int(words[0])].call("transfer_leadership", ReplicaId(int(words[2])))

    def do_read(self, words: list[str]) -> None:
        number = 1000 + len(self.reads)
        self.reads[words[2]] = (int(words[0]), number)
        self.narrator.names[number] = words[2]
        self.cluster[int(words[0])].read(number)

    # --- Expectations -----------------------------------------------------------------------------------------------

    def do_expect(self, words: list[str]) -> None:
        left, _, right = (part.strip() for part in " ".join(words).partition("="))
        what, *names = left.split()
        if what in {"term", "commit", "log", "data", "voters"}:
            self._expect_value(what, int(names[0]), right)
        elif what == "leader":
            leaders = [shell.id for shell in self.cluster.leaders()]
            assert leaders == [int(name) for name in names], f"leaders are {leaders}"
        elif what == "nobody":
            assert self.cluster.leaders() == [], self.cluster.describe()
        elif what == "role":
            assert self.cluster[int(names[0])].raft.role is Role[names[1].upper()], self.cluster.describe()
        elif what == "converged":
            self.cluster.assert_converged()
        elif what == "read":
            replica, number = self.reads[names[0]]
            states = [s.index for s in self.cluster[replica].read_states if s.context == number]
            dropped = number in self.cluster[replica].reads_dropped
            expected = [] if names[1] in {"pending", "dropped"} else [int(names[2])]
            assert (states, dropped) == (expected, names[1] == "dropped"), f"{states}, dropped: {dropped}"
        elif what == "refused":
            assert self.refused == names[0], f"refused with {self.refused}"
        else:
            raise ValueError(f"expect what? {what}")

    def _log_of(self, number: int) -> str:
        shell = self.cluster[number]
        return " ".join(map(str, [shell.written.start.term, *shell.terms()]))

    def _expect_value(self, what: str, number: int, right: str) -> None:
        shell = self.cluster[number]
        actual = {
            "term": lambda: str(shell.raft.term),
            "commit": lambda: str(shell.raft.commit),
            "log": lambda: self._log_of(number),
            "data": lambda: b" ".join(shell.data()).decode(),
            "voters": lambda: configuration_words(shell.raft.configuration).removeprefix("voters "),
        }[what]()
        assert actual == right, f"{what} of {number} is {actual}"

    def _matcher(self, words: list[str]) -> Callable[[Message], bool]:
        """`Append 1 -> 2`, `all 1 -> 2`, `VoteReply`: which messages are meant."""
        before, _, condition = " ".join(words).partition(" once log ")
        kind, *link = before.split()
        numbers = [int(word) for word in link if word != "->"]

        def matches(message: Message) -> bool:
            if kind != "all" and type(message).__name__ != kind:
                return False
            if numbers and (message.from_, message.to) != tuple(numbers):
                return False
            if condition:
                number, terms = condition.split(" = ")
                return self._log_of(int(number)) == terms
            return True

        return matches


def explanation_of(text: str) -> list[str]:
    """The leading comment of a script: what it teaches."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(re.sub("^# ?", "", line))
    return lines


def scripts() -> list[Path]:
    """All scripts, by name."""
    return sorted((Path(__file__).parent / "scripts").glob("*.txt"))
