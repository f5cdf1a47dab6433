//! What is compressed once for all who read it: the same events in every form, for clients that are in use.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use custody_query::serve::events::generated::StreamEventsRequest;
use custody_query::serve::events::generated::events_client::EventsClient;
use serde_json::Value;
use tonic::codec::CompressionEncoding;

use super::{filled, get, seqs};
use crate::support::{Server, python, recorded_requests};

/// An answer: status, headers, and its body as it came.
fn fetch(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, ureq::http::HeaderMap, Vec<u8>) {
    let config = ureq::Agent::config_builder().http_status_as_error(false).allow_non_standard_methods(true);
    let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", server.http));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut answer = config.build().new_agent().run(request.body(()).unwrap()).unwrap();
    let body = answer.body_mut().with_config().limit(1 << 30).read_to_vec().unwrap();
    (answer.status().as_u16(), answer.headers().clone(), body)
}

/// A body as it was before: one member or one frame, with nothing behind it.
fn inflated(headers: &ureq::http::HeaderMap, body: &[u8]) -> String {
    let mut out = Vec::new();
    match headers.get("content-encoding").map(|value| value.to_str().unwrap()) {
        None => out.extend_from_slice(body),
        Some("gzip") => {
            let mut decoder = flate2::bufread::GzDecoder::new(body);
            decoder.read_to_end(&mut out).unwrap();
            assert_eq!(decoder.into_inner(), b"");
        }
        Some("zstd") => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(body).unwrap().single_frame();
            decoder.read_to_end(&mut out).unwrap();
            assert_eq!(decoder.finish(), b"");
        }
        other => panic!("{other:?}"),
    }
    String::from_utf8(out).unwrap()
}

fn header<'a>(headers: &'a ureq::http::HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn a_page_is_the_same_however_it_is_coded() {
    let mut server = filled(100, &[]);
    let paths = ["raw", "ocsf", "ecs", "cef"].map(|format| format!("/api/v1/events?limit=60&format={format}"));
    let whole = ["/api/v1/events?limit=10000&wait=1s".to_owned(), "/api/v1/events?limit=50&proof=1".to_owned()];
    for path in paths.iter().chain(&whole) {
        let accepts: &[&str] = match path.contains("proof") {
            true => &["application/json"],
            false => &["application/x-ndjson", "application/json"],
        };
        for accept in accepts {
            let ask = |coding: &str| {
                let (status, headers, body) =
                    fetch(&server, "GET", path, &[("Accept", accept), ("Accept-Encoding", coding)]);
                assert_eq!(status, 200);
                assert!(header(&headers, "vary").unwrap().contains("Accept-Encoding"));
                (headers, body)
            };
            let (plain_headers, plain) = ask("identity");
            let plain = String::from_utf8(plain).unwrap();
            assert_eq!(header(&plain_headers, "content-encoding"), None);
            let mut tags = vec![header(&plain_headers, "etag").map(str::to_owned)];
            for coding in ["gzip", "zstd"] {
                let (headers, body) = ask(coding);
                assert_eq!(header(&headers, "content-encoding"), Some(coding), "{path} {accept}");
                assert_eq!(inflated(&headers, &body), plain, "{path} {accept} {coding}");
                assert!(body.len() * 2 < plain.len() || path.contains("proof"), "{} of {}", body.len(), plain.len());
                assert_eq!(ask(coding).1, body, "the same bytes again");
                assert_eq!(header(&headers, "content-length"), Some(&*body.len().to_string()));
                // Strong tags are of these bytes, and good for these bytes alone.
                let tag = header(&headers, "etag").map(str::to_owned);
                if let Some(tag) = &tag {
                    for (other, status) in [(coding, 304), ("identity", 200)] {
                        let asked = [("Accept", *accept), ("Accept-Encoding", other), ("If-None-Match", tag)];
                        assert_eq!(fetch(&server, "GET", path, &asked).0, status, "{tag} for {other}");
                    }
                }
                assert!(tag.is_none() || !tags.contains(&tag), "{tag:?} is one of {tags:?}");
                tags.push(tag);
            }
            assert_eq!(tags.iter().flatten().count(), if path.contains("10000") { 0 } else { 3 }, "{path} {accept}");
        }
    }
    server.stop_and_verify();
}

