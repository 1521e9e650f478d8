"""What a call does after each kind of failure: routing, stamps, pauses and deadlines, without a network."""

import pytest

from raftcache.client import flows, ops
from raftcache.client.course import ATTEMPT_SECONDS_MAX, PAUSE_SECONDS_MAX, Verdict, judge
from raftcache.client.errors import AmbiguousResult, ClientClosed, ConditionFailed, DeadlineExceeded
from raftcache.client.failure import Failure
from raftcache.client.results import Entry, PutResult
from raftcache.client.sessions import WINDOW, Ticket
from raftcache.errors import (
    Corruption,
    DeadlineExpired,
    IdentityMismatch,
    InvalidRequest,
    KeyTooLong,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    PermissionDenied,
    RaftCacheError,
    SessionExpired,
    SessionWindow,
    StorageFull,
    Unavailable,
    WrongShard,
    error_classes,
)
from raftcache.kv.slots import slot_of
from raftcache.v1 import kv_pb2, shard_map_pb2, types_pb2
from tests.client.scripted import Scripted, get_answer, header, lost, put_answer, refused, table

KEY1 = next(f"k{i}" for i in range(100) if slot_of(f"k{i}".encode()) < 8192)
KEY2 = next(f"k{i}" for i in range(100) if slot_of(f"k{i}".encode()) >= 8192)
"""In shard 1, and in shard 2, of a map of two."""


def get(
    script: Scripted, key: str = KEY1, *, timeout: float | None = None, consistency: str | None = None
) -> Entry | None:
    return script.run(flows.run_operation(script.core, ops.get(key), timeout, consistency))


def put(script: Scripted, key: str = KEY1, *, timeout: float | None = None) -> PutResult:
    return script.run(flows.run_operation(script.core, ops.put(key, b"v"), timeout))


def not_leader(hint: str = "") -> Failure:
    metadata = {"shard": "1"} | ({"leader_address": hint} if hint else {})
    return refused(NotLeader("not here", metadata=metadata), retry_after=0.02)


# --- Routing --------------------------------------------------------------------------------------------------------


def test_a_request_goes_to_the_leader_of_its_shard() -> None:
    """The shard map is fetched once, and each key goes where it belongs."""
    script = Scripted(get_answer(), get_answer(shard=2))
    get(script, KEY1)
    get(script, KEY2)
    assert ["a:1", "b:1"] == script.endpoints
    assert 1 == script.maps


def test_a_node_that_does_not_lead_names_the_leader_and_is_left_at_once() -> None:
    """A hint costs no pause, and is remembered."""
    script = Scripted(not_leader(hint="c:1"), get_answer(), get_answer())
    get(script)
    get(script)
    assert ["a:1", "c:1", "c:1"] == script.endpoints
    assert [] == script.pauses


def test_nodes_that_send_one_another_the_caller_are_not_asked_without_pause() -> None:
    """Only the first hint is free: two nodes may each think that the other leads."""
    script = Scripted(not_leader("b:1"), not_leader("a:1"), not_leader("b:1"), get_answer())
    get(script)
    assert ["a:1", "b:1", "a:1", "b:1"] == script.endpoints
    assert 2 == len(script.pauses)


def test_a_node_without_a_hint_is_not_taken_for_the_leader_any_more() -> None:
    """The next attempt goes to a replica, which may know."""
    script = Scripted(not_leader(), not_leader(), get_answer())
    get(script)
    assert 2 == len(script.pauses)
    assert "a:1" not in script.core.router.leaders.values()


def test_a_wrong_shard_leads_to_a_newer_map() -> None:
    """The map is fetched again, and the request goes to the shard that owns the slot now."""
    script = Scripted(refused(WrongShard("moved")), put_answer(shard=2))

    def moved(_: object) -> object:
        return table(1) if script.maps == 1 else table(2, leaders=("c:1",))

    script.table = moved
    put(script)
    assert 2 == script.maps
    assert ["a:1", "c:1"] == script.endpoints
    assert [] == script.pauses


