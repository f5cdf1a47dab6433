//! `custody verify`: reads a log afresh and says whether anything was changed.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use custody_store::note::VerifierKey;
use custody_store::verify::{Finding, Options, State, Summary, Verdict, verify, verify_receipts};
use custody_store::{Checkpoint, Reader};
use serde_json::{Value, json};

use crate::credentials::Credentials;
use crate::remote::{Remote, Told};
use crate::source::Source;
use crate::{Failure, print, tell};

/// How often the state is kept, with --state.
const KEEP_EVERY: Duration = Duration::from_secs(10);

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
    /// Instead: a live log over HTTP, read as any C2SP tlog-tiles client reads it. Entries, chain,
    /// tiles, root and signatures are verified; content needs the directory or a bundle. Give --vkey.
    #[arg(long, value_name = "URL", conflicts_with_all = ["data_dir", "submitter", "state"], requires = "vkey")]
    url: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// A signed checkpoint that you kept: nothing that it covers may be changed or rolled back.
    #[arg(long, value_name = "FILE")]
    trusted: Option<PathBuf>,
    /// A file with the public keys that you trust (log.vkey, a line each); else those that the first record names.
    #[arg(long, value_name = "FILE")]
    vkey: Option<PathBuf>,
    /// A file of signed receipts that an exporter kept: none of its records may be missing.
    #[arg(long, value_name = "FILE")]
    submitter: Option<PathBuf>,
    /// Keep in this file how far it got, and go on from there. Keep it where the log's operator cannot write.
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// How many workers hash [default: one for each core].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    workers: usize,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

impl Verify {
    /// Runs the command; the exit status is the verdict.
    pub fn run(self) -> u8 {
        match self.verdict() {
            Ok(status) => status,
            Err(failure) => {
                if self.json {
                    let _ = print(&format!("{}\n", json!({"verdict": "unreadable", "reason": failure.message})));
                }
                tell(&format!("custody verify: cannot tell: {}", failure.message));
                2
            }
        }
    }

    fn verdict(&self) -> Result<u8, Failure> {
        let options = self.options()?;
        if let Some(url) = &self.url {
            return self.remote(url, &options);
        }
        let mut progress = Progress::new(self.json);
        let mut kept = Instant::now();
        let verdict = verify(&self.data_dir, &options, |state, total| {
            progress.show(state, total);
            if kept.elapsed() > KEEP_EVERY {
                kept = Instant::now();
                self.keep(state);
            }
        });
        progress.clear();
        match verdict.map_err(Failure::unable)? {
            Verdict::Tampered(finding) => {
                self.print_tampered(&finding)?;
                Ok(1)
            }
            Verdict::Sound(summary) => {
                self.keep(&summary.state);
                let receipts = self.receipts()?;
                self.print_sound(&summary, receipts.as_ref())?;
                let missing = receipts.is_some_and(|r| r["wrong"].as_array().is_some_and(|w| !w.is_empty()));
                Ok(u8::from(missing))
            }
        }
    }

    fn remote(&self, url: &str, options: &Options) -> Result<u8, Failure> {
        let source = Source::with(url, self.credentials.clone())?;
        let mut progress = Progress::new(self.json);
        let shown = |done, total| progress.line(done, total, None);
        let told = Remote::new(source, &options.keys, options.trusted.as_deref(), shown).verify();
        progress.clear();
        match told? {
            Told::Sound(records, note) if self.json => {
                let json = json!({"verdict": "sound", "records": records, "checkpoint": note, "content": false});
                print(&format!("{json}\n"))?;
                Ok(0)
            }
            Told::Sound(records, note) => {
                let lines: String = note.lines().map(|line| format!("  {}\n", short(line))).collect();
                print(&format!(
                    "sound: {records} entries, their chain, counters and tiles; content is not served by tiles\n\
                     checkpoint:\n{lines}"
                ))?;
                Ok(0)
            }
            Told::Tampered(seq, reason) => {
                self.print_tampered(&Finding { seq, reason })?;
                Ok(1)
            }
        }
    }

    fn options(&self) -> Result<Options, Failure> {
        let mut options = Options { workers: self.workers, ..Options::default() };
        options.trusted = self.trusted.as_deref().map(read_checkpoint).transpose()?;
        if let Some(path) = &self.vkey {
            options.keys = read_vkeys(path)?;
        }
        if let Some(path) = self.state.as_deref().filter(|path| path.exists()) {
            options.state = Some(State::parse(&read(path)?).map_err(Failure::unable)?);
        }
        Ok(options)
    }

    /// Keeps the state; that it cannot be kept does not change the verdict.
    fn keep(&self, state: &State) {
        let Some(path) = &self.state else { return };
        let new = path.with_extension("new");
        let kept = std::fs::write(&new, state.to_text()).and_then(|()| std::fs::rename(&new, path));
        if let Err(error) = kept {
            eprintln!("custody verify: --state {} cannot be written: {error}", path.display());
        }
    }

