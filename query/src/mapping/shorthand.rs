//! Lines of OpenShell's own log (docs.nvidia.com/openshell, "Sandbox Logging"): `CLASS:ACTIVITY [SEVERITY] ACTION
//! DETAILS [CONTEXT]`, which a sandbox writes in any case, and OCSF as JSON only where it was asked to. They are read
//! as the OCSF events that they were made from, and mapped as those are (`ocsf.rs`).
//!
//! What they cannot tell: which sandbox it was (the record's own attributes may); an alert's id; the reason beyond 80
//! letters. Names of processes and messages are whatever the sandbox put there: only what stands at its place counts,
//! and a name with brackets in it can hide a policy, but turn no refusal into a permission.

use custody_proto::wire::{LogRecord, Value as Body};
use serde_json::{Map, Value as Json, json};

use super::document::{self, Document};
use super::{RecordContext, ocsf};
use crate::attributes::parse_time;
use crate::event::EventRow;
use crate::rows::Time;

/// What stands before an event of such a log is not longer.
const FRAME_BYTES_MAX: usize = 64;

/// Bytes of a line that is read, at most.
const LINE_BYTES_MAX: usize = 16 << 10;

/// What stands for the classes, and their `class_uid`. `EVENT`, which tells of none, is no step.
const CLASSES: [(&str, u32); 7] = [
    ("NET", 4001),
    ("HTTP", 4002),
    ("SSH", 4007),
    ("PROC", 1007),
    ("FINDING", 2004),
    ("CONFIG", 5019),
    ("LIFECYCLE", 6002),
];

/// The severities, by `severity_id`.
const SEVERITIES: [&str; 7] = ["[UNKN]", "[INFO]", "[LOW]", "[MED]", "[HIGH]", "[CRIT]", "[FATAL]"];

/// The event of a record whose body is such a line.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord<'_>) -> Option<EventRow> {
    let Some(Body::StringValue(text)) = log.body.as_ref()?.value.as_ref() else { return None };
    let (time, said) = unframed(text.trim())?;
    // On a console OCSF as JSON stands on such lines, too.
    let event = match said.strip_prefix("OCSF-JSON ") {
        Some(text) => Document::body(document::parse(text).filter(Json::is_object)?),
        None => Document::of_line(event(said, time)?, text.trim()),
    };
    ocsf::map(context, log, &event)
}

/// What is said behind the frame of a line, and when: in its file (`2026-04-01T04:04:32.118Z OCSF `), as the CLI shows
/// it (`[1775014132.118] [sandbox] [OCSF ] [ocsf] `), or bare.
fn unframed(text: &str) -> Option<(Option<Time>, &str)> {
    let head = &text.as_bytes()[..text.len().min(FRAME_BYTES_MAX)];
    match head.first()? {
        b'[' => {
            let frame = "] [OCSF ] [ocsf] ";
            let at = head.windows(frame.len()).position(|window| window == frame.as_bytes())?;
            let (time, _) = text[1..].split_once(']')?;
            let (seconds, millis) = time.split_once('.')?;
            let millis = seconds.parse::<i64>().ok()?.checked_mul(1000)?.checked_add(millis.parse().ok()?)?;
            Some((millis.checked_mul(1_000_000).map(Time), &text[at + frame.len()..]))
        }
        b'0'..=b'9' => {
            let (time, rest) = text.split_once(' ')?;
            // Other lines of that log have another level there.
            let said = rest.trim_start();
            let said = if said.starts_with("OCSF-JSON ") { said } else { said.strip_prefix("OCSF ")? };
            Some((Some(parse_time(time)?), said.trim_start()))
        }
        b'A'..=b'Z' => Some((None, text.strip_prefix("OCSF ").unwrap_or(text))),
        _ => None,
    }
}

/// The OCSF event that a line was made from, as far as it says.
fn event(line: &str, time: Option<Time>) -> Option<Json> {
    let (head, rest) = line.split_once(' ')?;
    let (class, activity) = head.split_once(':')?;
    let (_, class) = CLASSES.iter().find(|(name, _)| *name == class)?;
    let (severity, said) = rest.split_once(' ').unwrap_or((rest, ""));
    let severity = SEVERITIES.iter().position(|tag| *tag == severity)?;
    if line.len() > LINE_BYTES_MAX || activity.is_empty() {
        return None;
    }
    let mut out = Map::new();
    out.insert("class_uid".into(), json!(class));
    out.insert("activity_name".into(), json!(activity.to_ascii_lowercase()));
    out.insert("severity_id".into(), json!(severity));
    out.insert("metadata".into(), json!({"product": {"name": "OpenShell", "vendor_name": "NVIDIA"}}));
    if let Some(time) = time {
        out.insert("time".into(), json!(time.0 / 1_000_000));
    }
    match class {
        4001 | 4002 | 4007 => decided(&mut out, *class, said),
        2004 => finding(&mut out, said),
        5019 => configuration(&mut out, activity, said),
        6002 => lifecycle(&mut out, activity, said),
        _ => {}
    }
    Some(Json::Object(out))
}

