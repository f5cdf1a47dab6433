//! `POST /api/v1/sql`.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use datafusion::scalar::ScalarValue;
use serde::Deserialize;

use super::{Served, problem};
use crate::caller::Caller;
use crate::engine::{Answer, QueryLimits};
use crate::error::Error;
use crate::{format, named, saved};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {
    sql: String,
    #[serde(default)]
    params: Params,
    #[serde(default)]
    format: Format,
    timeout_ms: Option<u64>,
    max_rows: Option<usize>,
}

/// Values for `$1` and so on, or for `$name`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Params {
    Places(Vec<serde_json::Value>),
    Names(serde_json::Map<String, serde_json::Value>),
}

impl Default for Params {
    fn default() -> Self {
        Self::Places(Vec::new())
    }
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Json,
    Csv,
    Arrow,
    Parquet,
}

/// Answers one query.
pub(super) async fn answer(State(served): State<Served>, caller: Caller, headers: HeaderMap, body: Bytes) -> Response {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !content_type.starts_with("application/json") {
        return problem(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "send Content-Type: application/json",
            None,
        );
    }
    let query: Query = match serde_json::from_slice(&body) {
        Ok(query) => query,
        Err(error) => {
            let message = format!("the body is not {{\"sql\": \"...\", ...}}: {error}");
            return problem(StatusCode::BAD_REQUEST, "invalid_request", &message, None);
        }
    };
    match run(&served, &caller, query).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn run(served: &Served, caller: &Caller, query: Query) -> Result<Response, Error> {
    let limits = QueryLimits {
        timeout: query.timeout_ms.map_or(served.limits.timeout, Duration::from_millis).min(served.limits.timeout_max),
        rows_max: query.max_rows.unwrap_or(served.limits.rows_max).min(served.limits.rows_most),
        ..served.limits.clone()
    };
    let (sql, params) = match query.params {
        Params::Places(values) => (query.sql, values),
        Params::Names(values) => named::positional(&query.sql, &values)?,
    };
    let params = params.iter().map(scalar).collect::<Result<Vec<_>, _>>()?;
    let answer = served.engine.sql(caller, &sql, params, limits).await?;
    let (content_type, body) = match query.format {
        Format::Json => ("application/json", format::json(&answer)?),
        Format::Csv => ("text/csv; charset=utf-8", format::csv(&answer)?),
        Format::Arrow => ("application/vnd.apache.arrow.stream", format::arrow(&answer)?),
        Format::Parquet => ("application/vnd.apache.parquet", format::parquet(&answer)?),
    };
    Ok(([(header::CONTENT_TYPE, content_type)], stats(&answer), body).into_response())
}

/// The saved queries.
pub(super) async fn queries() -> Response {
    axum::Json(serde_json::json!({ "queries": saved::all() })).into_response()
}

/// What the other formats have no room for.
fn stats(answer: &Answer) -> [(&'static str, String); 2] {
    [("x-truncated", answer.truncated.to_string()), ("x-log-size", answer.as_of_size.to_string())]
}

/// A JSON value as a query's parameter.
pub(super) fn scalar(value: &serde_json::Value) -> Result<ScalarValue, Error> {
    use serde_json::Value as V;
    Ok(match value {
        V::Null => ScalarValue::Null,
        V::Bool(b) => (*b).into(),
        V::Number(n) => match n.as_i64() {
            Some(i) => i.into(),
            None if n.is_u64() => n.as_u64().into(),
            None => n.as_f64().unwrap_or(f64::NAN).into(),
        },
        V::String(s) => s.as_str().into(),
        V::Array(_) | V::Object(_) => return Err(Error::invalid("params must be texts, numbers, true, false or null")),
    })
}
