//! Requests for the tests of sealing.

use custody_proto::otlp::collector_logs::ExportLogsServiceRequest;
use custody_proto::otlp::collector_metrics::ExportMetricsServiceRequest;
use custody_proto::otlp::collector_trace::ExportTraceServiceRequest;
use custody_proto::otlp::common::{AnyValue, KeyValue, any_value::Value};
use custody_proto::otlp::logs::{LogRecord, ResourceLogs, ScopeLogs};
use custody_proto::otlp::metrics::{Metric, ResourceMetrics, ScopeMetrics};
use custody_proto::otlp::trace::{ResourceSpans, ScopeSpans, Span};
use custody_proto::{Limits, Signal, scan};
use custody_store::{Encoding, Prepared, Writer};
use prost::Message as _;

fn text(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.into())) });
    KeyValue { key: key.into(), value, ..Default::default() }
}

/// Requests of 5 records each: spans of tool calls, grants, metrics in turn.
pub(crate) fn append(writer: &mut Writer, requests: std::ops::Range<u64>) {
    for n in requests {
        let (signal, payload) = match n % 3 {
            0 => {
                let span = |i: u64| Span {
                    trace_id: vec![(n % 255) as u8 + 1; 16],
                    span_id: (n * 100 + i + 1).to_be_bytes().to_vec(),
                    name: format!("secret-{n}-{i}"),
                    attributes: vec![
                        text("gen_ai.operation.name", "execute_tool"),
                        text("gen_ai.tool.name", "pay"),
                        text("authz.grant.id", &format!("grant-{}", n % 4)),
                    ],
                    ..Default::default()
                };
                let scope_spans = vec![ScopeSpans { spans: (0..5).map(span).collect(), ..Default::default() }];
                let resource_spans = vec![ResourceSpans { scope_spans, ..Default::default() }];
                (Signal::Traces, ExportTraceServiceRequest { resource_spans }.encode_to_vec())
            }
            1 => {
                let log = |i: u64| LogRecord {
                    time_unix_nano: n * 10 + i + 1,
                    event_name: "authz.grant.issued".into(),
                    attributes: vec![
                        text("authz.grant.id", &format!("grant-{i}")),
                        text("authz.grant.subject", &format!("agent-{n}")),
                    ],
                    ..Default::default()
                };
                let scope_logs = vec![ScopeLogs { log_records: (0..5).map(log).collect(), ..Default::default() }];
                let resource_logs = vec![ResourceLogs { scope_logs, ..Default::default() }];
                (Signal::Logs, ExportLogsServiceRequest { resource_logs }.encode_to_vec())
            }
            _ => {
                let metric = |i: u64| Metric { name: format!("metric-{n}-{i}"), ..Default::default() };
                let scope_metrics = vec![ScopeMetrics { metrics: (0..5).map(metric).collect(), ..Default::default() }];
                let resource_metrics = vec![ResourceMetrics { scope_metrics, ..Default::default() }];
                (Signal::Metrics, ExportMetricsServiceRequest { resource_metrics }.encode_to_vec())
            }
        };
        let found = scan(signal, &payload, &Limits::default()).unwrap();
        writer.append(vec![Prepared::new(signal, Encoding::Protobuf, payload.into(), found, "peer:test")]).unwrap();
    }
}
