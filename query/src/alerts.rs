//! Alerts, and what people did about them: the table `alerts`.
//!
//! An alert is folded from its events in the order of their times. What counts as a person's
//! act is decided in one place, [`Standing`]: the record must claim a person, keep the model's
//! rules, and come from a submitter whose word counts for people ([`speakers`]). Everything else
//! stays evidence: a claim shows as a claim, and stops no clock.

pub mod acts;
mod history;
pub mod measures;
mod raised;
pub mod speakers;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value as Json;

use self::speakers::Speakers;
use crate::Error;
use crate::event::EventRow;
use crate::projection::{AsOf, Snapshot};
use crate::rows::{Cell, Time, table};
use crate::segments::{Table, Wanted};

pub use self::history::{HistoryRow, history};

table! {
    /// One alert, with what people did about it.
    AlertRow, AlertBuilder {
        /// Id.
        alert_id: String,
        /// The record that raised it; of several under one id and of one tenant that of a check of the server's own,
        /// else the gravest, else the first.
        seq: u64,
        /// Who sent that record, as authenticated.
        raised_by: String,
        /// Who else raised an alert of this id: one word stands against another's here, or one repeats another's.
        also_raised_by: Vec<String>,
        /// The rule or check that fired.
        rule: Option<String>,
        /// What it says.
        title: Option<String>,
        /// informational, low, medium, high or critical.
        severity: Option<String>,
        /// Seqs of the records that it cites; of several who raised it, all that any of them cites.
        evidence: Vec<u64>,
        /// Trace.
        trace_id: Option<String>,
        /// Agent.
        agent_id: Option<String>,
        /// Grant.
        grant_id: Option<String>,
        /// Tenant.
        tenant: Option<String>,
        /// Workspace.
        workspace: Option<String>,
        /// The team that is responsible, where the alert names it.
        team: Option<String>,
        /// When it was raised; of several times the first.
        raised_time: Time,
        /// Event time of the earliest record that it cites.
        first_evidence_time: Option<Time>,
        /// When the ledger took the first of the records that it cites: nobody can backdate this.
        first_evidence_ingest_time: Option<Time>,
        /// When a person first noticed: the first act of a person about it, other than a closing in bulk.
        acknowledged_time: Option<Time>,
        /// Who.
        acknowledged_by: Option<String>,
        /// When somebody whose word does not count for people first claimed that a person did something
        /// about it. It stops no clock.
        claimed_time: Option<Time>,
        /// The person of that claim.
        claimed_by: Option<String>,
        /// When a person began to look into it.
        investigation_opened_time: Option<Time>,
        /// Who.
        investigation_opened_by: Option<String>,
        /// Notes of people.
        notes: u64,
        /// When a person closed it with a disposition; null again when it was reopened.
        closed_time: Option<Time>,
        /// Who.
        closed_by: Option<String>,
        /// single (looked at by itself) or bulk (with many others, or said to be).
        closed_how: Option<String>,
        /// true_positive, false_positive, benign or undetermined.
        disposition: Option<String>,
        /// How often an investigation was opened again after it was closed.
        reopened: u64,
        /// The newest decision of a person to contain, or not to.
        containment: Option<String>,
        /// When it was made.
        contained_time: Option<Time>,
        /// Who made it.
        contained_by: Option<String>,
        /// When automation closed or suppressed it.
        suppressed_time: Option<Time>,
        /// The alert that it was merged into.
        merged_into: Option<String>,
        /// When.
        merged_time: Option<Time>,
        /// When who raised it took it back, or raised another in its place.
        superseded_time: Option<Time>,
        /// The alert that took its place; null if it was only taken back.
        superseded_by: Option<String>,
        /// open, acknowledged, investigating, closed, suppressed (by automation), merged or superseded (it does not
        /// stand any more).
        state: String,
    }
}

/// What a record about an alert is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A person's act.
    Person,
    /// Bookkeeping of automation: it can suppress and merge, never notice or decide.
    Automation,
    /// Claims to be a person's act, from a submitter whose word does not count for people.
    Claimed,
    /// Breaks the model's rules, or is automation of somebody whose word does not count.
    Unheard,
}

impl Standing {
    /// What an event is worth.
    pub fn of(event: &EventRow, speakers: &Speakers) -> Self {
        // The server's own parts keep books, and are not people.
        let own = is_own(&event.submitter) && !is_human(event);
        let heard = own || speakers.hear(&event.submitter, event.seq);
        match (event.invalid_reasons.is_empty(), is_human(event), heard) {
            (false, _, _) => Self::Unheard,
            (true, true, true) => Self::Person,
            (true, true, false) => Self::Claimed,
            (true, false, true) => Self::Automation,
            (true, false, false) => Self::Unheard,
        }
    }
}

