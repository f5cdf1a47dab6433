//! `/api/v3/...`: what the Jaeger UI from 2.19 on asks for, and Grafana's data source where that is turned on, with the
//! parameters, answers and errors of Jaeger 2's HTTP gateway (its `apiv3/http_gateway.go` and `query_parser.go`).
//! Parameters have two spellings there, `query.serviceName` and, from before, `query.service_name`.

use std::time::Instant;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde_json::{Value as Json, json};

use super::asker::Asker;
use super::find::{self, Search, TRACES_DEFAULT, TRACES_MAX};
use super::otlp::ResourceSpans;
use super::parameters::{Names, Parameters, trace_id, wrong};
use super::{contents, names, status, summaries, with_retry};
use crate::caller::Caller;
use crate::error::Error;
use crate::serve::Served;

const TIME_MIN: &Names = &["query.startTimeMin", "query.start_time_min"];
const TIME_MAX: &Names = &["query.startTimeMax", "query.start_time_max"];
const DURATION_MIN: &Names = &["query.durationMin", "query.duration_min"];
const DURATION_MAX: &Names = &["query.durationMax", "query.duration_max"];
const DEPTH: &Names = &["query.searchDepth", "query.search_depth", "query.num_traces"];
const START: &Names = &["startTime", "start_time"];
const END: &Names = &["endTime", "end_time"];

/// Parameters of Jaeger's that would change the answer and are not known here.
const UNKNOWN: [&str; 3] = ["query.filter", "query.pagination.pageSize", "query.pagination.pageToken"];

pub(super) fn routes() -> Router<Served> {
    Router::new()
        .route("/api/v3/services", get(services))
        .route("/api/v3/operations", get(operations))
        .route("/api/v3/traces", get(search))
        .route("/api/v3/traces/{trace_id}", get(trace))
        .route("/api/v3/trace-summaries", get(summary))
        .route("/api/v3/dependencies", get(dependencies))
        .route("/api/v3/capabilities", get(capabilities))
}

fn written(code: StatusCode, body: &Json) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// An error as gRPC's gateway has it (`GRPCGatewayError`).
fn failed(code: StatusCode, message: &str) -> Response {
    written(code, &json!({"error": {"httpCode": code.as_u16(), "message": message}}))
}

fn told(made: Result<Json, Error>) -> Response {
    made.map_or_else(|error| refused(&error), |body| written(StatusCode::OK, &body))
}

fn refused(error: &Error) -> Response {
    with_retry(error.kind, failed(status(error.kind), &error.message))
}

fn not_found() -> Response {
    failed(StatusCode::NOT_FOUND, "No traces found")
}

async fn services(State(served): State<Served>, caller: Caller, uri: Uri) -> Response {
    let made = async {
        let names = names::services(&Asker::new(&served, &caller), &Parameters::of(&uri)?).await?;
        Ok(json!({"services": names}))
    };
    told(made.await)
}

async fn operations(State(served): State<Served>, caller: Caller, uri: Uri) -> Response {
    let made = async {
        let parameters = Parameters::of(&uri)?;
        let service = parameters.name(&["service"])?.ok_or_else(|| wrong("service", "is required"))?;
        let kind = parameters.one(&["spanKind", "span_kind"]);
        let found = names::operations(&Asker::new(&served, &caller), &parameters, &service, kind).await?;
        let one = |operation: names::Operation| {
            let kind = if operation.kind == "unspecified" { "internal" } else { &operation.kind };
            json!({"name": operation.name, "spanKind": kind})
        };
        Ok(json!({"operations": found.into_iter().map(one).collect::<Vec<_>>()}))
    };
    told(made.await)
}