def test_a_write_that_moves_to_another_shard_takes_that_shards_session() -> None:
    """A stamp means something in its own shard only."""
    script = Scripted(refused(WrongShard("moved")), put_answer(shard=2))
    script.table = lambda _: table(1, ("a:1", "b:1")) if script.maps == 1 else table(2, ("a:1", "b:1", "c:1", "c:1"))
    key = next(f"k{i}" for i in range(1000) if 4096 <= slot_of(f"k{i}".encode()) < 8192)
    put(script, key)
    assert [(100, 1, 1), (101, 1, 1)] == script.stamps
    sessions = script.core.sessions
    assert sessions is not None
    assert {1, 2} == {session.shard for session in sessions.idle()}, "both tickets were given back"


def test_an_answers_hint_is_where_the_next_request_goes() -> None:
    """A node that forwarded a request says where it went."""
    answer = get_answer()
    answer.header.leader_address = "c:1"
    answer.header.epoch = 1
    script = Scripted(answer, get_answer())
    get(script)
    get(script)
    assert ["a:1", "c:1"] == script.endpoints


def test_a_hint_of_a_newer_map_has_it_fetched() -> None:
    """Otherwise a client would learn of a split only by refusals."""
    answer = get_answer()
    answer.header.CopyFrom(header(leader="c:1", epoch=9))
    script = Scripted(answer, get_answer())
    get(script)
    get(script)
    assert 2 == script.maps


def test_a_node_that_does_not_answer_is_avoided_for_a_while() -> None:
    """Each call would else trip over it; after a second it gets another chance."""
    script = Scripted(lost(OutcomeUnknown("broken")), get_answer(), get_answer(), get_answer())
    get(script)
    script.core.router.leaders[1] = "a:1"
    get(script)
    assert "a:1" == script.endpoints[0]
    assert "a:1" not in script.endpoints[1:3]
    script.clock.advance_ms(1_500)
    script.core.router.leaders[1] = "a:1"
    get(script)
    assert "a:1" == script.endpoints[3]


def test_when_no_node_answers_all_are_asked_in_turn() -> None:
    """There is always somebody to ask, and no call gives up before its time."""
    never = [refused_connection() for _ in range(40)]
    script = Scripted(*never, sessions=False)
    with pytest.raises(DeadlineExceeded) as raised:
        put(script, timeout=2.0)
    assert {"a:1", "b:1", "c:1"} == set(script.endpoints)
    assert raised.value.definite
    assert raised.value.attempts > 5
    assert 1.0 <= raised.value.elapsed <= 2.0


def refused_connection() -> Failure:
    return Failure(Unavailable("cannot connect"), definite=True, again=True, unreachable=True)


def test_in_gateway_mode_everything_goes_to_one_endpoint() -> None:
    """Nodes' own addresses may lead nowhere from behind a load balancer."""
    script = Scripted(get_answer(), get_answer(shard=2), put_answer(), routing="gateway")
    get(script, KEY1)
    get(script, KEY2)
    put(script)
    assert 1 == len(set(script.endpoints))


def test_in_gateway_mode_without_sessions_no_map_is_needed() -> None:
    """The smallest client there is: one endpoint, one request."""
    script = Scripted(put_answer(), routing="gateway", sessions=False)
    put(script)
    assert 0 == script.maps


def test_a_stale_read_asks_any_replica() -> None:
    """That is what makes it cheap, and possible without a leader."""
    script = Scripted(*[get_answer() for _ in range(30)])
    for _ in range(30):
        get(script, consistency="stale")
    assert {"a:1", "b:1", "c:1"} == set(script.endpoints)
    assert types_pb2.CONSISTENCY_STALE == script.calls[0].message.consistency
    assert "a:1" == script.core.router.leaders[1], "an answer to a stale read does not say who leads"


def test_a_cluster_without_shards_is_not_there_yet() -> None:
    """`init` may be a moment away: the call waits for it, and says so at the end."""
    script = Scripted()
    script.table = shard_map_pb2.ShardMapResponse(epoch=0)
    with pytest.raises(DeadlineExceeded, match="raftcache init") as raised:
        get(script)
    assert isinstance(raised.value.__cause__, Unavailable)


