//! Decision logs of policy engines: Open Policy Agent, Cedar, AuthZEN and OpenFGA (`openfga.rs`). One decision
//! is one `policy_evaluation`; several that one record tells of are in `batch.rs`.
//!
//! What they cannot tell: whether the request that was decided about was then made. OPA's
//! `input` is whatever the caller sent: only names that are plain there are read. AuthZEN names
//! neither policy nor version; where OpenFGA answers so, its log does.

use custody_proto::wire::LogRecord;
use serde_json::Value as Json;

use super::document::{Document, member, text};
use super::{RecordContext, base_log, openfga};
use crate::event::EventRow;

/// The event of a record, if it is a decision of one of these engines.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord<'_>, said: &Document) -> Option<EventRow> {
    let read: fn(&mut EventRow, &Document) = match engine(said)? {
        "opa" => opa,
        "cedar" => cedar,
        "openfga" => openfga::check,
        _ => authzen,
    };
    let mut row = row(context, log, said, engine(said)?);
    read(&mut row, said);
    names_its_policy(&mut row);
    said.keep(&mut row, log, Vec::new());
    Some(row)
}

/// An allow that names no policy is invalid, but for AuthZEN, which has no place for one.
pub(super) fn names_its_policy(row: &mut EventRow) {
    let allows = row.decision.as_deref() == Some("allow");
    if allows && row.policy_id.is_none() && row.source != "authzen" {
        row.invalid_reasons.push("an allow without a policy".into());
    }
}

/// What every decision says, whatever made it.
pub(super) fn row(context: &RecordContext<'_>, log: &LogRecord<'_>, said: &Document, source: &str) -> EventRow {
    let mut row = base_log(context, log, source, "policy_evaluation");
    row.event_time = ["/timestamp", "/time"].iter().find_map(|at| said.time(at)).unwrap_or(row.event_time);
    row.trace_id = row.trace_id.or_else(|| id(said.text("/trace_id"), 32));
    row.span_id = row.span_id.or_else(|| id(said.text("/span_id"), 16));
    row
}

/// Where a record has the question: itself, in it, or in OpenFGA's log.
pub(super) const REQUEST: [&str; 3] = ["", "/request", "/raw_request"];

/// Where it has the answer.
pub(super) const RESPONSE: [&str; 3] = ["", "/response", "/raw_response"];

/// What the answer says at a place.
pub(super) fn answer<'a>(said: &'a Document, at: &str) -> Option<&'a Json> {
    RESPONSE.iter().find_map(|root| said.at(&format!("{root}{at}")).filter(|value| !value.is_null()))
}

/// Which engine writes such records.
fn engine(said: &Document) -> Option<&'static str> {
    let is_opa = said.text("/decision_id").is_some()
        && ["/path", "/query", "/labels", "/bundles", "/revision"].iter().any(|at| said.has(at));
    let request = |at: &str| REQUEST.iter().any(|root| said.has(&format!("{root}{at}")));
    if is_opa {
        return Some("opa");
    }
    if request("/tuple_key") {
        return answer(said, "/allowed").is_some().then_some("openfga");
    }
    match answer(said, "/decision")? {
        Json::Bool(_) if request("/subject") && request("/action") && request("/resource") => Some("authzen"),
        Json::String(_) if request("/principal") && request("/action") && request("/resource") => Some("cedar"),
        _ => None,
    }
}

/// An id in hex of its full length; anything else is none.
fn id(text: Option<String>, digits: usize) -> Option<String> {
    let text = text?.to_ascii_lowercase();
    let is_id = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit()) && text.bytes().any(|b| b != b'0');
    is_id.then_some(text)
}

pub(super) fn allow_or_deny(allowed: bool) -> Option<String> {
    Some(if allowed { "allow" } else { "deny" }.into())
}

