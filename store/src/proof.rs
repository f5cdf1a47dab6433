//! Proofs that stand alone: inclusion (C2SP tlog-proof), consistency, and what of
//! a record's content is shown with them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use custody_proto::{ENTRY_BYTES, Entry, Hash};
use serde_json::{Value, json};
use tlog_tiles::tlog;

use crate::checkpoint::Checkpoint;
use crate::commit::{alone, record_commitment, shared_digest};
use crate::format::Layout;
use crate::note::{Note, VerifierKey};
use crate::reader::{Block, Content};
use crate::tree::{leaf_hash, prove_inclusion};
use crate::{Error, Reader};

const HEADER: &str = "c2sp.org/tlog-proof@v1";

/// Longest proof: a tree of 2^63 leaves.
const HASHES_MAX: usize = 63;

/// A proof that a record is in the log (C2SP tlog-proof).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// What is shown of the record. The proof does not vouch for it; [`Proof::check`] does.
    pub shown: Shown,
    /// The record's seq.
    pub seq: u64,
    /// The hashes from the leaf's sibling to the root's child (RFC 6962, section 2.1.1).
    pub hashes: Vec<Hash>,
    /// The signed checkpoint.
    pub note: String,
}

/// A record's entry and, unless it is erased or kept back, its content with the salts of
/// just these parts: nothing else of its block is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The entry, byte for byte.
    pub entry: [u8; ENTRY_BYTES],
    /// The content.
    pub content: Option<ShownContent>,
}

/// The content of one record, as far as its commitment binds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownContent {
    /// The digest of the block's frame.
    pub frame: Hash,
    /// Who sent it, and the salt.
    pub identity: (String, [u8; 32]),
    /// The `Resource`, and the salt.
    pub resource: (Vec<u8>, [u8; 32]),
    /// The `InstrumentationScope`, and the salt.
    pub scope: (Vec<u8>, [u8; 32]),
    /// The record, and the salt.
    pub record: (Vec<u8>, [u8; 32]),
}

impl ShownContent {
    /// The commitment that it makes.
    fn commitment(&self) -> Hash {
        let identity = alone::identity(&self.identity.1, &self.identity.0);
        let resource = alone::resource(&self.resource.1, &self.resource.0);
        let scope = alone::scope(&self.scope.1, &self.scope.0);
        let shared = shared_digest(&self.frame, &identity, &resource, &scope);
        record_commitment(&self.record.1, &shared, &self.record.0)
    }
}

impl Shown {
    /// Checks that the content is what the entry commits to; gives the entry.
    pub fn check(&self) -> Result<Entry, Error> {
        let entry = Entry::decode(&self.entry).ok_or_else(|| Error::corrupt("the entry is not of version 1"))?;
        match &self.content {
            Some(content) if content.commitment() != entry.commitment => {
                Err(Error::corrupt(format!("the content of record {} is not what its entry commits to", entry.seq)))
            }
            _ => Ok(entry),
        }
    }

    /// As JSON: bytes in base64, salts and hashes in hexadecimal.
    pub fn to_json(&self) -> Value {
        let pair = |(bytes, salt): &(Vec<u8>, [u8; 32])| json!([STANDARD.encode(bytes), const_hex::encode(salt)]);
        let content = self.content.as_ref().map(|content| {
            json!({
                "frame": const_hex::encode(content.frame),
                "identity": [content.identity.0, const_hex::encode(content.identity.1)],
                "resource": pair(&content.resource),
                "scope": pair(&content.scope),
                "record": pair(&content.record),
            })
        });
        json!({"entry": STANDARD.encode(self.entry), "content": content})
    }

    /// Reads what [`Self::to_json`] wrote.
    pub fn from_json(json: &Value) -> Option<Self> {
        // One text for one value: no capitals, no 0x.
        let salt = |value: &Value| {
            let text = value.as_str()?;
            const_hex::decode_to_array(text).ok().filter(|bytes: &Hash| const_hex::encode(bytes) == text)
        };
        let pair = |value: &Value| Some((STANDARD.decode(value[0].as_str()?).ok()?, salt(&value[1])?));
        let content = match &json["content"] {
            Value::Null => None,
            content => Some(ShownContent {
                frame: salt(&content["frame"])?,
                identity: (content["identity"][0].as_str()?.to_owned(), salt(&content["identity"][1])?),
                resource: pair(&content["resource"])?,
                scope: pair(&content["scope"])?,
                record: pair(&content["record"])?,
            }),
        };
        let entry = STANDARD.decode(json["entry"].as_str()?).ok()?.try_into().ok()?;
        Some(Self { entry, content })
    }
}

impl Proof {
    /// Checks it against keys of the log: the content against the entry, the entry
    /// against the root, the root's signatures. Needs nothing else. Gives the entry
    /// and the checkpoint.
    pub fn check(&self, keys: &[VerifierKey]) -> Result<(Entry, Checkpoint), Error> {
        let checkpoint = Checkpoint::verify(&self.note, keys)?;
        let entry = self.shown.check()?;
        if entry.seq != self.seq {
            return Err(Error::corrupt(format!("the entry is of seq {}, the proof of {}", entry.seq, self.seq)));
        }
        check_inclusion(&self.hashes, &checkpoint, self.seq, &self.shown.entry)?;
        Ok((entry, checkpoint))
    }

