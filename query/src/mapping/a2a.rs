//! A2A beyond its attributes (`gateway.rs`): the spans of its Python SDK, which have names and no
//! attributes, and tasks as JSON (a Task, or a TaskStatusUpdateEvent, a2a-protocol.org).
//!
//! What they cannot tell: the SDK's spans name neither task nor message nor agent; a task that
//! needs authorisation (AUTH_REQUIRED) names nobody who may give it.

use custody_proto::wire::{LogRecord, Span};

use super::document::Document;
use super::{RecordContext, base_log, base_span};
use crate::attributes::parse_time;
use crate::event::EventRow;

/// The event of a span of the SDK: a message that one agent sent another, on either side.
pub(super) fn map_span(context: &RecordContext<'_>, span: &Span<'_>) -> Option<EventRow> {
    if context.scope.name != "a2a-python-sdk" {
        return None;
    }
    let (class, method) = span.name.rsplit_once('.')?;
    let is_known = class.contains(".request_handlers.") || class.contains(".client.transports.");
    let action = match method {
        "on_message_send" | "send_message" => "SendMessage",
        "on_message_send_stream" | "send_message_streaming" => "SendStreamingMessage",
        _ => return None,
    };
    let mut row = base_span(context, span, "a2a", "agent_invocation");
    row.action = row.action.or_else(|| Some(action.into()));
    is_known.then_some(row)
}

/// The state of a task, in the words of either version of the protocol.
fn state(said: &Document) -> Option<String> {
    let state = said.text("/status/state")?.to_ascii_uppercase().replace('-', "_");
    Some(state.strip_prefix("TASK_STATE_").map(str::to_owned).unwrap_or(state))
}

/// The event of a task: that somebody must authorise it, or that the agent refuses it. Other
/// states are no steps.
pub(super) fn map_log(context: &RecordContext<'_>, log: &LogRecord<'_>, said: &Document) -> Option<EventRow> {
    let conversation = said.text("/contextId")?;
    let (kind, decision) = match state(said)?.as_str() {
        "AUTH_REQUIRED" => ("approval", "pending"),
        "REJECTED" => ("executor_decision", "deny"),
        _ => return None,
    };
    let mut row = base_log(context, log, "a2a", kind);
    row.event_time = said.text("/status/timestamp").and_then(|time| parse_time(&time)).unwrap_or(row.event_time);
    row.conversation_id = Some(conversation);
    row.task_id = said.first(&["/taskId", "/id"]).or(row.task_id);
    row.correlation_id = said.text("/status/message/messageId").or(row.correlation_id);
    row.decision = Some(decision.into());
    row.reasons = said.list("/status/message/parts/0/text");
    said.keep(&mut row, log, Vec::new());
    Some(row)
}
