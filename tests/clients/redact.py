"""Sends secrets in every place where an application may put one: the SDK's own
exporters. The secrets come as arguments, after the protocol."""

import sys

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanContext, Status, StatusCode

protocol, attribute, header, url, json, body, nested, token, bearer = sys.argv[1:]
if protocol == "grpc":
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
else:
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

resource = Resource.create({"service.name": "redact", "db.password": attribute})
tracers = TracerProvider(resource=resource)
tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
loggers = LoggerProvider(resource=resource)
loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
meters = MeterProvider(resource=resource, metric_readers=[PeriodicExportingMetricReader(OTLPMetricExporter())])

tracer, logger = tracers.get_tracer("redact", token), loggers.get_logger("redact")
link = Link(SpanContext(7, 7, False), {"authorization": attribute})
span = tracer.start_span(f"GET https://emma:{url}@example.com/", links=[link], attributes={
    "http.request.header.authorization": f"Bearer {header}",
    "http.request.header.cookie": [header, attribute],
    "gen_ai.tool.call.arguments": '{"to": "ünïcode", "password": "%s"}' % json,
    "note": "no secret", "used": f"bearer {bearer}"})
span.add_event("called", {"x-api-key": attribute, "output": f"clone https://{token}@github.com/a/b"})
span.set_status(Status(StatusCode.ERROR, f"token {token} expired"))
span.end()
for content in (f"saw Authorization: Bearer {body}", {"headers": {"Set-Cookie": nested}, "list": [f"is {token}"]}):
    logger.emit(LogRecord(timestamp=1, severity_number=SeverityNumber.INFO, body=content,
                          attributes={"headers": {"Authorization": nested}}))
meters.get_meter("redact").create_counter("calls").add(1, {"api_key": attribute, "url": f"https://h/?sig={url}"})
good = tracers.force_flush() and loggers.force_flush() and meters.force_flush()
for provider in (tracers, loggers, meters):
    provider.shutdown()
print("ok" if good else "not flushed")