    /// Reads a `.tlog-proof` file.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bad = |what: &str| Error::invalid(format!("not a proof of this log (C2SP tlog-proof): {what}"));
        let (head, note) = text.split_once("\n\n").ok_or_else(|| bad("no blank line before its checkpoint"))?;
        let mut lines = head.split('\n').peekable();
        if lines.next() != Some(HEADER) {
            return Err(bad(&format!("its first line is not {HEADER}")));
        }
        let extra = lines.next_if(|line| line.starts_with("extra ")).and_then(|line| line.strip_prefix("extra "));
        let extra = extra.ok_or_else(|| bad("it has no `extra` line, which holds the entry"))?;
        let json = STANDARD.decode(extra).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let shown = json.as_ref().and_then(Shown::from_json).ok_or_else(|| bad("its `extra` line has no entry"))?;
        let index = lines.next().and_then(|line| line.strip_prefix("index "));
        let seq = index.and_then(|text| text.parse().ok().filter(|n: &u64| n.to_string() == text));
        let seq = seq.ok_or_else(|| bad("it has no `index` line"))?;
        let hash = |line: &str| STANDARD.decode(line).ok().and_then(|h| Hash::try_from(h).ok());
        let hashes: Option<Vec<Hash>> = lines.map(hash).collect();
        let hashes = hashes.filter(|h| h.len() <= HASHES_MAX).ok_or_else(|| bad("a line of its path is not a hash"))?;
        Note::parse(note).map_err(|e| bad(&format!("its checkpoint: {e}")))?;
        Ok(Self { shown, seq, hashes, note: note.to_owned() })
    }
}

impl std::fmt::Display for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{HEADER}")?;
        writeln!(f, "extra {}", STANDARD.encode(self.shown.to_json().to_string()))?;
        writeln!(f, "index {}", self.seq)?;
        self.hashes.iter().try_for_each(|hash| writeln!(f, "{}", STANDARD.encode(hash)))?;
        write!(f, "\n{}", self.note)
    }
}

/// Checks that an entry is a leaf of the tree that a checkpoint names.
pub(crate) fn check_inclusion(
    hashes: &[Hash],
    checkpoint: &Checkpoint,
    seq: u64,
    entry: &[u8; ENTRY_BYTES],
) -> Result<(), Error> {
    let wrong = || Error::corrupt(format!("record {seq} is not in the tree of size {}", checkpoint.size));
    if seq >= checkpoint.size || hashes.len() > HASHES_MAX {
        return Err(wrong());
    }
    let path: tlog::RecordProof = hashes.iter().map(|hash| tlog::Hash(*hash)).collect();
    let (root, leaf) = (tlog::Hash(checkpoint.root), tlog::Hash(leaf_hash(entry)));
    tlog::check_record(&path, checkpoint.size, root, seq, leaf).map_err(|_| wrong())
}

/// Checks that the tree of `old` is the beginning of that of `new` (RFC 6962, section 2.1.2).
pub fn check_consistency(hashes: &[Hash], old: &Checkpoint, new: &Checkpoint) -> Result<(), Error> {
    let wrong =
        || Error::corrupt(format!("the tree of size {} is not the beginning of that of {}", old.size, new.size));
    if old.size > new.size || hashes.len() > HASHES_MAX {
        return Err(wrong());
    }
    if old.size == 0 || old.size == new.size {
        let same = old.size == 0 || old.root == new.root;
        return if same && hashes.is_empty() { Ok(()) } else { Err(wrong()) };
    }
    let path: tlog::TreeProof = hashes.iter().map(|hash| tlog::Hash(*hash)).collect();
    let (new_root, old_root) = (tlog::Hash(new.root), tlog::Hash(old.root));
    tlog::check_tree(&path, new.size, new_root, old.size, old_root).map_err(|_| wrong())
}

/// A block whose digests are computed once, for showing many of its records.
pub(crate) struct View {
    block: Block,
    entries: Vec<[u8; ENTRY_BYTES]>,
    frame: Hash,
    salts: Vec<Option<[u8; 32]>>,
    resources: Vec<usize>,
}

impl View {
    fn new(block: Block) -> Self {
        let entries = block.commitments.chained(block.commitments.previous).map(|link| link.bytes).collect();
        let (mut frame, mut salts, mut resources) = ([0; 32], Vec::new(), Vec::new());
        if let Some(content) = &block.content {
            let digests = content.digests();
            (frame, salts) = (digests.frame(), digests.salts().to_vec());
            resources = content.layout().resource_parts();
        }
        Self { block, entries, frame, salts, resources }
    }

    /// Whether it holds this record.
    pub(crate) fn holds(&self, seq: u64) -> bool {
        (self.block.commitments.first_seq..self.block.commitments.end_seq()).contains(&seq)
    }