    fn receipts(&self) -> Result<Option<Value>, Failure> {
        let Some(path) = &self.submitter else { return Ok(None) };
        let reader = Reader::open(&self.data_dir).map_err(Failure::unable)?;
        let verdict = verify_receipts(&reader, &read(path)?).map_err(Failure::unable)?;
        Ok(Some(json!({
            "receipts": verdict.receipts, "records": verdict.records, "of_submitters": verdict.of_submitters,
            "wrong": verdict.wrong,
        })))
    }

    fn print_sound(&self, summary: &Summary, receipts: Option<&Value>) -> Result<(), Failure> {
        if self.json {
            let json = json!({
                "verdict": "sound", "records": summary.records, "erased": summary.erased, "blocks": summary.blocks,
                "bytes": summary.bytes, "tree_nodes": summary.nodes, "checkpoints": summary.checkpoints,
                "unsigned": summary.unsigned, "resumed_at": summary.resumed_at, "checkpoint": summary.checkpoint, "vkeys": summary.keys,
                "receipts": receipts,
            });
            return print(&format!("{json}\n"));
        }
        let mut out = format!(
            "sound: {} records in {} blocks, {} payload bytes, {} tree nodes; every commitment, link and node recomputed\n",
            summary.records, summary.blocks, summary.bytes, summary.nodes
        );
        if summary.resumed_at > 0 {
            let kept = summary.resumed_at;
            out += &format!("       the first {kept} records were verified earlier (--state) and not read again\n");
        }
        if summary.erased > 0 {
            out += &format!("       {} records are erased, and the log's records say of each why\n", summary.erased);
        }
        if summary.unsigned > 0 {
            out += &format!(
                "       the newest {} records are durable but not yet in a signed checkpoint\n",
                summary.unsigned
            );
        }
        if let Some(receipts) = receipts {
            out += &receipts_text(receipts);
        }
        for key in &summary.keys {
            out += &format!("key:   {}\n", short(key));
        }
        out += &format!("checkpoint ({} in all):\n", summary.checkpoints);
        for line in summary.checkpoint.lines() {
            out += &format!("  {}\n", short(line));
        }
        print(&out)
    }

    fn print_tampered(&self, finding: &Finding) -> Result<(), Failure> {
        if self.json {
            let json = json!({"verdict": "tampered", "seq": finding.seq, "reason": finding.reason});
            return print(&format!("{json}\n"));
        }
        print(&format!("TAMPERED at seq {}: {}\n", finding.seq, finding.reason))
    }
}

fn receipts_text(receipts: &Value) -> String {
    let mut out = format!(
        "receipts: {} verified; the {} records that they speak of are there, of {} from the same submitters\n",
        receipts["receipts"], receipts["records"], receipts["of_submitters"]
    );
    for wrong in receipts["wrong"].as_array().into_iter().flatten() {
        out += &format!("MISSING: {}\n", wrong.as_str().unwrap_or_default());
    }
    out
}

/// A line with a post-quantum key or signature, cut for people.
pub(crate) fn short(line: &str) -> String {
    if line.len() <= 200 { line.to_owned() } else { format!("{}...", &line[..line.floor_char_boundary(120)]) }
}

/// The public keys of a file in the form of `log.vkey`, a line each.
pub(crate) fn read_vkeys(path: &Path) -> Result<Vec<VerifierKey>, Failure> {
    let keys: Result<_, _> = read(path)?.lines().map(VerifierKey::parse).collect();
    keys.map_err(|e| Failure::unable(format!("{}: {e}", path.display())))
}

/// A checkpoint that was kept. What is none accuses nobody: nothing can be told with it.
fn read_checkpoint(path: &Path) -> Result<String, Failure> {
    let note = read(path)?;
    match Checkpoint::parse_unverified(&note) {
        Ok(_) => Ok(note),
        Err(e) => Err(Failure::unable(format!("--trusted {} is no checkpoint: {e}", path.display()))),
    }
}

/// The text of a file.
pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| Failure::unable(format!("{}: {e}", path.display())))
}

/// A progress line on a terminal, and nothing elsewhere.
struct Progress {
    shown: Option<Instant>,
    wanted: bool,
    start: Instant,
}

impl Progress {
    fn new(json: bool) -> Self {
        Self { shown: None, wanted: !json && std::io::stderr().is_terminal(), start: Instant::now() }
    }

    fn show(&mut self, state: &State, total: u64) {
        self.line(state.size(), total, Some(state.bytes()));
    }

    fn line(&mut self, done: u64, total: u64, bytes: Option<u64>) {
        let due = self.shown.unwrap_or(self.start).elapsed() > Duration::from_millis(200);
        if !self.wanted || !due {
            return;
        }
        self.shown = Some(Instant::now());
        let seconds = self.start.elapsed().as_secs_f64();
        let rate = bytes.map_or_else(String::new, |bytes| format!(" {:.0} MB/s,", bytes as f64 / seconds / 1e6));
        let percent = done * 100 / total.max(1);
        let left = seconds * (total.saturating_sub(done)) as f64 / done.max(1) as f64;
        eprint!("\rverifying {done} of {total} records ({percent} %),{rate} {left:.0} s left ");
        let _ = std::io::stderr().flush();
    }

    fn clear(&mut self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
