//! The `custody` command: a provenance ledger for AI agents, in one binary.

mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// An immutable provenance ledger and tracing backend for AI agents.
#[derive(Parser)]
#[command(name = "custody", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Verify(verify::Verify),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Verify(command) => command.run(),
    }
}
