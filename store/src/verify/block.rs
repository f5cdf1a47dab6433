//! What can be told of a block alone: that its content is what its entries commit
//! to, and which leaves and chain its entries make.

use custody_proto::Hash;

use super::{Finding, Stop};
use crate::format::{Commitments, Layout, Salts, seq_of_key};
use crate::reader::Content;
use crate::system::{SYSTEM_IDENTITY, SeqSet, SystemRecord};
use crate::tree::leaf_hash;

use super::read::Item;

/// A block, read and hashed.
pub(super) struct Checked {
    /// The seq under which its entries stand, or why the reading stopped there.
    pub(super) key: Result<u64, Stop>,
    /// Its entries; `None` if they are not in the format's layout.
    pub(super) block: Option<Commitments>,
    /// What is wrong with its content.
    pub(super) finding: Option<Finding>,
    /// Its leaves, if its stored previous hash is right.
    pub(super) leaves: Vec<Hash>,
    /// The chain hash after it.
    pub(super) end: Hash,
    /// The records whose content is not there.
    pub(super) gaps: SeqSet,
    /// The originals of copies that are there.
    pub(super) copies: SeqSet,
    /// Of a block without a gap whose frame is erased: one of these must be erased.
    pub(super) frame_for: SeqSet,
    /// The ledger's own records.
    pub(super) system: Vec<(u64, SystemRecord)>,
    /// Payload bytes.
    pub(super) bytes: u64,
}

impl Checked {
    fn new(key: Result<u64, Stop>) -> Self {
        Self {
            key,
            block: None,
            finding: None,
            leaves: Vec::new(),
            end: [0; 32],
            gaps: SeqSet::default(),
            copies: SeqSet::default(),
            frame_for: SeqSet::default(),
            system: Vec::new(),
            bytes: 0,
        }
    }
}

/// Reads and hashes a block.
pub(super) fn check(item: Item) -> Checked {
    let (key, entries, content) = match item {
        Item::Stopped(stop) => return Checked::new(Err(stop)),
        Item::Block { key, entries, content } => (key, entries, content),
    };
    let key = match seq_of_key(&key) {
        Ok(key) => key,
        Err(error) => return Checked::new(Err(super::damage(super::UNPLACED, error))),
    };
    let mut checked = Checked::new(Ok(key));
    let Some(block) = Commitments::decode(&entries) else { return checked };
    if let Err(finding) = checked.content(&block, content) {
        checked.finding = Some(finding);
    }
    checked.end = block.previous;
    for link in block.chained(block.previous) {
        checked.leaves.push(leaf_hash(&link.bytes));
        checked.end = link.chain;
    }
    checked.block = Some(block);
    checked
}

impl Checked {
    fn content(&mut self, block: &Commitments, content: Option<(Vec<u8>, Vec<u8>)>) -> Result<(), Finding> {
        let seq = block.first_seq;
        let wrong = |seq, reason: &str| Err(Finding { seq, reason: reason.to_owned() });
        let Some((layout, payload)) = content else {
            self.gaps = SeqSet::of(std::iter::once(seq..block.end_seq()));
            return Ok(());
        };
        let Some(layout) = Layout::decode(&layout) else {
            return wrong(seq, "the block's layout is not in the format's layout");
        };
        if layout.records.len() as u64 != block.count() || layout.signal != block.signal {
            return wrong(seq, "the block's layout does not fit its entries");
        }
        let Some(content) = Content::new(layout, payload.into()) else {
            return wrong(
                seq,
                "the payload is not as long as the block's layout says, nor a zstd frame of so many bytes",
            );
        };
        self.bytes = content.payload().len() as u64;
        commitments(block, &content)?;
        self.erased(block, &content)?;
        if content.identity() == SYSTEM_IDENTITY {
            let own = (0..content.records()).filter_map(|i| {
                let record = SystemRecord::decode(content.record(i))?;
                Some((seq + i as u64, record))
            });
            self.system.extend(own);
        }
        Ok(())
    }

    /// Of a block of which something is erased, only what its records need is there.
    fn erased(&mut self, block: &Commitments, content: &Content) -> Result<(), Finding> {
        let (seq, layout) = (block.first_seq, content.layout());
        let originals = SeqSet::of_seqs(layout.copies.iter().map(|copy| copy.seq));
        let Salts::Partly { parts, .. } = &layout.salts else {
            self.copies = originals;
            return Ok(());
        };
        let gone = (0..content.records()).filter(|&i| content.is_erased(i));
        self.gaps = SeqSet::of_seqs(gone.map(|i| seq + i as u64));
        if self.gaps.is_empty() {
            if originals.is_empty() {
                let reason = "the block's frame is erased, but nothing in it that may be".to_owned();
                return Err(Finding { seq, reason });
            }
            self.frame_for = originals;
        }
        // What is there, and nothing else, is in the ranges of the parts that have a salt.
        let mut rest = [content.payload().to_vec(), layout.annex.clone()].concat();
        for (part, range) in layout.ranges() {
            if parts[part - 1].is_some() {
                rest[range.at as usize..(range.at + range.len) as usize].fill(0);
            }
        }
        if rest.iter().any(|byte| *byte != 0) {
            let seq = self.gaps.next_at(0).unwrap_or(seq);
            return Err(Finding { seq, reason: "there is content in the place of something erased".to_owned() });
        }
        Ok(())
    }
}

/// Every record against the commitment in its entry.
fn commitments(block: &Commitments, content: &Content) -> Result<(), Finding> {
    let computed = content.commitments();
    let wrong = |i: &usize| computed[*i].is_some_and(|hash| hash != block.commitments[*i]);
    let kept = computed.iter().filter(|hash| hash.is_some()).count();
    let Some(first) = (0..computed.len()).find(wrong) else { return Ok(()) };
    let seq = block.first_seq + first as u64;
    if kept > 1 && (0..computed.len()).filter(wrong).count() == kept {
        let reason = format!(
            "no record of the block (seq {seq} to {}) is what its entry commits to: its resource, scope, framing, \
             salt or sender was changed",
            block.end_seq() - 1
        );
        return Err(Finding { seq, reason });
    }
    let name = block.signal.record_name();
    Err(Finding { seq, reason: format!("the {name} is not what its entry commits to: its content was changed") })
}
