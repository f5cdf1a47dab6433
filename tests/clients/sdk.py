"""Sends traces, logs and metrics as an application would: the SDK's own exporters,
configured by nothing but the environment."""

import sys

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Status, StatusCode

protocol = sys.argv[1]
if protocol == "grpc":
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
else:
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

resource = Resource.create({"service.name": "sdk"})
tracers = TracerProvider(resource=resource)
tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
loggers = LoggerProvider(resource=resource)
loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
meters = MeterProvider(resource=resource, metric_readers=[PeriodicExportingMetricReader(OTLPMetricExporter())])

tracer, logger = tracers.get_tracer("clients", "1"), loggers.get_logger("clients")
start = 1_700_000_000_000_000_000
with tracer.start_as_current_span("root", start_time=start, end_on_exit=False, attributes={"protocol": protocol}) as root:
    logger.emit(LogRecord(timestamp=start, severity_number=SeverityNumber.INFO, severity_text="INFO", body="please pay",
                          event_name="authz.request", attributes={"authz.initiator.type": "user", "authz.initiator.id": "emma"}))
    call = tracer.start_span("execute_tool send_money", start_time=start, attributes={
        "protocol": protocol, "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "send_money",
        "gen_ai.tool.call.arguments": '{"to": "ünïcode"}', "user.id": "emma"})
    call.set_status(Status(StatusCode.ERROR, "refused"))
    call.end(start + 1_000_000)
    for i in range(598):
        tracer.start_span(f"step {i}", start_time=start, attributes={"protocol": protocol}).end(start + 1_000_000)
        logger.emit(LogRecord(timestamp=start + i, severity_number=SeverityNumber.DEBUG, body=f"step {i}"))
root.end(start + 2_000_000)
meters.get_meter("clients").create_counter("calls").add(1)
meters.get_meter("clients").create_histogram("duration", unit="s").record(0.5)
good = tracers.force_flush() and loggers.force_flush() and meters.force_flush()
for provider in (tracers, loggers, meters):
    provider.shutdown()
print("ok" if good else "not flushed")
