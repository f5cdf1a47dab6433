//! Sealed rows: the flags of `custody serve` about them, and `custody rebuild`.

use std::io::{IsTerminal as _, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use custody_query::issuers::Issuers;
use custody_query::{Projection, Rebuilt, SegmentLimits};
use custody_store::{Error, Reader};

use crate::control::{Control, Request};
use crate::{Failure, print};

/// When rows are sealed to Parquet files in the data directory.
#[derive(Args, Clone, Copy, Debug, Default)]
#[command(next_help_heading = "Segments")]
pub struct SegmentFlags {
    /// Records whose rows wait in memory before they are sealed to Parquet files, at most
    /// [default: 1000000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) segment_rows_max: Option<u64>,
    /// Bytes of rows that wait in memory, about; as many again while they are sealed
    /// [default: 33554432].
    #[arg(long, value_name = "BYTES")]
    pub(crate) segment_bytes_max: Option<usize>,
    /// How long rows wait in memory before they are sealed, at most, in seconds [default: 600].
    #[arg(long, value_name = "SECONDS")]
    pub(crate) segment_seconds_max: Option<u64>,
    /// Neighbouring segments are merged up to this many records; 0 merges none
    /// [default: 1000000].
    #[arg(long, value_name = "N")]
    pub(crate) segment_merge_rows_max: Option<u64>,
}

impl SegmentFlags {
    /// These, and those of a file where these say nothing.
    pub fn or(self, file: Self) -> Self {
        Self {
            segment_rows_max: self.segment_rows_max.or(file.segment_rows_max),
            segment_bytes_max: self.segment_bytes_max.or(file.segment_bytes_max),
            segment_seconds_max: self.segment_seconds_max.or(file.segment_seconds_max),
            segment_merge_rows_max: self.segment_merge_rows_max.or(file.segment_merge_rows_max),
        }
    }

    /// As the projection takes them.
    pub fn limits(self) -> SegmentLimits {
        let default = SegmentLimits::default();
        SegmentLimits {
            records_max: self.segment_rows_max.unwrap_or(default.records_max).max(1),
            bytes_max: self.segment_bytes_max.unwrap_or(default.bytes_max),
            age_max: self.segment_seconds_max.map_or(default.age_max, Duration::from_secs),
            merged_records_max: self.segment_merge_rows_max.unwrap_or(default.merged_records_max),
            ..default
        }
    }
}

/// Throw the projected rows away and make them again from the log.
///
/// The log is not touched. While a server runs it does the work, and takes records and
/// answers queries meanwhile.
#[derive(Args)]
pub struct Rebuild {
    /// Look at every byte of the segments, and make only those again that were damaged.
    #[arg(long)]
    check: bool,
    /// The data directory; if a server runs on it, the server does the work.
    #[arg(long, default_value = "custody-data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Keys to check tokens of grants with, where no server does the work (see `custody serve`).
    #[arg(long, value_name = "ISSUER=FILE")]
    issuer_jwks: Vec<String>,
}

/// Puts the keys of issuers in force for what this process maps.
pub fn issuers(named: &[String]) -> Result<(), Failure> {
    let issuers = Issuers::load(named).map_err(|e| Failure::unable(format!("--issuer-jwks: {e}")))?;
    issuers.put_in_force();
    Ok(())
}

/// How far it is, as a bar: `[########............] 40 %  record 40 of 100`.
fn bar(line: &str) -> String {
    let mut numbers = line.split(' ').filter_map(|word| word.parse::<u64>().ok());
    let (Some(done), Some(all)) = (numbers.next(), numbers.next()) else { return line.to_owned() };
    let percent = done.min(all).saturating_mul(100).checked_div(all).unwrap_or(100);
    let full = (percent / 5) as usize;
    format!("[{}{}] {percent:3} %  {line}", "#".repeat(full), ".".repeat(20 - full))
}

impl Rebuild {
    /// Rebuilds, with a line of progress on standard error.
    pub fn run(self) -> Result<(), Failure> {
        issuers(&self.issuer_jwks)?;
        let mut shown = Shown { line: String::new(), last: String::new() };
        Control::of(&self.data_dir)?.ask(&Request::Rebuild { check: self.check }, &mut shown)?;
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        match shown.last.strip_prefix("error ") {
            Some(error) => Err(Failure::unable(error)),
            None if shown.last.is_empty() || shown.last.starts_with("record ") => {
                Err(Failure::unable("the server broke off; see its log"))
            }
            None => print(&format!("{}\n", shown.last)),
        }
    }
}

/// Lines of progress, each over the one before; the last is the answer.
struct Shown {
    line: String,
    last: String,
}

impl Write for Shown {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for c in String::from_utf8_lossy(bytes).chars() {
            if c != '\n' {
                self.line.push(c);
                continue;
            }
            self.last = std::mem::take(&mut self.line);
            if self.last.starts_with("record ") && std::io::stderr().is_terminal() {
                eprint!("\r\x1b[K{}", bar(&self.last));
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Rebuilds, and tells about it line by line: progress, then what was done or an error.
pub fn rebuild(projection: &Projection, check: bool, out: &mut dyn Write) -> Result<(), Error> {
    let mut progress = |done: u64, all: u64| {
        // Who asked may have gone; the work is done all the same.
        let _ = writeln!(out, "record {done} of {all}").and_then(|()| out.flush());
    };
    let done = projection.rebuild(check, &mut progress);
    let line = match done {
        Ok(Rebuilt { segments, made, records }) => {
            format!("looked at {segments} segments; made {made} again, of {records} records")
        }
        Err(error) => format!("error {error}"),
    };
    writeln!(out, "{line}").map_err(|e| Error::unavailable(e.to_string()))
}

/// Rebuilds the segments of a log that no server has open.
pub fn rebuild_directly(reader: &Reader, check: bool, out: &mut dyn Write) -> Result<(), Error> {
    let opened = Projection::follow(reader.clone(), SegmentLimits::default());
    let (projection, follower) = opened.map_err(|e| Error::unavailable(e.to_string()))?;
    let done = rebuild(&projection, check, out);
    drop(follower);
    done
}

/// After an erasure: no row of it stays, neither in memory nor in files.
pub fn forget(projection: &Projection) -> Result<(), Error> {
    projection.forget().map_err(|e| {
        Error::unavailable(format!(
            "the content is erased from the log, but rows of it may still lie in segment files: {e}; start the server \
             again to try once more"
        ))
    })
}

/// As [`forget`], for a log that no server has open.
pub fn forget_directly(reader: &Reader) -> Result<(), Error> {
    Projection::tidy(reader.clone()).map_err(|e| {
        Error::unavailable(format!(
            "the content is erased from the log, but rows of it may still lie in segment files: {e}; the next start of \
             the server tries again"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn progress_is_a_bar() {
        assert_eq!(bar("record 40 of 100"), "[########............]  40 %  record 40 of 100");
        assert_eq!(bar("record 0 of 0"), "[####################] 100 %  record 0 of 0");
        assert_eq!(bar("something else"), "something else");
    }
}
