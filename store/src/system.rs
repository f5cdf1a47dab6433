//! The ledger's own records: what it says about itself, in the log like the rest.
//!
//! They are OTLP log records by the identity [`SYSTEM_IDENTITY`], which no sender
//! can have, with the event names below. docs/format.md lists their attributes.

use custody_proto::otlp::collector_logs::ExportLogsServiceRequest;
use custody_proto::otlp::common::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value::Value};
use custody_proto::otlp::logs::{LogRecord, ResourceLogs, ScopeLogs};
use custody_proto::otlp::resource::Resource;
use custody_proto::{Limits, Signal, scan};
use prost::Message as _;

use crate::commit::Prepared;
use crate::format::Encoding;
use crate::{Error, Reader};

/// The identity under which the ledger itself appends.
pub const SYSTEM_IDENTITY: &str = "system:custody";
/// The identity under which checks append their alerts. No sender can have an identity that begins
/// with `system:`.
pub const CHECKS_IDENTITY: &str = "system:checks";
/// The identity under which it is recorded who asked, exported, logged in or changed something.
pub const AUDIT_IDENTITY: &str = "system:audit";

/// Event names of the ledger's own records.
pub mod event {
    /// The first record: origin, format, keys, durability.
    pub const GENESIS: &str = "custody.log.genesis";
    /// From here on another durability level is in force.
    pub const DURABILITY: &str = "custody.log.durability";
    /// From here on other rules redact what comes in, or none.
    pub const REDACTION: &str = "custody.log.redaction";
    /// The clock went back, or jumped.
    pub const CLOCK: &str = "custody.log.clock";
    /// From here on other keys sign.
    pub const KEYS: &str = "custody.log.keys";
    /// The content of records was erased.
    pub const ERASURE: &str = "custody.log.erasure";
    /// Records may not be erased, or may again.
    pub const HOLD: &str = "custody.log.hold";
    /// The log was restored from a backup: what it had behind this is lost.
    pub const RESTORE: &str = "custody.log.restore";
    /// Evidence was exported.
    pub const EXPORT: &str = "custody.log.export";
    /// Something is wrong with the log itself: an alert like any other.
    pub const ALERT: &str = "security.alert";
}

/// One value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// A string.
    Text(String),
    /// An integer.
    Int(i64),
    /// A list of strings.
    Texts(Vec<String>),
}

impl From<&str> for Attribute {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Attribute {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Attribute {
    fn from(number: u64) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

/// A record of the ledger's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemRecord {
    /// Its event name.
    pub event: String,
    /// Its attributes, in order.
    pub attributes: Vec<(String, Attribute)>,
    /// The trace that it is about; empty for none.
    pub trace_id: Vec<u8>,
    /// The span that it is about; empty for none.
    pub span_id: Vec<u8>,
}

impl SystemRecord {
    /// A record without attributes yet.
    pub fn new(event: &str) -> Self {
        Self { event: event.to_owned(), attributes: Vec::new(), trace_id: Vec::new(), span_id: Vec::new() }
    }

    /// Says which trace and span it is about, by their hex ids; what is no such id is left out.
    pub fn within(mut self, trace_id: Option<&str>, span_id: Option<&str>) -> Self {
        let id = |hex: Option<&str>, bytes| hex.and_then(|h| const_hex::decode(h).ok()).filter(|id| id.len() == bytes);
        self.trace_id = id(trace_id, 16).unwrap_or_default();
        self.span_id = id(span_id, 8).unwrap_or_default();
        self
    }

    /// Adds an attribute.
    pub fn with(mut self, key: &str, value: impl Into<Attribute>) -> Self {
        self.attributes.push((key.to_owned(), value.into()));
        self
    }

