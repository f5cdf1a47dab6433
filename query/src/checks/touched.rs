//! What one run about some records sees: the events at hand that they touch, and what follows from those.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{Array as _, RecordBatch};

use super::here::{Rows, Touched};
use super::run::{Checker, Entries};
use super::state::Held;
use crate::caller::RowFilter;
use crate::catalog::Ledger;
use crate::event::EventRow;
use crate::grants::{DenialRow, GrantRow, Grants, KINDS as GRANTS, Revoked, denial_row, refuses};
use crate::rows::{Columnar as _, Time};

/// What the evaluator counted, of the records that it judges.
pub(super) struct Counted {
    pub(super) uses: RecordBatch,
    pub(super) habits: RecordBatch,
    pub(super) span_ids: RecordBatch,
    pub(super) numbered: RecordBatch,
    pub(super) ended: RecordBatch,
    pub(super) finished: RecordBatch,
}

/// The grants that some events tell of, as they are at a time.
pub(super) fn grants(held: &[&Held], now: Time) -> Grants {
    let (mut grants, mut revoked) = (Grants::default(), Revoked::default());
    for event in held.iter().map(|held| &held.row).filter(|event| GRANTS.contains(&event.kind.as_str())) {
        grants.take(event, &mut revoked);
    }
    grants.finish(&revoked, now);
    grants
}

/// The grants, with how often each was used by the calls among the events.
fn used_grants(held: &[&Held], now: Time) -> RecordBatch {
    let mut grants = grants(held, now);
    let mut uses = HashMap::<&str, u64>::new();
    for id in held.iter().filter(|held| held.row.kind == "tool_call").filter_map(|held| held.row.grant_id.as_deref()) {
        *uses.entry(id).or_default() += 1;
    }
    for row in grants.rows_mut() {
        row.uses = uses.get(row.grant_id.as_str()).copied().unwrap_or(0);
    }
    GrantRow::batch(grants.rows())
}

/// The columns of the events that rules read.
fn events(checker: &Checker, held: &[&Held]) -> Rows {
    let rows: Vec<&EventRow> = held.iter().map(|held| &held.row).collect();
    let found: Vec<_> = held.iter().map(|held| &held.found).collect();
    let schema = EventRow::schema();
    let own = schema.fields().len();
    let mut columns = vec![None; own];
    for at in checker.used().iter().copied().filter(|at| *at < own) {
        columns[at] = EventRow::column(&rows, schema.field(at).name());
    }
    columns.extend(checker.fields().columns(&found).into_iter().map(Some));
    debug_assert!(columns.iter().flatten().all(|column| column.len() == rows.len()));
    Rows::Columns { columns, rows: rows.len() }
}

impl Touched {
    /// What the judgement of some events sees; of the ledger, the entries of a range, and its spans.
    pub(super) fn of(
        checker: &Checker,
        held: &[&Held],
        spans: Vec<RecordBatch>,
        (entries, from, to): (&Entries, u64, u64),
        now: Time,
        counted: Counted,
    ) -> Self {
        let mut touched = Self::default();
        touched.put("events", vec![events(checker, held)]);
        touched.put("spans", spans.into_iter().map(Rows::from).collect());
        if checker.reads("grants") {
            touched.put("grants", vec![used_grants(held, now).into()]);
        }
        if checker.reads("denials") {
            let events = held.iter().map(|held| &held.row);
            let denials: Vec<DenialRow> = events.filter(|event| refuses(event)).map(denial_row).collect();
            touched.put("denials", vec![DenialRow::batch(&denials).into()]);
        }
        let ledger = match entries {
            Entries::Log(reader) => {
                Rows::Read(Arc::new(Ledger::between(reader.clone(), from, to, RowFilter::default())))
            }
            Entries::These(rows) => rows.clone().into(),
        };
        touched.put("ledger", vec![ledger]);
        touched.put("call_uses", vec![counted.uses.into()]);
        touched.put("call_habits", vec![counted.habits.into()]);
        touched.put("span_ids", vec![counted.span_ids.into()]);
        touched.put("numbered", vec![counted.numbered.into()]);
        touched.put("ended_grants", vec![counted.ended.into()]);
        touched.put("finished_spans", vec![counted.finished.into()]);
        touched
    }
}
