//! Query strings as Jaeger's clients write them: names that come more than once, names that came to be written
//! otherwise (`query.service_name`, `query.serviceName`), and names that nobody here knows, which are passed over as
//! Jaeger passes over them. An empty value is none. What cannot be taken is refused with its name and its mend.

use axum::extract::Query;
use axum::http::Uri;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde_json::Value;

use crate::adapt::hex_as_stored;
use crate::attributes::parse_time;
use crate::error::Error;

/// Parameters of one request, at most.
const COUNT_MAX: usize = 256;

/// Bytes of the name of a service or an operation.
const NAME_BYTES_MAX: usize = 4096;

/// Tags of one search, and bytes of each.
const TAGS_MAX: usize = 32;
const TAG_BYTES_MAX: usize = 4096;

/// What a request asks for.
pub(super) struct Parameters(Vec<(String, String)>);

/// The names of a parameter, the present one first.
pub(super) type Names = [&'static str];

/// A refusal that names the parameter.
pub(super) fn wrong(name: &str, what: &str) -> Error {
    Error::invalid(format!("the parameter {name} {what}"))
}

impl Parameters {
    /// Those of a request.
    pub(super) fn of(uri: &Uri) -> Result<Self, Error> {
        let read = Query::<Vec<(String, String)>>::try_from_uri(uri);
        let Query(pairs) = read.map_err(|_| Error::invalid("the query string is not name=value&name=value"))?;
        match pairs.len() <= COUNT_MAX {
            true => Ok(Self(pairs)),
            false => Err(Error::invalid(format!("a request has at most {COUNT_MAX} parameters"))),
        }
    }

    /// All values of one name.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// The value of a parameter, and by which of its names it came.
    pub(super) fn one(&self, names: &Names) -> Option<(&'static str, &str)> {
        names.iter().find_map(|name| {
            self.0
                .iter()
                .find(|(key, value)| key == name && !value.is_empty())
                .map(|(_, value)| (*name, value.as_str()))
        })
    }

    /// A name of something.
    pub(super) fn name(&self, names: &Names) -> Result<Option<String>, Error> {
        match self.one(names) {
            Some((name, value)) if value.len() > NAME_BYTES_MAX => {
                Err(wrong(name, &format!("has at most {NAME_BYTES_MAX} bytes")))
            }
            found => Ok(found.map(|(_, value)| value.to_owned())),
        }
    }

    /// A whole number.
    pub(super) fn whole(&self, names: &Names, range: std::ops::RangeInclusive<i64>) -> Result<Option<i64>, Error> {
        let Some((name, value)) = self.one(names) else { return Ok(None) };
        let number = value.parse().ok().filter(|number| range.contains(number));
        let must = || wrong(name, &format!("must be a whole number from {} to {}", range.start(), range.end()));
        number.map(Some).ok_or_else(must)
    }

    /// A time in some unit since 1970, in ns. One beyond what ns can say is as far as they reach.
    pub(super) fn since_1970(&self, names: &Names, unit: i64, unit_name: &str) -> Result<Option<i64>, Error> {
        let Some((name, value)) = self.one(names) else { return Ok(None) };
        let number = value.parse::<i64>().ok().filter(|number| *number >= 0);
        let must = || {
            wrong(
                name,
                &format!("must be {unit_name} since 1970, a whole number such as {}", 1_795_165_200_000_000_000 / unit),
            )
        };
        Ok(Some(number.ok_or_else(must)?.saturating_mul(unit)))
    }

    /// A time in microseconds since 1970, in ns; or in milliseconds, which Grafana's data source sends where Jaeger
    /// asks for microseconds. What is less than this would be a time before 1973.
    pub(super) fn micros_or_millis(&self, names: &Names) -> Result<Option<i64>, Error> {
        const MICROS_MIN: i64 = 100_000_000_000_000;
        let time = self.since_1970(names, 1_000, "microseconds")?;
        Ok(time.map(|ns| if ns / 1_000 < MICROS_MIN { ns.saturating_mul(1_000) } else { ns }))
    }

    /// A time as RFC 3339 writes it, in ns since 1970.
    pub(super) fn rfc3339(&self, names: &Names) -> Result<Option<i64>, Error> {
        let Some((name, value)) = self.one(names) else { return Ok(None) };
        // A zone such as +02:00 that was not encoded comes with a blank in place of its sign.
        let time = value.contains('T').then(|| parse_time(&value.replace(' ', "+"))).flatten();
        let must = || wrong(name, "must be a time such as 2026-11-20T09:00:00Z (RFC 3339)");
        time.map(|time| Some(time.0.max(0))).ok_or_else(must)
    }

    /// A duration as Go writes it, in ns.
    pub(super) fn duration(&self, names: &Names) -> Result<Option<i64>, Error> {
        let Some((name, value)) = self.one(names) else { return Ok(None) };
        let must = || wrong(name, "must be a duration such as 1.5s, 100ms or 1h30m (units ns, us, ms, s, m, h, d)");
        duration(value).map(Some).ok_or_else(must)
    }

    /// Whether something is wanted.
    pub(super) fn flag(&self, names: &Names) -> Result<bool, Error> {
        match self.one(names) {
            None => Ok(false),
            Some((_, "true" | "1" | "t" | "T" | "TRUE" | "True")) => Ok(true),
            Some((_, "false" | "0" | "f" | "F" | "FALSE" | "False")) => Ok(false),
            Some((name, _)) => Err(wrong(name, "must be true or false")),
        }
    }

    /// The tags that a span must have: `tag=key:value`, as often as there are tags, and `tags={"key":"value"}`.
    pub(super) fn tags(&self, single: Option<&str>, json: &'static str) -> Result<Vec<(String, String)>, Error> {
        let mut tags = Vec::new();
        for pair in single.into_iter().flat_map(|single| self.all(single)) {
            let must = || wrong("tag", "must be key:value, such as tag=http.status_code:500");
            let (key, value) = pair.split_once(':').filter(|(key, _)| !key.is_empty()).ok_or_else(must)?;
            tags.push((key.to_owned(), value.to_owned()));
        }
        for text in self.all(json) {
            let must = || wrong(json, "must be a JSON object of texts, such as {\"http.status_code\":\"500\"}");
            let Ok(Value::Object(members)) = serde_json::from_str(text) else { return Err(must()) };
            for (key, value) in members {
                let value = match value {
                    Value::String(text) => text,
                    Value::Number(_) | Value::Bool(_) => value.to_string(),
                    _ => return Err(must()),
                };
                tags.push((key, value));
            }
        }
        let name = if self.one(&[json]).is_some() { json } else { "tag" };
        if tags.len() > TAGS_MAX {
            return Err(wrong(name, &format!("has at most {TAGS_MAX} tags")));
        }
        if tags.iter().any(|(key, value)| key.len() + value.len() > TAG_BYTES_MAX) {
            return Err(wrong(name, &format!("has tags of at most {TAG_BYTES_MAX} bytes")));
        }
        Ok(tags)
    }
}

/// A duration in ns: numbers with units, one behind the other (Go's `time.ParseDuration`), and days and weeks, in
/// which people look back.
fn duration(text: &str) -> Option<i64> {
    if text == "0" {
        return Some(0);
    }
    let (mut rest, mut total) = (text, 0i64);
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (digits, after) = rest.split_at(number);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let unit: i64 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            "w" => 604_800_000_000_000,
            _ => return None,
        };
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() && part.is_empty() {
            return None;
        }
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let part: f64 = if part.is_empty() { 0.0 } else { format!("0.{part}").parse().ok()? };
        let value = whole.checked_mul(unit)?.checked_add((part * unit as f64).round() as i64)?;
        total = total.checked_add(value)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

/// A trace id as rows have it. Jaeger's clients leave out zeros in front, and write it in capitals or as base64; people
/// write it as a UUID.
pub(super) fn trace_id(text: &str) -> Option<String> {
    let text = text.trim();
    if (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Some(format!("{:0>32}", text.to_ascii_lowercase()));
    }
    let decoded = || {
        let bytes = STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text)).ok()?;
        (bytes.len() == 16).then(|| const_hex::encode(bytes))
    };
    hex_as_stored(text, 32).or_else(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(query: &str) -> Parameters {
        Parameters::of(&format!("/api/traces?{query}").parse().unwrap()).unwrap()
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, ns) in [
            ("0", Some(0)),
            ("1s", Some(1_000_000_000)),
            ("1.5s", Some(1_500_000_000)),
            (".5ms", Some(500_000)),
            ("1h30m", Some(5_400_000_000_000)),
            ("100us", Some(100_000)),
            ("100\u{b5}s", Some(100_000)),
            ("7ns", Some(7)),
            ("2d", Some(172_800_000_000_000)),
            ("", None),
            ("s", None),
            (".s", None),
            ("10", None),
            ("-1s", None),
            ("1y", None),
            ("1.2.3s", None),
            ("99999999999h", None),
        ] {
            assert_eq!(duration(text), ns, "{text:?}");
        }
    }

    #[test]
    fn ids_come_short_in_capitals_as_uuids_and_as_base64() {
        let id = "83a9efd15c1c98a977e0711cc93ee28b";
        let base64 = STANDARD.encode(const_hex::decode(id).unwrap());
        for text in
            [id, &id.to_uppercase(), "83a9efd1-5c1c-98a9-77e0-711cc93ee28b", &base64, base64.trim_end_matches('=')]
        {
            assert_eq!(trace_id(text).as_deref(), Some(id), "{text}");
        }
        assert_eq!(trace_id("1f").unwrap(), format!("{:0>32}", "1f"));
        for text in ["", "xyz", "123456789012345678901234567890123", "\u{e9}", "AQIDBA=="] {
            assert_eq!(trace_id(text), None, "{text}");
        }
    }

    #[test]
    fn tags_come_one_by_one_and_as_json() {
        let query = "tag=a:b:c&tag=error:true&tags=%7B%22x%22%3A%22y%22%2C%22n%22%3A5%7D&tags=";
        let want = [("a", "b:c"), ("error", "true"), ("n", "5"), ("x", "y")];
        let mut tags = of(query).tags(Some("tag"), "tags").unwrap();
        tags.sort();
        assert_eq!(tags, want.map(|(key, value)| (key.to_owned(), value.to_owned())));
        for (query, want) in [
            ("tag=error", "the parameter tag must be key:value"),
            ("tag=:x", "the parameter tag must be key:value"),
            ("tags=error%3Dtrue", "the parameter tags must be a JSON object"),
            ("tags=%7B%22x%22%3A%5B%5D%7D", "the parameter tags must be a JSON object"),
            (&"&tag=a:b".repeat(33), "the parameter tag has at most 32 tags"),
            (&format!("tag=a:{}", "x".repeat(5000)), "the parameter tag has tags of at most 4096 bytes"),
        ] {
            let told = of(query).tags(Some("tag"), "tags").unwrap_err().message;
            assert!(told.starts_with(want), "{query}: {told}");
        }
    }

    #[test]
    fn each_fault_names_its_parameter_and_the_mend() {
        let told = |error: Error| error.message;
        assert_eq!(
            told(of("limit=0").whole(&["limit"], 1..=1500).unwrap_err()),
            "the parameter limit must be a whole number from 1 to 1500"
        );
        let start = told(of("start=yesterday").since_1970(&["start"], 1_000, "microseconds").unwrap_err());
        assert_eq!(
            start,
            "the parameter start must be microseconds since 1970, a whole number such as 1795165200000000"
        );
        assert!(
            told(of("endTime=7").rfc3339(&["endTime"]).unwrap_err())
                .starts_with("the parameter endTime must be a time")
        );
        assert!(told(of("min=5x").duration(&["min"]).unwrap_err()).starts_with("the parameter min must be a duration"));
        assert_eq!(told(of("raw=maybe").flag(&["raw"]).unwrap_err()), "the parameter raw must be true or false");
        let long = format!("service={}", "x".repeat(5000));
        assert_eq!(told(of(&long).name(&["service"]).unwrap_err()), "the parameter service has at most 4096 bytes");
        assert!(Parameters::of(&format!("/?{}", "a=b&".repeat(300)).parse().unwrap()).is_err());
    }

    #[test]
    fn the_present_name_wins_and_an_empty_value_is_none() {
        let parameters = of("query.service_name=old&query.serviceName=new&limit=&end_time=2026-11-20T10:00:00+01:00");
        let names = ["query.serviceName", "query.service_name"];
        assert_eq!(parameters.name(&names).unwrap().as_deref(), Some("new"));
        assert_eq!(parameters.whole(&["limit"], 1..=5).unwrap(), None);
        let end = parameters.rfc3339(&["endTime", "end_time"]).unwrap();
        assert_eq!(end, Some(1_795_165_200_000_000_000));
    }
}
