//! What alerts tell of a security desk: how long they dwell (`dwell_time`), what became of them
//! (`alert_outcomes`), how many were really looked into (`coverage`), by any grouping and window.

use std::collections::BTreeMap;

use super::AlertRow;
use crate::rows::{Time, table};
use crate::survival::{End, Interval, Observation, incidence, incidence_at, quantile};

table! {
    /// How long alerts dwell, alerts nobody has noticed counted as still open (right-censored), and those that
    /// were suppressed, merged, superseded or closed in bulk as ends of another kind (competing). Without such ends the
    /// estimates are Kaplan-Meier's. One row per rule and interval, and one over all rules (`rule` is null).
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
        /// Those that can end no more: suppressed, merged, superseded or closed in bulk before anybody noticed.
        ended_otherwise: u64,
        /// Those in which it has not ended.
        still_open: u64,
        /// Share of those; null where there are none to be open.
        share_open: Option<f64>,
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
    /// How long alerts dwell, grouped: the columns of `dwell_time` for each group and, if asked for, each window of
    /// the time of raising.
    DwellByRow, DwellByBuilder {
        /// The group; null for alerts that name none.
        value: Option<String>,
        /// Start of the window of raising; null if no window was asked for.
        window_start: Option<Time>,
        /// dwell, dwell_from_ingest, detect or acknowledge.
        measure: String,
        /// Alerts that have such an interval.
        alerts: u64,
        /// Those in which it has ended.
        ended: u64,
        /// Those that can end no more.
        ended_otherwise: u64,
        /// Those in which it has not ended.
        still_open: u64,
        /// Share of those; null where there are none to be open.
        share_open: Option<f64>,
        /// Intervals that end before they begin.
        clock_faults: u64,
        /// Median, seconds.
        p50_seconds: Option<f64>,
        /// Its 95 % interval, from.
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
        /// Those a person looked into and closed with a disposition, one by one.
        closed: u64,
        /// Those a person closed in bulk: not counted as closed.
        bulk_closed: u64,
        /// Those that automation closed, suppressed or merged, and no person did more about.
        auto_closed: u64,
        /// Those that were taken back or replaced, and that no person did more about. They count as raised: nothing
        /// that automation does makes coverage better.
        superseded: u64,
        /// closed / raised; null without alerts.
        coverage: Option<f64>,
    }
}

table! {
    /// How many alerts a person really looked into, grouped, and at equal follow-up time if one is asked for: then
    /// only alerts count that were raised at least so long ago, and only what was done within that time.
    CoverageByRow, CoverageByBuilder {
        /// The group; null for alerts that name none.
        value: Option<String>,
        /// Start of the window of raising; null if no window was asked for.
        window_start: Option<Time>,
        /// Alerts raised.
        raised: u64,
        /// Those a person acknowledged.
        acknowledged: u64,
        /// Those a person opened an investigation of.
        opened: u64,
        /// Those a person looked into and closed with a disposition, one by one.
        closed: u64,
        /// Those a person closed in bulk: not counted as closed.
        bulk_closed: u64,
        /// Those that automation closed, suppressed or merged, and no person did more about.
        auto_closed: u64,
        /// Those that were taken back or replaced, and that no person did more about. They count as raised: nothing
        /// that automation does makes coverage better.
        superseded: u64,
        /// closed / raised; null without alerts.
        coverage: Option<f64>,
    }
}

table! {
    /// What became of alerts, so long after they were raised: the share that a person had noticed, and the shares
    /// that were suppressed, merged, superseded or closed in bulk first, each estimated with the others competing
    /// (Aalen-Johansen). One row per rule, outcome and time, and one over all rules (`rule` is null).
    OutcomeRow, OutcomeBuilder {
        /// The rule; null for all.
        rule: Option<String>,
        /// noticed, suppressed, merged, closed_in_bulk or superseded: what came first.
        outcome: String,
        /// So long after raising.
        after_seconds: f64,
        /// Alerts raised, without clock faults.
        alerts: u64,
        /// Those with this outcome so far, at any time.
        ended: u64,
        /// The estimated share with this outcome by then; null while none was watched for so long.
        incidence: Option<f64>,
        /// Its 95 % interval, from; null where it is not defined.
        low: Option<f64>,
        /// Its 95 % interval, to.
        high: Option<f64>,
    }
}

/// By what alerts are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// All of them are one group.
    All,
    /// The rule or check.
    Rule,
    /// The severity.
    Severity,
    /// The agent.
    Agent,
    /// The team.
    Team,
    /// The workspace.
    Workspace,
    /// The tenant.
    Tenant,
}

impl By {
    /// All names.
    pub const NAMES: &str = "all, rule, severity, agent, team, workspace or tenant";

