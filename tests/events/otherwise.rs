//! `custody events check` where what is stored is otherwise for a good reason, and where it is forged: what an upgrade
//! or another mapping changes, what a SIEM adds, what was erased.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::check::{check, write};
use super::{filled, get, seqs};
use crate::support::{CUSTODY, Server};

fn lines(server: &Server, format: &str) -> Vec<Value> {
    let text = get(server, &format!("/api/v1/events?limit=10000&format={format}"), &[]).2;
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn store(path: &Path, events: &[Value]) -> String {
    write(path, &events.iter().map(Value::to_string).collect::<Vec<_>>())
}

/// Where each format has what.
struct Places {
    format: &'static str,
    version: Option<&'static str>,
    mapping: &'static str,
    other: Value,
    uid: &'static str,
    hash: &'static str,
    told: &'static str,
}

fn places() -> [Places; 3] {
    [
        Places {
            format: "ocsf",
            version: Some("/metadata/product/version"),
            mapping: "/custody/mapping",
            other: json!("otel_genai/1"),
            uid: "/metadata/uid",
            hash: "/custody/record_hash",
            told: "/message",
        },
        Places {
            format: "ecs",
            version: Some("/observer/version"),
            mapping: "/custody/mapping",
            other: json!("otel_genai/1"),
            uid: "/event/id",
            hash: "/custody/record_hash",
            told: "/message",
        },
        Places {
            format: "raw",
            version: None,
            mapping: "/mapping_version",
            other: json!(1),
            uid: "/metadata/uid",
            hash: "/record_hash",
            told: "/action",
        },
    ]
}

fn set(event: &mut Value, pointer: &str, value: Value) {
    *event.pointer_mut(pointer).unwrap() = value;
}

#[test]
fn what_an_upgrade_or_another_mapping_changes_is_no_alteration_and_is_counted() {
    let mut server = filled(60, &[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stored.ndjson");
    for at in places() {
        let true_lines = lines(&server, at.format);
        let mut stored = true_lines.clone();
        if let Some(version) = at.version {
            stored.iter_mut().for_each(|event| set(event, version, json!("0.0.1")));
            let (status, told) = check(&server, &[&store(&file, &stored)]);
            assert_eq!((status, &told["verdict"]), (0, &json!("complete")), "{told}");
        }
        set(&mut stored[3], at.mapping, at.other.clone());
        set(&mut stored[3], at.told, json!("as it was told then"));
        let (status, told) = check(&server, &[&store(&file, &stored)]);
        assert_eq!((status, &told["verdict"]), (0, &json!("partly_compared")), "{told}");
        assert_eq!((&told["mapped_otherwise"], &told["mapping_versions"]["stored"]), (&json!(1), &json!([1])));
        let people = server.custody_output(&["events", "check", file.to_str().unwrap()]);
        let said = String::from_utf8(people.stdout).unwrap();
        assert!(said.contains("mapped otherwise: 1 stored event by mapping 1"), "{said}");
        assert!(said.ends_with("nothing is wrong, but not all could be compared\n"), "{said}");

        // Of another record it is not.
        let mut forged = stored.clone();
        set(&mut forged[3], at.hash, json!("00".repeat(32)));
        let (status, told) = check(&server, &[&store(&file, &forged)]);
        assert!(status == 1 && told["findings"]["altered"][0].to_string().contains("record_hash"), "{told}");

        // The mapping makes another event of the record now: that one is missing, and it is said where to begin.
        let uid = true_lines[3].pointer(at.uid).unwrap().as_str().unwrap();
        let kind = uid.rsplit(':').find(|part| part.parse::<u64>().is_err()).unwrap();
        let other = if kind == "guardrail" { "output" } else { "guardrail" };
        set(&mut stored[3], at.uid, json!(uid.replace(kind, other)));
        let (status, told) = check(&server, &[&store(&file, &stored)]);
        assert_eq!((status, &told["no_longer_made"]), (1, &json!(1)), "{told}");
        assert_eq!(told["findings"], json!({"missing": [uid]}), "{told}");
        let said = server.custody_output(&["events", "check", file.to_str().unwrap()]);
        let said = String::from_utf8(said.stdout).unwrap();
        let (_, from) = said.split_once("custody events --from-seq ").unwrap();
        let from = from.lines().next().unwrap();
        let pulled = server.custody(&["events", "--from-seq", from, "--limit", "1"]);
        assert_eq!(seqs(&pulled)[0].to_string(), from);
    }
    server.stop_and_verify();
}

#[test]
fn what_a_siem_adds_is_named_and_what_is_forged_among_it_is_found() {
    let mut server = filled(60, &[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stored.ndjson");
    let stored = lines(&server, "ocsf");
    let plain = stored.iter().position(|event| event.get("action_id").is_none()).unwrap();
    let mut added = stored.clone();
    added.iter_mut().for_each(|event| event["_index"] = json!("main"));
    let (status, told) = check(&server, &[&store(&file, &added)]);
    assert_eq!((status, &told["verdict"]), (0, &json!("complete")), "{told}");
    assert_eq!(told["added"], json!({"_index": stored.len()}));
    let people = server.custody_output(&["events", "check", file.to_str().unwrap()]);
    let said = String::from_utf8(people.stdout).unwrap();
    assert!(said.contains(&format!("added by the SIEM, and not compared: _index ({})", stored.len())), "{said}");
    let forge: [fn(&mut Value); 4] = [
        |event| event["action_id"] = json!(2),
        |event| event["action"] = json!("Denied"),
        |event| event["custody"]["forged"] = json!("deny"),
        |event| event["custody.decision"] = json!("deny"),
    ];
    for forge in forge {
        let mut forged = added.clone();
        forge(&mut forged[plain]);
        let (status, told) = check(&server, &[&store(&file, &forged)]);
        assert!(status == 1 && told["findings"]["altered"].as_array().is_some_and(|a| a.len() == 1), "{told}");
    }
    // The last of two members is what most readers take, and the first what some do.
    let mut texts: Vec<String> = stored.iter().map(Value::to_string).collect();
    for twice in [
        texts[plain].replacen('{', "{\"activity_id\":1,", 1),
        format!("{},\"activity_id\":1}}", &texts[plain][..texts[plain].len() - 1]),
    ] {
        texts[plain] = twice;
        let (status, told) = check(&server, &[&write(&file, &texts)]);
        assert!(status == 1 && told["findings"]["altered"][0].to_string().contains("activity_id"), "{told}");
        texts[plain] = stored[plain].to_string();
    }
    server.stop_and_verify();
}

#[test]
fn events_of_erased_records_are_counted_and_no_others_pass_for_them() {
    let mut server = filled(60, &[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stored.ndjson");
    let stored = lines(&server, "raw");
    let seq = stored[4]["seq"].to_string();
    let of_record = stored.iter().filter(|event| event["seq"] == stored[4]["seq"]).count();
    let args = ["erase", "--seq", &seq, "--reason", "test", "--actor", "test", "--data-dir"];
    let erased = Command::new(CUSTODY).args(args).arg(server.data_dir()).output().unwrap();
    assert!(erased.status.success(), "{}", String::from_utf8_lossy(&erased.stderr));
    server.wait_until_visible();
    let (status, told) = check(&server, &[&store(&file, &stored)]);
    assert_eq!((status, &told["verdict"]), (0, &json!("partly_compared")), "{told}");
    assert_eq!((&told["of_erased_records"], &told["erased_records"]), (&json!(of_record), &json!(1)), "{told}");
    let people = server.custody_output(&["events", "check", file.to_str().unwrap()]);
    let said = String::from_utf8(people.stdout).unwrap();
    assert!(said.contains("of erased records: ") && said.contains("missing ones cannot be told"), "{said}");
    // That none of its events is stored cannot be told either.
    let without: Vec<Value> = stored.iter().filter(|event| event["seq"] != stored[4]["seq"]).cloned().collect();
    let (status, told) = check(&server, &[&store(&file, &without)]);
    assert_eq!((status, &told["verdict"]), (0, &json!("partly_compared")), "{told}");
    for (pointer, value, finding) in [
        ("/metadata/uid", json!(format!("{}:anything", origin(&stored[4], &seq))), "unknown"),
        ("/record_hash", json!("00".repeat(32)), "altered"),
    ] {
        let mut forged = stored.clone();
        set(&mut forged[4], pointer, value);
        let (status, told) = check(&server, &[&store(&file, &forged)]);
        assert!(status == 1 && told["findings"][finding].as_array().is_some_and(|f| f.len() == 1), "{told}");
    }
    server.stop_and_verify();
}

/// The id of an event up to its seq.
fn origin(event: &Value, seq: &str) -> String {
    let uid = event["metadata"]["uid"].as_str().unwrap();
    let (origin, _) = uid.split_once(&format!(":{seq}:")).unwrap();
    format!("{origin}:{seq}")
}

#[test]
fn a_reader_that_goes_away_takes_no_verdict_with_it_and_a_range_that_is_none_is_refused() {
    let mut server = filled(20, &[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stored.ndjson");
    let mut stored = lines(&server, "raw");
    let path = store(&file, &stored);
    let last = stored.last().unwrap()["seq"].as_u64().unwrap();
    let beyond = (last + 100_000).to_string();
    for range in [
        &["--from-seq", "5", "--to-seq", "1"][..],
        &["--to-seq", &beyond],
        &["--from-seq", &beyond],
        &["--from-seq", &beyond, "--to-seq", &beyond],
    ] {
        let (status, told) = check(&server, &[&[path.as_str()][..], range].concat());
        assert_eq!(status, 2, "{range:?}: {told}");
        assert!(told["error"].as_str().unwrap().contains("-seq"), "{told}");
    }
    let (status, told) = check(&server, &[&path, "--from-seq", "3", "--to-seq", &last.to_string()]);
    assert_eq!((status, &told["range"]), (0, &json!({"from_seq": 3, "to_seq": last})), "{told}");
    stored.remove(2);
    store(&file, &stored);
    let url = format!("http://{}", server.http);
    let unread = |args: &[&str]| {
        let mut child = Command::new(CUSTODY)
            .args(args)
            .args(["--url", &url])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        child.wait().unwrap().code()
    };
    assert_eq!(unread(&["events", "check", &path]), Some(1));
    assert_eq!(unread(&["events", "check", "--json", &path]), Some(1));
    // Who only prints ends without a reader, and its state does not go on.
    let state = folder.path().join("state");
    assert_eq!(unread(&["events", "--follow", "--state-file", state.to_str().unwrap()]), Some(0));
    assert!(!state.exists());
    server.stop_and_verify();
}
