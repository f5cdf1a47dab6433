//! Consumers whose place the server keeps, for pullers that keep none (Vector's `http_client`,
//! Logstash's `http_poller`): each `POST /api/v1/consumers/<name>/next` gives the next batch and
//! says that the one before was received.
//!
//! A batch is leased. A call within the lease commits it; after that the same batch comes again,
//! for the puller may have died with it. It is durable before it is sent that a batch was given
//! out, so a restart neither loses nor doubles one. This is weaker than a cursor of the reader's own: an
//! answer that is lost on the way is committed by the next call all the same.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;

use super::accept::{self, Takes};
use super::coding::{self, Accepted, Coding};
use super::page::Page;
use super::sheet::Sheet;
use super::state::{Consumer, Key, Lease, States};
use super::{Asked, PARAMETERS, POLLS, Position, Request, admit, answer, next as pages, refusal, start};
use crate::caller::Caller;
use crate::error::{Error, ErrorKind};
use crate::repeated::Repeat;
use crate::serve::{Served, parameters, problem};

/// How long a batch is its consumer's, unless the call says otherwise.
pub(super) const LEASE: Duration = Duration::from_secs(600);

/// Consumers of one caller, and of all.
const OWN_MAX: usize = 100;
const ALL_MAX: usize = 1_000;

/// The consumers of a log.
pub struct Consumers {
    states: Arc<States>,
    /// Those that are being answered.
    busy: Arc<Mutex<HashSet<Key>>>,
}

impl Consumers {
    /// Those of a data directory, in its file consumers.json.
    ///
    /// # Errors
    ///
    /// If the file is there and cannot be read.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let states = States::open(&dir.join("consumers.json"))?;
        Ok(Self { states: Arc::new(states), busy: Arc::default() })
    }

    /// Keeps a consumer, durably; `None` forgets it. Those who come at the same time share one sync.
    async fn put(&self, key: Key, consumer: Option<Consumer>) -> Result<(), Error> {
        let saved = self.states.change(key, consumer);
        let states = Arc::clone(&self.states);
        let done = tokio::task::spawn_blocking(move || states.save()).await;
        done.map_err(|e| Error::internal(e.to_string()))?;
        saved.await.map_err(|e| Error::internal(e.to_string()))?
    }

    /// Keeps a consumer that went on and has nothing to lose.
    async fn remember(&self, key: Key, consumer: Consumer) -> Result<(), Error> {
        if self.states.remember(key, consumer) {
            let states = Arc::clone(&self.states);
            tokio::task::spawn_blocking(move || states.save()).await.map_err(|e| Error::internal(e.to_string()))?;
        }
        Ok(())
    }

    /// Whether there is room for one more of a caller.
    fn has_room(&self, identity: &str) -> bool {
        let (own, all) = self.states.of(identity);
        own.len() < OWN_MAX && all < ALL_MAX
    }
}

/// A consumer that is being answered; another call for it meanwhile gets an empty page.
struct Busy(Arc<Mutex<HashSet<Key>>>, Key);

