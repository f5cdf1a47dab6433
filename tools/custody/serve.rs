//! `custody serve`: receivers, log, projection and API in one process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use custody_ingest::{Config, Cors, Door, Receivers, Tongue};
use custody_query::serve::{Served, router};
use custody_query::{Engine, Projection};
use custody_store::{Durability, KeySource, Options};
use serde::Deserialize;

use crate::auth::layer;
use crate::event_flags::EventFlags;
use crate::limits::{LimitFlags, set, set_request_bytes};
use crate::observe::Watch;
use crate::observe::log::{self, LogFormat};
use crate::process::{address, listen, stop_signal};
use crate::queries::QueryFlags;
use crate::ready::{Addresses, announce, write_ready_file};
use crate::rules::CheckFlags;
use crate::security::SecurityFlags;
use crate::segments::{SegmentFlags, forget};
use crate::witnesses::Witnesses;
use crate::{Failure, control};

/// Receive OTLP, keep it, and answer questions about it.
///
/// On loopback it needs no configuration. On other addresses it listens only with TLS
/// (--tls-cert, --tls-key) and a policy (--policy) that says who may do what.
#[derive(Args, Default)]
pub struct Serve {
    /// Where everything is kept; made if it is not there [default: ./custody-data].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// A TOML file with the same settings (data_dir, otlp_grpc, ...); flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// OTLP over gRPC [default: 127.0.0.1:4317]; port 0 is any free one.
    #[arg(long, value_name = "ADDR", value_parser = address)]
    otlp_grpc: Option<SocketAddr>,
    /// OTLP over HTTP [default: 127.0.0.1:4318].
    #[arg(long, value_name = "ADDR", value_parser = address)]
    otlp_http: Option<SocketAddr>,
    /// HTTP API, Jaeger's query API and page [default: 127.0.0.1:4680].
    #[arg(long, value_name = "ADDR", value_parser = address)]
    http: Option<SocketAddr>,
    /// Arrow Flight SQL [default: 127.0.0.1:4681].
    #[arg(long, value_name = "ADDR", value_parser = address)]
    flight_sql: Option<SocketAddr>,
    /// Written, as JSON with the bound addresses, once all of them answer.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// The name of a new log: a URL without its scheme, such as logs.example.com/agents.
    #[arg(long, value_name = "NAME")]
    origin: Option<String>,
    /// Largest request in bytes after decompression [default: 67108864].
    #[arg(long, value_name = "BYTES")]
    request_bytes_max: Option<usize>,
    /// Most bytes received and not yet durable [default: 268435456].
    #[arg(long, value_name = "BYTES")]
    in_flight_bytes_max: Option<u64>,
    /// An origin whose pages may send over OTLP/HTTP, such as https://app.example.com, or *
    /// for all of them; may be repeated [default: none].
    #[arg(long = "cors-origin", value_name = "ORIGIN")]
    cors_origins: Vec<String>,
    /// What an acknowledgement promises: fsync (survives a power cut) or os (survives
    /// kill -9 only) [default: fsync]. The level is in the log.
    #[arg(long, value_name = "LEVEL", value_parser = durability)]
    durability: Option<Durability>,
    /// A file with the signing keys, instead of keys/log.key in the data directory. The
    /// environment variable CUSTODY_SIGNING_KEY holds the same lines.
    #[arg(long, value_name = "FILE", conflicts_with = "signer")]
    signing_key: Option<PathBuf>,
    /// The Unix socket of a process that holds the signing keys (see `custody signer`).
    #[arg(long, value_name = "SOCKET")]
    signer: Option<PathBuf>,
    /// Go on with a log that was restored from a backup. What was signed after that backup
    /// is then contradicted.
    #[arg(long)]
    after_restore: bool,
    /// Erase the content of records older than this, such as 90d; entries and proofs stay
    /// [default: keep everything].
    #[arg(long, value_name = "AGE", value_parser = crate::keep::age)]
    retain: Option<Duration>,
    /// A C2SP tlog-policy file: witnesses to submit checkpoints to, and how many must cosign.
    #[arg(long, value_name = "FILE")]
    witness_policy: Option<PathBuf>,
    /// How often a new checkpoint is submitted to the witnesses [default: 60].
    #[arg(long, value_name = "SECONDS")]
    witness_interval: Option<f64>,
    /// With less room than this on the disk of the log, requests are refused until there is
    /// more [default: 268435456]; 0 never.
    #[arg(long, value_name = "BYTES")]
    disk_free_min: Option<u64>,
    /// How log lines on standard error look [default: text].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// What is logged: error, warn, info, debug, trace, or a filter such as
    /// info,custody_ingest=debug [default: that in CUSTODY_LOG or RUST_LOG, or info].
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Export traces of this server itself by OTLP over HTTP to this URL, which must be of
    /// another server. OTEL_EXPORTER_OTLP_ENDPOINT and its relatives are heeded too
    /// [default: none are made].
    #[arg(long, value_name = "URL")]
    trace_endpoint: Option<String>,
    /// The part of OTLP requests that are traced, 0 to 1 [default: 0.01]; of other requests
    /// OTEL_TRACES_SAMPLER says which, or all are.
    #[arg(long, value_name = "RATIO")]
    trace_ratio: Option<f64>,
    /// Replace what these rules name in every request, before anything is stored: `secrets`
    /// (the rules that come with custody) or a rule file; may be given more than once. The
    /// log says which rules are in force. Try them with `custody redact`.
    #[arg(long, value_name = "RULES")]
    redact: Vec<String>,
    /// Check the tokens of grants (`authz.grant.token`) against the keys of this issuer: a file
    /// with a JWK set, `ISSUER=FILE`, or FILE alone for any issuer; may be given more than once.
    /// What was mapped before is checked anew by `custody rebuild`.
    #[arg(long, value_name = "ISSUER=FILE")]
    issuer_jwks: Vec<String>,
    #[command(flatten)]
    limits: LimitFlags,
    #[command(flatten)]
    events: EventFlags,
    #[command(flatten)]
    queries: QueryFlags,
    #[command(flatten)]
    segments: SegmentFlags,
    #[command(flatten)]
    checks: CheckFlags,
    #[command(flatten)]
    security: SecurityFlags,
}

