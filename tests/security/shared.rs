//! Pages are made once for all who ask for the same: who may see other rows does not ask for the same.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read};

use serde_json::{Value, json};

use crate::harness::{POLICY, Running, Site, now};

/// Who may see which tenants.
const READERS: [(&str, &[&str]); 4] =
    [("reader-a", &["a"]), ("reader-b", &["b"]), ("other-a", &["a"]), ("both", &["a", "b"])];

/// Ways to read: the path, what is accepted, and how a line of the answer begins that has an event.
const WAYS: [(&str, &str, &str); 4] = [
    ("/api/v1/events?limit=1000", "application/x-ndjson", "{"),
    ("/api/v1/events?limit=1000&wait=2s", "application/x-ndjson", "{"),
    ("/api/v1/events?limit=7", "application/x-ndjson", "{"),
    ("/api/v1/events", "text/event-stream", "data: "),
];

/// Sends records that are events, of two tenants in turn.
fn send(running: &Running<'_>, client: &ureq::Agent, numbers: std::ops::Range<u32>) {
    for n in numbers {
        let tenant = ["a", "b"][(n % 2) as usize];
        let attributes = json!([
            {"key": "authz.initiator.type", "value": {"stringValue": "user"}},
            {"key": "authz.initiator.id", "value": {"stringValue": format!("{tenant}-{n}")}},
        ]);
        let record = json!({"timeUnixNano": (now() * 1_000_000_000).to_string(), "eventName": "authz.request", "attributes": attributes});
        let resource = json!({"attributes": [{"key": "tenant.id", "value": {"stringValue": tenant}}]});
        let body =
            json!({"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": [record]}]}]}).to_string();
        let url = format!("https://{}/v1/logs", running.server.otlp_http);
        let answer = client.post(&url).header("Content-Type", "application/json").send(body.as_bytes()).unwrap();
        assert_eq!(answer.status(), 200);
    }
}

/// What one reader sees: tenant and number of the first `count` events.
fn seen(
    running: &Running<'_>,
    client: &ureq::Agent,
    (path, accept, begin): (&str, &str, &str),
    coding: &str,
    count: usize,
) -> Vec<String> {
    let asked = client.get(running.url(path)).header("Accept", accept).header("Accept-Encoding", coding);
    let answer = asked.call().unwrap();
    assert_eq!(answer.status(), 200);
    let encoding = answer.headers().get("content-encoding").map(|value| value.to_str().unwrap().to_owned());
    let body = answer.into_body().into_reader();
    let body: Box<dyn Read> = match encoding.as_deref() {
        None => Box::new(body),
        Some("gzip") => Box::new(flate2::read::GzDecoder::new(body)),
        Some("zstd") => Box::new(zstd::stream::read::Decoder::new(body).unwrap()),
        other => panic!("{other:?}"),
    };
    let lines = BufReader::new(body).lines().map(Result::unwrap);
    let events =
        lines.filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix(begin.trim_matches('{'))?).ok());
    events.take(count).map(|event| format!("{} {}", event["tenant"], event["initiator_id"])).collect()
}

#[test]
fn who_may_see_other_rows_is_never_given_a_page_that_was_made_for_others() {
    let site = Site::new();
    let rules: String = READERS
        .iter()
        .map(|(name, tenants)| {
            format!("\n[[allow]]\nidentity = \"cert:CN={name}\"\nactor = \"automation\"\nroles = [\"stream\"]\ntenants = {}\n", json!(tenants))
        })
        .collect();
    site.write("policy.toml", &format!("{POLICY}{rules}"));
    let running = site.start();
    let agent = running.with(&site.authority.workload("spiffe://example.com/agents/support"));
    let clients: Vec<_> = READERS.iter().map(|(name, _)| running.with(&site.authority.named(name))).collect();
    send(&running, &agent, 0..40);
    let visible = || seen(&running, &clients[3], WAYS[0], "identity", 1000).len();
    crate::support::until(|| visible() == 40);
    // All of them at the same place at the same time, also while more comes.
    std::thread::scope(|scope| {
        let (running, agent, clients) = (&running, &agent, &clients);
        let mut readers = Vec::new();
        for way in WAYS {
            for (reader, (_, tenants)) in READERS.iter().enumerate() {
                let count = if way.0.contains("limit=7") { 7 } else { 20 * tenants.len() };
                let codings = ["identity", "gzip", "zstd", "gzip", "identity", "zstd"];
                let one = move |coding: &&str| seen(running, &clients[reader], way, coding, count);
                let read = move || codings.iter().map(one).collect::<Vec<_>>();
                readers.push((way, reader, count, scope.spawn(read)));
            }
        }
        scope.spawn(move || send(running, agent, 40..60));
        for (way, reader, count, thread) in readers {
            for seen in thread.join().unwrap() {
                let tenants: BTreeSet<&str> = seen.iter().map(|event| &event[1..2]).collect();
                let may: BTreeSet<&str> = READERS[reader].1.iter().copied().collect();
                assert_eq!(tenants, may, "{} by {}", READERS[reader].0, way.0);
                let numbers = (0u32..).filter(|n| may.contains(["a", "b"][(n % 2) as usize])).take(count);
                let want = numbers.map(|n| {
                    let tenant = ["a", "b"][(n % 2) as usize];
                    format!("\"{tenant}\" \"{tenant}-{n}\"")
                });
                assert_eq!(seen[..count], want.collect::<Vec<_>>(), "{} by {}", READERS[reader].0, way.0);
            }
        }
    });
}
