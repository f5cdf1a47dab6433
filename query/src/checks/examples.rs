//! The examples beside a rule: records as a sender would send them, and the hits that they must
//! give. They go through the same mapping as everything, and are judged twice: one record after
//! the other, as the server does it, and all at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use custody_proto::otlp::common::{AnyValue, ArrayValue, KeyValue, any_value::Value};
use custody_proto::otlp::logs::LogRecord;
use custody_proto::otlp::trace::{Span, Status};
use custody_proto::wire;
use prost::Message as _;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::evaluator::Evaluator;
use super::run::{Checker, Entries};
use super::{Rule, Tuning};
use crate::Error;
use crate::event::EventRow;
use crate::mapping::{RecordContext, map_log, map_span};
use crate::projection::Snapshot;
use crate::rows::Time;
use crate::segments::{Table, Tail};
use crate::tables::{LedgerRow, SpanRow, span_row};
use crate::tenancy::Tenancy;

/// The examples' times count from 2026-11-20T09:00:00Z.
const START: i64 = 1_795_165_200_000_000_000;

/// One example.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// What it shows.
    name: String,
    /// The records, in the order in which they arrive.
    records: Vec<Sent>,
    /// Places of the records that must be hit, from 0; none for a near miss.
    hits: Vec<u64>,
    /// Settings of the rule, other than its own.
    #[serde(default)]
    settings: toml::Table,
}

/// A record, with what is left out put in.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Sent {
    /// The event name of a log record; a span has `span`.
    log: Option<String>,
    /// The id of a span, 1 to 16 hex digits.
    span: Option<String>,
    /// Its parent; of a log record the span that it was written in.
    parent: Option<String>,
    /// Its name.
    name: String,
    /// When, in seconds from the start.
    at: f64,
    /// When it arrives; not before the one before it.
    received: Option<f64>,
    /// The trace, 1 to 32 hex digits.
    trace: Option<String>,
    /// `service.name`.
    service: Option<String>,
    /// Who sends it.
    submitter: Option<String>,
    /// The span failed.
    failed: bool,
    /// The span had not ended when it was sent.
    running: bool,
    trace_state: String,
    dropped_attributes: u32,
    /// What the ledger noted, such as conflicting_span.
    flags: Vec<String>,
    attributes: Map<String, Json>,
}

/// How an example went.
#[derive(Debug)]
pub struct Tried {
    /// The rule.
    pub rule: String,
    /// The example; empty if there is none.
    pub example: String,
    /// What is wrong; none if all is well.
    pub problem: Option<String>,
    /// How many records must be hit.
    pub hits: usize,
}

/// Tries the examples of rules. A rule must have an example that hits and one that just does not.
pub async fn try_rules(rules: &[Rule]) -> Vec<Tried> {
    let mut out = Vec::new();
    for rule in rules {
        let failed =
            |problem: String| Tried { rule: rule.id.clone(), example: String::new(), problem: Some(problem), hits: 0 };
        let Some(text) = &rule.examples else {
            out.push(failed(format!("there are no examples: {}.examples.json is missing", rule.id)));
            continue;
        };
        let cases: Vec<Case> = match serde_json::from_str(text) {
            Ok(cases) => cases,
            Err(error) => {
                out.push(failed(format!("{}.examples.json: {error}", rule.id)));
                continue;
            }
        };
        if !cases.iter().any(|c| c.hits.is_empty()) || cases.iter().all(|c| c.hits.is_empty()) {
            out.push(failed("its examples need a hit and a near miss".into()));
        }
        for case in cases {
            let problem = match try_case(rule, &case).await {
                Ok(problem) => problem,
                Err(error) => Some(error.message),
            };
            out.push(Tried { rule: rule.id.clone(), example: case.name, problem, hits: case.hits.len() });
        }
    }
    out
}

/// One rule alone, with the settings of an example.
async fn checker_of(rule: &Rule, case: &Case) -> Result<Arc<Checker>, Error> {
    let mut own = toml::Table::new();
    let mut settings = case.settings.clone();
    settings.insert("enabled".into(), true.into());
    own.insert(rule.id.clone(), settings.into());
    let text = toml::Table::from_iter([("checks".to_owned(), toml::Value::Table(own))]);
    let rules = vec![rule.clone()];
    let tuning = Tuning::read(&rules, &text)?;
    Checker::new(rules, tuning).await
}