#[test]
fn what_is_small_stays_as_it_is_unless_that_is_refused() {
    let mut server = filled(20, &[]);
    let small = "/api/v1/events?limit=1&format=cef";
    let ask = |path: &str, coding: &str| fetch(&server, "GET", path, &[("Accept-Encoding", coding)]);
    let plain = ask(small, "identity");
    assert!(!plain.2.is_empty() && plain.2.len() < 1024, "{}", plain.2.len());
    let same = ask(small, "gzip, zstd");
    assert_eq!((header(&same.1, "content-encoding"), &same.2), (None, &plain.2));
    for path in [small, "/api/v1/events?limit=1&kind=grant_revoked&from_seq=1000000000000"] {
        // Also what is wrong is told to who refuses to be told.
        let status = if path == small { 200 } else { 400 };
        for coding in ["gzip", "zstd"] {
            let (got, headers, body) = ask(path, &format!("{coding}, identity;q=0"));
            assert_eq!(got, status);
            if got == 200 {
                assert_eq!(header(&headers, "content-encoding"), Some(coding));
                assert_eq!(inflated(&headers, &body).as_bytes(), plain.2);
            }
        }
    }
    for refused in ["identity;q=0", "br, *;q=0"] {
        let (status, _, body) = ask(small, refused);
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((status, &body["code"]), (406, &"not_acceptable".into()), "{refused}");
    }
    let consumer = |name: &str, coding: &str| {
        let path = format!("/api/v1/consumers/{name}/next?limit=10000");
        fetch(&server, "POST", &path, &[("Accept-Encoding", coding), ("Accept", "application/json")])
    };
    let plain: Value = serde_json::from_slice(&consumer("plain", "identity").2).unwrap();
    for coding in ["gzip", "zstd"] {
        let (_, headers, body) = consumer(coding, coding);
        assert_eq!(header(&headers, "content-encoding"), Some(coding));
        let page: Value = serde_json::from_str(&inflated(&headers, &body)).unwrap();
        assert_eq!(page["data"], plain["data"]);
        assert!(!page["data"].as_array().unwrap().is_empty());
        // The next one is empty, and small.
        assert_eq!(header(&consumer(coding, coding).1, "content-encoding"), None);
    }
    server.stop_and_verify();
}

/// The seqs of a stream's events, as they come.
fn listen(server: &Server, coding: &str) -> (Option<String>, impl Iterator<Item = u64> + use<>) {
    let asked = ureq::Agent::new_with_defaults()
        .get(format!("http://{}/api/v1/events", server.http))
        .header("Accept", "text/event-stream")
        .header("Accept-Encoding", coding);
    let answer = asked.call().unwrap();
    let encoding = header(answer.headers(), "content-encoding").map(str::to_owned);
    let body = answer.into_body().into_reader();
    let body: Box<dyn std::io::Read> = match encoding.as_deref() {
        Some("gzip") => Box::new(flate2::read::GzDecoder::new(body)),
        _ => Box::new(body),
    };
    let lines = BufReader::new(body).lines().map(Result::unwrap);
    (encoding, lines.filter_map(|line| line.strip_prefix("data: ").map(|event| seqs(event)[0])))
}

#[test]
fn each_part_of_a_stream_can_be_read_when_it_has_come() {
    let mut server = filled(40, &[]);
    let mut requests = recorded_requests().into_iter().skip(40);
    let first = seqs(&get(&server, "/api/v1/events?limit=10000", &[]).2).len();
    let mut streams: Vec<_> =
        ["gzip", "zstd, gzip;q=0.1", "zstd", "identity"].map(|coding| listen(&server, coding)).into();
    let encodings: Vec<Option<&str>> = streams.iter().map(|(encoding, _)| encoding.as_deref()).collect();
    assert_eq!(encodings, [Some("gzip"), Some("gzip"), None, None]);
    let mut got = vec![Vec::new(); streams.len()];
    let mut read = |count: usize| {
        for ((_, stream), got) in streams.iter_mut().zip(&mut got) {
            got.extend(stream.take(count));
        }
        got.clone()
    };
    read(first);
    let mut seen = first;
    // Nobody sends more before all of it has been read.
    for _ in 0..3 {
        server.send_grpc(requests.by_ref().take(20).collect());
        server.wait_until_visible();
        let all = seqs(&get(&server, "/api/v1/events?limit=10000", &[]).2);
        let got = read(all.len() - seen);
        assert!(got.iter().all(|got| *got == all), "{got:?}");
        seen = all.len();
    }
    server.stop_and_verify();
}

