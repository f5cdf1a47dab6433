//! Sheets: pages as bytes, as they go over the wire. A sheet is made once for all who ask for the same, and
//! sent from where it lies.
//!
//! It holds the bytes alone, or what they were compressed to: what the events were made from may be gone long
//! before a slow reader has taken his sheet.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use custody_store::Reader;
use hyper::body::{Frame, SizeHint};
use serde_json::Value as Json;

use super::coding::Coding;
use super::generated::Event;
use super::held::Held;
use super::lines::Line;
use super::marks::{Mark, Marks};
use super::packed::{self, Packed, Packing};
use super::page::Page;
use super::{Cursors, Position};
use crate::error::Error;

/// How the events of a page stand in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// A line an event.
    Lines,
    /// The members of a JSON array, with commas between; events that are no JSON are texts in it.
    Array { quoted: bool },
    /// Server-sent events with cursors as ids, whose reader knows of erasures up to `known`.
    Stream { cursors: Cursors, known: u64 },
    /// The field `events` of a `StreamEventsResponse`.
    Message,
}

/// Bytes of a part of a sheet, about; a part ends between events.
const PART_BYTES: usize = 256 << 10;

/// A page as bytes.
#[derive(Debug)]
pub(crate) struct Sheet {
    /// The first seq that was looked at.
    pub(crate) from: u64,
    /// Where the next one begins.
    pub(crate) next: u64,
    /// How many events it has.
    pub(crate) matched: usize,
    /// How many records gave no event in it.
    pub(crate) skipped: u64,
    /// Whether it has as many events, or bytes, as it may.
    pub(crate) full: bool,
    /// The mark of the place where the next one begins.
    pub(crate) mark: Mark,
    /// A digest of its bytes before they were compressed, if it has as many events as were asked for.
    pub(crate) tag: Option<String>,
    /// Its bytes, if they are not compressed.
    pub(crate) parts: Vec<Bytes>,
    pub(super) packed: Option<Packed>,
    /// How many it holds.
    pub(crate) bytes: usize,
    /// While it is somewhere, its bytes count.
    pub(super) _held: Option<Held>,
}

impl Sheet {
    /// Writes a page, and compresses it if that is worth it. It reads the log for the marks of cursors.
    pub(crate) fn make(
        reader: &Reader,
        page: &Page,
        (form, coding): (Form, Coding),
        held: Held,
    ) -> Result<Self, Error> {
        let mut marks = Marks::new(reader);
        let sheet = Self::written(reader.origin(), page, form, |seq| marks.at(seq))?;
        Ok(sheet.packed(coding)?.held(held))
    }

    /// With its bytes compressed, and no longer as they were.
    fn packed(self, coding: Coding) -> Result<Self, Error> {
        if coding == Coding::Identity || self.bytes < packed::BYTES_MIN {
            return Ok(self);
        }
        let packed = Packed::make(coding, self.parts.iter().map(|part| &part[..]))?;
        Ok(Self { parts: Vec::new(), bytes: packed.blocks.len(), packed: Some(packed), ..self })
    }

    /// How it is sent.
    pub(super) fn coding(&self) -> Coding {
        self.packed.as_ref().map_or(Coding::Identity, |packed| packed.coding)
    }

    fn held(self, mut held: Held) -> Self {
        held.settle(self.bytes);
        Self { _held: Some(held), ..self }
    }

    fn written(
        origin: &str,
        page: &Page,
        form: Form,
        mut mark_at: impl FnMut(u64) -> Result<Mark, Error>,
    ) -> Result<Self, Error> {
        let mut writer = Writer::new(page.bytes);
        for (i, line) in page.lines.iter().enumerate() {
            writer.begin();
            match form {
                Form::Lines => writer.put(&[line.text.as_bytes(), b"\n"]),
                Form::Array { quoted } => {
                    if i > 0 {
                        writer.put(&[b","]);
                    }
                    match quoted {
                        false => writer.put(&[line.text.as_bytes()]),
                        true => writer.put(&[Json::String(line.text.clone()).to_string().as_bytes()]),
                    }
                }
                Form::Stream { cursors, known } => {
                    writer.data(&line.text);
                    // The id of the last event of a record is the cursor behind it.
                    if page.lines.get(i + 1).is_none_or(|next| next.seq != line.seq) {
                        let position = Position { seq: line.seq + 1, known };
                        writer.id(&cursors.encode(position, mark_at(position.seq)?));
                    }
                    writer.put(&[b"\n"]);
                }
                Form::Message => writer.message(origin, line),
            }
        }
        let mark = mark_at(page.next)?;
        if let Form::Stream { cursors, known } = form
            && page.next > page.from
            && page.lines.last().is_none_or(|line| line.seq + 1 < page.next)
        {
            // No event, but a reader who comes back need not look through the same records again.
            writer.begin();
            writer.id(&cursors.encode(Position { seq: page.next, known }, mark));
            writer.put(&[b"\n"]);
        }
        let parts = writer.end();
        let bytes = parts.iter().map(Bytes::len).sum();
        let is_page = matches!(form, Form::Lines | Form::Array { .. });
        let tag = (is_page && page.is_complete()).then(|| digest(parts.iter().map(|part| &part[..])));
        Ok(Self { mark, tag, parts, bytes, ..Self::of(page) })
    }

