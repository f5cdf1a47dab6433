//! Protobuf by hand, with places that are filled in later.
//!
//! A piece is the encoding of (part of) a message together with the offsets of
//! its fixed-width holes. What goes into a hole changes no length, so a request is
//! encoded once and each use of it is a copy and a handful of stores.

/// What fills a hole. Slots and traces are those of the record's cycle (story.rs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hole {
    /// 16 bytes: the id of a trace.
    TraceId(u8),
    /// 8 bytes: the id of the span in a slot.
    SpanId(u8),
    /// 8 bytes, little-endian: a time, in ns after the cycle's.
    Time(u64),
    /// 16 hex digits that name a trace, in the ids of its grants.
    TraceHex(u8),
    /// 16 hex digits that name a trace's conversation.
    ConversationHex(u8),
    /// 16 hex digits that name the span in a slot, in the id of its tool call.
    SpanHex(u8),
    /// 15 decimal digits: the record's own number.
    Record,
    /// 16 hex digits that come up nowhere else.
    Noise,
}

impl Hole {
    /// How many bytes it takes.
    pub fn width(self) -> usize {
        match self {
            Self::TraceId(_) | Self::TraceHex(_) | Self::ConversationHex(_) | Self::SpanHex(_) | Self::Noise => 16,
            Self::SpanId(_) | Self::Time(_) => 8,
            Self::Record => 15,
        }
    }
}

/// Encoded bytes, and where their holes are.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    pub bytes: Vec<u8>,
    pub holes: Vec<(usize, Hole)>,
}

/// How many bytes a number takes as a varint.
pub fn varint_len(number: usize) -> usize {
    (usize::BITS - (number | 1).leading_zeros()).div_ceil(7) as usize
}

impl Piece {
    /// A text.
    pub fn of(text: &str) -> Self {
        Self { bytes: text.as_bytes().to_vec(), holes: Vec::new() }
    }

    /// The same with a hole behind.
    pub fn with(mut self, hole: Hole) -> Self {
        self.hole(hole);
        self
    }

    /// The same with a text behind.
    pub fn and(mut self, text: &str) -> Self {
        self.bytes.extend_from_slice(text.as_bytes());
        self
    }

    /// Puts a hole behind.
    pub fn hole(&mut self, hole: Hole) {
        self.holes.push((self.bytes.len(), hole));
        self.bytes.resize(self.bytes.len() + hole.width(), b'0');
    }

    /// Puts another piece behind.
    pub fn append(&mut self, other: &Self) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&other.bytes);
        self.holes.extend(other.holes.iter().map(|(offset, hole)| (at + offset, *hole)));
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    /// A field of wire type 0.
    pub fn number(&mut self, field: u32, number: u64) {
        self.varint(u64::from(field << 3));
        self.varint(number);
    }

    /// A field of wire type 1 that is a hole.
    pub fn fixed64(&mut self, field: u32, hole: Hole) {
        self.varint(u64::from(field << 3 | 1));
        self.hole(hole);
    }

    /// A field of wire type 2: a message, a text or bytes.
    pub fn field(&mut self, field: u32, content: &Self) {
        self.varint(u64::from(field << 3 | 2));
        self.varint(content.bytes.len() as u64);
        self.append(content);
    }

    /// An attribute (`KeyValue`) whose value is a text.
    pub fn attribute(&mut self, field: u32, key: &str, text: &Self) {
        let mut value = Self::default();
        value.field(1, text);
        self.key_value(field, key, &value);
    }

    /// An attribute whose value is a number.
    pub fn attribute_number(&mut self, field: u32, key: &str, number: u64) {
        let mut value = Self::default();
        value.number(3, number);
        self.key_value(field, key, &value);
    }

    /// An attribute whose value is a list of texts.
    pub fn attribute_list(&mut self, field: u32, key: &str, texts: &[&str]) {
        let mut list = Self::default();
        for text in texts {
            let mut value = Self::default();
            value.field(1, &Self::of(text));
            list.field(1, &value);
        }
        let mut value = Self::default();
        value.field(5, &list);
        self.key_value(field, key, &value);
    }

    fn key_value(&mut self, field: u32, key: &str, value: &Self) {
        let mut pair = Self::default();
        pair.field(1, &Self::of(key));
        pair.field(2, value);
        self.field(field, &pair);
    }
}

/// What an attribute of a field below 16 takes, for a key and a text of these lengths.
pub fn attribute_len(key: usize, text: usize) -> usize {
    let of = |len: usize| 1 + varint_len(len) + len;
    of(of(key) + of(of(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_the_encoding() {
        for len in [0, 1, 90, 100, 118, 119, 120, 127, 128, 200, 16_000, 16_383, 16_384, 70_000] {
            let mut piece = Piece::default();
            piece.attribute(9, "a.key", &Piece::of(&"x".repeat(len)));
            assert_eq!(piece.bytes.len(), attribute_len(5, len), "{len}");
        }
    }

    #[test]
    fn holes_move_with_what_is_around_them() {
        let mut inner = Piece::of("id ").with(Hole::Noise).and(" end");
        inner.hole(Hole::SpanId(3));
        let mut outer = Piece::default();
        outer.number(1, 300);
        outer.field(2, &inner);
        let at = outer.bytes.len() - inner.bytes.len();
        assert_eq!(outer.holes, [(at + 3, Hole::Noise), (at + 23, Hole::SpanId(3))]);
    }
}
