//! One pass over the bytes of a request: is it well-formed, and where are its
//! records, resources and scopes?
//!
//! It accepts exactly what a protobuf parser of the same messages accepts
//! (unknown fields and groups are skipped, wire types must fit, text must be
//! UTF-8), and copies nothing but ids. Nothing is decoded on the way to the
//! acknowledgement.

use crate::schema::{self, Field, Kind, Message};
use crate::{Invalid, Limits, Signal};

/// A range of bytes of a request. One that begins at or beyond the request's
/// length lies in [`Scan::annex`], `at - length` bytes from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Range {
    /// Where it begins.
    pub at: u32,
    /// How many bytes.
    pub len: u32,
}

/// The resource and the scope that some of a request's records share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Group {
    /// The bytes of the `Resource` message.
    pub resource: Range,
    /// The bytes of the `InstrumentationScope` message.
    pub scope: Range,
}

/// One record of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Index into [`Scan::groups`].
    pub group: u32,
    /// The bytes of the record's message.
    pub range: Range,
    /// The trace id of a span or log; zeros if it has none.
    pub trace_id: [u8; 16],
    /// The span id of a span or log; zeros if it has none.
    pub span_id: [u8; 8],
}

/// Where everything is in a well-formed request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The resource-and-scope pairs.
    pub groups: Vec<Group>,
    /// The records that can be accepted, in the request's order.
    pub records: Vec<Record>,
    /// How much can never be accepted, as the answer counts it: spans, log records, or the
    /// data points of metrics (`rejected_data_points`).
    pub rejected: u64,
    /// Why the first of those cannot be, for the client.
    pub rejection: Option<String>,
    /// Resources and scopes that the request gave in several pieces, joined.
    /// (Protobuf merges repeated occurrences of a message field, and to merge
    /// encoded messages is to concatenate them.)
    pub annex: Vec<u8>,
}

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

fn misfit(signal: Signal, message: &Message) -> String {
    let record = signal.record_name();
    format!("a {record} has {} with an id of the wrong length; a trace_id has 16 bytes, a span_id 8", message.name)
}

/// How much a refused record counts in a partial success.
fn counted(signal: Signal, request: &[u8], record: Range) -> u64 {
    match signal {
        Signal::Metrics => data_points(request, record),
        Signal::Traces | Signal::Logs => 1,
    }
}

/// How many data points a well-formed metric has.
fn data_points(request: &[u8], metric: Range) -> u64 {
    let count = |data: Range, inner: &'static Message| {
        let mut cursor = Cursor::of(request, data);
        let mut points = 0;
        while let Ok(Some(key)) = cursor.key(inner) {
            points += u64::from(key.number == 1);
            if cursor.skip(key, inner, usize::MAX).is_err() {
                break;
            }
        }
        points
    };
    let mut cursor = Cursor::of(request, metric);
    let mut points = 0;
    while let Ok(Some(key)) = cursor.key(&schema::METRIC) {
        let read = match schema::METRIC.field(key.number) {
            // All but the metadata are the alternatives of `data`, whose first field is the points.
            Some(Field { number: 5..=11, kind: Kind::Message(inner), .. }) => {
                cursor.message(key, &schema::METRIC, inner).map(|data| points += count(data, inner))
            }
            _ => cursor.skip(key, &schema::METRIC, usize::MAX),
        };
        if read.is_err() {
            break;
        }
    }
    points
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

fn wrong_id(record: &str, field: &str, len: usize, got: &[u8]) -> String {
    let what = if got.len() == len { "only zeros".to_owned() } else { format!("{} bytes", got.len()) };
    format!("{record}.{field} has {what}; it needs {len} bytes that are not all zero")
}

/// No encoder makes more pieces of one message than one; hostile ones cost memory.
const PIECES_MAX: usize = 1000;

/// The occurrences of a message field, to be merged as protobuf merges them.
#[derive(Default)]
struct Pieces {
    first: Option<Range>,
    more: Vec<Range>,
}

