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
    assert_eq!((&row["records"], &row["unmapped"]), (&json!(n_openshell), &json!(2)), "{row}");
    assert_eq!(
        (&row["sources"], &row["signal"], &row["scope"]),
        (&json!(["openshell"]), &json!("log"), &json!("test"))
    );
    let row = of("pdp");
    assert_eq!((&row["records"], &row["mapped"]), (&json!(n_policies), &json!(n_policies - 3)), "{row}");
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

fn post_recorded(server: &Server, signal: &str, file: &str) {
    let path = format!("{}/tests/data/sources/{file}", env!("CARGO_MANIFEST_DIR"));
    let url = format!("http://{}/v1/{signal}", server.otlp_http);
    let request = ureq::post(url).header("Content-Type", "application/x-protobuf");
    assert_eq!(request.send(&std::fs::read(path).unwrap()[..]).unwrap().status().as_u16(), 200);
}

/// Claude Code tells of each call in a log and in two spans: whoever counts calls counts each once, and finds the
/// sub-agent by the call's id.
#[test]
fn calls_that_are_told_by_logs_and_spans_are_counted_once() {
    let mut server = Server::start();
    post_recorded(&server, "traces", "claude_code/traces.pb");
    post_recorded(&server, "logs", "claude_code/logs.pb");
    let calls = server.sql("SELECT tool_call_id, tool, status FROM tool_calls ORDER BY tool_call_id");
    let call = |id: &str, tool: &str| json!({"tool_call_id": id, "tool": tool, "status": "ok"});
    let want = [call("toolu_agent", "Agent"), call("toolu_ls", "Bash"), call("toolu_mcp", "get_weather")];
    assert_eq!(calls, want.into_iter().chain([call("toolu_skill", "Skill")]).collect::<Vec<_>>());
    let covered = server.sql("SELECT tool_calls AS n FROM authority_coverage WHERE \"by\" = 'all'");
    assert_eq!(covered, [json!({"n": 4})]);
    let by = server.sql(
        "SELECT c.tool_call_id FROM tool_calls c JOIN events r ON r.tool_call_id = c.tool_call_id AND \
         r.conversation_id = c.conversation_id AND r.kind = 'tool_result' AND r.tool IS NOT NULL AND r.agent_id IS NOT NULL",
    );
    assert_eq!(by, [json!({"tool_call_id": "toolu_ls"})], "the sub-agent's call");
    // Requests to the model likewise: tokens and cost are those of the logs, whether by the view or by the events.
    let spent = server.sql("SELECT count(*) AS n, sum(input_tokens) AS i, sum(output_tokens) AS o, round(sum(cost_usd) * 1e5) AS c FROM model_calls");
    assert_eq!(spent, [json!({"n": 4, "i": 44, "o": 28, "c": 92.0})]);
    let told = server.sql("SELECT count(*) AS n FROM events WHERE kind = 'model_call'");
    assert_eq!(told, [json!({"n": 4})]);
    let by = server.sql("SELECT DISTINCT agent_id IS NOT NULL AS sub, count(*) AS n FROM events WHERE kind = 'model_result' GROUP BY agent_id ORDER BY sub");
    assert_eq!(by, [json!({"sub": false, "n": 2}), json!({"sub": true, "n": 2})], "which agent asked is in the spans");
    // What was refused is in the spans alone, and is no call.
    let refused = server.sql(
        "SELECT e.decision, p.tool, p.tool_call_id FROM events e JOIN events p ON p.span_id = e.parent_span_id \
         WHERE e.kind = 'policy_evaluation' AND e.decision = 'deny' AND p.kind = 'tool_result'",
    );
    assert_eq!(refused, [json!({"decision": "deny", "tool": "Bash", "tool_call_id": "toolu_rm"})]);
    server.stop_and_verify();
}

