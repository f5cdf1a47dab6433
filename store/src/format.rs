//! Every byte layout of the log's RocksDB values, pure. docs/format.md is the
//! prose of this file; a test holds the two together.
//!
//! Integers are big-endian. Every value begins with its version byte.

mod entries;
pub(crate) mod payload;

use custody_proto::scan::{Group, Range};
use custody_proto::{Hash, Signal};

pub use entries::{Commitments, Link};

use crate::Error;

/// The version of the whole format; a data directory of another is refused.
pub const FORMAT_VERSION: u8 = 1;

/// Column families.
pub mod cf {
    /// Format, origin, head.
    pub const META: &str = "meta";
    /// first seq → the exact bytes of the request, or one zstd frame of them.
    pub const PAYLOADS: &str = "payloads";
    /// first seq → salt, identity and where the records are. Dies with the content.
    pub const BLOCKS: &str = "blocks";
    /// first seq → what the entries of the block are made from. Never changes.
    pub const ENTRIES: &str = "entries";
    /// level ‖ index → a node of the Merkle tree at a tile boundary.
    pub const NODES: &str = "nodes";
    /// trace id ‖ kind ‖ (span id or seq) → seqs.
    pub const IDS: &str = "ids";
    /// xxh3-128 of a request → first seq of the block that it became.
    pub const REQUESTS: &str = "requests";
    /// submitter → how many records it has in the log.
    pub const SUBMITTERS: &str = "submitters";
    /// seq of a record of the ledger's own → its event name.
    pub const SYSTEM: &str = "system";
    /// size → a checkpoint that witnesses were asked to cosign, with what they answered.
    pub const CHECKPOINTS: &str = "checkpoints";
    /// All of them.
    pub const ALL: [&str; 10] =
        [META, PAYLOADS, BLOCKS, ENTRIES, NODES, IDS, REQUESTS, SUBMITTERS, SYSTEM, CHECKPOINTS];
}

/// Keys of the column family `meta`.
pub mod meta {
    /// One byte: [`super::FORMAT_VERSION`].
    pub const FORMAT: &[u8] = b"format";
    /// UTF-8: the origin of the log.
    pub const ORIGIN: &[u8] = b"origin";
    /// u64 size ‖ last chain hash.
    pub const HEAD: &[u8] = b"head";
    /// UTF-8: the durability level that the newest record about it names.
    pub const DURABILITY: &[u8] = b"durability";
    /// UTF-8: the vkeys in force, a line each.
    pub const KEYS: &[u8] = b"keys";
    /// With the seq of an erasure record behind it, present while what it erased may still
    /// lie in files: u64 first ‖ u64 last of the blocks. Compact, then remove.
    pub const PURGE: &[u8] = b"purge";
}

/// How the bytes of a block came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// Exactly as received.
    Protobuf = 0,
    /// Received as OTLP/JSON and transcoded.
    Json = 1,
}

/// How many records there are and the chain hash of the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The number of records, the genesis record included.
    pub size: u64,
    /// The chain hash of the last entry; zeros for an empty log.
    pub chain: Hash,
}

impl Head {
    /// The head of a log with nothing in it.
    pub const EMPTY: Self = Self { size: 0, chain: [0; 32] };

    pub(crate) fn encode(&self) -> [u8; 40] {
        let mut out = [0; 40];
        out[..8].copy_from_slice(&self.size.to_be_bytes());
        out[8..].copy_from_slice(&self.chain);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut read = Bytes(bytes);
        let head = Self { size: read.u64()?, chain: read.array()? };
        read.0.is_empty().then_some(head)
    }
}

/// Where one record of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Index into the block's groups.
    pub group: u32,
    /// The record's bytes within the payload.
    pub range: Range,
}

/// A record of the request that was in the log already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Its bytes within the payload.
    pub range: Range,
    /// The seq of the original.
    pub seq: u64,
}

/// The salts of a block's parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Salts {
    /// Nothing is erased: the salt from which all others come.
    Whole([u8; 32]),
    /// Something is erased, and so are the frame and the salt that the others came from.
    Partly {
        /// The digest of the bytes that were in the frame.
        rest: Hash,
        /// The salt of each part from [`Layout::IDENTITY`] on; `None` if it is erased.
        parts: Vec<Option<[u8; 32]>>,
    },
}

