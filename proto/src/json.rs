//! OTLP/JSON to OTLP/protobuf, once, at the door.
//!
//! The rules are those of the OTLP specification, section "JSON Protobuf
//! Encoding": ids are hex in either case, enums are integers, 64-bit integers
//! are strings or numbers, `bytesValue` is base64, unknown fields are ignored.
//! As in protobuf's own JSON mapping, `null` stands for an absent field and is no
//! element of a list, a field comes once, and of alternatives (`oneof`) one.
//! Names in snake_case are not valid for senders; they are read all the same, as the
//! Collector does: to ignore them would lose evidence and call that a success.
//! Halves of surrogate pairs are read as U+FFFD, as the Collector does (`halves.rs`).

mod halves;

use std::fmt;

use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, Engine as _};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::schema::{self, Field, Kind, Message, Varint};
use crate::{Invalid, Limits, Signal};

/// Transcodes a JSON request to the protobuf encoding. The error names the line,
/// the column and the field.
pub fn transcode(signal: Signal, json: &[u8]) -> Result<Vec<u8>, Invalid> {
    transcode_within(signal, json, Limits::default().body_bytes_max)
}

/// As [`transcode`]. What would be more than `max` bytes is not made: two characters
/// of JSON can be nine bytes of protobuf.
pub fn transcode_within(signal: Signal, json: &[u8], max: usize) -> Result<Vec<u8>, Invalid> {
    let mut out = Vec::with_capacity(json.len().min(max) / 2);
    let text = std::str::from_utf8(json)
        .map_err(|e| Invalid::new(format!("not valid OTLP/JSON: it is not UTF-8 from byte {} on", e.valid_up_to())))?;
    let text = halves::replaced(text);
    let mut reader = serde_json::Deserializer::from_str(&text);
    let seed = MessageSeed { message: schema::request(signal), out: &mut out, max };
    seed.deserialize(&mut reader)
        .and_then(|()| reader.end())
        .map_err(|e| Invalid::new(format!("not valid OTLP/JSON: {e}")))?;
    Ok(out)
}

/// Reads one JSON object as a message and appends its fields to `out`.
struct MessageSeed<'a> {
    message: &'static Message,
    out: &'a mut Vec<u8>,
    max: usize,
}

/// Refuses more than `max` bytes. Called after each field, so that what was made
/// is larger by one scalar at most, whose text is in the request.
fn within<E: serde::de::Error>(out: &[u8], max: usize) -> Result<(), E> {
    if out.len() <= max {
        return Ok(());
    }
    Err(E::custom(format!("it is more than {max} bytes as protobuf (--request-bytes-max); send smaller batches")))
}

impl<'de> DeserializeSeed<'de> for MessageSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MessageSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object ({})", self.message.name)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = 0u32;
        while let Some(name) = map.next_key::<String>()? {
            let own = self.message.field_named(&name);
            let Some(field) = own.or_else(|| self.message.fields.iter().find(|f| is_snake(f.name, &name))) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if !map.next_value_seed(FieldSeed { field, in_list: false, out: self.out, max: self.max })? {
                continue;
            }
            if seen & self.message.alternatives_of(field) != 0 {
                return Err(serde::de::Error::custom(format!(
                    "{} has {} more than once, or beside what it excludes",
                    self.message.name, field.name
                )));
            }
            seen |= 1 << field.number;
            within(self.out, self.max)?;
        }
        Ok(())
    }
}

/// Whether a name is a field's in snake_case, as the .proto files have it.
fn is_snake(camel: &str, name: &str) -> bool {
    let mut rest = name.chars();
    for c in camel.chars() {
        let same = match c.is_ascii_uppercase() {
            true => rest.next() == Some('_') && rest.next() == Some(c.to_ascii_lowercase()),
            false => rest.next() == Some(c),
        };
        if !same {
            return false;
        }
    }
    rest.next().is_none()
}

