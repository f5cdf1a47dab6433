//! `/api/services`, `/api/operations`, `/api/traces`, `/api/dependencies`: what the Jaeger UI up to 2.18 and Grafana's
//! data source ask for, with the parameters, answers and errors of `jaeger-query` (its `http_handler.go` and
//! `query_parser.go`).

use std::time::Instant;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde_json::{Value as Json, json};

use super::asker::Asker;
use super::find::{self, NAMED_MAX, Search, TRACES_DEFAULT, TRACES_MAX};
use super::model::{Traces, short};
use super::names;
use super::parameters::{Parameters, trace_id, wrong};
use super::{contents, status, with_retry};
use crate::caller::Caller;
use crate::error::Error;
use crate::serve::Served;

/// Without a start a search goes back two days, as Jaeger's.
const LOOKBACK: i64 = 2 * 24 * 3_600_000_000_000;

/// Without `lookback` calls are counted of a day, as Jaeger's.
const CALLS_LOOKBACK_MS: i64 = 24 * 3_600_000;

/// What is said of a trace that is not there.
const NOT_FOUND: &str = "trace not found";

pub(super) fn routes() -> Router<Served> {
    Router::new()
        .route("/api/services", get(services))
        .route("/api/services/{service}/operations", get(operations_of))
        .route("/api/operations", get(operations))
        .route("/api/traces", get(search))
        .route("/api/traces/{id}", get(trace))
        .route("/api/dependencies", get(dependencies))
}