    /// What a page has, and none of its bytes.
    pub(super) fn of(page: &Page) -> Self {
        Self {
            from: page.from,
            next: page.next,
            matched: page.lines.len(),
            skipped: page.skipped(),
            full: page.full,
            mark: Mark::default(),
            tag: None,
            parts: Vec::new(),
            packed: None,
            bytes: 0,
            _held: None,
        }
    }
}

/// A digest of texts that lie one behind the other, however they are cut.
pub(super) fn digest<'a>(parts: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().to_hex()[..24].to_owned()
}

/// Bytes in parts.
struct Writer {
    parts: Vec<Bytes>,
    part: Vec<u8>,
    /// Bytes that are still to come, about.
    left: usize,
}

impl Writer {
    fn new(bytes: usize) -> Self {
        Self { parts: Vec::new(), part: Vec::new(), left: bytes }
    }

    /// An event begins: in a new part, if this one is long.
    fn begin(&mut self) {
        if self.part.len() >= PART_BYTES {
            self.left = self.left.saturating_sub(self.part.len());
            self.parts.push(std::mem::take(&mut self.part).into());
        }
        if self.part.capacity() == 0 {
            self.part.reserve(self.left.min(PART_BYTES + PART_BYTES / 8));
        }
    }

    fn put(&mut self, texts: &[&[u8]]) {
        texts.iter().for_each(|text| self.part.extend_from_slice(text));
    }

    /// The field `data`; a text of several lines has one for each.
    fn data(&mut self, text: &str) {
        let mut rest = text.as_bytes();
        while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.put(&[b"data: ", &rest[..end], b"\n"]);
            rest = &rest[end + 1..];
        }
        self.put(&[b"data: ", rest, b"\n"]);
    }

    fn id(&mut self, cursor: &str) {
        self.put(&[b"id: ", cursor.as_bytes(), b"\n"]);
    }

    /// A member of `events` in a `StreamEventsResponse`.
    fn message(&mut self, origin: &str, line: &Line) {
        let event = Event { seq: line.seq, uid: line.uid(origin), body: line.text.clone() };
        prost::encoding::message::encode(1, &event, &mut self.part);
    }

    fn end(mut self) -> Vec<Bytes> {
        if !self.part.is_empty() {
            self.part.shrink_to_fit();
            self.parts.push(self.part.into());
        }
        self.parts
    }
}

/// A body of a known length that is sent from where its parts lie. The sheet counts as held until the last part
/// is taken.
pub(super) struct Parts {
    parts: VecDeque<Bytes>,
    bytes: u64,
    _sheet: Arc<Sheet>,
}

impl Parts {
    /// A sheet between two texts, as the sheet is sent.
    pub(super) fn body(head: &'static str, sheet: Arc<Sheet>, tail: String) -> Body {
        let mut packing = Packing::begin(sheet.coding());
        packing.store(head.as_bytes());
        let mut parts = VecDeque::with_capacity(sheet.parts.len() + 3);
        match &sheet.packed {
            Some(packed) => parts.extend(packing.share(packed)),
            None => {
                parts.push_back(packing.flush());
                parts.extend(sheet.parts.iter().cloned());
            }
        }
        packing.store(tail.as_bytes());
        parts.push_back(packing.end());
        Self::of(parts, sheet)
    }

    /// The same, compressed for one reader: what a sheet is too small for, or what has much of his own.
    pub(super) fn compressed(coding: Coding, head: &str, sheet: Arc<Sheet>, tail: &str) -> Result<Body, Error> {
        let around = [head.as_bytes(), tail.as_bytes()];
        let own = sheet.parts.iter().map(|part| &part[..]);
        let parts: Vec<&[u8]> = around[..1].iter().copied().chain(own).chain(around[1..].iter().copied()).collect();
        Ok(Self::of(packed::whole(coding, &parts)?.into(), sheet))
    }

    fn of(mut parts: VecDeque<Bytes>, sheet: Arc<Sheet>) -> Body {
        parts.retain(|part| !part.is_empty());
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        Body::new(Self { parts, bytes, _sheet: sheet })
    }
}

impl HttpBody for Parts {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let part = self.parts.pop_front();
        self.bytes -= part.as_ref().map_or(0, |part| part.len() as u64);
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes)
    }
}

#[cfg(test)]
mod tests;
