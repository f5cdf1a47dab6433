//! Alerts, and how long it took until a person noticed: `alerts`, `dwell_time`,
//! `coverage`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value as Json;

use crate::Error;
use crate::event::EventRow;
use crate::projection::{AsOf, Snapshot};
use crate::rows::{Time, table};
use crate::survival::{Interval, Observation, quantile};

table! {
    /// One alert, with what people did about it.
    AlertRow, AlertBuilder {
        /// Id.
        alert_id: String,
        /// The record that raised it.
        seq: u64,
        /// The rule or check that fired.
        rule: Option<String>,
        /// What it says.
        title: Option<String>,
        /// informational, low, medium, high or critical.
        severity: Option<String>,
        /// Seqs of the records that it cites.
        evidence: Vec<u64>,
        /// Trace.
        trace_id: Option<String>,
        /// Agent.
        agent_id: Option<String>,
        /// Grant.
        grant_id: Option<String>,
        /// When it was raised.
        raised_time: Time,
        /// Event time of the earliest record that it cites.
        first_evidence_time: Option<Time>,
        /// When the ledger took that record: nobody can backdate this.
        first_evidence_ingest_time: Option<Time>,
        /// When a person first noticed.
        acknowledged_time: Option<Time>,
        /// Who.
        acknowledged_by: Option<String>,
        /// When a person began to look into it.
        investigation_opened_time: Option<Time>,
        /// When a person closed it with a disposition.
        closed_time: Option<Time>,
        /// true_positive, false_positive, benign or undetermined.
        disposition: Option<String>,
        /// open, acknowledged, investigating or closed.
        state: String,
    }
}

table! {
    /// How long alerts dwell: Kaplan-Meier estimates, alerts nobody has
    /// acknowledged counted as still open (right-censored). One row per rule and
    /// interval, and one over all rules (`rule` is null).
    DwellRow, DwellBuilder {
        /// The rule; null for all.
        rule: Option<String>,
        /// dwell (earliest evidence to first human acknowledgement),
        /// dwell_from_ingest (the same from when the ledger took that evidence),
        /// detect (earliest evidence to alert), acknowledge (alert to acknowledgement).
        measure: String,
        /// Alerts that have such an interval.
        alerts: u64,
        /// Those in which it has ended.
        ended: u64,
        /// Those in which it has not.
        still_open: u64,
        /// Share of those.
        share_open: f64,
        /// Intervals that end before they begin: clock faults, not counted further.
        clock_faults: u64,
        /// Median, seconds; null if it is not reached.
        p50_seconds: Option<f64>,
        /// Its 95 % interval, from (log-log, Greenwood).
        p50_low: Option<f64>,
        /// Its 95 % interval, to.
        p50_high: Option<f64>,
        /// 90th percentile, seconds.
        p90_seconds: Option<f64>,
        /// Its 95 % interval, from.
        p90_low: Option<f64>,
        /// Its 95 % interval, to.
        p90_high: Option<f64>,
        /// 99th percentile, seconds.
        p99_seconds: Option<f64>,
        /// Its 95 % interval, from.
        p99_low: Option<f64>,
        /// Its 95 % interval, to.
        p99_high: Option<f64>,
    }
}

table! {
    /// How many alerts a person really looked into. One row per rule, and one
    /// over all rules (`rule` is null).
    CoverageRow, CoverageBuilder {
        /// The rule; null for all.
        rule: Option<String>,
        /// Alerts raised.
        raised: u64,
        /// Those a person acknowledged.
        acknowledged: u64,
        /// Those a person opened an investigation of.
        opened: u64,
        /// Those a person closed with a disposition.
        closed: u64,
        /// closed / raised.
        coverage: f64,
    }
}

/// All alerts up to `as_of`.
pub fn alerts(snapshot: &Snapshot, as_of: AsOf) -> Result<Vec<AlertRow>, Error> {
    let mut alerts: Vec<AlertRow> = Vec::new();
    let mut by_id: HashMap<String, usize> = HashMap::new();
    for event in snapshot.events_of(&["alert"], as_of)? {
        let Some(id) = event.correlation_id.clone() else { continue };
        by_id.entry(id).or_insert_with(|| {
            alerts.push(alert_row(&event));
            alerts.len() - 1
        });
    }
    for event in snapshot.events_of(&["alert_acknowledged", "investigation"], as_of)? {
        let human = event.initiator_type.as_deref() == Some("human") && event.invalid_reasons.is_empty();
        let at = event.correlation_id.as_ref().and_then(|id| by_id.get(id));
        if let (true, Some(&at)) = (human, at) {
            answer(&mut alerts[at], &event);
        }
    }
    cite(snapshot, &mut alerts)?;
    for alert in &mut alerts {
        alert.state = match (alert.acknowledged_time, alert.investigation_opened_time, alert.closed_time) {
            (_, _, Some(_)) => "closed",
            (_, Some(_), None) => "investigating",
            (Some(_), None, None) => "acknowledged",
            (None, None, None) => "open",
        }
        .into();
    }
    Ok(alerts)
}

fn alert_row(event: &EventRow) -> AlertRow {
    let fields: Json = serde_json::from_str(&event.attributes).unwrap_or_default();
    let text = |name: &str| fields.get(name).and_then(Json::as_str).map(str::to_owned);
    let seq = |item: &Json| item.as_u64().or_else(|| item.as_str()?.parse().ok());
    let evidence = fields.get("security.alert.evidence").and_then(Json::as_array);
    AlertRow {
        alert_id: event.correlation_id.clone().unwrap_or_default(),
        seq: event.seq,
        rule: event.action.clone(),
        title: text("security.alert.title"),
        severity: text("security.alert.severity"),
        evidence: evidence.into_iter().flatten().filter_map(seq).collect(),
        trace_id: event.trace_id.clone(),
        agent_id: event.agent_id.clone(),
        grant_id: event.grant_id.clone(),
        raised_time: event.event_time,
        ..AlertRow::default()
    }
}

