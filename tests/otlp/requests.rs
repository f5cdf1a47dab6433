//! Small requests of each signal, in each encoding, and where they are sent.

use std::fmt::Write as _;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric::Data, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;

/// 2023-11-14T22:13:20Z.
pub const START: u64 = 1_700_000_000_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Traces,
    Logs,
    Metrics,
}

pub const SIGNALS: [Signal; 3] = [Signal::Traces, Signal::Logs, Signal::Metrics];

impl Signal {
    /// Where it is posted (OTLP/HTTP Request).
    pub fn path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Logs => "/v1/logs",
            Self::Metrics => "/v1/metrics",
        }
    }

    /// The method of its service (OTLP/gRPC Service and Protobuf Definitions).
    pub fn method(self) -> &'static str {
        match self {
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
            Self::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        }
    }

    /// A request with one record that no other number has.
    pub fn protobuf(self, n: u64) -> Vec<u8> {
        match self {
            Self::Traces => traces(vec![span(n)]).encode_to_vec(),
            Self::Logs => logs(vec![log(n)]).encode_to_vec(),
            Self::Metrics => metrics(vec![metric(n)]).encode_to_vec(),
        }
    }

    /// The same as OTLP/JSON: transcoded, it is the same bytes.
    pub fn json(self, n: u64) -> String {
        match self {
            Self::Traces => format!(
                r#"{{"resourceSpans":[{{"resource":{RESOURCE},"scopeSpans":[{{"spans":[{{"traceId":"{}","spanId":"{}","name":"span {n}","startTimeUnixNano":"{START}","endTimeUnixNano":{}}}]}}]}}]}}"#,
                hex(&span(n).trace_id),
                hex(&span(n).span_id),
                START + 5
            ),
            Self::Logs => format!(
                r#"{{"resourceLogs":[{{"resource":{RESOURCE},"scopeLogs":[{{"logRecords":[{{"timeUnixNano":"{START}","body":{{"stringValue":"log {n}"}}}}]}}]}}]}}"#
            ),
            Self::Metrics => format!(
                r#"{{"resourceMetrics":[{{"resource":{RESOURCE},"scopeMetrics":[{{"metrics":[{{"name":"metric {n}","gauge":{{"dataPoints":[{{"timeUnixNano":"{START}","asInt":"7"}}]}}}}]}}]}}]}}"#
            ),
        }
    }
}

const RESOURCE: &str = r#"{"attributes":[{"key":"service.name","value":{"stringValue":"payments"}}]}"#;

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, b| {
        write!(out, "{b:02x}").unwrap();
        out
    })
}

pub fn key_value(key: &str, value: Option<Value>) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value }), ..Default::default() }
}

pub fn text(key: &str, value: &str) -> KeyValue {
    key_value(key, Some(Value::StringValue(value.into())))
}

pub fn resource() -> Option<Resource> {
    Some(Resource { attributes: vec![text("service.name", "payments")], ..Default::default() })
}

/// A finished span of trace 0101... whose id is the number and one: zero is no id.
pub fn span(n: u64) -> Span {
    Span {
        trace_id: vec![1; 16],
        span_id: (n + 1).to_be_bytes().to_vec(),
        name: format!("span {n}"),
        start_time_unix_nano: START,
        end_time_unix_nano: START + 5,
        ..Default::default()
    }
}

pub fn log(n: u64) -> LogRecord {
    let body = Some(AnyValue { value: Some(Value::StringValue(format!("log {n}"))) });
    LogRecord { time_unix_nano: START, body, ..Default::default() }
}

pub fn metric(n: u64) -> Metric {
    let point = NumberDataPoint {
        time_unix_nano: START,
        value: Some(number_data_point::Value::AsInt(7)),
        ..Default::default()
    };
    Metric {
        name: format!("metric {n}"),
        data: Some(Data::Gauge(Gauge { data_points: vec![point] })),
        ..Default::default()
    }
}

pub fn traces(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let scope_spans = vec![ScopeSpans { spans, ..Default::default() }];
    let resource_spans = ResourceSpans { resource: resource(), scope_spans, ..Default::default() };
    ExportTraceServiceRequest { resource_spans: vec![resource_spans] }
}

pub fn logs(log_records: Vec<LogRecord>) -> ExportLogsServiceRequest {
    let scope_logs = vec![ScopeLogs { log_records, ..Default::default() }];
    let resource_logs = ResourceLogs { resource: resource(), scope_logs, ..Default::default() };
    ExportLogsServiceRequest { resource_logs: vec![resource_logs] }
}

pub fn metrics(metrics: Vec<Metric>) -> ExportMetricsServiceRequest {
    let scope_metrics = vec![ScopeMetrics { metrics, ..Default::default() }];
    let resource_metrics = ResourceMetrics { resource: resource(), scope_metrics, ..Default::default() };
    ExportMetricsServiceRequest { resource_metrics: vec![resource_metrics] }
}