fn durability(text: &str) -> Result<Durability, String> {
    let levels = [Durability::Fsync, Durability::Os];
    levels.into_iter().find(|level| level.name() == text).ok_or_else(|| "the levels are fsync and os".into())
}

/// Erases what is older than the age, every hour, a few writes at a time so that
/// appends get their turn.
async fn retain(sequencer: custody_ingest::Sequencer, projection: Arc<Projection>, age: Duration) {
    let mut hourly = tokio::time::interval(Duration::from_secs(3600).min(age.max(Duration::from_secs(1))));
    loop {
        hourly.tick().await;
        let mut records = 0;
        loop {
            let erased = sequencer.command(move |writer| {
                let end = writer.reader().first_at(crate::keep::ago(age))?;
                let erasure = custody_store::Erasure {
                    seqs: custody_store::system::SeqSet::of(std::iter::once(0..end)),
                    cause: custody_store::Cause::Retention,
                    reason: format!("older than {} s", age.as_secs()),
                    actor: "configuration: --retain".into(),
                    identity: "system:custody".into(),
                };
                writer.erase_some(&erasure, 2)
            });
            match erased.await {
                Ok(Ok(erased)) => {
                    records += erased.records;
                    if erased.left.is_empty() {
                        break;
                    }
                }
                Ok(Err(error)) => {
                    tracing::error!(%error, "content older than --retain could not be erased");
                    break;
                }
                Err(_) => return,
            }
        }
        if records > 0 {
            tracing::info!(records, "content older than --retain was erased");
            let projection = Arc::clone(&projection);
            let purge = move || projection.reader().purge().and_then(|()| forget(&projection));
            let purged = tokio::task::spawn_blocking(purge);
            if let Ok(Err(error)) = purged.await {
                tracing::error!(%error, "erased content may still lie in files; a restart purges it");
            }
        }
    }
}

/// The settings of the file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    data_dir: Option<PathBuf>,
    otlp_grpc: Option<SocketAddr>,
    otlp_http: Option<SocketAddr>,
    http: Option<SocketAddr>,
    flight_sql: Option<SocketAddr>,
    ready_file: Option<PathBuf>,
    origin: Option<String>,
    request_bytes_max: Option<usize>,
    in_flight_bytes_max: Option<u64>,
    cors_origins: Vec<String>,
    durability: Option<String>,
    signing_key: Option<PathBuf>,
    signer: Option<PathBuf>,
    retain: Option<String>,
    witness_policy: Option<PathBuf>,
    witness_interval: Option<f64>,
    disk_free_min: Option<u64>,
    log_format: Option<LogFormat>,
    log_level: Option<String>,
    trace_endpoint: Option<String>,
    trace_ratio: Option<f64>,
    redact: Vec<String>,
    issuer_jwks: Vec<String>,
    limits: LimitFlags,
    events: EventFlags,
    queries: QueryFlags,
    security: SecurityFlags,
    checks: CheckFlags,
    segment_rows_max: Option<u64>,
    segment_bytes_max: Option<usize>,
    segment_seconds_max: Option<u64>,
    segment_merge_rows_max: Option<u64>,
}

