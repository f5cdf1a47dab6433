//! Writes one line of JSON without a tree of values, and reads the members of an object off its text.
//!
//! What is written never holds a line feed or another control character, so a line is a record, and
//! a terminal that shows it takes no commands from it.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Writes objects and lists into a text.
pub(super) struct Writer<'a> {
    out: &'a mut String,
    /// Whether the next member follows another.
    follows: bool,
}

impl<'a> Writer<'a> {
    pub(super) fn new(out: &'a mut String) -> Self {
        Self { out, follows: false }
    }

    fn comma(&mut self) {
        if self.follows {
            self.out.push(',');
        }
        self.follows = true;
    }

    /// Keys are names of a schema: they need no escaping.
    fn key(&mut self, key: &'static str) {
        self.comma();
        self.out.push('"');
        self.out.push_str(key);
        self.out.push_str("\":");
    }

    fn within(&mut self, open: char, close: char, inside: impl FnOnce(&mut Self)) {
        self.out.push(open);
        self.follows = false;
        inside(self);
        self.out.push(close);
        self.follows = true;
    }

    /// The outermost object.
    pub(super) fn root(&mut self, inside: impl FnOnce(&mut Self)) {
        self.within('{', '}', inside);
    }

    /// A member that is an object.
    pub(super) fn object(&mut self, key: &'static str, inside: impl FnOnce(&mut Self)) {
        self.key(key);
        self.within('{', '}', inside);
    }

    /// A member that is a list; `inside` adds [`Writer::item`]s or [`Writer::item_text`]s.
    pub(super) fn list(&mut self, key: &'static str, inside: impl FnOnce(&mut Self)) {
        self.key(key);
        self.within('[', ']', inside);
    }

    /// An object in a list.
    pub(super) fn item(&mut self, inside: impl FnOnce(&mut Self)) {
        self.comma();
        self.within('{', '}', inside);
    }

    /// A text in a list.
    pub(super) fn item_text(&mut self, text: &str) {
        self.comma();
        string(self.out, text);
    }

    pub(super) fn text(&mut self, key: &'static str, text: &str) {
        self.key(key);
        string(self.out, text);
    }

    /// Nothing, if there is no text.
    pub(super) fn some(&mut self, key: &'static str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    pub(super) fn number(&mut self, key: &'static str, number: impl std::fmt::Display) {
        self.key(key);
        let _ = write!(self.out, "{number}");
    }

    pub(super) fn flag(&mut self, key: &'static str, flag: bool) {
        self.key(key);
        self.out.push_str(if flag { "true" } else { "false" });
    }

    /// Nothing, if the list is empty.
    pub(super) fn texts<T: AsRef<str>>(&mut self, key: &'static str, texts: &[T]) {
        if !texts.is_empty() {
            self.list(key, |w| texts.iter().for_each(|text| w.item_text(text.as_ref())));
        }
    }

    /// A value that is JSON already, on one line.
    pub(super) fn raw(&mut self, key: &'static str, json: &str) {
        self.key(key);
        self.out.push_str(json);
    }

    /// A member whose key is JSON already, with its quotes.
    pub(super) fn raw_member(&mut self, key: &str, json: &str) {
        self.comma();
        self.out.push_str(key);
        self.out.push(':');
        self.out.push_str(json);
    }

    /// Text that a key and a writer of more begin with: several pieces as one string.
    pub(super) fn pieces(&mut self, key: &'static str, pieces: &[&str]) {
        self.key(key);
        self.out.push('"');
        pieces.iter().for_each(|piece| escape(self.out, piece));
        self.out.push('"');
    }
}

/// A string with its quotes.
pub(super) fn string(out: &mut String, text: &str) {
    out.push('"');
    escape(out, text);
    out.push('"');
}

/// Bytes that a string of ours does not hold as they are: 1 quotes and backslashes, 2 control characters.
static SPECIAL: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = 2;
        byte += 1;
    }
    table[b'"' as usize] = 1;
    table[b'\\' as usize] = 1;
    table[0x7f] = 2;
    // The first byte of C1 controls, and of more.
    table[0xc2] = 2;
    table
};

/// Escapes what JSON must, and C1 controls and DEL besides: some terminals obey them.
fn escape(out: &mut String, text: &str) {
    let bytes = text.as_bytes();
    let (mut from, mut at) = (0, 0);
    while let Some(next) = bytes[at..].iter().position(|b| SPECIAL[usize::from(*b)] != 0) {
        at += next;
        let (short, length) = match bytes[at] {
            b'"' => ("\\\"", 1),
            b'\\' => ("\\\\", 1),
            b'\n' => ("\\n", 1),
            b'\r' => ("\\r", 1),
            b'\t' => ("\\t", 1),
            0xc2 if bytes.get(at + 1).is_some_and(|next| *next >= 0xa0) => {
                at += 2;
                continue;
            }
            0xc2 => ("", 2),
            _ => ("", 1),
        };
        out.push_str(&text[from..at]);
        out.push_str(short);
        if short.is_empty() {
            let _ = write!(out, "\\u{:04x}", bytes[at + length - 1]);
        }
        at += length;
        from = at;
    }
    out.push_str(&text[from..]);
}

