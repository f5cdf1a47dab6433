//! The query API of Jaeger, so that its own page and Grafana's data source show the traces of the log with nothing but an
//! address: docs/jaeger.md.
//!
//! What is found is found by SQL, for the caller, at his place at the gate, within his limits, recorded as every query;
//! what is shown of it is read off the log, as it was sent. Names and shapes are Jaeger's, taken from its sources.

mod asker;
mod contents;
mod find;
mod model;
mod names;
mod otlp;
mod parameters;
mod summaries;
#[cfg(test)]
mod tests;
mod v1;
mod v3;
mod values;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;

use super::Served;
use crate::error::ErrorKind;

/// The paths of both versions.
pub(super) fn routes() -> Router<Served> {
    v1::routes().merge(v3::routes())
}

/// The status of an error: that of SQL, but for what takes too long. Browsers ask again by themselves after a 408.
fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        kind => super::status(kind),
    }
}

/// Says when to ask again, to whom too much runs already.
fn with_retry(kind: ErrorKind, mut response: Response) -> Response {
    if kind == ErrorKind::Busy {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