#[test]
fn messages_of_calls_are_compressed_for_who_takes_it() {
    let mut server = filled(100, &[]);
    let want = get(&server, "/api/v1/events?limit=10000", &[]).2;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let call = |encoding: Option<CompressionEncoding>, limit: u32| {
        let address = format!("http://{}", server.http);
        async move {
            let mut client = EventsClient::connect(address).await.unwrap();
            if let Some(encoding) = encoding {
                client = client.accept_compressed(encoding).send_compressed(encoding);
            }
            let ask = StreamEventsRequest { limit, ..StreamEventsRequest::default() };
            let answer = client.stream(ask).await.unwrap();
            let said = answer.metadata().get("grpc-encoding").map(|value| value.to_str().unwrap().to_owned());
            let (mut messages, mut lines) = (answer.into_inner(), String::new());
            while let Some(message) = messages.message().await.unwrap() {
                assert_eq!(message.range.unwrap().matched, message.events.len() as u64);
                assert!(!message.next_cursor.is_empty() && !message.checkpoint.is_empty());
                message.events.iter().for_each(|event| lines.extend([&*event.body, "\n"]));
            }
            (said, lines)
        }
    };
    let kinds = [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Zstd)];
    for (encoding, name) in kinds.into_iter().zip([None, Some("gzip"), Some("zstd")]) {
        for limit in [1, 50, 10_000] {
            let (said, lines) = runtime.block_on(call(encoding, limit));
            assert_eq!((said.as_deref(), lines == want), (name, true), "{limit}");
        }
    }
    server.stop_and_verify();
}

#[test]
fn clients_that_are_in_use_read_what_is_compressed() {
    let mut server = filled(100, &[]);
    let want = get(&server, "/api/v1/events?limit=10000", &[]).2;
    let url = format!("http://{}/api/v1/events?limit=10000", server.http);
    let head = tempfile::NamedTempFile::new().unwrap();
    let curl = |more: &[&str]| {
        let output =
            Command::new("curl").args(["-sS", "--compressed", "-D"]).arg(head.path()).args(more).arg(&url).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let head = std::fs::read_to_string(head.path()).unwrap().to_lowercase();
        assert!(head.contains("content-encoding: "), "{head}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(curl(&[]), want);
    let events: Vec<Value> = want.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for coding in ["gzip", "zstd"] {
        let accepts = format!("Accept-Encoding: {coding}");
        let page: Value = serde_json::from_str(&curl(&["-H", "Accept: application/json", "-H", &accepts])).unwrap();
        assert_eq!(page["data"].as_array(), Some(&events), "{coding}");
    }
    let stream = Command::new("curl")
        .args(["-sSN", "--compressed", "-H", "Accept: text/event-stream", &url])
        .stdout(Stdio::piped())
        .spawn();
    let mut stream = stream.unwrap();
    let lines = BufReader::new(stream.stdout.take().unwrap()).lines().map(Result::unwrap);
    let data = lines.filter_map(|line| Some(line.strip_prefix("data: ")?.to_owned() + "\n"));
    assert_eq!(data.take(events.len()).collect::<String>(), want);
    stream.kill().unwrap();
    stream.wait().unwrap();
    // requests, httpx and gRPC of Python.
    let output = Command::new(python())
        .args([
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/packed.py"),
            &server.http,
            &events.len().to_string(),
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: BTreeMap<String, String> = serde_json::from_slice(&output.stdout).unwrap();
    // That of gRPC keeps it to itself.
    let want = ["httpx page", "httpx stream", "requests array", "requests page", "requests stream"];
    assert!(told.keys().eq(want.iter()), "{told:?}");
    assert!(told.values().all(|encoding| encoding == "gzip" || encoding == "zstd"), "{told:?}");
    server.stop_and_verify();
}
