//! The fields of one message, one after the other: keys, numbers and stretches of bytes, taken or
//! refused as prost takes or refuses them.

use crate::scan::{FIXED32, FIXED64, GROUP, GROUP_END, LENGTH, VARINT};

/// The bytes are not what they are read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not a message of its type")
    }
}

impl std::error::Error for Malformed {}

/// How many levels of messages may be in one another, as protobuf parsers have it.
const DEPTH_MAX: u32 = 100;

/// What stands before a field: its number and how it is encoded.
#[derive(Clone, Copy)]
pub(super) struct Key {
    pub(super) number: u32,
    wire: u8,
}

impl Key {
    #[inline]
    fn is(self, wire: u8) -> Result<(), Malformed> {
        if self.wire == wire { Ok(()) } else { Err(Malformed) }
    }
}

/// What is left of a message.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    /// How many levels of messages may follow.
    depth: u32,
}

impl<'a> Fields<'a> {
    /// Of a message that stands by itself.
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, depth: DEPTH_MAX }
    }

    /// The next field's key, or `None` at the end.
    #[inline]
    pub(super) fn key(&mut self) -> Result<Option<Key>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let value = u32::try_from(self.number()?).map_err(|_| Malformed)?;
        let key = Key { number: value >> 3, wire: (value & 7) as u8 };
        if key.number == 0 || key.wire > FIXED32 { Err(Malformed) } else { Ok(Some(key)) }
    }

    /// Nearly all numbers (keys, lengths) have one byte.
    #[inline]
    fn number(&mut self) -> Result<u64, Malformed> {
        match self.rest {
            [byte, rest @ ..] if *byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(*byte))
            }
            _ => self.long_number(),
        }
    }

    fn long_number(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for (place, &byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                // The tenth byte has room for one bit.
                if place == 9 && byte > 1 {
                    return Err(Malformed);
                }
                self.rest = &self.rest[place + 1..];
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    #[inline]
    fn take(&mut self, len: u64) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(len).map_err(|_| Malformed)?;
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// A varint.
    #[inline]
    pub(super) fn varint(&mut self, key: Key) -> Result<u64, Malformed> {
        key.is(VARINT)?;
        self.number()
    }

    #[inline]
    pub(super) fn fixed64(&mut self, key: Key) -> Result<u64, Malformed> {
        key.is(FIXED64)?;
        self.array().map(u64::from_le_bytes)
    }

    #[inline]
    pub(super) fn fixed32(&mut self, key: Key) -> Result<u32, Malformed> {
        key.is(FIXED32)?;
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    pub(super) fn bytes(&mut self, key: Key) -> Result<&'a [u8], Malformed> {
        key.is(LENGTH)?;
        let len = self.number()?;
        self.take(len)
    }

    /// UTF-8.
    #[inline]
    pub(super) fn text(&mut self, key: Key) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes(key)?).map_err(|_| Malformed)
    }

    /// A message within this one.
    #[inline]
    pub(super) fn message(&mut self, key: Key) -> Result<Self, Malformed> {
        let depth = self.depth.checked_sub(1).ok_or(Malformed)?;
        Ok(Self { rest: self.bytes(key)?, depth })
    }

    /// Skips a field that is not known.
    pub(super) fn skip(&mut self, key: Key) -> Result<(), Malformed> {
        self.skip_within(key, self.depth)
    }

    fn skip_within(&mut self, key: Key, depth: u32) -> Result<(), Malformed> {
        let depth = depth.checked_sub(1).ok_or(Malformed)?;
        match key.wire {
            VARINT => self.number().map(drop),
            FIXED64 => self.take(8).map(drop),
            FIXED32 => self.take(4).map(drop),
            LENGTH => self.bytes(key).map(drop),
            GROUP => loop {
                let inner = self.key()?.ok_or(Malformed)?;
                if inner.wire == GROUP_END {
                    return if inner.number == key.number { Ok(()) } else { Err(Malformed) };
                }
                self.skip_within(inner, depth)?;
            },
            _ => Err(Malformed),
        }
    }
}
