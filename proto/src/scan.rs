//! One pass over the bytes of a request: is it well-formed, and where are its
//! records, resources and scopes?
//!
//! It accepts exactly what a protobuf parser of the same messages accepts
//! (unknown fields and groups are skipped, wire types must fit, text must be
//! UTF-8), and copies nothing but ids. Nothing is decoded on the way to the
//! acknowledgement.

mod found;
mod pieces;
mod refused;

use pieces::Pieces;
use refused::{counted, misfit, wrong_id};

pub use found::{Group, Range, Record, Scan};

use crate::schema::{self, Field, Kind, Message};
use crate::{Invalid, Limits, Signal};

/// Scans a request. Fails if its bytes are not an OTLP request of that signal
/// or are beyond the limits.
pub fn scan(signal: Signal, request: &[u8], limits: &Limits) -> Result<Scan, Invalid> {
    if request.len() > limits.body_bytes_max || request.len() > u32::MAX as usize {
        return Err(Invalid::new(format!(
            "the request has {} bytes, more than the limit of {} (--request-bytes-max); send smaller batches",
            request.len(),
            limits.body_bytes_max
        )));
    }
    let mut scanner = Scanner { signal, request, limits, refused: 0, expanded: 0, out: Scan::default() };
    scanner.resources(schema::request(signal))?;
    Ok(scanner.out)
}

struct Scanner<'a> {
    signal: Signal,
    request: &'a [u8],
    limits: &'a Limits,
    /// Records that can never be accepted.
    refused: usize,
    /// Bytes of all records so far, each with its resource and scope.
    expanded: u64,
    out: Scan,
}

/// What is shared by records: where it is, and why they cannot be accepted for it.
struct Shared {
    range: Range,
    excess: Option<String>,
}

