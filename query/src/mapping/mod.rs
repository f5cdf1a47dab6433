//! From records to provenance events: pure, versioned, and run again over the
//! whole log whenever it changes. docs/semantic-conventions.md is its contract.

mod a2a;
mod authz;
mod base;
mod batch;
pub(crate) mod capability;
mod challenge;
mod claude_code;
mod claude_platform;
mod codex;
mod document;
mod found;
mod gateway;
mod gemini;
mod genai;
mod ledger;
mod mcp_task;
mod ocsf;
mod openfga;
mod openinference;
mod openllmetry;
mod openshell;
mod policy;
mod pomerium;
mod security;
mod shorthand;
mod tenuo;
mod token;

use std::borrow::Cow;

use custody_proto::otlp::trace::status::StatusCode;
use custody_proto::wire::{InstrumentationScope, KeyValue, LogRecord, Resource, Span};

use base::{base_log, base_span};

use crate::attributes::{Attributes, attributes_json};
use crate::event::EventRow;
use crate::rows::Time;

/// The version of this mapping; it stands in every row.
pub const MAPPING_VERSION: u32 = 8;

/// Every kind of event that a mapping makes.
pub const KINDS: [&str; 26] = [
    "agent_invocation",
    "alert",
    "alert_acknowledged",
    "alert_superseded",
    "approval",
    "authority_change",
    "containment_decision",
    "context_retrieval",
    "erasure",
    "executor_decision",
    "grant_denied",
    "grant_derived",
    "grant_issued",
    "grant_revoked",
    "grant_used",
    "guardrail",
    "investigation",
    "model_call",
    "model_result",
    "output",
    "policy_evaluation",
    "request",
    "skill_invocation",
    "system_update",
    "tool_call",
    "tool_result",
];

/// What is known of a record besides itself.
pub struct RecordContext<'a> {
    /// Its place in the log.
    pub seq: u64,
    /// Its content commitment, hex.
    pub record_hash: &'a str,
    /// When the ledger took it.
    pub ingest_time: Time,
    /// Who sent it, as authenticated.
    pub submitter: &'a str,
    /// Its resource.
    pub resource: &'a Resource<'a>,
    /// Its instrumentation scope.
    pub scope: &'a InstrumentationScope<'a>,
}

/// The events of a span; none if no mapping knows it. A span that speaks several
/// conventions is one event, by OpenTelemetry's own where it is spoken; what it tells
/// of in span events (`authz.output` and the like) are events of their own.
pub fn map_span(context: &RecordContext<'_>, span: &Span<'_>) -> Vec<EventRow> {
    complete(bare_span(context, span), &span.attributes)
}

/// The events of a log record; none if no mapping knows it.
pub fn map_log(context: &RecordContext<'_>, log: &LogRecord<'_>) -> Vec<EventRow> {
    complete(bare_log(context, log), &log.attributes)
}

