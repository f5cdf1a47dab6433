//! Macaroons (libmacaroons' formats 1 and 2): identifier, place, caveats. Caveats only restrict;
//! what one means is its service's affair, but for a time in the two spellings in use.
//!
//! A macaroon that was restricted further has the identifier of the one before: both are one grant.

use super::Capability;
use crate::attributes::parse_time;

/// How many caveats are read.
const CAVEATS_MAX: usize = 256;

#[derive(Default)]
struct Macaroon {
    location: Option<String>,
    identifier: Option<String>,
    caveats: Vec<String>,
    is_signed: bool,
}

/// What a macaroon says; `None` if these bytes are none.
pub(super) fn read(bytes: &[u8]) -> Option<Capability> {
    let read = packets(bytes).or_else(|| binary(bytes))?;
    let end = read.caveats.iter().filter_map(|caveat| until(caveat)).min();
    (read.is_signed && read.identifier.is_some()).then(|| Capability {
        format: "macaroon",
        id: read.identifier,
        issuer: read.location,
        expires_at: end,
        caveats: read.caveats,
        ..Capability::default()
    })
}

/// `time < 2026-11-20T09:00:00Z` and the bakery's `time-before ...`.
fn until(caveat: &str) -> Option<i64> {
    let time = caveat.strip_prefix("time-before ").or_else(|| caveat.strip_prefix("time < "))?;
    parse_time(time.trim()).map(|time| time.0 / 1_000_000_000)
}

/// Format 1: packets of four hex digits for their length, a key, a blank, a value, a line feed.
fn packets(mut bytes: &[u8]) -> Option<Macaroon> {
    let mut out = Macaroon::default();
    while !bytes.is_empty() {
        let digits = std::str::from_utf8(bytes.get(..4)?).ok()?;
        let length = usize::from_str_radix(digits, 16).ok().filter(|length| *length > 5)?;
        let (packet, rest) = bytes.split_at_checked(length)?;
        bytes = rest;
        let packet = packet.get(4..)?.strip_suffix(b"\n")?;
        let at = packet.iter().position(|byte| *byte == b' ')?;
        let (key, value) = (packet.get(..at)?, packet.get(at + 1..)?);
        out.take(key, value)?;
    }
    Some(out)
}

impl Macaroon {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let text = || std::str::from_utf8(value).ok().map(str::to_owned);
        match key {
            b"location" => self.location = text(),
            b"identifier" => self.identifier = text().or_else(|| Some(const_hex::encode(value))),
            b"cid" if self.caveats.len() < CAVEATS_MAX => {
                self.caveats.push(text().unwrap_or_else(|| const_hex::encode(value)));
            }
            b"signature" => self.is_signed = value.len() == 32,
            b"cid" | b"vid" | b"cl" => {}
            _ => return None,
        }
        Some(())
    }
}

/// Format 2: sections of fields (type, length, data), each section ended by a zero.
fn binary(bytes: &[u8]) -> Option<Macaroon> {
    let mut rest = bytes.strip_prefix(&[2])?;
    let mut out = Macaroon::default();
    // The macaroon's own section, caveats until an empty one, and the signature.
    section(&mut rest, |kind, data| match kind {
        1 => out.take(b"location", data),
        2 => out.take(b"identifier", data),
        _ => None,
    })?;
    loop {
        let mut has_fields = false;
        section(&mut rest, |kind, data| {
            has_fields = true;
            match kind {
                2 => out.take(b"cid", data),
                1 | 4 => Some(()),
                _ => None,
            }
        })?;
        if !has_fields {
            break;
        }
    }
    let data = field(&mut rest, 6)?;
    out.take(b"signature", data)?;
    rest.is_empty().then_some(out)
}

fn section<'a>(rest: &mut &'a [u8], mut each: impl FnMut(u8, &'a [u8]) -> Option<()>) -> Option<()> {
    loop {
        let kind = *rest.first()?;
        if kind == 0 {
            *rest = rest.get(1..)?;
            return Some(());
        }
        let data = field(rest, kind)?;
        each(kind, data)?;
    }
}

fn field<'a>(rest: &mut &'a [u8], kind: u8) -> Option<&'a [u8]> {
    let mut at = rest.strip_prefix(&[kind])?;
    let mut length = 0usize;
    for shift in [0, 7, 14] {
        let (first, next) = at.split_first()?;
        at = next;
        length |= usize::from(first & 127) << shift;
        if first & 128 == 0 {
            let (data, after) = at.split_at_checked(length)?;
            *rest = after;
            return Some(data);
        }
    }
    None
}
