//! Spans by OpenTelemetry's GenAI and MCP conventions: the acting side.

use custody_proto::otlp::trace::span::SpanKind;
use custody_proto::wire::Span;

use super::{RecordContext, base_span, gateway, mcp_task};
use crate::attributes::Attributes;
use crate::event::EventRow;

/// The event of a span, if it is one of a GenAI or MCP operation.
pub(super) fn map(context: &RecordContext<'_>, span: &Span<'_>) -> Option<EventRow> {
    // Its logs tell of the same steps: whatever operations its spans name.
    if context.scope.name == "gemini-cli" {
        return None;
    }
    let attributes = Attributes(&span.attributes);
    let (kind, source) = kind(attributes)?;
    let mut row = base_span(context, span, source, kind);
    row.correlation_id = row.correlation_id.or_else(|| mcp_task::id(attributes));
    match kind {
        "tool_result" => mcp_task::result(&mut row, attributes),
        "request" | "authority_change" if mcp_task::is_asked(attributes) => {
            mcp_task::by_client(&mut row, span, attributes)
        }
        "tool_call" => {
            // A client's span of the MCP SDK names its tool in the span's name alone.
            row.tool = row.tool.or_else(|| span.name.split_once("tools/call ").map(|(_, tool)| tool.to_owned()));
            row.action = row.action.or_else(|| row.tool.clone());
            row.resource = row.resource.or_else(|| attributes.text("mcp.resource.uri"));
            row.tool_call_id = row.tool_call_id.or_else(|| attributes.text("jsonrpc.request.id"));
            gateway::permission(&mut row, attributes);
            if let Some(disposition) = gateway::disposition(attributes) {
                row.decision = Some(disposition);
            }
            // What a gate on the way stopped did not run: that is its decision, and no call.
            let said = |name: &str| attributes.has_text(name);
            let is_gated = said("permission.result") || said("gen_ai.agent.tool.disposition");
            // One that has a result did run, and a refusal beside it is evidence against it.
            let has_run = said("gen_ai.tool.call.result") || row.status.as_deref() == Some("ok");
            if is_gated && !has_run && matches!(row.decision.as_deref(), Some("deny" | "simulate")) {
                row.kind = "executor_decision".into();
            }
        }
        "context_retrieval" => {
            row.action = row.action.or_else(|| Some("read".into()));
            row.resource = row
                .resource
                .or_else(|| attributes.first(&["gen_ai.data_source.id", "mcp.resource.uri", "gen_ai.prompt.name"]));
        }
        "request" | "authority_change" => by_server(&mut row, span, attributes),
        "guardrail" => row.decision = row.decision.or_else(|| attributes.text("gen_ai.guardrail.verdict")),
        _ => {}
    }
    Some(row)
}

/// What an MCP server does on its own: it asks the client's user or model for something, or says that what it
/// offers has changed. Who sends it is the client of that one exchange.
fn by_server(row: &mut EventRow, span: &Span<'_>, attributes: Attributes<'_>) {
    let user = row.initiator_id.take().map(|id| format!("user:{id}"));
    row.initiator_id = row.service.clone().filter(|_| matches!(span.kind(), SpanKind::Client | SpanKind::Producer));
    row.initiator_type = row.initiator_id.as_ref().map(|_| "process".into());
    let method = attributes.text("mcp.method.name").unwrap_or_default();
    match method.strip_prefix("notifications/").and_then(|rest| rest.split_once('/')) {
        Some((what, _)) => {
            row.action = row.action.take().or_else(|| Some(what.to_owned()));
            row.decision = row.decision.take().or_else(|| Some("changed".into()));
        }
        None => {
            row.resource = row.resource.take().or_else(|| attributes.text("gen_ai.request.model")).or(user);
            row.action = row.action.take().or(Some(method));
        }
    }
}

/// The kind of event and the convention that says so.
fn kind(attributes: Attributes<'_>) -> Option<(&'static str, &'static str)> {
    let kind = match attributes.lent("gen_ai.operation.name").as_deref() {
        Some("execute_tool") => "tool_call",
        Some("invoke_agent" | "create_agent" | "invoke_workflow") => "agent_invocation",
        Some("chat" | "text_completion" | "generate_content" | "embeddings") => "model_call",
        Some("retrieval") => "context_retrieval",
        Some("guardrail" | "apply_guardrail") => "guardrail",
        _ => {
            return match attributes.lent("mcp.method.name").as_deref() {
                Some("tools/call") => Some(("tool_call", "mcp")),
                Some("resources/read" | "prompts/get") => Some(("context_retrieval", "mcp")),
                // What a person answered, or the model, no convention tells: they are no approval and no model call.
                Some("elicitation/create" | "sampling/createMessage") => Some(("request", "mcp")),
                Some("notifications/tools/list_changed" | "notifications/prompts/list_changed") => {
                    Some(("authority_change", "mcp"))
                }
                method => {
                    let of_skill = || attributes.lent("skill.id").map(|_| ("skill_invocation", "otel_genai"));
                    of_skill().or_else(|| Some((mcp_task::kind(method, attributes)?, "mcp")))
                }
            };
        }
    };
    let source = if attributes.has_text("mcp.method.name") { "mcp" } else { "otel_genai" };
    Some((kind, source))
}