/// Gives events that lack attributes those of the record.
fn complete(mut rows: Vec<EventRow>, attributes: &[KeyValue<'_>]) -> Vec<EventRow> {
    for row in rows.iter_mut().filter(|row| row.attributes.is_empty()) {
        row.attributes = attributes_json(attributes);
    }
    rows
}

/// [`map_span`], but where an event's attributes are those of the record they are empty: who has
/// them as JSON already need not write them once more.
pub(crate) fn bare_span(context: &RecordContext<'_>, span: &Span<'_>) -> Vec<EventRow> {
    let row = claude_platform::map_span(context, span)
        .or_else(|| claude_code::map_span(context, span))
        .or_else(|| genai::map(context, span))
        .or_else(|| openinference::map(context, span))
        .or_else(|| openllmetry::map(context, span))
        .or_else(|| pomerium::map_span(context, span))
        .or_else(|| openfga::map_span(context, span))
        .or_else(|| mcp_task::map_worker(context, span))
        .or_else(|| a2a::map_span(context, span))
        .or_else(|| gateway_span(context, span))
        .or_else(|| challenge::map(context, span))
        .or_else(|| grant_used(context, span));
    let mut rows: Vec<EventRow> = row.into_iter().collect();
    rows.extend(authz::of_span(context, span));
    rows
}

/// [`map_log`], as [`bare_span`] is [`map_span`].
pub(crate) fn bare_log(context: &RecordContext<'_>, log: &LogRecord<'_>) -> Vec<EventRow> {
    let name = event_name(context, log);
    let row = match name.split_once('.') {
        Some(("authz", _)) => authz::map(context, log, &name),
        Some(("security", _)) => security::map(context, log, &name),
        Some(("claude_code", rest)) => claude_code::map(context, log, rest),
        Some(("codex", rest)) => codex::map(context, log, rest),
        Some(("gemini_cli", rest)) => gemini::map(context, log, rest),
        Some(("custody", _)) => ledger::map(context, log, &name),
        _ => return other_log(context, log),
    };
    row.into_iter().collect()
}

/// The events of a log record without a name that is known.
fn other_log(context: &RecordContext<'_>, log: &LogRecord<'_>) -> Vec<EventRow> {
    if let Some(row) = pomerium::map(context, log) {
        return vec![row];
    }
    let said = document_of(log);
    if let Some(rows) = said.as_ref().and_then(|said| batch::map(context, log, said)) {
        return rows;
    }
    let row = match &said {
        Some(said) => document(context, log, said),
        None => shorthand::map(context, log),
    };
    row.or_else(|| gateway_log(context, log)).into_iter().collect()
}

/// The JSON document that a record is.
fn document_of(log: &LogRecord<'_>) -> Option<document::Document> {
    // Members that were made attributes, by what each shape cannot do without.
    let known = ["class_uid", "decision_id", "tuple_key", "checks", "raw_request", "processed_at", token::CLAIMS];
    let is_document = |attributes: &Attributes<'_>| {
        let decides = || attributes.has("decision") && (attributes.has("subject") || attributes.has("principal"));
        let gives = || attributes.has("sub") && attributes.has("exp");
        known.iter().any(|name| attributes.has(name)) || decides() || gives()
    };
    document::Document::of(log, is_document)
}

/// The event of a record that is a JSON document of a known shape.
fn document(context: &RecordContext<'_>, log: &LogRecord<'_>, said: &document::Document) -> Option<EventRow> {
    if said.is_body() && matches!(said.text("/message").as_deref(), Some("authorize check" | "http-request")) {
        let members = said.members();
        let attributes = log.attributes.iter().cloned().chain(members.iter().map(KeyValue::from)).collect();
        let whole = LogRecord { body: None, attributes, ..log.clone() };
        return pomerium::map(context, &whole)
            .map(|row| EventRow { attributes: attributes_json(&whole.attributes), ..row });
    }
    if said.at("/class_uid").is_some() {
        return ocsf::map(context, log, said);
    }
    if claude_platform::is_session(said) {
        return Some(claude_platform::map_session(context, log, said));
    }
    if claude_platform::is_event(said) {
        return claude_platform::map_log(context, log, said);
    }
    if let Some(claims) = said.text(&format!("/{}", token::CLAIMS)).and_then(|text| document::Document::parse(&text)) {
        return token::map(context, log, &claims);
    }
    let row = policy::map(context, log, said).or_else(|| token::map(context, log, said));
    row.or_else(|| openshell::map(context, log, said))
        .or_else(|| tenuo::map(context, log, said))
        .or_else(|| a2a::map_log(context, log, said))
}

fn gateway_span(context: &RecordContext<'_>, span: &Span<'_>) -> Option<EventRow> {
    let attributes = Attributes(&span.attributes);
    let (kind, source) = gateway::kind(attributes)?;
    let mut row = base_span(context, span, source, kind);
    gateway::fill(&mut row, attributes);
    Some(row)
}

fn gateway_log(context: &RecordContext<'_>, log: &LogRecord<'_>) -> Option<EventRow> {
    let attributes = Attributes(&log.attributes);
    let (kind, source) = gateway::kind(attributes)?;
    let mut row = base_log(context, log, source, kind);
    gateway::fill(&mut row, attributes);
    Some(row)
}

