//! `custody demo`: the whole story on recorded agents, in a minute.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use custody_query::replay::StepRow;
use custody_query::tree;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use serde_json::json;

use crate::recording::{Client, Request, requests};
use crate::source::Source;
use crate::{Failure, print, print_bytes, replay, tamper};

/// How long a query of the demo may take: all checks over all records, in a development build on a busy machine.
const PATIENCE_MS: u64 = 300_000;

/// How long the server may take to start, and records to become visible, on a machine that does other things, too.
const WAIT: Duration = Duration::from_secs(120);

/// Run the whole story on recorded agents: real models, many of them hijacked.
///
/// It starts a server on free ports in a temporary directory, sends it the
/// recorded requests over OTLP/gRPC, and shows what an investigator finds.
#[derive(Args)]
pub struct Demo {
    /// Keep the ledger in this new directory, to look around in it afterwards.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

impl Demo {
    /// Tells the story.
    pub fn run(self) -> Result<(), Failure> {
        let started = Instant::now();
        let scratch = tempfile::tempdir().map_err(Failure::unable)?;
        if let Some(dir) = self.keep.as_deref().filter(|dir| dir.read_dir().is_ok_and(|mut is| is.next().is_some())) {
            let dir = dir.display();
            return Err(Failure::wrong(format!(
                "--keep {dir} is not empty; name a directory that is still to be made"
            )));
        }
        let dir = self.keep.clone().unwrap_or_else(|| scratch.path().join("ledger"));
        let mut server = Server::start(&dir, &scratch.path().join("ready.json"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::unable)?;
        let api = Source::at(format!("http://{}", server.http));
        let story = Story { api: &api };
        runtime.block_on(story.ingest(&server.grpc))?;
        let incident = story.find()?;
        story.replay(&incident)?;
        story.delegation(&incident)?;
        runtime.block_on(story.answer(&server.grpc, &incident))?;
        server.stop()?;
        verification(&dir, scratch.path(), &incident)?;
        let kept = self.keep.map(|dir| dir.display().to_string());
        epilogue(kept.as_deref(), &incident, started.elapsed())
    }
}

fn say(text: &str) -> Result<(), Failure> {
    print(&format!("\n── {text}\n\n"))
}

/// A `custody serve` of our own.
struct Server {
    child: Child,
    grpc: String,
    http: String,
}

impl Server {
    fn start(dir: &Path, ready: &Path) -> Result<Self, Failure> {
        say("A ledger starts on free ports: one process, one directory, no configuration.")?;
        let own = std::env::current_exe().map_err(Failure::unable)?;
        let mut command = Command::new(own);
        // The story raises its alert itself, 40 minutes later; `violations` is computed when it is asked for.
        command.args(["serve", "--checks", "off"]).arg("--data-dir").arg(dir).arg("--ready-file").arg(ready);
        for flag in ["--otlp-grpc", "--otlp-http", "--http", "--flight-sql"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        command.env("CUSTODY_LOG", "warn").stdout(Stdio::null()).stdin(Stdio::null());
        let mut child = command.spawn().map_err(Failure::unable)?;
        let until = Instant::now() + WAIT;
        loop {
            if let Ok(text) = std::fs::read(ready) {
                let ready: serde_json::Value = serde_json::from_slice(&text).map_err(Failure::unable)?;
                let address = |name: &str| ready[name].as_str().unwrap_or_default().to_owned();
                return Ok(Self { child, grpc: address("otlp_grpc"), http: address("http") });
            }
            if let Some(status) = child.try_wait().map_err(Failure::unable)? {
                return Err(Failure::unable(format!("the server ended at once: {status}")));
            }
            if Instant::now() > until {
                return Err(Failure::unable(format!("the server did not get ready in {} seconds", WAIT.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGTERM, as a supervisor would: what was accepted is finished and signed.
    fn stop(&mut self) -> Result<(), Failure> {
        let kill = Command::new("kill").arg(self.child.id().to_string()).status().map_err(Failure::unable)?;
        let status = self.child.wait().map_err(Failure::unable)?;
        if kill.success() && status.success() {
            return Ok(());
        }
        Err(Failure::unable(format!("the server ended with {status}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The incident that the story follows.
struct Incident {
    trace_id: String,
    grant_id: String,
    call_seq: u64,
    evidence: Vec<u64>,
    agent_id: String,
    event_time: u64,
}

struct Story<'a> {
    api: &'a Source,
}

impl Story<'_> {
    async fn ingest(&self, grpc: &str) -> Result<(), Failure> {
        let requests = requests()?;
        let count = requests.len();
        say(&format!(
            "120 recorded runs of real models on AgentDojo's banking and slack tasks are sent as {count} requests over \
             OTLP/gRPC.\n   Each acknowledgement means: fsynced, chained, a leaf of the Merkle tree."
        ))?;
        let mut client = Client::connect(grpc).await?;
        let start = Instant::now();
        for request in requests {
            client.send(request).await?;
        }
        print(&format!("{count} requests acknowledged in {:.1} s.\n", start.elapsed().as_secs_f64()))?;
        self.visible()?;
        self.table(
            "SELECT service_name AS service, count(*) AS spans, count(DISTINCT trace_id) AS traces, \
             sum(CASE WHEN status_code = 'error' THEN 1 ELSE 0 END) AS errors FROM spans GROUP BY 1 ORDER BY 2 DESC, 1",
        )?;
        self.table("SELECT kind, count(*) AS events FROM events GROUP BY 1 ORDER BY 2 DESC, 1")
    }

    /// Queries see a record within a second of its acknowledgement, where there is a processor for it; wait for that.
    fn visible(&self) -> Result<(), Failure> {
        let until = Instant::now() + WAIT;
        loop {
            let metrics = String::from_utf8_lossy(&self.api.get("/metrics")?.body).into_owned();
            if metrics.contains("\ncustody_projection_lag_records 0\n") {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(Failure::unable(format!(
                    "the records did not become visible in {} seconds",
                    WAIT.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn find(&self) -> Result<Incident, Failure> {
        say("Which authority was used outside its bounds? `violations` runs the checks over everything.")?;
        self.table(
            "SELECT check_id, severity, count(*) AS hits, count(DISTINCT trace_id) AS traces FROM violations GROUP BY 1, 2 \
             ORDER BY 3 DESC, 1",
        )?;
        say("One of them: an agent passed on more authority than it had, and what was refused was done all the same.")?;
        let sql = "SELECT v.seq, v.trace_id, v.agent_id, v.grant_id, v.evidence, CAST(c.event_time AS BIGINT) AS event_time \
                   FROM violations v JOIN tool_calls c ON c.seq = v.seq \
                   JOIN violations w ON w.trace_id = v.trace_id AND w.check_id = 'widened_delegation' \
                   WHERE v.check_id = 'denied_then_executed' ORDER BY v.seq LIMIT 1";
        let (_, batches, _) = self.api.sql(&json!({"sql": sql, "timeout_ms": PATIENCE_MS}))?;
        let row = custody_query::format::rows(&batches).map_err(Failure::unable)?.into_iter().next();
        let row = row.ok_or_else(|| Failure::unable("the recording has no such incident"))?;
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| row[name].as_u64().unwrap_or_default();
        let evidence = row["evidence"].as_array().into_iter().flatten().filter_map(|e| e.as_u64()).collect();
        let incident = Incident {
            trace_id: text("trace_id"),
            grant_id: text("grant_id"),
            call_seq: number("seq"),
            evidence,
            agent_id: text("agent_id"),
            event_time: number("event_time"),
        };
        self.table(&format!(
            "SELECT check_id, seq, substr(detail, 1, 110) AS detail FROM violations WHERE trace_id = '{}' ORDER BY seq, check_id LIMIT 8",
            incident.trace_id
        ))?;
        Ok(incident)
    }

    fn replay(&self, incident: &Incident) -> Result<(), Failure> {
        say(&format!("What happened, in causal order: custody replay --trace {}", incident.trace_id))?;
        let batches = replay::steps(self.api, &incident.trace_id, None)?;
        let steps: Vec<StepRow> = batches.iter().flat_map(StepRow::read).collect();
        let color = std::io::IsTerminal::is_terminal(&std::io::stdout());
        print_bytes(tree::render(&steps, color).as_bytes())
    }

    fn delegation(&self, incident: &Incident) -> Result<(), Failure> {
        say("Through which chain of grants? The step where authority was widened is marked.")?;
        self.table(&format!(
            "SELECT depth, grant_id, issuer, subject, narrowed, widened_by, uses, note FROM delegation_chain('{}')",
            incident.grant_id
        ))
    }

    async fn answer(&self, grpc: &str, incident: &Incident) -> Result<(), Failure> {
        say(
            "When did we know? An alert is raised 40 minutes after the call; a person acknowledges it, investigates\n   and \
             closes it. Every step is a record in the same log. Dwell time runs from the earliest evidence.",
        )?;
        let mut client = Client::connect(grpc).await?;
        let minute = 60_000_000_000;
        let id = format!("alert-{}", incident.call_seq);
        let raised = vec![
            text("security_rule.name", "denied_then_executed"),
            text("security.alert.title", "A refused call was executed"),
            text("security.alert.severity", "critical"),
            text("gen_ai.agent.id", &incident.agent_id),
            seqs("security.alert.evidence", &incident.evidence),
        ];
        let person = || vec![text("security.actor.id", "ada@example.com"), text("security.actor.type", "human")];
        let step = |more: Vec<KeyValue>| [person(), more].concat();
        let opened = step(vec![text("security.investigation.state", "opened")]);
        let closed = step(vec![
            text("security.investigation.state", "closed"),
            text("security.investigation.disposition", "true_positive"),
        ]);
        for (after, name, attributes) in [
            (40, "security.alert", raised),
            (52, "security.alert.acknowledged", person()),
            (55, "security.investigation", opened),
            (95, "security.investigation", closed),
        ] {
            let time = incident.event_time + after * minute;
            client.send(Request::Logs(security_log(time, name, &id, &incident.trace_id, attributes))).await?;
        }
        self.visible()?;
        self.table(
            "SELECT alert_id, rule, state, raised_time, acknowledged_time, acknowledged_by, disposition FROM alerts",
        )?;
        self.table("SELECT measure, alerts, ended, still_open, p50_seconds FROM dwell_time WHERE rule IS NULL")?;
        self.table("SELECT rule, raised, acknowledged, opened, closed, coverage FROM coverage ORDER BY rule NULLS LAST")
    }

    fn table(&self, sql: &str) -> Result<(), Failure> {
        let (schema, batches, _) = self.api.sql(&json!({"sql": sql, "timeout_ms": PATIENCE_MS}))?;
        let table = custody_query::format::table(&schema, &batches).map_err(Failure::unable)?;
        print(&format!("{table}\n"))
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn seqs(key: &str, seqs: &[u64]) -> KeyValue {
    let values = seqs.iter().map(|seq| AnyValue { value: Some(Value::IntValue(*seq as i64)) }).collect();
    attribute(key, Value::ArrayValue(ArrayValue { values }))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

fn security_log(
    time: u64,
    name: &str,
    alert: &str,
    trace_id: &str,
    mut attributes: Vec<KeyValue>,
) -> ExportLogsServiceRequest {
    attributes.push(text("security.alert.id", alert));
    let hex = |i: usize| trace_id.get(2 * i..2 * i + 2).and_then(|h| u8::from_str_radix(h, 16).ok()).unwrap_or(0);
    let record = LogRecord {
        time_unix_nano: time,
        observed_time_unix_nano: time,
        event_name: name.to_owned(),
        trace_id: (0..16).map(hex).collect(),
        attributes,
        ..Default::default()
    };
    let resource = Resource { attributes: vec![text("service.name", "security-desk")], ..Default::default() };
    let scope_logs = vec![ScopeLogs { log_records: vec![record], ..Default::default() }];
    let resource_logs = vec![ResourceLogs { resource: Some(resource), scope_logs, ..Default::default() }];
    ExportLogsServiceRequest { resource_logs }
}

fn verification(dir: &Path, scratch: &Path, incident: &Incident) -> Result<(), Failure> {
    say("The server has stopped and signed its last checkpoint. Is everything as it was acknowledged? custody verify")?;
    let own = std::env::current_exe().map_err(Failure::unable)?;
    let verify = |dir: &Path| {
        let status = Command::new(&own).arg("verify").arg("--data-dir").arg(dir).status();
        status.map(|s| s.code()).map_err(Failure::unable)
    };
    if verify(dir)? != Some(0) {
        return Err(Failure::wrong("the log of the demo does not verify"));
    }
    let copy = scratch.join("tampered");
    let what = tamper::flip_one_byte(dir, &copy, incident.call_seq)?;
    say(&format!(
        "Somebody with full access to a copy of the database changes one byte of that call ({what}),\n   and makes \
         RocksDB's own checksums right again."
    ))?;
    match verify(&copy)? {
        Some(1) => Ok(()),
        other => Err(Failure::wrong(format!("the changed byte was not found (exit status {other:?})"))),
    }
}

fn epilogue(kept: Option<&str>, incident: &Incident, took: Duration) -> Result<(), Failure> {
    say(&format!("That was {:.0} seconds. To try next:", took.as_secs_f64()))?;
    print(
        "custody serve                       then point any OTLP exporter at 127.0.0.1:4317 (gRPC) or :4318 (HTTP)\n",
    )?;
    if kept.is_none() {
        print("custody demo --keep ./demo-data     the same ledger, kept; then, for example:\n")?;
    }
    let (dir, trace) = (kept.unwrap_or("./demo-data"), &incident.trace_id);
    print(&format!(
        "custody sql --data-dir {dir} --list\n\
         custody sql --data-dir {dir} \"SELECT * FROM violations LIMIT 5\"\n\
         custody replay --data-dir {dir} --trace {trace}\n\
         custody events --data-dir {dir} --kind grant_denied\n\
         custody verify --data-dir {dir}\n"
    ))
}
