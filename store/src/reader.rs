//! Reading what is durable.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use custody_proto::Hash;
use rocksdb::{Direction, IteratorMode};

use crate::Error;
use crate::commit;
use crate::format::{Commitments, Encoding, Head, Layout, cf, node_key, seq_key, seqs};
use crate::ledger::{Shared, open_read_only};
use crate::tree::{Nodes, TILE_WIDTH, leaf_hash};

/// Reads the log. Cheap to clone; sees what is durable and nothing else.
#[derive(Clone)]
pub struct Reader {
    shared: Arc<Shared>,
}

/// A block: its commitments, which stay, and its content, which may be erased.
#[derive(Clone, Debug)]
pub struct Block {
    /// What the block's entries are made from.
    pub commitments: Commitments,
    /// The records themselves, unless erased.
    pub content: Option<Content>,
}

/// The content of a block.
#[derive(Clone, Debug)]
pub struct Content {
    layout: Layout,
    payload: Bytes,
}

impl Content {
    /// Joins what was read of a block; `None` if the two do not fit.
    pub(crate) fn new(layout: Layout, payload: Bytes) -> Option<Self> {
        (layout.payload_len as usize == payload.len()).then_some(Self { layout, payload })
    }

    /// The bytes of the `i`-th record's message.
    pub fn record(&self, i: usize) -> &[u8] {
        commit::content(&self.layout, &self.payload, i)[0]
    }

    /// The bytes of the `Resource` of the `i`-th record.
    pub fn resource(&self, i: usize) -> &[u8] {
        commit::content(&self.layout, &self.payload, i)[1]
    }

    /// The bytes of the `InstrumentationScope` of the `i`-th record.
    pub fn scope(&self, i: usize) -> &[u8] {
        commit::content(&self.layout, &self.payload, i)[2]
    }

    /// Which resource-and-scope pair of the block the `i`-th record belongs to.
    pub fn group(&self, i: usize) -> usize {
        self.layout.records[i].group as usize
    }

    /// How many records the block has.
    pub fn records(&self) -> usize {
        self.layout.records.len()
    }

    /// The request, byte for byte.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Who sent it, as authenticated.
    pub fn identity(&self) -> &str {
        &self.layout.identity
    }

    /// How the payload came to be.
    pub fn encoding(&self) -> Encoding {
        self.layout.encoding
    }

    pub(crate) fn parts(&self, i: usize) -> [&[u8]; 3] {
        commit::content(&self.layout, &self.payload, i)
    }

    /// The commitments, computed anew.
    pub(crate) fn commitments(&self) -> Vec<Hash> {
        commit::commitments(&self.layout, &self.payload)
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }
}

