//! `custody prove`, `custody export` and `custody check`: evidence that stands alone.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use custody_query::format::plain;
use custody_query::ocsf::rfc3339;
use custody_query::rows::Time;
use custody_store::bundle::check_bundle;
use custody_store::note::VerifierKey;
use custody_store::proof::{Proof, check_consistency};
use custody_store::{Checkpoint, Reader};
use serde_json::{Value, json};

use crate::control::{Control, Request};
use crate::export_events::To;
use crate::select::Select;
use crate::source::Source;
use crate::verify::{read, read_vkeys, short};
use crate::{Failure, answer, print, tell};

/// Prove that a record is in the log: a C2SP .tlog-proof on standard output.
///
/// It holds the record with what its commitment binds, its entry, the path to the
/// root and the signed checkpoint: `custody check` needs nothing else but the key.
#[derive(Args)]
pub struct Prove {
    /// The record.
    #[arg(long, value_name = "SEQ", required_unless_present = "consistency")]
    seq: Option<u64>,
    /// Instead: prove that the log of this checkpoint is the beginning of the log now.
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "seq")]
    consistency: Option<PathBuf>,
    /// The data directory; a server may be running on it.
    #[arg(long, default_value = "custody-data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Leave the record itself out: prove its entry only.
    #[arg(long)]
    without_content: bool,
    /// Instead: a COSE receipt (RFC 9942, SCITT) in binary. Its leaf is the entry: see --entry.
    #[arg(long, requires = "seq", conflicts_with_all = ["consistency", "without_content"])]
    cose: bool,
    /// Instead: the record's entry, in hexadecimal.
    #[arg(long, requires = "seq", conflicts_with_all = ["consistency", "without_content", "cose"])]
    entry: bool,
}

impl Prove {
    /// Prints the proof.
    pub fn run(self) -> Result<(), Failure> {
        if self.cose {
            return self.cose();
        }
        let reader = Reader::open(&self.data_dir).map_err(Failure::unable)?;
        if self.entry {
            let shown = reader.shown(self.seq.unwrap_or_default(), false).map_err(Failure::wrong)?;
            return print(&format!("{}\n", const_hex::encode(shown.entry)));
        }
        if let Some(path) = &self.consistency {
            return prove_consistency(&reader, path);
        }
        let proof = reader.proof(self.seq.unwrap_or_default(), !self.without_content);
        print(&proof.map_err(Failure::wrong)?.to_string())
    }
}

impl Prove {
    fn cose(&self) -> Result<(), Failure> {
        if std::io::stdout().is_terminal() {
            return Err(Failure::wrong("a COSE receipt is nothing for a terminal; write it to a file"));
        }
        let request = Request::Cose { seq: self.seq.unwrap_or_default() };
        let answer = Control::of(&self.data_dir)?.ask(&request, &mut std::io::sink())?;
        let receipt: Vec<u8> = serde_json::from_value(answer["receipt"].clone()).map_err(Failure::unable)?;
        std::io::stdout().write_all(&receipt).map_err(Failure::unable)
    }
}

/// Old checkpoint, path and new checkpoint, as JSON.
fn prove_consistency(reader: &Reader, path: &Path) -> Result<(), Failure> {
    let old = read(path)?;
    let from = Checkpoint::parse_unverified(&old).map_err(Failure::wrong)?;
    let new =
        reader.checkpoint().map_err(Failure::unable)?.ok_or_else(|| Failure::unable("there is no checkpoint yet"))?;
    let to = Checkpoint::parse_unverified(&new).map_err(Failure::unable)?;
    let hashes = reader.consistency(from.size, to.size).map_err(Failure::wrong)?;
    check_consistency(&hashes, &from, &to).map_err(Failure::wrong)?;
    let hashes: Vec<String> = hashes.iter().map(const_hex::encode).collect();
    print(&format!("{}\n", json!({"type": "custody-consistency", "old": old, "path": hashes, "new": new})))
}

/// Write an evidence bundle: records with all that proves them, in one signed file.
///
/// The export is itself a record in the log. `custody check FILE`, or tools/verify.py
/// with nothing but Python, verifies the bundle anywhere.
#[derive(Args)]
pub struct Export {
    #[command(flatten)]
    select: Option<Select>,
    /// The whole log.
    #[arg(long, conflicts_with_all = ["seq", "trace", "grant", "agent", "sql", "where"])]
    all: bool,
    /// The file to write, such as incident.custody.
    #[arg(long, short, value_name = "FILE", required_unless_present = "to")]
    output: Option<PathBuf>,
    /// Why it is exported; goes into the log and the bundle.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// The data directory; if a server runs on it, the server does the work.
    #[arg(long, default_value = "custody-data", value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    to: To,
}