impl Scanner<'_> {
    /// The request itself: a list of resources with their scopes.
    fn resources(&mut self, message: &'static Message) -> Result<(), Invalid> {
        let mut cursor = Cursor::new(self.request, 0, self.request.len());
        while let Some(key) = cursor.key(message)? {
            match message.field(key.number).map(|f| f.kind) {
                Some(Kind::Message(inner)) => {
                    let body = cursor.message(key, message, inner)?;
                    self.scopes(body, inner)?;
                }
                _ => cursor.skip(key, message, self.limits.depth_max)?,
            }
        }
        Ok(())
    }

    /// One `ResourceSpans`, `ResourceLogs` or `ResourceMetrics`. Its resource
    /// may stand behind its scopes, so the scopes are read in a second round.
    fn scopes(&mut self, body: Range, message: &'static Message) -> Result<(), Invalid> {
        let (mut resource, mut values) = (Pieces::default(), 0);
        let mut cursor = Cursor::of(self.request, body);
        while let Some(key) = cursor.key(message)? {
            match (key.number, message.field(key.number).map(|f| f.kind)) {
                (1, Some(Kind::Message(inner))) => {
                    let range = cursor.message(key, message, inner)?;
                    values += check(self.request, range, inner, self.limits.depth_max - 2)?.values;
                    resource.add(range).map_err(|what| cursor.error(message, what))?;
                }
                (2, Some(Kind::Message(inner))) => cursor.message(key, message, inner).map(drop)?,
                _ => cursor.known(key, message, self.limits.depth_max - 1)?,
            }
        }
        let range = resource.join(self.request, &mut self.out.annex);
        let resource = Shared { range, excess: self.limits.excess("resource", range.len as usize, values) };
        // Another look at the same fields, and no list of them: an empty one has two bytes.
        let mut cursor = Cursor::of(self.request, body);
        while let Some(key) = cursor.key(message)? {
            match (key.number, message.field(key.number).map(|f| f.kind)) {
                (2, Some(Kind::Message(inner))) => {
                    let scope = cursor.message(key, message, inner)?;
                    self.records(scope, inner, &resource)?;
                }
                (1, Some(Kind::Message(inner))) => cursor.message(key, message, inner).map(drop)?,
                _ => cursor.known(key, message, self.limits.depth_max - 1)?,
            }
        }
        Ok(())
    }

    /// One `ScopeSpans`, `ScopeLogs` or `ScopeMetrics`.
    fn records(&mut self, body: Range, message: &'static Message, resource: &Shared) -> Result<(), Invalid> {
        let group = self.out.groups.len() as u32;
        let first = self.out.records.len();
        let (mut scope, mut values) = (Pieces::default(), 0);
        let mut cursor = Cursor::of(self.request, body);
        while let Some(key) = cursor.key(message)? {
            match (key.number, message.field(key.number).map(|f| f.kind)) {
                (1, Some(Kind::Message(inner))) => {
                    let range = cursor.message(key, message, inner)?;
                    values += check(self.request, range, inner, self.limits.depth_max - 3)?.values;
                    scope.add(range).map_err(|what| cursor.error(message, what))?;
                }
                (2, Some(Kind::Message(inner))) => {
                    let range = cursor.message(key, message, inner)?;
                    let ids = check(self.request, range, inner, self.limits.depth_max - 3)?;
                    self.accept(group, range, ids, resource)?;
                }
                _ => cursor.known(key, message, self.limits.depth_max - 2)?,
            }
        }
        if self.out.records.len() == first {
            return Ok(());
        }
        let annex = self.out.annex.len();
        let scope = scope.join(self.request, &mut self.out.annex);
        let records = self.out.records.len() - first;
        if let Some(why) = self.limits.excess("scope", scope.len as usize, values) {
            self.out.annex.truncate(annex);
            for record in self.out.records.drain(first..) {
                self.out.rejected += counted(self.signal, self.request, record.range);
            }
            self.refused += records;
            self.out.rejection.get_or_insert(why);
            return Ok(());
        }
        self.out.groups.push(Group { resource: resource.range, scope });
        self.expand(records, u64::from(resource.range.len) + u64::from(scope.len))
    }

    /// Counts what a group's records become when each has its resource and scope.
    fn expand(&mut self, records: usize, shared: u64) -> Result<(), Invalid> {
        self.expanded += records as u64 * shared;
        let expanded = self.expanded + self.request.len() as u64;
        if expanded > self.limits.expanded_bytes_max.max(self.request.len() as u64) {
            return Err(Invalid::new(format!(
                "the request's {}s come to more than {} bytes with the resource and scope of each \
                 (--request-expanded-bytes-max); send smaller batches or fewer resource attributes",
                self.signal.record_name(),
                self.limits.expanded_bytes_max
            )));
        }
        Ok(())
    }

    /// Takes a well-formed record, or counts it as one that can never be taken.
    fn accept(&mut self, group: u32, range: Range, ids: Ids<'_>, resource: &Shared) -> Result<(), Invalid> {
        let excess = self.limits.excess(self.signal.record_name(), range.len as usize, ids.values);
        let verdict = match (excess.or_else(|| resource.excess.clone()), self.signal) {
            (Some(why), _) => Err(why),
            (None, Signal::Traces) => span_ids(ids),
            (None, Signal::Logs) => log_ids(ids),
            (None, Signal::Metrics) => Ok(([0; 16], [0; 8])),
        };
        let verdict = match ids.misfit {
            Some(message) => verdict.and(Err(misfit(self.signal, message))),
            None => verdict,
        };
        match verdict {
            Ok((trace_id, span_id)) => self.out.records.push(Record { group, range, trace_id, span_id }),
            Err(why) => {
                self.refused += 1;
                self.out.rejected += counted(self.signal, self.request, range);
                self.out.rejection.get_or_insert(why);
            }
        }
        if self.out.records.len() + self.refused > self.limits.records_max {
            return Err(Invalid::new(format!(
                "the request has more than {} {}s (--request-records-max); send smaller batches",
                self.limits.records_max,
                self.signal.record_name()
            )));
        }
        Ok(())
    }
}

/// The id fields of a record, as they stood on the wire, and how many values it has.
#[derive(Clone, Copy, Default)]
struct Ids<'a> {
    values: usize,
    trace: &'a [u8],
    span: &'a [u8],
    parent: &'a [u8],
    /// A message inside (a link, an exemplar) that has an id of the wrong length.
    misfit: Option<&'static Message>,
}

impl Ids<'_> {
    /// A link and an exemplar may lack ids, but one that is there has its length.
    fn fit(&self) -> bool {
        matches!(self.trace.len(), 0 | 16) && matches!(self.span.len(), 0 | 8)
    }
}

fn span_ids(ids: Ids<'_>) -> Result<([u8; 16], [u8; 8]), String> {
    let trace_id = id::<16>(ids.trace).ok_or_else(|| wrong_id("span", "trace_id", 16, ids.trace))?;
    let span_id = id::<8>(ids.span).ok_or_else(|| wrong_id("span", "span_id", 8, ids.span))?;
    if !ids.parent.is_empty() && ids.parent.len() != 8 {
        return Err(wrong_id("span", "parent_span_id", 8, ids.parent));
    }
    Ok((trace_id, span_id))
}

