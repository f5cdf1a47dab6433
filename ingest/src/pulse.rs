//! Whether a connection lives: what it reads and writes, which requests it has under
//! way, and when it has been silent for too long.
//!
//! The stream and the service only count; the connection's own task looks at the
//! counts each time it has been polled, so that no message can be forgotten.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::door::ConnectionLimits;

/// How an HTTP/2 connection begins (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Most bytes read while no request is under way: a flood of frames that ask for nothing
/// (PING, SETTINGS, what comes for streams that were refused). The connection's flow-control
/// window, which a client may have used before it hears of a refusal, is as much.
const ASIDE_BYTES_MAX: u64 = 17 << 20;

/// Most bytes of an answer that are handed out at once: so many a client must take within the
/// write timeout. HTTP/2 has frames of as much, unless the client asks for larger ones.
const PIECE_BYTES_MAX: usize = 16 << 10;

/// A piece of an answer that its client has not taken: since when, and a number of its own.
type Offer = (Instant, u64);

/// What one connection counts.
#[derive(Default)]
pub(crate) struct Pulse {
    read: AtomicU64,
    /// How much of [`PREFACE`] the connection began with; [`usize::MAX`] once it was something else.
    preface: AtomicUsize,
    /// Whether the peer takes nothing at present.
    write_blocked: AtomicU64,
    active: AtomicUsize,
    ended: AtomicU64,
    /// Pieces of answers that wait for the client: over HTTP/2 it may leave its window shut
    /// while TCP flows.
    offers: Mutex<BTreeSet<Offer>>,
    offered: AtomicU64,
}

impl Pulse {
    /// A request begins; it ends when what this gives is dropped.
    pub(crate) fn begin(pulse: &Arc<Self>) -> Beat {
        pulse.active.fetch_add(1, Relaxed);
        Beat { pulse: Arc::clone(pulse), offer: None }
    }

    fn offers(&self) -> MutexGuard<'_, BTreeSet<Offer>> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when the piece waits that has waited for longest.
    fn waits_since(&self) -> Option<Instant> {
        self.offers().first().map(|(since, _)| *since)
    }

    fn is_http2(&self) -> bool {
        self.preface.load(Relaxed) == PREFACE.len()
    }

    fn saw(&self, bytes: &[u8]) {
        self.read.fetch_add(bytes.len() as u64, Relaxed);
        let have = self.preface.load(Relaxed);
        if let Some(rest) = PREFACE.get(have..)
            && !rest.is_empty()
        {
            let len = rest.len().min(bytes.len());
            self.preface.store(if rest[..len] == bytes[..len] { have + len } else { usize::MAX }, Relaxed);
        }
    }
}

/// A request under way.
pub(crate) struct Beat {
    pulse: Arc<Pulse>,
    offer: Option<Offer>,
}

impl Beat {
    /// There is something for the client to take, from now on.
    fn offer(&mut self) {
        let offer = (Instant::now(), self.pulse.offered.fetch_add(1, Relaxed));
        self.took();
        self.pulse.offers().insert(offer);
        self.offer = Some(offer);
    }

    /// The client took it.
    fn took(&mut self) {
        if let Some(offer) = self.offer.take() {
            self.pulse.offers().remove(&offer);
        }
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.took();
        self.pulse.ended.fetch_add(1, Relaxed);
        self.pulse.active.fetch_sub(1, Relaxed);
    }
}

/// An answer, handed out in small pieces. While one waits for the client the connection
/// knows it; a body that has nothing to send yet waits for nobody.
///
/// hyper asks for the next piece when there was room for the last one, and not before.
pub(crate) struct Answer<B> {
    body: B,
    /// Of the body's last piece, what was not handed out.
    rest: Bytes,
    beat: Beat,
}

