//! Pages: filters, cursors, headers, caching, proofs, what retention erased, limits.

use std::process::Command;

use serde_json::{Value, json};

use super::{JSON, call, filled, get, json_of, seqs};
use crate::support::{Server, python};

/// A reader in Python, with `requests`.
fn python_reader(args: &[&str]) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/events.py");
    let output = Command::new(python()).arg(script).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_reader_in_python_proves_every_page_and_joins_them() {
    let mut server = filled(200, &[]);
    let url = format!("http://{}", server.http);
    let all = server.sql("SELECT count(*) AS n, (SELECT max(seq) FROM ledger) AS last FROM events")[0].clone();
    let denied = server.sql("SELECT count(*) AS n FROM events WHERE kind = 'grant_denied'")[0]["n"].clone();
    for (limit, filter, events) in
        [("97", "", &all["n"]), ("10000", "", &all["n"]), ("3", "kind=grant_denied", &denied)]
    {
        let told: Value = serde_json::from_str(&python_reader(&["pull", &url, limit, filter])).unwrap();
        assert_eq!(&told["events"], events, "{limit} {filter}");
        assert_eq!(told["next_seq"], all["last"].as_u64().unwrap() + 1, "every record is covered");
    }
    assert!(denied.as_u64() > Some(3), "more than a page of {denied}");
    let consumed = python_reader(&["consume", &url, "siem"]);
    assert_eq!(consumed.trim(), all["n"].to_string());
    server.stop_and_verify();
}

#[test]
fn filters_are_what_sql_says_and_bind_the_cursor() {
    let mut server = filled(150, &[]);
    let cases = [
        ("kind=tool_call,grant_denied", "kind IN ('tool_call', 'grant_denied')"),
        ("service=tool-executor", "service = 'tool-executor'"),
        ("agent=banking-assistant", "agent_name = 'banking-assistant' OR agent_id = 'banking-assistant'"),
        ("kind=tool_call&agent=nobody", "false"),
        ("workspace=nowhere", "false"),
    ];
    for (filter, sql) in cases {
        let want = server.sql(&format!("SELECT seq FROM events WHERE {sql} ORDER BY seq"));
        let want: Vec<u64> = want.iter().map(|row| row["seq"].as_u64().unwrap()).collect();
        let (status, _, body) = get(&server, &format!("/api/v1/events?limit=10000&{filter}"), &[]);
        assert_eq!((status, seqs(&body)), (200, want), "{filter}");
    }
    // Severities split the events into parts.
    let all = server.sql("SELECT count(*) AS n FROM events")[0]["n"].as_u64().unwrap();
    let of = |severity: &str| {
        json_of(&server, &format!("/api/v1/events?limit=10000&severity={severity}"))["range"]["matched"]
            .as_u64()
            .unwrap()
    };
    let parts: Vec<u64> = ["unknown", "informational", "low", "medium", "high", "critical"].map(of).into();
    assert_eq!(parts.iter().sum::<u64>(), all, "{parts:?}");
    assert!(parts[3] > 0 && parts[1] > parts[3], "denials are medium: {parts:?}");
    assert_eq!(of("medium,low"), parts[2] + parts[3]);

    let page = json_of(&server, "/api/v1/events?limit=2&kind=tool_call,grant_denied");
    let cursor = page["next_cursor"].as_str().unwrap();
    let same = get(&server, &format!("/api/v1/events?kind=grant_denied,tool_call&after={cursor}"), &[]);
    assert_eq!(same.0, 200, "the order of kinds does not matter");
    for other in ["", "&kind=tool_call", "&kind=tool_call,grant_denied&service=x"] {
        let (status, _, body) = get(&server, &format!("/api/v1/events?after={cursor}{other}"), &[]);
        assert!(status == 400 && body.contains("another filter"), "{status} {body}");
    }
    for wrong in [
        "limit=0",
        "limit=10001",
        "after=x",
        "format=xml",
        "severity=bad",
        "since=never",
        "proof=1",
        "wait=x",
        "cursor=1",
    ] {
        let (status, _, body) = get(&server, &format!("/api/v1/events?{wrong}"), &[]);
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &body["code"]), (400, &json!("invalid_request")), "{wrong}");
    }
    server.stop_and_verify();
}

