//! Functions that look for an element in a list. Lists of seqs (`evidence`, `seqs`) are unsigned and a number in a query is
//! not, which DataFusion does not bring together: `array_has(evidence, 77)` would be no query.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::Result;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::type_coercion::functions::fields_with_udf;
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};

/// The functions that are made so.
pub(super) const NAMES: [&str; 4] = ["array_has", "array_has_all", "array_has_any", "array_position"];

/// Those that compare each element of a list with each of another.
pub(super) const OF_TWO_LISTS: [&str; 2] = ["array_has_all", "array_has_any"];

/// A function whose list and element may be numbers of either kind.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct OfElements {
    inner: Arc<ScalarUDF>,
    signature: Signature,
}

impl OfElements {
    pub(super) fn new(inner: Arc<ScalarUDF>) -> Self {
        Self { inner, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

/// The type of the elements of a list, or of what may be one.
fn element(kind: &DataType) -> &DataType {
    match kind {
        DataType::List(item) | DataType::LargeList(item) => element(item.data_type()),
        kind => kind,
    }
}

/// The same type with signed elements.
fn signed(kind: &DataType) -> DataType {
    let item = |item: &FieldRef| Arc::new(Field::new(item.name(), signed(item.data_type()), item.is_nullable()));
    match kind {
        DataType::List(field) => DataType::List(item(field)),
        DataType::LargeList(field) => DataType::LargeList(item(field)),
        DataType::UInt64 => DataType::Int64,
        kind => kind.clone(),
    }
}

impl ScalarUDFImpl for OfElements {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let has = |kind: DataType| types.iter().any(|t| *element(t) == kind);
        let meet = has(DataType::UInt64) && has(DataType::Int64);
        let field = |t: &DataType| Arc::new(Field::new("value", if meet { signed(t) } else { t.clone() }, true));
        let fields: Vec<FieldRef> = types.iter().map(field).collect();
        Ok(fields_with_udf(&fields, self.inner.as_ref())?.iter().map(|f| f.data_type().clone()).collect())
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        self.inner.simplify(args, info)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.inner.invoke_with_args(args)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}
