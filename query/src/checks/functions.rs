//! Functions that rules may use beside those of SQL.

use std::cmp::Ordering;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray as _, Float64Array, ListBuilder, StringArray, StringBuilder};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, TimeUnit, TimestampNanosecondType};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use serde_json::Value as Json;

use super::tuning::Tuning;
use crate::authority::{compare, same};

/// Rewrites `setting('name', workspace)` so that it names the check, too.
pub(crate) fn bind(check: &str, sql: &str) -> String {
    let lists = sql.replace("setting_list(", &format!("check_texts('{check}', "));
    lists.replace("setting(", &format!("check_number('{check}', "))
}

/// All of them.
pub(crate) fn all(tuning: &Arc<Tuning>) -> Vec<ScalarUDF> {
    let of_tuning = [number(Arc::clone(tuning)), texts(Arc::clone(tuning))];
    let plain = [seconds_between(), outside_constraint(), super::process::function()];
    plain.into_iter().chain(crate::functions::tenants::of_rules()).chain(of_tuning).collect()
}

/// The arguments as arrays of texts.
fn columns(args: &[ColumnarValue]) -> Result<Vec<StringArray>> {
    let arrays = ColumnarValue::values_to_arrays(args)?;
    arrays.iter().map(|array| Ok(cast(array, &DataType::Utf8)?.as_string::<i32>().clone())).collect()
}

fn value(array: &StringArray, row: usize) -> Option<&str> {
    array.is_valid(row).then(|| array.value(row))
}

/// `seconds_between(from, to)`: exact, negative if `to` is earlier.
fn seconds_between() -> ScalarUDF {
    let time = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
    let run = |args: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(args)?;
        let ends: Vec<_> = arrays.iter().map(|a| a.as_primitive_opt::<TimestampNanosecondType>()).collect();
        let [Some(from), Some(to)] = ends.as_slice() else {
            return Err(DataFusionError::Execution("seconds_between takes two times".into()));
        };
        let row = |(from, to): (Option<i64>, Option<i64>)| Some((to? as i128 - from? as i128) as f64 / 1e9);
        let out: Float64Array = from.iter().zip(to.iter()).map(row).collect();
        Ok(ColumnarValue::Array(Arc::new(out)))
    };
    create_udf("seconds_between", vec![time.clone(), time], DataType::Float64, Volatility::Immutable, Arc::new(run))
}

/// `outside_constraint(constraints, arguments)`: the first parameter that is not what it may be;
/// null if all are, or if it cannot be told.
fn outside_constraint() -> ScalarUDF {
    let run = |args: &[ColumnarValue]| {
        let columns = columns(args)?;
        let [constraints, arguments] = columns.as_slice() else {
            return Err(DataFusionError::Execution("outside_constraint takes two texts".into()));
        };
        let row = |i| outside(value(constraints, i)?, value(arguments, i)?);
        let out: StringArray = (0..constraints.len()).map(row).collect();
        Ok(ColumnarValue::Array(Arc::new(out) as ArrayRef))
    };
    let args = vec![DataType::Utf8, DataType::Utf8];
    create_udf("outside_constraint", args, DataType::Utf8, Volatility::Immutable, Arc::new(run))
}

/// The first parameter of the arguments that is outside of its constraint.
fn outside(constraints: &str, arguments: &str) -> Option<String> {
    let (Ok(Json::Object(constraints)), Ok(Json::Object(arguments))) =
        (serde_json::from_str(constraints), serde_json::from_str(arguments))
    else {
        return None;
    };
    let outside =
        |(name, bound): &(&String, &Json)| arguments.get(*name).is_some_and(|v| allows(bound, v) == Some(false));
    constraints.iter().find(outside).map(|(name, _)| name.clone())
}

/// Whether a constraint allows a value; `None` if that cannot be told.
fn allows(bound: &Json, value: &Json) -> Option<bool> {
    match bound {
        Json::Array(allowed) => Some(allowed.iter().any(|one| same(one, value))),
        Json::Object(bound) => {
            let mut verdict = None;
            for (name, limit) in bound {
                let one = match name.as_str() {
                    "min" => compare(limit, value).map(Ordering::is_le),
                    "max" => compare(limit, value).map(Ordering::is_ge),
                    "regex" => limit.as_str().zip(value.as_str()).and_then(|(pattern, v)| whole_match(pattern, v)),
                    _ => None,
                };
                if one == Some(false) {
                    return one;
                }
                verdict = verdict.or(one);
            }
            verdict
        }
        one => Some(same(one, value)),
    }
}

