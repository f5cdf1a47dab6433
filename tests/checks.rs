//! The checks follow what comes in: each hit becomes one alert record of the log by
//! `system:checks`, once, also over a restart; late evidence takes back; own rules and tuning count.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{CUSTODY, Server, recorded_requests};

/// A second is grace enough for tests; a rule of our own; and one check is off.
fn rules(dir: &Path) -> String {
    let rules = dir.join("rules");
    std::fs::create_dir_all(&rules).unwrap();
    let own = "-- A tool that nobody may call was called.\n-- severity: low\n-- tags: OWN 1\n-- on: tool_call\n\
               -- setting tools: [\"get_balance\"] | tools that nobody may call\n\
               SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,\n\
               concat(c.tool, ' was called') AS detail, make_array(c.seq) AS evidence\n\
               FROM tool_calls c WHERE array_has(setting_list('tools', c.workspace), c.tool)\n";
    std::fs::write(rules.join("forbidden_tool.sql"), own).unwrap();
    let call = |tool: &str| json!({"span": "1", "at": 0, "attributes": {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool}});
    let examples = json!([
        {"name": "it was", "records": [call("get_balance")], "hits": [0]},
        {"name": "another", "records": [call("read_file")], "hits": []},
    ]);
    std::fs::write(rules.join("forbidden_tool.examples.json"), examples.to_string()).unwrap();
    std::fs::write(rules.join("rules.toml"), "grace_seconds = 1\n[checks.outside_resources]\nenabled = false\n")
        .unwrap();
    rules.to_str().unwrap().to_owned()
}

fn number(server: &Server, sql: &str) -> u64 {
    server.sql(sql)[0]["n"].as_u64().unwrap()
}

/// Waits for something that must come; a debug build judges slowly.
fn until(mut is_so: impl FnMut() -> bool) {
    let by = Instant::now() + Duration::from_secs(300);
    while !is_so() {
        assert!(Instant::now() < by, "it did not come within five minutes");
        std::thread::sleep(Duration::from_millis(50));
    }
}

const ALERTS: &str = "SELECT count(*) AS n FROM events WHERE kind = 'alert' AND submitter = 'system:checks'";

fn taken_back(server: &Server) -> u64 {
    number(server, "SELECT count(*) AS n FROM events WHERE kind = 'alert_superseded'")
}

