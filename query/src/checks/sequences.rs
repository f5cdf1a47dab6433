//! Sources that number their records: the table `numbered`. All records are looked at, not only those that
//! became events, for a source counts those, too. A source that speaks for several tenants numbers for each; where it
//! numbers all of them in one, what it sent for another tenant is no gap.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};

use datafusion::arrow::array::{Array as _, AsArray as _};
use datafusion::arrow::record_batch::RecordBatch;
use serde_json::Value as Json;

use crate::Error;
use crate::grants::Scope;
use crate::projection::Snapshot;
use crate::rows::{Cell, Time, table};
use crate::segments::{Table, Wanted};

table! {
    /// A record that its source numbered, and what is known of the numbers before it.
    NumberedRow, NumberedBuilder {
        /// The record.
        seq: u64,
        /// Its trace.
        trace_id: Option<String>,
        /// Its span.
        span_id: Option<String>,
        /// The service that numbers.
        service: Option<String>,
        /// Its number.
        number: i64,
        /// The record with the number before; null if it never came.
        previous_seq: Option<u64>,
        /// The record with the next smaller number that came.
        earlier_seq: Option<u64>,
        /// That number.
        earlier_number: Option<i64>,
        /// Smaller numbers of the source that came, the newest 64 of them.
        before: u64,
        /// How many of those directly follow another.
        following: u64,
    }
}

/// The attributes that number records.
const NUMBERS: [&str; 2] = ["event.sequence", "metadata.sequence"];
/// The attributes that name what is numbered apart within a service.
const SESSIONS: [&str; 4] = ["gen_ai.conversation.id", "session.id", "mcp.session.id", "conversation.id"];
/// Smaller numbers that are looked at.
const BEFORE_MAX: usize = 64;
/// Numbers that are kept.
const KEPT_MAX: usize = 200_000;

/// A record with its number.
#[derive(Clone, Debug)]
pub(super) struct Numbered {
    pub(super) seq: u64,
    pub(super) time: i64,
    source: String,
    tenant: Option<String>,
    /// Who sent it, as authenticated: a gateway that speaks for several tenants is one.
    submitter: Option<String>,
    number: i64,
    service: Option<String>,
    trace_id: Option<String>,
    span_id: Option<String>,
}

/// The numbers of each source.
#[derive(Debug, Default)]
pub(super) struct Sequences {
    records: HashMap<u64, Numbered>,
    hasher: RandomState,
    /// Numbers by source and scope, each with the record that first had it of its tenant.
    sources: HashMap<u64, BTreeSet<(i64, u64)>>,
    /// The same by source and submitter, whatever tenants they are of.
    senders: HashMap<u64, BTreeSet<(i64, u64)>>,
    order: VecDeque<(i64, u64)>,
}

/// The record that first had a number.
fn first(numbers: &BTreeSet<(i64, u64)>, number: i64) -> Option<u64> {
    numbers.range((number, 0)..=(number, u64::MAX)).next().map(|(_, seq)| *seq)
}

/// Takes a number out of a place, and the place with its last.
fn remove(places: &mut HashMap<u64, BTreeSet<(i64, u64)>>, place: u64, number: (i64, u64)) {
    if let Some(numbers) = places.get_mut(&place) {
        numbers.remove(&number);
        if numbers.is_empty() {
            places.remove(&place);
        }
    }
}

impl Sequences {
    /// Takes a record in. Of two with one number the first counts.
    pub(super) fn take(&mut self, record: Numbered) {
        if self.records.contains_key(&record.seq) {
            return;
        }
        let own = self.looks_in(&record)[0];
        if self.sources.get(&own).is_none_or(|numbers| first(numbers, record.number).is_none()) {
            for place in self.lies_in(&record) {
                self.sources.entry(place).or_default().insert((record.number, record.seq));
            }
        }
        self.senders.entry(self.sender(&record)).or_default().insert((record.number, record.seq));
        self.order.push_back((record.time, record.seq));
        self.records.insert(record.seq, record);
    }

