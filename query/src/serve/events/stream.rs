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

use super::answer::says;
use super::coding::Coding;
use super::packed::Packing;
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
    Events(Coding),
    /// gRPC; whether it goes on, and how many events a message may have.
    Messages { follow: bool, limit: usize, coding: Coding },
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
        let (form, follows) = match self.way {
            Way::Events(coding) => {
                let (cursors, known) = (self.request.cursors, self.position.known);
                ((next::STREAM_EVENTS, Form::Stream { cursors, known }, coding), true)
            }
            Way::Messages { follow, limit, coding } => ((limit, Form::Message, coding), follow),
        };
        let size = self.served.engine.projection().snapshot().size;
        let sheet = next::stream(&self.served, &self.request, self.position.seq, form, follows).await?;
        if let Some(gone) = next::missed(&self.served, &self.request, self.position, sheet.next)? {
            self.ended = true;
            return Ok(Some(Next::Gone(gone)));
        }
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
    let coding = match following.way {
        Way::Events(coding) => coding,
        Way::Messages { .. } => Coding::Identity,
    };
    let packing = Some(Packing::begin(coding));
    let sending = Sending { turn: Some(following.turn()), packing, parts: VecDeque::new(), sheet: None };
    let body = Body::from_stream(stream::unfold(sending, Sending::part));
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::VARY, "Accept, Accept-Encoding, Authorization"),
    ];
    let mut response = (headers, body).into_response();
    says(&mut response, coding);
    response
}

/// What of a stream is to be sent.
struct Sending {
    /// What comes when all of that is sent; it is not begun before. None at the end.
    turn: Option<Turn>,
    /// The compressed text that is under way; none when it has ended.
    packing: Option<Packing>,
    parts: VecDeque<Bytes>,
    /// What the parts are of: it counts as held until they are taken.
    sheet: Option<Arc<Sheet>>,
}

impl Sending {
    async fn part(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        loop {
            if let Some(part) = self.parts.pop_front() {
                // An empty part would be the end of the body.
                if part.is_empty() {
                    continue;
                }
                return Some((Ok(part), self));
            }
            self.sheet = None;
            let Some(turn) = &mut self.turn else {
                self.parts.push_back(self.packing.take()?.end());
                continue;
            };
            let Ok((next, following)) = tokio::time::timeout(KEEP_ALIVE, turn).await else {
                self.tell(COMMENT);
                continue;
            };
            self.turn = None;
            match next.ok().flatten() {
                None => continue,
                Some(Next::Sheet(sheet)) => self.give(sheet),
                Some(Next::Gone(gone)) => {
                    let body = axum::body::to_bytes(gone.into_body(), 1 << 16).await.ok()?;
                    let told = format!("event: gone\ndata: {}\n\n", String::from_utf8_lossy(&body));
                    self.tell(told.as_bytes());
                }
            }
            self.turn = Some(following.turn());
        }
    }

    /// Sends what is this reader's own.
    fn tell(&mut self, text: &[u8]) {
        let Some(packing) = &mut self.packing else { return };
        packing.store(text);
        self.parts.push_back(packing.flush());
    }

    /// Sends what many have. Each part can be read when it has come.
    fn give(&mut self, sheet: Arc<Sheet>) {
        let Some(packing) = &mut self.packing else { return };
        match (&sheet.packed, packing.is_plain()) {
            (Some(packed), _) => self.parts.extend(packing.share(packed)),
            (None, true) => self.parts.extend(sheet.parts.iter().cloned()),
            // It is small.
            (None, false) => {
                sheet.parts.iter().for_each(|part| packing.store(part));
                self.parts.push_back(packing.flush());
            }
        }
        self.sheet = Some(sheet);
    }
}
