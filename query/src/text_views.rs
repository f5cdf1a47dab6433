//! How texts lie in memory while a query groups rows: as views, which hold the first bytes of a text beside
//! where the rest is. Filters, hashes and comparisons then touch no text that they need not, and nothing is copied
//! when rows are kept or moved. Parquet is read into them without a copy, too: it is how DataFusion
//! reads files that it is given as they are.
//!
//! Nobody sees it. A query is planned over the tables as they are described; then its tables are exchanged, and
//! what comes out has the types that it would have had. Where a type could be seen or was written into the plan
//! already, and for a caller who sees some rows, the tables stay what they are.

use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode as _, TreeNodeRecursion};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, TableScan, TableScanBuilder, Union};
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt as _;

use crate::segments::SealedTable;
use crate::spans::Spans;

/// Functions that tell of a type, or that keep whole batches of what they are given.
const BOUND: [&str; 5] = ["arrow_typeof", "array_agg", "nth_value", "union_extract", "union_tag"];

/// The columns of a table, its texts as views.
pub(crate) fn viewed(schema: &SchemaRef) -> SchemaRef {
    let field = |field: &FieldRef| match field.data_type() {
        DataType::Utf8 => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View)),
        _ => Arc::clone(field),
    };
    let fields: Vec<FieldRef> = schema.fields().iter().map(field).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

/// Rows with the types of a schema.
pub(crate) fn retyped(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = batch.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| match column.data_type() == field.data_type() {
        true => Ok(Arc::clone(column)),
        false => cast(column, field.data_type()),
    });
    let columns = columns.collect::<std::result::Result<Vec<_>, _>>()?;
    // Of no columns there can be rows, too.
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

/// A plan over tables whose texts are views, and the types of its columns.
pub(crate) struct Viewed {
    /// The plan, optimised.
    pub(crate) plan: LogicalPlan,
    /// The columns as they would have been.
    pub(crate) promised: SchemaRef,
}

/// A plan as one over views, if that pays and is not seen. What cannot be planned so is planned as ever.
pub(crate) fn of_plan(state: &SessionState, plan: &LogicalPlan) -> Option<Viewed> {
    if !pays(plan).ok()? {
        return None;
    }
    let promised = state.analyzer().execute_and_check(plan.clone(), state.config_options(), |_, _| {}).ok()?;
    let promised = Arc::clone(promised.schema().inner());
    let plan = state.optimize(&exchanged(plan.clone()).ok()?).ok()?;
    Some(Viewed { plan, promised })
}

/// Whether rows are grouped, of tables that can be exchanged, and nothing depends on a type.
fn pays(plan: &LogicalPlan) -> Result<bool> {
    let (mut groups, mut tables, mut is_bound) = (false, false, false);
    plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_) => groups = true,
            LogicalPlan::TableScan(scan) => tables |= as_views(scan).is_some(),
            // Their columns are not derived from those beneath them again.
            LogicalPlan::RecursiveQuery(_) | LogicalPlan::Unnest(_) | LogicalPlan::Extension(_) => is_bound = true,
            _ => {}
        }
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                is_bound |= depends_on_types(expr);
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        Ok(if is_bound { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(groups && tables && !is_bound)
}

/// Whether an expression tells of a type, or was given one when it was read.
fn depends_on_types(expr: &Expr) -> bool {
    match expr {
        Expr::OuterReferenceColumn(..) | Expr::Placeholder(_) => true,
        Expr::ScalarFunction(called) => BOUND.contains(&called.name()),
        Expr::AggregateFunction(called) => BOUND.contains(&called.func.name()),
        Expr::WindowFunction(called) => BOUND.contains(&called.fun.name()),
        _ => false,
    }
}

/// The table of a scan with its texts as views.
fn as_views(scan: &TableScan) -> Option<Arc<dyn TableProvider>> {
    let table = source_as_provider(&scan.source).ok()?;
    match table.downcast_ref::<SealedTable>() {
        Some(sealed) => Some(Arc::new(sealed.as_views()?)),
        None => Some(Arc::new(table.downcast_ref::<Spans>()?.as_views()?)),
    }
}

/// The plan over the exchanged tables.
fn exchanged(plan: LogicalPlan) -> Result<LogicalPlan> {
    let plan = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::TableScan(scan) => match as_views(&scan) {
            Some(table) => {
                let one = TableScanBuilder::new(scan.table_name, provider_as_source(table));
                let one = one.with_projection(scan.projection).with_filters(scan.filters).with_fetch(scan.fetch);
                Ok(Transformed::yes(LogicalPlan::TableScan(one.build()?)))
            }
            None => Ok(Transformed::no(LogicalPlan::TableScan(scan))),
        },
        // Which of its types both sides are brought to is found out by the analyzer.
        LogicalPlan::Union(union) => {
            Ok(Transformed::yes(LogicalPlan::Union(Union::try_new_with_loose_types(union.inputs)?)))
        }
        node => node.recompute_schema().map(Transformed::yes),
    })?;
    Ok(plan.data)
}

