//! `GET /api/v1/replay?id=ID[&as_of=SEQ|TIME][&of=grant][&format=ndjson|arrow]`: the steps of a replay
//! as they are made, however many there are.

use std::time::Instant;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;

use super::{Served, parameters, problem, stream};
use crate::caller::Caller;
use crate::engine::QueryLimits;
use crate::error::Error;
use crate::pieces;

/// The query string.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    id: String,
    as_of: Option<String>,
    of: Option<String>,
    #[serde(default)]
    format: Format,
}

/// Those that stream.
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
    headers: HeaderMap,
) -> Response {
    let asked = match asked {
        Ok(Query(asked)) => asked,
        Err(error) => {
            let message = parameters::wrong(
                &error,
                "id, as_of, of (trace, grant, agent, conversation or alert) and format (ndjson or arrow)",
            );
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
        Ok::<_, Error>(streamed.with_head(first.into_iter().collect()))
    };
    let format = match asked.format {
        Format::Ndjson => pieces::Format::Ndjson,
        Format::Arrow => pieces::Format::Arrow,
    };
    let wanted =
        stream::Asked { format, footer: stream::wants_footer(&headers), rows_max: None, start: Instant::now() };
    let answer = begun.await.and_then(|streamed| stream::streamed(wanted, streamed));
    answer.unwrap_or_else(|error| error.into_response())
}

/// The query that it is; texts are quoted, so that they are nothing but texts.
fn query(asked: &Asked) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let as_of = asked.as_of.as_deref().map_or_else(
        || "NULL".to_owned(),
        |at| match at.parse::<u64>() {
            Ok(seq) => seq.to_string(),
            Err(_) => quoted(at),
        },
    );
    let of = asked.of.as_deref().map_or_else(String::new, |of| format!(", {}", quoted(of)));
    format!("SELECT * FROM replay({}, {as_of}{of}) ORDER BY step", quoted(&asked.id))
}
