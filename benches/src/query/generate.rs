//! The log that is asked: agents' traces and the grants that they act under, through the
//! log's own writer. The same number of records gives the same requests.

use std::path::Path;

use bytes::Bytes;
use custody_proto::otlp::collector_logs::ExportLogsServiceRequest;
use custody_proto::otlp::collector_trace::ExportTraceServiceRequest;
use custody_proto::otlp::common::{AnyValue, ArrayValue, KeyValue, any_value::Value};
use custody_proto::otlp::logs::{LogRecord, ResourceLogs, ScopeLogs};
use custody_proto::otlp::resource::Resource;
use custody_proto::otlp::trace::{ResourceSpans, ScopeSpans, Span};
use custody_proto::{Limits, Signal, scan};
use custody_store::{Durability, Encoding, Options, Prepared, Writer, open};
use prost::Message as _;

/// Spans of a trace.
pub const TRACE_SPANS: u64 = 20;
/// Spans that are done under one grant.
pub const GRANT_SPANS: u64 = 50;
/// Grants of a chain of delegation.
pub const CHAIN: u64 = 100;
/// Steps of the one long trace.
pub const LONG_TRACE: u64 = 10_000;

const BATCH: u64 = 512;
const GROUP: u64 = 32;
const SERVICES: u64 = 20;
const START: u64 = 1_795_165_200_000_000_000;

/// What is in a log of so many records.
pub struct Shape {
    /// Spans and logs.
    pub records: u64,
    spans: u64,
}

impl Shape {
    fn of(records: u64) -> Self {
        let spans = (records - LONG_TRACE.min(records / 2)) * GRANT_SPANS / (GRANT_SPANS + 1) / BATCH * BATCH;
        Self { records, spans }
    }

    fn grants(&self) -> u64 {
        (self.spans / GRANT_SPANS).max(CHAIN)
    }

    /// Somewhere, the same for the same number.
    pub fn place(&self, n: u64) -> u64 {
        n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) >> 11
    }

    /// The id of a trace.
    pub fn trace(&self, place: u64) -> String {
        hex(&trace_id(place % (self.spans / TRACE_SPANS).max(1)))
    }

    /// The id of a grant.
    pub fn grant(&self, place: u64) -> String {
        grant_id(place % self.grants())
    }

    /// The last grant of a chain.
    pub fn leaf(&self, place: u64) -> String {
        grant_id(place % (self.grants() / CHAIN) * CHAIN + CHAIN - 1)
    }

    /// The id of the long trace.
    pub fn long_trace(&self) -> String {
        hex(&trace_id(u64::MAX - 1))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Ids without an order in them, as exporters make them.
fn scattered(n: u64) -> u64 {
    let mut x = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ x >> 31) | 1
}

fn trace_id(n: u64) -> Vec<u8> {
    [scattered(n).to_be_bytes(), scattered(!n).to_be_bytes()].concat()
}

fn grant_id(n: u64) -> String {
    format!("grant-{:016x}", scattered(n ^ 0x5555))
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.into())) });
    KeyValue { key: key.into(), value, ..Default::default() }
}

fn list(key: &str, values: &[String]) -> KeyValue {
    let values = values.iter().map(|v| AnyValue { value: Some(Value::StringValue(v.clone())) }).collect();
    let value = Some(AnyValue { value: Some(Value::ArrayValue(ArrayValue { values })) });
    KeyValue { key: key.into(), value, ..Default::default() }
}

/// The `n`-th span: each trace is an agent, its model calls and its tools.
fn span(n: u64, trace: &[u8], place: u64, root: u64) -> Span {
    let random = scattered(n ^ 0xaaaa);
    let (tool, agent) = (random % 40, n / TRACE_SPANS % 1000);
    let start = START + n % 1_000_000_000 * 200_000;
    let mut attributes = vec![
        text("gen_ai.agent.id", format!("agent-{agent}")),
        text("gen_ai.conversation.id", format!("conversation-{:x}", n / (TRACE_SPANS * 5))),
    ];
    let name = match place {
        0 => {
            attributes.push(text("gen_ai.operation.name", "invoke_agent"));
            format!("invoke_agent agent-{agent}")
        }
        p if p % 4 == 1 => {
            attributes.push(text("gen_ai.operation.name", "chat"));
            attributes.push(text("gen_ai.request.model", "model-1"));
            "chat model-1".into()
        }
        _ => {
            attributes.extend([
                text("gen_ai.operation.name", "execute_tool"),
                text("gen_ai.tool.name", format!("tool_{tool}")),
                text("gen_ai.tool.call.id", format!("call_{random:016x}")),
                text("authz.grant.id", grant_id(n / GRANT_SPANS)),
                text("authz.resource", format!("account:{}", random % 5000)),
                text(
                    "gen_ai.tool.call.arguments",
                    format!("{{\"recipient\": \"{random:020}\", \"amount\": {}}}", n % 5000),
                ),
                text("gen_ai.tool.call.result", format!("{:016x} was sent to the account", scattered(n))),
            ]);
            format!("execute_tool tool_{tool}")
        }
    };
    Span {
        trace_id: trace.to_vec(),
        span_id: scattered(n ^ 0x1234_5678).to_be_bytes().to_vec(),
        parent_span_id: if place == 0 { vec![] } else { scattered(root ^ 0x1234_5678).to_be_bytes().to_vec() },
        name,
        kind: 1,
        start_time_unix_nano: start,
        end_time_unix_nano: start + 1_000_000 + random % 900_000_000,
        attributes,
        ..Default::default()
    }
}

