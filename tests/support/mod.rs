//! Drives the built binary as its users do.

// Each test file uses its own part of this.
#![allow(dead_code)]

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use prost::Message as _;
use serde_json::Value;

/// The built binary.
pub const CUSTODY: &str = env!("CARGO_BIN_EXE_custody");

/// How long a test waits for what must come: machines are slow at times, and what comes costs nothing to wait for.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Flags that make a server listen on free ports.
pub const FREE_PORTS: [&str; 8] = [
    "--otlp-grpc",
    "127.0.0.1:0",
    "--otlp-http",
    "127.0.0.1:0",
    "--http",
    "127.0.0.1:0",
    "--flight-sql",
    "127.0.0.1:0",
];

/// A recorded OTLP request.
pub enum Request {
    Traces(ExportTraceServiceRequest),
    Logs(ExportLogsServiceRequest),
}

/// The recorded agents; the framing is described beside the file.
pub fn recorded_requests() -> Vec<Request> {
    requests_in(include_bytes!("../fixtures/agentdojo/requests.otlp.zst"))
}

/// The requests of a recording in that framing.
pub fn requests_in(packed: &[u8]) -> Vec<Request> {
    let mut bytes = Vec::new();
    zstd::stream::read::Decoder::new(packed).unwrap().read_to_end(&mut bytes).unwrap();
    let mut rest = bytes.as_slice();
    let mut out = Vec::new();
    while let [signal, a, b, c, d, tail @ ..] = rest {
        let (body, after) = tail.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        out.push(match signal {
            1 => Request::Traces(ExportTraceServiceRequest::decode(body).unwrap()),
            _ => Request::Logs(ExportLogsServiceRequest::decode(body).unwrap()),
        });
        rest = after;
    }
    out
}

/// A running `custody serve`, in a folder of its own, on free ports.
pub struct Server {
    child: Child,
    folder: tempfile::TempDir,
    pub grpc: String,
    pub otlp_http: String,
    pub http: String,
    pub flight_sql: String,
}

