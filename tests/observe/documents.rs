//! What docs/monitoring says is what the server says.

use std::collections::BTreeSet;
use std::process::Command;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

use crate::support::{self, Server};
use crate::{Metrics, policy, post_spans, span, under};

const LIST: &str = include_str!("../../docs/monitoring/metrics.md");
const ALERTS: &str = include_str!("../../docs/monitoring/alerts.yml");
const DASHBOARD: &str = include_str!("../../docs/monitoring/dashboard.json");

/// The names of our metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("custody_") || word.starts_with("process_")).collect()
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_is_there() {
    let folder = tempfile::tempdir().unwrap();
    // Nobody listens there; that witnesses are configured is enough.
    let policy = policy(folder.path(), "http://127.0.0.1:1");
    let policy = policy.to_str().unwrap();
    let server = Server::start_in(folder, &["--witness-policy", policy, "--checks", "on", "--redact", "secrets"]);
    // Of rules only those are counted that have replaced something.
    let secret = "Bearer abcdefghijklmnopqrstuvwxyz0123456789";
    let said = ExportTraceServiceRequest { resource_spans: vec![under("said", secret, vec![span(1, 1, "a")])] };
    assert_eq!(post_spans(&server, &said), 200);
    let metrics = Metrics::of(&server);
    let documented: Vec<&str> = LIST.lines().filter(|line| line.starts_with("| `")).collect();
    let real = metrics.rows();
    assert_eq!(documented, real, "docs/monitoring/metrics.md should have these rows:\n{}\n", real.join("\n"));
    for (file, text) in [("alerts.yml", ALERTS), ("dashboard.json", DASHBOARD)] {
        let used = names(text);
        assert!(used.len() > 10, "{file}: {used:?}");
        let missing: Vec<_> = used.into_iter().filter(|name| !metrics.has(name)).collect();
        assert!(missing.is_empty(), "{file} uses what there is not: {missing:?}");
    }
}

#[test]
fn alerts_and_dashboard_are_yaml_and_promql() {
    let path = |name: &str| format!("{}/docs/monitoring/{name}", env!("CARGO_MANIFEST_DIR"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/alerts.py");
    let mut command = Command::new(support::python());
    let output = command.args([script, &path("alerts.yml"), &path("dashboard.json")]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expressions: Vec<String> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(expressions.len() > 30, "{expressions:?}");
}
