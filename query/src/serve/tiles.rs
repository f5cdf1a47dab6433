//! The transparency log over HTTP, as C2SP tlog-tiles has it: `/checkpoint`,
//! `/tile/<L>/<N>[.p/<W>]` and `/tile/entries/<N>[.p/<W>]`. Beside that,
//! `/checkpoint/witnessed`: the newest checkpoint that enough witnesses cosigned.

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use custody_store::Reader;
use custody_store::note::Note;

use super::{Served, problem};

/// Which tile a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TilePath {
    /// The level; `None` for a bundle of entries.
    pub level: Option<u8>,
    /// The index.
    pub index: u64,
    /// How many hashes or entries: 1 to 256.
    pub width: u16,
}

impl TilePath {
    /// Reads what follows `/tile/`. Only the one canonical spelling is taken.
    pub fn parse(path: &str) -> Option<Self> {
        let (level, rest) = path.split_once('/')?;
        let level = match level {
            "entries" => None,
            digits => Some(number(digits, 63)? as u8),
        };
        let (index, width) = match rest.split_once(".p/") {
            Some((index, width)) => (index, number(width, 255).filter(|w| *w > 0)? as u16),
            None => (rest, 256),
        };
        let groups: Vec<&str> = index.split('/').collect();
        let (last, before) = groups.split_last()?;
        if before.len() > 6 || groups.len() > 1 && before[0] == "x000" {
            return None;
        }
        let mut value = 0u64;
        for group in before.iter().map(|g| g.strip_prefix('x')).chain([Some(*last)]) {
            let group = group.filter(|g| g.len() == 3 && g.bytes().all(|b| b.is_ascii_digit()))?;
            value = value.checked_mul(1000)?.checked_add(group.parse().ok()?)?;
        }
        Some(Self { level, index: value, width })
    }
}

impl std::fmt::Display for TilePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.level {
            Some(level) => write!(f, "{level}/")?,
            None => f.write_str("entries/")?,
        }
        let mut groups = vec![self.index % 1000];
        let mut rest = self.index / 1000;
        while rest > 0 {
            groups.push(rest % 1000);
            rest /= 1000;
        }
        for (i, group) in groups.iter().enumerate().rev() {
            if i > 0 { write!(f, "x{group:03}/")? } else { write!(f, "{group:03}")? }
        }
        if self.width < 256 { write!(f, ".p/{}", self.width) } else { Ok(()) }
    }
}

/// A number without sign or leading zeros.
fn number(text: &str, max: u64) -> Option<u64> {
    let value: u64 = text.parse().ok()?;
    (value <= max && value.to_string() == text).then_some(value)
}

/// The newest signed checkpoint; with cosignatures, if witnesses have this one.
pub(super) async fn checkpoint(State(served): State<Served>) -> Response {
    let reader = served.engine.projection().reader();
    let note = reader.checkpoint().map(|note| note.map(|note| with_cosignatures(reader, &note).unwrap_or(note)));
    answer(note, "there is no checkpoint yet")
}

/// The newest checkpoint that enough witnesses cosigned.
pub(super) async fn witnessed(State(served): State<Served>) -> Response {
    let kept = served.engine.projection().reader().newest_witnessed();
    answer(
        kept.map(|kept| kept.map(|kept| kept.note)),
        "no checkpoint has been cosigned by enough witnesses; `custody serve --witness-policy` asks them, and its \
         log says who refused",
    )
}

/// `None` if witnesses have another one, or what is kept is damaged: `custody verify`
/// says so, and it is no reason to serve no checkpoint.
fn with_cosignatures(reader: &Reader, newest: &str) -> Option<String> {
    let kept = Note::parse(&reader.newest_witnessed().ok()??.note).ok()?;
    let mut note = Note::parse(newest).ok().filter(|note| note.text == kept.text)?;
    note.merge(kept.lines);
    Some(note.to_string())
}

fn answer(note: Result<Option<String>, custody_store::Error>, none: &str) -> Response {
    match note {
        Ok(Some(note)) => {
            let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "max-age=1")];
            (headers, note).into_response()
        }
        Ok(None) => problem(StatusCode::NOT_FOUND, "not_found", none, None),
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable", &error.to_string(), None),
    }
}

/// A tile or a bundle of entries.
pub(super) async fn tile(State(served): State<Served>, Path(path): Path<String>) -> Response {
    let missing =
        || problem(StatusCode::NOT_FOUND, "not_found", "the tree has no such tile (C2SP tlog-tiles paths)", None);
    let Some(wanted) = TilePath::parse(&path) else { return missing() };
    let reader = served.engine.projection().reader().clone();
    let read = tokio::task::spawn_blocking(move || match wanted.level {
        Some(level) => reader.tile(level, wanted.index, wanted.width),
        None => reader.entry_bundle(wanted.index, wanted.width),
    });
    match read.await {
        Ok(Ok(Some(bytes))) => {
            let headers = [
                (header::CONTENT_TYPE, "application/octet-stream"),
                (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
            ];
            (headers, bytes).into_response()
        }
        Ok(Ok(None)) => missing(),
        Ok(Err(error)) => problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable", &error.to_string(), None),
        Err(_) => problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "the server is stopping", None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn paths_survive_the_round_trip(level in proptest::option::of(0u8..64), index: u64, width in 1u16..=256) {
            let path = TilePath { level, index: index >> (index % 50), width };
            prop_assert_eq!(TilePath::parse(&path.to_string()), Some(path));
        }

        #[test]
        fn what_is_read_is_spelled_so(path in "(entries|[0-9]{1,2})/(x[0-9]{3}/){0,3}[0-9]{3}(\\.p/[0-9]{1,3})?") {
            if let Some(read) = TilePath::parse(&path) {
                prop_assert_eq!(read.to_string(), path);
            }
        }
    }

    #[test]
    fn the_examples_of_the_specification() {
        let path = TilePath { level: Some(0), index: 1_234_067, width: 256 };
        assert_eq!(path.to_string(), "0/x001/x234/067");
        for wrong in
            ["0/67", "0/x000/067", "00/067", "0/067.p/0", "0/067.p/256", "64/000", "data/000", "0/x001/x234", "0/"]
        {
            assert_eq!(TilePath::parse(wrong), None, "{wrong}");
        }
    }
}