/// Below this each whole number is a double of its own: 2^53, which 2^53 + 1 is read as, too.
const EXACT_END: f64 = 9_007_199_254_740_992.0;

/// Whether a list of this field is written as one run of bytes, as all encoders of proto3 write numbers: the
/// same request is then the same record, whichever way it comes.
fn is_packed(field: &Field) -> bool {
    field.repeated && !matches!(field.kind, Kind::Text | Kind::Bytes | Kind::Id | Kind::Message(_))
}

/// Base64 in either alphabet, with or without padding, as protobuf's mapping takes it.
fn base64(text: &str) -> Option<Vec<u8>> {
    const ANY: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, ANY);
    const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, ANY);
    STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).ok()
}

/// Reads the JSON value of one field (or one element of its list).
struct FieldSeed<'a> {
    field: &'static Field,
    in_list: bool,
    out: &'a mut Vec<u8>,
    max: usize,
}

/// Gives whether there was a value: `null` is none.
impl<'de> DeserializeSeed<'de> for FieldSeed<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl FieldSeed<'_> {
    /// Elements of a packed list have no key each.
    fn put_key(&mut self, wire: u8) {
        if !(self.in_list && is_packed(self.field)) {
            put_varint(self.out, u64::from(self.field.number) << 3 | u64::from(wire));
        }
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_key(2);
        put_varint(self.out, bytes.len() as u64);
        self.out.extend_from_slice(bytes);
    }

    fn wants_list<E: serde::de::Error>(&self) -> Result<(), E> {
        if self.field.repeated && !self.in_list {
            return Err(E::custom(format!("{} must be a list", self.field.name)));
        }
        Ok(())
    }

    fn put_int<E: serde::de::Error>(mut self, value: i128) -> Result<bool, E> {
        self.wants_list()?;
        let name = self.field.name;
        let range_error = || E::custom(format!("{name} is out of range"));
        match self.field.kind {
            Kind::Varint(kind) => {
                let (low, high) = match kind {
                    Varint::Bool => return Err(E::custom(format!("{name} must be true or false"))),
                    Varint::Int32 | Varint::Enum => (i128::from(i32::MIN), i128::from(i32::MAX)),
                    Varint::Int64 => (i128::from(i64::MIN), i128::from(i64::MAX)),
                    Varint::Uint32 => (0, i128::from(u32::MAX)),
                    Varint::Uint64 => (0, i128::from(u64::MAX)),
                };
                if value < low || value > high {
                    return Err(range_error());
                }
                self.put_key(0);
                put_varint(self.out, value as u64);
            }
            Kind::Sint => {
                let value = i32::try_from(value).map_err(|_| range_error())?;
                self.put_key(0);
                put_varint(self.out, u64::from((value << 1) as u32 ^ (value >> 31) as u32));
            }
            Kind::Fixed32 => {
                let value = u32::try_from(value).map_err(|_| range_error())?;
                self.put_key(5);
                self.out.extend_from_slice(&value.to_le_bytes());
            }
            Kind::Fixed64 { signed } => {
                let bits = if signed { i64::try_from(value).map(|v| v as u64) } else { u64::try_from(value) };
                let bits = bits.map_err(|_| range_error())?;
                self.put_key(1);
                self.out.extend_from_slice(&bits.to_le_bytes());
            }
            Kind::Double => return self.put_double(value as f64),
            Kind::Text | Kind::Bytes | Kind::Id => return Err(E::custom(format!("{name} must be a string"))),
            Kind::Message(_) => return Err(E::custom(format!("{name} must be an object"))),
        }
        Ok(true)
    }

    fn put_double<E: serde::de::Error>(mut self, value: f64) -> Result<bool, E> {
        self.wants_list()?;
        if matches!(self.field.kind, Kind::Double) {
            self.put_key(1);
            self.out.extend_from_slice(&value.to_le_bytes());
            return Ok(true);
        }
        let name = self.field.name;
        if value.fract() != 0.0 {
            return Err(E::custom(format!("{name} must be a whole number")));
        }
        // Which number was written cannot be told from its nearest double any more.
        if value.abs() >= EXACT_END {
            return Err(E::custom(format!(
                "{name} is out of range, or too large for a point or an exponent; write all its digits, as a string"
            )));
        }
        self.put_int(value as i128)
    }
}

