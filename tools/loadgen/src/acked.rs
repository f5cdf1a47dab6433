//! Which requests are acknowledged: a bit each, however long the run.

/// A set of numbers from 0 up, as bits.
#[derive(Debug, Default)]
pub struct Bits(Vec<u64>);

impl Bits {
    /// Puts a number in; gives whether it was in before.
    pub fn insert(&mut self, number: u64) -> bool {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let was = self.0[word] & bit != 0;
        self.0[word] |= bit;
        was
    }

    /// Whether a number is in.
    pub fn contains(&self, number: u64) -> bool {
        self.0.get((number / 64) as usize).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    /// How many are in.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}