impl Reader {
    /// Opens a data directory for reading only: beside a running server, whose
    /// later records it does not see, or a copy.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self { shared: open_read_only(dir)? })
    }

    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// How much is durable.
    pub fn head(&self) -> Head {
        self.shared.head()
    }

    /// Waits until more than `beyond` records are durable, or the timeout is over.
    /// Blocks the calling thread.
    pub fn wait(&self, beyond: u64, timeout: Duration) -> Head {
        self.shared.wait(beyond, timeout)
    }

    /// The name of the log.
    pub fn origin(&self) -> &str {
        &self.shared.origin
    }

    /// The public key of the log, as verifiers take it.
    pub fn vkey(&self) -> &str {
        &self.shared.vkey
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// The newest signed checkpoint.
    pub fn checkpoint(&self) -> Result<Option<String>, Error> {
        Ok(self.shared.checkpoint().map(|note| note.to_string()))
    }

    /// The commitments of the block that holds `seq`; `None` beyond the head.
    pub fn commitments_at(&self, seq: u64) -> Result<Option<Commitments>, Error> {
        if seq >= self.head().size {
            return Ok(None);
        }
        let found = self.commitments_before(seq)?;
        match found {
            Some(found) if (found.first_seq..found.end_seq()).contains(&seq) => Ok(Some(found)),
            _ => Err(Error::corrupt(format!("the entry of seq {seq} is missing"))),
        }
    }

    /// The last block's commitments.
    pub(crate) fn last_commitments(&self) -> Result<Option<Commitments>, Error> {
        self.commitments_before(u64::MAX)
    }

    fn commitments_before(&self, seq: u64) -> Result<Option<Commitments>, Error> {
        let key = seq_key(seq);
        let mode = IteratorMode::From(&key, Direction::Reverse);
        let Some(item) = self.shared.db.iterator_cf(self.shared.cf(cf::ENTRIES), mode).next() else { return Ok(None) };
        let (_, value) = item?;
        let damaged = || Error::corrupt(format!("the entries at or before seq {seq} are not readable"));
        Commitments::decode(&value).map(Some).ok_or_else(damaged)
    }

    /// The block that holds `seq`; `None` beyond the head.
    pub fn block_at(&self, seq: u64) -> Result<Option<Block>, Error> {
        let Some(commitments) = self.commitments_at(seq)? else { return Ok(None) };
        let content = self.content(commitments.first_seq)?;
        if content.as_ref().is_some_and(|c| c.records() as u64 != commitments.count()) {
            return Err(Error::corrupt(format!("the block at seq {} has another number of records", seq)));
        }
        Ok(Some(Block { commitments, content }))
    }

    fn content(&self, first_seq: u64) -> Result<Option<Content>, Error> {
        let key = seq_key(first_seq);
        let layout = self.shared.db.get_cf(self.shared.cf(cf::BLOCKS), key)?;
        let payload = self.shared.db.get_cf(self.shared.cf(cf::PAYLOADS), key)?;
        let damaged = || Error::corrupt(format!("the block at seq {first_seq} is not readable"));
        match (layout, payload) {
            (Some(layout), Some(payload)) => {
                let layout = Layout::decode(&layout).ok_or_else(damaged)?;
                Content::new(layout, payload.into()).map(Some).ok_or_else(damaged)
            }
            (None, None) => Ok(None),
            _ => Err(damaged()),
        }
    }

    /// The sizes in bytes of the records of the block that begins at `first_seq`;
    /// `None` if its content was erased.
    pub fn record_lengths(&self, first_seq: u64) -> Result<Option<Vec<u32>>, Error> {
        let layout = self.shared.db.get_pinned_cf(self.shared.cf(cf::BLOCKS), seq_key(first_seq))?;
        let Some(layout) = layout else { return Ok(None) };
        let layout = Layout::decode(&layout);
        let layout = layout.ok_or_else(|| Error::corrupt(format!("the block at seq {first_seq} is not readable")))?;
        Ok(Some(layout.records.iter().map(|r| r.range.len).collect()))
    }

    /// The seqs of a trace's records, in order.
    pub fn trace(&self, trace_id: &[u8; 16]) -> Result<Vec<u64>, Error> {
        let mode = IteratorMode::From(trace_id, Direction::Forward);
        let size = self.head().size;
        let mut found = Vec::new();
        for item in self.shared.db.iterator_cf(self.shared.cf(cf::IDS), mode) {
            let (key, value) = item?;
            if !key.starts_with(trace_id) {
                break;
            }
            found.extend(seqs(&value).filter(|&seq| seq < size));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// A tile of the tree (C2SP tlog-tiles): `width` hashes (1 to 256) of `level`,
    /// from `index * 256` on; `None` where the tree has no such nodes yet.
    pub fn tile(&self, level: u8, index: u64, width: u16) -> Result<Option<Vec<u8>>, Error> {
        if !self.has_tile(level, index, width) {
            return Ok(None);
        }
        let hashes = self.nodes(level, index * TILE_WIDTH, width.into())?;
        Ok(Some(hashes.concat()))
    }

    /// An entry bundle (C2SP tlog-tiles): `width` entries from `index * 256` on,
    /// each behind its length as a u16.
    pub fn entry_bundle(&self, index: u64, width: u16) -> Result<Option<Vec<u8>>, Error> {
        if !self.has_tile(0, index, width) {
            return Ok(None);
        }
        let mut out = Vec::with_capacity(usize::from(width) * 114);
        self.for_entries(index * TILE_WIDTH, width.into(), |entry| {
            out.extend((entry.len() as u16).to_be_bytes());
            out.extend(entry);
        })?;
        Ok(Some(out))
    }

    fn has_tile(&self, level: u8, index: u64, width: u16) -> bool {
        let end = index.checked_mul(TILE_WIDTH).and_then(|first| first.checked_add(width.into()));
        let nodes = self.head().size.checked_shr(8 * u32::from(level)).unwrap_or(0);
        (1..=256).contains(&width) && level < 8 && end.is_some_and(|end| end <= nodes)
    }

    fn for_entries(&self, first: u64, count: usize, mut each: impl FnMut(&[u8; 112])) -> Result<(), Error> {
        let end = first + count as u64;
        let mut seq = first;
        while seq < end {
            let block = self.commitments_at(seq)?;
            let block = block.ok_or_else(|| Error::corrupt(format!("the entry of seq {seq} is missing")))?;
            for link in block.chained(block.previous).filter(|link| (first..end).contains(&link.entry.seq)) {
                each(&link.bytes);
            }
            seq = block.end_seq();
        }
        Ok(())
    }
}

impl Nodes for Reader {
    fn nodes(&self, level: u8, first: u64, count: usize) -> Result<Vec<Hash>, Error> {
        if level == 0 {
            let mut out = Vec::with_capacity(count);
            self.for_entries(first, count, |entry| out.push(leaf_hash(entry)))?;
            return Ok(out);
        }
        let read = |index| {
            let value = self.shared.db.get_pinned_cf(self.shared.cf(cf::NODES), node_key(level, index))?;
            let node = value.and_then(|v| Hash::try_from(&v[..]).ok());
            node.ok_or_else(|| Error::corrupt(format!("the tree's node {index} of level {level} is missing")))
        };
        (first..first + count as u64).map(read).collect()
    }
}
