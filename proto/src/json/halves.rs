//! Halves of surrogate pairs in JSON text: `"\ud83d"` without the `"\ude00"` after it.
//!
//! JavaScript makes them when it cuts a text to a length (`attributeValueLengthLimit` of
//! OpenTelemetry's SDK does) and writes them as they are. protojson of Go refuses them; the
//! Collector, which is what exporters are tried with, reads U+FFFD, and so do we: it is what
//! the same SDK sends as protobuf, and to refuse a batch for half an emoji loses its records.

use std::borrow::Cow;

/// The text with `\ufffd` in the place of each half that stands alone. Places stay what
/// they are, so that errors name the right column.
pub(super) fn replaced(text: &str) -> Cow<'_, str> {
    let mut at = 0;
    let mut lone = Vec::new();
    while let Some(next) = text[at..].find('\\') {
        at += next;
        match unit(text, at) {
            Some(0xd800..=0xdbff) if matches!(unit(text, at + 6), Some(0xdc00..=0xdfff)) => at += 12,
            Some(0xd800..=0xdfff) => {
                lone.push(at);
                at += 6;
            }
            // The character after a backslash may be one, too.
            _ => at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        }
    }
    if lone.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut out = text.to_owned();
    lone.into_iter().for_each(|at| out.replace_range(at..at + 6, "\\ufffd"));
    Cow::Owned(out)
}

/// The code unit of the `\uXXXX` that begins here.
fn unit(text: &str, at: usize) -> Option<u16> {
    let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
    let digits = Some(digits).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn halves_are_replaced_and_pairs_are_not() {
        for (text, want) in [
            (r#""\ud83d\ude00""#, r#""\ud83d\ude00""#),
            (r#""cut \ud83d""#, r#""cut \ufffd""#),
            (r#""\uDE00 behind""#, r#""\ufffd behind""#),
            (r#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\ud83dx\ude00""#, r#""\ufffdx\ufffd""#),
            (r#""\\ud83d""#, r#""\\ud83d""#),
            (r#""\\\ud83d""#, r#""\\\ufffd""#),
            (r#""\ud83d\n""#, r#""\ufffd\n""#),
            (r#""\ud83d\u0041""#, r#""\ufffd\u0041""#),
            // What is no JSON stays what it is, for the parser to refuse.
            (r"\ud83", r"\ud83"),
            (r"\u+d83", r"\u+d83"),
            ("\\", "\\"),
            ("\\\u{fffd}", "\\\u{fffd}"),
        ] {
            assert_eq!(replaced(text), want, "{text}");
        }
        assert!(matches!(replaced(r#"{"a":"\n\u00e9"}"#), Cow::Borrowed(_)));
    }

    proptest! {
        /// Any code units, written as JavaScript writes them, are read as it reads them as UTF-8.
        #[test]
        fn any_units_are_read_as_a_lossy_decoder_reads_them(
            units in proptest::collection::vec(prop_oneof![0u16..0x80, 0xd7f0u16..0xe010, any::<u16>()], 0..30),
        ) {
            let written: String = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
            let read: String = serde_json::from_str(&replaced(&format!("\"{written}\""))).unwrap();
            prop_assert_eq!(read, String::from_utf16_lossy(&units));
        }
    }
}
