//! The borrowed reading of records against prost: of the same bytes both read the same, or neither
//! reads anything.

#[path = "../../tests/support/dice.rs"]
mod dice;

use custody_proto::otlp::common::{AnyValue, ArrayValue, KeyValue, KeyValueList, any_value::Value};
use custody_proto::otlp::{common, logs, resource, trace};
use custody_proto::{Limits, Signal, json, scan, wire};
use prost::Message;

/// Rounds of each target in a normal run.
const ROUNDS: u64 = 6000;

fn attributes(of: &[KeyValue]) -> Vec<wire::KeyValue<'_>> {
    of.iter().map(wire::KeyValue::from).collect()
}

fn span(of: &trace::Span) -> wire::Span<'_> {
    wire::Span {
        trace_id: &of.trace_id,
        span_id: &of.span_id,
        trace_state: &of.trace_state,
        parent_span_id: &of.parent_span_id,
        flags: of.flags,
        name: &of.name,
        kind: of.kind,
        start_time_unix_nano: of.start_time_unix_nano,
        end_time_unix_nano: of.end_time_unix_nano,
        attributes: attributes(&of.attributes),
        events: of.events.iter().map(span_event).collect(),
        links: of.links.iter().map(link).collect(),
        status: of.status.as_ref().map(|s| wire::Status { message: &s.message, code: s.code }),
    }
}

fn span_event(of: &trace::span::Event) -> wire::Event<'_> {
    wire::Event { time_unix_nano: of.time_unix_nano, name: &of.name, attributes: attributes(&of.attributes) }
}

fn link(of: &trace::span::Link) -> wire::Link<'_> {
    wire::Link { trace_id: &of.trace_id, span_id: &of.span_id, attributes: attributes(&of.attributes) }
}

fn log(of: &logs::LogRecord) -> wire::LogRecord<'_> {
    wire::LogRecord {
        time_unix_nano: of.time_unix_nano,
        observed_time_unix_nano: of.observed_time_unix_nano,
        severity_number: of.severity_number,
        severity_text: &of.severity_text,
        body: of.body.as_ref().map(wire::AnyValue::from),
        attributes: attributes(&of.attributes),
        trace_id: &of.trace_id,
        span_id: &of.span_id,
        event_name: &of.event_name,
    }
}

/// As text, so that what is no number is like itself.
fn told(read: &impl std::fmt::Debug) -> String {
    format!("{read:?}")
}

/// Reads the bytes as each message in both ways; gives how many of them they were.
pub fn reads_what_prost_reads(bytes: &[u8]) -> usize {
    // What was read before must not show.
    let (before_span, before_log) = (full_span().encode_to_vec(), full_log().encode_to_vec());
    let mut reused_span = wire::Span::read(&before_span).unwrap();
    let mut reused_log = wire::LogRecord::read(&before_log).unwrap();

    let by_prost = trace::Span::decode(bytes).ok();
    let want = by_prost.as_ref().map(|of| told(&span(of)));
    assert_eq!(wire::Span::read(bytes).ok().map(|of| told(&of)), want, "{bytes:x?}");
    assert_eq!(reused_span.refill(bytes).ok().map(|()| told(&reused_span)), want, "{bytes:x?}");
    if let (Some(ours), Some(theirs)) = (wire::Span::read(bytes).ok(), &by_prost) {
        assert_eq!(ours.kind(), theirs.kind());
        assert_eq!(ours.status.map(|s| s.code()), theirs.status.as_ref().map(trace::Status::code));
    }
    let mut taken = usize::from(want.is_some());

    let by_prost = logs::LogRecord::decode(bytes).ok();
    let want = by_prost.as_ref().map(|of| told(&log(of)));
    assert_eq!(wire::LogRecord::read(bytes).ok().map(|of| told(&of)), want, "{bytes:x?}");
    assert_eq!(reused_log.refill(bytes).ok().map(|()| told(&reused_log)), want, "{bytes:x?}");
    taken += usize::from(want.is_some());

    let by_prost = resource::Resource::decode(bytes).ok();
    let want = by_prost.as_ref().map(|of| told(&wire::Resource { attributes: attributes(&of.attributes) }));
    assert_eq!(wire::Resource::read(bytes).ok().map(|of| told(&of)), want, "{bytes:x?}");
    taken += usize::from(want.is_some());

    let by_prost = common::InstrumentationScope::decode(bytes).ok();
    let scope = |of: &common::InstrumentationScope| {
        told(&wire::InstrumentationScope {
            name: &of.name,
            version: &of.version,
            attributes: attributes(&of.attributes),
        })
    };
    let want = by_prost.as_ref().map(scope);
    assert_eq!(wire::InstrumentationScope::read(bytes).ok().map(|of| told(&of)), want, "{bytes:x?}");
    taken + usize::from(want.is_some())
}

