//! The server watches itself: readiness, metrics, log lines and traces of its own.

mod disk;
pub mod log;
mod metrics;
mod process;
pub mod trace;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::HeaderMap;
use custody_ingest::redact::Redactor;
use custody_ingest::{Config, Door, Gate, Receivers, Sequencer, Stats};
use custody_query::serve::observe::{MetricsFormat, Observer};
use custody_query::{Engine, Projection, QueryStats};
use custody_store::measure::{Family, Value};
use custody_store::note::Note;
use custody_store::{Checkpoint, Reader};
use opentelemetry::Context;
use serde_json::{Value as Json, json};

use crate::Failure;
use crate::auth::reload::Guards;

/// With less room on the disk requests are refused, unless something else is asked for.
const DISK_FREE_MIN: u64 = 256 << 20;

/// How the server shall watch itself: settled before its parts are there.
pub struct Watch {
    traces: Option<trace::Settings>,
    gate: Arc<Gate>,
    disk_free_min: u64,
    draining: Arc<AtomicBool>,
}

impl Watch {
    /// By the flags of `custody serve`.
    pub fn new(endpoint: Option<&str>, ratio: Option<f64>, disk_free_min: Option<u64>) -> Result<Self, Failure> {
        let traces = trace::settings(endpoint, ratio)?;
        let gate = Arc::new(Gate::new(traces.as_ref().map(|traces| traces.instance.clone())));
        let disk_free_min = disk_free_min.unwrap_or(DISK_FREE_MIN);
        Ok(Self { traces, gate, disk_free_min, draining: Arc::default() })
    }

    /// Tells the receivers.
    pub fn configure(&self, config: &mut Config) {
        config.gate = Arc::clone(&self.gate);
        config.trace_ratio = self.traces.as_ref().map_or(0.0, |traces| traces.sampling.ingest);
    }

    /// Watches the parts of a server from now on.
    /// `api` is the door of the readers' listeners.
    pub fn begin(
        &self,
        receivers: &Receivers,
        engine: &Engine,
        api: &Arc<Door>,
        witnesses: bool,
        guards: Guards,
    ) -> Arc<Observed> {
        let reader = engine.projection().reader().clone();
        tokio::spawn(disk::guard(Arc::from(reader.dir()), self.disk_free_min, Arc::clone(&self.gate)));
        Arc::new(Observed {
            stats: receivers.stats(),
            doors: [("otlp", receivers.door()), ("api", Arc::clone(api))],
            start_size: reader.head().size,
            redactor: receivers.redactor(),
            queries: Arc::clone(engine.stats()),
            sequencer: receivers.sequencer(),
            projection: Arc::clone(engine.projection()),
            reader,
            disk_free_min: self.disk_free_min,
            draining: Arc::clone(&self.draining),
            witnesses,
            guards,
            sampling: self.traces.as_ref().map(|traces| traces.sampling),
        })
    }

    /// Exports traces, if that is asked for, and not to one of these listeners of our own.
    pub fn export(&self, own: &[SocketAddr]) -> Result<Option<trace::Exporting>, Failure> {
        let Some(traces) = &self.traces else { return Ok(None) };
        traces.refuse_self(own)?;
        traces.start().map(Some)
    }

    /// The same signal to stop; when it comes, the server is no longer ready.
    pub fn stopping(&self, stop: impl Future<Output = ()>) -> impl Future<Output = ()> {
        let draining = Arc::clone(&self.draining);
        async move {
            stop.await;
            draining.store(true, Relaxed);
        }
    }
}

