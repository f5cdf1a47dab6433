//! 120 recorded runs of real models go into the built binary over OTLP/gRPC; the
//! checks must find exactly what AgentDojo's own ground truth says, call by call.

mod support;

use std::collections::BTreeSet;

use serde_json::Value;
use support::{Server, recorded_requests};

/// What the recorder computed from AgentDojo's ground truth, without this code.
const EXPECTED: &str = include_str!("fixtures/agentdojo/expected.json");

/// Hits as (check, trace, span or grant).
type Hits = BTreeSet<(String, String, String)>;

fn expected() -> Hits {
    let json: Value = serde_json::from_str(EXPECTED).unwrap();
    let mut hits = Hits::new();
    for run in json["runs"].as_array().unwrap() {
        for hit in run["expected"].as_array().unwrap() {
            let text = |name: &str| hit[name].as_str().map(str::to_owned);
            let what = text("span_id").or_else(|| text("grant_id")).expect("a hit names a span or a grant");
            hits.insert((text("check").unwrap(), run["trace_id"].as_str().unwrap().to_owned(), what));
        }
    }
    hits
}

#[test]
fn the_checks_find_what_the_ground_truth_says() {
    the_checks_find_it(Server::start());
}

/// The same over rows that were sealed a few at a time, and merged.
#[test]
fn the_checks_find_the_same_in_sealed_rows() {
    let server = Server::start_in(
        tempfile::tempdir().unwrap(),
        &["--segment-rows-max", "64", "--segment-merge-rows-max", "500"],
    );
    the_checks_find_it(server);
}

fn the_checks_find_it(mut server: Server) {
    server.send_grpc(recorded_requests());
    let rows = server.sql("SELECT check_id, trace_id, CASE WHEN check_id IN ('widened_delegation', 'broken_lineage') THEN grant_id ELSE span_id END AS what FROM violations WHERE check_id IN ('unknown_grant', 'expired_grant', 'revoked_grant', 'outside_actions', 'outside_resources', 'widened_delegation', 'denied_then_executed', 'broken_lineage')");
    let found: Hits = rows
        .iter()
        .map(|row| {
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            (text("check_id"), text("trace_id"), text("what"))
        })
        .collect();
    let expected = expected();
    assert_eq!(expected.len(), 175);
    let missed: Vec<_> = expected.difference(&found).collect();
    let wrong: Vec<_> = found.difference(&expected).collect();
    println!("expected {}, found {}, missed {}, wrong {}", expected.len(), found.len(), missed.len(), wrong.len());
    assert!(missed.is_empty() && wrong.is_empty(), "missed {missed:?}, wrong {wrong:?}");
    assert_eq!(rows.len(), found.len(), "each hit is told once");

    let counts = server.sql("SELECT (SELECT count(*) FROM spans) AS spans, (SELECT count(*) FROM logs) AS logs, (SELECT count(*) FROM tool_calls) AS calls");
    assert_eq!(
        (&counts[0]["spans"], &counts[0]["logs"], &counts[0]["calls"]),
        (&1449.into(), &1047.into(), &601.into())
    );
    assert_eq!(server.stop_and_verify()["records"], 1449 + 1047);
}

#[test]
fn replay_and_chain_tell_the_incident() {
    the_incident_is_told(Server::start());
}

#[test]
fn replay_and_chain_tell_the_same_from_sealed_rows() {
    let flags = ["--segment-rows-max", "100", "--segment-merge-rows-max", "0"];
    the_incident_is_told(Server::start_in(tempfile::tempdir().unwrap(), &flags));
}

fn the_incident_is_told(mut server: Server) {
    server.send_grpc(recorded_requests());
    server.wait_until_visible();
    let showcase = serde_json::from_str::<Value>(EXPECTED).unwrap()["showcase"].as_str().unwrap().to_owned();
    let tree = server.custody(&["replay", "--trace", &showcase]);
    let line =
        |text: &str| tree.lines().position(|l| l.contains(text)).unwrap_or_else(|| panic!("no {text} in:\n{tree}"));
    assert!(line("request by emma") < line("grant-3e76be8cd5cb57c9 issued"));
    assert!(line("grant-9479ff18f11527a5 derived from") < line("agent payments-agent"));
    assert!(line("exceeds its parent in resources") < line("DENIED to payments-agent"));
    assert!(line("DENIED to payments-agent") < line("tool send_money by payments-agent, grant grant-9479ff18f11527a5"));
    assert!(line("tool send_money") < line("!! executed although refused at seq"));
    let json: Value =
        serde_json::from_str(&server.custody(&["replay", "--grant", "grant-9479ff18f11527a5", "--format", "json"]))
            .unwrap();
    assert_eq!(json.as_array().unwrap().len(), 16);
    let chain = server.sql("SELECT grant_id, narrowed, widened_by FROM delegation_chain('grant-9479ff18f11527a5')");
    assert_eq!(chain[1]["widened_by"], serde_json::json!(["resources"]));
    assert_eq!(chain[1]["narrowed"], false);
    server.stop_and_verify();
}