/// Whether a submitter is a part of the server: no sender can have such an identity.
fn is_own(submitter: &str) -> bool {
    submitter.starts_with("system:")
}

fn is_human(event: &EventRow) -> bool {
    event.initiator_type.as_deref() == Some("human")
}

/// The kind of an event that takes an alert back.
const SUPERSEDED: &str = "alert_superseded";

/// The attribute by which an alert names the one whose place it takes.
const SUPERSEDES: &str = "security.alert.supersedes";

/// Kinds of events that tell what was done about an alert.
const ACTS: [&str; 3] = ["alert_acknowledged", "investigation", "containment_decision"];

/// So many closings of one person...
const BULK_MIN: usize = 5;
/// ...within this time were not looked at one by one, whatever they say of themselves.
const BULK_NS: i64 = 10_000_000_000;

/// All alerts up to `as_of`.
pub fn alerts(snapshot: &Snapshot, as_of: AsOf) -> Result<Vec<AlertRow>, Error> {
    let kinds: Vec<&str> = ["alert", SUPERSEDED].into_iter().chain(ACTS).collect();
    let events = snapshot.events_of(&kinds, as_of)?;
    let mut alerts = fold(&events, &Speakers::of(snapshot, as_of)?, None);
    cite(snapshot, &mut alerts)?;
    Ok(alerts)
}

/// The alerts as they were so long after each was raised, in ns: of what was done, only what was done within that
/// time. Their evidence is not looked at.
pub(crate) fn alerts_within(snapshot: &Snapshot, follow_up: i64) -> Result<Vec<AlertRow>, Error> {
    let kinds: Vec<&str> = ["alert", SUPERSEDED].into_iter().chain(ACTS).collect();
    let events = snapshot.events_of(&kinds, AsOf::Now)?;
    Ok(fold(&events, &Speakers::of(snapshot, AsOf::Now)?, Some(follow_up)))
}

/// The alerts of one id, one of each tenant that has one (or only that of one tenant), each with the events that tell
/// its life.
pub fn alert(
    snapshot: &Snapshot,
    (id, tenant): (&str, Option<&str>),
    as_of: AsOf,
) -> Result<Vec<(AlertRow, Vec<EventRow>)>, Error> {
    let events = about(snapshot, id, as_of)?;
    let mut alerts = fold(&events, &Speakers::of(snapshot, as_of)?, None);
    alerts.retain(|alert| alert.alert_id == id);
    cite(snapshot, &mut alerts)?;
    let all: Vec<usize> = (0..alerts.len()).collect();
    let mut lives: Vec<Vec<EventRow>> = alerts.iter().map(|_| Vec::new()).collect();
    for event in events {
        if let Some(at) = raised::place(&alerts, &all, &event) {
            lives[at].push(event);
        }
    }
    let mut found: Vec<(AlertRow, Vec<EventRow>)> = alerts.into_iter().zip(lives).collect();
    found.retain(|(alert, _)| tenant.is_none() || alert.tenant.as_deref() == tenant);
    Ok(found)
}

/// The events that tell of the alerts of an id.
fn about(snapshot: &Snapshot, id: &str, as_of: AsOf) -> Result<Vec<EventRow>, Error> {
    let mut events = snapshot.events_where("correlation_id", [id], as_of)?;
    // Grants have correlation ids, too.
    events.retain(|e| matches!(e.kind.as_str(), "alert" | SUPERSEDED) || ACTS.contains(&e.kind.as_str()));
    let Some(seq) = events.iter().find(|e| e.kind == "alert").map(|e| e.seq) else { return Ok(Vec::new()) };
    events.extend(in_its_place(snapshot, id, seq, as_of)?);
    events.sort_by_key(|e| e.seq);
    events.dedup_by_key(|e| e.seq);
    Ok(events)
}

/// The alerts that say that they take the place of one. They come behind it.
fn in_its_place(snapshot: &Snapshot, id: &str, seq: u64, as_of: AsOf) -> Result<Vec<EventRow>, Error> {
    let mut events = snapshot.events_since("kind", ["alert"], seq, as_of)?;
    events.retain(|e| supersedes(e).as_deref() == Some(id));
    Ok(events)
}

