//! What the checks cost: CPU of the process per event, with them and without, for the same events at growing
//! sizes of one log. What they cost must not grow with it.
//!
//! The events are those of agents who keep the rules: for each trace a grant with an end, decisions of an
//! executor, tool calls; one call in a thousand names a grant that there is not, so that hits are told, too.

use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use custody_proto::otlp::collector_logs::ExportLogsServiceRequest;
use custody_proto::otlp::collector_trace::ExportTraceServiceRequest;
use custody_proto::otlp::common::{AnyValue, ArrayValue, KeyValue, any_value::Value};
use custody_proto::otlp::logs::{LogRecord, ResourceLogs, ScopeLogs};
use custody_proto::otlp::resource::Resource;
use custody_proto::otlp::trace::{ResourceSpans, ScopeSpans, Span};
use custody_proto::{Limits, Signal, scan};
use custody_query::checks::{Checker, Following, Tuning, built_in, follow};
use custody_query::{Error, ErrorKind, Follower, Projection, Recorder, Said, SegmentLimits};
use custody_store::{Durability, Encoding, Options, Prepared, Writer, open};
use prost::Message as _;

use crate::cpu_seconds;

/// The sizes at which is measured, unless others are asked for.
pub const SIZES: [u64; 3] = [10_000, 100_000, 1_000_000];

/// Tool calls of a trace; with a grant and as many decisions.
const CALLS: u64 = 9;
/// Events of a trace.
const TRACE: u64 = 2 * CALLS + 1;
/// Traces of a request.
const BATCH: u64 = 32;
/// Events that are measured at each size, at most: a tenth of the size if that is fewer.
const SAMPLE: u64 = 10_000;
const AGENTS: u64 = 200;

/// Prints a line for each size.
pub fn run(sizes: &[u64]) {
    println!("checks: CPU of a process that takes events and makes rows of them, us per event");
    println!("  {:>12}{:>12}{:>12}{:>12}{:>12}", "log size", "checks off", "checks on", "checks", "at hand");
    let off = costs(sizes, false);
    let on = costs(sizes, true);
    for ((size, off), on) in sizes.iter().zip(&off).zip(&on) {
        println!("  {size:>12}{:>12.1}{:>12.1}{:>12.1}{:>12}", off.0, on.0, on.0 - off.0, on.1);
    }
    if let ([first, .., last], [less, .., more]) = (on.as_slice(), off.as_slice()) {
        let (first, last) = (first.0 - less.0, last.0 - more.0);
        println!("  what the checks cost an event of the largest log beside one of the smallest: {:.2}", last / first);
    }
}

/// The cost of an event at each size, and how many events the checks hold then.
fn costs(sizes: &[u64], checks: bool) -> Vec<(f64, u64)> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut fed = Fed::begin(folder.path(), checks);
    let mut out = Vec::new();
    for size in sizes {
        let sample = SAMPLE.min(size / 10);
        fed.feed(size.saturating_sub(sample));
        fed.settle();
        let (before, from) = (cpu_seconds(std::process::id()), fed.events);
        fed.feed(*size);
        fed.settle();
        let seconds = cpu_seconds(std::process::id()) - before;
        out.push((seconds * 1e6 / (fed.events - from).max(1) as f64, fed.held()));
    }
    out
}

struct Direct(Arc<Mutex<Writer>>);

impl Recorder for Direct {
    fn append(&self, said: Vec<Said>) -> Pin<Box<dyn Future<Output = Result<Vec<u64>, Error>> + Send>> {
        let writer = Arc::clone(&self.0);
        Box::pin(async move {
            let prepared =
                said.iter().map(|s| s.record.prepare_as(&s.identity, now()).expect("a good record")).collect();
            let done = writer.lock().expect("no panic before").append(prepared);
            let done = done.map_err(|e| Error::new(ErrorKind::Unavailable, e.to_string()))?;
            Ok(done.iter().map(|receipt| receipt.first_seq).collect())
        })
    }
}

/// A log that is fed.
struct Fed {
    writer: Arc<Mutex<Writer>>,
    projection: Arc<Projection>,
    // The checks end before what they follow.
    checks: Option<Following>,
    _follower: Follower,
    _runtime: tokio::runtime::Runtime,
    events: u64,
}

