//! OCSF events (schema.ocsf.io, 1.1 to 1.8) as JSON in a log record: of any producer, and of
//! NVIDIA OpenShell and NemoClaw, which log so what their sandboxes let through.
//!
//! What OpenShell cannot tell: who approved a policy (no approver is named), and whether
//! anything is missing (`metadata.sequence` is absent). What no producer tells: the grant.

use custody_proto::wire::LogRecord;
use serde_json::Value as Json;

use super::document::{Document, member, said};
use super::{RecordContext, base_log, security};
use crate::event::EventRow;

/// The event of a record, if it is of a class that is one.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord<'_>, event: &Document) -> Option<EventRow> {
    let class = event.number("/class_uid")?;
    let source = if is_openshell(event) { "openshell" } else { "ocsf" };
    let kind = kind(event, class, source)?;
    let mut row = base_log(context, log, source, kind);
    row.event_time = event.millis("/time").unwrap_or(row.event_time);
    row.end_time = event.millis("/end_time");
    if let Some(start) = event.millis("/start_time").filter(|_| row.end_time.is_some()) {
        row.event_time = start;
    }
    row.status = match event.number("/status_id") {
        Some(1) => Some("ok".into()),
        Some(2) => Some("error".into()),
        _ => None,
    };
    row.decision = decision(event).map(str::to_owned);
    row.reasons = event.list("/status_detail");
    row.correlation_id = event.text("/metadata/correlation_uid").or(row.correlation_id);
    row.conversation_id = event.first(&["/session/uid", "/actor/session/uid"]).or(row.conversation_id);
    row.tenant = row.tenant.or_else(|| event.text("/metadata/tenant_uid"));
    actors(&mut row, event);
    policy(&mut row, event);
    row.action = action(event, class);
    row.resource = resource(event, class);
    let mut names = Vec::new();
    match class {
        2004 | 2005 => names = finding(&mut row, event),
        3002 => authentication(&mut row, event),
        3003 | 3005 | 3006 => access(&mut row, event),
        5019 => configuration(&mut row, event),
        6003 if kind == "tool_call" => row.tool = event.text("/api/operation"),
        _ => {}
    }
    event.keep(&mut row, log, names);
    Some(row)
}

fn is_openshell(event: &Document) -> bool {
    let product = event.text("/metadata/product/name").unwrap_or_default();
    let vendor = event.text("/metadata/product/vendor_name");
    let named = ["OpenShell", "NemoClaw"].iter().any(|name| product.contains(name));
    named || (vendor.as_deref() == Some("NVIDIA") && ["Sandbox", "Gateway"].iter().any(|part| product.contains(part)))
}

/// The sandbox. Older releases name it in `metadata.uid`, which newer ones use for the event itself: there it is
/// `container.uid`, and is told neither by the gateway of what concerns all, nor where the schema was downgraded.
fn sandbox(event: &Document) -> Option<String> {
    let is_gateway = event.text("/metadata/product/name").is_some_and(|name| name.contains("Gateway"));
    let is_event = is_gateway || event.has("/container") || event.has("/unmapped/downgraded_from");
    event.text("/container/uid").or_else(|| event.text("/metadata/uid").filter(|_| !is_event))
}

/// The kind of a class. Activity without a decision is no step of provenance, but for the
/// classes that change something.
fn kind(event: &Document, class: i64, source: &str) -> Option<&'static str> {
    let activity = event.number("/activity_id");
    let is_decided = decision(event).is_some();
    // What a rule decided is an evaluation; what merely was let through or stopped, an executor's.
    let enforced =
        if event.has("/firewall_rule") || event.has("/policy") { "policy_evaluation" } else { "executor_decision" };
    match class {
        4001 | 4002 | 4007 | 1007 => is_decided.then_some(enforced),
        2004 if matches!(activity, Some(2 | 3)) => Some("investigation"),
        2004 => Some("alert"),
        2005 => Some("investigation"),
        3002 if activity == Some(2) => Some("authority_change"),
        3002 => Some("policy_evaluation"),
        3003 | 3005 | 3006 => Some("authority_change"),
        5019 => Some(configured(event)),
        6002 if source == "openshell" && activity == Some(3) => Some("agent_invocation"),
        6002 => Some("system_update"),
        6003 => match (decision(event), activity) {
            (Some("deny"), _) => Some(enforced),
            _ if event.has("/ai_model") => Some("model_call"),
            _ if event.text("/api/service/name").as_deref() == Some("mcp") => Some("tool_call"),
            (_, Some(1 | 3 | 4)) => Some("system_update"),
            (_, Some(2)) => Some("context_retrieval"),
            (Some(_), _) => Some(enforced),
            _ => None,
        },
        _ => None,
    }
}

