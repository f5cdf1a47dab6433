//! `/api/v1/alerts`: the alerts, one of them with its life and evidence, and what people do about it.
//!
//! Reading goes the way of every query. Acting goes through [`act`], for HTTP and the control socket
//! alike: decided over the newest state of the log, one act at a time, appended under the person's own
//! identity, and answered when the alert shows it.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::{Served, parameters, problem};
use crate::alerts::acts::{Act, Ask, Planned, Refusal, may, plan};
use crate::alerts::speakers::Speakers;
use crate::alerts::{AlertRow, alert};
use crate::caller::Caller;
use crate::error::{Error, ErrorKind};
use crate::format;
use crate::projection::AsOf;

/// Alerts of a page, by default and at most.
const LIMIT_DEFAULT: usize = 1000;
const LIMIT_MAX: usize = 10_000;

/// How long an answer waits until the alert shows what was appended.
const VISIBLE_MAX: Duration = Duration::from_secs(5);

/// What is decided over the newest state holds until it is appended.
static ACTING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The paths.
pub(super) fn routes() -> Router<Served> {
    Router::new()
        .route("/api/v1/alerts", get(list))
        .route("/api/v1/alerts/{id}", get(show))
        .route("/api/v1/alerts/{id}/{act}", post(answer))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    state: Option<String>,
    rule: Option<String>,
    severity: Option<String>,
    agent: Option<String>,
    limit: Option<usize>,
}

/// The states that there are.
const STATES: [&str; 7] = ["open", "acknowledged", "investigating", "closed", "suppressed", "merged", "superseded"];

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The alerts, the newest first.
async fn list(
    State(served): State<Served>,
    caller: Caller,
    query: Result<Query<Listed>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let Query(listed) = match query {
        Ok(query) => query,
        Err(error) => {
            let message = parameters::wrong(&error, "state, rule, severity, agent and limit");
            return problem(StatusCode::BAD_REQUEST, "invalid_request", &message, None);
        }
    };
    let mut tests = vec!["true".to_owned()];
    if let Some(states) = &listed.state {
        let unknown = states.split(',').find(|state| !STATES.contains(state));
        if let Some(unknown) = unknown {
            let message = format!("there is no state {unknown:?}; there are {}", STATES.join(", "));
            return problem(StatusCode::BAD_REQUEST, "invalid_request", &message, None);
        }
        let states: Vec<String> = states.split(',').map(quoted).collect();
        tests.push(format!("state IN ({})", states.join(", ")));
    }
    let equal = [("rule", &listed.rule), ("severity", &listed.severity), ("agent_id", &listed.agent)];
    tests.extend(equal.into_iter().filter_map(|(c, v)| v.as_ref().map(|v| format!("{c} = {}", quoted(v)))));
    let limit = listed.limit.unwrap_or(LIMIT_DEFAULT).min(LIMIT_MAX);
    let sql =
        format!("SELECT * FROM alerts WHERE {} ORDER BY raised_time DESC, seq DESC LIMIT {limit}", tests.join(" AND "));
    match rows(&served, &caller, &sql).await {
        Ok((alerts, size)) => json_answer(StatusCode::OK, &json!({"alerts": alerts, "log_size": size})),
        Err(error) => error.into_response(),
    }
}

/// One alert, every record about it, and what it cites.
async fn show(State(served): State<Served>, caller: Caller, Path(id): Path<String>) -> Response {
    match shown(&served, &caller, &id).await {
        Ok(Some(body)) => json_answer(StatusCode::OK, &body),
        Ok(None) => {
            problem(StatusCode::NOT_FOUND, "not_found", "there is no alert with this id that you may see", None)
        }
        Err(error) => error.into_response(),
    }
}

async fn shown(served: &Served, caller: &Caller, id: &str) -> Result<Option<Json>, Error> {
    let (alerts, size) =
        rows(served, caller, &format!("SELECT * FROM alerts WHERE alert_id = {} ORDER BY seq", quoted(id))).await?;
    let Some(alert) = alerts.into_iter().next() else { return Ok(None) };
    let (steps, _) = rows(served, caller, &format!("SELECT * FROM alert_history({}) ORDER BY seq", quoted(id))).await?;
    let seqs: Vec<String> = alert["evidence"].as_array().into_iter().flatten().map(Json::to_string).collect();
    let evidence = match seqs.is_empty() {
        true => Vec::new(),
        false => {
            let columns = "seq, record_hash, event_time, ingest_time, kind, service, agent_id, trace_id, span_id, \
                           grant_id, action, resource, tool, decision, submitter";
            let sql = format!("SELECT {columns} FROM events WHERE seq IN ({}) ORDER BY seq", seqs.join(", "));
            rows(served, caller, &sql).await?.0
        }
    };
    Ok(Some(json!({"alert": alert, "history": steps, "evidence": evidence, "log_size": size})))
}

async fn rows(served: &Served, caller: &Caller, sql: &str) -> Result<(Vec<Map<String, Json>>, u64), Error> {
    let answer = served.engine.sql(caller, sql, Vec::new(), served.limits.clone()).await?;
    Ok((format::rows(&answer.batches)?, answer.as_of_size))
}

fn json_answer(status: StatusCode, body: &Json) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// What a request to act says.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Body {
    note: Option<String>,
    disposition: Option<String>,
    decision: Option<String>,
    tenant: Option<String>,
    bulk: bool,
}

