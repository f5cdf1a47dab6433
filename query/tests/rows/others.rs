//! The ways in that share, compress or stream: pages of events in every coding and format, batches of consumers, calls
//! over gRPC, replays, alerts and bundles of evidence. Somebody who sees everything asks first each time: what
//! was made for him is not given to others.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use custody_query::serve::events::generated::StreamEventsRequest;
use custody_query::serve::events::generated::events_client::EventsClient;
use custody_query::serve::events::{Consumers, Events};
use custody_query::serve::observe::Unobserved;
use custody_query::serve::{Served, router};
use custody_query::{Caller, Error, Exporter, QueryLimits};
use custody_store::Writer;
use custody_store::bundle::{Export, Exporting};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::codec::CompressionEncoding;

use super::case::Case;

/// Says in the log what is exported, and signs it.
pub struct Own(pub Arc<Mutex<Writer>>);

impl Exporter for Own {
    fn export(&self, export: Export) -> BoxFuture<'static, Result<Exporting, Error>> {
        let done = self.0.lock().unwrap().export(export).unwrap();
        async move { Ok(done) }.boxed()
    }

    fn sign(&self, lines: u64, digest: [u8; 32]) -> BoxFuture<'static, Result<String, Error>> {
        let done = self.0.lock().unwrap().sign_bundle(lines, &digest).unwrap();
        async move { Ok(done) }.boxed()
    }
}

/// A server for one caller.
struct Door {
    address: SocketAddr,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
    _dir: tempfile::TempDir,
}

impl Door {
    async fn open(case: &Case, caller: &Caller) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let events = Events::default().with_consumers(Consumers::open(dir.path()).unwrap());
        let served = Served::new(case.engine.clone(), QueryLimits::default(), Arc::new(Unobserved));
        let served = served.with_events(events).with_exporter(Arc::new(Own(Arc::clone(&case.writer))));
        let app = router(served).layer(axum::Extension(caller.clone()));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { address, serving: tokio::spawn(axum::serve(listener, app).into_future()), _dir: dir }
    }

    /// The status, the head and the body of an answer, as it was before it was compressed.
    async fn ask(&self, head: &str, body: &str) -> (u16, String, Vec<u8>) {
        let mut stream = self.send(head, body).await;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let (status, head, body) = parted(&answer);
        (status, head.clone(), unpacked(&head, &body, true))
    }

    /// A stream that does not end, read until it has told all that it must.
    async fn follow(&self, head: &str, must: &[String]) -> String {
        let mut stream = self.send(head, "").await;
        let mut answer = Vec::new();
        loop {
            let read = tokio::time::timeout(Duration::from_secs(120), stream.read_buf(&mut answer)).await;
            let (_, head, body) = parted(&answer);
            let told = String::from_utf8_lossy(&unpacked(&head, &body, false)).into_owned();
            if must.iter().all(|m| told.contains(m)) && !head.is_empty() {
                return told;
            }
            assert!(read.is_ok_and(|read| read.unwrap() > 0), "{head}: {must:?} is not all in {told}");
        }
    }

    async fn send(&self, head: &str, body: &str) -> tokio::net::TcpStream {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let (method, rest) = head.split_once(' ').unwrap();
        let (path, headers) = rest.split_once('\n').unwrap_or((rest, ""));
        let headers: String = headers.lines().map(|line| format!("{line}\r\n")).collect();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Status, head in small letters and body of what has come of an answer, out of its chunks.
fn parted(answer: &[u8]) -> (u16, String, Vec<u8>) {
    let Some(at) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return (0, String::new(), Vec::new());
    };
    let head = String::from_utf8_lossy(&answer[..at]).to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut rest = &answer[at + 4..];
    if !head.contains("transfer-encoding: chunked") {
        return (status, head, rest.to_vec());
    }
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        let chunk = &rest[end + 2..];
        body.extend_from_slice(&chunk[..length.min(chunk.len())]);
        let Some(next) = chunk.get(length + 2..).filter(|_| length > 0) else { break };
        rest = next;
    }
    (status, head, body)
}

/// What was compressed, as far as it has come; all of it, if that is its end.
fn unpacked(head: &str, body: &[u8], is_all: bool) -> Vec<u8> {
    let mut reader: Box<dyn std::io::Read + '_> = match () {
        () if head.contains("content-encoding: gzip") => Box::new(flate2::read::GzDecoder::new(body)),
        () if head.contains("content-encoding: zstd") => Box::new(zstd::stream::read::Decoder::new(body).unwrap()),
        () => return body.to_vec(),
    };
    let (mut out, mut some) = (Vec::new(), [0; 4096]);
    loop {
        match reader.read(&mut some) {
            Ok(0) => return out,
            Ok(n) => out.extend_from_slice(&some[..n]),
            Err(e) => {
                assert!(!is_all, "{e}");
                return out;
            }
        }
    }
}

