//! Rewriting text inside a request: one pass over its wire bytes that finds every
//! text, asks an [`Editor`] what shall stand there, and copies all else as it is.
//!
//! Nothing is decoded and encoded again: only what is replaced changes, and the
//! lengths of the messages around it. Fields that OTLP does not name stay byte for
//! byte. What no editor changes gives no new bytes at all.
//!
//! The request is one that [`crate::scan`] took. Bytes that it would not take give
//! an error or are left alone, never a panic.

use std::ops::Range;

use crate::scan::LENGTH;
use crate::schema::{self, Kind, Message};
use crate::{Invalid, Limits, Signal};

/// Of a longer path the editor sees the end: what it does with a path must not
/// cost more for each of a million values below one long key.
const PATH_BYTES_MAX: usize = 1024;

/// Where a text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At<'a> {
    /// The record it is in, counted from 0 in the request's order; `None` in what
    /// several share (resource, scope, schema URLs).
    pub record: Option<usize>,
    /// The message it belongs to, such as `Span` or `Resource`.
    pub message: &'static str,
    /// The field of that message, such as `name` or `attributes`.
    pub field: &'static str,
    /// The key of the attribute, with the keys of nested lists behind dots; empty
    /// outside of attributes.
    pub path: &'a str,
}

/// The value of an attribute, before anything in it is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Value<'a> {
    /// The bytes of the `AnyValue`.
    pub wire: &'a [u8],
    /// The text, if it is a string and nothing else.
    pub text: Option<&'a str>,
}

/// Says what shall stand where.
pub trait Editor {
    /// The text that replaces the whole value of an attribute, whatever its type.
    fn value(&mut self, at: &At<'_>, value: Value<'_>) -> Option<String>;

    /// What replaces a text, or the bytes of a `bytesValue` (then `is_text` is false).
    /// What replaces a text must be UTF-8.
    fn text(&mut self, at: &At<'_>, text: &[u8], is_text: bool) -> Option<Vec<u8>>;
}

/// Rewrites a request. `None` if the editor changes nothing; an error if it is not
/// well-formed, or would become larger than the limit.
pub fn rewrite(
    signal: Signal,
    request: &[u8],
    limits: &Limits,
    editor: &mut impl Editor,
) -> Result<Option<Vec<u8>>, Invalid> {
    let mut pass =
        Pass { request, limits, editor, edits: vec![], path: String::new(), records: 0, size: request.len() };
    let spot = Spot { record: None, message: "", field: "" };
    pass.message(0..request.len(), schema::request(signal), spot, limits.depth_max)?;
    if pass.edits.is_empty() {
        return Ok(None);
    }
    let mut out = Vec::with_capacity(pass.size + 8 * pass.edits.len().min(1 << 16));
    let mut copied = 0;
    for edit in &pass.edits {
        let new: &[u8] = match &edit.new {
            New::Same => continue,
            New::Length(len) => {
                out.extend_from_slice(&request[copied..edit.range.start]);
                put_varint(&mut out, *len);
                copied = edit.range.end;
                continue;
            }
            New::Bytes(bytes) => bytes,
        };
        out.extend_from_slice(&request[copied..edit.range.start]);
        out.extend_from_slice(new);
        copied = edit.range.end;
    }
    out.extend_from_slice(&request[copied..]);
    Ok(Some(out))
}

/// What stands instead of a range of the request. Edits are in the request's order.
struct Edit {
    range: Range<usize>,
    new: New,
}

enum New {
    /// The length in front of a message whose content changed, and its length not.
    Same,
    Length(u64),
    Bytes(Vec<u8>),
}

/// [`At`], without the path.
#[derive(Clone, Copy)]
struct Spot {
    record: Option<usize>,
    message: &'static str,
    field: &'static str,
}

struct Pass<'a, E> {
    request: &'a [u8],
    limits: &'a Limits,
    editor: &'a mut E,
    edits: Vec<Edit>,
    path: String,
    records: usize,
    /// How large the request becomes, without what its lengths grow by.
    size: usize,
}