/// What a search asks for (`parseFindTracesQuery`). It may leave the service open.
fn wanted(parameters: &Parameters) -> Result<Search, Error> {
    if let Some(name) = UNKNOWN.into_iter().find(|name| parameters.one(&[*name]).is_some()) {
        return Err(wrong(name, "is not known here; use query.attributes and query.searchDepth"));
    }
    let must = |names: &Names| wrong(names[0], "is required: min and max start time are, such as 2026-11-20T09:00:00Z");
    let search = Search {
        service: parameters.name(&["query.serviceName", "query.service_name"])?,
        operation: parameters.name(&["query.operationName", "query.operation_name", "query.span_name"])?,
        tags: parameters.tags(None, "query.attributes")?,
        from: parameters.rfc3339(TIME_MIN)?.ok_or_else(|| must(TIME_MIN))?,
        to: parameters.rfc3339(TIME_MAX)?.ok_or_else(|| must(TIME_MAX))?,
        shortest: parameters.duration(DURATION_MIN)?,
        longest: parameters.duration(DURATION_MAX)?,
        limit: parameters.whole(DEPTH, 1..=TRACES_MAX)?.unwrap_or(TRACES_DEFAULT) as usize,
    };
    search.check([TIME_MIN[0], TIME_MAX[0]], [DURATION_MIN[0], DURATION_MAX[0]])?;
    Ok(search)
}

async fn search(State(served): State<Served>, caller: Caller, uri: Uri) -> Response {
    let made = async {
        let parameters = Parameters::of(&uri)?;
        let search = wanted(&parameters)?;
        let is_raw = parameters.flag(&["query.rawTraces", "query.raw_traces"])?;
        let asker = Asker::new(&served, &caller);
        let found = find::search(&asker, &search).await?;
        answer(&served, found, is_raw).await
    };
    made.await.unwrap_or_else(|error| refused(&error))
}

async fn summary(State(served): State<Served>, caller: Caller, uri: Uri) -> Response {
    let made = async {
        let search = wanted(&Parameters::of(&uri)?)?;
        Ok(json!({"summaries": summaries::of(&Asker::new(&served, &caller), &search).await?}))
    };
    told(made.await)
}

async fn trace(
    State(served): State<Served>,
    caller: Caller,
    id: Result<Path<String>, axum::extract::rejection::PathRejection>,
    uri: Uri,
) -> Response {
    let made = async {
        let id = id.ok().and_then(|Path(id)| trace_id(&id));
        let id = id.ok_or_else(|| wrong("trace_id", "must be a trace id: up to 32 hex digits, or base64"))?;
        let parameters = Parameters::of(&uri)?;
        let (from, to) = (parameters.rfc3339(START)?, parameters.rfc3339(END)?);
        let is_raw = parameters.flag(&["rawTraces", "raw_traces"])?;
        let found = find::trace(&Asker::new(&served, &caller), &id, from, to).await?;
        answer(&served, found.into_iter().collect(), is_raw).await
    };
    made.await.unwrap_or_else(|error| refused(&error))
}

async fn answer(served: &Served, found: Vec<find::Found>, is_raw: bool) -> Result<Response, Error> {
    if found.is_empty() {
        return Ok(not_found());
    }
    let until = Instant::now() + served.limits.timeout_max;
    let pages = contents::Pages::new(&served.engine, found, ResourceSpans::new(is_raw));
    contents::answer(pages, until).await
}

async fn dependencies(State(served): State<Served>, caller: Caller, uri: Uri) -> Response {
    let made = async {
        let parameters = Parameters::of(&uri)?;
        let must = |names: &Names| wrong(names[0], "is required: a time such as 2026-11-20T09:00:00Z");
        let from = parameters.rfc3339(START)?.ok_or_else(|| must(START))?;
        let to = parameters.rfc3339(END)?.ok_or_else(|| must(END))?;
        if to <= from {
            return Err(wrong(END[0], &format!("must be after {}", START[0])));
        }
        let found = names::calls(&Asker::new(&served, &caller), from, to, None).await?;
        let link = |calls: names::Calls| {
            // A number of 64 bits is a text in the JSON of protobuf.
            json!({"parent": calls.parent, "child": calls.child, "callCount": calls.count.to_string()})
        };
        Ok(json!({"dependencies": found.into_iter().map(link).collect::<Vec<_>>()}))
    };
    told(made.await)
}

/// What a search can do here: leave the service open, and find all that is asked for in one span.
async fn capabilities() -> Response {
    written(StatusCode::OK, &json!({"search": {"withoutServiceName": true, "sameSpanConjunction": true}}))
}
