//! One reader of events: pages by long poll, or a stream of server-sent events, as a SIEM would.
//!
//! It commits what it took when a page has ended or a stream has given its cursor; after a
//! connection broke it goes on from there, and what it had begun comes again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::trail::{self, Trail};

/// Events of a page.
const LIMIT: u32 = 10_000;

/// Events that a slow reader takes each second.
const SLOW_LIMIT: u32 = 1_000;

/// One event of so many is timed: a hundred readers that look for a time in each would be the load.
const TIMED: u64 = 8;

/// Where and what all of them read.
pub struct Place {
    /// Host and port.
    pub address: String,
    /// What stands before `/api` in the path.
    pub prefix: String,
    pub headers: HeaderMap,
    /// Parameters that are the same in each request.
    pub query: String,
    /// The first seq.
    pub begin: u64,
    /// Lag is that of events that the ledger took after this; ns since the Unix epoch.
    pub since_ns: u64,
    /// Microseconds from the ledger's taking a record to its event's arrival, of fast readers.
    pub lag: Mutex<Histogram<u64>>,
    /// How long they may take for the rest.
    pub drain: Duration,
}

/// How a reader reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    pub streams: bool,
    pub slow: bool,
}

/// What became of a reader.
#[derive(Debug)]
pub struct Seen {
    pub manner: Manner,
    pub trail: Trail,
    /// What it met that must not be.
    pub wrong: Option<String>,
    /// Answers 429 and 503.
    pub told_to_wait: u64,
    /// Connections and answers that broke.
    pub broken: u64,
    /// It did not come to the end in time.
    pub behind: bool,
}

/// Why a turn ended early.
enum Trouble {
    Wait(Duration),
    Broken,
    Wrong(String),
}

impl From<hyper::Error> for Trouble {
    fn from(_: hyper::Error) -> Self {
        Self::Broken
    }
}

impl From<std::io::Error> for Trouble {
    fn from(_: std::io::Error) -> Self {
        Self::Broken
    }
}

/// Tells once that the first answer has come.
pub type Begun = std::sync::mpsc::Sender<()>;

pub struct Reader {
    place: Arc<Place>,
    /// The size of the log that is to be read, when sending has ended.
    end: watch::Receiver<Option<u64>>,
    begun: Option<Begun>,
    seen: Seen,
    cursor: String,
    connection: Option<http1::SendRequest<Empty<Bytes>>>,
    /// Whether the cursor is from a page, whose end is known.
    from_page: bool,
    timed: u64,
}

impl Reader {
    pub fn new(place: Arc<Place>, manner: Manner, end: watch::Receiver<Option<u64>>, begun: Begun) -> Self {
        let trail = Trail::new(place.begin);
        let seen = Seen { manner, trail, wrong: None, told_to_wait: 0, broken: 0, behind: false };
        let (cursor, connection, from_page, timed) = (String::new(), None, false, 0);
        Self { place, end, begun: Some(begun), seen, cursor, connection, from_page, timed }
    }

    /// Reads until sending has ended; who is fast then reads the rest.
    pub async fn run(mut self) -> Seen {
        while self.end.borrow().is_none() && self.seen.wrong.is_none() {
            let turn = match self.seen.manner.streams {
                true => self.stream().await,
                false => self.poll().await,
            };
            self.after(turn).await;
        }
        let size = self.end.borrow().unwrap_or(0);
        let until = Instant::now() + self.place.drain;
        while !self.seen.manner.slow && self.seen.wrong.is_none() && self.seen.trail.position < size {
            if Instant::now() > until {
                self.seen.behind = true;
                break;
            }
            let turn = self.page(LIMIT, 1).await;
            self.after(turn).await;
        }
        self.seen
    }

    /// Waits as it was told to, or notes what is wrong.
    async fn after(&mut self, turn: Result<(), Trouble>) {
        let Err(trouble) = turn else { return };
        self.connection = None;
        self.seen.trail.forget_begun();
        match trouble {
            Trouble::Wait(time) => {
                self.seen.told_to_wait += 1;
                self.pause(time).await;
            }
            Trouble::Broken => {
                self.seen.broken += 1;
                self.pause(Duration::from_millis(100)).await;
            }
            Trouble::Wrong(what) => self.seen.wrong = Some(what),
        }
    }

    /// A pause, or a shorter one when sending ends.
    async fn pause(&mut self, time: Duration) {
        if self.end.borrow().is_some() {
            // It was told already; a short pause keeps it from asking in vain.
            return tokio::time::sleep(time.min(Duration::from_secs(1))).await;
        }
        let _ = tokio::time::timeout(time, self.end.changed()).await;
    }

    /// A page; a slow reader takes one a second.
    async fn poll(&mut self) -> Result<(), Trouble> {
        let next = Instant::now() + Duration::from_secs(1);
        if !self.seen.manner.slow {
            return self.page(LIMIT, if self.begun.is_some() { 0 } else { 2 }).await;
        }
        self.page(SLOW_LIMIT, 0).await?;
        self.pause(next.saturating_duration_since(Instant::now())).await;
        Ok(())
    }