impl<'a, E: Editor> Pass<'a, E> {
    /// Edits what is in a message; gives by how much it grows.
    fn message(
        &mut self,
        range: Range<usize>,
        message: &'static Message,
        spot: Spot,
        depth: usize,
    ) -> Result<i64, Invalid> {
        let mut grown = 0;
        let mut fields = Fields { bytes: self.request, at: range.start, end: range.end };
        while let Some(field) = fields.next()? {
            let Some(known) =
                u32::try_from(field.number).ok().and_then(|n| message.field(n)).filter(|_| field.wire == LENGTH)
            else {
                continue;
            };
            let spot = if is_value(message) { spot } else { Spot { message: message.name, field: known.name, ..spot } };
            grown += match known.kind {
                _ if names_attributes(message, known.name) => 0,
                Kind::Message(inner) => self.nested(&field, inner, spot, depth)?,
                Kind::Text | Kind::Bytes => self.text(&field, matches!(known.kind, Kind::Text), spot)?,
                _ => 0,
            };
        }
        Ok(grown)
    }

    /// A field that holds a message: its length is written anew if the message grows.
    fn nested(&mut self, field: &Field, inner: &'static Message, mut spot: Spot, depth: usize) -> Result<i64, Invalid> {
        let depth = depth.checked_sub(1).ok_or_else(broken)?;
        if is_record(inner) {
            spot.record = Some(self.records);
            self.records += 1;
        }
        let slot = self.edits.len();
        self.edits.push(Edit { range: field.prefix.clone(), new: New::Same });
        let grown = if std::ptr::eq(inner, &schema::KEY_VALUE) {
            self.key_value(field.body.clone(), spot, depth)?
        } else {
            self.message(field.body.clone(), inner, spot, depth)?
        };
        if self.edits.len() == slot + 1 {
            self.edits.pop();
        }
        if grown == 0 {
            return Ok(0);
        }
        let len = (field.body.len() as i64 + grown) as u64;
        self.edits[slot].new = New::Length(len);
        Ok(grown + varint_len(len) as i64 - field.prefix.len() as i64)
    }

    /// An attribute. Its key may stand behind its value, or come twice: the last one counts.
    fn key_value(&mut self, range: Range<usize>, spot: Spot, depth: usize) -> Result<i64, Invalid> {
        let mut key: &[u8] = &[];
        let mut fields = Fields { bytes: self.request, at: range.start, end: range.end };
        while let Some(field) = fields.next()? {
            if field.number == 1 && field.wire == LENGTH {
                key = &self.request[field.body];
            }
        }
        let above = self.path.len();
        if above > 0 {
            self.path.push('.');
        }
        self.path.push_str(std::str::from_utf8(key).map_err(|_| broken())?);
        let grown = self.values(range, spot, depth);
        self.path.truncate(above);
        grown
    }

    fn values(&mut self, range: Range<usize>, spot: Spot, depth: usize) -> Result<i64, Invalid> {
        let mut grown = 0;
        let mut fields = Fields { bytes: self.request, at: range.start, end: range.end };
        while let Some(field) = fields.next()? {
            if field.number != 2 || field.wire != LENGTH || field.body.is_empty() {
                continue;
            }
            let wire = &self.request[field.body.clone()];
            let at = at(spot, &self.path);
            grown += match self.editor.value(&at, Value { wire, text: only_text(wire) }) {
                Some(text) => {
                    let mut value = vec![0x0a];
                    put_varint(&mut value, text.len() as u64);
                    value.extend_from_slice(text.as_bytes());
                    self.replace(&field, value)?
                }
                None => self.nested(&field, &schema::ANY_VALUE, spot, depth)?,
            };
        }
        Ok(grown)
    }

    fn text(&mut self, field: &Field, is_text: bool, spot: Spot) -> Result<i64, Invalid> {
        let at = at(spot, &self.path);
        match self.editor.text(&at, &self.request[field.body.clone()], is_text) {
            Some(new) => self.replace(field, new),
            None => Ok(0),
        }
    }

