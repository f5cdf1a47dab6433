//! A stored event beside the ledger's: whether it is the same, what the SIEM added, and what another mapping made
//! otherwise.
//!
//! What stands at a place where our events have members, or within an object that is ours, and is not in the ledger's
//! event, was not added by a SIEM but forged.

use custody_query::ocsf::{Format, Place, place};
use serde_json::Value;

use super::stored::{AGAIN, mapping};

/// What a stored event is that is not altered.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Beside {
    /// Members that the SIEM added.
    pub(super) added: Vec<String>,
    /// Another version of the mapping made it: no more was compared than what any makes of a record alike.
    pub(super) is_mapped_otherwise: bool,
    /// The signature of its token was judged by other keys; all else is the same.
    pub(super) is_judged_otherwise: bool,
}

/// What every version of the mapping says alike, since it is the record's or the log's.
const OF_THE_RECORD: [&str; 17] = [
    "/metadata/uid",
    "/metadata/sequence",
    "/metadata/original_event_uid",
    "/metadata/logged_time",
    "/event/id",
    "/event/sequence",
    "/event/hash",
    "/event/ingested",
    "/seq",
    "/ingest_time",
    "/submitter",
    "/raw_data_hash/value",
    "/custody/origin",
    "/custody/seq",
    "/custody/chain_hash",
    "/custody/leaf_hash",
    "/custody/ingest_time_ns",
];

/// The attribute that says whether the token of a grant was signed by its issuer, as the keys of the server say.
const TOKEN_STATE: &str = "authz.grant.token.state";

/// Where the attributes are that no field holds.
const ATTRIBUTES: [&str; 2] = ["attributes", "unmapped"];

/// Holds a stored event against the ledger's. The error is the first member that is altered.
pub(super) fn beside(truth: &Value, stored: &Value, format: &str) -> Result<Beside, String> {
    let mut walk = Walk { format: Format::parse(format), found: Beside::default() };
    let versions = (mapping(truth), mapping(stored));
    if versions.1.is_some() && versions.0 != versions.1 {
        return of_the_record(truth, stored).map(|()| Beside { is_mapped_otherwise: true, ..Beside::default() });
    }
    match walk.value(truth, stored, "") {
        Some(member) => Err(member),
        None => Ok(walk.found),
    }
}

/// Whether two events are of one record.
fn of_the_record(truth: &Value, stored: &Value) -> Result<(), String> {
    let dotted = |path: &str| path[1..].replace('/', ".");
    for path in ["/record_hash", "/custody/record_hash"] {
        if truth.pointer(path) != stored.pointer(path) {
            return Err(dotted(path));
        }
    }
    // Members that are new, or are gone, since then are no lie.
    let differs = |path: &&str| match (truth.pointer(path), stored.pointer(path)) {
        (Some(truth), Some(stored)) => truth != stored,
        _ => false,
    };
    OF_THE_RECORD.iter().find(|path| differs(path)).map_or(Ok(()), |path| Err(dotted(path)))
}

struct Walk {
    /// Of the formats that are mapped; else the row.
    format: Option<Format>,
    found: Beside,
}

impl Walk {
    /// The first member that is not what it should be.
    fn value(&mut self, truth: &Value, stored: &Value, path: &str) -> Option<String> {
        let (Value::Object(truth), Value::Object(stored)) = (truth, stored) else {
            let is_same = truth == stored || self.is_other_state(truth, stored, path);
            return (!is_same).then(|| if path.is_empty() { "it".to_owned() } else { path.to_owned() });
        };
        for (name, value) in truth {
            let path = join(path, name);
            match stored.get(name) {
                None if value.is_null() => {}
                None => return Some(path),
                Some(stored) => {
                    if let Some(member) = self.value(value, stored, &path) {
                        return Some(member);
                    }
                }
            }
        }
        let mut more = stored.iter().filter(|(name, _)| !truth.contains_key(*name));
        more.find_map(|(name, value)| self.addition(&join(path, name), value))
    }

