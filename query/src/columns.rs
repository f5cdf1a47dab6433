//! What every table, view and function shows, column by column: the tables `custody_tables` and
//! `custody_columns`, the comments in `information_schema`, and docs/tables.md, all from the doc comments of the rows and the heads of the views.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::common::Result;
use datafusion::prelude::SessionContext;

use crate::catalog::{Lazy, MODEL_CALLS, TABLES, TOOL_CALLS};
use crate::event::EventRow;
use crate::grants::ChainRow;
use crate::late_views;
use crate::library::{Asked, DECISIONS, RETRIEVALS};
use crate::replay::StepRow;
use crate::rows::table;

table! {
    /// The tables, views and table functions that there are.
    TableRow, TableRowBuilder {
        /// Its name.
        table_name: String,
        /// table, view or function.
        kind: String,
        /// How it is called, for a function; else its name.
        usage: String,
        /// What its rows are.
        description: String,
    }
}

table! {
    /// The columns of all tables, views and table functions.
    ColumnRow, ColumnRowBuilder {
        /// The table, view or function.
        table_name: String,
        /// The column.
        column_name: String,
        /// Its place, from 1.
        ordinal_position: u64,
        /// Its type.
        data_type: String,
        /// Whether it may be null.
        is_nullable: bool,
        /// What it holds.
        description: String,
    }
}

/// Where a driver finds what a column holds: `REMARKS` of JDBC's `getColumns`.
const REMARKS: &str = "ARROW:FLIGHT:SQL:REMARKS";

/// What each table's rows are.
const ABOUT: [(&str, &str); 24] = [
    ("spans", "Spans as OTLP has them, each once its newest state."),
    ("logs", "Log records as OTLP has them."),
    ("metrics", "Metrics with their data points, as OTLP has them."),
    ("events", "Provenance events: one row per step, mapped from the records of all sources."),
    ("grants", "Grants, each with its present state."),
    ("denials", "Refusals: of a grant by its issuer, or of a call by its executor."),
    ("tool_calls", "Tool calls of agents, with arguments and results."),
    ("model_calls", "Requests to models, each once, with tokens and cost."),
    ("retrievals", "What agents took into their context, and from where."),
    ("decisions", "Who or what allowed or refused: policies, issuers, approvers, executors, filters, people."),
    ("alerts", "Alerts, each with what people did about it."),
    ("violations", "What the checks find."),
    ("dwell_time", "How long alerts dwell, by rule: quantiles under censoring and competing ends."),
    ("alert_outcomes", "What became of alerts so long after they were raised (Aalen-Johansen)."),
    ("coverage", "How many alerts a person really looked into, by rule."),
    ("blast_radius", "How far an agent or an identity got between two verifications, and could have."),
    ("authority_coverage", "How many tool calls were made under a valid and verified grant."),
    ("ledger", "The log's entries: the commitment to each record."),
    ("checkpoints", "Signed checkpoints of the log, with cosignatures of witnesses."),
    (
        "coverage_of_mapping",
        "What the mapping does not understand: records by service, and the names of those that give no event.",
    ),
    ("audit", "Who asked, exported, logged in or changed something."),
    ("foreign_claims", "Records that name a tenant which their submitter is not bound to."),
    ("custody_tables", "The tables, views and table functions that there are."),
    ("custody_columns", "Their columns."),
];

