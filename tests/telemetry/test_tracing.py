"""Traces: nothing when off, the right tree when on."""

import builtins
import subprocess
import sys

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from raftcache.errors import ConfigError
from raftcache.telemetry import names
from raftcache.telemetry.tracing import NO_SPAN, NO_TRACER, _OtelTracer, _provider, make_tracer


def recorded(ratio: float = 1.0) -> tuple[_OtelTracer, InMemorySpanExporter]:
    """A tracer whose spans can be read."""
    exporter = InMemorySpanExporter()
    return _OtelTracer(_provider(exporter, ratio, {"node": "1"}, batched=False)), exporter


def test_off_is_one_object_that_does_nothing() -> None:
    """No allocation per span, no state, no trace to go on with."""
    tracer = make_tracer("off", sample_ratio=1.0)
    assert tracer is NO_TRACER
    assert not tracer.active
    with tracer.start(names.SPAN_GATEWAY) as span:
        span.set("shard", 1)
    assert span is NO_SPAN
    assert not span.recording
    assert "" == span.traceparent()
    span.end()
    tracer.close()


def test_off_imports_nothing_of_opentelemetry() -> None:
    """Neither time nor memory is spent by those who do not trace."""
    program = (
        "import sys, raftcache.telemetry.tracing as t; t.make_tracer('off', sample_ratio=1.0).start('apply'); "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "[]" == done.stdout.strip()


def test_spans_have_parents_links_attributes_and_errors() -> None:
    """A request's span is the parent of its proposal; a batch is linked to the requests in it."""
    tracer, exporter = recorded()
    request = tracer.start(names.SPAN_GATEWAY)
    assert request.recording
    propose = tracer.start(names.SPAN_PROPOSE, parent=request)
    propose.set("shard", 3)
    fsync = tracer.start(names.SPAN_FSYNC, links=[request, NO_SPAN])
    fsync.end()
    propose.end("NOT_LEADER")
    propose.end()
    request.end()

    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert {names.SPAN_GATEWAY, names.SPAN_PROPOSE, names.SPAN_FSYNC} == set(spans)
    gateway = spans[names.SPAN_GATEWAY]
    parent = spans[names.SPAN_PROPOSE].parent
    assert parent is not None
    assert gateway.context.span_id == parent.span_id
    assert {"raftcache.shard": 3} == dict(spans[names.SPAN_PROPOSE].attributes or {})
    assert "NOT_LEADER" == spans[names.SPAN_PROPOSE].status.description
    assert spans[names.SPAN_FSYNC].parent is None
    assert [gateway.context.span_id] == [link.context.span_id for link in spans[names.SPAN_FSYNC].links]
    tracer.close()


def test_a_trace_goes_on_in_the_next_node() -> None:
    """`traceparent` carries it; what cannot be read starts a new one."""
    tracer, exporter = recorded()
    here = tracer.start(names.SPAN_GATEWAY)
    there = tracer.start(names.SPAN_PROPOSE, traceparent=here.traceparent())
    stranger = tracer.start(names.SPAN_PROPOSE, traceparent="garbage")
    for span in (stranger, there, here):
        span.end()
    lost, continued, root = exporter.get_finished_spans()
    assert root.context.trace_id == continued.context.trace_id
    assert root.context.trace_id != lost.context.trace_id
    tracer.close()


def test_the_callers_decision_wins_over_the_ratio() -> None:
    """With a ratio of 0 nothing is recorded but what the caller records."""
    tracer, exporter = recorded(ratio=0.0)
    own = tracer.start(names.SPAN_GATEWAY)
    assert not own.recording
    tracer.start(names.SPAN_PROPOSE, parent=own).end()
    tracer.start(names.SPAN_GATEWAY, traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").end()
    assert 1 == len(exporter.get_finished_spans())
    tracer.close()


def test_an_exception_marks_its_span_by_class_alone() -> None:
    """Its message may quote what a user sent."""
    tracer, exporter = recorded()
    with pytest.raises(ValueError, match="secret"), tracer.start(names.SPAN_APPLY):
        raise ValueError("secret")
    (span,) = exporter.get_finished_spans()
    assert "ValueError" == span.status.description
    tracer.close()


def test_a_span_that_is_not_in_the_table_is_a_bug() -> None:
    """Dashboards look for the table's names."""
    tracer, _ = recorded()
    with pytest.raises(AssertionError):
        tracer.start("other")
    tracer.close()


def test_the_console_prints_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output belongs to answers."""
    tracer = make_tracer("console", sample_ratio=1.0)
    tracer.start(names.SPAN_APPLY).end()
    tracer.close()
    printed = capsys.readouterr()
    assert "" == printed.out
    assert '"name": "apply"' in printed.err


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an ImportError in the middle of the night."""
    real = builtins.__import__

    def refuse(name: str, *arguments: object, **more: object) -> object:
        if name.startswith("opentelemetry.exporter"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(ConfigError, match=r"pip install 'raftcache\[server,otlp\]'"):
        make_tracer("otlp", sample_ratio=1.0, otlp_endpoint="http://127.0.0.1:4317")
