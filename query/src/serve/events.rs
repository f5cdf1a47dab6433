//! `GET /api/v1/events`: provenance events in seq order, by an opaque cursor.
//!
//! A cursor names the next seq, the log and the filter. What is served lies below
//! what is durable and projected, so a page that was full never changes, and a
//! cursor never skips.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use datafusion::arrow::array::{Array as _, UInt64Array};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use tokio::time::Instant;

use super::{Served, problem};
use crate::audit::StreamWatch;
use crate::caller::Caller;
use crate::error::Error;
use crate::format;
use crate::projection::Snapshot;
use crate::segments::{Table, Wanted};

const LIMIT_DEFAULT: usize = 1_000;
const LIMIT_MAX: usize = 10_000;
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The query string.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    after: Option<String>,
    limit: Option<usize>,
    /// Kinds, with commas between.
    kind: Option<String>,
    wait: Option<String>,
    format: Option<String>,
}

/// One page of events.
pub(crate) struct Page {
    pub(crate) events: Vec<Map<String, Json>>,
    /// Where the next page begins.
    pub(crate) next: u64,
    pub(crate) has_more: bool,
}

/// Reads one page from a snapshot: all events of every seq that it touches.
pub(crate) fn page(snapshot: &Snapshot, from: u64, limit: usize, kinds: &[String]) -> Result<Page, Error> {
    let mut events: Vec<Map<String, Json>> = Vec::new();
    let mut last = None;
    let mut wanted = Wanted::all(Table::Events).seqs(from..snapshot.size);
    if !kinds.is_empty() {
        wanted = wanted.only("kind", kinds.iter().map(String::as_str));
    }
    snapshot.read(&wanted, |batch| {
        let seqs = batch.column(0).as_any().downcast_ref::<UInt64Array>();
        let seqs = seqs.map_or(&[][..], |seqs| seqs.values());
        // A seq that has begun is finished, also beyond the limit.
        let room = limit.saturating_sub(events.len());
        let more =
            |i: &usize| *i < room || i.checked_sub(1).map_or(last, |before| Some(seqs[before])) == Some(seqs[*i]);
        let taken = (0..seqs.len()).take_while(more).count();
        last = seqs[..taken].last().copied().or(last);
        events.extend(format::rows(&[batch.slice(0, taken)])?.into_iter().map(plain));
        Ok(taken == seqs.len())
    })?;
    let full = events.len() >= limit;
    let next = if full { last.map_or(from, |last| last + 1) } else { snapshot.size.max(from) };
    Ok(Page { events, next, has_more: full && next < snapshot.size })
}

/// Attributes as an object, not as text in text.
fn plain(mut event: Map<String, Json>) -> Map<String, Json> {
    if let Some(Json::String(text)) = event.get("attributes")
        && let Ok(object) = serde_json::from_str(text)
    {
        event.insert("attributes".into(), object);
    }
    event
}

/// What a cursor is bound to.
struct Cursors {
    bound: [u8; 8],
}

impl Cursors {
    fn of(origin: &str, kinds: &[String]) -> Self {
        let hash = blake3::hash(format!("{origin}\n{}", kinds.join(",")).as_bytes());
        let mut bound = [0; 8];
        bound.copy_from_slice(&hash.as_bytes()[..8]);
        Self { bound }
    }

    fn encode(&self, seq: u64) -> String {
        URL_SAFE_NO_PAD.encode([&[1][..], &self.bound, &seq.to_be_bytes()].concat())
    }

    fn decode(&self, cursor: &str) -> Result<u64, &'static str> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| "this is not a cursor of this API")?;
        let bytes: [u8; 17] = bytes.try_into().map_err(|_| "this is not a cursor of this API")?;
        if bytes[0] != 1 {
            return Err("this cursor is of another version");
        }
        if bytes[1..9] != self.bound {
            return Err(
                "this cursor is of another log or another filter; keep one cursor per filter, or begin without one",
            );
        }
        let mut seq = [0; 8];
        seq.copy_from_slice(&bytes[9..]);
        Ok(u64::from_be_bytes(seq))
    }
}