/// What a person did. The first of each kind counts.
fn answer(alert: &mut AlertRow, event: &EventRow) {
    let earlier = |have: Option<Time>| have.is_none_or(|t| event.event_time < t);
    match (event.kind.as_str(), event.decision.as_deref()) {
        ("alert_acknowledged", _) if earlier(alert.acknowledged_time) => {
            alert.acknowledged_time = Some(event.event_time);
            alert.acknowledged_by.clone_from(&event.initiator_id);
        }
        ("investigation", Some("opened")) if earlier(alert.investigation_opened_time) => {
            alert.investigation_opened_time = Some(event.event_time);
        }
        ("investigation", Some("closed")) if earlier(alert.closed_time) => {
            let fields: Json = serde_json::from_str(&event.attributes).unwrap_or_default();
            let disposition = fields.get("security.investigation.disposition").and_then(Json::as_str);
            alert.closed_time = Some(event.event_time);
            alert.disposition = disposition.map(str::to_owned);
        }
        _ => {}
    }
}

/// The times of the earliest cited record of each alert.
fn cite(snapshot: &Snapshot, alerts: &mut [AlertRow]) -> Result<(), Error> {
    let cited: BTreeSet<u64> = alerts.iter().flat_map(|a| a.evidence.iter().copied()).collect();
    let times: HashMap<u64, (Time, Time)> =
        snapshot.events_at(&cited)?.iter().map(|e| (e.seq, (e.event_time, e.ingest_time))).collect();
    for alert in alerts {
        let known = || alert.evidence.iter().filter_map(|seq| times.get(seq));
        alert.first_evidence_time = known().map(|t| t.0).min();
        alert.first_evidence_ingest_time = known().map(|t| t.1).min();
    }
    Ok(())
}

/// The rules, and all of them together.
fn by_rule(alerts: &[AlertRow]) -> BTreeMap<Option<String>, Vec<&AlertRow>> {
    let mut out: BTreeMap<Option<String>, Vec<&AlertRow>> = BTreeMap::new();
    out.insert(None, alerts.iter().collect());
    for alert in alerts {
        if let Some(rule) = &alert.rule {
            out.entry(Some(rule.clone())).or_default().push(alert);
        }
    }
    out
}

/// The table `dwell_time`, with `now` as the end of what is still open.
pub fn dwell_time(alerts: &[AlertRow], now: Time) -> Vec<DwellRow> {
    type Ends = fn(&AlertRow) -> (Option<Time>, Option<Time>);
    let measures: [(&str, Ends); 4] = [
        ("dwell", |a| (a.first_evidence_time, a.acknowledged_time)),
        ("dwell_from_ingest", |a| (a.first_evidence_ingest_time, a.acknowledged_time)),
        ("detect", |a| (a.first_evidence_time, Some(a.raised_time))),
        ("acknowledge", |a| (Some(a.raised_time), a.acknowledged_time)),
    ];
    let mut out = Vec::new();
    for (rule, alerts) in by_rule(alerts) {
        for (measure, ends) in measures {
            let ends = alerts.iter().map(|a| ends(a)).filter_map(|(from, to)| from.map(|from| (from, to)));
            out.push(dwell_row(rule.clone(), measure, ends, now));
        }
    }
    out
}

fn dwell_row(
    rule: Option<String>,
    measure: &str,
    ends: impl Iterator<Item = (Time, Option<Time>)>,
    now: Time,
) -> DwellRow {
    let mut row = DwellRow { rule, measure: measure.to_owned(), ..DwellRow::default() };
    let mut observations = Vec::new();
    for (from, to) in ends {
        row.alerts += 1;
        let seconds = (to.unwrap_or(now).0.saturating_sub(from.0)) as f64 / 1e9;
        if seconds < 0.0 {
            row.clock_faults += 1;
            continue;
        }
        if to.is_some() {
            row.ended += 1
        } else {
            row.still_open += 1
        }
        observations.push(Observation { seconds, ended: to.is_some() });
    }
    let counted = row.ended + row.still_open;
    row.share_open = if counted == 0 { 0.0 } else { row.still_open as f64 / counted as f64 };
    let parts = |q: Interval| (q.value, q.low, q.high);
    (row.p50_seconds, row.p50_low, row.p50_high) = parts(quantile(&mut observations, 0.5));
    (row.p90_seconds, row.p90_low, row.p90_high) = parts(quantile(&mut observations, 0.9));
    (row.p99_seconds, row.p99_low, row.p99_high) = parts(quantile(&mut observations, 0.99));
    row
}

/// The table `coverage`.
pub fn coverage(alerts: &[AlertRow]) -> Vec<CoverageRow> {
    let row = |(rule, alerts): (Option<String>, Vec<&AlertRow>)| {
        let count = |test: fn(&AlertRow) -> bool| alerts.iter().filter(|a| test(a)).count() as u64;
        let (raised, closed) = (alerts.len() as u64, count(|a| a.closed_time.is_some()));
        CoverageRow {
            rule,
            raised,
            acknowledged: count(|a| a.acknowledged_time.is_some()),
            opened: count(|a| a.investigation_opened_time.is_some()),
            closed,
            coverage: if raised == 0 { 0.0 } else { closed as f64 / raised as f64 },
        }
    };
    by_rule(alerts).into_iter().map(row).collect()
}
