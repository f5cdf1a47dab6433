//! From content to commitments: what of a block is hashed, with which salt.
//!
//! Every byte of a block is in one of its *parts*: sender, resources, scopes, records,
//! and the frame, which is all else. Each has a digest, with a salt of its own, so that
//! it can be erased or shown alone. Without its salt, which dies with it, nobody can
//! guess a short text from its commitment.

use blake3::Hasher;
use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};
use std::sync::LazyLock;

use bytes::Bytes;
use custody_proto::scan::{Range, Scan};
use custody_proto::{Hash, Signal};

use crate::format::{Copied, Encoding, FORMAT_VERSION, Layout, Placed, Salts, payload};
use crate::many::{digest, digests};

/// BLAKE3 context strings, one per kind of digest.
pub mod context {
    /// Of the salts of a block's parts.
    pub const SALTS: &str = "custody salts v1";
    /// Of a record's content commitment.
    pub const CONTENT: &str = "custody content v1";
    /// Of what the records of a group share.
    pub const SHARED: &str = "custody shared v1";
    /// Of a block's frame.
    pub const FRAME: &str = "custody frame v1";
    /// Of the bytes that are in the frame.
    pub const REST: &str = "custody rest v1";
    /// Of a resource.
    pub const RESOURCE: &str = "custody resource v1";
    /// Of a scope.
    pub const SCOPE: &str = "custody scope v1";
    /// Of the identity of the sender.
    pub const IDENTITY: &str = "custody identity v1";
}

struct Keys {
    salts: ContextKey,
    content: ContextKey,
    shared: ContextKey,
    frame: ContextKey,
    rest: ContextKey,
    resource: ContextKey,
    scope: ContextKey,
    identity: ContextKey,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    salts: hash_derive_key_context(context::SALTS),
    content: hash_derive_key_context(context::CONTENT),
    shared: hash_derive_key_context(context::SHARED),
    frame: hash_derive_key_context(context::FRAME),
    rest: hash_derive_key_context(context::REST),
    resource: hash_derive_key_context(context::RESOURCE),
    scope: hash_derive_key_context(context::SCOPE),
    identity: hash_derive_key_context(context::IDENTITY),
});

/// The salts of all parts of a block, from the block's own.
pub(crate) fn part_salts(salt: &[u8; 32], parts: usize) -> Vec<[u8; 32]> {
    let mut out = vec![[0; 32]; parts];
    let mut stream = Hasher::new_from_context_key(&KEYS.salts).update(salt).finalize_xof();
    stream.fill(out.as_flattened_mut());
    out
}

/// The bytes of a range that may lie in the annex.
pub(crate) fn slice<'a>(layout: &'a Layout, payload: &'a [u8], range: Range) -> &'a [u8] {
    let (at, len) = (range.at as usize, range.len as usize);
    match at.checked_sub(payload.len()) {
        Some(at) if len > 0 => &layout.annex[at..at + len],
        _ => &payload[at.min(payload.len())..(at + len).min(payload.len())],
    }
}

/// A block's parts with their salts: makes the digests that commitments are made of.
pub(crate) struct Digests<'a> {
    layout: &'a Layout,
    payload: &'a [u8],
    /// From the identity on; `None` if a part is erased.
    salts: Vec<Option<[u8; 32]>>,
    rest: Hash,
    frame: Hash,
    resource_parts: Vec<usize>,
}

impl<'a> Digests<'a> {
    pub(crate) fn new(layout: &'a Layout, payload: &'a [u8]) -> Self {
        let (rest, salts) = match &layout.salts {
            Salts::Whole(salt) => {
                let salts = part_salts(salt, layout.part_count());
                (rest(layout, payload, &salts[Layout::FRAME]), salts[1..].iter().copied().map(Some).collect())
            }
            Salts::Partly { rest, parts } => (*rest, parts.clone()),
        };
        let frame = frame(layout, &rest);
        Self { layout, payload, salts, rest, frame, resource_parts: layout.resource_parts() }
    }

    /// The salt of a part, from the identity on; `None` if it is erased.
    pub(crate) fn salt(&self, part: usize) -> Option<[u8; 32]> {
        self.salts[part - 1]
    }

    /// All salts, from the identity on.
    pub(crate) fn salts(&self) -> &[Option<[u8; 32]>] {
        &self.salts
    }

    /// The digest of the frame.
    pub(crate) fn frame(&self) -> Hash {
        self.frame
    }

    /// The digest of the bytes in the frame: computed, or the one that was kept.
    pub(crate) fn rest(&self) -> Hash {
        self.rest
    }

