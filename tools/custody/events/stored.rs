//! Stored events, as a SIEM kept them: how they are read, and by what they are known.
//!
//! A member that is there twice is read under two names, so that none hides behind the other. The version of the
//! product is left out: an upgrade changes it in every event, and nothing else.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::Failure;

/// Stands behind the name of a member that is there again.
pub(super) const AGAIN: &str = " (again)";

/// What was stored of one event.
pub(super) struct Stored {
    pub(super) seq: u64,
    pub(super) digest: [u8; 16],
    pub(super) record_hash: Option<String>,
    /// The version of the mapping that made it.
    pub(super) mapping: Option<u64>,
    pub(super) copies: u64,
    /// Its copies are not the same.
    pub(super) is_varied: bool,
    pub(super) known: bool,
}

impl Stored {
    pub(super) fn of(event: &Value, seq: u64) -> Self {
        // OCSF has it in the extension, ECS beside its own fields.
        let hashes = [&event["record_hash"], &event["custody"]["record_hash"]];
        Self {
            seq,
            digest: digest(event),
            record_hash: hashes.into_iter().find_map(|hash| hash.as_str().map(str::to_owned)),
            mapping: mapping(event),
            copies: 0,
            is_varied: false,
            known: false,
        }
    }
}

/// The version of the mapping that made an event.
pub(super) fn mapping(event: &Value) -> Option<u64> {
    match event["custody"]["mapping"].as_str() {
        Some(mapping) => mapping.rsplit_once('/')?.1.parse().ok(),
        None => event["mapping_version"].as_u64(),
    }
}

/// How an event names itself: its id, its seq, and the format that has them where they stand.
pub(super) fn named(event: &Value) -> Option<(&str, u64, &'static str)> {
    let at = |of: &str, id: &str| Some((event[of][id].as_str()?, event[of]["sequence"].as_u64()?));
    if let Some((uid, seq)) = at("metadata", "uid") {
        return Some((uid, seq, if event["class_uid"].is_number() { "ocsf" } else { "raw" }));
    }
    // SIEMs give events of their own an `event`, too.
    let (uid, seq) = at("event", "id").filter(|_| event["custody"].is_object())?;
    Some((uid, seq, "ecs"))
}

/// Reads an event; `None` if it is no JSON.
pub(super) fn parse(line: &[u8]) -> Option<Value> {
    let Whole(mut event) = serde_json::from_slice(line).ok()?;
    for path in ["/metadata/product", "/observer"] {
        if let Some(product) = event.pointer_mut(path).and_then(Value::as_object_mut) {
            product.remove("version");
        }
    }
    Some(event)
}

/// A value in which a member that is there twice shows: plain reading keeps the last one.
struct Whole(Value);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reading).map(Self)
    }
}

struct Reading;

impl<'de> Visitor<'de> for Reading {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(flag.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Whole(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some((mut name, Whole(value))) = map.next_entry::<String, Whole>()? {
            while members.contains_key(&name) {
                name.push_str(AGAIN);
            }
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}

/// A digest of an event that does not depend on the order of its members.
pub(super) fn digest(event: &Value) -> [u8; 16] {
    fn feed(hasher: &mut blake3::Hasher, value: &Value) {
        match value {
            Value::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                members.sort_unstable_by_key(|(name, _)| *name);
                hasher.update(b"{");
                for (name, value) in members {
                    hasher.update(Value::String(name.clone()).to_string().as_bytes()).update(b":");
                    feed(hasher, value);
                }
                hasher.update(b"}");
            }
            Value::Array(items) => {
                hasher.update(b"[");
                items.iter().for_each(|item| {
                    feed(hasher, item);
                    hasher.update(b",");
                });
                hasher.update(b"]");
            }
            plain => {
                hasher.update(plain.to_string().as_bytes());
            }
        }
    }
    let mut hasher = blake3::Hasher::new();
    feed(&mut hasher, event);
    let mut out = [0; 16];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    out
}

/// Each line of a file that is not empty; gzip is known by its first bytes.
pub(super) fn each_line(path: &Path, mut each: impl FnMut(&[u8])) -> Result<(), Failure> {
    let fail = |e: std::io::Error| Failure::unable(format!("{} cannot be read: {e}", path.display()));
    let mut file = BufReader::new(File::open(path).map_err(fail)?);
    let is_gzip = file.fill_buf().map_err(fail)?.starts_with(&[0x1f, 0x8b]);
    let mut reader: Box<dyn BufRead> = match is_gzip {
        true => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(file))),
        false => Box::new(file),
    };
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(fail)? == 0 {
            return Ok(());
        }
        let trimmed = line.trim_ascii();
        if !trimmed.is_empty() {
            each(trimmed);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_member_that_is_there_twice_does_not_hide() {
        let read = |text: &str| parse(text.as_bytes()).unwrap();
        assert_eq!(read(r#"{"a":1,"a":2,"a":{"b":[],"b":null}}"#).to_string(), {
            json!({"a": 1, "a (again)": 2, "a (again) (again)": {"b": [], "b (again)": null}}).to_string()
        });
        let plain = r#"[{"t":"x\n","n":-1,"u":18446744073709551615,"f":1.5,"b":true},null]"#;
        assert_eq!(read(plain), serde_json::from_str::<Value>(plain).unwrap());
        assert!(parse(b"{\"a\":1").is_none() && parse(b"{} x").is_none());
    }

    #[test]
    fn the_version_of_the_product_is_left_out_and_no_other() {
        let read = |event: Value| parse(event.to_string().as_bytes()).unwrap();
        let told = read(json!({"metadata": {"version": "1.8.0", "product": {"name": "Custody", "version": "0.1"}}}));
        assert_eq!(told, json!({"metadata": {"version": "1.8.0", "product": {"name": "Custody"}}}));
        let told = read(json!({"observer": {"version": "0.1", "type": "ledger"}, "ecs": {"version": "8.17.0"}}));
        assert_eq!(told, json!({"observer": {"type": "ledger"}, "ecs": {"version": "8.17.0"}}));
    }

    #[test]
    fn every_format_says_which_mapping_made_it() {
        assert_eq!(mapping(&json!({"source": "codex", "mapping_version": 7})), Some(7));
        assert_eq!(mapping(&json!({"custody": {"mapping": "codex/6"}})), Some(6));
        assert_eq!(mapping(&json!({"custody": {"mapping": "codex"}, "mapping_version": 6})), None);
    }
}
