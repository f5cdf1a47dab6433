//! What the parser makes of operators and brackets, planned as bounded functions.

use std::cmp::Ordering;
use std::sync::Arc;

use datafusion::arrow::array::{AsArray as _, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::utils::list_ndims;
use datafusion::common::{DFSchema, DataFusionError, Result, not_impl_err};
use datafusion::functions_nested::{array_has, concat, make_array};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr, RawDictionaryExpr};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable as _, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use datafusion::sql::sqlparser::ast::BinaryOperator;

use super::bounded::{Argument, BATCH_BYTES_MAX, Growth};
use super::listed;

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
/// and of lists, `@>` and `<@`, `[a, b]`, `OVERLAY`, map literals.
#[derive(Debug)]
pub(super) struct BoundedPlanner;

fn call(function: Arc<ScalarUDF>, args: Vec<Expr>) -> Result<Expr> {
    let function = listed(function).ok_or_else(|| DataFusionError::Internal("an operator's function".into()))?;
    Ok(Expr::ScalarFunction(ScalarFunction::new_udf(function, args)))
}

impl ExprPlanner for BoundedPlanner {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        if !matches!(expr.op, BinaryOperator::StringConcat | BinaryOperator::AtArrow | BinaryOperator::ArrowAt) {
            return Ok(PlannerResult::Original(expr));
        }
        let dimensions = |expr: &Expr| expr.get_type(schema).map(|kind| list_ndims(&kind));
        let (left, right) = (dimensions(&expr.left)?, dimensions(&expr.right)?);
        if expr.op != BinaryOperator::StringConcat {
            if left == 0 || right == 0 {
                return Ok(PlannerResult::Original(expr));
            }
            let args = match expr.op {
                BinaryOperator::AtArrow => vec![expr.left, expr.right],
                _ => vec![expr.right, expr.left],
            };
            return call(array_has::array_has_all_udf(), args).map(PlannerResult::Planned);
        }
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