async fn try_case(rule: &Rule, case: &Case) -> Result<Option<String>, Error> {
    let checker = checker_of(rule, case).await?;
    let (snapshot, ledger, end) = snapshot_of(&case.records);
    let now = Time(end + checker.tuning().grace() + 1);
    let entries = Entries::These(ledger);
    let hits = checker.everything(&Arc::new(snapshot.clone()), &entries, now).await?;
    let at_once: BTreeSet<u64> = hits.iter().map(|hit| hit.seq).collect();
    let stepwise = stepwise(&checker, &snapshot, &entries, 1, now).await?;
    let stepwise: BTreeSet<u64> = stepwise.into_iter().map(|(seq, ..)| seq).collect();
    let wanted: BTreeSet<u64> = case.hits.iter().copied().collect();
    let different = |what: &str, found: &BTreeSet<u64>| {
        (*found != wanted).then(|| format!("{what} hits records {found:?}, not {wanted:?}"))
    };
    Ok(different("judged all at once it", &at_once).or_else(|| different("judged one by one it", &stepwise)))
}

/// What stands after records came some at a time: seq, check, verdict and evidence.
pub(crate) async fn stepwise(
    checker: &Arc<Checker>,
    snapshot: &Snapshot,
    entries: &Entries,
    step: u64,
    now: Time,
) -> Result<BTreeSet<(u64, String, String, Vec<u64>)>, Error> {
    steps(checker, snapshot, entries, step, (Time(0), now)).await
}

/// The same, where the clock shows the first of two times while records come, and the second at the end.
async fn steps(
    checker: &Arc<Checker>,
    snapshot: &Snapshot,
    entries: &Entries,
    step: u64,
    (meanwhile, now): (Time, Time),
) -> Result<BTreeSet<(u64, String, String, Vec<u64>)>, Error> {
    let mut evaluator = Evaluator::new(Arc::clone(checker), entries.clone(), 0);
    let mut stands = std::collections::BTreeMap::new();
    let (mut size, mut last) = (0, false);
    while !last {
        // Once more at the end, when everything is settled.
        last = size == snapshot.size;
        size = snapshot.size.min(size + step.max(1));
        let now = if last { now } else { meanwhile };
        let seen = Arc::new(Snapshot { size, ..snapshot.clone() });
        let found = evaluator.step(&seen, now).await?;
        for hit in found.take_back {
            stands.remove(&hit.key());
        }
        for (hit, _) in found.raise {
            stands.insert(hit.key(), hit);
        }
    }
    Ok(stands.into_values().map(|hit| (hit.seq, hit.check_id, hit.verdict, hit.evidence)).collect())
}

/// The rows of records: events, spans and entries; and when the last was taken.
pub(crate) fn snapshot_of(records: &[Sent]) -> (Snapshot, datafusion::arrow::array::RecordBatch, i64) {
    let (mut events, mut spans, mut ledger, mut clock) = (Vec::new(), Vec::new(), Vec::new(), START);
    for (seq, record) in records.iter().enumerate() {
        clock = clock.max(time(record.received.unwrap_or(record.at)));
        let seq = seq as u64;
        let (own, span) = rows(seq, record, clock);
        events.extend(own);
        spans.extend(span);
        ledger.push(LedgerRow { seq, flags: record.flags.clone(), ingest_time: Time(clock), ..LedgerRow::default() });
    }
    let mut tail = Tail { to: records.len() as u64, ..Tail::default() };
    tail.tables[Table::Events as usize] = vec![EventRow::batch(&events)];
    tail.tables[Table::Spans as usize] = vec![SpanRow::batch(&spans)];
    let snapshot = Snapshot { size: records.len() as u64, tail, ..Snapshot::default() };
    (snapshot, LedgerRow::batch(&ledger), clock)
}

fn time(seconds: f64) -> i64 {
    START + (seconds * 1e9) as i64
}

