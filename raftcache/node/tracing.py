"""The spans of requests and of the entries that carry them; built only when tracing is on.

    gateway ──────────────────────────────────────────► reply        (one per request, `TracedSubmit`)
       └─ propose ──────────────────────────────► applied            (child, one per write)
                  replicate: append ──► commit    apply: ──►          (per entry, linked to its recorded requests)
                  fsync: write + fdatasync                            (per batch of the node, linked likewise)

Caveat: a forwarded request is a new trace at the leader's node; the two are matched by shard and index.
"""

from collections.abc import Iterable, Sequence

from raftcache.errors import RaftCacheError
from raftcache.ids import Index, ShardId
from raftcache.node.api import Reply, ReplySink, Request, Submit
from raftcache.raft.messages import Entry
from raftcache.telemetry.names import SPAN_APPLY, SPAN_GATEWAY, SPAN_PROPOSE, SPAN_REPLICATE
from raftcache.telemetry.tracing import Span, Tracer


class EntryTraces:
    """The spans of one replica's own proposals, by log index."""

    def __init__(self, tracer: Tracer, shard: ShardId) -> None:
        self._tracer = tracer
        self._shard = shard
        self._open: dict[Index, tuple[Span, list[Span]]] = {}
        """Index -> the entry's replicate span, and a propose span for each recorded request in it."""

    def proposed(self, index: Index, requests: Iterable[Request]) -> None:
        """The requests were appended at `index`. Nothing is kept where none of them is recorded."""
        proposes = []
        for request in requests:
            if request.span is not None and request.span.recording:
                span = self._tracer.start(SPAN_PROPOSE, parent=request.span)
                span.set("shard", self._shard)
                span.set("index", index)
                proposes.append(span)
        if proposes:
            replicate = self._tracer.start(SPAN_REPLICATE, links=proposes)
            replicate.set("shard", self._shard)
            replicate.set("index", index)
            self._open[index] = (replicate, proposes)

    def recorded(self, entries: Sequence[Entry]) -> list[Span]:
        """The spans that a batch with these entries is to be linked to."""
        return [span for entry in entries if entry.index in self._open for span in self._open[entry.index][1]]

    def applying(self, index: Index) -> Span | None:
        """The entry is committed and about to be applied; the span of that, if anybody will see it."""
        found = self._open.get(index)
        if found is None:
            return None
        replicate, proposes = found
        replicate.end()
        apply = self._tracer.start(SPAN_APPLY, links=proposes)
        apply.set("shard", self._shard)
        apply.set("index", index)
        return apply

    def answered(self, index: Index) -> None:
        """The requests of the entry have their replies."""
        found = self._open.pop(index, None)
        if found is not None:
            for span in (found[0], *found[1]):
                span.end()


class TracedSubmit:
    """Puts a gateway span around each request on its way to the node. Only in place when tracing is on."""

    def __init__(self, node: Submit, tracer: Tracer) -> None:
        self._node = node
        self._tracer = tracer

    def submit(self, requests: Sequence[Request], sink: ReplySink) -> None:
        """See `node.api.Submit`."""
        spans: dict[int, Span] = {}
        for request in requests:
            request.span = self._tracer.start(SPAN_GATEWAY)
            request.span.set("operation", type(request.operation).__name__)
            spans[id(request.token)] = request.span
        self._node.submit(requests, _TracedSink(sink, spans))


class _TracedSink:
    def __init__(self, sink: ReplySink, spans: dict[int, Span]) -> None:
        self._sink = sink
        self._spans = spans

    def deliver(self, replies: list[Reply]) -> None:
        for reply in replies:
            span = self._spans.pop(id(reply.token), None)
            if span is not None:
                span.set("shard", reply.shard)
                span.set("index", reply.index)
                span.end(reply.result.reason if isinstance(reply.result, RaftCacheError) else "")
        self._sink.deliver(replies)