impl<'de> Visitor<'de> for FieldSeed<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value for {}", self.field.name)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<bool, E> {
        if self.in_list {
            return Err(E::custom(format!("null is no element of {}", self.field.name)));
        }
        Ok(false)
    }

    fn visit_bool<E: serde::de::Error>(mut self, value: bool) -> Result<bool, E> {
        self.wants_list()?;
        if !matches!(self.field.kind, Kind::Varint(Varint::Bool)) {
            return Err(E::custom(format!("{} cannot be true or false", self.field.name)));
        }
        self.put_key(0);
        self.out.push(u8::from(value));
        Ok(true)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<bool, E> {
        self.put_int(value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<bool, E> {
        self.put_int(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<bool, E> {
        self.put_double(value)
    }

    fn visit_str<E: serde::de::Error>(mut self, value: &str) -> Result<bool, E> {
        self.wants_list()?;
        let name = self.field.name;
        match self.field.kind {
            Kind::Text => self.put_bytes(value.as_bytes()),
            Kind::Id => {
                let bytes = Some(value).filter(|v| !v.starts_with("0x")).and_then(|v| const_hex::decode(v).ok());
                let bytes = bytes
                    .ok_or_else(|| E::custom(format!("{name} must be hexadecimal, for example 5b8efff798038103")))?;
                self.put_bytes(&bytes);
            }
            Kind::Bytes => {
                let bytes = base64(value).ok_or_else(|| E::custom(format!("{name} must be base64")))?;
                self.put_bytes(&bytes);
            }
            Kind::Double => {
                let value = match value {
                    "NaN" => f64::NAN,
                    "Infinity" => f64::INFINITY,
                    "-Infinity" => f64::NEG_INFINITY,
                    // Rust reads more than protobuf's mapping has: "inf", "+1", an overflow as infinity.
                    text => text
                        .parse()
                        .ok()
                        .filter(|v: &f64| v.is_finite() && !text.starts_with('+'))
                        .ok_or_else(|| E::custom(format!("{name} must be a number")))?,
                };
                return self.put_double(value);
            }
            Kind::Varint(Varint::Enum) => {
                return Err(E::custom(format!("{name} must be the enum's integer; OTLP/JSON takes no enum names")));
            }
            Kind::Message(_) => return Err(E::custom(format!("{name} must be an object"))),
            _ => {
                let digits = value.strip_prefix('-').unwrap_or(value);
                let value = value.parse::<i128>().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
                return self.put_int(value.ok_or_else(|| E::custom(format!("{name} must be an integer")))?);
            }
        }
        Ok(true)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<bool, A::Error> {
        if !self.field.repeated || self.in_list {
            return Err(serde::de::Error::custom(format!("{} must not be a list", self.field.name)));
        }
        let (field, max) = (self.field, self.max);
        let mut packed = Vec::new();
        let out = if is_packed(field) { &mut packed } else { &mut *self.out };
        while seq.next_element_seed(FieldSeed { field, in_list: true, out, max })?.is_some() {
            within(out, max)?;
        }
        if !packed.is_empty() {
            self.put_bytes(&packed);
        }
        Ok(true)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, map: A) -> Result<bool, A::Error> {
        self.wants_list()?;
        let Kind::Message(message) = self.field.kind else {
            return Err(serde::de::Error::custom(format!("{} must not be an object", self.field.name)));
        };
        let mut inner = Vec::new();
        MessageSeed { message, out: &mut inner, max: self.max }.visit_map(map)?;
        self.put_bytes(&inner);
        Ok(true)
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests;