def test_endpoints_of_two_clusters_are_noticed() -> None:
    """One of them would be given the other's keys."""
    script = Scripted(get_answer(), refused(WrongShard("moved")))
    get(script)
    script.table = table(cluster=8)
    with pytest.raises(IdentityMismatch):
        get(script)


# --- Retries of reads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        refused(Unavailable("no leader"), retry_after=0.2),
        refused(Overloaded("full"), retry_after=0.1),
        lost(OutcomeUnknown("broken")),
        lost(Corruption("damage")),
        Failure(DeadlineExpired("late"), definite=True, again=True),
    ],
)
def test_a_read_is_repeated_after_whatever_may_pass(failure: Failure) -> None:
    """A read has no effect, so that it may always be sent again."""
    script = Scripted(failure, failure, get_answer())
    assert get(script) is not None
    assert 3 == len(script.calls)


@pytest.mark.parametrize("error", [InvalidRequest("no"), KeyTooLong("no"), PermissionDenied("no")])
def test_what_will_never_succeed_is_not_repeated(error: RaftCacheError) -> None:
    """The error is the server's, with the facts of the call."""
    script = Scripted(refused(error))
    with pytest.raises(type(error)) as raised:
        get(script)
    assert ("a:1", 1, 1) == (raised.value.node, raised.value.attempts, raised.value.shard)


def test_pauses_grow_with_jitter_and_stay_bounded() -> None:
    """From 10 to 500 ms; clients that failed together do not come back together."""
    script = Scripted(*[refused(Unavailable("no leader")) for _ in range(60)], get_answer())
    get(script, timeout=60)
    assert max(script.pauses) <= PAUSE_SECONDS_MAX
    assert script.pauses[0] <= 0.01
    assert max(script.pauses) > 0.2
    assert len(set(script.pauses)) == len(script.pauses)


def test_the_servers_advice_is_a_lower_bound() -> None:
    """RetryInfo says when it makes sense."""
    script = Scripted(refused(Overloaded("full"), retry_after=0.1), get_answer())
    get(script)
    assert script.pauses[0] >= 0.1


def test_advice_beyond_the_deadline_ends_the_call_at_once() -> None:
    """A full disk will not be emptied within this call."""
    script = Scripted(refused(StorageFull("full"), retry_after=5.0))
    with pytest.raises(StorageFull) as raised:
        put(script, timeout=4.0)
    assert [] == script.pauses
    assert 1 == raised.value.attempts


def test_a_silent_node_does_not_use_up_the_callers_time() -> None:
    """One attempt of what may be repeated has a part of the time only."""
    script = Scripted(lost(OutcomeUnknown("silence"), timed_out=True), get_answer())
    get(script, timeout=5.0)
    assert ATTEMPT_SECONDS_MAX == script.calls[0].seconds
    assert script.calls[1].seconds == ATTEMPT_SECONDS_MAX
    assert "a:1" == script.endpoints[0] != script.endpoints[1]


def test_an_impatient_caller_learns_nothing_about_the_node() -> None:
    """20 ms without an answer are no reason to avoid it."""
    script = Scripted(lost(OutcomeUnknown("silence"), timed_out=True), get_answer())
    with pytest.raises(DeadlineExceeded):
        get(script, timeout=0.02)
    get(script)
    assert ["a:1", "a:1"] == script.endpoints


# --- Retries of writes ----------------------------------------------------------------------------------------------


def test_a_lost_write_is_repeated_with_the_same_stamp() -> None:
    """The shard applies it once, whatever became of the first copy."""
    script = Scripted(lost(OutcomeUnknown("broken")), lost(OutcomeUnknown("silence"), timed_out=True), put_answer())
    put(script)
    assert [(100, 1, 1)] * 3 == script.stamps


def test_writes_are_numbered_and_acknowledged() -> None:
    """The next write says that the answers below it have come."""
    script = Scripted(put_answer(), put_answer(), put_answer())
    for _ in range(3):
        put(script)
    assert [(100, 1, 1), (100, 2, 2), (100, 3, 3)] == script.stamps


