//! From content to commitments: what of a block is hashed, with which salt.
//!
//! Every byte of a block is bound to its entries: records, resources and scopes
//! each by their own digest (so that each can be erased alone and the rest still
//! proved), everything else by the digest of the *frame*. The digests are salted:
//! without the salt, which dies with the content, nobody can guess a short text
//! from its commitment.

use blake3::Hasher;
use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};
use std::sync::LazyLock;

use bytes::Bytes;
use custody_proto::scan::{Range, Scan};
use custody_proto::{Hash, Signal};

use crate::format::{Encoding, FORMAT_VERSION, Layout, Placed};

/// BLAKE3 context strings, one per kind of digest.
pub mod context {
    /// Of a record's content commitment.
    pub const CONTENT: &str = "custody content v1";
    /// Of a block's frame.
    pub const FRAME: &str = "custody frame v1";
    /// Of a resource.
    pub const RESOURCE: &str = "custody resource v1";
    /// Of a scope.
    pub const SCOPE: &str = "custody scope v1";
    /// Of the identity of the sender.
    pub const IDENTITY: &str = "custody identity v1";
}

struct Keys {
    content: ContextKey,
    frame: ContextKey,
    resource: ContextKey,
    scope: ContextKey,
    identity: ContextKey,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    content: hash_derive_key_context(context::CONTENT),
    frame: hash_derive_key_context(context::FRAME),
    resource: hash_derive_key_context(context::RESOURCE),
    scope: hash_derive_key_context(context::SCOPE),
    identity: hash_derive_key_context(context::IDENTITY),
});

fn digest(key: &ContextKey, parts: &[&[u8]]) -> Hash {
    let mut hasher = Hasher::new_from_context_key(key);
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// The bytes of a range that may lie in the annex.
pub(crate) fn slice<'a>(layout: &'a Layout, payload: &'a [u8], range: Range) -> &'a [u8] {
    let (at, len) = (range.at as usize, range.len as usize);
    match at.checked_sub(payload.len()) {
        Some(at) if len > 0 => &layout.annex[at..at + len],
        _ => &payload[at.min(payload.len())..(at + len).min(payload.len())],
    }
}

/// The salted digest of what a block is besides records, resources and scopes.
fn frame(layout: &Layout, payload: &[u8]) -> Hash {
    let identity = digest(&KEYS.identity, &[&layout.salt, layout.identity.as_bytes()]);
    let mut hasher = Hasher::new_from_context_key(&KEYS.frame);
    hasher.update(&layout.salt);
    hasher.update(&[FORMAT_VERSION, layout.signal.byte(), layout.encoding as u8, 0]);
    hasher.update(&layout.payload_len.to_be_bytes());
    hasher.update(&identity);
    hasher.update(&(layout.annex.len() as u32).to_be_bytes());
    hasher.update(&layout.tables());
    let mut cut: Vec<Range> = layout.records.iter().map(|r| r.range).collect();
    cut.extend(layout.groups.iter().flat_map(|g| [g.resource, g.scope]));
    cut.retain(|r| (r.at as usize) < payload.len());
    cut.sort_unstable_by_key(|r| r.at);
    let mut at = 0;
    for range in cut {
        if range.at as usize > at {
            hasher.update(&payload[at..range.at as usize]);
        }
        at = at.max((range.at + range.len) as usize);
    }
    hasher.update(&payload[at.min(payload.len())..]);
    *hasher.finalize().as_bytes()
}

/// The commitments to all records of a block, in order.
pub(crate) fn commitments(layout: &Layout, payload: &[u8]) -> Vec<Hash> {
    let frame = frame(layout, payload);
    let mut last: Option<(Range, Hash)> = None;
    let groups: Vec<(Hash, Hash)> = layout
        .groups
        .iter()
        .map(|group| {
            let resource = match last {
                Some((range, hash)) if range == group.resource => hash,
                _ => digest(&KEYS.resource, &[&layout.salt, slice(layout, payload, group.resource)]),
            };
            last = Some((group.resource, resource));
            (resource, digest(&KEYS.scope, &[&layout.salt, slice(layout, payload, group.scope)]))
        })
        .collect();
    let commit = |record: &Placed| {
        let (resource, scope) = &groups[record.group as usize];
        let bytes = slice(layout, payload, record.range);
        let len = (bytes.len() as u64).to_be_bytes();
        digest(&KEYS.content, &[&layout.salt, &frame, resource, scope, &len, bytes])
    };
    layout.records.iter().map(commit).collect()
}

/// A request that is ready to be appended: scanned, salted and hashed. This is
/// the CPU work of an append, done beside others and not in the sequencer.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) layout: Layout,
    pub(crate) payload: Bytes,
    pub(crate) ids: Vec<([u8; 16], [u8; 8])>,
    pub(crate) commitments: Vec<Hash>,
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
            salt,
            identity: identity[..cut].to_owned(),
            annex: scan.annex,
            groups: scan.groups,
            records,
        };
        let commitments = commitments(&layout, &payload);
        Self { layout, payload, ids, commitments }
    }

    /// How many records it holds.
    pub fn records(&self) -> usize {
        self.ids.len()
    }

    /// How many bytes its payload has.
    pub fn bytes(&self) -> usize {
        self.payload.len()
    }

    /// The bytes that make a record what it is: itself, its resource, its scope.
    pub(crate) fn content(&self, i: usize) -> [&[u8]; 3] {
        content(&self.layout, &self.payload, i)
    }

    /// Drops the records for which `keep` is false; they stay in the payload as
    /// part of the frame, so the commitments of the others change.
    pub(crate) fn retain(&mut self, keep: &[bool]) {
        let mut flags = keep.iter();
        self.layout.records.retain(|_| flags.next().copied().unwrap_or(true));
        let mut flags = keep.iter();
        self.ids.retain(|_| flags.next().copied().unwrap_or(true));
        self.commitments = commitments(&self.layout, &self.payload);
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