/// Whether a pattern matches all of a text. The pattern comes from a sender: its size is bounded.
fn whole_match(pattern: &str, text: &str) -> Option<bool> {
    let regex = regex::RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(1 << 20).build().ok()?;
    Some(regex.is_match(text))
}

/// `check_number(check, name, workspace)`.
fn number(tuning: Arc<Tuning>) -> ScalarUDF {
    let run = move |args: &[ColumnarValue]| {
        let columns = columns(args)?;
        let [check, name, workspace] = columns.as_slice() else {
            return Err(DataFusionError::Execution("setting takes a name and a workspace".into()));
        };
        let row = |i| tuning.number(value(workspace, i), value(check, i)?, value(name, i)?);
        let out: Float64Array = (0..check.len()).map(row).collect();
        Ok(ColumnarValue::Array(Arc::new(out) as ArrayRef))
    };
    let args = vec![DataType::Utf8; 3];
    create_udf("check_number", args, DataType::Float64, Volatility::Stable, Arc::new(run))
}

/// `check_texts(check, name, workspace)`.
fn texts(tuning: Arc<Tuning>) -> ScalarUDF {
    let list = DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)));
    let run = move |args: &[ColumnarValue]| {
        let columns = columns(args)?;
        let [check, name, workspace] = columns.as_slice() else {
            return Err(DataFusionError::Execution("setting_list takes a name and a workspace".into()));
        };
        let mut out = ListBuilder::new(StringBuilder::new());
        for i in 0..check.len() {
            let (check, name) = (value(check, i).unwrap_or_default(), value(name, i).unwrap_or_default());
            for text in tuning.texts(value(workspace, i), check, name) {
                out.values().append_value(text);
            }
            out.append(true);
        }
        Ok(ColumnarValue::Array(Arc::new(out.finish()) as ArrayRef))
    };
    create_udf("check_texts", vec![DataType::Utf8; 3], list, Volatility::Stable, Arc::new(run))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_surely_outside_is_outside() {
        let constraints =
            r#"{"amount":{"min":1,"max":100},"to":["a","b"],"note":{"regex":"[a-z]+"},"x":{"regex":"("}}"#;
        let say = |arguments: &str| outside(constraints, arguments);
        assert_eq!(say(r#"{"amount":100,"to":"a","note":"ok","x":"y"}"#), None);
        assert_eq!(say(r#"{"amount":100.5}"#).as_deref(), Some("amount"));
        assert_eq!(say(r#"{"amount":0}"#).as_deref(), Some("amount"));
        assert_eq!(say(r#"{"to":"c"}"#).as_deref(), Some("to"));
        assert_eq!(say(r#"{"note":"No"}"#).as_deref(), Some("note"));
        assert_eq!(say(r#"{"amount":"many"}"#), None, "not comparable");
        assert_eq!(say("not json"), None);
        assert_eq!(say(r#"{"amount":"1000000"}"#).as_deref(), Some("amount"), "a number written as a text");
        assert_eq!(say(r#"{"amount":"100"}"#), None);
        assert_eq!(say(r#"{"amount":"NaN"}"#), None, "no number");
        let say = |constraints: &str, arguments: &str| outside(constraints, arguments);
        assert_eq!(say(r#"{"n":[100]}"#, r#"{"n":100.0}"#), None, "the same number");
        assert_eq!(say(r#"{"n":100}"#, r#"{"n":100.5}"#).as_deref(), Some("n"));
        // Where floating point cannot tell them apart.
        assert_eq!(say(r#"{"n":{"max":9007199254740992}}"#, r#"{"n":9007199254740993}"#).as_deref(), Some("n"));
        assert_eq!(say(r#"{"n":{"max":9007199254740993}}"#, r#"{"n":9007199254740993}"#), None);
    }
}
