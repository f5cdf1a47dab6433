//! What is in the log commands no terminal, whichever command shows it, and in whichever format.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{CUSTODY, Server, python};

/// JSON escapes none of these.
const EVIL: &str = "\u{9b}2J\u{202e}\u{7f}evil";

const TRACE: &str = "5b8efff798038103d269b633813fc60c";

fn record(name: &str, attributes: &[(&str, &str)]) -> Value {
    let attribute = |(key, value): &(&str, &str)| json!({"key": key, "value": {"stringValue": value}});
    let attributes: Vec<Value> = attributes.iter().map(attribute).collect();
    json!({"timeUnixNano": "1795165200000000000", "traceId": TRACE, "spanId": "00f067aa0ba902b7", "eventName": name,
           "attributes": attributes})
}

/// A server with an event and an alert that say what nobody should obey.
fn server() -> Server {
    let server = Server::start();
    let records = [
        record("authz.request", &[("authz.initiator.id", EVIL), ("authz.initiator.type", "user")]),
        record(
            "security.alert",
            &[("security.alert.id", "a1"), ("security_rule.name", "r"), ("security.alert.title", EVIL)],
        ),
    ];
    let body = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}).to_string();
    let url = format!("http://{}/v1/logs", server.otlp_http);
    ureq::post(&url).header("Content-Type", "application/json").send(body.as_bytes()).unwrap();
    server.wait_until_visible();
    server
}

/// What a command writes when both its outputs are a terminal.
fn shown(args: &[&str]) -> String {
    let script = "import pty, sys; pty.spawn(sys.argv[1:])";
    let mut command = Command::new(python());
    let output = command.args(["-c", script, CUSTODY]).args(args).stdin(Stdio::null()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn assert_harmless(args: &[&str], shown: &str, own: &[char]) {
    assert!(shown.contains("evil"), "{args:?}: {shown}");
    let odd = |c: &char| c.is_control() && !matches!(c, '\r' | '\n' | '\t') || *c == '\u{202e}';
    assert_eq!(shown.chars().find(|c| odd(c) && !own.contains(c)), None, "{args:?}: {shown:?}");
}

#[test]
fn a_terminal_is_shown_no_control_characters() {
    let server = server();
    let url = format!("http://{}", server.http);
    let sql = "SELECT initiator_id FROM events WHERE kind = 'request'";
    let commands: [&[&str]; 13] = [
        &["events", "--format", "raw"],
        &["events", "--format", "ocsf"],
        &["events", "--format", "ecs"],
        &["events", "--format", "cef"],
        &["replay", "--trace", TRACE, "--format", "json"],
        &["alerts", "list"],
        &["alerts", "list", "--format", "json"],
        &["alerts", "show", "a1"],
        &["alerts", "show", "a1", "--format", "json"],
        &["alerts", "show", EVIL],
        &["sql", sql],
        &["sql", sql, "--format", "json"],
        &["sql", sql, "--format", "csv"],
    ];
    for args in commands {
        assert_harmless(args, &shown(&[args, &["--url", &url]].concat()), &[]);
    }
    // The tree has colours of its own.
    let tree = ["replay", "--trace", TRACE, "--url", &url];
    assert_harmless(&tree, &shown(&tree), &['\u{1b}']);
    // Who stores it gets what was sent.
    let stored = server.custody(&["events"]);
    let event: Value = serde_json::from_str(stored.lines().next().unwrap()).unwrap();
    assert_eq!(event["initiator_id"], EVIL);
    let stored: Value = serde_json::from_str(&server.custody(&["alerts", "list", "--format", "json"])).unwrap();
    assert_eq!(stored["title"], EVIL);
    let stored = server.custody(&["replay", "--trace", TRACE, "--format", "json"]);
    let steps: Value = serde_json::from_str(&stored).unwrap();
    assert!(steps.as_array().unwrap().iter().any(|step| step["initiator_id"] == EVIL), "{steps}");
}

/// Also what the operator himself wrote into the log: he may have copied it from somewhere.
#[test]
fn a_hold_is_one_line_and_commands_no_terminal() {
    let server = server();
    let dir = server.data_dir().display().to_string();
    let (id, reason) = ("h\u{1b}[2J", "evil\u{9b}\tx\nforged");
    let place = ["hold", "place", "--id", id, "--seq", "1", "--reason", reason, "--actor", "ann", "--data-dir", &dir];
    let placed = Command::new(CUSTODY).args(place).output().unwrap();
    assert!(placed.status.success(), "{placed:?}");
    let list = ["hold", "list", "--data-dir", &dir];
    assert_harmless(&list, &shown(&list), &[]);
    let stored = String::from_utf8(Command::new(CUSTODY).args(list).output().unwrap().stdout).unwrap();
    assert_eq!((stored.lines().count(), stored.split('\t').count()), (1, 4), "{stored:?}");
    let receipt = shown(&["prove", "--seq", "1", "--cose", "--data-dir", &dir]);
    assert!(receipt.contains("nothing for a terminal"), "{receipt:?}");
}
