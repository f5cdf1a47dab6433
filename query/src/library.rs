//! Tables and functions beside those of plain records: alerts and their measures, reach, checkpoints,
//! and everything as it was known before (`spans_as_of` and its like).

use std::fmt;
use std::sync::Arc;

use custody_store::Reader;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, col, lit};
use datafusion::prelude::SessionContext;

use crate::alerts::measures::{
    By, CoverageByRow, CoverageRow, DwellByRow, DwellRow, OutcomeRow, coverage, coverage_by, dwell_time, dwell_time_by,
    outcomes,
};
use crate::alerts::{AlertRow, Folded, HistoryRow, alerts, alerts_within, history};
use crate::catalog::{Lazy, Made, read_as_of, text};
use crate::checkpoints::{CheckpointRow, checkpoints};
use crate::grants::{DenialRow, GrantRow, Grants, denials};
use crate::notes::unknown;
use crate::projection::{AsOf, Snapshot};
use crate::reach::{AuthorityRow, BlastRow, authority_coverage, blast_radius};
use crate::rows::Time;
use crate::segments::{SealedTable, Table};
use crate::spans::Spans;

/// The view `retrievals`.
pub(crate) const RETRIEVALS: &str = include_str!("retrievals.sql");
/// The view `decisions`.
pub(crate) const DECISIONS: &str = include_str!("decisions.sql");

/// Registers them.
pub(crate) fn register(context: &SessionContext, snapshot: &Arc<Snapshot>, reader: &Reader, now: Time) -> Result<()> {
    let lazy = |name: &str, lazy: Lazy| context.register_table(name, Arc::new(lazy)).map(|_| ());
    // One query folds the alerts once, however many tables it makes of them.
    let folded = Folded::of(snapshot);
    let of_alerts = |schema: SchemaRef, make: fn(&[AlertRow], Time) -> datafusion::arrow::array::RecordBatch| {
        let folded = Arc::clone(&folded);
        Lazy::new(schema, move || Ok(make(&folded.get()?, now)))
    };
    lazy("alerts", of_alerts(AlertRow::schema(), |a, _| AlertRow::batch(a)))?;
    lazy("dwell_time", of_alerts(DwellRow::schema(), |a, now| DwellRow::batch(&dwell_time(a, now))))?;
    lazy("coverage", of_alerts(CoverageRow::schema(), |a, _| CoverageRow::batch(&coverage(a))))?;
    lazy("alert_outcomes", of_alerts(OutcomeRow::schema(), |a, now| OutcomeRow::batch(&outcomes(a, now))))?;
    let of_log = |schema: SchemaRef, make: fn(&Snapshot, Time) -> Made| {
        let snapshot = Arc::clone(snapshot);
        Lazy::new(schema, move || make(&snapshot, now))
    };
    lazy("blast_radius", of_log(BlastRow::schema(), |s, now| Ok(BlastRow::batch(&blast_radius(s, now)?))))?;
    lazy(
        "authority_coverage",
        of_log(AuthorityRow::schema(), |s, now| Ok(AuthorityRow::batch(&authority_coverage(s, now)?))),
    )?;
    let own = reader.clone();
    lazy("checkpoints", Lazy::new(CheckpointRow::schema(), move || Ok(CheckpointRow::batch(&checkpoints(&own)?))))?;
    for kind in Asked::ALL {
        let function = AskedOf { kind, snapshot: Arc::clone(snapshot), folded: Arc::clone(&folded), now };
        context.register_udtf(kind.name(), Arc::new(function));
    }
    Ok(())
}

/// The table functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Records as they were known.
    Records(Table),
    /// Grants as they were known.
    Grants,
    /// Refusals as they were known.
    Denials,
    /// Alerts as they were known.
    Alerts,
    /// The life of an alert.
    History,
    /// Dwell time by a grouping.
    DwellBy,
    /// Coverage by a grouping.
    CoverageBy,
}

impl Asked {
    /// All of them.
    pub(crate) const ALL: [Self; 10] = [
        Self::Records(Table::Spans),
        Self::Records(Table::Logs),
        Self::Records(Table::Metrics),
        Self::Records(Table::Events),
        Self::Grants,
        Self::Denials,
        Self::Alerts,
        Self::History,
        Self::DwellBy,
        Self::CoverageBy,
    ];

