//! The functions that a query may call: those listed here, and none other.
//!
//! A memory pool counts what sorts, joins and aggregates hold, and nothing of what a function
//! returns. So a function whose result can be larger than its arguments is either not there, or
//! says before it runs how much it would give, and refuses what is too much: `bounded`.
//! docs/sql.md has the same list; a test compares the three.

mod bounded;
mod checked;
mod elements;
mod lengths;
mod planner;
mod quicker;
pub(crate) mod tenants;
mod total;
mod truncated;

use std::sync::{Arc, LazyLock};

use bounded::{Bounded, Growth};
use checked::CheckedArithmetic;
use datafusion::execution::SessionStateDefaults;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::planner::ExprPlanner;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF, WindowUDF};
use datafusion::prelude::SessionConfig;
use lengths::lengths;
use planner::BoundedPlanner;
use quicker::{Quick, Quicker};
use total::Total;
use truncated::truncated;

/// Functions of values whose results are about as large as their arguments, at most.
#[rustfmt::skip]
const SCALAR: &[&str] = &[
    // Conditions and structure.
    "coalesce", "nullif", "nvl", "nvl2", "greatest", "least", "get_field", "named_struct", "struct", "arrow_typeof",
    "union_extract", "union_tag",
    // Text.
    "ascii", "bit_length", "character_length", "chr", "contains", "ends_with", "find_in_set", "initcap",
    "left", "lower", "octet_length", "reverse", "right", "split_part",
    "starts_with", "strpos", "substr", "substr_index", "to_hex", "translate", "upper", "encode", "decode",
    "regexp_count", "regexp_instr", "regexp_like", "regexp_match",
    // Time.
    "current_date", "current_time", "date_bin", "date_part", "date_trunc", "from_unixtime", "make_date", "now",
    "to_date", "to_local_time", "to_timestamp", "to_timestamp_micros", "to_timestamp_millis",
    "to_timestamp_nanos", "to_timestamp_seconds", "to_unixtime",
    // Numbers.
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "cos", "cosh", "cot",
    "degrees", "exp", "factorial", "floor", "gcd", "isnan", "iszero", "lcm", "ln", "log", "log10", "log2", "nanvl",
    "pi", "power", "radians", "round", "signum", "sin", "sinh", "sqrt", "tan", "tanh", "trunc",
    // Lists.
    "array_any_value", "array_dims", "array_distance", "array_distinct", "array_element",
    "array_except", "array_has", "array_has_all", "array_has_any", "array_intersect", "array_length", "array_max",
    "array_min", "array_ndims", "array_pop_back", "array_pop_front", "array_position", "array_positions",
    "array_remove", "array_remove_all", "array_remove_n", "array_reverse", "array_slice", "array_sort",
    "cardinality", "empty", "flatten",
    // JSON.
    "json_as_text", "json_contains", "json_get", "json_get_array", "json_get_bool", "json_get_float",
    "json_get_int", "json_get_json", "json_get_str", "json_length", "json_object_keys", "json_union_to_text",
    "json_from_scalar",
    // The ledger's own.
    "authority_covers", "proof", "payload", "same_tenant", "tenant_claim_holds", "tenants_of",
];

