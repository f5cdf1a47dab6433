//! Which content coding an answer has: what the reader accepts (RFC 9110, sections 8.4.1 and 12.5.3), and over
//! gRPC which compression he takes.

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;

use crate::serve::problem;

/// How bytes are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Coding {
    /// As they are.
    #[default]
    Identity,
    /// RFC 1952, in one member.
    Gzip,
    /// RFC 8878, in one frame.
    Zstd,
}

impl Coding {
    /// As headers name it; `None` as it is.
    pub(crate) fn name(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }

    /// What pages may have, the cheapest first.
    pub(super) const PAGES: &[Self] = &[Self::Zstd, Self::Gzip];

    /// What streams of server-sent events may have. A frame of zstd would have to end with each flush, and not every
    /// client reads on behind the first one; a member of gzip goes on.
    pub(super) const STREAMS: &[Self] = &[Self::Gzip];
}

/// What a reader is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Accepted {
    pub(super) coding: Coding,
    /// He takes nothing that is sent as it is, be it ever so small.
    pub(super) always: bool,
}

/// Weights in thousandths, of a field such as `gzip;q=0.5, *;q=0`.
#[derive(Default)]
struct Weights {
    named: Vec<(String, u16)>,
    any: Option<u16>,
}

impl Weights {
    fn read(headers: &HeaderMap) -> Option<Self> {
        let mut weights = Self::default();
        let mut fields = headers.get_all(header::ACCEPT_ENCODING).iter().peekable();
        fields.peek()?;
        for item in fields.filter_map(|field| field.to_str().ok()).flat_map(|field| field.split(',')) {
            let mut parts = item.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            // What is no weight makes its item say nothing.
            let Some(weight) = parts.next().map_or(Some(1000), weight) else { continue };
            match name.as_str() {
                "" => {}
                "*" => weights.any = Some(weight),
                "x-gzip" => weights.named.push(("gzip".to_owned(), weight)),
                _ => weights.named.push((name, weight)),
            }
        }
        Some(weights)
    }

    fn of(&self, name: &str) -> Option<u16> {
        self.named.iter().find(|(named, _)| named == name).map(|(_, weight)| *weight)
    }
}

/// The weight `q=0.5`; at most three digits behind the point (RFC 9110, section 12.4.2).
pub(super) fn weight(text: &str) -> Option<u16> {
    let (name, value) = text.split_once('=')?;
    let (whole, rest) = value.trim().split_once('.').unwrap_or((value.trim(), ""));
    let is_number = rest.len() <= 3 && rest.bytes().all(|byte| byte.is_ascii_digit());
    let thousandths = || format!("{rest:0<3}").parse::<u16>().ok();
    match (name.trim().eq_ignore_ascii_case("q") && is_number, whole) {
        (true, "0") => thousandths(),
        (true, "1") => thousandths().filter(|rest| *rest == 0).map(|_| 1000),
        _ => None,
    }
}

/// What of these a request accepts and likes best; of what it likes alike the first.
#[expect(clippy::result_large_err, reason = "the answer is sent at once; nothing else is made of it")]
pub(super) fn accepted(headers: &HeaderMap, among: &[Coding]) -> Result<Accepted, Response> {
    let Some(weights) = Weights::read(headers) else { return Ok(Accepted::default()) };
    // Who takes any takes what everybody can read.
    let mut best: Option<(u16, Coding)> = None;
    for coding in among {
        let named = coding.name().and_then(|name| weights.of(name));
        let weight = named.or(weights.any.filter(|_| *coding == Coding::Gzip)).unwrap_or(0);
        if weight > best.map_or(0, |(weight, _)| weight) {
            best = Some((weight, *coding));
        }
    }
    let plain = weights.of("identity").or(weights.any.filter(|weight| *weight == 0));
    match (best, plain) {
        (None, Some(0)) => {
            let names: Vec<&str> = among.iter().filter_map(|coding| coding.name()).collect();
            let message = format!("Accept-Encoding takes nothing of what there is: {}, identity", names.join(", "));
            Err(problem(StatusCode::NOT_ACCEPTABLE, "not_acceptable", &message, None))
        }
        (Some((weight, _)), Some(plain)) if plain > weight => Ok(Accepted::default()),
        (Some((_, coding)), plain) => Ok(Accepted { coding, always: plain == Some(0) }),
        (None, _) => Ok(Accepted::default()),
    }
}

