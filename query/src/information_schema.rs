//! `information_schema`: DataFusion's own, and in it what each table, column and function is for, under the names that
//! MySQL, DuckDB and ClickHouse have for it: `tables.table_comment`, `columns.column_comment`. `routines` has a place for
//! it already.
//!
//! The session's own switch for it stays off: it would put DataFusion's in front of this one. The texts are the ones of
//! `custody_tables` and `custody_columns`; they are looked up when a query reads them, and not while one is planned.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::information_schema::{
    INFORMATION_SCHEMA, INFORMATION_SCHEMA_TABLES, InformationSchemaProvider,
};
use datafusion::catalog::{MemTable, SchemaProvider, Session, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::SessionContext;

use crate::columns;

/// The session; its catalog holds it weakly, for the session holds the catalog.
type State = Arc<dyn Fn() -> Option<SessionState> + Send + Sync>;

/// Adds it to a session.
pub(crate) fn register(context: &SessionContext) -> Result<()> {
    let session = context.state_weak_ref();
    let state: State = Arc::new(move || session.upgrade().map(|state| state.read().clone()));
    let catalog = context.catalog("datafusion").ok_or_else(|| DataFusionError::Internal("no catalog".into()))?;
    catalog.register_schema(INFORMATION_SCHEMA, Arc::new(Described { state }))?;
    Ok(())
}

/// The schema.
struct Described {
    state: State,
}

impl fmt::Debug for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Described")
    }
}

fn ended() -> DataFusionError {
    DataFusionError::Internal("the session has ended".into())
}

#[async_trait]
impl SchemaProvider for Described {
    fn table_names(&self) -> Vec<String> {
        INFORMATION_SCHEMA_TABLES.iter().map(|name| (*name).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let state = (self.state)().ok_or_else(ended)?;
        let own = InformationSchemaProvider::new(Arc::clone(state.catalog_list()))
            .with_table_functions(state.table_functions().clone());
        let Some(own) = own.table(name).await? else { return Ok(None) };
        let texts = match name.to_ascii_lowercase().as_str() {
            "tables" => Texts::Tables,
            "columns" => Texts::Columns,
            "routines" => Texts::Routines,
            _ => return Ok(Some(own)),
        };
        Ok(Some(Arc::new(WithTexts {
            schema: texts.beside(&own.schema()),
            own,
            texts,
            state: Arc::clone(&self.state),
        })))
    }

    fn table_exist(&self, name: &str) -> bool {
        INFORMATION_SCHEMA_TABLES.contains(&name.to_ascii_lowercase().as_str())
    }
}

/// Which texts stand beside a table of the schema.
#[derive(Clone, Copy, Debug)]
enum Texts {
    Tables,
    Columns,
    Routines,
}

impl Texts {
    /// The columns with those texts.
    fn beside(self, own: &SchemaRef) -> SchemaRef {
        let comment = match self {
            Self::Tables => "table_comment",
            Self::Columns => "column_comment",
            Self::Routines => return Arc::clone(own),
        };
        let comment = Arc::new(Field::new(comment, DataType::Utf8, true));
        Arc::new(Schema::new(own.fields().iter().cloned().chain([comment]).collect::<Vec<_>>()))
    }

    /// Rows with those texts.
    async fn add(self, batch: &RecordBatch, schema: &SchemaRef, context: &SessionContext) -> Result<RecordBatch> {
        let mut out = batch.columns().to_vec();
        match self {
            Self::Tables => {
                let of = |row: &[&str]| Some(columns::about(row[0])).filter(|text| !text.is_empty()).map(str::to_owned);
                out.push(texts(batch, ["table_name"], of)?);
            }
            Self::Columns => {
                let known: HashMap<(String, String), String> = columns::descriptions(context).await?;
                let of = |row: &[&str]| known.get(&(row[0].to_owned(), row[1].to_owned())).cloned();
                out.push(texts(batch, ["table_name", "column_name"], of)?);
            }
            Self::Routines => {
                for (name, part) in [("description", 1), ("syntax_example", 0)] {
                    let at = batch.schema().index_of(name)?;
                    let said = out[at].as_string::<i32>().clone();
                    let of =
                        |row: &[&str]| columns::about_function(row[0]).map(|about| [about.0, about.1][part].to_owned());
                    let ours = texts(batch, ["routine_name"], of)?;
                    let ours = ours.as_string::<i32>();
                    let either = (0..said.len()).map(|i| match said.is_valid(i) {
                        true => Some(said.value(i)),
                        false => ours.is_valid(i).then(|| ours.value(i)),
                    });
                    out[at] = Arc::new(either.collect::<StringArray>());
                }
            }
        }
        Ok(RecordBatch::try_new(Arc::clone(schema), out)?)
    }
}

/// A text for each row, by what some of its columns say. Only the ledger's own schema has any.
fn texts<const N: usize>(
    batch: &RecordBatch,
    names: [&str; N],
    of: impl Fn(&[&str]) -> Option<String>,
) -> Result<ArrayRef> {
    let missing = |name: &str| DataFusionError::Internal(format!("information_schema has no column {name}"));
    let column = |name: &str| batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
    let schemas = column("table_schema").or_else(|| column("routine_schema")).ok_or_else(|| missing("table_schema"))?;
    let mut keys = Vec::new();
    for name in names {
        keys.push(column(name).ok_or_else(|| missing(name))?);
    }
    let text = |i: usize| {
        let row: Vec<&str> = keys.iter().map(|key| key.value(i)).collect();
        (schemas.value(i) == "public").then(|| of(&row)).flatten()
    };
    Ok(Arc::new((0..batch.num_rows()).map(text).collect::<StringArray>()))
}

/// A table of the schema with the texts beside it.
struct WithTexts {
    own: Arc<dyn TableProvider>,
    texts: Texts,
    schema: SchemaRef,
    state: State,
}

impl fmt::Debug for WithTexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithTexts").field("texts", &self.texts).finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for WithTexts {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let context = SessionContext::new_with_state((self.state)().ok_or_else(ended)?);
        let own = self.own.scan(session, None, &[], None).await?;
        let mut batches = Vec::new();
        for batch in collect(own, session.task_ctx()).await? {
            batches.push(self.texts.add(&batch, &self.schema, &context).await?);
        }
        MemTable::try_new(self.schema(), vec![batches])?.scan(session, projection, filters, limit).await
    }
}
