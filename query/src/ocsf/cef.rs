//! One event as a line of ArcSight CEF: a summary, with the uid and hash to look the rest up by.

use std::fmt::Write as _;

use super::class::severity;
use super::event::Parts;
use super::told::{Field, Told};
use super::{Context, PRODUCT_VERSION, millis, uid};
use crate::event::EventRow;

/// Writes the line.
pub(super) fn write(row: &EventRow, context: &Context<'_>, out: &mut String) {
    let told = Told::of(row);
    let p = Parts::of(row, &told, context);
    out.push_str("CEF:0|Custody|Custody|");
    out.push_str(PRODUCT_VERSION);
    // OCSF's severity on CEF's scale: 0 to 3 low, to 6 medium, to 8 high, to 10 very high.
    let level = match severity(row, &told).0 {
        1 => 1,
        2 => 3,
        3 => 5,
        4 => 8,
        5 => 9,
        6 => 10,
        _ => 0,
    };
    for field in [row.kind.as_str(), &p.message()] {
        out.push('|');
        escape(out, field, &['|']);
    }
    let _ = write!(out, "|{level}|");
    let mut extension = Extension { out, follows: false };
    extension.all(&p);
}

/// The `key=value` part.
struct Extension<'a> {
    out: &'a mut String,
    follows: bool,
}

impl Extension<'_> {
    fn add(&mut self, key: &str, value: &str) {
        if self.follows {
            self.out.push(' ');
        }
        self.follows = true;
        self.out.push_str(key);
        self.out.push('=');
        escape(self.out, value, &['=']);
    }

    fn some(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.add(key, value);
        }
    }

    /// A custom string, with the label that CEF asks for beside it.
    fn custom(&mut self, slot: &str, label: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.add(&format!("{slot}Label"), label);
            self.add(slot, value);
        }
    }

    fn all(&mut self, p: &Parts<'_>) {
        let row = p.row;
        self.add("rt", &millis(row.event_time).to_string());
        self.add("deviceReceiptTime", &millis(row.ingest_time).to_string());
        if let Some(end) = row.end_time {
            self.add("end", &millis(end).to_string());
        }
        self.add("externalId", &uid(row, p.context));
        self.add("cat", &row.kind);
        self.some("act", row.decision.as_deref());
        self.some("outcome", row.status.as_deref());
        if !row.reasons.is_empty() {
            self.add("reason", &row.reasons.join("; "));
        }
        self.some("suid", row.initiator_id.as_deref());
        self.some("sourceServiceName", row.service.as_deref());
        self.some("sproc", row.agent_name.as_deref().or(row.agent_id.as_deref()));
        self.some("requestMethod", row.tool.as_deref().or(row.action.as_deref()));
        self.some("request", row.resource.as_deref());
        self.custom("cs1", "grantId", row.grant_id.as_deref());
        self.custom("cs2", "traceId", row.trace_id.as_deref());
        self.custom("cs3", "agentId", row.agent_id.as_deref());
        self.custom("cs4", "policyId", row.policy_id.as_deref());
        self.custom("cs5", "conversationId", row.conversation_id.as_deref());
        self.custom("cs6", "rule", p.told.text(Field::AlertRule).as_deref());
        self.add("cn1Label", "seq");
        self.add("cn1", &row.seq.to_string());
        self.add("fileHash", &row.record_hash);
    }
}

/// Escapes a backslash and what ends the field; a line never breaks. CEF knows `\n` and `\r` for
/// that in values; other control characters become spaces.
fn escape(out: &mut String, text: &str, ends: &[char]) {
    let is_odd = |c: char| c == '\\' || c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') || ends.contains(&c);
    let mut rest = text;
    while let Some(at) = rest.find(is_odd) {
        out.push_str(&rest[..at]);
        let Some(odd) = rest[at..].chars().next() else { break };
        match odd {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\\' => out.push_str("\\\\"),
            odd if ends.contains(&odd) => {
                out.push('\\');
                out.push(odd);
            }
            _ => out.push(' '),
        }
        rest = &rest[at + odd.len_utf8()..];
    }
    out.push_str(rest);
}