/// What is kept of a block beside its payload: all that is needed to recompute
/// its commitments, and that dies with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What the records are.
    pub signal: Signal,
    /// How the payload came to be.
    pub encoding: Encoding,
    /// The length of the payload.
    pub payload_len: u32,
    /// The salts of the block's commitments.
    pub salts: Salts,
    /// Who sent the request, as authenticated.
    pub identity: String,
    /// Resources and scopes that came in pieces, joined.
    pub annex: Vec<u8>,
    /// Pairs of resource and scope.
    pub groups: Vec<Group>,
    /// The records that have an entry, in order.
    pub records: Vec<Placed>,
    /// The records that have none because they were in the log already.
    pub copies: Vec<Copied>,
}

impl Layout {
    /// Index of the frame among the parts.
    pub(crate) const FRAME: usize = 0;
    /// Index of the sender's identity among the parts.
    pub(crate) const IDENTITY: usize = 1;

    /// How many parts there are: frame, identity, two for each group, one for each
    /// record, in this order.
    pub(crate) fn part_count(&self) -> usize {
        self.record_part(self.records.len())
    }

    /// The part of each group's resource: groups in a row that name the same bytes share
    /// that of the first.
    pub(crate) fn resource_parts(&self) -> Vec<usize> {
        let mut out: Vec<usize> = Vec::with_capacity(self.groups.len());
        for (i, group) in self.groups.iter().enumerate() {
            let same = i > 0 && self.groups[i - 1].resource == group.resource;
            out.push(if same { out[i - 1] } else { 2 + 2 * i });
        }
        out
    }

    /// The part of a group's scope.
    pub(crate) fn scope_part(&self, group: usize) -> usize {
        3 + 2 * group
    }

    /// The part of a record.
    pub(crate) fn record_part(&self, i: usize) -> usize {
        2 + 2 * self.groups.len() + i
    }

    /// Whether the content of the `i`-th record was erased.
    pub(crate) fn is_erased(&self, i: usize) -> bool {
        match &self.salts {
            Salts::Whole(_) => false,
            Salts::Partly { parts, .. } => parts[self.record_part(i) - 1].is_none(),
        }
    }

    /// Which parts are needed by a record that is there: identity, resources, scopes and
    /// records, as [`Salts::Partly`] has them. `erased` tells of each record.
    pub(crate) fn needed(&self, erased: impl Fn(usize) -> bool) -> Vec<bool> {
        let resources = self.resource_parts();
        let mut needed = vec![false; self.part_count()];
        needed[Self::IDENTITY] = true;
        for (i, record) in self.records.iter().enumerate().filter(|(i, _)| !erased(*i)) {
            needed[resources[record.group as usize]] = true;
            needed[self.scope_part(record.group as usize)] = true;
            needed[self.record_part(i)] = true;
        }
        needed.split_off(1)
    }

    /// Each part that is a range of bytes, with the range: resources, scopes, records.
    pub(crate) fn ranges(&self) -> Vec<(usize, Range)> {
        let resources = self.resource_parts();
        let mut out = Vec::with_capacity(self.part_count());
        for (i, group) in self.groups.iter().enumerate() {
            out.push((resources[i], group.resource));
            out.push((self.scope_part(i), group.scope));
        }
        out.extend(self.records.iter().enumerate().map(|(i, record)| (self.record_part(i), record.range)));
        out
    }

    /// The stretches of payload and annex (as if one stood behind the other) that are
    /// no part but the frame: all that lies in no resource or scope of a group with
    /// records, and in no record.
    pub(crate) fn frame_ranges(&self) -> Vec<std::ops::Range<usize>> {
        let mut used = vec![false; self.groups.len()];
        self.records.iter().for_each(|record| used[record.group as usize] = true);
        let groups = self.groups.iter().zip(used).filter(|(_, used)| *used).map(|(group, _)| group);
        let mut cuts: Vec<Range> = groups.flat_map(|g| [g.resource, g.scope]).collect();
        cuts.extend(self.records.iter().map(|r| r.range));
        cuts.sort_unstable_by_key(|r| r.at);
        let end = self.payload_len as usize + self.annex.len();
        let (mut out, mut at) = (Vec::with_capacity(cuts.len() + 1), 0);
        for cut in cuts {
            if cut.at as usize > at {
                out.push(at..cut.at as usize);
            }
            at = at.max((cut.at + cut.len) as usize);
        }
        if end > at {
            out.push(at..end);
        }
        out
    }

