//! Claims of OAuth tokens: what a token exchange (RFC 8693) or a transaction token service
//! issued, and what was revoked by a security event token (CAEP).
//!
//! `may_act` says who may become an actor later: nobody acted yet, and it is in no chain. Where an exchange tells both
//! tokens, the actor of the new one is held against the subject token's `may_act`.
//!
//! What they cannot tell: `act` proves who the actors are, not that any of them was given less
//! than the one before; a token exchange names no parent unless the subject token is told too.
//! Several `authorization_details` are read as their union, which is more than any one of them.

use custody_proto::wire::LogRecord;
use serde_json::{Map, Value as Json};

use super::document::{Document, member, text};
use super::{RecordContext, base_log, capability};
use crate::event::EventRow;
use crate::rows::Time;

/// How many actors of a chain are read.
const ACTORS_MAX: usize = 64;

/// Stands for an actor in the midst of a chain who has no name.
const UNNAMED: &str = "(unnamed)";

const CAEP: &str = "https://schemas.openid.net/secevent/";

/// The attribute with a token's claims as JSON text.
pub(super) const CLAIMS: &str = "oauth.token.claims";

/// The event of a record, if it holds claims.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord<'_>, said: &Document) -> Option<EventRow> {
    if said.text("/jti").is_some()
        && let Some(events) = said.object("/events")
        // What a stream of signals says of itself (`ssf`) changes nobody's authority.
        && let Some((kind, event)) = events.iter().find(|(kind, _)| kind.starts_with(CAEP) && !kind.contains("/ssf/"))
    {
        return signal(context, log, said, kind, event.as_object()?);
    }
    for at in ["/claims", ""] {
        if let Some(read) = said.at(at).and_then(capability::claims_of) {
            return Some(narrowed(context, log, said, read));
        }
    }
    let claims = ["/claims", ""].into_iter().find(|at| is_claims(said, at))?;
    Some(issued(context, log, said, claims))
}

/// Whether these are claims of a token that gives authority, and not of one that only says who
/// somebody is.
fn is_claims(said: &Document, at: &str) -> bool {
    let has = |name: &str| said.has(&format!("{at}/{name}"));
    let gives = ["scope", "scp", "authorization_details", "access", "act", "may_act", "txn"];
    let gives = gives.iter().any(|name| has(name));
    has("exp") && has("sub") && gives
}

/// A token that was issued is a grant.
fn issued(context: &RecordContext<'_>, log: &LogRecord<'_>, said: &Document, at: &str) -> EventRow {
    let get = |name: &str| said.text(&format!("{at}/{name}"));
    let parent = said.first(&["/subject_token_claims/jti", "/subject_token/jti"]);
    let kind = if parent.is_some() { "grant_derived" } else { "grant_issued" };
    let mut row = base_log(context, log, "oauth", kind);
    let id = get("jti").or_else(|| get("txn"));
    let (issued, before, after) =
        (said.time(&format!("{at}/iat")), said.time(&format!("{at}/nbf")), said.time(&format!("{at}/exp")));
    row.event_time = issued.unwrap_or(row.event_time);
    row.grant_id = id.clone();
    row.parent_grant_id = parent;
    row.correlation_id = get("txn").or(row.correlation_id);
    row.actor_chain = actors(said.at(&format!("{at}/act")));
    // Who acts is the outermost actor; without one it is the client, then the subject itself.
    let client = get("client_id").or_else(|| get("azp"));
    row.agent_id = row.actor_chain.first().cloned().or(client).or_else(|| get("req_wl")).or_else(|| get("sub"));
    row.initiator_id = get("sub");
    let is_workload = row.initiator_id.as_deref().is_some_and(|sub| sub.starts_with("spiffe://"));
    row.initiator_type = row.initiator_id.as_ref().map(|_| if is_workload { "process" } else { "user" }.into());
    row.decision = Some("allow".into());
    row.task_id = row.task_id.or_else(|| get("task_id"));
    let Authority { actions, resources, limits } = authority(said, at);
    if let [one] = actions.as_slice() {
        row.action = Some(one.clone());
    }
    let audience = said.list(&format!("{at}/aud")).join(" ");
    row.invalid_reasons = rules(&row, said, at, (before, after));
    let may_act = actors(said.at(&format!("{at}/may_act")));
    let known = |text: String| if text.is_empty() { Json::Null } else { Json::String(text) };
    let names = vec![
        ("authz.grant.issuer", get("iss").map_or(Json::Null, Json::String)),
        ("authz.grant.audience", known(audience)),
        ("authz.grant.actions", Json::from(actions)),
        ("authz.grant.may_act", may_act.first().map_or(Json::Null, |id| Json::from(id.as_str()))),
        ("authz.grant.resources", resources.map_or(Json::Null, Json::from)),
        ("authz.grant.constraints", limits.map_or(Json::Null, Json::from)),
        ("authz.grant.not_before", seconds(before)),
        ("authz.grant.expires_at", seconds(after)),
    ];
    said.keep(&mut row, log, names);
    row
}

