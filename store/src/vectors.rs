//! The worked example of docs/format.md, computed twice: by this crate, and by
//! the formulas of the document with nothing but BLAKE3 and SHA-256.

use custody_proto::otlp::collector_trace::ExportTraceServiceRequest;
use custody_proto::otlp::common::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use custody_proto::otlp::resource::Resource;
use custody_proto::otlp::trace::{ResourceSpans, ScopeSpans, Span};
use custody_proto::{Limits, Signal, scan};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::checkpoint::Checkpoint;
use crate::commit::{Prepared, context};
use crate::format::{Commitments, Encoding};
use crate::keys::SigningKey;
use crate::note::{Algorithm, Note};
use crate::tree::leaf_hash;

const DOCUMENT: &str = include_str!("../../docs/format.md");

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(Value::StringValue(value.into())) }),
        ..Default::default()
    }
}

/// One span, as an exporter would send it.
fn payload() -> Vec<u8> {
    let span = Span {
        trace_id: (0x10..0x20).collect(),
        span_id: (0x20..0x28).collect(),
        name: "execute_tool send_money".into(),
        kind: 1,
        start_time_unix_nano: 1_700_000_000_000_000_000,
        end_time_unix_nano: 1_700_000_001_000_000_000,
        attributes: vec![text("gen_ai.tool.name", "send_money")],
        ..Default::default()
    };
    let scope = InstrumentationScope { name: "example".into(), ..Default::default() };
    let resource = Resource { attributes: vec![text("service.name", "agent")], ..Default::default() };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans: vec![span], ..Default::default() }];
    let resource_spans = vec![ResourceSpans { resource: Some(resource), scope_spans, ..Default::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

/// Wraps hex at 64 digits, as the document does.
fn hex(bytes: &[u8]) -> String {
    let digits = const_hex::encode(bytes);
    let lines: Vec<&str> = (0..digits.len()).step_by(64).map(|i| &digits[i..digits.len().min(i + 64)]).collect();
    lines.join("\n")
}

#[test]
fn the_worked_example_of_the_document_is_recomputed() {
    let payload = payload();
    let salt: [u8; 32] = std::array::from_fn(|i| i as u8);
    let scan = scan(Signal::Traces, &payload, &Limits::default()).unwrap();
    let (group, record) = (scan.groups[0], scan.records[0].range);
    let prepared =
        Prepared::with_salt(Signal::Traces, Encoding::Protobuf, payload.clone().into(), scan, "peer:127.0.0.1", salt);
    let part = |range: custody_proto::scan::Range| &payload[range.at as usize..(range.at + range.len) as usize];

    // By the formulas of the document.
    let b3 = |context: &str, parts: &[&[u8]]| blake3::derive_key(context, &parts.concat());
    let mut salts = [[0; 32]; 5];
    let mut stream = blake3::Hasher::new_derive_key(context::SALTS).update(&salt).finalize_xof();
    stream.fill(salts.as_flattened_mut());
    let [s_frame, s_identity, s_resource, s_scope, s_record] = salts;
    let identity = b3(context::IDENTITY, &[&s_identity, b"peer:127.0.0.1"]);
    let resource = b3(context::RESOURCE, &[&s_resource, part(group.resource)]);
    let scope = b3(context::SCOPE, &[&s_scope, part(group.scope)]);
    let numbers = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<u8>>();
    let tables = numbers(&[
        1,
        group.resource.at,
        group.resource.len,
        group.scope.at,
        group.scope.len,
        1,
        0,
        record.at,
        record.len,
        0,
    ]);
    let mut rest = payload.clone();
    for range in [record, group.scope, group.resource] {
        rest.drain(range.at as usize..(range.at + range.len) as usize);
    }
    let len = numbers(&[payload.len() as u32]);
    let rest = b3(context::REST, &[&s_frame, &rest]);
    let frame = b3(context::FRAME, &[&[1, 1, 0, 0], &len, &numbers(&[0]), &tables, &rest]);
    let shared = b3(context::SHARED, &[&frame, &identity, &resource, &scope]);
    let record_len = (part(record).len() as u64).to_be_bytes();
    let commitment = b3(context::CONTENT, &[&s_record, &shared, &record_len, part(record)]);

    // By the crate.
    assert_eq!(prepared.commitments, [commitment]);
    let commitments = Commitments {
        first_seq: 1,
        signal: Signal::Traces,
        ingest_time: 1_700_000_002_000_000_000,
        submitter: std::array::from_fn(|i| 0xa0 + i as u8),
        counter: 0,
        previous: [0x55; 32],
        flags: vec![0],
        commitments: vec![commitment],
    };
    let entry = commitments.entries().next().unwrap();
    let encoded = entry.encode();
    let leaf: [u8; 32] = Sha256::new().chain_update([0]).chain_update(encoded).finalize().into();
    assert_eq!(leaf, leaf_hash(&encoded));
    let key = SigningKey::from_seed("example.com/log", Algorithm::Ed25519, &[7; 32]).unwrap();
    let text = Checkpoint { origin: "example.com/log".into(), size: 1, root: leaf }.body();
    let lines = vec![key.sign(&text, 0).unwrap()];
    let note = Note { text, lines };

    let values = [
        ("payload", hex(&payload)),
        ("blocks value", hex(&prepared.layout.encode())),
        ("salts", hex(salts.as_flattened())),
        ("rest digest", hex(&rest)),
        ("frame digest", hex(&frame)),
        ("identity digest", hex(&identity)),
        ("resource digest", hex(&resource)),
        ("scope digest", hex(&scope)),
        ("shared digest", hex(&shared)),
        ("content commitment", hex(&commitment)),
        ("entries value", hex(&commitments.encode())),
        ("entry", hex(&encoded)),
        ("chain hash", hex(&entry.chain())),
        ("leaf hash", hex(&leaf)),
        ("vkey", key.verifier().to_string()),
        ("checkpoint", note.to_string()),
    ];
    let missing: Vec<_> = values.iter().filter(|(_, value)| !DOCUMENT.contains(value.trim_end())).collect();
    for (name, value) in &missing {
        println!("{name}:\n\n{value}\n");
    }
    assert!(missing.is_empty(), "docs/format.md does not have these values; they are printed above");
}

/// The document names every column family and every context string.
#[test]
fn the_document_names_what_the_code_names() {
    let contexts = [
        context::SALTS,
        context::CONTENT,
        context::SHARED,
        context::FRAME,
        context::REST,
        context::RESOURCE,
        context::SCOPE,
        context::IDENTITY,
    ];
    let contexts = contexts.map(String::from);
    let families = crate::format::cf::ALL.map(|name| format!("`{name}`"));
    let chain = custody_proto::entry::CHAIN_CONTEXT.to_owned();
    for name in contexts.iter().chain(&families).chain([&chain]) {
        assert!(DOCUMENT.contains(name.as_str()), "docs/format.md does not name {name}");
    }
}