    pub(crate) fn shown(&self, seq: u64, content: bool) -> Result<Shown, Error> {
        let at = seq.checked_sub(self.block.commitments.first_seq).map(|at| at as usize);
        let found = at.and_then(|at| Some((at, *self.entries.get(at)?)));
        let (at, entry) = found.ok_or_else(|| Error::corrupt(format!("the entry of seq {seq} is missing")))?;
        let held = self.block.content.as_ref().filter(|held| content && !held.is_erased(at));
        Ok(Shown { entry, content: held.and_then(|held| self.content(held, at)) })
    }

    fn content(&self, held: &Content, at: usize) -> Option<ShownContent> {
        let salt = |part: usize| self.salts[part - 1];
        let (layout, group) = (held.layout(), held.group(at));
        Some(ShownContent {
            frame: self.frame,
            identity: (held.identity().to_owned(), salt(Layout::IDENTITY)?),
            resource: (held.resource(at).to_vec(), salt(self.resources[group])?),
            scope: (held.scope(at).to_vec(), salt(layout.scope_part(group))?),
            record: (held.record(at).to_vec(), salt(layout.record_part(at))?),
        })
    }
}

impl Reader {
    /// The inclusion path of a record in the tree of a size.
    pub fn inclusion(&self, seq: u64, size: u64) -> Result<Vec<Hash>, Error> {
        if seq >= size || size > self.head().size {
            return Err(Error::invalid(format!("record {seq} is not in a tree of size {size}")));
        }
        prove_inclusion(seq, size, self)
    }

    /// What is shown of a record: its entry and, if `content`, its content unless erased.
    pub fn shown(&self, seq: u64, content: bool) -> Result<Shown, Error> {
        self.view(seq)?.shown(seq, content)
    }

    /// The block of a record, ready for showing its records.
    pub(crate) fn view(&self, seq: u64) -> Result<View, Error> {
        let block = self.block_at(seq)?;
        Ok(View::new(block.ok_or_else(|| Error::invalid(format!("the log has no record {seq}")))?))
    }

    /// A proof that a record is in the log, under the newest witnessed checkpoint that
    /// covers it, or the newest.
    pub fn proof(&self, seq: u64, content: bool) -> Result<Proof, Error> {
        let note = self.covering(seq)?;
        let size = Checkpoint::parse_unverified(&note)?.size;
        Ok(Proof { shown: self.shown(seq, content)?, seq, hashes: self.inclusion(seq, size)?, note })
    }

    /// The checkpoint under which a record is proved.
    fn covering(&self, seq: u64) -> Result<String, Error> {
        if let Some(kept) = self.newest_witnessed()?.filter(|kept| kept.size > seq) {
            return Ok(kept.note);
        }
        let note = self.checkpoint()?.ok_or_else(|| Error::unavailable("there is no checkpoint yet"))?;
        if Checkpoint::parse_unverified(&note)?.size > seq {
            return Ok(note);
        }
        if seq >= self.head().size {
            return Err(Error::invalid(format!("the log has no record {seq}")));
        }
        Err(Error::unavailable(format!("no checkpoint covers record {seq} yet; try again in a second")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_proof_checks_and_no_changed_byte_of_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let (_, reader) = crate::open(dir.path(), crate::Options::default()).unwrap();
        let proof = reader.proof(0, true).unwrap();
        let text = proof.to_string();
        assert_eq!(Proof::parse(&text).unwrap(), proof);
        assert_eq!(proof.check(&reader.keys()).unwrap().0.seq, 0);
        let content = proof.shown.content.clone().unwrap();
        type Change = fn(&mut ShownContent);
        let changes: [Change; 9] = [
            |c| c.frame[3] ^= 1,
            |c| c.identity.0.push('x'),
            |c| c.identity.1[0] ^= 1,
            |c| c.resource.0[2] ^= 1,
            |c| c.resource.1[2] ^= 1,
            |c| c.scope.0[2] ^= 1,
            |c| c.scope.1[2] ^= 1,
            |c| c.record.0[9] ^= 1,
            |c| c.record.1[9] ^= 1,
        ];
        for change in changes {
            let mut changed = proof.clone();
            let mut content = content.clone();
            change(&mut content);
            changed.shown.content = Some(content);
            assert!(changed.check(&reader.keys()).is_err());
        }
        let mut changed = proof.clone();
        changed.shown.entry[20] ^= 1;
        assert!(changed.check(&reader.keys()).is_err());
        let mut changed = proof.clone();
        changed.hashes.push([0; 32]);
        assert!(changed.check(&reader.keys()).is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(lines in "(extra [A-Za-z0-9=]{0,20}\n)?(index [0-9]{0,4}\n)?([A-Za-z0-9=]{44}\n){0,2}\n\\PC{0,40}") {
            let _ = Proof::parse(&format!("{HEADER}\n{lines}"));
            let _ = Proof::parse(&lines);
        }
    }
}
