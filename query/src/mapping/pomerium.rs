//! Pomerium: the lines of its log, with their members as attributes (as the Collector's JSON
//! parser leaves them) or as a JSON body, and its spans. An `authorize check` is one decision of a
//! policy; an `http-request` is the answer that followed, joined to it by `request-id`.
//!
//! What it cannot tell: which agent acted. MCP's method, tool and parameters, the query and the
//! claims are only there where they were opted in.

use custody_proto::wire::{LogRecord, Span};

use super::{RecordContext, base_log, base_span};
use crate::attributes::Attributes;
use crate::event::EventRow;
use crate::rows::Time;

/// The event of a record, if it is such a line.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord<'_>) -> Option<EventRow> {
    let attributes = Attributes(&log.attributes);
    match &*attributes.lent("message")? {
        "authorize check" if attributes.has_text("allow") => {
            let mut row = base_log(context, log, "pomerium", "policy_evaluation");
            decision(&mut row, attributes, "");
            request(&mut row, attributes);
            Some(row)
        }
        "http-request" if attributes.has_text("request-id") => {
            let mut row = base_log(context, log, "pomerium", "tool_result");
            answer(&mut row, attributes);
            request(&mut row, attributes);
            Some(row)
        }
        _ => None,
    }
}

/// The event of a span, if it says how a check ended.
pub(super) fn map_span(context: &RecordContext<'_>, span: &Span<'_>) -> Option<EventRow> {
    let attributes = Attributes(&span.attributes);
    attributes.lent("result.allow")?;
    let mut row = base_span(context, span, "pomerium", "policy_evaluation");
    decision(&mut row, attributes, "result.");
    request(&mut row, attributes);
    row.tool = row.tool.or_else(|| attributes.text("mcp.tool"));
    row.action = row.tool.clone().or_else(|| attributes.text("mcp.method")).or(row.action);
    Some(row)
}

/// A deny rule that holds wins over any allow.
fn decision(row: &mut EventRow, attributes: Attributes<'_>, prefix: &str) {
    let says = |name: &str| attributes.text(&format!("{prefix}{name}")).as_deref() == Some("true");
    // A deny that cannot be read is one: what is broken allows nothing.
    let denied = format!("{prefix}deny");
    let deny = attributes.has(&denied) && attributes.text(&denied).as_deref() != Some("false");
    let allow = says("allow");
    row.decision = Some(if allow && !deny { "allow" } else { "deny" }.into());
    let why = match (deny, allow) {
        (true, _) => "deny-why-true",
        (false, true) => "allow-why-true",
        (false, false) => "allow-why-false",
    };
    row.reasons = attributes.list(&format!("{prefix}{why}"));
}

/// What the upstream answered.
fn answer(row: &mut EventRow, attributes: Attributes<'_>) {
    let code = attributes.number("response-code");
    row.status = code.map(|code| if (100..400).contains(&code) { "ok" } else { "error" }.into());
    row.reasons = attributes.list("response-code-details");
    // Its duration is in milliseconds; the line is written at the end.
    let lasted = attributes.text("duration").and_then(|text| text.parse::<f64>().ok());
    if let Some(millis) = lasted.filter(|millis| millis.is_finite() && *millis >= 0.0) {
        row.end_time = Some(row.event_time);
        row.event_time = Time(row.event_time.0.saturating_sub((millis * 1e6) as i64));
    }
}

/// Who asked for what.
fn request(row: &mut EventRow, attributes: Attributes<'_>) {
    row.initiator_id = attributes.first(&["email", "user", "service-account-id"]);
    let person = !attributes.has_text("service-account-id");
    row.initiator_type = row.initiator_id.as_ref().map(|_| if person { "user" } else { "process" }.into());
    row.policy_id = attributes.first(&["route-id", "envoy-route-id"]);
    row.policy_version = attributes.first(&["route-checksum", "envoy-route-checksum"]);
    row.correlation_id = attributes.text("request-id");
    row.conversation_id = attributes.first(&["session-id", "mcp.session.id"]);
    row.tool = attributes.text("mcp-tool");
    row.action = row.tool.clone().or_else(|| attributes.first(&["mcp-method", "method"]));
    let host = attributes.first(&["host", "authority"]);
    row.resource = host.map(|host| format!("{host}{}", attributes.text("path").unwrap_or_default()));
    // Somebody who acts as somebody else: both are in the chain, the one who acts first.
    let other = attributes.first(&["impersonate-email", "impersonate-user-id"]);
    if let (Some(other), Some(own)) = (other, row.initiator_id.clone()) {
        row.actor_chain = vec![own, other];
    }
}
