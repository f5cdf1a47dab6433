//! What the calls of a service usually have: a grant, and somebody who acts. Counted as calls come, over the
//! newest ones of each service and workspace, so that a call that lacks it stands out where it is the rule,
//! and nowhere else.

use std::collections::{HashMap, VecDeque};

use datafusion::arrow::array::Array as _;
use datafusion::arrow::record_batch::RecordBatch;

use crate::Error;
use crate::event::EventRow;
use crate::projection::Snapshot;
use crate::rows::{Cell as _, Time, table};
use crate::segments::{Table, Wanted};

table! {
    /// What the calls of the same service and workspace had that came before one: the newest 200 of the window.
    HabitRow, HabitBuilder {
        /// The call.
        seq: u64,
        /// How many came before it.
        calls: u64,
        /// How many of those named a grant.
        with_grant: u64,
        /// How many of those named an agent or an initiator.
        with_actor: u64,
    }
}

/// Calls of a service and workspace that count.
const CALLS_MAX: usize = 200;
/// Services and workspaces that are watched at once.
const WATCHED_MAX: usize = 20_000;

/// A service and a workspace.
type Of = (Option<String>, Option<String>);

/// A call, as far as habits go.
#[derive(Clone, Debug, Default)]
struct Call {
    seq: u64,
    time: i64,
    of: Of,
    has_grant: bool,
    has_actor: bool,
}

/// The newest calls of each service and workspace.
#[derive(Debug, Default)]
pub(super) struct Habits {
    window: i64,
    newest: HashMap<Of, VecDeque<(i64, bool, bool)>>,
}

impl Habits {
    /// Over the calls of so many ns.
    pub(super) fn new(window: i64) -> Self {
        Self { window, newest: HashMap::new() }
    }

    /// Takes a tool call in, in the order of the log.
    pub(super) fn take_event(&mut self, event: &EventRow) -> HabitRow {
        self.take(Call {
            seq: event.seq,
            time: event.ingest_time.0,
            of: (event.service.clone(), event.workspace.clone()),
            has_grant: event.grant_id.is_some(),
            has_actor: event.agent_id.is_some() || event.agent_name.is_some() || event.initiator_id.is_some(),
        })
    }

    fn take(&mut self, call: Call) -> HabitRow {
        let since = call.time.saturating_sub(self.window);
        if self.newest.len() >= WATCHED_MAX && !self.newest.contains_key(&call.of) {
            self.newest.retain(|_, calls| calls.back().is_some_and(|newest| newest.0 >= since));
            if self.newest.len() >= WATCHED_MAX {
                self.newest.clear();
            }
        }
        let calls = self.newest.entry(call.of).or_default();
        while calls.len() > CALLS_MAX || calls.front().is_some_and(|oldest| oldest.0 < since) {
            calls.pop_front();
        }
        let row = HabitRow {
            seq: call.seq,
            calls: calls.len() as u64,
            with_grant: calls.iter().filter(|call| call.1).count() as u64,
            with_actor: calls.iter().filter(|call| call.2).count() as u64,
        };
        calls.push_back((call.time, call.has_grant, call.has_actor));
        while calls.len() > CALLS_MAX {
            calls.pop_front();
        }
        row
    }
}

/// The habits before each call of a snapshot.
pub(super) fn of_all(snapshot: &Snapshot, window: i64) -> Result<RecordBatch, Error> {
    const COLUMNS: [&str; 8] =
        ["seq", "ingest_time", "service", "initiator_id", "agent_id", "agent_name", "grant_id", "workspace"];
    let (mut rows, mut habits) = (HabitBuilder::default(), Habits::new(window));
    snapshot.read(&Wanted::all(Table::Events).columns(&COLUMNS).only("kind", ["tool_call"]), |batch| {
        let [seq, time, service, initiator, agent, name, grant, workspace] = batch.columns() else { return Ok(true) };
        for i in 0..batch.num_rows() {
            rows.push(&habits.take(Call {
                seq: u64::read(seq, i),
                time: Time::read(time, i).0,
                of: (<Option<String>>::read(service, i), <Option<String>>::read(workspace, i)),
                has_grant: grant.is_valid(i),
                has_actor: initiator.is_valid(i) || agent.is_valid(i) || name.is_valid(i),
            }));
        }
        Ok(true)
    })?;
    Ok(rows.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_calls_of_the_same_service_count() {
        let mut habits = Habits::new(1000);
        let call = |seq: u64, service: &str, has_grant| Call {
            seq,
            time: seq as i64,
            of: (Some(service.into()), None),
            has_grant,
            has_actor: true,
        };
        for seq in 0..300 {
            let row = habits.take(call(seq, "a", seq >= 50));
            assert_eq!(row.calls, seq.min(200));
        }
        let row = habits.take(call(300, "a", false));
        assert_eq!((row.calls, row.with_grant, row.with_actor), (200, 200, 200));
        assert_eq!(habits.take(call(301, "b", true)).calls, 0, "another service");
        assert_eq!(habits.take(call(1250, "a", true)).calls, 51, "those within the window: 250 to 300");
    }
}
