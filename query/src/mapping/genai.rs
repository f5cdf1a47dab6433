//! Spans by OpenTelemetry's GenAI and MCP conventions: the acting side.

use custody_proto::otlp::trace::{Span, status::StatusCode};

use super::{RecordContext, base, otlp_time};
use crate::attributes::{Attributes, hex_id};
use crate::event::EventRow;

/// The event of a span, if it is one of a GenAI or MCP operation.
pub(super) fn map(context: &RecordContext<'_>, span: &Span) -> Option<EventRow> {
    let attributes = Attributes(&span.attributes);
    let (kind, source) = kind(attributes)?;
    let end_time = otlp_time(span.end_time_unix_nano);
    let mut row = EventRow {
        kind: kind.to_owned(),
        event_time: otlp_time(span.start_time_unix_nano).unwrap_or(context.ingest_time),
        end_time,
        trace_id: hex_id(&span.trace_id),
        span_id: hex_id(&span.span_id),
        parent_span_id: hex_id(&span.parent_span_id),
        links: span.links.iter().map(link).collect(),
        initiator_id: attributes.first(&["authz.initiator.id", "enduser.id", "user.id"]),
        status: Some(status(span).to_owned()),
        ..base(context, attributes, source)
    };
    if row.initiator_id.is_some() {
        row.initiator_type = attributes.text("authz.initiator.type").or_else(|| Some("user".into()));
    }
    match kind {
        "tool_call" => {
            row.action = row.action.or_else(|| row.tool.clone());
            row.resource = row.resource.or_else(|| attributes.text("mcp.resource.uri"));
            row.tool_call_id = row.tool_call_id.or_else(|| attributes.text("jsonrpc.request.id"));
        }
        "context_retrieval" => {
            row.action = row.action.or_else(|| Some("read".into()));
            row.resource = row.resource.or_else(|| attributes.first(&["gen_ai.data_source.id", "mcp.resource.uri"]));
        }
        _ => {}
    }
    if row.parent_span_id.is_some() && row.parent_span_id == row.span_id {
        row.invalid_reasons.push("the span is its own parent".into());
    }
    Some(row)
}

/// The kind of event and the convention that says so.
fn kind(attributes: Attributes<'_>) -> Option<(&'static str, &'static str)> {
    let kind = match attributes.text("gen_ai.operation.name").as_deref() {
        Some("execute_tool") => "tool_call",
        Some("invoke_agent" | "create_agent" | "invoke_workflow") => "agent_invocation",
        Some("chat" | "text_completion" | "generate_content" | "embeddings") => "model_call",
        Some("retrieval") => "context_retrieval",
        _ => {
            return match attributes.text("mcp.method.name").as_deref() {
                Some("tools/call") => Some(("tool_call", "mcp")),
                Some("resources/read") => Some(("context_retrieval", "mcp")),
                _ => attributes.text("skill.id").map(|_| ("skill_invocation", "otel_genai")),
            };
        }
    };
    let source = if attributes.text("mcp.method.name").is_some() { "mcp" } else { "otel_genai" };
    Some((kind, source))
}

fn link(link: &custody_proto::otlp::trace::span::Link) -> String {
    format!("{}:{}", const_hex::encode(&link.trace_id), const_hex::encode(&link.span_id))
}

/// A span's status in one word.
pub(crate) fn status(span: &Span) -> &'static str {
    match span.status.as_ref().map(|s| s.code()) {
        Some(StatusCode::Ok) => "ok",
        Some(StatusCode::Error) => "error",
        _ => "unset",
    }
}