impl Pieces {
    fn add(&mut self, range: Range) -> Result<(), &'static str> {
        if self.first.is_none() {
            self.first = Some(range);
        } else if self.more.len() == PIECES_MAX {
            return Err("begins one more piece of a message that is in a thousand pieces");
        } else {
            self.more.push(range);
        }
        Ok(())
    }

    fn join(self, request: &[u8], annex: &mut Vec<u8>) -> Range {
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
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const GROUP: u8 = 3;
const GROUP_END: u8 = 4;
const FIXED32: u8 = 5;

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
mod tests {
    use super::*;
    use crate::otlp::collector_logs::ExportLogsServiceRequest;
    use crate::otlp::collector_metrics::ExportMetricsServiceRequest;
    use crate::otlp::collector_trace::ExportTraceServiceRequest;
    use crate::otlp::common::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value::Value};
    use crate::otlp::resource::Resource;
    use crate::otlp::trace::{ResourceSpans, ScopeSpans, Span};
    use proptest::prelude::*;
    use prost::Message as _;

    fn key_value(key: &str, value: Value) -> KeyValue {
        KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
    }

    fn span(id: u8) -> Span {
        Span {
            trace_id: vec![id; 16],
            span_id: vec![id; 8],
            name: format!("span {id}"),
            start_time_unix_nano: 5,
            attributes: vec![key_value("a", Value::StringValue("b".into()))],
            ..Default::default()
        }
    }

    fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource {
                    attributes: vec![key_value("service.name", Value::StringValue("s".into()))],
                    ..Default::default()
                }),
                scope_spans: vec![ScopeSpans {
                    scope: Some(InstrumentationScope { name: "scope".into(), ..Default::default() }),
                    spans,
                    ..Default::default()
                }],
                ..Default::default()
            }],
        }
    }

    fn at<'a>(request: &'a [u8], scan: &'a Scan, range: Range) -> &'a [u8] {
        let (at, len) = (range.at as usize, range.len as usize);
        match at.checked_sub(request.len()) {
            None => &request[at..at + len],
            Some(at) => &scan.annex[at..at + len],
        }
    }

    #[test]
    fn finds_every_record_with_its_resource_and_scope() {
        let sent = request(vec![span(1), span(2)]);
        let bytes = sent.encode_to_vec();
        let scan = scan(Signal::Traces, &bytes, &Limits::default()).unwrap();
        assert_eq!((scan.records.len(), scan.groups.len(), scan.rejected), (2, 1, 0));
        let decoded = Span::decode(at(&bytes, &scan, scan.records[1].range)).unwrap();
        assert_eq!(decoded, span(2));
        assert_eq!((scan.records[1].trace_id, scan.records[1].span_id), ([2; 16], [2; 8]));
        let resource = Resource::decode(at(&bytes, &scan, scan.groups[0].resource)).unwrap();
        assert_eq!(Some(resource), sent.resource_spans[0].resource);
        let scope = InstrumentationScope::decode(at(&bytes, &scan, scan.groups[0].scope)).unwrap();
        assert_eq!(Some(scope), sent.resource_spans[0].scope_spans[0].scope);
    }

    #[test]
    fn joins_a_resource_that_comes_in_pieces() {
        let one = request(vec![span(1)]).resource_spans.remove(0);
        let mut body = one.encode_to_vec();
        let more =
            Resource { attributes: vec![key_value("host.name", Value::StringValue("h".into()))], ..Default::default() }
                .encode_to_vec();
        body.extend([0x0a, more.len() as u8]);
        body.extend(&more);
        let mut bytes = vec![0x0a, body.len() as u8];
        bytes.extend(&body);
        let parsed = ExportTraceServiceRequest::decode(&bytes[..]).unwrap();
        let scan = scan(Signal::Traces, &bytes, &Limits::default()).unwrap();
        let joined = Resource::decode(at(&bytes, &scan, scan.groups[0].resource)).unwrap();
        assert_eq!(Some(joined), parsed.resource_spans[0].resource);
    }

    #[test]
    fn counts_ids_that_can_never_be_accepted() {
        let wrong = [
            Span { trace_id: vec![1; 15], ..span(1) },
            Span { trace_id: vec![0; 16], ..span(1) },
            Span { span_id: vec![], ..span(1) },
            Span { parent_span_id: vec![1; 7], ..span(1) },
        ];
        let bytes = request([wrong.to_vec(), vec![span(9)]].concat()).encode_to_vec();
        let scan = scan(Signal::Traces, &bytes, &Limits::default()).unwrap();
        assert_eq!((scan.records.len(), scan.rejected), (1, 4));
        let why = scan.rejection.unwrap();
        assert!(why.contains("span.trace_id has 15 bytes"), "{why}");
    }

    #[test]
    fn counts_what_has_ids_of_the_wrong_length_inside() {
        use crate::otlp::trace::span::Link;
        let link = |trace: usize, id: usize| Span {
            links: vec![Link { trace_id: vec![1; trace], span_id: vec![1; id], ..Default::default() }],
            ..span(1)
        };
        // A link without ids is one of the API's; one with a part of an id is nothing.
        let spans = vec![link(16, 8), link(0, 0), link(16, 7), link(15, 8)];
        let scanned = scan(Signal::Traces, &request(spans).encode_to_vec(), &Limits::default()).unwrap();
        assert_eq!((scanned.records.len(), scanned.rejected), (2, 2));
        assert!(scanned.rejection.unwrap().contains("Span.Link with an id of the wrong length"));
    }

    #[test]
    fn a_resource_in_very_many_pieces_is_refused() {
        let request = |pieces: usize| {
            let body = [0x0a, 0].repeat(pieces);
            let mut request = vec![0x0a];
            prost::encoding::encode_varint(body.len() as u64, &mut request);
            scan(Signal::Traces, &[request, body].concat(), &Limits::default())
        };
        assert!(request(PIECES_MAX + 1).is_ok());
        assert!(request(PIECES_MAX + 2).unwrap_err().message().contains("thousand pieces"));
    }

    #[test]
    fn a_metric_is_counted_by_its_data_points() {
        use crate::otlp::metrics::{
            Exemplar, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
            metric::Data,
        };
        let wrong = vec![Exemplar { trace_id: vec![1; 3], ..Default::default() }];
        let sum = |exemplars| Metric {
            name: "sum".into(),
            data: Some(Data::Sum(Sum {
                data_points: vec![NumberDataPoint { exemplars, ..Default::default() }, NumberDataPoint::default()],
                ..Default::default()
            })),
            ..Default::default()
        };
        let points = vec![
            HistogramDataPoint::default(),
            HistogramDataPoint::default(),
            HistogramDataPoint { exemplars: wrong.clone(), ..Default::default() },
        ];
        let histogram = Metric {
            data: Some(Data::Histogram(Histogram { data_points: points, aggregation_temporality: 2 })),
            metadata: vec![key_value("m", Value::BoolValue(true))],
            ..Default::default()
        };
        let scope_metrics =
            vec![ScopeMetrics { metrics: vec![sum(vec![]), sum(wrong), histogram], ..Default::default() }];
        let sent = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics { scope_metrics, ..Default::default() }],
        };
        let scanned = scan(Signal::Metrics, &sent.encode_to_vec(), &Limits::default()).unwrap();
        assert_eq!((scanned.records.len(), scanned.rejected), (1, 5));
        assert!(scanned.rejection.unwrap().contains("a metric has Exemplar with an id"));
    }

    #[test]
    fn refuses_what_is_beyond_the_limits() {
        let bytes = request(vec![span(1), span(2)]).encode_to_vec();
        let small = Limits { body_bytes_max: 10, ..Limits::default() };
        assert!(scan(Signal::Traces, &bytes, &small).unwrap_err().message().contains("limit of 10"));
        let few = Limits { records_max: 1, ..Limits::default() };
        assert!(scan(Signal::Traces, &bytes, &few).unwrap_err().message().contains("more than 1 spans"));
    }

    /// The same verdict as prost, for any nesting around the limit of 100.
    #[test]
    fn nesting_is_bounded_as_prost_bounds_it() {
        for depth in 40..56 {
            let mut value = Value::BoolValue(true);
            for _ in 0..depth {
                value = Value::ArrayValue(ArrayValue { values: vec![AnyValue { value: Some(value) }] });
            }
            let deep = Span { attributes: vec![key_value("deep", value)], ..span(1) };
            let bytes = request(vec![deep]).encode_to_vec();
            let ours = scan(Signal::Traces, &bytes, &Limits::default()).is_ok();
            assert_eq!(ours, ExportTraceServiceRequest::decode(&bytes[..]).is_ok(), "depth {depth}");
        }
    }

    fn prost_accepts(signal: Signal, bytes: &[u8]) -> bool {
        match signal {
            Signal::Traces => ExportTraceServiceRequest::decode(bytes).is_ok(),
            Signal::Logs => ExportLogsServiceRequest::decode(bytes).is_ok(),
            Signal::Metrics => ExportMetricsServiceRequest::decode(bytes).is_ok(),
        }
    }

    const SIGNALS: [Signal; 3] = [Signal::Traces, Signal::Logs, Signal::Metrics];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn accepts_what_prost_accepts_random(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            for signal in SIGNALS {
                let ours = scan(signal, &bytes, &Limits::default()).is_ok();
                prop_assert_eq!(ours, prost_accepts(signal, &bytes));
            }
        }

        #[test]
        fn accepts_what_prost_accepts_mutated(at in 0usize..400, byte: u8, cut in 0usize..400, insert: bool) {
            let mut bytes = request(vec![span(1), span(2), span(3)]).encode_to_vec();
            let at = at % bytes.len();
            if insert { bytes.insert(at, byte) } else { bytes[at] = byte }
            if cut < bytes.len() { bytes.truncate(cut.max(at + 1)) }
            for signal in SIGNALS {
                let ours = scan(signal, &bytes, &Limits::default()).is_ok();
                prop_assert_eq!(ours, prost_accepts(signal, &bytes));
            }
        }
    }
}
