//! Views that are planned when a query names them. A session is made for every query, and most
//! name none: planning all checks for a lookup of one trace would take longer than the lookup.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use datafusion::catalog::{MemorySchemaProvider, SchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::prelude::SessionContext;
use futures::future::BoxFuture;

/// The schema of a session: its tables, and those that were not named yet.
struct LateSchema {
    tables: MemorySchemaProvider,
    late: Mutex<HashMap<String, Make>>,
    /// The session; it is held weakly, for it has this.
    state: Box<dyn Fn() -> Option<SessionState> + Send + Sync>,
}

type Made = BoxFuture<'static, Result<Arc<dyn TableProvider>>>;

/// Makes a table, given the session.
pub(crate) type Make = Arc<dyn Fn(SessionContext) -> Made + Send + Sync>;

/// Makes the schema of a session one whose views are planned late; before any table is registered.
pub(crate) fn prepare(context: &SessionContext) -> Result<()> {
    let session = context.state_weak_ref();
    let state = Box::new(move || session.upgrade().map(|state| state.read().clone()));
    let (tables, late) = (MemorySchemaProvider::new(), Mutex::default());
    let catalog = context.catalog("datafusion").ok_or_else(|| DataFusionError::Internal("no catalog".into()))?;
    catalog.register_schema("public", Arc::new(LateSchema { tables, late, state }))?;
    Ok(())
}

/// Adds a view to a session that was prepared.
pub(crate) fn add(context: &SessionContext, name: &str, sql: impl Into<String>) -> Result<()> {
    let sql: Arc<str> = sql.into().into();
    let make: Make = Arc::new(move |context| {
        let sql = Arc::clone(&sql);
        Box::pin(async move { Ok(context.sql(&sql).await?.into_view()) })
    });
    add_table(context, name, make)
}

/// Adds a table that is made when it is named.
pub(crate) fn add_table(context: &SessionContext, name: &str, make: Make) -> Result<()> {
    let schema = context.catalog("datafusion").and_then(|catalog| catalog.schema("public"));
    let schema = schema.ok_or_else(|| DataFusionError::Internal("no schema".into()))?;
    let Some(late) = schema.downcast_ref::<LateSchema>() else {
        return Err(DataFusionError::Internal("the session was not prepared for views".into()));
    };
    late.lock().insert(name.to_owned(), make);
    Ok(())
}

impl LateSchema {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Make>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
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
        let Some(make) = self.lock().get(name).cloned() else { return Ok(None) };
        let state = (self.state)().ok_or_else(|| DataFusionError::Internal("the session has ended".into()))?;
        let view = make(SessionContext::new_with_state(state)).await?;
        // Two that plan it at once plan the same; either is kept.
        if !self.tables.table_exist(name) {
            self.tables.register_table(name.to_owned(), Arc::clone(&view))?;
        }
        Ok(Some(view))
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
