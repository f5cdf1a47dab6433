//! Gemini CLI's log events (gemini_cli.*). Its spans tell of the same calls again and are rows of
//! `spans` only. A session is several traces, joined by `session.id`.
//!
//! What it cannot tell: a tool call has no id; no result is told, only its length; `auto_accept`
//! is a person's earlier "always", and `accept` also what --yolo accepts.

use custody_proto::wire::LogRecord;

use super::{RecordContext, base_log, lasted, outcome, person};
use crate::attributes::Attributes;
use crate::event::EventRow;

/// The event of a record, by its name without `gemini_cli.`.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord<'_>, name: &str) -> Option<EventRow> {
    let attributes = Attributes(&log.attributes);
    // What a person refused did not run: that is his decision, and no call.
    let rejected = attributes.lent("decision").as_deref() == Some("reject");
    let kind = match name {
        "user_prompt" => "request",
        "tool_call" if rejected => "approval",
        "tool_call" => "tool_call",
        "api_response" | "api_error" => "model_call",
        "agent.start" => "agent_invocation",
        "plan.approval_mode_switch"
        | "extension_install"
        | "extension_uninstall"
        | "extension_enable"
        | "extension_disable"
        | "extension_update" => "authority_change",
        "hook_call" => "policy_evaluation",
        _ => return None,
    };
    let mut row = base_log(context, log, "gemini", kind);
    person(&mut row, attributes);
    row.correlation_id = attributes.text("prompt_id");
    row.agent_id = attributes.text("agent_id").or(row.agent_id);
    row.agent_name = attributes.text("agent_name").or(row.agent_name).or_else(|| Some("gemini-cli".into()));
    match name {
        "tool_call" => {
            row.tool = attributes.text("function_name");
            row.action = row.tool.clone();
            row.resource = attributes.text("mcp_server_name").map(|server| format!("mcp:{server}"));
            row.decision = attributes.text("decision").map(|d| if d == "reject" { "rejected" } else { "allow" }.into());
            row.reasons = attributes.list("decision");
            if !rejected {
                lasted(&mut row, attributes);
                row.status = outcome(attributes, "success");
            }
        }
        "api_response" | "api_error" => {
            lasted(&mut row, attributes);
            row.status = Some(if name == "api_response" { "ok" } else { "error" }.into());
        }
        "hook_call" => {
            lasted(&mut row, attributes);
            row.policy_id = attributes.text("hook_name");
            row.action = attributes.text("hook_event_name");
            row.status = outcome(attributes, "success");
        }
        _ if kind == "authority_change" => {
            row.action = Some(name.trim_start_matches("plan.").to_owned());
            row.decision = attributes.text("to_mode");
            row.resource = attributes.text("extension_name");
        }
        _ => {}
    }
    Some(row)
}
