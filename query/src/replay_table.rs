//! The table function `replay`: steps as they are made, a batch at a time.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{DataFusionError, Result, plan_err};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::logical_expr::{Expr, col};
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::PartitionStream;

use crate::catalog::{read_as_of, text};
use crate::notes::{Notes, unknown};
use crate::projection::{AsOf, Snapshot};
use crate::replay::{Named, StepRow, Wanted, replay_within};
use crate::rows::Time;
use crate::{Error, ErrorKind};

/// Batches that wait for whoever asked.
const WAITING: usize = 2;

/// There is no room for the keys of its steps.
const TOO_LONG: &str = "this replay has more steps than one query has memory for (some 300 bytes a step); ask for a trace or \
                        a conversation of it, or give queries more (--query-memory-max)";

/// What ids it takes.
const TAKES: &str = "replay takes the id of a trace, a grant, an agent, a conversation or an alert, letter by letter";

/// There are records of that id, and nothing to tell of them.
const NO_STEPS: &str = "the records of this id are no provenance events, and no steps of a replay: SELECT * FROM spans WHERE \
                        trace_id = '<id>'";

/// How it is called.
const USAGE: &str = "replay('<trace, grant, agent, conversation or alert id>'[, seq or time[, 'grant']])";

/// `replay('<id>'[, seq or time[, what the id is]])`.
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
        let wanted = wanted(args.exprs(), self.snapshot.size, self.now)?;
        let steps = Steps { snapshot: Arc::clone(&self.snapshot), wanted, schema: StepRow::schema() };
        let table = StreamingTable::try_new(StepRow::schema(), vec![Arc::new(steps)])?;
        // Who asks for them in their order gets them as they come.
        Ok(Arc::new(table.with_sort_order(vec![col("step").sort(true, false)])))
    }
}

/// What is asked for.
fn wanted(args: &[Expr], size: u64, now: Time) -> Result<Wanted> {
    let (id, rest) = match args {
        [id, rest @ ..] if rest.len() <= 2 => (text(id), rest),
        _ => return plan_err!("it is called as {USAGE}"),
    };
    let Some(id) = id else { return plan_err!("replay takes its id as a text literal, such as 'abc'") };
    let as_of = rest.first().map_or(Ok(AsOf::Now), |at| read_as_of(at, size))?;
    let named = match rest.get(1) {
        None => Some(Named::Any),
        Some(Expr::Literal(value, _)) if value.is_null() => Some(Named::Any),
        Some(name) => text(name).as_deref().and_then(Named::of_name),
    };
    match named {
        Some(named) => Ok(Wanted { id, named, as_of, now }),
        None => plan_err!("an id in {USAGE} is that of a {}", Named::NAMES),
    }
}

/// That the id names nothing of the sort that was asked for; something else it may name.
fn no_such(wanted: &Wanted) -> String {
    let id: String = wanted.id.chars().take(100).collect();
    format!(
        "no {} is known by the id '{id}'; without its last argument replay is of whatever an id names",
        wanted.named.name()
    )
}

/// The steps of one id.
struct Steps {
    snapshot: Arc<Snapshot>,
    wanted: Wanted,
    schema: SchemaRef,
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steps").field("id", &self.wanted.id).finish_non_exhaustive()
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
        let (snapshot, wanted) = (Arc::clone(&self.snapshot), self.wanted.clone());
        let memory = MemoryConsumer::new("replay").register(task.memory_pool());
        stream.spawn_blocking(move || {
            let mut has_steps = false;
            let mut room =
                |bytes: usize| memory.try_grow(bytes).map_err(|_| Error::new(ErrorKind::Resources, TOO_LONG));
            // Who does not listen any more needs no further steps.
            let told = replay_within(&snapshot, &wanted, &mut room, &mut |note| notes.say(note), &mut |batch| {
                has_steps |= batch.num_rows() > 0;
                Ok(sender.blocking_send(Ok(batch)).is_ok())
            });
            match told {
                Ok(false) if wanted.named != Named::Any => notes.say(no_such(&wanted)),
                Ok(false) => notes.say(unknown(&snapshot, &wanted.id, wanted.as_of, TAKES)),
                Ok(true) if !has_steps => notes.say(NO_STEPS.to_owned()),
                _ => {}
            }
            told.map(drop).map_err(|e| DataFusionError::External(Box::new(e)))
        });
        stream.build()
    }
}
