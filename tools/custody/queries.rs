//! The flags and settings of queries: how long, how much, how many, and who writes down who asked.
//!
//! One struct is both the flags and the table `[queries]` of the configuration file.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use custody_ingest::redact::Redactor;
use custody_proto::otlp::collector_logs::ExportLogsServiceRequest;
use custody_proto::otlp::common::{AnyValue, any_value::Value};
use custody_proto::otlp::logs::{LogRecord, ResourceLogs, ScopeLogs};
use custody_proto::{Limits, Signal};
use custody_query::{Audit, AuditMode, Concurrency, Engine, QueryLimits, Recorder, Redaction, memory_for_queries};
use prost::Message as _;
use serde::Deserialize;

use crate::Failure;

/// How long a query may use all processors, by default.
const PROMPT_SECONDS: f64 = 2.0;

/// What of the limits of queries is set.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Queries")]
pub struct QueryFlags {
    /// The longest a query may take, planning included; requests ask for less by timeout_ms [default: 600].
    #[arg(long, value_name = "SECONDS")]
    query_timeout: Option<f64>,
    /// How long a query may use every processor that nobody else needs; while records come in, those that last longer
    /// leave the processors to them [default: 2].
    #[arg(long, value_name = "SECONDS")]
    query_prompt: Option<f64>,
    /// Memory of all queries together; one has at most half of it, and spills to disk what more it needs
    /// [default: an eighth of the machine's, or of the container's; 1 GiB at least, 16 GiB at most].
    #[arg(long, value_name = "BYTES")]
    query_memory_max: Option<usize>,
    /// Most rows that a request may ask for by max_rows [default: 1000000].
    #[arg(long, value_name = "N")]
    query_rows_max: Option<usize>,
    /// Largest answer that is held whole, as a request asks for by "stream": false; all others are sent as they come
    /// [default: 268435456].
    #[arg(long, value_name = "BYTES")]
    answer_bytes_max: Option<usize>,
    /// Most queries at a time [default: 64]; more are refused with 429.
    #[arg(long, value_name = "N")]
    queries_max: Option<usize>,
    /// Most queries of one identity at a time [default: 16].
    #[arg(long, value_name = "N")]
    queries_max_per_identity: Option<usize>,
    /// Whose queries, exports and streams are recorded in the log: all, identified (those of
    /// authenticated callers) or off [default: identified].
    #[arg(long, value_name = "WHOSE", value_parser = audit_mode)]
    #[serde(deserialize_with = "audit_mode_of_file")]
    audit: Option<AuditMode>,
}

fn audit_mode(text: &str) -> Result<AuditMode, String> {
    AuditMode::of_name(text).ok_or_else(|| "it is all, identified or off".into())
}

fn audit_mode_of_file<'de, D: serde::Deserializer<'de>>(text: D) -> Result<Option<AuditMode>, D::Error> {
    let text: Option<String> = Option::deserialize(text)?;
    text.map(|text| audit_mode(&text).map_err(serde::de::Error::custom)).transpose()
}

impl QueryFlags {
    /// These, and where they are silent those of the file.
    pub fn or(self, file: Self) -> Self {
        Self {
            query_timeout: self.query_timeout.or(file.query_timeout),
            query_prompt: self.query_prompt.or(file.query_prompt),
            query_memory_max: self.query_memory_max.or(file.query_memory_max),
            query_rows_max: self.query_rows_max.or(file.query_rows_max),
            answer_bytes_max: self.answer_bytes_max.or(file.answer_bytes_max),
            queries_max: self.queries_max.or(file.queries_max),
            queries_max_per_identity: self.queries_max_per_identity.or(file.queries_max_per_identity),
            audit: self.audit.or(file.audit),
        }
    }

