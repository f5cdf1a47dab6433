//! From records to provenance events: pure, versioned, and run again over the
//! whole log whenever it changes. docs/semantic-conventions.md is its contract.

mod authz;
mod genai;
mod security;

use custody_proto::otlp::common::InstrumentationScope;
use custody_proto::otlp::logs::LogRecord;
use custody_proto::otlp::resource::Resource;
use custody_proto::otlp::trace::Span;

use crate::attributes::{Attributes, attributes_json, hex_id};
use crate::event::EventRow;
use crate::rows::Time;

pub(crate) use genai::status as span_status;

/// The version of this mapping; it stands in every row.
pub const MAPPING_VERSION: u32 = 1;

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

/// The events of a span; none if no mapping knows it.
pub fn map_span(context: &RecordContext<'_>, span: &Span) -> Vec<EventRow> {
    genai::map(context, span).into_iter().collect()
}

/// The events of a log record; none if no mapping knows it.
pub fn map_log(context: &RecordContext<'_>, log: &LogRecord) -> Vec<EventRow> {
    let name = event_name(log);
    let row = match name.split_once('.') {
        Some(("authz", _)) => authz::map(context, log, &name),
        Some(("security", _)) => security::map(context, log, &name),
        _ => None,
    };
    row.into_iter().collect()
}

/// The name of a log event: its field, or the attribute that older SDKs use.
fn event_name(log: &LogRecord) -> String {
    if log.event_name.is_empty() {
        return Attributes(&log.attributes).text("event.name").unwrap_or_default();
    }
    log.event_name.clone()
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
        actor_chain: attributes.list("authz.actor_chain"),
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
