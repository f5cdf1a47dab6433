//! A page as an HTTP answer: NDJSON or one JSON object, its headers, and conditional requests.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};

use super::coding::{Accepted, Coding};
use super::sheet::{Form, Parts, Sheet, digest};
use super::{Position, Request, sealed};
use crate::error::Error;
use crate::serve::Served;

/// How the reader wants it.
pub(super) struct Shape<'a> {
    /// One JSON object, not lines.
    pub(super) json: bool,
    pub(super) accepted: Accepted,
    /// His query string, for the link to the next page.
    pub(super) query: Option<&'a str>,
    pub(super) headers: &'a HeaderMap,
}

/// How the events of a page are written.
pub(super) fn form(request: &Request, json: bool) -> Form {
    if json { Form::Array { quoted: !request.format.is_json() } } else { Form::Lines }
}

/// The records that a page covers: those of a sheet, and those before it that gave no event.
pub(super) struct Covered<'a> {
    from: u64,
    sheet: &'a Sheet,
    has_more: bool,
}

impl<'a> Covered<'a> {
    /// From there on, of a log of so many records.
    pub(super) fn new(from: u64, sheet: &'a Sheet, size: u64) -> Self {
        Self { from: from.min(sheet.from), sheet, has_more: sheet.next < size }
    }

    fn range(&self) -> Json {
        let last = (self.sheet.next > self.from).then(|| self.sheet.next - 1);
        let skipped = self.sheet.skipped + (self.sheet.from - self.from);
        json!({
            "first_seq": last.map(|_| self.from), "last_seq": last, "matched": self.sheet.matched, "skipped": skipped,
        })
    }

    /// What stands behind the events in an object.
    pub(super) fn tail(&self, cursor: &str, checkpoint: Option<&str>, proof: Option<&Json>) -> String {
        let mut rest = json!({
            "next_cursor": cursor, "has_more": self.has_more, "range": self.range(), "checkpoint": checkpoint,
        });
        if let (Some(proof), Some(object)) = (proof, rest.as_object_mut()) {
            object.insert("proof".into(), proof.clone());
        }
        format!("],{}", &rest.to_string()[1..])
    }
}

/// Answers with a page, or that the reader has it already.
pub(super) async fn page(
    served: &Served,
    request: &Request,
    position: Position,
    sheet: &Arc<Sheet>,
    shape: Shape<'_>,
) -> Result<Response, Error> {
    let projection = served.engine.projection();
    let reader = projection.reader();
    let checkpoint = served.events.seals.covering(reader, sheet.next).await?;
    let page = Covered::new(position.seq, sheet, projection.snapshot().size);
    let cursor = request.cursors.encode(Position { seq: sheet.next, ..position }, sheet.mark);
    let proof = match request.proof {
        false => None,
        true => {
            let (reader, from, next, note) = (reader.clone(), page.from, sheet.next, checkpoint.clone());
            let prove = move || sealed::range_proof(&reader, from, next, note.as_deref());
            Some(tokio::task::spawn_blocking(prove).await.map_err(|e| Error::internal(e.to_string()))??)
        }
    };
    // The proof is this reader's own, and so is what is compressed with it.
    let own = request.proof || shape.accepted.always;
    let coding = if own { shape.accepted.coding } else { sheet.coding() };
    let content_type = if shape.json { "application/json" } else { lines_type(request) };
    // A page that was full with more behind it is the same for ever, but for its checkpoint.
    let mut etag = String::new();
    if let Some(tag) = sheet.tag.as_ref().filter(|_| page.has_more) {
        etag.clone_from(tag);
        if shape.json {
            let proof = proof.as_ref().map(Json::to_string).unwrap_or_default();
            let (fixed, note) = (page.tail(&cursor, None, None), checkpoint.as_deref().unwrap_or_default());
            let fixed = digest([tag.as_bytes(), fixed.as_bytes()].into_iter());
            etag = format!("{fixed}.{}", digest([note.as_bytes(), b"\0", proof.as_bytes()].into_iter()));
        }
        // Other bytes are another representation (RFC 9110, section 8.8.3.3).
        etag = format!("\"{etag}{}\"", coding.name().map(|name| format!(".{name}")).unwrap_or_default());
        if let Some(known) = known(shape.headers, &etag) {
            let mut response = StatusCode::NOT_MODIFIED.into_response();
            fill(&mut response, &cursor, &page, &shape, checkpoint.as_deref(), &known);
            return Ok(response);
        }
    }
    let (head, tail) = match shape.json {
        true => (ARRAY, page.tail(&cursor, checkpoint.as_deref(), proof.as_ref())),
        false => ("", String::new()),
    };
    let body = body((served, request), (head, sheet, tail), coding).await?;
    let mut response = ([(header::CONTENT_TYPE, content_type)], body).into_response();
    says(&mut response, coding);
    fill(&mut response, &cursor, &page, &shape, checkpoint.as_deref(), &etag);
    Ok(response)
}

