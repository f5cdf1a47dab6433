//! What a request says by its headers: as what it takes events, and what of them it has.

use serde_json::Value;

use super::{JSON, call, filled, get};

#[test]
fn pages_and_batches_come_as_they_are_accepted() {
    let mut server = filled(20, &[]);
    let (lines, object) = ("application/x-ndjson", "application/json");
    for (accept, want) in [
        ("application/jsonl", lines),
        ("application/json-seq", lines),
        ("application/JSON", object),
        ("text/plain, application/json, */*", object),
        ("application/json;q=0, application/x-ndjson", lines),
        ("*/*", lines),
    ] {
        let headers = [("Accept", accept)];
        let answers = [
            get(&server, "/api/v1/events?limit=2", &headers),
            call(&server, "POST", "/api/v1/consumers/c/next?limit=2", &headers),
        ];
        for (status, headers, body) in answers {
            assert_eq!((status, headers["content-type"].to_str().unwrap()), (200, want), "{accept}: {body}");
            let is_object = body.starts_with("{\"data\":");
            assert_eq!(is_object, want == object, "{accept}: {body}");
        }
    }
    // Lines of CEF are text, for whoever asks.
    let cef = get(&server, "/api/v1/events?limit=2&format=cef", &[]);
    let batch = call(&server, "POST", "/api/v1/consumers/cef/next?limit=2&format=cef", &[]);
    assert_eq!(cef.1["content-type"], "text/plain; charset=utf-8");
    assert_eq!((batch.0, &batch.1["content-type"], batch.2), (200, &cef.1["content-type"], cef.2));
    server.stop_and_verify();
}

#[test]
fn a_batch_has_a_checkpoint_that_covers_it() {
    let mut server = filled(20, &[]);
    let batch = call(&server, "POST", "/api/v1/consumers/c/next?limit=10000", JSON);
    let body: Value = serde_json::from_str(&batch.2).unwrap();
    let note = body["checkpoint"].as_str().unwrap();
    let size: u64 = note.lines().nth(1).unwrap().parse().unwrap();
    assert!(size > body["range"]["last_seq"].as_u64().unwrap(), "{note}");
    assert_eq!(body["next_cursor"], "", "the server keeps the place");
    assert!(batch.1.contains_key("x-checkpoint"));
    let empty = call(&server, "POST", "/api/v1/consumers/c/next?limit=10000", &[]);
    assert!(empty.1.contains_key("x-checkpoint"), "{:?}", empty.1);
    server.stop_and_verify();
}

#[test]
fn a_page_that_the_reader_has_is_not_sent_again_be_its_tag_weakened() {
    let mut server = filled(20, &[]);
    for headers in [&[][..], JSON] {
        let (_, first, _) = get(&server, "/api/v1/events?limit=5", headers);
        let etag = first["etag"].to_str().unwrap().to_owned();
        for known in [format!("W/{etag}"), format!("\"x\", W/{etag}"), "*".to_owned()] {
            let asked = [headers, &[("If-None-Match", known.as_str())]].concat();
            let (status, again, body) = get(&server, "/api/v1/events?limit=5", &asked);
            assert_eq!((status, body.as_str()), (304, ""), "{known}");
            assert!(again["etag"].to_str().unwrap().starts_with('"'), "{again:?}");
            assert_eq!(again["x-next-cursor"], first["x-next-cursor"]);
        }
    }
    server.stop_and_verify();
}
