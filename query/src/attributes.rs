//! OTLP attributes: as JSON for people, and looked up by name for the mapping.

use std::borrow::Cow;
use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use custody_proto::wire::{AnyValue, KeyValue, Value};
use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::compute::kernels::cast_utils::string_to_datetime;
use serde_json::{Map, Value as Json};

use crate::rows::Time;

/// How deep a value is followed; the scanner lets nothing deeper in.
const DEPTH_MAX: usize = 100;

/// A value as JSON: bytes as base64, and numbers that JSON lacks as text.
pub fn any_value_json(value: &AnyValue<'_>) -> Json {
    json(value, DEPTH_MAX)
}

fn json(value: &AnyValue<'_>, depth: usize) -> Json {
    match &value.value {
        _ if depth == 0 => Json::Null,
        None => Json::Null,
        Some(Value::StringValue(s)) => Json::String(conceal(s).unwrap_or_else(|| (*s).to_owned())),
        Some(Value::BoolValue(b)) => Json::Bool(*b),
        Some(Value::IntValue(i)) => Json::from(*i),
        Some(Value::DoubleValue(d)) => {
            serde_json::Number::from_f64(*d).map_or_else(|| Json::String(d.to_string()), Json::Number)
        }
        Some(Value::ArrayValue(list)) => list.values.iter().map(|v| json(v, depth - 1)).collect(),
        Some(Value::KvlistValue(list)) => object(&list.values, depth - 1),
        Some(Value::BytesValue(bytes)) => Json::String(STANDARD.encode(bytes)),
        Some(_) => Json::Null,
    }
}

