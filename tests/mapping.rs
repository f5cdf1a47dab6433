//! Mapping as an investigator meets it: events of every source, how much is understood, tokens
//! checked against their issuers' keys, and rows made again by a newer mapping.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use support::{CUSTODY, Server, recorded_requests, until, verify};

fn post(server: &Server, path: &str, body: &Value) {
    let url = format!("http://{}{path}", server.otlp_http);
    let answer = ureq::post(url).header("Content-Type", "application/json").send(body.to_string()).unwrap();
    assert_eq!(answer.status().as_u16(), 200);
}

fn logs(service: &str, records: Vec<Value>) -> Value {
    json!({"resourceLogs": [{"resource": {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]},
        "scopeLogs": [{"scope": {"name": "test"}, "logRecords": records}]}]})
}

fn documents(file: &str) -> Vec<Value> {
    let path = format!("{}/tests/data/sources/{file}.json", env!("CARGO_MANIFEST_DIR"));
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let bodies = file["records"].as_array().unwrap().iter().filter_map(|record| record["log"].get("body"));
    bodies.map(|body| json!({"body": {"stringValue": body.to_string()}})).collect()
}

/// What is understood of each service, and that nothing is lost in the sum.
#[test]
fn coverage_of_mapping_adds_up() {
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &["--segment-rows-max", "100"]);
    server.send_grpc(recorded_requests());
    let (openshell, policies) = (documents("openshell"), documents("policy"));
    let (n_openshell, n_policies) = (openshell.len(), policies.len());
    post(&server, "/v1/logs", &logs("sandbox", openshell));
    post(&server, "/v1/logs", &logs("pdp", policies));
    let named = |name: &str| json!({"eventName": name, "body": {"stringValue": "words"}});
    let unknown = vec![named("boot"), named("tick"), named("tick"), json!({"body": {"stringValue": "words"}})];
    post(&server, "/v1/logs", &logs("stranger", unknown));
    let of = |service: &str| {
        let rows = server.sql(&format!("SELECT * FROM coverage_of_mapping WHERE service = '{service}'"));
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows[0].clone()
    };
    let row = of("sandbox");
    assert_eq!((&row["records"], &row["unmapped"]), (&json!(n_openshell), &json!(1)), "{row}");
    assert_eq!(
        (&row["sources"], &row["signal"], &row["scope"]),
        (&json!(["openshell"]), &json!("log"), &json!("test"))
    );
    let row = of("pdp");
    assert_eq!((&row["records"], &row["mapped"]), (&json!(n_policies), &json!(n_policies - 2)), "{row}");
    let row = of("stranger");
    assert_eq!((&row["mapped"], &row["share"]), (&json!(0), &json!(0.0)), "{row}");
    assert_eq!(row["not_understood"], json!(["tick (2)", "(no name) (1)", "boot (1)"]));
    // Over rows in memory and sealed ones alike.
    let sums =
        &server.sql("SELECT sum(records) AS n, sum(mapped) AS m, sum(unmapped) AS u FROM coverage_of_mapping")[0];
    let all = &server.sql("SELECT (SELECT count(*) FROM spans) + (SELECT count(*) FROM logs) AS n")[0];
    assert_eq!(sums["n"], all["n"]);
    assert_eq!(sums["n"].as_u64(), Some(sums["m"].as_u64().unwrap() + sums["u"].as_u64().unwrap()));
    let events = &server.sql("SELECT count(DISTINCT seq) AS n FROM events")[0];
    assert_eq!(sums["m"], events["n"], "a record is mapped if it made an event");
    server.stop_and_verify();
}

fn token(claims: &Value, signature: &str) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{signature}", part(&json!({"alg": "EdDSA", "kid": "k"})), part(claims))
}

fn grant(id: &str, token: &str) -> Value {
    let attribute = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    json!({"eventName": "authz.grant.issued", "attributes": [attribute("authz.grant.id", id),
        attribute("authz.grant.subject", "agent"), attribute("authz.grant.actions", "read"),
        attribute("authz.grant.token", token)]})
}

