//! `custody witness`: a C2SP tlog-witness of other logs.
//!
//! The rules and the state are `custody_store::witness`; this file has the socket,
//! the clock and the log lines.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use clap::Args;
use custody_store::note::VerifierKey;
use custody_store::witness::{Refusal, SUBMISSION_BYTES_MAX, Witness as Cosigner};
use custody_store::{Clock as _, SystemClock};

use crate::Failure;
use crate::observe::log::{self, LogFormat};
use crate::process::{address, listen, only_loopback, replace, stop_signal};

/// Cosign the checkpoints of other logs, as long as they only grow.
///
/// A witness of C2SP tlog-witness: it remembers, on disk before it answers, the
/// newest checkpoint that it cosigned of each log, and refuses what does not extend
/// it. Run it where the operators of those logs have no access. It needs no data
/// directory of a ledger.
#[derive(Args)]
pub struct Witness {
    /// Where its keys and what it cosigned are kept; made if it is not there.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Its name, under which it signs: a URL without its scheme, such as witness.example.com/w1.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Where it answers; port 0 is any free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4690", value_parser = address)]
    listen: SocketAddr,
    /// The public keys of a log to cosign: its log.vkey. Once for each log.
    #[arg(long, value_name = "VKEYFILE", required = true)]
    log: Vec<PathBuf>,
    /// A file of note signer keys (types 04 and 06) [default: DIR/keys/witness.key, made if it is not there].
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Written, as JSON with the bound address, once it answers.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

impl Witness {
    /// Runs until SIGTERM or Ctrl-C.
    pub fn run(self) -> Result<(), Failure> {
        log::start(LogFormat::Text, None)?;
        crate::security::no_core_dumps();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.map_err(Failure::unable)?.block_on(self.serve())
    }

    async fn serve(self) -> Result<(), Failure> {
        only_loopback("--listen", self.listen)?;
        let mut logs = Vec::new();
        for path in &self.log {
            logs.extend(read_vkeys(path)?);
        }
        let listener = listen("the witness", "--listen", self.listen).await?;
        let address = listener.local_addr().map_err(Failure::unable)?;
        let opened = Cosigner::open(&self.state, &self.name, self.key.as_deref(), logs).map_err(Failure::unable)?;
        let vkeys: String = opened.verifiers().iter().map(|key| format!("{key}\n")).collect();
        replace(&self.state.join("witness.vkey"), &vkeys)?;
        let stop = stop_signal()?;
        eprintln!("custody witness {}", env!("CARGO_PKG_VERSION"));
        eprintln!("  state           {}", self.state.display());
        for vkey in vkeys.lines() {
            eprintln!("  public key      {vkey}");
        }
        for (origin, size) in opened.logs() {
            eprintln!("  cosigns         {origin}  (at {size})");
        }
        eprintln!("  submissions     http://{address}/add-checkpoint");
        if let Some(path) = &self.ready_file {
            let vkeys: Vec<&str> = vkeys.lines().collect();
            let ready = serde_json::json!({
                "http": address.to_string(), "name": self.name, "vkeys": vkeys, "pid": std::process::id(),
            });
            replace(path, &format!("{ready}\n"))?;
        }
        let served = axum::serve(listener, router(Arc::new(opened))).with_graceful_shutdown(stop);
        served.await.map_err(Failure::unable)
    }
}

/// The public keys in a file, a line each.
fn read_vkeys(path: &Path) -> Result<Vec<VerifierKey>, Failure> {
    let wrong = |e: &dyn std::fmt::Display| Failure::unable(format!("--log {}: {e}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let keys = lines.map(VerifierKey::parse).collect::<Result<Vec<_>, _>>().map_err(|e| wrong(&e))?;
    let first = keys.first().ok_or_else(|| wrong(&"it holds no key; give the log's log.vkey"))?;
    if keys.iter().any(|key| key.name() != first.name()) {
        return Err(wrong(&"its keys are of different logs; give each log a file of its own"));
    }
    Ok(keys)
}

fn router(witness: Arc<Cosigner>) -> Router {
    Router::new()
        .route("/add-checkpoint", post(add_checkpoint))
        .route("/{origin_sha256}/checkpoint", get(newest))
        .route("/healthz", get(async || "ok\n"))
        .layer(DefaultBodyLimit::max(SUBMISSION_BYTES_MAX))
        .with_state(witness)
}

async fn add_checkpoint(State(witness): State<Arc<Cosigner>>, body: Bytes) -> Response {
    let Ok(body) = String::from_utf8(body.into()) else {
        return answer(StatusCode::BAD_REQUEST, "the body is not UTF-8\n".into());
    };
    let now = SystemClock::default().now() / 1_000_000_000;
    // It waits for the disk.
    let done = tokio::task::spawn_blocking(move || witness.add_checkpoint(&body, now)).await;
    match done {
        Ok(Ok(lines)) => answer(StatusCode::OK, lines),
        Ok(Err(refusal)) => refuse(&refusal),
        Err(_) => answer(StatusCode::SERVICE_UNAVAILABLE, "the witness is stopping\n".into()),
    }
}

fn refuse(refusal: &Refusal) -> Response {
    if refusal.is_inconsistent() {
        tracing::error!(status = refusal.status(), "not cosigned: {refusal}; see evidence/ in the state directory");
    } else if matches!(refusal, Refusal::Failed(_)) {
        tracing::error!("nothing is cosigned until a restart: {refusal}");
    } else {
        tracing::info!(status = refusal.status(), "not cosigned: {refusal}");
    }
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match refusal.size() {
        Some(size) => (status, [(header::CONTENT_TYPE, "text/x.tlog.size")], format!("{size}\n")).into_response(),
        None => answer(status, format!("{refusal}\n")),
    }
}

/// The newest cosigned checkpoint of a log, for monitors.
async fn newest(State(witness): State<Arc<Cosigner>>, UrlPath(origin_sha256): UrlPath<String>) -> Response {
    match witness.newest(&origin_sha256) {
        Some(note) => answer(StatusCode::OK, note),
        None => {
            answer(StatusCode::NOT_FOUND, "no checkpoint was cosigned of a log whose origin has this SHA-256\n".into())
        }
    }
}

fn answer(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}