/// Columns of views that are not columns of `events`, or are something else there.
const VIEW_COLUMNS: [(&str, &str); 30] = [
    ("tool_calls.duration_ns", "End minus start, ns."),
    ("tool_calls.arguments", "The arguments, as the source has them."),
    ("tool_calls.result", "The result, as the source has it."),
    ("tool_calls.error_type", "What kind of error it ended with."),
    ("coverage_of_mapping.service", "The service's own claim of its name."),
    ("coverage_of_mapping.scope", "Instrumentation scope."),
    ("coverage_of_mapping.signal", "span or log."),
    ("coverage_of_mapping.records", "How many records."),
    ("coverage_of_mapping.mapped", "Those that a mapping understands."),
    ("coverage_of_mapping.unmapped", "Those that none does."),
    ("coverage_of_mapping.share", "mapped / records."),
    ("coverage_of_mapping.sources", "The mappings that understand some."),
    ("coverage_of_mapping.not_understood", "The ten most frequent names of what none understands, with their counts."),
    ("audit.time", "When the ledger took the record."),
    ("audit.identity", "Who, as authenticated."),
    ("audit.actor_type", "human, agent, workload, automation or unknown."),
    ("audit.action", "What was done: query, login_failed, config, export, erasure, hold, keys and the like."),
    ("audit.text", "The text of a query, as far as it is kept; the reason of an erasure, a hold or a change of keys."),
    ("audit.text_digest", "Digest of the whole text."),
    ("audit.params", "Its parameters, as far as they are kept; the seqs that were exported, erased or held."),
    ("audit.outcome", "ok, or the code of the error; null while it runs."),
    ("audit.rows", "Rows that were given; records that were exported or erased."),
    ("audit.elapsed_ns", "How long it took, ns."),
    ("audit.attributes", "All attributes of the record, a JSON object."),
    ("foreign_claims.kind", "span, log or metric."),
    ("foreign_claims.tenant", "The tenant that the record names."),
    ("foreign_claims.workspace", "The workspace that it names."),
    ("foreign_claims.submitter", "Who sent it, as authenticated."),
    ("foreign_claims.bound_to", "The tenants that the submitter is bound to; null if to none."),
    ("foreign_claims.ingest_time", "When the ledger took it."),
];

/// The functions of values that are the ledger's own: name, how it is called, what it gives.
const OWN_FUNCTIONS: [(&str, &str, &str); 6] = [
    (
        "proof",
        "proof(seq)",
        "The proof that the log has the record (a tlog-proof file); null if there is none to be had.",
    ),
    ("payload", "payload(seq)", "The bytes of the record as they were received; null if they were erased."),
    (
        "authority_covers",
        "authority_covers(patterns, value)",
        "Whether one of the patterns, such as those of grants.actions, covers the value.",
    ),
    (
        "same_tenant",
        "same_tenant(a, b)",
        "Whether records of these tenants can be about one thing: they are the same, or one of them is null.",
    ),
    (
        "tenants_of",
        "tenants_of(submitter)",
        "The tenants that the policy binds a submitter to, of those that you see; null if to none of them.",
    ),
    (
        "tenant_claim_holds",
        "tenant_claim_holds(submitter, tenant)",
        "Whether the submitter may speak for the tenant by the policy in force; null for one that you do not see.",
    ),
];

/// The functions that are registered beside [`Asked`].
fn functions() -> Vec<(&'static str, &'static str, &'static str, SchemaRef)> {
    let mut out = vec![
        (
            "delegation_chain",
            "delegation_chain('<grant id>'[, seq or time])",
            "The chain of grants from the root down to one, with what each widens.",
            ChainRow::schema(),
        ),
        (
            "replay",
            "replay('<trace, grant, agent, conversation or alert id>'[, seq or time[, 'grant']])",
            "Every step in causal order, with markers where evidence is missing; the last argument says what the id is \
             (trace, grant, agent, conversation or alert), if one of several.",
            StepRow::schema(),
        ),
    ];
    out.extend(Asked::ALL.map(|asked| (asked.name(), asked.about().0, asked.about().1, asked.schema())));
    out
}

/// Registers `custody_tables` and `custody_columns` over all that is registered. What that is, is
/// looked at when one of them is named.
pub(crate) fn register(context: &SessionContext) -> Result<()> {
    late_views::add_table(
        context,
        "custody_tables",
        Arc::new(|context| {
            Box::pin(async move {
                let tables = all(&context).await?;
                let lazy = Lazy::new(TableRow::schema(), move || Ok(TableRow::batch(&table_rows(&tables))));
                Ok(Arc::new(lazy) as Arc<dyn TableProvider>)
            })
        }),
    )?;
    late_views::add_table(
        context,
        "custody_columns",
        Arc::new(|context| {
            Box::pin(async move {
                let tables = all(&context).await?;
                let lazy = Lazy::new(ColumnRow::schema(), move || Ok(ColumnRow::batch(&column_rows(&tables))));
                Ok(Arc::new(lazy) as Arc<dyn TableProvider>)
            })
        }),
    )
}

