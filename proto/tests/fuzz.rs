//! The scanner against prost, and the JSON transcoder, fed with what was right once and
//! is changed at random.

#[path = "../../tests/support/dice.rs"]
mod dice;

use custody_proto::otlp::collector_logs::ExportLogsServiceRequest;
use custody_proto::otlp::collector_metrics::ExportMetricsServiceRequest;
use custody_proto::otlp::collector_trace::ExportTraceServiceRequest;
use custody_proto::otlp::common::InstrumentationScope;
use custody_proto::otlp::resource::Resource;
use custody_proto::scan::Range;
use custody_proto::{Limits, Scan, Signal, json, scan};
use prost::Message;

/// Rounds of each target in a normal run.
const ROUNDS: u64 = 3000;

/// All signals.
pub const SIGNALS: [Signal; 3] = [Signal::Traces, Signal::Logs, Signal::Metrics];

fn examples() -> [Vec<u8>; 3] {
    ["trace.json", "logs.json", "metrics.json"].map(|name| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    })
}

fn encoded() -> Vec<Vec<u8>> {
    let pairs = SIGNALS.into_iter().zip(examples());
    let mut out: Vec<_> = pairs.map(|(signal, text)| json::transcode(signal, &text).unwrap()).collect();
    // Resources and scopes in several pieces, which protobuf merges.
    let twice = [&out[0][..], &out[0]].concat();
    out.push(twice);
    out
}

fn at<'a>(request: &'a [u8], scan: &'a Scan, range: Range) -> &'a [u8] {
    let (at, len) = (range.at as usize, range.len as usize);
    match at.checked_sub(request.len()) {
        None => &request[at..at + len],
        Some(at) => &scan.annex[at..at + len],
    }
}

/// A record as prost has it: its resource, its scope, itself, and its ids.
type Record = (Option<Resource>, Option<InstrumentationScope>, Vec<u8>, (Vec<u8>, Vec<u8>, Vec<u8>));

/// Every record that prost finds, if it takes the request.
fn by_prost(signal: Signal, bytes: &[u8]) -> Option<Vec<Record>> {
    let mut out = Vec::new();
    match signal {
        Signal::Traces => {
            for of in ExportTraceServiceRequest::decode(bytes).ok()?.resource_spans {
                for scope in of.scope_spans {
                    out.extend(scope.spans.into_iter().map(|r| {
                        let ids = (r.trace_id.clone(), r.span_id.clone(), r.parent_span_id.clone());
                        (of.resource.clone(), scope.scope.clone(), r.encode_to_vec(), ids)
                    }));
                }
            }
        }
        Signal::Logs => {
            for of in ExportLogsServiceRequest::decode(bytes).ok()?.resource_logs {
                for scope in of.scope_logs {
                    out.extend(scope.log_records.into_iter().map(|r| {
                        let ids = (r.trace_id.clone(), r.span_id.clone(), Vec::new());
                        (of.resource.clone(), scope.scope.clone(), r.encode_to_vec(), ids)
                    }));
                }
            }
        }
        Signal::Metrics => {
            for of in ExportMetricsServiceRequest::decode(bytes).ok()?.resource_metrics {
                for scope in of.scope_metrics {
                    out.extend(
                        scope
                            .metrics
                            .into_iter()
                            .map(|r| (of.resource.clone(), scope.scope.clone(), r.encode_to_vec(), Default::default())),
                    );
                }
            }
        }
    }
    Some(out)
}

/// Whether a record with these ids is taken.
fn has_ids(signal: Signal, (trace, span, parent): &(Vec<u8>, Vec<u8>, Vec<u8>)) -> bool {
    let is_id = |bytes: &[u8], len| bytes.len() == len && bytes.iter().any(|b| *b != 0);
    match signal {
        Signal::Traces => is_id(trace, 16) && is_id(span, 8) && [0, 8].contains(&parent.len()),
        Signal::Logs => [0, 16].contains(&trace.len()) && [0, 8].contains(&span.len()),
        Signal::Metrics => true,
    }
}

/// A record decoded and encoded again: the same form that [`by_prost`] has.
fn again(signal: Signal, bytes: &[u8]) -> Vec<u8> {
    use custody_proto::otlp::{logs::LogRecord, metrics::Metric, trace::Span};
    match signal {
        Signal::Traces => Span::decode(bytes).unwrap().encode_to_vec(),
        Signal::Logs => LogRecord::decode(bytes).unwrap().encode_to_vec(),
        Signal::Metrics => Metric::decode(bytes).unwrap().encode_to_vec(),
    }
}

