//! Redaction with the built-in rules, beside the scan that every request has: over the
//! recorded agents, and over the worst text that was found.

use std::hint::black_box;
use std::time::Instant;

use custody_ingest::redact::{BUILT_IN, Redactor};
use custody_proto::otlp::collector_logs::ExportLogsServiceRequest;
use custody_proto::otlp::common::{AnyValue, any_value::Value};
use custody_proto::otlp::logs::{LogRecord, ResourceLogs, ScopeLogs};
use custody_proto::{Limits, Signal, scan};
use prost::Message as _;

use crate::median;

const ROUNDS: usize = 7;

/// The recorded agents; the framing is described beside the file.
const RECORDED: &[u8] = include_bytes!("../../tests/fixtures/agentdojo/requests.otlp.zst");

/// Text with the keywords of all rules close together.
const WORST: &str = include_str!("../../ingest/rules/gitleaks.toml");

/// Prints a line for each text.
pub fn run() {
    let start = Instant::now();
    let redactor = Redactor::load(&[BUILT_IN.to_owned()]).expect("the built-in rules");
    println!("redact: rules read in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    measure("recorded agents", &redactor, &recorded());
    measure("the worst text", &redactor, &[(Signal::Logs, log(WORST.repeat(10)))]);
}

fn measure(name: &str, redactor: &Redactor, requests: &[(Signal, Vec<u8>)]) {
    let limits = Limits::default();
    let timed = |work: &dyn Fn(Signal, &[u8])| {
        let start = Instant::now();
        for (signal, request) in requests {
            work(*signal, request);
        }
        start.elapsed().as_secs_f64()
    };
    let scanned = |signal, request: &[u8]| drop(black_box(scan(signal, request, &limits)));
    let redacted = |signal, request: &[u8]| drop(black_box(redactor.apply(signal, request, &limits)));
    // Once before: regexes are compiled when they are first needed.
    timed(&redacted);
    let scan_seconds = median((0..ROUNDS).map(|_| timed(&scanned)).collect());
    let seconds = median((0..ROUNDS).map(|_| timed(&redacted)).collect());
    let bytes: usize = requests.iter().map(|(_, request)| request.len()).sum();
    println!(
        "redact, {name}: {} requests, {bytes} bytes: {:.1} MB/s, {:.1} ms; their scan {:.1} ms (medians of {ROUNDS})",
        requests.len(),
        bytes as f64 / 1e6 / seconds,
        seconds * 1e3,
        scan_seconds * 1e3,
    );
}

fn recorded() -> Vec<(Signal, Vec<u8>)> {
    let bytes = zstd::decode_all(RECORDED).expect("the recorded agents");
    let mut rest = bytes.as_slice();
    let mut out = Vec::new();
    while let [signal, a, b, c, d, tail @ ..] = rest {
        let (body, after) = tail.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        out.push((Signal::from_byte(*signal).expect("a signal"), body.to_vec()));
        rest = after;
    }
    out
}

fn log(text: String) -> Vec<u8> {
    let body = Some(AnyValue { value: Some(Value::StringValue(text)) });
    let scope_logs =
        vec![ScopeLogs { log_records: vec![LogRecord { body, ..Default::default() }], ..Default::default() }];
    ExportLogsServiceRequest { resource_logs: vec![ResourceLogs { scope_logs, ..Default::default() }] }.encode_to_vec()
}
