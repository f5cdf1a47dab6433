//! What a client certificate says its bearer is, and when a certificate ends.
//!
//! A certificate comes here only after rustls has verified it against the configured authorities,
//! so what is read are the words of an authority. What cannot be read is no identity.

use custody_proto::seen::is_unseen;
use rustls::pki_types::CertificateDer;

/// The identity in a client certificate: its SPIFFE id (X.509-SVID, section 2: exactly one URI), or
/// `cert:` with its subject as RFC 4514 writes it, or with its first DNS name.
///
/// # Errors
///
/// If there is nothing to know it by, or more than one SPIFFE id.
pub(crate) fn identity(der: &CertificateDer<'_>) -> Result<String, String> {
    let certificate = webpki::EndEntityCert::try_from(der).map_err(|e| format!("it is not readable: {e}"))?;
    let uris: Vec<&str> = certificate.valid_uri_names().collect();
    if uris.iter().any(|uri| is_spiffe(uri)) {
        return match uris[..] {
            [id] => check_spiffe(id).map(|()| id.to_owned()),
            _ => Err("it has a SPIFFE id and another URI beside it".into()),
        };
    }
    let subject = name(certificate.subject()).ok_or("its subject is not readable")?;
    if !subject.is_empty() {
        return Ok(format!("cert:{subject}"));
    }
    let host = certificate.valid_dns_names().next();
    host.map(|host| format!("cert:{host}")).ok_or_else(|| "it names nobody".into())
}

fn is_spiffe(uri: &str) -> bool {
    uri.get(..9).is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe://"))
}

/// Whether it is a SPIFFE id in its one spelling (SPIFFE-ID, section 2): nothing that two readers
/// could take for two things.
fn check_spiffe(id: &str) -> Result<(), String> {
    let wrong = |why| Err(format!("its SPIFFE id {why}"));
    let Some(rest) = id.strip_prefix("spiffe://") else { return wrong("has a scheme in capitals") };
    let (domain, path) = rest.split_once('/').map_or((rest, None), |(domain, path)| (domain, Some(path)));
    let in_domain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
    if domain.is_empty() || !domain.chars().all(in_domain) || id.len() > 2048 {
        return wrong("has no trust domain in small letters");
    }
    let in_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let sound = |segment: &str| !matches!(segment, "" | "." | "..") && segment.chars().all(in_path);
    match path {
        Some(path) if !path.split('/').all(sound) => wrong("has a path that is not in its one spelling"),
        _ => Ok(()),
    }
}

/// When a certificate ends, in seconds since the Unix epoch (RFC 5280, section 4.1.2.5).
pub(crate) fn not_after(der: &CertificateDer<'_>) -> Option<u64> {
    let mut certificate = Der(Der(der).read(SEQUENCE)?);
    let mut tbs = Der(certificate.read(SEQUENCE)?);
    if tbs.0.first() == Some(&VERSION) {
        tbs.read(VERSION)?;
    }
    tbs.read(INTEGER)?;
    tbs.read(SEQUENCE)?;
    tbs.read(SEQUENCE)?;
    let mut validity = Der(tbs.read(SEQUENCE)?);
    validity.any()?;
    let (tag, text) = validity.any()?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: u64 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let two = |at: usize| rest.get(at..at + 2)?.parse::<u64>().ok();
    let (month, day) = (two(0)?, two(2)?);
    Some(days(year, month, day)? * 86_400 + two(4)? * 3600 + two(6)? * 60 + two(8)?)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let since = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day.checked_sub(1)?;
    since.checked_sub(719_468)
}

const INTEGER: u8 = 0x02;
const OBJECT: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;

/// DER, value by value.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value and its tag.
    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let mut len = usize::from(first);
        if first & 0x80 != 0 {
            let (bytes, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if bytes.is_empty() || bytes.len() > 4 {
                return None;
            }
            len = bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
            rest = after;
        }
        let (value, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some((tag, value))
    }

    /// The next value, which must have this tag.
    fn read(&mut self, expected: u8) -> Option<&'a [u8]> {
        self.any().and_then(|(tag, value)| (tag == expected).then_some(value))
    }
}

