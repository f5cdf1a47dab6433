//! `custody verify`: reads a log afresh and says whether anything was changed.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use custody_store::verify::{Finding, Summary, Verdict, verify};

/// Read the log afresh and prove that nothing was changed.
///
/// Exit status: 0 everything is as it was signed; 1 something was changed,
/// removed, swapped or inserted (the first bad seq is named); 2 it could not be
/// told, because the store is not readable.
#[derive(Args)]
pub struct Verify {
    /// The data directory, or a copy of one. A server may be running on it.
    #[arg(long, default_value = "custody-data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

impl Verify {
    /// Runs the command; the exit status is the verdict.
    pub fn run(self) -> ExitCode {
        let mut progress = Progress::new(self.json);
        let verdict = verify(&self.data_dir, |done, total| progress.show(done, total));
        progress.clear();
        match verdict {
            Ok(Verdict::Sound(summary)) => {
                self.print_sound(&summary);
                ExitCode::SUCCESS
            }
            Ok(Verdict::Tampered(finding)) => {
                self.print_tampered(&finding);
                ExitCode::from(1)
            }
            Err(error) => {
                if self.json {
                    println!("{}", serde_json::json!({"verdict": "unreadable", "reason": error.to_string()}));
                }
                eprintln!("custody verify: cannot tell: {error}");
                ExitCode::from(2)
            }
        }
    }

    fn print_sound(&self, summary: &Summary) {
        if self.json {
            let json = serde_json::json!({
                "verdict": "sound", "records": summary.records, "blocks": summary.blocks, "bytes": summary.bytes,
                "tree_nodes": summary.nodes, "unsigned": summary.unsigned, "checkpoint": summary.checkpoint,
                "vkey": summary.vkey,
            });
            println!("{json}");
            return;
        }
        println!(
            "sound: {} records in {} blocks, {} payload bytes, {} tree nodes; every commitment, link and node recomputed",
            summary.records, summary.blocks, summary.bytes, summary.nodes
        );
        if summary.unsigned > 0 {
            println!("       the newest {} records are durable but not yet in a signed checkpoint", summary.unsigned);
        }
        println!("key:   {}", summary.vkey);
        println!("checkpoint:");
        for line in summary.checkpoint.lines() {
            println!("  {line}");
        }
    }

    fn print_tampered(&self, finding: &Finding) {
        if self.json {
            println!("{}", serde_json::json!({"verdict": "tampered", "seq": finding.seq, "reason": finding.reason}));
        } else {
            println!("TAMPERED at seq {}: {}", finding.seq, finding.reason);
        }
    }
}

/// A progress line on a terminal, and nothing elsewhere.
struct Progress {
    shown: bool,
    wanted: bool,
    last: u64,
}

impl Progress {
    fn new(json: bool) -> Self {
        Self { shown: false, wanted: !json && std::io::stderr().is_terminal(), last: 0 }
    }

    fn show(&mut self, done: u64, total: u64) {
        let step = (total / 100).max(10_000);
        if self.wanted && done >= self.last + step {
            self.last = done;
            self.shown = true;
            eprint!("\rverifying {done} of {total} records");
            let _ = std::io::stderr().flush();
        }
    }

    fn clear(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}