    /// The tables of groups, records and copies, as they stand in the value and in the frame digest.
    pub(crate) fn tables(&self) -> Vec<u8> {
        let mut out =
            Vec::with_capacity(12 + self.groups.len() * 16 + self.records.len() * 12 + self.copies.len() * 16);
        out.extend((self.groups.len() as u32).to_be_bytes());
        for group in &self.groups {
            for number in [group.resource.at, group.resource.len, group.scope.at, group.scope.len] {
                out.extend(number.to_be_bytes());
            }
        }
        out.extend((self.records.len() as u32).to_be_bytes());
        for record in &self.records {
            for number in [record.group, record.range.at, record.range.len] {
                out.extend(number.to_be_bytes());
            }
        }
        out.extend((self.copies.len() as u32).to_be_bytes());
        for copy in &self.copies {
            out.extend(copy.range.at.to_be_bytes());
            out.extend(copy.range.len.to_be_bytes());
            out.extend(copy.seq.to_be_bytes());
        }
        out
    }

    /// The value in the column family `blocks`.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let tables = self.tables();
        let mut out = Vec::with_capacity(48 + self.identity.len() + self.annex.len() + tables.len());
        let partly = matches!(self.salts, Salts::Partly { .. });
        out.extend([FORMAT_VERSION, self.signal.byte(), self.encoding as u8, partly.into()]);
        out.extend(self.payload_len.to_be_bytes());
        out.extend((self.identity.len() as u16).to_be_bytes());
        out.extend(self.identity.as_bytes());
        out.extend((self.annex.len() as u32).to_be_bytes());
        out.extend(&self.annex);
        out.extend(tables);
        match &self.salts {
            Salts::Whole(salt) => out.extend(salt),
            Salts::Partly { rest, parts } => {
                out.extend(rest);
                for part in parts {
                    out.push(part.is_none().into());
                    out.extend(part.iter().flatten());
                }
            }
        }
        out
    }

    /// Reads a value of the column family `blocks`. Every range it names lies
    /// within the payload or the annex, or it is not read at all.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut read = Bytes(bytes);
        let [version, signal, encoding, partly] = read.array()?;
        if version != FORMAT_VERSION || partly > 1 {
            return None;
        }
        let signal = Signal::from_byte(signal)?;
        let encoding = match encoding {
            0 => Encoding::Protobuf,
            1 => Encoding::Json,
            _ => return None,
        };
        let payload_len = read.u32()?;
        let identity_len = read.u16()?;
        let identity = String::from_utf8(read.take(identity_len.into())?.to_vec()).ok()?;
        let annex_len = read.u32()?;
        let annex = read.take(annex_len as usize)?.to_vec();
        let end = u64::from(payload_len) + u64::from(annex_len);
        let groups = read.list(16, |r| {
            let group = Group { resource: r.range()?, scope: r.range()? };
            let fits = |range: Range| {
                // In the payload or in the annex, not across.
                let whole = u64::from(range.at) + u64::from(range.len);
                whole <= end && (whole <= payload_len.into() || range.at >= payload_len)
            };
            (fits(group.resource) && fits(group.scope)).then_some(group)
        })?;
        let records = read.list(12, |r| {
            let placed = Placed { group: r.u32()?, range: r.range()? };
            let fits = within(placed.range, payload_len.into()) && (placed.group as usize) < groups.len();
            fits.then_some(placed)
        })?;
        let copies = read.list(16, |r| {
            let copy = Copied { range: r.range()?, seq: r.u64()? };
            within(copy.range, payload_len.into()).then_some(copy)
        })?;
        let salts = Salts::Whole([0; 32]);
        let mut layout = Self { signal, encoding, payload_len, salts, identity, annex, groups, records, copies };
        layout.salts = match partly {
            0 => Salts::Whole(read.array()?),
            _ => {
                let rest = read.array()?;
                let parts = (1..layout.part_count()).map(|_| read.part()).collect::<Option<_>>()?;
                Salts::Partly { rest, parts }
            }
        };
        (read.0.is_empty() && layout.is_canonical()).then_some(layout)
    }
}

