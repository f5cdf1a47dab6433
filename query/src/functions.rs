//! The functions that a query may call: those listed here, and none other.
//!
//! A memory pool counts what sorts, joins and aggregates hold, and nothing of what a function
//! returns. So a function whose result can be larger than its arguments is either not there, or
//! says before it runs how much it would give, and refuses what is too much: [`Bounded`].
//! docs/sql.md has the same list; a test compares the three.

use std::cmp::Ordering;
use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{Array, ArrayRef, AsArray as _, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Int64Type};
use datafusion::common::utils::list_ndims;
use datafusion::common::{DFSchema, DataFusionError, Result, not_impl_err};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::SessionStateDefaults;
use datafusion::functions_nested::{concat, make_array};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr, RawDictionaryExpr};
use datafusion::logical_expr::{
    AggregateUDF, ColumnarValue, Expr, ExprSchemable as _, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility, WindowUDF,
};
use datafusion::sql::sqlparser::ast::BinaryOperator;

/// Most bytes that a function gives for one batch of rows.
const BATCH_BYTES_MAX: u64 = 64 << 20;

/// Functions of values whose results are about as large as their arguments, at most.
pub(crate) const SCALAR: &[&str] = &[
    // Conditions and structure.
    "coalesce",
    "nullif",
    "nvl",
    "nvl2",
    "greatest",
    "least",
    "get_field",
    "named_struct",
    "struct",
    "arrow_typeof",
    "union_extract",
    "union_tag",
    // Text.
    "ascii",
    "bit_length",
    "btrim",
    "character_length",
    "chr",
    "contains",
    "ends_with",
    "find_in_set",
    "initcap",
    "left",
    "levenshtein",
    "lower",
    "ltrim",
    "octet_length",
    "reverse",
    "right",
    "rtrim",
    "split_part",
    "starts_with",
    "strpos",
    "substr",
    "substr_index",
    "to_hex",
    "translate",
    "upper",
    "encode",
    "decode",
    "regexp_count",
    "regexp_instr",
    "regexp_like",
    "regexp_match",
    // Time.
    "current_date",
    "current_time",
    "date_bin",
    "date_part",
    "date_trunc",
    "from_unixtime",
    "make_date",
    "now",
    "to_char",
    "to_date",
    "to_local_time",
    "to_timestamp",
    "to_timestamp_micros",
    "to_timestamp_millis",
    "to_timestamp_nanos",
    "to_timestamp_seconds",
    "to_unixtime",
    // Numbers.
    "abs",
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cbrt",
    "ceil",
    "cos",
    "cosh",
    "cot",
    "degrees",
    "exp",
    "factorial",
    "floor",
    "gcd",
    "isnan",
    "iszero",
    "lcm",
    "ln",
    "log",
    "log10",
    "log2",
    "nanvl",
    "pi",
    "power",
    "radians",
    "round",
    "signum",
    "sin",
    "sinh",
    "sqrt",
    "tan",
    "tanh",
    "trunc",
    // Lists.
    "array_any_value",
    "array_dims",
    "array_distance",
    "array_distinct",
    "array_element",
    "array_empty",
    "array_except",
    "array_has",
    "array_has_all",
    "array_has_any",
    "array_intersect",
    "array_length",
    "array_max",
    "array_min",
    "array_ndims",
    "array_pop_back",
    "array_pop_front",
    "array_position",
    "array_positions",
    "array_remove",
    "array_remove_all",
    "array_remove_n",
    "array_reverse",
    "array_slice",
    "array_sort",
    "cardinality",
    "empty",
    "flatten",
    "string_to_array",
    // JSON.
    "json_as_text",
    "json_contains",
    "json_get",
    "json_get_array",
    "json_get_bool",
    "json_get_float",
    "json_get_int",
    "json_get_json",
    "json_get_str",
    "json_length",
    "json_object_keys",
    "json_union_to_text",
    "json_from_scalar",
    // The ledger's own.
    "authority_covers",
    "proof",
    "payload",
    "tenant_claim_holds",
    "tenants_of",
];

