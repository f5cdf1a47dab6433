//! The columns that every event has, whatever its source: those of the record, and those that
//! docs/semantic-conventions.md names for all.

use custody_proto::wire::{Link, LogRecord, Span};

use super::found::{Found, first, list, text};
use super::{MAPPING_VERSION, RecordContext, document, otlp_time, span_status, token};
use crate::attributes::{Attributes, hex_id};
use crate::event::EventRow;

/// The columns that every record has, but for its attributes: see `complete`.
fn base(context: &RecordContext<'_>, said: &Found<'_>, source: &str) -> EventRow {
    let resource = Attributes(&context.resource.attributes);
    EventRow {
        seq: context.seq,
        record_hash: context.record_hash.to_owned(),
        ingest_time: context.ingest_time,
        submitter: context.submitter.to_owned(),
        service: resource.text("service.name"),
        tenant: first([said.tenant_id, said.custody_tenant]).or_else(|| resource.text("tenant.id")),
        agent_id: text(said.agent_id),
        agent_name: text(said.agent_name),
        agent_version: text(said.agent_version),
        actor_chain: actor_chain(said),
        actor_type: first([said.actor_type, said.approval_by_type, said.security_actor_type]),
        workload_id: workload(said).or_else(|| workload_of_resource(resource)),
        effect: effect(said),
        trust: text(said.trust),
        evaluation_id: text(said.evaluation_id),
        arguments_digest: text(said.arguments_digest),
        shown_digest: text(said.shown_digest),
        schema_digest: text(said.schema_digest),
        parent_hash: text(said.parent_hash),
        conversation_id: first([said.conversation_id, said.session_id, said.mcp_session_id]),
        grant_id: text(said.grant_id),
        action: text(said.action),
        resource: text(said.resource),
        tool: text(said.tool),
        tool_call_id: text(said.tool_call_id),
        decision: text(said.decision),
        reasons: list(said.reasons),
        policy_id: text(said.policy_id),
        policy_version: text(said.policy_version),
        skill_id: text(said.skill_id),
        skill_version: text(said.skill_version),
        classification: text(said.classification),
        workspace: first([said.grant_workspace, said.workspace]),
        task_id: first([said.grant_task, said.task]),
        process_id: first([said.grant_process, said.process]),
        correlation_id: first([said.grant_correlation, said.correlation]),
        source: source.to_owned(),
        mapping_version: MAPPING_VERSION,
        ..EventRow::default()
    }
}

/// The columns that every log record has.
pub(super) fn base_log(context: &RecordContext<'_>, log: &LogRecord<'_>, source: &str, kind: &str) -> EventRow {
    let time = otlp_time(log.time_unix_nano).or_else(|| otlp_time(log.observed_time_unix_nano));
    EventRow {
        kind: kind.to_owned(),
        event_time: time.unwrap_or(context.ingest_time),
        observed_time: otlp_time(log.observed_time_unix_nano),
        trace_id: hex_id(log.trace_id),
        span_id: hex_id(log.span_id),
        ..base(context, &Found::of(&log.attributes), source)
    }
}

/// The columns that every span has.
pub(super) fn base_span(context: &RecordContext<'_>, span: &Span<'_>, source: &str, kind: &str) -> EventRow {
    let said = Found::of(&span.attributes);
    let initiator_id = first([said.initiator_id, said.enduser_id, said.user_id]);
    let initiator_type = text(said.initiator_type).or_else(|| Some("user".into()));
    let mut row = EventRow {
        kind: kind.to_owned(),
        event_time: otlp_time(span.start_time_unix_nano).unwrap_or(context.ingest_time),
        end_time: otlp_time(span.end_time_unix_nano),
        trace_id: hex_id(span.trace_id),
        span_id: hex_id(span.span_id),
        parent_span_id: hex_id(span.parent_span_id),
        links: span.links.iter().map(link).collect(),
        initiator_type: initiator_type.filter(|_| initiator_id.is_some()),
        initiator_id,
        status: Some(span_status(span).into_owned()),
        ..base(context, &said, source)
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
fn actor_chain(said: &Found<'_>) -> Vec<String> {
    let chain = list(said.actor_chain);
    if !chain.is_empty() {
        return chain;
    }
    let claims = text(said.claims).and_then(|text| document::Document::parse(&text));
    claims.map_or_else(Vec::new, |claims| token::actors(claims.at("/act")))
}

/// A SPIFFE id (spiffe.io) of a span or a log.
fn workload(said: &Found<'_>) -> Option<String> {
    first([said.spiffe_id, said.workload_spiffe_id, said.service_spiffe_id]).filter(|id| is_spiffe(id))
}

fn workload_of_resource(resource: Attributes<'_>) -> Option<String> {
    resource.first(&["spiffe.id", "workload.spiffe_id", "service.spiffe_id"]).filter(|id| is_spiffe(id))
}

fn is_spiffe(id: &str) -> bool {
    id.starts_with("spiffe://")
}

/// What a call does to the world, by our name for it or by the action gate's tier.
fn effect(said: &Found<'_>) -> Option<String> {
    let tier = || match text(said.tool_tier)?.as_str() {
        "read" => Some("read".to_owned()),
        "write" | "destructive" | "provision" | "decommission" => Some("write".to_owned()),
        _ => None,
    };
    text(said.effect).filter(|effect| matches!(effect.as_str(), "read" | "write" | "external_send")).or_else(tier)
}

fn link(link: &Link<'_>) -> String {
    format!("{}:{}", const_hex::encode(link.trace_id), const_hex::encode(link.span_id))
}

#[cfg(test)]
mod tests;
