//! An operator with full write access changes the log. Each kind of change is
//! found by `custody verify`, with exit status 1 and the right seq.
//!
//! The changes are made through RocksDB, as someone would who knows it: its own
//! checksums are right again afterwards. A few are made in the files themselves.

use std::path::Path;
use std::process::Command;

use custody_proto::otlp::collector_trace::ExportTraceServiceRequest;
use custody_proto::otlp::common::{AnyValue, KeyValue, any_value::Value};
use custody_proto::otlp::resource::Resource;
use custody_proto::otlp::trace::{ResourceSpans, ScopeSpans, Span};
use custody_proto::{Limits, Signal, scan};
use custody_store::format::cf;
use custody_store::{Encoding, Options, Prepared, Writer, open};
use prost::Message as _;
use rocksdb::DB;

/// Spans in a block, and blocks in the log.
const SPANS: u64 = 10;
const BLOCKS: u64 = 60;

fn text(key: &str, value: String) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(Value::StringValue(value)) }), ..Default::default() }
}

fn request(block: u64) -> Prepared {
    request_of(block, SPANS)
}

fn request_of(block: u64, spans: u64) -> Prepared {
    let span = |i: u64| Span {
        trace_id: [&(block + 1).to_be_bytes()[..], &[7; 8]].concat(),
        span_id: (block * spans + i + 1).to_be_bytes().to_vec(),
        name: format!("execute_tool number-{}", block * spans + i),
        attributes: vec![text("gen_ai.tool.call.arguments", format!("{{\"amount\": {}}}", 1000 + i))],
        ..Default::default()
    };
    let resource = Resource { attributes: vec![text("service.name", format!("agent-{block}"))], ..Default::default() };
    let scope_spans = vec![ScopeSpans {
        spans: (0..spans).map(span).collect(),
        schema_url: "https://schema".into(),
        ..Default::default()
    }];
    let resource_spans = vec![ResourceSpans { resource: Some(resource), scope_spans, ..Default::default() }];
    let payload = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
    let scan = scan(Signal::Traces, &payload, &Limits::default()).unwrap();
    Prepared::new(Signal::Traces, Encoding::Protobuf, payload.into(), scan, "peer:127.0.0.1")
}

fn fill(writer: &mut Writer) {
    for block in 0..BLOCKS {
        writer.append(vec![request(block)]).unwrap();
    }
    writer.checkpoint().unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Runs `custody verify`; gives its exit status and what it printed.
fn verdict(dir: &Path) -> (i32, serde_json::Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_custody"))
        .args(["verify", "--json", "--data-dir"])
        .arg(dir)
        .output()
        .expect("custody runs");
    let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap_or(-1), json)
}

/// A sound log, of which every case changes its own copy.
struct Original(tempfile::TempDir);

impl Original {
    fn new() -> Self {
        Self::filled(1 + SPANS * BLOCKS, fill)
    }

    fn filled(records: u64, fill: impl FnOnce(&mut Writer)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) = open(dir.path(), Options::default()).unwrap();
        fill(&mut writer);
        drop(writer);
        let (status, json) = verdict(dir.path());
        assert_eq!(status, 0, "{json}");
        assert_eq!(json["records"], records);
        Self(dir)
    }

    fn changed(&self, change: impl FnOnce(&Path)) -> (i32, serde_json::Value) {
        let dir = tempfile::tempdir().unwrap();
        copy(self.0.path(), dir.path());
        change(dir.path());
        verdict(dir.path())
    }

    /// Changes the log through RocksDB; the first bad seq must be `seq`.
    fn case(&self, name: &str, seq: u64, change: impl FnOnce(&Db)) {
        self.file_case(name, seq, |dir| change(&Db::open(dir)));
    }

    fn file_case(&self, name: &str, seq: u64, change: impl FnOnce(&Path)) {
        let (status, json) = self.changed(change);
        assert_eq!(status, 1, "{name}: {json}");
        assert_eq!(json["seq"], seq, "{name}: {json}");
        assert!(json["reason"].as_str().is_some_and(|r| r.len() > 20), "{name}: {json}");
    }
}

struct Db(DB);

impl Db {
    fn open(dir: &Path) -> Self {
        Self(DB::open_cf(&rocksdb::Options::default(), dir.join("log"), cf::ALL).unwrap())
    }

    fn get(&self, family: &str, key: &[u8]) -> Vec<u8> {
        self.0.get_cf(self.0.cf_handle(family).unwrap(), key).unwrap().expect("the key is there")
    }

    fn put(&self, family: &str, key: &[u8], value: &[u8]) {
        self.0.put_cf(self.0.cf_handle(family).unwrap(), key, value).unwrap();
    }

