//! Views that are planned when a query names them. A session is made for every query, and most
//! name none: planning all checks for a lookup of one trace would take longer than the lookup.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use datafusion::catalog::{MemorySchemaProvider, SchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::TableType;
use datafusion::prelude::SessionContext;

/// The schema of a session: its tables, and the views that were not named yet.
struct LateSchema {
    tables: MemorySchemaProvider,
    views: Mutex<HashMap<String, String>>,
    /// Plans a view. It has the session weakly: the session has this.
    plan: Plan,
}

type Planned = futures::future::BoxFuture<'static, Result<Arc<dyn TableProvider>>>;
type Plan = Box<dyn Fn(String) -> Planned + Send + Sync>;

/// Makes the schema of a session one whose views are planned late; before any table is registered.
pub(crate) fn prepare(context: &SessionContext) -> Result<()> {
    let state = context.state_weak_ref();
    let plan: Plan = Box::new(move |sql| {
        let state = state.clone();
        Box::pin(async move {
            let state = state.upgrade().ok_or_else(|| DataFusionError::Internal("the session has ended".into()))?;
            let state = state.read().clone();
            let plan = state.create_logical_plan(&sql).await?;
            let view: Arc<dyn TableProvider> = Arc::new(datafusion::datasource::ViewTable::new(plan, None));
            Ok(view)
        })
    });
    let schema = LateSchema { tables: MemorySchemaProvider::new(), views: Mutex::default(), plan };
    let catalog = context.catalog("datafusion").ok_or_else(|| DataFusionError::Internal("no catalog".into()))?;
    catalog.register_schema("public", Arc::new(schema))?;
    Ok(())
}

/// Adds a view to a session that was prepared.
pub(crate) fn add(context: &SessionContext, name: &str, sql: String) -> Result<()> {
    let schema = context.catalog("datafusion").and_then(|catalog| catalog.schema("public"));
    let schema = schema.ok_or_else(|| DataFusionError::Internal("no schema".into()))?;
    let Some(late) = schema.downcast_ref::<LateSchema>() else {
        return Err(DataFusionError::Internal("the session was not prepared for views".into()));
    };
    late.lock().insert(name.to_owned(), sql);
    Ok(())
}

impl LateSchema {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LateSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LateSchema").field("tables", &self.tables).finish_non_exhaustive()
    }
}

#[async_trait]
impl SchemaProvider for LateSchema {
    fn table_names(&self) -> Vec<String> {
        let mut names = self.tables.table_names();
        names.extend(self.lock().keys().filter(|name| !self.tables.table_exist(name)).cloned());
        names
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if let Some(table) = self.tables.table(name).await? {
            return Ok(Some(table));
        }
        let Some(sql) = self.lock().get(name).cloned() else { return Ok(None) };
        let view = (self.plan)(sql).await?;
        // Two that plan it at once plan the same; either is kept.
        if !self.tables.table_exist(name) {
            self.tables.register_table(name.to_owned(), Arc::clone(&view))?;
        }
        Ok(Some(view))
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        if self.lock().contains_key(name) {
            return Ok(Some(TableType::View));
        }
        self.tables.table_type(name).await
    }

    fn register_table(&self, name: String, table: Arc<dyn TableProvider>) -> Result<Option<Arc<dyn TableProvider>>> {
        self.tables.register_table(name, table)
    }

    fn deregister_table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        self.tables.deregister_table(name)
    }

    fn table_exist(&self, name: &str) -> bool {
        self.tables.table_exist(name) || self.lock().contains_key(name)
    }
}
