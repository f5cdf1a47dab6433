//! A page as an HTTP answer: NDJSON or one JSON object, its headers, and conditional requests.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};

use super::held::Held;
use super::{Page, Position, Request, sealed};
use crate::error::Error;
use crate::serve::Served;

/// A body up to this size is made at once.
const SMALL_BYTES: usize = 1 << 20;

/// Events of a larger one that are written at a time.
const STEP_LINES: usize = 64;

/// How the reader wants it.
pub(super) struct Shape<'a> {
    /// One JSON object, not lines.
    pub(super) json: bool,
    /// His query string, for the link to the next page.
    pub(super) query: Option<&'a str>,
    pub(super) headers: &'a HeaderMap,
}

/// The range of the log that a page covers.
pub(super) fn range(page: &Page) -> Json {
    let last = (page.next > page.from).then(|| page.next - 1);
    json!({
        "first_seq": last.map(|_| page.from), "last_seq": last, "matched": page.lines.len(), "skipped": page.skipped(),
    })
}

/// Answers with a page, or that the reader has it already.
pub(super) async fn page(
    served: &Served,
    request: &Request,
    position: Position,
    (page, held): (&Arc<Page>, Held),
    shape: Shape<'_>,
) -> Result<Response, Error> {
    let reader = served.engine.projection().reader();
    let checkpoint = served.events.seals.covering(reader, page.next).await?;
    let cursor = request.cursors.encode(Position { seq: page.next, horizon: position.horizon });
    let proof = match request.proof {
        false => None,
        true => {
            let (reader, from, next, note) = (reader.clone(), page.from, page.next, checkpoint.clone());
            let prove = move || sealed::range_proof(&reader, from, next, note.as_deref());
            Some(tokio::task::spawn_blocking(prove).await.map_err(|e| Error::internal(e.to_string()))??)
        }
    };
    let content_type = if shape.json { "application/json" } else { ndjson_type(request) };
    // A page that was full with more behind it is the same for ever, but for its checkpoint.
    let mut etag = String::new();
    if page.has_more && page.lines.len() >= request.limit {
        let fixed = if shape.json { tail(page, &cursor, None, None) } else { String::new() };
        etag = digest(page.lines.iter().map(|line| line.text.as_bytes()).chain([fixed.as_bytes()]));
        if shape.json {
            let proof = proof.as_ref().map(Json::to_string).unwrap_or_default();
            let note = checkpoint.as_deref().unwrap_or_default();
            etag = format!("{etag}.{}", digest([note.as_bytes(), proof.as_bytes()].into_iter()));
        }
        etag = format!("\"{etag}\"");
        if let Some(known) = known(shape.headers, &etag) {
            let mut response = StatusCode::NOT_MODIFIED.into_response();
            fill(&mut response, &cursor, page, &shape, checkpoint.as_deref(), &known);
            return Ok(response);
        }
    }
    let form = match shape.json {
        true => Form::Object {
            quoted: !request.format.is_json(),
            tail: tail(page, &cursor, checkpoint.as_deref(), proof.as_ref()),
        },
        false => Form::Lines,
    };
    let body = body(Arc::clone(page), form, held);
    let mut response = ([(header::CONTENT_TYPE, content_type)], body).into_response();
    fill(&mut response, &cursor, page, &shape, checkpoint.as_deref(), &etag);
    Ok(response)
}

fn ndjson_type(request: &Request) -> &'static str {
    if request.format.is_json() { "application/x-ndjson" } else { "text/plain; charset=utf-8" }
}

/// How the events of a page become a body.
pub(super) enum Form {
    /// A line an event.
    Lines,
    /// One object; events that are no JSON are texts in it.
    Object { quoted: bool, tail: String },
}

