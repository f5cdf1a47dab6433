//! What is sent is OTLP, as large as asked for, each record once, and the same for a seed.

use std::collections::{HashMap, HashSet};

use custody_proto::otlp::collector_logs::ExportLogsServiceRequest;
use custody_proto::otlp::collector_trace::ExportTraceServiceRequest;
use custody_proto::otlp::common::{KeyValue, any_value::Value};
use custody_proto::otlp::trace::Span;
use proptest::prelude::*;
use prost::Message as _;

use super::*;

fn shape() -> Shape {
    Shape {
        seed: 7,
        signals: Signals::Both,
        batch: 64,
        record_bytes: 500,
        spread: 1.0,
        late: 0.05,
        late_ns: 4 * CYCLE_NS,
        base_ns: 1_767_225_600_000_000_000,
    }
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|a| a.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn spans(bytes: &[u8]) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(bytes).unwrap();
    assert_eq!(request.encoded_len(), bytes.len(), "there is nothing in it that the types do not know");
    request.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans).collect()
}

fn logs(bytes: &[u8]) -> Vec<custody_proto::otlp::logs::LogRecord> {
    let request = ExportLogsServiceRequest::decode(bytes).unwrap();
    request.resource_logs.into_iter().flat_map(|r| r.scope_logs).flat_map(|s| s.log_records).collect()
}

fn all_spans(traffic: &Traffic, requests: u64) -> Vec<Span> {
    let of_traces = (0..requests).filter(|n| traffic.signal(*n) == Signal::Traces);
    of_traces.flat_map(|n| spans(&traffic.request(n, 0))).collect()
}

