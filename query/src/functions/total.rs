//! `sum` of whole numbers, decimals and durations, and `avg` of durations, as an error where the result leaves its type.
//! DataFusion goes on at the other end of it, and gives a wrong number without a word.
//!
//! All is added up in 128 bits, and looked at only when the result is given: whether it has room does not depend on the
//! order of the rows, nor on how many threads added them.

use std::collections::HashMap;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray as _, BooleanArray, Decimal128Array, PrimitiveArray, UInt64Array,
};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::datatypes::{
    DataType, Decimal32Type, Decimal64Type, Decimal128Type, DurationMicrosecondType, DurationMillisecondType,
    DurationNanosecondType, DurationSecondType, Field, FieldRef, Int64Type, TimeUnit, UInt64Type,
};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, EmitTo, GroupsAccumulator, ReversedUDAF,
    SetMonotonicity, Signature,
};

use super::checked::more_room;

/// `sum` or `avg`, of which some types are added up here and the others by itself.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Total {
    inner: Arc<AggregateUDF>,
    is_mean: bool,
}

/// Types of which a value has at most 128 bits.
trait Whole: ArrowPrimitiveType<Native: Into<i128> + TryFrom<i128>> + Debug {}

impl<T: ArrowPrimitiveType<Native: Into<i128> + TryFrom<i128>> + Debug> Whole for T {}

/// Calls a function for the type of a sum; `None` for others.
macro_rules! of_type {
    ($kind:expr, $make:ident ( $($arg:expr),* )) => {
        match $kind {
            DataType::Int64 => Some($make::<Int64Type>($($arg),*)),
            DataType::UInt64 => Some($make::<UInt64Type>($($arg),*)),
            DataType::Decimal32(..) => Some($make::<Decimal32Type>($($arg),*)),
            DataType::Decimal64(..) => Some($make::<Decimal64Type>($($arg),*)),
            DataType::Decimal128(..) => Some($make::<Decimal128Type>($($arg),*)),
            DataType::Duration(TimeUnit::Second) => Some($make::<DurationSecondType>($($arg),*)),
            DataType::Duration(TimeUnit::Millisecond) => Some($make::<DurationMillisecondType>($($arg),*)),
            DataType::Duration(TimeUnit::Microsecond) => Some($make::<DurationMicrosecondType>($($arg),*)),
            DataType::Duration(TimeUnit::Nanosecond) => Some($make::<DurationNanosecondType>($($arg),*)),
            _ => None,
        }
    };
}

impl Total {
    /// In place of `sum` or `avg`.
    pub(super) fn new(inner: Arc<AggregateUDF>) -> Self {
        let is_mean = inner.name() == "avg";
        Self { inner, is_mean }
    }

    /// What is added up here.
    fn kind(&self, args: &DataType) -> Option<DataType> {
        let is_own = match args {
            DataType::Duration(_) => true,
            DataType::Int64 | DataType::UInt64 => !self.is_mean,
            DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) => !self.is_mean,
            _ => false,
        };
        is_own.then(|| args.clone())
    }

    fn one<T: Whole>(&self, kind: DataType, is_distinct: bool) -> Box<dyn Accumulator> {
        let result = Answer::<T> { kind, is_mean: self.is_mean, of: PhantomData };
        Box::new(One { sum: 0, count: 0, distinct: is_distinct.then(HashMap::new), result })
    }

    fn each<T: Whole>(&self, kind: DataType) -> Box<dyn GroupsAccumulator> {
        let result = Answer::<T> { kind, is_mean: self.is_mean, of: PhantomData };
        Box::new(Each { sums: Vec::new(), counts: Vec::new(), result })
    }

    fn own(&self, args: &AccumulatorArgs<'_>) -> Option<Box<dyn Accumulator>> {
        fn make<T: Whole>(total: &Total, kind: DataType, is_distinct: bool) -> Box<dyn Accumulator> {
            total.one::<T>(kind, is_distinct)
        }
        let kind = self.kind(args.return_type())?;
        of_type!(kind.clone(), make(self, kind, args.is_distinct))
    }
}

/// What becomes of a sum.
#[derive(Debug)]
struct Answer<T> {
    kind: DataType,
    is_mean: bool,
    of: PhantomData<fn() -> T>,
}

/// The type of a sum on its way.
fn wide(kind: &DataType) -> DataType {
    match kind {
        DataType::Decimal32(_, scale) | DataType::Decimal64(_, scale) | DataType::Decimal128(_, scale) => {
            DataType::Decimal128(38, *scale)
        }
        _ => DataType::Decimal128(38, 0),
    }
}

