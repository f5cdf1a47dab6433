//! How often one caller may ask for events: so many requests a minute, told in the headers that
//! pullers heed (`X-Rate-Limit-*` as Okta's, and `Retry-After`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderValue, header};

/// Callers that are remembered, at most; beyond it those whose minute is over are forgotten.
const CALLERS_MAX: usize = 10_000;

const WINDOW: Duration = Duration::from_secs(60);

/// Counts requests by caller.
pub(crate) struct Limiter {
    per_minute: u32,
    counts: Mutex<HashMap<Arc<str>, (Instant, u32)>>,
}

/// What a caller may still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowance {
    pub(crate) limit: u32,
    pub(crate) remaining: u32,
    /// Seconds until it begins anew.
    pub(crate) reset_in: u64,
    pub(crate) allowed: bool,
}

impl Limiter {
    pub(crate) fn new(per_minute: u32) -> Self {
        Self { per_minute, counts: Mutex::default() }
    }

    /// Counts a request.
    pub(crate) fn ask(&self, identity: &Arc<str>) -> Allowance {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= CALLERS_MAX && !counts.contains_key(identity) {
            counts.retain(|_, (since, _)| since.elapsed() < WINDOW);
        }
        let (since, count) = counts.entry(Arc::clone(identity)).or_insert_with(|| (Instant::now(), 0));
        if since.elapsed() >= WINDOW {
            (*since, *count) = (Instant::now(), 0);
        }
        let allowed = *count < self.per_minute;
        *count += u32::from(allowed);
        let reset_in = WINDOW.saturating_sub(since.elapsed()).as_secs() + 1;
        Allowance { limit: self.per_minute, remaining: self.per_minute - *count, reset_in, allowed }
    }
}

impl Allowance {
    /// Adds the headers of it.
    pub(crate) fn tell(self, headers: &mut HeaderMap) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let numbers = [
            ("x-rate-limit-limit", u64::from(self.limit)),
            ("x-rate-limit-remaining", u64::from(self.remaining)),
            ("x-rate-limit-reset", now + self.reset_in),
        ];
        for (name, number) in numbers {
            headers.insert(name, HeaderValue::from(number));
        }
        if !self.allowed {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(self.reset_in));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_has_his_own_allowance() {
        let limiter = Limiter::new(2);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        assert_eq!(limiter.ask(&a).remaining, 1);
        assert!(limiter.ask(&a).allowed);
        let refused = limiter.ask(&a);
        assert!(!refused.allowed && refused.reset_in > 0);
        assert!(limiter.ask(&b).allowed);
        let mut headers = HeaderMap::new();
        refused.tell(&mut headers);
        assert_eq!([&headers["x-rate-limit-limit"], &headers["x-rate-limit-remaining"]], ["2", "0"]);
        assert!(headers.contains_key("retry-after"));
    }
}
