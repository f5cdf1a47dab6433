//! Reading entries, layouts and payloads side by side.

use std::sync::mpsc::SyncSender;

use rocksdb::DBRawIterator;

use super::{Step, Stop, UNPLACED, damage, found};
use crate::format::{cf, seq_key, seq_of_key};
use crate::reader::Reader;

/// About how many bytes go to a worker at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Blocks in order.
pub(super) type Chunk = Vec<Item>;

/// One block as it is stored.
pub(super) enum Item {
    /// Its values; the content may be gone.
    Block { key: Vec<u8>, entries: Vec<u8>, content: Option<(Vec<u8>, Vec<u8>)> },
    /// Nothing more can be read.
    Stopped(Stop),
}

/// The three column families.
pub(super) struct Source<'a> {
    entries: Column<'a>,
    layouts: Column<'a>,
    payloads: Column<'a>,
}

impl<'a> Source<'a> {
    /// Begins at the block with this first seq.
    pub(super) fn open(reader: &'a Reader, from: u64) -> Self {
        let open = |name| Column::open(reader, name, Some(from));
        Self { entries: open(cf::ENTRIES), layouts: open(cf::BLOCKS), payloads: open(cf::PAYLOADS) }
    }

    /// Sends all chunks, until nobody takes them.
    pub(super) fn send(mut self, work: &SyncSender<(u64, Chunk)>) {
        for index in 0.. {
            let (chunk, more) = self.chunk();
            if (!chunk.is_empty() && work.send((index, chunk)).is_err()) || !more {
                return;
            }
        }
    }

    /// The next chunk, and whether there may be more.
    fn chunk(&mut self) -> (Chunk, bool) {
        let (mut chunk, mut bytes) = (Chunk::new(), 0);
        while bytes < CHUNK_BYTES {
            match self.item() {
                Ok(Some(item)) => {
                    if let Item::Block { entries, content, .. } = &item {
                        bytes += entries.len()
                            + content.as_ref().map_or(0, |(layout, payload)| layout.len() + payload.len());
                    }
                    chunk.push(item);
                }
                Ok(None) => return (chunk, false),
                Err(stop) => {
                    chunk.push(Item::Stopped(stop));
                    return (chunk, false);
                }
            }
        }
        (chunk, true)
    }

    fn item(&mut self) -> Step<Option<Item>> {
        let Some((key, entries)) = self.entries.next(UNPLACED)? else {
            for column in [&mut self.layouts, &mut self.payloads] {
                if let Some(seq) = column.peek()? {
                    return found(seq, format!("{} has content for which there is no entry", column.name));
                }
            }
            return Ok(None);
        };
        let (key, entries) = (key.to_vec(), entries.to_vec());
        // A key that is none, or not in its place, is found when the blocks are joined.
        let Ok(seq) = seq_of_key(&key) else { return Ok(Some(Item::Block { key, entries, content: None })) };
        let content = match (self.layouts.at(seq)?, self.payloads.at(seq)?) {
            (Some(layout), Some(payload)) => Some((layout, payload)),
            (None, None) => None,
            (layout, _) => {
                let name = if layout.is_none() { cf::BLOCKS } else { cf::PAYLOADS };
                return found(seq, format!("the block at seq {seq} is missing from {name}"));
            }
        };
        Ok(Some(Item::Block { key, entries, content }))
    }
}

/// One column family, read in key order.
pub(super) struct Column<'a> {
    name: &'static str,
    iterator: DBRawIterator<'a>,
    from: Option<u64>,
    started: bool,
    /// The iterator stands on an item that was not taken.
    waiting: bool,
}

impl<'a> Column<'a> {
    /// Opens it at the key of this seq, or at its first key.
    pub(super) fn open(reader: &'a Reader, name: &'static str, from: Option<u64>) -> Self {
        let shared = reader.shared();
        let mut options = rocksdb::ReadOptions::default();
        options.set_verify_checksums(true);
        options.fill_cache(false);
        options.set_readahead_size(2 << 20);
        let iterator = shared.db.raw_iterator_cf_opt(shared.cf(name), options);
        Self { name, iterator, from, started: false, waiting: false }
    }

    /// The next key and value. `seq` is where the reading stands, for a finding.
    pub(super) fn next(&mut self, seq: u64) -> Step<Option<(&[u8], &[u8])>> {
        self.advance(seq)?;
        self.waiting = false;
        Ok(self.iterator.item())
    }

    fn advance(&mut self, seq: u64) -> Step {
        if !self.started {
            match self.from {
                Some(from) => self.iterator.seek(seq_key(from)),
                None => self.iterator.seek_to_first(),
            }
            self.started = true;
        } else if !self.waiting {
            self.iterator.next();
        }
        self.iterator.status().map_err(|e| damage(seq, e.into()))
    }

    /// The seq of the next key, which is not taken.
    fn peek(&mut self) -> Step<Option<u64>> {
        self.advance(UNPLACED)?;
        self.waiting = true;
        self.iterator.key().map(seq_of_key).transpose().map_err(|e| damage(UNPLACED, e))
    }

    /// The value of the block at `seq`, if it is there. Anything before it has no entry.
    fn at(&mut self, seq: u64) -> Step<Option<Vec<u8>>> {
        match self.peek()? {
            Some(key) if key < seq => {
                found(key, format!("{} has content at seq {key} for which there is no entry", self.name))
            }
            Some(key) if key == seq => {
                self.waiting = false;
                Ok(self.iterator.value().map(<[u8]>::to_vec))
            }
            _ => Ok(None),
        }
    }
}