    /// The digest of a part; zeros if it is erased: then no record needs it.
    fn part(&self, part: usize, key: &ContextKey, bytes: &[u8]) -> Hash {
        self.salt(part).map_or([0; 32], |salt| digest(key, &[&salt, bytes]))
    }

    fn resource(&self, group: usize) -> Hash {
        let range = self.layout.groups[group].resource;
        self.part(self.resource_parts[group], &KEYS.resource, slice(self.layout, self.payload, range))
    }

    fn scope(&self, group: usize) -> Hash {
        let range = self.layout.groups[group].scope;
        self.part(self.layout.scope_part(group), &KEYS.scope, slice(self.layout, self.payload, range))
    }

    /// The commitments to all records of the block, in order; `None` for erased ones.
    pub(crate) fn commitments(&self) -> Vec<Option<Hash>> {
        let identity = self.part(Layout::IDENTITY, &KEYS.identity, self.layout.identity.as_bytes());
        let mut last: Option<(usize, Hash)> = None;
        let shared = |group: usize| {
            let part = self.resource_parts[group];
            let resource = match last {
                Some((same, hash)) if same == part => hash,
                _ => self.resource(group),
            };
            last = Some((part, resource));
            shared_digest(&self.frame, &identity, &resource, &self.scope(group))
        };
        let groups: Vec<Hash> = (0..self.layout.groups.len()).map(shared).collect();
        let records = &self.layout.records;
        let bytes = |record: &Placed| slice(self.layout, self.payload, record.range);
        let lens: Vec<[u8; 8]> = records.iter().map(|record| (bytes(record).len() as u64).to_be_bytes()).collect();
        let salts = &self.salts[self.layout.record_part(0) - 1..];
        let commitments = digests(&KEYS.content, records.len(), |i| {
            // An erased record's salt and bytes are gone; what is computed of it here is dropped below.
            let salt = salts[i].as_ref().map_or(&[][..], |salt| &salt[..]);
            [salt, &groups[records[i].group as usize], &lens[i], bytes(&records[i])]
        });
        commitments.into_iter().zip(salts).map(|(commitment, salt)| salt.map(|_| commitment)).collect()
    }
}

/// The digest of all bytes of a block that are in no other part: the protobuf framing,
/// fields that no table names, records that were refused, copies.
fn rest(layout: &Layout, payload: &[u8], salt: &[u8; 32]) -> Hash {
    let mut hasher = Hasher::new_from_context_key(&KEYS.rest);
    hasher.update(salt);
    for range in layout.frame_ranges() {
        let end = payload.len();
        hasher.update(&payload[range.start.min(end)..range.end.min(end)]);
        hasher.update(&layout.annex[range.start.saturating_sub(end)..range.end.saturating_sub(end)]);
    }
    *hasher.finalize().as_bytes()
}

/// The digest of the frame: what the block is, its tables, and the rest of its bytes.
/// Without these bytes it can still be computed, so that nothing else of it can change.
fn frame(layout: &Layout, rest: &Hash) -> Hash {
    let mut hasher = Hasher::new_from_context_key(&KEYS.frame);
    hasher.update(&[FORMAT_VERSION, layout.signal.byte(), layout.encoding as u8, 0]);
    hasher.update(&layout.payload_len.to_be_bytes());
    hasher.update(&(layout.annex.len() as u32).to_be_bytes());
    hasher.update(&layout.tables());
    hasher.update(rest);
    *hasher.finalize().as_bytes()
}

/// What the records of a group share, in one digest.
pub(crate) fn shared_digest(frame: &Hash, identity: &Hash, resource: &Hash, scope: &Hash) -> Hash {
    digest(&KEYS.shared, &[frame, identity, resource, scope])
}

/// The commitment to one record.
pub(crate) fn record_commitment(salt: &[u8; 32], shared: &Hash, record: &[u8]) -> Hash {
    digest(&KEYS.content, &[salt, shared, &(record.len() as u64).to_be_bytes(), record])
}

/// The digests of parts that are shown alone, each with its salt: for checking a
/// record without its block.
pub(crate) mod alone {
    use super::{Hash, KEYS, digest};

    pub(crate) fn identity(salt: &[u8; 32], identity: &str) -> Hash {
        digest(&KEYS.identity, &[salt, identity.as_bytes()])
    }

    pub(crate) fn resource(salt: &[u8; 32], bytes: &[u8]) -> Hash {
        digest(&KEYS.resource, &[salt, bytes])
    }

    pub(crate) fn scope(salt: &[u8; 32], bytes: &[u8]) -> Hash {
        digest(&KEYS.scope, &[salt, bytes])
    }
}