impl Fed {
    fn begin(dir: &Path, checks: bool) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
        let options = Options { durability: Durability::Os, ..Options::default() };
        let (writer, reader) = open(dir, options).expect("the log opens");
        let writer = Arc::new(Mutex::new(writer));
        let (projection, follower) = Projection::follow(reader, SegmentLimits::default()).expect("it is projected");
        let checks = checks.then(|| {
            let rules = built_in();
            let tuning = Tuning::of(&rules);
            let checker = runtime.block_on(Checker::new(rules, tuning)).expect("the rules are planned");
            follow(&projection, checker, Arc::new(Direct(Arc::clone(&writer)))).expect("the checks follow")
        });
        Self { writer, projection, checks, _follower: follower, _runtime: runtime, events: 0 }
    }

    /// Appends events until there are so many.
    fn feed(&mut self, events: u64) {
        while self.events < events {
            let traces = (self.events / TRACE)..(self.events / TRACE + BATCH);
            let requests = vec![logs(traces.clone()), spans(traces)];
            self.writer.lock().expect("no panic before").append(requests).expect("it is appended");
            self.events += BATCH * TRACE;
            // A log that is fed faster than rows are made would be measured at another size than it says.
            if self.events.is_multiple_of(64 * BATCH * TRACE) {
                self.settle();
            }
        }
    }

    /// Waits until all rows are made, and judged.
    fn settle(&self) {
        let until = Instant::now() + Duration::from_secs(3600);
        loop {
            let size = self.writer.lock().expect("no panic before").head_size();
            let judged = self.checks.as_ref().is_none_or(|checks| checks.live().judged_to() >= size);
            if self.projection.snapshot().size >= size && judged {
                return;
            }
            assert!(Instant::now() < until && self.projection.is_well(), "it does not come to an end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn held(&self) -> u64 {
        self.checks.as_ref().map_or(0, |checks| checks.live().events_held())
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

fn any(value: &str) -> AnyValue {
    AnyValue { value: Some(Value::StringValue(value.to_owned())) }
}

fn text(key: &str, value: impl AsRef<str>) -> KeyValue {
    KeyValue { key: key.into(), value: Some(any(value.as_ref())), ..Default::default() }
}

fn list(key: &str, values: &[&str]) -> KeyValue {
    let values = values.iter().map(|value| any(value)).collect();
    let value = Some(AnyValue { value: Some(Value::ArrayValue(ArrayValue { values })) });
    KeyValue { key: key.into(), value, ..Default::default() }
}

fn prepared(signal: Signal, payload: Vec<u8>) -> Prepared {
    let found = scan(signal, &payload, &Limits::default()).expect("a good request");
    Prepared::new(signal, Encoding::Protobuf, Bytes::from(payload), found, "bench")
}

fn resource(service: &str) -> Option<Resource> {
    Some(Resource { attributes: vec![text("service.name", service)], ..Default::default() })
}

/// Ids without an order in them.
fn scattered(n: u64) -> u64 {
    let x = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1
}

fn trace_id(trace: u64) -> Vec<u8> {
    [scattered(trace).to_be_bytes(), trace.to_be_bytes()].concat()
}

/// What a call and the decision about it have in common.
fn call(trace: u64, nth: u64) -> Vec<KeyValue> {
    let n = trace * CALLS + nth;
    let grant = if scattered(n) % 1000 == 7 { format!("none-{n}") } else { format!("grant-{trace}") };
    vec![
        text("authz.grant.id", grant),
        text("gen_ai.agent.id", format!("agent-{}", trace % AGENTS)),
        text("gen_ai.conversation.id", format!("conversation-{}", trace / 5)),
        text("gen_ai.tool.name", format!("tool_{}", n % 4)),
        text("gen_ai.tool.call.id", format!("call-{n}")),
        text("authz.resource", format!("account:{}", scattered(n) % 5000)),
        text("authz.action", format!("tool_{}", n % 4)),
    ]
}

/// The grants of some traces, and what an executor decided in them.
fn logs(traces: std::ops::Range<u64>) -> Prepared {
    let time = now();
    let end = (time / 1_000_000_000 + 60).to_string();
    let mut records = Vec::new();
    for trace in traces {
        let grant = vec![
            text("authz.grant.id", format!("grant-{trace}")),
            text("authz.grant.issuer", "authority"),
            text("authz.grant.subject", format!("agent-{}", trace % AGENTS)),
            text("authz.grant.initiator.id", "emma"),
            text("authz.grant.expires_at", &end),
            list("authz.grant.actions", &["tool_*"]),
            list("authz.grant.resources", &["account:*"]),
        ];
        let mut record = |event: &str, time: u64, attributes: Vec<KeyValue>| {
            let event_name = event.to_owned();
            let trace_id = trace_id(trace);
            records.push(LogRecord { time_unix_nano: time, event_name, trace_id, attributes, ..Default::default() });
        };
        record("authz.grant.issued", time, grant);
        for nth in 0..CALLS {
            let mut attributes = call(trace, nth);
            attributes.push(text("authz.decision", "allow"));
            record("authz.executor.decision", time + 1 + nth, attributes);
        }
    }
    let scope_logs = vec![ScopeLogs { log_records: records, ..Default::default() }];
    let resource_logs = vec![ResourceLogs { resource: resource("executor"), scope_logs, ..Default::default() }];
    prepared(Signal::Logs, ExportLogsServiceRequest { resource_logs }.encode_to_vec())
}

/// The tool calls of some traces.
fn spans(traces: std::ops::Range<u64>) -> Prepared {
    let time = now();
    let calls = traces.flat_map(|trace| (0..CALLS).map(move |nth| (trace, nth)));
    let span = |(trace, nth): (u64, u64)| {
        let mut attributes = call(trace, nth);
        attributes.push(text("gen_ai.operation.name", "execute_tool"));
        attributes
            .push(text("gen_ai.tool.call.arguments", format!("{{\"amount\": {}}}", scattered(trace + nth) % 100)));
        Span {
            trace_id: trace_id(trace),
            span_id: scattered(trace * CALLS + nth).to_be_bytes().to_vec(),
            name: "execute_tool".into(),
            kind: 1,
            start_time_unix_nano: time + 10 + nth,
            end_time_unix_nano: time + 1_000_000,
            attributes,
            ..Default::default()
        }
    };
    let scope_spans = vec![ScopeSpans { spans: calls.map(span).collect(), ..Default::default() }];
    let resource_spans = vec![ResourceSpans { resource: resource("agents"), scope_spans, ..Default::default() }];
    prepared(Signal::Traces, ExportTraceServiceRequest { resource_spans }.encode_to_vec())
}
