//! Measures the hot path beside bare loops over the same bytes, in one run.
//!
//! ```text
//! cargo run --release -p custody-benches -- all|ingest|single|half [batch]|verify|append|redact|size|proofs [records]
//! cargo run --release -p custody-benches -- ingest --all
//! cargo run --release -p custody-benches -- ingest --payload 2048 --batch 512
//! cargo run --release -p custody-benches -- checks [SIZE,...]
//! cargo run --release -p custody-benches -- query [--records N] [--dir DIR] [--python PYTHON] [--lookups N]
//! ```
//!
//! `ingest`: spans over OTLP/gRPC into the receivers and the log, in a process of
//! its own whose CPU time is read from the kernel, beside a loop that copies,
//! hashes (BLAKE3), compresses (LZ4, by RocksDB) and writes the same requests with
//! one fsync each; with options for spans of other sizes and for other batches.
//! `single` and `half`: how long one request takes beside one bare fsync, on an idle
//! server and at half its highest rate. `verify`: a log, beside plain BLAKE3 over its payloads. `append`:
//! the log without sockets, beside bare RocksDB. `proofs`: of a large log.
//! `checks`: CPU of an event with the checks on and off, at growing sizes of the log.
//! `query`: lookups, chains and replays cold and warm, scans beside plain DataFusion and DuckDB
//! over the same files, freshness, and how fast rows are made. `redact`: the built-in rules,
//! beside the scan. `size`: bytes on disk beside zstd. Quote
//! the ratios: absolute times are those of this machine on this day.

mod checks;
mod ingest;
mod latency;
mod log;
mod query;
mod redact;
mod size;
mod sized;
mod verify;

use std::process::ExitCode;

/// What the `custody` command has: another allocator would measure another server.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", dir] => ingest::serve(dir),
        ["ingest"] => ingest::run(),
        ["ingest", options @ ..] => match sizes(options) {
            Some((payloads, batches)) => ingest::run_sized(&payloads, &batches),
            None => return usage(),
        },
        ["single"] => latency::single(),
        ["half"] => latency::half(512),
        ["half", batch] => match batch.parse() {
            Ok(batch) if batch > 0 => latency::half(batch),
            _ => return usage(),
        },
        ["verify"] => verify::run(),
        ["append"] => log::append(),
        ["redact"] => redact::run(),
        ["checks"] => checks::run(&checks::SIZES),
        ["checks", list] => {
            match list.split(',').map(|n| n.parse().ok().filter(|n| *n >= 1000)).collect::<Option<Vec<u64>>>() {
                Some(sizes) if sizes.is_sorted() => checks::run(&sizes),
                _ => return usage(),
            }
        }
        ["query", options @ ..] => match asked(options) {
            Some(asked) => query::run(&asked),
            None => return usage(),
        },
        ["size"] => size::run(),
        ["proofs"] => log::proofs(10_000_000),
        ["proofs", records] => match records.parse() {
            Ok(records) => log::proofs(records),
            Err(_) => return usage(),
        },
        ["all"] => {
            ingest::run();
            verify::run();
        }
        _ => return usage(),
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: custody-benches all|ingest|single|half [batch]|verify|append|redact|size|proofs [records]\n       \
         custody-benches ingest [--all] [--payload BYTES,...] [--batch SPANS,...]\n       \
         custody-benches checks [SIZE,...]\n       \
         custody-benches query [--records N] [--dir DIR] [--python PYTHON] [--lookups N]"
    );
    ExitCode::from(2)
}

/// How large a log to ask, and where it is.
fn asked(mut options: &[&str]) -> Option<query::Asked> {
    let mut asked = query::Asked { records: 200_000, dir: None, python: None, lookups: 200 };
    loop {
        options = match options {
            [] => return (asked.records >= 100_000 && asked.lookups > 0).then_some(asked),
            ["--records", n, rest @ ..] => {
                asked.records = n.parse().ok()?;
                rest
            }
            ["--dir", dir, rest @ ..] => {
                asked.dir = Some(dir.into());
                rest
            }
            ["--python", python, rest @ ..] => {
                asked.python = Some((*python).to_owned());
                rest
            }
            ["--lookups", n, rest @ ..] => {
                asked.lookups = n.parse().ok()?;
                rest
            }
            _ => return None,
        };
    }
}

