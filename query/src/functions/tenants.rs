//! Whether records can be about one thing, by whose they are: `same_tenant(a, b)` in SQL, which every query and rule has,
//! and `scopes_of(tenant)`, `scopes_met(tenant)` for rules that count what they find in one pass.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array as _, ArrayRef, AsArray as _, BooleanArray, ListBuilder, StringArray, StringBuilder,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};

use crate::grants::{Scope, meet};

/// The arguments as arrays of texts.
fn texts(args: &[ColumnarValue]) -> Result<Vec<StringArray>> {
    let arrays = ColumnarValue::values_to_arrays(args)?;
    arrays.iter().map(|array| Ok(cast(array, &DataType::Utf8)?.as_string::<i32>().clone())).collect()
}

/// `same_tenant(a, b)`: whether two records meet: that of one tenant those of the same and those that name none. Never null.
pub(crate) fn same_tenant() -> ScalarUDF {
    let run = |args: &[ColumnarValue]| {
        let columns = texts(args)?;
        let [one, other] = columns.as_slice() else {
            return Err(DataFusionError::Execution("same_tenant takes two tenants".into()));
        };
        let out: BooleanArray = one.iter().zip(other).map(|(one, other)| Some(meet(one, other))).collect();
        Ok(ColumnarValue::Array(Arc::new(out)))
    };
    create_udf("same_tenant", vec![DataType::Utf8; 2], DataType::Boolean, Volatility::Immutable, Arc::new(run))
}

/// `scopes_of(tenant)`: where a record lies.
fn scopes_of() -> ScalarUDF {
    lists("scopes_of", |tenant, add| Scope::lies_in(tenant).for_each(add))
}

/// `scopes_met(tenant)`: where a record finds those that it meets, each once.
fn scopes_met() -> ScalarUDF {
    lists("scopes_met", |tenant, add| Scope::looks_in(tenant).into_iter().for_each(add))
}

/// Those that rules have beside.
pub(crate) fn of_rules() -> [ScalarUDF; 2] {
    [scopes_of(), scopes_met()]
}

/// Tells each scope of a tenant.
type Scopes = fn(Option<&str>, &mut dyn FnMut(Scope<'_>));

fn lists(name: &'static str, scopes: Scopes) -> ScalarUDF {
    let list = DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)));
    let run = move |args: &[ColumnarValue]| {
        let columns = texts(args)?;
        let [tenants] = columns.as_slice() else {
            return Err(DataFusionError::Execution(format!("{name} takes a tenant")));
        };
        let mut out = ListBuilder::with_capacity(StringBuilder::new(), tenants.len());
        for tenant in tenants {
            scopes(tenant, &mut |scope| match scope {
                Scope::Of(tenant) => out.values().append_value(format!("={tenant}")),
                Scope::Somebody => out.values().append_value("*"),
                Scope::Nobody => out.values().append_value(""),
            });
            out.append(true);
        }
        Ok(ColumnarValue::Array(Arc::new(out.finish()) as ArrayRef))
    };
    create_udf(name, vec![DataType::Utf8], list, Volatility::Immutable, Arc::new(run))
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionContext;

    use super::*;

    /// Whatever kind of text the tenants are.
    #[tokio::test]
    async fn two_meet_if_they_are_the_same_or_one_of_them_is_none() {
        let context = SessionContext::new();
        for function in of_rules().into_iter().chain([same_tenant()]) {
            context.register_udf(function);
        }
        for kind in ["Utf8", "Utf8View", "LargeUtf8"] {
            let all =
                ["NULL", "'acme'", "'globex'", "''"].map(|text| format!("(arrow_cast({text}, '{kind}'))")).join(", ");
            let sql = format!(
                "SELECT count(*) AS n, count(*) FILTER (WHERE same_tenant(a, b)) AS met, count(same_tenant(a, b)) AS said, \
                 count(*) FILTER (WHERE same_tenant(a, b) <> coalesce(a = b, true)) AS wrong, \
                 count(*) FILTER (WHERE cardinality(array_intersect(scopes_of(a), scopes_met(b))) <> CAST(same_tenant(a, b) AS INT)) AS apart \
                 FROM (VALUES {all}) AS l (a), (VALUES {all}) AS r (b)"
            );
            let rows = context.sql(&sql).await.unwrap().collect().await.unwrap();
            let counts = rows[0].columns().iter().map(|c| cast(c, &DataType::Utf8).unwrap());
            let counts: Vec<String> = counts.map(|c| c.as_string::<i32>().value(0).to_owned()).collect();
            assert_eq!(counts, ["16", "10", "16", "0", "0"], "{kind}");
        }
        let rows =
            context.sql("SELECT same_tenant(NULL, NULL) AND same_tenant('a', NULL)").await.unwrap().collect().await;
        assert!(rows.unwrap()[0].column(0).as_boolean().value(0));
    }
}