/// Three instrumentations tell of the same two requests: whoever counts, counts two.
#[test]
fn requests_that_several_instrumentations_tell_of_are_counted_once() {
    let mut server = Server::start();
    post_recorded(&server, "traces", "twice/traces.pb");
    assert_eq!(server.sql("SELECT count(*) AS n FROM events WHERE kind = 'model_call'"), [json!({"n": 6})]);
    let calls = server.sql("SELECT agent_name, provider, model, input_tokens, output_tokens FROM model_calls");
    let call =
        json!({"agent_name": "teller", "provider": "openai", "model": "gpt-5", "input_tokens": 11, "output_tokens": 7});
    assert_eq!(calls, [call.clone(), call]);
    // By what the agent's own span says of both together.
    let whole = server.sql("SELECT json_get_int(attributes, 'gen_ai.aggregated_usage.input_tokens') AS n FROM events WHERE kind = 'agent_invocation'");
    assert_eq!(whole, [json!({"n": 22})]);
    // Codex tells of a request when it was taken, and of its answer with the tokens.
    let codex = format!("{}/tests/fixtures/captures/codex/0003_v1_logs.pb", env!("CARGO_MANIFEST_DIR"));
    let url = format!("http://{}/v1/logs", server.otlp_http);
    let request = ureq::post(url).header("Content-Type", "application/x-protobuf");
    assert_eq!(request.send(&std::fs::read(codex).unwrap()[..]).unwrap().status().as_u16(), 200);
    let spent = server.sql(
        "SELECT count(*) AS n, sum(input_tokens) AS i, sum(output_tokens) AS o FROM model_calls WHERE source = 'codex'",
    );
    assert_eq!(spent, [json!({"n": 4, "i": 400, "o": 80})]);
    server.stop_and_verify();
}

/// A batch of decisions is one record and several events, each with an id of its own.
#[test]
fn a_batch_of_decisions_is_several_events() {
    let mut server = Server::start();
    let file = format!("{}/tests/data/sources/policy.json", env!("CARGO_MANIFEST_DIR"));
    let file: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut records = file["records"].as_array().unwrap().iter();
    let batch = records.find(|one| one["what"].as_str().unwrap().starts_with("AuthZEN: a batch, each")).unwrap();
    post(&server, "/v1/logs", &logs("pdp", vec![json!({"body": {"stringValue": batch["log"]["body"].to_string()}})]));
    let told = server.sql("SELECT action, resource, decision, count(*) OVER (PARTITION BY seq) AS n FROM decisions WHERE source = 'authzen' ORDER BY resource");
    let decided = |action: &str, of: &str, decision: &str| json!({"action": action, "resource": format!("document:{of}"), "decision": decision, "n": 3});
    let want = [
        decided("can_read", "boxcarring.md", "allow"),
        decided("can_edit", "resource-search.md", "deny"),
        decided("can_read", "subject-search.md", "deny"),
    ];
    assert_eq!(told, want);
    let events = server.custody(&["events", "--format", "ocsf"]);
    let ids: std::collections::BTreeSet<String> = events
        .lines()
        .filter(|line| line.contains("authzen"))
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 3, "{events}");
    let covered = server.sql("SELECT records, mapped FROM coverage_of_mapping WHERE service = 'pdp'");
    assert_eq!(covered, [json!({"records": 1, "mapped": 1})]);
    server.stop_and_verify();
}

/// Lines of OpenShell's own log, as a Collector sends them.
#[test]
fn lines_of_a_sandbox_are_events() {
    let mut server = Server::start();
    let lines = [
        "2026-04-01T04:04:13.058Z INFO openshell_sandbox: Starting sandbox",
        "2026-04-01T04:04:32.118Z OCSF NET:OPEN [INFO] ALLOWED /usr/bin/curl(58) -> api.github.com:443 [policy:github_api engine:opa]",
        "2026-04-01T04:04:32.690Z OCSF NET:OPEN [MED] DENIED /usr/bin/curl(64) -> httpbin.org:443 [policy:- engine:opa] [reason:no matching policy]",
    ];
    let records = lines.map(|line| json!({"body": {"stringValue": line}}));
    post(&server, "/v1/logs", &logs("sandbox", records.to_vec()));
    let told = server.sql(
        "SELECT decision, policy_id, resource, reasons FROM decisions WHERE source = 'openshell' ORDER BY event_time",
    );
    let want = [
        json!({"decision": "allow", "policy_id": "github_api", "resource": "api.github.com:443", "reasons": []}),
        json!({"decision": "deny", "policy_id": null, "resource": "httpbin.org:443", "reasons": ["no matching policy"]}),
    ];
    assert_eq!(told, want);
    let covered = server.sql("SELECT records, unmapped FROM coverage_of_mapping WHERE service = 'sandbox'");
    assert_eq!(covered, [json!({"records": 3, "unmapped": 1})]);
    server.stop_and_verify();
}

