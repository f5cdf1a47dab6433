//! The records of OTLP read where they lie: texts and ids are those of the record's bytes, and nothing
//! is copied. What is read of every record that is stored, to make its rows, is read so.
//!
//! Names and meanings are those of [`crate::otlp`], and what one of the two readers takes the other
//! takes: the last of several scalars wins, messages that come in pieces are merged, unknown fields are
//! skipped (protobuf.dev/programming-guides/encoding). Fields that nobody asks for are checked, not kept.

mod fields;
mod values;

use std::mem::take;

use crate::otlp::trace::{span::SpanKind, status::StatusCode};

use fields::Fields;

pub use fields::Malformed;
pub use values::{AnyValue, ArrayValue, KeyValue, KeyValueList, Value};

/// `opentelemetry.proto.resource.v1.Resource`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resource<'a> {
    /// What describes the source.
    pub attributes: Vec<KeyValue<'a>>,
}

/// `opentelemetry.proto.common.v1.InstrumentationScope`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InstrumentationScope<'a> {
    /// Name.
    pub name: &'a str,
    /// Version.
    pub version: &'a str,
    /// What else is said of it.
    pub attributes: Vec<KeyValue<'a>>,
}

/// `opentelemetry.proto.trace.v1.Span`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Span<'a> {
    /// 16 bytes, as the scanner lets them in.
    pub trace_id: &'a [u8],
    /// 8 bytes, as the scanner lets them in.
    pub span_id: &'a [u8],
    /// W3C tracestate.
    pub trace_state: &'a str,
    /// 8 bytes; none for a root.
    pub parent_span_id: &'a [u8],
    /// W3C trace flags and OTLP's own.
    pub flags: u32,
    /// Name.
    pub name: &'a str,
    /// A number of `SpanKind`; see [`Span::kind`].
    pub kind: i32,
    /// Start, ns.
    pub start_time_unix_nano: u64,
    /// End, ns; 0 while it runs.
    pub end_time_unix_nano: u64,
    /// Attributes.
    pub attributes: Vec<KeyValue<'a>>,
    /// What happened within.
    pub events: Vec<Event<'a>>,
    /// Other spans that it names.
    pub links: Vec<Link<'a>>,
    /// How it ended.
    pub status: Option<Status<'a>>,
}

/// `opentelemetry.proto.trace.v1.Span.Event`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event<'a> {
    /// When, ns.
    pub time_unix_nano: u64,
    /// Name.
    pub name: &'a str,
    /// Attributes.
    pub attributes: Vec<KeyValue<'a>>,
}

/// `opentelemetry.proto.trace.v1.Span.Link`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Link<'a> {
    /// Trace of the other span.
    pub trace_id: &'a [u8],
    /// Its span id.
    pub span_id: &'a [u8],
    /// Attributes.
    pub attributes: Vec<KeyValue<'a>>,
}

/// `opentelemetry.proto.trace.v1.Status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status<'a> {
    /// In the source's words.
    pub message: &'a str,
    /// A number of `StatusCode`; see [`Status::code`].
    pub code: i32,
}

/// `opentelemetry.proto.logs.v1.LogRecord`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogRecord<'a> {
    /// When it happened, ns.
    pub time_unix_nano: u64,
    /// When it was collected, ns.
    pub observed_time_unix_nano: u64,
    /// 1 to 24.
    pub severity_number: i32,
    /// In the source's words.
    pub severity_text: &'a str,
    /// Body.
    pub body: Option<AnyValue<'a>>,
    /// Attributes.
    pub attributes: Vec<KeyValue<'a>>,
    /// 16 bytes, or none.
    pub trace_id: &'a [u8],
    /// 8 bytes, or none.
    pub span_id: &'a [u8],
    /// Name of the event.
    pub event_name: &'a str,
}

impl Span<'_> {
    /// Its kind; what OTLP does not name is unspecified.
    pub fn kind(&self) -> SpanKind {
        SpanKind::try_from(self.kind).unwrap_or_default()
    }
}

impl Status<'_> {
    /// How it ended; what OTLP does not name is unset.
    pub fn code(&self) -> StatusCode {
        StatusCode::try_from(self.code).unwrap_or_default()
    }
}

/// A message that is read off its bytes.
macro_rules! read {
    ($type:ident) => {
        impl<'a> $type<'a> {
            /// Reads a whole message.
            ///
            /// # Errors
            ///
            /// If the bytes are not such a message.
            pub fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
                let mut out = Self::default();
                out.merge(Fields::of(bytes))?;
                Ok(out)
            }
        }
    };
}

read!(Resource);
read!(InstrumentationScope);
read!(Span);
read!(LogRecord);

impl<'a> Span<'a> {
    /// Reads another span into this one, whose lists are used again. It is no span after an error.
    ///
    /// # Errors
    ///
    /// If the bytes are not a span.
    pub fn refill(&mut self, bytes: &'a [u8]) -> Result<(), Malformed> {
        let (mut attributes, mut events, mut links) =
            (take(&mut self.attributes), take(&mut self.events), take(&mut self.links));
        attributes.clear();
        events.clear();
        links.clear();
        *self = Self { attributes, events, links, ..Self::default() };
        self.merge(Fields::of(bytes))
    }