    fn place(&self, record: &Numbered, scope: Scope<'_>) -> u64 {
        self.hasher.hash_one((&record.source, scope))
    }

    fn sender(&self, record: &Numbered) -> u64 {
        self.hasher.hash_one((&record.source, &record.submitter))
    }

    fn lies_in(&self, record: &Numbered) -> Vec<u64> {
        Scope::lies_in(record.tenant.as_deref()).map(|scope| self.place(record, scope)).collect()
    }

    fn looks_in(&self, record: &Numbered) -> [u64; 2] {
        Scope::looks_in(record.tenant.as_deref()).map(|scope| self.place(record, scope))
    }

    /// The numbers that a record meets.
    fn met(&self, record: &Numbered) -> Vec<&BTreeSet<(i64, u64)>> {
        self.looks_in(record).iter().filter_map(|place| self.sources.get(place)).collect()
    }

    /// Whether a record is at hand.
    pub(super) fn has(&self, seq: u64) -> bool {
        self.records.contains_key(&seq)
    }

    /// The records whose number follows directly on that of a record, if that is the first of its tenant; of other
    /// tenants, those of its sender.
    pub(super) fn after(&self, seq: u64) -> Vec<u64> {
        let Some((record, next)) = self.records.get(&seq).and_then(|r| Some((r, r.number.checked_add(1)?))) else {
            return Vec::new();
        };
        let met = self.met(record);
        let is_first = met.iter().any(|numbers| numbers.contains(&(record.number, seq)));
        let met = is_first.then_some(met).into_iter().flatten().chain(self.senders.get(&self.sender(record)));
        let after = met.flat_map(|numbers| numbers.range((next, 0)..=(next, u64::MAX))).map(|(_, seq)| *seq);
        let after: BTreeSet<u64> = after.collect();
        after.into_iter().collect()
    }

    /// The rows of some records.
    pub(super) fn rows<'a>(&self, seqs: impl Iterator<Item = &'a u64>) -> RecordBatch {
        let rows: Vec<NumberedRow> = seqs.filter_map(|seq| self.row(*seq)).collect();
        NumberedRow::batch(&rows)
    }

    fn row(&self, seq: u64) -> Option<NumberedRow> {
        let record = self.records.get(&seq)?;
        let met = self.met(record);
        let seq_of = |number: i64| met.iter().filter_map(|numbers| first(numbers, number)).min();
        let below = |number: i64| {
            let lower = met.iter().filter_map(|numbers| numbers.range(..(number, 0)).next_back());
            lower.map(|(number, _)| *number).max()
        };
        let lower = std::iter::successors(below(record.number), |number| below(*number)).take(BEFORE_MAX);
        let before: Vec<(i64, u64)> = lower.filter_map(|number| Some((number, seq_of(number)?))).collect();
        // The newest first.
        let following = before.windows(2).filter(|two| two[1].0.checked_add(1) == Some(two[0].0)).count();
        let of_sender = |number: i64| first(self.senders.get(&self.sender(record))?, number);
        let previous = record.number.checked_sub(1).and_then(|number| seq_of(number).or_else(|| of_sender(number)));
        Some(NumberedRow {
            seq,
            trace_id: record.trace_id.clone(),
            span_id: record.span_id.clone(),
            service: record.service.clone(),
            number: record.number,
            previous_seq: previous,
            earlier_seq: before.first().map(|earlier| earlier.1),
            earlier_number: before.first().map(|earlier| earlier.0),
            before: before.len() as u64,
            following: following as u64,
        })
    }

    /// Lets go of what is older than `before`, and of the oldest beyond what is kept.
    pub(super) fn let_go(&mut self, before: i64) {
        while self.order.front().is_some_and(|(time, _)| *time < before) || self.order.len() > KEPT_MAX {
            let Some((_, seq)) = self.order.pop_front() else { return };
            let Some(record) = self.records.remove(&seq) else { continue };
            let (number, places) = ((record.number, seq), self.lies_in(&record));
            places.into_iter().for_each(|place| remove(&mut self.sources, place, number));
            let sender = self.sender(&record);
            remove(&mut self.senders, sender, number);
        }
    }
}

