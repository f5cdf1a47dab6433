//! Reading a request's body: within its limit, with its bytes counted against
//! the server's memory, and decompressed no further than the limit.

use std::io::Read;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::time::Instant;

use crate::Refusal;
use crate::admission::Held;
use crate::status::Reason;

/// How slowly a body may come: never silent for long, and at some rate on the whole.
struct Pace {
    timeout: Duration,
    rate: u64,
    start: Option<Instant>,
}

impl Pace {
    fn of(held: &Held) -> Self {
        let limits = held.client().limits();
        Self { timeout: limits.body_timeout, rate: limits.body_rate_min.max(1), start: None }
    }

    /// Waits for the body's next piece, of which `have` bytes have come. Most are there
    /// already, and cost no look at the clock.
    async fn next<T>(&mut self, have: usize, next: impl Future<Output = T>) -> Result<T, Refusal> {
        let mut next = std::pin::pin!(next);
        if let Some(ready) = futures_now(next.as_mut()).await {
            return Ok(ready);
        }
        let start = *self.start.get_or_insert_with(Instant::now);
        let whole = start + self.timeout + Duration::from_secs(have as u64 / self.rate);
        let deadline = whole.min(Instant::now() + self.timeout);
        tokio::time::timeout_at(deadline, next).await.map_err(|_| {
            let message = format!(
                "the body comes too slowly: after {have} bytes it was silent for {} s (--body-timeout) or came below {} \
                 bytes a second (--body-rate-min); send it again",
                self.timeout.as_secs_f64(),
                self.rate
            );
            Refusal::unavailable(&message, 1).because(Reason::Body)
        })
    }
}

