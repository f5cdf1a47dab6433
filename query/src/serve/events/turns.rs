//! Turns for what costs a processor: few at once, first among one's own requests and then among all who ask. Who
//! asks for much at once waits behind himself, and the machine is left to the receivers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::error::Error;

/// So many at once.
pub(crate) struct Turns {
    at_once: usize,
    all: Semaphore,
    /// Those who wait, each with as many turns.
    waiting: Mutex<HashMap<Arc<str>, Weak<Semaphore>>>,
}

/// A turn, until it is dropped.
pub(crate) type Turn<'a> = (OwnedSemaphorePermit, SemaphorePermit<'a>);

impl Turns {
    pub(crate) fn new(at_once: usize) -> Self {
        Self { at_once, all: Semaphore::new(at_once), waiting: Mutex::default() }
    }

    /// The next turn of somebody.
    pub(crate) async fn take(&self, who: &Arc<str>) -> Result<Turn<'_>, Error> {
        let own = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let own = waiting.get(who).and_then(Weak::upgrade);
            own.unwrap_or_else(|| {
                waiting.retain(|_, own| own.strong_count() > 0);
                let own = Arc::new(Semaphore::new(self.at_once));
                waiting.insert(Arc::clone(who), Arc::downgrade(&own));
                own
            })
        };
        let closed = |e: AcquireError| Error::internal(e.to_string());
        let first = own.acquire_owned().await.map_err(closed)?;
        Ok((first, self.all.acquire().await.map_err(closed)?))
    }

    /// How many callers it knows of.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.lock().unwrap().len()
    }
}
