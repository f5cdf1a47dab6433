//! Audit events of Tenuo's libraries (`authorization_success` and the like), JSON as its logger
//! writes it: an enforcement point looked at a warrant and a call.
//!
//! What they cannot tell: who holds the warrant (it stands in the warrant, and `actor` is set by
//! few integrations), and what a warrant allows: events of warrants that were made name their id alone, so a grant
//! is one by `authz.grant.issued` with its token.

use custody_proto::wire::LogRecord;

use super::document::Document;
use super::{RecordContext, base_log};
use crate::attributes::parse_time;
use crate::event::EventRow;

/// The event of a record, if it is a decision of an enforcement point.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord<'_>, said: &Document) -> Option<EventRow> {
    // Its ids begin so, and its time has the name that Elastic gives it.
    said.text("/id").filter(|id| id.starts_with("evt_"))?;
    let time = said.text("/@timestamp")?;
    let decision = match said.text("/event_type")?.as_str() {
        "authorization_success" => "allow",
        "authorization_failure" | "pop_failed" => "deny",
        _ => return None,
    };
    let mut row = base_log(context, log, "tenuo", "executor_decision");
    row.event_time = parse_time(&time).unwrap_or(row.event_time);
    row.decision = Some(decision.into());
    row.grant_id = said.text("/warrant_id").or(row.grant_id);
    row.tool = said.text("/tool").or(row.tool);
    row.action = row.tool.clone().or_else(|| said.text("/action"));
    row.agent_id = row.agent_id.or_else(|| said.text("/actor"));
    row.correlation_id = said.text("/trace_id").or(row.correlation_id);
    row.reasons = ["/error_code", "/details"].iter().filter_map(|at| said.text(at)).collect();
    if decision == "allow" && row.grant_id.is_none() {
        row.invalid_reasons.push("an executor's allow without a grant".into());
    }
    said.keep(&mut row, log, Vec::new());
    Some(row)
}
