//! Codex CLI's log events (codex.*). Its spans are its own inner steps: rows of `spans`, no events.
//!
//! A request to the model is told when it was sent (`api_request`, or `websocket_request`) and when its answer was
//! whole (`sse_event`, which alone has the tokens). The answer is the `model_call`, and so is a
//! request that failed, because no answer follows; one that was taken is a `model_result`, which nobody counts.
//!
//! What it cannot tell: `success` says that the tool ran, not that the command in it ended well;
//! a command that was refused has no decision event.

use custody_proto::wire::LogRecord;

use super::{RecordContext, base_log, lasted, outcome, person};
use crate::attributes::Attributes;
use crate::event::EventRow;

/// The event of a record, by its name without `codex.`.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord<'_>, name: &str) -> Option<EventRow> {
    let attributes = Attributes(&log.attributes);
    let by_person = attributes.lent("source").is_some_and(|source| source.eq_ignore_ascii_case("user"));
    let kind = match name {
        "conversation_starts" => "agent_invocation",
        "user_prompt" => "request",
        "api_request" | "websocket_request" if has_failed(attributes) => "model_call",
        "api_request" | "websocket_request" => "model_result",
        // Pieces of an answer are told by the same name, and its end once more without tokens.
        "sse_event" if is_end(attributes) => "model_call",
        "tool_decision" if by_person => "approval",
        "tool_decision" => "policy_evaluation",
        "tool_result" => "tool_call",
        _ => return None,
    };
    let mut row = base_log(context, log, "codex", kind);
    // Its logs leave OTLP's time empty and say it in an attribute.
    if log.time_unix_nano == 0 {
        row.event_time = attributes.time("event.timestamp").unwrap_or(row.event_time);
    }
    person(&mut row, attributes);
    row.conversation_id = attributes.text("conversation.id").or(row.conversation_id);
    row.agent_name = Some("codex".into());
    row.agent_version = attributes.text("app.version");
    row.agent_id = attributes.text("agent_name");
    row.tool = attributes.text("tool_name");
    row.tool_call_id = attributes.text("call_id");
    row.action = row.action.or_else(|| row.tool.clone());
    match kind {
        "agent_invocation" => {
            row.policy_id = attributes.text("approval_policy");
            row.reasons = attributes.list("sandbox_policy");
        }
        "approval" | "policy_evaluation" => {
            row.decision = attributes.text("decision").map(|d| decision(&d, by_person).to_owned());
            row.reasons = attributes.list("source");
            row.policy_id = attributes.text("source").filter(|_| !by_person);
        }
        "model_call" | "model_result" => {
            lasted(&mut row, attributes);
            row.status = Some(if has_failed(attributes) { "error" } else { "ok" }.into());
        }
        "tool_call" => {
            lasted(&mut row, attributes);
            row.status = outcome(attributes, "success");
            row.resource = attributes.text("mcp_server").map(|server| format!("mcp:{server}"));
        }
        _ => {}
    }
    Some(row)
}

/// Whether this tells that an answer is whole, or was cut off, and not of a piece of it.
fn is_end(attributes: Attributes<'_>) -> bool {
    let is_told = attributes.has_text("input_token_count") || attributes.has_text("error.message");
    is_told && attributes.lent("event.kind").as_deref() == Some("response.completed")
}

/// Whether a request to the model was refused, or its answer cut off.
fn has_failed(attributes: Attributes<'_>) -> bool {
    attributes.has_text("error.message") || attributes.number("http.response.status_code").is_some_and(|s| s >= 400)
}

/// `approved`, `approved_for_session` and the like run the command; `denied` and `abort` do not.
fn decision(said: &str, by_person: bool) -> &'static str {
    match (said.starts_with("approved"), by_person) {
        (true, true) => "approved",
        (true, false) => "allow",
        (false, true) => "rejected",
        (false, false) => "deny",
    }
}
