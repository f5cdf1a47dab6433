//! Questions of one request: SQL, through the same door as everybody's, with one deadline for all of them.

use std::time::Instant;

use crate::begun::{Begun, Head};
use crate::caller::{Caller, Role};
use crate::engine::{Answer, QueryLimits};
use crate::error::{Error, ErrorKind};
use crate::rows::Cell;
use crate::serve::Served;
use crate::streamed::{Streamed, Watched};

/// Spans of one answer. Each takes eight bytes until its content is read, a piece at a time.
pub(super) const SPANS_MAX: usize = 2_000_000;

/// Asks for one caller. Each question has a place at the gate, a record of who asked what, and rows that the caller
/// may see, as a query of his own has.
pub(super) struct Asker<'a> {
    served: &'a Served,
    caller: &'a Caller,
    until: Instant,
    /// Spans that its answer may have.
    pub(super) spans_max: usize,
}

impl<'a> Asker<'a> {
    /// For who asks now.
    pub(super) fn new(served: &'a Served, caller: &'a Caller) -> Self {
        Self { served, caller, until: Instant::now() + served.limits.timeout, spans_max: SPANS_MAX }
    }

    /// With fewer spans than anybody waits for.
    #[cfg(test)]
    pub(super) fn with_spans(self, spans_max: usize) -> Self {
        Self { spans_max, ..self }
    }

    /// How many records the log has, of those that rows were made of.
    pub(super) fn size(&self) -> u64 {
        self.served.engine.view(self.caller).size
    }

    fn limits(&self, rows_max: usize) -> QueryLimits {
        let timeout = self.until.saturating_duration_since(Instant::now());
        QueryLimits { timeout, rows_max, ..self.served.limits.clone() }
    }

    /// All rows of an answer, up to `rows_max`. `what` stands before the query where it is recorded.
    pub(super) async fn ask(&self, what: &str, sql: &str, rows_max: usize) -> Result<Answer, Error> {
        let answer = self.served.engine.sql(self.caller, &told(what, sql), vec![], self.limits(rows_max)).await;
        answer.map_err(|error| self.narrower(error))
    }

    /// Asks in several parts what is one question to who asks it: recorded as `sql`, which says all of it, with how many
    /// spans there are in the end.
    pub(super) async fn in_parts<T>(
        &self,
        what: &str,
        sql: &str,
        work: impl Future<Output = Result<(T, u64), Error>>,
    ) -> Result<T, Error> {
        let (engine, caller) = (&self.served.engine, self.caller);
        let watched = match caller.require(&[Role::Read], "asking") {
            Ok(()) => Watched::begin(engine.audit(), caller, &told(what, sql), &[]),
            // The first part refuses him, and records that.
            Err(_) => Watched::nothing(caller),
        };
        let done = work.await;
        match &done {
            Ok((_, spans)) => watched.end("ok", *spans).await?,
            Err(error) => watched.end(error.kind.code(), 0).await?,
        }
        done.map(|(made, _)| made)
    }

    /// All rows of a part of a question.
    pub(super) async fn part(&self, what: &str, sql: &str, rows_max: usize) -> Result<Answer, Error> {
        match self.begin(what, sql, self.limits(rows_max), Head::ALL).await? {
            Begun::Whole(answer) => Ok(answer),
            Begun::Rows(_) => Err(Error::internal("a part of an answer did not come whole")),
        }
    }

    /// The rows of a part of a question as they come.
    pub(super) async fn stream(&self, what: &str, sql: &str, rows_max: usize) -> Result<Streamed, Error> {
        let limits = QueryLimits { answer_bytes_max: usize::MAX, ..self.limits(rows_max) };
        match self.begin(what, sql, limits, Head::NONE).await? {
            Begun::Rows(rows) => Ok(*rows),
            Begun::Whole(_) => Err(Error::internal("rows of a part came whole")),
        }
    }

    async fn begin(&self, what: &str, sql: &str, limits: QueryLimits, head: Head) -> Result<Begun, Error> {
        let text = told(what, sql);
        let begun = self.served.engine.begin_within(self.caller, &text, vec![], limits, head, false).await;
        begun.map_err(|error| self.narrower(error))
    }

    /// A query that takes too long is mended otherwise than one of SQL.
    pub(super) fn narrower(&self, error: Error) -> Error {
        if error.kind != ErrorKind::Timeout {
            return error;
        }
        let seconds = self.served.limits.timeout.as_secs_f64();
        let message = format!(
            "this took longer than {seconds} s; ask for a shorter time, fewer traces, or name a service and an operation"
        );
        Error::new(ErrorKind::Timeout, message)
    }
}

/// The text of a query with what it is for.
fn told(what: &str, sql: &str) -> String {
    format!("/* Jaeger: {what} */ {sql}")
}

/// A text of SQL, which is nothing but a text.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The values of one column of an answer.
pub(super) fn column<T: Cell>(answer: &Answer, i: usize) -> Vec<T> {
    let of = |batch: &datafusion::arrow::record_batch::RecordBatch| {
        (0..batch.num_rows()).map(|row| T::read(batch.column(i), row)).collect::<Vec<_>>()
    };
    answer.batches.iter().flat_map(of).collect()
}
