//! `custody events`: provenance events as lines, by cursor; and `custody events check`, which says
//! whether what was stored of them is complete and unaltered.

mod beside;
mod chain;
mod check;
mod stored;
mod strangers;
mod tally;

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::num::NonZeroUsize;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::keep::one_or_more;
use crate::source::{From, Source};
use crate::{Failure, for_stdout, print, print_or_end, tell};

/// How long --follow waits before it asks a server again that does not answer.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// The same where the server says how long.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Pull provenance events as lines, in the order of the log.
///
/// When it ends, the cursor to go on from is printed on standard error; --state-file keeps it.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Events {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    pull: Pull,
}

#[derive(Subcommand)]
enum Action {
    Check(check::Check),
}

#[derive(Args)]
struct Pull {
    /// Begin after the page with this cursor.
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// Begin with what the ledger took at this time: RFC 3339, or seconds since 1970. A cursor wins.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Begin at this seq. A cursor wins.
    #[arg(long, value_name = "SEQ", conflicts_with = "since")]
    from_seq: Option<u64>,
    /// Do not end: wait for what comes, and come again when the server was away. Needs a running server.
    #[arg(long)]
    follow: bool,
    /// Keep the cursor in this file, written after the events of a page were, and go on from it. Let standard output be
    /// a file then: what a pipe took and its reader had not read when it died is lost.
    #[arg(long, value_name = "FILE", conflicts_with = "after")]
    state_file: Option<PathBuf>,
    /// Where retention erased events before they were read, say so on standard error and go on with what is left.
    /// Without this it ends there.
    #[arg(long)]
    skip_erased: bool,
    /// End after about this many events.
    #[arg(long, value_name = "N", value_parser = one_or_more)]
    limit: Option<NonZeroUsize>,
    /// How the events are written: raw, the rows of the table `events`, or what docs/events.md lists.
    #[arg(long, default_value = "raw", value_name = "FORMAT")]
    format: String,
    #[command(flatten)]
    filter: Filters,
    #[command(flatten)]
    from: From,
}

/// Which events.
#[derive(Args, Clone, Debug, Default)]
pub struct Filters {
    /// Only these kinds, with commas between, such as tool_call,grant_denied.
    #[arg(long, value_name = "KINDS")]
    kind: Option<String>,
    /// Only these severities, with commas between: informational, low, medium, high, critical.
    #[arg(long, value_name = "SEVERITIES")]
    severity: Option<String>,
    /// Only these agents, by id or name, with commas between.
    #[arg(long, value_name = "AGENTS")]
    agent: Option<String>,
    /// Only these services, with commas between.
    #[arg(long, value_name = "SERVICES")]
    service: Option<String>,
    /// Only these workspaces, with commas between.
    #[arg(long, value_name = "WORKSPACES")]
    workspace: Option<String>,
}

impl Filters {
    /// As parameters of the API, each behind a `&`.
    fn query(&self) -> String {
        let lists = [
            ("kind", &self.kind),
            ("severity", &self.severity),
            ("agent", &self.agent),
            ("service", &self.service),
            ("workspace", &self.workspace),
        ];
        let given = lists.into_iter().filter_map(|(name, list)| Some((name, list.as_ref()?)));
        given.map(|(name, list)| format!("&{name}={}", escaped(list))).collect()
    }
}

