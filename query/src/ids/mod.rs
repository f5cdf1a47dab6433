//! Where the events of an id are: an index from grants, agents, conversations and
//! correlation ids to the seqs of their events, so that a chain or a replay reads those
//! and nothing else. (Traces are in the log's own index.)
//!
//! It is a list of runs, each the sorted postings of a range of the log: the newest in
//! memory, older ones in files of the folder `index`. Ranges never overlap; where one is
//! missing, those rows are looked through instead, so that an index that is lost or is
//! still being made costs time and never an answer. Keys are 64 bits of a hash: whoever
//! fetches a row looks at its id again.

mod file;
mod find;
mod keep;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use custody_store::system::SeqSet;
use datafusion::arrow::array::{Array as _, StringArray};
use datafusion::arrow::record_batch::RecordBatch;

pub(crate) use file::FileRun;
pub(crate) use find::Finder;
pub(crate) use keep::Keeper;

use crate::Error;
use crate::rows::Cell;

/// Postings in memory, at most; then they are written to a file.
const MEMORY_ENTRIES_MAX: usize = 1 << 20;

/// What an id is the id of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A grant: what gives, uses, revokes or derives from it.
    Grant,
    /// An agent, by its id, or by its name where it has no id.
    Agent,
    /// A conversation or session.
    Conversation,
    /// A correlation id; of alerts, that of the alert.
    Correlation,
}

impl Kind {
    /// The columns of `events` whose values are such ids.
    pub(crate) fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Grant => &["grant_id", "parent_grant_id"],
            Self::Agent => &["agent_id", "agent_name"],
            Self::Conversation => &["conversation_id"],
            Self::Correlation => &["correlation_id"],
        }
    }

    /// The kind of the ids in a column, where an index by it finds every row.
    pub(crate) fn of_column(name: &str) -> Option<Self> {
        match name {
            "grant_id" => Some(Self::Grant),
            "agent_id" => Some(Self::Agent),
            "conversation_id" => Some(Self::Conversation),
            "correlation_id" => Some(Self::Correlation),
            _ => None,
        }
    }

    /// The key of an id.
    pub(crate) fn key(self, id: &str) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[self as u8]);
        hasher.update(id.as_bytes());
        let mut key = [0; 8];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(key)
    }
}

/// What an event has to do with an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// A tool call under the grant.
    Use,
    /// The grant was issued, derived or denied.
    Given,
    /// It was revoked.
    Revoked,
    /// Another grant was derived from it, or refused to it.
    Child,
    /// A person approved or rejected it.
    Approval,
    /// Anything else.
    Other,
}

/// One event of an id: its seq, and what it has to do with the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Posting(u64);

impl Posting {
    pub(crate) fn new(seq: u64, role: Role) -> Self {
        Self(seq << 3 | role as u64)
    }

    pub(crate) fn seq(self) -> u64 {
        self.0 >> 3
    }

    pub(crate) fn role(self) -> Role {
        match self.0 & 7 {
            0 => Role::Use,
            1 => Role::Given,
            2 => Role::Revoked,
            3 => Role::Child,
            4 => Role::Approval,
            _ => Role::Other,
        }
    }
}

/// Columns of `events` that postings are made from, in the table's order.
const COLUMNS: [&str; 8] =
    ["seq", "kind", "agent_id", "agent_name", "grant_id", "parent_grant_id", "correlation_id", "conversation_id"];

/// The postings of events, sorted by key and seq.
pub(crate) fn entries(events: &RecordBatch) -> Vec<(u64, Posting)> {
    let mut out = Vec::with_capacity(events.num_rows() * 3);
    let text = |name: &str| events.column_by_name(name).and_then(|c| c.as_any().downcast_ref::<StringArray>());
    let (Some(seqs), Some(kinds)) = (events.column_by_name("seq"), text("kind")) else { return out };
    let [agent, name, grant, parent, correlation, conversation] =
        ["agent_id", "agent_name", "grant_id", "parent_grant_id", "correlation_id", "conversation_id"].map(text);
    fn value(column: Option<&StringArray>, i: usize) -> Option<&str> {
        column.filter(|c| c.is_valid(i)).map(|c| c.value(i)).filter(|text| !text.is_empty())
    }
    for i in 0..events.num_rows() {
        let seq = <u64 as Cell>::read(seqs, i);
        let (of_grant, gives) = match kinds.value(i) {
            "tool_call" => (Role::Use, false),
            "grant_issued" | "grant_derived" | "grant_denied" => (Role::Given, true),
            "grant_revoked" => (Role::Revoked, false),
            "approval" => (Role::Approval, false),
            _ => (Role::Other, false),
        };
        let mut add = |kind: Kind, id: Option<&str>, role| {
            out.extend(id.map(|id| (kind.key(id), Posting::new(seq, role))));
        };
        add(Kind::Grant, value(grant, i), of_grant);
        add(Kind::Grant, value(parent, i), if gives { Role::Child } else { Role::Other });
        add(Kind::Agent, value(agent, i).or_else(|| value(name, i)), Role::Other);
        add(Kind::Correlation, value(correlation, i), Role::Other);
        add(Kind::Conversation, value(conversation, i), Role::Other);
    }
    out.sort_unstable();
    out.dedup();
    out
}

