//! An answer without rows that may be due to a mistyped id says so, beside the answer, wherever there is room for it.

mod support;

use serde_json::{Value, json};
use support::Server;

/// What a query answers over HTTP.
fn asked(server: &Server, sql: &str, format: &str) -> String {
    let body = json!({"sql": sql, "format": format});
    let url = format!("http://{}/api/v1/sql", server.http);
    let request = ureq::post(url).header("Content-Type", "application/json").header("X-Footer", "true");
    let mut answer = request.send(body.to_string()).unwrap();
    assert_eq!(answer.status(), 200, "{sql}");
    answer.body_mut().read_to_string().unwrap()
}

#[test]
fn an_id_that_nobody_knows_is_said_to_be_unknown() {
    let mut server = Server::start();
    server.send_grpc(support::recorded_requests());
    server.wait_until_visible();
    let known = server
        .sql("SELECT trace_id, min(seq) AS seq FROM events WHERE trace_id IS NOT NULL GROUP BY 1 ORDER BY 2 LIMIT 1");
    let (known, first) = (known[0]["trace_id"].as_str().unwrap(), known[0]["seq"].as_u64().unwrap());

    let stats = |sql: &str| serde_json::from_str::<Value>(&asked(&server, sql, "json")).unwrap()["stats"].clone();
    let unknown = "SELECT * FROM replay('conversation-nope') ORDER BY step";
    let note = "nothing is known by the id 'conversation-nope'; replay takes the id of a trace, a grant, an agent, \
                a conversation or an alert, letter by letter";
    assert_eq!(stats(unknown)["notes"], json!([note]));
    assert_eq!(stats(unknown)["rows"], 0);
    let told = stats(&format!("SELECT count(*) AS n FROM replay('{known}', {})", first - 1))["notes"].clone();
    assert!(told[0].as_str().unwrap().starts_with(&format!("nothing was known as of seq {}", first - 1)), "{told}");
    let told = stats("SELECT * FROM alert_history('nope')")["notes"].clone();
    assert!(told[0].as_str().unwrap().starts_with("nothing is known by the id 'nope'; alert_history"), "{told}");
    assert!(stats(&format!("SELECT * FROM replay('{known}')")).get("notes").is_none(), "what is known needs no note");
    assert!(stats("SELECT * FROM spans WHERE trace_id = 'nope'").get("notes").is_none());

    let lines = asked(&server, unknown, "ndjson");
    let footer: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(footer["stats"]["notes"], json!([note]));

    for format in ["table", "csv", "json"] {
        let out = server.custody_output(&["sql", unknown, "--format", format]);
        let told = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && told == format!("custody sql: {note}\n"), "{format}: {told}");
    }
    let missing = server.sql("SELECT state, note FROM delegation_chain('nope')");
    assert_eq!(missing, [json!({"state": "missing", "note": "this grant was never received"})]);
    server.stop_and_verify();
}

/// An id that names a conversation and a trace is both, unless it is said which is meant.
#[test]
fn an_id_that_names_several_things_is_said_to() {
    let mut server = Server::start();
    let (id, other) = ("6f1c2a520d1e4a579d3e0b6f6ad2c111", "0000000000000000000000000000000b");
    let text = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    let call = json!([
        text("gen_ai.operation.name", "execute_tool"),
        text("gen_ai.tool.name", "mail"),
        text("gen_ai.conversation.id", id)
    ]);
    let span = |trace: &str, attributes: Value| {
        json!({"traceId": trace, "spanId": "000000000000000c", "name": "s", "startTimeUnixNano": "1",
            "endTimeUnixNano": "2", "attributes": attributes})
    };
    let spans = json!({"resourceSpans": [{"scopeSpans": [{"spans": [span(other, call), span(id, json!([]))]}]}]});
    let url = format!("http://{}/v1/traces", server.otlp_http);
    ureq::post(url).header("Content-Type", "application/json").send(spans.to_string()).unwrap();
    support::until(|| asked(&server, "SELECT count(*) FROM spans", "csv").contains('2'));
    let stats = |of: &str| {
        let answer = asked(&server, &format!("SELECT * FROM replay('{id}'{of})"), "json");
        let stats = serde_json::from_str::<Value>(&answer).unwrap()["stats"].clone();
        (stats["rows"].as_u64().unwrap(), stats["notes"][0].as_str().unwrap_or_default().to_owned())
    };
    let (rows, note) = stats("");
    assert!(rows == 1 && note.contains("names a conversation and a trace"), "{rows} {note}");
    assert_eq!(stats(", NULL, 'conversation'"), (1, String::new()));
    let (rows, note) = stats(", NULL, 'trace'");
    assert!(rows == 0 && note.contains("are no provenance events"), "{rows} {note}");
    let (rows, note) = stats(", NULL, 'alert'");
    assert!(rows == 0 && note.starts_with("no alert is known by the id"), "{rows} {note}");
    let replayed = server.custody_output(&["replay", "--conversation", id]);
    assert!(replayed.status.success() && String::from_utf8_lossy(&replayed.stdout).contains("mail"), "{replayed:?}");
    let replayed = server.custody_output(&["replay", "--grant", id]);
    assert!(!replayed.status.success(), "{replayed:?}");
    server.stop_and_verify();
}

/// A caller who may see some rows is not told whether others are there.
#[test]
fn what_is_hidden_is_not_told_apart_from_what_is_not_there() {
    let mut server = Server::under("roles = [\"write\", \"read\"]\ntenants = [\"acme\"]");
    let hidden = "000000000000000000000000000000aa";
    let tenant = json!({"key": "tenant.id", "value": {"stringValue": "globex"}});
    let span = json!({"traceId": hidden, "spanId": "00000000000000aa", "name": "of globex", "startTimeUnixNano": "1"});
    let spans = json!({"resourceSpans": [{"resource": {"attributes": [tenant]}, "scopeSpans": [{"spans": [span]}]}]});
    let url = format!("http://{}/v1/traces", server.otlp_http);
    ureq::post(url).header("Content-Type", "application/json").send(spans.to_string()).unwrap();
    // What comes second is there when both are.
    server.send_span_of("acme");
    support::until(|| asked(&server, "SELECT name FROM spans", "csv").contains("of acme"));
    let told = |id: &str| {
        let answer = asked(&server, &format!("SELECT * FROM replay('{id}')"), "json");
        serde_json::from_str::<Value>(&answer).unwrap()["stats"]["notes"][0].clone().to_string().replace(id, "")
    };
    let nothing = told(hidden);
    assert!(nothing.contains("nothing that you may see is known"), "{nothing}");
    assert_eq!(nothing, told("nope"));
    server.stop();
}
