//! Events for readers outside: `GET /api/v1/events` as pages and as server-sent events, consumers
//! whose place the server keeps, and the same over gRPC. docs/events.md is what readers rely on.
//!
//! A cursor names the next seq, the log and the filter. What is served lies below what is durable
//! and projected, in the order of the log, so a cursor never skips.

mod accept;
mod answer;
mod codec;
mod coding;
mod consumers;
mod export;
mod filter;
#[allow(missing_docs, clippy::all, reason = "made by tonic from events.proto")]
pub mod generated;
pub mod grpc;
mod held;
mod kept;
mod kinds;
mod limiter;
mod lines;
mod marks;
mod next;
mod packed;
pub(crate) mod page;
mod recent;
mod sealed;
mod sheet;
mod shelf;
mod state;
mod steps;
mod stream;
mod turns;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, RawQuery};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde::Deserialize;

use accept::Takes;
use coding::Coding;
pub use consumers::Consumers;
pub use export::Export;
pub(crate) use filter::{Cursors, Filter, Position};
pub use lines::Format;
pub(crate) use next::start;
pub(crate) use page::{Page, Wish};
pub(crate) use recent::Recent;
pub(crate) use sealed::Seals;
pub use sealed::Signer;
pub use shelf::{Directory, Put, Shelf};

use super::{Served, parameters, problem};
use crate::attributes::parse_time;
use crate::caller::{Caller, Role};
use crate::error::{Error, ErrorKind};
use crate::repeated::Repeat;
use limiter::{Allowance, Limiter};
use waiting::Waiting;

pub(crate) const LIMIT_DEFAULT: usize = 1_000;
pub(crate) const LIMIT_MAX: usize = 10_000;
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Requests of one caller in a minute, unless it is said otherwise.
pub const PAGES_PER_MINUTE: u32 = 6_000;

/// What the handlers of this module share.
pub struct Events {
    pub(crate) seals: Seals,
    limiter: Limiter,
    consumers: Option<Consumers>,
    waiting: Waiting,
    holding: held::Holding,
}

impl Default for Events {
    fn default() -> Self {
        Self::new(PAGES_PER_MINUTE)
    }
}

impl Events {
    /// With so many requests a minute for each caller.
    pub fn new(per_minute: u32) -> Self {
        Self {
            seals: Seals::default(),
            limiter: Limiter::new(per_minute),
            consumers: None,
            waiting: Waiting::default(),
            holding: held::Holding::default(),
        }
    }

    /// With a signer, so that a page need not wait for the next checkpoint.
    pub fn with_signer(mut self, signer: Arc<dyn Signer>) -> Self {
        self.seals = Seals::with(signer);
        self
    }

    /// With consumers whose place the server keeps.
    pub fn with_consumers(mut self, consumers: Consumers) -> Self {
        self.consumers = Some(consumers);
        self
    }
}

/// What this module answers.
pub(super) fn routes(served: &Served) -> Router<Served> {
    Router::new()
        .route("/api/v1/events", get(answer_events))
        .route("/api/v1/consumers", get(consumers::list))
        .route("/api/v1/consumers/{name}", get(consumers::show).delete(consumers::delete))
        .route("/api/v1/consumers/{name}/next", post(consumers::next))
        .route_service("/custody.v1.Events/{method}", grpc::service(served.clone()))
}

/// The query string.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Asked {
    after: Option<String>,
    limit: Option<usize>,
    kind: Option<String>,
    severity: Option<String>,
    agent: Option<String>,
    service: Option<String>,
    workspace: Option<String>,
    since: Option<String>,
    from_seq: Option<u64>,
    wait: Option<String>,
    format: Option<String>,
    proof: Option<String>,
    /// Consumers only: how long a batch is theirs.
    lease: Option<String>,
}

const PARAMETERS: &str = "after, limit, kind, severity, agent, service, workspace, since, from_seq, wait, format and proof (and lease, for consumers)";

