//! What windows hold, which DataFusion counts nowhere: rows that wait for those behind them, and texts that a function
//! gives to every row. `max(body) OVER ()` writes the longest body of a partition once a row: a megabyte, of a million
//! rows, is a terabyte. Both are counted here against the memory of the query, before the window makes anything of them.
//!
//! What is refused by the look of it: a `lag` or `lead` over more rows than are to be held, and a median of a frame that
//! moves, which sorts the frame anew at each row, in which nobody can interrupt it; and a list of a frame for each row.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datafusion::arrow::array::{Array, ArrayRef, AsArray as _, RecordBatch};
use datafusion::arrow::compute::partition;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::logical_expr::{Expr, LogicalPlan, WindowFrameBound, WindowFunctionDefinition};
use datafusion::physical_expr::window::{StandardWindowExpr, WindowExpr};
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec, WindowUDFExpr};
use datafusion::physical_plan::{ExecutionPlan, InputOrderMode, PhysicalExpr};

use crate::error::{Error, ErrorKind};
use crate::streamed::sliced_bytes;

/// Rows that `lag` and `lead` may reach over: so many are held, of each partition at a time.
const REACH_MAX: u64 = 10_000;

/// Functions that sort all of their frame for each row.
const SORTING: [&str; 3] = ["median", "percentile_cont", "quantile_cont"];

/// Window functions that give each value to one row.
const SHIFTING: [&str; 2] = ["lag", "lead"];

/// A window of a plan, and what its runs hold.
pub(crate) struct Window {
    /// What its functions may give to many rows: arguments whose values have any length.
    repeated: Vec<Arc<dyn PhysicalExpr>>,
    partition_by: Vec<Arc<dyn PhysicalExpr>>,
    /// Whether all rows stay until the last has come.
    keeps: bool,
    /// Whether the rows of a partition stand together.
    is_sorted: bool,
    running: Mutex<HashMap<usize, Arc<Mutex<Held>>>>,
}

/// What one run of a window holds.
pub(crate) struct Held {
    memory: MemoryReservation,
    /// Rows and bytes of batches that wait.
    waiting: VecDeque<(usize, usize)>,
    /// Bytes of all that waits.
    bytes: usize,
    /// Rows that a value may be given to.
    rows: usize,
    /// The longest value of each argument in the present partition.
    longest: Vec<usize>,
    /// What earlier partitions are to be given.
    earlier: usize,
    /// The present partition.
    key: Option<Vec<ScalarValue>>,
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window").field("keeps", &self.keeps).finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Window {
    /// A step of a plan, if it is a window.
    pub(crate) fn of(node: &Arc<dyn ExecutionPlan>) -> Option<Arc<Self>> {
        let (functions, keeps, is_sorted) = match node.downcast_ref::<BoundedWindowAggExec>() {
            Some(window) => (window.window_expr(), false, window.input_order_mode == InputOrderMode::Sorted),
            None => (node.downcast_ref::<WindowAggExec>()?.window_expr(), true, true),
        };
        let (schema, mut repeated) = (node.children().first()?.schema(), Vec::new());
        for function in functions.iter().filter(|function| repeats(function)) {
            let has_length = |arg: &Arc<dyn PhysicalExpr>| arg.data_type(&schema).is_ok_and(|kind| has_length(&kind));
            repeated.extend(function.expressions().into_iter().filter(has_length));
        }
        let partition_by = functions.first()?.partition_by().to_vec();
        Some(Arc::new(Self { repeated, partition_by, keeps, is_sorted, running: Mutex::default() }))
    }

    /// Begins a run; its input is begun within.
    pub(crate) fn begin(&self, place: usize, context: &TaskContext) -> Arc<Mutex<Held>> {
        let held = Arc::new(Mutex::new(Held {
            memory: MemoryConsumer::new("window").register(context.memory_pool()),
            waiting: VecDeque::new(),
            bytes: 0,
            rows: 0,
            longest: vec![0; self.repeated.len()],
            earlier: 0,
            key: None,
        }));
        locked(&self.running).insert(place, Arc::clone(&held));
        held
    }

    /// The run whose input is begun.
    pub(crate) fn begun(&self, place: usize) -> Option<Arc<Mutex<Held>>> {
        locked(&self.running).remove(&place)
    }

    /// Rows have come to it.
    ///
    /// # Errors
    ///
    /// There is no room for what becomes of them.
    pub(crate) fn take(&self, held: &Mutex<Held>, batch: &RecordBatch) -> Result<()> {
        let (rows, bytes) = (batch.num_rows(), sliced_bytes(batch));
        if rows == 0 {
            return Ok(());
        }
        let evaluated = |exprs: &[Arc<dyn PhysicalExpr>]| -> Result<Vec<ArrayRef>> {
            exprs.iter().map(|expr| expr.evaluate(batch)?.into_array(rows)).collect()
        };
        let values = evaluated(&self.repeated)?;
        let mut held = locked(held);
        held.waiting.push_back((rows, bytes));
        held.bytes += bytes;
        let (keys, ranges) = match self.is_sorted && !values.is_empty() && !self.partition_by.is_empty() {
            true => {
                let keys = evaluated(&self.partition_by)?;
                let ranges = partition(&keys)?.ranges();
                (keys, ranges)
            }
            false => (Vec::new(), std::iter::once(0..rows).collect()),
        };
        for range in ranges {
            let key = keys.iter().map(|column| ScalarValue::try_from_array(column, range.start));
            held.enter(key.collect::<Result<Vec<_>>>()?, self.keeps);
            held.rows += range.len();
            for (longest, values) in held.longest.iter_mut().zip(&values) {
                *longest = (*longest).max(longest_of(values, range.clone()));
            }
        }
        held.reserve()
    }

