//! `security.*` log events: alerts, the people who answer them, and whose word counts for people.

use custody_proto::wire::LogRecord;
use custody_store::system::AUDIT_IDENTITY;

use super::{RecordContext, base_log};
use crate::alerts::speakers::{SPEAKER, SPEAKERS};
use crate::attributes::Attributes;
use crate::event::EventRow;

/// The event of a `security.*` log record, if its name is one that is known.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord<'_>, name: &str) -> Option<EventRow> {
    let kind = match name {
        "security.alert" => "alert",
        "security.alert.superseded" => "alert_superseded",
        "security.alert.acknowledged" => "alert_acknowledged",
        "security.investigation" => "investigation",
        "security.containment" => "containment_decision",
        SPEAKERS | SPEAKER => return Some(speaker(context, log, name)),
        _ => return None,
    };
    let attributes = Attributes(&log.attributes);
    let mut row = base_log(context, log, "security", kind);
    row.correlation_id = attributes.text("security.alert.id");
    row.initiator_id = attributes.text("security.actor.id");
    row.initiator_type = attributes.text("security.actor.type");
    match kind {
        "alert" | "alert_superseded" => row.action = attributes.text("security_rule.name"),
        "investigation" => row.decision = attributes.text("security.investigation.state"),
        "containment_decision" => row.decision = attributes.text("security.containment.action"),
        _ => {}
    }
    let disposition = attributes.text("security.investigation.disposition");
    row.invalid_reasons = invalid_reasons(&row, disposition.is_some());
    Some(row)
}

/// The rules of the model that an alert, or an answer to one, breaks.
pub(super) fn invalid_reasons(row: &EventRow, has_disposition: bool) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut rule = |broken: bool, reason: &str| {
        if broken {
            reasons.push(reason.to_owned());
        }
    };
    let kind = row.kind.as_str();
    rule(row.correlation_id.is_none(), "no alert is named");
    rule(!matches!(kind, "alert" | "alert_superseded") && row.initiator_id.is_none(), "no actor is named");
    let human = row.initiator_type.as_deref() == Some("human");
    rule(kind == "containment_decision" && !human, "containment is a human's decision");
    let closed = row.decision.as_deref() == Some("closed");
    rule(kind == "investigation" && closed && !has_disposition, "closed without a disposition");
    reasons
}

/// Who may speak for people is said by the server alone.
fn speaker(context: &RecordContext<'_>, log: &LogRecord<'_>, name: &str) -> EventRow {
    let mut row = base_log(context, log, "security", "authority_change");
    row.action = Some(name.to_owned());
    if context.submitter != AUDIT_IDENTITY {
        row.invalid_reasons.push("only the server says whose word counts".into());
    }
    row
}