/// Claims of a token that its holder can narrow. Its parent is named beside it, or not at all: the
/// token has no more than the parent's digest.
fn narrowed(
    context: &RecordContext<'_>,
    log: &LogRecord<'_>,
    said: &Document,
    mut read: capability::Capability,
) -> EventRow {
    read.parent = read.parent.or_else(|| said.first(&["/subject_token_claims/jti", "/parent_claims/jti"]));
    let is_derived = read.parent.is_some() || read.parent_hash.is_some() || read.depth.is_some_and(|depth| depth > 0);
    let kind = if is_derived { "grant_derived" } else { "grant_issued" };
    let mut row = base_log(context, log, read.format, kind);
    row.event_time = said.time("/claims/iat").or_else(|| said.time("/iat")).unwrap_or(row.event_time);
    row.decision = Some("allow".into());
    capability::fill(&mut row, &read);
    let mut rule = |broken: bool, reason: &str| {
        if broken {
            row.invalid_reasons.push(reason.to_owned());
        }
    };
    rule(row.grant_id.is_none(), "a grant without an id");
    rule(row.agent_id.is_none(), "a grant without a subject");
    rule(is_derived && row.parent_grant_id.is_none(), "a derived grant without a parent");
    rule(row.grant_id.is_some() && row.grant_id == row.parent_grant_id, "a grant that is its own parent");
    let ends_early = matches!((read.not_before, read.expires_at), (Some(from), Some(to)) if to <= from);
    rule(ends_early, "a grant that expires before it begins");
    // A UCAN may be for ever, and says so with a null.
    for at in ["/claims/exp", "/exp"] {
        rule(said.has(at) && read.expires_at.is_none(), "exp cannot be read as a time");
    }
    rule(read.actions.is_empty(), "the actions of its token cannot be read");
    said.keep(&mut row, log, capability::attributes(&read));
    row
}

fn seconds(time: Option<Time>) -> Json {
    time.map_or(Json::Null, |time| Json::from(time.0 / 1_000_000_000))
}

/// The rules of the model that a token breaks.
fn rules(row: &EventRow, said: &Document, at: &str, times: (Option<Time>, Option<Time>)) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut rule = |broken: bool, reason: &str| {
        if broken {
            reasons.push(reason.to_owned());
        }
    };
    rule(row.grant_id.is_none(), "a grant without an id");
    rule(row.agent_id.is_none(), "a grant without a subject");
    rule(row.grant_id.is_some() && row.grant_id == row.parent_grant_id, "a grant that is its own parent");
    for (name, time) in [("nbf", times.0), ("exp", times.1)] {
        let unread = said.has(&format!("{at}/{name}")) && time.is_none();
        rule(unread, &format!("{name} cannot be read as a time"));
    }
    let begins = times.0.or_else(|| said.time(&format!("{at}/iat")));
    rule(matches!((begins, times.1), (Some(from), Some(to)) if to <= from), "a grant that expires before it begins");
    let act = format!("{at}/act");
    rule(said.has(&act) && row.actor_chain.is_empty(), "the actor of its token has no name");
    let permitted = ["/subject_token_claims/may_act", "/subject_token/may_act"].iter().find_map(|at| said.at(at));
    let is_permitted = permitted.and_then(Json::as_object).is_none_or(|named| is_named(named, said.object(&act)));
    rule(!is_permitted, "the subject token lets another act (may_act)");
    rule(row.actor_chain.len() == ACTORS_MAX, "the chain of actors is too long to be read");
    reasons
}

/// Whether an actor is the one whom `may_act` names (RFC 8693, section 4.4). The new token need not name an actor:
/// then somebody acts as the subject himself.
fn is_named(named: &Map<String, Json>, actor: Option<&Map<String, Json>>) -> bool {
    let Some(actor) = actor else { return true };
    ["iss", "sub", "client_id"].iter().all(|name| match (member(named, name), member(actor, name)) {
        (Some(named), Some(acts)) => named == acts,
        // Who is told by other claims than these is not held against them.
        (Some(_), None) => *name != "sub",
        (None, _) => true,
    })
}

