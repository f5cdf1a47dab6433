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
    replay_within(snapshot, id, (as_of, now), &mut |_| Ok(()), each)
}

/// The same in the room that there is.
pub(crate) fn replay_within(
    snapshot: &Snapshot,
    id: &str,
    (as_of, now): (AsOf, Time),
    room: Room<'_>,
    each: &mut dyn FnMut(RecordBatch) -> Result<bool, Error>,
) -> Result<(), Error> {
    let finder = Finder::new(snapshot, as_of)?;
    let seqs = select::select(snapshot, &finder, id, room)?;
    if seqs.is_empty() {
        return Ok(());
    }
    room(seqs.len().saturating_mul(STEP_BYTES))?;
    let keys = keys::Keys::read(snapshot, &finder, seqs, now)?;
    tell::tell(snapshot, keys, each)
}