def test_a_session_that_is_gone_at_the_first_attempt_is_replaced() -> None:
    """Nothing was applied, so that the write goes on under a new session."""
    expired = Failure(SessionExpired("gone"), definite=True, again=False)
    script = Scripted(put_answer(), expired, put_answer())
    put(script)
    put(script)
    assert [(100, 1, 1), (100, 2, 2), (101, 1, 1)] == script.stamps


def test_a_session_that_is_gone_after_a_lost_attempt_is_ambiguous() -> None:
    """The first attempt may have been applied, and its answer forgotten with the session."""
    expired = Failure(SessionExpired("gone"), definite=True, again=False)
    script = Scripted(lost(OutcomeUnknown("broken")), expired)
    with pytest.raises(AmbiguousResult) as raised:
        put(script)
    assert (1, 2, False) == (raised.value.shard, raised.value.attempts, raised.value.definite)
    assert isinstance(raised.value.__cause__, SessionExpired)


def test_a_session_that_is_gone_after_refusals_alone_is_replaced() -> None:
    """A repetition is not ambiguous by itself: nothing was lost."""
    expired = Failure(SessionExpired("gone"), definite=True, again=False)
    script = Scripted(not_leader("b:1"), expired, put_answer())
    put(script)
    assert [(100, 1, 1), (100, 1, 1), (101, 1, 1)] == script.stamps


def test_a_full_window_of_the_shard_is_waited_for() -> None:
    """`limits.session_window` may be set lower than this client knows."""
    window = Failure(SessionWindow("full"), definite=True, again=True)
    script = Scripted(window, put_answer())
    put(script)
    assert [(100, 1, 1)] * 2 == script.stamps
    assert 1 == len(script.pauses)


def test_without_a_session_a_lost_write_is_ambiguous_at_once() -> None:
    """To send it again could apply it twice."""
    script = Scripted(lost(OutcomeUnknown("broken")), sessions=False)
    with pytest.raises(AmbiguousResult) as raised:
        put(script)
    assert 1 == len(script.calls)
    assert isinstance(raised.value, RaftCacheError)
    assert ("a:1", 1, 1) == (raised.value.node, raised.value.shard, raised.value.attempts)


def test_without_a_session_a_refused_write_is_repeated() -> None:
    """A definite refusal is safe to repeat, session or not."""
    script = Scripted(refused_connection(), not_leader("c:1"), put_answer(), sessions=False)
    put(script)
    assert 3 == len(script.calls)


def test_without_a_session_a_write_has_all_the_time_there_is() -> None:
    """Cutting an attempt short would make an outcome unknown that was about to be told."""
    script = Scripted(put_answer(), sessions=False)
    put(script, timeout=5.0)
    assert script.calls[0].seconds > 4.9


def test_a_write_that_was_never_answered_is_ambiguous_at_the_deadline() -> None:
    """It may be applied by now, or later."""
    script = Scripted(*[lost(OutcomeUnknown("silence"), timed_out=True) for _ in range(9)])
    with pytest.raises(AmbiguousResult) as raised:
        put(script, timeout=5.0)
    assert raised.value.elapsed >= 4.5


def test_a_write_whose_last_attempts_were_refused_stays_ambiguous() -> None:
    """A refusal speaks for its own attempt, not for the lost one before it."""
    script = Scripted(lost(OutcomeUnknown("broken")), *[refused(Unavailable("no leader"), 0.2) for _ in range(60)])
    with pytest.raises(AmbiguousResult):
        put(script)


def test_a_read_that_was_never_answered_exceeded_its_deadline() -> None:
    """It had no effect, which is definite."""
    script = Scripted(*[lost(OutcomeUnknown("silence"), timed_out=True) for _ in range(9)])
    with pytest.raises(DeadlineExceeded) as raised:
        get(script, timeout=5.0)
    assert raised.value.definite


def test_no_time_at_all_is_exceeded_before_anything_is_sent() -> None:
    """A deadline of zero is one that has passed."""
    script = Scripted()
    with pytest.raises(DeadlineExceeded):
        put(script, timeout=0)
    assert [] == script.calls


