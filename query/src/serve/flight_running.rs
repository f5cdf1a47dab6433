//! Which Flight SQL answers are being sent, so that whoever asked can cancel them from another call.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// Cancellations that are remembered for tickets which are not redeemed yet.
const REMEMBERED: usize = 1024;

/// A ticket, and who may cancel it.
type Key = (u64, String);

/// The answers that are being sent.
#[derive(Default)]
pub(super) struct Running(Mutex<State>);

#[derive(Default)]
struct State {
    sent: HashMap<Key, Arc<Notify>>,
    cancelled: VecDeque<Key>,
}

impl Running {
    /// A number for a ticket, that nobody else has.
    pub(super) fn number() -> u64 {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        RandomState::new().hash_one(COUNT.fetch_add(1, Ordering::Relaxed))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to send; `None` if it was cancelled before.
    pub(super) fn begin(self: &Arc<Self>, ticket: u64, identity: &str) -> Option<Sending> {
        let key = (ticket, identity.to_owned());
        let mut state = self.lock();
        if state.cancelled.contains(&key) {
            return None;
        }
        let stop = Arc::clone(state.sent.entry(key.clone()).or_default());
        Some(Sending { key, stop, running: Arc::clone(self) })
    }

    /// Cancels what an identity asked for with a ticket: now, or when it is redeemed.
    pub(super) fn cancel(&self, ticket: u64, identity: &str) {
        let key = (ticket, identity.to_owned());
        let mut state = self.lock();
        if let Some(stop) = state.sent.get(&key) {
            // A permit is kept for a stream that does not wait at this moment.
            stop.notify_one();
        }
        if state.cancelled.len() == REMEMBERED {
            state.cancelled.pop_front();
        }
        state.cancelled.push_back(key);
    }
}

/// An answer that is being sent.
pub(super) struct Sending {
    key: Key,
    stop: Arc<Notify>,
    running: Arc<Running>,
}

impl Sending {
    /// Comes when it is cancelled.
    pub(super) async fn cancelled(&self) {
        self.stop.notified().await;
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.running.lock().sent.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_who_asked_can_cancel_and_before_it_begins_too() {
        let running = Arc::new(Running::default());
        let sending = running.begin(7, "ada").unwrap();
        running.cancel(7, "bob");
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), sending.cancelled()).await.is_err());
        running.cancel(7, "ada");
        sending.cancelled().await;
        drop(sending);
        assert!(running.begin(7, "ada").is_none() && running.begin(7, "eve").is_some());
        assert!(running.lock().sent.is_empty(), "what has ended is forgotten");
    }
}
