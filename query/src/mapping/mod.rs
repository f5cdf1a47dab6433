//! From records to provenance events: pure, versioned, and run again over the
//! whole log whenever it changes. docs/semantic-conventions.md is its contract.

mod authz;
mod claude_code;
mod claude_platform;
mod codex;
mod document;
mod gateway;
mod gemini;
mod genai;
mod ledger;
mod ocsf;
mod openinference;
mod openllmetry;
mod policy;
mod pomerium;
mod security;
mod token;

use custody_proto::otlp::common::InstrumentationScope;
use custody_proto::otlp::logs::LogRecord;
use custody_proto::otlp::resource::Resource;
use custody_proto::otlp::trace::{Span, span::Link, status::StatusCode};

use crate::attributes::{Attributes, attributes_json, hex_id};
use crate::event::EventRow;
use crate::rows::Time;

/// The version of this mapping; it stands in every row.
pub const MAPPING_VERSION: u32 = 3;

/// Every kind of event that a mapping makes.
pub const KINDS: [&str; 25] = [
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
    pub resource: &'a Resource,
    /// Its instrumentation scope.
    pub scope: &'a InstrumentationScope,
}

/// The events of a span; none if no mapping knows it. A span that speaks several
/// conventions is one event, by OpenTelemetry's own where it is spoken; what it tells
/// of in span events (`authz.output` and the like) are events of their own.
pub fn map_span(context: &RecordContext<'_>, span: &Span) -> Vec<EventRow> {
    let row = claude_platform::map_span(context, span)
        .or_else(|| genai::map(context, span))
        .or_else(|| openinference::map(context, span))
        .or_else(|| openllmetry::map(context, span))
        .or_else(|| pomerium::map_span(context, span))
        .or_else(|| gateway_span(context, span))
        .or_else(|| grant_used(context, span));
    let mut rows: Vec<EventRow> = row.into_iter().collect();
    rows.extend(authz::of_span(context, span));
    rows
}

/// The events of a log record; none if no mapping knows it.
pub fn map_log(context: &RecordContext<'_>, log: &LogRecord) -> Vec<EventRow> {
    let name = event_name(context, log);
    let row = match name.split_once('.') {
        Some(("authz", _)) => authz::map(context, log, &name),
        Some(("security", _)) => security::map(context, log, &name),
        Some(("claude_code", rest)) => claude_code::map(context, log, rest),
        Some(("codex", rest)) => codex::map(context, log, rest),
        Some(("gemini_cli", rest)) => gemini::map(context, log, rest),
        Some(("custody", _)) => ledger::map(context, log, &name),
        _ => pomerium::map(context, log).or_else(|| document(context, log)).or_else(|| gateway_log(context, log)),
    };
    row.into_iter().collect()
}

/// The event of a record that is a JSON document of a known shape.
fn document(context: &RecordContext<'_>, log: &LogRecord) -> Option<EventRow> {
    // Members that were made attributes, by what each shape cannot do without.
    let known = ["class_uid", "decision_id", "tuple_key", "processed_at", token::CLAIMS];
    let is_document = |attributes: &Attributes<'_>| {
        let decides = || attributes.has("decision") && (attributes.has("subject") || attributes.has("principal"));
        let gives = || attributes.has("sub") && attributes.has("exp");
        known.iter().any(|name| attributes.has(name)) || decides() || gives()
    };
    let said = document::Document::of(log, is_document)?;
    if said.is_body() && matches!(said.text("/message").as_deref(), Some("authorize check" | "http-request")) {
        return pomerium::map(context, &said.as_attributes(log));
    }
    if said.at("/class_uid").is_some() {
        return ocsf::map(context, log, &said);
    }
    if claude_platform::is_event(&said) {
        return claude_platform::map_log(context, log, &said);
    }
    if let Some(claims) = said.text(&format!("/{}", token::CLAIMS)).and_then(|text| document::Document::parse(&text)) {
        return token::map(context, log, &claims);
    }
    policy::map(context, log, &said).or_else(|| token::map(context, log, &said))
}