/// The body of a page. A large one is made as it is sent: a slow reader holds the page, which he may
/// share with others, and no copy.
pub(super) fn body(page: Arc<Page>, form: Form, held: Held) -> Body {
    let (head, tail, quoted) = match form {
        Form::Lines => ("", String::new(), None),
        Form::Object { quoted, tail } => ("{\"data\":[", tail, Some(quoted)),
    };
    let is_small = page.bytes <= SMALL_BYTES;
    let step = if is_small { page.lines.len().max(1) } else { STEP_LINES };
    let bytes = page.bytes;
    let steps = (0..page.lines.len()).step_by(step).map(move |at| {
        let _ = &held;
        let mut out = String::new();
        for (i, line) in page.lines.iter().enumerate().skip(at).take(step) {
            match quoted {
                None => out.push_str(&line.text),
                Some(_) if i > 0 => out.push(','),
                Some(_) => {}
            }
            match quoted {
                None => out.push('\n'),
                Some(false) => out.push_str(&line.text),
                Some(true) => out.push_str(&Json::String(line.text.clone()).to_string()),
            }
        }
        out
    });
    let parts = std::iter::once(head.to_owned()).chain(steps).chain([tail]);
    if is_small {
        let mut whole = String::with_capacity(bytes + 4096);
        parts.for_each(|part| whole.push_str(&part));
        return Body::from(whole);
    }
    Body::from_stream(futures::stream::iter(parts.map(Ok::<_, Infallible>)))
}

/// What stands behind the events in an object.
pub(super) fn tail(page: &Page, cursor: &str, checkpoint: Option<&str>, proof: Option<&Json>) -> String {
    let mut rest = json!({
        "next_cursor": cursor, "has_more": page.has_more, "range": range(page), "checkpoint": checkpoint,
    });
    if let (Some(proof), Some(object)) = (proof, rest.as_object_mut()) {
        object.insert("proof".into(), proof.clone());
    }
    format!("],{}", &rest.to_string()[1..])
}

/// Texts as one short one.
fn digest<'a>(parts: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_be_bytes()).update(part);
    }
    hasher.finalize().to_hex()[..24].to_owned()
}

/// The tag of a representation that the reader has and that is as good as ours: the same events
/// under the same or another checkpoint that covers them.
fn known(headers: &HeaderMap, etag: &str) -> Option<String> {
    let events = |tag: &str| tag.trim_matches('"').split('.').next().map(str::to_owned);
    let asked = headers.get(header::IF_NONE_MATCH)?.to_str().ok()?;
    asked
        .split(',')
        .map(str::trim)
        .find(|tag| tag.len() == etag.len() && events(tag) == events(etag))
        .map(str::to_owned)
}

/// The headers of a page.
fn fill(response: &mut Response, cursor: &str, page: &Page, shape: &Shape<'_>, checkpoint: Option<&str>, etag: &str) {
    // The same request behind the cursor: other parameters stay as they were sent.
    let kept = shape.query.unwrap_or_default().split('&').filter(|p| !p.is_empty() && !p.starts_with("after="));
    let query: String = kept.map(|parameter| format!("&{parameter}")).collect();
    let caching = if etag.is_empty() { "no-store" } else { "private, max-age=31536000, immutable" };
    let mut set = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    };
    set("link", &format!("</api/v1/events?after={cursor}{query}>; rel=\"next\""));
    set("x-next-cursor", cursor);
    set("x-has-more", &page.has_more.to_string());
    set("cache-control", caching);
    set("vary", "Accept, Authorization");
    if page.next > page.from {
        set("x-seq-range", &format!("{}-{}", page.from, page.next - 1));
    }
    if let Some(note) = checkpoint {
        set("x-checkpoint", &STANDARD.encode(short(note)));
    }
    if !etag.is_empty() {
        set("etag", etag);
    }
}

/// The note with its first signature alone, which is Ed25519: proxies refuse headers of some KiB,
/// and a post-quantum signature takes more. `/checkpoint` and JSON pages have all of them.
fn short(note: &str) -> String {
    match note.split_once("\n\n") {
        Some((text, signatures)) => format!("{text}\n\n{}\n", signatures.lines().next().unwrap_or_default()),
        None => note.to_owned(),
    }
}