#[test]
fn since_is_the_time_of_the_ledger_and_every_format_has_the_same_events() {
    let mut server = filled(60, &[]);
    let rows = server.sql("SELECT seq, ingest_time FROM events ORDER BY seq");
    let middle = &rows[rows.len() / 2];
    let time = middle["ingest_time"].as_str().unwrap();
    let (_, _, body) = get(&server, &format!("/api/v1/events?limit=10000&since={time}"), &[]);
    let want: Vec<u64> =
        rows.iter().filter(|r| r["ingest_time"].as_str() >= Some(time)).map(|r| r["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs(&body), want);
    assert!(want.len() < rows.len());
    let far = get(&server, "/api/v1/events?since=2100-01-01T00:00:00Z", &[]);
    assert_eq!((far.0, far.2.as_str()), (200, ""), "an empty page is 200");
    assert!(far.1.contains_key("link") && far.1.contains_key("x-next-cursor"));

    let all: Vec<u64> = rows.iter().map(|row| row["seq"].as_u64().unwrap()).collect();
    let ocsf = get(&server, "/api/v1/events?limit=10000&format=ocsf", &[]).2;
    assert_eq!(seqs(&ocsf), all);
    let first: Value = serde_json::from_str(ocsf.lines().next().unwrap()).unwrap();
    assert!(first["class_uid"].is_u64() && first["metadata"]["version"] == "1.8.0", "{first}");
    let raw = get(&server, "/api/v1/events?limit=1", &[]).2;
    let raw: Value = serde_json::from_str(&raw).unwrap();
    assert_eq!(raw["metadata"]["uid"], first["metadata"]["uid"], "one key in all formats");
    for format in ["ecs", "cef"] {
        let (status, _, body) = get(&server, &format!("/api/v1/events?limit=10000&format={format}"), &[]);
        assert_eq!((status, body.lines().count()), (200, all.len()), "{format}");
    }
    let cef = json_of(&server, "/api/v1/events?limit=1&format=cef");
    assert!(cef["data"][0].as_str().unwrap().starts_with("CEF:"), "{cef}");
    server.stop_and_verify();
}

#[test]
fn a_full_page_is_the_same_for_ever_and_others_are_not_kept() {
    let mut server = filled(60, &[]);
    let full = "/api/v1/events?limit=5";
    for headers in [&[][..], JSON] {
        let (_, first, body) = get(&server, full, headers);
        let etag = first["etag"].to_str().unwrap().to_owned();
        assert!(etag.starts_with('"') && first["cache-control"].to_str().unwrap().contains("immutable"), "{first:?}");
        server.send_grpc(crate::support::recorded_requests().into_iter().skip(60 + body.len() % 7).take(20).collect());
        server.wait_until_visible();
        let asked = [headers, &[("If-None-Match", etag.as_str())]].concat();
        let (status, again, nothing) = get(&server, full, &asked);
        assert_eq!((status, nothing.as_str(), &again["etag"]), (304, "", &first["etag"]));
        assert_eq!(again["x-next-cursor"], first["x-next-cursor"], "a page that was not sent has its cursor too");
        let other = [headers, &[("If-None-Match", "\"another\"")]].concat();
        let (status, _, same) = get(&server, full, &other);
        assert_eq!(status, 200);
        if headers.is_empty() {
            assert_eq!(same, body, "byte for byte");
        } else {
            let (same, body): (Value, Value) =
                (serde_json::from_str(&same).unwrap(), serde_json::from_str(&body).unwrap());
            assert_eq!((&same["data"], &same["range"]), (&body["data"], &body["range"]));
        }
    }
    let (_, headers, _) = get(&server, "/api/v1/events?limit=10000", &[]);
    assert!(!headers.contains_key("etag"));
    assert_eq!(headers["cache-control"], "no-store");
    let link = headers["link"].to_str().unwrap();
    assert!(link.contains("limit=10000") && link.ends_with("; rel=\"next\""), "{link}");
    // The checkpoint in the header covers the page, and is a signed note.
    use base64::Engine as _;
    let note = base64::engine::general_purpose::STANDARD.decode(headers["x-checkpoint"].as_bytes()).unwrap();
    let note = String::from_utf8(note).unwrap();
    let covered: u64 = headers["x-seq-range"].to_str().unwrap().split('-').nth(1).unwrap().parse().unwrap();
    assert!(note.lines().nth(1).unwrap().parse::<u64>().unwrap() > covered, "{note}");
    let key = custody_store::note::VerifierKey::parse(
        std::fs::read_to_string(server.data_dir().join("log.vkey")).unwrap().lines().next().unwrap(),
    )
    .unwrap();
    assert!(custody_store::Checkpoint::verify(&note, &[key]).is_ok());
    server.stop_and_verify();
}

#[test]
fn who_asks_too_often_is_told_when_to_come_again() {
    let server = filled(1, &["--event-requests-per-minute", "3"]);
    for left in ["2", "1", "0"] {
        let (status, headers, _) = get(&server, "/api/v1/events", &[]);
        assert_eq!(
            (status, headers["x-rate-limit-limit"].as_bytes(), headers["x-rate-limit-remaining"].as_bytes()),
            (200, &b"3"[..], left.as_bytes())
        );
    }
    let (status, headers, body) = get(&server, "/api/v1/events", &[]);
    assert_eq!(status, 429, "{body}");
    let wait: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    let reset: u64 = headers["x-rate-limit-reset"].to_str().unwrap().parse().unwrap();
    assert!((1..=61).contains(&wait) && reset > 1_700_000_000, "{headers:?}");
    assert_eq!(call(&server, "POST", "/api/v1/consumers/x/next", &[]).0, 429);
}

#[test]
fn a_cursor_past_retention_is_told_so_once_and_what_was_never_promised_is_not_missed() {
    let mut server = filled(60, &[]);
    let old = json_of(&server, "/api/v1/events?limit=3");
    let newest = json_of(&server, "/api/v1/events?limit=10000");
    assert_eq!(call(&server, "POST", "/api/v1/consumers/c/next?limit=3", &[]).0, 200);
    let before = server.sql("SELECT max(seq) AS last FROM ledger")[0]["last"].as_u64().unwrap();
    let dir = server.data_dir();
    let retained = Command::new(crate::support::CUSTODY)
        .args(["retain", "--older-than", "0s", "--reason", "test", "--actor", "test", "--data-dir"])
        .arg(&dir)
        .output()
        .unwrap();
    assert!(retained.status.success(), "{}", String::from_utf8_lossy(&retained.stderr));
    server.send_grpc(crate::support::recorded_requests().into_iter().skip(60).take(20).collect());
    server.wait_until_visible();
    let after = |page: &Value| format!("/api/v1/events?limit=10000&after={}", page["next_cursor"].as_str().unwrap());
    let (status, _, body) = get(&server, &after(&old), &[]);
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["code"]), (410, &json!("gone")), "{body}");
    assert_eq!(body["earliest_seq"], before + 1, "the first record that is not erased");
    let (status, _, rest) = get(&server, &after(&body), &[]);
    let rest = seqs(&rest);
    assert!(status == 200 && !rest.is_empty() && rest[0] > before, "{rest:?}");
    // Who had read all of it lost nothing, and who begins never had it.
    for path in [after(&newest), "/api/v1/events?limit=10000".to_owned()] {
        let (status, _, body) = get(&server, &path, &[]);
        assert_eq!((status, &seqs(&body)), (200, &rest), "{path}");
    }
    let stream = get(&server, &after(&old), &[("Accept", "text/event-stream")]);
    assert_eq!(stream.0, 410);
    assert_eq!(call(&server, "POST", "/api/v1/consumers/c/next?limit=3", &[]).0, 410);
    let batch = call(&server, "POST", "/api/v1/consumers/c/next?limit=10000", &[]);
    assert_eq!((batch.0, &seqs(&batch.2)), (200, &rest), "a consumer is told once");
    server.stop_and_verify();
}

