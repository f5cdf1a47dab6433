//! `authz.*` log events: requests, policy, grants and their use, approvals, executors, outputs,
//! and whatever else a trust authority, tool executor, skills registry or process engine tells.

use custody_proto::wire::{Event, LogRecord, Span};

use super::capability::{self, Capability};
use super::{RecordContext, base_log};
use crate::attributes::{Attributes, attributes_json, attributes_map};
use crate::event::EventRow;
use crate::issuers;

/// The event of an `authz.*` log record, if its name is one that is known.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord<'_>, name: &str) -> Option<EventRow> {
    let kind = match name {
        "authz.request" => "request",
        "authz.policy.evaluation" => "policy_evaluation",
        "authz.grant.issued" => "grant_issued",
        "authz.grant.derived" => "grant_derived",
        "authz.grant.denied" => "grant_denied",
        "authz.grant.revoked" => "grant_revoked",
        "authz.grant.used" => "grant_used",
        "authz.guardrail" => "guardrail",
        "authz.authority_change" => "authority_change",
        "authz.erasure" => "erasure",
        "authz.context.retrieval" => "context_retrieval",
        "authz.skill.invocation" => "skill_invocation",
        "authz.agent.invocation" => "agent_invocation",
        "authz.model.call" => "model_call",
        "authz.tool.call" => "tool_call",
        "authz.tool.result" => "tool_result",
        "authz.approval" => "approval",
        "authz.executor.decision" => "executor_decision",
        "authz.output" => "output",
        "authz.system_update" => "system_update",
        _ => return None,
    };
    let attributes = Attributes(&log.attributes);
    let mut row = base_log(context, log, "authz", kind);
    row.initiator_type = attributes.first(&["authz.grant.initiator.type", "authz.initiator.type"]);
    row.initiator_id = attributes.first(&["authz.grant.initiator.id", "authz.initiator.id"]);
    match kind {
        "grant_issued" | "grant_derived" | "grant_denied" => grant(&mut row, attributes),
        "grant_revoked" => row.decision = Some("revoked".into()),
        "approval" => row.decision = attributes.text("authz.approval.state"),
        "output" => row.resource = row.resource.take().or_else(|| attributes.text("authz.output.destination")),
        "system_update" => {
            row.resource =
                row.resource.take().or_else(|| attributes.first(&["authz.system.record_id", "authz.system.name"]));
        }
        "guardrail" => {
            row.decision = row.decision.take().or_else(|| attributes.text("authz.guardrail.verdict"));
            row.action = row.action.take().or_else(|| attributes.text("authz.guardrail.action"));
            row.policy_id = row.policy_id.take().or_else(|| attributes.text("authz.guardrail.name"));
        }
        "authority_change" => {
            row.action = row.action.take().or_else(|| attributes.text("authz.change.what"));
            row.decision = attributes.text("authz.change.new").or_else(|| row.decision.take());
            row.initiator_id = row.initiator_id.take().or_else(|| attributes.text("authz.change.by"));
        }
        "erasure" => row.initiator_id = row.initiator_id.take().or_else(|| attributes.text("authz.erasure.by")),
        "context_retrieval" => {
            row.action = row.action.take().or_else(|| Some("read".into()));
            row.resource = row.resource.take().or_else(|| attributes.text("gen_ai.data_source.id"));
        }
        "tool_call" | "grant_used" => row.action = row.action.take().or_else(|| row.tool.clone()),
        _ => {}
    }
    if matches!(kind, "tool_call" | "tool_result" | "model_call" | "skill_invocation") {
        row.status = Some(if attributes.has_text("error.type") { "error" } else { "ok" }.into());
        row.status = attributes.text("authz.status").or(row.status);
    }
    // A token that its holder can narrow says itself what it grants.
    let token = attributes.lent("authz.grant.token").filter(|_| kind.starts_with("grant_"));
    let read = token.and_then(|token| capability::read(&token));
    if let Some(read) = &read {
        capability::fill(&mut row, read);
    }
    row.invalid_reasons = invalid_reasons(&row, attributes);
    let is_unread = read.as_ref().is_some_and(|read| read.actions.is_empty()) && !attributes.has("authz.grant.actions");
    if is_unread && matches!(kind, "grant_issued" | "grant_derived") {
        row.invalid_reasons.push("the actions of its token cannot be read".into());
    }
    stamp_token(&mut row, log, read.as_ref());
    Some(row)
}

/// The token of a grant: checked here, and in the row without the part that makes it usable.
fn stamp_token(row: &mut EventRow, log: &LogRecord<'_>, read: Option<&Capability>) {
    let attributes = Attributes(&log.attributes);
    if attributes.has_text("authz.grant.token") || attributes.has_text(issuers::STATE) {
        let mut said = attributes_map(&log.attributes);
        let names = read.map(capability::attributes).unwrap_or_default();
        for (name, value) in names.into_iter().filter(|(_, value)| !value.is_null()) {
            said.entry(name).or_insert(value);
        }
        issuers::stamp(&mut said, row, attributes);
        row.attributes = serde_json::Value::Object(said).to_string();
    }
}