fn no_room(kind: &DataType) -> DataFusionError {
    DataFusionError::Execution(format!("a sum is larger than {kind} has room for; {}", more_room(kind)))
}

impl<T: Whole> Answer<T> {
    fn of(&self, sum: i128, count: u64) -> Result<T::Native> {
        let result = if self.is_mean { sum / i128::from(count.max(1)) } else { sum };
        T::Native::try_from(result).map_err(|_| no_room(&self.kind))
    }

    /// Only decimals can leave 128 bits: of all others there would have to be more than there are records.
    fn add(&self, sum: &mut i128, value: i128) -> Result<()> {
        if size_of::<T::Native>() <= 8 {
            *sum = sum.wrapping_add(value);
            return Ok(());
        }
        *sum = sum.checked_add(value).ok_or_else(|| no_room(&self.kind))?;
        Ok(())
    }

    fn scalar(&self, sum: Option<T::Native>) -> Result<ScalarValue> {
        ScalarValue::new_primitive::<T>(sum, &self.kind)
    }
}

/// Calls a function with each value that is one.
fn for_each<T: ArrowPrimitiveType>(
    values: &PrimitiveArray<T>,
    mut each: impl FnMut(usize, T::Native) -> Result<()>,
) -> Result<()> {
    match values.nulls() {
        None => values.values().iter().enumerate().try_for_each(|(row, value)| each(row, *value)),
        Some(nulls) => nulls.valid_indices().try_for_each(|row| each(row, values.value(row))),
    }
}

/// The sum of one group, or of a window.
#[derive(Debug)]
struct One<T> {
    sum: i128,
    count: u64,
    /// How often each value is there, if each counts once.
    distinct: Option<HashMap<i128, u64>>,
    result: Answer<T>,
}

impl<T: Whole> One<T> {
    fn put(&mut self, value: i128) -> Result<()> {
        if let Some(distinct) = &mut self.distinct {
            let times = distinct.entry(value).or_default();
            *times += 1;
            if *times > 1 {
                return Ok(());
            }
        }
        self.count += 1;
        self.result.add(&mut self.sum, value)
    }

    fn take(&mut self, value: i128) -> Result<()> {
        if let Some(distinct) = &mut self.distinct {
            match distinct.get_mut(&value) {
                Some(times) if *times > 1 => {
                    *times -= 1;
                    return Ok(());
                }
                _ => drop(distinct.remove(&value)),
            }
        }
        self.count = self.count.saturating_sub(1);
        self.result.add(&mut self.sum, value.checked_neg().ok_or_else(|| no_room(&self.result.kind))?)
    }
}

impl<T: Whole> Accumulator for One<T> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let values = values[0].as_primitive::<T>();
        if self.distinct.is_some() {
            return for_each(values, |_, value| self.put(value.into()));
        }
        let (mut sum, result) = (self.sum, &self.result);
        for_each(values, |_, value| result.add(&mut sum, value.into()))?;
        self.sum = sum;
        self.count += (values.len() - values.null_count()) as u64;
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for_each(values[0].as_primitive::<T>(), |_, value| self.take(value.into()))
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let sum = if self.count == 0 { None } else { Some(self.result.of(self.sum, self.count)?) };
        self.result.scalar(sum)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let kind = wide(&self.result.kind);
        let DataType::Decimal128(precision, scale) = kind else { return Err(no_room(&kind)) };
        let decimal = |sum: Option<i128>| ScalarValue::Decimal128(sum, precision, scale);
        if let Some(distinct) = &self.distinct {
            let values: Vec<ScalarValue> = distinct.keys().map(|value| decimal(Some(*value))).collect();
            return Ok(vec![ScalarValue::List(ScalarValue::new_list_nullable(&values, &kind))]);
        }
        Ok(vec![decimal((self.count > 0).then_some(self.sum)), ScalarValue::UInt64(Some(self.count))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        if self.distinct.is_some() {
            return states[0]
                .as_list::<i32>()
                .iter()
                .flatten()
                .try_for_each(|values| for_each(values.as_primitive::<Decimal128Type>(), |_, value| self.put(value)));
        }
        let (mut sum, result) = (self.sum, &self.result);
        for_each(states[0].as_primitive::<Decimal128Type>(), |_, part| result.add(&mut sum, part))?;
        self.sum = sum;
        for_each(states[1].as_primitive::<UInt64Type>(), |_, count| {
            self.count += count;
            Ok(())
        })
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.distinct.as_ref().map_or(0, |d| d.capacity() * size_of::<(i128, u64)>())
    }
}