/// Tokens of other formats than JWS make a grant, unverified, and are in no table as they came.
#[test]
fn a_warrant_is_a_grant_that_nobody_can_take_from_a_table() {
    let path = format!("{}/tests/data/sources/tokens/made.json", env!("CARGO_MANIFEST_DIR"));
    let made: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut server = Server::start();
    let attribute = |key: &str, value: &Value| json!({"key": key, "value": {"stringValue": value}});
    let (parent, child) = (&made["tenuo"][0], &made["tenuo"][1]);
    let issued =
        json!({"eventName": "authz.grant.issued", "attributes": [attribute("authz.grant.token", &parent["token"])]});
    let derived = json!({"eventName": "authz.grant.derived", "attributes": [
        attribute("authz.grant.token", &child["token"]), attribute("authz.grant.parent_id", &parent["id"])]});
    post(&server, "/v1/logs", &logs("planner", vec![issued, derived]));
    let grants = server.sql("SELECT grant_id, depth, actions, max_depth, signature FROM grants ORDER BY depth");
    let grant = |of: &Value, depth: u32| json!({"grant_id": of["id"], "depth": depth, "actions": ["send_money"], "max_depth": 64, "signature": "unverified"});
    assert_eq!(grants, [grant(parent, 0), grant(child, 1)]);
    let chain = server.sql(&format!(
        "SELECT narrowed, widened_by FROM delegation_chain('{}') WHERE depth = 1",
        child["id"].as_str().unwrap()
    ));
    assert_eq!(chain, [json!({"narrowed": true, "widened_by": []})]);
    for table in ["events", "logs"] {
        let shown = server.custody(&["sql", &format!("SELECT * FROM {table}"), "--format", "json"]);
        assert!(shown.contains("blake3:") && !shown.contains(parent["token"].as_str().unwrap()), "{table}: {shown}");
    }
    server.stop_and_verify();
}

/// What OTLP does not name is shown by its number.
#[test]
fn numbers_without_a_name_are_shown() {
    let mut server = Server::start();
    let span = json!({"traceId": "01".repeat(16), "spanId": "01".repeat(8), "name": "execute_tool x", "kind": 9,
        "startTimeUnixNano": "1000", "status": {"code": 7},
        "attributes": [{"key": "gen_ai.operation.name", "value": {"stringValue": "execute_tool"}}]});
    post(&server, "/v1/traces", &json!({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}));
    post(&server, "/v1/logs", &logs("s", vec![json!({"severityNumber": 99, "body": {"stringValue": "words"}})]));
    let spans = server.sql("SELECT kind, status_code FROM spans");
    assert_eq!(spans, [json!({"kind": "9", "status_code": "7"})]);
    assert_eq!(server.sql("SELECT status FROM tool_calls"), [json!({"status": "7"})]);
    assert_eq!(
        server.sql("SELECT severity_number FROM logs WHERE service_name = 's'"),
        [json!({"severity_number": 99})]
    );
    // It goes out as OCSF all the same: a status of another kind.
    let events = server.custody(&["events", "--format", "ocsf"]);
    let event: Value = serde_json::from_str(events.lines().next().unwrap()).unwrap();
    assert_eq!((&event["class_uid"], &event["status_id"]), (&json!(6003), &json!(99)), "{event}");
    server.stop_and_verify();
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
    let is_new = |segment: &Value| segment["mapping_version"].as_u64() >= Some(6);
    until(|| !segments(&dir).is_empty() && segments(&dir).iter().all(is_new));
    assert_eq!(count(&server, "events"), before);
    assert_eq!(count(&server, "events WHERE mapping_version < 6"), 0);
    assert!(segments(&dir).iter().all(is_new));

    let mut rebuild = Command::new(CUSTODY)
        .args(["rebuild", "--data-dir"])
        .arg(&dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut sent = 0;
    // At least once, however late this comes to look.
    while sent == 0 || rebuild.try_wait().unwrap().is_none() {
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
    assert_eq!((count(&server, "events"), count(&server, "logs WHERE service_name = 'meanwhile'")), (before, sent));
    let mut server = server;
    server.stop();
    verify(&dir);
}
