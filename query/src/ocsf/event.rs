//! One event as OCSF 1.8.0 JSON: what all classes have, and which parts each class has besides.

use super::class::{Class, Shape, Verdict, finding_status, finding_verdict, severity, verdict};
use super::json::Writer;
use super::told::{Field, Told};
use super::{Context, PRODUCT_VERSION, VERSION, millis, parts, uid};
use crate::event::EventRow;

/// The number of our extension: OCSF's for extensions that are in no registry.
const EXTENSION_UID: &str = "999";
const EXTENSION_VERSION: &str = "1.0.0";

/// All that the parts are written from.
pub(super) struct Parts<'a> {
    pub(super) row: &'a EventRow,
    pub(super) told: &'a Told<'a>,
    pub(super) context: &'a Context<'a>,
    pub(super) class: Class<'a>,
    pub(super) verdict: Option<Verdict<'a>>,
}

/// Writes the line.
pub(super) fn write(row: &EventRow, context: &Context<'_>, out: &mut String) {
    let told = Told::of(row);
    let parts = Parts::of(row, &told, context);
    out.reserve(row.attributes.len() + 2_048);
    Writer::new(out).root(|w| parts.event(w));
}

impl<'a> Parts<'a> {
    pub(super) fn of(row: &'a EventRow, told: &'a Told<'a>, context: &'a Context<'a>) -> Self {
        Self { row, told, context, class: Class::of(row, told), verdict: verdict(row) }
    }

    fn event(&self, w: &mut Writer<'_>) {
        self.classification(w);
        self.metadata(w);
        self.times(w);
        w.text("message", &self.message());
        self.status(w);
        self.decision(w);
        let moved = match self.class.shape {
            Shape::Api => {
                parts::actor(self, w);
                parts::source(self, w);
                let moved = parts::api(self, w);
                parts::resources(self, w);
                parts::ai(self, w);
                parts::trace(self, w);
                moved
            }
            Shape::Datastore => {
                parts::actor(self, w);
                parts::source(self, w);
                parts::databucket(self, w);
                parts::ai(self, w);
                Vec::new()
            }
            Shape::Session => {
                parts::actor(self, w);
                parts::source(self, w);
                parts::grant(self, w);
                Vec::new()
            }
            Shape::Entity => {
                parts::actor(self, w);
                parts::source(self, w);
                parts::entity(self, w);
                Vec::new()
            }
            Shape::Finding => {
                parts::finding(self, w);
                Vec::new()
            }
            Shape::EventLog => {
                parts::actor(self, w);
                parts::source(self, w);
                w.text("log_name", self.context.origin);
                w.text("log_provider", "Custody");
                Vec::new()
            }
            Shape::Base => Vec::new(),
        };
        if is_hash(&self.row.record_hash) {
            w.object("raw_data_hash", |w| {
                w.number("algorithm_id", 99);
                w.text("algorithm", "BLAKE3, salted (custody content v1)");
                w.text("value", &self.row.record_hash);
            });
        }
        parts::custody(self, w);
        self.told.rest(w, self.row, &moved);
    }

    fn classification(&self, w: &mut Writer<'_>) {
        let (class, class_name, category, category_name) = self.class.shape.class();
        let (severity_id, severity) = severity(self.row, self.told);
        w.number("class_uid", class);
        w.text("class_name", class_name);
        w.number("category_uid", category);
        w.text("category_name", category_name);
        w.number("activity_id", self.class.activity);
        w.text("activity_name", self.class.name);
        w.number("type_uid", class * 100 + self.class.activity);
        w.pieces("type_name", &[class_name, ": ", self.class.caption]);
        w.number("severity_id", severity_id);
        w.text("severity", &severity);
    }

    fn metadata(&self, w: &mut Writer<'_>) {
        let row = self.row;
        w.object("metadata", |w| {
            w.text("version", VERSION);
            w.object("product", |w| {
                w.text("name", "Custody");
                w.text("vendor_name", "Custody");
                w.text("version", PRODUCT_VERSION);
            });
            w.text("uid", &uid(row, self.context));
            w.number("sequence", row.seq);
            w.text("original_event_uid", &format!("{}:{}", self.context.origin, row.seq));
            w.text("event_code", &row.kind);
            w.text("log_name", self.context.origin);
            w.text("log_provider", &row.source);
            w.number("logged_time", millis(row.ingest_time));
            w.some("tenant_uid", row.tenant.as_deref());
            w.some("correlation_uid", row.correlation_id.as_deref());
            w.texts("profiles", &self.profiles());
            w.list("extensions", |w| {
                w.item(|w| {
                    w.text("name", "custody");
                    w.text("uid", EXTENSION_UID);
                    w.text("version", EXTENSION_VERSION);
                });
            });
        });
    }