/// Postings of a range, in memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryRun {
    range: Range<u64>,
    entries: Vec<(u64, Posting)>,
}

impl MemoryRun {
    fn of_key(&self, key: u64) -> &[(u64, Posting)] {
        let start = self.entries.partition_point(|(k, _)| *k < key);
        let end = start + self.entries[start..].partition_point(|(k, _)| *k == key);
        &self.entries[start..end]
    }

    fn joined(before: &Self, after: &Self) -> Self {
        let mut entries = Vec::with_capacity(before.entries.len() + after.entries.len());
        let (mut a, mut b) = (before.entries.iter().peekable(), after.entries.iter().peekable());
        loop {
            match (a.peek(), b.peek()) {
                (Some(x), Some(y)) => entries.extend(if x <= y { a.next() } else { b.next() }),
                (Some(_), None) => entries.extend(a.by_ref()),
                (None, Some(_)) => entries.extend(b.by_ref()),
                (None, None) => break,
            }
        }
        Self { range: before.range.start..after.range.end, entries }
    }
}

/// The sorted postings of a range of the log.
#[derive(Clone, Debug)]
pub(crate) enum Run {
    Memory(Arc<MemoryRun>),
    File(Arc<FileRun>),
}

impl Run {
    pub(crate) fn range(&self) -> Range<u64> {
        match self {
            Self::Memory(run) => run.range.clone(),
            Self::File(run) => run.range(),
        }
    }

    /// Adds the postings of a key, in seq order.
    pub(crate) fn find(&self, key: u64, out: &mut Vec<Posting>) -> Result<(), Error> {
        match self {
            Self::Memory(run) => {
                out.extend(run.of_key(key).iter().map(|(_, posting)| *posting));
                Ok(())
            }
            Self::File(run) => run.find(key, out),
        }
    }
}

/// The index of one snapshot. Cheap to clone; never changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ids {
    runs: Arc<Vec<Run>>,
}

impl Ids {
    /// Its runs, in seq order.
    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The seq after the last that it has, or may be filled up to.
    fn end(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.range().end)
    }

    /// The ranges below `size` that it lacks.
    pub(crate) fn gaps(&self, size: u64) -> Vec<Range<u64>> {
        let (mut out, mut at) = (Vec::new(), 0);
        for range in self.runs.iter().map(Run::range).chain(std::iter::once(size..size)) {
            if range.start.min(size) > at {
                out.push(at..range.start.min(size));
            }
            at = at.max(range.end);
        }
        out
    }

    /// Adds the events of the records of a range behind all others.
    pub(crate) fn add(&mut self, range: Range<u64>, events: &RecordBatch) {
        let from = range.start.max(self.end());
        if from >= range.end {
            return;
        }
        let mut entries = entries(events);
        entries.retain(|(_, posting)| posting.seq() >= from);
        let runs = Arc::make_mut(&mut self.runs);
        let mut last = MemoryRun { range: from..range.end, entries };
        // Small runs are joined, each entry about as often as its run doubles.
        while let Some(Run::Memory(before)) = runs.last() {
            let apart = before.range.end != last.range.start;
            let large = before.entries.len() + last.entries.len() > MEMORY_ENTRIES_MAX;
            if apart || large || before.entries.len() > 2 * last.entries.len() + 64 {
                break;
            }
            last = MemoryRun::joined(before, &last);
            runs.pop();
        }
        runs.push(Run::Memory(Arc::new(last)));
    }

    /// Postings in memory.
    pub(crate) fn in_memory(&self) -> usize {
        let entries = |run: &Run| match run {
            Run::Memory(run) => run.entries.len(),
            Run::File(_) => 0,
        };
        self.runs.iter().map(entries).sum()
    }

    /// Puts a run in the place of those within its range.
    fn replace(&mut self, by: Run) {
        let range = by.range();
        let runs = Arc::make_mut(&mut self.runs);
        runs.retain(|run| run.range().start < range.start || run.range().end > range.end);
        // A run in memory may have grown meanwhile: what is now in `by` goes out of it.
        for run in runs.iter_mut() {
            if let Run::Memory(memory) = run
                && memory.range.start < range.end
                && range.start < memory.range.end
            {
                let keeps = |(_, posting): &&(u64, Posting)| posting.seq() >= range.end;
                let entries = memory.entries.iter().filter(keeps).copied().collect();
                *run = Run::Memory(Arc::new(MemoryRun { range: range.end..memory.range.end, entries }));
            }
        }
        let at = runs.partition_point(|run| run.range().start < range.start);
        runs.insert(at, by);
    }

    /// Forgets postings in memory of erased records; those in files are rewritten by their keeper.
    fn forget(&mut self, erased: &SeqSet) {
        for run in Arc::make_mut(&mut self.runs) {
            if let Run::Memory(memory) = run {
                let entries = memory.entries.iter().filter(|(_, p)| !erased.contains(p.seq())).copied().collect();
                *run = Run::Memory(Arc::new(MemoryRun { range: memory.range.clone(), entries }));
            }
        }
    }
}