/// A token is checked against the keys of its issuer; in no row of any table, nor in any file of
/// rows, is it one that could be used.
#[test]
fn tokens_are_checked_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.json");
    // The key of RFC 8037, appendix A.
    let jwks =
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    std::fs::write(&keys, jwks).unwrap();
    let named = format!("https://as.example.com={}", keys.display());
    let mut server = Server::start_in(folder, &["--issuer-jwks", &named]);
    let forged = token(&json!({"iss": "https://as.example.com", "jti": "g1"}), "Zm9yZ2Vk");
    let foreign = token(&json!({"iss": "https://elsewhere.example.com", "jti": "g2"}), "Zm9yZWlnbg");
    post(&server, "/v1/logs", &logs("authority", vec![grant("g1", &forged), grant("g2", &foreign)]));
    let rows = server.sql("SELECT grant_id, signature FROM grants ORDER BY grant_id");
    assert_eq!(
        rows,
        [json!({"grant_id": "g1", "signature": "invalid"}), json!({"grant_id": "g2", "signature": "unverified"})]
    );
    let shown =
        server.custody(&["sql", "SELECT e.*, l.* FROM events e JOIN logs l ON l.seq = e.seq", "--format", "json"]);
    assert!(shown.contains(".blake3:") && !shown.contains("Zm9yZ2Vk") && !shown.contains("Zm9yZWlnbg"), "{shown}");
    server.stop_and_verify();
    let wrong = Command::new(CUSTODY).args(["serve", "--issuer-jwks", "/nowhere.json"]).output().unwrap();
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("/nowhere.json"));
}

fn count(server: &Server, what: &str) -> u64 {
    server.sql(&format!("SELECT count(*) AS n FROM {what}"))[0]["n"].as_u64().unwrap()
}

fn segments(dir: &Path) -> Vec<Value> {
    let manifest = std::fs::read(dir.join("segments/manifest.json")).unwrap();
    serde_json::from_slice::<Value>(&manifest).unwrap()["segments"].as_array().unwrap().clone()
}

/// Says of all segments that an older mapping made them.
fn age(dir: &Path) {
    let path = dir.join("segments/manifest.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let segments = manifest["segments"].as_array_mut().unwrap();
    assert!(!segments.is_empty());
    segments.iter_mut().for_each(|segment| segment["mapping_version"] = json!(1));
    std::fs::write(&path, manifest.to_string()).unwrap();
}

/// Rows of an older mapping are made again, and a rebuild that somebody asks for shows how far
/// it is while records come in.
#[test]
fn rows_are_made_again_while_records_come_in() {
    let flags = ["--segment-rows-max", "100", "--segment-merge-rows-max", "0"];
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &flags);
    server.send_grpc(recorded_requests());
    let (before, dir) = (count(&server, "events"), server.data_dir());
    server.stop();
    let folder = server.kill();
    age(&folder.path().join("data"));
    let server = Server::start_in(folder, &flags);
    // How many they become is a matter of how fast they are sealed.
    let is_new = |segment: &Value| segment["mapping_version"].as_u64() >= Some(3);
    until(|| !segments(&dir).is_empty() && segments(&dir).iter().all(is_new));
    assert_eq!(count(&server, "events"), before);
    assert_eq!(count(&server, "events WHERE mapping_version < 3"), 0);
    assert!(segments(&dir).iter().all(is_new));

    let mut rebuild = Command::new(CUSTODY)
        .args(["rebuild", "--data-dir"])
        .arg(&dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut sent = 0;
    while rebuild.try_wait().unwrap().is_none() {
        post(
            &server,
            "/v1/logs",
            &logs("meanwhile", vec![json!({"eventName": format!("n.{sent}"), "body": {"stringValue": "x"}})]),
        );
        sent += 1;
    }
    let output = rebuild.wait_with_output().unwrap();
    let (told, shown) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && told.starts_with("looked at ") && !told.contains("made 0 "), "{told}");
    assert!(!shown.contains('\u{1b}'), "a bar is for terminals: {shown}");
    assert!(sent > 0, "records came in meanwhile");
    assert_eq!((count(&server, "events"), count(&server, "logs WHERE service_name = 'meanwhile'")), (before, sent));
    let mut server = server;
    server.stop();
    verify(&dir);
}
