//! What the ledger says of itself (`custody.log.*`): erasures, and changes of keys, redaction
//! and holds. Only from its own hand: a sender's record of such a name is no event.

use custody_proto::wire::LogRecord;
use custody_store::system::SYSTEM_IDENTITY;

use super::{RecordContext, base_log};
use crate::attributes::Attributes;
use crate::event::EventRow;

/// The event of a record of the ledger's own.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord<'_>, name: &str) -> Option<EventRow> {
    if context.submitter != SYSTEM_IDENTITY {
        return None;
    }
    let (kind, prefix) = match name {
        "custody.log.erasure" => ("erasure", "custody.erasure"),
        "custody.log.hold" => ("authority_change", "custody.hold"),
        "custody.log.keys" => ("authority_change", "custody.keys"),
        "custody.log.redaction" => ("authority_change", "custody.redaction"),
        "custody.log.durability" => ("authority_change", "custody.log"),
        _ => return None,
    };
    let attributes = Attributes(&log.attributes);
    let get = |name: &str| attributes.text(&format!("{prefix}.{name}"));
    let mut row = base_log(context, log, "custody", kind);
    row.action = name.strip_prefix("custody.log.").map(str::to_owned);
    row.initiator_id = get("identity").or_else(|| get("actor"));
    row.initiator_type = row.initiator_id.as_ref().map(|_| "user".into());
    row.reasons = attributes.list(&format!("{prefix}.reason"));
    row.resource = get("seqs").map(|seqs| format!("seq:{seqs}"));
    row.decision = get("cause").or_else(|| get("state")).or_else(|| get("durability"));
    Some(row)
}
