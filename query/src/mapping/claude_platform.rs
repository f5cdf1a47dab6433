//! Claude Platform: managed agents and the Messages API. Its spans (scope
//! `com.anthropic.claude-platform`), and the events of a session, polled or forwarded as logs.
//!
//! What it cannot tell: who confirmed a tool (no approver is named, so whether somebody approved
//! his own request is undecidable); a span whose status is unset was cancelled; arguments and
//! results are off by default.

use custody_proto::wire::{LogRecord, Span};

use super::document::Document;
use super::{RecordContext, base_log, base_span};
use crate::attributes::Attributes;
use crate::event::EventRow;

const SOURCE: &str = "claude_platform";

/// The event of a span, if it is one of the platform's steps.
pub(super) fn map_span(context: &RecordContext<'_>, span: &Span<'_>) -> Option<EventRow> {
    // The API's own spans, and those of its client libraries.
    if !["com.anthropic.claude-platform", "com.anthropic.sdk."].iter().any(|by| context.scope.name.starts_with(by)) {
        return None;
    }
    let name = span.name.strip_prefix("anthropic.")?;
    let attributes = Attributes(&span.attributes);
    let (method, tool) = name.split_once(' ').map_or((name, None), |(method, rest)| (method, Some(rest)));
    let kind = match method {
        "tool_use" | "mcp_tool_use" | "server_tool_use" => "tool_call",
        _ if method.ends_with("messages.create") || method.ends_with("messages.stream") => "model_call",
        _ if method.ends_with("sessions.create") || method.ends_with("threads.create") => "agent_invocation",
        _ => match attributes.lent("gen_ai.operation.name").as_deref() {
            Some("chat") => "model_call",
            Some("invoke_agent" | "create_agent") => "agent_invocation",
            _ => return None,
        },
    };
    let mut row = base_span(context, span, SOURCE, kind);
    if kind == "tool_call" {
        row.tool = row.tool.or_else(|| tool.map(str::to_owned));
        row.action = row.action.or_else(|| row.tool.clone());
    }
    Some(row)
}

/// Whether this is an event of a session: its types begin so, and it has an id of its own.
pub(super) fn is_event(said: &Document) -> bool {
    let kind = said.text("/type").unwrap_or_default();
    let known = ["agent.", "user.", "session.", "span."].iter().any(|prefix| kind.starts_with(prefix));
    known && said.text("/id").is_some() && said.at("/processed_at").is_some()
}

/// The event of a session.
pub(super) fn map_log(context: &RecordContext<'_>, log: &LogRecord<'_>, said: &Document) -> Option<EventRow> {
    let name = said.text("/type")?;
    let permission = said.text("/evaluated_permission");
    let kind = match name.as_str() {
        "user.message" => "request",
        "user.tool_confirmation" => "approval",
        // A call that was denied is the decision alone: nothing ran.
        "agent.tool_use" | "agent.mcp_tool_use" | "agent.custom_tool_use" if permission.as_deref() == Some("deny") => {
            "policy_evaluation"
        }
        "agent.tool_use" | "agent.mcp_tool_use" | "agent.custom_tool_use" => "tool_call",
        "agent.tool_result" | "agent.mcp_tool_result" | "user.custom_tool_result" => "tool_result",
        "session.thread_created" => "agent_invocation",
        "agent.message" => "output",
        "span.model_request_end" => "model_call",
        _ => return None,
    };
    let mut row = base_log(context, log, SOURCE, kind);
    row.event_time = said.time("/processed_at").unwrap_or(row.event_time);
    row.conversation_id = said.first(&["/session_id", "/session_thread_id"]).or(row.conversation_id);
    row.agent_id = said.first(&["/agent/id", "/agent_id"]).or(row.agent_id);
    row.agent_name = said.first(&["/agent_name", "/agent/name"]).or(row.agent_name);
    row.agent_version = said.text("/agent/version").or(row.agent_version);
    row.tool_call_id = match kind {
        "tool_call" | "policy_evaluation" => said.text("/id"),
        _ => said.first(&["/tool_use_id", "/mcp_tool_use_id", "/custom_tool_use_id"]),
    };
    match kind {
        "tool_call" | "policy_evaluation" => {
            row.tool = said.text("/name");
            row.action = row.tool.clone();
            row.resource = said.text("/mcp_server_name").map(|server| format!("mcp:{server}"));
            row.policy_id = said.text("/evaluation/type");
            row.decision = permission.filter(|said| matches!(said.as_str(), "allow" | "ask" | "deny"));
        }
        "approval" => {
            row.decision = match said.text("/result").as_deref() {
                Some("allow") => Some("approved".into()),
                Some("deny") => Some("rejected".into()),
                _ => None,
            };
            row.reasons = said.list("/deny_message");
        }
        "tool_result" => row.status = said.flag("/is_error").map(|e| if e { "error" } else { "ok" }.into()),
        "model_call" => row.status = said.flag("/is_error").map(|e| if e { "error" } else { "ok" }.into()),
        "output" => row.resource = row.conversation_id.clone(),
        _ => {}
    }
    let arguments = said.at("/input").map_or(serde_json::Value::Null, |input| input.to_string().into());
    said.keep(&mut row, log, vec![("gen_ai.tool.call.arguments", arguments)]);
    Some(row)
}