/// The alerts of some events, in the order they were raised; with a follow-up time, by what was done within it.
fn fold(events: &[EventRow], speakers: &Speakers, follow_up: Option<i64>) -> Vec<AlertRow> {
    let (mut alerts, by_id) = raised::raise(events);
    let at = |alerts: &[AlertRow], id: Option<&str>, event: &EventRow| {
        let at = raised::place(alerts, id.and_then(|id| by_id.get(id))?, event)?;
        let end = follow_up.map(|ns| alerts[at].raised_time.0.saturating_add(ns));
        end.is_none_or(|end| event.event_time.0 <= end).then_some(at)
    };
    let mut taken_back: HashMap<usize, BTreeSet<&str>> = HashMap::new();
    for event in events {
        let Some((earlier, by)) = takes_back(event) else { continue };
        if let Some(at) = at(&alerts, earlier.as_deref(), event) {
            supersede(&mut alerts[at], taken_back.entry(at).or_default(), event, by);
        }
    }
    let acts = events.iter().filter(|e| ACTS.contains(&e.kind.as_str()));
    let mut acts: Vec<(&EventRow, Standing)> = acts.map(|e| (e, Standing::of(e, speakers))).collect();
    acts.sort_by_key(|(e, _)| (e.event_time, e.seq));
    let bulk = closed_in_bulk(&acts);
    for (event, standing) in acts {
        if let Some(at) = at(&alerts, event.correlation_id.as_deref(), event) {
            live(&mut alerts[at], event, standing, bulk.contains(&event.seq));
        }
    }
    for alert in &mut alerts {
        alert.state = state(alert).into();
    }
    alerts
}

/// The alert that an event says does not stand any more, and the one in its place.
fn takes_back(event: &EventRow) -> Option<(Option<String>, Option<String>)> {
    match event.kind.as_str() {
        "alert" => Some((Some(supersedes(event)?), event.correlation_id.clone())),
        SUPERSEDED => Some((event.correlation_id.clone(), None)),
        _ => None,
    }
}

/// Takes in that an alert does not stand any more. Only who raised it can say so, and of several every one must:
/// nobody makes another's alert go away by that.
fn supersede<'a>(alert: &mut AlertRow, taken_back: &mut BTreeSet<&'a str>, event: &'a EventRow, by: Option<String>) {
    if by.as_ref() == Some(&alert.alert_id) {
        return;
    }
    taken_back.insert(&event.submitter);
    let raisers = || alert.also_raised_by.iter().chain([&alert.raised_by]);
    if !raisers().any(|raiser| *raiser == event.submitter) || !raisers().all(|r| taken_back.contains(r.as_str())) {
        return;
    }
    // What was taken back first and found again later stays taken back since then.
    alert.superseded_time.get_or_insert(event.event_time);
    if alert.superseded_by.is_none() {
        alert.superseded_by = by;
    }
}

/// The alert whose place an alert takes.
fn supersedes(event: &EventRow) -> Option<String> {
    if !event.attributes.contains(SUPERSEDES) {
        return None;
    }
    fields(event).get(SUPERSEDES).and_then(Json::as_str).map(str::to_owned)
}

fn state(alert: &AlertRow) -> &'static str {
    let steps = [
        (alert.closed_time.is_some(), "closed"),
        (alert.superseded_time.is_some(), "superseded"),
        (alert.merged_time.is_some(), "merged"),
        (alert.investigation_opened_time.is_some(), "investigating"),
        (alert.acknowledged_time.is_some(), "acknowledged"),
        (alert.suppressed_time.is_some(), "suppressed"),
    ];
    steps.into_iter().find(|(is_so, _)| *is_so).map_or("open", |(_, name)| name)
}

fn is_closing(event: &EventRow) -> bool {
    event.kind == "investigation" && event.decision.as_deref() == Some("closed")
}

/// The closings by people that say they are in bulk, or that come so close together that nobody
/// can have looked at each.
fn closed_in_bulk(acts: &[(&EventRow, Standing)]) -> HashSet<u64> {
    let mut bulk = HashSet::new();
    let mut by_person: BTreeMap<Option<&str>, Vec<&EventRow>> = BTreeMap::new();
    for (event, standing) in acts {
        if *standing == Standing::Person && is_closing(event) {
            by_person.entry(event.initiator_id.as_deref()).or_default().push(event);
            if says_bulk(event) {
                bulk.insert(event.seq);
            }
        }
    }
    for closings in by_person.values() {
        for some in closings.windows(BULK_MIN) {
            if some[BULK_MIN - 1].event_time.0.saturating_sub(some[0].event_time.0) <= BULK_NS {
                bulk.extend(some.iter().map(|e| e.seq));
            }
        }
    }
    bulk
}

fn says_bulk(event: &EventRow) -> bool {
    let fields = fields(event);
    let mode = fields.get("security.investigation.mode").and_then(Json::as_str);
    matches!(mode, Some("bulk" | "auto")) || fields.get("security.investigation.bulk") == Some(&Json::Bool(true))
}

fn fields(event: &EventRow) -> Json {
    serde_json::from_str(&event.attributes).unwrap_or_default()
}