/// The scanner takes what prost takes, and finds the same in it.
pub fn agrees_with_prost(signal: Signal, bytes: &[u8]) {
    let ours = scan(signal, bytes, &Limits::default());
    let Some(all) = by_prost(signal, bytes) else {
        assert!(ours.is_err(), "{signal:?}: prost refuses {bytes:x?}");
        return;
    };
    let ours = ours.unwrap_or_else(|e| panic!("{signal:?}: prost takes {bytes:x?}, and we say {e}"));
    let whole = all.len() as u64;
    let good: Vec<Record> = all.into_iter().filter(|record| has_ids(signal, &record.3)).collect();
    assert_eq!((ours.records.len(), ours.rejected), (good.len(), whole - good.len() as u64), "{bytes:x?}");
    for (ours_of, (resource, scope, record, ids)) in ours.records.iter().zip(&good) {
        let group = ours.groups[ours_of.group as usize];
        let found = Resource::decode(at(bytes, &ours, group.resource)).unwrap();
        assert_eq!(&found, &resource.clone().unwrap_or_default(), "{bytes:x?}");
        let found = InstrumentationScope::decode(at(bytes, &ours, group.scope)).unwrap();
        assert_eq!(&found, &scope.clone().unwrap_or_default(), "{bytes:x?}");
        assert_eq!(&again(signal, at(bytes, &ours, ours_of.range)), record, "{bytes:x?}");
        if signal == Signal::Traces {
            assert_eq!((&ours_of.trace_id[..], &ours_of.span_id[..]), (&ids.0[..], &ids.1[..]), "{bytes:x?}");
        }
    }
}

#[test]
fn the_scanner_finds_what_prost_finds() {
    dice::fuzz(ROUNDS, &encoded(), |bytes, _| {
        for signal in SIGNALS {
            agrees_with_prost(signal, bytes);
        }
    });
}

/// Whatever the limits are, they refuse and never break what is left.
#[test]
fn small_limits_only_refuse() {
    let limits = Limits { record_bytes_max: 120, record_values_max: 6, expanded_bytes_max: 900, ..Limits::default() };
    dice::fuzz(ROUNDS, &encoded(), |bytes, _| {
        for signal in SIGNALS {
            let (all, some) = (scan(signal, bytes, &Limits::default()), scan(signal, bytes, &limits));
            let (Ok(all), Ok(some)) = (&all, &some) else {
                assert!(some.is_err() || all.is_ok());
                continue;
            };
            // Of metrics the data points are counted, of which one may have none, or many.
            if signal == Signal::Metrics {
                assert!(some.records.len() <= all.records.len() && some.rejected >= all.rejected);
                assert!(some.rejected == 0 || some.rejection.is_some());
            } else {
                assert_eq!(all.records.len() as u64 + all.rejected, some.records.len() as u64 + some.rejected);
                assert_eq!(some.rejected > 0, some.rejection.is_some());
            }
            for record in &some.records {
                let group = some.groups[record.group as usize];
                let same = |other: &&custody_proto::scan::Record| other.range == record.range;
                let full = all.groups[all.records.iter().find(same).unwrap().group as usize];
                assert_eq!(at(bytes, some, group.resource), at(bytes, all, full.resource));
                assert_eq!(at(bytes, some, group.scope), at(bytes, all, full.scope));
            }
        }
    });
}

#[test]
fn json_that_is_taken_is_protobuf_that_prost_takes() {
    dice::fuzz(ROUNDS, &examples(), |text, _| {
        for signal in SIGNALS {
            json_is_protobuf(signal, text);
        }
    });
}

/// JSON that is taken becomes protobuf that prost takes.
pub fn json_is_protobuf(signal: Signal, text: &[u8]) {
    let Ok(bytes) = json::transcode(signal, text) else { return };
    // Nesting is bounded by each in its own way: JSON stops at 128, protobuf at 100.
    if scan(signal, &bytes, &Limits::default()).is_err_and(|e| e.message().contains("too deeply")) {
        return;
    }
    assert!(by_prost(signal, &bytes).is_some(), "{}", String::from_utf8_lossy(text));
    agrees_with_prost(signal, &bytes);
}