#[test]
fn each_hit_is_one_alert_of_the_log_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let rules = rules(folder.path());
    let flags = ["--checks", "on", "--rules", &rules];
    let mut server = Server::start_in(folder, &flags);
    server.send_grpc(recorded_requests());
    // What the ground truth of the recorded runs says, but for the check that is off.
    let expected: Value = serde_json::from_str(include_str!("fixtures/agentdojo/expected.json")).unwrap();
    let hits = expected["runs"].as_array().unwrap().iter().flat_map(|run| run["expected"].as_array().unwrap());
    let expected = hits.filter(|hit| hit["check"] != "outside_resources").count() as u64;
    let told = "SELECT count(*) AS n FROM violations WHERE alert_id IS NOT NULL AND check_id IN ('unknown_grant', \
                'expired_grant', 'revoked_grant', 'outside_actions', 'widened_delegation', 'denied_then_executed', 'broken_lineage')";
    until(|| number(&server, told) >= expected);
    assert_eq!(number(&server, told), expected);
    assert_eq!(
        number(&server, "SELECT count(*) AS n FROM violations WHERE check_id = 'outside_resources'"),
        0,
        "it is off"
    );
    assert!(number(&server, "SELECT count(*) AS n FROM violations WHERE check_id = 'forbidden_tool'") > 0);
    until(|| number(&server, "SELECT count(*) AS n FROM violations WHERE alert_id IS NULL") == 0);
    // Where records come slowly, some evidence comes after its grace time: that alert is taken back, and is no hit.
    let hits = "SELECT count(*) AS n FROM violations";
    until(|| number(&server, ALERTS) == number(&server, hits) + taken_back(&server));
    let (alerts, before) = (number(&server, ALERTS), taken_back(&server));
    assert_eq!(alerts - before, number(&server, hits), "no alert of an alert, and none twice");
    assert_eq!(alerts - before, number(&server, "SELECT count(DISTINCT alert_id) AS n FROM violations"));
    let cites = "SELECT count(*) AS n FROM alerts WHERE rule = 'denied_then_executed' AND cardinality(evidence) < 2";
    assert_eq!(number(&server, cites), 0);
    server.stop_and_verify();
    let mut server = server.restart_with(&flags);
    until(|| server.get("/metrics").1.contains("\ncustody_checks_lag_records 0\n"));
    // A grant without parent: the checks run again, and of the past nothing is told again.
    let request = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [{"eventName": "authz.grant.derived", "timeUnixNano": "1795165200000000000",
        "attributes": [attribute("authz.grant.id", "late"), attribute("authz.grant.parent_id", "gone"), attribute("authz.grant.subject", "a")]}]}]}]});
    post(&server, &request);
    until(|| {
        number(&server, "SELECT count(*) AS n FROM violations WHERE grant_id = 'late' AND alert_id IS NOT NULL") == 1
    });
    assert_eq!(number(&server, ALERTS), alerts + 1);
    // And the parent comes, after the grace time: the alert is taken back by a record, and stays what it was.
    let request = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [{"eventName": "authz.grant.issued", "timeUnixNano": "1795165200000000000",
        "attributes": [attribute("authz.grant.id", "gone"), attribute("authz.grant.subject", "b")]}]}]}]});
    post(&server, &request);
    until(|| taken_back(&server) == before + 1);
    assert_eq!(
        number(&server, "SELECT count(*) AS n FROM violations WHERE grant_id = 'late' AND check_id = 'broken_lineage'"),
        0
    );
    let taken_back = "SELECT state, superseded_by, acknowledged_time, alert_id FROM alerts \
                      WHERE grant_id = 'late' AND rule = 'broken_lineage'";
    let rows = server.sql(taken_back);
    assert_eq!((rows.len(), &rows[0]["state"], &rows[0]["superseded_by"]), (1, &json!("superseded"), &json!(null)));
    let (status, body) = server.get("/api/v1/alerts?state=superseded");
    assert!(status == 200 && body.contains(rows[0]["alert_id"].as_str().unwrap()), "{body}");
    let waiting = "SELECT count(*) AS n FROM alert_outcomes WHERE rule = 'broken_lineage' AND outcome = 'superseded' \
                   AND ended >= 1";
    assert!(number(&server, waiting) > 0, "it does not dwell any more");
    server.stop_and_verify();
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

fn post(server: &Server, request: &Value) {
    let url = format!("http://{}/v1/logs", server.otlp_http);
    let answer = ureq::post(&url).header("Content-Type", "application/json").send(request.to_string().as_bytes());
    assert_eq!(answer.unwrap().status(), 200);
}

#[test]
fn rules_are_tried_and_listed_and_what_is_wrong_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let dir = rules(folder.path());
    let run = |args: &[&str]| {
        let output = Command::new(CUSTODY).arg("rules").args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (status, out, err) = run(&["test", &dir]);
    assert_eq!(status, 0, "{out}{err}");
    assert!(out.contains("ok    forbidden_tool: it was (1 hit)") && out.contains("another (near miss)"), "{out}");
    let (_, list, _) = run(&["list", &dir]);
    assert!(list.lines().any(|l| l.starts_with("forbidden_tool           on  low")), "{list}");
    assert!(list.lines().any(|l| l.starts_with("outside_resources        off high")), "{list}");
    let file = Path::new(&dir).join("forbidden_tool.sql");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("array_has(setting_list('tools', c.workspace), c.tool)", "true")).unwrap();
    let (status, out, _) = run(&["test", &dir]);
    assert_eq!(status, 1);
    assert!(out.contains("FAIL  forbidden_tool: another: judged all at once it hits records {0}, not {}"), "{out}");
    std::fs::write(&file, text.replace("tool_calls c", "calls c")).unwrap();
    let (status, out, _) = run(&["test", &dir]);
    assert_eq!(status, 1);
    assert!(out.contains("there is no table calls; rules read events, tool_calls"), "{out}");
    std::fs::write(Path::new(&dir).join("rules.toml"), "[checks.expired_grant]\nskew = 1\n").unwrap();
    let (status, _, err) = run(&["list", &dir]);
    assert_eq!(status, 1);
    assert!(err.contains("checks.expired_grant.skew: no check has this setting"), "{err}");
}