    /// Its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Records(Table::Spans) => "spans_as_of",
            Self::Records(Table::Logs) => "logs_as_of",
            Self::Records(Table::Metrics) => "metrics_as_of",
            Self::Records(Table::Events) => "events_as_of",
            Self::Grants => "grants_as_of",
            Self::Denials => "denials_as_of",
            Self::Alerts => "alerts_as_of",
            Self::History => "alert_history",
            Self::DwellBy => "dwell_time_by",
            Self::CoverageBy => "coverage_by",
        }
    }

    /// How it is called, and what for.
    pub(crate) const fn about(self) -> (&'static str, &'static str) {
        match self {
            Self::Records(Table::Spans) => ("spans_as_of(seq or time)", "The table spans as the ledger knew it then."),
            Self::Records(Table::Logs) => ("logs_as_of(seq or time)", "The table logs as the ledger knew it then."),
            Self::Records(Table::Metrics) => {
                ("metrics_as_of(seq or time)", "The table metrics as the ledger knew it then.")
            }
            Self::Records(Table::Events) => {
                ("events_as_of(seq or time)", "The table events as the ledger knew it then.")
            }
            Self::Grants => (
                "grants_as_of(seq or time)",
                "The table grants as the ledger knew it then; what had expired then, too: as of a seq by the time at which its record was taken.",
            ),
            Self::Denials => ("denials_as_of(seq or time)", "The table denials as the ledger knew it then."),
            Self::Alerts => ("alerts_as_of(seq or time)", "The table alerts as the ledger knew it then."),
            Self::History => {
                ("alert_history('<alert id>'[, seq or time])", "Every record about one alert, and whether it counts.")
            }
            Self::DwellBy => (
                "dwell_time_by('<grouping>'[, '<window>'])",
                "Dwell time by all, rule, severity, agent, team, workspace or tenant, and by window of raising, such as '7d'.",
            ),
            Self::CoverageBy => (
                "coverage_by('<grouping>'[, '<follow-up>'[, '<window>']])",
                "Coverage by the same groupings; with a follow-up time such as '24h' only of alerts that were raised \
                 at least so long ago, and only by what was done within that time.",
            ),
        }
    }

    /// Its columns.
    pub(crate) fn schema(self) -> SchemaRef {
        match self {
            Self::Records(table) => table.schema(),
            Self::Grants => GrantRow::schema(),
            Self::Denials => DenialRow::schema(),
            Self::Alerts => AlertRow::schema(),
            Self::History => HistoryRow::schema(),
            Self::DwellBy => DwellByRow::schema(),
            Self::CoverageBy => CoverageByRow::schema(),
        }
    }
}

/// A table function over one snapshot.
struct AskedOf {
    kind: Asked,
    snapshot: Arc<Snapshot>,
    folded: Arc<Folded>,
    now: Time,
}

impl fmt::Debug for AskedOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.about().0)
    }
}