/// What a caller over gRPC takes: `grpc-accept-encoding` has names, and no weights.
pub(super) fn of_call(headers: &HeaderMap) -> Coding {
    let names = headers.get("grpc-accept-encoding").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let takes = |coding: &&Coding| names.split(',').any(|name| Some(name.trim()) == coding.name());
    Coding::PAGES.iter().find(takes).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[&'static str]) -> HeaderMap {
        let values = fields.iter().map(|field| (header::ACCEPT_ENCODING, field.parse().unwrap()));
        let mut headers = HeaderMap::new();
        values.for_each(|(name, value)| {
            headers.append(name, value);
        });
        headers
    }

    #[test]
    fn what_is_accepted_is_weighed() {
        use Coding::{Gzip, Identity, Zstd};
        let cases: &[(&[&'static str], Coding, bool)] = &[
            (&[], Identity, false),
            (&[""], Identity, false),
            (&["gzip"], Gzip, false),
            (&["X-GZIP"], Gzip, false),
            (&["gzip, deflate, br, zstd"], Zstd, false),
            (&["gzip, deflate"], Gzip, false),
            (&["gzip;q=1.0, zstd;q=0.9"], Gzip, false),
            (&["zstd;q=0.001", "gzip; Q=0.002"], Gzip, false),
            (&["br;q=1, *;q=0.5"], Gzip, false),
            (&["*"], Gzip, false),
            (&["gzip;q=0, *"], Identity, false),
            (&["zstd;q=0, gzip"], Gzip, false),
            (&["gzip, identity"], Gzip, false),
            (&["gzip;q=0.5, identity"], Identity, false),
            (&["identity;q=0.5, gzip;q=0.4"], Identity, false),
            (&["gzip, identity;q=0"], Gzip, true),
            (&["gzip, *;q=0"], Gzip, true),
            (&["*;q=0, identity;q=0.1"], Identity, false),
            (&["identity;q=0, *"], Gzip, true),
            (&["gzip;q=0"], Identity, false),
            (&["gzip;q=2, zstd;q=1.001, br"], Identity, false),
            (&["gzip;q=0.1234"], Identity, false),
            (&["gzip;q=high"], Identity, false),
            (&["deflate, br"], Identity, false),
        ];
        for (fields, coding, always) in cases {
            let got = accepted(&headers(fields), Coding::PAGES).unwrap();
            assert_eq!(got, Accepted { coding: *coding, always: *always }, "{fields:?}");
        }
        for fields in [&["identity;q=0"][..], &["*;q=0"], &["br, *;q=0"], &["gzip;q=0, identity;q=0.000"]] {
            assert_eq!(accepted(&headers(fields), Coding::PAGES).unwrap_err().status(), 406, "{fields:?}");
        }
        assert_eq!(accepted(&headers(&["zstd, gzip;q=0.1"]), Coding::STREAMS).unwrap().coding, Gzip);
        assert_eq!(accepted(&headers(&["zstd"]), Coding::STREAMS).unwrap(), Accepted::default());
        assert_eq!(accepted(&headers(&["zstd, identity;q=0"]), Coding::STREAMS).unwrap_err().status(), 406);
    }

    #[test]
    fn a_call_names_what_it_takes() {
        for (names, want) in [
            ("identity, deflate, gzip", Coding::Gzip),
            ("identity,gzip,zstd", Coding::Zstd),
            ("identity", Coding::Identity),
            ("gzipped", Coding::Identity),
        ] {
            let headers = HeaderMap::from_iter([("grpc-accept-encoding".parse().unwrap(), names.parse().unwrap())]);
            assert_eq!(of_call(&headers), want, "{names}");
        }
        assert_eq!(of_call(&HeaderMap::new()), Coding::Identity);
    }
}
