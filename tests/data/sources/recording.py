"""What the scripts beside this file share: spans kept in memory, and written as one OTLP request."""

import sys

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def provider(service):
    """A provider of OpenTelemetry's own SDK, and what its spans end up in."""
    spans = InMemorySpanExporter()
    made = TracerProvider(resource=Resource({"service.name": service}))
    made.add_span_processor(SimpleSpanProcessor(spans))
    return made, spans


def write(spans, keep=lambda span: True):
    """Writes the spans to the file that the command line names, and shows them."""
    kept = [span for span in spans.get_finished_spans() if keep(span)]
    with open(sys.argv[1], "wb") as out:
        out.write(encode_spans(kept).SerializeToString())
    for span in kept:
        print(span.instrumentation_scope.name, span.name, dict(span.attributes), span.status.status_code)
