//! `approx_percentile_cont` and `approx_median` of many groups: a digest takes values by the thousand.
//!
//! DataFusion gives each group's digest what of it is in a batch, and each time the digest sorts that and merges all of
//! its centroids: with forty groups some two hundred values cost as much as a hundred centroids. Here a group's values
//! wait until they are many. The digests, and what they answer, are DataFusion's.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray as _, BooleanArray, Float64Array};
use datafusion::arrow::datatypes::{DataType, FieldRef, Float64Type, Schema};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, EmitTo, GroupsAccumulator, Signature,
};
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};

/// Values that wait in a group, at most, and in all groups together unless each has [`WAITING_MIN`].
const WAITING_MAX: usize = 4_096;
const WAITING_ALL: usize = 1 << 20;
const WAITING_MIN: usize = 128;

/// `approx_percentile_cont` or `approx_median`, of which groups of 64-bit floats wait here.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Buffered {
    inner: Arc<AggregateUDF>,
}

impl Buffered {
    /// The functions that are better with it.
    pub(super) const NAMES: [&str; 2] = ["approx_percentile_cont", "approx_median"];

    /// In place of one of them.
    pub(super) fn new(inner: Arc<AggregateUDF>) -> Self {
        Self { inner }
    }
}

/// What makes an accumulator, kept.
struct Factory {
    inner: Arc<AggregateUDF>,
    return_field: FieldRef,
    schema: Schema,
    ignore_nulls: bool,
    order_bys: Vec<PhysicalSortExpr>,
    is_reversed: bool,
    name: String,
    exprs: Vec<Arc<dyn PhysicalExpr>>,
    expr_fields: Vec<FieldRef>,
}

impl Factory {
    fn new(inner: &Arc<AggregateUDF>, args: &AccumulatorArgs<'_>) -> Self {
        Self {
            inner: Arc::clone(inner),
            return_field: Arc::clone(&args.return_field),
            schema: args.schema.clone(),
            ignore_nulls: args.ignore_nulls,
            order_bys: args.order_bys.to_vec(),
            is_reversed: args.is_reversed,
            name: args.name.to_owned(),
            exprs: args.exprs.to_vec(),
            expr_fields: args.expr_fields.to_vec(),
        }
    }

    fn make(&self) -> Result<Box<dyn Accumulator>> {
        self.inner.accumulator(AccumulatorArgs {
            return_field: Arc::clone(&self.return_field),
            schema: &self.schema,
            ignore_nulls: self.ignore_nulls,
            order_bys: &self.order_bys,
            is_reversed: self.is_reversed,
            name: &self.name,
            is_distinct: false,
            exprs: &self.exprs,
            expr_fields: &self.expr_fields,
        })
    }
}

struct Group {
    digest: Box<dyn Accumulator>,
    waiting: Vec<f64>,
}

impl Group {
    fn take_in(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let values: ArrayRef = Arc::new(Float64Array::from(std::mem::take(&mut self.waiting)));
        self.digest.update_batch(&[values])
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.waiting.capacity() * size_of::<f64>() + self.digest.size()
    }
}

struct Groups {
    factory: Factory,
    groups: Vec<Group>,
    /// Of all groups, in bytes.
    size: usize,
}

impl Groups {
    fn grow(&mut self, groups: usize) -> Result<()> {
        self.groups.reserve(groups.saturating_sub(self.groups.len()));
        while self.groups.len() < groups {
            let group = Group { digest: self.factory.make()?, waiting: Vec::new() };
            self.size += group.size();
            self.groups.push(group);
        }
        Ok(())
    }

    /// Does something to a group that may change its size.
    fn change(&mut self, group: usize, change: impl FnOnce(&mut Group) -> Result<()>) -> Result<()> {
        let group = &mut self.groups[group];
        let before = group.size();
        let changed = change(group);
        self.size = (self.size + group.size()).saturating_sub(before);
        changed
    }

    fn take(&mut self, emit_to: EmitTo) -> Result<Vec<Group>> {
        let mut taken = emit_to.take_needed(&mut self.groups);
        for group in &mut taken {
            self.size = self.size.saturating_sub(group.size());
            group.take_in()?;
        }
        Ok(taken)
    }
}

