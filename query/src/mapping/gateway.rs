//! Attribute sets of gateways and proxies that are not merged into any convention: Kubernetes'
//! agentic networking (`permission.*`, proposal 0033), agent gateways (`agent.*`), the action
//! gate (`gen_ai.agent.tool.disposition`) and A2A (`a2a.*`). On spans and on logs.
//!
//! What they cannot tell: which grant was used; `permission.result` is free text, and what is
//! neither a yes nor a no decides nothing.

use crate::attributes::Attributes;
use crate::event::EventRow;

/// The kind of step and the set of attributes that says so.
pub(super) fn kind(attributes: Attributes<'_>) -> Option<(&'static str, &'static str)> {
    let has = |name: &str| attributes.has_text(name);
    if has("permission.result") || (has("permission.policy") && has("tool.name")) {
        return Some(("policy_evaluation", "k8s_agentic"));
    }
    if has("a2a.method.name") || has("a2a.task.state") {
        let state = attributes.text("a2a.task.state").unwrap_or_default().to_ascii_uppercase();
        let pending = state.replace('-', "_").ends_with("AUTH_REQUIRED");
        return Some((if pending { "approval" } else { "agent_invocation" }, "a2a"));
    }
    if has("gen_ai.agent.tool.disposition") {
        return Some(("executor_decision", "action_gate"));
    }
    // An id alone is no step.
    if has("agent.id") && has("agent.delegate") {
        return Some(("agent_invocation", "agent_gateway"));
    }
    if has("agent.id") && has("agent.tool") {
        return Some(("tool_call", "agent_gateway"));
    }
    None
}

/// Fills the row of such a step.
pub(super) fn fill(row: &mut EventRow, attributes: Attributes<'_>) {
    row.agent_id = row.agent_id.take().or_else(|| attributes.text("agent.id"));
    row.tool = row.tool.take().or_else(|| attributes.first(&["tool.name", "agent.tool"]));
    row.action = row.action.take().or_else(|| row.tool.clone());
    row.task_id = row.task_id.take().or_else(|| attributes.first(&["agent.task.id", "a2a.task.id"]));
    row.delegation_depth = row.delegation_depth.or_else(|| attributes.number("agent.depth"));
    row.conversation_id =
        row.conversation_id.take().or_else(|| attributes.first(&["tool.session_id", "a2a.context.id"]));
    if row.initiator_id.is_none() {
        row.initiator_id = attributes.first(&["user.id", "enduser.id", "agent.user"]);
        row.initiator_type = row.initiator_id.as_ref().map(|_| "user".into());
    }
    match row.source.as_str() {
        "k8s_agentic" => permission(row, attributes),
        "agent_gateway" => row.resource = row.resource.take().or_else(|| attributes.text("agent.delegate")),
        "a2a" => {
            row.action = row.action.take().or_else(|| attributes.text("a2a.method.name"));
            row.correlation_id = row.correlation_id.take().or_else(|| attributes.text("a2a.message.id"));
            if row.kind == "approval" {
                row.decision = Some("pending".into());
            }
        }
        _ => row.decision = disposition(attributes),
    }
}

/// The decision of an access policy, as a span or log carries it.
pub(super) fn permission(row: &mut EventRow, attributes: Attributes<'_>) {
    let said = attributes.lent("permission.result").unwrap_or_default().to_ascii_lowercase();
    let decision = match said.as_str() {
        "allow" | "allowed" | "pass" | "passed" | "permit" | "permitted" | "granted" | "success" | "true" => {
            Some("allow")
        }
        "deny" | "denied" | "fail" | "failed" | "forbidden" | "rejected" | "blocked" | "false" => Some("deny"),
        _ => None,
    };
    if let Some(decision) = decision {
        row.decision = Some(decision.into());
    }
    row.policy_id = row.policy_id.take().or_else(|| attributes.text("permission.policy"));
    if row.reasons.is_empty() {
        row.reasons = attributes.list("permission.rule");
    }
}

/// What the action gate decided: allow, simulate (nothing took effect) or deny.
pub(super) fn disposition(attributes: Attributes<'_>) -> Option<String> {
    attributes
        .text("gen_ai.agent.tool.disposition")
        .filter(|said| matches!(said.as_str(), "allow" | "simulate" | "deny"))
}