fn object(attributes: &[KeyValue<'_>], depth: usize) -> Json {
    Json::Object(members(attributes, depth))
}

fn members(attributes: &[KeyValue<'_>], depth: usize) -> Map<String, Json> {
    let mut out = Map::new();
    // How often a key came that came twice: thousands of one key must not take their square.
    let mut times: HashMap<&str, u64> = HashMap::new();
    for attribute in attributes {
        let value = conceal_token(attribute)
            .map_or_else(|| attribute.value.as_ref().map_or(Json::Null, |v| json(v, depth)), Json::String);
        let mut key = attribute.key.to_owned();
        // A key that comes twice keeps both values: the second as `key#2`.
        while out.contains_key(&key) {
            let times = times.entry(attribute.key).or_insert(1);
            *times += 1;
            key = format!("{}#{times}", attribute.key);
        }
        out.insert(key, value);
    }
    out
}

/// A text that is a signed token (a JWS in compact form, RFC 7515 section 7.1), with its
/// signature replaced by a digest: rows are for reading, and whoever reads one must not be able
/// to use it. The log keeps what was sent; `custody serve --redact` keeps it out of there too.
pub(crate) fn conceal(text: &str) -> Option<String> {
    let (scheme, token) = match text.split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer ") => (scheme, token),
        _ => ("", text),
    };
    // The header is a JSON object, so every token begins so.
    let (signed, signature) = token.strip_prefix("eyJ")?.rsplit_once('.')?;
    let is_part =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let (header, payload) = signed.split_once('.')?;
    if ![header, payload, signature].into_iter().all(is_part) {
        return None;
    }
    Some(format!("{scheme}eyJ{signed}.blake3:{}", blake3::hash(signature.as_bytes()).to_hex()))
}

/// The attribute with a grant's token, of whatever format.
pub(crate) const TOKEN: &str = "authz.grant.token";

/// The token of a grant that is no JWS: which of its parts makes it usable depends on its format,
/// so all of it is replaced. It may come as text, as bytes, or with those above it.
fn conceal_token(attribute: &KeyValue<'_>) -> Option<String> {
    if attribute.key != TOKEN {
        return None;
    }
    let value = attribute.value.as_ref()?;
    let digest = match value.value.as_ref()? {
        Value::StringValue(text) if text.is_empty() || conceal(text).is_some() => return None,
        Value::StringValue(text) => blake3::hash(text.as_bytes()),
        Value::BytesValue(bytes) => blake3::hash(bytes),
        Value::ArrayValue(_) | Value::KvlistValue(_) => blake3::hash(json(value, DEPTH_MAX).to_string().as_bytes()),
        _ => return None,
    };
    Some(format!("blake3:{}", digest.to_hex()))
}

/// Attributes as the members of a JSON object.
pub(crate) fn attributes_map(attributes: &[KeyValue<'_>]) -> Map<String, Json> {
    members(attributes, DEPTH_MAX)
}

/// Attributes as one JSON object: the same text as that of [`any_value_json`], without the values between.
pub fn attributes_json(attributes: &[KeyValue<'_>]) -> String {
    let mut out = String::with_capacity(2 + attributes.iter().map(|a| a.key.len() + 24).sum::<usize>());
    write_attributes(&mut out, attributes);
    out
}

/// Writes [`attributes_json`] behind what is there.
pub(crate) fn write_attributes(out: &mut String, attributes: &[KeyValue<'_>]) {
    write_object(out, attributes, DEPTH_MAX);
}

fn write_object(out: &mut String, attributes: &[KeyValue<'_>], depth: usize) {
    if attributes.len() > FEW || has_twins(attributes) {
        // Names that came twice get others, and very many are not compared with each other.
        return write_json(out, &object(attributes, depth));
    }
    out.push('{');
    for (i, attribute) in attributes.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        write_text(out, attribute.key);
        out.push(':');
        match (&attribute.value, conceal_token(attribute)) {
            (_, Some(concealed)) => write_text(out, &concealed),
            (Some(value), None) => write_value(out, value, depth),
            (None, None) => out.push_str("null"),
        }
    }
    out.push('}');
}

/// The keys of up to this many attributes are compared, those that look alike with each other.
const FEW: usize = 64;

fn has_twins(attributes: &[KeyValue<'_>]) -> bool {
    let mut seen = 0u64;
    attributes.iter().enumerate().any(|(i, one)| {
        // Keys of one length with one last letter share a bit, and few others do.
        let last = one.key.as_bytes().last().copied().unwrap_or_default();
        let bit = 1 << ((one.key.len() * 7 + usize::from(last)) % 64);
        let is_alike = seen & bit != 0;
        seen |= bit;
        is_alike && attributes[..i].iter().any(|other| one.key == other.key)
    })
}

fn write_value(out: &mut String, value: &AnyValue<'_>, depth: usize) {
    match &value.value {
        // A token is written as `json` writes it: without what makes it usable.
        Some(Value::StringValue(text)) if depth > 0 && conceal(text).is_none() => write_text(out, text),
        Some(Value::IntValue(number)) if depth > 0 => write_json(out, number),
        Some(Value::KvlistValue(list)) if depth > 0 => write_object(out, &list.values, depth - 1),
        Some(Value::ArrayValue(list)) if depth > 0 => {
            out.push('[');
            for (i, item) in list.values.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_value(out, item, depth - 1);
            }
            out.push(']');
        }
        _ => write_json(out, &json(value, depth)),
    }
}

/// A text of JSON (RFC 8259, section 7), as serde_json writes it.
pub(crate) fn write_text(out: &mut String, text: &str) {
    out.push('"');
    let escaped = |byte: &u8| *byte < 0x20 || matches!(byte, b'"' | b'\\');
    // All bytes are looked at, without a branch: many at once. Nearly no text has anything to escape.
    match text.as_bytes().iter().fold(false, |any, byte| any | escaped(byte)) {
        true => write_escaped(out, text),
        false => out.push_str(text),
    }
    out.push('"');
}

fn write_escaped(out: &mut String, text: &str) {
    out.reserve(text.len() + text.len() / 8);
    let mut plain = 0;
    for (i, byte) in text.bytes().enumerate() {
        let short = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0x08 => "\\b",
            0x0c => "\\f",
            0..0x20 => "\\u00",
            _ => continue,
        };
        // What is escaped is a byte of its own, so this is no place within a character.
        out.push_str(&text[plain..i]);
        out.push_str(short);
        if short.len() > 2 {
            out.extend([byte >> 4, byte & 15].map(|half| char::from(b"0123456789abcdef"[usize::from(half)])));
        }
        plain = i + 1;
    }
    out.push_str(&text[plain..]);
}

fn write_json(out: &mut String, value: &impl std::fmt::Display) {
    use std::fmt::Write as _;
    // Writing to memory does not fail, and none of these values refuses to be JSON.
    let written = write!(out, "{value}");
    debug_assert!(written.is_ok());
}

/// An attribute's non-empty text, or its number or truth value as text.
pub(crate) fn text_of<'a>(attribute: &KeyValue<'a>) -> Option<Cow<'a, str>> {
    Some(match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue("") => return None,
        Value::StringValue(text) => Cow::Borrowed(*text),
        Value::IntValue(i) => i.to_string().into(),
        Value::BoolValue(flag) => Cow::Borrowed(if *flag { "true" } else { "false" }),
        Value::DoubleValue(d) => d.to_string().into(),
        _ => return None,
    })
}