    fn delete(&self, family: &str, key: &[u8]) {
        self.get(family, key);
        self.0.delete_cf(self.0.cf_handle(family).unwrap(), key).unwrap();
    }

    fn edit(&self, family: &str, key: &[u8], edit: impl FnOnce(&mut Vec<u8>)) {
        let mut value = self.get(family, key);
        let before = value.clone();
        edit(&mut value);
        assert_ne!(before, value, "the edit changed something");
        self.put(family, key, &value);
    }

    fn swap(&self, family: &str, a: &[u8], b: &[u8]) {
        let (at_a, at_b) = (self.get(family, a), self.get(family, b));
        self.put(family, a, &at_b);
        self.put(family, b, &at_a);
    }
}

/// The key of the block whose first span has this number.
fn key(block: u64) -> [u8; 8] {
    (1 + block * SPANS).to_be_bytes()
}

fn find(haystack: &[u8], needle: &str) -> usize {
    haystack.windows(needle.len()).position(|w| w == needle.as_bytes()).expect("the text is there")
}

#[test]
fn content_that_was_changed_is_found_at_its_seq() {
    let log = Original::new();
    log.case("one digit of one argument", 1 + 34, |db| {
        db.edit(cf::PAYLOADS, &key(3), |v| {
            let at = find(v, "number-34") + 30;
            v[at] ^= 1;
        });
    });
    log.case("the first record's name", 1, |db| {
        db.edit(cf::PAYLOADS, &key(0), |v| {
            let at = find(v, "number-0");
            v[at] = b'X';
        });
    });
    log.case("the last record's name", 1 + 599, |db| {
        db.edit(cf::PAYLOADS, &key(59), |v| {
            let at = find(v, "number-599");
            v[at] = b'X';
        });
    });
    log.case("the resource that a block shares", 1 + 70, |db| {
        db.edit(cf::PAYLOADS, &key(7), |v| {
            let at = find(v, "agent-7");
            v[at] = b'X';
        });
    });
    log.case("bytes that belong to no record", 1 + 80, |db| {
        db.edit(cf::PAYLOADS, &key(8), |v| {
            let at = find(v, "https://schema");
            v[at] = b'X';
        });
    });
    log.case("a byte put in", 1 + 90, |db| db.edit(cf::PAYLOADS, &key(9), |v| v.insert(40, 0)));
    log.case("a byte taken out", 1 + 90, |db| db.edit(cf::PAYLOADS, &key(9), |v| v.truncate(v.len() - 1)));
    log.case("two payloads swapped", 1 + 110, |db| db.swap(cf::PAYLOADS, &key(11), &key(12)));
    log.case("two whole blocks of content swapped", 1 + 110, |db| {
        db.swap(cf::PAYLOADS, &key(11), &key(12));
        db.swap(cf::BLOCKS, &key(11), &key(12));
    });
    log.case("a payload removed", 1 + 130, |db| db.delete(cf::PAYLOADS, &key(13)));
    log.case("a block's content removed", 1 + 130, |db| {
        db.delete(cf::PAYLOADS, &key(13));
        db.delete(cf::BLOCKS, &key(13));
    });
    log.case("content put in where there is no entry", 1 + 145, |db| {
        db.put(cf::PAYLOADS, &146u64.to_be_bytes(), b"forged");
        db.put(cf::BLOCKS, &146u64.to_be_bytes(), &db.get(cf::BLOCKS, &key(14)));
    });
}

/// Large requests are kept compressed (docs/format.md).
#[test]
fn what_was_changed_within_a_compressed_request_is_found_at_its_seq() {
    let log = Original::filled(1 + 2 * 200, |writer| {
        for block in 0..2 {
            writer.append(vec![request_of(block, 200)]).unwrap();
        }
        writer.checkpoint().unwrap();
    });
    let second = 1u64 + 200;
    let edit = |db: &Db, edit: &dyn Fn(&mut Vec<u8>)| db.edit(cf::PAYLOADS, &second.to_be_bytes(), edit);
    let inside = |db: &Db, change: &dyn Fn(&mut Vec<u8>)| {
        edit(db, &|kept| {
            let mut payload = zstd::decode_all(&kept[..]).expect("it is compressed");
            assert!(kept.len() < payload.len());
            change(&mut payload);
            *kept = zstd::bulk::compress(&payload, 3).unwrap();
        });
    };
    log.case("one digit of one argument, compressed again", second + 34, |db| {
        inside(db, &|payload| {
            let at = find(payload, "number-234") + 30;
            payload[at] ^= 1;
        });
    });
    log.case("a byte more, compressed again", second, |db| inside(db, &|payload| payload.push(0)));
    log.case("something behind the frame", second, |db| edit(db, &|kept| kept.extend(b"more")));
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    log.case("a frame behind the frame", second, |db| edit(db, &|kept| kept.extend(skippable)));
    log.case("the frame cut off", second, |db| edit(db, &|kept| kept.truncate(kept.len() - 1)));
    log.case("no frame at all", second, |db| edit(db, &|kept| kept.fill(7)));
    // The same bytes, not compressed: nothing was changed that anybody was told of.
    let (status, json) = log.changed(|dir| edit(&Db::open(dir), &|kept| *kept = zstd::decode_all(&kept[..]).unwrap()));
    assert_eq!(status, 0, "{json}");
}

