//! Claude Code: its log events (claude_code.*), and its beta spans of the same steps.
//!
//! A call is told by its log `tool_result` and by its span `claude_code.tool`, which have the
//! `tool_use_id` in common. The log makes it a `tool_call`, the span does not: a span of a call
//! that was refused looks like that of one that ran. The spans add which sub-agent acted, and
//! under which: they become `tool_result`. Likewise a request to the model: its log `api_request` has the cost,
//! comes without the beta too and is the `model_call`; its span `claude_code.llm_request` says which sub-agent
//! asked, and is a `model_result`, which nobody counts.
//!
//! What it cannot tell: a call that was refused has no result; details are off by default, and
//! an MCP tool of the user's is then `mcp_tool`; a hook may change what was approved.

use custody_proto::wire::{LogRecord, Span};
use serde_json::Value;

use super::{RecordContext, base_log, base_span, lasted, outcome, person};
use crate::attributes::Attributes;
use crate::event::EventRow;

/// The scope of its spans begins so, and that of its logs.
const SCOPE: &str = "com.anthropic.claude_code";

/// The event of a beta span.
pub(super) fn map_span(context: &RecordContext<'_>, span: &Span<'_>) -> Option<EventRow> {
    if !context.scope.name.starts_with(SCOPE) {
        return None;
    }
    let attributes = Attributes(&span.attributes);
    let name = span.name.strip_prefix("claude_code.")?;
    let kind = match name {
        "interaction" => "agent_invocation",
        "llm_request" => "model_result",
        "tool" | "tool.execution" => "tool_result",
        "tool.blocked_on_user" => blocked(attributes)?,
        "hook" => "policy_evaluation",
        _ => return None,
    };
    let mut row = base_span(context, span, "claude_code", kind);
    person(&mut row, attributes);
    row.agent_name = row.agent_name.or_else(|| Some("claude-code".into()));
    row.agent_version = Attributes(&context.resource.attributes).text("service.version");
    row.agent_id = attributes.text("agent_id").or(row.agent_id);
    // Who acts, and by whom it was started; the main session has no id.
    if let (Some(own), Some(parent)) = (&row.agent_id, attributes.text("parent_agent_id")) {
        row.actor_chain = vec![own.clone(), parent];
    }
    row.task_id = row.task_id.or_else(|| attributes.text("workflow.run_id"));
    row.tool_call_id = row.tool_call_id.or_else(|| attributes.text("tool_use_id"));
    match name {
        "tool" => {
            row.tool = attributes.text("tool_name");
            mcp_tool(&mut row);
            row.skill_id = attributes.text("skill_name").or(row.skill_id);
            row.resource = attributes.first(&["file_path", "subagent_type"]).or(row.resource);
            row.action = row.tool.clone();
        }
        "tool.execution" | "llm_request" => row.status = outcome(attributes, "success").or(row.status),
        "tool.blocked_on_user" => decide(&mut row, attributes),
        "hook" => hook(&mut row, attributes),
        _ => {}
    }
    Some(row)
}