impl Serve {
    /// Runs until SIGTERM or Ctrl-C, then finishes what was accepted and signs.
    pub fn run(self) -> Result<(), Failure> {
        let settings = self.with_file()?;
        log::start(settings.log_format.unwrap_or_default(), settings.log_level.as_deref())?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::unable)?;
        let result = runtime.block_on(settings.serve());
        runtime.shutdown_timeout(Duration::from_secs(2));
        result
    }

    fn with_file(self) -> Result<Self, Failure> {
        let Some(path) = &self.config else { return Ok(self) };
        let wrong = |e: &dyn std::fmt::Display| Failure::unable(format!("--config {}: {e}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
        let file: File = toml::from_str(&text).map_err(|e| wrong(&e.to_string().replace('\n', " ")))?;
        let place = path.display().to_string();
        fn parse<T>(
            place: &str,
            key: &str,
            value: Option<String>,
            parse: fn(&str) -> Result<T, String>,
        ) -> Result<Option<T>, Failure> {
            let read = value.map(|text| parse(&text)).transpose();
            read.map_err(|e| Failure::unable(format!("{place}: {key}: {e}")))
        }
        Ok(Self {
            data_dir: self.data_dir.or(file.data_dir),
            otlp_grpc: self.otlp_grpc.or(file.otlp_grpc),
            otlp_http: self.otlp_http.or(file.otlp_http),
            http: self.http.or(file.http),
            flight_sql: self.flight_sql.or(file.flight_sql),
            ready_file: self.ready_file.or(file.ready_file),
            origin: self.origin.or(file.origin),
            request_bytes_max: self.request_bytes_max.or(file.request_bytes_max),
            in_flight_bytes_max: self.in_flight_bytes_max.or(file.in_flight_bytes_max),
            cors_origins: if self.cors_origins.is_empty() { file.cors_origins } else { self.cors_origins },
            durability: self.durability.or(parse(&place, "durability", file.durability, durability)?),
            signing_key: self.signing_key.or(file.signing_key),
            signer: self.signer.or(file.signer),
            after_restore: self.after_restore,
            retain: self.retain.or(parse(&place, "retain", file.retain, crate::keep::age)?),
            witness_policy: self.witness_policy.or(file.witness_policy),
            witness_interval: self.witness_interval.or(file.witness_interval),
            disk_free_min: self.disk_free_min.or(file.disk_free_min),
            log_format: self.log_format.or(file.log_format),
            log_level: self.log_level.or(file.log_level),
            trace_endpoint: self.trace_endpoint.or(file.trace_endpoint),
            trace_ratio: self.trace_ratio.or(file.trace_ratio),
            redact: if self.redact.is_empty() { file.redact } else { self.redact },
            issuer_jwks: if self.issuer_jwks.is_empty() { file.issuer_jwks } else { self.issuer_jwks },
            limits: self.limits.or(file.limits),
            events: self.events.or(file.events),
            queries: self.queries.or(file.queries),
            segments: self.segments.or(SegmentFlags {
                segment_rows_max: file.segment_rows_max,
                segment_bytes_max: file.segment_bytes_max,
                segment_seconds_max: file.segment_seconds_max,
                segment_merge_rows_max: file.segment_merge_rows_max,
            }),
            checks: self.checks.or(file.checks),
            security: self.security.or(file.security),
            config: self.config,
        })
    }

    async fn serve(self) -> Result<(), Failure> {
        // RocksDB and every connection need files; what the system allows is taken.
        let _ = rlimit::increase_nofile_limit(OPEN_FILES);
        crate::security::no_core_dumps();
        let begun = std::time::SystemTime::now();
        let watch = Watch::new(self.trace_endpoint.as_deref(), self.trace_ratio, self.disk_free_min)?;
        let mut config = self.receivers()?;
        watch.configure(&mut config);
        config.tls = self.security.tls()?;
        let door = Door::new(config.connections.clone(), config.tls.clone());
        let redactor = crate::redact::load(&self.redact)?;
        crate::segments::issuers(&self.issuer_jwks)?;
        let http = self.http.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 4680)));
        self.security.admits("--http", http)?;
        let flight_sql = self.flight_sql.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 4681)));
        self.security.admits("--flight-sql", flight_sql)?;
        let witness_interval = self.witness_interval()?;
        let checker = self.checks.load().await?;
        let dir = self.data_dir.clone().unwrap_or_else(|| "custody-data".into());
        // The listeners first: a port that is taken should not cost opening the log.
        let api = listen("the HTTP API", "--http", http).await?;
        let flight = listen("Flight SQL", "--flight-sql", flight_sql).await?;
        let options = self.options();
        let (mut writer, reader) = custody_store::open(&dir, options).map_err(Failure::unable)?;
        crate::security::warn_of_readers(&dir);
        config.redactor = crate::redact::put_in_force(redactor, &mut writer)?;
        let redactor = config.redactor.clone();
        let witnesses = self.witness_policy.as_deref();
        let witnesses = witnesses.map(|policy| Witnesses::new(reader.clone(), policy, witness_interval)).transpose()?;
        let guards = self.security.guards(config.tls.clone(), &reader, begun, &self.queries).await?;
        config.guard = guards.auth.clone().map(|auth| auth as Arc<dyn custody_ingest::Guard>);
        let receivers = Receivers::bind(config, writer).await.map_err(Failure::unable)?;
        let _finish = Finish(receivers.sequencer());
        let bound = receivers.bound().map_err(Failure::unable)?;
        let (projection, follower) =
            Projection::follow(reader.clone(), self.segments.limits()).map_err(Failure::unable)?;
        if let Some(within) = self.limits.freshness()? {
            receivers.sequencer().keep_pace(projection.visible(), within);
        }
        let engine = guards.bind(Engine::new(projection).map_err(Failure::unable)?);
        let recorder = Arc::new(crate::record::Appender(receivers.sequencer()));
        guards.begin(recorder.clone()).await.map_err(Failure::unable)?;
        let engine = self.queries.apply(engine, recorder.clone(), redactor, guards.auth.is_some())?;
        let checks = CheckFlags::follow(checker, &engine, recorder.clone())?;
        // Not waited for: it gives way to what comes in.
        drop(engine.warm().map_err(Failure::unable)?);
        let observed = watch.begin(&receivers, &engine, &door, witnesses.is_some(), guards.clone());
        let (limits, asked) = (self.queries.limits()?, engine.audit().clone());
        let flight_service = custody_query::serve::flight::service(engine.clone(), observed.clone(), &limits);
        let sequencer = receivers.sequencer();
        let projected = engine.projection().clone();
        let catching_up = Arc::clone(&projected);
        let served = Served::new(engine, limits, observed).with_recorder(recorder.clone()).with_exporter(recorder);
        let served = served.with_events(self.events.events(&dir, sequencer.clone())?);
        let event_export = self.events.export(&served)?;
        let addresses = Addresses {
            otlp: bound,
            http: api.local_addr().map_err(Failure::unable)?,
            flight_sql: flight.local_addr().map_err(Failure::unable)?,
        };
        let own = [addresses.otlp.grpc, addresses.otlp.http, addresses.http, addresses.flight_sql];
        let exporting = watch.export(&own)?;
        if guards.auth.is_some() {
            // With identities it is not everybody's word that counts for people.
            let named = custody_query::serve::alerts::configure_speakers(&served, true, &[]).await;
            named.map_err(Failure::unable)?;
        }
        let event_service = custody_query::serve::events::grpc::service(served.clone());
        let api_service = router(served.clone());
        let flight_service = tonic::service::Routes::new(flight_service).add_service(event_service);
        let flight_service = flight_service.prepare().into_axum_router();
        // Those who read have threads of their own, which give way.
        let reading = custody_query::Threads::for_readers().map_err(Failure::unable)?;
        let readers = reading.handle().map_err(Failure::unable)?.spawn({
            let (door, auth) = (Arc::clone(&door), guards.auth.clone());
            async move {
                tokio::join!(
                    door.accept(&api, Tongue::Http, layer::over(auth.clone(), api_service, Tongue::Http)),
                    door.accept(&flight, Tongue::Grpc, layer::over(auth, flight_service, Tongue::Grpc)),
                )
            }
        });
        // Commands of this machine read the directory where the API asks who they are.
        let url = guards.is_open().then(|| addresses.http.to_string());
        let info = serde_json::json!({"http": url, "pid": std::process::id()});
        control::Server { sequencer: sequencer.clone(), projection: Arc::clone(&projected), info, served }
            .start(&dir)?;
        if let Some(age) = self.retain {
            tokio::spawn(retain(sequencer, projected, age));
        }
        let stop = watch.stopping(stop_signal()?);
        let scheme = if guards.tls.is_some() { "https" } else { "http" };
        announce(self.log_format.unwrap_or_default(), &dir, &addresses, &reader, scheme);
        if let Some(path) = self.ready_file.clone() {
            let (dir, reader) = (dir.clone(), reader.clone());
            tokio::spawn(async move {
                // Records are taken meanwhile; queries see all that was there before.
                let (size, mut visible) = (reader.head().size, catching_up.visible());
                let _ = visible.wait_for(|visible| *visible >= size).await;
                if let Err(error) = write_ready_file(&path, &dir, &addresses, &reader) {
                    tracing::error!(?error, "the ready file could not be written");
                }
            });
        }
        let witnesses = witnesses.map(|witnesses| tokio::spawn(witnesses.run(receivers.sequencer())));
        let checking = checks.as_ref().map(|checks| Arc::clone(checks.live()));
        let stop = async move {
            stop.await;
            guards.end(&asked).await;
            // What is not judged by now is, after the next start.
            checking.inspect(|live| live.stop());
        };
        let result = receivers.run(stop).await;
        control::Server::stop(&dir);
        // What was not submitted by now is, after the next start.
        witnesses.inspect(|task| task.abort());
        event_export.inspect(|task| task.abort());
        // Long polls and streams end with the process; their cursors resume.
        let _ = tokio::time::timeout(Duration::from_secs(1), door.close()).await;
        readers.abort();
        let _ = tokio::task::spawn_blocking(move || drop((checks, follower))).await;
        if let Some(exporting) = exporting {
            let _ = tokio::task::spawn_blocking(move || exporting.stop()).await;
        }
        result.map_err(|e| Failure::unable(format!("the log failed: {e}; start again to recover it")))?;
        tracing::info!(records = reader.head().size, "stopped; everything accepted is durable and signed");
        Ok(())
    }

    fn options(&self) -> Options {
        let keys = match (&self.signing_key, &self.signer, std::env::var("CUSTODY_SIGNING_KEY")) {
            (Some(file), _, _) => KeySource::File(file.clone()),
            (None, Some(socket), _) => KeySource::Socket(socket.clone()),
            (None, None, Ok(text)) => KeySource::Text(text),
            (None, None, Err(_)) => KeySource::Directory,
        };
        let durability = self.durability.unwrap_or_default();
        let after_restore = self.after_restore;
        Options { origin: self.origin.clone(), keys, durability, after_restore, ..Options::default() }
    }

    fn witness_interval(&self) -> Result<Duration, Failure> {
        let seconds = self.witness_interval.unwrap_or(60.0);
        if !(0.01..=86_400.0).contains(&seconds) {
            return Err(Failure::unable(format!("--witness-interval {seconds} is not between 0.01 and 86400 seconds")));
        }
        Ok(Duration::from_secs_f64(seconds))
    }

    fn receivers(&self) -> Result<Config, Failure> {
        let mut config = Config::default();
        config.grpc = self.otlp_grpc.unwrap_or(config.grpc);
        config.http = self.otlp_http.unwrap_or(config.http);
        self.security.admits("--otlp-grpc", config.grpc)?;
        self.security.admits("--otlp-http", config.http)?;
        set_request_bytes(self.request_bytes_max, &mut config.limits.body_bytes_max)?;
        set("--in-flight-bytes-max", self.in_flight_bytes_max, &mut config.in_flight.bytes_max)?;
        self.limits.apply(&mut config)?;
        config.cors = Cors::new(&self.cors_origins).map_err(|e| Failure::unable(format!("--cors-origin: {e}")))?;
        Ok(config)
    }
}

/// How many open files are asked of the system.
const OPEN_FILES: u64 = 65_536;

/// Ends the thread that appends, also when the start fails later on: the process must not
/// end under it.
struct Finish(custody_ingest::Sequencer);

impl Drop for Finish {
    fn drop(&mut self) {
        let _ = self.0.finish();
    }
}
