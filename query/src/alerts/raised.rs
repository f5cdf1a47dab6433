//! Which alerts there are: what raises one, and which one a record is about.
//!
//! An alert is known by its tenant and its id, so that a tenant cannot take the ids of another. Those of the server's own
//! checks are known by their ids alone, and nobody else has an alert of such an id. Within a tenant whoever is quicker
//! takes nothing from the others: of all who raise one alert the gravest word counts.

use std::collections::{HashMap, HashSet};

use serde_json::Value as Json;

use super::{AlertRow, fields, is_own};
use crate::checks;
use crate::event::EventRow;

/// What an alert can say of its severity, from least to gravest.
const SEVERITIES: [&str; 5] = ["informational", "low", "medium", "high", "critical"];

/// The alerts that some events raise, in the order they were raised, and where those of an id are.
pub(super) fn raise(events: &[EventRow]) -> (Vec<AlertRow>, HashMap<&str, Vec<usize>>) {
    let raising =
        || events.iter().filter(|e| e.kind == "alert").filter_map(|e| Some((e.correlation_id.as_deref()?, e)));
    // Nobody can take the id of a check's alert, by being quicker or by naming another tenant.
    let own: HashSet<&str> = raising().filter(|(_, e)| is_own(&e.submitter)).map(|(id, _)| id).collect();
    let (mut alerts, mut by_id) = (Vec::<AlertRow>::new(), HashMap::<&str, Vec<usize>>::new());
    for (id, event) in raising().filter(|(id, e)| is_own(&e.submitter) || !own.contains(id)) {
        let some = by_id.entry(id).or_default();
        let is_own = is_own(&event.submitter);
        match some.iter().copied().find(|at| is_own || alerts[*at].tenant == event.tenant) {
            None => {
                some.push(alerts.len());
                alerts.push(row(event));
            }
            Some(at) if is_own => {
                if alerts[at].raised_by == event.submitter && checks::tells_details(event) {
                    tell_details(&mut alerts[at], event);
                }
            }
            Some(at) => raise_again(&mut alerts[at], row(event)),
        }
    }
    (alerts, by_id)
}

/// Which of the alerts of one id an event is about: that of its tenant, else the one of no tenant. An event that names
/// no tenant is about the only alert that there is.
pub(super) fn place(alerts: &[AlertRow], some: &[usize], event: &EventRow) -> Option<usize> {
    let of = |tenant: Option<&str>| some.iter().copied().find(|at| alerts[*at].tenant.as_deref() == tenant);
    match &event.tenant {
        _ if is_own(&event.submitter) => some.first().copied(),
        Some(tenant) => of(Some(tenant)).or_else(|| of(None)),
        None => of(None).or_else(|| some.first().copied().filter(|_| some.len() == 1)),
    }
}

/// Takes in that an alert was raised once more, perhaps by somebody else.
fn raise_again(alert: &mut AlertRow, again: AlertRow) {
    let grave = |row: &AlertRow| SEVERITIES.iter().position(|name| row.severity.as_deref() == Some(name));
    let mut evidence = alert.evidence.clone();
    evidence.extend(again.evidence.iter().filter(|seq| !alert.evidence.contains(seq)));
    let raised_time = alert.raised_time.min(again.raised_time);
    let mut raisers = std::mem::take(&mut alert.also_raised_by);
    raisers.extend([alert.raised_by.clone(), again.raised_by.clone()]);
    if grave(&again) > grave(alert) {
        *alert = again;
    }
    raisers.retain(|raiser| *raiser != alert.raised_by);
    raisers.sort_unstable();
    raisers.dedup();
    (alert.also_raised_by, alert.evidence, alert.raised_time) = (raisers, evidence, raised_time);
}

/// The alert that an event raises.
fn row(event: &EventRow) -> AlertRow {
    let fields = fields(event);
    let text = |name: &str| fields.get(name).and_then(Json::as_str).map(str::to_owned);
    let seq = |item: &Json| item.as_u64().or_else(|| item.as_str()?.parse().ok());
    let evidence = fields.get("security.alert.evidence").and_then(Json::as_array);
    AlertRow {
        alert_id: event.correlation_id.clone().unwrap_or_default(),
        seq: event.seq,
        raised_by: event.submitter.clone(),
        rule: event.action.clone(),
        title: text("security.alert.title"),
        severity: text("security.alert.severity"),
        evidence: evidence.into_iter().flatten().filter_map(seq).collect(),
        trace_id: event.trace_id.clone(),
        agent_id: event.agent_id.clone(),
        grant_id: event.grant_id.clone(),
        tenant: event.tenant.clone(),
        workspace: event.workspace.clone(),
        team: text("security.alert.team"),
        raised_time: event.event_time,
        ..AlertRow::default()
    }
}

/// What the record that raised an alert leaves out, since not everybody sees it who sees the alert.
fn tell_details(alert: &mut AlertRow, event: &EventRow) {
    let told = row(event);
    (alert.title, alert.evidence) = (told.title, told.evidence);
    (alert.agent_id, alert.grant_id) = (told.agent_id, told.grant_id);
}
