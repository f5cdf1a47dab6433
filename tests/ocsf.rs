//! Every event that a mapping makes of real records is valid OCSF: by our validator, and by one that
//! we did not write.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use custody_proto::scan::Range;
use custody_proto::wire::{InstrumentationScope, LogRecord, Resource, Span};
use custody_proto::{Limits, Signal, json, scan};
use custody_query::event::EventRow;
use custody_query::mapping::{RecordContext, map_log, map_span};
use custody_query::ocsf::{Context, Format, Schema, encode};
use custody_query::rows::Time;
use prost::Message as _;
use serde_json::Value;
use support::{Request, Server, python, recorded_requests};

/// The rows of all records of a request.
fn rows(signal: Signal, bytes: &[u8]) -> Vec<EventRow> {
    let hash = "5a".repeat(32);
    let found = scan(signal, bytes, &Limits::default()).unwrap();
    let at = |range: Range| {
        let (at, len) = (range.at as usize, range.len as usize);
        at.checked_sub(bytes.len()).map_or_else(|| &bytes[at..at + len], |at| &found.annex[at..at + len])
    };
    let mut out: Vec<EventRow> = Vec::new();
    for (seq, record) in found.records.iter().enumerate() {
        let group = &found.groups[record.group as usize];
        let context = RecordContext {
            seq: seq as u64,
            record_hash: &hash,
            ingest_time: Time(1_795_165_203_000_000_001),
            submitter: "test",
            resource: &Resource::read(at(group.resource)).unwrap(),
            scope: &InstrumentationScope::read(at(group.scope)).unwrap(),
        };
        out.extend(match signal {
            Signal::Traces => map_span(&context, &Span::read(at(record.range)).unwrap()),
            _ => map_log(&context, &LogRecord::read(at(record.range)).unwrap()),
        });
    }
    out
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { out.extend(files(&path)) } else { out.push(path) }
    }
    out.sort();
    out
}

/// The signal of a fixture, as its name says; none for what is no request of spans or logs.
fn signal(path: &Path) -> Option<Signal> {
    let name = path.file_name()?.to_str()?;
    let is_request = (name.ends_with(".pb") || name.ends_with(".json")) && !name.ends_with(".headers.json");
    match (is_request, name.contains("logs"), name.contains("trace")) {
        (true, true, _) => Some(Signal::Logs),
        (true, _, true) => Some(Signal::Traces),
        _ => None,
    }
}

/// The rows of everything real that is checked in.
fn all_rows() -> Vec<EventRow> {
    let mut out = Vec::new();
    for request in recorded_requests() {
        match request {
            Request::Traces(traces) => out.extend(rows(Signal::Traces, &traces.encode_to_vec())),
            Request::Logs(logs) => out.extend(rows(Signal::Logs, &logs.encode_to_vec())),
        }
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for path in files(&fixtures.join("captures")).into_iter().chain(files(&fixtures.join("otlp"))) {
        let Some(signal) = signal(&path) else { continue };
        let bytes = std::fs::read(&path).unwrap();
        let is_json = path.extension().is_some_and(|e| e == "json");
        out.extend(rows(signal, &if is_json { json::transcode(signal, &bytes).unwrap() } else { bytes }));
    }
    out
}

fn event(row: &EventRow) -> Value {
    let mut line = String::new();
    encode(Format::Ocsf, row, &Context::of("example.org/log"), &mut line);
    serde_json::from_str(&line).unwrap()
}

#[test]
fn every_mapped_record_is_valid() {
    let rows = all_rows();
    let mut kinds: BTreeMap<(String, String), usize> = BTreeMap::new();
    for row in &rows {
        let event = event(row);
        let report = Schema::get().validate(&event);
        assert!(report.faults.is_empty(), "{:?} in {event:#}", report.faults);
        assert!(report.notes.is_empty(), "{:?} in {event:#}", report.notes);
        *kinds.entry((row.source.clone(), row.kind.clone())).or_default() += 1;
    }
    println!("{} events: {kinds:#?}", rows.len());
    let sources: BTreeSet<_> = kinds.keys().map(|(source, _)| source.as_str()).collect();
    for source in ["authz", "claude_code", "codex", "gemini", "openinference", "otel_genai"] {
        assert!(sources.contains(source), "{source} is not among {sources:?}");
    }
}

/// What a SIEM pulls is valid, says where each record stands in the log, and is the same by all ways.
#[test]
fn what_is_pulled_is_valid_and_proves_its_place() {
    let mut server = Server::start();
    server.send_grpc(recorded_requests());
    server.wait_until_visible();
    let (status, body) = server.get("/api/v1/events?format=ocsf&limit=10000");
    assert_eq!(status, 200, "{body}");
    let ledger = server.sql("SELECT seq, record_hash, chain_hash, leaf_hash FROM ledger");
    let entries: BTreeMap<u64, &Value> = ledger.iter().map(|row| (row["seq"].as_u64().unwrap(), row)).collect();
    let mut before = None;
    for line in body.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let report = Schema::get().validate(&event);
        assert!(report.faults.is_empty(), "{:?} in {event:#}", report.faults);
        let seq = event["metadata"]["sequence"].as_u64();
        assert!(seq >= before, "in the order of the log");
        before = seq;
        let entry = entries[&seq.unwrap()];
        for hash in ["record_hash", "chain_hash", "leaf_hash"] {
            assert_eq!(event["custody"][hash], entry[hash], "{hash} of {seq:?}");
        }
    }
    let count = server.sql("SELECT count(*) AS n FROM events")[0]["n"].as_u64().unwrap();
    assert_eq!(body.lines().count() as u64, count);
    assert_eq!(server.custody(&["events", "--format", "ocsf"]), body, "the command tells the same");
    for (format, is_line) in [
        ("ecs", (|line| line.starts_with("{\"@timestamp\":")) as fn(&str) -> bool),
        ("cef", |line| line.starts_with("CEF:0|Custody|Custody|")),
    ] {
        let (status, body) = server.get(&format!("/api/v1/events?format={format}&limit=10000"));
        assert_eq!((status, body.lines().count() as u64), (200, count));
        assert!(body.lines().all(is_line), "{format}");
    }
    server.stop_and_verify();
}

