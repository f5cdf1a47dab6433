//! CBOR (RFC 8949), as much of it as tokens use: definite lengths, up to a depth and a count.
//! Whatever else there is, or is cut, or follows, is no token.

use serde_json::{Number, Value as Json};

/// How deep items may be nested.
const DEPTH_MAX: usize = 16;

/// How many items there may be.
const ITEMS_MAX: usize = 8192;

/// One item.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    /// Of either sign.
    Int(i64),
    /// A byte string.
    Bytes(Vec<u8>),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Self>),
    /// Pairs in their order.
    Map(Vec<(Self, Self)>),
    /// A truth value.
    Flag(bool),
    /// A number with a fraction.
    Float(f64),
    /// null and undefined.
    Null,
}

/// The one item that these bytes are.
pub(super) fn read(bytes: &[u8]) -> Option<Item> {
    let mut reader = Reader { rest: bytes, items: 0 };
    let item = reader.item(DEPTH_MAX)?;
    reader.rest.is_empty().then_some(item)
}

struct Reader<'a> {
    rest: &'a [u8],
    items: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    /// The argument of an initial byte (section 3); indefinite lengths are refused.
    fn argument(&mut self, low: u8) -> Option<u64> {
        let length = match low {
            0..=23 => return Some(u64::from(low)),
            24 => 1,
            25 => 2,
            26 => 4,
            27 => 8,
            _ => return None,
        };
        Some(self.take(length)?.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte)))
    }

    fn item(&mut self, depth: usize) -> Option<Item> {
        self.items += 1;
        if depth == 0 || self.items > ITEMS_MAX {
            return None;
        }
        let [first] = self.take(1)? else { return None };
        let (major, low) = (first >> 5, first & 31);
        if major == 7 {
            return self.simple(low);
        }
        let argument = self.argument(low)?;
        let length = usize::try_from(argument).ok();
        Some(match major {
            0 => Item::Int(i64::try_from(argument).ok()?),
            1 => Item::Int(-1 - i64::try_from(argument).ok()?),
            2 => Item::Bytes(self.take(length?)?.to_vec()),
            3 => Item::Text(std::str::from_utf8(self.take(length?)?).ok()?.to_owned()),
            // As many as there are, and never room for as many as are promised.
            4 => Item::List((0..length?).map(|_| self.item(depth - 1)).collect::<Option<_>>()?),
            5 => Item::Map(
                (0..length?).map(|_| Some((self.item(depth - 1)?, self.item(depth - 1)?))).collect::<Option<_>>()?,
            ),
            // What a tag says of its item is not needed: links of DAG-CBOR are bytes.
            _ => return self.item(depth - 1),
        })
    }

    fn simple(&mut self, low: u8) -> Option<Item> {
        Some(match low {
            20 => Item::Flag(false),
            21 => Item::Flag(true),
            22 | 23 => Item::Null,
            25 => Item::Float(half(u16::from_be_bytes(self.take(2)?.try_into().ok()?))),
            26 => Item::Float(f64::from(f32::from_be_bytes(self.take(4)?.try_into().ok()?))),
            27 => Item::Float(f64::from_be_bytes(self.take(8)?.try_into().ok()?)),
            _ => return None,
        })
    }
}

/// A half-precision number (RFC 8949, appendix D).
fn half(bits: u16) -> f64 {
    let (exponent, mantissa) = (i32::from((bits >> 10) & 31), f64::from(bits & 1023));
    let size = match exponent {
        0 => mantissa * 2f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (mantissa + 1024.0) * 2f64.powi(exponent - 25),
    };
    if bits & 0x8000 == 0 { size } else { -size }
}

impl Item {
    /// The value of a key of a map.
    pub(super) fn get(&self, key: &Self) -> Option<&Self> {
        let Self::Map(pairs) = self else { return None };
        pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The value of a key that is a text.
    pub(super) fn at(&self, key: &str) -> Option<&Self> {
        let Self::Map(pairs) = self else { return None };
        pairs.iter().find(|(name, _)| matches!(name, Self::Text(text) if text == key)).map(|(_, value)| value)
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    pub(super) fn int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Some(bytes.clone()),
            // A digest as a list of numbers, as serde writes arrays of bytes.
            Self::List(items) => items.iter().map(|item| u8::try_from(item.int()?).ok()).collect(),
            _ => None,
        }
    }

    /// As JSON; bytes in hex.
    pub(super) fn json(&self) -> Json {
        match self {
            Self::Int(number) => Json::from(*number),
            Self::Bytes(bytes) => Json::from(const_hex::encode(bytes)),
            Self::Text(text) => Json::from(text.as_str()),
            Self::List(items) => items.iter().map(Self::json).collect(),
            Self::Map(pairs) => pairs
                .iter()
                .map(|(key, value)| match key {
                    Self::Text(text) => (text.clone(), value.json()),
                    other => (other.json().to_string(), value.json()),
                })
                .collect::<serde_json::Map<_, _>>()
                .into(),
            Self::Flag(flag) => Json::from(*flag),
            Self::Float(number) => Number::from_f64(*number).map_or(Json::Null, Json::Number),
            Self::Null => Json::Null,
        }
    }
}
