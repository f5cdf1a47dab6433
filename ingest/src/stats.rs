//! What the receivers count, for Prometheus.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use custody_proto::Signal;

/// Counters since the start. All are monotonic but `in_flight_bytes`.
#[derive(Debug, Default)]
pub struct Stats {
    records: [AtomicU64; 3],
    rejected: [AtomicU64; 3],
    refused_invalid: AtomicU64,
    refused_too_large: AtomicU64,
    refused_unavailable: AtomicU64,
    requests: AtomicU64,
    duplicates: AtomicU64,
    conflicts: AtomicU64,
    bytes: AtomicU64,
    commits: AtomicU64,
    commit_nanos: AtomicU64,
    /// Bytes of requests that are being received or wait for the log.
    pub(crate) in_flight_bytes: AtomicU64,
}

impl Stats {
    pub(crate) fn accepted(&self, signal: Signal, appended: u64, duplicates: u64, conflicts: u64, bytes: u64) {
        self.requests.fetch_add(1, Relaxed);
        self.records[slot(signal)].fetch_add(appended, Relaxed);
        self.duplicates.fetch_add(duplicates, Relaxed);
        self.conflicts.fetch_add(conflicts, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn rejected(&self, signal: Signal, records: u64) {
        self.rejected[slot(signal)].fetch_add(records, Relaxed);
    }

    pub(crate) fn refused(&self, refusal: &crate::Refusal) {
        use crate::Refusal as R;
        let counter = match refusal {
            R::Invalid(_) | R::Unsupported(_) => &self.refused_invalid,
            R::TooLarge(_) => &self.refused_too_large,
            R::Unavailable { .. } => &self.refused_unavailable,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn committed(&self, nanos: u64) {
        self.commits.fetch_add(1, Relaxed);
        self.commit_nanos.fetch_add(nanos, Relaxed);
    }

    /// All counters in Prometheus' text format.
    pub fn render_prometheus(&self) -> String {
        let mut out = String::with_capacity(2048);
        let mut family = |name: &str, help: &str, kind: &str, rows: &[(String, f64)]| {
            let _ = writeln!(out, "# HELP custody_{name} {help}\n# TYPE custody_{name} {kind}");
            for (labels, value) in rows {
                let _ = writeln!(out, "custody_{name}{labels} {value}");
            }
        };
        let get = |counter: &AtomicU64| counter.load(Relaxed) as f64;
        let one = |counter: &AtomicU64| vec![(String::new(), get(counter))];
        let by_signal = |counters: &[AtomicU64; 3]| {
            let row = |(i, name): (usize, &str)| (format!("{{signal=\"{name}\"}}"), get(&counters[i]));
            ["span", "log", "metric"].into_iter().enumerate().map(row).collect::<Vec<_>>()
        };
        family("ingest_requests_total", "Requests acknowledged.", "counter", &one(&self.requests));
        family("ingest_records_total", "Records appended to the log.", "counter", &by_signal(&self.records));
        family(
            "ingest_rejected_records_total",
            "Records refused by partial success.",
            "counter",
            &by_signal(&self.rejected),
        );
        family("ingest_duplicate_records_total", "Records the log had already.", "counter", &one(&self.duplicates));
        family(
            "ingest_conflicting_spans_total",
            "Spans whose id came with other content.",
            "counter",
            &one(&self.conflicts),
        );
        family("ingest_bytes_total", "Payload bytes acknowledged.", "counter", &one(&self.bytes));
        let refused = [
            ("invalid", &self.refused_invalid),
            ("too_large", &self.refused_too_large),
            ("unavailable", &self.refused_unavailable),
        ]
        .map(|(reason, counter)| (format!("{{reason=\"{reason}\"}}"), get(counter)));
        family("ingest_refused_requests_total", "Requests refused whole.", "counter", &refused);
        family("ingest_in_flight_bytes", "Bytes received and not yet durable.", "gauge", &one(&self.in_flight_bytes));
        family("log_commits_total", "Group commits.", "counter", &one(&self.commits));
        let seconds = vec![(String::new(), get(&self.commit_nanos) / 1e9)];
        family("log_commit_seconds_total", "Time in group commits, fsync included.", "counter", &seconds);
        out
    }
}

fn slot(signal: Signal) -> usize {
    usize::from(signal.byte()) - 1
}