/// The seqs of the events of a page: lines, or the members of an object's list; JSON, or text in CEF.
fn seqs(body: &str) -> BTreeSet<String> {
    let object = serde_json::from_str::<Value>(body).ok().filter(|page| page["data"].is_array());
    let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| Value::from(line));
    let events: Vec<Value> = match object {
        Some(page) => page["data"].as_array().unwrap().clone(),
        None => body.lines().map(read).collect(),
    };
    let seq = |event: Value| match event.as_str().map(|line| line.split_once(" cn1=").unwrap().1) {
        Some(rest) => rest.split(' ').next().unwrap().to_owned(),
        None if event["metadata"].is_object() => event["metadata"]["sequence"].to_string(),
        None => event["event"]["sequence"].to_string(),
    };
    events.into_iter().map(seq).collect()
}

/// Every text that stands in lines of JSON, and what it is if it is base64.
fn deep(text: &str) -> String {
    fn walk(value: &Value, out: &mut String) {
        match value {
            Value::String(text) => {
                out.push_str(text);
                out.push('\n');
                let bytes = STANDARD.decode(text).unwrap_or_default();
                out.push_str(&String::from_utf8_lossy(&bytes));
                out.push('\n');
            }
            Value::Array(items) => items.iter().for_each(|item| walk(item, out)),
            Value::Object(members) => members.iter().for_each(|(name, value)| {
                out.push_str(name);
                walk(value, out);
            }),
            _ => {}
        }
    }
    let mut out = String::new();
    for line in text.lines() {
        serde_json::from_str::<Value>(line).iter().for_each(|value| walk(value, &mut out));
    }
    out
}

/// All of them.
pub async fn over_others(case: &Case, caller: &Caller, innocent: &impl Fn(&str, &str)) {
    let (all, door) = (Door::open(case, &Caller::local(None)).await, Door::open(case, caller).await);
    pages(case, caller, (&all, &door), innocent).await;
    batches(case, caller, (&all, &door), innocent).await;
    calls(case, caller, (&all, &door), innocent).await;
    replays(case, (&all, &door), innocent).await;
    evidence(case, caller, (&all, &door), innocent).await;
}

/// The seqs of the events that he may see.
async fn events(case: &Case, caller: &Caller) -> Vec<String> {
    case.column(caller, "SELECT DISTINCT seq FROM events ORDER BY seq").await
}

async fn pages(case: &Case, caller: &Caller, (all, door): (&Door, &Door), innocent: &impl Fn(&str, &str)) {
    let events = events(case, caller).await;
    for format in ["raw", "ocsf", "ecs", "cef"] {
        for more in ["", "&wait=1s", "&limit=3", "&from_seq=1&kind=tool_call,alert,model_call"] {
            if more.contains("wait") && format != "raw" {
                continue;
            }
            let coding = match (format, more) {
                ("raw" | "cef", "") | ("ocsf", "&limit=3") => "gzip",
                ("ocsf" | "ecs", "") | ("raw", "&wait=1s") => "zstd",
                _ => "identity",
            };
            for accept in ["application/x-ndjson", "application/json"] {
                let path = format!("/api/v1/events?format={format}{more}");
                let head = format!("GET {path}\nAccept: {accept}\nAccept-Encoding: {coding}");
                assert_eq!(all.ask(&head, "").await.0, 200);
                let (status, told, body) = door.ask(&head, "").await;
                let body = String::from_utf8(body).unwrap();
                assert_eq!(status, 200, "{path}: {body}");
                innocent(&head, &body);
                innocent(&head, &told);
                if matches!(more, "" | "&wait=1s") {
                    assert_eq!(seqs(&body), events.iter().cloned().collect(), "{head}: {body}");
                }
            }
        }
    }
    // Page by page, each with the proof of its range, there is no more and no less.
    let (mut path, mut seen) = ("/api/v1/events?limit=2&proof=1".to_owned(), BTreeSet::new());
    loop {
        let (status, _, body) = door.ask(&format!("GET {path}\nAccept: application/json"), "").await;
        let page: Value = serde_json::from_slice(&body).unwrap();
        // Without a signer nobody makes the checkpoint that it needs: the case's own covers all.
        assert_eq!(status, 200, "{page}");
        innocent(&path, &deep(&page.to_string()));
        seen.extend(page["data"].as_array().unwrap().iter().map(|event| event["seq"].to_string()));
        if page["has_more"] != true {
            break;
        }
        path = format!("/api/v1/events?limit=2&proof=1&after={}", page["next_cursor"].as_str().unwrap());
    }
    assert_eq!(seen, events.iter().cloned().collect());
    let must: Vec<String> = events.iter().map(|seq| format!("\"seq\":{seq},")).collect();
    let head = "GET /api/v1/events\nAccept: text/event-stream\nAccept-Encoding: gzip";
    innocent(head, &door.follow(head, &must).await);
}

