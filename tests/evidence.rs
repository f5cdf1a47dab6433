//! The built binary, as auditors, privacy officers and operators use it: evidence,
//! erasure, holds, keys, backups, receipts.

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use serde_json::{Value, json};
use support::{Request, Server, verify};

/// Spans 1 to `count` of one trace, each with a name of its own.
fn request(first: u64, count: u64) -> ExportTraceServiceRequest {
    let span = |n: u64| Span {
        trace_id: vec![7; 16],
        span_id: n.to_be_bytes().to_vec(),
        name: format!("secret-of-{n}-{}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        ..Default::default()
    };
    let spans = (first..first + count).map(span).collect();
    let scope_spans = vec![ScopeSpans { spans, ..Default::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..Default::default() }] }
}

fn output(dir: &Path, args: &[&str]) -> Output {
    Command::new(support::CUSTODY).args(args).arg("--data-dir").arg(dir).output().unwrap()
}

fn custody(dir: &Path, args: &[&str]) -> String {
    let output = output(dir, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a command says that does not work, and its exit status.
fn refused(dir: &Path, args: &[&str]) -> (i32, String) {
    let output = output(dir, args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.lines().count() == 1, "{args:?}: {text}");
    (output.status.code().unwrap(), text)
}

fn check(file: &Path, vkey: &Path) -> (i32, String) {
    let output = Command::new(support::CUSTODY).arg("check").arg(file).arg("--vkey").arg(vkey).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text)
}

#[test]
fn an_incident_is_exported_and_checked_on_a_machine_with_nothing_else() {
    let mut server = Server::start();
    server.send_grpc(support::recorded_requests());
    server.wait_until_visible();
    let (dir, elsewhere) = (server.data_dir(), tempfile::tempdir().unwrap());
    let bundle = elsewhere.path().join("incident.custody");
    let trace = server.sql("SELECT trace_id FROM violations ORDER BY seq LIMIT 1")[0]["trace_id"].clone();
    let (trace, file) = (trace.as_str().unwrap(), bundle.to_str().unwrap());
    custody(&dir, &["export", "--trace", trace, "-o", file, "--reason", "incident 12"]);
    let vkey = elsewhere.path().join("log.vkey");
    std::fs::copy(dir.join("log.vkey"), &vkey).unwrap();
    // The export is itself in the log, with who asked for it.
    let said = server.sql("SELECT attributes FROM logs WHERE event_name = 'custody.log.export'");
    assert!(said.len() == 1 && said[0]["attributes"].as_str().unwrap().contains("uid:"), "{said:?}");
    let expected = server.sql(&format!(
        "SELECT count(*) AS n FROM (SELECT seq FROM spans WHERE trace_id = '{trace}' UNION ALL SELECT seq FROM logs \
         WHERE trace_id = '{trace}')"
    ));
    let grant = server.sql("SELECT grant_id FROM violations WHERE grant_id IS NOT NULL ORDER BY seq LIMIT 1");
    let by_grant = elsewhere.path().join("grant.custody");
    let grant = grant[0]["grant_id"].as_str().unwrap();
    custody(&dir, &["export", "--grant", grant, "-o", by_grant.to_str().unwrap()]);
    server.stop_and_verify();
    drop(server);
    let (status, text) = check(&bundle, &vkey);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains(&format!("holds: {} records", expected[0]["n"])), "{text}");
    assert_eq!(check(&by_grant, &vkey).0, 0);
    // Any other log's key does not do; nor does a changed byte.
    let other = Server::start();
    assert_eq!(check(&bundle, &other.data_dir().join("log.vkey")).0, 1);
    let mut bytes = std::fs::read(&bundle).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] = if bytes[middle] == b'A' { b'B' } else { b'A' };
    std::fs::write(&bundle, bytes).unwrap();
    let (status, text) = check(&bundle, &vkey);
    assert!(status == 1 && text.contains("line "), "{status} {text}");
}

