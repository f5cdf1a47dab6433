//! The values of the column family `entries`: the commitments of one block.

use custody_proto::entry::chain_of;
use custody_proto::{ENTRY_BYTES, Entry, Hash, Signal};

use super::{Bytes, FORMAT_VERSION};

/// The stored form of the entries of one block: what they share, once, and
/// flags and commitment of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commitments {
    /// The seq of the first entry.
    pub first_seq: u64,
    /// What the records are.
    pub signal: Signal,
    /// When the ledger took the block, in ns since the Unix epoch.
    pub ingest_time: u64,
    /// A keyed hash of the identity that sent it.
    pub submitter: [u8; 16],
    /// How many records of this submitter came before.
    pub counter: u64,
    /// The chain hash before the first entry.
    pub previous: Hash,
    /// Flags of each entry.
    pub flags: Vec<u16>,
    /// Content commitment of each entry.
    pub commitments: Vec<Hash>,
}

impl Commitments {
    /// How many entries there are.
    pub fn count(&self) -> u64 {
        self.commitments.len() as u64
    }

    /// The seq after the last entry.
    pub fn end_seq(&self) -> u64 {
        self.first_seq + self.count()
    }

    /// The entries, in order, chained from [`Self::previous`].
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.chained(self.previous).map(|link| link.entry)
    }

    /// The entries with their bytes and chain hashes, chained from a given hash.
    pub fn chained(&self, mut previous: Hash) -> impl Iterator<Item = Link> + '_ {
        (0..self.commitments.len()).map(move |i| {
            let entry = Entry {
                kind: self.signal.byte(),
                flags: self.flags[i],
                seq: self.first_seq + i as u64,
                ingest_time: self.ingest_time,
                submitter: self.submitter,
                counter: self.counter + i as u64,
                commitment: self.commitments[i],
                previous,
            };
            let bytes = entry.encode();
            previous = chain_of(&bytes);
            Link { entry, bytes, chain: previous }
        })
    }

    /// The value in the column family `entries`.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(80 + self.commitments.len() * 34);
        out.extend([FORMAT_VERSION, self.signal.byte(), 0, 0]);
        out.extend((self.commitments.len() as u32).to_be_bytes());
        out.extend(self.first_seq.to_be_bytes());
        out.extend(self.ingest_time.to_be_bytes());
        out.extend(self.submitter);
        out.extend(self.counter.to_be_bytes());
        out.extend(self.previous);
        for flags in &self.flags {
            out.extend(flags.to_be_bytes());
        }
        for commitment in &self.commitments {
            out.extend(commitment);
        }
        out
    }

    /// Reads a value of the column family `entries`.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut read = Bytes(bytes);
        let [version, signal, zero, none] = read.array()?;
        if version != FORMAT_VERSION || zero != 0 || none != 0 {
            return None;
        }
        let signal = Signal::from_byte(signal)?;
        let count = read.u32()? as usize;
        let (first_seq, ingest_time) = (read.u64()?, read.u64()?);
        let (submitter, counter, previous) = (read.array()?, read.u64()?, read.array()?);
        if count == 0 || read.0.len() != count.checked_mul(34)? || first_seq.checked_add(count as u64).is_none() {
            return None;
        }
        let flags = (0..count).map(|_| read.u16()).collect::<Option<_>>()?;
        let commitments = (0..count).map(|_| read.array()).collect::<Option<_>>()?;
        counter.checked_add(count as u64)?;
        Some(Self { first_seq, signal, ingest_time, submitter, counter, previous, flags, commitments })
    }
}

/// An entry in its chain.
#[derive(Clone, Debug)]
pub struct Link {
    /// The entry.
    pub entry: Entry,
    /// Its exact bytes.
    pub bytes: [u8; ENTRY_BYTES],
    /// The chain hash after it.
    pub chain: Hash,
}
