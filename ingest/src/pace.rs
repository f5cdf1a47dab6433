//! Readers keep up with what is written: when rows lag, requests are taken more slowly.
//!
//! Appending costs less than making rows of what was appended, and both share the same cores: at full load
//! queries would fall behind further and further. What is durable stays acknowledged; only the next group
//! waits a little, in proportion to what the last one took. So a server under light load hardly notices, and
//! one under full load settles where both go equally fast. It never waits for readers that have stopped.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// A group is followed by at most this many times what it took.
const SLOWEST: u32 = 4;

/// What counts of a group's time: one that met a slow disk says nothing of what rows cost.
const GROUP_MAX: Duration = Duration::from_millis(25);

/// Readers that made no step for this long are not waited for.
const STUCK: Duration = Duration::from_secs(5);

/// Groups that became durable within this are followed together.
const GRAIN: Duration = Duration::from_millis(5);

/// What readers have of the log, and how late that may be.
#[derive(Clone, Debug)]
pub(crate) struct Follow {
    /// All records below this seq are visible.
    pub(crate) visible: watch::Receiver<u64>,
    /// How long after their acknowledgement at most, as far as it can be had.
    pub(crate) within: Duration,
}

/// Which sizes of the log were reached when, as far as readers are not there yet.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    marks: VecDeque<(u64, Instant)>,
    /// What was visible when it last changed, and when that was.
    moved: Option<(u64, Instant)>,
}

impl Pace {
    /// How long to wait after a group that took so long and made the log so large.
    pub(crate) fn rest(&mut self, follow: &Follow, size: u64, took: Duration, now: Instant) -> Duration {
        if follow.visible.has_changed().is_err() {
            // Nobody makes rows any more.
            self.marks.clear();
            return Duration::ZERO;
        }
        let visible = *follow.visible.borrow();
        if self.moved.is_none_or(|(before, _)| before != visible) {
            self.moved = Some((visible, now));
        }
        while self.marks.front().is_some_and(|(size, _)| *size <= visible) {
            self.marks.pop_front();
        }
        match self.marks.back_mut() {
            Some((last, at)) if now.duration_since(*at) < GRAIN => *last = size,
            _ => self.marks.push_back((size, now)),
        }
        let behind = self.marks.front().map_or(Duration::ZERO, |(_, at)| now.duration_since(*at));
        let stuck = self.moved.is_some_and(|(_, at)| now.duration_since(at) > STUCK);
        if stuck { Duration::ZERO } else { scaled(behind, follow.within, took) }
    }
}

/// Nothing below an eighth of what is allowed, all from a half on: at full load it settles in between, and who follows the
/// log needs the rest to be told.
fn scaled(behind: Duration, within: Duration, took: Duration) -> Duration {
    let (from, span) = (within / 8, within / 8 * 3);
    let share = behind.saturating_sub(from).as_secs_f64() / span.as_secs_f64().max(1e-9);
    (took.min(GROUP_MAX) * SLOWEST).mul_f64(share.min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn follow() -> (watch::Sender<u64>, Follow) {
        let (sender, visible) = watch::channel(0);
        (sender, Follow { visible, within: Duration::from_secs(1) })
    }

    #[test]
    fn the_further_readers_are_behind_the_longer_the_next_group_waits() {
        let ((sender, follow), start, mut pace) = (follow(), Instant::now(), Pace::default());
        let mut rest = |size, at: u32| pace.rest(&follow, size, MS * 2, start + MS / 2 * at);
        assert_eq!((rest(10, 0), rest(20, 250)), (Duration::ZERO, Duration::ZERO));
        assert_eq!(rest(30, 625), 4 * MS, "half way between an eighth and a half");
        assert_eq!((rest(40, 1000), rest(50, 3000)), (8 * MS, 8 * MS));
        sender.send_replace(40);
        assert_eq!(rest(60, 3002), Duration::ZERO, "the oldest that is not visible is of now");
    }

    #[test]
    fn a_group_that_took_long_is_not_followed_by_a_longer_pause() {
        let ((_sender, follow), start, mut pace) = (follow(), Instant::now(), Pace::default());
        pace.rest(&follow, 10, MS, start);
        assert_eq!(pace.rest(&follow, 20, Duration::from_secs(3), start + MS * 900), GROUP_MAX * SLOWEST);
    }

    #[test]
    fn who_has_stopped_is_not_waited_for() {
        let ((sender, follow), start, mut pace) = (follow(), Instant::now(), Pace::default());
        pace.rest(&follow, 10, MS, start);
        pace.rest(&follow, 15, MS, start + MS * 1000);
        assert_eq!(pace.rest(&follow, 20, MS, start + STUCK), 4 * MS);
        assert_eq!(pace.rest(&follow, 30, MS, start + STUCK + MS), Duration::ZERO);
        sender.send_replace(10);
        assert_eq!(pace.rest(&follow, 40, MS, start + STUCK + MS * 2), 4 * MS, "it goes on, from far behind");
        drop(sender);
        assert_eq!(pace.rest(&follow, 50, MS, start + STUCK + MS * 3), Duration::ZERO);
    }

    #[test]
    fn many_groups_leave_few_marks() {
        let ((_sender, follow), start, mut pace) = (follow(), Instant::now(), Pace::default());
        for i in 0..10_000u32 {
            let _ = pace.rest(&follow, u64::from(i), MS, start + MS / 10 * i);
        }
        assert!(pace.marks.len() <= 201, "{} marks of a second", pace.marks.len());
    }
}
