//! Claude Platform: managed agents and the Messages API. Its spans (scope
//! `com.anthropic.claude-platform`), and the events of a session, polled or forwarded as logs.
//!
//! What it cannot tell: who confirmed a tool (no approver is named, so whether somebody approved
//! his own request is undecidable); a span whose status is unset was cancelled; arguments and
//! results are off by default.

use custody_proto::wire::{LogRecord, Span};

use serde_json::Value as Json;

use super::document::{Document, member, said as said_text};
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
        "tool_use" | "mcp_tool_use" | "server_tool_use" | "custom_tool_use" => "tool_call",
        _ if method.ends_with("messages.create") || method.ends_with("messages.stream") => "model_call",
        _ if method.ends_with("sessions.create") || method.ends_with("threads.create") => "agent_invocation",
        "messages.tool_runner" => "agent_invocation",
        _ => match attributes.lent("gen_ai.operation.name").as_deref() {
            Some("chat") => "model_call",
            Some("invoke_agent" | "create_agent") => "agent_invocation",
            _ => return None,
        },
    };
    let mut row = base_span(context, span, SOURCE, kind);
    row.conversation_id = row.conversation_id.or_else(|| attributes.text("anthropic.session.id"));
    if kind == "tool_call" {
        row.tool = row.tool.or_else(|| tool.map(str::to_owned));
        row.action = row.action.or_else(|| row.tool.clone());
    }
    Some(row)
}

/// Whether this is an event of a session: its types begin so, and it has an id of its own.
pub(super) fn is_event(said: &Document) -> bool {
    let kind = said.text("/type").unwrap_or_default();
    let prefixes = ["agent.", "user.", "session.", "span.", "workflow_run."];
    let known = prefixes.iter().any(|prefix| kind.starts_with(prefix));
    known && said.text("/id").is_some() && said.at("/processed_at").is_some()
}

/// Whether this is a session itself, as the API answers it.
pub(super) fn is_session(said: &Document) -> bool {
    said.text("/type").as_deref() == Some("session") && said.has("/environment_id") && said.has("/agent/id")
}

/// A session: which version of which agent runs, with which skills, and whose credentials (vaults)
/// it may use. Each time that it is polled it is told again; of one that has ended the time is that of its last change.
pub(super) fn map_session(context: &RecordContext<'_>, log: &LogRecord<'_>, said: &Document) -> EventRow {
    let mut row = base_log(context, log, SOURCE, "agent_invocation");
    row.conversation_id = said.text("/id");
    agent(&mut row, said);
    row.action = Some("session".into());
    row.resource = said.text("/environment_id").map(|id| format!("environment:{id}"));
    let skills: Vec<_> = said.objects("/agent/skills").collect();
    if let [one] = skills.as_slice() {
        row.skill_id = member(one, "skill_id");
        row.skill_version = member(one, "version");
    }
    let ended = said.text("/status").filter(|status| status == "terminated");
    let since = if ended.is_some() { "/updated_at" } else { "/created_at" };
    row.event_time = said.time(since).unwrap_or(row.event_time);
    let vaults = said.list("/vault_ids");
    let names = vec![
        ("session.state", said_text(ended)),
        ("anthropic.vault_ids", if vaults.is_empty() { Json::Null } else { Json::from(vaults) }),
    ];
    said.keep(&mut row, log, names);
    row
}

fn agent(row: &mut EventRow, said: &Document) {
    row.agent_id = said.first(&["/agent/id", "/agent_id"]).or(row.agent_id.take());
    row.agent_name = said.first(&["/agent_name", "/agent/name"]).or(row.agent_name.take());
    row.agent_version = said.text("/agent/version").or(row.agent_version.take());
}

/// What went wrong in a session: a request to the model, or somebody who refused it. Anything
/// else that fails is no step.
fn failure(said: &Document) -> Option<&'static str> {
    match said.text("/error/type")?.as_str() {
        "model_overloaded_error" | "model_rate_limited_error" | "model_request_failed_error" => Some("model_call"),
        "mcp_authentication_failed_error"
        | "repository_authentication_error"
        | "repository_forbidden_error"
        | "billing_error" => Some("executor_decision"),
        "tool_use_limit_reached_error" | "compaction_limit_reached_error" => Some("guardrail"),
        _ => None,
    }
}