/// Functions whose results can be larger, each with what it would give.
const BOUNDED: &[(&str, Growth)] = &[
    ("repeat", Growth::Repeat),
    ("lpad", Growth::Pad),
    ("rpad", Growth::Pad),
    ("replace", Growth::Replace),
    ("regexp_replace", Growth::Product),
    ("overlay", Growth::Sum),
    ("concat", Growth::Sum),
    ("concat_ws", Growth::Join),
    ("array_to_string", Growth::Join),
    ("make_array", Growth::Sum),
    ("array_append", Growth::Sum),
    ("array_prepend", Growth::Sum),
    ("array_concat", Growth::Sum),
    ("array_union", Growth::Sum),
    ("array_replace", Growth::Product),
    ("array_replace_n", Growth::Product),
    ("array_replace_all", Growth::Product),
];

/// Functions over groups; what they hold is counted by the memory pool.
pub(crate) const AGGREGATE: &[&str] = &[
    "any_value",
    "approx_distinct",
    "approx_median",
    "approx_percentile_cont",
    "approx_percentile_cont_with_weight",
    "array_agg",
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "corr",
    "count",
    "covar_pop",
    "covar_samp",
    "first_value",
    "grouping",
    "last_value",
    "max",
    "median",
    "min",
    "nth_value",
    "percentile_cont",
    "regr_avgx",
    "regr_avgy",
    "regr_count",
    "regr_intercept",
    "regr_r2",
    "regr_slope",
    "regr_sxx",
    "regr_sxy",
    "regr_syy",
    "stddev",
    "stddev_pop",
    "sum",
    "var",
    "var_pop",
];

/// Functions over windows.
pub(crate) const WINDOW: &[&str] = &[
    "cume_dist",
    "dense_rank",
    "first_value",
    "lag",
    "last_value",
    "lead",
    "nth_value",
    "ntile",
    "percent_rank",
    "rank",
    "row_number",
];

/// Functions that are tables.
pub(crate) const TABLE: &[&str] = &["delegation_chain", "replay"];

/// The names of functions that are bounded.
pub(crate) fn bounded() -> impl Iterator<Item = &'static str> {
    BOUNDED.iter().map(|(name, _)| *name)
}

/// A session that has only what is listed: no formats, no writers of files, no other functions.
pub(crate) fn session() -> SessionStateBuilder {
    static LISTED: LazyLock<(Vec<Arc<ScalarUDF>>, Vec<Arc<AggregateUDF>>, Vec<Arc<WindowUDF>>)> = LazyLock::new(|| {
        let scalar = SessionStateDefaults::default_scalar_functions().into_iter().filter_map(listed).collect();
        let mut aggregate = SessionStateDefaults::default_aggregate_functions();
        aggregate.retain(|function| AGGREGATE.contains(&function.name()));
        let mut window = SessionStateDefaults::default_window_functions();
        window.retain(|function| WINDOW.contains(&function.name()));
        (scalar, aggregate, window)
    });
    // The first planner that knows an operator decides.
    let mut planners: Vec<Arc<dyn ExprPlanner>> = vec![Arc::new(BoundedPlanner)];
    planners.extend(SessionStateDefaults::default_expr_planners());
    SessionStateBuilder::new()
        .with_expr_planners(planners)
        .with_scalar_functions(LISTED.0.clone())
        .with_aggregate_functions(LISTED.1.clone())
        .with_window_functions(LISTED.2.clone())
}

/// A function as a session has it: as it is, bounded, or not at all.
fn listed(inner: Arc<ScalarUDF>) -> Option<Arc<ScalarUDF>> {
    if SCALAR.contains(&inner.name()) {
        return Some(inner);
    }
    let growth = BOUNDED.iter().find(|(name, _)| *name == inner.name())?.1;
    Some(Arc::new(ScalarUDF::from(Bounded { inner, growth })))
}

/// How large a result can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Growth {
    /// Length times a number.
    Repeat,
    /// As many characters as a number says, or as there are.
    Pad,
    /// Each occurrence of the second replaced by the third.
    Replace,
    /// All of the first, each byte of it replaced by all of the third.
    Product,
    /// All arguments together.
    Sum,
    /// All arguments together, with the separator between elements.
    Join,
}

/// A function that is asked how much it will give before it is called.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    growth: Growth,
}

/// An argument, row by row.
struct Argument(ArrayRef, bool);

impl Argument {
    fn of(value: &ColumnarValue) -> Result<Self> {
        Ok(match value {
            ColumnarValue::Array(array) => Self(Arc::clone(array), false),
            ColumnarValue::Scalar(scalar) => Self(scalar.to_array()?, true),
        })
    }

    fn row(&self, i: usize) -> usize {
        if self.1 { 0 } else { i }
    }

