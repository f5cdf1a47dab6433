//! `+`, `-`, `*` and the sign of whole numbers, as an error where the result leaves its type. DataFusion goes on at the
//! other end of it: `seq - 1000` of a seq below that would be a number of twenty digits, and nothing would tell.
//!
//! Times, durations, intervals and decimals are checked by DataFusion itself; division is, too.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Datum};
use datafusion::arrow::compute::kernels::numeric::{add, mul, sub};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::arrow::error::ArrowError;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult as _, TreeNode as _};
use datafusion::common::{DFSchema, DataFusionError, Result, internal_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable as _, LogicalPlan, Operator, ReturnFieldArgs, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::physical_expr_common::datum::apply;
use datafusion::scalar::ScalarValue;

/// What is done to whole numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sign {
    Plus,
    Minus,
    Times,
    Negative,
}

impl Sign {
    fn of(op: Operator) -> Option<Self> {
        Some(match op {
            Operator::Plus => Self::Plus,
            Operator::Minus => Self::Minus,
            Operator::Multiply => Self::Times,
            _ => return None,
        })
    }
}

/// One of them as a function, once both sides have the same type.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    sign: Sign,
    signature: Signature,
}

impl Checked {
    fn call(sign: Sign, args: Vec<Expr>) -> Expr {
        let function = Self { sign, signature: Signature::user_defined(Volatility::Immutable) };
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(ScalarUDF::from(function)), args))
    }

    /// As it was written.
    fn written(&self, args: &[Expr], shown: impl Fn(&Expr) -> String) -> Result<String> {
        Ok(match args {
            [of] => format!("(- {})", shown(of)),
            [a, b] => format!("{} {} {}", shown(a), self.name(), shown(b)),
            _ => return internal_err!("{} of {} values", self.name(), args.len()),
        })
    }
}

/// What an expression is one of.
fn checked(expr: &Expr) -> Option<&Checked> {
    let Expr::ScalarFunction(called) = expr else { return None };
    called.func.inner().downcast_ref::<Checked>()
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &'static str {
        match self.sign {
            Sign::Plus => "+",
            Sign::Minus | Sign::Negative => "-",
            Sign::Times => "*",
        }
    }

    /// The name of a column that nobody named.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.written(args, |arg| arg.schema_name().to_string())
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        let shown = |arg: &Expr| {
            let is_joined = matches!(arg, Expr::BinaryExpr(_)) || checked(arg).is_some();
            if is_joined { format!("({arg})") } else { arg.to_string() }
        };
        self.written(args, shown)
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(types.to_vec())
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        types.first().cloned().ok_or_else(|| DataFusionError::Internal("arithmetic of nothing".into()))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let types: Vec<DataType> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let is_nullable = args.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(Field::new(self.name(), self.return_type(&types)?, is_nullable)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let kernel: fn(&dyn Datum, &dyn Datum) -> std::result::Result<ArrayRef, ArrowError> = match self.sign {
            Sign::Plus => add,
            Sign::Minus | Sign::Negative => sub,
            Sign::Times => mul,
        };
        let done = match &args.args[..] {
            [a, b] => apply(a, b, kernel),
            [of] => apply(&ColumnarValue::Scalar(ScalarValue::new_zero(&of.data_type())?), of, kernel),
            _ => return internal_err!("{} of {} values", self.name(), args.args.len()),
        };
        done.map_err(|error| too_large(error, args.return_field.data_type()))
    }
}

/// What is said where a result leaves its type.
fn too_large(error: DataFusionError, kind: &DataType) -> DataFusionError {
    match error.find_root() {
        DataFusionError::ArrowError(arrow, _) => match arrow.as_ref() {
            ArrowError::ArithmeticOverflow(what) => {
                let what = what.strip_prefix("Overflow happened on: ").unwrap_or(what);
                DataFusionError::Execution(format!("{what} is no {kind}; {}", more_room(kind)))
            }
            _ => error,
        },
        _ => error,
    }
}

/// How a number is asked for that has no room in its type.
pub(super) fn more_room(kind: &DataType) -> &'static str {
    match kind {
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => {
            "CAST(x AS BIGINT) has numbers below 0, CAST(x AS DECIMAL(38, 0)) larger ones"
        }
        _ => "CAST(x AS DECIMAL(38, 0)) or CAST(x AS DOUBLE) has room for it",
    }
}

/// Makes arithmetic of whole numbers checked; the last rule of the analysis, when all types are known.
#[derive(Debug)]
pub(super) struct CheckedArithmetic;

impl AnalyzerRule for CheckedArithmetic {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|node| {
            let mut schema = merge_schema(&node.inputs());
            if let LogicalPlan::TableScan(scan) = &node {
                schema.merge(&DFSchema::try_from_qualified_schema(scan.table_name.clone(), &scan.source.schema())?);
            }
            let names = NamePreserver::new(&node);
            node.map_expressions(|expr| {
                let name = names.save(&expr);
                let checked = expr.transform_up(|expr| Ok(of_whole_numbers(expr, &schema)))?;
                Ok(checked.update_data(|expr| name.restore(expr)))
            })
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "checked_arithmetic"
    }
}

fn of_whole_numbers(expr: Expr, schema: &DFSchema) -> Transformed<Expr> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match Sign::of(op) {
            Some(sign) if is_whole(&left, schema) && is_whole(&right, schema) => {
                Transformed::yes(Checked::call(sign, vec![*left, *right]))
            }
            _ => Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })),
        },
        Expr::Negative(of) if is_whole(&of, schema) => Transformed::yes(Checked::call(Sign::Negative, vec![*of])),
        expr => Transformed::no(expr),
    }
}

/// Whether it is a whole number. What is checked has the type of its first argument: a long sum is not looked through at
/// each of its signs again.
fn is_whole(expr: &Expr, schema: &DFSchema) -> bool {
    let mut expr = expr;
    while let (Some(_), Expr::ScalarFunction(called)) = (checked(expr), expr) {
        let Some(first) = called.args.first() else { return false };
        expr = first;
    }
    expr.get_type(schema).is_ok_and(|kind| kind.is_integer())
}