/// A request, understood.
pub(crate) struct Request {
    pub(crate) filter: Arc<Filter>,
    pub(crate) cursors: Cursors,
    pub(crate) format: Format,
    /// What others have to ask for to be given the same.
    pub(crate) shape: Arc<str>,
    pub(crate) limit: usize,
    pub(crate) wait: Duration,
    pub(crate) proof: bool,
    pub(crate) lease: Duration,
    /// Where a reader without a cursor begins.
    pub(crate) begin: u64,
}

impl Request {
    /// What is asked for, for the records of who asked.
    fn words(&self, what: &str) -> String {
        format!("{what}, filter {}, format {}", self.filter.key(), self.format.name())
    }
}

/// Who pulls page by page is recorded when he begins, and then once a minute.
const POLLS: (&str, &str) = ("poll_begin", "polled");

impl Asked {
    /// Understands it; the error is what is wrong with it.
    pub(crate) fn read(&self, served: &Served, caller: &Caller) -> Result<Request, String> {
        let filter = Filter {
            kinds: filter::words(self.kind.as_deref()),
            severities: filter::words(self.severity.as_deref()),
            agents: filter::words(self.agent.as_deref()),
            services: filter::words(self.service.as_deref()),
            workspaces: filter::words(self.workspace.as_deref()),
            rows: caller.rows.clone(),
            who: Arc::clone(&caller.identity),
        };
        filter.check()?;
        let limit = self.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err("limit must be between 1 and 10000".into());
        }
        let reader = served.engine.projection().reader();
        let begin = match self.since.as_deref() {
            None | Some("") => self.from_seq.unwrap_or(0),
            Some(since) => {
                let time = parse_time(since)
                    .ok_or("since must be a time such as 2026-11-20T09:00:00Z, or seconds since 1970")?;
                reader.first_at(time.0.max(0).unsigned_abs()).map_err(|e| e.to_string())?
            }
        };
        let format = Format::parse(self.format.as_deref())?;
        Ok(Request {
            cursors: Cursors::of(reader.origin(), &filter),
            shape: page::shape(&filter, format),
            filter: Arc::new(filter),
            format,
            limit,
            wait: seconds(self.wait.as_deref(), Duration::ZERO)
                .ok_or("wait must be seconds, such as 30s")?
                .min(WAIT_MAX),
            proof: match self.proof.as_deref() {
                None | Some("0" | "false" | "") => false,
                Some("1" | "true") => true,
                Some(_) => return Err("proof must be 1 or 0".into()),
            },
            lease: seconds(self.lease.as_deref(), consumers::LEASE).ok_or("lease must be seconds, such as 600s")?,
            begin,
        })
    }
}

/// A time in seconds, with or without an `s`.
fn seconds(text: Option<&str>, default: Duration) -> Option<Duration> {
    let Some(text) = text else { return Some(default) };
    text.strip_suffix('s').unwrap_or(text).parse().ok().map(Duration::from_secs)
}

