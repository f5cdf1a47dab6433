//! Replay: every step of a trace, a grant, an agent, a conversation or an alert,
//! in causal order, with markers where evidence is missing.
//!
//! Parents stand before children, a grant before its use, a linked span before what links
//! to it, a decision before the call it was about. Clocks only break ties; a clock that
//! contradicts causality is named in the step's note.
//!
//! It is made in two passes, so that a trace of a million steps takes no more memory than
//! its keys: the order is computed over one [`keys::Node`] a step (about 250 bytes with all
//! that is derived from it), then the rows are fetched in that order, a batch at a time.
//! What the keys take is asked for before they are read: an agent of many years has more
//! steps than there is room for, and is refused.

mod keys;
mod order;
mod select;
mod tell;

use datafusion::arrow::record_batch::RecordBatch;

use crate::Error;
use crate::ids::Finder;
use crate::projection::{AsOf, Snapshot};
use crate::rows::{Time, table};

table! {
    /// One step of a replay.
    StepRow, StepBuilder {
        /// 0-based place in the replay.
        step: u64,
        /// How deep it stands in the tree.
        depth: u32,
        /// The step it stands under.
        parent_step: Option<u64>,
        /// The record that shows it; null for a marker of missing evidence.
        seq: Option<u64>,
        /// Commitment of that record, hex.
        record_hash: Option<String>,
        /// When, as its source says.
        event_time: Option<Time>,
        /// The event's kind; missing for a marker.
        kind: String,
        /// The agent that acts.
        agent_id: Option<String>,
        /// Its name.
        agent_name: Option<String>,
        /// For whom.
        initiator_id: Option<String>,
        /// The grant used, given or refused.
        grant_id: Option<String>,
        /// The grant it was derived from.
        parent_grant_id: Option<String>,
        /// allow, deny and the like.
        decision: Option<String>,
        /// Why.
        reasons: Vec<String>,
        /// Tool.
        tool: Option<String>,
        /// Id of the call.
        tool_call_id: Option<String>,
        /// Action.
        action: Option<String>,
        /// What it was done to.
        resource: Option<String>,
        /// Arguments of the call, as the model gave them.
        arguments: Option<String>,
        /// BLAKE3 of the arguments, first 16 bytes, hex.
        arguments_digest: Option<String>,
        /// Result of the call, its first 200 characters.
        result: Option<String>,
        /// ok, error or unset.
        status: Option<String>,
        /// How long it took, ns.
        duration_ns: Option<i64>,
        /// Trace.
        trace_id: Option<String>,
        /// Span.
        span_id: Option<String>,
        /// Parent span.
        parent_span_id: Option<String>,
        /// The service's own claim of its name.
        service: Option<String>,
        /// What evidence is missing here.
        missing: Option<String>,
        /// What else is to be said: refused yet executed, outside its grant, a clock that is off.
        note: Option<String>,
        /// Whether it is the last under the step that it stands under.
        is_last: bool,
    }
}

/// What a step's keys take, with all that is derived from them, about.
const STEP_BYTES: usize = 256;

/// Gives room for so many more bytes, or says that there is none.
pub(crate) type Room<'a> = &'a mut dyn FnMut(usize) -> Result<(), Error>;

/// What an id is meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// Whatever it names.
    Any,
    /// A trace.
    Trace,
    /// A grant.
    Grant,
    /// An agent.
    Agent,
    /// A conversation.
    Conversation,
    /// An alert, or whatever else gave its records this correlation id.
    Alert,
}

impl Named {
    /// All names.
    pub const NAMES: &str = "trace, grant, agent, conversation or alert";

    /// What has this name.
    pub fn of_name(name: &str) -> Option<Self> {
        let all = [Self::Trace, Self::Grant, Self::Agent, Self::Conversation, Self::Alert];
        all.into_iter().find(|one| one.name() == name)
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Any => "record",
            Self::Trace => "trace",
            Self::Grant => "grant",
            Self::Agent => "agent",
            Self::Conversation => "conversation",
            Self::Alert => "alert",
        }
    }

    /// Whether an id that is meant so may be one of these.
    fn takes(self, one: Self) -> bool {
        self == Self::Any || self == one
    }
}

/// What is to be replayed.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) id: String,
    pub(crate) named: Named,
    pub(crate) as_of: AsOf,
    pub(crate) now: Time,
}

/// Replays whatever the id names, as the ledger knew it `as_of`.
///
/// # Errors
///
/// If rows or the log cannot be read.
pub fn replay(snapshot: &Snapshot, id: &str, as_of: AsOf, now: Time) -> Result<Vec<StepRow>, Error> {
    let mut steps = Vec::new();
    replay_each(snapshot, id, as_of, now, &mut |batch| {
        steps.extend(StepRow::read(&batch));
        Ok(true)
    })?;
    Ok(steps)
}

/// The same, a batch of steps at a time, until `each` says that it is enough.
///
/// # Errors
///
/// If rows or the log cannot be read, and what `each` says.
pub fn replay_each(
    snapshot: &Snapshot,
    id: &str,
    as_of: AsOf,
    now: Time,
    each: &mut dyn FnMut(RecordBatch) -> Result<bool, Error>,
) -> Result<(), Error> {
    let wanted = Wanted { id: id.to_owned(), named: Named::Any, as_of, now };
    replay_within(snapshot, &wanted, &mut |_| Ok(()), &mut |_| {}, each).map(drop)
}

/// The same in the room that there is, saying what is to be said beside the steps. Whether any record is known by the id.
pub(crate) fn replay_within(
    snapshot: &Snapshot,
    wanted: &Wanted,
    room: Room<'_>,
    say: &mut dyn FnMut(String),
    each: &mut dyn FnMut(RecordBatch) -> Result<bool, Error>,
) -> Result<bool, Error> {
    let finder = Finder::new(snapshot, wanted.as_of)?;
    let chosen = select::select(snapshot, &finder, (&wanted.id, wanted.named), room)?;
    if let Some(seq) = chosen.lost {
        say(format!(
            "this replay is not whole: the index names record {seq}, and no row of it is there; a segment file is \
             damaged, and `custody rebuild --check` makes it again"
        ));
    }
    if chosen.seqs.is_empty() {
        return Ok(false);
    }
    if !chosen.names.is_empty() {
        let id: String = wanted.id.chars().take(100).collect();
        say(format!(
            "the id '{id}' names {}: these are the steps of all that it names; replay('<id>', NULL, 'grant') is of \
             one alone ({})",
            chosen.names.join(" and "),
            Named::NAMES
        ));
    }
    room(chosen.seqs.len().saturating_mul(STEP_BYTES))?;
    let keys = keys::Keys::read(snapshot, &finder, chosen.seqs, wanted.now)?;
    tell::tell(snapshot, keys, each)?;
    Ok(true)
}