impl Export {
    /// Writes the file, or the objects.
    pub fn run(self) -> Result<(), Failure> {
        if self.to.is_some() {
            if self.select.is_some() {
                return Err(Failure::wrong("--to exports the events of all records; a selection is for -o FILE"));
            }
            return self.to.run(&self.data_dir);
        }
        if self.select.is_none() && !self.all {
            return Err(Failure::wrong(
                "say what to export: --trace, --grant, --agent, --sql, --where, --seq or --all",
            ));
        }
        // A query on a directory without a server is answered before the log is opened for writing.
        let resolve = |url: Option<String>| match &self.select {
            Some(select) => {
                let source = || url.map_or_else(|| Source::of_directory(&self.data_dir), |url| Ok(Source::at(url)));
                select.resolve(source).map(|seqs| seqs.to_string())
            }
            None => Ok(String::new()),
        };
        let mut control = Control::of(&self.data_dir)?;
        let seqs = match control.url()? {
            Some(url) => resolve(Some(url))?,
            None => {
                drop(control);
                let seqs = resolve(None)?;
                control = Control::of(&self.data_dir)?;
                seqs
            }
        };
        let words = self.select.as_ref().map_or_else(|| "all".to_owned(), Select::words);
        let request =
            Request::Export { seqs, all: self.all, query: words, reason: self.reason.clone(), attached: Value::Null };
        let output = self.output.as_deref().ok_or_else(|| Failure::wrong("name the file to write with -o"))?;
        write_bundle(output, &mut control, &request)
    }
}

/// Writes a bundle, and checks that it came whole.
pub(crate) fn write_bundle(output: &Path, control: &mut Control, request: &Request) -> Result<(), Failure> {
    write_checked(output, |out| control.ask(request, out).map(drop))
}

/// Has a bundle written beside a file, and renames it to that once it is whole.
pub(crate) fn write_checked(
    output: &Path,
    write: impl FnOnce(&mut dyn std::io::Write) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let fail = |e: std::io::Error| Failure::unable(format!("{} cannot be written: {e}", output.display()));
    let part = output.with_extension("part");
    let mut out = std::io::BufWriter::new(std::fs::File::create(&part).map_err(fail)?);
    if let Err(failure) = write(&mut out) {
        let _ = std::fs::remove_file(&part);
        return Err(failure);
    }
    out.flush().map_err(fail)?;
    out.get_ref().sync_all().map_err(fail)?;
    // Broken off on the way, it would lack its last line.
    let input = BufReader::new(std::fs::File::open(&part).map_err(fail)?);
    let evidence = check_bundle(input, &[], |_, _| ());
    let evidence = evidence.map_err(|e| Failure::unable(format!("the bundle did not come whole: {e}")))?;
    std::fs::rename(&part, output).map_err(fail)?;
    print(&format!(
        "{}: {} records with proofs, {} erased; check it anywhere with: custody check {}\n",
        output.display(),
        evidence.verified,
        evidence.erased,
        output.display()
    ))
}

/// Check a proof, a bundle, a receipt's log or a consistency proof, offline.
///
/// Exit status: 0 it holds; 1 it does not; 2 it could not be told.
#[derive(Args)]
pub struct Check {
    /// A .tlog-proof, a bundle, or the output of `custody prove --consistency`.
    file: PathBuf,
    /// A file with the log's public keys (log.vkey) that you have from elsewhere. Without it a
    /// bundle is checked against the keys that it brings, which are printed for you to compare.
    #[arg(long, value_name = "FILE")]
    vkey: Option<PathBuf>,
    /// Print the result as JSON; of a bundle, also every record, a line each.
    #[arg(long)]
    json: bool,
}

impl Check {
    /// Runs the command; the exit status is the verdict.
    pub fn run(self) -> u8 {
        match self.check() {
            Ok(()) => 0,
            Err(failure) => {
                if self.json {
                    let _ = print(&format!("{}\n", json!({"verdict": "false", "reason": failure.message})));
                }
                let word = if failure.status == 1 { "FALSE" } else { "cannot tell" };
                tell(&format!("custody check: {word}: {}", failure.message));
                failure.status
            }
        }
    }