impl Layout {
    /// Of a block of which something is erased, exactly those parts have a salt that a
    /// record needs that is there. Anything else could hide a change.
    fn is_canonical(&self) -> bool {
        let Salts::Partly { parts, .. } = &self.salts else { return true };
        let erased = |i: usize| parts[self.record_part(i) - 1].is_none();
        if (0..self.records.len()).all(erased) {
            // Of a block that keeps no record nothing is kept.
            return false;
        }
        let needed = self.needed(erased);
        parts.iter().zip(needed).all(|(part, needed)| part.is_some() == needed)
    }
}

fn within(range: Range, end: u64) -> bool {
    u64::from(range.at) + u64::from(range.len) <= end
}

/// The key of a block, in three column families.
pub(crate) fn seq_key(seq: u64) -> [u8; 8] {
    seq.to_be_bytes()
}

/// Reads a key made by [`seq_key`].
pub(crate) fn seq_of_key(key: &[u8]) -> Result<u64, Error> {
    let bytes = key.try_into().map_err(|_| Error::corrupt("a key of the log is not 8 bytes long"))?;
    Ok(u64::from_be_bytes(bytes))
}

/// The key of a tree node: the root of `256^level` leaves.
pub(crate) fn node_key(level: u8, index: u64) -> [u8; 9] {
    let mut out = [0; 9];
    out[0] = level;
    out[1..].copy_from_slice(&index.to_be_bytes());
    out
}

/// The key under which the seqs of a span are found.
pub(crate) fn span_key(trace_id: &[u8; 16], span_id: &[u8; 8]) -> [u8; 25] {
    id_key(trace_id, Signal::Traces, span_id)
}

/// The key under which a log record of a trace is found.
pub(crate) fn log_key(trace_id: &[u8; 16], seq: u64) -> [u8; 25] {
    id_key(trace_id, Signal::Logs, &seq.to_be_bytes())
}

fn id_key(trace_id: &[u8; 16], signal: Signal, last: &[u8; 8]) -> [u8; 25] {
    let mut out = [0; 25];
    out[..16].copy_from_slice(trace_id);
    out[16] = signal.byte();
    out[17..].copy_from_slice(last);
    out
}

/// The key under which a request is recognised when it comes again. The seed is a
/// secret of this log: what stays of a key after an erasure tells nothing without it.
pub(crate) fn request_key(seed: u64, signal: Signal, payload: &[u8]) -> [u8; 16] {
    twox_hash::XxHash3_128::oneshot_with_seed(seed ^ u64::from(signal.byte()), payload).to_be_bytes()
}

/// Reads a value that is a list of seqs. Those with [`COPY_BIT`] are first seqs of
/// blocks that hold a copy.
pub(crate) fn seqs(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(8).filter_map(|c| c.try_into().ok().map(u64::from_be_bytes))
}

/// In a list of seqs in `ids`: not a record of this span, but the first seq of a
/// block that holds a copy of one (which erasing must find).
pub(crate) const COPY_BIT: u64 = 1 << 63;

/// Reads big-endian fields off the front of a value.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn range(&mut self) -> Option<Range> {
        Some(Range { at: self.u32()?, len: self.u32()? })
    }

    fn part(&mut self) -> Option<Option<[u8; 32]>> {
        match self.array()? {
            [0] => self.array().map(Some),
            [1] => Some(None),
            _ => None,
        }
    }

    fn list<T>(&mut self, item_bytes: usize, read: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.u32()? as usize;
        if count.checked_mul(item_bytes)? > self.0.len() {
            return None;
        }
        (0..count).map(|_| read(self)).collect()
    }
}

#[cfg(test)]
mod tests;