/// Answers one page, or a stream of them.
pub(super) async fn answer(
    State(served): State<Served>,
    caller: Caller,
    asked: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let bad = |message: &str| problem(StatusCode::BAD_REQUEST, "invalid_request", message, None);
    let asked = match asked {
        Ok(Query(asked)) => asked,
        Err(error) => {
            return bad(&format!("{}; the parameters are after, limit, kind, wait and format", error.body_text()));
        }
    };
    if asked.format.as_deref().is_some_and(|f| f != "raw") {
        return bad("format must be raw");
    }
    let limit = match asked.limit.unwrap_or(LIMIT_DEFAULT) {
        limit @ 1..=LIMIT_MAX => limit,
        _ => return bad("limit must be between 1 and 10000"),
    };
    let Some(wait) = read_wait(asked.wait.as_deref()) else { return bad("wait must be seconds, such as 30s") };
    let kinds: Vec<String> =
        asked.kind.as_deref().unwrap_or_default().split(',').filter(|k| !k.is_empty()).map(str::to_owned).collect();
    let cursors = Cursors::of(served.engine.projection().reader().origin(), &kinds);
    let streams = headers.get(header::ACCEPT).is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
    let resumed = headers.get("last-event-id").and_then(|v| v.to_str().ok()).filter(|_| streams);
    let from = match resumed.or(asked.after.as_deref()).map(|cursor| cursors.decode(cursor)) {
        None => 0,
        Some(Ok(from)) => from,
        Some(Err(message)) => return bad(message),
    };
    if streams {
        let what = format!("events after {from}, kinds {}", kinds.join(","));
        return match served.engine.audit().begin_stream(&caller, &what).await {
            Ok(watch) => stream(served, caller, watch, cursors, from, kinds).into_response(),
            Err(error) => error.into_response(),
        };
    }
    served.engine.stats().page();
    match next_page(&served, &caller, from, limit, &kinds, wait).await {
        Ok(page) => whole(&served, &asked, &headers, &cursors, from, limit, page),
        Err(error) => error.into_response(),
    }
}

fn read_wait(text: Option<&str>) -> Option<Duration> {
    let Some(text) = text else { return Some(Duration::ZERO) };
    let seconds = text.strip_suffix('s').unwrap_or(text).parse().ok()?;
    Some(Duration::from_secs(seconds).min(WAIT_MAX))
}

/// The next page; waits for one that is not empty, up to a time.
async fn next_page(
    served: &Served,
    caller: &Caller,
    from: u64,
    limit: usize,
    kinds: &[String],
    wait: Duration,
) -> Result<Page, Error> {
    let until = Instant::now() + wait;
    let mut visible = served.engine.projection().visible();
    let mut from = from;
    loop {
        visible.borrow_and_update();
        let snapshot = served.engine.view(caller);
        let kinds = kinds.to_vec();
        // Reading segments blocks.
        let read = tokio::task::spawn_blocking(move || page(&snapshot, from, limit, &kinds));
        let page = read.await.map_err(|e| Error::internal(format!("the events cannot be read: {e}")))??;
        if !page.events.is_empty() || Instant::now() >= until {
            return Ok(page);
        }
        from = page.next;
        let _ = tokio::time::timeout_at(until, visible.changed()).await;
    }
}

