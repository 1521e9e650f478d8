"""`docs/properties.md` is true: every test it names exists, and no property of the list below is left out.

The names are those of etcd-io/raft's own tests, as the shortest shared vocabulary for the properties of a Raft core; the
pitfalls are numbers of the project's list. Files are parsed, not imported: the check costs nothing and cannot be fooled by
a name that only exists at run time.
"""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "properties.md"

SOURCES = {
    "The paper, section by section": """
        FollowerUpdateTermFromMessage CandidateUpdateTermFromMessage LeaderUpdateTermFromMessage RejectStaleTermMessage
        StartAsFollower LeaderBcastBeat FollowerStartElection CandidateStartNewElection LeaderElectionInOneRoundRPC
        FollowerVote CandidateFallback FollowerElectionTimeoutRandomized CandidateElectionTimeoutRandomized
        FollowersElectionTimeoutNonconflict CandidatesElectionTimeoutNonconflict LeaderStartReplication
        LeaderCommitEntry LeaderAcknowledgeCommit LeaderCommitPrecedingEntries FollowerCommitEntry FollowerCheckMsgApp
        FollowerAppendEntries LeaderSyncFollowerLog VoteRequest Voter LeaderOnlyCommitsLogFromCurrentTerm
    """,
    "Progress and flow control": """
        ProgressLeader ProgressResumeByHeartbeatResp ProgressPaused ProgressFlowControl SendAppendForProgressProbe
        SendAppendForProgressReplicate SendAppendForProgressSnapshot LeaderIncreaseNext MsgAppRespWaitReset
        RecvMsgUnreachable UncommittedEntryLimit MsgAppFlowControlFull MsgAppFlowControlMoveForward
        MsgAppFlowControlRecvHeartbeat
    """,
    "Elections": """
        LeaderElection LeaderElectionPreVote LeaderCycle LeaderCyclePreVote LeaderElectionOverwriteNewerLogs
        LeaderElectionOverwriteNewerLogsPreVote VoteFromAnyState PreVoteFromAnyState DuelingCandidates
        DuelingPreCandidates CandidateConcede SingleNodeCandidate SingleNodePreCandidate RecvMsgVote RecvMsgPreVote
        StateTransition AllServerStepdown CandidateResetTermMsgHeartbeat CandidateResetTermMsgApp PastElectionTimeout
        CampaignWhileLeader PreCampaignWhileLeader CandidateSelfVoteAfterLostElection
        CandidateSelfVoteAfterLostElectionPreVote CandidateDeliversPreCandidateSelfVoteAfterBecomingCandidate
        LeaderMsgAppSelfAckAfterTermChange
    """,
    "Replication and commit": """
        LogReplication SingleNodeCommit CannotCommitWithoutNewTermEntry CommitWithoutNewTermEntry OldMessages Proposal
        ProposalByProxy Commit HandleMsgApp HandleHeartbeat HandleHeartbeatResp LeaderAppResp BcastBeat RecvMsgBeat
        StepIgnoreOldTermMsg FastLogRejection LogReplicationWithReorderedMessage CommitAfterRemoveNode
    """,
    "Check-quorum, lease, disruption": """
        LeaderStepdownWhenQuorumActive LeaderStepdownWhenQuorumLost LeaderSupersedingWithCheckQuorum
        LeaderElectionWithCheckQuorum FreeStuckCandidateWithCheckQuorum NonPromotableVoterWithCheckQuorum
        DisruptiveFollower DisruptiveFollowerPreVote NodeWithSmallerTermCanCompleteElection PreVoteWithSplitVote
        PreVoteWithCheckQuorum PreVoteMigrationCanCompleteElection PreVoteMigrationWithFreeStuckPreCandidate
    """,
    "Reads": """
        ReadOnlyOptionSafe ReadOnlyWithLearner ReadOnlyOptionLease ReadOnlyForNewLeader ReadOnlyDuplicateRequest
        RaftFreesReadOnlyMem ReadIndexToOldLeader
    """,
    "Snapshots": """
        Restore RestoreWithLearner RestoreWithVotersOutgoing RestoreVoterToLearner RestoreLearnerPromotion
        LearnerReceiveSnapshot RestoreIgnoreSnapshot ProvideSnap IgnoreProvidingSnap RestoreFromSnapMsg SlowNodeRestore
        SendingSnapshotSetPendingSnapshot PendingSnapshotPauseReplication SnapshotFailure SnapshotSucceed SnapshotAbort
    """,
    "Membership": """
        StepConfig StepIgnoreConfig NewLeaderPendingConfig AddNode AddLearner AddNodeCheckQuorum RemoveNode
        RemoveLearner Promotable RaftNodes ConfChangeCheckBeforeCampaign ConfChangeV2CheckBeforeCampaign
        LearnerElectionTimeout LearnerPromotion LearnerCanVote LearnerLogReplication LearnerCampaign
        ProposeAndConfChange JointAutoLeave ProposeAddDuplicateNode confchange_quick confchange_restore
    """,
    "Leadership transfer": """
        LeaderTransferToUpToDateNode LeaderTransferToUpToDateNodeFromFollower LeaderTransferToSlowFollower
        LeaderTransferToSelf LeaderTransferToNonExistingNode LeaderTransferWithCheckQuorum LeaderTransferAfterSnapshot
        LeaderTransferTimeout LeaderTransferIgnoreProposal LeaderTransferReceiveHigherTermVote LeaderTransferRemoveNode
        LeaderTransferDemoteNode LeaderTransferBack LeaderTransferSecondTransferToAnotherNode
        LeaderTransferSecondTransferToSameNode TransferNonMember
    """,
    "The contract of `Ready`": """
        Start Restart RestartFromSnapshot Status CommitPaginationAfterRestart BoundedLogGrowthWithPartition ConsumeReady
        NodeAppend NodeAppendWithAsyncStorageWrites CommitPagination CommitPaginationWithAsyncStorageWrites Advance
        ProposeWaitDropped DisableProposalForwarding
    """,
    "Log, progress, quorum: the leaves at their boundaries": """
        log_test log_unstable_test storage_test progress_test inflights_test quorum_quick
    """,
}
"""Heading of the document -> the properties that its table must map."""