    async fn page(&mut self, limit: u32, wait: u32) -> Result<(), Trouble> {
        let size = *self.end.borrow();
        let answer = self.ask(&format!("&limit={limit}&wait={wait}s"), "application/x-ndjson").await?;
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let cursor = header("x-next-cursor").ok_or_else(|| Trouble::Wrong("a page has no X-Next-Cursor".into()))?;
        let range = header("x-seq-range");
        let mut body = answer.into_body();
        let mut lines = Lines::default();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            let now = now_ns();
            lines.take(&data, |line| self.event(line, now))?;
        }
        self.ends(range.as_deref(), size)?;
        (self.cursor, self.from_page) = (cursor, true);
        Ok(())
    }

    /// The page covers these records: no more than the events say, and where the one before ended. `size` records
    /// were visible when it was asked for, if that was known.
    fn ends(&mut self, range: Option<&str>, size: Option<u64>) -> Result<(), Trouble> {
        let Some(range) = range else {
            // It covers none, so its cursor is at the end; a stream's may have come there without an event.
            let trail = &mut self.seen.trail;
            return trail.commit(trail.position.max(size.unwrap_or(0))).map_err(Trouble::Wrong);
        };
        let read = range.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        let (first, last): (u64, u64) = read.ok_or_else(|| Trouble::Wrong(format!("X-Seq-Range is {range}")))?;
        let position = self.seen.trail.position;
        // A stream's cursor may be further than its last event.
        let joins = if self.from_page { first == position } else { first >= position };
        if !joins {
            return Err(Trouble::Wrong(format!("a page begins at {first}, and the one before ended at {position}")));
        }
        self.seen.trail.commit(last + 1).map_err(Trouble::Wrong)
    }

    /// Server-sent events, until sending ends or the connection breaks.
    async fn stream(&mut self) -> Result<(), Trouble> {
        let mut body = self.ask("", "text/event-stream").await?.into_body();
        let (mut lines, mut taken, mut id) = (Lines::default(), 0, None::<String>);
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame.ok_or(Trouble::Broken)??,
                _ = self.end.changed() => {
                    // An answer that is not read to its end takes its connection with it.
                    self.connection = None;
                    self.seen.trail.forget_begun();
                    return Ok(());
                }
            };
            let Ok(data) = frame.into_data() else { continue };
            let now = now_ns();
            lines.take(&data, |line| {
                if let Some(event) = line.strip_prefix("data: ") {
                    taken += 1;
                    return self.event(event, now);
                }
                if let Some(cursor) = line.strip_prefix("id: ") {
                    id = Some(cursor.to_owned());
                } else if let Some(name) = line.strip_prefix("event: ") {
                    return Err(Trouble::Wrong(format!("the stream tells of {}", trail::clip(name))));
                } else if line.is_empty()
                    && let Some(cursor) = id.take()
                {
                    self.seen.trail.commit_events().map_err(Trouble::Wrong)?;
                    (self.cursor, self.from_page) = (cursor, false);
                }
                Ok(())
            })?;
            if self.seen.manner.slow && taken >= SLOW_LIMIT {
                taken = 0;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    fn event(&mut self, line: &str, now: u64) -> Result<(), Trouble> {
        self.seen.trail.take(line).map_err(Trouble::Wrong)?;
        self.timed += 1;
        if !self.seen.manner.slow && self.timed.is_multiple_of(TIMED) {
            let taken = trail::ingest_ns(line);
            let taken =
                taken.ok_or_else(|| Trouble::Wrong(format!("this has no ingest_time: {}", trail::clip(line))))?;
            if taken >= self.place.since_ns {
                let mut lag = self.place.lag.lock().unwrap_or_else(PoisonError::into_inner);
                lag.saturating_record((now.saturating_sub(taken) / 1000).max(1));
            }
        }
        Ok(())
    }

    /// Asks for what comes behind the cursor.
    async fn ask(&mut self, more: &str, accept: &'static str) -> Result<Response<Incoming>, Trouble> {
        let place = Arc::clone(&self.place);
        let from = match self.cursor.is_empty() {
            true => format!("from_seq={}", place.begin),
            false => format!("after={}", self.cursor),
        };
        let path = format!("{}/api/v1/events?{from}{}{more}", place.prefix, place.query);
        let mut request = Request::get(path).body(Empty::new()).map_err(|e| Trouble::Wrong(e.to_string()))?;
        *request.headers_mut() = place.headers.clone();
        request.headers_mut().insert(header::ACCEPT, http::HeaderValue::from_static(accept));
        let mut sender = match self.connection.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => {
                let stream = TcpStream::connect(&place.address).await?;
                stream.set_nodelay(true)?;
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                sender
            }
        };
        sender.ready().await?;
        let answer = sender.send_request(request).await?;
        self.connection = Some(sender);
        match answer.status() {
            StatusCode::OK => {
                // Nobody waits for it any more when the run was given up.
                if let Some(begun) = self.begun.take() {
                    let _ = begun.send(());
                }
                Ok(answer)
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let after = answer.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
                Err(Trouble::Wait(Duration::from_secs(after.unwrap_or(1))))
            }
            status => {
                let body = answer.into_body().collect().await?.to_bytes();
                Err(Trouble::Wrong(format!("{status}: {}", trail::clip(&String::from_utf8_lossy(&body)))))
            }
        }
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
}

/// Bytes as they come, line by line.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn take(&mut self, data: &[u8], mut each: impl FnMut(&str) -> Result<(), Trouble>) -> Result<(), Trouble> {
        let mut data = data;
        while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
            let whole = match self.rest.is_empty() {
                true => &data[..end],
                false => {
                    self.rest.extend_from_slice(&data[..end]);
                    &self.rest
                }
            };
            let line = std::str::from_utf8(whole).map_err(|_| Trouble::Wrong("an event is not UTF-8".into()))?;
            each(line)?;
            self.rest.clear();
            data = &data[end + 1..];
        }
        self.rest.extend_from_slice(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_are_cut() {
        let text = "one\ntwo and more\n\nlast\n";
        for size in 1..=text.len() {
            let (mut lines, mut got) = (Lines::default(), Vec::new());
            for part in text.as_bytes().chunks(size) {
                let taken = lines.take(part, |line| {
                    got.push(line.to_owned());
                    Ok(())
                });
                assert!(taken.is_ok());
            }
            assert_eq!(got, ["one", "two and more", "", "last"], "in pieces of {size}");
        }
    }
}
