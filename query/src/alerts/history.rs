//! The life of one alert, record by record: `alert_history('<alert id>')`.

use serde_json::Value as Json;

use super::{Standing, fields, says_bulk, speakers::Speakers};
use crate::Error;
use crate::event::EventRow;
use crate::projection::{AsOf, Snapshot};
use crate::rows::{Time, table};

table! {
    /// One record about an alert.
    HistoryRow, HistoryBuilder {
        /// Place of the record in the log.
        seq: u64,
        /// Content commitment of the record, hex.
        record_hash: String,
        /// When it happened, as its source says.
        event_time: Time,
        /// When the ledger took it.
        ingest_time: Time,
        /// raised, superseded, acknowledged, opened, note, closed, suppressed, merged, contained, or what the record
        /// says.
        act: String,
        /// Who did it, as the record says.
        actor: Option<String>,
        /// human, automation and the like, as the record says.
        actor_type: Option<String>,
        /// Who sent the record, as authenticated.
        submitter: String,
        /// Whether it is taken as a person's act.
        counts: bool,
        /// Why it is not.
        why_not: Option<String>,
        /// What was said.
        note: Option<String>,
        /// Disposition of a closing.
        disposition: Option<String>,
        /// Decision of a containment.
        decision: Option<String>,
        /// Whether a closing says that it is one of many.
        bulk: bool,
        /// The key by which a repeated request is known.
        idempotency_key: Option<String>,
        /// Tenant: alerts of several tenants may have one id.
        tenant: Option<String>,
    }
}

/// All records about an alert, in the order of the log.
pub fn history(snapshot: &Snapshot, id: &str, as_of: AsOf) -> Result<Vec<HistoryRow>, Error> {
    let events = super::about(snapshot, id, as_of)?;
    let speakers = Speakers::of(snapshot, as_of)?;
    Ok(events.iter().map(|event| row(event, id, &speakers)).collect())
}

/// What a record says about the alert of this id.
pub(super) fn row(event: &EventRow, id: &str, speakers: &Speakers) -> HistoryRow {
    let fields = fields(event);
    let text = |name: &str| fields.get(name).and_then(Json::as_str).map(str::to_owned);
    let standing = Standing::of(event, speakers);
    // What raises and takes back is no act of anybody.
    let raised = matches!(event.kind.as_str(), "alert" | super::SUPERSEDED);
    let why_not = match standing {
        _ if raised => None,
        Standing::Person => None,
        Standing::Automation => Some("automation notices and decides nothing".to_owned()),
        Standing::Claimed => Some(format!("claimed: the word of {} does not count for people", event.submitter)),
        Standing::Unheard if event.invalid_reasons.is_empty() => {
            Some(format!("the word of {} does not count", event.submitter))
        }
        Standing::Unheard => Some(event.invalid_reasons.join("; ")),
    };
    let replaces = super::supersedes(event).as_deref() == Some(id);
    let by = || event.correlation_id.as_deref().map(|by| format!("alert {by} takes its place"));
    let said = match event.kind.as_str() {
        "alert" if replaces => by(),
        "alert" if crate::checks::tells_details(event) => {
            Some("tells the details that the record before leaves out".to_owned())
        }
        super::SUPERSEDED => text("security.alert.title"),
        _ => None,
    };
    let act = match (event.kind.as_str(), event.decision.as_deref()) {
        ("alert", _) if replaces => "superseded",
        ("alert", _) => "raised",
        (super::SUPERSEDED, _) => "superseded",
        ("alert_acknowledged", _) => "acknowledged",
        ("containment_decision", _) => "contained",
        (_, step) => step.unwrap_or("unknown"),
    };
    HistoryRow {
        seq: event.seq,
        record_hash: event.record_hash.clone(),
        event_time: event.event_time,
        ingest_time: event.ingest_time,
        act: act.to_owned(),
        actor: event.initiator_id.clone(),
        actor_type: event.initiator_type.clone(),
        submitter: event.submitter.clone(),
        counts: !raised && why_not.is_none(),
        why_not,
        note: text("security.note").or(said),
        disposition: text("security.investigation.disposition"),
        decision: event.decision.clone().filter(|_| event.kind == "containment_decision"),
        bulk: says_bulk(event),
        idempotency_key: text(super::acts::KEY),
        tenant: event.tenant.clone(),
    }
}
