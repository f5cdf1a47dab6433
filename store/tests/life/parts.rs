//! Erasing what records share, and what a request held beside its records.

use super::*;

/// A request with a resource of its own for each span.
fn with_resources(spans: Vec<(custody_proto::otlp::trace::Span, String)>) -> custody_store::Prepared {
    use custody_proto::otlp::common::{AnyValue, KeyValue, any_value::Value};
    use custody_proto::otlp::{collector_trace::ExportTraceServiceRequest, resource::Resource, trace::*};
    use prost::Message as _;
    let resource = |text: String| {
        let value = Some(AnyValue { value: Some(Value::StringValue(text)) });
        Resource { attributes: vec![KeyValue { key: "who".into(), value, ..Default::default() }], ..Default::default() }
    };
    let resource_spans = spans.into_iter().map(|(span, text)| ResourceSpans {
        resource: Some(resource(text)),
        scope_spans: vec![ScopeSpans { spans: vec![span], ..Default::default() }],
        ..Default::default()
    });
    let request = ExportTraceServiceRequest { resource_spans: resource_spans.collect() };
    support::prepare(custody_proto::Signal::Traces, request.encode_to_vec())
}

#[test]
fn a_resource_that_only_a_copy_has_is_bound_and_goes_with_its_original() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open_plain(dir.path());
    let (a, b) = ((span(1, "a"), marker(1)), (span(2, "b"), marker(2)));
    writer.append(vec![with_resources(vec![a.clone()])]).unwrap();
    // A retry in other company: of the first span there is a copy, with a resource of its own.
    writer.append(vec![with_resources(vec![a, b])]).unwrap();
    writer.checkpoint().unwrap();
    drop((writer, reader));
    let forged = tempfile::tempdir().unwrap();
    let copied = std::process::Command::new("cp").arg("-a").arg(dir.path()).arg(forged.path().join("d")).status();
    assert!(copied.unwrap().success());
    let db =
        rocksdb::DB::open_cf(&rocksdb::Options::default(), forged.path().join("d/log"), custody_store::format::cf::ALL)
            .unwrap();
    let payloads = db.cf_handle("payloads").unwrap();
    let mut payload = db.get_cf(payloads, 2u64.to_be_bytes()).unwrap().unwrap();
    let at = payload.windows(40).position(|w| w == marker(1).as_bytes()).expect("the copy's resource is there");
    payload[at] ^= 1;
    db.put_cf(payloads, 2u64.to_be_bytes(), payload).unwrap();
    drop(db);
    let Verdict::Tampered(finding) = verify(&forged.path().join("d"), &Default::default(), |_, _| ()).unwrap() else {
        panic!("a changed resource was taken for sound");
    };
    assert_eq!(finding.seq, 2);
    let (mut writer, reader) = open_plain(dir.path());
    erase(&mut writer, "1");
    assert!(!is_on_disk(dir.path(), marker(1).as_bytes()), "the copy's resource outlived its original");
    assert!(is_on_disk(dir.path(), marker(2).as_bytes()));
    drop((writer, reader));
    assert_eq!(sound(dir.path()).erased, 1);
}

#[test]
fn what_was_refused_and_pieces_of_a_resource_go_at_the_first_erasure() {
    use custody_proto::otlp::common::{AnyValue, KeyValue, any_value::Value};
    use prost::Message as _;
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open_plain(dir.path());
    let mut refused = span(3, &marker(3));
    refused.trace_id = vec![0; 16];
    let mut payload = support::trace_request(vec![span(1, "a"), span(2, "b"), refused]);
    // The resource once more, in another piece: protobuf merges the two.
    let value = Some(AnyValue { value: Some(Value::StringValue(marker(4))) });
    let attribute = KeyValue { key: "who".into(), value, ..Default::default() };
    let more = custody_proto::otlp::resource::Resource { attributes: vec![attribute], ..Default::default() };
    let piece =
        custody_proto::otlp::trace::ResourceSpans { resource: Some(more), ..Default::default() }.encode_to_vec();
    payload.extend([10, u8::try_from(piece.len()).unwrap()]);
    payload.extend(&piece);
    let merged = {
        // Both pieces in one ResourceSpans, so that the annex holds them joined.
        let first = support::trace_request(vec![span(5, "c"), span(6, "d")]);
        let (head, body) = first.split_at(3);
        let len = body.len() + piece.len();
        assert_eq!((head[0], first.len() > 130), (10, true));
        [&[10, (len & 0x7f | 0x80) as u8, (len >> 7) as u8][..], body, &piece].concat()
    };
    writer.append(vec![support::prepare(custody_proto::Signal::Traces, payload)]).unwrap();
    writer.append(vec![support::prepare(custody_proto::Signal::Traces, merged)]).unwrap();
    writer.checkpoint().unwrap();
    for n in [3, 4] {
        assert!(is_on_disk(dir.path(), marker(n).as_bytes()), "marker {n} is there before");
    }
    assert_eq!(reader.head().size, 5);
    erase(&mut writer, "1,3");
    assert!(!is_on_disk(dir.path(), marker(3).as_bytes()), "a refused record outlived the erasure");
    // The joined resource is needed by the record that stays, and goes with it.
    assert!(is_on_disk(dir.path(), marker(4).as_bytes()));
    erase(&mut writer, "2,4");
    assert!(!is_on_disk(dir.path(), marker(4).as_bytes()), "a piece of a resource outlived the erasure");
    drop((writer, reader));
    assert_eq!(sound(dir.path()).erased, 4);
}