/// A log may have no ids, and some clients send zeros for none.
fn log_ids(ids: Ids<'_>) -> Result<([u8; 16], [u8; 8]), String> {
    let fits = |bytes: &[u8], len| bytes.is_empty() || bytes.len() == len;
    if !fits(ids.trace, 16) {
        return Err(wrong_id("log", "trace_id", 16, ids.trace));
    }
    if !fits(ids.span, 8) {
        return Err(wrong_id("log", "span_id", 8, ids.span));
    }
    Ok((ids.trace.try_into().unwrap_or_default(), ids.span.try_into().unwrap_or_default()))
}

fn id<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok().filter(|id| *id != [0; N])
}

/// Checks a message and everything in it; hands back its id fields, if it is a
/// record that has them. `depth` is how many levels of messages may follow.
fn check<'a>(request: &'a [u8], range: Range, message: &'static Message, depth: usize) -> Result<Ids<'a>, Invalid> {
    let mut ids = Ids::default();
    let mut cursor = Cursor::of(request, range);
    while let Some(key) = cursor.key(message)? {
        let Some(field) = message.field(key.number) else {
            cursor.skip(key, message, depth)?;
            continue;
        };
        match field.kind {
            Kind::Message(inner) => {
                let body = cursor.message(key, message, inner)?;
                if depth == 0 {
                    return Err(cursor.error(message, "is nested too deeply (protobuf parsers stop at 100 levels)"));
                }
                let within = check(request, body, inner, depth - 1)?;
                ids.misfit = ids.misfit.or(if within.fit() { within.misfit } else { Some(inner) });
                ids.values += 1 + within.values;
            }
            Kind::Id => {
                let bytes = cursor.bytes(key, message)?;
                match field.name {
                    "traceId" => ids.trace = bytes,
                    "spanId" => ids.span = bytes,
                    _ => ids.parent = bytes,
                }
            }
            _ => ids.values += cursor.scalar(key, message, field)?,
        }
    }
    Ok(ids)
}

#[derive(Clone, Copy)]
struct Key {
    number: u32,
    wire: u8,
}

/// Wire types of the protobuf encoding.
pub(crate) const VARINT: u8 = 0;
pub(crate) const FIXED64: u8 = 1;
pub(crate) const LENGTH: u8 = 2;
pub(crate) const GROUP: u8 = 3;
pub(crate) const GROUP_END: u8 = 4;
pub(crate) const FIXED32: u8 = 5;

