//! What events have in common, and for how long they count.

use std::sync::Arc;

use datafusion::arrow::array::{AsArray as _, BooleanArray, RecordBatch};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::error::ArrowError;
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{col, lit};
use datafusion::prelude::SessionContext;
use serde_json::Value as Json;

use crate::attributes::parse_time;
use crate::event::EventRow;
use crate::grants::{KINDS, Scope};
use crate::rows::Weighed as _;

/// What an event takes in the lists of what it has in common with others, about.
const INDEX_BYTES: usize = 1024;

/// What events have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum By {
    Trace,
    /// Records that give, refuse or end a grant; those in whichever tenant; what else names it; what is derived from it;
    /// and calls under it.
    Given,
    GivenToAny,
    Grant,
    Child,
    Use,
    Agent,
    Call,
    Conversation,
    Credential,
    Schema,
    Approver,
}

pub(super) type Key = (By, String);

/// The key of what has one in common in a scope.
fn in_scope(by: By, value: &str, scope: Scope<'_>) -> Key {
    let value = match scope {
        Scope::Of(tenant) => format!("={tenant}\n{value}"),
        Scope::Somebody => format!("*\n{value}"),
        Scope::Nobody => format!("\n{value}"),
    };
    (by, value)
}

/// Under what an event of a tenant is kept that has this in common with others. Only what meets is looked at, so that what
/// others do crowds nothing out.
pub(super) fn kept_under(by: By, value: &str, tenant: Option<&str>) -> Vec<Key> {
    match by {
        By::GivenToAny => vec![(by, value.to_owned())],
        by => Scope::lies_in(tenant).map(|scope| in_scope(by, value, scope)).collect(),
    }
}

/// Under what those are kept that have this in common with an event of a tenant, and meet it.
pub(super) fn found_under(by: By, value: &str, tenant: Option<&str>) -> [Key; 2] {
    Scope::looks_in(tenant).map(|scope| in_scope(by, value, scope))
}

/// Under what those are kept that have this in common with an event of a tenant, and name the same one, or none as it does.
pub(super) fn own_under(by: By, value: &str, tenant: Option<&str>) -> Key {
    in_scope(by, value, tenant.map_or(Scope::Nobody, Scope::Of))
}

/// Whether the event is one of the ledger's own, or of the people who answer alerts: no check is about those.
pub(crate) fn is_aside(event: &EventRow) -> bool {
    is_aside_by(&event.kind, &event.submitter)
}

fn is_aside_by(kind: &str, submitter: &str) -> bool {
    kind.starts_with("alert") || ANSWERS.contains(&kind) || submitter.starts_with("system:")
}

/// What people answer alerts with, and what the ledger says of itself.
const ANSWERS: [&str; 3] = ["investigation", "containment_decision", "erasure"];

/// The events of a batch that checks are about.
pub(super) fn without_asides(batch: &RecordBatch) -> std::result::Result<RecordBatch, ArrowError> {
    let column = |name: &str| batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
    let (Some(kinds), Some(submitters)) = (column("kind"), column("submitter")) else {
        return Err(ArrowError::SchemaError("events have no kind and submitter".into()));
    };
    let is_kept = |i: usize| !is_aside_by(kinds.value(i), submitters.value(i));
    let kept: BooleanArray = (0..batch.num_rows()).map(|i| Some(is_kept(i))).collect();
    filter_record_batch(batch, &kept)
}

/// The table `events` as every rule sees it, as where checks follow the log: without the ledger's own alerts, which
/// name the spans that they are about. The few events that there are, or a view of all.
pub(super) fn about(
    few: Option<Vec<RecordBatch>>,
    all: Option<Arc<dyn TableProvider>>,
) -> Result<Arc<dyn TableProvider>> {
    match (few, all) {
        (Some(few), _) => Ok(Arc::new(MemTable::try_new(EventRow::schema(), vec![few])?)),
        (None, Some(all)) => {
            let answers = ANSWERS.iter().map(|kind| lit(*kind)).collect();
            let about = col("kind").not_like(lit("alert%")).and(col("kind").in_list(answers, true));
            let about = about.and(col("submitter").not_like(lit("system:%")));
            Ok(SessionContext::new().read_table(all)?.filter(about)?.into_view())
        }
        (None, None) => Err(DataFusionError::Internal("there are no events".into())),
    }
}

/// What an event has in common with others, as far as its attributes tell.
pub(super) fn keys_of_attributes(event: &EventRow) -> Vec<Key> {
    let mut out = Vec::new();
    let has = |name: &str| event.attributes.contains(name);
    const NAMES: [&str; 5] =
        ["authz.credential.id", "service-account-id", "schema_digest", "schema.digest", "authz.approval.by"];
    if !NAMES.iter().any(|name| has(name)) {
        return out;
    }
    let fields: Json = serde_json::from_str(&event.attributes).unwrap_or_default();
    let text = |name: &str| match fields.get(name) {
        Some(Json::String(text)) => Some(text.clone()),
        Some(Json::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let mut add = |by: By, value: Option<String>| out.extend(value.map(|value| (by, value)));
    add(By::Credential, text("authz.credential.id").or_else(|| text("service-account-id")));
    add(By::Approver, text("authz.approval.by"));
    if text("authz.tool.schema_digest").or_else(|| text("gen_ai.tool.schema.digest")).is_some() {
        add(By::Schema, event.tool.clone());
    }
    out
}

/// What an event has in common with others, but for what its attributes tell.
pub(super) fn keys(event: &EventRow) -> impl Iterator<Item = (By, &str)> {
    let is_of_grant = KINDS.contains(&event.kind.as_str());
    let by_grant = match event.kind.as_str() {
        "tool_call" => By::Use,
        _ if is_of_grant => By::Given,
        _ => By::Grant,
    };
    let grant = event.grant_id.as_ref();
    let all = [
        (By::Trace, event.trace_id.as_ref()),
        (by_grant, grant),
        (By::GivenToAny, grant.filter(|_| is_of_grant)),
        (By::Child, event.parent_grant_id.as_ref()),
        (By::Agent, event.agent_id.as_ref()),
        (By::Call, event.tool_call_id.as_ref()),
        (By::Conversation, event.conversation_id.as_ref()),
    ];
    all.into_iter().filter_map(|(by, value)| Some((by, value?.as_str())))
}

/// Whether an event gives a grant.
pub(crate) fn gives(event: &EventRow) -> bool {
    matches!(event.kind.as_str(), "grant_issued" | "grant_derived")
}

/// When the grant that an event tells of expires, if it does.
pub(crate) fn expiry(event: &EventRow) -> Option<i64> {
    let fields: Json = serde_json::from_str(&event.attributes).unwrap_or_default();
    let time = match fields.get("authz.grant.expires_at")? {
        Json::String(text) => parse_time(text),
        Json::Number(number) => parse_time(&number.to_string()),
        _ => None,
    };
    time.map(|time| time.0)
}

/// When a grant's record need not be at hand any more: its end; without one, when room is needed.
pub(super) fn end_of(event: &EventRow) -> i64 {
    // What ended before it came in is kept as long as any event.
    expiry(event).map_or(i64::MAX, |end| end.max(event.ingest_time.0))
}

/// What an event takes in memory: the row, its texts, and its places in the index.
pub(super) fn size(event: &EventRow) -> usize {
    size_of::<EventRow>() + event.text_bytes() + INDEX_BYTES
}
