//! What the receivers and the sequencer count, for Prometheus. Counting costs a few
//! relaxed atomic additions for a request or a commit, and nothing for a record.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use custody_proto::Signal;
use custody_store::measure::{COUNTS, Family, Histogram, TIMES, Value};

use crate::status::Reason;

/// What a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP.
    Http,
}

const TRANSPORTS: [&str; 2] = ["grpc", "http"];
const SIGNALS: [&str; 3] = ["span", "log", "metric"];

/// The kinds of identities: what stands before the first colon.
const IDENTITIES: [&str; 4] = ["peer", "spiffe", "cert", "jwt"];

/// Ns to seconds.
const SECONDS: f64 = 1e-9;

type PerSignal = [AtomicU64; 3];

/// What is counted for each transport.
#[derive(Debug)]
struct Way {
    requests: PerSignal,
    records: PerSignal,
    refused: [AtomicU64; Reason::ALL.len()],
    connections: AtomicU64,
    in_flight: AtomicU64,
    seconds: Histogram,
}

impl Default for Way {
    fn default() -> Self {
        Self {
            requests: Default::default(),
            records: Default::default(),
            refused: Default::default(),
            connections: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            seconds: Histogram::new(TIMES),
        }
    }
}

/// Counters since the start, and gauges of what is now.
#[derive(Debug)]
pub struct Stats {
    ways: [Way; 2],
    rejected: PerSignal,
    duplicates: PerSignal,
    conflicts: AtomicU64,
    /// Records that the log had from somebody else, by the kind of who sent them again.
    foreign: [AtomicU64; IDENTITIES.len()],
    bytes: AtomicU64,
    /// Body bytes as they came.
    pub(crate) received_bytes: AtomicU64,
    /// Body bytes after decompression.
    pub(crate) decompressed_bytes: AtomicU64,
    /// Bytes of requests that are being received or wait for the log.
    pub(crate) in_flight_bytes: AtomicU64,
    queue_requests: AtomicU64,
    queue_bytes: AtomicU64,
    commit_seconds: Histogram,
    write_seconds: Histogram,
    group_requests: Histogram,
    group_records: Histogram,
    sign_failures: AtomicU64,
    sign_failing: AtomicBool,
    /// Ns.
    rested: AtomicU64,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            ways: Default::default(),
            rejected: Default::default(),
            duplicates: Default::default(),
            conflicts: AtomicU64::new(0),
            foreign: Default::default(),
            bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            decompressed_bytes: AtomicU64::new(0),
            in_flight_bytes: AtomicU64::new(0),
            queue_requests: AtomicU64::new(0),
            queue_bytes: AtomicU64::new(0),
            commit_seconds: Histogram::new(TIMES),
            write_seconds: Histogram::new(TIMES),
            group_requests: Histogram::new(COUNTS),
            group_records: Histogram::new(COUNTS),
            sign_failures: AtomicU64::new(0),
            sign_failing: AtomicBool::new(false),
            rested: AtomicU64::new(0),
        }
    }
}

/// What became of the records of an acknowledged request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Accepted {
    pub appended: u64,
    pub duplicates: u64,
    pub conflicts: u64,
    pub bytes: u64,
}

/// A request in progress; its time is counted when this is dropped.
pub(crate) struct Timed {
    stats: Arc<Stats>,
    transport: Transport,
    start: Instant,
}

impl Drop for Timed {
    fn drop(&mut self) {
        let way = self.stats.way(self.transport);
        way.in_flight.fetch_sub(1, Relaxed);
        way.seconds.observe(self.start.elapsed().as_nanos() as u64);
    }
}

/// An open connection.
pub(crate) struct Connected(Arc<Stats>, Transport);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.way(self.1).connections.fetch_sub(1, Relaxed);
    }
}

/// A request that waits for the sequencer.
pub(crate) struct Queued(Arc<Stats>, u64);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.queue_requests.fetch_sub(1, Relaxed);
        self.0.queue_bytes.fetch_sub(self.1, Relaxed);
    }
}

/// One group that became durable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed {
    pub requests: u64,
    pub records: u64,
    /// The whole commit, in ns.
    pub nanos: u64,
    /// Its write and fsync, in ns, if the log says so.
    pub write_nanos: Option<u64>,
}