/// Rows are sealed when they are many, or when the server stops: what the checks are behind by, and their past
/// after a restart, lies in files then.
#[test]
fn the_checks_go_on_over_sealed_rows_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let rules = rules(folder.path());
    let flags = ["--checks", "on", "--rules", &rules, "--segment-rows-max", "100", "--segment-merge-rows-max", "0"];
    let well = |server: &Server| {
        until(|| server.get("/metrics").1.contains("\ncustody_checks_lag_records 0\n"));
        let metrics = server.get("/metrics").1;
        assert!(metrics.contains("\ncustody_checks_failures_total 0\n"), "{metrics}");
    };
    let mut server = Server::start_in(folder, &flags);
    server.send_grpc(recorded_requests());
    server.wait_until_visible();
    well(&server);
    until(|| number(&server, "SELECT count(*) AS n FROM violations WHERE alert_id IS NULL") == 0);
    let alerts = number(&server, ALERTS);
    assert!(alerts > 20);
    server.stop_and_verify();
    let mut server = server.restart_with(&flags);
    well(&server);
    assert_eq!(number(&server, ALERTS), alerts, "nothing is told twice");
    let request = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [{"eventName": "authz.grant.derived", "timeUnixNano": "1795165200000000000",
        "attributes": [attribute("authz.grant.id", "late"), attribute("authz.grant.parent_id", "gone"), attribute("authz.grant.subject", "a")]}]}]}]});
    post(&server, &request);
    until(|| {
        number(&server, "SELECT count(*) AS n FROM violations WHERE grant_id = 'late' AND alert_id IS NOT NULL") == 1
    });
    well(&server);
    server.stop_and_verify();
}

/// A span that gives no event, twice with the same id and other content: the alert is its tenant's, as it is.
#[test]
fn an_alert_about_a_record_that_is_no_event_has_the_tenant_of_that_record() {
    let server = Server::start_in(tempfile::tempdir().unwrap(), &["--checks", "on"]);
    let send = |name: &str, id: &str, resource: Value| {
        let span = json!({"traceId": "00000000000000000000000000000a01", "spanId": id, "name": name,
            "startTimeUnixNano": "1795165200000000000", "endTimeUnixNano": "1795165201000000000"});
        let request =
            json!({"resourceSpans": [{"resource": {"attributes": resource}, "scopeSpans": [{"spans": [span]}]}]});
        let url = format!("http://{}/v1/traces", server.otlp_http);
        let agent = ureq::Agent::new_with_defaults();
        agent.post(&url).header("Content-Type", "application/json").send(request.to_string().as_bytes()).unwrap();
    };
    let of = json!([attribute("tenant.id", "acme"), attribute("workspace.id", "payments")]);
    for (id, resource) in [("00000000000000b1", of), ("00000000000000b2", json!([]))] {
        send("what it was", id, resource.clone());
        send("what it is said to have been", id, resource);
    }
    until(|| number(&server, ALERTS) == 2);
    let rows = server.sql(
        "SELECT tenant, workspace, span_id FROM events WHERE kind = 'alert' AND action = 'conflicting_span' ORDER BY span_id",
    );
    let want = [("acme".into(), "payments".into(), "00000000000000b1"), (Value::Null, Value::Null, "00000000000000b2")];
    for (row, (tenant, workspace, span)) in rows.iter().zip(want) {
        assert_eq!((&row["tenant"], &row["workspace"], &row["span_id"]), (&tenant, &workspace, &json!(span)));
    }
    assert_eq!(rows.len(), 2);
    let told = "SELECT count(*) AS n FROM violations WHERE check_id = 'conflicting_span' AND tenant = 'acme'";
    assert_eq!(number(&server, told), 1);
}