/// The numbered records of a range, in seq order.
pub(super) fn read(snapshot: &Snapshot, seqs: std::ops::Range<u64>) -> Result<Vec<Numbered>, Error> {
    const LOGS: [&str; 9] =
        ["seq", "trace_id", "span_id", "service_name", "resource", "attributes", "ingest_time", "submitter", "tenant"];
    const EVENTS: [&str; 9] = [
        "seq",
        "ingest_time",
        "trace_id",
        "span_id",
        "tenant",
        "submitter",
        "service",
        "conversation_id",
        "attributes",
    ];
    let (mut out, mut known) = (Vec::new(), BTreeSet::new());
    for table in [Table::Logs, Table::Spans] {
        snapshot.read(&Wanted::all(table).columns(&LOGS).seqs(seqs.clone()), |batch| {
            out.extend(of_batch(batch));
            Ok(true)
        })?;
    }
    known.extend(out.iter().map(|record| record.seq));
    // The number may stand in a body that only a mapping reads.
    snapshot.read(&Wanted::all(Table::Events).columns(&EVENTS).seqs(seqs), |batch| {
        out.extend(of_batch(batch).into_iter().filter(|record| known.insert(record.seq)));
        Ok(true)
    })?;
    out.sort_by_key(|record| record.seq);
    Ok(out)
}

fn of_batch(batch: &RecordBatch) -> Vec<Numbered> {
    let text = |name: &str, i: usize| {
        batch
            .column_by_name(name)
            .and_then(|column| <Option<String> as Cell>::read(column, i))
            .filter(|t| !t.is_empty())
    };
    let attributes = batch.column_by_name("attributes").and_then(|column| column.as_string_opt::<i32>());
    let (Some(seqs), Some(times), Some(attributes)) =
        (batch.column_by_name("seq"), batch.column_by_name("ingest_time"), attributes)
    else {
        return Vec::new();
    };
    let mut out = Vec::new();
    for i in (0..batch.num_rows()).filter(|i| attributes.is_valid(*i)) {
        // Most records are not numbered, and their attributes are long.
        let written = attributes.value(i);
        if !written.contains(".sequence\"") {
            continue;
        }
        let fields: Json = serde_json::from_str(written).unwrap_or_default();
        let first = |names: &[&str]| names.iter().find_map(|name| plain(&fields, name));
        let Some(number) = first(&NUMBERS).and_then(|number| number.parse().ok()) else { continue };
        let service = text("service_name", i).or_else(|| text("service", i));
        let resource: Json = serde_json::from_str(&text("resource", i).unwrap_or_default()).unwrap_or_default();
        let instance = plain(&resource, "service.instance.id");
        let session = first(&SESSIONS).or_else(|| text("conversation_id", i));
        let source = [&service, &instance, &session].map(|part| part.as_deref().unwrap_or_default()).join("\n");
        out.push(Numbered {
            seq: u64::read(seqs, i),
            time: Time::read(times, i).0,
            source,
            tenant: text("tenant", i),
            submitter: text("submitter", i),
            number,
            service,
            trace_id: text("trace_id", i),
            span_id: text("span_id", i),
        });
    }
    out
}