    /// A member that the ledger's event has not: gives it if it is forged.
    fn addition(&mut self, path: &str, value: &Value) -> Option<String> {
        let again = path.ends_with(AGAIN);
        match (self.place(path), value) {
            (_, _) if again => Some(path.to_owned()),
            (_, Value::Null) => None,
            (Place::Shared, Value::Object(members)) => {
                members.iter().find_map(|(name, value)| self.addition(&join(path, name), value))
            }
            (Place::Ours | Place::Shared, _) => Some(path.to_owned()),
            (Place::Free, _) => {
                self.found.added.push(path.to_owned());
                None
            }
        }
    }

    fn place(&self, path: &str) -> Place {
        if let Some(format) = self.format {
            return place(format, path);
        }
        // A row has all its members always, but for those of objects.
        match path.split('.').next() {
            Some("metadata" | "attributes" | "custody" | "unmapped") => Place::Ours,
            _ => Place::Free,
        }
    }

    /// Whether these are two states of a token, as other keys of issuers make them.
    fn is_other_state(&mut self, truth: &Value, stored: &Value, path: &str) -> bool {
        let is_state = |value: &Value| matches!(value.as_str(), Some("verified" | "invalid" | "unverified"));
        let here = path.split_once('.').is_some_and(|(of, name)| ATTRIBUTES.contains(&of) && name == TOKEN_STATE);
        let is_other = here && is_state(truth) && is_state(stored);
        self.found.is_judged_otherwise |= is_other;
        is_other
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::stored::parse;
    use super::*;

    fn ocsf() -> Value {
        json!({
            "class_uid": 6003, "activity_id": 99, "metadata": {"uid": "log:7:tool_call", "sequence": 7},
            "actor": {"app_uid": "a"}, "custody": {"seq": 7, "record_hash": "ab", "mapping": "otel_genai/7"},
            "unmapped": {"x": 1, "authz.grant.token.state": "verified"},
        })
    }

    fn ecs() -> Value {
        json!({
            "event": {"id": "log:7:tool_call", "sequence": 7}, "service": {"name": "s"},
            "custody": {"seq": 7, "record_hash": "ab", "mapping": "otel_genai/7"},
        })
    }

    fn raw() -> Value {
        json!({
            "metadata": {"uid": "log:7:tool_call", "sequence": 7}, "seq": 7, "record_hash": "ab", "decision": null,
            "mapping_version": 7, "attributes": {"x": 1},
        })
    }

    /// With a member put at a pointer.
    fn with(mut event: Value, pointer: &str, value: Value) -> Value {
        let (of, name) = pointer.rsplit_once('/').unwrap();
        event.pointer_mut(of).unwrap()[name] = value;
        event
    }

    #[test]
    fn what_a_siem_adds_is_told_from_what_is_forged() {
        let added = [
            ("ocsf", ocsf(), "/_index", "_index"),
            ("ocsf", ocsf(), "/enrichments", "enrichments"),
            ("ecs", ecs(), "/host", "host"),
            ("ecs", ecs(), "/event/created", "event.created"),
            ("ecs", ecs(), "/service/type", "service.type"),
            ("raw", raw(), "/@timestamp", "@timestamp"),
        ];
        for (format, truth, pointer, path) in added {
            let told = beside(&truth, &with(truth.clone(), pointer, json!("x")), format).unwrap();
            assert_eq!(told, Beside { added: vec![path.to_owned()], ..Beside::default() }, "{format} {pointer}");
        }
        let shared = with(ecs(), "/user", json!({"name": "x"}));
        assert_eq!(beside(&ecs(), &shared, "ecs").unwrap().added, ["user.name"]);
        let forged = [
            ("ocsf", ocsf(), "/action_id", json!(2)),
            ("ocsf", ocsf(), "/action", json!("Denied")),
            ("ocsf", ocsf(), "/custody/decision", json!("deny")),
            ("ocsf", ocsf(), "/custody.decision", json!("deny")),
            ("ocsf", ocsf(), "/actor/user", json!({"uid": "eve"})),
            ("ocsf", ocsf(), "/metadata/x", json!(1)),
            ("ocsf", ocsf(), "/unmapped/y", json!(1)),
            ("ecs", ecs(), "/user", json!({"id": "eve"})),
            ("ecs", ecs(), "/user", json!("eve")),
            ("ecs", ecs(), "/user.id", json!("eve")),
            ("ecs", ecs(), "/event/outcome", json!("success")),
            ("ecs", ecs(), "/unmapped", json!({})),
            ("raw", raw(), "/decision", json!("deny")),
            ("raw", raw(), "/attributes/y", json!(1)),
            ("raw", raw(), "/metadata/x", json!(1)),
        ];
        for (format, truth, pointer, value) in forged {
            let told = beside(&truth, &with(truth.clone(), pointer, value), format);
            let member = told.expect_err(pointer);
            assert!(member.starts_with(&pointer[1..].replace('/', ".")), "{format} {pointer}: {member}");
        }
        // What is null says nothing, and may be dropped.
        assert_eq!(beside(&ocsf(), &with(ocsf(), "/action", Value::Null), "ocsf").unwrap(), Beside::default());
        let mut dropped = raw();
        dropped.as_object_mut().unwrap().remove("decision");
        assert_eq!(beside(&raw(), &dropped, "raw").unwrap(), Beside::default());
    }

    #[test]
    fn a_member_that_is_there_twice_is_altered() {
        let text = ocsf().to_string();
        let twice = parse(format!("{},\"activity_id\":99}}", &text[..text.len() - 1]).as_bytes()).unwrap();
        assert_eq!(beside(&ocsf(), &twice, "ocsf"), Err("activity_id (again)".to_owned()));
        // Unless the ledger's own has it so, in what a sender wrote.
        assert_eq!(beside(&twice, &twice, "ocsf"), Ok(Beside::default()));
    }

    #[test]
    fn what_another_mapping_made_is_held_by_its_record_alone() {
        let otherwise = Beside { is_mapped_otherwise: true, ..Beside::default() };
        for (format, truth, version) in [
            ("ocsf", ocsf(), ("/custody/mapping", json!("otel_genai/6"))),
            ("ecs", ecs(), ("/custody/mapping", json!("genai/6"))),
            ("raw", raw(), ("/mapping_version", json!(6))),
        ] {
            let stored = with(with(truth.clone(), version.0, version.1), "/decision", json!("allow"));
            assert_eq!(beside(&truth, &stored, format).unwrap(), otherwise, "{format}");
            let hash = if format == "raw" { "/record_hash" } else { "/custody/record_hash" };
            let told = beside(&truth, &with(stored, hash, json!("cd")), format);
            assert_eq!(told.unwrap_err(), hash[1..].replace('/', "."), "{format}");
        }
        // Of no version at all, it is not one of ours.
        let none = with(ocsf(), "/custody/mapping", json!("otel_genai"));
        assert_eq!(beside(&ocsf(), &none, "ocsf").unwrap_err(), "custody.mapping");
    }

    #[test]
    fn the_state_of_a_token_is_the_keys_and_all_else_is_compared() {
        let at = "/unmapped/authz.grant.token.state";
        let judged = Beside { is_judged_otherwise: true, ..Beside::default() };
        let stored = with(ocsf(), at, json!("unverified"));
        assert_eq!(beside(&ocsf(), &stored, "ocsf").unwrap(), judged);
        assert!(beside(&ocsf(), &with(stored, "/activity_id", json!(1)), "ocsf").is_err());
        assert!(beside(&ocsf(), &with(ocsf(), at, json!("fine")), "ocsf").is_err());
    }
}
