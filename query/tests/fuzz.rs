//! The mapping of JSON documents, fed with what was right once and is changed byte by byte. A run
//! is deterministic; with `CUSTODY_FUZZ_SECONDS=600` it runs that long, from a seed that is
//! printed. `tests/fuzz` has the same under libFuzzer.

use std::time::{Duration, Instant};

use custody_proto::otlp::common::{AnyValue, InstrumentationScope, any_value::Value as Body};
use custody_proto::otlp::logs::LogRecord;
use custody_proto::otlp::resource::Resource;
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
    let text = String::from_utf8_lossy(bytes).into_owned();
    let body = Some(AnyValue { value: Some(Body::StringValue(text)) });
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

/// xorshift64*: enough for choosing places.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides.max(1)
    }
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
    let seconds: Option<u64> = std::env::var("CUSTODY_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let (start, seed) = (Instant::now(), seconds.map_or(7, |_| u64::from(std::process::id())));
    println!("seed {seed}");
    let (mut dice, mut events) = (Dice(0x9e37_79b9_7f4a_7c15 ^ seed), 0);
    for round in 0.. {
        let is_over = match seconds {
            Some(seconds) => start.elapsed() > Duration::from_secs(seconds),
            None => round >= 5000,
        };
        if is_over {
            println!("{round} rounds, {events} events");
            break;
        }
        let mut text = seeds[dice.roll(seeds.len())].clone();
        for _ in 0..=dice.roll(3) {
            let (at, other) = (dice.roll(text.len()), dice.roll(seeds.len()));
            match dice.roll(5) {
                0 => text[at] = b"\"{}[],:-e.0\\\xff\x00"[dice.roll(13)],
                1 => drop(text.drain(at..(at + 1 + dice.roll(16)).min(text.len()))),
                2 => text.truncate(at),
                3 => {
                    let part = &seeds[other];
                    let from = dice.roll(part.len());
                    text.splice(at..at, part[from..(from + 24).min(part.len())].iter().copied());
                }
                _ => text[at] ^= 1 << dice.roll(8),
            }
            if text.is_empty() {
                break;
            }
        }
        events += document(&text);
    }
    assert!(events > 500, "most of it still is a document: {events}");
}
