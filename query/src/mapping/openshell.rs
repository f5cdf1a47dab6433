//! OpenShell's policy chunks: a change of a sandbox's policy that an agent proposed, as its gateway answers it, or a
//! sandbox's `policy.local` the agent.
//! Its OCSF events are read in `ocsf.rs`.
//!
//! What they cannot tell: who decided, and for which sandbox it was, unless the record says so.

use custody_proto::wire::LogRecord;

use super::document::Document;
use super::{RecordContext, base_log};
use crate::event::EventRow;
use crate::rows::Time;

/// The event of a record, if it is a chunk: waiting, approved or rejected.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord<'_>, said: &Document) -> Option<EventRow> {
    let hashes = ["/candidate_effective_policy_hash", "/current_effective_policy_hash"];
    let is_answer = said.has("/chunk_id") && said.has("/rule_name");
    if !is_answer && !hashes.iter().any(|at| said.has(at)) {
        return None;
    }
    let decision = match said.text("/status")?.to_ascii_lowercase().as_str() {
        "pending" => "pending",
        "approved" => "approved",
        "rejected" => "rejected",
        _ => return None,
    };
    let mut row = base_log(context, log, "openshell", "approval");
    // A number of 64 bits is text in protobuf's JSON.
    let millis = said.text("/decided_at_ms").and_then(|text| text.parse::<i64>().ok()).filter(|millis| *millis > 0);
    let decided = millis.and_then(|millis| millis.checked_mul(1_000_000)).map(Time);
    row.event_time = decided.or_else(|| said.time("/decided_time")).unwrap_or(row.event_time);
    row.decision = Some(decision.into());
    row.action = Some("configuration".into());
    row.resource = said.first(&["/id", "/chunk_id"]);
    row.policy_id = said.text("/rule_name");
    row.policy_version = said.first(&hashes);
    row.reasons = ["/rejection_reason", "/rationale"].iter().filter_map(|at| said.text(at)).collect();
    said.keep(&mut row, log, Vec::new());
    Some(row)
}