#[test]
fn consumers_lease_commit_and_survive_a_kill() {
    let server = filled(60, &[]);
    let all = seqs(&get(&server, "/api/v1/events?limit=10000", &[]).2);
    let next = |server: &Server, query: &str| {
        let (status, headers, body) = call(server, "POST", &format!("/api/v1/consumers/vector.1/next?{query}"), &[]);
        assert_eq!(status, 200, "{body}");
        (headers["x-consumer-state"].to_str().unwrap().to_owned(), seqs(&body))
    };
    assert_eq!(next(&server, "limit=4"), ("leased".into(), all[..4].to_vec()));
    assert_eq!(next(&server, "limit=2"), ("leased".into(), all[4..6].to_vec()), "the next call committed the first");
    let state = json_of(&server, "/api/v1/consumers/vector.1");
    assert_eq!((&state["committed_events"], &state["leased"]["events"]), (&json!(4), &json!(2)), "{state}");
    // A lease that has run out: the batch comes again.
    assert_eq!(next(&server, "limit=3&lease=0"), ("leased".into(), all[6..9].to_vec()));
    assert_eq!(next(&server, "limit=1"), ("redelivered".into(), all[6..9].to_vec()));
    let folder = server.kill();
    let mut server = Server::start_in(folder, &[]);
    server.wait_until_visible();
    assert_eq!(next(&server, "limit=10000"), ("leased".into(), all[9..].to_vec()), "it knows what it gave out");
    assert_eq!(next(&server, ""), ("leased".into(), vec![]));
    let state = json_of(&server, "/api/v1/consumers");
    assert_eq!(
        (&state["consumers"][0]["committed_events"], &state["consumers"][0]["redelivered"]),
        (&json!(all.len()), &json!(1))
    );
    let (status, _, body) = call(&server, "POST", "/api/v1/consumers/vector.1/next?kind=alert", &[]);
    assert!(status == 400 && body.contains("another filter"), "{body}");
    for wrong in ["/api/v1/consumers/a%2Fb/next", "/api/v1/consumers/x/next?after=x"] {
        assert_eq!(call(&server, "POST", wrong, &[]).0, 400, "{wrong}");
    }
    assert_eq!(call(&server, "DELETE", "/api/v1/consumers/vector.1", &[]).0, 200);
    for method in ["GET", "DELETE"] {
        assert_eq!(call(&server, method, "/api/v1/consumers/vector.1", &[]).0, 404);
    }
    assert_eq!(next(&server, "limit=1"), ("leased".into(), all[..1].to_vec()), "a name may be used again");
    server.stop_and_verify();
}

