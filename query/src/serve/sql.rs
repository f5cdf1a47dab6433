//! `POST /api/v1/sql`.
//!
//! An answer that is short and comes soon is sent whole: with its length, whether it was cut off as a header, and
//! an error in place of it. What is longer is streamed as it is made ([`super::stream`]).

use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Version, header};
use axum::response::{IntoResponse as _, Response};
use datafusion::scalar::ScalarValue;
use serde::Deserialize;

use super::{Served, problem, stream};
use crate::begun::{Begun, Head};
use crate::caller::Caller;
use crate::engine::QueryLimits;
use crate::error::Error;
use crate::pieces::Format;
use crate::{named, saved};

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
    /// Whether a long answer may come in pieces.
    #[serde(default = "yes")]
    stream: bool,
}

fn yes() -> bool {
    true
}

/// Values for `$1` and so on, or for `$name`.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "params are a list, for $1 and ?, or an object, for $name, of texts, numbers, true, false or null"
)]
pub(super) enum Params {
    Places(Vec<serde_json::Value>),
    Names(serde_json::Map<String, serde_json::Value>),
}

impl Default for Params {
    fn default() -> Self {
        Self::Places(Vec::new())
    }
}

/// Answers one query.
pub(super) async fn answer(
    State(served): State<Served>,
    caller: Caller,
    version: Version,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Err(refusal) = is_json(&headers) {
        return refusal;
    }
    let mut query: Query = match serde_json::from_slice(&body) {
        Ok(query) => query,
        Err(error) => {
            let message = format!("the body is not {{\"sql\": \"...\", ...}}: {error}");
            return problem(StatusCode::BAD_REQUEST, "invalid_request", &message, None);
        }
    };
    // HTTP/1.0 has no way to say that a body breaks off, and some proxies still speak it.
    query.stream &= version > Version::HTTP_10;
    let footer = stream::wants_footer(&headers);
    match run(&served, &caller, query, footer).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

/// A page of another site cannot send this type without being asked first.
#[expect(clippy::result_large_err, reason = "the answer is sent at once; nothing else is made of it")]
pub(super) fn is_json(headers: &HeaderMap) -> Result<(), Response> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if content_type.starts_with("application/json") {
        return Ok(());
    }
    let message = "send Content-Type: application/json";
    Err(problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message, None))
}

/// What a caller may use who asks for this.
pub(super) fn limits(served: &Served, timeout_ms: Option<u64>, max_rows: Option<usize>) -> QueryLimits {
    let limits = &served.limits;
    QueryLimits {
        timeout: timeout_ms.map_or(limits.timeout, Duration::from_millis).min(limits.timeout_max),
        rows_max: max_rows.unwrap_or(limits.rows_max).min(limits.rows_most),
        ..limits.clone()
    }
}

/// A text with `$1`, and its values.
pub(super) fn bound(sql: String, params: Params) -> Result<(String, Vec<ScalarValue>), Error> {
    let (sql, params) = match params {
        Params::Places(values) => (sql, values),
        Params::Names(values) => named::positional(&sql, &values)?,
    };
    let params = params.iter().map(scalar).collect::<Result<Vec<_>, _>>()?;
    Ok((sql, params))
}

async fn run(served: &Served, caller: &Caller, query: Query, footer: bool) -> Result<Response, Error> {
    let mut limits = limits(served, query.timeout_ms, query.max_rows);
    let (sql, params) = bound(query.sql, query.params)?;
    if query.stream {
        // No more than a batch of it is held.
        limits.answer_bytes_max = usize::MAX;
    }
    let asked = stream::Asked { format: query.format, footer, rows_max: Some(limits.rows_max), start: Instant::now() };
    let begun = match query.stream {
        true => served.engine.begin(caller, &sql, params, limits, Head::default()).await?,
        false => Begun::Whole(served.engine.sql(caller, &sql, params, limits).await?),
    };
    match begun {
        Begun::Whole(answer) => stream::whole(&asked, &answer),
        Begun::Rows(rows) => stream::streamed(asked, *rows),
    }
}

/// The saved queries.
pub(super) async fn queries() -> Response {
    axum::Json(serde_json::json!({ "queries": saved::all() })).into_response()
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
