//! Threads that give way to those that take records: a runtime for queries, and one for those who read over the
//! network. What comes in cannot be asked for again; what is read can wait.

use thread_priority::{ThreadPriority, ThreadPriorityValue, set_current_thread_priority};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::Error;

/// How much a thread gives way, of 0 to 99, which stand for a niceness of 19 to -20.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way(u8);

/// At niceness 12 a thread that runs beside those that take records gets a fifteenth of a processor. Not the
/// most that there is: on a busy machine a query should end, too.
pub(crate) const QUERIES: Way = Way(17);

/// At niceness 5 it gets a quarter: who follows the log should not fall behind for as long as records come in, and
/// probes ask here, too.
const READERS: Way = Way(35);

impl Way {
    /// Has the present thread give way. Where the system does not allow it, it is as others.
    pub(crate) fn give(self) {
        let set = ThreadPriorityValue::try_from(self.0)
            .map(|value| set_current_thread_priority(ThreadPriority::Crossplatform(value)));
        if !matches!(set, Ok(Ok(()))) {
            tracing::warn!(?set, "threads that read have the same priority as those that take records");
        }
    }
}

/// A runtime of such threads; it ends with this, without waiting for what runs.
#[derive(Debug)]
pub struct Threads(Option<Runtime>);

impl Threads {
    /// For queries; each has room for plans that are nested deeply.
    pub(crate) fn for_queries() -> Result<Self, Error> {
        let mut builder = Builder::new_multi_thread();
        // Long chains of operators recurse, in places that nothing else bounds; what is not used of a
        // stack costs no memory.
        builder.thread_name("query").thread_stack_size(64 << 20).on_thread_start(|| {
            crate::leeway::enter(true);
            QUERIES.give();
        });
        Self::begin(&mut builder)
    }

    /// For connections of those who read: the API, Flight SQL, events.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::Internal`] if the system gives no threads.
    pub fn for_readers() -> Result<Self, Error> {
        Self::begin(Builder::new_multi_thread().thread_name("reader").on_thread_start(|| READERS.give()))
    }

    fn begin(builder: &mut Builder) -> Result<Self, Error> {
        let runtime = builder.enable_all().build();
        runtime.map(|runtime| Self(Some(runtime))).map_err(|e| Error::internal(format!("threads do not start: {e}")))
    }

    /// To run something on them.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::Internal`] if they have ended.
    pub fn handle(&self) -> Result<&Handle, Error> {
        let runtime = self.0.as_ref().ok_or_else(|| Error::internal("the threads have stopped"))?;
        Ok(runtime.handle())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