/// A text or a whole number.
fn plain(fields: &Json, name: &str) -> Option<String> {
    match fields.get(name)? {
        Json::String(text) => Some(text.clone()),
        Json::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The numbered records of a whole snapshot.
pub(super) fn of_all(snapshot: &Snapshot) -> Result<RecordBatch, Error> {
    let mut all = Sequences::default();
    let records = read(snapshot, 0..u64::MAX)?;
    let seqs: Vec<u64> = records.iter().map(|record| record.seq).collect();
    records.into_iter().for_each(|record| all.take(record));
    Ok(all.rows(seqs.iter()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seq: u64, source: &str, number: i64) -> Numbered {
        let service = Some(source.to_owned());
        Numbered {
            seq,
            time: seq as i64,
            source: source.into(),
            tenant: None,
            // Each sends for itself, unless a test says otherwise.
            submitter: Some(seq.to_string()),
            number,
            service,
            trace_id: None,
            span_id: None,
        }
    }

    #[test]
    fn a_gap_is_seen_from_the_record_after_it_and_closed_by_a_late_one() {
        let mut all = Sequences::default();
        for (seq, number) in [(0, 1), (1, 2), (2, 3), (3, 5), (4, 6)] {
            all.take(record(seq, "a", number));
        }
        all.take(record(5, "b", 4));
        let row = all.row(3).unwrap();
        assert_eq!((row.previous_seq, row.earlier_seq, row.earlier_number), (None, Some(2), Some(3)));
        assert_eq!((row.before, row.following), (3, 2));
        assert_eq!((all.row(0).unwrap().before, all.row(5).unwrap().earlier_seq), (0, None));
        all.take(record(6, "a", 4));
        assert_eq!((all.after(6), all.row(3).unwrap().previous_seq), (vec![3], Some(6)));
        all.take(record(7, "a", 4));
        assert_eq!(all.row(3).unwrap().previous_seq, Some(6), "the first with a number counts");
    }

    #[test]
    fn what_is_let_go_leaves_nothing_behind() {
        let mut all = Sequences::default();
        for seq in 0..10 {
            all.take(record(seq, "a", i64::MAX - 9 + seq as i64));
        }
        all.let_go(9);
        assert_eq!((all.records.len(), all.sources.len(), all.sources.values().map(BTreeSet::len).sum()), (1, 1, 1));
        assert_eq!((all.after(9), all.row(9).unwrap().before), (vec![], 0));
        all.let_go(10);
        assert!(all.records.is_empty() && all.sources.is_empty() && all.order.is_empty());
    }

    /// One counter for all that a gateway sends.
    #[test]
    fn what_its_sender_numbered_for_another_tenant_is_no_gap() {
        let mut all = Sequences::default();
        let of = |seq, tenant: &str, number| Numbered {
            tenant: Some(tenant.to_owned()),
            submitter: Some("gateway".into()),
            ..record(seq, "a", number)
        };
        for (seq, tenant, number) in [(0, "acme", 1), (1, "globex", 2), (2, "acme", 3), (3, "acme", 5)] {
            all.take(of(seq, tenant, number));
        }
        let previous = |all: &Sequences, seq| all.row(seq).unwrap().previous_seq;
        assert_eq!((previous(&all, 2), previous(&all, 3)), (Some(1), None));
        all.take(of(4, "globex", 4));
        assert_eq!((previous(&all, 3), all.after(4)), (Some(4), vec![3]));
        all.let_go(9);
        assert!(all.sources.is_empty() && all.senders.is_empty());
    }

    #[test]
    fn no_tenant_fills_or_opens_the_gap_of_another() {
        let mut all = Sequences::default();
        let of = |seq, tenant: Option<&str>, number| Numbered {
            tenant: tenant.map(str::to_owned),
            ..record(seq, "a", number)
        };
        for (seq, number) in [(0, 1), (1, 2), (2, 4)] {
            all.take(of(seq, Some("acme"), number));
        }
        all.take(of(3, Some("globex"), 3));
        all.take(of(4, Some("globex"), 9));
        let gap =
            |all: &Sequences, seq| all.row(seq).map(|row| (row.previous_seq, row.earlier_seq, row.before)).unwrap();
        assert_eq!(gap(&all, 2), (None, Some(1), 2));
        assert_eq!(gap(&all, 4), (None, Some(3), 1));
        assert!(all.after(3).is_empty());
        all.take(of(5, None, 5));
        assert_eq!(gap(&all, 5), (Some(2), Some(2), 4), "it meets all");
        all.take(of(6, None, 3));
        assert_eq!((gap(&all, 2), all.after(6)), ((Some(6), Some(6), 3), vec![2]), "and all meet it");
        all.let_go(7);
        assert!(all.records.is_empty() && all.sources.is_empty());
    }
}