/// What stands behind a tag, up to its end: `[reason:no matching policy]`.
fn tagged<'a>(said: &'a str, tag: &str) -> Option<(&'a str, &'a str)> {
    let at = said.find(tag)?;
    let (value, _) = said[at + tag.len()..].split_once(']')?;
    Some((&said[..at], value))
}

/// A connection, a request or a login, and what was decided about it.
fn decided(out: &mut Map<String, Json>, class: u32, said: &str) {
    let (action, rest) = said.split_once(' ').unwrap_or((said, ""));
    let (id, rest) = match action {
        "ALLOWED" => (1, rest),
        "DENIED" | "BLOCKED" => (2, rest),
        _ => return,
    };
    out.insert("action_id".into(), json!(id));
    let (rest, reason) = tagged(rest, " [reason:").map_or((rest, None), |(rest, reason)| (rest, Some(reason)));
    if let Some(reason) = reason.filter(|reason| !reason.is_empty()) {
        out.insert("status_detail".into(), json!(reason));
    }
    // The policy stands last: what stands before it may be called anything.
    let policy = rest.rfind(" [policy:").and_then(|at| tagged(&rest[at..], " [policy:").map(|(_, tag)| (at, tag)));
    let detail = policy.map_or(rest, |(at, _)| &rest[..at]);
    if let Some((_, tag)) = policy {
        let (name, engine) = tag.split_once(" engine:").unwrap_or((tag, ""));
        out.insert("firewall_rule".into(), json!({"name": name, "type": engine}));
    }
    let (process, target) = detail.rsplit_once(" -> ").map_or((None, detail), |(process, to)| (Some(process), to));
    if let Some(name) = process.and_then(|process| process.rsplit_once('(')).map(|(name, _)| name) {
        out.insert("actor".into(), json!({"process": {"name": name}}));
    }
    match class {
        4001 => out.extend(endpoint(target).map(|to| ("dst_endpoint".to_owned(), to))),
        4002 => {
            let request = |(method, url)| json!({"http_method": method, "url": {"url_string": url}});
            out.extend(target.split_once(' ').map(request).map(|request| ("http_request".to_owned(), request)));
        }
        _ => {}
    }
}

/// `host:port`, or `host:port/protocol`. A process without a target is none.
fn endpoint(target: &str) -> Option<Json> {
    let (place, _) = target.split_once('/').unwrap_or((target, ""));
    let (host, port) = place.rsplit_once(':')?;
    let port = port.parse::<u16>().ok().filter(|_| !host.is_empty())?;
    Some(json!({"domain": host, "port": port}))
}

/// `"title" [type:... count:1]`; older releases say `[confidence:high]`.
fn finding(out: &mut Map<String, Json>, said: &str) {
    let Some((title, rest)) = said.strip_prefix('"').and_then(|rest| rest.split_once('"')) else { return };
    let rule = tagged(rest, "[type:").map(|(_, tag)| tag.split(' ').next().unwrap_or_default());
    let analytic = rule.filter(|rule| !rule.is_empty()).map_or(Json::Null, |rule| json!({"name": rule}));
    out.insert("finding_info".into(), json!({"title": title, "analytic": analytic}));
}

/// A message, and in brackets what changed: `[version:v4 hash:sha256:cafe]`.
fn configuration(out: &mut Map<String, Json>, state: &str, said: &str) {
    out.insert("state".into(), json!(state));
    let (message, tags) = match said.strip_suffix(']').and_then(|said| said.rsplit_once(" [")) {
        Some((message, tags)) => (message, tags),
        None => (said, ""),
    };
    let mut unmapped = Map::new();
    for (name, value) in tags.split(' ').filter_map(|tag| tag.split_once(':')) {
        let name = match name {
            "version" => "policy_version",
            "hash" => "policy_hash",
            // A proposal's words are an agent's: that nobody was asked stands at the beginning, too.
            "auto" if !message.starts_with("auto-approved") => continue,
            other => other,
        };
        unmapped.insert(name.to_owned(), json!(value));
    }
    let chunk = message.split_once("chunk:").or_else(|| message.split_once("chunk ")).map(|(_, rest)| rest);
    let chunk = chunk.and_then(|rest| rest.split([' ', ':']).next()).filter(|id| !id.is_empty());
    if let Some(chunk) = chunk {
        unmapped.insert("chunk_id".into(), json!(chunk));
    }
    if let Some((_, reason)) = message.split_once(" reason:").filter(|_| state == "REJECTED") {
        unmapped.insert("rejection_reason".into(), json!(reason.trim_matches('"')));
    }
    out.insert("message".into(), json!(message));
    out.insert("unmapped".into(), Json::Object(unmapped));
}

/// A part of OpenShell itself, and how its start or end went: `openshell-sandbox success`.
fn lifecycle(out: &mut Map<String, Json>, activity: &str, said: &str) {
    if activity == "START" {
        out.insert("activity_id".into(), json!(3));
    }
    let (app, status) = said.rsplit_once(' ').unwrap_or((said, ""));
    out.insert("app".into(), json!({"name": app}));
    let status = ["success", "failure"].iter().position(|word| *word == status);
    out.extend(status.map(|at| ("status_id".to_owned(), json!(at + 1))));
}