/// The rows of one record, by the mapping that everything goes through.
fn rows(seq: u64, record: &Sent, ingest_time: i64) -> (Vec<EventRow>, Option<SpanRow>) {
    let service = record.service.as_deref().unwrap_or("example");
    let service = attribute("service.name", &service.into());
    let resource = wire::Resource { attributes: vec![wire::KeyValue::from(&service)] };
    let context = RecordContext {
        seq,
        record_hash: "",
        ingest_time: Time(ingest_time),
        submitter: record.submitter.as_deref().unwrap_or("peer:192.0.2.1"),
        resource: &resource,
        scope: &wire::InstrumentationScope::default(),
    };
    let attributes = record.attributes.iter().map(|(key, value)| attribute(key, value)).collect();
    let trace_id = id(Some(record.trace.as_deref().unwrap_or("1")), 32);
    let at = time(record.at) as u64;
    if record.span.is_none() {
        let log = LogRecord {
            time_unix_nano: at,
            event_name: record.log.clone().unwrap_or_default(),
            trace_id,
            span_id: id(record.parent.as_deref(), 16),
            attributes,
            ..Default::default()
        };
        let sent = log.encode_to_vec();
        let log = wire::LogRecord::read(&sent).unwrap_or_default();
        let mut events = map_log(&context, &log);
        Tenancy::of_resource(&resource).of_record(&log.attributes, &mut events);
        return (events, None);
    }
    let span = Span {
        trace_id,
        span_id: id(record.span.as_deref(), 16),
        parent_span_id: id(record.parent.as_deref(), 16),
        name: record.name.clone(),
        start_time_unix_nano: at,
        end_time_unix_nano: if record.running { 0 } else { at + 1_000_000 },
        trace_state: record.trace_state.clone(),
        dropped_attributes_count: record.dropped_attributes,
        status: Some(Status { code: if record.failed { 2 } else { 0 }, ..Default::default() }),
        attributes,
        ..Default::default()
    };
    let sent = span.encode_to_vec();
    let span = wire::Span::read(&sent).unwrap_or_default();
    let mut events = map_span(&context, &span);
    let Tenancy { tenant, workspace } = Tenancy::of_resource(&resource).of_record(&span.attributes, &mut events);
    (events, Some(SpanRow { tenant, workspace, ..span_row(&context, &span) }))
}

/// An id of this many hex digits, filled up with zeros.
fn id(hex: Option<&str>, digits: usize) -> Vec<u8> {
    hex.and_then(|hex| const_hex::decode(format!("{hex:0>digits$}")).ok()).unwrap_or_default()
}

fn attribute(key: &str, value: &Json) -> KeyValue {
    fn any(value: &Json) -> AnyValue {
        let value = match value {
            Json::String(text) => Value::StringValue(text.clone()),
            Json::Bool(b) => Value::BoolValue(*b),
            Json::Number(n) => n.as_i64().map_or(Value::DoubleValue(n.as_f64().unwrap_or(0.0)), Value::IntValue),
            Json::Array(items) => Value::ArrayValue(ArrayValue { values: items.iter().map(any).collect() }),
            // Constraints and the like are JSON texts.
            other => Value::StringValue(other.to_string()),
        };
        AnyValue { value: Some(value) }
    }
    KeyValue { key: key.to_owned(), value: Some(any(value)), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::built_in;

    /// Evidence may come when all before it is settled: what stands in the end is the same. But that a grant was never
    /// used is told when it has ended, and stands.
    #[tokio::test(flavor = "multi_thread")]
    async fn each_example_is_judged_the_same_if_each_record_is_late() {
        let mut wrong = Vec::new();
        for rule in built_in().into_iter().filter(|rule| rule.id != "unused_authority") {
            let cases: Vec<Case> = serde_json::from_str(rule.examples.as_deref().unwrap()).unwrap();
            for mut case in cases {
                let checker = checker_of(&rule, &case).await.unwrap();
                // Spans are exported when they end: what began first may come last. What is numbered is known as such only by
                // the numbers before.
                let orders = ["as told", "backwards"];
                for order in orders.into_iter().filter(|order| rule.id != "sequence_gap" || *order == "as told") {
                    let (snapshot, ledger, end) = snapshot_of(&case.records);
                    let (late, entries) = (Time(end + checker.tuning().grace() + 1), Entries::These(ledger));
                    let wanted = checker.everything(&Arc::new(snapshot.clone()), &entries, late).await.unwrap();
                    let wanted: BTreeSet<u64> = wanted.into_iter().map(|hit| hit.seq).collect();
                    let found = steps(&checker, &snapshot, &entries, 1, (late, late)).await.unwrap();
                    let found: BTreeSet<u64> = found.into_iter().map(|(seq, ..)| seq).collect();
                    if found != wanted {
                        wrong.push(format!("{}, {}, {order}: {found:?}, not {wanted:?}", rule.id, case.name));
                    }
                    case.records.reverse();
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