/// Reads wire bytes from a stretch of the request.
struct Cursor<'a> {
    /// The request up to the end of the stretch.
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(request: &'a [u8], at: usize, end: usize) -> Self {
        Self { bytes: &request[..end], at }
    }

    fn of(request: &'a [u8], range: Range) -> Self {
        Self::new(request, range.at as usize, (range.at + range.len) as usize)
    }

    #[cold]
    fn error(&self, message: &Message, what: &str) -> Invalid {
        Invalid::new(format!(
            "not a valid protobuf {}: byte {} {what}; check that the exporter speaks OTLP and that \
             the Content-Type fits the body",
            message.name, self.at
        ))
    }

    /// The next field's key, or `None` at the end.
    #[inline]
    fn key(&mut self, message: &Message) -> Result<Option<Key>, Invalid> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let value = self.varint(message)?;
        let number = u32::try_from(value >> 3).ok().filter(|n| *n != 0 && value <= u64::from(u32::MAX));
        let wire = (value & 7) as u8;
        match number {
            Some(number) if wire <= FIXED32 => Ok(Some(Key { number, wire })),
            Some(_) => Err(self.error(message, "has an unknown wire type")),
            None => Err(self.error(message, "has a field number out of range")),
        }
    }

    /// Nearly all numbers in a request (keys, lengths) have one byte.
    #[inline]
    fn varint(&mut self, message: &Message) -> Result<u64, Invalid> {
        match self.bytes.get(self.at) {
            Some(&byte) if byte < 0x80 => {
                self.at += 1;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(message),
        }
    }

    fn long_varint(&mut self, message: &Message) -> Result<u64, Invalid> {
        let mut value = 0u64;
        for shift in 0..10 {
            let Some(&byte) = self.bytes.get(self.at) else {
                return Err(self.error(message, "is past the end, inside a number"));
            };
            self.at += 1;
            value |= u64::from(byte & 0x7f) << (7 * shift);
            if byte < 0x80 {
                if shift == 9 && byte > 1 {
                    break;
                }
                return Ok(value);
            }
        }
        Err(self.error(message, "ends a number that is too long"))
    }

    #[inline]
    fn take(&mut self, len: u64, message: &Message) -> Result<&'a [u8], Invalid> {
        let rest = &self.bytes[self.at..];
        if len > rest.len() as u64 {
            return Err(self.error(message, "begins a field that runs past the end"));
        }
        self.at += len as usize;
        Ok(&rest[..len as usize])
    }

    #[inline]
    fn length(&mut self, key: Key, message: &Message) -> Result<u64, Invalid> {
        if key.wire != LENGTH {
            return Err(self.error(message, "has the wrong wire type for its field"));
        }
        self.varint(message)
    }

    #[inline]
    fn message(&mut self, key: Key, message: &Message, inner: &'static Message) -> Result<Range, Invalid> {
        let len = self.length(key, message)?;
        let at = self.at;
        self.take(len, inner)?;
        Ok(Range { at: at as u32, len: len as u32 })
    }

    fn bytes(&mut self, key: Key, message: &Message) -> Result<&'a [u8], Invalid> {
        let len = self.length(key, message)?;
        self.take(len, message)
    }

    /// A field that has no further messages in it, known or not.
    fn known(&mut self, key: Key, message: &'static Message, depth: usize) -> Result<(), Invalid> {
        match message.field(key.number) {
            Some(field) => self.scalar(key, message, field).map(drop),
            None => self.skip(key, message, depth),
        }
    }

    /// Checks a field that is no message; gives how many values it adds to a list.
    fn scalar(&mut self, key: Key, message: &Message, field: &Field) -> Result<usize, Invalid> {
        let wire = match field.kind {
            Kind::Varint(_) | Kind::Sint => VARINT,
            Kind::Fixed32 => FIXED32,
            Kind::Fixed64 { .. } | Kind::Double => FIXED64,
            Kind::Text | Kind::Bytes | Kind::Id | Kind::Message(_) => LENGTH,
        };
        if field.repeated && wire != LENGTH && key.wire == LENGTH {
            return self.packed(key, message, wire);
        }
        if key.wire != wire {
            return Err(self.error(message, "has the wrong wire type for its field"));
        }
        match wire {
            VARINT => self.varint(message).map(drop)?,
            FIXED64 => self.take(8, message).map(drop)?,
            FIXED32 => self.take(4, message).map(drop)?,
            _ => {
                let len = self.varint(message)?;
                let bytes = self.take(len, message)?;
                if matches!(field.kind, Kind::Text) && !bytes.is_ascii() && std::str::from_utf8(bytes).is_err() {
                    return Err(self.error(message, &format!("ends a {} that is not UTF-8", field.name)));
                }
            }
        }
        Ok(usize::from(field.repeated))
    }

    fn packed(&mut self, key: Key, message: &Message, wire: u8) -> Result<usize, Invalid> {
        let len = self.length(key, message)?;
        let end = self.at + self.take(len, message)?.len();
        let mut inner = Cursor::new(self.bytes, end - len as usize, end);
        let mut values = 0;
        while inner.at < inner.bytes.len() {
            values += 1;
            match wire {
                VARINT => inner.varint(message).map(drop)?,
                FIXED64 => inner.take(8, message).map(drop)?,
                _ => inner.take(4, message).map(drop)?,
            }
        }
        Ok(values)
    }

    /// Skips a field that OTLP does not name.
    fn skip(&mut self, key: Key, message: &Message, depth: usize) -> Result<(), Invalid> {
        if depth == 0 {
            return Err(self.error(message, "is nested too deeply (protobuf parsers stop at 100 levels)"));
        }
        match key.wire {
            VARINT => self.varint(message).map(drop),
            FIXED64 => self.take(8, message).map(drop),
            FIXED32 => self.take(4, message).map(drop),
            LENGTH => {
                let len = self.varint(message)?;
                self.take(len, message).map(drop)
            }
            GROUP => self.group(key, message, depth),
            _ => Err(self.error(message, "ends a group that was not begun")),
        }
    }

    fn group(&mut self, open: Key, message: &Message, depth: usize) -> Result<(), Invalid> {
        while let Some(key) = self.key(message)? {
            if key.wire == GROUP_END {
                if key.number == open.number {
                    return Ok(());
                }
                return Err(self.error(message, "ends a group that was not begun"));
            }
            self.skip(key, message, depth - 1)?;
        }
        Err(self.error(message, "is past the end, inside a group"))
    }
}

#[cfg(test)]
mod tests;
