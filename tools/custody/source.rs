//! Where a command reads from: a running server, or a data directory. For the
//! latter the same API is served to this process alone, so that both answer alike.

mod asking;
mod inflate;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use clap::Args;
use custody_query::serve::observe::Unobserved;
use custody_query::serve::{Served, router};
use custody_query::{Concurrency, Engine, Projection, QueryLimits, memory_for_queries};
use custody_store::Reader;
use serde_json::Value;

use crate::Failure;
use crate::credentials::Credentials;

pub use asking::{Ended, Part};

const SERVER: &str = "http://127.0.0.1:4680";

/// Where to read from.
#[derive(Args)]
pub struct From {
    /// The HTTP API of a running server [default: http://127.0.0.1:4680, if one answers there].
    #[arg(long, value_name = "URL", conflicts_with = "data_dir")]
    url: Option<String>,
    /// A data directory, read as it is on disk [default: ./custody-data, if no server answers].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    credentials: Credentials,
}

/// How often a directory is looked at anew when a file was merged away: merging comes to an end.
const LOOKS_MAX: usize = 8;

/// An API to ask.
pub struct Source {
    url: String,
    agent: RwLock<ureq::Agent>,
    credentials: Credentials,
    live: bool,
    /// The directory that is served to this process alone.
    dir: Option<PathBuf>,
    _own: Option<tokio::runtime::Runtime>,
}

impl From {
    /// The URL that was named.
    pub fn url(&self) -> Option<&str> {
        self.url.as_deref()
    }

    /// The data directory that was named.
    pub fn data_dir(&self) -> Option<&Path> {
        self.data_dir.as_deref()
    }

    /// The data directory whose process signs; `None` is that of a server: one that was named, or that there is.
    pub fn directory_to_change(&self) -> Option<&Path> {
        let own = Path::new("custody-data");
        match (&self.url, &self.data_dir) {
            (Some(_), _) => None,
            (None, Some(dir)) => Some(dir),
            (None, None) => own.exists().then_some(own),
        }
    }

    /// Connects to the server, or opens the directory.
    pub fn open(&self) -> Result<Source, Failure> {
        match (&self.url, &self.data_dir) {
            (Some(url), _) => Source::with(url, self.credentials.clone()),
            (None, Some(dir)) => Source::of_directory(dir),
            (None, None) => {
                let server = Source::with(SERVER, self.credentials.clone())?;
                if server.get("/healthz").is_ok() {
                    return Ok(server);
                }
                let dir = Path::new("custody-data");
                if !dir.exists() {
                    return Err(Failure::unable(format!(
                        "no server answers at {SERVER} and there is no ./custody-data; name one with --url or --data-dir"
                    )));
                }
                Source::of_directory(dir)
            }
        }
    }
}

/// An answer of the API.
pub struct Got {
    /// Header X-Next-Cursor.
    pub next_cursor: Option<String>,
    /// Header X-Has-More.
    pub has_more: bool,
    /// The body.
    pub body: Vec<u8>,
}

