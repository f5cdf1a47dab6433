//! Pomerium's `authorize check` lines, with their members as attributes (as the Collector's JSON
//! parser leaves them): one decision of a policy for each request.
//!
//! What it cannot tell: which agent acted, and whether the request then succeeded.

use custody_proto::otlp::logs::LogRecord;

use super::{RecordContext, base_log};
use crate::attributes::Attributes;
use crate::event::EventRow;

/// The event of a record, if it is such a line.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord) -> Option<EventRow> {
    let attributes = Attributes(&log.attributes);
    let is_check = attributes.text("message").as_deref() == Some("authorize check");
    if !is_check || attributes.text("allow").is_none() {
        return None;
    }
    let mut row = base_log(context, log, "pomerium", "policy_evaluation");
    let says = |name: &str| attributes.text(name).as_deref() == Some("true");
    // A deny rule that holds wins over any allow.
    let (allow, deny) = (says("allow"), says("deny"));
    row.decision = Some(if allow && !deny { "allow" } else { "deny" }.into());
    let why = match (deny, allow) {
        (true, _) => "deny-why-true",
        (false, true) => "allow-why-true",
        (false, false) => "allow-why-false",
    };
    row.reasons = attributes.list(why);
    row.initiator_id = attributes.first(&["email", "user", "service-account-id"]);
    let person = attributes.text("service-account-id").is_none();
    row.initiator_type = row.initiator_id.as_ref().map(|_| if person { "user" } else { "process" }.into());
    row.policy_id = attributes.first(&["route-id", "envoy-route-id"]);
    row.policy_version = attributes.first(&["route-checksum", "envoy-route-checksum"]);
    row.correlation_id = attributes.text("request-id");
    row.conversation_id = attributes.text("session-id");
    row.tool = attributes.text("mcp-tool");
    row.action = row.tool.clone().or_else(|| attributes.first(&["mcp-method", "method"]));
    let host = attributes.text("host");
    row.resource = host.map(|host| format!("{host}{}", attributes.text("path").unwrap_or_default()));
    Some(row)
}