/// The envelope of all answers (`structuredResponse`).
fn envelope(code: StatusCode, data: Json, total: usize, errors: Json) -> Response {
    let body = json!({"data": data, "total": total, "limit": 0, "offset": 0, "errors": errors});
    (code, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// A list, or why there is none.
fn told(made: Result<Vec<Json>, Error>) -> Response {
    match made {
        Ok(list) => {
            let total = list.len();
            envelope(StatusCode::OK, list.into(), total, Json::Null)
        }
        Err(error) => refused(&error),
    }
}

/// An error as Jaeger's pages show it.
fn refused(error: &Error) -> Response {
    let code = status(error.kind);
    let errors = json!([{"code": code.as_u16(), "msg": error.message}]);
    with_retry(error.kind, envelope(code, Json::Null, 0, errors))
}

fn not_found() -> Response {
    envelope(StatusCode::NOT_FOUND, Json::Null, 0, json!([{"code": 404, "msg": NOT_FOUND}]))
}

async fn services(State(served): State<Served>, caller: Caller, uri: Uri) -> Response {
    let made = async {
        let names = names::services(&Asker::new(&served, &caller), &Parameters::of(&uri)?).await?;
        Ok(names.into_iter().map(Json::from).collect())
    };
    told(made.await)
}

/// The names alone, each once, of spans of all kinds.
async fn operations_of(
    State(served): State<Served>,
    caller: Caller,
    service: Result<Path<String>, axum::extract::rejection::PathRejection>,
    uri: Uri,
) -> Response {
    let made = async {
        let Path(service) = service.map_err(|_| Error::invalid("the name of the service is not UTF-8"))?;
        let parameters = Parameters::of(&uri)?;
        let found = names::operations(&Asker::new(&served, &caller), &parameters, &service, None).await?;
        let mut names: Vec<String> = found.into_iter().map(|operation| operation.name).collect();
        names.dedup();
        Ok(names.into_iter().map(Json::from).collect())
    };
    told(made.await)
}

async fn operations(State(served): State<Served>, caller: Caller, uri: Uri) -> Response {
    let made = async {
        let parameters = Parameters::of(&uri)?;
        let service = parameters.name(&["service"])?.ok_or_else(|| wrong("service", "is required"))?;
        let kind = parameters.one(&["spanKind"]);
        let found = names::operations(&Asker::new(&served, &caller), &parameters, &service, kind).await?;
        let one = |operation: names::Operation| {
            let kind = if operation.kind == "unspecified" { "" } else { &operation.kind };
            json!({"name": operation.name, "spanKind": kind})
        };
        Ok(found.into_iter().map(one).collect())
    };
    told(made.await)
}

/// What a search asks for (`parseTraceQueryParams`).
fn wanted(parameters: &Parameters) -> Result<Search, Error> {
    let to = parameters.since_1970(&["end"], 1_000, "microseconds")?.unwrap_or_else(find::now);
    let from = match parameters.since_1970(&["start"], 1_000, "microseconds")? {
        Some(from) => from,
        // The page says how far it looks back, and when that is; or that it is a time of its own.
        None => {
            let is_custom = parameters.one(&["lookback"]).is_some_and(|(_, value)| value == "custom");
            let back = if is_custom { None } else { parameters.duration(&["lookback"])? };
            to.saturating_sub(back.unwrap_or(LOOKBACK)).max(0)
        }
    };
    let search = Search {
        service: parameters.name(&["service"])?,
        operation: parameters.name(&["operation"])?,
        tags: parameters.tags(Some("tag"), "tags")?,
        from,
        to,
        shortest: parameters.duration(&["minDuration"])?,
        longest: parameters.duration(&["maxDuration"])?,
        limit: parameters.whole(&["limit"], 1..=TRACES_MAX)?.unwrap_or(TRACES_DEFAULT) as usize,
    };
    search.check(["start", "end"], ["minDuration", "maxDuration"])?;
    Ok(search)
}

/// The ids of the traces that are asked for by name.
fn ids(parameters: &Parameters) -> Result<Vec<String>, Error> {
    let must = || wrong("traceID", "must be a trace id: up to 32 hex digits");
    let ids = parameters.all("traceID").map(|id| trace_id(id).ok_or_else(must)).collect::<Result<Vec<_>, _>>()?;
    match ids.len() <= NAMED_MAX {
        true => Ok(ids),
        false => Err(wrong("traceID", &format!("may be there {NAMED_MAX} times"))),
    }
}

async fn search(State(served): State<Served>, caller: Caller, uri: Uri) -> Response {
    let made = async {
        let parameters = Parameters::of(&uri)?;
        let (search, ids) = (wanted(&parameters)?, ids(&parameters)?);
        let asker = Asker::new(&served, &caller);
        if ids.is_empty() {
            if search.service.is_none() {
                return Err(wrong("service", "is required, or else traceID"));
            }
            let found = find::search(&asker, &search).await?;
            return answer(&served, found, Traces::new(parameters.flag(&["raw"])?, vec![])).await;
        }
        let found = find::named(&asker, &ids).await?;
        let is_missing = |id: &&String| !found.iter().any(|found| found.trace_id == **id);
        let missing = ids.iter().filter(is_missing).map(|id| json!({"msg": NOT_FOUND, "traceID": short(id)})).collect();
        answer(&served, found, Traces::new(parameters.flag(&["raw"])?, missing)).await
    };
    made.await.unwrap_or_else(|error| refused(&error))
}

async fn trace(
    State(served): State<Served>,
    caller: Caller,
    id: Result<Path<String>, axum::extract::rejection::PathRejection>,
    uri: Uri,
) -> Response {
    let made = async {
        let id = id.ok().and_then(|Path(id)| trace_id(&id));
        let id = id.ok_or_else(|| wrong("traceID", "must be a trace id: up to 32 hex digits"))?;
        let parameters = Parameters::of(&uri)?;
        let (from, to) = (parameters.micros_or_millis(&["start"])?, parameters.micros_or_millis(&["end"])?);
        let form = Traces::new(parameters.flag(&["raw"])?, vec![]);
        match find::trace(&Asker::new(&served, &caller), &id, from, to).await? {
            Some(found) => answer(&served, vec![found], form).await,
            None => Ok(not_found()),
        }
    };
    made.await.unwrap_or_else(|error| refused(&error))
}

async fn answer(served: &Served, found: Vec<find::Found>, form: Traces) -> Result<Response, Error> {
    let until = Instant::now() + served.limits.timeout_max;
    contents::answer(contents::Pages::new(&served.engine, found, form), until).await
}

async fn dependencies(State(served): State<Served>, caller: Caller, uri: Uri) -> Response {
    let made = async {
        let parameters = Parameters::of(&uri)?;
        let to = parameters.since_1970(&["endTs"], 1_000_000, "milliseconds")?.unwrap_or_else(find::now);
        let back = parameters.whole(&["lookback"], 0..=i64::MAX / 1_000_000)?.unwrap_or(CALLS_LOOKBACK_MS);
        let from = to.saturating_sub(back * 1_000_000).max(0);
        let service = parameters.name(&["service"])?;
        let found = names::calls(&Asker::new(&served, &caller), from, to, service.as_deref()).await?;
        let link =
            |calls: names::Calls| json!({"parent": calls.parent, "child": calls.child, "callCount": calls.count});
        Ok::<_, Error>(found.into_iter().map(link).collect())
    };
    match made.await {
        Ok(links) => envelope(StatusCode::OK, Json::Array(links), 0, Json::Null),
        Err(error) => refused(&error),
    }
}
