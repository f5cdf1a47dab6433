//! Spans by OpenLLMetry (Traceloop): traceloop.span.kind and llm.request.type, for those that
//! do not speak OpenTelemetry's conventions, as its newer instrumentations do for most steps.
//!
//! A task only holds other steps together and is no event.

use custody_proto::wire::Span;

use super::{RecordContext, base_span};
use crate::attributes::Attributes;
use crate::event::EventRow;

/// What a program associates with its traces, in the order of preference.
const CONVERSATION: [&str; 3] = [
    "traceloop.association.properties.session_id",
    "traceloop.association.properties.chat_id",
    "traceloop.association.properties.thread_id",
];

/// The event of a span, if its kind is that of a step.
pub(super) fn map(context: &RecordContext<'_>, span: &Span<'_>) -> Option<EventRow> {
    let attributes = Attributes(&span.attributes);
    let spoken = attributes.lent("traceloop.span.kind");
    let kind = match spoken.as_deref() {
        Some("tool" | "handoff") => "tool_call",
        Some("agent" | "workflow") => "agent_invocation",
        Some(_) => return None,
        None => match &*attributes.lent("llm.request.type")? {
            "chat" | "completion" | "embedding" => "model_call",
            _ => return None,
        },
    };
    let mut row = base_span(context, span, "openllmetry", kind);
    row.conversation_id = row.conversation_id.or_else(|| attributes.first(&CONVERSATION));
    if row.initiator_id.is_none() {
        row.initiator_id = attributes.text("traceloop.association.properties.user_id");
        row.initiator_type = row.initiator_id.as_ref().map(|_| "user".into());
    }
    let entity = attributes.text("traceloop.entity.name");
    match spoken.as_deref() {
        // The agent that hands over calls, as for any tool; to whom is what it acts on.
        Some("handoff") => {
            row.tool = Some("handoff".into());
            row.resource = row.resource.or_else(|| attributes.text("gen_ai.handoff.to_agent"));
        }
        Some("tool") => row.tool = row.tool.or(entity).or_else(|| Some(span.name.to_owned())),
        Some(_) if row.agent_name.is_none() => {
            row.agent_name = entity.or_else(|| attributes.text("traceloop.workflow.name"));
            row.agent_version = row.agent_version.or_else(|| attributes.text("traceloop.entity.version"));
        }
        _ => {}
    }
    if kind == "tool_call" {
        row.action = row.action.or_else(|| row.tool.clone());
    }
    Some(row)
}
