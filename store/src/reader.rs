//! Reading what is durable.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use custody_proto::Hash;
use rocksdb::{Direction, IteratorMode, WriteBatch};

use crate::Error;
use crate::checkpoint::Checkpoint;
use crate::commit;
use crate::format::{
    COPY_BIT, Commitments, Encoding, Head, Layout, Salts, cf, node_key, payload, seq_key, seq_of_key, seqs,
};
use crate::ledger::{Shared, open_read_only, synced};
use crate::note::{Note, VerifierKey};
use crate::tree::{Nodes, TILE_WIDTH, leaf_hash, prove_consistency, root_at};

/// Reads the log. Cheap to clone; sees what is durable and nothing else.
#[derive(Clone)]
pub struct Reader {
    shared: Arc<Shared>,
}

/// A checkpoint that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its size.
    pub size: u64,
    /// The note, with the log's signatures and the cosignatures.
    pub note: String,
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
    /// Joins what was kept of a block; `None` if the two do not fit.
    pub(crate) fn new(layout: Layout, kept: Bytes) -> Option<Self> {
        let payload = payload::unpack(kept, layout.payload_len as usize)?;
        Some(Self { layout, payload })
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

    /// Whether the content of the `i`-th record was erased; its bytes are zeros then.
    pub fn is_erased(&self, i: usize) -> bool {
        self.layout.is_erased(i)
    }

    /// Whether anything of the block was erased.
    pub(crate) fn is_partly_erased(&self) -> bool {
        matches!(self.layout.salts, Salts::Partly { .. })
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

    /// The commitments, computed anew; `None` for erased records.
    pub(crate) fn commitments(&self) -> Vec<Option<Hash>> {
        self.digests().commitments()
    }

    /// Whether these are its commitments, as far as its records are not erased.
    pub(crate) fn is_of(&self, commitments: &Commitments) -> bool {
        let computed = self.commitments();
        let same = |(computed, stored): (&Option<Hash>, &Hash)| computed.is_none_or(|hash| hash == *stored);
        computed.len() == commitments.commitments.len() && computed.iter().zip(&commitments.commitments).all(same)
    }

    /// What the commitments are made of.
    pub(crate) fn digests(&self) -> commit::Digests<'_> {
        commit::Digests::new(&self.layout, &self.payload)
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

    /// The public keys of the log, Ed25519 first.
    pub fn keys(&self) -> Vec<VerifierKey> {
        self.shared.keys()
    }

    /// The Ed25519 public key of the log, as verifiers take it.
    pub fn vkey(&self) -> String {
        self.shared.keys().first().map(ToString::to_string).unwrap_or_default()
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

    /// The sizes in bytes of the records of the block that begins at `first_seq`, `None` for those that were erased;
    /// `None` if all of its content was.
    pub fn record_lengths(&self, first_seq: u64) -> Result<Option<Vec<Option<u32>>>, Error> {
        let layout = self.shared.db.get_pinned_cf(self.shared.cf(cf::BLOCKS), seq_key(first_seq))?;
        let Some(layout) = layout else { return Ok(None) };
        let layout = Layout::decode(&layout);
        let layout = layout.ok_or_else(|| Error::corrupt(format!("the block at seq {first_seq} is not readable")))?;
        let records = layout.records.iter().enumerate();
        Ok(Some(records.map(|(i, record)| (!layout.is_erased(i)).then_some(record.range.len)).collect()))
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
            // Further versions of a span have a row each, with the seq in the key.
            if let Some(seq) = key.get(25..33) {
                found.extend(seqs(seq).filter(|&seq| seq & COPY_BIT == 0 && seq < size));
            }
            found.extend(seqs(&value).filter(|&seq| seq & COPY_BIT == 0 && seq < size));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The seqs of the ledger's own records, each with its event name.
    pub(crate) fn system_index(&self) -> Result<Vec<(u64, String)>, Error> {
        let size = self.head().size;
        let rows = self.shared.db.iterator_cf(self.shared.cf(cf::SYSTEM), IteratorMode::Start);
        let read = rows.map(|item| {
            let (key, name) = item?;
            Ok((seq_of_key(&key)?, String::from_utf8_lossy(&name).into_owned()))
        });
        read.filter(|row| row.as_ref().map_or(true, |(seq, _)| *seq < size)).collect()
    }

    /// How many records a submitter has in the log.
    pub fn submitted(&self, submitter: &[u8; 16]) -> Result<u64, Error> {
        let value = self.shared.db.get_pinned_cf(self.shared.cf(cf::SUBMITTERS), submitter)?;
        Ok(value.and_then(|v| seqs(&v).next()).unwrap_or(0))
    }

    /// The root of the tree at a size that it has or had.
    pub fn root_at(&self, size: u64) -> Result<Hash, Error> {
        if size > self.head().size {
            return Err(Error::invalid(format!("the log has {} records, not {size}", self.head().size)));
        }
        root_at(size, self)
    }

    /// The RFC 6962 consistency proof between two sizes that the log has or had.
    pub fn consistency(&self, old: u64, new: u64) -> Result<Vec<Hash>, Error> {
        let size = self.head().size;
        if old > new || new > size {
            return Err(Error::invalid(format!("the log has {size} records; there is no proof from {old} to {new}")));
        }
        prove_consistency(old, new, self)
    }

    /// Keeps a checkpoint of this log with its cosignatures, durably. One of the same
    /// size is replaced. Beside the writer this is the only thing that is ever written;
    /// it touches no row of the writer's, and the database takes writes from any thread.
    pub fn keep_witnessed(&self, note: &Note) -> Result<(), Error> {
        let checkpoint = Checkpoint::parse_text(&note.text)?;
        let ours = checkpoint.origin == self.origin() && self.root_at(checkpoint.size)? == checkpoint.root;
        if !ours {
            return Err(Error::invalid("the checkpoint to keep is not one of this log"));
        }
        let mut write = WriteBatch::default();
        write.put_cf(self.shared.cf(cf::CHECKPOINTS), seq_key(checkpoint.size), note.to_string());
        Ok(self.shared.write(write, &synced())?)
    }

    /// The largest kept checkpoint.
    pub fn newest_witnessed(&self) -> Result<Option<Kept>, Error> {
        let newest = self.shared.db.iterator_cf(self.shared.cf(cf::CHECKPOINTS), IteratorMode::End).next();
        newest.map(|row| kept(&row?)).transpose()
    }

    /// The kept checkpoints (those that witnesses were asked to cosign) of sizes in a
    /// range, both ends included, smallest first.
    pub fn witnessed(&self, from: u64, to: u64) -> Result<Vec<Kept>, Error> {
        let key = seq_key(from);
        let rows =
            self.shared.db.iterator_cf(self.shared.cf(cf::CHECKPOINTS), IteratorMode::From(&key, Direction::Forward));
        let mut out = Vec::new();
        for row in rows {
            let kept = kept(&row?)?;
            if kept.size > to {
                break;
            }
            out.push(kept);
        }
        Ok(out)
    }

    /// Bytes in table files, by column family: what the log takes on disk beside its
    /// write-ahead log.
    pub fn sizes(&self) -> Result<Vec<(String, u64)>, Error> {
        let mut sizes = std::collections::BTreeMap::new();
        for file in self.shared.db.live_files()? {
            *sizes.entry(file.column_family_name).or_default() += file.size as u64;
        }
        Ok(sizes.into_iter().collect())
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

/// A row of the kept checkpoints.
fn kept((key, value): &(Box<[u8]>, Box<[u8]>)) -> Result<Kept, Error> {
    let size = seq_of_key(key)?;
    let note = String::from_utf8(value.to_vec());
    let note = note.map_err(|_| Error::corrupt(format!("the kept checkpoint of size {size} is not text")))?;
    Ok(Kept { size, note })
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
