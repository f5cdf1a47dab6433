//! Who may have how much in flight.
//!
//! Bytes and requests that wait for the log are bounded over all clients, and a
//! client may hold at most `share` percent of the sum of what it holds and what is
//! free. So a client alone gets that share, n noisy ones get equal parts, and there
//! is always something left for the next one: a noisy client is refused before it
//! can fill the server, and a quiet one is not refused for it. The rule needs no
//! list of who is active, and costs two counters more than the bound alone.
//!
//! A refusal here is temporary by its nature: UNAVAILABLE, or 503.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::Refusal;
use crate::stats::Stats;
use crate::status::Reason;

/// Bounds on what is in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Most bytes received and not yet durable, over all requests.
    pub bytes_max: u64,
    /// Most requests that have begun and are not answered.
    pub requests_max: u64,
    /// The part of both, in percent, that one client may hold while no other holds anything.
    pub client_share: u64,
    /// A body that stops coming for this long is given up.
    pub body_timeout: Duration,
    /// Beyond [`Self::body_timeout`], a body gets a second for each so many bytes.
    pub body_rate_min: u64,
}

impl Default for InFlight {
    fn default() -> Self {
        Self {
            bytes_max: 256 << 20,
            requests_max: 8192,
            client_share: 75,
            body_timeout: Duration::from_secs(30),
            body_rate_min: 8 << 10,
        }
    }
}

impl InFlight {
    /// Whether a client that would hold `used` of `max`, of which all together would
    /// hold `all`, stays within its share.
    fn fits(&self, used: u64, all: u64, max: u64) -> bool {
        let share = u128::from(self.client_share.clamp(1, 100));
        all <= max && u128::from(used) * (100 - share) <= u128::from(max - all) * share
    }
}

/// The counters of all clients together.
pub(crate) struct Admission {
    limits: InFlight,
    stats: Arc<Stats>,
    requests: AtomicU64,
    ended: Notify,
    clients: Mutex<HashMap<String, Weak<Client>>>,
}

impl Admission {
    pub(crate) fn new(limits: InFlight, stats: Arc<Stats>) -> Arc<Self> {
        Arc::new(Self { limits, stats, requests: AtomicU64::new(0), ended: Notify::new(), clients: Mutex::default() })
    }

    /// The counters of one client. Looked up once for each connection.
    pub(crate) fn client(self: &Arc<Self>, identity: String) -> Arc<Client> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = clients.get(&identity).and_then(Weak::upgrade) {
            return known;
        }
        let work = Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(2, usize::from)));
        let client = Arc::new(Client {
            identity: identity.clone(),
            admission: Arc::clone(self),
            bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            work,
        });
        clients.insert(identity, Arc::downgrade(&client));
        client
    }

    /// Resolves when no request has been under way for a moment: long enough for
    /// answers to be written and for what was on the wire to begin. A client that
    /// merely keeps its connection open holds nobody up.
    pub(crate) async fn idle(&self) {
        loop {
            while self.requests.load(Ordering::SeqCst) > 0 {
                let _ = tokio::time::timeout(Duration::from_millis(50), self.ended.notified()).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            if self.requests.load(Ordering::SeqCst) == 0 {
                return;
            }
        }
    }
}

/// One client: everybody with the same authenticated identity.
pub(crate) struct Client {
    identity: String,
    admission: Arc<Admission>,
    bytes: AtomicU64,
    requests: AtomicU64,
    /// How much work off the network threads it may have done at once: as much as there
    /// are processors, so that another client's work never queues behind a flood of it.
    work: Arc<Semaphore>,
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut clients = self.admission.clients.lock().unwrap_or_else(PoisonError::into_inner);
        // Another may have taken its place between the last use and here.
        if clients.get(&self.identity).is_some_and(|known| known.strong_count() == 0) {
            clients.remove(&self.identity);
        }
    }
}

impl Client {
    /// Who it is, as authenticated.
    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    /// How the bodies of its requests are bounded.
    pub(crate) fn limits(&self) -> &InFlight {
        &self.admission.limits
    }

    /// Lets a request begin, or says why not now.
    pub(crate) fn begin(self: &Arc<Self>) -> Result<Begun, Refusal> {
        let admission = &self.admission;
        let used = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let all = admission.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let begun = Begun(Arc::clone(self));
        let (limits, max) = (&admission.limits, admission.limits.requests_max);
        if all == 1 || limits.fits(used, all, max) {
            return Ok(begun);
        }
        drop(begun);
        Err(self.refusal(all > max, "requests are under way", "--requests-max", max).because(Reason::Requests))
    }

    /// An account for the bytes of one request.
    pub(crate) fn hold(self: &Arc<Self>) -> Held {
        Held { client: Arc::clone(self), bytes: 0 }
    }

    /// Waits for its turn to have work done off the network threads.
    pub(crate) async fn work(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed; without a permit the work would still be right.
        Arc::clone(&self.work).acquire_owned().await.ok()
    }

    fn refusal(&self, all: bool, what: &str, flag: &str, max: u64) -> Refusal {
        let whose = if all { "too many" } else { "this client's share of the" };
        let share = match all {
            true => String::new(),
            false => format!(", --client-share {}", self.admission.limits.client_share),
        };
        let full = if all { "" } else { " already" };
        Refusal::unavailable(&format!("{whose} {what}{full} ({flag} {max}{share}); try again"), 1)
            .because(Reason::Memory)
    }