fn any(value: Value) -> AnyValue {
    AnyValue { value: Some(value) }
}

fn pair(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(any(value)), ..Default::default() }
}

/// Values of every kind.
fn values() -> Vec<KeyValue> {
    let list = ArrayValue { values: vec![any(Value::IntValue(-1)), AnyValue::default(), any(Value::BoolValue(true))] };
    let map =
        KeyValueList { values: vec![pair("in", Value::ArrayValue(list.clone())), pair("in", Value::DoubleValue(0.5))] };
    vec![
        pair("text", Value::StringValue("\u{1f600} text".into())),
        pair("list", Value::ArrayValue(list)),
        pair("map", Value::KvlistValue(map)),
        pair("bytes", Value::BytesValue(vec![0, 255])),
        pair("number", Value::DoubleValue(f64::NAN)),
        pair("place", Value::StringValueStrindex(3)),
        KeyValue { key: "none".into(), key_strindex: 4, ..Default::default() },
    ]
}

fn full_span() -> trace::Span {
    let event =
        trace::span::Event { time_unix_nano: 5, name: "e".into(), attributes: values(), dropped_attributes_count: 1 };
    let link = trace::span::Link {
        trace_id: vec![3; 16],
        span_id: vec![4; 8],
        trace_state: "l=1".into(),
        attributes: values(),
        dropped_attributes_count: 2,
        flags: 3,
    };
    trace::Span {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        trace_state: "s=1".into(),
        parent_span_id: vec![9; 8],
        flags: 257,
        name: "its name".into(),
        kind: 3,
        start_time_unix_nano: u64::MAX,
        end_time_unix_nano: 7,
        attributes: values(),
        dropped_attributes_count: 1,
        events: vec![event.clone(), event],
        dropped_events_count: 1,
        links: vec![link],
        dropped_links_count: 1,
        status: Some(trace::Status { message: "failed".into(), code: 2 }),
    }
}