def test_a_move_after_a_lost_attempt_is_ambiguous() -> None:
    """The slot may have moved after the lost attempt was applied, and the new shard knows nothing of the stamp."""
    script = Scripted(lost(OutcomeUnknown("broken")), refused(WrongShard("moved")))
    with pytest.raises(AmbiguousResult):
        put(script)


def test_the_state_machines_refusal_settles_a_lost_attempt() -> None:
    """It is the kept reply of the first attempt: both were refused, or neither."""
    invalid = refused(InvalidRequest("not a number"))
    script = Scripted(lost(OutcomeUnknown("broken")), invalid)
    with pytest.raises(InvalidRequest):
        put(script)


def test_another_refusal_does_not_settle_a_lost_attempt() -> None:
    """A limit may be lower on the node that is asked second."""
    script = Scripted(lost(OutcomeUnknown("broken")), refused(KeyTooLong("no")))
    with pytest.raises(AmbiguousResult):
        put(script)


def test_an_error_that_may_hide_a_bug_is_told_and_not_repeated() -> None:
    """INTERNAL is no weather that passes; what it did is not known."""
    bug = Failure(RaftCacheError("bug"), definite=False, again=False)
    script = Scripted(bug)
    with pytest.raises(AmbiguousResult):
        put(script)
    script = Scripted(bug)
    with pytest.raises(RaftCacheError):
        get(script)


def test_a_condition_that_does_not_hold_shows_what_is_stored() -> None:
    """It is an answer, and raised as an error with the entry."""
    answer = kv_pb2.PutResponse(header=header(), succeeded=False)
    answer.current.CopyFrom(get_answer(b"other").entry)
    script = Scripted(answer)
    with pytest.raises(ConditionFailed) as raised:
        put(script)
    assert raised.value.current is not None
    assert (b"other", 1, "a:1") == (raised.value.current.value, raised.value.attempts, raised.value.node)


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("stamped", [False, True])
def test_no_verdict_repeats_a_lost_write_without_its_stamp(stamped: bool, unknown: bool) -> None:
    """Exactly-once in one line: over all errors, an unsettled write never goes out under another stamp or none."""
    for definite in (False, True):
        for again in (False, True):
            for cls in error_classes().values():
                failure = Failure(cls("x"), definite=definite, again=again)
                verdict = judge(failure, writes=True, stamped=stamped, unknown=unknown)
                lost_now = unknown or not definite
                if lost_now:
                    allowed = {Verdict.AGAIN, Verdict.AMBIGUOUS, Verdict.REFUSED}
                    assert verdict in allowed, (cls, definite, again)
                if not stamped and not definite:
                    assert verdict is Verdict.AMBIGUOUS, (cls, again)
                if verdict is Verdict.REFUSED and lost_now:
                    assert cls is InvalidRequest


# --- Sessions -------------------------------------------------------------------------------------------------------


def test_a_full_window_is_waited_for_and_goes_on() -> None:
    """The window is the shard's; who finds it full waits for an answer to others."""
    script = Scripted(put_answer())
    sessions = script.core.sessions
    assert sessions is not None
    assert sessions.take(1) is None
    sessions.opened(1, 100)
    first, *_ = [sessions.take(1) for _ in range(WINDOW)]
    assert isinstance(first, Ticket)
    script.on_wait = lambda: sessions.give_back(first)
    put(script)
    assert [(100, WINDOW + 1, 2)] == script.stamps


def test_a_window_that_stays_full_ends_with_the_deadline() -> None:
    """Nothing was sent: definite."""
    script = Scripted()
    sessions = script.core.sessions
    assert sessions is not None
    assert sessions.take(1) is None
    sessions.opened(1, 100)
    for _ in range(WINDOW):
        sessions.take(1)
    with pytest.raises(DeadlineExceeded, match="window"):
        put(script)
    assert [] == script.calls