/// A name, the content of its sequence, as RFC 4514 writes it: the last part first.
fn name(der: &[u8]) -> Option<String> {
    let mut parts = Vec::new();
    let mut sets = Der(der);
    while !sets.0.is_empty() {
        let (mut set, mut values) = (Der(sets.read(SET)?), Vec::new());
        while !set.0.is_empty() {
            let mut pair = Der(set.read(SEQUENCE)?);
            let kind = pair.read(OBJECT)?;
            values.push(format!("{}={}", attribute(kind)?, escaped(std::str::from_utf8(pair.any()?.1).ok()?)));
        }
        parts.push(values.join("+"));
    }
    parts.reverse();
    Some(parts.join(","))
}

/// What an attribute of a name is called (RFC 4514, section 3).
fn attribute(oid: &[u8]) -> Option<String> {
    let known = match oid {
        [0x55, 4, 3] => "CN",
        [0x55, 4, 5] => "serialNumber",
        [0x55, 4, 6] => "C",
        [0x55, 4, 7] => "L",
        [0x55, 4, 8] => "ST",
        [0x55, 4, 9] => "STREET",
        [0x55, 4, 10] => "O",
        [0x55, 4, 11] => "OU",
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1] => "UID",
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25] => "DC",
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1] => "emailAddress",
        _ => {
            let (&first, rest) = oid.split_first()?;
            let mut text = format!("{}.{}", first / 40, first % 40);
            let mut number = 0u64;
            for byte in rest {
                number = number.checked_mul(128)? + u64::from(byte & 0x7f);
                if byte & 0x80 == 0 {
                    text.push_str(&format!(".{number}"));
                    number = 0;
                }
            }
            return Some(text);
        }
    };
    Some(known.to_owned())
}

/// RFC 4514, section 2.4; characters that are not seen by their bytes, so that a name is one line and no other's.
fn escaped(value: &str) -> String {
    let last = value.chars().count().saturating_sub(1);
    let mut out = String::with_capacity(value.len());
    for (at, c) in value.chars().enumerate() {
        match c {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' | '=' => out.extend(['\\', c]),
            '#' | ' ' if at == 0 => out.extend(['\\', c]),
            ' ' if at == last => out.extend(['\\', c]),
            c if is_unseen(c) => {
                let mut bytes = [0; 4];
                c.encode_utf8(&mut bytes).bytes().for_each(|byte| out.push_str(&format!("\\{byte:02X}")));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_so_that_nobody_can_pass_for_another() {
        // SEQUENCE { SET { SEQUENCE { O, "A" } }, SET { SEQUENCE { CN, "b,O=A\n" } } }
        let o = [0x31, 0x0a, 0x30, 0x08, 0x06, 3, 0x55, 4, 10, 0x0c, 1, b'A'];
        let cn = [&[0x31, 0x0f, 0x30, 0x0d, 0x06, 3, 0x55, 4, 3, 0x0c, 6][..], b"b,O=A\n"].concat();
        let both = [&o[..], &cn].concat();
        assert_eq!(name(&both).unwrap(), "CN=b\\,O\\=A\\0A,O=A");
        assert_eq!(name(&both[..20]), None, "a name that is cut off is none");
        for (value, written) in [
            ("an\u{200b}n", "an\\E2\\80\\8Bn"),
            ("\u{202e}nna", "\\E2\\80\\AEnna"),
            ("an\u{ad}n", "an\\C2\\ADn"),
            ("an\u{2028}n", "an\\E2\\80\\A8n"),
            ("  ", "\\ \\ "),
            ("Jörg 李", "Jörg 李"),
        ] {
            assert_eq!(escaped(value), written);
        }
    }

    #[test]
    fn a_spiffe_id_has_one_spelling() {
        for sound in ["spiffe://example.com", "spiffe://example.com/ns/a/sa/B-1_2.x"] {
            assert_eq!(check_spiffe(sound), Ok(()), "{sound}");
        }
        for wrong in [
            "SPIFFE://example.com/a",
            "spiffe:///a",
            "spiffe://Example.com/a",
            "spiffe://example.com:80/a",
            "spiffe://a/",
            "spiffe://a//b",
            "spiffe://a/../b",
            "spiffe://a/%2e",
            "spiffe://a/b?c",
            "spiffe://a/b#c",
            "spiffe://u@a/b",
        ] {
            assert!(check_spiffe(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(days(1970, 1, 1), Some(0));
        assert_eq!(days(2000, 3, 1), Some(11_017));
        assert_eq!(days(2026, 11, 21), Some(20_778));
        assert_eq!(days(1969, 12, 31), None);
    }
}
