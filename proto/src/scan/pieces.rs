//! Messages that come in pieces, which protobuf merges.

use super::Range;

/// No encoder makes more pieces of one message than one; hostile ones cost memory.
pub(super) const PIECES_MAX: usize = 1000;

/// The occurrences of a message field, to be merged as protobuf merges them.
#[derive(Default)]
pub(super) struct Pieces {
    first: Option<Range>,
    more: Vec<Range>,
}

impl Pieces {
    pub(super) fn add(&mut self, range: Range) -> Result<(), &'static str> {
        if self.first.is_none() {
            self.first = Some(range);
        } else if self.more.len() == PIECES_MAX {
            return Err("begins one more piece of a message that is in a thousand pieces");
        } else {
            self.more.push(range);
        }
        Ok(())
    }

    pub(super) fn join(self, request: &[u8], annex: &mut Vec<u8>) -> Range {
        let Some(first) = self.first else { return Range::default() };
        if self.more.is_empty() {
            return first;
        }
        let at = request.len() + annex.len();
        for piece in std::iter::once(first).chain(self.more) {
            annex.extend_from_slice(&request[piece.at as usize..(piece.at + piece.len) as usize]);
        }
        Range { at: at as u32, len: (request.len() + annex.len() - at) as u32 }
    }
}
