//! Readers of the ledger's events beside the load: fast and slow, by pages and by streams; whether
//! each saw all events in order, and how long after the ledger took them.
//!
//! They run on a thread of their own, so that senders do not wait for them. What they saw is held
//! against the table `events`, asked by SQL afterwards: another way than that by which they read.

mod grpc;
mod http;
mod judge;
mod known;
mod reader;
mod text;
mod trail;

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::http::{HeaderMap, HeaderValue, Uri, header};
use hdrhistogram::Histogram;
use tokio::sync::watch;

use crate::check::Api;
use crate::options::{Options, ReaderWay};
use crate::run::histogram;
use reader::{Manner, Place, Reader, Seen};

/// How long a reader may take for its first answer.
const BEGIN_MAX: Duration = Duration::from_secs(60);

/// How many faults are named.
const NAMED: usize = 10;

/// Readers at work.
pub struct Readers {
    place: Arc<Place>,
    api: Api,
    kinds: Vec<String>,
    end: watch::Sender<Option<u64>>,
    thread: JoinHandle<Result<Vec<Seen>, String>>,
    wait: Duration,
    since: Instant,
}

/// What they came to.
#[derive(Clone, Debug)]
pub struct Told {
    pub readers: usize,
    pub slow: usize,
    /// Events that the log got meanwhile, and that each fast reader has to see.
    pub events: u64,
    /// Events that came, to all of them together.
    pub delivered: u64,
    /// Bytes in which they came.
    pub bytes: u64,
    pub seconds: f64,
    /// Microseconds from the ledger's taking a record to its event's arrival, of fast readers.
    pub lag: Histogram<u64>,
    /// Readers that saw a gap, a double, another event or another order, or that were refused.
    pub wrong: usize,
    /// Fast ones that had not seen all in time.
    pub behind: usize,
    /// Answers 429 and 503, and connections that broke.
    pub told_to_wait: u64,
    pub broken: u64,
    /// The first faults in words.
    pub named: Vec<String>,
}

/// Which of so many readers are how: the slow ones first, of each as many by every way.
fn manners(count: usize, slow: f64, ways: &[ReaderWay]) -> Vec<Manner> {
    let slow = (count as f64 * slow).round() as usize;
    ways.iter().copied().cycle().take(count).enumerate().map(|(i, way)| Manner { way, slow: i < slow }).collect()
}

impl Readers {
    /// Starts them at the end of the log; each has had an answer when this returns.
    pub fn start(options: &Options, count: u16) -> Result<Self, String> {
        let url = options.events_url();
        let api = Api::new(&url, options.bearer()?, options.check_wait);
        let begin = api.wait(Instant::now() + options.check_wait)?;
        let place = Arc::new(place(options, &url, begin)?);
        let (end, ending) = watch::channel(None);
        let (begun, begins) = mpsc::channel();
        let (at, manners) = (Arc::clone(&place), manners(usize::from(count), options.slow, &options.readers_by));
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|e| e.to_string())?.block_on(async {
                let one =
                    |manner| tokio::spawn(Reader::new(Arc::clone(&at), manner, ending.clone(), begun.clone()).run());
                let readers: Vec<_> = manners.into_iter().map(one).collect();
                drop(begun);
                let mut seen = Vec::with_capacity(readers.len());
                for reader in readers {
                    seen.push(reader.await.map_err(|e| format!("a reader failed: {e}"))?);
                }
                Ok(seen)
            })
        };
        let thread = std::thread::Builder::new().name("readers".into()).spawn(work).map_err(|e| e.to_string())?;
        let until = Instant::now() + BEGIN_MAX;
        for _ in 0..count {
            // One that was refused for good drops its end, and says why afterwards.
            if begins.recv_timeout(until.saturating_duration_since(Instant::now())).is_err() {
                break;
            }
        }
        let (kinds, wait) = (options.reader_kinds.clone(), options.check_wait);
        Ok(Self { place, api, kinds, end, thread, wait, since: Instant::now() })
    }

    /// Lets them read to the end of the log, and looks at what they saw.
    pub fn finish(self) -> Result<Told, String> {
        let size = self.api.wait(Instant::now() + self.wait);
        // Also when it is not known, they have to end.
        let _ = self.end.send(Some(size.as_ref().map_or(0, |size| *size)));
        let seen = self.thread.join().map_err(|_| "the readers failed")??;
        let seconds = self.since.elapsed().as_secs_f64();
        let size = size?;
        let judged = judge::judge(&self.api, &self.kinds, self.place.begin, size, &seen)?;
        let lag = self.place.lag.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Told {
            readers: seen.len(),
            slow: seen.iter().filter(|seen| seen.manner.slow).count(),
            events: judged.events,
            delivered: seen.iter().map(|seen| seen.trail.events).sum(),
            bytes: seen.iter().map(|seen| seen.bytes).sum(),
            seconds,
            lag,
            wrong: judged.wrong.len(),
            behind: seen.iter().filter(|seen| seen.behind).count(),
            told_to_wait: seen.iter().map(|seen| seen.told_to_wait).sum(),
            broken: seen.iter().map(|seen| seen.broken).sum(),
            named: judged.wrong.into_iter().take(NAMED).collect(),
        })
    }
}

fn place(options: &Options, url: &str, begin: u64) -> Result<Place, String> {
    let read: Uri = url.parse().map_err(|_| format!("{url} is not a URL such as http://127.0.0.1:4680"))?;
    let authority = match (read.scheme_str(), read.authority()) {
        (Some("http"), Some(authority)) => authority,
        (Some("https"), _) => return Err("https is not spoken here: put a proxy that adds TLS in front".into()),
        _ => return Err(format!("{url} is not a URL such as http://127.0.0.1:4680")),
    };
    let mut headers = HeaderMap::new();
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| format!("{url} has no host"))?;
    headers.insert(header::HOST, host);
    if let Some(bearer) = options.bearer()? {
        headers.insert(header::AUTHORIZATION, bearer);
    }
    let query = match options.reader_kinds.is_empty() {
        true => String::new(),
        false => format!("&kind={}", options.reader_kinds.join(",")),
    };
    Ok(Place {
        address: format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80)),
        prefix: read.path().trim_end_matches('/').to_owned(),
        headers,
        query,
        kinds: options.reader_kinds.clone(),
        begin,
        since_ns: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64),
        lag: Mutex::new(histogram()),
        drain: options.check_wait,
        encoding: options.readers_encoding,
        known: Mutex::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_and_fast_ones_read_by_every_way() {
        let ways = [ReaderWay::Pages, ReaderWay::Sse, ReaderWay::Grpc];
        let all = manners(12, 0.5, &ways);
        for slow in [true, false] {
            for way in ways {
                assert_eq!(all.iter().filter(|manner| **manner == Manner { way, slow }).count(), 2);
            }
        }
        assert_eq!(manners(3, 0.0, &ways[..1]).iter().filter(|manner| manner.slow).count(), 0);
        assert_eq!(manners(3, 1.0, &ways[..2]).iter().filter(|manner| manner.slow).count(), 3);
    }
}
