//! The records that one span id has: most have one.

use std::collections::HashMap;

use crate::format::COPY_BIT;

/// Of one span id, this many versions are compared with what comes: the first ones.
pub(super) const VERSIONS_COMPARED: usize = 16;

/// Span ids come from outside: the hash is seeded, so that nobody can choose them to collide.
pub(super) type BySpan = HashMap<[u8; 25], Versions, foldhash::fast::RandomState>;

/// The records of one span id: seqs; with [`COPY_BIT`], blocks that hold a copy. Most
/// span ids have one record, which takes no memory of its own.
#[derive(Default)]
pub(super) struct Versions {
    first: Option<u64>,
    more: Vec<u64>,
    /// New blocks that hold a copy. They take no place among what is compared.
    copies: Vec<u64>,
    /// How many of them are in the log.
    stored: usize,
}

impl Versions {
    #[inline]
    pub(super) fn stored(seqs: impl Iterator<Item = u64>) -> Self {
        let mut versions = Self::default();
        seqs.for_each(|seq| versions.push(seq));
        versions.stored = versions.len();
        versions
    }

    #[inline]
    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    #[inline]
    fn seqs(&self) -> impl Iterator<Item = u64> + '_ {
        self.first.into_iter().chain(self.more.iter().copied())
    }

    #[inline]
    pub(super) fn versions(&self) -> impl Iterator<Item = u64> + '_ {
        self.seqs().filter(|seq| seq & COPY_BIT == 0)
    }

    #[inline]
    pub(super) fn add(&mut self, seq: u64) {
        if seq & COPY_BIT == 0 { self.push(seq) } else { self.copies.push(seq) }
    }

    #[inline]
    fn push(&mut self, seq: u64) {
        match self.first {
            None => self.first = Some(seq),
            Some(_) => self.more.push(seq),
        }
    }

    /// Puts what is new into the write. The first ones share a row; the others and copies,
    /// which are not compared with what comes, have one each, so that no row grows.
    pub(super) fn put(&self, key: &[u8; 25], mut put: impl FnMut(&[u8], &[u8])) {
        if self.stored < VERSIONS_COMPARED && self.stored < self.len() {
            match (self.first, &self.more[..]) {
                (Some(only), []) => put(key, &only.to_be_bytes()),
                _ => put(key, &self.seqs().take(VERSIONS_COMPARED).flat_map(u64::to_be_bytes).collect::<Vec<u8>>()),
            }
        }
        let further = self.seqs().skip(self.stored.max(VERSIONS_COMPARED));
        for seq in further.chain(self.copies.iter().copied()) {
            put(&[&key[..], &seq.to_be_bytes()].concat(), &[]);
        }
    }
}