#[test]
fn a_layout_that_was_changed_is_found_at_its_block() {
    let log = Original::new();
    log.case("the salt", 1 + 150, |db| db.edit(cf::BLOCKS, &key(15), |v| *v.last_mut().unwrap() ^= 1));
    log.case("the sender", 1 + 150, |db| {
        db.edit(cf::BLOCKS, &key(15), |v| {
            let at = find(v, "127.0.0.1");
            v[at] = b'9';
        });
    });
    log.case("one record's range", 1 + 160, |db| {
        db.edit(cf::BLOCKS, &key(16), |v| {
            // Behind the records stand the number of copies and the salt.
            let at = v.len() - 32 - 4 - 1;
            v[at] -= 1;
        });
    });
    log.case("that something was erased", 1 + 160, |db| db.edit(cf::BLOCKS, &key(16), |v| v[3] = 1));
    log.case("how it was encoded", 1 + 160, |db| db.edit(cf::BLOCKS, &key(16), |v| v[2] = 1));
    log.case("the version byte", 1 + 160, |db| db.edit(cf::BLOCKS, &key(16), |v| v[0] = 2));
}

#[test]
fn entries_that_were_changed_are_found() {
    let log = Original::new();
    log.case("one commitment", 1 + 204, |db| db.edit(cf::ENTRIES, &key(20), |v| v[80 + 20 + 4 * 32] ^= 1));
    log.case("one flag", 1 + 200, |db| db.edit(cf::ENTRIES, &key(20), |v| v[81] ^= 1));
    log.case("the ingest time", 1 + 210, |db| db.edit(cf::ENTRIES, &key(21), |v| v[23] ^= 1));
    log.case("the submitter", 1 + 210, |db| db.edit(cf::ENTRIES, &key(21), |v| v[24] ^= 1));
    log.case("the submitter's counter", 1 + 210, |db| db.edit(cf::ENTRIES, &key(21), |v| v[47] ^= 1));
    log.case("the previous chain hash", 1 + 220, |db| db.edit(cf::ENTRIES, &key(22), |v| v[60] ^= 1));
    log.case("the kind of record", 1 + 220, |db| db.edit(cf::ENTRIES, &key(22), |v| v[1] = 2));
    log.case("a block's entries removed", 1 + 230, |db| db.delete(cf::ENTRIES, &key(23)));
    log.case("a whole block removed", 1 + 230, |db| {
        for family in [cf::ENTRIES, cf::BLOCKS, cf::PAYLOADS] {
            db.delete(family, &key(23));
        }
    });
    log.case("entries swapped", 1 + 240, |db| db.swap(cf::ENTRIES, &key(24), &key(25)));
    log.case("the last entry's flag", 1 + 590, |db| db.edit(cf::ENTRIES, &key(59), |v| v[81] ^= 1));
}

#[test]
fn tiles_head_and_tail_that_were_changed_are_found() {
    let log = Original::new();
    let node = |index: u8| [&[1][..], &[0; 7], &[index]].concat();
    log.case("a tile's hash", 256, |db| db.edit(cf::NODES, &node(1), |v| v[5] ^= 1));
    log.case("a tile removed", 0, |db| db.delete(cf::NODES, &node(0)));
    log.case("tiles swapped", 0, |db| db.swap(cf::NODES, &node(0), &node(1)));
    log.case("a tile put in", 601, |db| db.put(cf::NODES, &node(9), &[7; 32]));
    log.case("the head's hash", 601, |db| db.edit(cf::META, b"head", |v| v[20] ^= 1));
    log.case("the tail cut off, with the head made to fit", 591, |db| {
        let previous = db.get(cf::ENTRIES, &key(59))[48..80].to_vec();
        for family in [cf::ENTRIES, cf::BLOCKS, cf::PAYLOADS] {
            db.delete(family, &key(59));
        }
        db.put(cf::META, b"head", &[&591u64.to_be_bytes()[..], &previous].concat());
    });
}

