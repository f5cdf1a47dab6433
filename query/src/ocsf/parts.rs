//! The parts of an OCSF event: who, from where, what was called, under which authority, and what
//! only a ledger knows.

use super::event::Parts;
use super::json::Writer;
use super::millis;
use super::told::{Field, Told, as_value};
use crate::attributes::parse_time;
use crate::event::EventRow;
use crate::rows::Time;

/// What stands where OCSF requires a name and the source gives none.
const UNKNOWN: &str = "unknown";

/// The person or process that asked, as an object `user`.
pub(super) fn user(row: &EventRow, w: &mut Writer<'_>) {
    let id = row.initiator_id.as_deref();
    w.text("uid", id.unwrap_or(UNKNOWN));
    w.some("email_addr", id.filter(|id| is_email(id)));
    let (type_id, name) = match row.initiator_type.as_deref() {
        Some("user" | "human") => (1, "User"),
        Some("admin") => (2, "Admin"),
        Some("system") => (3, "System"),
        Some("process" | "service" | "workload" | "automation") => (4, "Service"),
        Some(other) => (99, other),
        None => (0, "Unknown"),
    };
    w.number("type_id", type_id);
    w.text("type", name);
}

/// Whether OCSF's pattern of an address holds.
fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else { return false };
    let Some((first, rest)) = domain.split_once('.') else { return false };
    let name = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let in_local = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+,-./=?^_`{|}~".contains(&b);
    !local.is_empty()
        && local.bytes().all(in_local)
        && !first.is_empty()
        && first.bytes().all(name)
        && !rest.is_empty()
        && rest.bytes().all(|b| name(b) || b == b'.')
}

/// Who acts: the agent as the application, for the user that asked, in a session.
pub(super) fn actor(p: &Parts<'_>, w: &mut Writer<'_>) {
    let row = p.row;
    w.object("actor", |w| {
        // A service's name beside an agent's id would say that they are the same.
        let service = row.service.as_deref().unwrap_or(UNKNOWN);
        w.some("app_name", row.agent_name.as_deref().or(row.agent_id.is_none().then_some(service)));
        w.some("app_uid", row.agent_id.as_deref());
        if row.initiator_id.is_some() {
            w.object("user", |w| user(row, w));
        }
        if let Some(session) = &row.conversation_id {
            w.object("session", |w| w.text("uid", session));
        }
    });
}

/// Where it came from: the service that says so.
pub(super) fn source(p: &Parts<'_>, w: &mut Writer<'_>) {
    w.object("src_endpoint", |w| match p.row.service.as_deref() {
        Some(service) => w.text("svc_name", service),
        None => w.text("name", UNKNOWN),
    });
}

/// What was called. Gives the fields that stand here and not in `unmapped`.
pub(super) fn api(p: &Parts<'_>, w: &mut Writer<'_>) -> Vec<Field> {
    let (row, told) = (p.row, p.told);
    let mut moved = Vec::new();
    w.object("api", |w| {
        let names = [&row.tool, &row.skill_id, &row.action];
        w.text("operation", names.into_iter().flatten().next().map_or(row.kind.as_str(), String::as_str));
        w.some("version", row.skill_version.as_deref());
        if let Some(server) = row.resource.as_deref().and_then(|r| r.strip_prefix("mcp:")) {
            w.object("service", |w| w.text("name", server));
        }
        if let Some(id) = &row.tool_call_id {
            w.object("request", |w| {
                w.text("uid", id);
                if let Some(json) = told.json(Field::Arguments) {
                    w.raw("data", &as_value(json));
                    moved.push(Field::Arguments);
                }
            });
        }
        let code = told.count(Field::HttpStatus);
        let (error, said) = (told.text(Field::ErrorType), told.text(Field::ErrorMessage));
        let result = told.json(Field::Result);
        if code.is_some() || error.is_some() || said.is_some() || result.is_some() {
            w.object("response", |w| {
                if let Some(code) = code {
                    w.number("code", code);
                }
                w.some("error", error.as_deref());
                w.some("error_message", said.as_deref());
                if let Some(json) = result {
                    w.raw("data", &as_value(json));
                    moved.push(Field::Result);
                }
            });
        }
    });
    moved
}

/// What it was done to.
pub(super) fn resources(p: &Parts<'_>, w: &mut Writer<'_>) {
    if let Some(resource) = &p.row.resource {
        w.list("resources", |w| {
            w.item(|w| {
                w.text("name", resource);
                w.number("role_id", 1);
                w.text("role", "Target");
            });
        });
    }
}

/// What was read.
pub(super) fn databucket(p: &Parts<'_>, w: &mut Writer<'_>) {
    w.object("databucket", |w| {
        w.text("name", p.row.resource.as_deref().unwrap_or(UNKNOWN));
        w.number("type_id", 99);
        w.text("type", "Retrieval Source");
    });
}

/// The profile `ai_operation`: the model, and the part that the message played.
pub(super) fn ai(p: &Parts<'_>, w: &mut Writer<'_>) {
    let (row, told) = (p.row, p.told);
    let asked = told.text(Field::Model);
    if let Some(model) = told.text(Field::ModelAnswered).or_else(|| asked.clone()) {
        w.object("ai_model", |w| {
            w.text("name", &model);
            w.text("ai_provider", told.text(Field::Provider).as_deref().unwrap_or(UNKNOWN));
        });
    }
    let role = match row.kind.as_str() {
        "request" => (1, "User"),
        "model_call" | "output" => (2, "Assistant"),
        "tool_call" | "tool_result" => (3, "Tool"),
        "agent_invocation" => (4, "Agent"),
        "context_retrieval" => (6, "Retriever"),
        _ => return,
    };
    w.object("message_context", |w| {
        w.number("ai_role_id", role.0);
        w.text("ai_role", role.1);
        let application = row.agent_name.as_deref().or(row.service.as_deref()).unwrap_or(UNKNOWN);
        w.object("application", |w| {
            w.text("name", application);
            w.some("uid", row.agent_id.as_deref());
            w.some("version", row.agent_version.as_deref());
        });
        w.some("uid", row.conversation_id.as_deref());
        let counts = [
            ("prompt_tokens", Field::PromptTokens),
            ("completion_tokens", Field::CompletionTokens),
            ("total_tokens", Field::TotalTokens),
        ];
        for (name, field) in counts {
            if let Some(count) = told.count(field) {
                w.number(name, count);
            }
        }
    });
}

/// The profile `trace`. A span is told where it has an end: OCSF requires that.
pub(super) fn trace(p: &Parts<'_>, w: &mut Writer<'_>) {
    let row = p.row;
    let Some(trace) = &row.trace_id else { return };
    w.object("trace", |w| {
        w.text("uid", trace);
        if let (Some(span), Some(end)) = (&row.span_id, row.end_time) {
            w.object("span", |w| {
                w.text("uid", span);
                w.some("parent_uid", row.parent_span_id.as_deref());
                w.number("start_time", millis(row.event_time));
                w.number("end_time", millis(end));
            });
        }
    });
}

/// The policy that decided.
pub(super) fn policy(row: &EventRow, w: &mut Writer<'_>) {
    w.object("policy", |w| {
        match &row.policy_id {
            Some(id) => w.text("uid", id),
            None => w.text("name", UNKNOWN),
        }
        w.some("version", row.policy_version.as_deref());
    });
}

/// A grant as a session: to whom, what, by whom, until when.
pub(super) fn grant(p: &Parts<'_>, w: &mut Writer<'_>) {
    let (row, told) = (p.row, p.told);
    w.object("user", |w| {
        w.some("name", row.agent_name.as_deref());
        w.text("uid", row.agent_id.as_deref().unwrap_or(UNKNOWN));
        w.number("type_id", 99);
        w.text("type", "AI Agent");
    });
    let mut privileges = told.list(Field::GrantActions);
    if privileges.is_empty() {
        privileges.push(row.action.clone().unwrap_or_else(|| UNKNOWN.into()));
    }
    w.texts("privileges", &privileges);
    w.object("session", |w| {
        w.some("uid", row.grant_id.as_deref());
        w.some("issuer", told.text(Field::GrantIssuer).as_deref());
        if let Some(time) = time(told, Field::GrantNotBefore) {
            w.number("created_time", millis(time));
        }
        if let Some(time) = time(told, Field::GrantExpires) {
            w.number("expiration_time", millis(time));
        }
        if row.kind == "grant_revoked" {
            w.text("expiration_reason", "revoked");
        }
    });
    if let Some(audience) = told.text(Field::GrantAudience) {
        w.object("dst_endpoint", |w| w.text("svc_name", &audience));
    }
}

/// What was changed of who may do what, and what it is now.
pub(super) fn entity(p: &Parts<'_>, w: &mut Writer<'_>) {
    let row = p.row;
    let what = row.action.as_deref().unwrap_or("authority");
    let name = row.resource.as_deref().or(row.agent_id.as_deref()).unwrap_or(what);
    let of = |w: &mut Writer<'_>| {
        w.text("name", name);
        w.number("type_id", 99);
        w.text("type", what);
    };
    w.object("entity", of);
    if let Some(now) = &row.decision {
        w.object("entity_result", |w| {
            of(w);
            w.text("data", now);
        });
    }
}

fn time(told: &Told<'_>, field: Field) -> Option<Time> {
    parse_time(&told.text(field)?)
}

/// What was found, and in which records.
pub(super) fn finding(p: &Parts<'_>, w: &mut Writer<'_>) {
    let (row, told) = (p.row, p.told);
    let record = |seq: &str| format!("{}:{seq}", p.context.origin);
    let alert = row.correlation_id.as_deref();
    let rule = told.text(Field::AlertRule);
    w.object("finding_info", |w| {
        match alert {
            Some(id) => w.text("uid", id),
            None => w.text("uid", &record(&row.seq.to_string())),
        }
        w.text("title", &p.message());
        w.texts("types", &[&row.kind]);
        w.texts("data_sources", &[&row.source]);
        w.number("created_time", millis(row.event_time));
        if let Some(name) = rule.as_deref().or(row.policy_id.as_deref()) {
            w.object("analytic", |w| {
                w.text("name", name);
                w.number("type_id", 1);
                w.text("type", "Rule");
            });
        }
        attacks(&told.list(Field::AlertTags), w);
        let cited = told.list(Field::AlertEvidence);
        if !cited.is_empty() {
            w.list("related_events", |w| cited.iter().for_each(|seq| w.item(|w| w.text("uid", &record(seq)))));
        }
    });
    w.list("evidences", |w| {
        w.item(|w| {
            w.text("uid", &record(&row.seq.to_string()));
            actor(p, w);
            source(p, w);
            if row.tool.is_some() || row.tool_call_id.is_some() {
                api(p, w);
            }
        });
    });
    resources(p, w);
}

/// Techniques of MITRE ATLAS among an alert's tags, such as `ATLAS AML.T0051.001`.
fn attacks(tags: &[String], w: &mut Writer<'_>) {
    let is_number = |t: &str, n: usize| t.len() == n && t.bytes().all(|b| b.is_ascii_digit());
    let technique = |tag: &str| {
        let tag = tag.strip_prefix("AML.T")?;
        let (main, sub) = tag.split_once('.').map_or((tag, None), |(main, sub)| (main, Some(sub)));
        (is_number(main, 4) && sub.is_none_or(|sub| is_number(sub, 3))).then(|| (main.to_owned(), sub.is_some()))
    };
    let ids = tags.iter().filter_map(|tag| tag.split(' ').next_back());
    let found: Vec<_> = ids.filter_map(|id| Some((id, technique(id)?))).collect();
    if found.is_empty() {
        return;
    }
    w.list("attacks", |w| {
        for (tag, (main, is_sub)) in found {
            w.item(|w| {
                w.object("technique", |w| w.pieces("uid", &["AML.T", &main]));
                if is_sub {
                    w.object("sub_technique", |w| w.text("uid", tag));
                }
            });
        }
    });
}

/// The extension: every column of the row that is not one of OCSF's own in all classes.
pub(super) fn custody(p: &Parts<'_>, w: &mut Writer<'_>) {
    let row = p.row;
    w.object("custody", |w| {
        w.text("provenance_kind", &row.kind);
        w.text("origin", p.context.origin);
        w.number("seq", row.seq);
        w.text("record_hash", &row.record_hash);
        if let Some(hashes) = p.context.hashes.and_then(|hashes| hashes(row.seq)) {
            w.text("chain_hash", &const_hex::encode(hashes.chain));
            w.text("leaf_hash", &const_hex::encode(hashes.leaf));
        }
        if let Some((size, root)) = p.context.checkpoint {
            w.number("tree_size", size);
            w.text("tree_root", &const_hex::encode(root));
        }
        w.text("submitter", &row.submitter);
        w.text("mapping", &format!("{}/{}", row.source, row.mapping_version));
        w.number("event_time_ns", row.event_time.0);
        for (name, time) in [("end_time_ns", row.end_time), ("observed_time_ns", row.observed_time)] {
            if let Some(time) = time {
                w.number(name, time.0);
            }
        }
        w.number("ingest_time_ns", row.ingest_time.0);
        let columns = [
            ("trace_id", &row.trace_id),
            ("span_id", &row.span_id),
            ("parent_span_id", &row.parent_span_id),
            ("service_name", &row.service),
            ("workload_uid", &row.workload_id),
            ("acting_type", &row.actor_type),
            ("initiator_type", &row.initiator_type),
            ("initiator_uid", &row.initiator_id),
            ("ai_agent_uid", &row.agent_id),
            ("ai_agent_name", &row.agent_name),
            ("ai_agent_version", &row.agent_version),
            ("workspace_uid", &row.workspace),
            ("task_uid", &row.task_id),
            ("business_process_uid", &row.process_id),
            ("conversation_uid", &row.conversation_id),
            ("provenance_action", &row.action),
            ("provenance_resource", &row.resource),
            ("tool_name", &row.tool),
            ("tool_call_uid", &row.tool_call_id),
            ("call_effect", &row.effect),
            ("arguments_digest", &row.arguments_digest),
            ("tool_schema_digest", &row.schema_digest),
            ("decision", &row.decision),
            ("evaluation_uid", &row.evaluation_id),
            ("shown_digest", &row.shown_digest),
            ("context_trust", &row.trust),
            ("skill_uid", &row.skill_id),
            ("skill_version", &row.skill_version),
            ("classification_label", &row.classification),
            ("source_status", &row.status),
        ];
        columns.into_iter().for_each(|(name, text)| w.some(name, text.as_deref()));
        w.texts("span_links", &row.links);
        w.texts("decision_reasons", &row.reasons);
        w.texts("invalid_reasons", &row.invalid_reasons);
        delegation(row, w);
    });
}

fn delegation(row: &EventRow, w: &mut Writer<'_>) {
    let ids = [
        ("grant_id", &row.grant_id),
        ("parent_grant_id", &row.parent_grant_id),
        ("parent_grant_hash", &row.parent_hash),
        ("root_grant_id", &row.root_grant_id),
    ];
    let has = ids.iter().any(|(_, id)| id.is_some());
    if has || row.delegation_depth.is_some() || !row.actor_chain.is_empty() {
        w.object("delegation_path", |w| {
            ids.into_iter().for_each(|(name, id)| w.some(name, id.as_deref()));
            if let Some(depth) = row.delegation_depth {
                w.number("delegation_depth", depth);
            }
            w.texts("actor_chain", &row.actor_chain);
        });
    }
}
