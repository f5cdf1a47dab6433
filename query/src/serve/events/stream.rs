//! Server-sent events: what pages have, with the cursor as id. A slow reader holds one small page
//! and holds nobody else up: nothing is read for him before he has taken what he has.

use std::convert::Infallible;
use std::sync::Arc;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use futures::stream;
use tokio::time::Instant;

use super::waiting::Place;
use super::{Page, Position, Request, STEP, Served, WAIT_MAX, next_page, start};
use crate::audit::StreamWatch;
use crate::caller::Caller;
use crate::error::Error;
use crate::stats::Streaming;

/// Events, and bytes of them, that a stream holds at a time.
const STEP_EVENTS: usize = 500;
const STEP_BYTES: usize = 1 << 20;

/// One reader's stream.
pub(super) struct Following {
    served: Served,
    pub(super) request: Request,
    pub(super) position: Position,
    /// Whether it goes on when there is no more.
    follow: bool,
    ended: bool,
    /// When the last page ended at the end of the log.
    caught_up: Option<Instant>,
    /// Its begin and end are in the log.
    watch: StreamWatch,
    _open: (Streaming, Place),
}

/// What a stream gives next.
pub(super) enum Next {
    Page(Arc<Page>),
    /// Retention erased what was to come: what an HTTP reader is told.
    Gone(Response),
}

impl Following {
    /// Begins a stream; that it does is recorded before.
    pub(super) async fn begin(
        served: Served,
        caller: &Caller,
        request: Request,
        position: Position,
        follow: bool,
        place: Place,
    ) -> Result<Self, Error> {
        let what = format!("events after {}, filter {}", position.seq, request.filter.key());
        let watch = served.engine.audit().begin_stream(caller, &what).await?;
        let open = served.engine.stats().stream();
        let _open = (open, place);
        Ok(Self { served, request, position, follow, ended: false, caught_up: None, watch, _open })
    }

    /// The next page; `None` at the end.
    pub(super) async fn next(&mut self, limit: usize) -> Result<Option<Next>, Error> {
        if self.ended {
            return Ok(None);
        }
        // Many readers at the end of the log take the same steps.
        if let Some(last) = self.caught_up.filter(|_| self.follow) {
            tokio::time::sleep_until(last + STEP).await;
        }
        match start(&self.served, &self.request, Some(self.position))? {
            Ok(position) => self.position = position,
            Err(gone) => {
                self.ended = true;
                return Ok(Some(Next::Gone(gone)));
            }
        }
        let wait = if self.follow { WAIT_MAX } else { std::time::Duration::ZERO };
        let page = next_page(&self.served, &self.request, self.position.seq, limit, STEP_BYTES, wait).await?;
        self.position.seq = page.next;
        self.watch.rows += page.lines.len() as u64;
        self.caught_up = (!page.has_more).then(Instant::now);
        self.ended = !self.follow && !page.has_more;
        Ok(Some(Next::Page(page)))
    }
}

/// Answers with a stream.
pub(super) fn answer(following: Following) -> Response {
    let pages = stream::unfold(following, async |mut following| {
        let next = following.next(STEP_EVENTS).await.ok()??;
        let events: Vec<Result<Event, Infallible>> = match next {
            Next::Page(page) => told(&following, &page).into_iter().map(Ok).collect(),
            Next::Gone(gone) => {
                let body = axum::body::to_bytes(gone.into_body(), 1 << 16).await.ok()?;
                vec![Ok(Event::default().event("gone").data(String::from_utf8_lossy(&body)))]
            }
        };
        Some((stream::iter(events), following))
    });
    Sse::new(pages.flatten()).keep_alive(KeepAlive::default()).into_response()
}

/// The events of a page; the id of the last one of a record is the cursor behind it.
fn told(following: &Following, page: &Page) -> Vec<Event> {
    let horizon = following.position.horizon;
    let cursor = |seq| following.request.cursors.encode(Position { seq, horizon });
    let mut out = Vec::with_capacity(page.lines.len() + 1);
    for (i, line) in page.lines.iter().enumerate() {
        let event = Event::default().data(&line.text);
        let is_last = page.lines.get(i + 1).is_none_or(|next| next.seq != line.seq);
        out.push(if is_last { event.id(cursor(line.seq + 1)) } else { event });
    }
    if page.lines.last().is_none_or(|line| line.seq + 1 < page.next) {
        // No event, but a reader who comes back need not look through the same records again.
        out.push(Event::default().id(cursor(page.next)));
    }
    out
}
