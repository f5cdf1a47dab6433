//! What stands where something was: `[redacted: rule]`, `[hashed: rule: 32 hex digits]`,
//! `[dropped: rule]`. A marker is never changed again, by whatever rule: so rules may be
//! applied to what was redacted before, and a retry becomes the same bytes.

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

/// The markers in a text, in order.
pub(super) fn markers(text: &[u8]) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(open) = text[at..].iter().position(|c| *c == b'[') {
        let from = at + open;
        at = from + 1;
        if let Some(len) = marker_len(&text[from..]) {
            at = from + len;
            out.push(from..at);
        }
    }
    out
}

/// Whether a text is one marker and nothing else.
pub(super) fn is_marker(text: &[u8]) -> bool {
    marker_len(text) == Some(text.len())
}

/// The length of the marker that a text begins with.
fn marker_len(text: &[u8]) -> Option<usize> {
    let (hashed, rest) = if let Some(rest) = text.strip_prefix(b"[hashed: ") {
        (true, rest)
    } else {
        (false, text.strip_prefix(b"[redacted: ").or_else(|| text.strip_prefix(b"[dropped: "))?)
    };
    let window = &rest[..rest.len().min(NAME_BYTES_MAX + 1)];
    let end = window.iter().position(|c| matches!(c, b']' | b':'))?;
    if !std::str::from_utf8(&rest[..end]).is_ok_and(is_name) {
        return None;
    }
    let rest = match (hashed, rest[end]) {
        (false, b']') => &rest[end..],
        (true, b':') => {
            let digits = rest[end..].strip_prefix(b": ")?;
            let is_hash = digits.len() > HASH_DIGITS && digits[..HASH_DIGITS].iter().all(u8::is_ascii_hexdigit);
            is_hash.then(|| &digits[HASH_DIGITS..])?
        }
        _ => return None,
    };
    let rest = rest.strip_prefix(b"]")?;
    Some(text.len() - rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_known_again_and_nothing_else_is() {
        let secret = [7; 32];
        for action in [Action::Redact, Action::Hash, Action::Drop] {
            let marker = marker(action, "aws-access-token", b"AKIA", &secret);
            assert!(is_marker(marker.as_bytes()), "{marker}");
            assert_eq!(markers(format!("a {marker}[{marker}").as_bytes()).len(), 2);
        }
        let hash = |n: usize| format!("[hashed: a: {}]", "0".repeat(n));
        let long = format!("[redacted: {}]", "a".repeat(65));
        for text in
            ["[redacted: ]", "[redacted: a b]", "[redacted: a", "[redacted: a: b]", &hash(31), &hash(33), &long, "["]
        {
            assert!(markers(text.as_bytes()).is_empty(), "{text}");
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
