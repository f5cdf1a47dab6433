//! As what a reader takes events: the field `Accept` (RFC 9110, section 12.5.1), with its list, ranges and weights.

use std::cmp::Reverse;

use axum::http::{HeaderMap, header};

use super::coding::weight;

/// What an answer can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// An event a line.
    Lines,
    /// One JSON object.
    Object,
    /// Server-sent events.
    Stream,
}

/// What pages can be, and batches of consumers.
pub(super) const PAGES: &[Takes] = &[Takes::Lines, Takes::Object, Takes::Stream];
pub(super) const BATCHES: &[Takes] = &[Takes::Lines, Takes::Object];

/// What a reader likes best among these; of what he likes alike what he names by its own type, and then what he names
/// first. Who takes none of them gets lines. `lines` is the type of those.
pub(super) fn takes(headers: &HeaderMap, lines: &str, among: &[Takes]) -> Takes {
    let fields = headers.get_all(header::ACCEPT).iter().filter_map(|field| field.to_str().ok());
    let ranges: Vec<(String, u16)> = fields.flat_map(|field| field.split(',')).filter_map(range).collect();
    let mut best: Option<(Rank, Takes)> = None;
    for takes in among {
        let own = match takes {
            Takes::Lines => lines.split(';').next().unwrap_or_default().trim(),
            Takes::Object => "application/json",
            Takes::Stream => "text/event-stream",
        };
        let Some(rank) = rank(&ranges, own).filter(|(weight, _, _)| *weight > 0) else { continue };
        if best.is_none_or(|(better, _)| rank > better) {
            best = Some((rank, *takes));
        }
    }
    best.map_or(Takes::Lines, |(_, takes)| takes)
}

/// How much a type is liked, how exactly it is named, and how early.
type Rank = (u16, u8, Reverse<usize>);

/// By the range that fits it best.
fn rank(ranges: &[(String, u16)], own: &str) -> Option<Rank> {
    let all = own.split_once('/').map_or(own, |(of, _)| of);
    let exactness = |range: &str| match range {
        "*/*" => Some(0),
        range if range == own => Some(2),
        range => range.strip_suffix("/*").filter(|of| *of == all).map(|_| 1),
    };
    let fitting = ranges.iter().enumerate().filter_map(|(at, (range, weight))| Some((exactness(range)?, at, *weight)));
    let (exactness, at, weight) = fitting.max_by_key(|(exactness, at, _)| (*exactness, Reverse(*at)))?;
    Some((weight, exactness, Reverse(at)))
}

/// A range and its weight in thousandths. What is no weight makes its item say nothing.
fn range(item: &str) -> Option<(String, u16)> {
    let mut parts = item.split(';').map(str::trim);
    let range = parts.next()?.to_ascii_lowercase();
    let is_weight = |part: &&str| part.split_once('=').is_some_and(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
    let weight = parts.find(is_weight).map_or(Some(1000), weight)?;
    (!range.is_empty()).then_some((range, weight))
}

#[cfg(test)]
mod tests {
    use super::Takes::{Lines, Object, Stream};
    use super::*;

    fn asked(fields: &[&str], lines: &str, among: &[Takes]) -> Takes {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(header::ACCEPT, field.parse().unwrap());
        }
        takes(&headers, lines, among)
    }

    #[test]
    fn a_reader_gets_what_he_takes() {
        let cases: &[(&[&str], Takes)] = &[
            (&[], Lines),
            (&[""], Lines),
            (&["*/*"], Lines),
            (&["application/*"], Lines),
            (&["application/x-ndjson"], Lines),
            (&["application/json"], Object),
            (&["application/JSON"], Object),
            (&["application/json; charset=utf-8"], Object),
            (&["Application/Json;Q=0.5"], Object),
            (&["application/jsonl"], Lines),
            (&["application/json-seq"], Lines),
            (&["text/plain, application/json, */*"], Object),
            (&["application/json, text/plain, */*"], Object),
            (&["text/plain", "application/json"], Object),
            (&["application/json;q=0"], Lines),
            (&["application/json;q=0, application/x-ndjson"], Lines),
            (&["application/json;q=0, */*"], Lines),
            (&["application/json;q=0.5, */*"], Lines),
            (&["application/json;q=0.9, */*;q=0.8"], Object),
            (&["application/json;q=0.9, application/x-ndjson"], Lines),
            (&["application/json, application/x-ndjson"], Object),
            (&["application/x-ndjson, application/json"], Lines),
            (&["application/x-ndjson;q=0, application/*"], Object),
            (&["application/json;q=high, application/x-ndjson;q=0.1"], Lines),
            (&["text/event-stream"], Stream),
            (&["text/event-stream, */*"], Stream),
            (&["application/json, text/event-stream"], Object),
            (&["text/*"], Stream),
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], Lines),
            (&["text/html"], Lines),
        ];
        for (fields, want) in cases {
            assert_eq!(asked(fields, "application/x-ndjson", PAGES), *want, "{fields:?}");
        }
        // Lines of CEF are text; a consumer has no stream.
        let cef = "text/plain; charset=utf-8";
        assert_eq!(asked(&["text/plain, application/json, */*"], cef, PAGES), Lines);
        assert_eq!(asked(&["text/plain;q=0.1, application/json;q=0.2"], cef, PAGES), Object);
        assert_eq!(asked(&["text/event-stream"], "application/x-ndjson", BATCHES), Lines);
        assert_eq!(asked(&["text/event-stream, application/json;q=0.1"], "application/x-ndjson", BATCHES), Object);
    }
}