/// What `DESCRIBE` answers for a table, view or table function that is documented: its columns with their docs.
pub(crate) fn description_of(name: &str) -> Option<String> {
    let is_function = || functions().iter().any(|(function, ..)| *function == name);
    (TABLES.contains(&name) || is_function()).then(|| {
        format!(
            "SELECT column_name, data_type, CASE WHEN is_nullable THEN 'YES' ELSE 'NO' END AS is_nullable, description \
             FROM custody_columns WHERE table_name = '{name}' ORDER BY ordinal_position"
        )
    })
}

/// What each column of each table and view holds.
pub(crate) async fn descriptions(context: &SessionContext) -> Result<HashMap<(String, String), String>> {
    let rows = column_rows(&all(context).await?);
    Ok(rows.into_iter().map(|row| ((row.table_name, row.column_name), row.description)).collect())
}

/// How a function of the ledger's own is called, and what it gives.
pub(crate) fn about_function(name: &str) -> Option<(&'static str, &'static str)> {
    let of_table = || functions().into_iter().map(|(name, usage, what, _)| (name, usage, what)).find(|f| f.0 == name);
    OWN_FUNCTIONS.into_iter().find(|f| f.0 == name).or_else(of_table).map(|(_, usage, what)| (usage, what))
}

/// The tables and views, each with its columns.
async fn all(context: &SessionContext) -> Result<Vec<(String, &'static str, SchemaRef)>> {
    let mut tables: Vec<(String, &'static str, SchemaRef)> = Vec::new();
    for name in TABLES {
        let own = match *name {
            "custody_tables" => Some(TableRow::schema()),
            "custody_columns" => Some(ColumnRow::schema()),
            _ => None,
        };
        let (kind, schema) = match own {
            Some(schema) => ("table", schema),
            None => {
                let provider = context.table_provider(*name).await?;
                let is_view = provider.get_logical_plan().is_some();
                (if is_view { "view" } else { "table" }, provider.schema())
            }
        };
        tables.push(((*name).to_owned(), kind, schema));
    }
    Ok(tables)
}

/// What a table's rows are; empty if there is no such table.
pub(crate) fn about(name: &str) -> &'static str {
    ABOUT.iter().find(|(table, _)| *table == name).map_or("", |(_, text)| text)
}

