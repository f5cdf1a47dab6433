//! What is counted, as plain numbers: histograms that cost two relaxed atomic
//! additions, and the families that whoever serves them renders.
//!
//! This knows no format of any monitoring system, and no clock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bounds for times, in ns: 100 us to 10 s.
pub const TIMES: &[u64] = &[
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// Bounds for counts.
pub const COUNTS: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16_384, 65_536];

/// How often values fell between bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    /// One for each bound, and one for what is above all.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    /// An empty one over these bounds, which ascend.
    pub fn new(bounds: &'static [u64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0) }
    }

    /// Counts one value.
    pub fn observe(&self, value: u64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts[at].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// What was counted; bounds and sum are multiplied by `scale` (1e-9: ns to seconds).
    pub fn read(&self, scale: f64) -> Value {
        let bounds = self.bounds.iter().map(|bound| *bound as f64 * scale).chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|count| count.load(Relaxed));
        Value::Histogram { sum: self.sum.load(Relaxed) as f64 * scale, buckets: bounds.zip(counts).collect() }
    }
}

/// A value of a family.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Only grows.
    Counter(f64),
    /// Is what it is now.
    Gauge(f64),
    /// Upper bounds (the last is infinite), and how many values fell under each and above the one before.
    Histogram {
        /// All values together.
        sum: f64,
        /// The bounds with their counts, not cumulative.
        buckets: Vec<(f64, u64)>,
    },
}

/// The labels of one value.
pub type Labels = Vec<(&'static str, String)>;

/// Values of one name. All are of one kind; there may be none.
#[derive(Clone, Debug)]
pub struct Family {
    /// The name, without the ending that a format adds to counters.
    pub name: &'static str,
    /// What it says, in one sentence without the full stop.
    pub help: &'static str,
    /// Labels and values.
    pub rows: Vec<(Labels, Value)>,
}

impl Family {
    /// One value without labels.
    pub fn one(name: &'static str, help: &'static str, value: Value) -> Self {
        Self { name, help, rows: vec![(Vec::new(), value)] }
    }

    /// A counter.
    pub fn counter(name: &'static str, help: &'static str, counter: &AtomicU64) -> Self {
        Self::one(name, help, Value::Counter(counter.load(Relaxed) as f64))
    }

    /// A gauge.
    pub fn gauge(name: &'static str, help: &'static str, value: f64) -> Self {
        Self::one(name, help, Value::Gauge(value))
    }

    /// Counters that differ in one label.
    pub fn counters<'a>(
        name: &'static str,
        help: &'static str,
        label: &'static str,
        counters: impl IntoIterator<Item = (&'a str, &'a AtomicU64)>,
    ) -> Self {
        let row = |(of, counter): (&str, &AtomicU64)| {
            (vec![(label, of.to_owned())], Value::Counter(counter.load(Relaxed) as f64))
        };
        Self { name, help, rows: counters.into_iter().map(row).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_under_the_first_bound_that_is_not_below_it() {
        let histogram = Histogram::new(&[1, 10, 100]);
        [0, 1, 2, 10, 11, 100, 101, 1000].iter().for_each(|value| histogram.observe(*value));
        let buckets = vec![(0.5, 2), (5.0, 2), (50.0, 2), (f64::INFINITY, 2)];
        assert_eq!(histogram.read(0.5), Value::Histogram { sum: 1225.0 * 0.5, buckets });
    }
}