    /// The profiles whose attributes the event has.
    fn profiles(&self) -> Vec<&'static str> {
        let shape = self.class.shape;
        let mut profiles = Vec::with_capacity(4);
        if shape.is_ai() {
            profiles.push("ai_operation");
        }
        profiles.push("custody/ledger");
        if shape == Shape::Finding && self.has_incident() {
            profiles.push("incident");
        }
        if self.is_controlled() {
            profiles.push("security_control");
        }
        if shape == Shape::Api && self.row.trace_id.is_some() {
            profiles.push("trace");
        }
        profiles
    }

    /// Whether the profile of security controls has something to say.
    fn is_controlled(&self) -> bool {
        self.verdict.is_some() || self.row.policy_id.is_some() || self.row.policy_version.is_some()
    }

    /// Whether a person works on it.
    fn has_incident(&self) -> bool {
        matches!(self.row.kind.as_str(), "alert_acknowledged" | "investigation" | "containment_decision")
    }

    fn times(&self, w: &mut Writer<'_>) {
        let row = self.row;
        w.number("time", millis(row.event_time));
        // A finding's own times are those of what it cites.
        if let Some(end) = row.end_time.filter(|_| self.class.shape != Shape::Finding) {
            w.number("start_time", millis(row.event_time));
            w.number("end_time", millis(end));
            if end >= row.event_time {
                w.number("duration", millis(end).saturating_sub(millis(row.event_time)));
            }
        }
    }

    /// One line for people.
    pub(super) fn message(&self) -> String {
        let row = self.row;
        if row.kind == "alert"
            && let Some(title) = self.told.text(Field::AlertTitle)
        {
            return title.into_owned();
        }
        let mut out = row.kind.replace('_', " ");
        let mut add = |before: &str, text: Option<&str>| {
            if let Some(text) = text {
                out.push_str(before);
                out.push_str(text);
            }
        };
        add(" ", row.tool.as_deref().or(row.action.as_deref()).or(row.skill_id.as_deref()));
        add(" on ", row.resource.as_deref());
        add(" by ", row.agent_name.as_deref().or(row.agent_id.as_deref()).or(row.initiator_id.as_deref()));
        add(": ", row.decision.as_deref().or(row.status.as_deref().filter(|s| *s != "unset")));
        out
    }

    fn status(&self, w: &mut Writer<'_>) {
        let row = self.row;
        let status = if self.class.shape == Shape::Finding {
            finding_status(row, self.told)
        } else {
            match row.status.as_deref() {
                Some("ok") => Some((1, "Success")),
                Some("error") => Some((2, "Failure")),
                Some("unset") => Some((0, "Unknown")),
                Some(other) => Some((99, other)),
                None if self.verdict.as_ref().is_some_and(|v| v.denies()) => Some((2, "Failure")),
                None => None,
            }
        };
        if let Some((id, name)) = status {
            w.number("status_id", id);
            w.text("status", name);
        }
        w.some("status_code", self.told.text(Field::ErrorType).as_deref());
        if !row.reasons.is_empty() {
            w.text("status_detail", &row.reasons.join("; "));
        }
    }

    /// The profile `security_control`, and what findings have of it anyway.
    fn decision(&self, w: &mut Writer<'_>) {
        let row = self.row;
        if let Some(verdict) = &self.verdict {
            w.number("action_id", verdict.action.0);
            w.text("action", verdict.action.1);
            w.number("disposition_id", verdict.disposition.0);
            w.text("disposition", verdict.disposition.1);
        }
        let has_policy = row.policy_id.is_some() || row.policy_version.is_some();
        if self.is_controlled() {
            w.list("authorizations", |w| {
                w.item(|w| {
                    w.some("decision", row.decision.as_deref());
                    if has_policy {
                        parts::policy(row, w);
                    }
                });
            });
        }
        if has_policy {
            parts::policy(row, w);
        }
        if self.class.shape == Shape::Finding {
            // Later words about an alert are no second one.
            w.flag("is_alert", row.kind == "alert");
            if self.has_incident() {
                w.object("assignee", |w| parts::user(row, w));
                if let Some((id, name)) = finding_verdict(self.told) {
                    w.number("verdict_id", id);
                    w.text("verdict", &name);
                }
            }
            w.some("comment", self.told.text(Field::Note).as_deref());
        }
    }
}

/// Whether a text is a hash in hex, as every row of a log has.
fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}