/// FNV-1a: enough to see a change.
fn digest(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn the_bytes_of_a_seed_are_pinned() {
    let traffic = Traffic::new(shape());
    let all: Vec<u8> = (0..30).flat_map(|n| traffic.request(n, 0)).collect();
    // A change here is a change of `VERSION`: results of other versions cannot be compared.
    assert_eq!((traffic.run().as_str(), all.len(), digest(all)), ("9cabdf0692bd917a", 1_639_958, 17724730695766903864));
}

#[test]
fn bytes_depend_on_the_seed_and_not_on_the_order_of_requests() {
    let (a, b) = (Traffic::new(shape()), Traffic::new(shape()));
    let back: Vec<Vec<u8>> = (0..12).rev().map(|n| b.request(n, 0)).collect();
    for (n, bytes) in back.into_iter().rev().enumerate() {
        assert_eq!(a.request(n as u64, 0), bytes);
        assert_eq!(a.request(n as u64, 5)[5..], bytes, "room for a frame changes nothing");
    }
    let other = Traffic::new(Shape { seed: 8, ..shape() });
    assert_ne!(other.run(), a.run());
    assert_ne!(other.request(1, 0), a.request(1, 0));
}

#[test]
fn traces_are_whole_and_late_spans_complete_them_once() {
    let traffic = Traffic::new(shape());
    let mut spans = all_spans(&traffic, 90);
    // In a request, spans are by service; their numbers are in the order of the trees.
    spans.sort_by_key(|s| text(&s.attributes, "loadgen.record").map(str::to_owned));
    let ids: HashMap<&[u8], usize> = spans.iter().enumerate().map(|(i, s)| (s.span_id.as_slice(), i)).collect();
    assert_eq!(ids.len(), spans.len(), "span ids are unique");
    let mut traces: HashMap<&[u8], usize> = HashMap::new();
    for span in &spans {
        assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
        assert!(span.start_time_unix_nano < span.end_time_unix_nano);
        *traces.entry(&span.trace_id).or_default() += 1;
    }
    // Whole: but for those at both ends, whose late spans are from before the run or after it.
    let whole = traces.values().filter(|n| [3, 6, 12, 18, 25].contains(*n)).count();
    assert!(whole * 10 >= traces.len() * 9, "{whole} of {} traces are whole", traces.len());
    let found = |id: &Vec<u8>| ids.get(id.as_slice()).copied();
    let children = spans.iter().enumerate().filter_map(|(i, s)| Some((i, s, found(&s.parent_span_id)?)));
    let (mut early, mut after, mut far) = (0, 0, 0);
    for (i, span, parent) in children {
        let parent_span = &spans[parent];
        assert_eq!(span.trace_id, parent_span.trace_id);
        assert!(parent_span.start_time_unix_nano < span.start_time_unix_nano);
        match parent > i {
            true => after += 1,
            false => early += 1,
        }
        far += usize::from(parent > i + 128);
    }
    assert!(after > 10 * early, "parents come after children: {after} do, {early} do not");
    assert!(early > 0 && far > 0, "late spans: {early} children after their parents, {far} parents far behind");
}

#[test]
fn agents_act_under_grants_that_were_issued_to_them() {
    let traffic = Traffic::new(Shape { late: 0.0, spread: 0.0, record_bytes: 900, ..shape() });
    let mut grants: HashMap<String, String> = HashMap::new();
    let mut calls = HashSet::new();
    let mut decided = Vec::new();
    for n in 0..30 {
        let bytes = traffic.request(n, 0);
        if traffic.signal(n) == Signal::Traces {
            for span in spans(&bytes).iter().filter(|s| s.name.starts_with("execute_tool")) {
                let (grant, agent) =
                    (text(&span.attributes, "authz.grant.id"), text(&span.attributes, "gen_ai.agent.id"));
                assert_eq!(grants.get(grant.unwrap()).map(String::as_str), agent, "{}", span.name);
                calls.insert(text(&span.attributes, "gen_ai.tool.call.id").unwrap().to_owned());
            }
            continue;
        }
        for log in logs(&bytes) {
            let attribute = |key: &str| text(&log.attributes, key).map(str::to_owned);
            match log.event_name.as_str() {
                "authz.grant.issued" | "authz.grant.derived" => {
                    let parent = attribute("authz.grant.parent_id");
                    assert_eq!(parent.is_some(), log.event_name.ends_with("derived"));
                    assert!(parent.is_none_or(|p| grants.contains_key(&p)), "the parent grant comes first");
                    let old =
                        grants.insert(attribute("authz.grant.id").unwrap(), attribute("authz.grant.subject").unwrap());
                    assert_eq!(old, None, "a grant is given once");
                }
                "authz.executor.decision" => decided.push(attribute("gen_ai.tool.call.id").unwrap()),
                _ => {}
            }
        }
    }
    assert!(decided.len() > 30 && decided.iter().all(|call| calls.contains(call)), "decisions are about calls");
}

#[test]
fn a_place_names_the_record() {
    let traffic = Traffic::new(shape());
    for n in 0..9 {
        let bytes = traffic.request(n, 0);
        let mut found = Vec::new();
        match traffic.signal(n) {
            Signal::Traces => spans(&bytes).into_iter().for_each(|s| found.push((s.attributes, s.trace_id, s.span_id))),
            Signal::Logs => logs(&bytes).into_iter().for_each(|l| found.push((l.attributes, l.trace_id, l.span_id))),
        }
        assert_eq!(found.len() as u64, traffic.batch());
        for (attributes, trace_id, span_id) in found {
            let record: u64 = text(&attributes, "loadgen.record").unwrap().parse().unwrap();
            let place = traffic.place(record);
            assert_eq!((place.request, place.signal), (n, traffic.signal(n)));
            assert_eq!((&place.trace_id[..], &place.span_id[..]), (&trace_id[..], &span_id[..]));
        }
    }
}

#[test]
fn records_are_as_large_as_asked_for() {
    for bytes in [200, 201, 255, 256, 300, 500, 1_000, 2_048, 16_500, 65_536] {
        let traffic =
            Traffic::new(Shape { record_bytes: bytes, spread: 0.0, batch: 64, signals: Signals::Traces, ..shape() });
        for span in all_spans(&traffic, 3) {
            assert_eq!(span.encoded_len(), bytes, "{span:?}");
        }
    }
    let traffic = Traffic::new(Shape { batch: 8192, signals: Signals::Traces, ..shape() });
    let mut sizes: Vec<usize> = spans(&traffic.request(0, 0)).iter().map(|s| s.encoded_len()).collect();
    sizes.sort_unstable();
    assert!((450..550).contains(&sizes[4_096]), "the median is what was asked for: {}", sizes[4_096]);
    assert!(sizes[8_110] > 3_000, "and the tail is long: {}", sizes[8_110]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_is_valid_and_numbers_its_records(
        seed: u64, batch in 1u64..200, record_bytes in 200usize..3_000, spread in 0.0f64..1.5,
        late in 0.0f64..0.5, cycles in 1u64..10, both: bool, from in 0u64..1_000_000_000,
    ) {
        let signals = if both { Signals::Both } else { Signals::Traces };
        let traffic = Traffic::new(Shape { seed, signals, batch, record_bytes, spread, late, late_ns: cycles * CYCLE_NS, ..shape() });
        let (mut records, mut ids) = (HashSet::new(), HashSet::new());
        for n in from..from + 6 {
            let bytes = traffic.request(n, 0);
            let attributes: Vec<Vec<KeyValue>> = match traffic.signal(n) {
                Signal::Traces => spans(&bytes).into_iter().map(|s| { assert!(ids.insert(s.span_id)); s.attributes }).collect(),
                Signal::Logs => logs(&bytes).into_iter().map(|l| l.attributes).collect(),
            };
            for attributes in attributes {
                let record: u64 = text(&attributes, "loadgen.record").unwrap().parse().unwrap();
                prop_assert_eq!(record / batch, n);
                prop_assert!(records.insert(record));
            }
        }
        prop_assert_eq!(records.len() as u64, 6 * batch);
    }
}