def test_a_session_that_cannot_be_opened_is_tried_again() -> None:
    """A session opened unheard is one that nobody uses: the write itself was not sent."""
    script = Scripted(put_answer())
    opened = kv_pb2.OpenSessionResponse(header=header(), session=55)
    answers = [lost(OutcomeUnknown("broken")), refused(Unavailable("no leader")), opened]
    script.open_session = lambda _: answers.pop(0)
    put(script)
    assert [(55, 1, 1)] == script.stamps


def test_who_may_not_open_a_session_is_told_so() -> None:
    """A refusal is not taken for weather."""
    script = Scripted()
    script.open_session = refused(PermissionDenied("no"))
    with pytest.raises(PermissionDenied):
        put(script)


def test_an_abandoned_write_gives_its_number_back() -> None:
    """A cancelled task must not hold the window for ever."""
    script = Scripted()
    flow = flows.run_operation(script.core, ops.put(KEY1, b"v"), None)
    step = flow.send(None)
    while not hasattr(step, "message") or not isinstance(step.message, kv_pb2.PutRequest):
        step = flow.send(script.do(step))
    sessions = script.core.sessions
    assert sessions is not None
    assert [] == sessions.idle()
    flow.close()
    assert 1 == len(sessions.idle())


# --- Closing --------------------------------------------------------------------------------------------------------


def test_a_closed_client_refuses() -> None:
    """Before anything is sent."""
    script = Scripted()
    script.core.closed = True
    with pytest.raises(ClientClosed):
        get(script)


def test_a_write_under_way_when_the_client_is_closed_is_ambiguous() -> None:
    """Its connection was cut in the middle; a read is only told that the client is closed."""
    script = Scripted()

    def close(_: object) -> Failure:
        script.core.closed = True
        return lost(OutcomeUnknown("cancelled"))

    script.answers = [close]
    with pytest.raises(AmbiguousResult):
        put(script)
    script = Scripted()
    script.answers = [close]
    with pytest.raises(ClientClosed):
        get(script)


def test_idle_sessions_are_closed_and_a_cluster_that_does_not_answer_is_not_waited_for() -> None:
    """Goodbyes are a courtesy."""
    script = Scripted(put_answer(), put_answer(shard=2))
    put(script, KEY1)
    put(script, KEY2)
    sessions = script.core.sessions
    assert sessions is not None
    script.answers = [kv_pb2.CloseSessionResponse(), lost(OutcomeUnknown("broken"))]
    script.run(flows.close_sessions(script.core, sessions.idle()))
    assert [100, 101] == [call.message.session for call in script.calls[2:]]


# --- Scans ----------------------------------------------------------------------------------------------------------


def page(keys: list[str], token: bytes = b"") -> kv_pb2.ScanResponse:
    response = kv_pb2.ScanResponse(headers=[header()], count=len(keys), next_page_token=token)
    for key in keys:
        response.entries.add(key=key.encode(), version=1)
    return response


def all_of(script: Scripted, **options: object) -> list[bytes]:
    settings = {"limit": None, "keys_only": False, "count_only": False, "consistency": None, "timeout": None} | options
    scan = flows.Scan(script.core, b"a", b"z", **settings)  # type: ignore[arg-type]
    found = []
    while not scan.done:
        found += [entry.key for entry in script.run(scan.page())]
    return found


def test_a_scan_follows_its_tokens() -> None:
    """An empty page is not the end; a page without a token is. A page is repeated like any read."""
    script = Scripted(page(["a", "b"], b"t1"), page([], b"t2"), refused(Unavailable("x")), page(["c"]))
    assert [b"a", b"b", b"c"] == all_of(script)
    tokens = [call.message.page_token for call in script.calls]
    assert [b"", b"t1", b"t2", b"t2"] == tokens


def test_a_limited_scan_asks_for_no_more_than_it_needs() -> None:
    """The limit is on the whole, not on a page."""
    script = Scripted(page(["a", "b"], b"t1"), page(["c"], b"t2"))
    assert [b"a", b"b", b"c"] == all_of(script, limit=3)
    assert [3, 1] == [call.message.limit for call in script.calls]
    assert [] == all_of(Scripted(), limit=0)