/// What the control did. A denial anywhere wins: an event that contradicts itself allows nothing.
fn decision(event: &Document) -> Option<&'static str> {
    let (action, disposition) = (event.number("/action_id"), event.number("/disposition_id"));
    if ["/action_id", "/disposition_id"].iter().any(|at| event.has(at) && event.number(at).is_none()) {
        return None;
    }
    match (action, disposition) {
        (Some(2), _) | (_, Some(2..=6 | 21 | 24..=26)) => Some("deny"),
        (Some(1), _) | (None | Some(0), Some(1 | 8)) => Some("allow"),
        _ => None,
    }
}

fn actors(row: &mut EventRow, event: &Document) {
    row.initiator_id = event.first(&["/actor/user/uid", "/actor/user/email_addr", "/actor/user/name"]);
    let by_kind = match event.number("/actor/user/type_id") {
        Some(3 | 4) => "process",
        _ => "user",
    };
    row.initiator_type = row.initiator_id.as_ref().map(|_| by_kind.into());
    row.agent_id = event.text("/ai_agent/uid").or(row.agent_id.take());
    row.agent_name = event.text("/ai_agent/name").or(row.agent_name.take());
    row.agent_version = event.text("/ai_agent/version").or(row.agent_version.take());
    if row.source == "openshell" {
        // The sandbox is what acts.
        row.agent_id = row.agent_id.take().or_else(|| sandbox(event));
        row.agent_name = row.agent_name.take().or_else(|| event.text("/container/name"));
    }
}

fn policy(row: &mut EventRow, event: &Document) {
    let rule = event.first(&["/firewall_rule/uid", "/firewall_rule/name"]).filter(|name| name != "-");
    row.policy_id = event.first(&["/policy/uid", "/policy/name"]).or(rule).or(row.policy_id.take());
    let versions = ["/policy/version", "/firewall_rule/version", "/unmapped/policy_version", "/unmapped/policy_hash"];
    row.policy_version = event.first(&versions);
}

/// What was done: the class in a word, and the activity.
fn action(event: &Document, class: i64) -> Option<String> {
    let activity = || event.text("/activity_name").map(|name| name.to_ascii_lowercase());
    let word = match class {
        4001 => "network",
        4002 => return event.text("/http_request/http_method").or_else(|| Some(format!("http:{}", activity()?))),
        4007 => "ssh",
        1007 => "process",
        6003 => return event.text("/api/operation").or_else(activity),
        6002 => "application",
        _ => return activity(),
    };
    Some(format!("{word}:{}", activity()?))
}

/// What it was done to.
fn resource(event: &Document, class: i64) -> Option<String> {
    let endpoint = || {
        let host = event.first(&["/dst_endpoint/domain", "/dst_endpoint/hostname", "/dst_endpoint/ip"])?;
        Some(event.number("/dst_endpoint/port").map_or(host.clone(), |port| format!("{host}:{port}")))
    };
    match class {
        4002 => event.text("/http_request/url/url_string").or_else(|| {
            let host = event.text("/http_request/url/hostname")?;
            Some(format!("{host}{}", event.text("/http_request/url/path").unwrap_or_default()))
        }),
        1007 => event.first(&["/process/file/path", "/process/name", "/process/cmd_line"]),
        6002 => event.first(&["/app/uid", "/app/name"]),
        6003 => event.first(&["/resources/0/uid", "/resources/0/name", "/ai_model/name"]),
        3006 => event.first(&["/group/uid", "/group/name"]),
        3003 | 3005 => event.first(&["/user/uid", "/user/name", "/user/email_addr"]),
        3002 => event.first(&["/service/uid", "/service/name"]),
        _ => None,
    }
    .or_else(endpoint)
}