/// The sums of many groups.
#[derive(Debug)]
struct Each<T> {
    sums: Vec<i128>,
    counts: Vec<u64>,
    result: Answer<T>,
}

impl<T: Whole> Each<T> {
    fn resize(&mut self, groups: usize) {
        self.sums.resize(groups, 0);
        self.counts.resize(groups, 0);
    }

    fn take(&mut self, emit_to: EmitTo) -> (Vec<i128>, Vec<u64>) {
        (emit_to.take_needed(&mut self.sums), emit_to.take_needed(&mut self.counts))
    }

    fn states(&self, sums: Vec<i128>, counts: Vec<u64>, nulls: NullBuffer) -> Vec<ArrayRef> {
        let sums = Decimal128Array::new(sums.into(), Some(nulls)).with_data_type(wide(&self.result.kind));
        vec![Arc::new(sums), Arc::new(UInt64Array::from(counts))]
    }
}

impl<T: Whole> GroupsAccumulator for Each<T> {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.resize(total_num_groups);
        let (sums, counts, result) = (&mut self.sums, &mut self.counts, &self.result);
        for_each(values[0].as_primitive::<T>(), |row, value| {
            if opt_filter.is_some_and(|filter| !filter.is_valid(row) || !filter.value(row)) {
                return Ok(());
            }
            let group = group_indices[row];
            counts[group] += 1;
            result.add(&mut sums[group], value.into())
        })
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let (sums, counts) = self.take(emit_to);
        let each = sums.iter().zip(&counts);
        let values = each.map(|(sum, count)| self.result.of(*sum, *count)).collect::<Result<Vec<_>>>()?;
        let nulls: NullBuffer = counts.iter().map(|count| *count > 0).collect();
        let values = PrimitiveArray::<T>::new(values.into(), Some(nulls));
        Ok(Arc::new(values.with_data_type(self.result.kind.clone())))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let (sums, counts) = self.take(emit_to);
        let nulls = counts.iter().map(|count| *count > 0).collect();
        Ok(self.states(sums, counts, nulls))
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.resize(total_num_groups);
        let (sums, counts, result) = (&mut self.sums, &mut self.counts, &self.result);
        let parts = values[1].as_primitive::<UInt64Type>();
        for_each(values[0].as_primitive::<Decimal128Type>(), |row, part| {
            let group = group_indices[row];
            counts[group] += parts.value(row);
            result.add(&mut sums[group], part)
        })
    }

    fn convert_to_state(&self, values: &[ArrayRef], opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let values = values[0].as_primitive::<T>();
        let counts = |row: usize| {
            values.is_valid(row) && opt_filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
        };
        let is_there: Vec<bool> = (0..values.len()).map(counts).collect();
        let sums = values.values().iter().map(|value| (*value).into()).collect();
        let counts = is_there.iter().map(|there| u64::from(*there)).collect();
        Ok(self.states(sums, counts, is_there.into()))
    }

    fn size(&self) -> usize {
        self.sums.capacity() * size_of::<i128>() + self.counts.capacity() * size_of::<u64>()
    }
}

impl AggregateUDFImpl for Total {
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
        let Some(kind) = self.kind(args.return_type()) else { return self.inner.state_fields(args) };
        let field = |what: &str, kind, is_nullable| Field::new(format_state_name(args.name, what), kind, is_nullable);
        if args.is_distinct {
            let item = Field::new_list_field(wide(&kind), true);
            return Ok(vec![Field::new_list(format_state_name(args.name, "distinct"), item, false).into()]);
        }
        let (sum, count) = (field("sum", wide(&kind), true), field("count", DataType::UInt64, false));
        Ok(vec![sum.into(), count.into()])
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.own(&args).map_or_else(|| self.inner.accumulator(args), Ok)
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.own(&args).map_or_else(|| self.inner.create_sliding_accumulator(args), Ok)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        match self.kind(args.return_type()) {
            Some(_) => !args.is_distinct,
            None => self.inner.groups_accumulator_supported(args),
        }
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        fn make<T: Whole>(total: &Total, kind: DataType) -> Box<dyn GroupsAccumulator> {
            total.each::<T>(kind)
        }
        let own = self.kind(args.return_type()).and_then(|kind| of_type!(kind.clone(), make(self, kind)));
        own.map_or_else(|| self.inner.create_groups_accumulator(args), Ok)
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn set_monotonicity(&self, kind: &DataType) -> SetMonotonicity {
        self.inner.inner().set_monotonicity(kind)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}