impl<B> Answer<B> {
    pub(crate) fn new(body: B, mut beat: Beat) -> Self {
        beat.offer();
        Self { body, rest: Bytes::new(), beat }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.beat.took();
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        let len = self.rest.len().min(PIECE_BYTES_MAX);
        let piece = self.rest.split_to(len);
        if !piece.is_empty() {
            self.beat.offer();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

/// A body that keeps something until it has been sent.
pub(crate) struct Tail<B, T> {
    body: B,
    _kept: T,
}

impl<B, T> Tail<B, T> {
    pub(crate) fn new(body: B, kept: T) -> Self {
        Self { body, _kept: kept }
    }
}

impl<B: Body + Unpin, T: Unpin> Body for Tail<B, T> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that is counted.
pub(crate) struct Watched<S> {
    stream: S,
    pulse: Arc<Pulse>,
}

impl<S> Watched<S> {
    pub(crate) fn new(stream: S, pulse: Arc<Pulse>) -> Self {
        Self { stream, pulse }
    }

    fn wrote<T>(&self, wrote: Poll<T>) -> Poll<T> {
        self.pulse.write_blocked.store(wrote.is_pending().into(), Relaxed);
        wrote
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.pulse.saw(&buf.filled()[before..]);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(wrote)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.wrote(wrote)
    }
}

/// What the connection was last seen doing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Connected, and nothing asked yet.
    Opening,
    /// Bytes of a request's headers have come, and not all.
    Heading,
    /// Requests are under way.
    Busy,
    /// Nothing is asked.
    Quiet,
    /// It was asked to leave.
    Leaving,
}

/// Says when a connection has been silent for too long.
pub(crate) struct Timer {
    pulse: Arc<Pulse>,
    header_timeout: Duration,
    idle_timeout: Duration,
    write_timeout: Duration,
    phase: Phase,
    since: Instant,
    /// Requests that had ended, and bytes that had been read, when the phase began.
    ended: u64,
    read: u64,
    blocked_since: Option<Instant>,
    sleep: Pin<Box<Sleep>>,
}

impl Timer {
    pub(crate) fn new(pulse: Arc<Pulse>, limits: &ConnectionLimits) -> Self {
        let since = Instant::now();
        Self {
            pulse,
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
            write_timeout: limits.write_timeout,
            phase: Phase::Opening,
            since,
            ended: 0,
            read: 0,
            blocked_since: None,
            sleep: Box::pin(tokio::time::sleep_until(since + limits.header_timeout)),
        }
    }

    /// Looks at the counts. Ready with `Ok` when the connection should be closed in
    /// good order, with an error when it should be dropped.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        self.step();
        if self.phase != Phase::Busy && self.pulse.read.load(Relaxed) - self.read > ASIDE_BYTES_MAX {
            return Poll::Ready(Err("it sent much, and asked nothing"));
        }
        if self.pulse.write_blocked.load(Relaxed) == 0 {
            self.blocked_since = None;
        } else {
            let since = *self.blocked_since.get_or_insert_with(Instant::now);
            if self.is_past(since + self.write_timeout, cx) {
                return Poll::Ready(Err("its client takes nothing of the answers (--write-timeout)"));
            }
        }
        if let Some(since) = self.pulse.waits_since()
            && self.is_past(since + self.write_timeout, cx)
        {
            return Poll::Ready(Err("its client leaves an answer waiting (--write-timeout)"));
        }
        let timeout = match self.phase {
            Phase::Busy => {
                // An answer that begins to wait later wakes nobody: look again.
                let _ = self.is_past(Instant::now() + self.write_timeout / 4, cx);
                return Poll::Pending;
            }
            Phase::Quiet => self.idle_timeout,
            Phase::Opening | Phase::Heading | Phase::Leaving => self.header_timeout,
        };
        if !self.is_past(self.since + timeout, cx) {
            return Poll::Pending;
        }
        if self.phase == Phase::Quiet {
            self.enter(Phase::Leaving);
            // Wakes the task again, should the client not take the hint.
            let _ = self.is_past(self.since + self.header_timeout, cx);
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Err("the headers of its next request did not come (--header-timeout)"))
    }

    fn step(&mut self) {
        if self.pulse.active.load(Relaxed) > 0 {
            self.phase = Phase::Busy;
            return;
        }
        let (ended, is_http2) = (self.pulse.ended.load(Relaxed), self.pulse.is_http2());
        if ended != self.ended || self.phase == Phase::Busy {
            self.ended = ended;
            self.enter(Phase::Quiet);
        }
        match self.phase {
            Phase::Opening | Phase::Heading if is_http2 => self.enter(Phase::Quiet),
            Phase::Opening | Phase::Quiet if !is_http2 && self.pulse.read.load(Relaxed) > self.read => {
                let read = self.read;
                self.enter(Phase::Heading);
                self.read = read;
            }
            _ => {}
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
        self.read = self.pulse.read.load(Relaxed);
    }

    /// Whether it is later than that; if not, the task is woken then. The timer is moved
    /// only to an earlier time, or when it has run out: on most requests it is left alone.
    fn is_past(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        if self.sleep.deadline() > deadline {
            self.sleep.as_mut().reset(deadline);
        }
        while self.sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return true;
            }
            self.sleep.as_mut().reset(deadline);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::future::poll_fn;

    use http_body_util::BodyExt as _;

    use super::*;

    /// A body that gives these pieces, then has nothing to send for ever.
    struct Feed(VecDeque<Bytes>);

    impl Body for Feed {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.pop_front().map_or(Poll::Pending, |data| Poll::Ready(Some(Ok(Frame::data(data)))))
        }
    }

    /// Long beside what a slow machine may take between two steps of these tests.
    const WRITE: Duration = Duration::from_millis(1500);

    fn connection(pieces: &[&'static [u8]]) -> (Answer<Feed>, Timer) {
        let pulse = Arc::<Pulse>::default();
        let limits = ConnectionLimits { write_timeout: WRITE, ..ConnectionLimits::default() };
        let timer = Timer::new(Arc::clone(&pulse), &limits);
        let feed = Feed(pieces.iter().map(|piece| Bytes::from_static(piece)).collect());
        (Answer::new(feed, Pulse::begin(&pulse)), timer)
    }

    /// What the client takes: the length of the next piece, or nothing if there is none yet.
    async fn take(answer: &mut Answer<Feed>) -> Option<usize> {
        tokio::time::timeout(Duration::ZERO, answer.frame())
            .await
            .ok()?
            .map(|frame| frame.unwrap().into_data().unwrap().len())
    }

    /// How the connection ends within this time, if it does.
    async fn ends(timer: &mut Timer, within: Duration) -> Option<Result<(), &'static str>> {
        tokio::time::timeout(within, poll_fn(|cx| timer.poll(cx))).await.ok()
    }

    #[tokio::test]
    async fn an_answer_with_nothing_to_send_may_wait() {
        let (mut answer, mut timer) = connection(&[b"event"]);
        assert_eq!(take(&mut answer).await, Some(5));
        assert_eq!(take(&mut answer).await, None, "the client took the event, and asks for more");
        assert_eq!(ends(&mut timer, 3 * WRITE).await, None);
        answer.body.0.push_back(Bytes::from_static(b"another"));
        assert_eq!(take(&mut answer).await, Some(7));
        // The client takes it no more; the connection's task hears of it by itself.
        assert!(matches!(ends(&mut timer, 15 * WRITE).await, Some(Err(why)) if why.contains("--write-timeout")));
    }

    #[tokio::test]
    async fn an_answer_that_begins_to_wait_is_found_by_who_sleeps() {
        let (mut answer, mut timer) = connection(&[]);
        assert_eq!(take(&mut answer).await, None);
        let later = async {
            tokio::time::sleep(2 * WRITE).await;
            answer.body.0.push_back(Bytes::from_static(b"event"));
            assert_eq!(take(&mut answer).await, Some(5));
            std::future::pending::<()>().await;
        };
        let begin = Instant::now();
        let ended = tokio::select! {
            ended = ends(&mut timer, 15 * WRITE) => ended,
            () = later => None,
        };
        assert!(matches!(ended, Some(Err(_))), "{ended:?}");
        assert!(begin.elapsed() >= 3 * WRITE, "{:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn a_client_has_time_for_each_piece() {
        let (mut answer, mut timer) = connection(&[&[0; 88 << 10]]);
        for kib in [16, 16, 16, 16, 16, 8] {
            assert_eq!(take(&mut answer).await, Some(kib << 10));
            assert_eq!(ends(&mut timer, WRITE / 4).await, None);
        }
        drop(answer);
        assert_eq!(ends(&mut timer, 3 * WRITE).await, None, "what ended waits no more");
    }

    #[tokio::test]
    async fn an_answer_that_is_never_asked_for_ends_the_connection() {
        let (_answer, mut timer) = connection(&[b"x"]);
        assert!(matches!(ends(&mut timer, 15 * WRITE).await, Some(Err(_))));
    }
}