impl TableFunctionImpl for AskedOf {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let args = args.exprs();
        let usage = self.kind.about().0;
        let made = match (self.kind, args) {
            (Asked::Records(table), [as_of]) => return self.records(table, read_as_of(as_of, self.snapshot.size)?),
            (Asked::Grants, [as_of]) => {
                let as_of = read_as_of(as_of, self.snapshot.size)?;
                let now = self.now;
                self.lazy(move |s| Ok(GrantRow::batch(Grants::of(s, as_of, s.clock(as_of, now)?)?.rows())))
            }
            (Asked::Denials, [as_of]) => {
                let as_of = read_as_of(as_of, self.snapshot.size)?;
                self.lazy(move |s| Ok(DenialRow::batch(&denials(s, as_of)?)))
            }
            (Asked::Alerts, [as_of]) => {
                let as_of = read_as_of(as_of, self.snapshot.size)?;
                self.lazy(move |s| Ok(AlertRow::batch(&alerts(s, as_of)?)))
            }
            (Asked::History, [id, rest @ ..]) if rest.len() <= 1 => {
                let as_of = rest.first().map_or(Ok(AsOf::Now), |at| read_as_of(at, self.snapshot.size))?;
                let Some(id) = text(id) else { return plan_err!("{usage} takes its id as a text") };
                let takes = "alert_history takes the id of an alert, letter by letter";
                let none = unknown(&self.snapshot, &id, as_of, takes);
                self.lazy(move |s| Ok(HistoryRow::batch(&history(s, &id, as_of)?))).if_none(none)
            }
            (Asked::DwellBy, [by, window @ ..]) if window.len() <= 1 => {
                let (by, window) = (grouping(by, usage)?, length(window.first(), usage)?);
                let (folded, now) = (Arc::clone(&self.folded), self.now);
                self.lazy(move |_| Ok(DwellByRow::batch(&dwell_time_by(&folded.get()?, by, window, now))))
            }
            (Asked::CoverageBy, [by, rest @ ..]) if rest.len() <= 2 => {
                let by = grouping(by, usage)?;
                let (follow_up, window) = (length(rest.first(), usage)?, length(rest.get(1), usage)?);
                let (folded, now) = (Arc::clone(&self.folded), self.now);
                self.lazy(move |snapshot| {
                    // What was done later than is asked for changes nothing of what it was like then.
                    let alerts = match follow_up {
                        Some(ns) => Arc::new(alerts_within(snapshot, ns)?),
                        None => folded.get()?,
                    };
                    Ok(CoverageByRow::batch(&coverage_by(&alerts, by, follow_up, window, now)))
                })
            }
            _ => return plan_err!("it is called as {usage}"),
        };
        Ok(Arc::new(made))
    }
}

impl AskedOf {
    fn lazy(&self, make: impl Fn(&Snapshot) -> Made + Send + Sync + 'static) -> Lazy {
        let snapshot = Arc::clone(&self.snapshot);
        Lazy::new(self.kind.schema(), move || make(&snapshot))
    }

    /// The records that were there then: a filter over the table, so that segments are pruned by it.
    fn records(&self, table: Table, as_of: AsOf) -> Result<Arc<dyn TableProvider>> {
        let known = match as_of {
            AsOf::Now => lit(true),
            AsOf::Seq(last) => col("seq").lt_eq(lit(last)),
            AsOf::Time(last) => {
                let utc = Some("UTC".into());
                col("ingest_time").lt_eq(lit(ScalarValue::TimestampNanosecond(Some(last.0), utc)))
            }
        };
        let source = provider_as_source(Arc::new(SealedTable::new(&self.snapshot, table)));
        let plan = LogicalPlanBuilder::scan(table.name(), source, None)?.filter(known)?.build()?;
        let view = Arc::new(ViewTable::new(plan, None));
        Ok(if table == Table::Spans { Arc::new(Spans::of_some(view)) } else { view })
    }
}

fn grouping(expr: &Expr, usage: &str) -> Result<By> {
    match text(expr).as_deref().and_then(By::of_name) {
        Some(by) => Ok(by),
        None => plan_err!("{usage} groups by {}", By::NAMES),
    }
}

/// A length of time such as '24h', in ns; null is none.
fn length(expr: Option<&Expr>, usage: &str) -> Result<Option<i64>> {
    let Some(expr) = expr else { return Ok(None) };
    if matches!(expr, Expr::Literal(value, _) if value.is_null()) {
        return Ok(None);
    }
    match text(expr).as_deref().and_then(nanos) {
        Some(ns) => Ok(Some(ns)),
        None => plan_err!("{usage} takes lengths of time such as '90s', '30m', '24h' or '7d'"),
    }
}

fn nanos(text: &str) -> Option<i64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    let number: i64 = number.parse().ok().filter(|n| *n > 0)?;
    number.checked_mul(seconds)?.checked_mul(1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_strictly() {
        assert_eq!(nanos("90s"), Some(90_000_000_000));
        assert_eq!(nanos("7d"), Some(7 * 86_400 * 1_000_000_000));
        for wrong in ["", "s", "0h", "-1h", "1w", "h1", "1.5h", "999999999999d", "1é"] {
            assert_eq!(nanos(wrong), None, "{wrong}");
        }
    }
}