impl Stats {
    fn way(&self, transport: Transport) -> &Way {
        match transport {
            Transport::Grpc => &self.ways[0],
            Transport::Http => &self.ways[1],
        }
    }

    pub(crate) fn begin(self: &Arc<Self>, transport: Transport) -> Timed {
        self.way(transport).in_flight.fetch_add(1, Relaxed);
        Timed { stats: Arc::clone(self), transport, start: Instant::now() }
    }

    pub(crate) fn connected(self: &Arc<Self>, transport: Transport) -> Connected {
        self.way(transport).connections.fetch_add(1, Relaxed);
        Connected(Arc::clone(self), transport)
    }

    pub(crate) fn queued(self: &Arc<Self>, bytes: u64) -> Queued {
        self.queue_requests.fetch_add(1, Relaxed);
        self.queue_bytes.fetch_add(bytes, Relaxed);
        Queued(Arc::clone(self), bytes)
    }

    pub(crate) fn accepted(&self, transport: Transport, signal: Signal, what: Accepted) {
        let way = self.way(transport);
        way.requests[slot(signal)].fetch_add(1, Relaxed);
        way.records[slot(signal)].fetch_add(what.appended, Relaxed);
        self.bytes.fetch_add(what.bytes, Relaxed);
        if what.duplicates > 0 {
            self.duplicates[slot(signal)].fetch_add(what.duplicates, Relaxed);
        }
        if what.conflicts > 0 {
            self.conflicts.fetch_add(what.conflicts, Relaxed);
        }
    }

    pub(crate) fn rejected(&self, signal: Signal, records: u64) {
        if records > 0 {
            self.rejected[slot(signal)].fetch_add(records, Relaxed);
        }
    }