    /// The texts, if it is one of text.
    fn texts(&self) -> Option<StringArray> {
        let is_text = matches!(self.0.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        let texts = is_text.then(|| cast(&self.0, &DataType::Utf8).ok()).flatten()?;
        Some(texts.as_string::<i32>().clone())
    }

    fn numbers(&self) -> Option<datafusion::arrow::array::Int64Array> {
        Some(cast(&self.0, &DataType::Int64).ok()?.as_primitive::<Int64Type>().clone())
    }

    /// Bytes of all rows that a result takes of it.
    fn bytes(&self, rows: usize) -> u64 {
        let own = match self.texts() {
            Some(texts) => (0..texts.len()).map(|i| texts.value(i).len() as u64).sum(),
            None => self.0.to_data().get_slice_memory_size().unwrap_or_else(|_| self.0.get_array_memory_size()) as u64,
        };
        if self.1 { own.saturating_mul(rows as u64) } else { own }
    }

    /// The bytes of its longest text.
    fn longest(&self) -> u64 {
        self.texts().map_or(8, |texts| (0..texts.len()).map(|i| texts.value(i).len() as u64).max().unwrap_or(0))
    }

    /// How many elements its lists have, in all rows.
    fn elements(&self, rows: usize) -> u64 {
        let own = match self.0.as_list_opt::<i32>() {
            Some(lists) => (0..lists.len()).map(|i| u64::from(lists.value_length(i).unsigned_abs())).sum(),
            None => self.0.len() as u64,
        };
        if self.1 { own.saturating_mul(rows as u64) } else { own }
    }
}

impl Growth {
    /// The most bytes of a result for these arguments; `None` if they are not of the expected types.
    fn most(self, args: &[Argument], rows: usize) -> Option<u64> {
        let sum = || args.iter().map(|arg| arg.bytes(rows)).fold(0, u64::saturating_add);
        let each = |most: &dyn Fn(usize) -> u64| (0..rows).map(most).fold(0, u64::saturating_add);
        Some(match self {
            Self::Sum => sum(),
            Self::Join => {
                let separator = args.iter().map(Argument::longest).min().unwrap_or(0).max(args.first()?.longest());
                let separator = if args.len() > 1 { separator.max(args.get(1)?.longest()) } else { separator };
                let elements = args.iter().map(|arg| arg.elements(rows)).fold(0, u64::saturating_add);
                let is_list = args.first()?.0.as_list_opt::<i32>().is_some();
                let separator = if is_list { args.get(1..)?.iter().map(Argument::longest).max()? } else { separator };
                sum().saturating_add(elements.saturating_mul(separator))
            }
            Self::Repeat => {
                let (text, times) = (args.first()?.texts()?, args.get(1)?.numbers()?);
                each(&|i| {
                    let times = times.value(args[1].row(i)).max(0) as u64;
                    (text.value(args[0].row(i)).len() as u64).saturating_mul(times)
                })
            }
            Self::Pad => {
                let (text, length) = (args.first()?.texts()?, args.get(1)?.numbers()?);
                each(&|i| {
                    let length = (length.value(args[1].row(i)).max(0) as u64).saturating_mul(4);
                    length.max(text.value(args[0].row(i)).len() as u64)
                })
            }
            Self::Replace => {
                let (text, from, to) = (args.first()?.texts()?, args.get(1)?.texts()?, args.get(2)?.texts()?);
                each(&|i| {
                    let (text, from) = (text.value(args[0].row(i)), from.value(args[1].row(i)));
                    let to = to.value(args[2].row(i)).len() as u64;
                    let times = if from.is_empty() { text.len() + 1 } else { text.matches(from).count() } as u64;
                    (text.len() as u64).saturating_add(times.saturating_mul(to))
                })
            }
            Self::Product => {
                let first = args.first()?.bytes(rows).saturating_add(rows as u64);
                first.saturating_mul(args.get(2)?.longest().saturating_add(1))
            }
        })
    }
}

impl Bounded {
    fn check(&self, args: &ScalarFunctionArgs) -> Result<()> {
        let values = args.args.iter().map(Argument::of).collect::<Result<Vec<_>>>()?;
        let most = match values.is_empty() {
            true => Some(0),
            false => self.growth.most(&values, args.number_rows),
        };
        match most {
            Some(most) if most <= BATCH_BYTES_MAX => Ok(()),
            most => Err(DataFusionError::ResourcesExhausted(format!(
                "{}() could give {} MiB at once, and {} are allowed; ask for fewer or shorter values",
                self.inner.name(),
                most.map_or_else(|| "any number of".into(), |most| (most >> 20).to_string()),
                BATCH_BYTES_MAX >> 20
            ))),
        }
    }
}

impl ScalarUDFImpl for Bounded {
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

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.check(&args)?;
        self.inner.invoke_with_args(args)
    }
}

