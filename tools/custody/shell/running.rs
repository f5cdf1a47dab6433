//! A query that runs while somebody waits for it: how long and how far is told on standard error, and Ctrl-C ends
//! it. The connection is closed then, by which the server knows that nobody waits any more.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use custody_query::Answer;
use datafusion::arrow::record_batch::RecordBatch;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::Failure;
use crate::source::{Ended, Part, Source};

/// After this long it is told that the query runs.
const QUIET: Duration = Duration::from_millis(500);

/// How often it is looked whether Ctrl-C was pressed, and told how far the query is.
const STEP: Duration = Duration::from_millis(50);

/// Whether Ctrl-C was pressed. From the first session on it ends queries, and not this process.
#[derive(Clone)]
pub struct Interrupts(Arc<AtomicBool>);

impl Interrupts {
    /// Takes the signal from now on.
    pub fn listen() -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::unable)?;
        let mut signals = {
            let _within = runtime.enter();
            signal(SignalKind::interrupt()).map_err(Failure::unable)?
        };
        let pressed = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&pressed);
        let listen = move || {
            runtime.block_on(async {
                while signals.recv().await.is_some() {
                    told.store(true, Ordering::Relaxed);
                }
            });
        };
        std::thread::Builder::new().name("interrupts".into()).spawn(listen).map_err(Failure::unable)?;
        Ok(Self(pressed))
    }

    /// Whether it was pressed since this was last asked.
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// What came of a query.
pub enum Asked {
    /// An answer, after so long.
    Answered(Answer, Duration),
    /// It was given up.
    Cancelled,
}

/// What the thread that reads the answer says.
enum Told {
    Part(Part),
    End(Result<Ended, Failure>),
}

/// Asks, and waits for the answer or for Ctrl-C.
pub fn ask(source: &Arc<Source>, query: &Value, interrupts: &Interrupts, progress: bool) -> Result<Asked, Failure> {
    let start = Instant::now();
    let (sender, receiver) = sync_channel(4);
    let (own, query) = (Arc::clone(source), query.clone());
    let reading = std::thread::Builder::new().name("asking".into()).spawn(move || read(&own, &query, &sender));
    reading.map_err(Failure::unable)?;
    let mut answer: Option<Answer> = None;
    let mut line = Progress { shown: false, wanted: progress, start };
    loop {
        if interrupts.take() {
            line.clear();
            source.interrupt()?;
            return Ok(Asked::Cancelled);
        }
        match receiver.recv_timeout(STEP) {
            Ok(Told::Part(Part::Columns(schema))) => {
                let (batches, elapsed, notes) = (Vec::new(), Duration::ZERO, Vec::new());
                // Also when it is asked anew.
                answer = Some(Answer { schema, batches, rows: 0, truncated: false, as_of_size: 0, elapsed, notes });
            }
            Ok(Told::Part(Part::Rows(batch))) => take(&mut answer, batch)?,
            Ok(Told::End(ended)) => {
                line.clear();
                let Ended { truncated, log_size, notes, .. } = ended?;
                let answer = answer.ok_or_else(|| Failure::unable("the answer has no columns"))?;
                return Ok(Asked::Answered(
                    Answer { truncated, as_of_size: log_size, notes, ..answer },
                    start.elapsed(),
                ));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Failure::unable("the query was given up")),
        }
        line.show(answer.as_ref().map_or(0, |answer| answer.rows));
    }
}

fn take(answer: &mut Option<Answer>, batch: RecordBatch) -> Result<(), Failure> {
    let answer = answer.as_mut().ok_or_else(|| Failure::unable("rows came before their columns"))?;
    answer.rows += batch.num_rows();
    answer.batches.push(batch);
    Ok(())
}

fn read(source: &Source, query: &Value, sender: &SyncSender<Told>) {
    // Nobody takes the rest of what was given up.
    let gone = |_| Failure::unable("nobody waits for this answer");
    let ended = source.sql_again(query, &mut |part| sender.send(Told::Part(part)).map_err(gone));
    let _ = sender.send(Told::End(ended));
}

/// The line that tells how far a query is.
struct Progress {
    shown: bool,
    wanted: bool,
    start: Instant,
}

impl Progress {
    fn show(&mut self, rows: usize) {
        let elapsed = self.start.elapsed();
        if !self.wanted || elapsed < QUIET {
            return;
        }
        self.shown = true;
        let mut err = std::io::stderr();
        let _ = write!(err, "\r\u{1b}[K{} rows, {:.1} s (Ctrl-C cancels)", thousands(rows), elapsed.as_secs_f64());
        let _ = err.flush();
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            eprint!("\r\u{1b}[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// `1,234,567`.
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn large_numbers_are_readable() {
        assert_eq!([0, 12, 1234, 1_234_567].map(thousands), ["0", "12", "1,234", "1,234,567"]);
    }
}