    fn check(&self) -> Result<(), Failure> {
        let fail = |e: std::io::Error| Failure::unable(format!("{}: {e}", self.file.display()));
        let keys = self.keys()?;
        let mut input = BufReader::new(std::fs::File::open(&self.file).map_err(fail)?);
        let start = input.fill_buf().map_err(fail)?;
        if start.starts_with(b"c2sp.org/tlog-proof") {
            return self.proof(&read(&self.file)?, &keys);
        }
        if start.starts_with(b"{\"type\":\"custody-consistency\"") {
            return self.consistency(&read(&self.file)?, &keys);
        }
        if !start.starts_with(b"{\"type\":\"custody-bundle\"") {
            let file = self.file.display();
            return Err(Failure::unable(format!(
                "{file} is no .tlog-proof, no bundle of `custody export` and no output of `custody prove --consistency`"
            )));
        }
        let mut records = Vec::new();
        let evidence = check_bundle(input, &keys, |entry, shown| {
            if self.json {
                let mut record = shown.to_json();
                record["seq"] = entry.seq.into();
                records.push(record);
            }
        });
        let evidence = evidence.map_err(Failure::wrong)?;
        let manifest = &evidence.manifest;
        let answered = answer::check(manifest)?;
        if self.json {
            let verdict = json!({
                "verdict": "holds", "verified": evidence.verified, "erased": evidence.erased,
                "complete": evidence.complete, "manifest": manifest, "vkeys": evidence.vkeys,
                "checkpoint": evidence.checkpoint, "keys_given": !keys.is_empty(),
            });
            records.insert(0, verdict);
            return records.iter().try_for_each(|line| print(&format!("{line}\n")));
        }
        // What a bundle says of itself stays in its place of the line.
        let text = |key: &str| plain(manifest[key].as_str().unwrap_or_default());
        print(&format!(
            "holds: {} records of {} with content proved, {} erased by records that are proved too{}\n\
             exported by {} ({}), which is record {} of the log\n",
            evidence.verified,
            text("origin"),
            evidence.erased,
            if evidence.complete { "; it is the whole log" } else { "" },
            text("exported_by"),
            text("query"),
            manifest["exported_seq"],
        ))?;
        if let Some(told) = &answered {
            print(told)?;
        }
        self.print_keys(&evidence.vkeys, keys.is_empty())
    }

    fn print_keys(&self, vkeys: &[String], compare: bool) -> Result<(), Failure> {
        if compare {
            print("compare these keys with what the log's operator published, or give them with --vkey:\n")?;
        }
        for key in vkeys {
            print(&format!("key:   {}\n", short(key)))?;
        }
        Ok(())
    }

    fn keys(&self) -> Result<Vec<VerifierKey>, Failure> {
        self.vkey.as_deref().map_or(Ok(Vec::new()), read_vkeys)
    }

    fn needed<'a>(&self, keys: &'a [VerifierKey]) -> Result<&'a [VerifierKey], Failure> {
        if keys.is_empty() {
            return Err(Failure::unable("give the log's public keys with --vkey (its file log.vkey)"));
        }
        Ok(keys)
    }

    fn proof(&self, text: &str, keys: &[VerifierKey]) -> Result<(), Failure> {
        let proof = Proof::parse(text).map_err(Failure::wrong)?;
        let (entry, checkpoint) = proof.check(self.needed(keys)?).map_err(Failure::wrong)?;
        let content = proof.shown.content.as_ref();
        if self.json {
            let shown = proof.shown.to_json();
            return print(&format!("{}\n", json!({"verdict": "holds", "seq": entry.seq, "shown": shown})));
        }
        print(&format!(
            "holds: record {} is in {} (size {}), taken at {}{}\n",
            entry.seq,
            plain(&checkpoint.origin),
            checkpoint.size,
            rfc3339(Time(entry.ingest_time as i64)),
            content.map_or_else(
                || "; its content is not shown".to_owned(),
                |content| format!(" from {}; its content is as shown", plain(&content.identity.0))
            ),
        ))
    }

    fn consistency(&self, text: &str, keys: &[VerifierKey]) -> Result<(), Failure> {
        let json: Value = serde_json::from_str(text).map_err(Failure::wrong)?;
        let keys = self.needed(keys)?;
        let note = |name: &str| Checkpoint::verify(json[name].as_str().unwrap_or_default(), keys);
        let (old, new) = (note("old").map_err(Failure::wrong)?, note("new").map_err(Failure::wrong)?);
        let path: Option<Vec<[u8; 32]>> = json["path"]
            .as_array()
            .and_then(|path| path.iter().map(|hash| const_hex::decode_to_array(hash.as_str()?).ok()).collect());
        let path = path.ok_or_else(|| Failure::wrong("its path is not readable"))?;
        check_consistency(&path, &old, &new).map_err(Failure::wrong)?;
        print(&format!("holds: the log of size {} is the beginning of that of size {}\n", old.size, new.size))
    }
}
