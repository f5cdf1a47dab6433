//! Server-sent events, gRPC, and `custody events --follow`.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use custody_query::serve::events::generated::StreamEventsRequest;
use custody_query::serve::events::generated::events_client::EventsClient;
use serde_json::Value;

use super::{filled, get, seqs, seqs_so_far};
use crate::support::{CUSTODY, Server, recorded_requests, until};

/// Reads a stream of events until there are as many; gives seqs and the last id.
fn listen(server: &Server, query: &str, last_id: Option<&str>, events: usize) -> (Vec<u64>, String) {
    let agent = ureq::Agent::new_with_defaults();
    let mut request =
        agent.get(format!("http://{}/api/v1/events?{query}", server.http)).header("Accept", "text/event-stream");
    if let Some(id) = last_id {
        request = request.header("Last-Event-ID", id);
    }
    let answer = request.call().unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut lines = BufReader::new(answer.into_body().into_reader()).lines();
    let (mut seqs, mut id) = (Vec::new(), String::new());
    while seqs.len() < events {
        let line = lines.next().unwrap().unwrap();
        if let Some(data) = line.strip_prefix("data: ") {
            seqs.push(serde_json::from_str::<Value>(data).unwrap()["metadata"]["sequence"].as_u64().unwrap());
        }
        if let Some(new) = line.strip_prefix("id: ") {
            id = new.to_owned();
        }
    }
    // The id stands before or behind the data: the event ends with an empty line.
    while let Some(Ok(line)) = lines.next().filter(|line| line.as_ref().is_ok_and(|line| !line.is_empty())) {
        if let Some(new) = line.strip_prefix("id: ") {
            id = new.to_owned();
        }
    }
    (seqs, id)
}

#[test]
fn a_stream_resumes_behind_its_last_id_also_after_a_kill() {
    let server = filled(100, &[]);
    let all = seqs(&get(&server, "/api/v1/events?limit=10000", &[]).2);
    let (first, id) = listen(&server, "", None, 10);
    assert_eq!(first, all[..10]);
    let mut server = Server::start_in(server.kill(), &[]);
    server.wait_until_visible();
    let (rest, last) = listen(&server, "", Some(&id), all.len() - 10);
    assert_eq!(rest, all[10..]);
    // What comes while it listens comes to it.
    std::thread::scope(|scope| {
        let server = &server;
        let waiting = scope.spawn(move || listen(server, "", Some(&last), 5));
        until(|| server.get("/metrics").1.contains("\ncustody_event_streams 1\n"));
        let mut sender = Sender(server.grpc.clone());
        sender.send(recorded_requests().into_iter().skip(100).take(40).collect());
        let new = waiting.join().unwrap().0;
        assert!(new.windows(2).all(|w| w[0] < w[1]) && new[0] > *all.last().unwrap(), "{new:?}");
    });
    let one = listen(&server, "kind=grant_denied", None, 2).0;
    assert_eq!(one, seqs(&get(&server, "/api/v1/events?kind=grant_denied&limit=2", &[]).2));
    server.stop_and_verify();
}

/// Sends to a server that somebody else holds.
struct Sender(String);

impl Sender {
    fn send(&mut self, requests: Vec<crate::support::Request>) {
        use crate::support::Request;
        use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
        use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let url = format!("http://{}", self.0);
        runtime.block_on(async {
            let mut traces = TraceServiceClient::connect(url.clone()).await.unwrap();
            let mut logs = LogsServiceClient::connect(url).await.unwrap();
            for request in requests {
                match request {
                    Request::Traces(request) => drop(traces.export(request).await.unwrap()),
                    Request::Logs(request) => drop(logs.export(request).await.unwrap()),
                }
            }
        });
    }
}