/// Takes one act into the life of an alert. They come in the order of their times.
fn live(alert: &mut AlertRow, event: &EventRow, standing: Standing, bulk: bool) {
    let (time, who) = (event.event_time, &event.initiator_id);
    let step = event.decision.as_deref().unwrap_or_default();
    match standing {
        Standing::Unheard => {}
        Standing::Claimed => {
            if alert.claimed_time.is_none() {
                (alert.claimed_time, alert.claimed_by) = (Some(time), who.clone());
            }
        }
        // Automation keeps books; what it acknowledges nobody has noticed.
        Standing::Automation => match (event.kind.as_str(), step) {
            ("investigation", "closed" | "suppressed") => drop(alert.suppressed_time.get_or_insert(time)),
            ("investigation", "merged") => merge(alert, event),
            _ => {}
        },
        Standing::Person => person(alert, event, step, bulk),
    }
}

fn person(alert: &mut AlertRow, event: &EventRow, step: &str, bulk: bool) {
    let (time, who) = (event.event_time, &event.initiator_id);
    if !bulk && alert.acknowledged_time.is_none() {
        (alert.acknowledged_time, alert.acknowledged_by) = (Some(time), who.clone());
    }
    match (event.kind.as_str(), step) {
        ("investigation", "opened") => {
            if alert.closed_time.take().is_some() {
                (alert.closed_by, alert.closed_how, alert.disposition) = (None, None, None);
                alert.reopened += 1;
            }
            if alert.investigation_opened_time.is_none() {
                (alert.investigation_opened_time, alert.investigation_opened_by) = (Some(time), who.clone());
            }
        }
        ("investigation", "note") => alert.notes += 1,
        ("investigation", "closed") if alert.closed_time.is_none() => {
            let disposition =
                fields(event).get("security.investigation.disposition").and_then(Json::as_str).map(str::to_owned);
            (alert.closed_time, alert.closed_by, alert.disposition) = (Some(time), who.clone(), disposition);
            alert.closed_how = Some(if bulk { "bulk" } else { "single" }.into());
        }
        ("investigation", "suppressed") => drop(alert.suppressed_time.get_or_insert(time)),
        ("investigation", "merged") => merge(alert, event),
        ("containment_decision", _) => {
            (alert.containment, alert.contained_time) = (event.decision.clone(), Some(time));
            alert.contained_by.clone_from(who);
        }
        _ => {}
    }
}

fn merge(alert: &mut AlertRow, event: &EventRow) {
    if alert.merged_time.is_none() {
        alert.merged_time = Some(event.event_time);
        alert.merged_into = fields(event).get("security.alert.merged_into").and_then(Json::as_str).map(str::to_owned);
    }
}

/// The times of the earliest cited record of each alert: of its event, or of the span or log
/// record where no mapping makes an event of it.
fn cite(snapshot: &Snapshot, alerts: &mut [AlertRow]) -> Result<(), Error> {
    let mut cited: BTreeSet<u64> = alerts.iter().flat_map(|a| a.evidence.iter().copied()).collect();
    let mut times: HashMap<u64, (Time, Time)> = HashMap::new();
    let sources = [(Table::Events, "event_time"), (Table::Spans, "start_time"), (Table::Logs, "time")];
    for (table, time) in sources {
        if cited.is_empty() {
            break;
        }
        snapshot.read(&Wanted::all(table).at(&cited).columns(&["seq", time, "ingest_time"]), |batch| {
            let [seq, event_time, ingest_time] = batch.columns() else { return Ok(true) };
            for i in 0..batch.num_rows() {
                let ingested = <Time as Cell>::read(ingest_time, i);
                let happened = <Option<Time> as Cell>::read(event_time, i).unwrap_or(ingested);
                times.entry(<u64 as Cell>::read(seq, i)).or_insert((happened, ingested));
            }
            Ok(true)
        })?;
        cited.retain(|seq| !times.contains_key(seq));
    }
    for alert in alerts {
        let known = || alert.evidence.iter().filter_map(|seq| times.get(seq));
        alert.first_evidence_time = known().map(|t| t.0).min();
        alert.first_evidence_ingest_time = known().map(|t| t.1).min();
    }
    Ok(())
}

/// The alerts of one snapshot, folded when first asked for, and once.
pub(crate) struct Folded {
    snapshot: Arc<Snapshot>,
    made: std::sync::OnceLock<Result<Arc<Vec<AlertRow>>, Error>>,
}

impl Folded {
    /// Of a snapshot; nothing is folded yet.
    pub(crate) fn of(snapshot: &Arc<Snapshot>) -> Arc<Self> {
        Arc::new(Self { snapshot: Arc::clone(snapshot), made: std::sync::OnceLock::new() })
    }

    /// All alerts. It blocks.
    pub(crate) fn get(&self) -> Result<Arc<Vec<AlertRow>>, Error> {
        self.made.get_or_init(|| alerts(&self.snapshot, AsOf::Now).map(Arc::new)).clone()
    }
}