/// Which sizes and batches to measure: the usual ones where none is named.
fn sizes(mut options: &[&str]) -> Option<(Vec<usize>, Vec<u64>)> {
    let (mut payloads, mut batches) = (sized::PAYLOADS.to_vec(), sized::BATCHES.to_vec());
    loop {
        options = match options {
            [] => return Some((payloads, batches)),
            ["--all", rest @ ..] => rest,
            ["--payload", list, rest @ ..] => {
                payloads = list.split(',').map(|n| n.parse().ok().filter(|n| *n >= 150)).collect::<Option<_>>()?;
                rest
            }
            ["--batch", list, rest @ ..] => {
                batches = list.split(',').map(|n| n.parse().ok().filter(|n| *n > 0)).collect::<Option<_>>()?;
                rest
            }
            _ => return None,
        };
    }
}

/// Trace requests of `batch` spans of about 500 bytes, all with ids of their own.
fn requests(count: u64, batch: u64) -> Vec<Vec<u8>> {
    requests_from(0, count, batch)
}

/// The same, of a longer series: from the request with this number on.
fn requests_from(first: u64, count: u64, batch: u64) -> Vec<Vec<u8>> {
    use custody_proto::otlp::collector_trace::ExportTraceServiceRequest;
    use custody_proto::otlp::common::{AnyValue, KeyValue, any_value::Value};
    use custody_proto::otlp::resource::Resource;
    use custody_proto::otlp::trace::{ResourceSpans, ScopeSpans, Span};
    use prost::Message as _;
    let text = |key: &str, value: String| KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(Value::StringValue(value)) }),
        ..Default::default()
    };
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ first;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut span = |id: u64| Span {
        trace_id: [(id / 20 + 1).to_be_bytes(), [7; 8]].concat(),
        span_id: (id + 1).to_be_bytes().to_vec(),
        parent_span_id: (id / 20 + 1).to_be_bytes().to_vec(),
        name: format!("execute_tool tool_{}", id % 40),
        kind: 1,
        start_time_unix_nano: 1_700_000_000_000_000_000 + id * 1_000,
        end_time_unix_nano: 1_700_000_000_000_500_000 + id * 1_000,
        attributes: vec![
            text("gen_ai.operation.name", "execute_tool".into()),
            text("gen_ai.tool.name", format!("tool_{}", id % 40)),
            text("gen_ai.tool.call.id", format!("call_{:016x}", random())),
            text("gen_ai.agent.id", format!("agent-{}", id % 100)),
            text("authz.grant.id", format!("grant-{:016x}", id / 50)),
            text(
                "gen_ai.tool.call.arguments",
                format!("{{\"recipient\": \"{:020}\", \"amount\": {}}}", random(), id % 5000),
            ),
            text("gen_ai.tool.call.result", format!("{:016x}{:016x} sent to the account", random(), random())),
        ],
        ..Default::default()
    };
    let mut request = |number: u64| {
        let spans = (0..batch).map(|i| span(number * batch + i)).collect();
        let resource = Resource { attributes: vec![text("service.name", "bench-agent".into())], ..Default::default() };
        let scope_spans = vec![ScopeSpans { spans, ..Default::default() }];
        let resource_spans = vec![ResourceSpans { resource: Some(resource), scope_spans, ..Default::default() }];
        ExportTraceServiceRequest { resource_spans }.encode_to_vec()
    };
    (first..first + count).map(&mut request).collect()
}

/// CPU seconds (user and system) of a process so far.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may have blanks; the fields behind it have none.
    let fields: Vec<&str> = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