    fn replace(&mut self, field: &Field, new: Vec<u8>) -> Result<i64, Invalid> {
        let len = new.len();
        let grown = len as i64 - field.body.len() as i64;
        self.size = (self.size as i64 + grown) as usize;
        if self.size > self.limits.body_bytes_max {
            return Err(Invalid::new(format!(
                "with what the redaction rules put in, the request is larger than the limit of {} bytes; send smaller \
                 batches",
                self.limits.body_bytes_max
            )));
        }
        let prefix = if grown == 0 { New::Same } else { New::Length(len as u64) };
        let prefix_len = if grown == 0 { field.prefix.len() } else { varint_len(len as u64) };
        self.edits.push(Edit { range: field.prefix.clone(), new: prefix });
        self.edits.push(Edit { range: field.body.clone(), new: New::Bytes(new) });
        Ok(grown + prefix_len as i64 - field.prefix.len() as i64)
    }
}

fn at(spot: Spot, path: &str) -> At<'_> {
    let mut from = path.len().saturating_sub(PATH_BYTES_MAX);
    while !path.is_char_boundary(from) {
        from += 1;
    }
    At { record: spot.record, message: spot.message, field: spot.field, path: &path[from..] }
}

/// The messages that make up the value of an attribute or a body.
fn is_value(message: &'static Message) -> bool {
    let values = [&schema::ANY_VALUE, &schema::KEY_VALUE, &schema::KEY_VALUE_LIST, &schema::ARRAY_VALUE];
    values.iter().any(|value| std::ptr::eq(*value, message))
}

/// Fields that hold keys of the resource's attributes: to change one would make it name nothing.
fn names_attributes(message: &'static Message, field: &str) -> bool {
    std::ptr::eq(message, &schema::ENTITY_REF) && matches!(field, "idKeys" | "descriptionKeys")
}

fn is_record(message: &'static Message) -> bool {
    [&schema::SPAN, &schema::LOG_RECORD, &schema::METRIC].iter().any(|record| std::ptr::eq(*record, message))
}

/// The text of an `AnyValue` that holds a string and nothing else.
fn only_text(wire: &[u8]) -> Option<&str> {
    let mut fields = Fields { bytes: wire, at: 0, end: wire.len() };
    let field = fields.next().ok()??;
    let alone = field.number == 1 && field.wire == LENGTH && field.body.end == wire.len();
    alone.then(|| std::str::from_utf8(&wire[field.body]).ok()).flatten()
}

/// One field on the wire. Only a field of wire type [`LENGTH`] has a prefix.
struct Field {
    number: u64,
    wire: u8,
    /// Where its length stands.
    prefix: Range<usize>,
    body: Range<usize>,
}

/// The fields of a message, one after the other.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

impl Fields<'_> {
    fn next(&mut self) -> Result<Option<Field>, Invalid> {
        if self.at >= self.end {
            return Ok(None);
        }
        let key = self.varint()?;
        let (number, wire) = (key >> 3, (key & 7) as u8);
        let prefix = self.at;
        let body = self.body(wire)?;
        // A group is skipped with all that is in it. Groups in groups only count.
        let mut open = u32::from(wire == 3);
        while open > 0 {
            let wire = (self.varint()? & 7) as u8;
            match wire {
                3 => open += 1,
                4 => open -= 1,
                _ => {
                    self.body(wire)?;
                }
            }
        }
        Ok(Some(Field { number, wire, prefix: prefix..body.start, body }))
    }

    /// What follows a key, but for a group.
    fn body(&mut self, wire: u8) -> Result<Range<usize>, Invalid> {
        let len = match wire {
            0 => {
                let from = self.at;
                self.varint()?;
                return Ok(from..self.at);
            }
            1 => 8,
            LENGTH => self.varint()?,
            3 => 0,
            5 => 4,
            _ => return Err(broken()),
        };
        if len > (self.end - self.at) as u64 {
            return Err(broken());
        }
        let from = self.at;
        self.at += len as usize;
        Ok(from..self.at)
    }

    fn varint(&mut self) -> Result<u64, Invalid> {
        let mut value = 0u64;
        for shift in 0..10 {
            let byte = *self.bytes[..self.end].get(self.at).ok_or_else(broken)?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << (7 * shift);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(broken())
    }
}

fn broken() -> Invalid {
    Invalid::new("not a valid OTLP request: it cannot be read for redaction; check that the exporter speaks OTLP")
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;
