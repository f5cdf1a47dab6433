//! Which kinds of events somebody asks for, so that no others are written as events.

use std::time::{Duration, Instant};

use crate::mapping::KINDS;

/// Kinds, of those that there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kinds(u64);

const _: () = assert!(KINDS.len() < 64, "there are bits for all kinds");

impl Kinds {
    /// All, also those that nobody knows yet.
    pub(super) const ALL: Self = Self(u64::MAX);

    /// Those of a filter, which is in order or empty; an empty one wants all.
    pub(super) fn of(names: &[String]) -> Self {
        let bit = |name: &String| KINDS.binary_search(&name.as_str()).map_or(u64::MAX, |at| 1 << at);
        if names.is_empty() { Self::ALL } else { Self(names.iter().fold(0, |bits, name| bits | bit(name))) }
    }

    /// Whether all of the others are among them.
    pub(super) fn cover(self, others: Self) -> bool {
        others.0 & !self.0 == 0
    }

    fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Their names; `None` for all.
    pub(super) fn names(self) -> Option<impl Iterator<Item = &'static str>> {
        let has = move |at: &usize| self.0 & (1 << at) != 0;
        (self != Self::ALL).then(|| (0..KINDS.len()).filter(has).map(|at| KINDS[at]))
    }
}

/// Kinds are written for this long after somebody asked for them, and for twice as long at most.
const AWHILE: Duration = Duration::from_secs(300);

/// Which kinds were asked for of late.
#[derive(Debug, Default)]
pub(super) struct Asked {
    now: Kinds,
    before: Kinds,
    since: Option<Instant>,
}

impl Asked {
    /// Somebody asks; gives all that is asked for.
    pub(super) fn add(&mut self, kinds: Kinds, at: Instant) -> Kinds {
        let age = self.since.map_or(Duration::MAX, |since| at.saturating_duration_since(since));
        if age >= AWHILE {
            self.before = if age < 2 * AWHILE { self.now } else { Kinds::default() };
            (self.now, self.since) = (Kinds::default(), Some(at));
        }
        self.now = self.now.and(kinds);
        self.now.and(self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(names: &[&str]) -> Kinds {
        Kinds::of(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn sets_have_the_names_that_they_were_made_of() {
        for kind in KINDS {
            assert_eq!(kinds(&[kind]).names().unwrap().collect::<Vec<_>>(), [kind]);
        }
        let two = kinds(&["alert", "tool_result"]);
        assert_eq!(two.names().unwrap().collect::<Vec<_>>(), ["alert", "tool_result"]);
        assert!(two.cover(kinds(&["alert"])) && !two.cover(kinds(&["alert", "request"])) && !two.cover(Kinds::ALL));
        assert!(Kinds::ALL.cover(two) && kinds(&[]) == Kinds::ALL && Kinds::ALL.names().is_none());
        assert_eq!(kinds(&["of a later version"]), Kinds::ALL);
        assert!(!kinds(&KINDS).cover(Kinds::ALL));
    }

    #[test]
    fn what_nobody_asks_for_any_more_is_forgotten() {
        let (mut asked, start) = (Asked::default(), Instant::now());
        let (one, two, three) = (kinds(&["alert"]), kinds(&["request"]), kinds(&["output"]));
        assert_eq!(asked.add(one, start), one);
        assert_eq!(asked.add(two, start + AWHILE / 2), one.and(two));
        assert_eq!(asked.add(two, start + AWHILE), one.and(two));
        assert_eq!(asked.add(three, start + 2 * AWHILE), two.and(three));
        assert_eq!(asked.add(three, start + 5 * AWHILE), three);
    }
}
