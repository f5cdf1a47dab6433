//! Views over who did what with the ledger, and who claims to be whom: `audit`, `foreign_claims`.

use std::sync::Arc;

use custody_store::system::{AUDIT_IDENTITY, SYSTEM_IDENTITY, event};
use datafusion::arrow::array::{Array as _, AsArray as _, BooleanArray, ListBuilder, StringBuilder};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use datafusion::prelude::SessionContext;

use crate::caller::RowFilter;
use crate::late_views;
use crate::tenancy::Bindings;

/// Adds them to a session of a caller who may see these rows.
pub(crate) fn register(context: &SessionContext, bindings: Option<&Bindings>, rows: &RowFilter) -> Result<()> {
    let bindings = bindings.cloned().unwrap_or_else(|| Arc::new(|_: &str| None));
    context.register_udf(tenants_of(Arc::clone(&bindings), rows.tenants.clone()));
    context.register_udf(tenant_claim_holds(bindings, rows.tenants.clone()));
    for (name, sql) in [("audit", audit()), ("foreign_claims", foreign_claims())] {
        late_views::add(context, name, sql)?;
    }
    Ok(())
}

/// What was done to the log: what callers asked and what the log itself says was done with its content and keys.
fn audit() -> String {
    format!("{} UNION ALL {}", of_callers(), of_the_log())
}

/// Acts that the log says in its own name, in the transaction in which they are done.
fn of_the_log() -> String {
    let acts = [event::EXPORT, event::ERASURE, event::HOLD, event::KEYS, event::RESTORE];
    let first = |keys: &[&str], read: &str| {
        let read: Vec<_> = keys.iter().map(|key| format!("{read}(attributes, 'custody.{key}')")).collect();
        format!("coalesce({})", read.join(", "))
    };
    let text = |keys: &[&str]| first(keys, "json_get_str");
    format!(
        "SELECT ingest_time AS time, {identity} AS identity, NULL AS actor_type, {action} AS action, \
         {said} AS text, NULL AS text_digest, {params} AS params, 'ok' AS outcome, {rows} AS rows, \
         NULL AS elapsed_ns, attributes, seq, record_hash FROM logs \
         WHERE submitter = '{SYSTEM_IDENTITY}' AND event_name IN ({names})",
        identity = text(&["export.identity", "erasure.identity", "hold.identity", "keys.actor"]),
        action = format_args!("substr(event_name, {})", "custody.log.".len() + 1),
        said = text(&["export.query", "erasure.reason", "hold.reason", "keys.reason", "restore.from"]),
        params = text(&["export.seqs", "erasure.seqs", "hold.seqs"]),
        rows = first(&["export.records", "erasure.records"], "json_get_int"),
        names = acts.map(|name| format!("'{name}'")).join(", "),
    )
}

/// What callers did, as `system:audit` wrote it down. No sender can have that identity.
fn of_callers() -> String {
    let text = |name: &str| format!("json_get_str(attributes, 'custody.audit.{name}')");
    let number = |name: &str| format!("json_get_int(attributes, 'custody.audit.{name}')");
    // What other parts of the server say (who spoke) has another name, and is no act.
    let records =
        format!("FROM logs WHERE submitter = '{AUDIT_IDENTITY}' AND starts_with(event_name, 'custody.audit.')");
    let action = format!("substr(event_name, {})", "custody.audit.".len() + 1);
    format!(
        "SELECT a.time, a.identity, a.actor_type, a.action, a.text, a.text_digest, a.params, \
         coalesce(e.outcome, a.outcome) AS outcome, coalesce(e.rows, a.rows) AS rows, \
         coalesce(e.elapsed_ns, a.elapsed_ns) AS elapsed_ns, a.attributes, a.seq, a.record_hash FROM \
         (SELECT ingest_time AS time, {identity} AS identity, {actor} AS actor_type, {action} AS action, {said} AS text, \
          {digest} AS text_digest, {params} AS params, {outcome} AS outcome, {rows} AS rows, {elapsed} AS elapsed_ns, \
          {number} AS number, attributes, seq, record_hash {records} AND event_name <> 'custody.audit.query_end') a \
         LEFT JOIN (SELECT {of} AS of, {outcome} AS outcome, {rows} AS rows, {elapsed} AS elapsed_ns {records} \
          AND event_name = 'custody.audit.query_end') e ON e.of = a.number",
        identity = text("identity"),
        actor = text("actor_type"),
        said = text("text"),
        digest = text("text.digest"),
        params = text("params"),
        outcome = text("outcome"),
        rows = number("rows"),
        elapsed = number("elapsed_ns"),
        number = number("number"),
        of = number("of"),
    )
}

/// Records that name a tenant which their submitter is not bound to.
fn foreign_claims() -> String {
    let each = [("spans", "span"), ("logs", "log"), ("metrics", "metric")].map(|(table, kind)| {
        format!(
            "SELECT seq, record_hash, '{kind}' AS kind, tenant, workspace, submitter, tenants_of(submitter) AS bound_to, \
             ingest_time FROM {table} WHERE tenant IS NOT NULL AND NOT tenant_claim_holds(submitter, tenant)"
        )
    });
    each.join(" UNION ALL ")
}

/// The tenants that a caller may see; `None` is all.
type Seen = Option<Arc<[String]>>;

fn sees(seen: &Seen, tenant: &str) -> bool {
    seen.as_ref().is_none_or(|seen| seen.iter().any(|one| one == tenant))
}

/// `tenants_of(submitter)`: the tenants that the policy binds an identity to, of those that the caller may see; null
/// if to none of them.
fn tenants_of(bindings: Bindings, seen: Seen) -> ScalarUDF {
    let list = DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)));
    let run = move |args: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(args)?;
        let submitters = cast(&arrays[0], &DataType::Utf8)?;
        let mut out = ListBuilder::new(StringBuilder::new());
        for submitter in submitters.as_string::<i32>() {
            let bound = submitter.and_then(|submitter| bindings(submitter));
            let shown = bound.map(|tenants| {
                let tenants = tenants.iter().filter(|tenant| sees(&seen, tenant));
                tenants.map(|tenant| Some(tenant.clone())).collect::<Vec<_>>()
            });
            out.append_option(shown.filter(|shown| seen.is_none() || !shown.is_empty()));
        }
        Ok(ColumnarValue::Array(Arc::new(out.finish())))
    };
    create_udf("tenants_of", vec![DataType::Utf8], list, Volatility::Stable, Arc::new(run))
}

/// `tenant_claim_holds(submitter, tenant)`: whether an identity may speak for a tenant; null for a tenant that the
/// caller may not see.
fn tenant_claim_holds(bindings: Bindings, seen: Seen) -> ScalarUDF {
    let run = move |args: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(args)?;
        let (submitters, tenants) = (cast(&arrays[0], &DataType::Utf8)?, cast(&arrays[1], &DataType::Utf8)?);
        let (submitters, tenants) = (submitters.as_string::<i32>(), tenants.as_string::<i32>());
        let holds = |i: usize| {
            let bound = bindings(submitters.value(i));
            let is_there = submitters.is_valid(i) && tenants.is_valid(i) && sees(&seen, tenants.value(i));
            is_there.then(|| bound.is_none_or(|bound| bound.iter().any(|one| one == tenants.value(i))))
        };
        let out: BooleanArray = (0..tenants.len()).map(holds).collect();
        Ok(ColumnarValue::Array(Arc::new(out)))
    };
    let types = vec![DataType::Utf8, DataType::Utf8];
    create_udf("tenant_claim_holds", types, DataType::Boolean, Volatility::Stable, Arc::new(run))
}