/// All parts of a running server, as they are asked how they are.
pub struct Observed {
    /// What the receivers and the sequencer count.
    stats: Arc<Stats>,
    /// The doors of the OTLP ports, and of the HTTP API and Flight SQL.
    doors: [(&'static str, Arc<Door>); 2],
    /// How many records there were at the start: with fewer, queries are not ready.
    start_size: u64,
    /// Counts what it replaces.
    redactor: Option<Arc<Redactor>>,
    /// What queries count.
    queries: Arc<QueryStats>,
    /// The one that appends.
    sequencer: Sequencer,
    /// What queries see.
    projection: Arc<Projection>,
    /// Reads the log.
    reader: Reader,
    /// With less room on the disk than this, requests are refused.
    disk_free_min: u64,
    /// Set when the server begins to stop.
    draining: Arc<AtomicBool>,
    /// Whether witnesses are configured.
    witnesses: bool,
    /// TLS and identities.
    guards: Guards,
    /// Which requests are traced, if traces are exported.
    sampling: Option<trace::Sampling>,
}

/// How far queries are behind the log.
struct Lag {
    records: u64,
    seconds: f64,
}

/// What the newest checkpoint says.
#[derive(Clone, Copy, Default)]
struct Signed {
    size: u64,
    /// Seconds since the epoch, if a signature names it.
    time: Option<u64>,
}

impl Observed {
    fn lag(&self) -> Lag {
        let (visible, size) = (self.projection.snapshot().size, self.reader.head().size);
        let oldest = self.reader.commitments_at(visible).ok().flatten().filter(|_| visible < size);
        let seconds = oldest.map_or(0.0, |block| now() - block.ingest_time as f64 * 1e-9);
        Lag { records: size.saturating_sub(visible), seconds: seconds.max(0.0) }
    }

    fn signed(&self) -> Signed {
        let note = self.reader.checkpoint().ok().flatten().and_then(|note| Note::parse(&note).ok());
        let Some(note) = note else { return Signed::default() };
        let size = Checkpoint::parse_text(&note.text).map_or(0, |checkpoint| checkpoint.size);
        let keys = self.reader.keys();
        let time = keys.iter().filter_map(|key| key.find(&note).ok().flatten()?.time).max();
        Signed { size, time }
    }

    fn families(&self) -> Vec<Family> {
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        let help = "1; its label says which version runs";
        let mut out = vec![Family { name: "custody_build_info", help, rows: vec![(version, Value::Gauge(1.0))] }];
        let ready = f64::from(u8::from(self.readiness().0));
        out.push(Family::gauge("custody_ready", "1 while /readyz answers 200", ready));
        out.extend(self.stats.families());
        out.push(self.turned_away());
        out.extend(self.redactor.iter().flat_map(|redactor| redactor.families()));
        out.extend(self.log_families());
        out.extend(self.witness_families());
        out.extend(self.queries.families());
        out.extend(self.projection.checks().map(|live| live.families()).unwrap_or_default());
        out.extend(self.disk_families());
        out.extend(self.guards.families());
        out.extend(process::families());
        out
    }

    fn turned_away(&self) -> Family {
        let rows = self.doors.iter().flat_map(|(ports, door)| {
            door.turned_away().map(move |(reason, count)| {
                let labels = vec![("ports", (*ports).to_owned()), ("reason", reason.to_owned())];
                (labels, Value::Counter(count as f64))
            })
        });
        let help = "Connections turned away at the door, before anything was asked";
        Family { name: "custody_turned_away_connections", help, rows: rows.collect() }
    }

    fn log_families(&self) -> Vec<Family> {
        let (size, signed, lag) = (self.reader.head().size, self.signed(), self.lag());
        let running = f64::from(u8::from(self.projection.is_well()));
        let gauge = Family::gauge;
        let mut out = vec![
            gauge("custody_log_records", "Records in the log", size as f64),
            gauge(
                "custody_log_unsigned_records",
                "Durable records that no checkpoint covers yet",
                size.saturating_sub(signed.size) as f64,
            ),
            gauge("custody_checkpoint_records", "Records that the newest checkpoint covers", signed.size as f64),
            gauge("custody_projection_up", "1 while queries follow the log", running),
            gauge("custody_projection_lag_records", "Durable records that queries do not see yet", lag.records as f64),
            gauge(
                "custody_projection_lag_seconds",
                "How long the oldest record that queries do not see has been in the log",
                lag.seconds,
            ),
        ];
        let (segments, bytes, in_memory) = self.projection.snapshot().extent();
        out.push(gauge("custody_segments", "Ranges of the log whose rows are sealed", segments as f64));
        out.push(gauge("custody_segment_bytes", "Bytes of the files of sealed rows", bytes as f64));
        out.push(gauge("custody_rows_in_memory_bytes", "Bytes of rows that are not sealed, about", in_memory as f64));
        if let Some(time) = signed.time {
            let time = time as f64;
            let (stamp, age) = ("custody_checkpoint_timestamp_seconds", "custody_checkpoint_age_seconds");
            out.push(gauge(stamp, "When the newest checkpoint was signed, since unix epoch", time));
            out.push(gauge(age, "Seconds since the newest checkpoint was signed", (now() - time).max(0.0)));
        }
        out
    }

    fn witness_families(&self) -> Vec<Family> {
        if !self.witnesses {
            return Vec::new();
        }
        let witnessed = self.reader.newest_witnessed().ok().flatten().map_or(0, |kept| kept.size);
        let lag = self.signed().size.saturating_sub(witnessed);
        vec![
            Family::gauge(
                "custody_witnessed_records",
                "Records that the newest checkpoint covers that enough witnesses cosigned",
                witnessed as f64,
            ),
            Family::gauge("custody_witness_lag_records", "Signed records that are not witnessed yet", lag as f64),
        ]
    }

    fn disk_families(&self) -> Vec<Family> {
        let dir = self.reader.dir();
        let mut out = vec![
            Family::gauge("custody_disk_log_bytes", "Bytes of the log's files", disk::used(dir) as f64),
            Family::gauge(
                "custody_disk_free_min_bytes",
                "With less than this free, requests are refused",
                self.disk_free_min as f64,
            ),
        ];
        let free = disk::free(dir);
        out.extend(free.map(|free| {
            Family::gauge("custody_disk_free_bytes", "Bytes that can still be written to the log's disk", free as f64)
        }));
        out
    }
}

impl Observer for Observed {
    fn metrics(&self, format: MetricsFormat) -> String {
        metrics::render(self.families(), format)
    }

    fn readiness(&self) -> (bool, Json) {
        let (failed, draining) = (self.sequencer.failed_now(), self.draining.load(Relaxed));
        let (size, lag, free) = (self.reader.head().size, self.lag(), disk::free(self.reader.dir()));
        let unsigned = size.saturating_sub(self.signed().size);
        let room = free.is_none_or(|free| free >= self.disk_free_min);
        let state = |well: bool, yes: &'static str, no: &'static str| if well { yes } else { no };
        let mut log = json!({"state": state(failed.is_none(), "ok", "failed"), "records": size});
        let mut reasons = Vec::new();
        if let Some(why) = failed {
            reasons.push(format!("the log failed: {why}"));
            log["reason"] = why.into();
        }
        if draining {
            reasons.push("the server is stopping: what was begun is finished, nothing new is taken".into());
        }
        if !self.projection.is_well() {
            reasons.push("the projection stopped: queries see the log only up to there; restart".into());
        }
        let visible = self.projection.snapshot().size;
        if visible < self.start_size {
            reasons.push(format!("queries are catching up with the log: {visible} of {} records", self.start_size));
        }
        if !room {
            reasons.push(format!("the disk is nearly full: less than {} bytes are free", self.disk_free_min));
        }
        let parts = json!({
            "log": log,
            "receivers": {"state": state(draining, "draining", state(room, "accepting", "refusing"))},
            "projection": {
                "state": state(self.projection.is_well(), "ok", "stopped"),
                "lag_records": lag.records, "lag_seconds": lag.seconds,
            },
            // Without a signer records are taken and kept, and signed when it is back.
            "signer": {"state": state(self.stats.signing_fails(), "failing", "ok"), "unsigned_records": unsigned},
            "disk": {"state": state(room, "ok", "low"), "free_bytes": free, "free_bytes_min": self.disk_free_min},
        });
        (reasons.is_empty(), json!({"ready": reasons.is_empty(), "reasons": reasons, "parts": parts}))
    }

    fn traced(&self, headers: &HeaderMap) -> Option<Context> {
        self.sampling.as_ref()?.traced(headers)
    }
}

/// Seconds since the epoch.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