/// `a || b` of texts, bounded as `concat` is; unlike that, nothing joined to something is nothing.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Concat(Signature);

impl Concat {
    fn new() -> Self {
        Self(Signature::user_defined(Volatility::Immutable))
    }
}

impl ScalarUDFImpl for Concat {
    fn name(&self) -> &'static str {
        "||"
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(args.iter().map(|arg| arg.schema_name().to_string()).collect::<Vec<_>>().join(" || "))
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        Ok(args.iter().map(ToString::to_string).collect::<Vec<_>>().join(" || "))
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(Arc::new(Field::new(self.name(), DataType::Utf8, true)))
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        if types.iter().any(DataType::is_nested) {
            return not_impl_err!("|| joins texts or lists, and not one to the other");
        }
        Ok(vec![DataType::Utf8; types.len()])
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let values = args.args.iter().map(Argument::of).collect::<Result<Vec<_>>>()?;
        if Growth::Sum.most(&values, args.number_rows).is_none_or(|most| most > BATCH_BYTES_MAX) {
            let message = format!("|| could give more than {} MiB at once", BATCH_BYTES_MAX >> 20);
            return Err(DataFusionError::ResourcesExhausted(message));
        }
        let is_scalar = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let texts: Vec<&StringArray> = arrays.iter().map(|a| a.as_string::<i32>()).collect();
        let joined = match texts[..] {
            [a, b] => datafusion::arrow::compute::kernels::concat_elements::concat_elements_utf8(a, b)?,
            _ => return not_impl_err!("|| joins two texts"),
        };
        match is_scalar {
            true => datafusion::scalar::ScalarValue::try_from_array(&joined, 0).map(ColumnarValue::Scalar),
            false => Ok(ColumnarValue::Array(Arc::new(joined))),
        }
    }
}

/// Has what the parser makes of operators and brackets planned as bounded functions: `||` of texts
/// and of lists, `[a, b]`, `OVERLAY`, map literals.
#[derive(Debug)]
struct BoundedPlanner;

fn call(function: Arc<ScalarUDF>, args: Vec<Expr>) -> Result<Expr> {
    let function = listed(function).ok_or_else(|| DataFusionError::Internal("an operator's function".into()))?;
    Ok(Expr::ScalarFunction(ScalarFunction::new_udf(function, args)))
}

impl ExprPlanner for BoundedPlanner {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        if expr.op != BinaryOperator::StringConcat {
            return Ok(PlannerResult::Original(expr));
        }
        let dimensions = |expr: &Expr| expr.get_type(schema).map(|kind| list_ndims(&kind));
        let (left, right) = (dimensions(&expr.left)?, dimensions(&expr.right)?);
        let args = vec![expr.left, expr.right];
        let planned = match left.cmp(&right) {
            Ordering::Equal if left == 0 => {
                let function = Arc::new(ScalarUDF::from(Concat::new()));
                Ok(Expr::ScalarFunction(ScalarFunction::new_udf(function, args)))
            }
            Ordering::Equal => call(concat::array_concat_udf(), args),
            Ordering::Greater => call(concat::array_append_udf(), args),
            Ordering::Less => call(concat::array_prepend_udf(), args),
        };
        planned.map(PlannerResult::Planned)
    }

    fn plan_array_literal(&self, exprs: Vec<Expr>, _: &DFSchema) -> Result<PlannerResult<Vec<Expr>>> {
        call(make_array::make_array_udf(), exprs).map(PlannerResult::Planned)
    }

    fn plan_overlay(&self, args: Vec<Expr>) -> Result<PlannerResult<Vec<Expr>>> {
        call(datafusion::functions::core::overlay(), args).map(PlannerResult::Planned)
    }

    fn plan_make_map(&self, _: Vec<Expr>) -> Result<PlannerResult<Vec<Expr>>> {
        not_impl_err!("maps are not made in queries; use named_struct")
    }

    fn plan_dictionary_literal(&self, _: RawDictionaryExpr, _: &DFSchema) -> Result<PlannerResult<RawDictionaryExpr>> {
        not_impl_err!("maps are not made in queries; use named_struct")
    }
}