/// A refusal: a person's, or a rule's. That a call was let through is told by its log
/// `tool_decision`, which names the call; this span does not, and would approve it once more.
fn blocked(attributes: Attributes<'_>) -> Option<&'static str> {
    attributes.lent("decision").filter(|decision| decision == "reject")?;
    Some(if is_by_person(attributes) { "approval" } else { "policy_evaluation" })
}

fn is_by_person(attributes: Attributes<'_>) -> bool {
    attributes.lent("source").is_some_and(|source| source.starts_with("user"))
}

/// The whole name of an MCP tool is `mcp__<server>__<tool>`.
fn mcp_tool(row: &mut EventRow) {
    let parts = row.tool.as_deref().and_then(|name| name.strip_prefix("mcp__")?.split_once("__"));
    if let Some((server, tool)) = parts.map(|(server, tool)| (server.to_owned(), tool.to_owned())) {
        row.resource = Some(format!("mcp:{server}"));
        row.tool = Some(tool);
    }
}

/// The event of a record, by its name without `claude_code.`.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord<'_>, name: &str) -> Option<EventRow> {
    let attributes = Attributes(&log.attributes);
    let by_person = is_by_person(attributes);
    let kind = match name {
        "user_prompt" => "request",
        "tool_decision" if by_person => "approval",
        "tool_decision" | "hook_execution_complete" => "policy_evaluation",
        "tool_result" => "tool_call",
        "api_request" | "api_error" | "api_refusal" => "model_call",
        "permission_mode_changed" | "plugin_installed" | "auth" | "mcp_server_connection" => "authority_change",
        "skill_activated" => "skill_invocation",
        "subagent_completed" => "agent_invocation",
        _ => return None,
    };
    let mut row = base_log(context, log, "claude_code", kind);
    person(&mut row, attributes);
    row.correlation_id = attributes.text("prompt.id");
    // A sub-agent is told by its name here, and by its id in the spans alone.
    row.agent_name = attributes.text("agent.name").or(row.agent_name).or_else(|| Some("claude-code".into()));
    row.agent_version = Attributes(&context.resource.attributes).text("service.version");
    match name {
        "tool_decision" => {
            tool(&mut row, attributes);
            decide(&mut row, attributes);
        }
        "tool_result" => result(&mut row, attributes),
        "api_request" | "api_error" | "api_refusal" => {
            lasted(&mut row, attributes);
            row.status = Some(if name == "api_request" { "ok" } else { "error" }.into());
            row.decision = (name == "api_refusal").then(|| "refused".into());
        }
        "hook_execution_complete" => hook(&mut row, attributes),
        "permission_mode_changed" => {
            row.action = Some("permission_mode".into());
            row.decision = attributes.text("to_mode");
            row.reasons = attributes.list("trigger");
        }
        "plugin_installed" => {
            row.action = Some("plugin_installed".into());
            row.resource = attributes.text("plugin.name");
            row.decision = Some("installed".into());
            row.reasons = attributes.list("install.trigger");
        }
        "auth" => auth(&mut row, attributes),
        "mcp_server_connection" => {
            row.action = Some("mcp_server".into());
            row.decision = attributes.text("status");
            row.resource = attributes.first(&["server_name", "plugin.name"]).map(|server| format!("mcp:{server}"));
            row.reasons = attributes.list("error_code");
        }
        "skill_activated" => {
            row.skill_id = attributes.text("skill.name");
            row.reasons = attributes.list("invocation_trigger");
        }
        "subagent_completed" => {
            lasted(&mut row, attributes);
            row.agent_name = attributes.text("agent_type").or(row.agent_name);
        }
        _ => {}
    }
    Some(row)
}

/// Somebody logged in or out; a login that failed changes nothing.
fn auth(row: &mut EventRow, attributes: Attributes<'_>) {
    row.action = Some("auth".into());
    row.status = outcome(attributes, "success");
    let failed = row.status.as_deref() == Some("error");
    row.decision = if failed { Some("failed".into()) } else { attributes.text("action") };
    row.resource = attributes.text("auth_method");
    row.reasons = attributes.list("error_category");
}

/// Hooks that ran on one occasion. One that blocks refuses; that none did allows nothing: what
/// failed, or only looked on, blocked nothing either.
fn hook(row: &mut EventRow, attributes: Attributes<'_>) {
    let blocking = attributes.number("num_blocking").is_some_and(|n| n > 0);
    row.decision = blocking.then(|| "deny".into());
    row.policy_id = attributes.first(&["hook_name", "hook_event"]);
    row.action = attributes.text("hook_event");
}

/// Whether a call may run: what a person, the configuration or a hook said.
fn decide(row: &mut EventRow, attributes: Attributes<'_>) {
    let by_person = is_by_person(attributes);
    let accepted = attributes.text("decision").map(|d| d == "accept");
    row.decision = accepted.map(|accepted| {
        match (by_person, accepted) {
            (true, true) => "approved",
            (true, false) => "rejected",
            (false, true) => "allow",
            (false, false) => "deny",
        }
        .into()
    });
    row.reasons = attributes.list("source");
    if !by_person {
        row.policy_id = attributes.text("source").filter(|source| source != "unknown");
    }
}

/// A call that has run.
fn result(row: &mut EventRow, attributes: Attributes<'_>) {
    tool(row, attributes);
    lasted(row, attributes);
    row.status = outcome(attributes, "success");
    row.decision = attributes.text("decision_type").map(|d| if d == "accept" { "allow" } else { "deny" }.into());
    row.reasons = attributes.list("decision_source");
}

/// The tool: an MCP tool and a skill by their own names, where details are switched on.
fn tool(row: &mut EventRow, attributes: Attributes<'_>) {
    row.tool = attributes.text("tool_name");
    row.tool_call_id = attributes.text("tool_use_id");
    let details = attributes.text("tool_parameters").and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let detail = |name: &str| details.as_ref()?.get(name)?.as_str().map(str::to_owned);
    row.skill_id = detail("skill_name");
    if let Some(name) = detail("mcp_tool_name") {
        row.tool = Some(name);
        row.resource = detail("mcp_server_name").map(|server| format!("mcp:{server}"));
    }
    row.action = row.tool.clone();
}
