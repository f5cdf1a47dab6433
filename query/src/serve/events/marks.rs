//! Marks: what a cursor says of the log below its place, so that a log that is another one there shows,
//! also when it has grown past the cursor since: after it was restored from an older backup, or rolled back.

use custody_store::{Commitments, Reader};

use crate::error::Error;

/// Eight bytes that stand for the record before a place and all before its block.
pub(crate) type Mark = [u8; 8];

/// Finds marks; those of places in one block are found with one read.
pub(crate) struct Marks<'a> {
    reader: &'a Reader,
    block: Option<Commitments>,
}

impl<'a> Marks<'a> {
    pub(crate) fn new(reader: &'a Reader) -> Self {
        Self { reader, block: None }
    }

    /// The mark of the place before `seq`; of the beginning, and of what is not in the log, zeros.
    pub(crate) fn at(&mut self, seq: u64) -> Result<Mark, Error> {
        let Some(last) = seq.checked_sub(1) else { return Ok(Mark::default()) };
        let holds = |block: &&Commitments| (block.first_seq..block.end_seq()).contains(&last);
        if self.block.as_ref().filter(holds).is_none() {
            self.block = self.reader.commitments_at(last).map_err(Error::store)?;
        }
        let Some(block) = self.block.as_ref().filter(holds) else { return Ok(Mark::default()) };
        let commitment = &block.commitments[(last - block.first_seq) as usize];
        // The chain before the block stands for everything before it; the time tells the same record, sent again
        // after a restore, from the one that was lost.
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"custody events cursor\n").update(&last.to_be_bytes());
        hasher.update(&block.previous).update(&block.ingest_time.to_be_bytes()).update(commitment);
        let mut mark = Mark::default();
        hasher.finalize_xof().fill(&mut mark);
        Ok(mark)
    }
}
