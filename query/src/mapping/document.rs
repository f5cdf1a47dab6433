//! Records whose content is one JSON object: in the body as text, in the body as OTLP's own
//! map, or with its members as attributes, as a Collector's JSON parser leaves them.
//!
//! Hostile by nature: a wrong type reads as absent, and what is too long or too deep to be
//! parsed is no document (the record stays a row of `logs`).

use custody_proto::otlp::common::{AnyValue, ArrayValue, KeyValue, any_value::Value as Any};
use custody_proto::wire::{LogRecord, Value as Body};
use serde_json::{Map, Value as Json};

use crate::attributes::{Attributes, any_value_json, attributes_map, conceal, parse_time, seconds_time};
use crate::event::EventRow;
use crate::issuers;
use crate::rows::Time;

/// Bytes of a body that is parsed, at most.
const BODY_BYTES_MAX: usize = 4 << 20;

/// Bytes of a document that is repeated in `events.attributes`, at most; `logs.body` has it whole.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// How many entries of a list are read.
pub(super) const LIST_MAX: usize = 256;

/// One JSON object.
pub(super) struct Document {
    value: Json,
    /// Whether it is the body, and not the attributes.
    is_body: bool,
    /// The text that it was read from, where that is no JSON.
    line: Option<String>,
}

impl Document {
    /// The document of a log record. Its attributes are one if `is_known` says so of them.
    pub(super) fn of(log: &LogRecord<'_>, is_known: impl FnOnce(&Attributes<'_>) -> bool) -> Option<Self> {
        let body = log.body.as_ref();
        let value = match body.and_then(|body| body.value.as_ref()) {
            Some(Body::StringValue(text)) if text.trim_start().starts_with('{') => parse(text),
            Some(Body::KvlistValue(_)) => body.map(any_value_json),
            _ => None,
        };
        let body = value.filter(Json::is_object).map(|value| Self { value, is_body: true, line: None });
        let attributes = Attributes(&log.attributes);
        body.or_else(|| {
            let value = is_known(&attributes).then(|| Json::Object(attributes_map(&log.attributes)))?;
            Some(Self { value, is_body: false, line: None })
        })
    }

    /// An object that came as text.
    pub(super) fn parse(text: &str) -> Option<Self> {
        parse(text).filter(Json::is_object).map(|value| Self { value, is_body: false, line: None })
    }

    /// An object that is a body, or stands in one.
    pub(super) fn body(value: Json) -> Self {
        Self { value, is_body: true, line: None }
    }

    /// What a line of text says, as an object. Rows show the line, and not our reading of it.
    pub(super) fn of_line(value: Json, line: &str) -> Self {
        Self { value, is_body: true, line: Some(line.to_owned()) }
    }

    pub(super) fn is_body(&self) -> bool {
        self.is_body
    }

    /// The document's members as the attributes that a Collector makes of them.
    pub(super) fn members(&self) -> Vec<KeyValue> {
        let any = |value| Some(AnyValue { value: Some(value) });
        let read = |value: &Json| match value {
            Json::Array(items) => {
                let values =
                    items.iter().take(LIST_MAX).filter_map(text).map(|t| AnyValue { value: Some(Any::StringValue(t)) });
                any(Any::ArrayValue(ArrayValue { values: values.collect() }))
            }
            Json::Bool(flag) => any(Any::BoolValue(*flag)),
            other => any(Any::StringValue(text(other)?)),
        };
        let members = self.value.as_object().into_iter().flatten();
        members.map(|(key, value)| KeyValue { key: key.clone(), value: read(value), ..KeyValue::default() }).collect()
    }

    /// The value at a JSON pointer (RFC 6901).
    pub(super) fn at(&self, pointer: &str) -> Option<&Json> {
        self.value.pointer(pointer)
    }

    pub(super) fn has(&self, pointer: &str) -> bool {
        self.at(pointer).is_some_and(|value| !value.is_null())
    }

    /// A non-empty text, or a number or truth value as text.
    pub(super) fn text(&self, pointer: &str) -> Option<String> {
        text(self.at(pointer)?)
    }

    /// The first of several places that has a text.
    pub(super) fn first(&self, pointers: &[&str]) -> Option<String> {
        pointers.iter().find_map(|pointer| self.text(pointer))
    }

    pub(super) fn number(&self, pointer: &str) -> Option<i64> {
        self.at(pointer)?.as_i64()
    }

    pub(super) fn flag(&self, pointer: &str) -> Option<bool> {
        self.at(pointer)?.as_bool()
    }

    /// A list of texts; a single text is a list of one.
    pub(super) fn list(&self, pointer: &str) -> Vec<String> {
        match self.at(pointer) {
            Some(Json::Array(items)) => items.iter().take(LIST_MAX).filter_map(text).collect(),
            Some(one) => text(one).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// The objects of a list.
    pub(super) fn objects(&self, pointer: &str) -> impl Iterator<Item = &Map<String, Json>> {
        let items = self.at(pointer).and_then(Json::as_array);
        items.into_iter().flatten().take(LIST_MAX).filter_map(Json::as_object)
    }

    /// An object.
    pub(super) fn object(&self, pointer: &str) -> Option<&Map<String, Json>> {
        self.at(pointer)?.as_object()
    }

    /// A time in milliseconds since the epoch, as OCSF has it.
    pub(super) fn millis(&self, pointer: &str) -> Option<Time> {
        self.number(pointer)?.checked_mul(1_000_000).map(Time)
    }

    /// A time: RFC 3339, or seconds since the epoch (JWT's NumericDate).
    pub(super) fn time(&self, pointer: &str) -> Option<Time> {
        match self.at(pointer)? {
            Json::String(text) => parse_time(text),
            Json::Number(number) => match number.as_i64() {
                Some(seconds) => seconds.checked_mul(1_000_000_000).map(Time),
                None => number.as_f64().and_then(seconds_time),
            },
            _ => None,
        }
    }

    /// Puts into the row's attributes what this document says beyond the columns: itself as
    /// `body`, if it is one, and what it says under the names of docs/semantic-conventions.md.
    /// Those override what the sender called by such a name.
    pub(super) fn keep(&self, row: &mut EventRow, log: &LogRecord<'_>, said: Vec<(&str, Json)>) {
        let mut attributes = attributes_map(&log.attributes);
        for (name, value) in said.into_iter().filter(|(_, value)| !value.is_null()) {
            attributes.insert(name.to_owned(), value);
        }
        if self.is_body && !attributes.contains_key("body") {
            let mut body = self.line.clone().map_or_else(|| self.value.clone(), Json::String);
            conceal_all(&mut body);
            if body.to_string().len() <= KEPT_BYTES_MAX {
                attributes.insert("body".to_owned(), body);
            }
        }
        issuers::stamp(&mut attributes, row, Attributes(&log.attributes));
        row.attributes = Json::Object(attributes).to_string();
    }
}

/// Deep nesting is an error of the parser, not an overflow of the stack.
pub(super) fn parse(text: &str) -> Option<Json> {
    if text.len() > BODY_BYTES_MAX {
        return None;
    }
    serde_json::from_str(text).ok()
}

/// A non-empty text, or a number or truth value as text.
pub(super) fn text(value: &Json) -> Option<String> {
    match value {
        Json::String(text) if !text.is_empty() => Some(text.clone()),
        Json::Number(number) => Some(number.to_string()),
        Json::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// The text of a member.
pub(super) fn member(object: &Map<String, Json>, name: &str) -> Option<String> {
    text(object.get(name)?)
}

/// JSON for a text, null for none.
pub(super) fn said(text: Option<String>) -> Json {
    text.map_or(Json::Null, Json::String)
}

/// No text of the document is a token that somebody could use.
fn conceal_all(value: &mut Json) {
    match value {
        Json::String(text) => {
            if let Some(concealed) = conceal(text) {
                *text = concealed;
            }
        }
        Json::Array(items) => items.iter_mut().for_each(conceal_all),
        Json::Object(members) => members.values_mut().for_each(conceal_all),
        _ => {}
    }
}