impl Source {
    /// The API at a URL of this machine, which asks for no identity.
    pub fn at(url: String) -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let agent = config.timeout_global(Some(Duration::from_secs(660))).build().new_agent();
        let agent = RwLock::new(agent);
        Self { url, agent, credentials: Credentials::default(), live: true, dir: None, _own: None }
    }

    /// The API at a URL, to which one comes with these.
    pub fn with(url: &str, credentials: Credentials) -> Result<Self, Failure> {
        let agent = RwLock::new(credentials.agent()?);
        Ok(Self { agent, credentials, ..Self::at(url.trim_end_matches('/').to_owned()) })
    }

    /// The value of `Authorization`, for a server that is not this process.
    fn authorization(&self) -> Result<Option<String>, Failure> {
        if self.live { self.credentials.authorization(&self.url) } else { Ok(None) }
    }

    /// Serves a data directory to this process alone.
    pub fn of_directory(dir: &Path) -> Result<Self, Failure> {
        let reader = Reader::open(dir).map_err(Failure::unable)?;
        let projection = Projection::of(reader).map_err(Failure::unable)?;
        let memory = memory_for_queries();
        let engine = Engine::new(projection).map_err(Failure::unable)?.with_limits(Concurrency::default(), memory);
        let limits = QueryLimits { memory_bytes_max: memory / 2, ..QueryLimits::default() };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(Failure::unable)?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0))).map_err(Failure::unable)?;
        let address = listener.local_addr().map_err(Failure::unable)?;
        let served = Served::new(engine, limits, Arc::new(Unobserved));
        let router = custody_query::everybody(router(served));
        runtime.spawn(axum::serve(listener, router).into_future());
        Ok(Self {
            live: false,
            dir: Some(dir.to_owned()),
            _own: Some(runtime),
            ..Self::at(format!("http://{address}"))
        })
    }

    /// What speaks to the server.
    fn agent(&self) -> ureq::Agent {
        self.agent.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The directory, if it is one.
    pub fn directory(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// The server, or the directory.
    pub fn name(&self) -> String {
        self.dir.as_ref().map_or_else(|| self.url.clone(), |dir| dir.display().to_string())
    }

    /// Whether new records can come.
    pub fn live(&self) -> bool {
        self.live
    }

    /// Fetches a path.
    pub fn get(&self, path: &str) -> Result<Got, Failure> {
        let mut request = self.agent().get(format!("{}{path}", self.url));
        if self.live {
            request = request.header("Accept-Encoding", inflate::ACCEPTED);
        }
        if let Some(value) = self.authorization()? {
            request = request.header("Authorization", value);
        }
        self.read(request.call())
    }

    /// Sends JSON to a path. The key tells a repeated request.
    pub fn post(&self, path: &str, body: &Value, key: Option<&str>) -> Result<Got, Failure> {
        let request = self.agent().post(format!("{}{path}", self.url)).header("Content-Type", "application/json");
        let request = match key {
            Some(key) => request.header("Idempotency-Key", key),
            None => request,
        };
        let request = match self.authorization()? {
            Some(value) => request.header("Authorization", value),
            None => request,
        };
        self.read(request.send(body.to_string().as_bytes()))
    }

    fn read(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Got, Failure> {
        let answer = answer.map_err(|e| Failure::unable(format!("{} does not answer: {e}", self.url)))?;
        let status = answer.status();
        let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (next_cursor, has_more) = (header("x-next-cursor"), header("x-has-more"));
        let encoding = header("content-encoding");
        let retry_after = header("retry-after").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
        let body = answer.into_body().into_with_config().limit(u64::MAX).reader();
        let body = inflate::read(encoding.as_deref(), body)
            .map_err(|e| Failure::unable(format!("{} broke off: {e}", self.url)))?;
        if !status.is_success() {
            return Err(Failure { retry_after, ..refusal(status.as_u16(), &body) });
        }
        Ok(Got { next_cursor, has_more: has_more.as_deref() == Some("true"), body })
    }
}

/// What the API says is wrong, with the position.
fn refusal(status: u16, body: &[u8]) -> Failure {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    if problem["message"].is_string() {
        // Not the question, but the server: ask it again.
        let failure = told(&problem, status == 429 || status >= 500);
        return Failure { next_cursor: problem["next_cursor"].as_str().map(str::to_owned), ..failure };
    }
    Failure::unable(format!("HTTP status {status}"))
}

fn told(problem: &Value, is_unable: bool) -> Failure {
    let message = problem["message"].as_str().unwrap_or("the server does not say what went wrong");
    let at = &problem["position"];
    match (at["line"].as_u64(), at["column"].as_u64()) {
        (Some(line), Some(column)) if !message.contains("Column: ") => {
            Failure::wrong(format!("line {line}, column {column}: {message}"))
        }
        _ if is_unable => Failure::unable(message),
        _ => Failure::wrong(message),
    }
}
