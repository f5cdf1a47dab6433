//! The table function `replay`: steps as they are made, a batch at a time.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::logical_expr::col;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::PartitionStream;

use crate::catalog::id_and_as_of;
use crate::notes::{Notes, unknown};
use crate::projection::{AsOf, Snapshot};
use crate::replay::{StepRow, replay_within};
use crate::rows::Time;
use crate::{Error, ErrorKind};

/// Batches that wait for whoever asked.
const WAITING: usize = 2;

/// There is no room for the keys of its steps.
const TOO_LONG: &str = "this replay has more steps than one query has memory for (some 300 bytes a step); ask for a trace or \
                        a conversation of it, or give queries more (--query-memory-max)";

/// What ids it takes.
const TAKES: &str = "replay takes the id of a trace, a grant, an agent, a conversation or an alert, letter by letter";

/// `replay('<id>'[, seq or time])`.
pub(crate) struct ReplayFunction {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) now: Time,
}

impl fmt::Debug for ReplayFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("replay")
    }
}

impl TableFunctionImpl for ReplayFunction {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let what = "replay('<trace, grant, agent, conversation or alert id>')";
        let (id, as_of) = id_and_as_of(&args, what, self.snapshot.size)?;
        let steps = Steps { snapshot: Arc::clone(&self.snapshot), now: self.now, id, as_of, schema: StepRow::schema() };
        let table = StreamingTable::try_new(StepRow::schema(), vec![Arc::new(steps)])?;
        // Who asks for them in their order gets them as they come.
        Ok(Arc::new(table.with_sort_order(vec![col("step").sort(true, false)])))
    }
}

/// The steps of one id.
struct Steps {
    snapshot: Arc<Snapshot>,
    now: Time,
    id: String,
    as_of: AsOf,
    schema: SchemaRef,
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steps").field("id", &self.id).finish_non_exhaustive()
    }
}

impl PartitionStream for Steps {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, task: Arc<TaskContext>) -> SendableRecordBatchStream {
        let notes = Notes::of(task.session_config());
        let mut stream = RecordBatchReceiverStreamBuilder::new(StepRow::schema(), WAITING);
        let sender = stream.tx();
        let (snapshot, now, id, as_of) = (Arc::clone(&self.snapshot), self.now, self.id.clone(), self.as_of);
        let memory = MemoryConsumer::new("replay").register(task.memory_pool());
        stream.spawn_blocking(move || {
            let mut is_known = false;
            let mut room =
                |bytes: usize| memory.try_grow(bytes).map_err(|_| Error::new(ErrorKind::Resources, TOO_LONG));
            // Who does not listen any more needs no further steps.
            let told = replay_within(&snapshot, &id, (as_of, now), &mut room, &mut |batch| {
                is_known |= batch.num_rows() > 0;
                Ok(sender.blocking_send(Ok(batch)).is_ok())
            });
            if !is_known && told.is_ok() {
                notes.say(unknown(&snapshot, &id, as_of, TAKES));
            }
            told.map_err(|e| DataFusionError::External(Box::new(e)))
        });
        stream.build()
    }
}