#[test]
fn one_record_is_proved_with_a_file_and_a_key() {
    let mut server = Server::start();
    server.send_grpc(vec![Request::Traces(request(1, 9))]);
    let dir = server.data_dir();
    server.wait_until_signed(10);
    let proof = dir.join("record.tlog-proof");
    std::fs::write(&proof, custody(&dir, &["prove", "--seq", "4"])).unwrap();
    let old = dir.join("checkpoint.old");
    std::fs::copy(dir.join("checkpoint"), &old).unwrap();
    let (status, text) = check(&proof, &dir.join("log.vkey"));
    assert!(status == 0 && text.contains("record 4 is in") && text.contains("peer:127.0.0.1"), "{text}");
    // In SQL too: the same proof, and the bytes themselves.
    let row = &server.sql("SELECT proof(4) AS p, payload(4) AS b, record_hash FROM ledger WHERE seq = 4")[0];
    let text = row["p"].as_str().unwrap();
    assert!(text.starts_with("c2sp.org/tlog-proof@v1\n"));
    std::fs::write(&proof, text).unwrap();
    assert_eq!(check(&proof, &dir.join("log.vkey")).0, 0);
    assert!(row["b"].as_str().is_some_and(|hex| hex.contains(&hex_of("secret-of-4"))), "{row}");
    // Consistency with a checkpoint that somebody kept, and verification against it.
    server.send_grpc(vec![Request::Traces(request(10, 5))]);
    server.wait_until_signed(15);
    let consistency = dir.join("consistency.json");
    std::fs::write(&consistency, custody(&dir, &["prove", "--consistency", old.to_str().unwrap()])).unwrap();
    let (status, text) = check(&consistency, &dir.join("log.vkey"));
    assert!(status == 0 && text.contains("size 10 is the beginning"), "{text}");
    server.stop();
    custody(&dir, &["verify", "--trusted", old.to_str().unwrap()]);
    let (status, text) = refused(&dir, &["prove", "--seq", "99"]);
    assert!(status == 1 && text.contains("no record 99"), "{text}");
}