fn table_rows(tables: &[(String, &'static str, SchemaRef)]) -> Vec<TableRow> {
    let of = |(name, kind, _): &(String, &str, SchemaRef)| TableRow {
        table_name: name.clone(),
        kind: (*kind).to_owned(),
        usage: name.clone(),
        description: about(name).to_owned(),
    };
    let function = |(name, usage, what, _): (&str, &str, &str, SchemaRef)| TableRow {
        table_name: name.to_owned(),
        kind: "function".into(),
        usage: usage.to_owned(),
        description: what.to_owned(),
    };
    tables.iter().map(of).chain(functions().into_iter().map(function)).collect()
}

fn column_rows(tables: &[(String, &'static str, SchemaRef)]) -> Vec<ColumnRow> {
    let tables = tables.iter().map(|(name, _, schema)| (name.as_str(), Arc::clone(schema)));
    let functions = functions().into_iter().map(|(name, _, _, schema)| (name, schema));
    let columns = |(name, schema): (&str, SchemaRef)| {
        let heads = heads(name);
        let row = |(i, field): (usize, &FieldRef)| ColumnRow {
            table_name: name.to_owned(),
            column_name: field.name().clone(),
            ordinal_position: i as u64 + 1,
            data_type: type_name(field.data_type()),
            is_nullable: field.is_nullable(),
            description: describe(name, field, &heads),
        };
        schema.fields().iter().enumerate().map(row).collect::<Vec<_>>()
    };
    tables.chain(functions).flat_map(columns).collect()
}

/// What a column holds: its own documentation, the head of its view, or the column that it was taken from.
fn describe(table: &str, field: &FieldRef, heads: &HashMap<&'static str, &'static str>) -> String {
    let name = field.name().as_str();
    if let Some(text) = heads.get(name) {
        return (*text).to_owned();
    }
    let key = format!("{table}.{name}");
    if let Some((_, text)) = VIEW_COLUMNS.iter().find(|(column, _)| *column == key) {
        return (*text).to_owned();
    }
    if let Some(text) = field.metadata().get("doc") {
        return text.clone();
    }
    let of_event = || EventRow::schema().field_with_name(name).ok().and_then(|f| f.metadata().get("doc").cloned());
    of_event().unwrap_or_default()
}

/// The columns of a table with their docs, where drivers look for them (Flight SQL, `CommandGetTables`).
pub(crate) fn with_remarks(table: &str, schema: &SchemaRef) -> SchemaRef {
    let heads = heads(table);
    let field = |field: &FieldRef| {
        let mut metadata = field.metadata().clone();
        metadata.insert(REMARKS.to_owned(), describe(table, field, &heads));
        Arc::new(field.as_ref().clone().with_metadata(metadata))
    };
    let fields: Vec<FieldRef> = schema.fields().iter().map(field).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

/// The lines `-- column: what it holds` at the head of a view's definition.
fn heads(name: &str) -> HashMap<&'static str, &'static str> {
    let sql = match name {
        "tool_calls" => TOOL_CALLS,
        "model_calls" => MODEL_CALLS,
        "retrievals" => RETRIEVALS,
        "decisions" => DECISIONS,
        _ => return HashMap::new(),
    };
    let lines = sql.lines().map_while(|line| line.strip_prefix("-- "));
    lines.filter_map(|line| line.split_once(": ")).collect()
}

fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Timestamp(TimeUnit::Nanosecond, Some(zone)) => format!("Timestamp(ns, {zone})"),
        DataType::List(item) => format!("List({})", type_name(item.data_type())),
        DataType::Utf8 | DataType::Utf8View => "Utf8".into(),
        other => other.to_string(),
    }
}

/// docs/tables.md, of the rows of `custody_tables` and `custody_columns`.
pub fn document(tables: &[TableRow], columns: &[ColumnRow]) -> String {
    let mut out = String::from(HEAD);
    for table in tables {
        let call = if table.kind == "function" { format!("\n`{}`\n", table.usage) } else { String::new() };
        out.push_str(&format!("\n## {}\n{call}\n{} ({})\n\n", table.table_name, table.description, table.kind));
        out.push_str("| column | type | null | what it holds |\n| --- | --- | --- | --- |\n");
        for column in columns.iter().filter(|c| c.table_name == table.table_name) {
            let null = if column.is_nullable { "yes" } else { "" };
            let text = column.description.replace('|', "\\|");
            out.push_str(&format!("| `{}` | {} | {null} | {text} |\n", column.column_name, column.data_type));
        }
    }
    out
}

const HEAD: &str = "# Tables, views and table functions

<!-- Generated from the column docs by `cargo test --workspace --test tables`; CUSTODY_WRITE_DOCS=1 writes it anew. -->

All of them are in SQL too, with these texts: `DESCRIBE <table or function>`, `SELECT * FROM custody_tables`,
`SELECT * FROM custody_columns WHERE table_name = 'alerts'`; over Flight SQL as remarks of the columns (JDBC);
as `information_schema.tables.table_comment` (and in `SHOW TABLES`), `.columns.column_comment` and `.routines.description`.
Ids are lowercase hex, times are UTC in ns, attributes are JSON for the JSON functions (`json_get_str(attributes, 'name')`).
Beside the tables there are functions of a record: `proof(seq)`, `payload(seq)`, and `authority_covers(patterns, value)`; and
`same_tenant(a, b)`, for joins of records of several tenants.
A seq or a time, where a function takes one, is a literal such as `120` or `'2026-11-20T09:00:00Z'`.
";
