//! `date_trunc` to hours and days of times in UTC, as all times of the ledger are, by arithmetic. DataFusion asks
//! a calendar for each of them, as zones need it whose clocks are set: most of what a count by
//! hour takes.

use std::sync::Arc;

use datafusion::arrow::array::{AsArray as _, PrimitiveArray};
use datafusion::arrow::datatypes::{DataType, TimeUnit, TimestampNanosecondType};
use datafusion::logical_expr::ColumnarValue;
use datafusion::scalar::ScalarValue;

const HOUR_NS: i64 = 3_600_000_000_000;
const DAY_NS: i64 = 24 * HOUR_NS;

/// The times of a column in UTC, cut down to whole steps; `None` if it is not one, or a time is out of range.
fn whole<const STEP: i64>(times: &ColumnarValue) -> Option<ColumnarValue> {
    let ColumnarValue::Array(times) = times else { return None };
    let DataType::Timestamp(TimeUnit::Nanosecond, Some(zone)) = times.data_type() else { return None };
    if !matches!(zone.as_ref(), "UTC" | "+00:00") {
        return None;
    }
    let cut = |time: i64| time.checked_sub(time.rem_euclid(STEP)).ok_or(());
    let cut: PrimitiveArray<TimestampNanosecondType> =
        times.as_primitive::<TimestampNanosecondType>().try_unary(cut).ok()?;
    Some(ColumnarValue::Array(Arc::new(cut.with_timezone(Arc::clone(zone)))))
}

/// What `date_trunc` gives for these arguments, where no calendar is needed.
pub(super) fn truncated(args: &[ColumnarValue]) -> Option<ColumnarValue> {
    let [ColumnarValue::Scalar(to), times] = args else { return None };
    let to = match to {
        ScalarValue::Utf8(to) | ScalarValue::Utf8View(to) | ScalarValue::LargeUtf8(to) => to.as_deref()?,
        _ => return None,
    };
    match to.to_lowercase().as_str() {
        "hour" => whole::<HOUR_NS>(times),
        "day" => whole::<DAY_NS>(times),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{Array as _, TimestampNanosecondArray};
    use datafusion::arrow::datatypes::Field;
    use datafusion::common::Result;
    use datafusion::common::config::ConfigOptions;
    use datafusion::logical_expr::{ScalarFunctionArgs, ScalarUDF};

    /// What a function gives for a column of times, cut down to something.
    fn ask(function: &ScalarUDF, to: &str, times: TimestampNanosecondArray) -> Result<ColumnarValue> {
        let number_rows = times.len();
        let kinds = [DataType::Utf8, times.data_type().clone()];
        let arg_fields = kinds.iter().map(|kind| Arc::new(Field::new("a", kind.clone(), true))).collect();
        let args = vec![ColumnarValue::from(ScalarValue::from(to)), ColumnarValue::Array(Arc::new(times))];
        let return_field = Arc::new(Field::new("b", kinds[1].clone(), true));
        let config_options = Arc::new(ConfigOptions::default());
        function.invoke_with_args(ScalarFunctionArgs { args, arg_fields, number_rows, return_field, config_options })
    }

    #[test]
    fn hours_and_days_are_those_of_the_calendar() {
        let inner = datafusion::functions::datetime::date_trunc();
        let own = ScalarUDF::from(super::super::Quicker { inner: Arc::clone(&inner), quick: truncated });
        let mut state = 7u64;
        // Of three centuries, before the epoch and behind it, whole hours among them, and nothing.
        let times = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let time = state as i64 / 2;
            (!state.is_multiple_of(7)).then_some(if state.is_multiple_of(5) { time / HOUR_NS * HOUR_NS } else { time })
        });
        let times: TimestampNanosecondArray = times.take(2_000).chain([Some(0), Some(-1), Some(1)]).collect();
        for zone in ["UTC", "+00:00", "Europe/Vienna", "+05:30"] {
            for to in ["hour", "Day", "week", "month", "minute"] {
                let times = times.clone().with_timezone(zone);
                let (own, calendar) = (ask(&own, to, times.clone()), ask(&inner, to, times.clone()));
                let [own, calendar] = [own, calendar].map(|given| given.unwrap().into_array(times.len()).unwrap());
                assert_eq!(&own, &calendar, "{to} in {zone}");
            }
        }
    }

    #[test]
    fn a_time_that_has_no_whole_hour_is_an_error_as_before() {
        let inner = datafusion::functions::datetime::date_trunc();
        let own = ScalarUDF::from(super::super::Quicker { inner: Arc::clone(&inner), quick: truncated });
        let first = || TimestampNanosecondArray::from(vec![i64::MIN]).with_timezone("UTC");
        let [told, before] = [&own, inner.as_ref()].map(|f| ask(f, "hour", first()).unwrap_err().to_string());
        assert_eq!(told, before);
    }
}
