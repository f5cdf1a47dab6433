//! What readers share: streams come in parts that are made once for all of them, and each reader may go on from
//! any id of any part; a cursor knows the log that it is of.

use std::io::{BufRead as _, BufReader};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use custody_query::serve::events::generated::StreamEventsRequest;
use custody_query::serve::events::generated::events_client::EventsClient;

use super::{JSON, call, filled, get, json_of, seqs};
use crate::support::{CUSTODY, Server};

/// The first events of a stream, each as its lines without the empty one behind it.
fn stream(server: &Server, query: &str, last_id: Option<&str>, events: usize) -> Vec<Vec<String>> {
    let agent = ureq::Agent::new_with_defaults();
    let mut request =
        agent.get(format!("http://{}/api/v1/events?{query}", server.http)).header("Accept", "text/event-stream");
    if let Some(id) = last_id {
        request = request.header("Last-Event-ID", id);
    }
    let mut lines = BufReader::new(request.call().unwrap().into_body().into_reader()).lines().map(Result::unwrap);
    let mut out = Vec::new();
    while out.len() < events {
        let event: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        // One without data only tells how far it has looked.
        if event.iter().any(|line| line.starts_with("data: ")) {
            out.push(event);
        }
    }
    out
}

/// How many pages were written so far.
fn made(server: &Server) -> u64 {
    let metrics = server.get("/metrics").1;
    let name = "\ncustody_event_pages_made_total ";
    let value = &metrics[metrics.find(name).unwrap() + name.len()..];
    value.lines().next().unwrap().parse().unwrap()
}

fn seq_of(event: &[String]) -> u64 {
    seqs(event[0].strip_prefix("data: ").unwrap())[0]
}

fn id_of(event: &[String]) -> Option<&str> {
    event.iter().find_map(|line| line.strip_prefix("id: "))
}