/// Nested `act` claims (RFC 8693 section 4.1), outermost first: the one who acts now comes first.
pub(super) fn actors(act: Option<&Json>) -> Vec<String> {
    let mut out = Vec::new();
    let mut next = act.and_then(Json::as_object);
    while let Some(actor) = next.filter(|_| out.len() < ACTORS_MAX) {
        match member(actor, "sub").or_else(|| member(actor, "client_id")) {
            Some(id) => out.push(id),
            // One without a name ends no chain: those behind it are in it, too.
            None if out.is_empty() => break,
            None => out.push(UNNAMED.to_owned()),
        }
        next = actor.get("act").and_then(Json::as_object);
    }
    out
}

/// What a token gives.
struct Authority {
    actions: Vec<String>,
    resources: Option<Vec<String>>,
    /// JSON, as `authz.grant.constraints` has it.
    limits: Option<String>,
}

/// Actions of `scope` and of `authorization_details` (RFC 9396; GNAP's `access`, RFC 9635), and the
/// latter's resources, kinds of data and privileges. Nothing named is nothing allowed.
fn authority(said: &Document, at: &str) -> Authority {
    let scope = |name: &str| -> Vec<String> {
        said.list(&format!("{at}/{name}")).iter().flat_map(|s| s.split_whitespace().map(str::to_owned)).collect()
    };
    let mut actions = scope("scope");
    actions.extend(scope("scp"));
    let mut resources = Vec::new();
    let mut limits = Map::new();
    let (details, access) = (format!("{at}/authorization_details"), format!("{at}/access"));
    for detail in said.objects(&details).chain(said.objects(&access)) {
        let list = |name: &str| match detail.get(name) {
            Some(Json::Array(items)) => items.iter().filter_map(text).collect(),
            other => other.and_then(text).into_iter().collect::<Vec<_>>(),
        };
        let named = list("actions");
        // A type alone stands for all that it allows.
        actions.extend(if named.is_empty() { list("type") } else { named });
        resources.extend(list("locations"));
        resources.extend(list("identifier"));
        for name in ["datatypes", "privileges"] {
            let of = limits.entry(name).or_insert_with(|| Json::Array(Vec::new()));
            if let Json::Array(all) = of {
                all.extend(list(name).into_iter().map(Json::from));
            }
        }
    }
    limits.retain(|_, all| all.as_array().is_some_and(|all| !all.is_empty()));
    // A `*` in a scope is a star to its server, and must not become a pattern of ours.
    actions.retain(|action| !action.contains('*'));
    actions.dedup();
    Authority {
        actions,
        resources: (!resources.is_empty()).then_some(resources),
        limits: (!limits.is_empty()).then(|| Json::Object(limits).to_string()),
    }
}

/// A security event token: a session that was revoked ends what was given to it.
fn signal(
    context: &RecordContext<'_>,
    log: &LogRecord<'_>,
    said: &Document,
    kind: &str,
    event: &Map<String, Json>,
) -> Option<EventRow> {
    let name = kind.rsplit('/').next()?;
    let is_end = matches!(
        name,
        "session-revoked" | "account-disabled" | "account-purged" | "account-credential-change-required"
    );
    let mut row = base_log(context, log, "caep", if is_end { "grant_revoked" } else { "authority_change" });
    let at = event.get("event_timestamp").and_then(Json::as_i64).and_then(|s| s.checked_mul(1_000_000_000)).map(Time);
    row.event_time = at.or_else(|| said.time("/iat")).unwrap_or(row.event_time);
    row.action = Some(name.to_owned());
    row.decision = Some(if is_end { "revoked" } else { "changed" }.into());
    row.correlation_id = said.first(&["/txn", "/jti"]);
    let subject = said.object("/sub_id").or_else(|| event.get("subject").and_then(Json::as_object));
    let named = |names: &[&str]| names.iter().find_map(|name| member(subject?, name));
    // A subject in format `jwt_id` is a token, and so a grant of ours.
    row.grant_id = named(&["jti"]);
    row.conversation_id = named(&["id"]).or_else(|| subject?.get("session").and_then(|s| member(s.as_object()?, "id")));
    row.resource = named(&["email", "phone_number", "sub", "uri", "id"]).or_else(|| {
        subject?.get("user").and_then(|u| u.as_object()).and_then(|u| member(u, "email").or_else(|| member(u, "sub")))
    });
    row.initiator_id = said.text("/iss");
    row.initiator_type = member(event, "initiating_entity").map(|who| {
        match who.as_str() {
            "admin" | "user" => "user",
            _ => "process",
        }
        .into()
    });
    for name in ["reason_admin", "reason_user"] {
        match event.get(name) {
            Some(Json::Object(texts)) => row.reasons.extend(texts.values().filter_map(text)),
            other => row.reasons.extend(other.and_then(text)),
        }
    }
    said.keep(&mut row, log, Vec::new());
    Some(row)
}
