//! The steps in which readers follow the log: all of them stop at the same seqs, so that what one of
//! them reads is what the others read, and is made once.
//!
//! A step ends at what is visible when somebody waits for more, and at most each [`STEP`]. Whoever
//! has fallen behind by some steps takes them one by one, or several that are short together, as
//! everybody else at his place does.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::recent::NEAR;

/// Who follows the end of the log gets what came in steps of this length.
pub(crate) const STEP: Duration = Duration::from_millis(100);

/// Ends that are remembered: about seven minutes of a log that never rests.
const ENDS_MAX: usize = 4_096;

/// Steps of fewer records than this are taken together by who is behind.
const RECORDS_MIN: u64 = 1_000;

/// Far from the end of the log those who read all of it stop at multiples of this.
const FAR_RECORDS: u64 = 1_024;

/// Where steps ended.
#[derive(Debug, Default)]
pub(crate) struct Steps(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// In ascending order.
    ends: VecDeque<u64>,
    last: Option<Instant>,
}

/// What somebody at the end of the log has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing: a step ended here and now, or somebody else ended one.
    Ended,
    /// The time at which the next step may end.
    At(Instant),
    /// More records.
    More,
}

impl Steps {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where somebody at `from` stops who follows the log, of which `size` records are visible; `None`
    /// if no step has ended behind him. `all` if he reads all of it: far from its end he then stops
    /// where others stop, too, and otherwise where his page is full.
    pub(crate) fn stop(&self, from: u64, size: u64, all: bool) -> Option<u64> {
        if from.saturating_add(NEAR) < size {
            return Some(if all { (from / FAR_RECORDS + 1) * FAR_RECORDS } else { u64::MAX });
        }
        let inner = self.lock();
        let next = inner.ends.partition_point(|end| *end < from.saturating_add(RECORDS_MIN));
        inner.ends.get(next).or(inner.ends.back()).copied().filter(|end| *end > from)
    }

    /// Ends a step for somebody who has read all below `from`, if there is more and the last one is long
    /// enough ago.
    pub(crate) fn end(&self, from: u64, size: u64, now: Instant) -> End {
        let mut inner = self.lock();
        let newest = inner.ends.back().copied().unwrap_or(0);
        if newest > from {
            return End::Ended;
        }
        if size <= from {
            return End::More;
        }
        if let Some(next) = inner.last.map(|last| last + STEP).filter(|next| *next > now) {
            return End::At(next);
        }
        inner.last = Some(now);
        inner.ends.push_back(size);
        if inner.ends.len() > ENDS_MAX {
            inner.ends.pop_front();
        }
        End::Ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_at_one_place_stop_at_one_place() {
        let (steps, now) = (Steps::default(), Instant::now());
        assert_eq!(steps.stop(0, 10, true), None);
        assert_eq!(steps.end(10, 10, now), End::More);
        assert_eq!(steps.end(0, 10, now), End::Ended);
        // The next one comes a moment later, and more is there: he stops where the first one did.
        assert_eq!((steps.stop(0, 12, true), steps.end(0, 12, now)), (Some(10), End::Ended));
        assert_eq!((steps.stop(10, 12, true), steps.end(10, 12, now)), (None, End::At(now + STEP)));
        for (n, size) in [12, 700, 3000, 6000, 6001].into_iter().enumerate() {
            assert_eq!(steps.end(size - 1, size, now + STEP * (n as u32 + 1)), End::Ended);
        }
        // Short steps are taken together, long ones one by one; not beyond what has ended.
        for (from, stop) in [(0, 3000), (10, 3000), (2001, 6000), (3000, 6000), (5500, 6001), (6001, u64::MAX)] {
            assert_eq!(steps.stop(from, 7000, true).unwrap_or(u64::MAX), stop, "from {from}");
        }
        // Far behind who reads all of it stops at round places, and who looks for little does not.
        let far = 6000 + 2 * NEAR;
        assert_eq!((steps.stop(5, far, true), steps.stop(1024, far, true)), (Some(1024), Some(2048)));
        assert_eq!(steps.stop(5, far, false), Some(u64::MAX));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (steps, now) = (Steps::default(), Instant::now());
        for n in 1..=2 * ENDS_MAX as u64 {
            assert_eq!(steps.end(n - 1, n, now + STEP * n as u32), End::Ended);
        }
        assert_eq!(steps.lock().ends.len(), ENDS_MAX);
        assert_eq!(steps.stop(0, 2 * ENDS_MAX as u64, true), Some(ENDS_MAX as u64 + 1));
    }
}
