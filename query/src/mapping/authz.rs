//! `authz.*` log events: requests, policy, grants, approvals, executors, outputs.

use custody_proto::otlp::logs::LogRecord;

use super::{RecordContext, base_log};
use crate::attributes::Attributes;
use crate::event::EventRow;

/// The event of an `authz.*` log record, if its name is one that is known.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord, name: &str) -> Option<EventRow> {
    let kind = match name {
        "authz.request" => "request",
        "authz.policy.evaluation" => "policy_evaluation",
        "authz.grant.issued" => "grant_issued",
        "authz.grant.derived" => "grant_derived",
        "authz.grant.denied" => "grant_denied",
        "authz.grant.revoked" => "grant_revoked",
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
        _ => {}
    }
    row.invalid_reasons = invalid_reasons(&row, attributes);
    Some(row)
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
                let unread = attributes.text(&name).is_some() && attributes.time(&name).is_none();
                rule(unread, &format!("{name} cannot be read as a time"));
            }
            for name in ["max_uses", "max_depth"].map(|n| format!("authz.grant.{n}")) {
                let unread = attributes.text(&name).is_some() && attributes.number(&name).is_none();
                rule(unread, &format!("{name} cannot be read as a number"));
            }
            rule(matches!(times, (Some(from), Some(to)) if to <= from), "a grant that expires before it begins");
        }
        "grant_revoked" => rule(row.grant_id.is_none(), "a revocation without a grant"),
        "approval" => {
            let approved = row.decision.as_deref() == Some("approved");
            rule(approved && attributes.text("authz.approval.by").is_none(), "an approval without an approver");
        }
        "executor_decision" => {
            let allows = row.decision.as_deref() == Some("allow");
            rule(allows && row.grant_id.is_none(), "an executor's allow without a grant");
        }
        _ => {}
    }
    reasons
}
