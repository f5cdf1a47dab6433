//! Reading a request's body: within its limit, with its bytes counted against
//! the server's memory, and decompressed no further than the limit.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use crate::Refusal;
use crate::stats::Stats;

/// A client that sends nothing for this long is given up.
const IDLE: Duration = Duration::from_secs(60);

/// Bytes that are held for one request; given back when it is dropped.
pub(crate) struct Held {
    stats: Arc<Stats>,
    limit: u64,
    bytes: u64,
}

impl Held {
    pub(crate) fn new(stats: Arc<Stats>, limit: u64) -> Self {
        Self { stats, limit, bytes: 0 }
    }

    fn add(&mut self, bytes: u64) -> Result<(), Refusal> {
        let before = self.stats.in_flight_bytes.fetch_add(bytes, Relaxed);
        self.bytes += bytes;
        // One request alone is always let through, or a small limit would refuse it for ever.
        if before + bytes > self.limit && before + bytes > self.bytes {
            return Err(Refusal::unavailable("too many bytes are waiting for the log; try again", 1));
        }
        Ok(())
    }
}

impl Held {
    /// Takes over what another holds.
    pub(crate) fn absorb(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stats.in_flight_bytes.fetch_sub(self.bytes, Relaxed);
    }
}

/// Reads a body of at most `max` bytes. A body in one piece is not copied.
pub(crate) async fn read(body: &mut Incoming, max: usize, held: &mut Held) -> Result<Bytes, Refusal> {
    if body.size_hint().lower() > max as u64 {
        return Err(Refusal::TooLarge(max));
    }
    let expected = (body.size_hint().lower() as usize).min(max);
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    loop {
        let frame = tokio::time::timeout(IDLE, body.frame()).await;
        let frame =
            frame.map_err(|_| Refusal::unavailable("the body stopped coming for 60 seconds; send it again", 1))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|e| Refusal::unavailable(&format!("the body broke off: {e}; send it again"), 1))?;
        let Ok(data) = frame.into_data() else { continue };
        held.add(data.len() as u64)?;
        let have = first.as_ref().map_or(0, Bytes::len) + rest.len();
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

/// How long a refused client may go on sending, and how many times the largest body.
const DRAIN: (Duration, usize) = (Duration::from_secs(5), 4);

/// Lets an HTTP/1.1 client whose request is refused send the rest of it, which is dropped as
/// it comes. A client that is cut off while it writes sees no answer but a broken connection,
/// and sends again what can never be accepted. Who asks first (`Expect`) has sent nothing.
pub(crate) async fn drain(request: &mut Request<Incoming>, max: usize) {
    if request.version() >= Version::HTTP_2 || request.headers().contains_key(header::EXPECT) {
        return;
    }
    let body = request.body_mut();
    let mut left = max.saturating_mul(DRAIN.1);
    let drained = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN.0, drained).await;
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

/// Decompresses to at most `max` bytes; what would be more is never made.
pub(crate) async fn decompressed(
    body: Bytes,
    compression: Compression,
    max: usize,
    held: &mut Held,
) -> Result<Bytes, Refusal> {
    if compression == Compression::None || body.len() <= INLINE_BYTES_MAX {
        return decompress(body, compression, max, held);
    }
    let mut own = Held::new(Arc::clone(&held.stats), held.limit);
    let work = move || decompress(body, compression, max, &mut own).map(|body| (body, own));
    let done = tokio::task::spawn_blocking(work).await;
    let (body, own) = done.map_err(|_| Refusal::unavailable("the server is stopping", 1))??;
    held.absorb(own);
    Ok(body)
}

fn decompress(body: Bytes, compression: Compression, max: usize, held: &mut Held) -> Result<Bytes, Refusal> {
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
        Held::new(Arc::default(), 1 << 30)
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
            assert!(bytes.bytes <= (1 << 20) + (64 << 10), "made {} bytes", bytes.bytes);
            assert_eq!(decompress(body, compression, 10 << 20, &mut held()).unwrap().len(), 10 << 20);
        }
    }

    #[test]
    fn garbage_is_invalid() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let refused = decompress(Bytes::from_static(b"garbage!"), compression, 100, &mut held());
            assert!(matches!(refused, Err(Refusal::Invalid(_))), "{refused:?}");
        }
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let stats = Arc::new(Stats::default());
        let mut one = Held::new(Arc::clone(&stats), 100);
        one.add(80).unwrap();
        let mut two = Held::new(Arc::clone(&stats), 100);
        assert!(matches!(two.add(30), Err(Refusal::Unavailable { .. })));
        drop((one, two));
        assert_eq!(stats.in_flight_bytes.load(Relaxed), 0);
        Held::new(stats, 100).add(500).unwrap();
    }
}
