//! Requests for the store's tests.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use custody_proto::otlp::collector_logs::ExportLogsServiceRequest;
use custody_proto::otlp::collector_trace::ExportTraceServiceRequest;
use custody_proto::otlp::common::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use custody_proto::otlp::logs::{LogRecord, ResourceLogs, ScopeLogs};
use custody_proto::otlp::resource::Resource;
use custody_proto::otlp::trace::{ResourceSpans, ScopeSpans, Span};
use custody_proto::{Limits, Signal, scan};
use custody_store::{Clock, Encoding, Options, Prepared, Reader, Writer, open};
use prost::Message as _;

/// A clock that ticks once a reading.
#[derive(Default)]
pub struct Ticks(AtomicU64);

impl Clock for Ticks {
    fn now(&self) -> u64 {
        1_700_000_000_000_000_000 + self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// Opens a log with a deterministic clock.
pub fn open_log(dir: &Path) -> (Writer, Reader) {
    let options =
        Options { origin: Some("example.com/test".into()), clock: Arc::new(Ticks::default()), ..Options::default() };
    open(dir, options).unwrap()
}

fn text(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.into())) });
    KeyValue { key: key.into(), value, ..Default::default() }
}

fn resource() -> Option<Resource> {
    Some(Resource { attributes: vec![text("service.name", "agent")], ..Default::default() })
}

fn scope() -> Option<InstrumentationScope> {
    Some(InstrumentationScope { name: "tests".into(), ..Default::default() })
}

/// A span whose ids are made from `id`.
pub fn span(id: u64, name: &str) -> Span {
    Span {
        trace_id: [&(id / 10 + 1).to_be_bytes()[..], &[7; 8]].concat(),
        span_id: (id + 1).to_be_bytes().to_vec(),
        name: name.into(),
        start_time_unix_nano: 1_700_000_000_000_000_000 + id,
        end_time_unix_nano: 1_700_000_000_000_001_000 + id,
        attributes: vec![text("gen_ai.tool.name", name)],
        ..Default::default()
    }
}

/// The bytes of a trace request.
pub fn trace_request(spans: Vec<Span>) -> Vec<u8> {
    let scope_spans = vec![ScopeSpans { scope: scope(), spans, ..Default::default() }];
    let resource_spans = vec![ResourceSpans { resource: resource(), scope_spans, ..Default::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

/// A trace request that is ready to be appended.
pub fn traces(spans: Vec<Span>) -> Prepared {
    prepare(Signal::Traces, trace_request(spans))
}

/// A log request that is ready to be appended.
pub fn logs(bodies: &[&str]) -> Prepared {
    let record = |body: &&str| LogRecord {
        body: Some(AnyValue { value: Some(Value::StringValue((*body).into())) }),
        trace_id: vec![9; 16],
        ..Default::default()
    };
    let log_records = bodies.iter().map(record).collect();
    let scope_logs = vec![ScopeLogs { scope: scope(), log_records, ..Default::default() }];
    let resource_logs = vec![ResourceLogs { resource: resource(), scope_logs, ..Default::default() }];
    prepare(Signal::Logs, ExportLogsServiceRequest { resource_logs }.encode_to_vec())
}

/// Prepares a request as the receivers do.
pub fn prepare(signal: Signal, payload: Vec<u8>) -> Prepared {
    let scan = scan(signal, &payload, &Limits::default()).unwrap();
    Prepared::new(signal, Encoding::Protobuf, Bytes::from(payload), scan, "peer:127.0.0.1")
}