/// The kind of step that an event of a session is.
fn kind(name: &str, said: &Document, permission: Option<&str>) -> Option<&'static str> {
    Some(match name {
        "user.message" | "user.define_outcome" => "request",
        "user.tool_confirmation" => "approval",
        // A call that was denied is the decision alone: nothing ran.
        "agent.tool_use" | "agent.mcp_tool_use" | "agent.custom_tool_use" if permission == Some("deny") => {
            "policy_evaluation"
        }
        "agent.tool_use" | "agent.mcp_tool_use" | "agent.custom_tool_use" => "tool_call",
        "agent.tool_result" | "agent.mcp_tool_result" | "user.custom_tool_result" | "user.tool_result" => "tool_result",
        // One agent has another do something, or hears from it.
        "session.thread_created"
        | "agent.thread_message_sent"
        | "agent.thread_message_received"
        | "workflow_run.created" => "agent_invocation",
        "agent.message" => "output",
        "span.model_request_end" => "model_call",
        "span.outcome_evaluation_end" => "guardrail",
        // It waits for somebody to confirm a call.
        "session.status_idle" | "session.thread_status_idle"
            if said.text("/stop_reason/type").as_deref() == Some("requires_action") =>
        {
            "approval"
        }
        "user.interrupt"
        | "session.updated"
        | "session.status_terminated"
        | "session.thread_status_terminated"
        | "session.deleted" => "authority_change",
        "session.error" => failure(said)?,
        _ => return None,
    })
}

/// The event of a session.
pub(super) fn map_log(context: &RecordContext<'_>, log: &LogRecord<'_>, said: &Document) -> Option<EventRow> {
    let name = said.text("/type")?;
    let permission = said.text("/evaluated_permission");
    let kind = kind(&name, said, permission.as_deref())?;
    let mut row = base_log(context, log, SOURCE, kind);
    row.event_time = said.time("/processed_at").unwrap_or(row.event_time);
    row.conversation_id = said.first(&["/session_id", "/session_thread_id"]).or(row.conversation_id);
    agent(&mut row, said);
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
        "approval" if name.ends_with("status_idle") => {
            row.decision = Some("pending".into());
            // One record is one row: of several calls none is named, and all stand in the body.
            if let [one] = said.list("/stop_reason/event_ids").as_slice() {
                row.tool_call_id = Some(one.clone());
            }
        }
        "approval" => {
            row.decision = match said.text("/result").as_deref() {
                Some("allow") => Some("approved".into()),
                Some("deny") => Some("rejected".into()),
                _ => None,
            };
            row.reasons = said.list("/deny_message");
        }
        _ if name == "session.error" => failed(&mut row, said),
        "tool_result" | "model_call" => {
            row.status = said.flag("/is_error").map(|e| if e { "error" } else { "ok" }.into());
        }
        "output" => row.resource = row.conversation_id.clone(),
        "agent_invocation" => told(&mut row, said, &name),
        "authority_change" => changed(&mut row, &name),
        "guardrail" => {
            row.decision = said.text("/result");
            row.policy_id = said.text("/outcome_id");
            row.reasons = said.list("/explanation");
        }
        _ => {}
    }
    let arguments = said.at("/input").map_or(Json::Null, |input| input.to_string().into());
    let state = matches!(name.as_str(), "session.status_terminated" | "session.deleted").then(|| "terminated".into());
    said.keep(&mut row, log, vec![("gen_ai.tool.call.arguments", arguments), ("session.state", said_text(state))]);
    Some(row)
}

/// What a session's error says: by its kind a request that failed, a limit, or a refusal.
fn failed(row: &mut EventRow, said: &Document) {
    row.status = Some("error".into());
    row.decision = (row.kind != "model_call").then(|| "deny".into());
    row.policy_id = said.text("/error/type").filter(|_| row.kind == "guardrail");
    row.resource = said.text("/error/mcp_server_name").map(|server| format!("mcp:{server}"));
    row.reasons = ["/error/type", "/error/message"].iter().filter_map(|at| said.text(at)).collect();
}

/// A thread for another agent, or a message to or from one: with whom, and in which thread.
fn told(row: &mut EventRow, said: &Document, name: &str) {
    row.agent_name = said.first(&["/to_agent_name", "/from_agent_name"]).or(row.agent_name.take());
    let thread = said.first(&["/to_session_thread_id", "/from_session_thread_id"]);
    row.resource = thread.map(|thread| format!("thread:{thread}"));
    row.action = name.split_once('.').map(|(_, what)| what.to_owned()).filter(|what| what != "thread_created");
    row.task_id = said.text("/workflow_run_id").or(row.task_id.take());
    if name == "workflow_run.created" {
        row.action = Some("workflow".into());
        row.agent_name = said.text("/name").or(row.agent_name.take());
    }
}

/// What an agent may do was changed or ended: by a person, by the application, or by its end.
fn changed(row: &mut EventRow, name: &str) {
    let (action, decision) = match name {
        "user.interrupt" => ("interrupt", "interrupted"),
        "session.updated" => ("session", "updated"),
        "session.thread_status_terminated" => ("thread", "ended"),
        _ => ("session", "ended"),
    };
    row.action = Some(action.into());
    row.decision = Some(decision.into());
}