/// What a future gives at once, if it does.
async fn futures_now<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    use std::task::Poll;
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(ready) => Poll::Ready(Some(ready)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// How much of a refused body is read and thrown away, and for how long.
const LINGER: (u64, Duration) = (256 << 20, Duration::from_secs(5));

/// A body that is thrown away may pause for this long.
const LINGER_PAUSE: Duration = Duration::from_secs(1);

/// Reads on for a moment. To close an HTTP/1.1 connection on a client that is still
/// sending would reset it, and what the client is to be told would be lost with it.
pub(crate) async fn discard(body: &mut Incoming) {
    let (mut left, end) = (LINGER.0, Instant::now() + LINGER.1);
    while !body.is_end_stream() {
        let pause = end.min(Instant::now() + LINGER_PAUSE);
        let Ok(Some(Ok(frame))) = tokio::time::timeout_at(pause, body.frame()).await else { return };
        let len = frame.data_ref().map_or(0, |data| data.len() as u64);
        if len > left {
            return;
        }
        left -= len;
    }
}

/// Room that is made for a body because it says how long it is.
const AHEAD_BYTES_MAX: usize = 64 << 20;

/// Reads a body of at most `max` bytes. A body in one piece is not copied.
pub(crate) async fn read(body: &mut Incoming, max: usize, held: &mut Held) -> Result<Bytes, Refusal> {
    if body.size_hint().lower() > max as u64 {
        return Err(Refusal::TooLarge(max));
    }
    held.could_add(body.size_hint().lower())?;
    let expected = (body.size_hint().lower() as usize).min(max).min(AHEAD_BYTES_MAX);
    let mut pace = Pace::of(held);
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    loop {
        let have = first.as_ref().map_or(0, Bytes::len) + rest.len();
        let frame = pace.next(have, body.frame()).await?;
        let broken = |why: &str| Refusal::unavailable(&format!("{why}; send it again"), 1).because(Reason::Body);
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|e| broken(&format!("the body broke off: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        held.received(data.len() as u64);
        held.add(data.len() as u64)?;
        if have + data.len() > max {
            return Err(Refusal::TooLarge(max));
        }
        match (&first, rest.is_empty()) {
            (None, true) => first = Some(data),
            (None, false) => rest.extend_from_slice(&data),
            (Some(head), _) => {
                rest.reserve(expected.max(head.len() + data.len()));
                rest.extend_from_slice(head);
                rest.extend_from_slice(&data);
                first = None;
            }
        }
    }
    Ok(first.unwrap_or_else(|| rest.freeze()))
}

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Reads the value of `Content-Encoding` or `grpc-encoding`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Some(Self::None),
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// A larger body is decompressed off the network threads: this much can become a
/// thousand times as much.
const INLINE_BYTES_MAX: usize = 4 << 10;

/// Decompresses to at most `max` bytes; what would be more is never made. What came is then given back.
pub(crate) async fn decompressed(
    body: Bytes,
    compression: Compression,
    max: usize,
    held: &mut Held,
) -> Result<Bytes, Refusal> {
    if compression == Compression::None {
        return Ok(body);
    }
    let came = body.len() as u64;
    if came <= INLINE_BYTES_MAX as u64 {
        let body = decompress(body, compression, max, held)?;
        held.give_back(came);
        return Ok(body);
    }
    let client = std::sync::Arc::clone(held.client());
    let turn = client.work().await;
    let mut own = client.hold();
    let work = move || {
        // Given back when the work is done, also if its client has hung up by then.
        let _turn = turn;
        decompress(body, compression, max, &mut own).map(|body| (body, own))
    };
    let done = tokio::task::spawn_blocking(work).await;
    let (body, own) = done.map_err(|_| Refusal::unavailable("the server is stopping", 1))??;
    held.absorb(own);
    held.give_back(came);
    Ok(body)
}

pub(crate) fn decompress(body: Bytes, compression: Compression, max: usize, held: &mut Held) -> Result<Bytes, Refusal> {
    let bad = |e: std::io::Error| Refusal::Invalid(format!("the body cannot be decompressed: {e}"));
    let out = match compression {
        Compression::None => return Ok(body),
        Compression::Gzip => bounded(flate2::read::MultiGzDecoder::new(&body[..]), max, held),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(&body[..]).map_err(bad)?;
            decoder.window_log_max(25).map_err(bad)?;
            bounded(decoder, max, held)
        }
    };
    out.map_err(bad)?
}

fn bounded(mut from: impl Read, max: usize, held: &mut Held) -> std::io::Result<Result<Bytes, Refusal>> {
    let mut out = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let read = match from.read(&mut piece) {
            Ok(0) => return Ok(Ok(out.into())),
            Ok(read) => read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if out.len() + read > max {
            return Ok(Err(Refusal::TooLarge(max)));
        }
        if let Err(refusal) = held.add(read as u64) {
            return Ok(Err(refusal));
        }
        out.extend_from_slice(&piece[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn held() -> Held {
        let admission = crate::admission::Admission::new(Default::default(), Default::default());
        admission.client("peer".into()).hold()
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_made() {
        let zeros = vec![0u8; 10 << 20];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&zeros).unwrap();
        let gzip = Bytes::from(gzip.finish().unwrap());
        let zstd = Bytes::from(zstd::bulk::compress(&zeros, 3).unwrap());
        for (body, compression) in [(gzip, Compression::Gzip), (zstd, Compression::Zstd)] {
            let mut bytes = held();
            let refused = decompress(body.clone(), compression, 1 << 20, &mut bytes);
            assert_eq!(refused, Err(Refusal::TooLarge(1 << 20)));
            assert!(bytes.bytes() <= (1 << 20) + (64 << 10), "made {} bytes", bytes.bytes());
            assert_eq!(decompress(body, compression, 10 << 20, &mut held()).unwrap().len(), 10 << 20);
        }
    }

    /// Found by fuzzing: with less room for the output libzstd takes it.
    #[test]
    fn a_frame_that_is_smaller_than_it_claims_is_refused() {
        let liar = [0x28, 0xb5, 0x2f, 0xfd, 0x60, 0xf8, 1, 1, 0, 0].repeat(2);
        let refused = decompress(liar.into(), Compression::Zstd, 1 << 20, &mut held());
        assert!(matches!(refused, Err(Refusal::Invalid(_))), "{refused:?}");
    }

    #[test]
    fn garbage_is_invalid() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let refused = decompress(Bytes::from_static(b"garbage!"), compression, 100, &mut held());
            assert!(matches!(refused, Err(Refusal::Invalid(_))), "{refused:?}");
        }
    }
}
