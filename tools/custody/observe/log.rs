//! Log lines: text for people, or one JSON object a line for programs. Whatever is
//! logged, a line stays a line, and no terminal is told what to do.

use std::fmt;
use std::io::{self, Write};

use clap::ValueEnum;
use custody_proto::seen::is_steering;
use serde::Deserialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::Failure;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line: time, level, target, message, fields.
    Json,
}

/// Log lines go to standard error. `level` is a filter of `tracing`; without one,
/// CUSTODY_LOG or RUST_LOG is.
pub fn start(format: LogFormat, level: Option<&str>) -> Result<(), Failure> {
    let own = std::env::var("CUSTODY_LOG").ok().filter(|filter| !filter.is_empty());
    let filter = match (level, own) {
        (Some(level), _) => filter("--log-level", level)?,
        (None, Some(level)) => filter("CUSTODY_LOG", &level)?,
        // Other programs read it, too, and take it as they do.
        (None, None) => EnvFilter::try_from_env("RUST_LOG").unwrap_or_else(|_| "info".into()),
    };
    let lines =
        tracing_subscriber::fmt().with_writer(|| Escaped(io::stderr())).with_env_filter(filter).with_ansi(false);
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.event_format(Json).init(),
    }
    Ok(())
}

/// A filter as it is meant: a word alone is a level. `tracing` takes any other for the name of a target, and a
/// mistyped level would silence all that there is to say.
fn filter(place: &str, text: &str) -> Result<EnvFilter, Failure> {
    let is_wrong = |part: &&str| !part.contains(['=', '[']) && part.parse::<LevelFilter>().is_err();
    if let Some(word) = text.split(',').map(str::trim).find(is_wrong) {
        return Err(Failure::unable(format!(
            "{place} {text}: {word:?} is no level; give off, error, warn, info, debug, trace, or TARGET=LEVEL"
        )));
    }
    EnvFilter::try_new(text).map_err(|e| Failure::unable(format!("{place} {text}: {e}")))
}

/// Escapes what is no text. Each write is one line, its end included.
struct Escaped<W>(W);

impl<W: Write> Write for Escaped<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let body = text.strip_suffix('\n').unwrap_or(&text);
        match body.chars().any(is_steering) {
            false => self.0.write_all(line)?,
            true => self.0.write_all((escape(body) + "\n").as_bytes())?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_steering(c) {
            // JSON's notation: four digits, and two of these for what has more.
            true => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
            false => out.push(c),
        }
    }
    out
}

/// Events as JSON.
struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = Map::new();
        line.insert("time".into(), time.into());
        line.insert("level".into(), event.metadata().level().as_str().into());
        line.insert("target".into(), event.metadata().target().into());
        line.insert("message".into(), fields.message.into());
        line.insert("fields".into(), fields.others.into());
        writeln!(writer, "{}", Value::Object(line))
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.others.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" { self.message = text } else { self.put(field, text.into()) }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" { self.message = value.into() } else { self.put(field, value.into()) }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        for text in ["wrn", "zzz", "info,custdy", "Info, wrn"] {
            let refused = filter("--log-level", text).expect_err("it is refused");
            assert!(refused.message.contains("is no level; give off, error"), "{}", refused.message);
        }
        for text in ["warn", "WARN", "off", "info,custody_ingest=debug", "custody=trace,error"] {
            assert!(filter("--log-level", text).is_ok(), "{text}");
        }
        assert!(
            filter("CUSTODY_LOG", "custody=loud")
                .err()
                .is_some_and(|e| e.message.starts_with("CUSTODY_LOG custody=loud"))
        );
    }

    #[test]
    fn a_line_stays_a_line_and_tells_no_terminal_what_to_do() {
        let mut out = Vec::new();
        Escaped(&mut out)
            .write_all(b"a \x1b[31mred\r\nnot a line\x07\xc2\x9b \xe2\x80\xae \xf3\xa0\x81\x81 b\n")
            .unwrap();
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out, "a \\u001b[31mred\\u000d\\u000anot a line\\u0007\\u009b \\u202e \\udb40\\udc41 b\n");
        let mut plain = Vec::new();
        Escaped(&mut plain).write_all("peer=é\n".as_bytes()).unwrap();
        assert_eq!(plain, "peer=é\n".as_bytes());
    }
}
