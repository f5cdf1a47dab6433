//! Spans by OpenInference's conventions (openinference.span.kind), for those that do not
//! speak OpenTelemetry's as well.
//!
//! A CHAIN only holds other steps together and is no event. TOOL spans name neither the
//! agent that called nor, mostly, the call: that is in their ancestors and the model's answer.

use custody_proto::wire::Span;

use super::{RecordContext, base_span};
use crate::attributes::Attributes;
use crate::event::EventRow;

/// The event of a span, if its kind is that of a step.
pub(super) fn map(context: &RecordContext<'_>, span: &Span<'_>) -> Option<EventRow> {
    let attributes = Attributes(&span.attributes);
    let kind = match attributes.lent("openinference.span.kind")?.to_ascii_uppercase().as_str() {
        "TOOL" => "tool_call",
        "AGENT" => "agent_invocation",
        "LLM" | "EMBEDDING" => "model_call",
        "RETRIEVER" => "context_retrieval",
        "GUARDRAIL" => "guardrail",
        _ => return None,
    };
    let mut row = base_span(context, span, "openinference", kind);
    row.agent_name = attributes.text("agent.name").or(row.agent_name);
    match kind {
        "tool_call" => {
            // A handoff to another agent is a TOOL without `tool.name`.
            row.tool = attributes.text("tool.name").or_else(|| Some(span.name.to_owned()));
            row.tool_call_id = attributes.first(&["tool_call.id", "tool.id"]).or(row.tool_call_id);
            row.action = row.action.or_else(|| row.tool.clone());
        }
        "agent_invocation" => row.agent_name = row.agent_name.or_else(|| Some(span.name.to_owned())),
        "context_retrieval" => row.action = row.action.or_else(|| Some("read".into())),
        "guardrail" => row.action = row.action.or_else(|| Some(span.name.to_owned())),
        _ => {}
    }
    Some(row)
}