/// A SCITT implementation that we did not write takes our COSE receipts.
#[test]
fn cose_receipts_are_read_by_scitt_cose() {
    let mut server = Server::start();
    server.send_grpc(vec![Request::Traces(request(1, 9))]);
    let dir = server.data_dir();
    let receipt = Command::new(support::CUSTODY)
        .args(["prove", "--seq", "6", "--cose", "--data-dir"])
        .arg(&dir)
        .output()
        .unwrap();
    assert!(receipt.status.success(), "{receipt:?}");
    let file = server.path().join("receipt.cbor");
    std::fs::write(&file, receipt.stdout).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/scitt.py");
    let vkey = std::fs::read_to_string(dir.join("log.vkey")).unwrap();
    let check = |seq: &str| {
        let entry = custody(&dir, &["prove", "--seq", seq, "--entry"]);
        let mut python = Command::new(support::python());
        let output = python.arg(script).arg(&file).arg(vkey.lines().next().unwrap()).arg(entry.trim()).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    assert_eq!(check("6"), "ok 6 of 10\n");
    assert!(check("5").starts_with("refused"), "the receipt is not another record's");
    server.stop_and_verify();
}

fn hex_of(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// The whole directory is set back to an older copy, keys and checkpoint and all: only
/// a checkpoint that somebody else kept shows it.
#[test]
fn a_rollback_shows_against_a_checkpoint_that_was_kept() {
    let mut server = Server::start();
    server.send_grpc(vec![Request::Traces(request(1, 3))]);
    server.stop();
    let dir = server.data_dir();
    let copy = server.path().join("old");
    assert!(Command::new("cp").arg("-a").arg(&dir).arg(&copy).status().unwrap().success());
    let mut server = server.restart();
    server.send_grpc(vec![Request::Traces(request(4, 3))]);
    server.stop();
    let kept = server.path().join("kept");
    std::fs::copy(dir.join("checkpoint"), &kept).unwrap();
    verify(&copy);
    let output = output(&copy, &["verify", "--json", "--trusted", kept.to_str().unwrap()]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &json["seq"]), (Some(1), &Value::from(4)), "{json}");
    assert!(json["reason"].as_str().unwrap().contains("rolled back"), "{json}");
}

#[test]
fn erased_content_is_gone_from_files_and_answers_and_the_log_says_why() {
    let mut server = Server::start();
    server.send_grpc(vec![Request::Traces(request(1, 6)), Request::Traces(request(7, 3))]);
    let dir = server.data_dir();
    let names = |server: &Server| server.sql("SELECT seq FROM spans WHERE name LIKE 'secret-of-%' ORDER BY seq").len();
    assert_eq!(names(&server), 9);
    let why = ["--reason", "article 17, case 5", "--actor", "privacy@example.com"];
    let with = |args: &[&'static str]| [args, &why[..]].concat();
    custody(&dir, &with(&["hold", "place", "--id", "suit", "--seq", "2"]));
    let (status, text) = refused(&dir, &with(&["erase", "--seq", "1-3"]));
    assert!(status == 1 && text.contains("legal hold \"suit\""), "{text}");
    custody(&dir, &with(&["hold", "release", "--id", "suit"]));
    let told = custody(&dir, &with(&["erase", "--sql", "SELECT seq FROM spans WHERE name LIKE 'secret-of-3-%'"]));
    assert!(told.starts_with("erased 1 record ("), "{told}");
    custody(&dir, &with(&["erase", "--seq", "7-9"]));
    assert_eq!(names(&server), 5, "the rows are gone at once");
    assert_eq!(server.sql("SELECT seq FROM ledger WHERE seq = 3").len(), 1, "the entry stays");
    assert!(server.sql("SELECT payload(3) AS b FROM ledger WHERE seq = 3")[0]["b"].is_null());
    let said = server.sql("SELECT attributes FROM logs WHERE event_name = 'custody.log.erasure' ORDER BY seq");
    assert!(said[1]["attributes"].as_str().unwrap().contains("7-9"), "{said:?}");
    assert!(said[0]["attributes"].as_str().unwrap().contains("article 17, case 5"), "{said:?}");
    assert_eq!(server.stop_and_verify()["erased"], 4);
    // After a restart it is as before; a directory without a server is changed directly.
    let mut server = server.restart();
    assert_eq!(names(&server), 5);
    server.stop();
    let told = custody(&dir, &with(&["retain", "--older-than", "0s"]));
    assert!(told.starts_with("erased 5 records"), "{told}");
    assert_eq!(verify(&dir)["erased"], 9);
    let (status, text) = refused(&dir, &with(&["erase", "--seq", "0"]));
    assert!(status == 1 && text.contains("the ledger's own"), "{text}");
}

#[test]
fn only_the_owner_of_the_directory_can_reach_the_control_socket() {
    let server = Server::start();
    let mode = std::fs::metadata(server.data_dir().join("control.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn keys_held_by_another_process_sign_and_are_changed_while_the_server_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let new_keys = |file: &str| {
        let keys =
            Command::new(support::CUSTODY).args(["keys", "new", "--origin", "example.com/far"]).output().unwrap();
        std::fs::write(path(file), keys.stdout).unwrap();
    };
    new_keys("far.keys");
    let socket = path("signer.sock");
    let mut signer = Command::new(support::CUSTODY)
        .args(["signer", "--keys", path("far.keys").to_str().unwrap(), "--socket", socket.to_str().unwrap()])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    support::until(|| std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let flags = ["--origin", "example.com/far", "--signer", socket.to_str().unwrap()];
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &flags);
    let dir = server.data_dir();
    assert!(!dir.join("keys/log.key").exists(), "the server never has the keys");
    server.send_grpc(vec![Request::Traces(request(1, 3))]);
    server.wait_until_signed(4);
    // Without its signer the server goes on taking records, and signs them when it is back.
    signer.kill().unwrap();
    signer.wait().unwrap();
    server.send_grpc(vec![Request::Traces(request(4, 3))]);
    support::until(|| server.get("/metrics").1.contains("\ncustody_signer_up 0\n"));
    let (status, state) = server.get("/readyz");
    let state: Value = serde_json::from_str(&state).unwrap();
    assert_eq!((status, &state["parts"]["signer"]), (200, &json!({"state": "failing", "unsigned_records": 3})));
    let mut signer = Command::new(support::CUSTODY)
        .args(["signer", "--keys", path("far.keys").to_str().unwrap(), "--socket", socket.to_str().unwrap()])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    server.wait_until_signed(7);
    support::until(|| server.get("/metrics").1.contains("\ncustody_signer_up 1\n"));
    server.stop_and_verify();
    signer.kill().unwrap();
    signer.wait().unwrap();
}

#[test]
fn keys_are_rotated_while_records_come_in() {
    let mut server = Server::start();
    let dir = server.data_dir();
    server.send_grpc(vec![Request::Traces(request(1, 3))]);
    let before = std::fs::read_to_string(dir.join("log.vkey")).unwrap();
    let told = custody(&dir, &["keys", "rotate", "--reason", "yearly", "--actor", "ops@example.com"]);
    let after = std::fs::read_to_string(dir.join("log.vkey")).unwrap();
    assert!(before != after && told.contains(after.lines().next().unwrap()), "{told}");
    server.send_grpc(vec![Request::Traces(request(4, 3))]);
    server.stop_and_verify();
    std::fs::write(server.path().join("first.vkey"), &before).unwrap();
    custody(&dir, &["verify", "--vkey", server.path().join("first.vkey").to_str().unwrap()]);
    std::fs::write(server.path().join("last.vkey"), &after).unwrap();
    custody(&dir, &["verify", "--vkey", server.path().join("last.vkey").to_str().unwrap()]);
    let other = Server::start();
    let output = output(&dir, &["verify", "--vkey", other.data_dir().join("log.vkey").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "keys that no record names are not the log's");
    let mut server = server.restart();
    server.send_grpc(vec![Request::Traces(request(7, 3))]);
    assert_eq!(server.stop_and_verify()["records"], 1 + 9 + 1);
}

#[test]
fn a_backup_is_made_while_the_server_runs_and_restores_to_the_same_log() {
    let mut server = Server::start();
    server.send_grpc(vec![Request::Traces(request(1, 5))]);
    server.wait_until_signed(6);
    let (dir, backups) = (server.data_dir(), server.path().join("backups"));
    let backups = backups.to_str().unwrap();
    custody(&dir, &["backup", "--to", backups, "--with-keys"]);
    server.send_grpc(vec![Request::Traces(request(6, 5))]);
    server.wait_until_signed(11);
    custody(&dir, &["backup", "--to", backups, "--with-keys"]);
    let restored = server.path().join("restored");
    custody(&restored, &["restore", "--from", backups]);
    assert_eq!(verify(&restored)["records"], 11);
    let (status, text) = refused(&restored, &["restore", "--from", backups]);
    assert!(status == 1 && text.contains("is not empty"), "{text}");
    server.stop();
}

/// A receipt, over gRPC and over HTTP, is signed, and shows what is missing.
#[test]
fn receipts_show_that_nothing_of_a_submitter_is_missing() {
    use base64::Engine as _;
    let decode = |text: &str| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    let mut server = Server::start();
    let url = format!("http://{}", server.grpc);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut receipts = runtime.block_on(async {
        let mut client = TraceServiceClient::connect(url).await.unwrap();
        let mut asked = tonic::Request::new(request(1, 4));
        asked.metadata_mut().insert("custody-receipt", "1".parse().unwrap());
        let answer = client.export(asked).await.unwrap();
        let receipt = decode(answer.metadata().get("custody-receipt").unwrap().to_str().unwrap());
        let plain = client.export(request(5, 1)).await.unwrap();
        assert!(plain.metadata().get("custody-receipt").is_none(), "nobody asked for one");
        receipt
    });
    assert!(receipts.contains("first-seq 1\ncounter 0\nappended 4\nduplicates 0\n"), "{receipts}");
    let post = |body: Vec<u8>| {
        let answer = ureq::post(format!("http://{}/v1/traces", server.otlp_http))
            .header("Content-Type", "application/x-protobuf")
            .header("custody-receipt", "1")
            .send(&body[..])
            .unwrap();
        decode(answer.headers()["custody-receipt"].to_str().unwrap())
    };
    let body = request(6, 2).encode_to_vec();
    let first = post(body.clone());
    assert!(first.contains("first-seq 6\ncounter 5\nappended 2\n"), "{first}");
    receipts += &first;
    receipts += &post(body);
    server.stop();
    let (dir, file) = (server.data_dir(), server.path().join("receipts"));
    std::fs::write(&file, &receipts).unwrap();
    let told = custody(&dir, &["verify", "--submitter", file.to_str().unwrap()]);
    assert!(told.contains("receipts: 3 verified; the 6 records"), "{told}");
    // A log that has other records there does not bear them out.
    let mut other = Server::start();
    other.send_grpc(vec![Request::Traces(request(100, 9))]);
    other.stop();
    let output = output(&other.data_dir(), &["verify", "--submitter", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn the_durability_level_is_asked_for_by_name_and_told_in_the_log() {
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &["--durability", "os"]);
    server.send_grpc(vec![Request::Traces(request(1, 3))]);
    let said = server.sql("SELECT attributes FROM logs WHERE event_name = 'custody.log.genesis'");
    assert!(said[0]["attributes"].as_str().unwrap().contains("\"custody.log.durability\":\"os\""), "{said:?}");
    let folder = server.kill();
    verify(&folder.path().join("data"));
    let wrong = Command::new(support::CUSTODY).args(["serve", "--durability", "maybe"]).output().unwrap();
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("fsync and os"), "{wrong:?}");
}

#[test]
fn repair_makes_indexes_nodes_and_a_lost_checkpoint_again_and_nothing_without_yes() {
    use custody_store::format::cf;
    let mut server = Server::start();
    server.send_grpc(vec![Request::Traces(request(1, 300)), Request::Traces(request(299, 5))]);
    server.stop();
    let dir = server.data_dir();
    assert!(custody(&dir, &["repair"]).starts_with("nothing to repair"));
    let db = || rocksdb::DB::open_cf(&rocksdb::Options::default(), dir.join("log"), cf::ALL).unwrap();
    {
        let db = db();
        for family in [cf::IDS, cf::REQUESTS, cf::SUBMITTERS, cf::SYSTEM, cf::NODES] {
            let family = db.cf_handle(family).unwrap();
            let keys: Vec<_> = db.iterator_cf(family, rocksdb::IteratorMode::Start).map(|row| row.unwrap().0).collect();
            keys.iter().for_each(|key| db.delete_cf(family, key).unwrap());
        }
    }
    std::fs::remove_file(dir.join("checkpoint")).unwrap();
    let told = custody(&dir, &["repair"]);
    assert!(told.starts_with("would make again: 1 tree nodes") && told.contains("would sign anew"), "{told}");
    assert!(!dir.join("checkpoint").exists());
    assert!(custody(&dir, &["repair", "--yes"]).starts_with("made again: 1 tree nodes"));
    assert!(custody(&dir, &["repair"]).starts_with("nothing to repair"));
    verify(&dir);
    let mut server = server.restart();
    server.send_grpc(vec![Request::Traces(request(1, 300)), Request::Traces(request(600, 2))]);
    assert_eq!(server.stop_and_verify()["records"], 1 + 303 + 2, "retries are recognised again");
    // A count of a submitter's records that is wrong would spoil every record to come.
    {
        let db = db();
        let submitters = db.cf_handle(cf::SUBMITTERS).unwrap();
        let row = db.iterator_cf(submitters, rocksdb::IteratorMode::Start).next().unwrap().unwrap().0;
        db.put_cf(submitters, row, 7777u64.to_be_bytes()).unwrap();
    }
    assert!(custody(&dir, &["repair", "--yes"]).starts_with("made again: 0 tree nodes, 1 index rows"));
    // Content that is not what was committed to is not signed anew.
    let checkpoint = std::fs::read(dir.join("checkpoint")).unwrap();
    std::fs::remove_file(dir.join("checkpoint")).unwrap();
    let payload = {
        let db = db();
        let payloads = db.cf_handle(cf::PAYLOADS).unwrap();
        let payload = db.get_cf(payloads, 1u64.to_be_bytes()).unwrap().unwrap();
        let mut changed = payload.clone();
        changed[60] ^= 1;
        db.put_cf(payloads, 1u64.to_be_bytes(), changed).unwrap();
        payload
    };
    let (status, text) = refused(&dir, &["repair", "--yes"]);
    assert!(status == 2 && text.contains("not what its entries commit to"), "{text}");
    assert!(!dir.join("checkpoint").exists());
    {
        let db = db();
        db.put_cf(db.cf_handle(cf::PAYLOADS).unwrap(), 1u64.to_be_bytes(), payload).unwrap();
    }
    std::fs::write(dir.join("checkpoint"), checkpoint).unwrap();
    // What cannot be made again is not.
    let db = db();
    db.delete_cf(db.cf_handle(cf::ENTRIES).unwrap(), 1u64.to_be_bytes()).unwrap();
    drop(db);
    let (status, text) = refused(&dir, &["repair", "--yes"]);
    assert!(status == 2 && text.contains("restore the directory from a backup"), "{text}");
}

#[test]
fn a_live_log_is_verified_over_http_and_a_rollback_of_it_is_seen() {
    let mut server = Server::start();
    server.send_grpc(vec![Request::Traces(request(1, 700))]);
    server.wait_until_signed(701);
    let url = format!("http://{}", server.http);
    let (vkey, kept) = (server.path().join("log.vkey"), server.path().join("kept"));
    std::fs::copy(server.data_dir().join("log.vkey"), &vkey).unwrap();
    let over_http = |url: &str, vkey: &Path, more: &[&str]| {
        let mut command = Command::new(support::CUSTODY);
        let output = command.args(["verify", "--url", url, "--vkey"]).arg(vkey).args(more).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (status, text) = over_http(&url, &vkey, &[]);
    assert!(status == 0 && text.starts_with("sound: 701 entries"), "{text}");
    let copy = server.path().join("older");
    custody(&server.data_dir(), &["backup", "--to", copy.to_str().unwrap(), "--with-keys"]);
    server.send_grpc(vec![Request::Traces(request(701, 10))]);
    server.wait_until_signed(711);
    std::fs::copy(server.data_dir().join("checkpoint"), &kept).unwrap();
    let trusted = ["--trusted", kept.to_str().unwrap()];
    assert_eq!(over_http(&url, &vkey, &trusted).0, 0);
    let other = Server::start();
    let other_vkey = other.data_dir().join("log.vkey");
    assert_eq!(over_http(&url, &other_vkey, &[]).0, 1, "another log's keys");
    server.stop();
    // The log as it was is put back and gone on with: another history of the same log.
    let folder = tempfile::tempdir().unwrap();
    custody(&folder.path().join("data"), &["restore", "--from", copy.to_str().unwrap()]);
    let mut rolled_back = Server::start_in(folder, &["--after-restore"]);
    rolled_back.send_grpc(vec![Request::Traces(request(2000, 20))]);
    rolled_back.wait_until_signed(722);
    let url = format!("http://{}", rolled_back.http);
    assert_eq!(over_http(&url, &vkey, &[]).0, 0, "by itself it is sound");
    let (status, text) = over_http(&url, &vkey, &trusted);
    assert!(status == 1 && text.contains("written anew"), "{text}");
}
