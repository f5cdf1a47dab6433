//! What retention erased before it was read is told to whoever had still to see it, whatever he reads with: also what
//! a legal hold kept until then, behind readers who know of all that was erased around it.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::{JSON, call, filled, get, json_of, seqs};
use crate::support::{CUSTODY, Server, recorded_requests, until};

/// A command on the data directory; it must succeed.
fn keep(server: &Server, args: &[&str]) {
    let said = ["--reason", "test", "--actor", "test", "--data-dir"];
    let output = Command::new(CUSTODY).args(args).args(said).arg(server.data_dir()).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    server.wait_until_visible();
}

fn retain(server: &Server) {
    keep(server, &["retain", "--older-than", "0s"]);
}

fn after(page: &Value) -> String {
    format!("/api/v1/events?limit=10000&after={}", page["next_cursor"].as_str().unwrap())
}

#[test]
fn what_a_hold_kept_and_was_erased_behind_it_is_not_stepped_over() {
    let mut server = filled(60, &[]);
    let all = seqs(&get(&server, "/api/v1/events?limit=10000", &[]).2);
    let mut records = all.clone();
    records.dedup();
    // Events of three records in the middle are held; all around them goes.
    let middle = records.len() / 2;
    let held = &records[middle..middle + 3];
    let list = held.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    keep(&server, &["hold", "place", "--id", "case", "--seq", &list]);
    let begin = json_of(&server, "/api/v1/events?limit=1");
    retain(&server);
    let (status, _, told) = get(&server, &after(&begin), &[]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((status, &told["code"]), (410, &json!("gone")), "{told}");
    // Once told of it, he reads what is left, a record at a time.
    let next = told["next_cursor"].as_str().unwrap();
    let first = json_of(&server, &format!("/api/v1/events?limit=1&after={next}"));
    assert_eq!(first["data"][0]["seq"], held[0], "{first}");
    let consumer = "/api/v1/consumers/held/next?limit=1";
    assert_eq!(seqs(&call(&server, "POST", consumer, &[]).2)[0], held[0]);
    assert_eq!(get(&server, &after(&first), &[]).0, 200);
    // The hold is released, and they go: nobody who had them before him is led past them.
    keep(&server, &["hold", "release", "--id", "case"]);
    retain(&server);
    let (status, _, gone) = get(&server, &after(&first), JSON);
    let gone: Value = serde_json::from_str(&gone).unwrap();
    assert_eq!(status, 410, "{gone}");
    assert!(gone["message"].as_str().unwrap().contains(&format!("from {} on", held[1])), "{gone}");
    assert_eq!(get(&server, &after(&first), &[("Accept", "text/event-stream")]).0, 410);
    assert_eq!(get(&server, &format!("{}&wait=30s", after(&first)), &[]).0, 410);
    assert_eq!(call(&server, "POST", consumer, &[]).0, 410);
    assert_eq!(call(&server, "POST", consumer, &[]).0, 200, "a consumer is told once");
    assert_eq!(get(&server, &after(&gone), &[]).0, 200, "and so is a reader");
    // Who had all three of them lost nothing.
    server.send_grpc(recorded_requests().into_iter().skip(60).take(5).collect());
    server.wait_until_visible();
    server.stop_and_verify();
}

/// `custody events`, with what it printed before.
fn events(server: &Server, state: &std::path::Path, out: &std::path::Path, more: &[&str]) -> Output {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(out).unwrap();
    let mut command = Command::new(CUSTODY);
    command.args(["events", "--url", &format!("http://{}", server.http), "--state-file"]).arg(state).args(more);
    command.stdout(file).stderr(Stdio::piped()).output().unwrap()
}

#[test]
fn the_command_says_how_to_go_on_and_does_when_it_is_told_to() {
    let mut server = filled(60, &[]);
    let folder = tempfile::tempdir().unwrap();
    let (state, out) = (folder.path().join("state"), folder.path().join("out"));
    assert!(events(&server, &state, &out, &["--limit", "5"]).status.success());
    let read = || seqs(&std::fs::read_to_string(&out).unwrap());
    let before = read();
    assert!(before.len() >= 5);
    retain(&server);
    server.send_grpc(recorded_requests().into_iter().skip(60).take(20).collect());
    server.wait_until_visible();
    let kept = std::fs::read_to_string(&state).unwrap();
    for more in [&[][..], &["--follow"]] {
        let told = events(&server, &state, &out, more);
        let said = String::from_utf8(told.stderr).unwrap();
        assert_eq!(told.status.code(), Some(1), "{said}");
        assert!(said.contains("retention erased records from ") && said.contains("--skip-erased"), "{said}");
        assert!(said.contains("next cursor: "), "{said}");
    }
    assert_eq!((read(), std::fs::read_to_string(&state).unwrap()), (before.clone(), kept), "it did not go on");
    let told = events(&server, &state, &out, &["--skip-erased"]);
    let said = String::from_utf8(told.stderr).unwrap();
    assert!(told.status.success() && said.contains("retention erased records from "), "{said}");
    let left = seqs(&get(&server, "/api/v1/events?limit=10000", &[]).2);
    assert_eq!(read(), [before, left].concat());
    let told = events(&server, &state, &out, &[]);
    assert!(told.status.success() && !String::from_utf8_lossy(&told.stderr).contains("erased"), "it says so once");
    server.stop_and_verify();
}

/// A crash may leave the beginning of a line: what comes next must not be one line with it.
#[test]
fn a_line_that_a_crash_cut_takes_no_other_with_it() {
    let mut server = filled(40, &[]);
    let folder = tempfile::tempdir().unwrap();
    let (state, out) = (folder.path().join("state"), folder.path().join("out"));
    assert!(events(&server, &state, &out, &["--limit", "7"]).status.success());
    let before = std::fs::read_to_string(&out).unwrap();
    // It was killed within the next page, before the state was written.
    let page = get(&server, "/api/v1/events?limit=10000", &[]).2;
    let rest = &page[before.len()..];
    let torn = rest.lines().take(3).map(str::len).sum::<usize>() + 20;
    std::fs::OpenOptions::new().append(true).open(&out).unwrap().write_all(&rest.as_bytes()[..torn]).unwrap();
    assert!(events(&server, &state, &out, &[]).status.success());
    let written = std::fs::read_to_string(&out).unwrap();
    let whole: Vec<&str> = written.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).collect();
    let mut lines: Vec<&str> = page.lines().collect();
    assert_eq!(written.lines().count(), whole.len() + 1, "the line that was cut");
    assert_eq!(whole[whole.len() - rest.lines().count()..], lines[before.lines().count()..], "the page is there again");
    lines.retain(|line| !whole.contains(line));
    assert!(lines.is_empty(), "{lines:?}");
    let output = server.custody_output(&["events", "check", "--json", out.to_str().unwrap()]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let kinds: Vec<&str> = told["findings"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(kinds, ["doubled", "unreadable"], "{told}");
    // A file that ends as it should gets no empty line.
    let length = std::fs::metadata(&out).unwrap().len();
    assert!(events(&server, &state, &out, &[]).status.success());
    assert_eq!(std::fs::metadata(&out).unwrap().len(), length);
    server.stop_and_verify();
}

#[test]
fn an_empty_last_id_says_nothing_and_a_consumer_that_is_deleted_meanwhile_is_gone() {
    let mut server = filled(20, &[]);
    let page = json_of(&server, "/api/v1/events?limit=3");
    let cursor = page["next_cursor"].as_str().unwrap().to_owned();
    let all = seqs(&get(&server, "/api/v1/events?limit=10000", &[]).2);
    let url = format!("http://{}/api/v1/events?after={cursor}", server.http);
    let stream = ureq::get(&url).header("Accept", "text/event-stream").header("Last-Event-ID", "").call().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stream.into_body().into_reader()));
    let first = lines.by_ref().map(Result::unwrap).find(|line| line.starts_with("data: ")).unwrap();
    assert_eq!(seqs(&first[6..]), [all[page["data"].as_array().unwrap().len()]]);
    drop(lines);
    // One that waits for what comes is deleted.
    assert_eq!(call(&server, "POST", "/api/v1/consumers/c/next?limit=10000", &[]).0, 200);
    assert_eq!(call(&server, "POST", "/api/v1/consumers/c/next?limit=10000", &[]).0, 200);
    std::thread::scope(|scope| {
        let own = &server;
        let waits = scope.spawn(move || {
            loop {
                let answer = call(own, "POST", "/api/v1/consumers/c/next?wait=60s", &[]);
                // Who looks whether it waits may have come first.
                if answer.0 != 200 || answer.1["x-consumer-state"] != "busy" {
                    break answer;
                }
            }
        });
        until(|| call(own, "POST", "/api/v1/consumers/c/next", &[]).1["x-consumer-state"] == "busy");
        assert_eq!(call(own, "DELETE", "/api/v1/consumers/c", &[]).0, 200);
        own.send_span_of("acme");
        let log = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [{
            "timeUnixNano": "1795165200000000000", "eventName": "security.alert",
            "attributes": [{"key": "security.alert.id", "value": {"stringValue": "a"}}]}]}]}]});
        let url = format!("http://{}/v1/logs", own.otlp_http);
        ureq::post(&url).header("Content-Type", "application/json").send(log.to_string()).unwrap();
        let (status, _, body) = waits.join().unwrap();
        assert_eq!(status, 404, "{body}");
    });
    assert_eq!(get(&server, "/api/v1/consumers/c", &[]).0, 404, "it was not made again");
    server.stop_and_verify();
}