fn gateway_span(context: &RecordContext<'_>, span: &Span) -> Option<EventRow> {
    let attributes = Attributes(&span.attributes);
    let (kind, source) = gateway::kind(attributes)?;
    let mut row = base_span(context, span, source, kind);
    gateway::fill(&mut row, attributes);
    Some(row)
}

fn gateway_log(context: &RecordContext<'_>, log: &LogRecord) -> Option<EventRow> {
    let attributes = Attributes(&log.attributes);
    let (kind, source) = gateway::kind(attributes)?;
    let mut row = base_log(context, log, source, kind);
    gateway::fill(&mut row, attributes);
    Some(row)
}

/// A span of no convention that acted under a grant.
fn grant_used(context: &RecordContext<'_>, span: &Span) -> Option<EventRow> {
    Attributes(&span.attributes).text("authz.grant.id")?;
    let mut row = base_span(context, span, "authz", "grant_used");
    row.action = row.action.or_else(|| row.tool.clone()).or_else(|| Some(span.name.clone()));
    Some(row)
}

/// The name of a log event: its field, or the attribute that older SDKs use. Codex fills the
/// field with a line of its source, and Claude Code's attribute leaves out its prefix.
fn event_name(context: &RecordContext<'_>, log: &LogRecord) -> String {
    let attribute = Attributes(&log.attributes).text("event.name").unwrap_or_default();
    let claude_code = context.scope.name.starts_with("com.anthropic.claude_code");
    if claude_code && !attribute.is_empty() && !attribute.contains('.') {
        return format!("claude_code.{attribute}");
    }
    if log.event_name.is_empty() || attribute.starts_with("codex.") { attribute } else { log.event_name.clone() }
}

/// A time of OTLP, where 0 stands for none.
pub(crate) fn otlp_time(nanos: u64) -> Option<Time> {
    (nanos != 0).then(|| Time(i64::try_from(nanos).unwrap_or(i64::MAX)))
}

/// The columns that every record has.
fn base(context: &RecordContext<'_>, attributes: Attributes<'_>, source: &str) -> EventRow {
    let resource = Attributes(&context.resource.attributes);
    EventRow {
        seq: context.seq,
        record_hash: context.record_hash.to_owned(),
        ingest_time: context.ingest_time,
        submitter: context.submitter.to_owned(),
        service: resource.text("service.name"),
        tenant: attributes.first(&["tenant.id", "custody.tenant"]).or_else(|| resource.text("tenant.id")),
        agent_id: attributes.text("gen_ai.agent.id"),
        agent_name: attributes.text("gen_ai.agent.name"),
        agent_version: attributes.text("gen_ai.agent.version"),
        actor_chain: actor_chain(attributes),
        actor_type: attributes.first(&["authz.actor.type", "authz.approval.by_type", "security.actor.type"]),
        workload_id: workload(attributes).or_else(|| workload(resource)),
        effect: effect(attributes),
        trust: attributes.text("authz.context.trust"),
        evaluation_id: attributes.text("authz.evaluation.id"),
        arguments_digest: attributes.text("authz.arguments.digest"),
        shown_digest: attributes.text("authz.approval.shown_digest"),
        schema_digest: attributes.text("authz.tool.schema_digest"),
        parent_hash: attributes.text("authz.grant.parent_hash"),
        conversation_id: attributes.first(&["gen_ai.conversation.id", "session.id", "mcp.session.id"]),
        grant_id: attributes.text("authz.grant.id"),
        action: attributes.text("authz.action"),
        resource: attributes.text("authz.resource"),
        tool: attributes.text("gen_ai.tool.name"),
        tool_call_id: attributes.text("gen_ai.tool.call.id"),
        decision: attributes.text("authz.decision"),
        reasons: attributes.list("authz.reasons"),
        policy_id: attributes.text("authz.policy.id"),
        policy_version: attributes.text("authz.policy.version"),
        skill_id: attributes.text("skill.id"),
        skill_version: attributes.text("skill.version"),
        classification: attributes.text("data.classification"),
        workspace: attributes.first(&["authz.grant.workspace", "authz.workspace"]),
        task_id: attributes.first(&["authz.grant.task.id", "authz.task.id"]),
        process_id: attributes.first(&["authz.grant.process.id", "authz.process.id"]),
        correlation_id: attributes.first(&["authz.grant.correlation_id", "authz.correlation_id"]),
        attributes: attributes_json(attributes.0),
        source: source.to_owned(),
        mapping_version: MAPPING_VERSION,
        ..EventRow::default()
    }
}

