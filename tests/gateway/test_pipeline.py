"""The stream of batches: its window, its order, and how it ends. Without a front."""

import pytest

from raftcache.clock import NS_PER_MS, ManualClock
from raftcache.edge.front import NO_DEADLINE, Refusal
from raftcache.gateway.gateway import GatewaySettings
from raftcache.gateway.kv_service import KvService
from raftcache.gateway.pipeline import Pipeline
from raftcache.v1 import kv_pb2
from tests.gateway.memory_node import MemoryNode, call_of, slow_key
from tests.gateway.test_errors import details_of
from tests.gateway.test_kv_service import get_item, put_item

SETTINGS = GatewaySettings(
    batch_operations_max=10,
    batch_bytes_max=10_000,
    pipeline_batches_max=3,
    pipeline_operations_max=20,
    pipeline_bytes_max=20_000,
)


class Client:
    """The front's and the client's side of one stream."""

    def __init__(self, node: MemoryNode, *, deadline_ns: int = NO_DEADLINE) -> None:
        self.node = node
        self.received: list[kv_pb2.PipelineResponse] = []
        self.ends: list[Refusal | None] = []
        self.resumed = 0
        self.reads = True
        """Whether the client takes what is sent."""
        self.stream: Pipeline = KvService(node.gateway(SETTINGS)).open(
            call_of("Pipeline", b"", deadline_ns=deadline_ns), self
        )

    def send(self, messages: list[bytes]) -> None:
        assert not self.ends, "nothing is sent behind the end"
        self.received += [kv_pb2.PipelineResponse.FromString(message) for message in messages]
        if self.reads:
            self.stream.sent(len(messages))

    def finish(self, refusal: Refusal | None) -> None:
        self.ends.append(refusal)

    def resume(self) -> None:
        assert self.stream.reading
        self.resumed += 1

    def request(self, number: int, *operations: kv_pb2.Operation, timeout_ms: int = 0) -> None:
        message = kv_pb2.PipelineRequest(request_id=number, operations=operations, timeout_ms=timeout_ms)
        self.stream.receive([message.SerializeToString()])

    @property
    def answered(self) -> list[int]:
        return [response.request_id for response in self.received]


@pytest.fixture
def client() -> Client:
    return Client(MemoryNode())


def test_batches_are_answered_under_their_ids(client: Client) -> None:
    """Each batch has its own answer, with a result for each operation."""
    client.request(7, put_item(b"a", b"1"), get_item(b"a"))
    client.request(8)
    assert [7, 8] == client.answered
    assert b"1" == client.received[0].results[1].get.entry.value


def test_answers_come_as_they_are_ready(client: Client) -> None:
    """A batch that waits does not hold up a later one on other keys."""
    client.node.hold = True
    client.request(1, put_item(b"a", b"1"), get_item(b"a"))
    client.request(2, put_item(b"foo", b"1"))
    client.node.release()
    assert [2] == client.answered, "the read of `a` waits for the write of `a`"
    client.node.release()
    assert [2, 1] == client.answered


def test_operations_on_one_key_act_in_the_order_sent(client: Client) -> None:
    """Over several batches in flight, reads see exactly the writes that were sent before them."""
    client.node.hold = True
    client.request(1, put_item(b"k", b"1"))
    client.request(2, get_item(b"k"), put_item(b"k", b"2"))
    client.request(3, put_item(b"k", b"3"), get_item(b"k"))
    while client.node.held:
        client.node.release()
    found = {
        response.request_id: [r.get.entry.value for r in response.results if r.HasField("get")]
        for response in client.received
    }
    assert {1: [], 2: [b"1"], 3: [b"3"]} == found


def test_reading_stops_while_the_window_is_full(client: Client) -> None:
    """At so many batches unanswered the front is told to stop, and to go on when one is answered."""
    client.node.hold = True
    for number in range(3):
        assert client.stream.reading
        client.request(number, put_item(b"%d" % number, b"v"))
    assert not client.stream.reading
    assert 0 == client.resumed
    client.node.release(1)
    assert (True, 1) == (client.stream.reading, client.resumed)


def test_operations_and_bytes_fill_the_window_too(client: Client) -> None:
    """Few large batches fill it as many small ones do."""
    client.node.hold = True
    client.request(1, *[put_item(b"a%d" % number, b"v") for number in range(10)])
    assert client.stream.reading
    client.request(2, *[put_item(b"b%d" % number, b"v") for number in range(10)])
    assert not client.stream.reading
    client.node.release()
    assert client.stream.reading
    client.request(3, put_item(b"c", bytes(9_900)))
    client.request(4, put_item(b"d", bytes(9_900)))
    assert client.stream.reading
    client.request(5, put_item(b"e", bytes(9_900)))
    assert not client.stream.reading


def test_a_client_that_does_not_read_is_not_read_from(client: Client) -> None:
    """Answers that the transport has not taken count against the window."""
    client.reads = False
    for number in range(3):
        client.request(number, put_item(b"k", b"v"))
    assert [0, 1, 2] == client.answered
    assert not client.stream.reading
    client.stream.sent(1)
    assert (True, 1) == (client.stream.reading, client.resumed)