/// OPA's decision log (openpolicyagent.org/docs/management-decision-logs).
fn opa(row: &mut EventRow, said: &Document) {
    row.decision = ["/result", "/mapped_result"].iter().find_map(|at| opa_result(said.at(at)?)).and_then(allow_or_deny);
    row.status = Some(if said.has("/error") { "error" } else { "ok" }.into());
    row.policy_id = said.first(&["/path", "/query"]);
    let bundles = said.object("/bundles").into_iter().flatten();
    let revisions: Vec<String> = bundles
        .filter_map(|(name, bundle)| Some(format!("{name}:{}", member(bundle.as_object()?, "revision")?)))
        .collect();
    row.policy_version = said.text("/revision").or_else(|| (!revisions.is_empty()).then(|| revisions.join(",")));
    row.correlation_id = said.text("/decision_id");
    row.reasons = ["/result/reasons", "/result/reason", "/result/deny", "/error/message"]
        .iter()
        .map(|at| said.list(at))
        .find(|list| !list.is_empty())
        .unwrap_or_default();
    let http = "/input/attributes/request/http";
    let at = |name: &str| said.text(&format!("{http}/{name}"));
    row.action = said.first(&["/input/action", "/input/action/name", "/input/method"]).or_else(|| at("method"));
    row.resource = said
        .first(&["/input/resource", "/input/resource/id"])
        .or_else(|| at("host").map(|host| format!("{host}{}", at("path").unwrap_or_default())))
        .or_else(|| match said.at("/input/path") {
            // Its tutorials pass a path in pieces.
            Some(Json::Array(pieces)) => {
                Some(format!("/{}", pieces.iter().filter_map(text).collect::<Vec<_>>().join("/")))
            }
            other => other.and_then(text),
        });
    row.tool = said.first(&["/input/tool/name", "/input/tool"]);
    row.agent_id = said.first(&["/input/agent/id", "/input/agent"]).or(row.agent_id.take());
    let who = [
        "/input/user/id",
        "/input/user",
        "/input/subject/id",
        "/input/subject",
        "/input/principal/id",
        "/input/principal",
    ];
    row.initiator_id = said.first(&who);
    row.initiator_type = row.initiator_id.as_ref().map(|_| "user".into());
    if row.initiator_id.is_none() {
        row.initiator_id = said.text("/input/attributes/source/principal");
        row.initiator_type = row.initiator_id.as_ref().map(|_| "process".into());
    }
}

/// A decision among what a policy may answer: a truth value, or an object with one. Text is
/// `true` or `false` in OPA's older logs. Anything else decides nothing.
fn opa_result(result: &Json) -> Option<bool> {
    match result {
        Json::Bool(allowed) => Some(*allowed),
        Json::String(text) => match text.as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        },
        Json::Object(members) => ["allow", "allowed"].iter().find_map(|name| members.get(*name)?.as_bool()),
        _ => None,
    }
}

/// An entity of Cedar: `Type::"id"`, or an object of type and id.
fn entity(said: &Document, name: &str) -> Option<(String, String)> {
    let at = if said.has(name) { name.to_owned() } else { format!("/request{name}") };
    let value = match said.at(&at)? {
        Json::Array(items) => items.first()?,
        value => value,
    };
    match value {
        Json::String(text) => {
            let (kind, id) = text.split_once("::\"")?;
            Some((kind.to_owned(), id.strip_suffix('"')?.to_owned()))
        }
        Json::Object(members) => {
            let pick = |names: &[&str]| names.iter().find_map(|name| member(members, name));
            Some((pick(&["type", "entityType", "actionType"])?, pick(&["id", "entityId", "actionId"])?))
        }
        _ => None,
    }
}