/// The members of a JSON object, as they stand in its text. Reads what [`is_plain_object`] has found sound.
pub(super) struct Members<'a> {
    text: &'a str,
    at: usize,
}

/// Whether a text is a JSON object on one line that needs no second look: no blanks that break a
/// line, no escape that could be half a character.
pub(super) fn is_plain_object(text: &str) -> bool {
    text.starts_with('{')
        && !has_controls(text)
        && !(text.contains('\\') && (text.contains("\\ud") || text.contains("\\uD")))
        && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// Whether a text holds what [`escape`] would escape besides quotes and backslashes.
fn has_controls(text: &str) -> bool {
    let (bytes, mut at) = (text.as_bytes(), 0);
    while let Some(next) = bytes[at..].iter().position(|b| SPECIAL[usize::from(*b)] == 2) {
        at += next;
        if bytes[at] != 0xc2 || bytes.get(at + 1).is_some_and(|next| *next < 0xa0) {
            return true;
        }
        at += 1;
    }
    false
}

/// JSON without control characters: in JSON made by serde they stand in strings only.
pub(super) fn without_controls(json: String) -> String {
    if !has_controls(&json) {
        return json;
    }
    let mut out = String::with_capacity(json.len());
    for char in json.chars() {
        if char.is_control() {
            let _ = write!(out, "\\u{:04x}", u32::from(char));
        } else {
            out.push(char);
        }
    }
    out
}

impl<'a> Members<'a> {
    pub(super) fn of(object: &'a str) -> Self {
        Self { text: object, at: 1 }
    }

    fn skip_blanks(&mut self) {
        while self.text.as_bytes().get(self.at).is_some_and(|b| matches!(b, b' ' | b',' | b':')) {
            self.at += 1;
        }
    }

    /// The text of the value that begins here.
    fn value(&mut self) -> &'a str {
        let (bytes, from) = (self.text.as_bytes(), self.at);
        let mut depth = 0usize;
        while let Some(byte) = bytes.get(self.at) {
            match byte {
                b'"' => self.skip_string(),
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth == 0 => break,
                b'}' | b']' => depth -= 1,
                b',' | b':' | b' ' if depth == 0 => break,
                _ => {}
            }
            self.at += 1;
            if depth == 0 && matches!(byte, b'"' | b'}' | b']') {
                break;
            }
        }
        &self.text[from..self.at.min(bytes.len())]
    }

    /// From an opening quote to its closing one.
    fn skip_string(&mut self) {
        let bytes = self.text.as_bytes();
        self.at += 1;
        while let Some(byte) = bytes.get(self.at) {
            match byte {
                b'"' => return,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = (&'a str, &'a str);

    /// A key with its quotes, and its value.
    fn next(&mut self) -> Option<Self::Item> {
        self.skip_blanks();
        if self.text.as_bytes().get(self.at) != Some(&b'"') {
            return None;
        }
        let key = self.value();
        self.skip_blanks();
        Some((key, self.value()))
    }
}

/// The text of a JSON value: a string without its quotes and escapes, a number or truth value as it
/// stands; nothing for what is empty, null, a list or an object.
pub(super) fn text_of(json: &str) -> Option<Cow<'_, str>> {
    let text = match json.as_bytes().first()? {
        b'"' if !json.contains('\\') => Cow::Borrowed(json.get(1..json.len() - 1)?),
        b'"' => Cow::Owned(serde_json::from_str(json).ok()?),
        b'{' | b'[' | b'n' => return None,
        _ => Cow::Borrowed(json),
    };
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_written_so_that_it_is_read_back(text: String, list in proptest::collection::vec(any::<String>(), 0..3)) {
            let mut out = String::new();
            Writer::new(&mut out).root(|w| { w.text("t", &text); w.list("l", |w| list.iter().for_each(|t| w.item_text(t))); });
            prop_assert!(!out.chars().any(char::is_control));
            let mut want = serde_json::Map::new();
            want.insert("t".into(), text.into());
            want.insert("l".into(), list.into());
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap(), serde_json::Value::Object(want));
        }

        #[test]
        fn members_are_those_of_the_object(keys in proptest::collection::vec("[a-z\"\\\\{\\[:, ]{0,4}", 0..6), text: String, n: f64) {
            let values = [serde_json::json!(text), serde_json::json!({"a": [text, {"}": "]"}], "b": n}), serde_json::json!(n), serde_json::json!([[], {}]), serde_json::Value::Null, true.into()];
            let object: serde_json::Map<_, _> = keys.iter().cloned().zip(values).collect();
            let json = serde_json::Value::Object(object.clone()).to_string();
            let read: Vec<(String, String)> =
                Members::of(&json).map(|(k, v)| (serde_json::from_str(k).unwrap(), v.to_owned())).collect();
            prop_assert_eq!(read, object.into_iter().map(|(k, v)| (k, v.to_string())).collect::<Vec<_>>());
        }
    }
}
