//! As many gaps as erasures.

use super::{Reading, Step, damage, found};
use crate::system::SeqSet;

impl Reading<'_> {
    /// What was verified earlier, and erased since, is gone now.
    pub(super) fn erased_behind(&mut self, from: u64) -> Step {
        let mut gone = Vec::new();
        for seq in self.state.erased.without(&self.state.gaps).seqs().take_while(|seq| *seq < from) {
            let block = self.reader.block_at(seq).map_err(|e| damage(seq, e))?;
            let is_gone = block.is_none_or(|block| {
                let at = (seq - block.commitments.first_seq) as usize;
                block.content.is_none_or(|content| content.is_erased(at))
            });
            if is_gone {
                gone.push(seq);
            }
        }
        self.state.gaps = self.state.gaps.union(&SeqSet::of_seqs(gone));
        Ok(())
    }

    /// As many gaps as erasures: no content is missing that no record says was erased,
    /// and none is there that one says is gone.
    pub(super) fn erasures(&self) -> Step {
        let state = &self.state;
        if let Some(seq) = state.gaps.without(&state.erased).seqs().next() {
            return found(seq, format!("the content of seq {seq} is missing, and no record says that it was erased"));
        }
        if let Some(seq) = state.erased.without(&state.gaps).seqs().next() {
            return found(seq, format!("a record says that the content of seq {seq} was erased, but it is there"));
        }
        for (first, originals) in &state.frames {
            if originals.without(&state.erased) == *originals {
                return found(*first, "the block's frame is erased, but no record of which it holds a copy is");
            }
        }
        for (first, originals) in state.copies.iter().filter(|(_, set)| set.without(&state.erased) != *set) {
            // Whole when it was read; if it was verified earlier, look at it now.
            let block = self.reader.block_at(*first).map_err(|e| damage(*first, e))?;
            if block.and_then(|block| block.content).is_some_and(|content| !content.is_partly_erased()) {
                let erased = originals.without(&originals.without(&state.erased));
                return found(*first, format!("the block still holds a copy of seq {erased}, which was erased"));
            }
        }
        Ok(())
    }
}