    /// The value of an attribute that is text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.attributes.iter().find(|(k, _)| k == key).and_then(|(_, value)| match value {
            Attribute::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// The value of an attribute that is a list of texts.
    pub fn texts(&self, key: &str) -> Option<&[String]> {
        self.attributes.iter().find(|(k, _)| k == key).and_then(|(_, value)| match value {
            Attribute::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// Reads the bytes of a `LogRecord`; `None` if it is not one with an event name.
    pub fn decode(record: &[u8]) -> Option<Self> {
        let record = LogRecord::decode(record).ok()?;
        let attributes = record.attributes.into_iter().filter_map(|a| Some((a.key, read_value(a.value?)?)));
        let attributes = attributes.collect();
        let (trace_id, span_id) = (record.trace_id, record.span_id);
        (!record.event_name.is_empty()).then_some(Self { event: record.event_name, attributes, trace_id, span_id })
    }

    /// The request that appends it. `time` is in ns since the Unix epoch.
    pub(crate) fn prepare(&self, time: u64) -> Result<Prepared, Error> {
        self.prepare_as(SYSTEM_IDENTITY, time)
    }

    /// The request that appends what a part of the server, or a person through it, has to say: an
    /// alert of a check, a query that was asked, an acknowledgement. `identity` is who says it:
    /// [`CHECKS_IDENTITY`], [`AUDIT_IDENTITY`] or a person that was authenticated.
    ///
    /// # Errors
    ///
    /// If the record is larger than a record may be.
    pub fn prepare_as(&self, identity: &str, time: u64) -> Result<Prepared, Error> {
        let pair = |(key, value): &(String, Attribute)| attribute(key, value);
        let record = LogRecord {
            time_unix_nano: time,
            observed_time_unix_nano: time,
            event_name: self.event.clone(),
            attributes: self.attributes.iter().map(pair).collect(),
            trace_id: self.trace_id.clone(),
            span_id: self.span_id.clone(),
            ..Default::default()
        };
        let scope = InstrumentationScope { name: "custody".into(), ..Default::default() };
        let service = attribute("service.name", &"custody".into());
        let resource = Resource { attributes: vec![service], ..Default::default() };
        let scope_logs = vec![ScopeLogs { scope: Some(scope), log_records: vec![record], ..Default::default() }];
        let resource_logs = vec![ResourceLogs { resource: Some(resource), scope_logs, ..Default::default() }];
        let payload = ExportLogsServiceRequest { resource_logs }.encode_to_vec();
        let scan = scan(Signal::Logs, &payload, &Limits::default()).map_err(|e| Error::invalid(e.message()))?;
        Ok(Prepared::new(Signal::Logs, Encoding::Protobuf, payload.into(), scan, identity))
    }
}

fn attribute(key: &str, value: &Attribute) -> KeyValue {
    let text = |text: &String| AnyValue { value: Some(Value::StringValue(text.clone())) };
    let value = match value {
        Attribute::Text(t) => text(t),
        Attribute::Int(number) => AnyValue { value: Some(Value::IntValue(*number)) },
        Attribute::Texts(texts) => {
            AnyValue { value: Some(Value::ArrayValue(ArrayValue { values: texts.iter().map(text).collect() })) }
        }
    };
    KeyValue { key: key.to_owned(), value: Some(value), ..Default::default() }
}

fn read_value(value: AnyValue) -> Option<Attribute> {
    match value.value? {
        Value::StringValue(text) => Some(Attribute::Text(text)),
        Value::IntValue(number) => Some(Attribute::Int(number)),
        Value::ArrayValue(list) => {
            let texts = list.values.into_iter().map(|v| match v.value {
                Some(Value::StringValue(text)) => Some(text),
                _ => None,
            });
            texts.collect::<Option<_>>().map(Attribute::Texts)
        }
        _ => None,
    }
}

impl Reader {
    /// The ledger's own records with one of these event names, in order of seq.
    pub fn system_records(&self, events: &[&str]) -> Result<Vec<(u64, SystemRecord)>, Error> {
        let mut out = Vec::new();
        for (seq, event) in self.system_index()? {
            if !events.contains(&event.as_str()) {
                continue;
            }
            let missing = || Error::corrupt(format!("the ledger's own record at seq {seq} is missing"));
            let block = self.block_at(seq)?.ok_or_else(missing)?;
            let content = block.content.filter(|c| c.identity() == SYSTEM_IDENTITY).ok_or_else(missing)?;
            let record = content.record((seq - block.commitments.first_seq) as usize);
            out.push((seq, SystemRecord::decode(record).ok_or_else(missing)?));
        }
        Ok(out)
    }
}

/// Seqs as text, such as `7,9-12`: how an erasure or a hold names its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeqSet(Vec<std::ops::Range<u64>>);

impl SeqSet {
    /// The set of some ranges, in any order.
    pub fn of(ranges: impl IntoIterator<Item = std::ops::Range<u64>>) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().filter(|r| r.start < r.end).collect();
        ranges.sort_unstable_by_key(|r| r.start);
        let mut out: Vec<std::ops::Range<u64>> = Vec::new();
        for range in ranges {
            match out.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => out.push(range),
            }
        }
        Self(out)
    }

    /// The set of some seqs.
    pub fn of_seqs(seqs: impl IntoIterator<Item = u64>) -> Self {
        Self::of(seqs.into_iter().map(|seq| seq..seq.saturating_add(1)))
    }

    /// Reads what people write: any numbers and ranges, in any order.
    pub fn parse_loosely(text: &str) -> Option<Self> {
        let part = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first <= last).then_some(first..last.checked_add(1)?)
        };
        text.split(',').map(part).collect::<Option<Vec<_>>>().map(Self::of)
    }