    /// The grouping of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "all" => Self::All,
            "rule" => Self::Rule,
            "severity" => Self::Severity,
            "agent" => Self::Agent,
            "team" => Self::Team,
            "workspace" => Self::Workspace,
            "tenant" => Self::Tenant,
            _ => return None,
        })
    }

    fn value(self, alert: &AlertRow) -> Option<String> {
        match self {
            Self::All => None,
            Self::Rule => alert.rule.clone(),
            Self::Severity => alert.severity.clone(),
            Self::Agent => alert.agent_id.clone(),
            Self::Team => alert.team.clone(),
            Self::Workspace => alert.workspace.clone(),
            Self::Tenant => alert.tenant.clone(),
        }
    }
}

type Groups<'a> = BTreeMap<(Option<String>, Option<Time>), Vec<&'a AlertRow>>;

/// The alerts by group and by window of raising, in ns.
fn groups(alerts: &[AlertRow], by: By, window: Option<i64>) -> Groups<'_> {
    let mut out = Groups::new();
    for alert in alerts {
        let start = window.map(|ns| Time(alert.raised_time.0.saturating_sub(alert.raised_time.0.rem_euclid(ns))));
        out.entry((by.value(alert), start)).or_default().push(alert);
    }
    out
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

/// What can first become of an alert.
const OUTCOMES: [&str; 5] = ["noticed", "suppressed", "merged", "closed_in_bulk", "superseded"];

/// What first became of an alert, and when.
fn first(alert: &AlertRow) -> Option<(Time, &'static str)> {
    let bulk = alert.closed_time.filter(|_| alert.closed_how.as_deref() == Some("bulk"));
    let times = [alert.acknowledged_time, alert.suppressed_time, alert.merged_time, bulk, alert.superseded_time];
    times.into_iter().zip(OUTCOMES).filter_map(|(time, outcome)| Some((time?, outcome))).min_by_key(|(time, _)| *time)
}

/// How an interval that ends with a person's noticing has ended.
fn noticed(alert: &AlertRow) -> (Option<Time>, End) {
    match first(alert) {
        None => (None, End::Open),
        Some((time, "noticed")) => (Some(time), End::Asked),
        Some((time, _)) => (Some(time), End::Otherwise),
    }
}

type Ends = fn(&AlertRow) -> (Option<Time>, (Option<Time>, End));

const MEASURES: [(&str, Ends); 4] = [
    ("dwell", |a| (a.first_evidence_time, noticed(a))),
    ("dwell_from_ingest", |a| (a.first_evidence_ingest_time, noticed(a))),
    ("detect", |a| (a.first_evidence_time, (Some(a.raised_time), End::Asked))),
    ("acknowledge", |a| (Some(a.raised_time), noticed(a))),
];

/// The table `dwell_time`, with `now` as the end of what is still open.
pub fn dwell_time(alerts: &[AlertRow], now: Time) -> Vec<DwellRow> {
    let of = |(rule, alerts): (Option<String>, Vec<&AlertRow>)| {
        MEASURES.map(|(measure, ends)| DwellRow { rule: rule.clone(), ..dwell(measure, &alerts, ends, now) })
    };
    by_rule(alerts).into_iter().flat_map(of).collect()
}

/// `dwell_time_by(by, window)`.
pub fn dwell_time_by(alerts: &[AlertRow], by: By, window: Option<i64>, now: Time) -> Vec<DwellByRow> {
    let of = |((value, window_start), alerts): ((Option<String>, Option<Time>), Vec<&AlertRow>)| {
        MEASURES.map(|(measure, ends)| {
            let row = dwell(measure, &alerts, ends, now);
            DwellByRow {
                value: value.clone(),
                window_start,
                measure: row.measure,
                alerts: row.alerts,
                ended: row.ended,
                ended_otherwise: row.ended_otherwise,
                still_open: row.still_open,
                share_open: row.share_open,
                clock_faults: row.clock_faults,
                p50_seconds: row.p50_seconds,
                p50_low: row.p50_low,
                p50_high: row.p50_high,
                p90_seconds: row.p90_seconds,
                p90_low: row.p90_low,
                p90_high: row.p90_high,
                p99_seconds: row.p99_seconds,
                p99_low: row.p99_low,
                p99_high: row.p99_high,
            }
        })
    };
    groups(alerts, by, window).into_iter().flat_map(of).collect()
}

fn seconds(from: Time, to: Time) -> f64 {
    to.0.saturating_sub(from.0) as f64 / 1e9
}

