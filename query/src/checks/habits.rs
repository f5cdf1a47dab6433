//! What the calls of a service usually have: a grant, and somebody who acts. Counted as calls come, over the
//! newest ones of each service and workspace, so that a call that lacks it stands out where it is the rule,
//! and nowhere else. What other tenants do is nobody's rule.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};

use datafusion::arrow::array::Array as _;
use datafusion::arrow::record_batch::RecordBatch;

use crate::Error;
use crate::event::EventRow;
use crate::grants::Scope;
use crate::projection::Snapshot;
use crate::rows::{Cell as _, Time, table};
use crate::segments::{Table, Wanted};

table! {
    /// What the calls of the same service and workspace, and of its tenant or none, had that came before one: the newest
    /// 200 of the window.
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
/// Services and workspaces of tenants that are watched at once.
const WATCHED_MAX: usize = 20_000;

/// A service and a workspace.
type Of = (Option<String>, Option<String>);

/// A call, as far as habits go.
#[derive(Clone, Debug, Default)]
struct Call {
    seq: u64,
    time: i64,
    tenant: Option<String>,
    of: Of,
    has_grant: bool,
    has_actor: bool,
}

/// What a call had that came before.
#[derive(Debug)]
struct Before {
    seq: u64,
    time: i64,
    has_grant: bool,
    has_actor: bool,
}

/// The newest calls of each service, workspace and scope.
#[derive(Debug)]
pub(super) struct Habits {
    window: i64,
    hasher: RandomState,
    newest: HashMap<u64, VecDeque<Before>>,
    /// Each call with its place, in the order in which they came; those that are not the newest of it do not count.
    order: VecDeque<(u64, u64)>,
}

impl Habits {
    /// Over the calls of so many ns.
    pub(super) fn new(window: i64) -> Self {
        Self { window, hasher: RandomState::new(), newest: HashMap::new(), order: VecDeque::new() }
    }

    /// Takes a tool call in, in the order of the log.
    pub(super) fn take_event(&mut self, event: &EventRow) -> HabitRow {
        self.take(Call {
            seq: event.seq,
            time: event.ingest_time.0,
            tenant: event.tenant.clone(),
            of: (event.service.clone(), event.workspace.clone()),
            has_grant: event.grant_id.is_some(),
            has_actor: event.agent_id.is_some() || event.agent_name.is_some() || event.initiator_id.is_some(),
        })
    }

    fn take(&mut self, call: Call) -> HabitRow {
        let (since, tenant) = (call.time.saturating_sub(self.window), call.tenant.as_deref());
        let place = |scope: Scope<'_>| self.hasher.hash_one((scope, &call.of));
        let (looks_in, lies_in) = (Scope::looks_in(tenant).map(place), Scope::lies_in(tenant).map(place));
        let lies_in: Vec<u64> = lies_in.collect();
        let mut seen: Vec<&Before> = looks_in.iter().filter_map(|place| self.newest.get(place)).flatten().collect();
        seen.retain(|before| before.time >= since);
        // Two runs at most, each in the order of the log.
        seen.sort_by_key(|before| before.seq);
        let seen = &seen[seen.len().saturating_sub(CALLS_MAX)..];
        let row = HabitRow {
            seq: call.seq,
            calls: seen.len() as u64,
            with_grant: seen.iter().filter(|before| before.has_grant).count() as u64,
            with_actor: seen.iter().filter(|before| before.has_actor).count() as u64,
        };
        for place in lies_in {
            self.add(place, since, &call);
        }
        row
    }

    fn add(&mut self, place: u64, since: i64, call: &Call) {
        let is_newest = |newest: &HashMap<u64, VecDeque<Before>>, place: u64, seq: u64| {
            newest.get(&place).and_then(VecDeque::back).is_some_and(|last| last.seq == seq)
        };
        if self.newest.len() >= WATCHED_MAX && !self.newest.contains_key(&place) {
            // That which is quiet for longest goes.
            while let Some((seq, quiet)) = self.order.pop_front() {
                if is_newest(&self.newest, quiet, seq) {
                    self.newest.remove(&quiet);
                    break;
                }
            }
        }
        if self.order.len() >= 4 * WATCHED_MAX {
            self.order.retain(|(seq, place)| is_newest(&self.newest, *place, *seq));
        }
        self.order.push_back((call.seq, place));
        let calls = self.newest.entry(place).or_default();
        while calls.len() >= CALLS_MAX || calls.front().is_some_and(|oldest| oldest.time < since) {
            calls.pop_front();
        }
        let Call { seq, time, has_grant, has_actor, .. } = *call;
        calls.push_back(Before { seq, time, has_grant, has_actor });
    }
}

/// The habits before each call of a snapshot.
pub(super) fn of_all(snapshot: &Snapshot, window: i64) -> Result<RecordBatch, Error> {
    const COLUMNS: [&str; 9] =
        ["seq", "ingest_time", "tenant", "service", "initiator_id", "agent_id", "agent_name", "grant_id", "workspace"];
    let (mut rows, mut habits) = (HabitBuilder::default(), Habits::new(window));
    snapshot.read(&Wanted::all(Table::Events).columns(&COLUMNS).only("kind", ["tool_call"]), |batch| {
        let [seq, time, tenant, service, initiator, agent, name, grant, workspace] = batch.columns() else {
            return Ok(true);
        };
        for i in 0..batch.num_rows() {
            rows.push(&habits.take(Call {
                seq: u64::read(seq, i),
                time: Time::read(time, i).0,
                tenant: <Option<String>>::read(tenant, i),
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
            tenant: None,
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

    #[test]
    fn a_flood_of_services_hides_none_that_is_busy() {
        let mut habits = Habits::new(i64::MAX);
        let mut take = |seq: u64, service: u64, tenant: &str| {
            let (time, tenant, of) = (seq as i64, Some(tenant.to_owned()), (Some(service.to_string()), None));
            habits.take(Call { seq, time, tenant, of, has_grant: true, has_actor: true }).calls
        };
        for seq in 0..3 * WATCHED_MAX as u64 {
            match seq % 100 {
                0 => assert_eq!(take(seq, seq / 100 % 10, "acme"), (seq / 1000).min(CALLS_MAX as u64)),
                _ => assert_eq!(take(seq, seq, "globex"), 0),
            }
        }
    }

    #[test]
    fn what_other_tenants_do_is_nobodys_habit() {
        let mut habits = Habits::new(1000);
        let mut take = |seq: u64, tenant: Option<&str>| {
            let tenant = tenant.map(str::to_owned);
            let of = (Some("s".to_owned()), None);
            let row = habits.take(Call { seq, time: seq as i64, tenant, of, has_grant: seq < 10, has_actor: true });
            (row.calls, row.with_grant)
        };
        let said = [None, Some("acme"), Some("globex"), None, Some("acme"), Some("globex"), None];
        let told: Vec<_> = (0..).zip(said).map(|(seq, tenant)| take(seq, tenant).0).collect();
        assert_eq!(told, [0, 1, 1, 3, 3, 3, 6], "who names no tenant meets all");
        for seq in 10..310 {
            take(seq, Some("globex"));
        }
        assert_eq!(take(310, Some("acme")), (5, 5));
        assert_eq!(take(311, None), (200, 0), "the newest of all");
    }
}