/// The columns that every log record has.
fn base_log(context: &RecordContext<'_>, log: &LogRecord, source: &str, kind: &str) -> EventRow {
    let time = otlp_time(log.time_unix_nano).or_else(|| otlp_time(log.observed_time_unix_nano));
    EventRow {
        kind: kind.to_owned(),
        event_time: time.unwrap_or(context.ingest_time),
        observed_time: otlp_time(log.observed_time_unix_nano),
        trace_id: hex_id(&log.trace_id),
        span_id: hex_id(&log.span_id),
        ..base(context, Attributes(&log.attributes), source)
    }
}

/// The columns that every span has.
fn base_span(context: &RecordContext<'_>, span: &Span, source: &str, kind: &str) -> EventRow {
    let attributes = Attributes(&span.attributes);
    let initiator_id = attributes.first(&["authz.initiator.id", "enduser.id", "user.id"]);
    let initiator_type = attributes.text("authz.initiator.type").or_else(|| Some("user".into()));
    let mut row = EventRow {
        kind: kind.to_owned(),
        event_time: otlp_time(span.start_time_unix_nano).unwrap_or(context.ingest_time),
        end_time: otlp_time(span.end_time_unix_nano),
        trace_id: hex_id(&span.trace_id),
        span_id: hex_id(&span.span_id),
        parent_span_id: hex_id(&span.parent_span_id),
        links: span.links.iter().map(link).collect(),
        initiator_type: initiator_type.filter(|_| initiator_id.is_some()),
        initiator_id,
        status: Some(span_status(span).to_owned()),
        ..base(context, attributes, source)
    };
    if row.parent_span_id.is_some() && row.parent_span_id == row.span_id {
        row.invalid_reasons.push("the span is its own parent".into());
    }
    if row.end_time.is_some_and(|end| end < row.event_time) {
        let what = if kind == "tool_call" { "a result before its call" } else { "it ends before it begins" };
        row.invalid_reasons.push(what.into());
    }
    row
}

/// Who acted for whom: as the record says, else by the claims of the token that it carries.
fn actor_chain(attributes: Attributes<'_>) -> Vec<String> {
    let said = attributes.list("authz.actor_chain");
    if !said.is_empty() {
        return said;
    }
    let claims = attributes.text(token::CLAIMS).and_then(|text| document::Document::parse(&text));
    claims.map_or_else(Vec::new, |claims| token::actors(claims.at("/act")))
}

/// A SPIFFE id (spiffe.io): of a span, a log or its resource.
fn workload(attributes: Attributes<'_>) -> Option<String> {
    let said = attributes.first(&["spiffe.id", "workload.spiffe_id", "service.spiffe_id"]);
    said.filter(|id| id.starts_with("spiffe://"))
}

/// What a call does to the world, by our name for it or by the action gate's tier.
fn effect(attributes: Attributes<'_>) -> Option<String> {
    let said = attributes.text("authz.effect");
    let tier = || match attributes.text("gen_ai.agent.tool.tier")?.as_str() {
        "read" => Some("read".to_owned()),
        "write" | "destructive" | "provision" | "decommission" => Some("write".to_owned()),
        _ => None,
    };
    said.filter(|effect| matches!(effect.as_str(), "read" | "write" | "external_send")).or_else(tier)
}

fn link(link: &Link) -> String {
    format!("{}:{}", const_hex::encode(&link.trace_id), const_hex::encode(&link.span_id))
}

/// A span's status in one word.
pub(crate) fn span_status(span: &Span) -> &'static str {
    match span.status.as_ref().map(|s| s.code()) {
        Some(StatusCode::Ok) => "ok",
        Some(StatusCode::Error) => "error",
        _ => "unset",
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
mod source_tests;
#[cfg(test)]
mod tests;
