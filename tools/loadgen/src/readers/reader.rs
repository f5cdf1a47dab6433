//! One reader of events: pages by long poll, or a stream of server-sent events or gRPC messages, as a SIEM
//! would have it.
//!
//! It commits what it took when a page has ended or a stream has given its cursor; after a
//! connection broke it goes on from there, and what it had begun comes again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::watch;

use super::grpc::{self, Call, Messages};
use super::http::{Broken, Connection};
use super::known::{self, Coding, Known, Store};
use super::text::{Lines, Told, coding, read_lines, read_message, read_stream};
use super::trail::{self, TIMED, Trail};
use crate::options::{ReaderEncoding, ReaderWay};

/// Events of a page.
const LIMIT: u32 = 10_000;

/// Events that a slow reader takes each second.
const SLOW_LIMIT: u32 = 1_000;

/// Where and what all of them read.
pub struct Place {
    /// Host and port.
    pub address: String,
    /// What stands before `/api` in the path.
    pub prefix: String,
    pub headers: HeaderMap,
    /// Parameters that are the same in each request.
    pub query: String,
    /// The kinds of events that are asked for; none for all.
    pub kinds: Vec<String>,
    /// The first seq.
    pub begin: u64,
    /// Lag is that of events that the ledger took after this; ns since the Unix epoch.
    pub since_ns: u64,
    /// Microseconds from the ledger's taking a record to its event's arrival, of fast readers.
    pub lag: Mutex<Histogram<u64>>,
    /// How long they may take for the rest.
    pub drain: Duration,
    /// What they take.
    pub encoding: ReaderEncoding,
    /// What one of them has looked at.
    pub known: Mutex<Store>,
}

/// How a reader reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    pub way: ReaderWay,
    pub slow: bool,
}

/// What became of a reader.
#[derive(Debug)]
pub struct Seen {
    pub manner: Manner,
    pub trail: Trail,
    /// What it met that must not be.
    pub wrong: Option<String>,
    /// Bytes of bodies, as they came.
    pub bytes: u64,
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

impl From<Broken> for Trouble {
    fn from(_: Broken) -> Self {
        Self::Broken
    }
}

impl From<String> for Trouble {
    fn from(what: String) -> Self {
        Self::Wrong(what)
    }
}

impl From<hyper::Error> for Trouble {
    fn from(_: hyper::Error) -> Self {
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
    connection: Option<Connection>,
    /// Whether the cursor is from a page, whose end is known.
    from_page: bool,
    timed: u64,
}

impl Reader {
    pub fn new(place: Arc<Place>, manner: Manner, end: watch::Receiver<Option<u64>>, begun: Begun) -> Self {
        let trail = Trail::new(place.begin);
        let seen = Seen { manner, trail, wrong: None, bytes: 0, told_to_wait: 0, broken: 0, behind: false };
        let (cursor, connection, from_page, timed) = (String::new(), None, false, 0);
        Self { place, end, begun: Some(begun), seen, cursor, connection, from_page, timed }
    }