/// Cedar: its own tools' answers, Amazon Verified Permissions', and Cedarling's decision log.
fn cedar(row: &mut EventRow, said: &Document) {
    let decision = said.first(&["/decision", "/response/decision"]).unwrap_or_default().to_ascii_lowercase();
    row.decision = match decision.as_str() {
        "allow" => allow_or_deny(true),
        "deny" => allow_or_deny(false),
        _ => None,
    };
    let (mut ids, mut reasons) = (Vec::new(), Vec::new());
    for at in [
        "/diagnostics/reason",
        "/response/diagnostics/reason",
        "/determiningPolicies",
        "/response/determiningPolicies",
        "/reason",
    ] {
        // A number names no policy.
        ids.extend(said.list(at).into_iter().filter(|id| id.parse::<f64>().is_err()));
        for policy in said.objects(at) {
            ids.extend(member(policy, "id").or_else(|| member(policy, "policyId")));
            reasons.extend(member(policy, "description"));
        }
    }
    // A policy that was given a name (`@id`) is told by it: its own id is its place among the others.
    let names = ["/diagnostics", "/response/diagnostics"]
        .iter()
        .find_map(|at| said.object(&format!("{at}/id_annotations_by_reason")));
    for id in &mut ids {
        if let Some(name) = names.and_then(|names| member(names, id)) {
            *id = name;
        }
    }
    row.policy_id = (!ids.is_empty()).then(|| ids.join(","));
    row.policy_version = said.text("/policystore_version").filter(|version| version != "undefined");
    reasons.extend(said.list("/diagnostics/errors"));
    reasons.extend(said.list("/response/diagnostics/errors"));
    row.reasons = reasons;
    row.correlation_id = said.first(&["/request_id", "/correlation_id"]).or(row.correlation_id.take());
    row.action = entity(said, "/action").map(|(_, id)| id);
    row.resource = entity(said, "/resource").map(|(kind, id)| format!("{kind}:{id}"));
    let Some((kind, id)) = entity(said, "/principal") else { return };
    let kind = kind.rsplit("::").next().unwrap_or_default().to_ascii_lowercase();
    principal(row, &kind, id);
}

/// The one who asks: an agent acts, anybody else initiates.
pub(super) fn principal(row: &mut EventRow, kind: &str, id: String) {
    if kind.contains("agent") {
        row.agent_id = Some(id);
        return;
    }
    row.initiator_type = Some(if kind == "user" || kind == "identity" { "user" } else { "process" }.into());
    row.initiator_id = Some(id);
}

/// What decided: AuthZEN has no place for it, and OpenFGA's log says it beside.
pub(super) fn decided_by(row: &mut EventRow, said: &Document) {
    row.policy_id = said.text("/store_id").or(row.policy_id.take());
    row.policy_version = said.text("/authorization_model_id").or(row.policy_version.take());
}

/// OpenID AuthZEN, Authorization API 1.0: an access evaluation with its answer. Several at once: `batch.rs`.
pub(super) fn authzen(row: &mut EventRow, said: &Document) {
    let at = |name: &str| REQUEST.iter().find_map(|root| said.text(&format!("{root}{name}")));
    row.decision = answer(said, "/decision").and_then(Json::as_bool).and_then(allow_or_deny);
    decided_by(row, said);
    row.action = at("/action/name");
    row.correlation_id = said.text("/request_id").or(row.correlation_id.take());
    let (kind, id) = (at("/resource/type"), at("/resource/id"));
    row.resource = kind.map(|kind| id.map_or(kind.clone(), |id| format!("{kind}:{id}")));
    for context in ["/response/context", "/raw_response/context", "/context"] {
        let reasons = ["reason", "reason_admin", "reason_user"].iter().find_map(|name| {
            let found = said.at(&format!("{context}/{name}"))?;
            match found {
                // `reason_admin` holds texts by language or code.
                Json::Object(texts) => Some(texts.values().filter_map(text).collect::<Vec<_>>()),
                other => text(other).map(|one| vec![one]),
            }
        });
        if let Some(reasons) = reasons.filter(|_| row.reasons.is_empty()) {
            row.reasons = reasons;
        }
    }
    for context in ["/response/context", "/raw_response/context"] {
        if row.reasons.is_empty() {
            row.reasons = said.list(&format!("{context}/error/message"));
        }
    }
    if let Some(id) = at("/subject/id") {
        principal(row, &at("/subject/type").unwrap_or_default().to_ascii_lowercase(), id);
    }
}
