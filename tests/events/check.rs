//! `custody events check`, and the export that it reads.

use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::{filled, get};
use crate::support::{Server, recorded_requests, until};

/// Runs the check; gives the exit status and the result.
pub(super) fn check(server: &Server, args: &[&str]) -> (i32, Value) {
    let output = server.custody_output(&[&["events", "check", "--json"][..], args].concat());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| json!({"error": told}));
    (output.status.code().unwrap(), json)
}

pub(super) fn write(path: &Path, lines: &[String]) -> String {
    std::fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn what_is_missing_doubled_altered_or_foreign_is_named() {
    let mut server = filled(80, &[]);
    let folder = tempfile::tempdir().unwrap();
    // A member that is in every event, beside how it names itself.
    let formats =
        [("raw", "metadata", "uid", "kind"), ("ocsf", "metadata", "uid", "activity_id"), ("ecs", "event", "id", "ecs")];
    for (format, of, id, member) in formats {
        let lines = get(&server, &format!("/api/v1/events?limit=10000&format={format}"), &[]).2;
        let lines: Vec<String> = lines.lines().map(str::to_owned).collect();
        let uid = |i: usize| {
            let event: Value = serde_json::from_str(&lines[i]).unwrap();
            event[of][id].as_str().unwrap().to_owned()
        };
        let file = folder.path().join("stored.ndjson");
        let stored = write(&file, &lines);
        let (status, told) = check(&server, &[&stored]);
        assert_eq!(
            (status, &told["verdict"], &told["in_ledger"]),
            (0, &json!("complete"), &json!(lines.len())),
            "{told}"
        );

        // The order of lines and of members, and members that the SIEM adds, do not matter.
        let mut shuffled: Vec<String> = lines.iter().rev().cloned().collect();
        let mut added: Value = serde_json::from_str(&shuffled[0]).unwrap();
        added["_index"] = json!("main");
        shuffled[0] = added.to_string();
        let (status, told) = check(&server, &[&write(&file, &shuffled)]);
        assert_eq!(status, 0, "{told}");

        let mut bad = lines.clone();
        let mut altered: Value = serde_json::from_str(&bad[2]).unwrap();
        altered[member] = json!(77);
        bad[2] = altered.to_string();
        let mut invented: Value = serde_json::from_str(&bad[4]).unwrap();
        invented[of][id] = json!("elsewhere:3:tool_call");
        bad.push(invented.to_string());
        bad.push(bad[5].clone());
        bad.remove(1);
        bad.push("no json".into());
        let (status, told) = check(&server, &[&write(&file, &bad)]);
        let found = &told["findings"];
        assert_eq!(status, 1, "{told}");
        assert_eq!(found["missing"], json!([uid(1)]), "{told}");
        assert!(found["altered"][0].as_str().unwrap().starts_with(&format!("{}: {member}", uid(2))), "{told}");
        assert!(found["doubled"][0].as_str().unwrap().starts_with(&uid(5)), "{told}");
        assert!(found["unknown"][0].as_str().unwrap().contains("elsewhere"), "{told}");
        assert_eq!(found["unreadable"].as_array().unwrap().len(), 1, "{told}");
        assert_eq!(found.as_object().unwrap().len(), 5, "{told}");
        // For people, too, with what is wrong by kind.
        let people = server.custody_output(&["events", "check", file.to_str().unwrap()]);
        assert!(people.status.code() == Some(1) && String::from_utf8_lossy(&people.stdout).contains("missing: 1\n"));
    }
    let (status, told) = check(&server, &["/no/such/file"]);
    assert_eq!(status, 2, "{told}");
    // A store that lost everything is not complete.
    let empty = write(&folder.path().join("empty.ndjson"), &[]);
    let (status, told) = check(&server, &[&empty]);
    assert!(status == 2 && told["error"].as_str().unwrap().contains("--checkpoint"), "{told}");
    let last = server.sql("SELECT max(seq) AS n FROM ledger")[0]["n"].to_string();
    let (status, told) = check(&server, &[&empty, "--to-seq", &last]);
    assert!(status == 1 && !told["findings"]["missing"].as_array().unwrap().is_empty(), "{told}");
    server.stop_and_verify();
}

#[test]
fn a_filtered_store_is_checked_by_its_filter_and_the_ledger_by_a_checkpoint() {
    let mut server = filled(80, &[]);
    let folder = tempfile::tempdir().unwrap();
    let lines = get(&server, "/api/v1/events?limit=10000&kind=tool_call,grant_denied", &[]).2;
    let lines: Vec<String> = lines.lines().map(str::to_owned).collect();
    let file = folder.path().join("stored.ndjson.gz");
    let mut gzip = flate2::write::GzEncoder::new(std::fs::File::create(&file).unwrap(), flate2::Compression::fast());
    lines.iter().for_each(|line| writeln!(gzip, "{line}").unwrap());
    gzip.finish().unwrap();
    let stored = file.to_str().unwrap().to_owned();
    server.wait_until_signed(server.sql("SELECT max(seq) + 1 AS n FROM ledger")[0]["n"].as_u64().unwrap());
    let note = folder.path().join("checkpoint");
    std::fs::write(&note, server.get("/checkpoint").1).unwrap();
    let note = note.to_str().unwrap();
    let key = server.data_dir().join("log.vkey");
    let key = key.to_str().unwrap().to_owned();
    let filter = ["--kind", "grant_denied,tool_call"];
    let with = ["--checkpoint", note, "--vkey", &key];
    assert_eq!(check(&server, &[&[stored.as_str()][..], &filter, &with].concat()).0, 0);
    let (status, told) = check(&server, &[&stored, "--kind", "tool_call"]);
    assert!(status == 1 && told["findings"]["outside"].as_array().is_some_and(|o| !o.is_empty()), "{told}");
    let (status, told) = check(&server, &[&stored]);
    assert!(status == 1 && told["findings"]["missing"].as_array().is_some_and(|m| !m.is_empty()), "{told}");
    // More came since: without a checkpoint the end is the last stored one, with it what it covers.
    server.send_grpc(recorded_requests().into_iter().skip(80).take(40).collect());
    server.wait_until_visible();
    assert_eq!(check(&server, &[&[stored.as_str()][..], &filter, &with].concat()).0, 0);
    // A ledger that is another than the one of the checkpoint.
    let mut other = filled(120, &[]);
    let args = [&[stored.as_str()][..], &filter, &["--checkpoint", note]].concat();
    let (status, told) = check(&other, &args);
    assert!(status == 1 && told["findings"]["ledger"].is_array(), "{told}");
    // What was erased since it was stored is no lie of the store's.
    let seq = serde_json::from_str::<Value>(&lines[0]).unwrap()["seq"].to_string();
    let dir = server.data_dir();
    let erased = std::process::Command::new(crate::support::CUSTODY)
        .args(["erase", "--seq", &seq, "--reason", "test", "--actor", "test", "--data-dir"])
        .arg(&dir)
        .output()
        .unwrap();
    assert!(erased.status.success(), "{}", String::from_utf8_lossy(&erased.stderr));
    let (status, told) = check(&server, &[&[stored.as_str()][..], &filter, &with].concat());
    assert_eq!((status, &told["verdict"]), (0, &json!("partly_compared")), "{told}");
    let left = get(&server, "/api/v1/events?limit=10000", &[]).2;
    assert!(!super::seqs(&left).iter().any(|s| s.to_string() == seq), "what readers share forgets it too");
    other.stop();
    server.stop_and_verify();
}

/// The checkpoint is held against what is stored in any format, and may be signed by a key that is no longer in use.
#[test]
fn what_is_stored_stands_in_the_checkpoint_whatever_its_format_and_key() {
    let mut server = filled(20, &[]);
    let folder = tempfile::tempdir().unwrap();
    let size = server.sql("SELECT max(seq) + 1 AS n FROM ledger")[0]["n"].as_u64().unwrap();
    server.wait_until_signed(size);
    let write_text = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let note = write_text("checkpoint", &server.get("/checkpoint").1);
    let former = std::fs::read_to_string(server.data_dir().join("log.vkey")).unwrap();
    let stored: Vec<String> = ["raw", "ocsf", "ecs"]
        .map(|format| get(&server, &format!("/api/v1/events?limit=10000&format={format}"), &[]).2)
        .into_iter()
        .zip(["raw.ndjson", "ocsf.ndjson", "ecs.ndjson"])
        .map(|(lines, name)| write_text(name, &lines))
        .collect();
    let args = ["keys", "rotate", "--reason", "test", "--actor", "test", "--data-dir"];
    let rotated =
        std::process::Command::new(crate::support::CUSTODY).args(args).arg(server.data_dir()).output().unwrap();
    assert!(rotated.status.success(), "{}", String::from_utf8_lossy(&rotated.stderr));
    let newest = std::fs::read_to_string(server.data_dir().join("log.vkey")).unwrap();
    assert_ne!(newest, former);
    let all = write_text("all.vkey", &format!("{newest}\n{former}"));
    let (only_new, none) = (write_text("new.vkey", &newest), write_text("none.vkey", "\n"));
    for stored in &stored {
        let with = |key: &str| check(&server, &[stored.as_str(), "--checkpoint", &note, "--vkey", key]);
        assert_eq!(with(&all).0, 0, "{stored}: {}", with(&all).1);
        for key in [&only_new, &none] {
            assert_eq!(with(key).0, 2, "{key}: nobody knows who signed it");
        }
        // One digit of the hash of one record, and nothing else.
        let text = std::fs::read_to_string(stored).unwrap();
        let at = text.find("\"record_hash\":\"").unwrap() + 15;
        let other = if text.as_bytes()[at] == b'0' { "1" } else { "0" };
        let bad = write_text("bad.ndjson", &format!("{}{other}{}", &text[..at], &text[at + 1..]));
        let (status, told) = check(&server, &[&bad, "--checkpoint", &note, "--vkey", &all]);
        let altered = told["findings"]["altered"].to_string();
        assert!(status == 1 && altered.contains("record_hash is not what the checkpoint commits to"), "{told}");
    }
    server.stop_and_verify();
}

#[test]
fn an_export_is_in_digests_that_chain_and_goes_on_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap().to_owned();
    let flags = ["--export-events-dir", &dir, "--export-events-every", "1", "--export-events-format", "ocsf"];
    let mut server = filled(60, &flags);
    let digests = || {
        let mut found: Vec<_> = std::fs::read_dir(folder.path().join("digests")).map_or(vec![], |names| {
            names
                .map(|name| name.unwrap().path())
                .filter(|path| path.extension().is_some_and(|e| e == "digest"))
                .collect()
        });
        found.sort();
        found.into_iter().map(|path| std::fs::read_to_string(path).unwrap()).collect::<Vec<String>>()
    };
    let covered = || digests().last().and_then(|d| field(d, "seqs").nth(1)?.parse::<u64>().ok()).unwrap_or(0);
    let size = |server: &Server| server.sql("SELECT max(seq) + 1 AS n FROM ledger")[0]["n"].as_u64().unwrap();
    until(|| covered() == size(&server));
    server.send_grpc(recorded_requests().into_iter().skip(60).take(20).collect());
    let mut server = Server::start_in(server.kill(), &flags);
    server.wait_until_visible();
    server.send_grpc(recorded_requests().into_iter().skip(80).take(20).collect());
    server.wait_until_visible();
    until(|| covered() == size(&server));

    use sha2::Digest as _;
    let sha256 = |bytes: &[u8]| const_hex::encode(sha2::Sha256::digest(bytes));
    let key = std::fs::read_to_string(server.data_dir().join("log.vkey")).unwrap();
    let key = custody_store::note::VerifierKey::parse(key.lines().next().unwrap()).unwrap();
    let (mut previous, mut next, mut lines) = ("none".to_owned(), 0, String::new());
    for digest in digests() {
        let note = custody_store::note::Note::parse(&digest).unwrap();
        assert_eq!(note.signed_by(std::slice::from_ref(&key)).len(), 1);
        assert_eq!(field(&digest, "previous").next().unwrap(), previous);
        previous = sha256(digest.as_bytes());
        let seqs: Vec<u64> = field(&digest, "seqs").map(|seq| seq.parse().unwrap()).collect();
        assert_eq!(seqs[0], next);
        next = seqs[1];
        assert!(field(&digest, "checkpoint").next().unwrap().parse::<u64>().unwrap() >= next);
        for object in digest.lines().filter_map(|line| line.strip_prefix("object ")) {
            let object: Vec<&str> = object.split(' ').collect();
            let bytes = std::fs::read(folder.path().join(object[0])).unwrap();
            assert_eq!((object[1], object[2]), (bytes.len().to_string().as_str(), sha256(&bytes).as_str()));
            let mut text = String::new();
            std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut text).unwrap();
            assert_eq!(object[5], text.lines().count().to_string());
            lines.push_str(&text);
        }
    }
    assert_eq!(lines, get(&server, "/api/v1/events?limit=10000&format=ocsf", &[]).2, "each event once, in order");
    let stored = folder.path().join("all.ndjson");
    std::fs::write(&stored, &lines).unwrap();
    assert_eq!(check(&server, &[stored.to_str().unwrap()]).0, 0);
    server.stop_and_verify();
}

/// The words behind a name at the begin of a line.
fn field<'a>(digest: &'a str, name: &str) -> std::vec::IntoIter<&'a str> {
    let line = digest.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_default().split(' ').collect::<Vec<_>>().into_iter()
}