impl Busy {
    fn begin(consumers: &Consumers, key: &Key) -> Option<Self> {
        let is_first = consumers.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        is_first.then(|| Self(Arc::clone(&consumers.busy), key.clone()))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

fn key(caller: &Caller, name: &str) -> Key {
    (caller.identity.to_string(), name.to_owned())
}

fn of(served: &Served) -> Result<&Consumers, Error> {
    let none = || Error::new(ErrorKind::Unavailable, "only a server that follows the log keeps consumers");
    served.events.consumers.as_ref().ok_or_else(none)
}

fn missing(name: &str) -> Response {
    let message = format!("you have no consumer {name:?}; POST /api/v1/consumers/{name}/next makes it");
    problem(StatusCode::NOT_FOUND, "not_found", &message, None)
}

/// A consumer, for its owner.
fn told(consumer: &Consumer, size: u64) -> serde_json::Value {
    json!({
        "name": consumer.name, "committed_seq": consumer.seq, "behind_records": size.saturating_sub(consumer.seq),
        "committed_events": consumer.committed_events, "redelivered": consumer.redelivered,
        "filter": serde_json::from_str::<serde_json::Value>(&consumer.filter).ok(),
        "leased": consumer.lease.map(|lease| json!({
            "next_seq": lease.seq, "events": lease.events, "expires_in_seconds": lease.until.saturating_sub(now()) / 1_000_000_000,
        })),
    })
}

fn as_json(value: &serde_json::Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (headers, value.to_string()).into_response()
}

/// The caller's consumers.
pub(super) async fn list(State(served): State<Served>, caller: Caller) -> Response {
    if let Err(refused) = admit(&served, &caller) {
        return refused;
    }
    let consumers = match of(&served) {
        Ok(consumers) => consumers,
        Err(error) => return refusal(error),
    };
    let size = served.engine.projection().snapshot().size;
    let own: Vec<_> = consumers.states.of(&caller.identity).0.iter().map(|consumer| told(consumer, size)).collect();
    as_json(&json!({"consumers": own}))
}

/// Where a consumer stands.
pub(super) async fn show(State(served): State<Served>, caller: Caller, UrlPath(name): UrlPath<String>) -> Response {
    if let Err(refused) = admit(&served, &caller) {
        return refused;
    }
    match of(&served).map(|consumers| consumers.states.get(&key(&caller, &name))) {
        Err(error) => refusal(error),
        Ok(None) => missing(&name),
        Ok(Some(consumer)) => as_json(&told(&consumer, served.engine.projection().snapshot().size)),
    }
}

/// Forgets a consumer.
pub(super) async fn delete(State(served): State<Served>, caller: Caller, UrlPath(name): UrlPath<String>) -> Response {
    if let Err(refused) = admit(&served, &caller) {
        return refused;
    }
    let key = key(&caller, &name);
    let consumers = match of(&served) {
        Ok(consumers) if consumers.states.get(&key).is_none() => return missing(&name),
        Ok(consumers) => consumers,
        Err(error) => return refusal(error),
    };
    let audit = served.engine.audit();
    let record = audit.with_text(audit.act(&caller, "consumer_deleted"), &name);
    if let Err(error) = audit.say(&caller, record).await {
        return refusal(error);
    }
    match consumers.put(key, None).await {
        Ok(()) => as_json(&json!({"deleted": name})),
        Err(error) => refusal(error),
    }
}

/// The next batch.
pub(super) async fn next(
    State(served): State<Served>,
    caller: Caller,
    UrlPath(name): UrlPath<String>,
    asked: Result<Query<Asked>, QueryRejection>,
    headers: HeaderMap,
    // Read and not needed: a connection that is closed over unread bytes is reset, and the answer lost.
    _: Result<Bytes, BytesRejection>,
) -> Response {
    let allowance = match admit(&served, &caller) {
        Ok(allowance) => allowance,
        Err(refused) => return refused,
    };
    let mut response = match batch(&served, &caller, &name, asked, &headers).await {
        Ok(response) => response,
        Err(error) => refusal(error),
    };
    allowance.tell(response.headers_mut());
    response
}

async fn batch(
    served: &Served,
    caller: &Caller,
    name: &str,
    asked: Result<Query<Asked>, QueryRejection>,
    headers: &HeaderMap,
) -> Result<Response, Error> {
    let bad = |message: &str| Ok(problem(StatusCode::BAD_REQUEST, "invalid_request", message, None));
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.len() > 100 || !name.chars().all(is_name) {
        return bad("the name of a consumer is up to 100 letters, digits, dots, dashes and underscores");
    }
    let asked = match asked {
        Ok(Query(asked)) => asked,
        Err(error) => return bad(&parameters::wrong(&error, PARAMETERS)),
    };
    if asked.after.is_some() || asked.proof.is_some() {
        return bad("a consumer has no cursor and no proof: the server keeps its place");
    }
    let request = match asked.read(served, caller) {
        Ok(request) => request,
        Err(message) => return bad(&message),
    };
    let json = accept::takes(headers, answer::lines_type(&request), accept::BATCHES) == Takes::Object;
    let accepted = match coding::accepted(headers, Coding::PAGES) {
        Ok(accepted) => accepted,
        Err(refused) => return Ok(refused),
    };
    let words = request.words(&format!("events of the consumer {name}"));
    let poll = served.engine.audit().repeated(caller, POLLS, &words).await?;
    deliver(served, key(caller, name), &request, (json, accepted), &poll).await
}

/// Gives out the next batch, or the one before again.
async fn deliver(
    served: &Served,
    key: Key,
    request: &Request,
    wanted: (bool, Accepted),
    poll: &Repeat,
) -> Result<Response, Error> {
    let consumers = of(served)?;
    let Some(_busy) = Busy::begin(consumers, &key) else {
        let none = Arc::new(Sheet::of(&Page::default()));
        return answered((served, request), (0, &none, 0), wanted, ("busy", None)).await;
    };
    let filter = request.filter.key();
    let kept = consumers.states.get(&key);
    let is_fresh = kept.is_none();
    let mut consumer = match kept {
        Some(consumer) if consumer.filter != filter => {
            let message = "this consumer was made with another filter; take another name, or DELETE it first";
            return Ok(problem(StatusCode::BAD_REQUEST, "invalid_request", message, None));
        }
        Some(consumer) => consumer,
        None if !consumers.has_room(&key.0) => {
            let message = format!("there may be {OWN_MAX} consumers of one caller and {ALL_MAX} in all; DELETE some");
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        None => fresh(served, request, &key, filter)?,
    };
    let redelivers = consumer.lease.is_some_and(|lease| lease.until <= now());
    let limit = match consumer.lease.filter(|_| redelivers) {
        Some(lease) => lease.limit,
        None => request.limit,
    };
    if redelivers {
        consumer.redelivered += 1;
    } else {
        consumer.commit();
    }
    let position = match start(served, request, Some(pages::known(served, consumer.place())?))? {
        Ok(position) => position,
        Err(gone) => return pass_over(served, key, consumer, gone).await,
    };
    served.engine.stats().page();
    let form = (answer::form(request, wanted.0), wanted.1.coding);
    let page = pages::page(served, request, position.seq, limit, form).await?;
    if let Some(gone) = pages::missed(served, request, position, page.next)? {
        return pass_over(served, key, consumer, gone).await;
    }
    poll.gave(page.matched as u64, position.seq..page.next);
    // Before the batch is leased: nobody waits then for an answer that is his.
    let note = served.events.seals.covering(served.engine.projection().reader(), page.next).await?;
    // Durable before it is sent: after a crash here the next call is taken for the answer to this one's
    // batch only within the lease, and otherwise it is given out again.
    consumer.known = Some(position.known);
    let before = consumers.states.get(&key);
    if !is_fresh && before.is_none() {
        // Somebody deleted it meanwhile, and was told that it is gone.
        return Ok(missing(&key.1));
    }
    consumer.lease = Some(Lease {
        seq: page.next,
        known: Some(position.known),
        horizon: 0,
        mark: Some(page.mark),
        until: now().saturating_add(u64::try_from(request.lease.as_nanos()).unwrap_or(u64::MAX)),
        limit,
        events: page.matched,
    });
    if page.matched == 0 {
        // Nothing can be lost of an empty batch; where it ends is committed at once.
        consumer.commit();
    }
    // That the next records gave no event is found out again after a crash: nobody waits for a sync of it.
    let is_idle = page.matched == 0 && before.as_ref().is_some_and(|before| before.lease.is_none());
    match before.as_ref() == Some(&consumer) {
        true => {}
        false if is_idle => consumers.remember(key, consumer).await?,
        false => consumers.put(key, Some(consumer)).await?,
    }
    let (size, state) = (served.engine.projection().snapshot().size, if redelivers { "redelivered" } else { "leased" });
    answered((served, request), (position.seq, &page, size), wanted, (state, note)).await
}

/// What retention erased is told once; the next call goes on behind it.
async fn pass_over(served: &Served, key: Key, mut consumer: Consumer, gone: Response) -> Result<Response, Error> {
    let erased = served.events.seals.erased(served.engine.projection())?;
    consumer.go_to(Position { seq: erased.earliest(consumer.seq), known: erased.known() }, None);
    consumer.lease = None;
    of(served)?.put(key, Some(consumer)).await?;
    Ok(gone)
}

fn fresh(served: &Served, request: &Request, key: &Key, filter: String) -> Result<Consumer, Error> {
    let position = start(served, request, None)?.unwrap_or_else(|_| Position::default());
    Ok(Consumer {
        identity: key.0.clone(),
        name: key.1.clone(),
        filter,
        seq: position.seq,
        known: Some(position.known),
        horizon: 0,
        mark: None,
        lease: None,
        committed_events: 0,
        redelivered: 0,
    })
}

/// A batch as an answer: lines, or an object with what a page has but a cursor.
async fn answered(
    (served, request): (&Served, &Request),
    (from, page, size): (u64, &Arc<Sheet>, u64),
    (json, accepted): (bool, Accepted),
    (state, note): (&'static str, Option<String>),
) -> Result<Response, Error> {
    let covered = answer::Covered::new(from, page, size);
    let (content_type, head, tail) = match json {
        true => ("application/json", answer::ARRAY, covered.tail("", note.as_deref(), None)),
        false => (answer::lines_type(request), "", String::new()),
    };
    let coding = if accepted.always { accepted.coding } else { page.coding() };
    let body = answer::body((served, request), (head, page, tail), coding).await?;
    let fields = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::VARY, "Accept, Accept-Encoding, Authorization"),
    ];
    let mut response = (fields, body).into_response();
    answer::says(&mut response, coding);
    let headers = response.headers_mut();
    headers.insert("x-consumer-state", HeaderValue::from_static(state));
    headers.insert("x-has-more", HeaderValue::from_static(if page.next < size { "true" } else { "false" }));
    if let Some(note) = note.and_then(|note| HeaderValue::from_str(&answer::sealed_header(&note)).ok()) {
        headers.insert("x-checkpoint", note);
    }
    Ok(response)
}
