//! The `custody` command: a provenance ledger for AI agents, in one binary.

mod alerts;
mod answer;
mod auth;
mod control;
mod credentials;
mod demo;
mod event_flags;
mod events;
mod evidence;
mod export_events;
mod keep;
mod limits;
mod observe;
mod output;
mod process;
mod queries;
mod ready;
mod record;
mod recording;
mod redact;
mod remote;
mod replay;
mod rules;
mod s3;
mod security;
mod segments;
mod select;
mod serve;
mod shell;
mod source;
mod sql;
mod statements;
mod tamper;
mod verify;
mod witness;
mod witnesses;

use std::borrow::Cow;
use std::io::{IsTerminal as _, Write as _};

use clap::{Parser, Subcommand};
use custody_query::format;

/// RocksDB, DataFusion and the receivers share it: what one gives back another can have.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// An immutable provenance ledger and tracing backend for AI agents.
///
/// Point any OTLP exporter at `custody serve`; ask with `custody sql` and
/// `custody replay`; prove with `custody verify`.
#[derive(Parser)]
#[command(name = "custody", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(Box<serve::Serve>),
    Sql(sql::Sql),
    Replay(replay::Replay),
    Events(Box<events::Events>),
    Alerts(alerts::Alerts),
    Verify(verify::Verify),
    Prove(evidence::Prove),
    Export(evidence::Export),
    Check(evidence::Check),
    Erase(keep::Erase),
    /// Legal holds: records that may not be erased.
    #[command(subcommand)]
    Hold(keep::HoldCommand),
    Retain(keep::Retain),
    Backup(keep::Backup),
    Restore(keep::Restore),
    Repair(keep::Repair),
    Rebuild(segments::Rebuild),
    /// The rules of the checks.
    #[command(subcommand)]
    Rules(rules::RulesCommand),
    /// The log's signing keys.
    #[command(subcommand)]
    Keys(keep::KeysCommand),
    Signer(keep::Signer),
    Witness(witness::Witness),
    Redact(redact::Redact),
    /// The policy file: who may do what.
    #[command(subcommand)]
    Policy(auth::command::PolicyCommand),
    Token(auth::command::Token),
    Demo(demo::Demo),
}

fn main() -> ! {
    end(run())
}

/// Does what the command line says; gives the exit status.
fn run() -> u8 {
    let (name, result) = match Cli::parse().command {
        Command::Serve(command) => ("serve", command.run()),
        Command::Sql(command) => ("sql", command.run()),
        Command::Replay(command) => ("replay", command.run()),
        Command::Events(command) => ("events", command.run()),
        Command::Alerts(command) => ("alerts", command.run()),
        Command::Verify(command) => return command.run(),
        Command::Check(command) => return command.run(),
        Command::Prove(command) => ("prove", command.run()),
        Command::Export(command) => ("export", command.run()),
        Command::Erase(command) => ("erase", command.run()),
        Command::Hold(command) => ("hold", command.run()),
        Command::Retain(command) => ("retain", command.run()),
        Command::Backup(command) => ("backup", command.run()),
        Command::Restore(command) => ("restore", command.run()),
        Command::Repair(command) => ("repair", command.run()),
        Command::Rebuild(command) => ("rebuild", command.run()),
        Command::Rules(command) => ("rules", command.run()),
        Command::Keys(command) => ("keys", command.run()),
        Command::Signer(command) => ("signer", command.run()),
        Command::Redact(command) => ("redact", command.run()),
        Command::Witness(command) => ("witness", command.run()),
        Command::Policy(command) => ("policy", command.run()),
        Command::Token(command) => ("token", command.run()),
        Command::Demo(command) => ("demo", command.run()),
    };
    match result {
        Ok(()) => 0,
        Err(failure) => {
            tell(&format!("custody {name}: {}", failure.message.trim_end_matches('\n')));
            failure.status
        }
    }
}

/// Ends the process, without the destructors of what is static in C++: a thread that closes the database meanwhile, for
/// a stream or a query that was open still, would find RocksDB's own locks destroyed and abort a server that had stopped
/// well. What was acknowledged is durable by then, as after a kill at any time.
fn end(status: u8) -> ! {
    let _ = std::io::stdout().flush();
    signal_hook::low_level::exit(status.into())
}

/// Why a command ends without having done its work: one line, and an exit status.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    status: u8,
    /// Where to go on behind what retention erased.
    next_cursor: Option<String>,
    /// How long the server says to wait before it is asked again.
    retry_after: Option<std::time::Duration>,
}

impl Failure {
    /// Whether it may go well another time.
    pub(crate) fn is_unable(&self) -> bool {
        self.status == 2
    }

    /// Whether a file of sealed rows could not be read.
    pub(crate) fn is_about_a_segment(&self) -> bool {
        self.message.contains("segment file") && self.message.contains("cannot be read")
    }

    /// The question was wrong, or the answer is no: status 1.
    pub(crate) fn wrong(message: impl ToString) -> Self {
        Self { message: message.to_string(), status: 1, next_cursor: None, retry_after: None }
    }

    /// It could not be tried at all (in use, not readable, not reachable): status 2.
    pub(crate) fn unable(message: impl ToString) -> Self {
        Self { message: message.to_string(), status: 2, next_cursor: None, retry_after: None }
    }
}

/// So many of something: `1 record`, `2 records`.
pub(crate) fn counted(n: impl TryInto<u64>, one: &str) -> String {
    match n.try_into() {
        Ok(1) => format!("1 {one}"),
        n => format!("{} {one}s", n.unwrap_or(u64::MAX)),
    }
}

/// Writes text to standard output. What a reader that has gone away does not take is dropped, and the command goes on
/// to its own exit status: `custody events check bad.ndjson | head -1` must not end as if all were well.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(for_stdout(text).as_bytes())
}

/// A text as standard output may have it: what is in the log, or comes from another server, commands no terminal. Who
/// stores it gets it as it is.
pub(crate) fn for_stdout(text: &str) -> Cow<'_, str> {
    match std::io::stdout().is_terminal() {
        true => format::plain_lines(text).into(),
        false => text.into(),
    }
}

/// Says something on standard error, which may quote what is in the log.
pub(crate) fn tell(text: &str) {
    eprintln!("{}", format::plain_lines(text));
}

/// The same as [`print`], of what may be no text, or has been made harmless and has colours of our own.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    write_out(bytes).map(drop)
}

/// The same for commands that do nothing but print, some of them for ever: without a reader they end.
pub(crate) fn print_or_end(bytes: &[u8]) -> Result<(), Failure> {
    match write_out(bytes)? {
        true => Ok(()),
        false => end(0),
    }
}

/// Whether there is somebody who reads.
fn write_out(bytes: &[u8]) -> Result<bool, Failure> {
    let mut out = std::io::stdout();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).map_err(Failure::unable),
    }
}