/// Valid events, and the same with every attribute removed, of another type, or beside an unknown one:
/// both validators say the same of each.
#[test]
fn another_validator_agrees_on_all_events_and_on_all_that_is_made_wrong() {
    let mut shown = BTreeSet::new();
    let mut cases: Vec<Value> = Vec::new();
    for row in all_rows() {
        let event = event(&row);
        let is_new = shown.insert((row.source.clone(), row.kind.clone(), row.decision.clone()));
        if is_new {
            changes(&event, &mut cases);
        }
        if is_new || cases.len().is_multiple_of(7) {
            cases.push(event);
        }
    }
    let ours: Vec<bool> = cases.iter().map(|event| Schema::get().validate(event).faults.is_empty()).collect();
    let theirs = oracle(&cases);
    assert_eq!(ours.len(), theirs.len());
    for ((case, ours), theirs) in cases.iter().zip(&ours).zip(&theirs) {
        let why = &Schema::get().validate(case).faults;
        assert_eq!(*ours, theirs == "valid", "we say {why:?}, they {theirs}: {case:#}");
    }
    let refused = ours.iter().filter(|valid| !**valid).count();
    println!("{} cases, {refused} of them refused by both", ours.len());
    assert!(refused > 1_000 && ours.len() - refused > shown.len());
}

/// The paths of all members of an event, but for what may hold anything.
fn paths(value: &Value, at: &str, out: &mut Vec<String>) {
    let mut go = |step: &str, inner: &Value| {
        let path = format!("{at}/{}", step.replace('~', "~0").replace('/', "~1"));
        paths(inner, &path, out);
        out.push(path);
    };
    match value {
        Value::Object(object) => {
            object.iter().filter(|(k, _)| !matches!(k.as_str(), "unmapped" | "data")).for_each(|(k, v)| go(k, v));
        }
        Value::Array(items) => items.iter().enumerate().take(1).for_each(|(i, v)| go(&i.to_string(), v)),
        _ => {}
    }
}

fn changes(event: &Value, out: &mut Vec<Value>) {
    let mut all = Vec::new();
    paths(event, "", &mut all);
    for path in all {
        let mut change = |with: &dyn Fn(&mut Value)| {
            let mut changed = event.clone();
            with(changed.pointer_mut(&path).unwrap());
            out.push(changed);
        };
        change(&|value| {
            *value = match value {
                Value::Number(_) => "x".into(),
                _ => 98.into(),
            }
        });
        change(&|value| match value {
            Value::Object(object) => drop(object.insert("no_such_attribute".into(), 1.into())),
            Value::Number(number) => *number = 98.into(),
            other => *other = serde_json::json!([[]]),
        });
        let (parent, name) = path.rsplit_once('/').unwrap();
        let mut changed = event.clone();
        if let Value::Object(object) = changed.pointer_mut(parent).unwrap() {
            object.shift_remove(name);
            out.push(changed);
        }
    }
}

/// What the other validator says of each.
fn oracle(cases: &[Value]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut child = Command::new(python())
        .args([root.join("tests/clients/ocsf_oracle.py"), root.join("docs/ocsf/custody")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let lines: String = cases.iter().map(|case| format!("{case}\n")).collect();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(lines.as_bytes()).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}