fn full_log() -> logs::LogRecord {
    logs::LogRecord {
        time_unix_nano: 1,
        observed_time_unix_nano: 2,
        severity_number: -9,
        severity_text: "WARN".into(),
        body: Some(any(Value::KvlistValue(KeyValueList { values: values() }))),
        attributes: values(),
        dropped_attributes_count: 1,
        flags: 1,
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        event_name: "event".into(),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let entity = common::EntityRef {
        schema_url: "s".into(),
        r#type: "t".into(),
        id_keys: vec!["a".into(), "b".into()],
        description_keys: vec!["c".into()],
    };
    let resource = resource::Resource { attributes: values(), dropped_attributes_count: 1, entity_refs: vec![entity] };
    let scope = common::InstrumentationScope {
        name: "scope".into(),
        version: "1".into(),
        attributes: values(),
        dropped_attributes_count: 1,
    };
    let whole = [
        full_span().encode_to_vec(),
        full_log().encode_to_vec(),
        resource.encode_to_vec(),
        scope.encode_to_vec(),
        // A key with a value of each kind in every field: what does not fit is refused.
        (1..=16u8).flat_map(|number| [number << 3, 1]).collect(),
        (1..=16u8).flat_map(|number| [number << 3 | 2, 0]).collect(),
    ];
    let mut out = whole.to_vec();
    for name in ["trace.json", "logs.json"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
        let signal = if name == "logs.json" { Signal::Logs } else { Signal::Traces };
        let bytes = json::transcode(signal, &std::fs::read(path).unwrap()).unwrap();
        for record in scan(signal, &bytes, &Limits::default()).unwrap().records {
            let (at, len) = (record.range.at as usize, record.range.len as usize);
            out.push(bytes[at..at + len].to_vec());
        }
    }
    // Every message in two pieces, which protobuf merges.
    out.extend(whole.iter().map(|one| one.repeat(2)));
    out
}

#[test]
fn the_same_is_read_of_changed_messages() {
    let mut taken = 0;
    dice::fuzz(ROUNDS, &seeds(), |bytes, _| taken += reads_what_prost_reads(bytes));
    assert!(taken > 1000, "much of it still is a message: {taken}");
}

#[test]
fn whole_messages_are_read_whole() {
    for bytes in seeds().iter().take(4) {
        assert!(reads_what_prost_reads(bytes) > 0);
    }
    let (span, log) = (full_span().encode_to_vec(), full_log().encode_to_vec());
    let read = wire::Span::read(&span).unwrap();
    assert_eq!((read.name, read.events.len(), read.links[0].span_id), ("its name", 2, &[4; 8][..]));
    assert_eq!(read.status.map(|s| s.message), Some("failed"));
    let read = wire::LogRecord::read(&log).unwrap();
    assert_eq!((read.event_name, read.attributes.len()), ("event", 7));
    for cut in 0..span.len() {
        reads_what_prost_reads(&span[..cut]);
    }
}

/// A message field that comes twice is one message, a scalar that comes twice is its last, and a
/// value of another kind takes the place of what was there.
#[test]
fn pieces_are_merged_as_protobuf_merges_them() {
    let body = |value| logs::LogRecord { body: Some(any(value)), ..Default::default() }.encode_to_vec();
    let list = |n| Value::ArrayValue(ArrayValue { values: vec![any(Value::IntValue(n))] });
    let pieces = [body(list(1)), body(list(2)), body(Value::BoolValue(true)), body(list(3)), body(list(4))];
    for upto in 0..=pieces.len() {
        reads_what_prost_reads(&pieces[..upto].concat());
    }
    let all = pieces.concat();
    let read = wire::LogRecord::read(&all).unwrap();
    let Some(wire::Value::ArrayValue(list)) = read.body.unwrap().value else { panic!("a list") };
    assert_eq!(list.values.len(), 2, "those behind the truth value");
    let status = |message: &str, code| trace::Span {
        status: Some(trace::Status { message: message.into(), code }),
        ..Default::default()
    };
    let both = [status("why", 0).encode_to_vec(), status("", 2).encode_to_vec()].concat();
    assert_eq!(wire::Span::read(&both).unwrap().status, Some(wire::Status { message: "why", code: 2 }));
}

/// The same verdict for any nesting around the limit of 100, of messages and of unknown groups.
#[test]
fn nesting_is_bounded_as_prost_bounds_it() {
    let mut taken = 0;
    for depth in 40..56 {
        let mut list = Value::BoolValue(true);
        let mut map = Value::BoolValue(true);
        for _ in 0..depth {
            list = Value::ArrayValue(ArrayValue { values: vec![any(list)] });
            map = Value::KvlistValue(KeyValueList { values: vec![pair("in", map)] });
        }
        for value in [list, map] {
            let deep = logs::LogRecord { attributes: vec![pair("deep", value)], ..Default::default() };
            taken += usize::from(wire::LogRecord::read(&deep.encode_to_vec()).is_ok());
            reads_what_prost_reads(&deep.encode_to_vec());
        }
    }
    assert!((1..32).contains(&taken), "the limit is among them: {taken}");
    for depth in 95..105 {
        // Field 100, which is not known: a group in a group.
        let groups = [[0xa3, 6].repeat(depth), [0xa4, 6].repeat(depth)].concat();
        reads_what_prost_reads(&groups);
        // And of an attribute, two levels down.
        let attribute = [vec![0x0a, groups.len() as u8 | 0x80, (groups.len() >> 7) as u8], groups].concat();
        reads_what_prost_reads(&attribute);
    }
}

mod random {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn the_same_is_read_of_anything(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            super::reads_what_prost_reads(&bytes);
        }

        /// Fields with small numbers, as these messages have them, of any type and content.
        #[test]
        fn the_same_is_read_of_any_fields(
            fields in proptest::collection::vec(
                (1u8..16, 0u8..6, proptest::collection::vec(any::<u8>(), 0..12)), 0..8),
        ) {
            let mut bytes = Vec::new();
            for (number, wire, content) in fields {
                bytes.push(number << 3 | wire);
                match wire {
                    0 => bytes.push(content.len() as u8),
                    1 => bytes.extend([7; 8]),
                    2 => {
                        bytes.push(content.len() as u8);
                        bytes.extend(content);
                    }
                    5 => bytes.extend([7; 4]),
                    _ => {}
                }
            }
            super::reads_what_prost_reads(&bytes);
        }
    }
}