#[test]
fn grpc_streams_the_same_on_both_ports() {
    let mut server = filled(100, &[]);
    let all = get(&server, "/api/v1/events?limit=10000&format=ocsf", &[]).2;
    let all: Vec<String> = all.lines().map(str::to_owned).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for address in [&server.http, &server.flight_sql] {
        let (bodies, cursors) = runtime.block_on(async {
            let mut client = EventsClient::connect(format!("http://{address}")).await.unwrap();
            let ask = StreamEventsRequest { limit: 30, format: "ocsf".into(), ..StreamEventsRequest::default() };
            let mut pages = client.stream(ask.clone()).await.unwrap().into_inner();
            let (mut bodies, mut cursors, mut next) = (Vec::new(), Vec::new(), 0);
            while let Some(page) = pages.message().await.unwrap() {
                let range = page.range.unwrap();
                assert_eq!(range.from_seq, next);
                assert_eq!(range.matched as usize, page.events.len());
                assert!(page.checkpoint.lines().nth(1).unwrap().parse::<u64>().unwrap() >= range.to_seq);
                next = range.to_seq;
                bodies.extend(page.events.into_iter().map(|event| event.body));
                cursors.push(page.next_cursor);
            }
            let again = StreamEventsRequest { after: cursors[0].clone(), ..ask.clone() };
            let mut pages = client.stream(again).await.unwrap().into_inner();
            assert_eq!(pages.message().await.unwrap().unwrap().events[0].body, bodies[30]);
            let wrong = StreamEventsRequest { after: cursors[0].clone(), kinds: vec!["alert".into()], ..ask };
            assert_eq!(client.stream(wrong).await.unwrap_err().code(), tonic::Code::InvalidArgument);
            (bodies, cursors)
        });
        assert_eq!(bodies, all);
        assert!(cursors.len() > 2);
    }
    // A call that follows gets what comes.
    runtime.block_on(async {
        let mut client = EventsClient::connect(format!("http://{}", server.http)).await.unwrap();
        let ask =
            StreamEventsRequest { follow: true, limit: 10_000, kinds: vec!["request".into()], ..Default::default() };
        let mut pages = client.stream(ask).await.unwrap().into_inner();
        let first = pages.message().await.unwrap().unwrap();
        let grpc = server.grpc.clone();
        let send = move || Sender(grpc).send(recorded_requests().into_iter().skip(100).take(60).collect());
        let send = std::thread::Builder::new().name("sender".into()).spawn(send).unwrap();
        let second = loop {
            let page = pages.message().await.unwrap().unwrap();
            if !page.events.is_empty() {
                break page;
            }
        };
        assert!(second.events[0].seq > first.events.last().unwrap().seq);
        send.join().unwrap();
    });
    server.stop_and_verify();
}

#[test]
fn follow_goes_on_by_itself_over_a_restart_of_the_server_and_of_its_own() {
    let server = filled(60, &[]);
    let folder = tempfile::tempdir().unwrap();
    let (state, out) = (folder.path().join("state"), folder.path().join("out.ndjson"));
    let start = |http: &str| {
        let out = std::fs::OpenOptions::new().create(true).append(true).open(&out).unwrap();
        Command::new(CUSTODY)
            .args(["events", "--follow", "--url", &format!("http://{http}"), "--state-file"])
            .arg(&state)
            .stdout(out)
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let read = || seqs_so_far(&out);
    let all = |server: &Server| seqs(&get(server, "/api/v1/events?limit=10000", &[]).2);
    let mut follow = start(&server.http);
    let want = all(&server);
    until(|| read() == want);
    until(|| state.exists());
    // The server goes and comes back at the same address; the reader asks again.
    let mut server = server.kill_and_restart();
    server.send_grpc(recorded_requests().into_iter().skip(60).take(20).collect());
    server.wait_until_visible();
    let want = all(&server);
    until(|| read() == want);
    follow.kill().unwrap();
    follow.wait().unwrap();
    // A reader that was killed may print the page again that it had not noted; never less.
    server.send_grpc(recorded_requests().into_iter().skip(80).take(20).collect());
    server.wait_until_visible();
    let want = all(&server);
    let mut follow = start(&server.http);
    until(|| {
        let mut got = read();
        got.sort_unstable();
        got.dedup();
        got == want
    });
    follow.kill().unwrap();
    follow.wait().unwrap();
    let conflict = server.custody_output(&["events", "--after", "x", "--state-file", "y"]);
    assert_eq!(conflict.status.code(), Some(2));
    server.stop_and_verify();
}