/// Does one act.
async fn answer(
    State(served): State<Served>,
    caller: Caller,
    Path((alert_id, act_name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    // Who may not act learns nothing of what there is.
    if let Err(refusal) = may(&caller) {
        return refused(&refusal);
    }
    let Some(act_asked) = Act::of_name(&act_name) else {
        let names = Act::ALL.map(Act::name).join(", ");
        let message = format!("{act_name:?} is nothing to do about an alert; there are {names}");
        return problem(StatusCode::NOT_FOUND, "not_found", &message, None);
    };
    // A page of another site cannot send this type without being asked first.
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !content_type.starts_with("application/json") {
        let message = "send Content-Type: application/json";
        return problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message, None);
    }
    let read = if body.is_empty() { Ok(Body::default()) } else { serde_json::from_slice(&body) };
    let body = match read {
        Ok(body) => body,
        Err(error) => {
            let message = format!("the body is not {{\"note\": \"...\", ...}}: {error}");
            return problem(StatusCode::BAD_REQUEST, "invalid_request", &message, None);
        }
    };
    let key = match headers.get("idempotency-key").map(|value| value.to_str()) {
        None => None,
        Some(Ok(key)) => Some(key.to_owned()),
        Some(Err(_)) => {
            let message = "the Idempotency-Key must be plain ASCII";
            return problem(StatusCode::BAD_REQUEST, "invalid_request", message, None);
        }
    };
    let Body { note, disposition, decision, tenant, bulk } = body;
    let ask = Ask { alert_id, tenant, act: act_asked, note, disposition, decision, bulk, key };
    // Not given up when the client goes: what was begun is finished, and its repetition finds it.
    let done = tokio::spawn(async move { act(&served, &caller, ask).await }).await;
    match done {
        Ok(Ok(done)) => json_answer(if done.appended { StatusCode::CREATED } else { StatusCode::OK }, &done.json()),
        Ok(Err(refusal)) => refused(&refusal),
        Err(error) => Error::internal(format!("the act failed: {error}")).into_response(),
    }
}

fn refused(refusal: &Refusal) -> Response {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    problem(status, refusal.code, &refusal.message, None)
}

/// What came of an act.
#[derive(Clone, Debug)]
pub struct Done {
    /// What was done.
    pub act: Act,
    /// The record that says so.
    pub seq: u64,
    /// Whether it was appended now; else it was there before.
    pub appended: bool,
    /// The alert behind it.
    pub alert: AlertRow,
}

impl Done {
    /// As JSON.
    pub fn json(&self) -> Json {
        let alert = format::rows(&[AlertRow::batch(std::slice::from_ref(&self.alert))]).unwrap_or_default();
        let alert = alert.into_iter().next().map_or(Json::Null, Json::Object);
        json!({"act": self.act.name(), "seq": self.seq, "appended": self.appended, "alert": alert})
    }
}

/// Does what a person asks for about an alert.
///
/// # Errors
///
/// Those of [`plan`], and 503 if nothing can be appended.
pub async fn act(served: &Served, caller: &Caller, ask: Ask) -> Result<Done, Refusal> {
    let one_by_one = ACTING.lock().await;
    let snapshot = served.engine.view(caller);
    let (who, asked) = (caller.clone(), ask.clone());
    let planned = blocking(move || plan(&snapshot, &who, &asked)).await?;
    let (seq, appended) = match planned {
        Planned::Done(seq) => (seq, false),
        Planned::Append(said) => {
            let recorder = served.recorder().ok_or_else(read_only)?;
            let seqs = recorder.append(said).await?;
            (seqs.last().copied().unwrap_or_default(), true)
        }
    };
    wait_for(served, seq).await;
    drop(one_by_one);
    let (snapshot, id, tenant) = (served.engine.view(caller), ask.alert_id, ask.tenant);
    let found = blocking(move || alert(&snapshot, (&id, tenant.as_deref()), AsOf::Now).map_err(Refusal::from)).await?;
    let alert = found.into_iter().next().map(|(alert, _)| alert).unwrap_or_default();
    Ok(Done { act: ask.act, seq, appended, alert })
}

/// Waits until queries see a record. Durable it is already; that it is not visible soon is no failure.
pub async fn wait_for(served: &Served, seq: u64) {
    let mut visible = served.engine.projection().visible();
    let _ = tokio::time::timeout(VISIBLE_MAX, visible.wait_for(|size| *size > seq)).await;
}

/// Whose word counts for people by now.
///
/// # Errors
///
/// If rows cannot be read.
pub async fn speakers(served: &Served) -> Result<Speakers, Error> {
    let snapshot = served.engine.projection().snapshot();
    let read = tokio::task::spawn_blocking(move || Speakers::of(&snapshot, AsOf::Now)).await;
    read.unwrap_or_else(|e| Err(Error::internal(format!("the speakers cannot be read: {e}"))))
}

/// For a server with identities: from here on only those count for people who are named, these among them.
/// Without identities: everybody is taken at his word. Says it in the log if it was not so.
///
/// # Errors
///
/// If rows cannot be read or nothing can be appended.
pub async fn configure_speakers(served: &Served, has_identities: bool, identities: &[String]) -> Result<(), Error> {
    let said = speakers(served).await?.changes(has_identities, identities);
    match (said.is_empty(), served.recorder()) {
        (true, _) => Ok(()),
        (false, None) => Err(Error::new(ErrorKind::Unavailable, "this server can only be read")),
        (false, Some(recorder)) => recorder.append(said).await.map(drop),
    }
}

fn read_only() -> Refusal {
    Refusal { status: 503, code: "read_only", message: "this server can only be read".into() }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::internal(format!("the alerts cannot be read: {e}")).into()))
}
