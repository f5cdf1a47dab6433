//! What a run came to: a line a step for people, JSON for programs.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::check::Found;
use crate::options::Options;
use crate::process::Usage;
use crate::run::Step;
use crate::traffic::Traffic;

/// A step and what processes used during it.
pub struct Line {
    pub step: Step,
    pub server: Option<Usage>,
    pub own: Option<Usage>,
}

/// The heading of the table.
pub fn heading() -> String {
    format!(
        "{:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8} {:>10} {:>9} {:>9}",
        "asked/s",
        "records/s",
        "MB/s",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "failed",
        "not begun",
        "CPU us",
        "RSS MB"
    )
}

/// CPU microseconds for each acknowledged record.
fn cpu_micros(usage: Option<Usage>, records: u64) -> Option<f64> {
    usage.filter(|_| records > 0).map(|usage| usage.cpu_seconds * 1e6 / records as f64)
}

/// A step as a line of the table; CPU and memory are the server's.
pub fn line(line: &Line) -> String {
    let step = &line.step;
    let ms = |q: f64| step.latency.value_at_quantile(q) as f64 / 1e3;
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    format!(
        "{:>10} {:>10.0} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>8.1} {:>8} {:>10} {:>9} {:>9}",
        or_dash(step.rate.map(|rate| format!("{rate:.0}"))),
        step.records_per_second(),
        step.bytes as f64 / 1e6 / step.seconds.max(1e-9),
        ms(0.5),
        ms(0.9),
        ms(0.99),
        ms(0.999),
        step.latency.max() as f64 / 1e3,
        step.failed,
        step.not_begun,
        or_dash(cpu_micros(line.server, step.records).map(|us| format!("{us:.2}"))),
        or_dash(line.server.map(|usage| format!("{:.0}", usage.rss_bytes_max as f64 / 1e6))),
    )
}

/// Errors of a step in words, if there were any.
pub fn errors(step: &Step) -> Option<String> {
    let list: Vec<String> = step.errors.iter().map(|(what, times)| format!("{what}: {times}")).collect();
    (!list.is_empty()).then(|| format!("           {}", list.join(", ")))
}

/// What the check found, in words.
pub fn check(found: &Found) -> String {
    let mut out = format!(
        "check: {} of {} acknowledged records are in the ledger, {} missing, {} doubled; of the others {} are there \
         ({:.1} s)",
        found.present, found.acknowledged, found.missing, found.doubled, found.unacknowledged_present, found.seconds
    );
    for name in &found.named {
        let _ = write!(out, "\n  {name}");
    }
    if (found.missing + found.doubled) as usize > found.named.len() {
        out.push_str("\n  and more");
    }
    out
}

fn quantiles(histogram: &Histogram<u64>) -> Value {
    if histogram.is_empty() {
        return Value::Null;
    }
    let at = |q: f64| histogram.value_at_quantile(q);
    json!({
        "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p99.9": at(0.999), "max": histogram.max(),
        "mean": histogram.mean(),
    })
}

fn step_json(line: &Line) -> Value {
    let step = &line.step;
    let usage = |usage: Option<Usage>| {
        usage.map(|u| {
            json!({
                "cpu_seconds": u.cpu_seconds,
                "cpu_us_per_record": cpu_micros(Some(u), step.records),
                "rss_bytes_max": u.rss_bytes_max,
            })
        })
    };
    json!({
        "rate": step.rate,
        "seconds": step.seconds,
        "records": step.records,
        "records_per_second": step.records_per_second(),
        "requests": step.requests,
        "bytes": step.bytes,
        "failed_requests": step.failed,
        "rejected_records": step.rejected,
        "retries": step.retries,
        "resent_requests": step.resent,
        "not_begun_requests": step.not_begun,
        "errors": step.errors,
        "latency_us": quantiles(&step.latency),
        "begun_late_us": quantiles(&step.lag),
        "server": usage(line.server),
        "generator": usage(line.own),
    })
}

/// The whole run as JSON. The bearer token is not in it.
pub fn json(options: &Options, traffic: &Traffic, lines: &[Line], check: Option<&Result<Found, String>>) -> Value {
    let check = check.map(|result| match result {
        Ok(found) => json!({
            "acknowledged": found.acknowledged, "present": found.present, "missing": found.missing,
            "doubled": found.doubled, "unacknowledged_present": found.unacknowledged_present,
            "named": found.named, "log_size": found.log_size, "seconds": found.seconds,
        }),
        Err(error) => json!({"error": error}),
    });
    json!({
        "program": "custody-loadgen",
        "version": env!("CARGO_PKG_VERSION"),
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
        "run": traffic.run(),
        "parameters": parameters(options),
        "steps": lines.iter().map(step_json).collect::<Vec<_>>(),
        "check": check,
    })
}

fn parameters(options: &Options) -> Value {
    let name = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
    json!({
        "target": options.target,
        "protocol": name(&options.protocol),
        "gzip": options.gzip,
        "connections": options.connections,
        "open_loop": options.step_rates()[0].is_some(),
        "in_flight_max": options.in_flight(),
        "step_seconds": options.step_time().map(|time| time.as_secs_f64()),
        "count": options.count,
        "batch": options.batch,
        "payload_bytes": options.payload_bytes,
        "spread": options.spread,
        "signals": name(&options.signals),
        "seed": options.seed,
        "base_time": options.base_time,
        "late": options.late,
        "late_by_seconds": options.late_by.as_secs_f64(),
        "resend": options.resend,
        "timeout_seconds": options.timeout.as_secs_f64(),
        "retry_for_seconds": options.retry_for.as_secs_f64(),
        "threads": options.threads,
    })
}
