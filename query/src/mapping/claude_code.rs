//! Claude Code's log events (claude_code.*). Its beta spans are rows of `spans` and no events:
//! they tell of the same calls again.
//!
//! What it cannot tell: a call that was refused has no result; details are off by default, and
//! an MCP tool of the user's is then `mcp_tool`; a hook may change what was approved.

use custody_proto::wire::LogRecord;
use serde_json::Value;

use super::{RecordContext, base_log, lasted, outcome, person};
use crate::attributes::Attributes;
use crate::event::EventRow;

/// The event of a record, by its name without `claude_code.`.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord<'_>, name: &str) -> Option<EventRow> {
    let attributes = Attributes(&log.attributes);
    let by_person = attributes.lent("source").is_some_and(|source| source.starts_with("user"));
    let kind = match name {
        "user_prompt" => "request",
        "tool_decision" if by_person => "approval",
        "tool_decision" | "hook_execution_complete" => "policy_evaluation",
        "tool_result" => "tool_call",
        "api_request" | "api_error" | "api_refusal" => "model_call",
        "permission_mode_changed" | "plugin_installed" => "authority_change",
        "skill_activated" => "skill_invocation",
        _ => return None,
    };
    let mut row = base_log(context, log, "claude_code", kind);
    person(&mut row, attributes);
    row.correlation_id = attributes.text("prompt.id");
    row.agent_name = row.agent_name.or_else(|| Some("claude-code".into()));
    row.agent_version = Attributes(&context.resource.attributes).text("service.version");
    match name {
        "tool_decision" => decision(&mut row, attributes, by_person),
        "tool_result" => result(&mut row, attributes),
        "api_request" | "api_error" | "api_refusal" => {
            lasted(&mut row, attributes);
            row.status = Some(if name == "api_request" { "ok" } else { "error" }.into());
            row.decision = (name == "api_refusal").then(|| "refused".into());
        }
        "hook_execution_complete" => {
            let blocking = attributes.number("num_blocking");
            row.decision = blocking.map(|n| if n > 0 { "deny" } else { "allow" }.into());
            row.policy_id = attributes.first(&["hook_name", "hook_event"]);
        }
        "permission_mode_changed" => {
            row.action = Some("permission_mode".into());
            row.decision = attributes.text("to_mode");
            row.reasons = attributes.list("trigger");
        }
        "plugin_installed" => {
            row.action = Some("plugin_installed".into());
            row.resource = attributes.text("plugin.name");
        }
        "skill_activated" => row.skill_id = attributes.text("skill.name"),
        _ => {}
    }
    Some(row)
}

/// Whether a call may run: what a person, the configuration or a hook said.
fn decision(row: &mut EventRow, attributes: Attributes<'_>, by_person: bool) {
    tool(row, attributes);
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
        row.policy_id = attributes.text("source");
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
