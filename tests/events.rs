//! The events API as SIEMs use it: pages, proofs, streams, consumers, export and `events check`.

mod support;

#[path = "events/asked.rs"]
mod asked;
#[path = "events/check.rs"]
mod check;
#[path = "events/gone.rs"]
mod gone;
#[path = "events/many.rs"]
mod many;
#[path = "events/otherwise.rs"]
mod otherwise;
#[path = "events/packed.rs"]
mod packed;
#[path = "events/pull.rs"]
mod pull;
#[path = "events/shared.rs"]
mod shared;
#[path = "events/siem.rs"]
mod siem;
#[path = "events/store.rs"]
mod store;
#[path = "events/streams.rs"]
mod streams;
#[path = "events/terminal.rs"]
mod terminal;

use std::path::Path;

use serde_json::Value;
use support::Server;

/// GET with headers: status, headers, body.
fn get(server: &Server, path: &str, headers: &[(&str, &str)]) -> (u16, ureq::http::HeaderMap, String) {
    call(server, "GET", path, headers)
}

fn call(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, ureq::http::HeaderMap, String) {
    let config = ureq::Agent::config_builder().http_status_as_error(false).allow_non_standard_methods(true);
    let agent = config.build().new_agent();
    let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", server.http));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut answer = agent.run(request.body(()).unwrap()).unwrap();
    let body = answer.body_mut().with_config().limit(1 << 30).read_to_string().unwrap();
    (answer.status().as_u16(), answer.headers().clone(), body)
}

const JSON: &[(&str, &str)] = &[("Accept", "application/json")];

fn json_of(server: &Server, path: &str) -> Value {
    let (status, _, body) = get(server, path, JSON);
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

fn seqs(lines: &str) -> Vec<u64> {
    lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["metadata"]["sequence"].as_u64().unwrap())
        .collect()
}

/// Of what another process may still be writing to a file: its last line need not be whole yet.
fn seqs_so_far(file: &Path) -> Vec<u64> {
    let text = std::fs::read(file).unwrap_or_default();
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(&[][..], |end| &text[..end]);
    seqs(std::str::from_utf8(whole).unwrap())
}

/// A server with some recorded requests.
fn filled(requests: usize, flags: &[&str]) -> Server {
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), flags);
    server.send_grpc(support::recorded_requests().into_iter().take(requests).collect());
    server.wait_until_visible();
    server
}