    fn merge(&mut self, mut fields: Fields<'a>) -> Result<(), Malformed> {
        while let Some(key) = fields.key()? {
            match key.number {
                1 => self.trace_id = fields.bytes(key)?,
                2 => self.span_id = fields.bytes(key)?,
                3 => self.trace_state = fields.text(key)?,
                4 => self.parent_span_id = fields.bytes(key)?,
                5 => self.name = fields.text(key)?,
                6 => self.kind = fields.varint(key)? as i32,
                7 => self.start_time_unix_nano = fields.fixed64(key)?,
                8 => self.end_time_unix_nano = fields.fixed64(key)?,
                9 => self.attributes.push(KeyValue::of(fields.message(key)?)?),
                // How many attributes, events and links were dropped.
                10 | 12 | 14 => fields.varint(key).map(drop)?,
                11 => self.events.push(Event::of(fields.message(key)?)?),
                13 => self.links.push(Link::of(fields.message(key)?)?),
                15 => self.status.get_or_insert_default().merge(fields.message(key)?)?,
                16 => self.flags = fields.fixed32(key)?,
                _ => fields.skip(key)?,
            }
        }
        Ok(())
    }
}

impl<'a> LogRecord<'a> {
    /// Reads another log record into this one, whose list is used again. It is none after an error.
    ///
    /// # Errors
    ///
    /// If the bytes are not a log record.
    pub fn refill(&mut self, bytes: &'a [u8]) -> Result<(), Malformed> {
        let mut attributes = take(&mut self.attributes);
        attributes.clear();
        *self = Self { attributes, ..Self::default() };
        self.merge(Fields::of(bytes))
    }

    fn merge(&mut self, mut fields: Fields<'a>) -> Result<(), Malformed> {
        while let Some(key) = fields.key()? {
            match key.number {
                1 => self.time_unix_nano = fields.fixed64(key)?,
                2 => self.severity_number = fields.varint(key)? as i32,
                3 => self.severity_text = fields.text(key)?,
                5 => self.body.get_or_insert_default().merge(fields.message(key)?)?,
                6 => self.attributes.push(KeyValue::of(fields.message(key)?)?),
                // How many attributes were dropped, and the flags.
                7 => fields.varint(key).map(drop)?,
                8 => fields.fixed32(key).map(drop)?,
                9 => self.trace_id = fields.bytes(key)?,
                10 => self.span_id = fields.bytes(key)?,
                11 => self.observed_time_unix_nano = fields.fixed64(key)?,
                12 => self.event_name = fields.text(key)?,
                _ => fields.skip(key)?,
            }
        }
        Ok(())
    }
}

impl<'a> Event<'a> {
    fn of(mut fields: Fields<'a>) -> Result<Self, Malformed> {
        let mut out = Self::default();
        while let Some(key) = fields.key()? {
            match key.number {
                1 => out.time_unix_nano = fields.fixed64(key)?,
                2 => out.name = fields.text(key)?,
                3 => out.attributes.push(KeyValue::of(fields.message(key)?)?),
                4 => fields.varint(key).map(drop)?,
                _ => fields.skip(key)?,
            }
        }
        Ok(out)
    }
}

impl<'a> Link<'a> {
    fn of(mut fields: Fields<'a>) -> Result<Self, Malformed> {
        let mut out = Self::default();
        while let Some(key) = fields.key()? {
            match key.number {
                1 => out.trace_id = fields.bytes(key)?,
                2 => out.span_id = fields.bytes(key)?,
                3 => fields.text(key).map(drop)?,
                4 => out.attributes.push(KeyValue::of(fields.message(key)?)?),
                5 => fields.varint(key).map(drop)?,
                6 => fields.fixed32(key).map(drop)?,
                _ => fields.skip(key)?,
            }
        }
        Ok(out)
    }
}

impl<'a> Status<'a> {
    fn merge(&mut self, mut fields: Fields<'a>) -> Result<(), Malformed> {
        while let Some(key) = fields.key()? {
            match key.number {
                2 => self.message = fields.text(key)?,
                3 => self.code = fields.varint(key)? as i32,
                _ => fields.skip(key)?,
            }
        }
        Ok(())
    }
}

impl<'a> InstrumentationScope<'a> {
    fn merge(&mut self, mut fields: Fields<'a>) -> Result<(), Malformed> {
        while let Some(key) = fields.key()? {
            match key.number {
                1 => self.name = fields.text(key)?,
                2 => self.version = fields.text(key)?,
                3 => self.attributes.push(KeyValue::of(fields.message(key)?)?),
                4 => fields.varint(key).map(drop)?,
                _ => fields.skip(key)?,
            }
        }
        Ok(())
    }
}

impl<'a> Resource<'a> {
    fn merge(&mut self, mut fields: Fields<'a>) -> Result<(), Malformed> {
        while let Some(key) = fields.key()? {
            match key.number {
                1 => self.attributes.push(KeyValue::of(fields.message(key)?)?),
                2 => fields.varint(key).map(drop)?,
                3 => entity(fields.message(key)?)?,
                _ => fields.skip(key)?,
            }
        }
        Ok(())
    }
}

/// A reference to an entity, which nobody asks for: four texts or lists of them.
fn entity(mut fields: Fields<'_>) -> Result<(), Malformed> {
    while let Some(key) = fields.key()? {
        match key.number {
            1..=4 => fields.text(key).map(drop)?,
            _ => fields.skip(key)?,
        }
    }
    Ok(())
}