    pub(crate) fn refused(&self, transport: Transport, refusal: &crate::Refusal) {
        self.way(transport).refused[refusal.reason() as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn committed(&self, what: Committed) {
        self.commit_seconds.observe(what.nanos);
        self.group_requests.observe(what.requests);
        self.group_records.observe(what.records);
        if let Some(nanos) = what.write_nanos {
            self.write_seconds.observe(nanos);
        }
    }

    /// Requests waited so long for readers to keep up.
    pub(crate) fn rested(&self, time: Duration) {
        self.rested.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// Records that somebody else had sent before, byte for byte: they are acknowledged, and
    /// the log goes on to name the first sender alone.
    pub(crate) fn foreign(&self, identity: &str, records: u64) {
        let kind = identity.split_once(':').map_or(identity, |(kind, _)| kind);
        if let Some(at) = IDENTITIES.iter().position(|known| *known == kind) {
            self.foreign[at].fetch_add(records, Relaxed);
        }
    }

    /// Whether a checkpoint could be signed.
    pub(crate) fn signed(&self, well: bool) {
        self.sign_failing.store(!well, Relaxed);
        if !well {
            self.sign_failures.fetch_add(1, Relaxed);
        }
    }

    /// Whether the last checkpoint could not be signed, because the signer did not answer.
    pub fn signing_fails(&self) -> bool {
        self.sign_failing.load(Relaxed)
    }

    /// All that is counted.
    pub fn families(&self) -> Vec<Family> {
        let mut out = self.request_families();
        out.extend(self.record_families());
        out.extend(self.log_families());
        out
    }

    fn request_families(&self) -> Vec<Family> {
        let refused = self.ways().flat_map(|(transport, way)| {
            Reason::ALL.iter().zip(&way.refused).map(move |(reason, counter)| {
                let labels = vec![("transport", transport.to_owned()), ("reason", reason.name().to_owned())];
                (labels, count(counter))
            })
        });
        let refused = refused.collect();
        let by_transport = |read: fn(&Way) -> Value| {
            self.ways().map(|(name, way)| (vec![("transport", name.to_owned())], read(way))).collect()
        };
        let families: [(_, _, Vec<_>); 5] = [
            ("custody_ingest_requests", "OTLP requests acknowledged", self.by_signal(|way| &way.requests)),
            ("custody_ingest_refused_requests", "OTLP requests refused whole", refused),
            (
                "custody_ingest_request_duration_seconds",
                "Time from an OTLP request's head to its answer",
                by_transport(|way| way.seconds.read(SECONDS)),
            ),
            (
                "custody_ingest_requests_in_flight",
                "OTLP requests that have begun and are not answered",
                by_transport(|way| gauge(&way.in_flight)),
            ),
            (
                "custody_ingest_connections",
                "Connections to the OTLP ports",
                by_transport(|way| gauge(&way.connections)),
            ),
        ];
        families.into_iter().map(|(name, help, rows)| Family { name, help, rows }).collect()
    }

    fn record_families(&self) -> Vec<Family> {
        let rejected = SIGNALS.iter().zip(&self.rejected).map(|(signal, counter)| {
            // Of a wrong id, or above a limit: the partial success says which.
            (vec![("signal", (*signal).to_owned()), ("reason", "invalid".to_owned())], count(counter))
        });
        let rejected = rejected.collect();
        let duplicates = SIGNALS.into_iter().zip(&self.duplicates);
        vec![
            Family {
                name: "custody_ingest_records",
                help: "Records appended to the log",
                rows: self.by_signal(|way| &way.records),
            },
            Family {
                name: "custody_ingest_rejected_records",
                help: "Records refused by partial success",
                rows: rejected,
            },
            Family::counters(
                "custody_ingest_duplicate_records",
                "Records that the log had already",
                "signal",
                duplicates,
            ),
            Family::counters(
                "custody_ingest_foreign_duplicate_records",
                "Records that the log had already, from another sender, by the kind of this one's identity",
                "identity",
                IDENTITIES.into_iter().zip(&self.foreign),
            ),
            Family::counter(
                "custody_ingest_conflicting_spans",
                "Spans appended whose id the log has with other content",
                &self.conflicts,
            ),
            Family::counter("custody_ingest_bytes", "Payload bytes of acknowledged requests", &self.bytes),
            Family::counter("custody_ingest_received_bytes", "Body bytes received, as they came", &self.received_bytes),
            Family::counter(
                "custody_ingest_decompressed_bytes",
                "Body bytes received, after decompression",
                &self.decompressed_bytes,
            ),
            Family::one(
                "custody_ingest_in_flight_bytes",
                "Bytes received and not yet durable",
                gauge(&self.in_flight_bytes),
            ),
        ]
    }

    fn log_families(&self) -> Vec<Family> {
        let one = Family::one;
        let failing = f64::from(u8::from(!self.signing_fails()));
        vec![
            one("custody_queue_requests", "Requests that wait for the sequencer", gauge(&self.queue_requests)),
            one("custody_queue_bytes", "Payload bytes that wait for the sequencer", gauge(&self.queue_bytes)),
            one(
                "custody_log_commit_duration_seconds",
                "Time of a group commit, its write and fsync included",
                self.commit_seconds.read(SECONDS),
            ),
            one(
                "custody_log_fsync_duration_seconds",
                "Time of the one write and fsync that makes a group durable",
                self.write_seconds.read(SECONDS),
            ),
            one(
                "custody_ingest_paced_seconds",
                "Time that requests waited for rows to keep up (--freshness)",
                Value::Counter(self.rested.load(Relaxed) as f64 * SECONDS),
            ),
            one("custody_log_commit_requests", "Requests in a group commit", self.group_requests.read(1.0)),
            one("custody_log_commit_records", "Records appended by a group commit", self.group_records.read(1.0)),
            Family::gauge("custody_signer_up", "1 unless the last checkpoint could not be signed", failing),
            Family::counter(
                "custody_checkpoint_failures",
                "Checkpoints that could not be signed; they are tried again",
                &self.sign_failures,
            ),
        ]
    }

    fn ways(&self) -> impl Iterator<Item = (&'static str, &Way)> {
        TRANSPORTS.into_iter().zip(&self.ways)
    }

    fn by_signal(&self, of: fn(&Way) -> &PerSignal) -> Vec<(Vec<(&'static str, String)>, Value)> {
        let rows = self.ways().flat_map(|(transport, way)| {
            SIGNALS.into_iter().zip(of(way)).map(move |(signal, counter)| {
                (vec![("transport", transport.to_owned()), ("signal", signal.to_owned())], count(counter))
            })
        });
        rows.collect()
    }
}

fn count(counter: &AtomicU64) -> Value {
    Value::Counter(counter.load(Relaxed) as f64)
}

fn gauge(counter: &AtomicU64) -> Value {
    Value::Gauge(counter.load(Relaxed) as f64)
}

fn slot(signal: Signal) -> usize {
    usize::from(signal.byte()) - 1
}
