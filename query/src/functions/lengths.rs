//! `cardinality` of lists from where they begin and end. DataFusion makes an array of each list to ask it for its
//! length.

use std::sync::Arc;

use datafusion::arrow::array::{Array as _, AsArray as _, UInt64Array};
use datafusion::arrow::datatypes::DataType;
use datafusion::logical_expr::ColumnarValue;

/// What `cardinality` gives for a column of lists that hold no lists.
pub(super) fn lengths(args: &[ColumnarValue]) -> Option<ColumnarValue> {
    let [ColumnarValue::Array(lists)] = args else { return None };
    let DataType::List(element) = lists.data_type() else { return None };
    if element.data_type().is_nested() {
        return None;
    }
    let lists = lists.as_list::<i32>();
    let lengths = lists.offsets().lengths().map(|length| length as u64).collect::<Vec<_>>();
    Some(ColumnarValue::Array(Arc::new(UInt64Array::new(lengths.into(), lists.nulls().cloned()))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{ArrayRef, ListArray, ListBuilder, StringViewBuilder};
    use datafusion::arrow::datatypes::{Field, Int32Type};
    use datafusion::common::config::ConfigOptions;
    use datafusion::execution::SessionStateDefaults;
    use datafusion::logical_expr::{ScalarFunctionArgs, ScalarUDF};

    fn ask(function: &ScalarUDF, lists: &ArrayRef) -> ArrayRef {
        let arg_fields = vec![Arc::new(Field::new("a", lists.data_type().clone(), true))];
        let (args, number_rows) = (vec![ColumnarValue::Array(Arc::clone(lists))], lists.len());
        let return_field = Arc::new(Field::new("b", DataType::UInt64, true));
        let config_options = Arc::new(ConfigOptions::default());
        let args = ScalarFunctionArgs { args, arg_fields, number_rows, return_field, config_options };
        function.invoke_with_args(args).unwrap().into_array(number_rows).unwrap()
    }

    #[test]
    fn lists_are_as_long_as_datafusion_says() {
        let mut all = SessionStateDefaults::default_scalar_functions().into_iter();
        let inner = all.find(|function| function.name() == "cardinality").unwrap();
        let own = ScalarUDF::from(super::super::Quicker { inner: Arc::clone(&inner), quick: lengths });
        let mut texts = ListBuilder::new(StringViewBuilder::new());
        for n in 0..50 {
            for at in 0..n % 5 {
                texts.values().append_option((at % 3 != 1).then_some("a text that is longer than a view holds"));
            }
            texts.append(n % 7 != 0);
        }
        let texts: ArrayRef = Arc::new(texts.finish());
        let numbers = [Some(vec![Some(1), None]), None, Some(vec![]), Some(vec![Some(2); 9])];
        let numbers: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(numbers));
        let none: ArrayRef = texts.slice(3, 0);
        for lists in [texts.slice(0, 50), texts.slice(7, 20), numbers.slice(1, 3), numbers, none] {
            assert!(lengths(&[ColumnarValue::Array(Arc::clone(&lists))]).is_some());
            assert_eq!(&ask(&own, &lists), &ask(&inner, &lists));
        }
    }
}