fn resource(service: String) -> Option<Resource> {
    Some(Resource { attributes: vec![text("service.name", service)], ..Default::default() })
}

fn prepared(signal: Signal, payload: Vec<u8>) -> Prepared {
    let found = scan(signal, &payload, &Limits::default()).expect("a good request");
    Prepared::new(signal, Encoding::Protobuf, Bytes::from(payload), found, "bench")
}

fn spans(service: u64, spans: Vec<Span>) -> Prepared {
    let scope_spans = vec![ScopeSpans { spans, ..Default::default() }];
    let resource_spans = vec![ResourceSpans {
        resource: resource(format!("service-{}", service % SERVICES)),
        scope_spans,
        ..Default::default()
    }];
    prepared(Signal::Traces, ExportTraceServiceRequest { resource_spans }.encode_to_vec())
}

/// The `request`-th of the ordinary requests.
fn ordinary(request: u64) -> Prepared {
    let one = |n: u64| span(n, &trace_id(n / TRACE_SPANS), n % TRACE_SPANS, n / TRACE_SPANS * TRACE_SPANS);
    spans(request, (request * BATCH..(request + 1) * BATCH).map(one).collect())
}

/// Logs that give grants, each chain from its root down.
fn grants(numbers: std::ops::Range<u64>) -> Prepared {
    let log = |n: u64| {
        let actions: Vec<String> = (0..4).map(|i| format!("tool_{}", (n + i) % 40)).collect();
        let mut attributes = vec![
            text("authz.grant.id", grant_id(n)),
            text("authz.grant.issuer", "authority"),
            text("authz.grant.subject", format!("agent-{}", n % 1000)),
            text("authz.grant.initiator.id", "emma"),
            list("authz.grant.actions", &actions),
        ];
        let derived = !n.is_multiple_of(CHAIN);
        if derived {
            attributes.push(text("authz.grant.parent_id", grant_id(n - 1)));
        }
        LogRecord {
            time_unix_nano: START + n * GRANT_SPANS * 200_000,
            event_name: format!("authz.grant.{}", if derived { "derived" } else { "issued" }),
            trace_id: trace_id(n * GRANT_SPANS / TRACE_SPANS),
            attributes,
            ..Default::default()
        }
    };
    let log_records = numbers.map(log).collect();
    let scope_logs = vec![ScopeLogs { log_records, ..Default::default() }];
    let resource_logs = vec![ResourceLogs { resource: resource("authority".into()), scope_logs, ..Default::default() }];
    prepared(Signal::Logs, ExportLogsServiceRequest { resource_logs }.encode_to_vec())
}

/// A request that was not sent before.
pub fn fresh(shape: &Shape, n: u64) -> Prepared {
    let taken = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    let one = |i: u64| {
        let n = shape.spans + (taken % 1_000_000_007) * 1_000_000 + n * BATCH + i;
        span(n, &trace_id(n / TRACE_SPANS), n % TRACE_SPANS, n / TRACE_SPANS * TRACE_SPANS)
    };
    spans(n, (0..BATCH).map(one).collect())
}

/// Fills a log, unless it is there already.
pub fn fill(dir: &Path, records: u64) -> Shape {
    let shape = Shape::of(records);
    // Nothing is acknowledged to anybody: the writes need not wait for the disk.
    let (mut writer, _) =
        open(dir, Options { durability: Durability::Os, ..Options::default() }).expect("the log opens");
    if writer.head_size() > 1 {
        println!("the log of {} records in {} is taken as it is", writer.head_size(), dir.display());
        return shape;
    }
    let start = std::time::Instant::now();
    let (mut waiting, mut given) = (Vec::new(), 0);
    let requests = shape.spans / BATCH;
    for request in 0..requests {
        let due = shape.grants().min((request + 1) * BATCH / GRANT_SPANS + CHAIN);
        if due >= given + BATCH || request + 1 == requests {
            waiting.push(grants(given..due.max(if request + 1 == requests { shape.grants() } else { due })));
            given = due;
        }
        waiting.push(ordinary(request));
        if request == requests / 2 {
            long(&mut waiting);
        }
        append(&mut writer, &mut waiting, GROUP as usize);
    }
    append(&mut writer, &mut waiting, 1);
    writer.checkpoint().expect("it is signed");
    let rate = writer.head_size() as f64 / start.elapsed().as_secs_f64();
    println!("generated: {} records at {rate:.0}/s", writer.head_size());
    shape
}

/// The long trace: agents within agents, ten deep, and their tools.
fn long(waiting: &mut Vec<Prepared>) {
    let first = u64::MAX / 2;
    let trace = trace_id(u64::MAX - 1);
    let one = |i: u64| {
        let above = if i < 10 { i.saturating_sub(1) } else { i % 10 };
        let mut span = span(first + i, &trace, if i < 10 { 0 } else { 2 + i % 2 }, first + above);
        span.start_time_unix_nano = START + i * 1_000_000;
        span.end_time_unix_nano = START + (i + 1) * 1_000_000;
        if i > 0 {
            span.parent_span_id = scattered((first + above) ^ 0x1234_5678).to_be_bytes().to_vec();
        }
        span
    };
    let steps: Vec<u64> = (0..LONG_TRACE).collect();
    waiting.extend(steps.chunks(BATCH as usize).map(|some| spans(3, some.iter().copied().map(one).collect())));
}

fn append(writer: &mut Writer, waiting: &mut Vec<Prepared>, least: usize) {
    if waiting.len() >= least {
        writer.append(std::mem::take(waiting)).expect("it is appended");
    }
}
