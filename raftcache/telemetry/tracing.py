"""Traces: spans of single requests and of the batches that carry them, through OpenTelemetry, and nothing at all when off.

Rules of this file:
- the code that is traced knows two small protocols, `Tracer` and `Span`, and never OpenTelemetry. With tracing off both are
  objects without state whose methods return at once, and no module of OpenTelemetry is imported;
- a span of a request is started where the request arrives and handed on; a span of a batch (`fsync`, `apply`) has no parent,
  for it has many: it is linked to the recorded requests in it. Code asks `span.recording` before it gathers attributes;
- spans carry shards, terms, indexes and counts, never keys or values;
- whether a request is recorded is decided once, at its root, by a ratio, unless its caller decided already (W3C
  `traceparent`).
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from raftcache.errors import ConfigError
from raftcache.telemetry.names import SPANS

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OtelSpan

Attribute = str | int | float | bool


class Span(Protocol):
    """Something that takes time. Also a context manager, which ends it and marks it failed if an exception passes."""

    @property
    def recording(self) -> bool:
        """Whether anybody will see it; if not, attributes need not be gathered."""
        ...

    def set(self, name: str, value: Attribute) -> None: ...

    def end(self, error: str = "") -> None:
        """It is over; `error` is the reason if it failed. Ending twice does nothing."""
        ...

    def traceparent(self) -> str:
        """What the next node needs to go on with this trace; empty if there is nothing to go on with."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Tracer(Protocol):
    """Makes spans."""

    @property
    def active(self) -> bool:
        """False: every span is `NO_SPAN`."""
        ...

    def start(
        self, name: str, *, parent: Span | None = None, traceparent: str = "", links: Sequence[Span] = ()
    ) -> Span:
        """Begin a span, one of `names.SPANS`. Its parent is `parent`, or a span of another process (`traceparent`)."""
        ...

    def close(self) -> None:
        """Send what is not yet sent; may take some seconds."""
        ...


# --- Off ----------------------------------------------------------------------------------------------------------


class _NoSpan:
    """Records nothing."""

    __slots__ = ()
    recording = False

    def set(self, name: str, value: Attribute) -> None:
        del name, value

    def end(self, error: str = "") -> None:
        del error

    def traceparent(self) -> str:
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del kind, error, traceback


class _NoTracer:
    """Starts nothing."""

    __slots__ = ()
    active = False

    def start(
        self, name: str, *, parent: Span | None = None, traceparent: str = "", links: Sequence[Span] = ()
    ) -> Span:
        del name, parent, traceparent, links
        return NO_SPAN

    def close(self) -> None:
        return


NO_SPAN: Span = _NoSpan()
NO_TRACER: Tracer = _NoTracer()


# --- On -----------------------------------------------------------------------------------------------------------


def make_tracer(
    kind: str, *, sample_ratio: float, otlp_endpoint: str = "", attributes: Mapping[str, str] | None = None
) -> Tracer:
    """The tracer that the settings ask for: `off`, `otlp` or `console` (standard error).

    Raises: `ConfigError` if the packages for it are not installed, with the command that installs them.
    """
    if kind == "off":
        return NO_TRACER
    assert kind in ("otlp", "console"), kind
    exporter = _console_exporter() if kind == "console" else _otlp_exporter(otlp_endpoint)
    return _OtelTracer(_provider(exporter, sample_ratio, attributes or {}, batched=kind == "otlp"))


def _console_exporter() -> "SpanExporter":
    _require("opentelemetry.sdk.trace.export", kind="console", extra="server")
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    return ConsoleSpanExporter(out=sys.stderr)


def _otlp_exporter(endpoint: str) -> "SpanExporter":
    module = _require("opentelemetry.exporter.otlp.proto.grpc.trace_exporter", kind="otlp", extra="server,otlp")
    exporter: SpanExporter = module.OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
    return exporter


def _require(module: str, *, kind: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f'telemetry.tracing = "{kind}" needs packages that are not installed ({error}): '
            f"pip install 'raftcache[{extra}]'",
            metadata={"path": "telemetry.tracing"},
        ) from error


def _provider(
    exporter: "SpanExporter", sample_ratio: float, attributes: Mapping[str, str], *, batched: bool
) -> "TracerProvider":
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(sample_ratio),
        resource=Resource.create({"service.name": "raftcache", **attributes}),
        shutdown_on_exit=False,
    )
    # The console is for a person who looks now; a collector gets batches from a thread of the library.
    provider.add_span_processor(BatchSpanProcessor(exporter) if batched else SimpleSpanProcessor(exporter))
    return provider


class _OtelTracer:
    """Spans of OpenTelemetry. Made from a provider of its own: OpenTelemetry's global one stays untouched."""

    __slots__ = ("_api", "_propagator", "_provider", "_tracer")
    active = True

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api = trace
        self._propagator = TraceContextTextMapPropagator()
        self._provider = provider
        self._tracer = provider.get_tracer("raftcache")

    def start(
        self, name: str, *, parent: Span | None = None, traceparent: str = "", links: Sequence[Span] = ()
    ) -> Span:
        from opentelemetry.context import Context

        assert name in SPANS, f"{name} is not in names.SPANS"
        # An empty context, never the current one: a span's parent is what the caller says, not what happens to be open.
        context = Context()
        if isinstance(parent, _OtelSpan):
            context = self._api.set_span_in_context(parent.inner, context)
        elif traceparent:
            # What cannot be read counts as absent.
            context = self._propagator.extract({"traceparent": traceparent}, context)
        linked = [self._api.Link(link.inner.get_span_context()) for link in links if isinstance(link, _OtelSpan)]
        span = self._tracer.start_span(name, context=context, links=linked)
        return _OtelSpan(span)

    def close(self) -> None:
        self._provider.shutdown()


class _OtelSpan:
    """One span of OpenTelemetry."""

    __slots__ = ("inner",)

    def __init__(self, inner: "OtelSpan") -> None:
        self.inner = inner

    @property
    def recording(self) -> bool:
        return self.inner.is_recording()

    def set(self, name: str, value: Attribute) -> None:
        # The prefix keeps our names apart from OpenTelemetry's own.
        self.inner.set_attribute(f"raftcache.{name}", value)

    def end(self, error: str = "") -> None:
        if not self.inner.is_recording():
            return
        if error:
            from opentelemetry.trace import Status, StatusCode

            self.inner.set_status(Status(StatusCode.ERROR, error))
        self.inner.end()

    def traceparent(self) -> str:
        context = self.inner.get_span_context()
        if not context.is_valid:
            return ""
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del error, traceback
        # The class alone: a message may quote what a user sent.
        self.end("" if kind is None else kind.__name__)
