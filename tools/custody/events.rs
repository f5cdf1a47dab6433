//! `custody events`: provenance events as NDJSON, by cursor.

use clap::{Args, ValueEnum};

use crate::source::From;
use crate::{Failure, print};

/// Pull provenance events as NDJSON, in the order of the log.
///
/// When it ends, the cursor to go on from is printed on standard error.
#[derive(Args)]
pub struct Events {
    /// Begin after the page with this cursor.
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// Do not end: wait for what comes. Needs a running server.
    #[arg(long)]
    follow: bool,
    /// Only these kinds, with commas between, such as tool_call,grant_denied.
    #[arg(long, value_name = "KINDS")]
    kind: Option<String>,
    /// End after about this many events.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// How the events are written.
    #[arg(long, value_enum, default_value_t = Format::Raw)]
    format: Format,
    #[command(flatten)]
    from: From,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The rows of the table `events`.
    Raw,
}

impl Events {
    /// Prints events until there are no more, or for ever.
    pub fn run(self) -> Result<(), Failure> {
        let Format::Raw = self.format;
        let source = self.from.open()?;
        if self.follow && !source.live() {
            return Err(Failure::wrong("--follow needs a running server; name it with --url"));
        }
        let mut cursor = self.after;
        let mut left = self.limit.unwrap_or(usize::MAX);
        loop {
            let mut path = format!("/api/v1/events?limit={}", left.clamp(1, 1_000));
            for (name, value) in [("after", &cursor), ("kind", &self.kind)] {
                if let Some(value) = value {
                    path.push_str(&format!("&{name}={value}"));
                }
            }
            if self.follow {
                path.push_str("&wait=20s");
            }
            let page = source.get(&path)?;
            left = left.saturating_sub(page.body.iter().filter(|b| **b == b'\n').count());
            print(&String::from_utf8_lossy(&page.body))?;
            cursor = page.next_cursor.or(cursor);
            if left == 0 || (!page.has_more && !self.follow) {
                break;
            }
        }
        if let Some(cursor) = cursor {
            eprintln!("next cursor: {cursor}");
        }
        Ok(())
    }
}