/// Columns of the states of digests.
fn columns(states: impl Iterator<Item = Result<Vec<ScalarValue>>>) -> Result<Vec<ArrayRef>> {
    let mut columns: Vec<Vec<ScalarValue>> = Vec::new();
    for state in states {
        let state = state?;
        columns.resize_with(state.len(), Vec::new);
        columns.iter_mut().zip(state).for_each(|(column, value)| column.push(value));
    }
    columns.into_iter().map(ScalarValue::iter_to_array).collect()
}

/// Calls a function with the row and value of each that is one and that the filter leaves.
fn for_each(
    values: &ArrayRef,
    filter: Option<&BooleanArray>,
    mut each: impl FnMut(usize, f64) -> Result<()>,
) -> Result<()> {
    let values = values.as_primitive::<Float64Type>();
    let mut one = |row: usize| match filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row)) {
        true => each(row, values.value(row)),
        false => Ok(()),
    };
    match values.nulls() {
        None => (0..values.len()).try_for_each(one),
        Some(nulls) => nulls.valid_indices().try_for_each(&mut one),
    }
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.grow(total_num_groups)?;
        let most = (WAITING_ALL / total_num_groups.max(1)).clamp(WAITING_MIN, WAITING_MAX);
        for_each(&values[0], opt_filter, |row, value| {
            let waiting = &mut self.groups[group_indices[row]].waiting;
            if waiting.len() < waiting.capacity() && waiting.len() + 1 < most {
                waiting.push(value);
                return Ok(());
            }
            self.change(group_indices[row], |group| {
                group.waiting.push(value);
                if group.waiting.len() >= most { group.take_in() } else { Ok(()) }
            })
        })
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.grow(total_num_groups)?;
        group_indices.iter().enumerate().try_for_each(|(row, group)| {
            let state: Vec<ArrayRef> = values.iter().map(|column| column.slice(row, 1)).collect();
            self.change(*group, |group| group.digest.merge_batch(&state))
        })
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let taken = self.take(emit_to)?;
        let answers = taken.into_iter().map(|mut group| group.digest.evaluate()).collect::<Result<Vec<_>>>()?;
        ScalarValue::iter_to_array(answers)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let taken = self.take(emit_to)?;
        columns(taken.into_iter().map(|mut group| group.digest.state()))
    }

    fn convert_to_state(&self, values: &[ArrayRef], opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let mut digests = (0..values[0].len()).map(|_| self.factory.make()).collect::<Result<Vec<_>>>()?;
        for_each(&values[0], opt_filter, |row, _| digests[row].update_batch(&[values[0].slice(row, 1)]))?;
        columns(digests.into_iter().map(|mut digest| digest.state()))
    }

    fn size(&self) -> usize {
        self.size
    }
}

