//! Which records a run is about, for the plans of the rules. A rule is written over everything; the evaluator
//! wants its hits about the few records that are new. So its answer is filtered by a function of the record's
//! seq, which the optimizer carries down to where those records are read: then a rule that joins each call
//! with its neighbours joins the new ones, and not all neighbours with each other.

use std::sync::{Arc, PoisonError, RwLock};

use custody_store::system::SeqSet;
use datafusion::arrow::array::{AsArray as _, BooleanArray};
use datafusion::arrow::datatypes::{DataType, UInt64Type};
use datafusion::common::DataFusionError;
use datafusion::logical_expr::{ColumnarValue, Expr, Volatility, create_udf};

/// The seqs of the records of the present run: mostly ranges, and every rule asks about every event at hand.
#[derive(Clone, Default)]
pub(super) struct Judged(Arc<RwLock<SeqSet>>);

impl Judged {
    /// Begins a run.
    pub(super) fn set(&self, seqs: SeqSet) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = seqs;
    }

    /// Whether a seq is one of them.
    pub(super) fn holds(&self, seq: Expr) -> Expr {
        let seqs = Arc::clone(&self.0);
        let run = move |args: &[ColumnarValue]| {
            let arrays = ColumnarValue::values_to_arrays(args)?;
            let Some(asked) = arrays.first().and_then(|array| array.as_primitive_opt::<UInt64Type>()) else {
                return Err(DataFusionError::Execution("judged takes a seq".into()));
            };
            let seqs = seqs.read().unwrap_or_else(PoisonError::into_inner);
            let out: BooleanArray = asked.iter().map(|seq| Some(seq.is_some_and(|seq| seqs.contains(seq)))).collect();
            Ok(ColumnarValue::Array(Arc::new(out)))
        };
        let types = vec![DataType::UInt64];
        // The same within one run: it may be carried down, and is not worked out before.
        create_udf("judged", types, DataType::Boolean, Volatility::Stable, Arc::new(run)).call(vec![seq])
    }
}