impl Server {
    pub fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), &[])
    }

    /// Starts with a policy of one rule, for whoever comes from this machine.
    pub fn under(rule: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        std::fs::write(&path, format!("[[allow]]\nidentity = \"peer:127.0.0.1\"\n{rule}\n")).unwrap();
        Self::start_in(folder, &["--policy", path.to_str().unwrap()])
    }

    /// Starts on a folder that may hold a log already; on free ports, unless the flags name some.
    pub fn start_in(folder: tempfile::TempDir, flags: &[&str]) -> Self {
        Self::start_with(folder, flags, &[])
    }

    /// The same with variables of the environment.
    pub fn start_with(folder: tempfile::TempDir, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let ready = folder.path().join("ready.json");
        let _ = std::fs::remove_file(&ready);
        let mut child = Command::new(CUSTODY)
            .arg("serve")
            .args(if flags.contains(&"--otlp-grpc") { &[][..] } else { &FREE_PORTS })
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .arg("--ready-file")
            .arg(&ready)
            .args(flags)
            // Tests that count records know of those that they send; those of checks turn them on.
            .args(if flags.contains(&"--checks") { &[][..] } else { &["--checks", "off"] })
            // As much as on the smallest machine.
            .args(if flags.contains(&"--query-memory-max") { &[][..] } else { &["--query-memory-max", "1073741824"] })
            .env("CUSTODY_LOG", "warn")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("stderr.log")).unwrap())
            .spawn()
            .unwrap();
        let until = Instant::now() + PATIENCE;
        let json: Value = loop {
            if let Ok(text) = std::fs::read(&ready) {
                break serde_json::from_slice(&text).unwrap();
            }
            if child.try_wait().unwrap().is_some() {
                panic!(
                    "the server ended at once: {}",
                    std::fs::read_to_string(folder.path().join("stderr.log")).unwrap()
                );
            }
            assert!(Instant::now() < until, "the server is not ready after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(10));
        };
        let address = |name: &str| json[name].as_str().unwrap().to_owned();
        let (grpc, otlp_http, http) = (address("otlp_grpc"), address("otlp_http"), address("http"));
        Self { child, folder, grpc, otlp_http, http, flight_sql: address("flight_sql") }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Sends requests over OTLP/gRPC; every one must be acknowledged.
    pub fn send_grpc(&mut self, requests: Vec<Request>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let url = format!("http://{}", self.grpc);
        runtime.block_on(async {
            let mut traces = TraceServiceClient::connect(url.clone()).await.unwrap();
            let mut logs = LogsServiceClient::connect(url).await.unwrap();
            for request in requests {
                match request {
                    Request::Traces(request) => drop(traces.export(request).await.unwrap()),
                    Request::Logs(request) => drop(logs.export(request).await.unwrap()),
                }
            }
        });
    }

    /// Sends one span of a tenant.
    pub fn send_span_of(&self, tenant: &str) {
        let span = serde_json::json!({
            "traceId": "5b8efff798038103d269b633813fc60c", "spanId": format!("{:016x}", tenant.len()),
            "name": format!("of {tenant}"), "startTimeUnixNano": "1",
        });
        let attribute = serde_json::json!({"key": "tenant.id", "value": {"stringValue": tenant}});
        let spans = serde_json::json!({
            "resourceSpans": [{"resource": {"attributes": [attribute]}, "scopeSpans": [{"spans": [span]}]}]
        });
        let url = format!("http://{}/v1/traces", self.otlp_http);
        let sent = ureq::post(url).header("Content-Type", "application/json").send(spans.to_string()).unwrap();
        assert_eq!(sent.status(), 200);
    }

    /// Runs a custody command against this server; it must succeed.
    pub fn custody(&self, args: &[&str]) -> String {
        let output = self.custody_output(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn custody_output(&self, args: &[&str]) -> Output {
        let url = format!("http://{}", self.http);
        Command::new(CUSTODY).args(args).args(["--url", &url]).output().unwrap()
    }

    /// Rows of a query, over the API, once all acknowledged records are visible.
    pub fn sql(&self, sql: &str) -> Vec<Value> {
        self.wait_until_visible();
        let text = self.custody(&["sql", sql, "--format", "json", "--timeout-ms", "300000"]);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// A record is visible within a second, where there is a processor for it; waits for that.
    pub fn wait_until_visible(&self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let metrics = self.get("/metrics").1;
            if metrics.contains("\ncustody_projection_lag_records 0\n") {
                return;
            }
            assert!(Instant::now() < until, "records are not visible: {metrics}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// GET on the API: status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut answer = agent.get(format!("http://{}{path}", self.http)).call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    }

    /// Waits until the newest checkpoint covers this many records: a second or two.
    pub fn wait_until_signed(&self, size: u64) {
        until(|| self.get("/checkpoint").1.lines().nth(1) == Some(&size.to_string()));
    }

    /// Starts again on the same folder, after [`Self::stop`].
    pub fn restart(mut self) -> Self {
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        Self::start_in(folder, &[])
    }

    /// Kills it, and starts it again on the same folder and at the same addresses.
    pub fn kill_and_restart(self) -> Self {
        let [grpc, otlp_http, http, flight_sql] =
            [&self.grpc, &self.otlp_http, &self.http, &self.flight_sql].map(Clone::clone);
        let flags = ["--otlp-grpc", &grpc, "--otlp-http", &otlp_http, "--http", &http, "--flight-sql", &flight_sql];
        Self::start_in(self.kill(), &flags)
    }

    /// The same with flags.
    pub fn restart_with(mut self, flags: &[&str]) -> Self {
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        Self::start_in(folder, flags)
    }

    /// kill -9.
    pub fn kill(mut self) -> tempfile::TempDir {
        let _ = self.child.kill();
        self.child.wait().unwrap();
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }

    /// Waits for its end after a SIGTERM; it must end well.
    pub fn wait(&mut self) {
        let status = self.child.wait().unwrap();
        let said = std::fs::read_to_string(self.folder.path().join("stderr.log")).unwrap_or_default();
        assert!(status.success(), "the server did not end well ({status}):\n{said}");
    }

    /// SIGTERM; it must end well.
    pub fn stop(&mut self) {
        let kill = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(kill.success());
        self.wait();
    }

    /// SIGTERM, then `custody verify`, which must call the log sound and signed to the end.
    pub fn stop_and_verify(&mut self) -> Value {
        self.stop();
        let summary = verify(&self.data_dir());
        assert_eq!(summary["unsigned"], 0, "the last checkpoint covers everything");
        summary
    }
}

/// The Python of the test clients: what `make test` names, or the venv it makes.
pub fn python() -> String {
    std::env::var("CUSTODY_TEST_PYTHON").unwrap_or_else(|_| format!("{}/.venv/bin/python", env!("CARGO_MANIFEST_DIR")))
}

/// Waits for something that must come. No clock decides but that of somebody who waits in vain.
pub fn until(mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "it did not come within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `custody verify`, which must call the log sound.
pub fn verify(dir: &Path) -> Value {
    let output = Command::new(CUSTODY).args(["verify", "--json", "--data-dir"]).arg(dir).output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{json}");
    json
}