    /// Reads until sending has ended; who is fast then reads the rest.
    pub async fn run(mut self) -> Seen {
        while self.end.borrow().is_none() && self.seen.wrong.is_none() {
            let turn = match self.seen.manner.way {
                ReaderWay::Pages => self.poll().await,
                ReaderWay::Sse => self.stream().await,
                // A call begins with a cursor, and so with a page.
                ReaderWay::Grpc if self.cursor.is_empty() => self.page(SLOW_LIMIT, 0).await,
                ReaderWay::Grpc => self.call().await,
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
        let accept = "application/x-ndjson";
        let (mut connection, headers) = self.ask(&format!("&limit={limit}&wait={wait}s"), accept).await?;
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let cursor = header("x-next-cursor").ok_or_else(|| Trouble::Wrong("a page has no X-Next-Cursor".into()))?;
        let range = header("x-seq-range");
        match coding(&headers)? {
            None => {
                let mut lines = Lines::default();
                while let Some(data) = connection.piece().await? {
                    self.seen.bytes += data.len() as u64;
                    let now = now_ns();
                    lines.take(data, |line| self.event(line, now).map(drop))?;
                }
            }
            Some(coding) => {
                let mut body = Vec::new();
                while let Some(data) = connection.piece().await? {
                    body.extend_from_slice(data);
                }
                self.seen.bytes += body.len() as u64;
                self.shared(ReaderWay::Pages, coding, &body, read_lines)?;
            }
        }
        self.connection = Some(connection);
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
        let (connection, headers) = self.ask("", "text/event-stream").await?;
        match coding(&headers)? {
            None => self.plain_stream(connection).await,
            Some(_) => self.packed_stream(connection).await,
        }
    }

    async fn plain_stream(&mut self, mut connection: Connection) -> Result<(), Trouble> {
        let (mut lines, mut taken, mut id) = (Lines::default(), 0, None::<String>);
        loop {
            let data = tokio::select! {
                data = connection.piece() => data?.ok_or(Trouble::Broken)?,
                _ = self.end.changed() => {
                    // An answer that is not read to its end takes its connection with it.
                    self.seen.trail.forget_begun();
                    return Ok(());
                }
            };
            let now = now_ns();
            self.seen.bytes += data.len() as u64;
            lines.take(data, |line| {
                if let Some(event) = line.strip_prefix("data: ") {
                    taken += 1;
                    return self.event(event, now).map(drop);
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

    /// The same in a member of gzip, of which each flush can be read by itself.
    async fn packed_stream(&mut self, mut connection: Connection) -> Result<(), Trouble> {
        let (mut taken, mut has_begun, mut came) = (0, false, Vec::new());
        loop {
            let data = tokio::select! {
                data = connection.piece() => data?.ok_or(Trouble::Broken)?,
                _ = self.end.changed() => return Ok(()),
            };
            self.seen.bytes += data.len() as u64;
            came.extend_from_slice(data);
            if !has_begun && came.len() >= known::HEAD_BYTES {
                let rest = known::behind_head(&came).map(<[u8]>::len);
                let rest = rest.ok_or_else(|| Trouble::Wrong("the stream is no gzip".into()))?;
                came.drain(..came.len() - rest);
                has_begun = true;
            }
            // No piece goes beyond a chunk, and no chunk beyond a flush.
            if !has_begun || !came.ends_with(&known::FLUSH) {
                continue;
            }
            let known = self.shared(ReaderWay::Sse, Coding::Blocks, &came, read_stream)?;
            if let Some(cursor) = &known.cursor {
                self.seen.trail.commit_events().map_err(Trouble::Wrong)?;
                (self.cursor, self.from_page) = (cursor.clone(), false);
            }
            taken += known.batch.events;
            came.clear();
            if self.seen.manner.slow && taken >= u64::from(SLOW_LIMIT) {
                taken = 0;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// A call over gRPC, until sending ends or the connection breaks.
    async fn call(&mut self) -> Result<(), Trouble> {
        let place = Arc::clone(&self.place);
        let slow = self.seen.manner.slow;
        let limit = if slow { SLOW_LIMIT } else { LIMIT };
        let call = Call { limit, cursor: self.cursor.clone(), kinds: place.kinds.clone() };
        let uri = format!("http://{}{}/custody.v1.Events/Stream", place.address, place.prefix);
        let mut asked = place.headers.clone();
        if let Some(value) = place.encoding.of_calls() {
            asked.insert("grpc-accept-encoding", HeaderValue::from_static(value));
        }
        let answer = call.begin(&place.address, &uri, &asked).await?;
        refused(answer.headers())?;
        let encoding = answer.headers().get("grpc-encoding").and_then(|v| Coding::named(v.to_str().ok()?));
        let mut body: Incoming = answer.into_body();
        let (mut messages, mut taken) = (Messages::default(), 0);
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame.ok_or(Trouble::Broken)??,
                _ = self.end.changed() => return Ok(()),
            };
            let data = match frame.into_data() {
                Ok(data) => data,
                Err(frame) => {
                    refused(frame.trailers_ref().unwrap_or(&HeaderMap::new()))?;
                    return Err(Trouble::Broken);
                }
            };
            let now = now_ns();
            self.seen.bytes += data.len() as u64;
            messages.take(&data, |is_compressed, message| {
                taken += match (is_compressed, encoding) {
                    (false, _) => self.message(message, now)?,
                    (true, Some(encoding)) => self.packed_message(encoding, message)?,
                    (true, None) => return Err(Trouble::Wrong("a message is compressed, and nobody says how".into())),
                };
                Ok::<_, Trouble>(())
            })?;
            if slow && taken >= u64::from(SLOW_LIMIT) {
                taken = 0;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// A message: a page that begins where the one before ended. How many events it has.
    fn message(&mut self, message: &[u8], now: u64) -> Result<u64, Trouble> {
        let wrong = |what: &str| Trouble::Wrong(format!("a message {what}"));
        let mut events = 0;
        let told = grpc::read(message, |seq, body| {
            events += 1;
            match self.event(body, now)? {
                same if same == seq => Ok(()),
                other => Err(wrong(&format!("has the event of {other} as one of {seq}"))),
            }
        });
        let told = told.ok_or_else(|| wrong("is no StreamEventsResponse"))??;
        self.told(told, events)
    }

    /// The same of one that is compressed: what is this reader's own stands before what many have.
    fn packed_message(&mut self, coding: Coding, message: &[u8]) -> Result<u64, Trouble> {
        let Some((own, shared)) = known::stored_first(message).filter(|_| coding == Coding::Zstd) else {
            let message = coding.inflate(message).map_err(Trouble::Wrong)?;
            return self.message(&message, now_ns());
        };
        let none = |_: u64, _: &str| Err(Trouble::Wrong("a message has events outside of what it shares".into()));
        let told = grpc::read(own, none);
        let told = told.ok_or_else(|| Trouble::Wrong("a message is no StreamEventsResponse".into()))??;
        let known = self.shared(ReaderWay::Grpc, coding, &shared, read_message)?;
        self.told(told, known.batch.events)
    }

    /// A message with so many events says this of itself.
    fn told(&mut self, told: grpc::Told, events: u64) -> Result<u64, Trouble> {
        let wrong = |what: &str| Trouble::Wrong(format!("a message {what}"));
        let position = self.seen.trail.position;
        if told.from != position || told.matched != events {
            return Err(wrong(&format!(
                "begins at {} and has {} events, and the one before ended at {position}, and {events} are here",
                told.from, told.matched
            )));
        }
        self.seen.trail.commit(told.to).map_err(Trouble::Wrong)?;
        (self.cursor, self.from_page) = (told.cursor, true);
        Ok(events)
    }

    /// Compressed bytes that came now: what they are, if they join with what this reader has.
    fn shared(
        &mut self,
        way: ReaderWay,
        coding: Coding,
        bytes: &[u8],
        read: fn(&[u8]) -> Told,
    ) -> Result<Arc<Known>, Trouble> {
        let (now, place) = (now_ns(), Arc::clone(&self.place));
        let mut store = place.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = store.look((way, self.seen.trail.position), coding, bytes, read).map_err(Trouble::Wrong)?;
        self.seen.trail.take_batch(&known.batch).map_err(Trouble::Wrong)?;
        if !self.seen.manner.slow {
            let mut lag = self.place.lag.lock().unwrap_or_else(PoisonError::into_inner);
            for taken in known.batch.times.iter().filter(|taken| **taken >= self.place.since_ns) {
                lag.saturating_record((now.saturating_sub(*taken) / 1000).max(1));
            }
        }
        Ok(known)
    }

    /// An event, which came at this time; gives its seq.
    fn event(&mut self, line: &str, now: u64) -> Result<u64, Trouble> {
        let seq = self.seen.trail.take(line).map_err(Trouble::Wrong)?;
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
        Ok(seq)
    }

    /// Asks for what comes behind the cursor.
    async fn ask(&mut self, more: &str, accept: &'static str) -> Result<(Connection, HeaderMap), Trouble> {
        let place = Arc::clone(&self.place);
        let from = match self.cursor.is_empty() {
            true => format!("from_seq={}", place.begin),
            false => format!("after={}", self.cursor),
        };
        let path = format!("{}/api/v1/events?{from}{}{more}", place.prefix, place.query);
        let mut asked = place.headers.clone();
        asked.insert(header::ACCEPT, HeaderValue::from_static(accept));
        asked.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(place.encoding.of_pages()));
        let mut connection = match self.connection.take().filter(Connection::is_free) {
            Some(connection) => connection,
            None => Connection::open(&place.address).await?,
        };
        let (status, headers) = connection.get(&path, &asked).await?;
        match status {
            StatusCode::OK => {
                // Nobody waits for it any more when the run was given up.
                if let Some(begun) = self.begun.take() {
                    let _ = begun.send(());
                }
                Ok((connection, headers))
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let after = headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
                Err(Trouble::Wait(Duration::from_secs(after.unwrap_or(1))))
            }
            status => {
                let mut body = Vec::new();
                while let Some(piece) = connection.piece().await? {
                    body.extend_from_slice(piece);
                }
                Err(Trouble::Wrong(format!("{status}: {}", trail::clip(&String::from_utf8_lossy(&body)))))
            }
        }
    }
}

/// Whether a call was refused, by its headers or its trailers.
fn refused(headers: &HeaderMap) -> Result<(), Trouble> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        // RESOURCE_EXHAUSTED, UNAVAILABLE.
        Some("8" | "14") => Err(Trouble::Wait(Duration::from_secs(1))),
        Some(code) => Err(Trouble::Wrong(format!("gRPC status {code}: {}", text("grpc-message").unwrap_or_default()))),
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
}