/// Text as it may stand in a query string.
fn escaped(text: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~,:".contains(b);
    text.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

impl Events {
    /// Prints events until there are no more, or for ever; or checks stored ones.
    pub fn run(self) -> Result<(), Failure> {
        match self.action {
            Some(Action::Check(check)) => check.run(),
            None => self.pull.run(),
        }
    }
}

impl Pull {
    fn run(self) -> Result<(), Failure> {
        let source = self.from.open()?;
        if self.follow && !source.live() {
            return Err(Failure::wrong("--follow needs a running server; name it with --url"));
        }
        let mut cursor = match &self.state_file {
            Some(path) => read_state(path)?,
            None => self.after.clone(),
        };
        let out = Out::open(self.state_file.is_some())?;
        let mut left = self.limit.map_or(usize::MAX, NonZeroUsize::get);
        let mut pause = Duration::from_secs(1);
        loop {
            let page = match source.get(&self.path(cursor.as_deref(), left)) {
                Ok(page) => page,
                Err(failure) if self.follow && failure.is_unable() => {
                    let longest = |told: Duration| told.clamp(Duration::from_secs(1), RETRY_AFTER_MAX);
                    let wait = failure.retry_after.map_or(pause, longest);
                    tell(&format!("custody events: {}; asking again in {} s", failure.message, wait.as_secs()));
                    std::thread::sleep(wait);
                    pause = (pause * 2).min(RETRY_MAX);
                    continue;
                }
                Err(Failure { message, next_cursor: Some(next), .. }) if self.skip_erased => {
                    tell(&format!("custody events: {message}"));
                    if let Some(path) = &self.state_file {
                        write_state(path, &next)?;
                    }
                    cursor = Some(next);
                    continue;
                }
                Err(Failure { message, next_cursor: Some(next), .. }) => {
                    tell(&format!("next cursor: {next}"));
                    return Err(Failure::wrong(format!("{message}, or run this with --skip-erased")));
                }
                Err(failure) => return Err(failure),
            };
            pause = Duration::from_secs(1);
            left = left.saturating_sub(page.body.iter().filter(|b| **b == b'\n').count());
            // Without a reader it ends here: the state must not go on over what nobody took.
            print_or_end(for_stdout(&String::from_utf8_lossy(&page.body)).as_bytes())?;
            out.settle()?;
            if page.next_cursor != cursor
                && let (Some(path), Some(cursor)) = (&self.state_file, &page.next_cursor)
            {
                // A crash before this prints the page again: the state never runs ahead of the output.
                write_state(path, cursor)?;
            }
            cursor = page.next_cursor.or(cursor);
            if left == 0 || (!page.has_more && !self.follow) {
                break;
            }
        }
        if let Some(cursor) = cursor {
            tell(&format!("next cursor: {cursor}"));
        }
        Ok(())
    }

    fn path(&self, cursor: Option<&str>, left: usize) -> String {
        let mut path = format!("/api/v1/events?limit={}&format={}", left.clamp(1, 1_000), escaped(&self.format));
        path.push_str(&self.filter.query());
        for (name, value) in [("after", cursor), ("since", self.since.as_deref())] {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", escaped(value)));
            }
        }
        if let Some(seq) = self.from_seq {
            path.push_str(&format!("&from_seq={seq}"));
        }
        if self.follow {
            path.push_str("&wait=20s");
        }
        path
    }
}

/// Standard output, where it is a file that must not be behind the state.
struct Out(Option<File>);

impl Out {
    /// A file in which a crash left the beginning of a line gets an end to it: else the next event would be one line
    /// with that, and lost.
    fn open(keeps: bool) -> Result<Self, Failure> {
        let out = std::io::stdout().as_fd().try_clone_to_owned().map(File::from);
        let file = out.ok().filter(|out| keeps && out.metadata().is_ok_and(|data| data.is_file()));
        if file.is_some()
            && let Ok(mut written) = File::open("/dev/fd/1")
        {
            let mut last = [b'\n'];
            let end = written.seek(SeekFrom::End(-1));
            if end.is_ok_and(|_| written.read_exact(&mut last).is_ok()) && last != [b'\n'] {
                print("\n")?;
            }
        }
        Ok(Self(file))
    }

    /// What was printed is out, and if it is a file, on the disk.
    fn settle(&self) -> Result<(), Failure> {
        std::io::stdout().flush().map_err(Failure::unable)?;
        let synced = self.0.as_ref().map_or(Ok(()), File::sync_data);
        synced.map_err(|e| Failure::unable(format!("what was printed cannot be made durable: {e}")))
    }
}

/// The cursor of a state file; none if there is no file yet.
fn read_state(path: &Path) -> Result<Option<String>, Failure> {
    let text = match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|e| Failure::unable(format!("{} cannot be read: {e}", path.display())))?,
    };
    let state: Value = serde_json::from_slice(&text).unwrap_or_default();
    let cursor = state["cursor"].as_str().map(str::to_owned);
    let wrong = || Failure::wrong(format!("{} is not a state file of custody events", path.display()));
    cursor.map(Some).ok_or_else(wrong)
}

/// Keeps a cursor: after a crash the old one is there, or the new one.
fn write_state(path: &Path, cursor: &str) -> Result<(), Failure> {
    // Behind the whole name: states may differ in nothing but their extension.
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let write = || {
        let mut file = File::create(&new)?;
        writeln!(file, "{}", json!({"cursor": cursor}))?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(|e| Failure::unable(format!("{} cannot be written: {e}", path.display())))
}

/// All events from a seq on that match, a page at a time, until `each` says that it is enough.
fn pages(
    source: &Source,
    query: &str,
    from: u64,
    mut each: impl FnMut(&[u8]) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let mut cursor: Option<String> = None;
    loop {
        let begin = match &cursor {
            Some(cursor) => format!("after={cursor}"),
            None => format!("from_seq={from}"),
        };
        let page = source.get(&format!("/api/v1/events?limit=5000&{begin}{query}"))?;
        if !each(&page.body)? || !page.has_more {
            return Ok(());
        }
        cursor = page.next_cursor;
    }
}