fn whole(
    served: &Served,
    asked: &Asked,
    headers: &HeaderMap,
    cursors: &Cursors,
    from: u64,
    limit: usize,
    page: Page,
) -> Response {
    let cursor = cursors.encode(page.next);
    let kind = asked.kind.as_ref().map_or_else(String::new, |kind| format!("&kind={kind}"));
    let link = format!("</api/v1/events?after={cursor}&limit={limit}{kind}>; rel=\"next\"");
    let json = headers.get(header::ACCEPT).is_some_and(|v| v.as_bytes().starts_with(b"application/json"));
    let (content_type, body) = if json {
        let seq = |event: Option<&Map<String, Json>>| event.and_then(|e| e.get("seq")).cloned();
        let matched = page.events.len() as u64;
        let range = json!({
            "first_seq": seq(page.events.first()), "last_seq": seq(page.events.last()), "matched": matched,
            "skipped": (page.next - from.min(page.next)).saturating_sub(matched),
        });
        let checkpoint = served.engine.projection().reader().checkpoint().ok().flatten();
        let body = json!({"data": page.events, "next_cursor": cursor, "has_more": page.has_more, "range": range, "checkpoint": checkpoint});
        ("application/json", body.to_string())
    } else {
        ("application/x-ndjson", page.events.into_iter().map(|e| Json::Object(e).to_string() + "\n").collect())
    };
    let mut response = ([(header::CONTENT_TYPE, content_type)], body).into_response();
    for (name, value) in [("link", link), ("x-next-cursor", cursor), ("x-has-more", page.has_more.to_string())] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// The same as server-sent events, with the cursor as their id. A slow reader
/// holds one page, and nobody else up.
fn stream(
    served: Served,
    caller: Caller,
    watch: StreamWatch,
    cursors: Cursors,
    from: u64,
    kinds: Vec<String>,
) -> impl IntoResponse {
    let open = served.engine.stats().stream();
    let pages = futures::stream::unfold(
        (served, caller, watch, cursors, from, kinds, open),
        |(served, caller, mut watch, cursors, from, kinds, open)| async move {
            let page = next_page(&served, &caller, from, LIMIT_DEFAULT, &kinds, WAIT_MAX).await.ok()?;
            let next = page.next;
            watch.rows += page.events.len() as u64;
            let event = |e: Map<String, Json>| {
                let seq = e.get("seq").and_then(Json::as_u64).unwrap_or(next);
                Ok::<_, Infallible>(Event::default().id(cursors.encode(seq + 1)).data(Json::Object(e).to_string()))
            };
            let events: Vec<_> = page.events.into_iter().map(event).collect();
            Some((futures::stream::iter(events), (served, caller, watch, cursors, next, kinds, open)))
        },
    );
    Sse::new(futures::StreamExt::flatten(pages)).keep_alive(KeepAlive::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventRow;
    use proptest::prelude::*;

    fn snapshot(seqs: &[u64], size: u64) -> Snapshot {
        let kind = |seq: &u64| if seq.is_multiple_of(3) { "alert" } else { "tool_call" };
        let row =
            |seq: &u64| EventRow { seq: *seq, kind: kind(seq).into(), attributes: "{}".into(), ..EventRow::default() };
        let rows: Vec<EventRow> = seqs.iter().map(row).collect();
        Snapshot::of_events(rows.chunks(7).map(EventRow::batch).collect(), size)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Any page sizes, any filter: no gap, no doubles, in order.
        #[test]
        fn pages_join_without_gap_or_double(
            gaps in proptest::collection::vec(0u64..4, 0..60), limits in proptest::collection::vec(1usize..9, 1..8), alerts: bool,
        ) {
            let mut seq = 0;
            let seqs: Vec<u64> = gaps.iter().map(|gap| { seq += gap; seq }).collect();
            let kinds = if alerts { vec!["alert".to_owned()] } else { vec![] };
            let snapshot = snapshot(&seqs, seq + 5);
            let mut got = Vec::new();
            let mut from = 0;
            for limit in limits.iter().cycle() {
                let page = page(&snapshot, from, *limit, &kinds).unwrap();
                got.extend(page.events.iter().map(|e| e["seq"].as_u64().unwrap()));
                prop_assert!(page.next >= from);
                from = page.next;
                if from >= snapshot.size { break; }
            }
            let want: Vec<u64> = seqs.into_iter().filter(|s| !alerts || s.is_multiple_of(3)).collect();
            prop_assert_eq!(got, want);
        }

        #[test]
        fn cursors_are_bound_to_log_and_filter(seq: u64, text in "[A-Za-z0-9_-]{0,30}") {
            let cursors = Cursors::of("log", &[]);
            prop_assert_eq!(cursors.decode(&cursors.encode(seq)), Ok(seq));
            prop_assert!(Cursors::of("log", &["alert".into()]).decode(&cursors.encode(seq)).is_err());
            prop_assert!(Cursors::of("other", &[]).decode(&cursors.encode(seq)).is_err());
            prop_assert!(cursors.decode(&text).is_err());
        }
    }
}