/// The rows of such a plan with the types that were promised.
pub(crate) fn as_promised(rows: SendableRecordBatchStream, promised: &SchemaRef) -> SendableRecordBatchStream {
    let schema = rows.schema();
    if schema.fields().len() != promised.fields().len() {
        return rows;
    }
    let field = |(is, promised): (&FieldRef, &FieldRef)| match is_view_of(is.data_type(), promised.data_type()) {
        true => Arc::new(is.as_ref().clone().with_data_type(promised.data_type().clone())),
        false => Arc::clone(is),
    };
    let fields: Vec<FieldRef> = schema.fields().iter().zip(promised.fields()).map(field).collect();
    let target = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
    if target == schema {
        return rows;
    }
    let own = Arc::clone(&target);
    let batches = rows.map(move |batch| retyped(&batch?, &own));
    Box::pin(RecordBatchStreamAdapter::new(target, batches))
}

/// Whether types differ in how texts lie in memory, and in nothing else.
fn is_view_of(is: &DataType, promised: &DataType) -> bool {
    is != promised && plain(is) == plain(promised)
}

fn plain(kind: &DataType) -> DataType {
    let field = |field: &FieldRef| -> FieldRef {
        Arc::new(Field::new(field.name(), plain(field.data_type()), field.is_nullable()))
    };
    match kind {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::List(item) => DataType::List(field(item)),
        DataType::LargeList(item) => DataType::LargeList(field(item)),
        DataType::FixedSizeList(item, length) => DataType::FixedSizeList(field(item), *length),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        DataType::Dictionary(key, value) => DataType::Dictionary(key.clone(), Box::new(plain(value))),
        kind => kind.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::segments::Table;

    #[test]
    fn only_texts_become_views_and_all_else_stays_as_it_is() {
        let schema = Table::Events.schema();
        let viewed = viewed(&schema);
        for (was, is) in schema.fields().iter().zip(viewed.fields()) {
            assert_eq!(is.metadata(), was.metadata());
            match was.data_type() {
                DataType::Utf8 => assert_eq!(is.data_type(), &DataType::Utf8View),
                kind => assert_eq!(is.data_type(), kind),
            }
        }
        let kinds: BTreeSet<String> = viewed.fields().iter().map(|field| field.data_type().to_string()).collect();
        assert!(kinds.contains("Utf8View") && !kinds.contains("Utf8"), "{kinds:?}");
    }

    #[test]
    fn types_that_differ_in_more_than_how_texts_lie_are_left_alone() {
        let list = |kind| DataType::List(Arc::new(Field::new("item", kind, true)));
        assert!(is_view_of(&DataType::Utf8View, &DataType::Utf8));
        assert!(is_view_of(&list(DataType::Utf8View), &list(DataType::Utf8)));
        assert!(!is_view_of(&DataType::Utf8, &DataType::Utf8));
        assert!(!is_view_of(&DataType::Int64, &DataType::Utf8));
        assert!(!is_view_of(&list(DataType::Int64), &list(DataType::Utf8)));
    }
}
