//! One event in the Elastic Common Schema: ECS's own fields where it has them, and the object
//! `custody` and `unmapped` as in OCSF for the rest.

use super::class::{Shape, severity};
use super::event::Parts;
use super::json::Writer;
use super::told::{Field, Told};
use super::{Context, PRODUCT_VERSION, millis, parts, uid};
use crate::event::EventRow;
use crate::rows::Time;

/// The version of ECS that is written.
const ECS_VERSION: &str = "8.17.0";

/// Writes the line.
pub(super) fn write(row: &EventRow, context: &Context<'_>, out: &mut String) {
    let told = Told::of(row);
    let parts = Parts::of(row, &told, context);
    out.reserve(row.attributes.len() + 2_048);
    Writer::new(out).root(|w| {
        w.text("@timestamp", &rfc3339(row.event_time));
        w.object("ecs", |w| w.text("version", ECS_VERSION));
        w.text("message", &parts.message());
        event(&parts, w);
        fields(&parts, w);
        w.object("observer", |w| {
            w.text("vendor", "Custody");
            w.text("product", "Custody");
            w.text("type", "ledger");
            w.text("version", PRODUCT_VERSION);
        });
        parts::custody(&parts, w);
        told.rest(w, row, &[]);
    });
}

/// The fields `event.*`.
fn event(p: &Parts<'_>, w: &mut Writer<'_>) {
    let row = p.row;
    let (severity_id, _) = severity(row, p.told);
    w.object("event", |w| {
        w.text("id", &uid(row, p.context));
        w.number("sequence", row.seq);
        w.text("kind", if row.kind == "alert" { "alert" } else { "event" });
        w.texts("category", &[category(p)]);
        w.texts("type", &types(p));
        w.text("action", &row.kind);
        w.text("module", "custody");
        w.text("dataset", "custody.events");
        w.text("provider", &row.source);
        let failed = p.verdict.as_ref().is_some_and(|v| v.denies());
        w.text(
            "outcome",
            match row.status.as_deref() {
                Some("error") => "failure",
                _ if failed => "failure",
                Some("ok") => "success",
                _ if p.verdict.as_ref().is_some_and(|v| v.action.0 == 1) => "success",
                _ => "unknown",
            },
        );
        w.number("severity", severity_id);
        w.text("hash", &row.record_hash);
        w.text("ingested", &rfc3339(row.ingest_time));
        if let Some(end) = row.end_time {
            w.text("start", &rfc3339(row.event_time));
            w.text("end", &rfc3339(end));
            if let Some(duration) = end.0.checked_sub(row.event_time.0).filter(|d| *d >= 0) {
                w.number("duration", duration);
            }
        }
        if !row.reasons.is_empty() {
            w.text("reason", &row.reasons.join("; "));
        }
    });
}

/// One of ECS's categories.
fn category(p: &Parts<'_>) -> &'static str {
    match (p.class.shape, p.row.kind.as_str()) {
        (Shape::Datastore, _) => "database",
        (Shape::Session, _) | (_, "approval" | "policy_evaluation") => "iam",
        (Shape::Entity | Shape::EventLog, _) => "configuration",
        (Shape::Finding, _) => "intrusion_detection",
        (Shape::Api | Shape::Base, _) => "api",
    }
}

/// ECS's types within the category.
fn types(p: &Parts<'_>) -> Vec<&'static str> {
    let mut types = match (p.class.shape, p.row.kind.as_str()) {
        (Shape::Datastore, _) => vec!["access"],
        (Shape::Session, "grant_revoked") => vec!["admin", "deletion"],
        (Shape::Session, _) => vec!["admin", "creation"],
        (Shape::Entity, _) => vec!["change"],
        (Shape::EventLog, _) => vec!["deletion"],
        (Shape::Api, _) => vec![match p.class.activity {
            1 => "creation",
            2 => "access",
            3 => "change",
            4 => "deletion",
            _ => "info",
        }],
        _ => vec!["info"],
    };
    let takes_verdict = !matches!(category(p), "iam" | "database" | "configuration");
    match p.verdict.as_ref().map(|v| v.action.0).filter(|_| takes_verdict) {
        Some(1) => types.push("allowed"),
        Some(2) => types.push("denied"),
        _ => {}
    }
    types
}

/// The other fields that ECS has.
fn fields(p: &Parts<'_>, w: &mut Writer<'_>) {
    let (row, told) = (p.row, p.told);
    let mut object = |name: &'static str, members: &[(&'static str, Option<&str>)]| {
        if members.iter().any(|(_, text)| text.is_some()) {
            w.object(name, |w| members.iter().for_each(|(name, text)| w.some(name, *text)));
        }
    };
    object("trace", &[("id", row.trace_id.as_deref())]);
    object("span", &[("id", row.span_id.as_deref())]);
    object("service", &[("name", row.service.as_deref())]);
    object("user", &[("id", row.initiator_id.as_deref())]);
    object("organization", &[("id", row.tenant.as_deref())]);
    let rule = told.text(Field::AlertRule);
    object(
        "rule",
        &[("id", row.policy_id.as_deref()), ("name", rule.as_deref()), ("version", row.policy_version.as_deref())],
    );
    let (error, said) = (told.text(Field::ErrorType), told.text(Field::ErrorMessage));
    object("error", &[("type", error.as_deref()), ("message", said.as_deref())]);
    let correlation = row.correlation_id.as_deref();
    object("labels", &[("correlation_id", correlation)]);
}

/// RFC 3339 with milliseconds, UTC. Every time of 64 bits in ns lies within four digits of a year.
pub fn rfc3339(time: Time) -> String {
    let millis = millis(time);
    let (days, in_day) = (millis.div_euclid(86_400_000), millis.rem_euclid(86_400_000));
    // Days since 0000-03-01, in eras of 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", in_day % 1_000)
}
