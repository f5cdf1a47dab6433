//! The mapping of JSON documents, fed with what was right once and is changed byte by byte.
//! `tests/fuzz` has the same under libFuzzer.

#[path = "../../tests/support/dice.rs"]
mod dice;

use custody_proto::wire::{AnyValue, InstrumentationScope, LogRecord, Resource, Value as Body};
use custody_query::mapping::{RecordContext, map_log};
use custody_query::rows::Time;
use serde_json::Value;

/// Maps a log record with this body. Whatever it is: no panic, attributes that are JSON, and no
/// grant that is good for ever or for everything.
pub fn document(bytes: &[u8]) -> usize {
    let (resource, scope) = (Resource::default(), InstrumentationScope::default());
    let context = RecordContext {
        seq: 1,
        record_hash: "",
        ingest_time: Time(1),
        submitter: "fuzz",
        resource: &resource,
        scope: &scope,
    };
    let text = String::from_utf8_lossy(bytes);
    let body = Some(AnyValue { value: Some(Body::StringValue(&text)) });
    let rows = map_log(&context, &LogRecord { body, ..LogRecord::default() });
    for row in &rows {
        let said: Value = serde_json::from_str(&row.attributes).expect("attributes are JSON");
        assert!(!row.kind.is_empty() && !row.source.is_empty());
        if row.source == "oauth" && row.invalid_reasons.is_empty() {
            assert!(said["authz.grant.expires_at"].is_i64(), "{said}");
            assert!(!said["authz.grant.actions"].to_string().contains('*'), "{said}");
        }
    }
    rows.len()
}

fn seeds() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/sources");
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    files.sort();
    let read = |path| serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap();
    let bodies = files.iter().flat_map(|path| {
        let file = read(path);
        let records = file["records"].as_array().unwrap().clone();
        records.into_iter().filter_map(|record| Some(record["log"].get("body")?.to_string().into_bytes()))
    });
    bodies.collect()
}

#[test]
fn documents() {
    let seeds = seeds();
    assert!(seeds.len() > 50);
    let mut events = 0;
    dice::fuzz(5000, &seeds, |text, _| events += document(text));
    assert!(events > 500, "most of it still is a document: {events}");
}