/// Who may read events; the headers of his allowance.
#[expect(clippy::result_large_err, reason = "the answer is sent at once; nothing else is made of it")]
pub(crate) fn admit(served: &Served, caller: &Caller) -> Result<Allowance, Response> {
    if !caller.may(Role::Stream) {
        let message = "this needs the role stream";
        return Err(problem(StatusCode::FORBIDDEN, "forbidden", message, None));
    }
    let allowance = served.events.limiter.ask(&caller.identity);
    if allowance.allowed {
        return Ok(allowance);
    }
    let message =
        format!("more than {} requests for events in a minute; ask again in {} s", allowance.limit, allowance.reset_in);
    let mut refused = problem(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", &message, None);
    allowance.tell(refused.headers_mut());
    Err(refused)
}

/// Answers one page, or a stream of them.
async fn answer_events(
    State(served): State<Served>,
    caller: Caller,
    asked: Result<Query<Asked>, QueryRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let allowance = match admit(&served, &caller) {
        Ok(allowance) => allowance,
        Err(refused) => return refused,
    };
    let mut response = match events(&served, &caller, asked, query.as_deref(), &headers).await {
        Ok(response) => response,
        Err(error) => refusal(error),
    };
    allowance.tell(response.headers_mut());
    response
}

/// An error with the headers by which pullers know when to come again.
pub(crate) fn refusal(error: Error) -> Response {
    let is_unavailable = error.kind == ErrorKind::Unavailable;
    let mut response = error.into_response();
    if is_unavailable {
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    response
}

async fn events(
    served: &Served,
    caller: &Caller,
    asked: Result<Query<Asked>, QueryRejection>,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response, Error> {
    let bad = |message: &str| problem(StatusCode::BAD_REQUEST, "invalid_request", message, None);
    let asked = match asked {
        Ok(Query(asked)) => asked,
        Err(error) => return Ok(bad(&parameters::wrong(&error, PARAMETERS))),
    };
    let request = match asked.read(served, caller) {
        Ok(request) => request,
        Err(message) => return Ok(bad(&message)),
    };
    let takes = accept::takes(headers, answer::lines_type(&request), accept::PAGES);
    let (streams, json) = (takes == Takes::Stream, takes == Takes::Object);
    let accepted = match coding::accepted(headers, if streams { Coding::STREAMS } else { Coding::PAGES }) {
        Ok(accepted) => accepted,
        Err(refused) => return Ok(refused),
    };
    // An empty one, which some clients send before they have one, says nothing.
    let resumed = headers.get("last-event-id").and_then(|v| v.to_str().ok()).filter(|id| streams && !id.is_empty());
    let after = resumed.or(asked.after.as_deref()).filter(|cursor| !cursor.is_empty());
    let place = match after.map(|cursor| request.cursors.decode(cursor)) {
        None => None,
        Some(Ok(place)) => Some(place),
        Some(Err(message)) => return Ok(bad(message)),
    };
    if request.proof && !json {
        return Ok(bad("proof=1 needs Accept: application/json"));
    }
    if request.proof {
        // It has entries of all records, as tiles do, for whom tiles are.
        let may = caller.require(&[Role::Witness, Role::Read], "the proof of a page");
        may.inspect_err(|error| served.engine.audit().refused(caller, &error.message))?;
    }
    let position = place.map(|place| next::known(served, place)).transpose()?;
    let position = match start(served, &request, position)? {
        Ok(position) => position,
        Err(gone) => return Ok(gone),
    };
    let poll = match streams {
        true => Repeat::default(),
        false => served.engine.audit().repeated(caller, POLLS, &request.words("events")).await?,
    };
    let shape = answer::Shape { json, accepted, query, headers };
    if streams || !request.wait.is_zero() {
        let place = served.events.waiting.enter(&caller.identity);
        let place = place.map_err(|message| Error::new(ErrorKind::Unavailable, message))?;
        if streams {
            let way = stream::Way::Events(accepted.coding);
            let following = stream::Following::begin(served.clone(), caller, request, position, way, place);
            return Ok(stream::answer(following.await?));
        }
        let answer = paged(served, (&request, position), shape, &poll).await;
        drop(place);
        return answer;
    }
    paged(served, (&request, position), shape, &poll).await
}

async fn paged(
    served: &Served,
    (request, position): (&Request, Position),
    shape: answer::Shape<'_>,
    poll: &Repeat,
) -> Result<Response, Error> {
    served.engine.stats().page();
    let form = (answer::form(request, shape.json), shape.accepted.coding);
    let sheet = next::page(served, request, position.seq, request.limit, form).await?;
    if let Some(gone) = next::missed(served, request, position, sheet.next)? {
        return Ok(gone);
    }
    poll.gave(sheet.matched as u64, position.seq..sheet.next);
    answer::page(served, request, position, &sheet, shape).await
}