    /// Reads `7,9-12` in its one spelling: ranges rise, and neighbours are joined.
    pub fn parse(text: &str) -> Option<Self> {
        let mut out: Vec<std::ops::Range<u64>> = Vec::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.parse().ok().filter(|n: &u64| n.to_string() == text);
            let (first, last) = (number(first)?, number(last)?);
            let is_range = part.contains('-');
            if last < first || is_range && last == first || out.last().is_some_and(|before| first <= before.end) {
                return None;
            }
            out.push(first..last.checked_add(1)?);
        }
        Some(Self(out))
    }

    /// Adds a range behind all others.
    pub(crate) fn append(&mut self, range: std::ops::Range<u64>) {
        match self.0.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => self.0.push(range),
        }
    }

    /// Its ranges, rising and apart.
    pub fn ranges(&self) -> &[std::ops::Range<u64>] {
        &self.0
    }

    /// Every seq, rising.
    pub fn seqs(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().cloned().flatten()
    }

    /// How many seqs it has.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|r| r.end - r.start).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it has this seq.
    pub fn contains(&self, seq: u64) -> bool {
        let at = self.0.partition_point(|r| r.end <= seq);
        self.0.get(at).is_some_and(|r| r.start <= seq)
    }

    /// All that is in either.
    pub fn union(&self, other: &Self) -> Self {
        Self::of(self.0.iter().chain(&other.0).cloned())
    }

    /// What is in this one and not in the other.
    pub fn without(&self, other: &Self) -> Self {
        let (mut out, mut at_hole) = (Self::default(), 0);
        for range in &self.0 {
            let mut at = range.start;
            while other.0.get(at_hole).is_some_and(|hole| hole.end <= at) {
                at_hole += 1;
            }
            for hole in other.0[at_hole..].iter().take_while(|hole| hole.start < range.end) {
                if hole.start > at {
                    out.0.push(at..hole.start);
                }
                at = hole.end;
            }
            if at < range.end {
                out.0.push(at..range.end);
            }
        }
        out
    }

    /// The smallest seq that is at least `at`.
    pub fn next_at(&self, at: u64) -> Option<u64> {
        let found = self.0.partition_point(|range| range.end <= at);
        self.0.get(found).map(|range| range.start.max(at))
    }

    /// The ranges that lie in a range, cut to it.
    pub fn within(&self, range: std::ops::Range<u64>) -> impl Iterator<Item = std::ops::Range<u64>> + '_ {
        let first = self.0.partition_point(|r| r.end <= range.start);
        let inside = self.0[first..].iter().take_while(move |r| r.start < range.end);
        inside.map(move |r| r.start.max(range.start)..r.end.min(range.end))
    }
}

impl std::fmt::Display for SeqSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let last = range.end - 1;
            if last == range.start { write!(f, "{comma}{last}")? } else { write!(f, "{comma}{}-{last}", range.start)? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn seq_sets_are_sets(a in proptest::collection::btree_set(0u64..40, 0..20), b in proptest::collection::btree_set(0u64..40, 0..20)) {
            let (x, y) = (SeqSet::of_seqs(a.clone()), SeqSet::of_seqs(b.clone()));
            prop_assert_eq!(x.seqs().collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(SeqSet::parse(&x.to_string()), Some(x.clone()));
            prop_assert_eq!(x.without(&y).seqs().collect::<BTreeSet<_>>(), a.difference(&b).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(x.union(&y).seqs().collect::<BTreeSet<_>>(), a.union(&b).copied().collect::<BTreeSet<_>>());
            prop_assert!((0..41).all(|seq| x.contains(seq) == a.contains(&seq)));
            prop_assert_eq!(x.count(), a.len() as u64);
        }

        #[test]
        fn seq_sets_read_only_what_they_write(text in "[0-9,-]{0,12}") {
            if let Some(set) = SeqSet::parse(&text) {
                prop_assert_eq!(SeqSet::parse(&set.to_string()), Some(set));
            }
        }
    }

    #[test]
    fn records_survive_the_round_trip() {
        let record = SystemRecord::new(event::ERASURE)
            .with("custody.erasure.seqs", "7,9-12")
            .with("custody.erasure.records", 5u64)
            .with("vkeys", Attribute::Texts(vec!["a".into(), "b".into()]));
        let prepared = record.prepare(7).unwrap();
        assert_eq!(SystemRecord::decode(prepared.content(0)[0]), Some(record));
    }
}
