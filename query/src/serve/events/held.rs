//! How many bytes of pages are under way to readers: when they are many, pages become smaller, so
//! that memory stays bounded and nobody waits for somebody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::page::PAGE_BYTES;

/// Bytes of pages that are under way, about.
const ALL_BYTES: usize = 256 << 20;

/// A page may have as many in any case.
const PAGE_BYTES_MIN: usize = 256 << 10;

/// Bytes of an event, about: who asks for few of them reserves little.
const EVENT_BYTES: usize = 4 << 10;

/// Counts the bytes of pages that are under way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holding(Arc<AtomicUsize>);

/// Bytes that are held until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    all: Arc<AtomicUsize>,
    pub(crate) bytes: usize,
}

impl Holding {
    /// What a page of so many events may take now: a power of two, so that those who ask for the same at about
    /// the same time may have the same.
    pub(crate) fn fair(&self, limit: usize) -> usize {
        let fair = ALL_BYTES.saturating_sub(self.0.load(Relaxed)) / 4;
        let bytes = fair.min(limit.saturating_mul(EVENT_BYTES)).clamp(PAGE_BYTES_MIN, PAGE_BYTES);
        1 << bytes.ilog2()
    }

    /// Holds as many bytes.
    pub(crate) fn hold(&self, bytes: usize) -> Held {
        self.0.fetch_add(bytes, Relaxed);
        Held { all: Arc::clone(&self.0), bytes }
    }
}

impl Held {
    /// The page turned out to have so many.
    pub(crate) fn settle(&mut self, bytes: usize) {
        self.all.fetch_add(bytes, Relaxed);
        self.all.fetch_sub(self.bytes, Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_become_smaller_when_many_are_under_way() {
        let holding = Holding::default();
        let reserve = |limit| holding.hold(holding.fair(limit));
        let first = reserve(10_000);
        assert_eq!(first.bytes, PAGE_BYTES);
        let held: Vec<Held> = (0..1000).map(|_| reserve(10_000)).collect();
        assert_eq!(held.last().map(|held| held.bytes), Some(PAGE_BYTES_MIN));
        let all = || holding.0.load(Relaxed);
        assert!(all() <= ALL_BYTES + 1001 * PAGE_BYTES_MIN);
        let mut small = reserve(1);
        small.settle(7);
        let before = all();
        drop(small);
        assert_eq!(all(), before - 7);
        drop((first, held));
        assert_eq!(all(), 0);
    }
}
