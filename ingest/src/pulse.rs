//! Whether a connection lives: what it reads and writes, which requests it has under
//! way, and when it has been silent for too long.
//!
//! The stream and the service only count; the connection's own task looks at the
//! counts each time it has been polled, so that no message can be forgotten.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

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
}

impl Pulse {
    /// A request begins; it ends when what this gives is dropped.
    pub(crate) fn begin(pulse: &Arc<Self>) -> Beat {
        pulse.active.fetch_add(1, Relaxed);
        Beat(Arc::clone(pulse))
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
pub(crate) struct Beat(Arc<Pulse>);

impl Drop for Beat {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Relaxed);
        self.0.active.fetch_sub(1, Relaxed);
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
        let timeout = match self.phase {
            Phase::Busy => return Poll::Pending,
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
