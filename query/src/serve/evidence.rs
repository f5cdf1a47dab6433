//! `POST /api/v1/evidence`: a query's answer, with the proofs and contents of all records that it names, as one
//! signed bundle (docs/format.md, "Bundles").
//!
//! The export is a record of the log, under the caller's identity, before the first byte of it is sent. A bundle that
//! breaks off lacks its last line, and nobody takes it for a whole one.

use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use custody_store::Reader;
use custody_store::bundle::{Export, Exporting, seal_line};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::sql::{Params, bound, is_json, limits};
use super::{Served, problem};
use crate::caller::{Caller, Role};
use crate::error::{Error, ErrorKind};
use crate::evidence;
use crate::recorder::Exporter;
use crate::stats::Running;

/// Pieces of a bundle that wait for its reader, and how large they are.
const WAITING: usize = 4;
const PIECE_BYTES: usize = 64 << 10;

/// How long the reader of a bundle has for one piece.
const PIECE_TIME: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    sql: String,
    #[serde(default)]
    params: Value,
    timeout_ms: Option<u64>,
    max_rows: Option<usize>,
    /// Why it is exported; goes into the log and the bundle.
    #[serde(default)]
    reason: String,
}

/// Answers with a bundle.
pub(super) async fn answer(State(served): State<Served>, caller: Caller, headers: HeaderMap, body: Bytes) -> Response {
    if let Err(refusal) = is_json(&headers) {
        return refusal;
    }
    let asked: Asked = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => {
            let message = format!("the body is not {{\"sql\": \"...\", ...}}: {error}");
            return problem(StatusCode::BAD_REQUEST, "invalid_request", &message, None);
        }
    };
    match run(&served, &caller, asked).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn run(served: &Served, caller: &Caller, asked: Asked) -> Result<Response, Error> {
    caller.require(&[Role::Export], "exporting")?;
    let read_only = || Error::new(ErrorKind::Unavailable, "this server can only be read, and signs nothing");
    let exporter = Arc::clone(served.exporter.as_ref().ok_or_else(read_only)?);
    let params = match asked.params {
        Value::Null => json!([]),
        given => given,
    };
    let values: Params = serde_json::from_value(params.clone())
        .map_err(|_| Error::invalid("params are a list for $1 and so on, or an object for $name"))?;
    let (sql, values) = bound(asked.sql.clone(), values)?;
    let limits = limits(served, asked.timeout_ms, asked.max_rows);
    let answer = served.engine.sql(caller, &sql, values, limits).await?;
    let attached = evidence::attached(&asked.sql, &params, &answer)?;
    let seqs = evidence::seqs(&answer.batches)?;
    // Its place among the queries is kept until the bundle is written.
    let place = served.engine.enter(caller)?;
    let (reader, rows, names) = (served.engine.projection().reader().clone(), caller.rows.clone(), seqs.clone());
    let hidden = tokio::task::spawn_blocking(move || evidence::hidden(&reader, &rows, &names)).await;
    if let Some(seq) = hidden.map_err(|e| Error::internal(format!("the records cannot be read: {e}")))?? {
        let message = format!("the answer names record {seq}, which {} may not see", caller.identity);
        return Err(Error::new(ErrorKind::Forbidden, message));
    }
    let query = evidence::words(&attached);
    let export = Export { seqs, query, reason: asked.reason, identity: caller.identity.to_string(), attached };
    // Not given up when the client goes: an export that the log tells of was begun.
    let exporting = exporter.export(export).await?;
    Ok(bundle(served, exporter, exporting, place))
}

/// The bundle as it is written, on a thread for what blocks.
fn bundle(served: &Served, exporter: Arc<dyn Exporter>, exporting: Exporting, place: Arc<Running>) -> Response {
    let (sender, receiver) = mpsc::channel(WAITING);
    let (reader, runtime) = (served.engine.projection().reader().clone(), Handle::current());
    tokio::task::spawn_blocking(move || {
        let out = Out { sender: sender.clone(), runtime: runtime.clone() };
        let done = write(&reader, &*exporter, &exporting, out, &runtime);
        place.ended(&done);
        if let Err(error) = done {
            tracing::warn!(%error, "a bundle breaks off");
            let _ = runtime.block_on(async { tokio::time::timeout(PIECE_TIME, sender.send(Err(error))).await });
        }
    });
    let pieces = futures::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"answer.custody\""),
    ];
    (headers, Body::from_stream(pieces)).into_response()
}

fn write(
    reader: &Reader,
    exporter: &dyn Exporter,
    exporting: &Exporting,
    out: Out,
    runtime: &Handle,
) -> Result<(), Error> {
    let mut out = BufWriter::with_capacity(PIECE_BYTES, out);
    let (lines, digest) = reader.write_bundle(exporting, &mut out).map_err(Error::store)?;
    let note = runtime.block_on(exporter.sign(lines, digest))?;
    let written = out.write_all(seal_line(&note).as_bytes()).and_then(|()| out.flush());
    written.map_err(|e| Error::new(ErrorKind::Unavailable, format!("the bundle cannot be sent: {e}")))
}

/// Sends what is written to it to the reader of the answer.
struct Out {
    sender: mpsc::Sender<Result<Bytes, Error>>,
    runtime: Handle,
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        let sent = async { tokio::time::timeout(PIECE_TIME, self.sender.send(Ok(piece))).await };
        match self.runtime.block_on(sent) {
            Ok(Ok(())) => Ok(bytes.len()),
            Ok(Err(_)) => Err(std::io::Error::other("its reader has gone")),
            Err(_) => Err(std::io::Error::other("its reader takes nothing")),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