#[test]
fn what_cannot_be_asked_for_is_said_by_its_name() {
    let server = filled(20, &[]);
    for (query, name, mend) in [
        ("kind=nope", "kind \"nope\"", "grant_denied"),
        ("kind=alert,Tool_Call", "kind \"Tool_Call\"", "tool_call"),
        ("severity=severe", "severity \"severe\"", "critical"),
        ("limit=many", "the parameter limit must be a whole number", "limit"),
        ("limit=-1", "the parameter limit must be a whole number", "limit"),
        ("limit=0", "limit must be between 1 and 10000", "limit"),
        ("kinds=alert", "there is no parameter \"kinds\"", "kind, severity"),
        ("kind=alert&kind=output", "the parameter kind is there twice", "kind"),
        ("format=xml", "format must be one of", "ocsf"),
        ("wait=soon", "wait must be seconds", "30s"),
        ("since=yesterday", "since must be a time", "2026"),
    ] {
        for (method, path) in [("GET", "/api/v1/events"), ("POST", "/api/v1/consumers/x/next")] {
            let (status, _, body) = call(&server, method, &format!("{path}?{query}"), &[]);
            let body: Value = serde_json::from_str(&body).unwrap();
            let message = body["message"].as_str().unwrap();
            assert!(status == 400 && message.starts_with(name) && message.contains(mend), "{path}?{query}: {message}");
            assert!(!message.contains("deserialize"), "{message}");
        }
    }
    let (status, _, body) = get(&server, "/api/v1/alerts?limit=x", &[]);
    assert!(status == 400 && body.contains("the parameter limit must be a whole number"), "{body}");
    // The command says the same, and does not end as if nothing had happened.
    let command = |from: [&str; 2]| {
        let output =
            Command::new(crate::support::CUSTODY).args(["events", "--kind", "nope"]).args(from).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (url, dir) = (format!("http://{}", server.http), server.data_dir());
    for from in [["--url", &url], ["--data-dir", dir.to_str().unwrap()]] {
        let (worked, told) = command(from);
        assert!(!worked && told.contains("kind \"nope\" is none of agent_invocation, alert"), "{told}");
    }
}

/// Whoever went on from there would wait until the log has grown as far, and miss what came until then.
#[test]
fn a_place_beyond_the_end_of_a_restored_log_is_refused() {
    let server = filled(20, &[]);
    let data = server.data_dir();
    let (dir, backups) = (data.to_str().unwrap(), server.path().join("backups"));
    let backups = backups.to_str().unwrap().to_owned();
    let backup = ["backup", "--to", &backups, "--with-keys", "--data-dir", dir];
    assert!(Command::new(crate::support::CUSTODY).args(backup).status().unwrap().success());
    for tenant in ["a", "b", "c"] {
        server.send_span_of(tenant);
    }
    server.wait_until_visible();
    let cursor = json_of(&server, "/api/v1/events?limit=10000")["next_cursor"].as_str().unwrap().to_owned();
    assert_eq!(call(&server, "POST", "/api/v1/consumers/siem/next?limit=10000", &[]).0, 200);
    assert_eq!(call(&server, "POST", "/api/v1/consumers/siem/next?limit=10000", &[]).0, 200);
    let folder = server.kill();
    let lost = folder.path().join("lost");
    std::fs::rename(&data, &lost).unwrap();
    let restored =
        Command::new(crate::support::CUSTODY).args(["restore", "--from", &backups, "--data-dir", dir]).output();
    assert!(restored.unwrap().status.success());
    std::fs::copy(lost.join("consumers.json"), data.join("consumers.json")).unwrap();
    let server = Server::start_in(folder, &[]);
    server.wait_until_visible();
    let refused = |(status, _, body): (u16, ureq::http::HeaderMap, String)| {
        assert!(status == 400 && body.contains("is beyond the end of this log, which has "), "{status} {body}");
    };
    refused(get(&server, &format!("/api/v1/events?after={cursor}"), &[]));
    refused(get(&server, &format!("/api/v1/events?wait=30s&after={cursor}"), JSON));
    let streams = [("Accept", "text/event-stream"), ("Last-Event-ID", cursor.as_str())];
    refused(get(&server, "/api/v1/events", &streams));
    refused(get(&server, "/api/v1/events?from_seq=18446744073709551615", &[]));
    refused(call(&server, "POST", "/api/v1/consumers/siem/next", &[]));
    assert_eq!(call(&server, "DELETE", "/api/v1/consumers/siem", &[]).0, 200);
    assert_eq!(call(&server, "POST", "/api/v1/consumers/siem/next", &[]).0, 200, "it begins again");
}