#[test]
fn a_reader_may_go_on_from_any_id_of_a_part() {
    let mut server = filled(100, &[]);
    let lines = get(&server, "/api/v1/events?limit=10000", &[]).2;
    let all = seqs(&lines);
    // Many at once, in every form: the same bytes, and those of a page.
    let streams = std::thread::scope(|scope| {
        let (server, events) = (&server, all.len());
        let readers: Vec<_> = (0..8).map(|_| scope.spawn(move || stream(server, "", None, events))).collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(streams.windows(2).all(|two| two[0] == two[1]));
    assert!(made(&server) <= 3, "a page for the first answer, and one for all streams: {}", made(&server));
    let data: Vec<&str> = streams[0].iter().map(|event| event[0].strip_prefix("data: ").unwrap()).collect();
    assert_eq!(data, lines.lines().collect::<Vec<_>>());
    let array = json_of(&server, "/api/v1/events?limit=10000");
    let array = array["data"].as_array().unwrap().iter();
    assert!(array.zip(&data).all(|(event, line)| *event == serde_json::from_str::<serde_json::Value>(line).unwrap()));
    assert_eq!(json_of(&server, "/api/v1/events?limit=10000")["data"].as_array().unwrap().len(), data.len());
    // Each record has one id, with its last event; from there on no event is missing and none comes twice.
    for (i, event) in streams[0].iter().enumerate() {
        let is_last = streams[0].get(i + 1).is_none_or(|next| seq_of(next) != seq_of(event));
        assert_eq!(id_of(event).is_some(), is_last, "{event:?}");
        let Some(id) = id_of(event).filter(|_| i % 5 == 0 && i + 1 < all.len()) else { continue };
        assert_eq!(stream(&server, "", Some(id), all.len() - i - 1), streams[0][i + 1..]);
        let page = get(&server, &format!("/api/v1/events?limit=10000&after={id}"), &[]).2;
        assert_eq!(seqs(&page), all[i + 1..], "an id is a cursor of pages, too");
    }
    server.stop_and_verify();
}

#[test]
fn messages_of_calls_are_whole_and_join() {
    let mut server = filled(100, &[]);
    let want = get(&server, "/api/v1/events?limit=10000", &[]).2;
    let want: Vec<&str> = want.lines().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let call = |limit: u32, follow: bool| {
        let (address, want) = (format!("http://{}", server.http), &want);
        async move {
            let mut client = EventsClient::connect(address).await.unwrap();
            let ask = StreamEventsRequest { limit, follow, ..StreamEventsRequest::default() };
            let mut messages = client.stream(ask).await.unwrap().into_inner();
            let (mut got, mut at) = (Vec::new(), 0);
            while got.len() < want.len() {
                let message = messages.message().await.unwrap().unwrap();
                let range = message.range.unwrap();
                let mut records: Vec<u64> = message.events.iter().map(|event| event.seq).collect();
                records.dedup();
                assert_eq!((range.from_seq, range.matched), (at, message.events.len() as u64));
                assert_eq!(range.skipped, range.to_seq - range.from_seq - records.len() as u64);
                at = range.to_seq;
                for event in message.events {
                    let read: serde_json::Value = serde_json::from_str(&event.body).unwrap();
                    assert_eq!(read["metadata"]["uid"], event.uid);
                    assert_eq!(read["metadata"]["sequence"], event.seq);
                    got.push(event.body);
                }
            }
            got
        }
    };
    runtime.block_on(async {
        let calls = [(1, false), (7, true), (7, false), (10_000, true), (10_000, false), (7, true)];
        for got in futures::future::join_all(calls.map(|(limit, follow)| call(limit, follow))).await {
            assert_eq!(got, want);
        }
    });
    server.stop_and_verify();
}

/// Events are written once for all who follow, of the kinds that somebody asks for: whoever comes later with other kinds,
/// and whoever pauses, misses none for it.
#[test]
fn readers_of_other_kinds_find_all_of_theirs_whoever_read_before() {
    let mut server = filled(0, &[]);
    let mut requests = crate::support::recorded_requests();
    let wanted = ["grant_denied", "tool_call", "grant_denied,tool_call", "", "model_call,tool_result", "grant_issued"];
    // Turns in which a reader pauses: others extend what is shared then, without his kinds.
    let pauses: [&[usize]; 6] = [&[], &[0, 1, 4], &[0, 3], &[1, 2, 4], &[0, 1, 2, 3], &[5]];
    let mut seen = wanted.map(|_| (String::new(), Vec::<u64>::new()));
    let turns = 6;
    for turn in 0..turns {
        let rest = requests.split_off(requests.len() / (turns - turn));
        server.send_grpc(std::mem::replace(&mut requests, rest));
        server.wait_until_visible();
        for format in ["raw", "ocsf"] {
            let readers = wanted.iter().zip(&pauses).zip(&mut seen);
            for ((kinds, pauses), (cursor, got)) in readers {
                if pauses.contains(&turn) && turn + 1 < turns {
                    continue;
                }
                let kind = if kinds.is_empty() { String::new() } else { format!("&kind={kinds}") };
                let path = format!("/api/v1/events?limit=700&format={format}{kind}");
                if format == "ocsf" {
                    // Beside it, the same of another format from the beginning.
                    get(&server, &path, &[]);
                    continue;
                }
                loop {
                    let (_, headers, body) = get(&server, &format!("{path}&after={cursor}"), &[]);
                    *cursor = headers["x-next-cursor"].to_str().unwrap().to_owned();
                    let page = seqs(&body);
                    got.extend(&page);
                    if page.is_empty() {
                        break;
                    }
                }
            }
        }
    }
    for (kinds, (_, got)) in wanted.iter().zip(&seen) {
        let list: Vec<String> = kinds.split(',').map(|kind| format!("'{kind}'")).collect();
        let filter = if kinds.is_empty() { String::new() } else { format!("WHERE kind IN ({})", list.join(", ")) };
        let rows = server.sql(&format!("SELECT seq FROM events {filter} ORDER BY seq"));
        let want: Vec<u64> = rows.iter().map(|row| row["seq"].as_u64().unwrap()).collect();
        assert!(*got == want && (want.len() > 3), "{kinds:?}: {} of {}", got.len(), want.len());
    }
    server.stop_and_verify();
}

/// A log that was restored and has grown past a cursor is another one there, and says so.
#[test]
fn a_cursor_of_what_a_restored_log_has_lost_is_refused_also_when_it_has_grown_past_it() {
    let server = filled(20, &[]);
    let data = server.data_dir();
    let (dir, backups) = (data.to_str().unwrap(), server.path().join("backups"));
    let backups = backups.to_str().unwrap().to_owned();
    let before = json_of(&server, "/api/v1/events?limit=5")["next_cursor"].as_str().unwrap().to_owned();
    let backup = ["backup", "--to", &backups, "--with-keys", "--data-dir", dir];
    assert!(Command::new(CUSTODY).args(backup).status().unwrap().success());
    server.send_span_of("lost");
    server.wait_until_visible();
    let cursor = json_of(&server, "/api/v1/events?limit=10000")["next_cursor"].as_str().unwrap().to_owned();
    for _ in 0..2 {
        assert_eq!(call(&server, "POST", "/api/v1/consumers/siem/next?limit=10000", &[]).0, 200);
    }
    let folder = server.kill();
    let lost = folder.path().join("lost");
    std::fs::rename(&data, &lost).unwrap();
    let restored = Command::new(CUSTODY).args(["restore", "--from", &backups, "--data-dir", dir]).output();
    assert!(restored.unwrap().status.success());
    std::fs::copy(lost.join("consumers.json"), data.join("consumers.json")).unwrap();
    let mut server = Server::start_in(folder, &["--after-restore"]);
    // The same records once more, and others: it is larger than ever.
    for tenant in ["lost", "a", "bc", "def"] {
        server.send_span_of(tenant);
    }
    server.send_grpc(crate::support::recorded_requests().into_iter().skip(20).take(20).collect());
    server.wait_until_visible();
    let refused = |(status, _, body): (u16, ureq::http::HeaderMap, String)| {
        assert!(
            status == 400 && body.contains("was another one: the log was restored or rolled back"),
            "{status} {body}"
        );
    };
    refused(get(&server, &format!("/api/v1/events?after={cursor}"), &[]));
    refused(get(&server, &format!("/api/v1/events?wait=30s&after={cursor}"), JSON));
    refused(get(&server, "/api/v1/events", &[("Accept", "text/event-stream"), ("Last-Event-ID", &cursor)]));
    refused(call(&server, "POST", "/api/v1/consumers/siem/next", &[]));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let status = runtime.block_on(async {
        let mut client = EventsClient::connect(format!("http://{}", server.http)).await.unwrap();
        let ask = StreamEventsRequest { after: cursor.clone(), ..StreamEventsRequest::default() };
        client.stream(ask).await.unwrap_err()
    });
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    // What was in the backup is the same still.
    assert_eq!(get(&server, &format!("/api/v1/events?after={before}"), &[]).0, 200);
    // Cursors that were given out before there were marks say nothing of the log, and stay good.
    let mut unmarked = URL_SAFE_NO_PAD.decode(&cursor).unwrap();
    unmarked.truncate(25);
    unmarked[0] = 2;
    let unmarked = URL_SAFE_NO_PAD.encode(unmarked);
    assert_eq!(get(&server, &format!("/api/v1/events?after={unmarked}"), &[]).0, 200);
    assert_eq!(call(&server, "DELETE", "/api/v1/consumers/siem", &[]).0, 200);
    assert_eq!(call(&server, "POST", "/api/v1/consumers/siem/next", &[]).0, 200, "it begins again");
    server.stop_and_verify();
}