fn dwell(measure: &str, alerts: &[&AlertRow], ends: Ends, now: Time) -> DwellRow {
    let mut row = DwellRow { measure: measure.to_owned(), ..DwellRow::default() };
    let mut observations = Vec::new();
    for (from, (to, end)) in alerts.iter().map(|alert| ends(alert)) {
        let Some(from) = from else { continue };
        row.alerts += 1;
        let seconds = seconds(from, to.unwrap_or(now));
        if seconds < 0.0 {
            row.clock_faults += 1;
            continue;
        }
        *match end {
            End::Open => &mut row.still_open,
            End::Asked => &mut row.ended,
            End::Otherwise => &mut row.ended_otherwise,
        } += 1;
        observations.push(Observation { seconds, end });
    }
    row.share_open = share(row.still_open, observations.len() as u64);
    let curve = incidence(&mut observations);
    let parts = |q: Interval| (q.value, q.low, q.high);
    (row.p50_seconds, row.p50_low, row.p50_high) = parts(quantile(&curve, 0.5));
    (row.p90_seconds, row.p90_low, row.p90_high) = parts(quantile(&curve, 0.9));
    (row.p99_seconds, row.p99_low, row.p99_high) = parts(quantile(&curve, 0.99));
    row
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// The table `coverage`.
pub fn coverage(alerts: &[AlertRow]) -> Vec<CoverageRow> {
    let of = |(rule, alerts): (Option<String>, Vec<&AlertRow>)| CoverageRow { rule, ..covered(&alerts) };
    by_rule(alerts).into_iter().map(of).collect()
}

/// `coverage_by(by, follow_up, window)`; both times in ns. With a follow-up time the alerts are those of
/// [`super::alerts_within`]: as they were that long after each was raised, whatever was done later.
pub fn coverage_by(
    alerts: &[AlertRow],
    by: By,
    follow_up: Option<i64>,
    window: Option<i64>,
    now: Time,
) -> Vec<CoverageByRow> {
    let mut groups = groups(alerts, by, window);
    if let Some(ns) = follow_up {
        // What was raised later has not been followed for so long: it is of no cohort yet.
        groups.values_mut().for_each(|some| some.retain(|a| a.raised_time.0.saturating_add(ns) <= now.0));
        groups.retain(|_, some| !some.is_empty());
    }
    let of = |((value, window_start), alerts): ((Option<String>, Option<Time>), Vec<&AlertRow>)| {
        let row = covered(&alerts);
        CoverageByRow {
            value,
            window_start,
            raised: row.raised,
            acknowledged: row.acknowledged,
            opened: row.opened,
            closed: row.closed,
            bulk_closed: row.bulk_closed,
            auto_closed: row.auto_closed,
            superseded: row.superseded,
            coverage: row.coverage,
        }
    };
    groups.into_iter().map(of).collect()
}

fn covered(alerts: &[&AlertRow]) -> CoverageRow {
    let count = |test: &dyn Fn(&AlertRow) -> bool| alerts.iter().filter(|a| test(a)).count() as u64;
    let closed_as = |how: &'static str| {
        count(&|a| a.closed_time.is_some() && a.closed_how.as_deref() == Some(how) && a.disposition.is_some())
    };
    let by_people = |a: &AlertRow| a.acknowledged_time.is_some() || a.closed_time.is_some();
    let (raised, closed) = (alerts.len() as u64, closed_as("single"));
    CoverageRow {
        rule: None,
        raised,
        acknowledged: count(&|a| a.acknowledged_time.is_some()),
        opened: count(&|a| a.investigation_opened_time.is_some()),
        closed,
        bulk_closed: closed_as("bulk"),
        auto_closed: count(&|a| !by_people(a) && (a.suppressed_time.is_some() || a.merged_time.is_some())),
        superseded: count(&|a| !by_people(a) && a.superseded_time.is_some()),
        coverage: share(closed, raised),
    }
}

/// The times after raising for which `alert_outcomes` has rows: an hour, four, a day, a week, thirty days.
const AFTER: [f64; 5] = [3_600.0, 14_400.0, 86_400.0, 604_800.0, 2_592_000.0];

/// The table `alert_outcomes`.
pub fn outcomes(alerts: &[AlertRow], now: Time) -> Vec<OutcomeRow> {
    let mut out = Vec::new();
    for (rule, alerts) in by_rule(alerts) {
        let ends: Vec<(f64, Option<&str>)> = alerts
            .iter()
            .map(|a| (seconds(a.raised_time, first(a).map_or(now, |f| f.0)), first(a).map(|f| f.1)))
            .filter(|(seconds, _)| *seconds >= 0.0)
            .collect();
        for outcome in OUTCOMES {
            let mut observations: Vec<Observation> = ends
                .iter()
                .map(|&(seconds, end)| {
                    let end = end.map_or(End::Open, |e| if e == outcome { End::Asked } else { End::Otherwise });
                    Observation { seconds, end }
                })
                .collect();
            let curve = incidence(&mut observations);
            let ended = observations.iter().filter(|o| o.end == End::Asked).count() as u64;
            let open = observations.iter().any(|o| o.end == End::Open);
            let watched = observations.last().map_or(0.0, |o| o.seconds);
            for after_seconds in AFTER {
                let is_known = !observations.is_empty() && (!open || after_seconds <= watched);
                let interval = incidence_at(&curve, after_seconds).interval();
                let interval = if is_known { interval } else { Interval::default() };
                out.push(OutcomeRow {
                    rule: rule.clone(),
                    outcome: outcome.into(),
                    after_seconds,
                    alerts: observations.len() as u64,
                    ended,
                    incidence: interval.value,
                    low: interval.low,
                    high: interval.high,
                });
            }
        }
    }
    out
}