/// An attribute's list of texts; a single text is a list of one.
pub(crate) fn list_of(attribute: &KeyValue<'_>) -> Vec<String> {
    match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::ArrayValue(list)) => {
            let text = |v: &AnyValue<'_>| match json(v, DEPTH_MAX) {
                Json::String(s) => s,
                other => other.to_string(),
            };
            list.values.iter().map(text).collect()
        }
        _ => text_of(attribute).map(Cow::into_owned).into_iter().collect(),
    }
}

/// Attributes, looked up by name. The first of a name wins.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a>(pub &'a [KeyValue<'a>]);

impl<'a> Attributes<'a> {
    fn find(&self, name: &str) -> Option<&'a KeyValue<'a>> {
        self.0.iter().find(|attribute| attribute.key == name)
    }

    /// Whether there is such an attribute.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// A non-empty text, or a number or truth value as text.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.lent(name).map(Cow::into_owned)
    }

    /// The same, for who only looks at it.
    pub(crate) fn lent(&self, name: &str) -> Option<Cow<'a, str>> {
        text_of(self.find(name)?)
    }

    /// Whether there is such a text.
    pub(crate) fn has_text(&self, name: &str) -> bool {
        self.lent(name).is_some()
    }

    /// The first of several names that has a text.
    pub(crate) fn first(&self, names: &[&str]) -> Option<String> {
        names.iter().find_map(|name| self.text(name))
    }

    /// A list of texts; a single text is a list of one.
    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        self.find(name).map_or_else(Vec::new, list_of)
    }

    pub(crate) fn number(&self, name: &str) -> Option<u32> {
        self.lent(name)?.parse().ok()
    }

    /// A time: RFC 3339 text, or an integer in seconds since the epoch.
    pub(crate) fn time(&self, name: &str) -> Option<Time> {
        match self.find(name)?.value.as_ref()?.value.as_ref()? {
            Value::StringValue(s) => parse_time(s),
            Value::IntValue(i) => i.checked_mul(1_000_000_000).map(Time),
            Value::DoubleValue(d) => seconds_time(*d),
            _ => None,
        }
    }
}

/// Seconds since the epoch, with fractions. What is beyond nanoseconds of 64 bits is no time: cut
/// to the last of them it would be a limit that never comes.
pub(crate) fn seconds_time(seconds: f64) -> Option<Time> {
    let nanos = seconds * 1e9;
    (nanos.abs() < 9.2e18).then_some(Time(nanos as i64))
}

/// Reads an RFC 3339 time, or seconds since the epoch as digits.
pub(crate) fn parse_time(text: &str) -> Option<Time> {
    // A time beyond what nanoseconds can say is as far as they reach: 9999-12-31 is how many say "never".
    if let Ok(seconds) = text.parse::<i64>() {
        return Some(Time(seconds.saturating_mul(1_000_000_000)));
    }
    let utc: Tz = "UTC".parse().ok()?;
    let time = string_to_datetime(&utc, text).ok()?;
    let far = if time.timestamp() < 0 { i64::MIN } else { i64::MAX };
    Some(Time(time.timestamp_nanos_opt().unwrap_or(far)))
}

