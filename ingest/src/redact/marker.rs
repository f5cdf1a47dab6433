//! What stands where something was: `[redacted: rule]`, `[hashed: rule: 32 hex digits]`,
//! `[dropped: rule]`. A marker is never changed again, by whatever rule: so rules may be
//! applied to what was redacted before, and a retry becomes the same bytes.
//!
//! Only the rules in force make markers. Brackets around any other name are text like
//! any other: a sender could put a secret there.

use std::collections::HashMap;
use std::ops::Range;

/// The most bytes of a rule's name.
pub(super) const NAME_BYTES_MAX: usize = 64;

/// Hexadecimal digits of a hash.
const HASH_DIGITS: usize = 32;

/// What a rule does to what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A marker instead of the match (of the value, if the rule names only a key).
    Redact,
    /// The same, with a keyed hash: equal ones can be told, none can be guessed.
    Hash,
    /// A marker instead of the whole value.
    Drop,
}

impl Action {
    /// Its name in a rule file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Redact => "redact",
            Self::Hash => "hash",
            Self::Drop => "drop",
        }
    }
}

/// Whether a rule may have this name: it stands in markers and metrics.
pub(super) fn is_name(name: &str) -> bool {
    let inside = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    name.len() <= NAME_BYTES_MAX
        && name.bytes().all(inside)
        && name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric())
}

/// The marker that replaces `what`.
pub(super) fn marker(action: Action, rule: &str, what: &[u8], secret: &[u8; 32]) -> String {
    match action {
        Action::Redact => format!("[redacted: {rule}]"),
        Action::Drop => format!("[dropped: {rule}]"),
        Action::Hash => {
            let hash = blake3::keyed_hash(secret, what);
            format!("[hashed: {rule}: {}]", const_hex::encode(&hash.as_bytes()[..HASH_DIGITS / 2]))
        }
    }
}

/// The names of the rules in force, with what they do.
pub(super) struct Names(HashMap<String, Action>);

impl Names {
    /// Fails with a name that comes twice.
    pub(super) fn new<'a>(rules: impl Iterator<Item = (&'a str, Action)>) -> Result<Self, &'a str> {
        let mut names = HashMap::new();
        for (name, action) in rules {
            if names.insert(name.to_owned(), action).is_some() {
                return Err(name);
            }
        }
        Ok(Self(names))
    }

    /// The markers in a text, in order.
    pub(super) fn markers(&self, text: &[u8]) -> Vec<Range<usize>> {
        let mut out = Vec::new();
        let mut at = 0;
        while let Some(open) = text[at..].iter().position(|c| *c == b'[') {
            let from = at + open;
            at = from + 1;
            if let Some(len) = self.marker_len(&text[from..]) {
                at = from + len;
                out.push(from..at);
            }
        }
        out
    }

    /// Whether a text is one marker and nothing else.
    pub(super) fn is_marker(&self, text: &[u8]) -> bool {
        self.marker_len(text) == Some(text.len())
    }

    /// The length of the marker that a text begins with.
    fn marker_len(&self, text: &[u8]) -> Option<usize> {
        let (hashed, rest) = if let Some(rest) = text.strip_prefix(b"[hashed: ") {
            (true, rest)
        } else {
            (false, text.strip_prefix(b"[redacted: ").or_else(|| text.strip_prefix(b"[dropped: "))?)
        };
        let window = &rest[..rest.len().min(NAME_BYTES_MAX + 1)];
        let end = window.iter().position(|c| matches!(c, b']' | b':'))?;
        let action = self.0.get(std::str::from_utf8(&rest[..end]).ok()?)?;
        // Of a rule that once redacted and now drops, the marker says as little as before. A
        // hash has room for a secret: it is taken only where a rule writes one.
        if hashed && *action != Action::Hash {
            return None;
        }
        let rest = match (hashed, rest[end]) {
            (false, b']') => &rest[end..],
            (true, b':') => {
                let digits = rest[end..].strip_prefix(b": ")?;
                let is_digit = |c: &u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
                let (hash, rest) = digits.split_at_checked(HASH_DIGITS)?;
                hash.iter().all(is_digit).then_some(rest)?
            }
            _ => return None,
        };
        let rest = rest.strip_prefix(b"]")?;
        Some(text.len() - rest.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_of_a_rule_in_force_is_known_again_and_nothing_else_is() {
        let rules = [("aws-access-token", Action::Redact), ("a", Action::Hash), ("gone", Action::Drop)];
        let names = Names::new(rules.into_iter()).ok().unwrap();
        for (name, action) in rules {
            let marker = marker(action, name, b"AKIA", &[7; 32]);
            assert!(names.is_marker(marker.as_bytes()), "{marker}");
            assert_eq!(names.markers(format!("a {marker}[{marker}").as_bytes()).len(), 2);
        }
        let hash = |n: usize| format!("[hashed: a: {}]", "0".repeat(n));
        assert!(names.is_marker(hash(32).as_bytes()));
        let long = format!("[redacted: {}]", "a".repeat(65));
        for text in [
            "[redacted: ]",
            "[redacted: a b]",
            "[redacted: a",
            "[redacted: a: b]",
            "[redacted: A]",
            "[redacted: AKIAIOSFODNN7QWERTYU]",
            "[dropped: hunter2-MyPassw0rd]",
            "[hashed: a]",
            "[hashed: a: 00112233445566778899AABBCCDDEEFF]",
            "[hashed: gone: 00112233445566778899aabbccddeeff]",
            "[hashed: other: 00112233445566778899aabbccddeeff]",
            &hash(0),
            &hash(31),
            &hash(33),
            &long,
            "[",
        ] {
            assert!(names.markers(text.as_bytes()).is_empty(), "{text}");
        }
    }

    #[test]
    fn equal_values_have_equal_hashes_under_one_secret_only() {
        let of = |what: &[u8], secret| marker(Action::Hash, "a", what, &[secret; 32]);
        assert_eq!(of(b"x", 1), of(b"x", 1));
        assert_ne!(of(b"x", 1), of(b"y", 1));
        assert_ne!(of(b"x", 1), of(b"x", 2));
    }
}
