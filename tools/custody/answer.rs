//! `custody sql --evidence`: an answer, with all that proves the records that it was made of, as a bundle: by the
//! log's own process, reached through its data directory, or through its HTTP API alone.

use std::path::Path;

use custody_query::evidence;
use serde_json::Value;

use crate::Failure;
use crate::control::{Control, Request};
use crate::evidence::{write_bundle, write_checked};
use crate::source::Source;

/// Asks the process of a data directory, and writes the answer and its evidence to a file.
pub fn write(file: &Path, dir: &Path, ask: &Value) -> Result<(), Failure> {
    let mut control = Control::of(dir)?;
    // As with an export: without a server the question is answered before the log is opened for writing.
    let (source, control) = match control.url()? {
        Some(url) => (Source::at(url), Some(control)),
        None => {
            drop(control);
            (Source::of_directory(dir)?, None)
        }
    };
    let answer = source.answer(ask)?;
    drop(source);
    let attached = evidence::attached(ask["sql"].as_str().unwrap_or_default(), &ask["params"], &answer);
    let attached = attached.map_err(|e| Failure::wrong(e.message))?;
    let seqs = evidence::seqs(&answer.batches).map_err(|e| Failure::wrong(e.message))?;
    let query = evidence::words(&attached);
    let mut control = control.map_or_else(|| Control::of(dir), Ok)?;
    let request = Request::Export { seqs: seqs.to_string(), all: false, query, reason: String::new(), attached };
    write_bundle(file, &mut control, &request)
}

/// Has a server answer with a bundle, and writes that to a file.
pub fn fetch(file: &Path, source: &Source, ask: &Value) -> Result<(), Failure> {
    write_checked(file, |out| source.evidence(ask, out))
}

/// Checks the answer that a bundle brings, if it does. The manifest's `query` is that of the log.
pub fn check(manifest: &Value) -> Result<Option<String>, Failure> {
    let rows = evidence::check(manifest).map_err(|e| Failure::wrong(e.message))?;
    Ok(rows.map(|rows| format!("its answer of {rows} rows is the one whose digest the log has\n")))
}