/// Span events under these names are read like logs: what left the system, and what filtered it.
pub(super) fn of_span(context: &RecordContext<'_>, span: &Span<'_>) -> Vec<EventRow> {
    let read = |event: &Event<'_>| {
        let known = matches!(event.name, "authz.output" | "authz.guardrail" | "authz.system_update");
        let log = known.then(|| LogRecord {
            time_unix_nano: event.time_unix_nano,
            trace_id: span.trace_id,
            span_id: span.span_id,
            attributes: event.attributes.clone(),
            ..LogRecord::default()
        })?;
        let mut row = map(context, &log, event.name)?;
        if row.attributes.is_empty() {
            row.attributes = attributes_json(&event.attributes);
        }
        Some(row)
    };
    span.events.iter().filter_map(read).collect()
}

fn grant(row: &mut EventRow, attributes: Attributes<'_>) {
    row.agent_id = attributes.text("authz.grant.subject").or_else(|| row.agent_id.take());
    row.parent_grant_id = attributes.text("authz.grant.parent_id");
    row.root_grant_id = attributes.text("authz.grant.root_id");
    row.delegation_depth = attributes.number("authz.grant.depth");
    let actions = attributes.list("authz.grant.actions");
    let resources = attributes.list("authz.grant.resources");
    row.action = row.action.take().or_else(|| only(&actions));
    row.resource = row.resource.take().or_else(|| only(&resources));
    row.decision = Some(if row.kind == "grant_denied" { "deny" } else { "allow" }.into());
}

fn only(list: &[String]) -> Option<String> {
    match list {
        [one] => Some(one.clone()),
        _ => None,
    }
}

/// The rules of the model that a record breaks.
fn invalid_reasons(row: &EventRow, attributes: Attributes<'_>) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut rule = |broken: bool, reason: &str| {
        if broken {
            reasons.push(reason.to_owned());
        }
    };
    match row.kind.as_str() {
        "request" => rule(row.initiator_id.is_none(), "a request without an initiator"),
        "policy_evaluation" => {
            let allows = row.decision.as_deref() == Some("allow");
            rule(allows && row.policy_id.is_none(), "an allow without a policy");
        }
        "grant_issued" | "grant_derived" => {
            rule(row.grant_id.is_none(), "a grant without an id");
            rule(row.agent_id.is_none(), "a grant without a subject");
            rule(row.grant_id.is_some() && row.grant_id == row.parent_grant_id, "a grant that is its own parent");
            rule(row.kind == "grant_derived" && row.parent_grant_id.is_none(), "a derived grant without a parent");
            let times = (attributes.time("authz.grant.not_before"), attributes.time("authz.grant.expires_at"));
            for name in ["not_before", "expires_at"].map(|n| format!("authz.grant.{n}")) {
                let unread = attributes.has_text(&name) && attributes.time(&name).is_none();
                rule(unread, &format!("{name} cannot be read as a time"));
            }
            for name in ["max_uses", "max_depth"].map(|n| format!("authz.grant.{n}")) {
                let unread = attributes.has_text(&name) && attributes.number(&name).is_none();
                rule(unread, &format!("{name} cannot be read as a number"));
            }
            rule(matches!(times, (Some(from), Some(to)) if to <= from), "a grant that expires before it begins");
        }
        "grant_revoked" => rule(row.grant_id.is_none(), "a revocation without a grant"),
        "approval" => {
            let approved = row.decision.as_deref() == Some("approved");
            rule(approved && !attributes.has_text("authz.approval.by"), "an approval without an approver");
            let (asked, decided) =
                (attributes.time("authz.approval.requested_at"), attributes.time("authz.approval.decided_at"));
            rule(
                matches!((asked, decided), (Some(a), Some(d)) if d < a),
                "an approval decided before it was asked for",
            );
        }
        "executor_decision" => {
            let allows = row.decision.as_deref() == Some("allow");
            rule(allows && row.grant_id.is_none(), "an executor's allow without a grant");
        }
        "grant_used" => {
            rule(row.grant_id.is_none(), "a use without a grant");
            rule(row.tool_call_id.is_none(), "a use without a call");
        }
        "skill_invocation" => rule(row.skill_version.is_none(), "a skill without a version"),
        "context_retrieval" => rule(row.resource.is_none(), "a retrieval without a source"),
        "guardrail" => rule(row.decision.is_none(), "a guardrail without a verdict"),
        "authority_change" => rule(row.initiator_id.is_none(), "a change of authority without an actor"),
        "output" => rule(row.resource.is_none(), "an output without a destination"),
        _ => {}
    }
    reasons
}
