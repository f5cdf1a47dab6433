//! How a query is asked: for all of its answer at once, for its rows as they come, or for whichever
//! suits it. That it was asked is recorded before anything of the answer is given.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::record_batch::RecordBatch;
use datafusion::scalar::ScalarValue;

use crate::caller::Caller;
use crate::engine::{Answer, Engine, QueryLimits, tell};
use crate::error::Error;
use crate::serve::observe;
use crate::streamed::{Streamed, Watched};

/// How much of an answer is waited for before the rest is streamed. An answer that ends within it is a whole
/// one: what goes wrong with it is told instead of it, and its rows are counted in the record of the query.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Bytes of rows.
    pub bytes_max: usize,
    /// From the first row on.
    pub time_max: Duration,
}

impl Head {
    /// Nothing is waited for.
    pub(crate) const NONE: Self = Self { bytes_max: 0, time_max: Duration::ZERO };
    /// Everything is.
    pub(crate) const ALL: Self = Self { bytes_max: usize::MAX, time_max: Duration::MAX };
}

impl Default for Head {
    /// What most questions of people are answered with.
    fn default() -> Self {
        Self { bytes_max: 1 << 20, time_max: Duration::from_secs(1) }
    }
}

/// An answer that was begun.
pub enum Begun {
    /// All of it.
    Whole(Answer),
    /// Its rows, from the first on.
    Rows(Box<Streamed>),
}

impl Engine {
    /// Runs one query. Dropping the future cancels it.
    ///
    /// # Errors
    ///
    /// If there is no answer, or that it was asked cannot be recorded.
    pub async fn sql(
        &self,
        caller: &Caller,
        text: &str,
        params: Vec<ScalarValue>,
        limits: QueryLimits,
    ) -> Result<Answer, Error> {
        match self.begin(caller, text, params, limits, Head::ALL).await? {
            Begun::Whole(answer) => Ok(answer),
            Begun::Rows(_) => Err(Error::internal("an answer that was waited for did not come whole")),
        }
    }

    /// Runs one query and gives its rows as they come. Dropping them cancels it. That it was
    /// asked is recorded before the first row is given.
    ///
    /// # Errors
    ///
    /// If it cannot be planned, or that it was asked cannot be recorded.
    pub async fn stream(
        &self,
        caller: &Caller,
        text: &str,
        params: Vec<ScalarValue>,
        limits: QueryLimits,
    ) -> Result<Streamed, Error> {
        match self.begin(caller, text, params, limits, Head::NONE).await? {
            Begun::Rows(rows) => Ok(*rows),
            Begun::Whole(_) => Err(Error::internal("an answer that was not waited for came whole")),
        }
    }

    /// Runs one query, and waits for as much of its answer as `head` says. Dropping what it gives cancels it.
    ///
    /// # Errors
    ///
    /// As [`Self::sql`], of what is waited for.
    pub async fn begin(
        &self,
        caller: &Caller,
        text: &str,
        params: Vec<ScalarValue>,
        limits: QueryLimits,
        head: Head,
    ) -> Result<Begun, Error> {
        self.begin_within(caller, text, params, limits, head, true).await
    }

    /// The same; without a record of its own if it is a part of what has one.
    pub(crate) async fn begin_within(
        &self,
        caller: &Caller,
        text: &str,
        params: Vec<ScalarValue>,
        limits: QueryLimits,
        head: Head,
        is_recorded: bool,
    ) -> Result<Begun, Error> {
        let start = Instant::now();
        let running = self.enter(caller)?;
        let watched = match is_recorded {
            true => Watched::begin(self.audit(), caller, text, &params),
            false => Watched::nothing(caller),
        };
        let span = observe::child("custody.query");
        let work = async {
            let mut rows = self.start(caller, text, params, limits, &running).await?;
            let (batches, is_whole) = wait(&mut rows, head).await?;
            Ok((rows, batches, is_whole))
        };
        let done: Result<_, Error> = work.await;
        // Of what is streamed the end is told by its rows.
        let outcome = match &done {
            Ok((_, _, false)) => "streamed",
            Ok(_) => "ok",
            Err(error) => error.kind.code(),
        };
        if outcome != "streamed" {
            running.ended(&done);
        }
        let rows = match &done {
            Ok((rows, _, true)) => rows.rows,
            _ => 0,
        };
        match done {
            Ok((mut rows, batches, false)) => {
                rows.ending = watched.ending();
                rows.span = span;
                watched.end(outcome, 0).await?;
                Ok(Begun::Rows(Box::new(rows.with_head(batches))))
            }
            whole => {
                if let Some(span) = span {
                    tell(&span, &whole.as_ref().map(|(rows, ..)| (rows.rows, rows.as_of_size)));
                }
                watched.end(outcome, rows as u64).await?;
                whole.map(|(rows, batches, _)| Begun::Whole(answer(&rows, batches, start.elapsed())))
            }
        }
    }
}

fn answer(rows: &Streamed, batches: Vec<RecordBatch>, elapsed: Duration) -> Answer {
    Answer {
        schema: Arc::clone(&rows.schema),
        batches,
        rows: rows.rows,
        truncated: rows.truncated,
        as_of_size: rows.as_of_size,
        elapsed,
        notes: rows.notes(),
    }
}

/// Takes rows until it is enough; says whether these are all.
async fn wait(rows: &mut Streamed, head: Head) -> Result<(Vec<RecordBatch>, bool), Error> {
    let mut batches = Vec::new();
    let mut until: Option<Instant> = None;
    if head.bytes_max == 0 {
        return Ok((batches, false));
    }
    loop {
        let next = match until {
            None => rows.next().await?,
            Some(until) => match tokio::time::timeout_at(until.into(), rows.next()).await {
                Ok(next) => next?,
                Err(_) => return Ok((batches, false)),
            },
        };
        let Some(batch) = next else { return Ok((batches, true)) };
        if until.is_none() && batch.num_rows() > 0 {
            until = Instant::now().checked_add(head.time_max);
        }
        batches.push(batch);
        if rows.bytes > head.bytes_max {
            return Ok((batches, false));
        }
    }
}