/// 2004 and 2005: an alert, or what was done about one. A finding names no actor of its own
/// kind: who is no person by `type_id` is none.
fn finding(row: &mut EventRow, event: &Document) -> Vec<(&'static str, Json)> {
    let first = event.objects("/finding_info_list").next().and_then(|info| member(info, "uid"));
    row.correlation_id = event.text("/finding_info/uid").or(first);
    let (title, rule) = (event.text("/finding_info/title"), event.text("/finding_info/analytic/name"));
    row.reasons = event.list("/status_detail");
    let severity = match event.number("/severity_id") {
        Some(1) => Some("informational"),
        Some(2) => Some("low"),
        Some(3) => Some("medium"),
        Some(4) => Some("high"),
        Some(5 | 6) => Some("critical"),
        _ => None,
    };
    let disposition = match event.number("/verdict_id") {
        Some(1) => Some("false_positive"),
        Some(2 | 8) => Some("true_positive"),
        Some(5) => Some("benign"),
        Some(7) => Some("undetermined"),
        _ => None,
    };
    row.action = rule.clone().or_else(|| title.clone());
    if row.kind == "investigation" {
        let who = ["/actor/user", "/assignee"].iter().find(|at| event.has(at)).copied().unwrap_or("/actor/user");
        row.initiator_id = event.first(&[&format!("{who}/uid"), &format!("{who}/email_addr"), &format!("{who}/name")]);
        row.initiator_type = match event.number(&format!("{who}/type_id")) {
            Some(1 | 2) => Some("human".into()),
            Some(3 | 4) => Some("automation".into()),
            _ => None,
        };
        let state = match (event.number("/activity_id"), event.number("/status_id")) {
            (Some(3), _) | (_, Some(4 | 5)) => "closed",
            (Some(1), _) | (_, Some(2)) => "opened",
            _ => "note",
        };
        row.decision = Some(state.into());
        row.status = None;
    } else {
        row.decision = None;
    }
    let names = vec![
        ("security.alert.id", said(row.correlation_id.clone())),
        ("security.alert.title", said(title)),
        ("security.alert.severity", said(severity.map(str::to_owned))),
        ("security_rule.name", said(rule)),
        ("security.investigation.state", said(row.decision.clone())),
        ("security.investigation.disposition", said(disposition.map(str::to_owned))),
        ("security.note", said(event.text("/comment"))),
    ];
    row.invalid_reasons = security::invalid_reasons(row, disposition.is_some());
    names
}

/// 3002: whether somebody is who he says. A log-off ends a session.
fn authentication(row: &mut EventRow, event: &Document) {
    let user = event.first(&["/user/uid", "/user/email_addr", "/user/name"]);
    row.initiator_id = user.or(row.initiator_id.take());
    row.initiator_type = row.initiator_id.as_ref().map(|_| "user".into());
    row.action = row.action.take().map(|activity| format!("authenticate:{activity}"));
    row.decision = match (row.kind.as_str(), event.number("/status_id")) {
        ("authority_change", _) => Some("ended".into()),
        // Who cannot be seen to log on was let in by nothing: a logon, tickets, a switch of accounts.
        (_, Some(1)) if matches!(event.number("/activity_id"), Some(1 | 3..=7)) => Some("allow".into()),
        (_, Some(2)) => Some("deny".into()),
        _ => None,
    };
}

/// 3003, 3005, 3006: privileges and groups given and taken.
fn access(row: &mut EventRow, event: &Document) {
    let privileges = event.list("/privileges");
    row.decision = row.action.take();
    row.action = match privileges.as_slice() {
        [] => row.decision.clone(),
        some => Some(some.join(", ")),
    };
    if event.number("/class_uid") == Some(3006) && event.has("/user") {
        row.reasons.extend(event.first(&["/user/uid", "/user/name"]).map(|user| format!("user {user}")));
    }
}

/// 5019 of OpenShell: its state is PROPOSED, APPROVED, REJECTED, LOADED and the like.
fn state(event: &Document) -> String {
    event.first(&["/state", "/activity_name"]).unwrap_or_default().to_ascii_lowercase()
}

/// What the configuration's prover approved by itself is a rule's decision and no approval.
fn configured(event: &Document) -> &'static str {
    let is_auto = event.text("/unmapped/auto").as_deref() == Some("true");
    match (state(event).as_str(), is_auto) {
        ("proposed" | "approved" | "rejected", false) => "approval",
        ("approved" | "rejected", true) => "policy_evaluation",
        _ => "authority_change",
    }
}

fn configuration(row: &mut EventRow, event: &Document) {
    let state = state(event);
    row.decision = Some(
        match (row.kind.as_str(), state.as_str()) {
            ("approval", "proposed") => "pending",
            ("policy_evaluation", "approved") => "allow",
            ("policy_evaluation", "rejected") => "deny",
            (_, other) => other,
        }
        .to_owned(),
    )
    .filter(|decision| !decision.is_empty());
    row.action = Some("configuration".into());
    row.resource = event.first(&["/unmapped/policy", "/unmapped/chunk_id", "/device/uid", "/device/hostname"]);
    if row.reasons.is_empty() {
        row.reasons = event.list("/unmapped/rejection_reason");
    }
    if row.kind == "policy_evaluation" {
        row.policy_id = row.policy_id.take().or_else(|| event.text("/unmapped/source"));
    }
}
