//! A page as an HTTP answer: NDJSON or one JSON object, its headers, and conditional requests.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};

use super::{Page, Position, Request, sealed};
use crate::error::Error;
use crate::serve::Served;

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
    page: &Page,
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
    let (content_type, body) = match shape.json {
        true => ("application/json", object(request, page, &cursor, checkpoint.as_deref(), proof.as_ref())),
        false => (ndjson_type(request), lines(page)),
    };
    // A page that was full with more behind it is the same for ever, but for its checkpoint.
    let is_final = page.full && page.has_more;
    let mut etag = String::new();
    if is_final {
        etag = match shape.json {
            false => format!("\"{}\"", digest(&[body.as_bytes()])),
            true => {
                let fixed = object(request, page, &cursor, None, None);
                let (proof, note) = (proof.map(|proof| proof.to_string()), checkpoint.clone().unwrap_or_default());
                let varying = digest(&[note.as_bytes(), proof.unwrap_or_default().as_bytes()]);
                format!("\"{}.{varying}\"", digest(&[fixed.as_bytes()]))
            }
        };
        if let Some(known) = known(shape.headers, &etag) {
            let mut response = StatusCode::NOT_MODIFIED.into_response();
            fill(&mut response, &cursor, page, &shape, checkpoint.as_deref(), &known);
            return Ok(response);
        }
    }
    let mut response = ([(header::CONTENT_TYPE, content_type)], body).into_response();
    fill(&mut response, &cursor, page, &shape, checkpoint.as_deref(), &etag);
    Ok(response)
}

fn ndjson_type(request: &Request) -> &'static str {
    if request.format.is_json() { "application/x-ndjson" } else { "text/plain; charset=utf-8" }
}

/// A line an event.
pub(super) fn lines(page: &Page) -> String {
    let mut body = String::with_capacity(page.lines.iter().map(|line| line.text.len() + 1).sum());
    for line in &page.lines {
        body.push_str(&line.text);
        body.push('\n');
    }
    body
}

/// `{data, next_cursor, has_more, range, checkpoint}`. The events are written as they are.
pub(super) fn object(
    request: &Request,
    page: &Page,
    cursor: &str,
    checkpoint: Option<&str>,
    proof: Option<&Json>,
) -> String {
    let mut body = String::with_capacity(page.bytes + 4096);
    body.push_str("{\"data\":[");
    for (i, line) in page.lines.iter().enumerate() {
        if i > 0 {
            body.push(',');
        }
        match request.format.is_json() {
            true => body.push_str(&line.text),
            false => body.push_str(&Json::String(line.text.clone()).to_string()),
        }
    }
    let mut rest = json!({
        "next_cursor": cursor, "has_more": page.has_more, "range": range(page), "checkpoint": checkpoint,
    });
    if let (Some(proof), Some(object)) = (proof, rest.as_object_mut()) {
        object.insert("proof".into(), proof.clone());
    }
    body.push_str("],");
    body.push_str(&rest.to_string()[1..]);
    body
}

/// Two or more texts as one short one.
fn digest(parts: &[&[u8]]) -> String {
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
