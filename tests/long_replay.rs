//! A trace of very many steps is replayed by the built binary in memory that its keys take, and no more:
//! CUSTODY_LONG_REPLAY=1000000 makes it a million.

mod support;

use std::io::{BufRead as _, BufReader};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use support::{Request, Server};

const BATCH: u64 = 2_000;
const TRACE: [u8; 16] = [0xab; 16];

/// Bytes that a step's keys may take, and bytes that are taken however long it is.
const STEP_BYTES: u64 = 320;
const FIXED_BYTES: u64 = 192 << 20;

fn text(key: &str, value: String) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value)) });
    KeyValue { key: key.into(), value, ..Default::default() }
}

/// Agents ten deep, and their calls, each with a kilobyte of arguments.
fn span(i: u64) -> Span {
    let above = if i < 10 { i } else { i % 10 + 1 };
    let mut attributes = vec![text("gen_ai.agent.id", format!("agent-{}", i % 10))];
    if i < 10 {
        attributes.push(text("gen_ai.operation.name", "invoke_agent".into()));
    } else {
        attributes.extend([
            text("gen_ai.operation.name", "execute_tool".into()),
            text("gen_ai.tool.name", format!("tool-{}", i % 7)),
            text("gen_ai.tool.call.id", format!("call-{i}")),
            text("gen_ai.tool.call.arguments", format!("{i:01000}")),
        ]);
    }
    Span {
        trace_id: TRACE.to_vec(),
        span_id: (i + 1).to_be_bytes().to_vec(),
        parent_span_id: if i == 0 { vec![] } else { above.to_be_bytes().to_vec() },
        name: format!("step {i}"),
        start_time_unix_nano: 1_795_165_200_000_000_000 + i * 1_000,
        end_time_unix_nano: 1_795_165_200_000_000_500 + i * 1_000,
        attributes,
        ..Default::default()
    }
}

fn request(first: u64, count: u64) -> Request {
    let spans = (first..first + count).map(span).collect();
    let scope_spans = vec![ScopeSpans { spans, ..Default::default() }];
    Request::Traces(ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { scope_spans, ..Default::default() }],
    })
}

/// A line of /proc/PID/status, in bytes.
fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_long_trace_is_replayed_in_the_memory_of_its_keys() {
    let steps: u64 = std::env::var("CUSTODY_LONG_REPLAY").ok().map_or(60_000, |n| n.parse().unwrap());
    let mut server = Server::start();
    for first in (0..steps).step_by(BATCH as usize) {
        server.send_grpc(vec![request(first, BATCH.min(steps - first))]);
    }
    let caught_up = || server.get("/metrics").1.contains("\ncustody_projection_lag_records 0\n");
    while !caught_up() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    // The high-water mark begins anew.
    std::fs::write(format!("/proc/{}/clear_refs", server.pid()), "5").unwrap();
    let before = memory(server.pid(), "VmRSS");
    let url = format!("http://{}/api/v1/replay?id={}", server.http, "ab".repeat(16));
    let answer = ureq::get(&url).call().unwrap();
    let (mut count, mut bytes) = (0, 0);
    for line in BufReader::new(answer.into_body().into_with_config().limit(u64::MAX).reader()).lines() {
        let line = line.unwrap();
        let start = format!("{{\"step\":{count},");
        assert!(line.starts_with(&start), "{line}");
        (count, bytes) = (count + 1, bytes + line.len() as u64);
    }
    assert_eq!(count, steps);
    let grown = memory(server.pid(), "VmHWM").saturating_sub(before);
    println!("{steps} steps, {bytes} bytes told; memory grew by {grown} bytes, {} a step", grown / steps);
    assert!(grown < steps * STEP_BYTES + FIXED_BYTES, "{grown} bytes for {steps} steps");
    server.stop();
}