/// A span of no convention that acted under a grant.
fn grant_used(context: &RecordContext<'_>, span: &Span<'_>) -> Option<EventRow> {
    Attributes(&span.attributes).lent("authz.grant.id")?;
    let mut row = base_span(context, span, "authz", "grant_used");
    row.action = row.action.or_else(|| row.tool.clone()).or_else(|| Some(span.name.to_owned()));
    Some(row)
}

/// The name of a log event: its field, or the attribute that older SDKs use. Codex fills the
/// field with a line of its source, and Claude Code's attribute leaves out its prefix.
fn event_name<'a>(context: &RecordContext<'_>, log: &'a LogRecord<'a>) -> Cow<'a, str> {
    let attribute = Attributes(&log.attributes).lent("event.name").unwrap_or_default();
    let claude_code = context.scope.name.starts_with("com.anthropic.claude_code");
    if claude_code && !attribute.is_empty() && !attribute.contains('.') {
        return format!("claude_code.{attribute}").into();
    }
    if log.event_name.is_empty() || attribute.starts_with("codex.") { attribute } else { log.event_name.into() }
}

/// A time of OTLP, where 0 stands for none.
pub(crate) fn otlp_time(nanos: u64) -> Option<Time> {
    (nanos != 0).then(|| Time(i64::try_from(nanos).unwrap_or(i64::MAX)))
}

/// A span's status in one word; the number of one that OTLP does not name.
pub(crate) fn span_status(span: &Span<'_>) -> Cow<'static, str> {
    let code = span.status.as_ref().map_or(0, |status| status.code);
    match StatusCode::try_from(code) {
        Ok(StatusCode::Unset) => "unset".into(),
        Ok(StatusCode::Ok) => "ok".into(),
        Ok(StatusCode::Error) => "error".into(),
        Err(_) => code.to_string().into(),
    }
}

/// Where a source keeps a call's arguments and its result, among the row's attributes, in the
/// order of preference; `tool_calls.sql` says the same.
pub(crate) fn call_attributes(source: &str) -> [&'static [&'static str]; 2] {
    const ARGUMENTS: &str = "gen_ai.tool.call.arguments";
    const RESULT: &str = "gen_ai.tool.call.result";
    match source {
        "openinference" => [&["input.value"], &["output.value"]],
        "openllmetry" => [&[ARGUMENTS, "traceloop.entity.input"], &[RESULT, "traceloop.entity.output"]],
        "claude_code" => [&["tool_input", "tool_parameters"], &[]],
        "claude_platform" => [&[ARGUMENTS], &[RESULT, "anthropic.tool_result.content"]],
        "codex" => [&["arguments"], &["output"]],
        "gemini" => [&["function_args"], &[]],
        _ => [&[ARGUMENTS], &[RESULT]],
    }
}

/// A step whose log is written when it has ended: it began its duration earlier.
fn lasted(row: &mut EventRow, attributes: Attributes<'_>) {
    let millis = attributes.text("duration_ms").and_then(|text| text.parse::<f64>().ok());
    if let Some(millis) = millis.filter(|m| m.is_finite() && *m >= 0.0) {
        row.end_time = Some(row.event_time);
        row.event_time = Time(row.event_time.0.saturating_sub((millis * 1e6) as i64));
    }
}

/// ok or error, as a truth value says that comes as such or as text.
fn outcome(attributes: Attributes<'_>, name: &str) -> Option<String> {
    match attributes.text(name)?.as_str() {
        "true" => Some("ok".into()),
        "false" => Some("error".into()),
        _ => None,
    }
}

/// The person of a coding agent's session, as it knows him.
fn person(row: &mut EventRow, attributes: Attributes<'_>) {
    row.initiator_id = attributes.first(&["user.email", "user.account_uuid", "user.account_id", "user.id"]);
    row.initiator_type = row.initiator_id.as_ref().map(|_| "user".into());
}

#[cfg(test)]
mod recorded_tests;
#[cfg(test)]
mod source_tests;
#[cfg(test)]
mod tests;