/// Whether it is an id: all zeros stand for none.
pub(crate) fn is_id(bytes: &[u8]) -> bool {
    bytes.iter().any(|b| *b != 0)
}

/// Lowercase hex, or nothing for no id.
pub(crate) fn hex_id(bytes: &[u8]) -> Option<String> {
    is_id(bytes).then(|| const_hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use custody_proto::wire::{ArrayValue, KeyValueList};

    use super::*;

    fn text<'a>(key: &'a str, value: &'a str) -> KeyValue<'a> {
        KeyValue { key, value: Some(AnyValue { value: Some(Value::StringValue(value)) }) }
    }

    #[test]
    fn times_are_read_as_far_as_they_reach() {
        let time = |text: &str| parse_time(text).map(|time| time.0);
        assert_eq!(time("2026-11-20T09:00:00.5Z"), Some(1_795_165_200_500_000_000));
        assert_eq!(time("2026-11-20T10:00:00+01:00"), Some(1_795_165_200_000_000_000));
        assert_eq!(time("2026-11-20"), Some(1_795_132_800_000_000_000));
        assert_eq!(time("1795165200"), Some(1_795_165_200_000_000_000));
        assert_eq!((time("9999-12-31T23:59:59Z"), time("253402300799")), (Some(i64::MAX), Some(i64::MAX)));
        assert_eq!(time("0001-01-01T00:00:00Z"), Some(i64::MIN));
        assert_eq!((time("never"), time("")), (None, None));
    }

    #[test]
    fn nothing_is_lost_on_the_way_to_json() {
        let attributes = [
            text("a", "1"),
            text("a", "2"),
            KeyValue { key: "n", value: Some(AnyValue { value: Some(Value::DoubleValue(f64::NAN)) }) },
            KeyValue { key: "b", value: Some(AnyValue { value: Some(Value::BytesValue(&[1, 2])) }) },
        ];
        assert_eq!(attributes_json(&attributes), r##"{"a":"1","a#2":"2","n":"NaN","b":"AQI="}"##);
    }

    #[test]
    fn a_token_of_any_format_is_shown_as_its_digest() {
        let any = |value| Some(AnyValue { value: Some(value) });
        let token = |value| KeyValue { key: TOKEN, value: any(value) };
        let list = ArrayValue { values: ["warrant", "above it"].map(|t| any(Value::StringValue(t)).unwrap()).into() };
        for one in [Value::StringValue("warrant"), Value::BytesValue(b"warrant"), Value::ArrayValue(list)] {
            let both = [text("a", "warrant of arrest"), token(one)];
            let written = attributes_json(&both);
            assert_eq!(written, Json::Object(attributes_map(&both)).to_string());
            assert!(written.starts_with(r#"{"a":"warrant of arrest","authz.grant.token":"blake3:"#), "{written}");
            assert!(!written.contains("d2FycmFudA") && !written.contains("above it"), "{written}");
        }
        // Of a JWS the claims are shown, as ever, and of nothing nothing.
        let jws = attributes_json(&[token(Value::StringValue("eyJh.eyJq.c2ln"))]);
        assert!(jws.contains("eyJh.eyJq.blake3:") && !jws.contains("c2ln"), "{jws}");
        assert_eq!(attributes_json(&[token(Value::StringValue(""))]), r#"{"authz.grant.token":""}"#);
    }

    #[test]
    fn written_at_once_it_is_the_same_text() {
        let any = |value| Some(AnyValue { value: Some(value) });
        let pair = |key, value| KeyValue { key, value };
        let list = ArrayValue {
            values: vec![
                AnyValue { value: None },
                any(Value::DoubleValue(1e300)).unwrap(),
                any(Value::IntValue(-7)).unwrap(),
            ],
        };
        let mut deep = any(Value::StringValue("\u{1}\"quoted\" \u{1f600}\n"));
        for _ in 0..120 {
            let values = vec![pair("in", deep)];
            deep = any(Value::KvlistValue(KeyValueList { values }));
        }
        let twins = KeyValueList { values: vec![text("t", "1"), text("t", "2")] };
        let attributes = [
            pair("deep", deep),
            pair("list", any(Value::ArrayValue(list))),
            pair("none", None),
            pair("true", any(Value::BoolValue(true))),
            pair("", any(Value::KvlistValue(twins))),
        ];
        assert_eq!(attributes_json(&attributes), object(&attributes, DEPTH_MAX).to_string());
        let token = [text("token", "eyJhbGciOiJFUzI1NiJ9.eyJqdGkiOiJnIn0.c2ln")];
        assert_eq!(attributes_json(&token), object(&token, DEPTH_MAX).to_string());
        assert_eq!(attributes_json(&[]), "{}");
    }

    /// The texts that a JSON writer treats in its own way, each alone and among others.
    #[test]
    fn texts_are_written_as_json_has_them() {
        let every = (0..0x180).chain([0x2028, 0x2029, 0xffff, 0x1f600]).filter_map(char::from_u32);
        let texts = every.flat_map(|c| [c.to_string(), format!("some text {c} and some more")]);
        for one in texts.chain([String::new(), "x".repeat(1000), "\\".repeat(40)]) {
            let mut out = String::from("before");
            write_text(&mut out, &one);
            assert_eq!(out, format!("before{}", serde_json::to_string(&one).unwrap()));
        }
    }

    /// Where no two keys are alike, and where only the last two are, whatever the keys look like.
    #[test]
    fn keys_that_come_twice_are_seen() {
        for n in [1, 2, 23, 24, 25, 63, 64, 65, 200] {
            for key in [|i: usize| format!("key.{i}"), |i| "k".repeat(i + 1), |i| format!("{i:08}")] {
                let mut keys: Vec<String> = (0..n).map(key).collect();
                let json = |keys: &[String]| {
                    let all: Vec<_> = keys.iter().map(|key| text(key, "v")).collect();
                    assert_eq!(attributes_json(&all), object(&all, DEPTH_MAX).to_string());
                    serde_json::from_str::<Map<String, Json>>(&attributes_json(&all)).unwrap()
                };
                assert_eq!(json(&keys).len(), n);
                keys.push(keys[n / 2].clone());
                let twice = json(&keys);
                assert_eq!((twice.len(), twice.keys().next_back().unwrap()), (n + 1, &format!("{}#2", keys[n / 2])));
            }
        }
    }

    #[test]
    fn a_key_that_comes_again_and_again_takes_linear_time() {
        let values: Vec<String> = (0..100_000).map(|i| i.to_string()).collect();
        let many: Vec<_> = values.iter().map(|value| text("k", value)).collect();
        let json: Map<String, Json> = serde_json::from_str(&attributes_json(&many)).unwrap();
        assert_eq!((json.len(), &json["k"], &json["k#100000"]), (100_000, &Json::from("0"), &Json::from("99999")));
    }

    #[test]
    fn a_token_in_a_row_cannot_be_used() {
        let json = attributes_json(&[
            text("t", "eyJhbGciOiJFUzI1NiJ9.eyJqdGkiOiJnIn0.c2ln"),
            text("h", "Bearer eyJh.eyJq.c2ln"),
        ]);
        assert!(
            json.contains("eyJhbGciOiJFUzI1NiJ9.eyJqdGkiOiJnIn0.blake3:") && json.contains("Bearer eyJh.eyJq.blake3:")
        );
        assert!(!json.contains("c2ln"), "{json}");
        for other in ["eyJhbGciOiJub25lIn0.eyJqdGkiOiJnIn0.", "eyJ", "eyJ..", "bearer €", "a.b.c", "eyJa.b c.d"] {
            assert_eq!(conceal(other), None, "{other}");
        }
    }

    #[test]
    fn times_are_read_in_both_forms() {
        assert_eq!(parse_time("2026-11-20T09:00:00Z"), Some(Time(1_795_165_200_000_000_000)));
        assert_eq!(parse_time("1700000000"), Some(Time(1_700_000_000_000_000_000)));
        assert_eq!(parse_time("soon"), None);
    }
}