PITFALLS = 45
TEST_NAME = re.compile(r"`(tests/[\w/.-]+\.py)::(\w+)`")


def sections() -> dict[str, str]:
    """The document by its headings."""
    parts = re.split(r"^## (.+)$", DOCUMENT.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows of a text, without heads and rules."""
    found = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in found if not set(row[0].strip()) <= {"-", ":"}][1:]


@cache
def names_in(path: str) -> frozenset[str]:
    """The names of all tests that a file defines, as functions, methods, classes or assigned test cases."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name.startswith("test_"):
                found.add(name)
            case ast.ClassDef(name=name) if name.startswith("Test"):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) if name.startswith("Test"):
                found.add(name)
    return frozenset(found)


def test_every_named_test_exists() -> None:
    """No row promises a test that is not there."""
    named = TEST_NAME.findall(DOCUMENT.read_text())
    assert len(named) > 200
    missing = [f"{path}::{name}" for path, name in named if not (ROOT / path).exists() or name not in names_in(path)]
    assert missing == []


def test_every_property_of_the_source_list_is_mapped() -> None:
    """Each table maps all properties of its theme, invents none, and every row names a test."""
    found = sections()
    for theme, listed in SOURCES.items():
        expected = {name.replace("_quick", " quick").replace("_restore", " restore") for name in listed.split()}
        table = rows(found[theme])
        mapped = {name.strip() for row in table for name in row[1].split(",")} - {""}
        assert mapped == expected, f"{theme}: missing {expected - mapped}, unknown {mapped - expected}"
        for row in table:
            assert TEST_NAME.search(row[2]), f"{theme}: no test for {row[0]}"
            assert len(row[0]) > 15, f"{theme}: say the property: {row[0]}"


def test_every_pitfall_is_mapped() -> None:
    """Each number stands in the core's table, or in the table of those that other layers hold, or in both."""
    found = sections()
    here = rows(found["Known pitfalls in the core's reach"])
    elsewhere = rows(found["Pitfalls tested elsewhere"])
    assert {int(row[0]) for row in here} | {int(row[0]) for row in elsewhere} == set(range(1, PITFALLS + 1))
    for row in here:
        assert TEST_NAME.search(row[2]), f"no test for pitfall {row[0]}"
    for row in elsewhere:
        assert TEST_NAME.search(row[3]), f"no test for pitfall {row[0]}"
        assert "*later*" not in row[3] or len(row[3].partition("*later*: ")[2]) > 15, (
            f"pitfall {row[0]}: what comes later?"
        )


def test_every_pitfall_test_is_listed_under_its_number() -> None:
    """A test named after a pitfall stands in the row of that pitfall."""
    here = {int(row[0]): row[2] for row in rows(sections()["Known pitfalls in the core's reach"])}
    for name in names_in("tests/raft/test_pitfalls.py"):
        number = int(name.split("_")[2])
        assert f"::{name}`" in here[number], f"{name} is not in row {number}"


def test_every_theme_test_is_listed() -> None:
    """No test of the themes is without its property in the document."""
    named = {name for _, name in TEST_NAME.findall(DOCUMENT.read_text())}
    themes = "paper progress elections replication check_quorum reads snapshots membership transfer ready log_tables"
    for theme in themes.split():
        assert names_in(f"tests/raft/test_{theme}.py") <= named, names_in(f"tests/raft/test_{theme}.py") - named


def test_check_notices_a_test_that_does_not_exist() -> None:
    """The parser finds what is there and nothing else."""
    assert "test_every_named_test_exists" in names_in("tests/raft/test_properties_doc.py")
    assert "test_that_nobody_wrote" not in names_in("tests/raft/test_properties_doc.py")
    assert TEST_NAME.findall("`tests/raft/test_paper.py::test_x`") == [("tests/raft/test_paper.py", "test_x")]
