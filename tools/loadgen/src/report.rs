//! What a run came to: a line a step for people, JSON for programs.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::check::Found;
use crate::options::Options;
use crate::process::Usage;
use crate::readers::Told;
use crate::run::Step;
use crate::traffic::Traffic;

/// A step and what processes used during it.
pub struct Line {
    pub step: Step,
    pub server: Option<Usage>,
    pub own: Option<Usage>,
    /// How many readers there were, if they are measured, and what they came to.
    pub reader_count: Option<u16>,
    pub readers: Option<Told>,
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

/// What readers of a step came to, in words.
pub fn readers(told: &Told) -> String {
    let ms = |q: f64| told.lag.value_at_quantile(q) as f64 / 1e3;
    let mut out = format!(
        "           {} readers, {} slow: {} events, {:.0}/s delivered in {:.1} MB/s; to fast ones after p50 {:.0}, p99 {:.0}, max {:.0} ms; \
         {} wrong, {} behind",
        told.readers,
        told.slow,
        told.events,
        told.delivered as f64 / told.seconds.max(1e-9),
        told.bytes as f64 / 1e6 / told.seconds.max(1e-9),
        ms(0.5),
        ms(0.99),
        told.lag.max() as f64 / 1e3,
        told.wrong,
        told.behind,
    );
    if told.told_to_wait + told.broken > 0 {
        let _ = write!(out, ", {} times told to wait, {} connections broken", told.told_to_wait, told.broken);
    }
    for name in &told.named {
        let _ = write!(out, "\n           {name}");
    }
    out
}

/// The rate with each number of readers, as a share of that without, where both were measured.
pub fn cost(lines: &[Line]) -> Vec<(u16, f64)> {
    let mean = |readers: u16| {
        let rates: Vec<f64> = lines
            .iter()
            .filter(|line| line.reader_count == Some(readers))
            .map(|line| line.step.records_per_second())
            .collect();
        (!rates.is_empty()).then(|| rates.iter().sum::<f64>() / rates.len() as f64)
    };
    let mut counts: Vec<u16> = lines.iter().filter_map(|line| line.reader_count).filter(|count| *count > 0).collect();
    counts.sort_unstable();
    counts.dedup();
    let Some(without) = mean(0).filter(|rate| *rate > 0.0) else { return Vec::new() };
    counts.into_iter().filter_map(|count| Some((count, mean(count)? / without))).collect()
}

/// The same in words.
pub fn cost_line(readers: u16, share: f64) -> String {
    format!("with {readers} readers: {:.1} % of the records/s without", share * 100.0)
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
        "readers": line.reader_count.map(|count| line.readers.as_ref().map_or(json!({"readers": count}), readers_json)),
    })
}

fn readers_json(told: &Told) -> Value {
    json!({
        "readers": told.readers,
        "slow": told.slow,
        "events": told.events,
        "delivered_events": told.delivered,
        "delivered_bytes": told.bytes,
        "seconds": told.seconds,
        "lag_us": quantiles(&told.lag),
        "wrong": told.wrong,
        "behind": told.behind,
        "told_to_wait": told.told_to_wait,
        "broken_connections": told.broken,
        "named": told.named,
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
        "records_per_second_with_readers": cost(lines)
            .into_iter()
            .map(|(readers, share)| json!({"readers": readers, "share_of_without": share}))
            .collect::<Vec<_>>(),
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
        "open_loop": options.is_open_loop(),
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
        "readers": options.readers,
        "slow": options.slow,
        "readers_by": options.readers_by.iter().map(|way| way.name()).collect::<Vec<_>>(),
        "readers_encoding": options.readers_encoding.name(),
        "reader_kinds": options.reader_kinds,
    })
}
