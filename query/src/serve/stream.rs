//! An answer over HTTP, whole or in pieces as its rows are made.
//!
//! What is streamed ends in one of two ways, which nobody can mistake for each other: with the end of its format and
//! of its body, or, after an error, without either: the last chunk (HTTP/1.1) or the end of the stream (HTTP/2) is
//! missing, and a client says that the connection broke. Whether rows were cut off is in the `stats` of JSON, in the
//! metadata of Parquet, and for all formats in trailers, for clients that say `TE: trailers`.
//!
//! Who asks for a footer (`X-Footer: true`) gets a line of JSON behind the end of Arrow and NDJSON, with the stats or
//! with the error: then nothing is broken off, for a reason that is sent before a connection is cut may not arrive.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use futures::future::BoxFuture;
use hyper::body::Frame;
use serde_json::json;

use crate::engine::Answer;
use crate::error::Error;
use crate::format;
use crate::pieces::{Format, Pieces, Stats};
use crate::streamed::Streamed;

/// The header by which a footer is asked for, and by which an answer says that it has one.
const FOOTER: HeaderName = HeaderName::from_static("x-footer");

/// Rows that were given; in trailers.
const ROWS: HeaderName = HeaderName::from_static("x-rows");

/// The most rows that this answer may have.
const ROWS_MAX: HeaderName = HeaderName::from_static("x-rows-max");

const TRUNCATED: HeaderName = HeaderName::from_static("x-truncated");

const LOG_SIZE: HeaderName = HeaderName::from_static("x-log-size");

/// Whether a request asks for a footer.
pub(super) fn wants_footer(headers: &HeaderMap) -> bool {
    headers.get(FOOTER).is_some_and(|value| value == "true")
}

/// How an answer is wanted.
pub(super) struct Asked {
    pub(super) format: Format,
    pub(super) footer: bool,
    /// `None` is as many as there are.
    pub(super) rows_max: Option<usize>,
    pub(super) start: Instant,
}

impl Asked {
    /// Whether a footer is asked for, and there is room for one.
    fn has_footer(&self) -> bool {
        self.footer && matches!(self.format, Format::Arrow | Format::Ndjson)
    }

    /// What is known at the beginning.
    fn headers(&self, log_size: u64) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.format.content_type()));
        headers.insert(LOG_SIZE, log_size.into());
        if let Some(rows_max) = self.rows_max {
            headers.insert(ROWS_MAX, rows_max.into());
        }
        if self.has_footer() {
            headers.insert(FOOTER, HeaderValue::from_static("true"));
        }
        headers
    }
}

fn footer(stats: &Stats) -> Vec<u8> {
    format!("{}\n", json!({ "stats": stats })).into_bytes()
}

fn is_truncated(truncated: bool) -> HeaderValue {
    HeaderValue::from_static(if truncated { "true" } else { "false" })
}

/// All of an answer.
pub(super) fn whole(asked: &Asked, answer: &Answer) -> Result<Response, Error> {
    let mut body = format::bytes(answer, asked.format)?;
    if asked.has_footer() {
        body.extend_from_slice(&footer(&answer.stats()));
    }
    let mut headers = asked.headers(answer.as_of_size);
    headers.insert(TRUNCATED, is_truncated(answer.truncated));
    Ok((headers, body).into_response())
}

/// The rows of an answer as they come. Dropping the body cancels the query.
pub(super) fn streamed(asked: Asked, rows: Streamed) -> Result<Response, Error> {
    let pieces = Pieces::new(asked.format, &rows.schema)?;
    let mut headers = asked.headers(rows.as_of_size);
    headers.insert(header::TRAILER, HeaderValue::from_static("x-truncated, x-rows"));
    let streaming = Streaming { asked, rows, pieces, ready: VecDeque::new(), has_ended: false };
    Ok((headers, Body::new(Rows(Some(Box::pin(streaming.next()))))).into_response())
}

struct Streaming {
    asked: Asked,
    rows: Streamed,
    pieces: Pieces,
    /// What is to be sent before more rows are asked for.
    ready: VecDeque<Result<Frame<Bytes>, Error>>,
    has_ended: bool,
}

impl Streaming {
    /// The next frame, and what comes behind it.
    async fn next(mut self) -> (Option<Result<Frame<Bytes>, Error>>, Self) {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return (Some(frame), self);
            }
            if self.has_ended {
                return (None, self);
            }
            let made = match self.rows.next().await {
                Ok(Some(batch)) => self.pieces.batch(&batch).map(|bytes| self.data(bytes)),
                Ok(None) => self.end(),
                Err(error) => Err(error),
            };
            if let Err(error) = made {
                self.break_off(error);
            }
        }
    }

    /// An empty chunk would be the last one.
    fn data(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.ready.push_back(Ok(Frame::data(bytes.into())));
        }
    }

    fn end(&mut self) -> Result<(), Error> {
        self.has_ended = true;
        let stats = self.stats();
        let mut last = self.pieces.end(&stats)?;
        if self.asked.has_footer() {
            last.extend_from_slice(&footer(&stats));
        }
        self.data(last);
        let mut trailers = HeaderMap::new();
        trailers.insert(TRUNCATED, is_truncated(stats.truncated));
        trailers.insert(ROWS, stats.rows.into());
        self.ready.push_back(Ok(Frame::trailers(trailers)));
        Ok(())
    }

    /// An error ends the body before its end, or stands in its footer.
    fn break_off(&mut self, error: Error) {
        self.has_ended = true;
        tracing::debug!(%error, rows = self.rows.rows, "an answer breaks off");
        if !self.asked.has_footer() {
            return self.ready.push_back(Err(error));
        }
        let position = error.position.map(|(line, column)| json!({"line": line, "column": column}));
        let problem = json!({"code": error.kind.code(), "message": error.message, "position": position});
        let mut last = self.pieces.end(&self.stats()).unwrap_or_default();
        last.extend_from_slice(format!("{}\n", json!({ "error": problem })).as_bytes());
        self.data(last);
    }

    fn stats(&self) -> Stats {
        Stats {
            rows: self.rows.rows as u64,
            truncated: self.rows.truncated,
            log_size: self.rows.as_of_size,
            elapsed_ms: self.asked.start.elapsed().as_millis() as u64,
            notes: self.rows.notes(),
        }
    }
}

type Step = BoxFuture<'static, (Option<Result<Frame<Bytes>, Error>>, Streaming)>;

/// The body: nothing is made before it is asked for.
struct Rows(Option<Step>);

impl HttpBody for Rows {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(step) = &mut self.0 else { return Poll::Ready(None) };
        let (frame, rest) = ready!(step.as_mut().poll(cx));
        self.0 = frame.as_ref().map(|_| Box::pin(rest.next()) as Step);
        Poll::Ready(frame)
    }
}
