//! `GET /api/v1/replay?id=ID[&as_of=SEQ|TIME][&format=ndjson|arrow]`: the steps of a replay as
//! they are made, however many there are.

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::ipc::writer::StreamWriter;
use datafusion::arrow::record_batch::RecordBatch;
use serde::Deserialize;

use super::{Served, problem};
use crate::caller::Caller;
use crate::engine::QueryLimits;
use crate::error::Error;
use crate::format;
use crate::streamed::Streamed;

/// The query string.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    id: String,
    as_of: Option<String>,
    #[serde(default)]
    format: Format,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Ndjson,
    Arrow,
}

/// Answers with the steps, in order.
pub(super) async fn answer(
    State(served): State<Served>,
    caller: Caller,
    asked: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let asked = match asked {
        Ok(Query(asked)) => asked,
        Err(error) => {
            let message = format!("{}; the parameters are id, as_of and format (ndjson or arrow)", error.body_text());
            return problem(StatusCode::BAD_REQUEST, "invalid_request", &message, None);
        }
    };
    // It streams: neither rows nor bytes are held, and a long one takes its time.
    let limits = QueryLimits {
        timeout: served.limits.timeout_max,
        rows_max: usize::MAX,
        answer_bytes_max: usize::MAX,
        ..served.limits.clone()
    };
    let begun = async {
        let mut streamed = served.engine.stream(&caller, &query(&asked), vec![], limits).await?;
        // What keeps it from beginning is an answer of its own, and not one that breaks off.
        let first = streamed.next().await?;
        Ok::<_, Error>((streamed, first))
    };
    match begun.await {
        Ok((streamed, first)) => respond(streamed, first, asked.format),
        Err(error) => error.into_response(),
    }
}

/// The query that it is; texts are quoted, so that they are nothing but texts.
fn query(asked: &Asked) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let as_of = asked.as_of.as_deref().map_or_else(String::new, |at| match at.parse::<u64>() {
        Ok(seq) => format!(", {seq}"),
        Err(_) => format!(", {}", quoted(at)),
    });
    format!("SELECT * FROM replay({}{as_of}) ORDER BY step", quoted(&asked.id))
}

fn respond(streamed: Streamed, first: Option<RecordBatch>, format: Format) -> Response {
    let content_type = match format {
        Format::Ndjson => "application/x-ndjson",
        Format::Arrow => "application/vnd.apache.arrow.stream",
    };
    let size = streamed.as_of_size.to_string();
    let pieces = Pieces::of(format, &streamed.schema);
    let body = futures::stream::unfold((streamed, first, pieces), async |(mut streamed, mut first, pieces)| {
        let mut pieces = pieces?;
        let next = match first.take() {
            Some(first) => Ok(Some(first)),
            None => streamed.next().await,
        };
        // An error ends the answer before its end: who reads it sees that it broke off.
        let (piece, rest) = match next {
            Ok(Some(batch)) => (pieces.batch(&batch), Some(pieces)),
            Ok(None) => (pieces.end(), None),
            Err(error) => (Err(error), None),
        };
        let rest = rest.filter(|_| piece.is_ok());
        Some((piece.map(Bytes::from), (streamed, None, rest)))
    });
    let headers = [(header::CONTENT_TYPE, content_type.to_owned()), (HeaderName::from_static("x-log-size"), size)];
    (headers, Body::from_stream(body)).into_response()
}

/// Batches as bytes.
enum Pieces {
    Ndjson,
    Arrow(Box<StreamWriter<Vec<u8>>>),
}

impl Pieces {
    fn of(format: Format, schema: &SchemaRef) -> Option<Self> {
        match format {
            Format::Ndjson => Some(Self::Ndjson),
            Format::Arrow => StreamWriter::try_new(Vec::new(), schema).ok().map(|writer| Self::Arrow(Box::new(writer))),
        }
    }

    fn batch(&mut self, batch: &RecordBatch) -> Result<Vec<u8>, Error> {
        let failed = |e: datafusion::arrow::error::ArrowError| Error::internal(e.to_string());
        match self {
            Self::Ndjson => {
                let mut out = Vec::new();
                for row in format::rows(std::slice::from_ref(batch))? {
                    serde_json::to_writer(&mut out, &row).map_err(|e| Error::internal(e.to_string()))?;
                    out.push(b'\n');
                }
                Ok(out)
            }
            Self::Arrow(writer) => {
                writer.write(batch).map_err(failed)?;
                Ok(std::mem::take(writer.get_mut()))
            }
        }
    }

    fn end(&mut self) -> Result<Vec<u8>, Error> {
        match self {
            Self::Ndjson => Ok(Vec::new()),
            Self::Arrow(writer) => {
                writer.finish().map_err(|e| Error::internal(e.to_string()))?;
                Ok(std::mem::take(writer.get_mut()))
            }
        }
    }
}