#[test]
fn a_checkpoint_or_key_that_was_changed_is_found() {
    let log = Original::new();
    let edit = |name: &'static str, edit: fn(&mut Vec<u8>)| {
        move |dir: &Path| {
            let mut bytes = std::fs::read(dir.join(name)).unwrap();
            edit(&mut bytes);
            std::fs::write(dir.join(name), bytes).unwrap();
        }
    };
    log.file_case("the checkpoint's origin", 0, edit("checkpoint", |v| v[0] ^= 1));
    log.file_case(
        "the checkpoint's signature",
        0,
        edit("checkpoint", |v| {
            let at = v.len() - 10;
            v[at] = if v[at] == b'A' { b'B' } else { b'A' };
        }),
    );
    log.file_case("the checkpoint removed", 0, |dir| std::fs::remove_file(dir.join("checkpoint")).unwrap());
    log.file_case("the public key of another log", 0, |dir| {
        let other = Original::new();
        for name in ["log.vkey", "checkpoint"] {
            std::fs::copy(other.0.path().join(name), dir.join(name)).unwrap();
        }
    });
}

/// The whole history written anew, consistent in itself, by one who does not
/// have the signing key: only the old checkpoint tells.
#[test]
fn a_log_that_was_written_anew_is_not_the_one_that_was_signed() {
    let log = Original::new();
    let other = Original::new();
    log.file_case("another log's database", 0, |dir| {
        std::fs::remove_dir_all(dir.join("log")).unwrap();
        copy(&other.0.path().join("log"), &dir.join("log"));
    });
}

/// The operator has the keys too: he writes another history, all hashes right, and signs
/// it. A checkpoint that anybody else kept tells.
#[test]
fn a_history_written_anew_with_the_keys_does_not_fit_a_checkpoint_that_was_kept() {
    let log = Original::new();
    let kept = log.0.path().join("checkpoint");
    let other = tempfile::tempdir().unwrap();
    let origin = std::fs::read_to_string(&kept).unwrap().lines().next().unwrap().to_owned();
    let keys = custody_store::KeySource::File(log.0.path().join("keys/log.key"));
    let (mut writer, _) = open(other.path(), Options { origin: Some(origin), keys, ..Options::default() }).unwrap();
    for block in (0..=BLOCKS).filter(|block| *block != 31) {
        writer.append(vec![request(block)]).unwrap();
    }
    writer.checkpoint().unwrap();
    drop(writer);
    assert_eq!(verdict(other.path()).0, 0, "by itself it is sound");
    let trusted = Command::new(env!("CARGO_BIN_EXE_custody"))
        .args(["verify", "--json", "--trusted"])
        .arg(&kept)
        .arg("--data-dir")
        .arg(other.path())
        .output()
        .unwrap();
    assert_eq!(trusted.status.code(), Some(1), "{trusted:?}");
    assert!(String::from_utf8_lossy(&trusted.stdout).contains("written anew"), "{trusted:?}");
}

/// Raw damage to RocksDB's files: never "sound", and never a crash.
#[test]
fn damaged_files_are_never_called_sound() {
    let log = Original::new();
    let flush = |dir: &Path| Db::open(dir).0.compact_range::<&[u8], &[u8]>(None, None);
    let damage = |extension: &'static str, part: usize| {
        move |dir: &Path| {
            if extension == "sst" {
                flush(dir);
            }
            let largest = std::fs::read_dir(dir.join("log"))
                .unwrap()
                .map(|e| e.unwrap().path())
                .filter(|p| p.extension().is_some_and(|e| e == extension))
                .max_by_key(|p| std::fs::metadata(p).unwrap().len())
                .expect("there is such a file");
            let mut bytes = std::fs::read(&largest).unwrap();
            let at = bytes.len() * part / 8;
            bytes[at] ^= 0x40;
            std::fs::write(&largest, bytes).unwrap();
        }
    };
    for part in [1, 3, 5] {
        for extension in ["sst", "log"] {
            let (status, json) = log.changed(damage(extension, part));
            assert!(status == 1 || status == 2, "{extension} {part}: {status} {json}");
        }
    }
}

#[test]
fn a_store_that_cannot_be_read_is_neither_sound_nor_tampered() {
    let log = Original::new();
    for name in ["log/CURRENT", "FORMAT"] {
        let (status, json) = log.changed(|dir| std::fs::remove_file(dir.join(name)).unwrap());
        assert_eq!(status, 2, "{name}: {json}");
    }
    let nothing = tempfile::tempdir().unwrap();
    assert_eq!(verdict(nothing.path()).0, 2);
}