    /// What one query may use.
    pub fn limits(&self) -> Result<QueryLimits, Failure> {
        let mut limits = QueryLimits::default();
        if let Some(seconds) = self.query_timeout {
            if !(0.01..=86_400.0).contains(&seconds) {
                let message = format!("--query-timeout {seconds} is not between 0.01 and 86400 seconds");
                return Err(Failure::unable(message));
            }
            limits.timeout_max = Duration::from_secs_f64(seconds);
            limits.timeout = limits.timeout.min(limits.timeout_max);
        }
        let prompt = self.query_prompt.unwrap_or(PROMPT_SECONDS);
        if !(0.0..=86_400.0).contains(&prompt) {
            return Err(Failure::unable(format!("--query-prompt {prompt} is not between 0 and 86400 seconds")));
        }
        limits.prompt = Some(Duration::from_secs_f64(prompt));
        limits.rows_most = at_least("--query-rows-max", self.query_rows_max, 1, limits.rows_most)?;
        limits.rows_max = limits.rows_max.min(limits.rows_most);
        limits.answer_bytes_max = at_least("--answer-bytes-max", self.answer_bytes_max, 4096, limits.answer_bytes_max)?;
        limits.memory_bytes_max = self.memory()? / 2;
        Ok(limits)
    }

    fn memory(&self) -> Result<usize, Failure> {
        at_least("--query-memory-max", self.query_memory_max, 16 << 20, memory_for_queries())
    }

    /// Whose doings are recorded; `known` if a policy says who comes in.
    pub fn audit_mode(&self, known: bool) -> AuditMode {
        match self.audit.unwrap_or_default() {
            // Where there is a policy, all are known whom it lets in.
            AuditMode::Identified if known => AuditMode::All,
            mode => mode,
        }
    }

    /// Gives an engine its limits, and the way to the log for what is asked of it. `known`: a policy says who
    /// each caller is.
    pub fn apply(
        &self,
        engine: Engine,
        recorder: Arc<dyn Recorder>,
        redactor: Option<Arc<Redactor>>,
        known: bool,
    ) -> Result<Engine, Failure> {
        let all = Concurrency::default();
        let concurrency = Concurrency {
            queries_max: at_least("--queries-max", self.queries_max, 1, all.queries_max)?,
            per_identity_max: at_least(
                "--queries-max-per-identity",
                self.queries_max_per_identity,
                1,
                all.per_identity_max,
            )?,
        };
        let mut audit = Audit::new(recorder, self.audit_mode(known));
        if let Some(redactor) = redactor {
            audit = audit.with_redaction(redaction(redactor));
        }
        Ok(engine.with_limits(concurrency, self.memory()?).with_audit(audit))
    }
}

fn at_least(flag: &str, value: Option<usize>, least: usize, default: usize) -> Result<usize, Failure> {
    match value {
        Some(value) if value < least => Err(Failure::unable(format!("{flag} {value} is less than {least}"))),
        value => Ok(value.unwrap_or(default)),
    }
}

/// The rules for what is received, for what is asked: a query may name a secret, too.
fn redaction(redactor: Arc<Redactor>) -> Redaction {
    Arc::new(move |text| {
        let body = Some(AnyValue { value: Some(Value::StringValue(text.to_owned())) });
        let scope_logs =
            vec![ScopeLogs { log_records: vec![LogRecord { body, ..Default::default() }], ..Default::default() }];
        let resource_logs = vec![ResourceLogs { scope_logs, ..Default::default() }];
        let request = ExportLogsServiceRequest { resource_logs }.encode_to_vec();
        match redactor.apply(Signal::Logs, &request, &Limits::default()) {
            Ok(None) => text.to_owned(),
            Ok(Some(redacted)) => said(&redacted).unwrap_or_default(),
            Err(_) => String::new(),
        }
    })
}

fn said(request: &[u8]) -> Option<String> {
    let mut request = ExportLogsServiceRequest::decode(request).ok()?;
    let record = request.resource_logs.pop()?.scope_logs.pop()?.log_records.pop()?;
    match record.body?.value? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}