impl AggregateUDFImpl for Buffered {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(args)
    }

    fn supports_within_group_clause(&self) -> bool {
        self.inner.supports_within_group_clause()
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.inner.accumulator(args)
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.inner.create_sliding_accumulator(args)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        !args.is_distinct && args.expr_fields.first().is_some_and(|field| *field.data_type() == DataType::Float64)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Groups { factory: Factory::new(&self.inner, &args), groups: Vec::new(), size: 0 }))
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{Int64Array, RecordBatch};
    use datafusion::arrow::compute::concat_batches;
    use datafusion::arrow::datatypes::{Field, SchemaRef};
    use datafusion::execution::SessionStateBuilder;
    use datafusion::prelude::{SessionConfig, SessionContext};
    use proptest::prelude::{Just, Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};
    use tokio::runtime::Runtime;

    use super::*;

    fn schema() -> SchemaRef {
        let fields = vec![Field::new("g", DataType::Int64, false), Field::new("x", DataType::Float64, true)];
        Arc::new(Schema::new(fields))
    }

    fn batch(rows: &[(i64, Option<f64>)]) -> RecordBatch {
        let groups = Int64Array::from_iter_values(rows.iter().map(|row| row.0));
        let values: Float64Array = rows.iter().map(|row| row.1).collect();
        RecordBatch::try_new(schema(), vec![Arc::new(groups), Arc::new(values)]).unwrap()
    }

    /// What a session answers that has `t` in these batches.
    fn ask(builder: SessionStateBuilder, batches: &[RecordBatch], sql: &str) -> RecordBatch {
        let config = SessionConfig::new().with_target_partitions(2).with_batch_size(16);
        let context = SessionContext::new_with_state(builder.with_config(config).build());
        let table = datafusion::datasource::MemTable::try_new(schema(), vec![batches.to_vec()]).unwrap();
        context.register_table("t", Arc::new(table)).unwrap();
        let answer = Runtime::new().unwrap().block_on(async { context.sql(sql).await?.collect().await }).unwrap();
        concat_batches(&answer[0].schema(), &answer).unwrap()
    }

    fn plain() -> SessionStateBuilder {
        SessionStateBuilder::new().with_default_features()
    }

    fn values() -> impl Strategy<Value = Vec<(i64, Option<f64>)>> {
        let value = prop_oneof![any::<f64>().prop_map(Some), (-9..9).prop_map(|n| Some(f64::from(n))), Just(None)];
        prop::collection::vec((0..5i64, value), 1..40)
    }

    proptest! {
        /// One batch is what one digest takes at once in both.
        #[test]
        fn few_values_are_answered_as_they_were(rows in values()) {
            let sql = "SELECT g, approx_percentile_cont(x, 0.9) AS a, approx_median(x) AS b, \
                       approx_percentile_cont(0.25, 50) WITHIN GROUP (ORDER BY x DESC) AS c, \
                       approx_percentile_cont(x, 0.5) FILTER (WHERE x > 0) AS d FROM t GROUP BY g ORDER BY g";
            // A batch for each group, so that a digest meets all of its values in one of them in DataFusion, too.
            let of = |group| rows.iter().filter(move |row| row.0 == group).copied().collect::<Vec<_>>();
            let batches: Vec<RecordBatch> = (0..5).map(|group| batch(&of(group))).filter(|batch| batch.num_rows() > 0).collect();
            let (own, other) = (ask(super::super::session(), &batches, sql), ask(plain(), &batches, sql));
            prop_assert_eq!(format!("{own:?}"), format!("{other:?}"));
        }
    }

    #[test]
    fn many_values_are_answered_within_what_a_digest_tells_apart() {
        // Group 0 has all numbers below 20,000 in no order; each of the others has one.
        let mut rows: Vec<(i64, Option<f64>)> = (0..20_000).map(|n| (0, Some(f64::from(n * 7_919 % 20_000)))).collect();
        rows.extend((1..200).map(|n| (n, Some(n as f64))));
        let batches: Vec<RecordBatch> = rows.chunks(1_000).map(batch).collect();
        let sql = "SELECT g, approx_percentile_cont(x, 0.99) AS p FROM t GROUP BY g ORDER BY g";
        let answer = ask(super::super::session(), &batches, sql);
        let (groups, values) =
            (answer.column(0).as_primitive::<datafusion::arrow::datatypes::Int64Type>(), answer.column(1));
        let values = values.as_primitive::<Float64Type>();
        assert!((values.value(0) - 19_800.0).abs() < 20.0, "{}", values.value(0));
        let others = (1..answer.num_rows()).map(|row| (groups.value(row), values.value(row)));
        assert!(answer.num_rows() == 200 && others.clone().all(|(group, value)| group as f64 == value));
    }

    #[test]
    fn what_waits_is_counted_and_bounded() {
        let inner = SessionContext::new().state().aggregate_functions()["approx_median"].clone();
        let fields = vec![Arc::new(Field::new("x", DataType::Float64, true))];
        let schema = Schema::new(fields.clone());
        let x: Arc<dyn PhysicalExpr> = Arc::new(datafusion::physical_expr::expressions::Column::new("x", 0));
        let args = AccumulatorArgs {
            return_field: Arc::clone(&fields[0]),
            schema: &schema,
            ignore_nulls: false,
            order_bys: &[],
            is_reversed: false,
            name: "m",
            is_distinct: false,
            exprs: &[x],
            expr_fields: &fields,
        };
        let mut groups = Groups { factory: Factory::new(&inner, &args), groups: Vec::new(), size: 0 };
        for n in 0..40 {
            let values: ArrayRef = Arc::new(Float64Array::from_iter_values((0..1_000).map(|i| f64::from(n * i))));
            groups.update_batch(&[values], &vec![n as usize % 2; 1_000], None, 20_000).unwrap();
        }
        let counted: usize = groups.groups.iter().map(Group::size).sum();
        assert_eq!(groups.size(), counted);
        assert!(groups.groups[..2].iter().all(|group| group.waiting.capacity() <= WAITING_MIN));
        groups.evaluate(EmitTo::First(1)).unwrap();
        assert!(groups.groups.len() == 19_999 && groups.size() < counted);
        groups.evaluate(EmitTo::All).unwrap();
        assert_eq!(groups.size(), 0);
    }
}
