//! How many queries may run, and how much memory all of them together may have.
//!
//! A query has its place until its last thread has let go of it, also after whoever asked has gone
//! or was told that it took too long: planning that cannot be interrupted holds a place of its own
//! caller, and nobody else's.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::common::Result as DataFusionResult;
use datafusion::execution::memory_pool::{
    FairSpillPool, GreedyMemoryPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation,
};

use crate::error::{Error, ErrorKind};

/// How many queries run at a time.
#[derive(Clone, Copy, Debug)]
pub struct Concurrency {
    /// Over all callers.
    pub queries_max: usize,
    /// Of one identity.
    pub per_identity_max: usize,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self { queries_max: 64, per_identity_max: 16 }
    }
}

/// Lets queries in.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    limits: Concurrency,
    running: Mutex<HashMap<Arc<str>, usize>>,
}

impl Gate {
    pub(crate) fn new(limits: Concurrency) -> Self {
        Self { limits, running: Mutex::default() }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place, or says who has them all.
    pub(crate) fn enter(self: &Arc<Self>, identity: &Arc<str>) -> Result<Place, Error> {
        let mut running = self.running();
        let (all, own) = (running.values().sum::<usize>(), running.get(identity).copied().unwrap_or(0));
        let busy = |who: &str, most: usize| {
            let message = format!("{who} {most} queries running, and no more are allowed; ask again in a second");
            Err(Error::new(ErrorKind::Busy, message))
        };
        if own >= self.limits.per_identity_max {
            return busy(&format!("{identity} has"), own);
        }
        if all >= self.limits.queries_max {
            return busy("there are", all);
        }
        *running.entry(Arc::clone(identity)).or_default() += 1;
        Ok(Place { gate: Arc::clone(self), identity: Arc::clone(identity) })
    }
}

/// The place of a query that runs.
#[derive(Debug)]
pub(crate) struct Place {
    gate: Arc<Gate>,
    identity: Arc<str>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut running = self.gate.running();
        if let Some(count) = running.get_mut(&self.identity) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.identity);
            }
        }
    }
}

/// The memory of one query, out of that of all.
#[derive(Debug)]
pub(crate) struct SharedPool {
    own: FairSpillPool,
    all: Arc<GreedyMemoryPool>,
}

impl SharedPool {
    /// A share of at most `bytes_max`.
    pub(crate) fn new(bytes_max: usize, all: &Arc<GreedyMemoryPool>) -> Self {
        Self { own: FairSpillPool::new(bytes_max), all: Arc::clone(all) }
    }
}

impl fmt::Display for SharedPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a query's share of memory")
    }
}

impl MemoryPool for SharedPool {
    fn name(&self) -> &'static str {
        "shared"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.own.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.own.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.all.grow(reservation, additional);
        self.own.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.own.shrink(reservation, shrink);
        self.all.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> DataFusionResult<()> {
        self.own.try_grow(reservation, additional)?;
        // Of what all queries have, too; a query that can spill then does.
        self.all.try_grow(reservation, additional).inspect_err(|_| self.own.shrink(reservation, additional))
    }

    fn reserved(&self) -> usize {
        self.own.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.own.memory_limit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_places_and_all_come_back() {
        let gate = Arc::new(Gate::new(Concurrency { queries_max: 3, per_identity_max: 2 }));
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let first = gate.enter(&a).unwrap();
        let second = gate.enter(&a).unwrap();
        let refused = gate.enter(&a).unwrap_err();
        assert!(refused.kind == ErrorKind::Busy && refused.message.starts_with("a has 2"), "{refused}");
        let third = gate.enter(&b).unwrap();
        assert!(gate.enter(&b).unwrap_err().message.starts_with("there are 3"));
        drop((first, second, third));
        assert!(gate.running().is_empty());
        gate.enter(&a).unwrap();
    }
}