/// A sheet between two texts, coded so; if it is not, for this reader alone.
pub(super) async fn body(
    (served, request): (&Served, &Request),
    (head, sheet, tail): (&'static str, &Arc<Sheet>, String),
    coding: Coding,
) -> Result<Body, Error> {
    let sheet = Arc::clone(sheet);
    if sheet.coding() == coding {
        return Ok(Parts::body(head, sheet, tail));
    }
    let _turn = served.engine.projection().recent.packing.take(&request.filter.who).await?;
    let compress = move || Parts::compressed(coding, head, sheet, &tail);
    tokio::task::spawn_blocking(compress).await.map_err(|e| Error::internal(e.to_string()))?
}

/// Says how an answer is coded.
pub(super) fn says(response: &mut Response, coding: Coding) {
    if let Some(name) = coding.name() {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static(name));
    }
}

/// What stands before the events in an object.
pub(super) const ARRAY: &str = "{\"data\":[";

/// The type of an answer of lines.
pub(super) fn lines_type(request: &Request) -> &'static str {
    if request.format.is_json() { "application/x-ndjson" } else { "text/plain; charset=utf-8" }
}

/// The tag of a representation that the reader has and that is as good as ours: the same events
/// under the same or another checkpoint that covers them (RFC 9110, section 13.1.2).
fn known(headers: &HeaderMap, etag: &str) -> Option<String> {
    // An object's tag is that of its events, that of its checkpoint and proof, and the coding.
    let events = |tag: &str| {
        let mut parts = tag.trim_matches('"').split('.');
        Some((parts.next()?.to_owned(), parts.filter(|part| part.len() != 24).collect::<String>()))
    };
    let fields = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|field| field.to_str().ok());
    fields.flat_map(|field| field.split(',')).map(str::trim).find_map(|tag| {
        // They are compared as weak ones are: that one was weakened on its way says nothing (section 13.1.2).
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        let is_same = || tag.len() == etag.len() && events(tag) == events(etag);
        match tag {
            "*" => Some(etag.to_owned()),
            tag => is_same().then(|| tag.to_owned()),
        }
    })
}

/// The headers of a page.
fn fill(
    response: &mut Response,
    cursor: &str,
    page: &Covered<'_>,
    shape: &Shape<'_>,
    checkpoint: Option<&str>,
    etag: &str,
) {
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
    set("vary", "Accept, Accept-Encoding, Authorization");
    if page.sheet.next > page.from {
        set("x-seq-range", &format!("{}-{}", page.from, page.sheet.next - 1));
    }
    if let Some(note) = checkpoint {
        set("x-checkpoint", &sealed_header(note));
    }
    if !etag.is_empty() {
        set("etag", etag);
    }
}

/// The checkpoint of an answer, as its header has it.
pub(super) fn sealed_header(note: &str) -> String {
    STANDARD.encode(short(note))
}

/// The note with its first signature alone, which is Ed25519: proxies refuse headers of some KiB,
/// and a post-quantum signature takes more. `/checkpoint` and JSON pages have all of them.
fn short(note: &str) -> String {
    match note.split_once("\n\n") {
        Some((text, signatures)) => format!("{text}\n\n{}\n", signatures.lines().next().unwrap_or_default()),
        None => note.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_known_weakened_or_in_a_list_and_under_another_checkpoint() {
        let (events, note, other) = ("a".repeat(32), "b".repeat(24), "c".repeat(24));
        let etag = format!("\"{events}.{note}.gzip\"");
        let knows = |fields: &[&str]| {
            let mut headers = HeaderMap::new();
            fields.iter().for_each(|field| {
                headers.append(header::IF_NONE_MATCH, field.parse().unwrap());
            });
            known(&headers, &etag)
        };
        let before = format!("\"{events}.{other}.gzip\"");
        assert_eq!(knows(&[&etag]), Some(etag.clone()));
        assert_eq!(knows(&[&format!("W/{etag}")]), Some(etag.clone()));
        assert_eq!(knows(&["*"]), Some(etag.clone()));
        assert_eq!(knows(&["\"x\", \"y\"", &format!("\"z\", W/{before}")]), Some(before));
        for unknown in
            ["", "\"x\"", "W/", &format!("\"{}.{note}.gzip\"", "d".repeat(32)), &etag.replace("gzip", "zstd")]
        {
            assert_eq!(knows(&[unknown]), None, "{unknown}");
        }
        assert_eq!(knows(&[]), None);
    }
}
