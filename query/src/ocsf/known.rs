//! Where an event of ours may have members: whoever holds a stored event against the ledger's tells by it what a
//! reader added from what somebody forged.

use super::Format;

/// Whose a place in an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Ours: what stands there and is not in our event was not written by us.
    Ours,
    /// An object that readers write into beside us.
    Shared,
    /// Nothing of ours ever stands there.
    Free,
}

/// The members of an OCSF event. Each is ours with all that is in it.
const OCSF: [&str; 52] = [
    "action",
    "action_id",
    "activity_id",
    "activity_name",
    "actor",
    "ai_model",
    "api",
    "assignee",
    "authorizations",
    "category_name",
    "category_uid",
    "class_name",
    "class_uid",
    "comment",
    "custody",
    "databucket",
    "disposition",
    "disposition_id",
    "dst_endpoint",
    "duration",
    "end_time",
    "entity",
    "entity_result",
    "evidences",
    "finding_info",
    "is_alert",
    "log_name",
    "log_provider",
    "message",
    "message_context",
    "metadata",
    "policy",
    "privileges",
    "raw_data_hash",
    "resources",
    "session",
    "severity",
    "severity_id",
    "src_endpoint",
    "start_time",
    "status",
    "status_code",
    "status_detail",
    "status_id",
    "time",
    "trace",
    "type_name",
    "type_uid",
    "unmapped",
    "user",
    "verdict",
    "verdict_id",
];

/// The members of an ECS event. Its objects are the whole world's: a member of one is ours if it is named here.
const ECS: [&str; 37] = [
    "@timestamp",
    "custody",
    "ecs.version",
    "error.message",
    "error.type",
    "event.action",
    "event.category",
    "event.dataset",
    "event.duration",
    "event.end",
    "event.hash",
    "event.id",
    "event.ingested",
    "event.kind",
    "event.module",
    "event.outcome",
    "event.provider",
    "event.reason",
    "event.sequence",
    "event.severity",
    "event.start",
    "event.type",
    "labels.correlation_id",
    "message",
    "observer.product",
    "observer.type",
    "observer.vendor",
    "observer.version",
    "organization.id",
    "rule.id",
    "rule.name",
    "rule.version",
    "service.name",
    "span.id",
    "trace.id",
    "unmapped",
    "user.id",
];

/// Whose the place at a path such as `event.id` is; a name that has dots in it is a path, too, as readers take it
/// for one.
pub fn place(format: Format, path: &str) -> Place {
    let is_within = |name: &str| path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let is_around = |name: &str| name.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
    let names: &[&str] = match format {
        Format::Ocsf => &OCSF,
        Format::Ecs => &ECS,
        // A line of text: nothing can be added to it.
        Format::Cef => return Place::Ours,
    };
    if names.iter().any(|name| is_within(name)) {
        Place::Ours
    } else if names.iter().any(|name| is_around(name)) {
        Place::Shared
    } else {
        Place::Free
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::super::tests::{full, kinds, line};
    use super::*;
    use crate::event::EventRow;

    #[test]
    fn whatever_is_written_has_its_place() {
        let written = |format: Format, row: &EventRow| -> Json { serde_json::from_str(&line(format, row)).unwrap() };
        for kind in kinds() {
            for decision in [None, Some("deny".to_owned()), Some("closed".to_owned())] {
                let row = EventRow { decision, ..full(kind) };
                for name in written(Format::Ocsf, &row).as_object().unwrap().keys() {
                    assert_eq!(place(Format::Ocsf, name), Place::Ours, "{kind}: {name}");
                }
                for (name, value) in written(Format::Ecs, &row).as_object().unwrap() {
                    match (place(Format::Ecs, name), value.as_object()) {
                        (Place::Ours, _) => {}
                        (Place::Shared, Some(members)) => members.keys().for_each(|member| {
                            let path = format!("{name}.{member}");
                            assert_eq!(place(Format::Ecs, &path), Place::Ours, "{kind}: {path}");
                        }),
                        (other, _) => panic!("{kind}: {name} is {other:?}"),
                    }
                }
            }
        }
    }

    #[test]
    fn what_readers_add_is_told_from_what_is_ours() {
        let cases = [
            ["ocsf", "action_id", "Ours"],
            ["ocsf", "actor.user.name", "Ours"],
            ["ocsf", "custody.decision", "Ours"],
            ["ocsf", "_index", "Free"],
            ["ocsf", "enrichments", "Free"],
            ["ocsf", "actors", "Free"],
            ["ecs", "user", "Shared"],
            ["ecs", "user.id", "Ours"],
            ["ecs", "user.name", "Free"],
            ["ecs", "host", "Free"],
            ["ecs", "event.outcome", "Ours"],
            ["ecs", "event.created", "Free"],
            ["ecs", "unmapped.a.b", "Ours"],
            ["ecs", "@timestamp", "Ours"],
            ["ecs", "userid", "Free"],
        ];
        for [format, path, want] in cases {
            let told = place(Format::parse(format).unwrap(), path);
            assert_eq!(format!("{told:?}"), want, "{format} {path}");
        }
    }
}