    /// Takes `bytes` for a request that holds `own`. What is refused counts for nobody.
    fn take(&self, bytes: u64, own: u64) -> Result<(), Refusal> {
        let (limits, total) = (&self.admission.limits, &self.admission.stats.in_flight_bytes);
        let used = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let all = total.load(Ordering::Relaxed) + bytes;
        // One request alone is always let through, or a small limit would refuse it for ever.
        let is_alone = all == own + bytes;
        if !is_alone && !limits.fits(used, all, limits.bytes_max) {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(self.bytes_refusal(all));
        }
        // Others may have been let in since the load: the bound itself is not theirs to break.
        let all = total.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if !is_alone && all > limits.bytes_max {
            self.give_back(bytes);
            return Err(self.bytes_refusal(all));
        }
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.admission.stats.in_flight_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn bytes_refusal(&self, all: u64) -> Refusal {
        let max = self.admission.limits.bytes_max;
        self.refusal(all > max, "bytes wait for the log", "--in-flight-bytes-max", max)
    }
}

/// A request that has begun; it ends when this is dropped.
pub(crate) struct Begun(Arc<Client>);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
        if self.0.admission.requests.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.admission.ended.notify_waiters();
        }
    }
}

/// Bytes that are held for one request; given back when it is dropped.
pub(crate) struct Held {
    client: Arc<Client>,
    bytes: u64,
}

impl Held {
    /// Whose they are.
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Holds more, unless too much is held already.
    pub(crate) fn add(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.client.take(bytes, self.bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Holds less: some of it is gone already.
    pub(crate) fn give_back(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.client.give_back(bytes);
    }

    /// Counts bytes as they came.
    pub(crate) fn received(&self, bytes: u64) {
        self.client.admission.stats.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether so much could be held now: what cannot be kept need not be sent.
    pub(crate) fn could_add(&self, bytes: u64) -> Result<(), Refusal> {
        let (client, limits) = (&self.client, &self.client.admission.limits);
        let all = client.admission.stats.in_flight_bytes.load(Ordering::Relaxed) + bytes;
        let used = client.bytes.load(Ordering::Relaxed) + bytes;
        if all == self.bytes + bytes || limits.fits(used, all, limits.bytes_max) {
            return Ok(());
        }
        Err(client.bytes_refusal(all))
    }

    /// How much that is.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes over what another holds.
    pub(crate) fn absorb(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.client.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(bytes_max: u64, requests_max: u64) -> Arc<Admission> {
        Admission::new(InFlight { bytes_max, requests_max, ..InFlight::default() }, Arc::default())
    }

    fn message(refused: Result<(), Refusal>) -> String {
        refused.unwrap_err().message()
    }

    #[test]
    fn bytes_are_bounded_and_given_back() {
        let admission = admission(100, 100);
        let (one, two) = (admission.client("one".into()), admission.client("two".into()));
        let mut held = one.hold();
        held.add(60).unwrap();
        assert!(message(one.hold().add(20)).contains("this client's share"), "three quarters of all, when alone");
        assert!(message(two.hold().add(50)).contains("--in-flight-bytes-max 100"));
        two.hold().add(20).unwrap();
        let mut own = one.hold();
        own.add(15).unwrap();
        held.absorb(own);
        assert!(one.hold().add(1).is_err());
        held.give_back(5);
        one.hold().add(5).unwrap();
        held.give_back(1000);
        assert_eq!((held.bytes(), admission.stats.in_flight_bytes.load(Ordering::Relaxed)), (0, 0));
        held.add(70).unwrap();
        drop(held);
        assert_eq!(admission.stats.in_flight_bytes.load(Ordering::Relaxed), 0);
        one.hold().add(500).unwrap();
    }

    /// However many are noisy, and in whatever order they come, there is room for one more.
    #[test]
    fn the_quiet_are_not_refused_for_the_noisy() {
        for noisy in [1, 2, 5, 20] {
            let admission = admission(1 << 20, 1000);
            let clients: Vec<_> = (0..noisy).map(|n| admission.client(format!("noisy {n}"))).collect();
            let (mut held, mut begun) = (Vec::new(), Vec::new());
            for round in 0..4000 {
                let client = &clients[round * round % noisy];
                let mut hold = client.hold();
                if hold.add(1 + (round as u64 * 7919) % 5000).is_ok() {
                    held.push(hold);
                }
                begun.extend(client.begin());
            }
            let quiet = admission.client("quiet".into());
            quiet.hold().add(4000).unwrap_or_else(|e| panic!("{noisy}: {}", e.message()));
            assert!(quiet.begin().is_ok(), "{noisy}");
            assert!(clients[0].begin().is_err() || noisy > 4, "{noisy}");
        }
    }

    #[test]
    fn a_single_request_is_let_through_whatever_the_limits() {
        let admission = admission(1, 1);
        let client = admission.client("one".into());
        let begun = client.begin().unwrap_or_else(|e| panic!("{e:?}"));
        let refused = client.begin().err().unwrap().message();
        assert!(refused.contains("too many requests are under way (--requests-max 1)"), "{refused}");
        drop(begun);
        assert!(client.begin().is_ok());
        drop(client);
        assert!(admission.clients.lock().unwrap().is_empty(), "who is gone is forgotten");
    }
}
