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
    fn put_key(&mut self, wire: u8) {
        put_varint(self.out, u64::from(self.field.number) << 3 | u64::from(wire));
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
        if value.fract() == 0.0 {
            // Beyond what an i128 holds the cast saturates, which no field's range contains.
            return self.put_int(value as i128);
        }
        Err(E::custom(format!("{} must be a whole number", self.field.name)))
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

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<bool, A::Error> {
        if !self.field.repeated || self.in_list {
            return Err(serde::de::Error::custom(format!("{} must not be a list", self.field.name)));
        }
        let (field, max) = (self.field, self.max);
        while seq.next_element_seed(FieldSeed { field, in_list: true, out: self.out, max })?.is_some() {
            within(self.out, max)?;
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
mod tests {
    use super::*;
    use crate::otlp::collector_logs::ExportLogsServiceRequest;
    use crate::otlp::collector_metrics::ExportMetricsServiceRequest;
    use crate::otlp::collector_trace::ExportTraceServiceRequest;
    use crate::otlp::common::any_value::Value;
    use crate::otlp::metrics::metric::Data;
    use prost::Message as _;

    fn traces(json: &str) -> Result<ExportTraceServiceRequest, String> {
        let bytes = transcode(Signal::Traces, json.as_bytes()).map_err(|e| e.message().to_owned())?;
        Ok(ExportTraceServiceRequest::decode(&bytes[..]).unwrap())
    }

    fn span_json(fields: &str) -> String {
        format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{fields}}}]}}]}}]}}"#)
    }

    #[test]
    fn takes_ids_in_either_case_and_numbers_in_both_forms() {
        let json = span_json(
            r#""traceId":"5B8EFFF798038103d269b633813fc60c","spanId":"EEE19B7EC3C1B174",
               "start_time_unix_nano":"1544712660000000000","endTimeUnixNano":1544712661000000000,
               "kind":2,"flags":257,"name":"n","unknown":{"deep":[1,{}]},"parentSpanId":null,
               "attributes":[{"key":"i","value":{"intValue":"-7"}},{"key":"b","value":{"bytesValue":"AQI="}},
                             {"key":"d","value":{"doubleValue":1}},{"key":"t","value":{"boolValue":true}},
                             {"key":"a","value":{"arrayValue":{"values":[{"stringValue":""}]}}}]"#,
        );
        let got = traces(&json).unwrap();
        let span = &got.resource_spans[0].scope_spans[0].spans[0];
        assert_eq!(const_hex::encode(&span.trace_id), "5b8efff798038103d269b633813fc60c");
        assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (1544712660000000000, 1544712661000000000));
        assert_eq!((span.kind, span.flags), (2, 257));
        let value = |i: usize| span.attributes[i].value.clone().unwrap().value.unwrap();
        assert_eq!(value(0), Value::IntValue(-7));
        assert_eq!(value(1), Value::BytesValue(vec![1, 2]));
        assert_eq!(value(2), Value::DoubleValue(1.0));
        assert_eq!(value(3), Value::BoolValue(true));
        let Value::ArrayValue(list) = value(4) else { panic!("not a list") };
        assert_eq!(list.values[0].value, Some(Value::StringValue(String::new())));
    }

    #[test]
    fn says_which_field_is_wrong() {
        for (fields, want) in [
            (r#""traceId":"xyz""#, "traceId must be hexadecimal"),
            (r#""kind":"SPAN_KIND_SERVER""#, "kind must be the enum's integer"),
            (r#""startTimeUnixNano":-1"#, "startTimeUnixNano is out of range"),
            (r#""attributes":{}"#, "attributes must be a list"),
            (r#""name":[]"#, "name must not be a list"),
            (r#""name":7"#, "name must be a string"),
        ] {
            let error = traces(&span_json(fields)).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
        assert!(traces("{").unwrap_err().contains("line 1"));
        assert!(traces("[]").unwrap_err().contains("an object"));
        assert!(traces("{} x").unwrap_err().contains("trailing"));
    }

    #[test]
    fn what_protobufs_mapping_excludes_is_refused() {
        let id = r#""traceId":"5b8efff798038103d269b633813fc60c""#;
        for (fields, want) in [
            (format!("{id},{id}"), "Span has traceId more than once"),
            (format!(r#"{id},"trace_id":"00""#), "Span has traceId more than once"),
            (attribute(r#""stringValue":"a","intValue":1"#), "AnyValue has intValue more than once, or beside"),
            (attribute(r#""arrayValue":{"values":[null]}"#), "null is no element of values"),
            (attribute(r#""doubleValue":"inf""#), "doubleValue must be a number"),
            (attribute(r#""doubleValue":"1e999""#), "doubleValue must be a number"),
            (attribute(r#""intValue":"9223372036854775808""#), "intValue is out of range"),
            (attribute(r#""intValue":9223372036854775808"#), "intValue is out of range"),
            (attribute(r#""intValue":1e30"#), "intValue is out of range"),
            (attribute(r#""intValue":"+1""#), "intValue must be an integer"),
            (attribute(r#""intValue":1.5"#), "intValue must be a whole number"),
            (attribute(r#""boolValue":"true""#), "boolValue must be"),
            (attribute(r#""bytesValue":"*""#), "bytesValue must be base64"),
            (r#""traceId":"0x5b8efff798038103d269b633813fc60c""#.into(), "traceId must be hexadecimal"),
            (r#""startTimeUnixNano":18446744073709551616"#.into(), "startTimeUnixNano is out of range"),
        ] {
            let error = traces(&span_json(&fields)).unwrap_err();
            assert!(error.contains(want), "{fields}: {error}");
        }
        let wrong = [&b"{\"unknown\":\""[..], b"\xff", b"\"}"].concat();
        assert!(transcode(Signal::Traces, &wrong).unwrap_err().message().contains("not UTF-8 from byte 12"));
        assert!(traces("\u{feff}{}").is_err(), "a byte order mark is no JSON");
        assert!(traces("").is_err());
    }

    fn attribute(value: &str) -> String {
        format!(r#""attributes":[{{"key":"k","value":{{{value}}}}}]"#)
    }

    #[test]
    fn values_at_their_edges() {
        for (json, want) in [
            (r#""intValue":"-9223372036854775808""#, Some(Value::IntValue(i64::MIN))),
            (r#""intValue":9223372036854775807"#, Some(Value::IntValue(i64::MAX))),
            (r#""intValue":1e3"#, Some(Value::IntValue(1000))),
            (r#""intValue":null,"stringValue":"s""#, Some(Value::StringValue("s".into()))),
            (r#""doubleValue":"-Infinity""#, Some(Value::DoubleValue(f64::NEG_INFINITY))),
            (r#""doubleValue":"1.5""#, Some(Value::DoubleValue(1.5))),
            (r#""bytesValue":"_-8""#, Some(Value::BytesValue(vec![0xff, 0xef]))),
            (r#""bytesValue":"/+8=""#, Some(Value::BytesValue(vec![0xff, 0xef]))),
            (r#""string_value":"snake""#, Some(Value::StringValue("snake".into()))),
            (r#""string_value_":"s","StringValue":"s","stringvalue":"s""#, None),
        ] {
            let got = traces(&span_json(&attribute(json))).unwrap();
            let value = got.resource_spans[0].scope_spans[0].spans[0].attributes[0].value.clone();
            assert_eq!(value.unwrap().value, want, "{json}");
        }
        // What a browser sends that cut a text within an emoji.
        let cut = traces(&span_json(r#""name":"cut \ud83d""#)).unwrap();
        assert_eq!(cut.resource_spans[0].scope_spans[0].spans[0].name, "cut \u{fffd}");
        let nan = traces(&span_json(&attribute(r#""doubleValue":"NaN""#))).unwrap();
        let nan = nan.resource_spans[0].scope_spans[0].spans[0].attributes[0].value.clone();
        assert!(matches!(nan.unwrap().value, Some(Value::DoubleValue(nan)) if nan.is_nan()));
    }

    #[test]
    fn what_would_be_too_large_is_not_made() {
        let bounds = format!(
            r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"histogram":{{"dataPoints":[{{"explicitBounds":[1{}]}}]}}}}]}}]}}]}}"#,
            ",1".repeat(5000)
        );
        assert!(transcode_within(Signal::Metrics, bounds.as_bytes(), 50_000).is_ok());
        let error = transcode_within(Signal::Metrics, bounds.as_bytes(), bounds.len()).unwrap_err();
        assert!(error.message().contains("--request-bytes-max"), "{error}");
    }

    #[test]
    fn the_examples_of_opentelemetry_transcode() {
        let logs = transcode(Signal::Logs, include_bytes!("../testdata/logs.json")).unwrap();
        let logs = ExportLogsServiceRequest::decode(&logs[..]).unwrap();
        assert_eq!(logs.resource_logs[0].scope_logs[0].log_records[0].severity_text, "Information");
        let metrics = transcode(Signal::Metrics, include_bytes!("../testdata/metrics.json")).unwrap();
        let metrics = ExportMetricsServiceRequest::decode(&metrics[..]).unwrap();
        let kinds = &metrics.resource_metrics[0].scope_metrics[0].metrics;
        assert!(matches!(kinds[0].data, Some(Data::Sum(_))));
        let trace = transcode(Signal::Traces, include_bytes!("../testdata/trace.json")).unwrap();
        let trace = ExportTraceServiceRequest::decode(&trace[..]).unwrap();
        assert_eq!(trace.resource_spans[0].scope_spans[0].spans[0].name, "I'm a server span");
    }
}
