//! Server-sent events: what pages have, with the cursor as id. A slow reader holds one small page
//! and holds nobody else up: nothing is read for him before he has taken what he has.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream;

use super::sheet::{Form, Sheet};
use super::waiting::Place;
use super::{Position, Request, Served, next, start};
use crate::audit::StreamWatch;
use crate::caller::Caller;
use crate::error::Error;
use crate::stats::Streaming;

/// A stream in which nothing happens says so this often.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A comment, which clients pass over.
const COMMENT: &[u8] = b":\n\n";

/// How a stream is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Server-sent events, which go on when there is no more.
    Events,
    /// gRPC; whether it goes on, and how many events a message may have.
    Messages { follow: bool, limit: usize },
}

/// One reader's stream.
pub(super) struct Following {
    pub(super) served: Served,
    pub(super) request: Request,
    pub(super) position: Position,
    /// Where what was given last began.
    pub(super) from: u64,
    way: Way,
    ended: bool,
    /// Its begin and end are in the log.
    watch: StreamWatch,
    _open: (Streaming, Place),
}

/// What a stream gives next.
pub(super) enum Next {
    Sheet(Arc<Sheet>),
    /// Retention erased what was to come: what an HTTP reader is told.
    Gone(Response),
}

/// The wait for what comes next, and the stream behind it.
type Turn = BoxFuture<'static, (Result<Option<Next>, Error>, Following)>;

impl Following {
    /// Begins a stream; that it does is recorded before.
    pub(super) async fn begin(
        served: Served,
        caller: &Caller,
        request: Request,
        position: Position,
        way: Way,
        place: Place,
    ) -> Result<Self, Error> {
        let what = format!("events after {}, filter {}", position.seq, request.filter.key());
        let watch = served.engine.audit().begin_stream(caller, &what).await?;
        let open = served.engine.stats().stream();
        let _open = (open, place);
        Ok(Self { from: position.seq, served, request, position, way, ended: false, watch, _open })
    }

    /// The next sheet; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Next>, Error> {
        if self.ended {
            return Ok(None);
        }
        match start(&self.served, &self.request, Some(self.position))? {
            Ok(position) => self.position = position,
            Err(gone) => {
                self.ended = true;
                return Ok(Some(Next::Gone(gone)));
            }
        }
        let (limit, form, follows) = match self.way {
            Way::Events => {
                let (cursors, horizon) = (self.request.cursors, self.position.horizon);
                (next::STREAM_EVENTS, Form::Stream { cursors, horizon }, true)
            }
            Way::Messages { follow, limit } => (limit, Form::Message, follow),
        };
        let size = self.served.engine.projection().snapshot().size;
        let sheet = next::stream(&self.served, &self.request, self.position.seq, (limit, form), follows).await?;
        (self.from, self.position.seq) = (self.position.seq, sheet.next);
        self.watch.rows += sheet.matched as u64;
        self.ended = !follows && sheet.next >= size;
        Ok(Some(Next::Sheet(sheet)))
    }

    /// The next sheet, by itself: a wait for it is not begun anew for a sign of life.
    fn turn(mut self) -> Turn {
        async move { (self.next().await, self) }.boxed()
    }
}

/// Answers with a stream.
pub(super) fn answer(following: Following) -> Response {
    let sending = Sending { turn: Some(following.turn()), parts: VecDeque::new(), sheet: None };
    let body = Body::from_stream(stream::unfold(sending, Sending::part));
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, body).into_response()
}

/// What of a stream is to be sent.
struct Sending {
    /// What comes when all of that is sent; it is not begun before.
    turn: Option<Turn>,
    parts: VecDeque<Bytes>,
    /// What the parts are of: it counts as held until they are taken.
    sheet: Option<Arc<Sheet>>,
}

impl Sending {
    async fn part(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        loop {
            if let Some(part) = self.parts.pop_front() {
                return Some((Ok(part), self));
            }
            self.sheet = None;
            let Ok((next, following)) = tokio::time::timeout(KEEP_ALIVE, self.turn.as_mut()?).await else {
                return Some((Ok(Bytes::from_static(COMMENT)), self));
            };
            self.turn = Some(following.turn());
            match next.ok()?? {
                Next::Sheet(sheet) => {
                    self.parts = sheet.parts.iter().cloned().collect();
                    self.sheet = Some(sheet);
                }
                Next::Gone(gone) => {
                    let body = axum::body::to_bytes(gone.into_body(), 1 << 16).await.ok()?;
                    let told = format!("event: gone\ndata: {}\n\n", String::from_utf8_lossy(&body));
                    self.parts.push_back(told.into());
                }
            }
        }
    }
}