/// Batches of a consumer, until there are none.
async fn batches(case: &Case, caller: &Caller, (all, door): (&Door, &Door), innocent: &impl Fn(&str, &str)) {
    let mut seen = BTreeSet::new();
    loop {
        let head = "POST /api/v1/consumers/siem/next?limit=4\nAccept-Encoding: gzip";
        assert_eq!(all.ask(head, "").await.0, 200);
        let (status, _, body) = door.ask(head, "").await;
        let body = String::from_utf8(body).unwrap();
        assert_eq!(status, 200, "{body}");
        innocent(head, &body);
        let event = |line: &str| serde_json::from_str::<Value>(line).unwrap()["seq"].to_string();
        if body.is_empty() {
            break;
        }
        seen.extend(body.lines().map(event));
    }
    assert_eq!(seen, events(case, caller).await.into_iter().collect());
    for path in ["/api/v1/consumers", "/api/v1/consumers/siem"] {
        innocent(path, &String::from_utf8(door.ask(&format!("GET {path}"), "").await.2).unwrap());
    }
}

/// Calls over gRPC, compressed and not.
async fn calls(case: &Case, caller: &Caller, (all, door): (&Door, &Door), innocent: &impl Fn(&str, &str)) {
    let want: BTreeSet<String> = events(case, caller).await.into_iter().collect();
    for coding in [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Zstd)] {
        for address in [all.address, door.address] {
            let client = EventsClient::connect(format!("http://{address}")).await.unwrap();
            let mut client = coding.into_iter().fold(client, EventsClient::accept_compressed);
            let ask = StreamEventsRequest { limit: 5, ..StreamEventsRequest::default() };
            let mut messages = client.stream(ask).await.unwrap().into_inner();
            let mut seen = BTreeSet::new();
            while let Some(message) = messages.message().await.unwrap() {
                seen.extend(message.events.iter().map(|event| event.seq.to_string()));
                if address == door.address {
                    message.events.iter().for_each(|event| innocent("gRPC", &event.body));
                }
            }
            assert!(address == all.address || seen == want, "{coding:?}: {seen:?} of {want:?}");
        }
    }
}

/// Everything that can be replayed, as it streams, and every alert by its id.
async fn replays(case: &Case, (all, door): (&Door, &Door), innocent: &impl Fn(&str, &str)) {
    for id in case.ids() {
        let format = if id.starts_with('g') { "arrow" } else { "ndjson" };
        let mut paths = vec![format!("/api/v1/replay?id={id}&format={format}")];
        if id.starts_with("alert") {
            paths.push(format!("/api/v1/alerts/{id}"));
        }
        for path in paths {
            let head = format!("GET {path}\nX-Footer: true");
            assert!(all.ask(&head, "").await.0 < 500);
            let (status, _, body) = door.ask(&head, "").await;
            let told = String::from_utf8_lossy(&body);
            assert!(status < 500, "{path}: {status} {told}");
            innocent(&path, &told);
        }
    }
}

/// A bundle has what its reader may see and names nothing else; who names other records is refused.
async fn evidence(case: &Case, caller: &Caller, (all, door): (&Door, &Door), innocent: &impl Fn(&str, &str)) {
    let ask = async |door: &Door, sql: &str| {
        let body = json!({"sql": sql, "reason": "test"}).to_string();
        let (status, _, body) = door.ask("POST /api/v1/evidence\nContent-Type: application/json", &body).await;
        (status, String::from_utf8(body).unwrap())
    };
    let shown = case.column(caller, "SELECT seq FROM ledger").await;
    let hidden: Vec<u64> = (0..case.size()).filter(|seq| !shown.contains(&seq.to_string())).collect();
    let mine = "SELECT seq, name FROM spans UNION ALL SELECT seq, body FROM logs";
    assert!(matches!(ask(all, mine).await.0, 200 | 400));
    let any = case.column(caller, "SELECT seq FROM spans UNION ALL SELECT seq FROM logs").await;
    let (status, told) = ask(door, mine).await;
    assert_eq!(status, if any.is_empty() { 400 } else { 200 }, "{told}");
    innocent("a bundle", &told);
    innocent("what a bundle holds", &deep(&told));
    for (seq, word) in case.words().filter(|(seq, _)| any.contains(&seq.to_string())) {
        assert!(deep(&told).contains(&word), "record {seq} is in it");
    }
    for seq in hidden {
        let (status, told) = ask(door, &format!("SELECT {seq} AS seq")).await;
        assert_eq!(status, 403, "{told}");
        innocent("a refused bundle", &told);
    }
}