    /// Rows have come out of it.
    pub(crate) fn give(&self, held: &Mutex<Held>, rows: usize) -> Result<()> {
        if self.keeps {
            return Ok(());
        }
        let mut held = locked(held);
        held.rows = held.rows.saturating_sub(rows);
        let mut gone = rows;
        while let Some((waiting, bytes)) = held.waiting.front_mut() {
            if gone < *waiting {
                *waiting -= gone;
                break;
            }
            gone -= *waiting;
            let bytes = *bytes;
            held.bytes = held.bytes.saturating_sub(bytes);
            held.waiting.pop_front();
        }
        held.reserve()
    }
}

impl Held {
    /// The rows of another partition begin, perhaps.
    fn enter(&mut self, key: Vec<ScalarValue>, keeps: bool) {
        if self.key.as_ref() == Some(&key) {
            return;
        }
        self.key = Some(key);
        if keeps {
            self.earlier = self.earlier.saturating_add(self.given());
            self.rows = 0;
        }
        self.longest.fill(0);
    }

    /// What the present partition is to be given.
    fn given(&self) -> usize {
        self.longest.iter().map(|longest| longest.saturating_mul(self.rows)).fold(0, usize::saturating_add)
    }

    fn reserve(&self) -> Result<()> {
        let given = self.given().saturating_add(self.earlier);
        let wanted = self.memory.try_resize(self.bytes.saturating_add(given));
        wanted.map_err(|error| match given > self.bytes {
            true => {
                let message = format!(
                    "a window function would give {} MiB of long values to its rows, and there is no room for them; \
                     give it less, such as left(x, 200), or use GROUP BY",
                    given >> 20
                );
                DataFusionError::ResourcesExhausted(message)
            }
            false => error,
        })
    }
}

/// Whether a function may give one value to many rows.
fn repeats(function: &Arc<dyn WindowExpr>) -> bool {
    let standard = function.as_any().downcast_ref::<StandardWindowExpr>();
    let own = standard.and_then(|own| own.get_standard_func_expr().as_any().downcast_ref::<WindowUDFExpr>());
    let is_shift = own.is_some_and(|own| SHIFTING.contains(&own.fun().name()));
    !is_shift && function.field().is_ok_and(|field| has_length(field.data_type()))
}

/// Whether values of a type have any length.
fn has_length(kind: &DataType) -> bool {
    !kind.is_primitive() && !matches!(kind, DataType::Boolean | DataType::Null | DataType::FixedSizeBinary(_))
}

/// The bytes of the longest of some values.
fn longest_of(values: &ArrayRef, range: Range<usize>) -> usize {
    let texts = |length: &dyn Fn(usize) -> usize| range.clone().map(length).max().unwrap_or(0);
    match values.data_type() {
        DataType::Utf8 => texts(&|i| values.as_string::<i32>().value_length(i).unsigned_abs() as usize),
        DataType::LargeUtf8 => texts(&|i| values.as_string::<i64>().value_length(i).unsigned_abs() as usize),
        // The length is the lower half of what stands for it.
        DataType::Utf8View => texts(&|i| values.as_string_view().views()[i] as u32 as usize),
        _ => texts(&|i| {
            let one = values.slice(i, 1).to_data();
            one.get_slice_memory_size().unwrap_or_else(|_| values.get_array_memory_size())
        }),
    }
}

/// Lets pass what a window can do in bounds.
///
/// # Errors
///
/// It reaches too far, or would sort over and over.
pub(crate) fn are_within_bounds(plan: &LogicalPlan) -> std::result::Result<(), Error> {
    let mut wrong = None;
    let walked = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                wrong = wrong.take().or_else(|| out_of_bounds(expr));
                Ok(if wrong.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
            })
        })
    });
    match (walked, wrong) {
        (_, Some(error)) => Err(error),
        (Err(error), None) => Err(Error::query(&error)),
        (Ok(_), None) => Ok(()),
    }
}

fn out_of_bounds(expr: &Expr) -> Option<Error> {
    let Expr::WindowFunction(called) = expr else { return None };
    let (name, params) = (called.fun.name(), &called.params);
    // By the function's own name: in a query it may be written in quotes.
    if name == "array_agg" {
        let message = "array_agg OVER is not there: it would give each row a list of all others; use GROUP BY";
        return Some(Error::invalid(message));
    }
    if SHIFTING.contains(&name) {
        let reach = match params.args.get(1) {
            None => return None,
            Some(Expr::Literal(value, _)) => match value.cast_to(&DataType::Int64) {
                Ok(ScalarValue::Int64(Some(rows))) => rows.unsigned_abs(),
                _ => return None,
            },
            Some(_) => return None,
        };
        let message = format!("{name} reaches over at most {REACH_MAX} rows; join the table with itself instead");
        return (reach > REACH_MAX).then(|| Error::new(ErrorKind::Resources, message));
    }
    let moves = |bound: &WindowFrameBound| !bound.is_unbounded();
    let frame = &params.window_frame;
    let is_sorting = matches!(called.fun, WindowFunctionDefinition::AggregateUDF(_)) && SORTING.contains(&name);
    let is_moving = !params.order_by.is_empty() && (moves(&frame.start_bound) || moves(&frame.end_bound));
    (is_sorting && is_moving).then(|| {
        Error::invalid(format!(
            "{name} OVER a frame that moves is not there: it would sort the frame anew at each row; use GROUP BY, or \
             OVER (PARTITION BY ...) without ORDER BY"
        ))
    })
}