/// Functions whose results can be larger, each with what it would give.
const BOUNDED: &[(&str, Growth)] = &[
    ("levenshtein", Growth::Pairs),
    ("btrim", Growth::Trim),
    ("ltrim", Growth::Trim),
    ("rtrim", Growth::Trim),
    ("string_to_array", Growth::Parts),
    ("to_char", Growth::Format),
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
#[rustfmt::skip]
const AGGREGATE: &[&str] = &[
    "any_value", "approx_distinct", "approx_median", "approx_percentile_cont", "approx_percentile_cont_with_weight",
    "array_agg", "avg", "bit_and", "bit_or", "bit_xor", "bool_and", "bool_or", "corr", "count", "covar_pop",
    "covar_samp", "first_value", "grouping", "last_value", "max", "median", "min", "nth_value", "percentile_cont",
    "regr_avgx", "regr_avgy", "regr_count", "regr_intercept", "regr_r2", "regr_slope", "regr_sxx", "regr_sxy",
    "regr_syy", "stddev", "stddev_pop", "sum", "var", "var_pop",
];

/// Functions over windows.
#[rustfmt::skip]
const WINDOW: &[&str] = &[
    "cume_dist", "dense_rank", "first_value", "lag", "last_value", "lead", "nth_value", "ntile", "percent_rank",
    "rank", "row_number",
];

/// Functions that are tables; the catalog has them.
#[cfg(test)]
const TABLE: &[&str] = &[
    "alert_history",
    "alerts_as_of",
    "coverage_by",
    "delegation_chain",
    "denials_as_of",
    "dwell_time_by",
    "events_as_of",
    "grants_as_of",
    "logs_as_of",
    "metrics_as_of",
    "replay",
    "spans_as_of",
];

/// How plans are made: of queries and of rules alike.
pub(crate) fn config() -> SessionConfig {
    let mut config = SessionConfig::new();
    // What is looked for in attributes is looked for in the rows that filters leave, not in all.
    config.options_mut().optimizer.enable_leaf_expression_pushdown = false;
    config
}

/// A session that has only what is listed: no formats, no writers of files, no other functions.
pub(crate) fn session() -> SessionStateBuilder {
    type Listed = (Vec<Arc<ScalarUDF>>, Vec<Arc<AggregateUDF>>, Vec<Arc<WindowUDF>>);
    static LISTED: LazyLock<Listed> = LazyLock::new(|| {
        let scalar = SessionStateDefaults::default_scalar_functions().into_iter().filter_map(listed).collect();
        let mut aggregate = SessionStateDefaults::default_aggregate_functions();
        aggregate.retain(|function| AGGREGATE.contains(&function.name()));
        for function in aggregate.iter_mut().filter(|function| matches!(function.name(), "sum" | "avg")) {
            *function = Arc::new(AggregateUDF::from(Total::new(Arc::clone(function))));
        }
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
        .with_physical_optimizer_rule(Arc::new(crate::yielding::GiveWay))
}

/// The same for what people ask: arithmetic that leaves its type is an error. Rules go without: what they reckon with is
/// what senders say, and a record that made one of them fail would stop all.
pub(crate) fn for_questions() -> SessionStateBuilder {
    session().with_analyzer_rule(Arc::new(CheckedArithmetic))
}

/// A function as a session has it: as it is, bounded, or not at all.
fn listed(inner: Arc<ScalarUDF>) -> Option<Arc<ScalarUDF>> {
    if elements::NAMES.contains(&inner.name()) {
        let inner = Arc::new(ScalarUDF::from(elements::OfElements::new(inner)));
        return Some(match elements::OF_TWO_LISTS.contains(&inner.name()) {
            true => Arc::new(ScalarUDF::from(Bounded { inner, growth: Growth::ElementPairs })),
            false => inner,
        });
    }
    let quick: Option<Quick> = match inner.name() {
        "date_trunc" => Some(truncated),
        "cardinality" => Some(lengths),
        _ => None,
    };
    if let Some(quick) = quick {
        return Some(Arc::new(ScalarUDF::from(Quicker { inner, quick })));
    }
    if SCALAR.contains(&inner.name()) {
        return Some(inner);
    }
    let growth = BOUNDED.iter().find(|(name, _)| *name == inner.name())?.1;
    Some(Arc::new(ScalarUDF::from(Bounded { inner, growth })))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The names between two marks of the document, in backquotes.
    fn documented() -> BTreeSet<String> {
        let text = include_str!("../../../docs/sql.md");
        let from = text.find("<!-- functions").unwrap();
        let list = &text[from..text.find("<!-- end of functions").unwrap()];
        list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_session_has_what_is_listed_and_documented_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (_, reader) = custody_store::open(dir.path(), custody_store::Options::default()).unwrap();
        let engine = crate::Engine::new(crate::Projection::of(reader).unwrap()).unwrap();
        let snapshot = engine.view(&crate::Caller::local(None));
        let state = engine.session(&snapshot, &crate::QueryLimits::default()).await.unwrap().state();
        assert!(state.higher_order_functions().is_empty());
        let scalar = state.scalar_functions().values().map(|f| f.name().to_owned());
        let aggregate = state.aggregate_functions().values().map(|f| f.name().to_owned());
        let window = state.window_functions().values().map(|f| f.name().to_owned());
        let table = state.table_functions().keys().cloned();
        let had: BTreeSet<String> = scalar.chain(aggregate).chain(window).chain(table).collect();
        let bounded = BOUNDED.iter().map(|(name, _)| *name);
        let listed = [SCALAR, AGGREGATE, WINDOW, TABLE].into_iter().flatten().copied().chain(bounded);
        let listed: BTreeSet<String> = listed.map(str::to_owned).collect();
        let apart = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.symmetric_difference(b).cloned().collect::<Vec<_>>();
        assert_eq!(apart(&had, &listed), Vec::<String>::new(), "the registry and the list");
        assert_eq!(apart(&listed, &documented()), Vec::<String>::new(), "the list and docs/sql.md");
    }
}