/// The commitments of a block of which nothing is erased.
fn whole(layout: &Layout, payload: &[u8]) -> Vec<Hash> {
    Digests::new(layout, payload).commitments().into_iter().flatten().collect()
}

/// A request that is ready to be appended: scanned, salted and hashed. This is
/// the CPU work of an append, done beside others and not in the sequencer.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) layout: Layout,
    pub(crate) payload: Bytes,
    /// The payload as it is kept, if not as it is.
    packed: Option<Vec<u8>>,
    pub(crate) ids: Vec<([u8; 16], [u8; 8])>,
    pub(crate) commitments: Vec<Hash>,
    pub(crate) receipt: bool,
}

impl Prepared {
    /// Prepares a scanned request for appending. `identity` is who sent it, as
    /// authenticated (cut at 1,024 bytes).
    pub fn new(signal: Signal, encoding: Encoding, payload: Bytes, scan: Scan, identity: &str) -> Self {
        let mut salt = [0; 32];
        random(&mut salt);
        Self::with_salt(signal, encoding, payload, scan, identity, salt)
    }

    /// As [`Self::new`], with a given salt: for test vectors.
    pub fn with_salt(
        signal: Signal,
        encoding: Encoding,
        payload: Bytes,
        scan: Scan,
        identity: &str,
        salt: [u8; 32],
    ) -> Self {
        let cut = identity.floor_char_boundary(1024);
        let ids = scan.records.iter().map(|r| (r.trace_id, r.span_id)).collect();
        let records = scan.records.iter().map(|r| Placed { group: r.group, range: r.range }).collect();
        let layout = Layout {
            signal,
            encoding,
            payload_len: payload.len() as u32,
            salts: Salts::Whole(salt),
            identity: identity[..cut].to_owned(),
            annex: scan.annex,
            groups: scan.groups,
            records,
            copies: Vec::new(),
        };
        let commitments = whole(&layout, &payload);
        let packed = payload::pack(&payload);
        Self { layout, payload, packed, ids, commitments, receipt: false }
    }

    /// The digest for the receipt, if one is asked for.
    pub(crate) fn wanted_receipt(&self) -> Option<String> {
        self.receipt.then(|| crate::note::sha256_hex(&self.payload))
    }

    /// Asks for a signed receipt.
    pub fn with_receipt(mut self, wanted: bool) -> Self {
        self.receipt = wanted;
        self
    }

    /// How many records it holds.
    pub fn records(&self) -> usize {
        self.ids.len()
    }

    /// How many bytes its payload has.
    pub fn bytes(&self) -> usize {
        self.payload.len()
    }

    /// What is kept of the payload.
    pub(crate) fn kept(&self) -> &[u8] {
        self.packed.as_deref().unwrap_or(&self.payload)
    }

    /// How many bytes are in memory beside the payload until it is written.
    pub fn packed_bytes(&self) -> usize {
        self.packed.as_ref().map_or(0, Vec::len)
    }

    /// The bytes that make a record what it is: itself, its resource, its scope.
    pub(crate) fn content(&self, i: usize) -> [&[u8]; 3] {
        content(&self.layout, &self.payload, i)
    }

    /// Takes out the records that are in the log already: `originals` has the seq of
    /// each one's original. They stay in the payload as copies, so the commitments of
    /// the others change.
    pub(crate) fn take_out(&mut self, originals: &[Option<u64>]) {
        let mut left = Vec::with_capacity(self.layout.records.len());
        let mut ids = Vec::with_capacity(self.ids.len());
        for (i, record) in self.layout.records.iter().enumerate() {
            match originals[i] {
                Some(seq) => self.layout.copies.push(Copied { range: record.range, seq }),
                None => {
                    left.push(*record);
                    ids.push(self.ids[i]);
                }
            }
        }
        (self.layout.records, self.ids) = (left, ids);
        self.commitments = whole(&self.layout, &self.payload);
    }
}

/// Record, resource and scope of the `i`-th record of a block.
pub(crate) fn content<'a>(layout: &'a Layout, payload: &'a [u8], i: usize) -> [&'a [u8]; 3] {
    let record = &layout.records[i];
    let group = &layout.groups[record.group as usize];
    [record.range, group.resource, group.scope].map(|range| slice(layout, payload, range))
}

/// Fills with random bytes of the operating system's quality.
pub(crate) fn random(out: &mut [u8]) {
    // It fails only when the system has no randomness at all; then nothing here may go on.
    aws_lc_rs::rand::fill(out).expect("the operating system gives no randomness");
}