def test_large_answers_that_nobody_reads_fill_the_window(client: Client) -> None:
    """A small request may have a large answer: a client that asks for much and reads nothing is not read from."""
    for number in range(3):
        client.request(number, put_item(b"k%d" % number, bytes(9_000)))
    client.reads = False
    client.request(3, *[get_item(b"k%d" % number) for number in range(3)])
    assert not client.stream.reading
    client.stream.sent(1)
    assert (True, 1) == (client.stream.reading, client.resumed)


def test_a_refused_batch_does_not_end_the_stream(client: Client) -> None:
    """A batch beyond the limits gets one error, definite, and the next is served."""
    client.request(1, *[put_item(b"k", b"v")] * 11)
    client.request(2, put_item(b"k", bytes(10_001)))
    client.request(3, put_item(b"k", b"v"))
    assert ["BATCH_TOO_LARGE", "BATCH_TOO_LARGE", ""] == [response.error.reason for response in client.received]
    assert client.received[0].error.definite
    assert [] == client.ends
    assert 1 == len(client.node.requests)


def test_timeouts_of_batches_become_deadlines() -> None:
    """A batch's deadline is its own timeout, else the default, and never later than the stream's."""
    node = MemoryNode(clock=ManualClock(monotonic_ns=0))
    client = Client(node, deadline_ns=5_000 * NS_PER_MS)
    client.request(1, put_item(b"a", b"1"), timeout_ms=250)
    client.request(2, put_item(b"b", b"1"))
    assert [250, 5_000] == [request.deadline_ns // NS_PER_MS for request in node.requests]
    assert isinstance(node.clock, ManualClock)
    node.clock.advance_ms(5_000)
    client.request(3, put_item(b"c", b"1"))
    assert "DEADLINE_EXPIRED" == client.received[2].error.reason
    assert 2 == len(node.requests)


def test_half_close_ends_the_stream_when_all_is_answered(client: Client) -> None:
    """What is in flight when the client stops sending is answered, then the stream ends with success."""
    client.node.hold = True
    client.request(1, put_item(b"a", b"1"))
    client.stream.half_close()
    assert [] == client.ends
    client.node.release()
    assert ([1], [None]) == (client.answered, client.ends)


def test_half_close_of_an_idle_stream_ends_it(client: Client) -> None:
    """Nothing in flight, nothing to wait for."""
    client.stream.half_close()
    assert [None] == client.ends


def test_a_stopping_server_answers_what_it_read(client: Client) -> None:
    """Drain: what was read is answered, what comes later is not, and the status says that it had no effect."""
    client.node.hold = True
    client.request(1, put_item(b"a", b"1"))
    client.stream.drain()
    assert not client.stream.reading
    client.request(2, put_item(b"b", b"1"))
    assert 1 == len(client.node.requests)
    client.node.release()
    assert [1] == client.answered
    (end,) = client.ends
    assert end is not None
    info = details_of(end.details)[1]["ErrorInfo"]
    assert ("UNAVAILABLE", "true") == (info.reason, info.metadata["definite"])  # type: ignore[attr-defined]


def test_a_message_that_is_no_batch_ends_the_stream(client: Client) -> None:
    """Bytes that do not parse have no id to be answered under; what was read before them is answered first."""
    client.node.hold = True
    client.request(1, put_item(b"a", b"1"))
    client.stream.receive([b"\xff\xff"])
    assert [] == client.ends
    client.node.release()
    assert [1] == client.answered
    (end,) = client.ends
    assert end is not None
    assert "INVALID_REQUEST" == details_of(end.details)[1]["ErrorInfo"].reason  # type: ignore[attr-defined]


def test_nothing_is_sent_after_a_cancel(client: Client) -> None:
    """When the client is gone, late replies are dropped and what waited is never handed to the node."""
    client.node.hold = True
    client.request(1, put_item(b"a", b"1"), get_item(b"a"))
    client.stream.cancel()
    client.stream.cancel()
    client.node.release()
    assert ([], []) == (client.received, client.ends)
    assert 1 == len(client.node.requests)


@pytest.mark.parametrize("given_up", [False, True])
def test_answers_of_unfinished_batches_close_the_window(given_up: bool) -> None:
    """One operation that waits holds the answers to all others of its batch, and no more is read meanwhile."""
    node = MemoryNode()
    client = Client(node)
    client.request(1, put_item(b"k", bytes(8_000)))
    with slow_key(node, b"slow"):
        client.request(2, *[get_item(b"k")] * 3, get_item(b"slow"))
        assert not client.stream.reading
        if given_up:
            client.stream.cancel()
            assert 0 == client.stream._gateway.unfinished.bytes
    assert client.stream.reading is not given_up
    assert ([1] if given_up else [1, 2]) == client.answered
    assert 0 == client.stream._gateway.unfinished.bytes
