//! The steps that a process has, as the operator describes them, and whether a step is one of them:
//! `process_breach(definitions, process, step, taken)`.
//!
//! A definition is a line: `PROCESS: STEP, STEP` (in any order) or `PROCESS: STEP > STEP > STEP` (each only
//! after the one before it; steps may repeat). In all of them `*` stands for any characters. Of several
//! definitions of one process one must allow the step.

use std::sync::Arc;

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::DataFusionError;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};

use crate::authority::matches;
use crate::rows::Cell as _;

/// What is wrong with a step of a process; null if nothing is, or if the process is not described.
pub(super) fn function() -> ScalarUDF {
    let list = DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)));
    let run = |args: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(args)?;
        let [definitions, process, step, taken] = arrays.as_slice() else {
            return Err(DataFusionError::Execution("process_breach takes four arguments".into()));
        };
        let (process, step) = (cast(process, &DataType::Utf8)?, cast(step, &DataType::Utf8)?);
        let (process, step) = (process.as_string::<i32>(), step.as_string::<i32>());
        let row = |i: usize| {
            let known = process.is_valid(i) && step.is_valid(i);
            let texts = |of: &ArrayRef| <Vec<String>>::read(of, i);
            known.then(|| breach(&texts(definitions), process.value(i), step.value(i), &texts(taken)))?
        };
        let out: StringArray = (0..process.len()).map(row).collect();
        Ok(ColumnarValue::Array(Arc::new(out) as ArrayRef))
    };
    let args = vec![list.clone(), DataType::Utf8, DataType::Utf8, list];
    create_udf("process_breach", args, DataType::Utf8, Volatility::Immutable, Arc::new(run))
}

fn breach(definitions: &[String], process: &str, step: &str, taken: &[String]) -> Option<String> {
    let mut wrong = None;
    for definition in definitions {
        let Some((name, steps)) = definition.split_once(": ") else { continue };
        if !matches(name.trim(), process) {
            continue;
        }
        match judge(steps, step, taken) {
            Ok(()) => return None,
            Err(what) => drop(wrong.get_or_insert(what)),
        }
    }
    wrong.map(|what| format!("process {process} {what}"))
}

/// Whether one definition allows a step, or what it lacks.
fn judge(steps: &str, step: &str, taken: &[String]) -> Result<(), String> {
    let is_ordered = steps.contains('>');
    let steps: Vec<&str> = steps.split(if is_ordered { '>' } else { ',' }).map(str::trim).collect();
    let places: Vec<usize> = (0..steps.len()).filter(|i| matches(steps[*i], step)).collect();
    if places.is_empty() {
        return Err(format!("has no step {step}"));
    }
    let may_come = |place: &usize| {
        let before = place.checked_sub(1).filter(|_| is_ordered).map(|i| steps[i]);
        before.is_none_or(|before| taken.iter().any(|one| matches(before, one)))
    };
    match places.iter().any(may_come) {
        true => Ok(()),
        false => Err(format!("takes {step} only after {}, which was not taken", steps[places[0] - 1])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(definitions: &[&str], process: &str, step: &str, taken: &[&str]) -> Option<String> {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        breach(&owned(definitions), process, step, &owned(taken))
    }

    #[test]
    fn a_step_is_judged_by_the_definitions_of_its_process() {
        let all = ["invoice-*: read > check.* > pay", "support: read, answer"];
        assert_eq!(said(&all, "invoice-7", "read", &[]), None);
        assert_eq!(said(&all, "invoice-7", "pay", &["read", "check.vendor"]), None);
        let early = said(&all, "invoice-7", "pay", &["read"]).unwrap();
        assert_eq!(early, "process invoice-7 takes pay only after check.*, which was not taken");
        assert_eq!(said(&all, "support", "answer", &[]), None, "in any order");
        assert_eq!(said(&all, "support", "pay", &["read"]).unwrap(), "process support has no step pay");
        assert_eq!(said(&all, "other", "pay", &[]), None, "not described");
        let two = ["a: x > y", "a: z > y"];
        assert_eq!(said(&two, "a", "y", &["z"]), None, "one of them allows it");
        assert!(said(&two, "a", "y", &[]).is_some());
        assert_eq!(said(&["a: x > y > x"], "a", "x", &[]), None, "the first of its places has nothing before it");
        assert_eq!(said(&["nonsense"], "a", "x", &[]), None);
    }
}
