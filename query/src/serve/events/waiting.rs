//! Streams and long polls that are open: how many at once, and how many of them one caller's.
//!
//! A caller may hold half of what the others leave, so that whoever opens as many as he can never
//! shuts out somebody else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Open at once, at most.
const MOST: usize = 2_048;

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    own: HashMap<Arc<str>, usize>,
}

/// Counts them by caller.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiting(Arc<Mutex<Counts>>);

/// A place; dropped, it is free.
#[derive(Debug)]
pub(crate) struct Place(Arc<Mutex<Counts>>, Arc<str>);

impl Waiting {
    /// A place for one more of a caller; the error says that there is none.
    pub(crate) fn enter(&self, who: &Arc<str>) -> Result<Place, String> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.own.get(who).copied().unwrap_or(0);
        let most = (MOST - (counts.all - own)) / 2;
        if own >= most {
            return Err(format!("{own} streams and waiting requests of yours are open, and {most} may be at present"));
        }
        counts.all += 1;
        *counts.own.entry(Arc::clone(who)).or_default() += 1;
        Ok(Place(Arc::clone(&self.0), Arc::clone(who)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        if let Some(own) = counts.own.get_mut(&self.1) {
            *own -= 1;
            if *own == 0 {
                counts.own.remove(&self.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_opens_as_many_as_he_can_shuts_nobody_out() {
        let waiting = Waiting::default();
        let mut held = Vec::new();
        for n in 0..6 {
            let who: Arc<str> = format!("caller {n}").into();
            let own: Vec<Place> = std::iter::from_fn(|| waiting.enter(&who).ok()).collect();
            assert_eq!(own.len(), [1024, 512, 256, 128, 64, 32][n]);
            assert!(waiting.enter(&who).unwrap_err().contains("of yours"));
            held.push(own);
        }
        held.clear();
        let counts = waiting.0.lock().unwrap();
        assert_eq!((counts.all, counts.own.len()), (0, 0), "who has gone is forgotten");
    }
}
