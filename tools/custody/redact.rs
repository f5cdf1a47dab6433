//! `custody redact`: redaction rules checked, listed and tried, without a server; and
//! what `custody serve --redact` needs to put them in force.

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use custody_ingest::redact::{Finding, Redactor};
use custody_proto::{Limits, Signal, json, scan};
use custody_query::format::plain;
use custody_store::Writer;

use crate::{Failure, counted, print};

/// Hashes of values are made under a secret that is derived for this from the log's own.
const SECRET: &str = "custody redaction v1";

/// How much of a text is shown.
const SHOWN_CHARS: usize = 60;

/// Try redaction rules on a request before they are turned on, or list them.
///
/// With --test, prints what `custody serve --redact` would replace in an OTLP/JSON request,
/// and by which rule; nothing is stored. Without it, checks the rules and lists them.
#[derive(Args)]
pub struct Redact {
    /// `secrets` (the rules that come with custody) or a rule file; may be given more than once.
    #[arg(long, value_name = "RULES", required = true)]
    rules: Vec<String>,
    /// A file with an OTLP/JSON request (traces, logs or metrics); - is standard input.
    #[arg(long, value_name = "FILE")]
    test: Option<PathBuf>,
}

/// Reads the rules that a server is to apply.
pub fn load(rules: &[String]) -> Result<Option<Redactor>, Failure> {
    if rules.is_empty() {
        return Ok(None);
    }
    Redactor::load(rules).map(Some).map_err(|e| Failure::unable(format!("--redact {e}")))
}

/// Has the log say what rules are in force from here on, if that is something new.
pub fn put_in_force(redactor: Option<Redactor>, writer: &mut Writer) -> Result<Option<Arc<Redactor>>, Failure> {
    let redactor = redactor.map(|redactor| Arc::new(redactor.with_secret(writer.secret_for(SECRET))));
    Redactor::note(redactor.as_deref(), writer).map_err(Failure::unable)?;
    if let Some(redactor) = &redactor {
        tracing::info!(rules = redactor.rules().count(), "requests are redacted before they are stored");
    }
    Ok(redactor)
}

impl Redact {
    /// Lists, or tries.
    pub fn run(self) -> Result<(), Failure> {
        let redactor = Redactor::load(&self.rules).map_err(|e| Failure::wrong(format!("--rules {e}")))?;
        match &self.test {
            None => list(&redactor),
            Some(path) => {
                let (place, json) = read(path)?;
                try_on(&redactor, &place, &json)
            }
        }
    }
}

fn list(redactor: &Redactor) -> Result<(), Failure> {
    let mut out = String::new();
    for rule in redactor.rules() {
        let what = match (rule.key, rule.value) {
            (Some(_), Some(_)) => "key and value",
            (Some(_), None) => "key",
            _ => "value",
        };
        out += &format!("{:<44} {:<6} {what:<13} {}\n", rule.name, rule.action.name(), rule.description);
    }
    print(&format!("{out}{}\n", counted(redactor.rules().count(), "rule")))
}

fn read(path: &PathBuf) -> Result<(String, Vec<u8>), Failure> {
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut bytes).map_err(|e| Failure::unable(format!("standard input: {e}")))?;
        return Ok(("standard input".into(), bytes));
    }
    let place = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|e| Failure::unable(format!("{place}: {e}")))?;
    Ok((place, bytes))
}

fn try_on(redactor: &Redactor, place: &str, json: &[u8]) -> Result<(), Failure> {
    let wrong = |e: &dyn std::fmt::Display| Failure::wrong(format!("{place}: {e}"));
    let signal = signal_of(json).map_err(|e| wrong(&e))?;
    let limits = Limits::default();
    let bytes = json::transcode(signal, json).map_err(|e| wrong(&e))?;
    let scan = scan(signal, &bytes, &limits).map_err(|e| wrong(&e))?;
    let findings = redactor.findings(signal, &bytes, &limits).map_err(|e| wrong(&e))?;
    let mut out: String = findings.iter().map(|finding| line(signal, finding)).collect();
    let records = scan.records.len() as u64 + scan.rejected;
    let name = signal.record_name();
    out += &format!(
        "{} replaced in a request of {records} {name}{}\n",
        findings.len(),
        if records == 1 { "" } else { "s" }
    );
    if findings.iter().any(|finding| finding.after.starts_with("[hashed: ")) {
        out += "hashes are made with another secret here than in a log\n";
    }
    if let Some(why) = scan.rejection {
        out += &format!("note: {} of them would be refused: {why}\n", scan.rejected);
    }
    print(&out)
}

/// What the request is, by the name of its first field.
fn signal_of(json: &[u8]) -> Result<Signal, String> {
    let value: serde_json::Value = serde_json::from_slice(json).map_err(|e| format!("not valid JSON: {e}"))?;
    let fields = [
        (Signal::Traces, ["resourceSpans", "resource_spans"]),
        (Signal::Logs, ["resourceLogs", "resource_logs"]),
        (Signal::Metrics, ["resourceMetrics", "resource_metrics"]),
    ];
    let found = fields.into_iter().find(|(_, names)| names.iter().any(|name| value.get(name).is_some()));
    let error =
        "it has none of resourceSpans, resourceLogs and resourceMetrics; give a request as an exporter sends it";
    found.map(|(signal, _)| signal).ok_or_else(|| error.into())
}

fn line(signal: Signal, finding: &Finding) -> String {
    let record = finding.record.map_or("shared".into(), |n| format!("{} {n}", signal.record_name()));
    // Keys and values come from outside.
    let (before, after) = (shown(&finding.before), plain(&finding.after));
    format!("{record}  {}  {}: {before} -> {after}\n", plain(&finding.place), finding.rule)
}

fn shown(text: &str) -> String {
    let short: String = text.chars().take(SHOWN_CHARS).collect();
    let more = if short.len() < text.len() { "..." } else { "" };
    format!("{short:?}{more}")
}
