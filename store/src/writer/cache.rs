//! The block that was read last.

use crate::Error;
use crate::reader::{Content, Reader};

/// The block that was read last: retries come in the order of the original.
#[derive(Default)]
pub(super) struct BlockCache {
    last: Option<(u64, u64, Option<Content>)>,
}

impl BlockCache {
    pub(super) fn get(&mut self, reader: &Reader, seq: u64) -> Result<Option<(u64, &Content)>, Error> {
        let hit = self.last.as_ref().is_some_and(|(first, end, _)| (*first..*end).contains(&seq));
        if !hit {
            let Some(block) = reader.block_at(seq)? else { return Ok(None) };
            self.last = Some((block.commitments.first_seq, block.commitments.end_seq(), block.content));
        }
        Ok(self.last.as_ref().and_then(|(first, _, content)| content.as_ref().map(|c| (*first, c))))
    }
}
