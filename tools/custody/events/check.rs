//! `custody events check`: holds what a SIEM stored of the events against the ledger, and the
//! ledger against a checkpoint that was kept elsewhere.
//!
//! What was stored is read twice: once for digests, and again for those events alone whose digest is another, to see
//! whether a member differs, the SIEM only added some, or another version of the mapping made it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Args;
use custody_proto::{ENTRY_BYTES, Entry, Hash};
use custody_query::serve::tiles::TilePath;
use custody_store::Checkpoint;
use custody_store::note::VerifierKey;
use custody_store::tree::{Frontier, TILE_WIDTH, leaf_hash};
use serde_json::{Value, json};

use super::beside::beside;
use super::chain::Chain;
use super::stored::{Stored, digest, each_line, mapping, named, parse};
use super::strangers::{erased, strangers};
use super::tally::Tally;
use super::{Filters, pages};
use crate::source::{From, Source};
use crate::{Failure, counted, print};

/// Findings of a kind that are printed one by one.
const SHOWN_MAX: usize = 20;

/// Events of the ledger that are held until what was stored is read again for them.
const SUSPECTS_MAX: usize = 50_000;

/// Say whether stored events are complete and unaltered.
///
/// Reads files of events, one JSON object a line (gzip too), as they were pulled: raw, ocsf or ecs.
/// Says what is missing, doubled, altered, unknown to the ledger or outside of the filter. With
/// --checkpoint the ledger itself is held against a checkpoint that you kept. What could not be compared as a
/// whole, since its record was erased or another version of the mapping made it, is counted.
///
/// Exit status: 0 nothing is wrong; 1 something is; 2 it could not be told.
#[derive(Args)]
pub struct Check {
    /// Files of stored events.
    #[arg(required_unless_present = "export", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A checkpoint that you kept, or that came with a page.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// The keys that must have signed the checkpoint, or the digests of an export (log.vkey, a line each).
    #[arg(long, value_name = "FILE")]
    vkey: Option<PathBuf>,
    /// Check from this seq on.
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    from_seq: u64,
    /// Check up to this seq [default: what the checkpoint covers, or else the last stored one].
    #[arg(long, value_name = "SEQ")]
    to_seq: Option<u64>,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    filter: Filters,
    #[command(flatten)]
    from: From,
    #[command(flatten)]
    chain: Chain,
}

/// What is wrong, by what it is.
#[derive(Default)]
pub(super) struct Findings(BTreeMap<&'static str, Vec<String>>);

/// The ledger's size, and what it commits to for some seqs.
type Committed = (u64, HashMap<u64, Hash>);

impl Findings {
    pub(super) fn add(&mut self, what: &'static str, which: String) {
        self.0.entry(what).or_default().push(which);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn to_json(&self) -> Value {
        let kinds = self.0.iter().map(|(what, which)| ((*what).to_owned(), json!(which)));
        Value::Object(kinds.collect())
    }

    /// For people: how many of each kind, and some of them.
    pub(super) fn print(&self) -> Result<(), Failure> {
        for (what, which) in &self.0 {
            print(&format!("{what}: {}\n", which.len()))?;
            for one in which.iter().take(SHOWN_MAX) {
                print(&format!("  {}\n", custody_query::format::plain(one)))?;
            }
        }
        Ok(())
    }
}

impl Check {
    /// Runs the check.
    pub fn run(self) -> Result<(), Failure> {
        let unable = |failure: Failure| Failure::unable(failure.message);
        if self.chain.is_some() {
            return self.chain.run(self.vkey.as_ref(), self.json);
        }
        if self.vkey.is_some() && self.checkpoint.is_none() {
            return Err(Failure::unable("--vkey says who signed a checkpoint: name it with --checkpoint"));
        }
        let from = self.from_seq;
        if let Some(last) = self.to_seq.filter(|last| *last < from) {
            return Err(Failure::unable(format!("--from-seq {from} is behind --to-seq {last}: nothing is between")));
        }
        let (mut findings, mut tally) = (Findings::default(), Tally::default());
        let (mut stored, format) = self.read(&mut findings)?;
        if stored.is_empty() && findings.is_empty() && self.checkpoint.is_none() && self.to_seq.is_none() {
            // The last stored event is where it would end: of nothing nothing is missing.
            return Err(Failure::unable(
                "no event is stored there; say up to where to look, with --checkpoint or --to-seq",
            ));
        }
        let source = self.from.open().map_err(unable)?;
        let commitments = self.commitments(&source, &stored, &mut findings).map_err(unable)?;
        let range = self.range(&source, &stored, commitments.as_ref().map(|(size, _)| *size))?;
        let asked = (&source, format, &range);
        let compared = self.compare(asked, &mut stored, &mut findings, &mut tally).map_err(unable)?;
        strangers(&source, &stored, &range, &mut findings, &mut tally).map_err(unable)?;
        tally.erased_records = erased(&source, &range);
        if let Some((_, commitments)) = &commitments {
            hashes(&stored, commitments, &mut findings);
        }
        for (uid, event) in stored.iter().filter(|(_, event)| event.copies > 1) {
            findings.add("doubled", format!("{uid} is there {} times", event.copies));
        }
        self.tell((stored.len(), compared), &range, &findings, &tally)
    }

    /// The seqs to check, which the ledger must have.
    fn range(
        &self,
        source: &Source,
        stored: &HashMap<String, Stored>,
        signed: Option<u64>,
    ) -> Result<Range<u64>, Failure> {
        let end = match (self.to_seq, signed) {
            (Some(last), _) => last.saturating_add(1),
            (None, Some(size)) => size,
            (None, None) => stored.values().map(|event| event.seq.saturating_add(1)).max().unwrap_or(0),
        };
        if let Some(last) = self.to_seq
            && let Err(failure) = source.get(&format!("/api/v1/events?limit=1&from_seq={end}"))
        {
            let is_beyond = failure.message.contains("beyond the end of this log");
            return Err(Failure::unable(match is_beyond {
                true => format!("--to-seq {last} is beyond the end of the log: up to there nothing can be told yet"),
                false => failure.message,
            }));
        }
        if self.from_seq > 0 && self.from_seq >= end {
            let from = self.from_seq;
            return Err(Failure::unable(format!(
                "--from-seq {from} is behind the last seq to look at; name a later one with --to-seq"
            )));
        }
        Ok(self.from_seq..end)
    }

    /// Reads all files; gives the events by their ids, and how they are written.
    fn read(&self, findings: &mut Findings) -> Result<(HashMap<String, Stored>, &'static str), Failure> {
        let mut stored: HashMap<String, Stored> = HashMap::new();
        let mut format = None;
        for path in &self.files {
            let mut number = 0;
            each_line(path, |line| {
                number += 1;
                let Some(event) = parse(line) else {
                    findings.add("unreadable", format!("{}:{number} is not a JSON object", path.display()));
                    return;
                };
                let Some((uid, seq, written)) = named(&event) else {
                    let names = "metadata.uid and metadata.sequence, or in ecs event.id and event.sequence";
                    findings.add("unreadable", format!("{}:{number} has no {names}", path.display()));
                    return;
                };
                format.get_or_insert(written);
                let read = Stored::of(&event, seq);
                let digest = read.digest;
                let event = stored.entry(uid.to_owned()).or_insert(read);
                event.copies += 1;
                event.is_varied |= event.digest != digest;
            })?;
        }
        Ok((stored, format.unwrap_or("raw")))
    }

    /// What the ledger commits to for the stored seqs, proved under the checkpoint; and its size.
    fn commitments(
        &self,
        source: &Source,
        stored: &HashMap<String, Stored>,
        findings: &mut Findings,
    ) -> Result<Option<Committed>, Failure> {
        let Some(path) = &self.checkpoint else { return Ok(None) };
        let note = text(path)?;
        let checkpoint = match &self.vkey {
            None => Checkpoint::parse_unverified(&note),
            Some(path) => {
                // A page's header carries the first signature alone, and one that was kept for long is of a former key.
                let keys = keys(path)?;
                let mut tried = keys.iter().map(|key| Checkpoint::verify(&note, std::slice::from_ref(key)));
                match tried.next() {
                    Some(Err(why)) => tried.find(Result::is_ok).unwrap_or(Err(why)),
                    Some(checkpoint) => checkpoint,
                    None => Checkpoint::verify(&note, &[]),
                }
            }
        };
        let checkpoint = checkpoint.map_err(Failure::unable)?;
        let mut wanted: HashMap<u64, Hash> = stored.values().map(|event| (event.seq, Hash::default())).collect();
        let mut tree = Frontier::default();
        for index in 0..checkpoint.size.div_ceil(TILE_WIDTH) {
            let width = (checkpoint.size - index * TILE_WIDTH).min(TILE_WIDTH) as u16;
            let bundle = source.get(&format!("/tile/{}", TilePath { level: None, index, width }))?.body;
            for entry in bundle.chunks_exact(ENTRY_BYTES + 2) {
                let bytes: &[u8; ENTRY_BYTES] = entry[2..].try_into().map_err(Failure::unable)?;
                tree.push(leaf_hash(bytes), |_| {});
                let entry = Entry::decode(bytes).ok_or_else(|| Failure::unable("an entry of the ledger is not one"))?;
                if let Some(commitment) = wanted.get_mut(&entry.seq) {
                    *commitment = entry.commitment;
                }
            }
        }
        if tree.size() != checkpoint.size || tree.root() != checkpoint.root {
            let size = checkpoint.size;
            findings.add(
                "ledger",
                format!("its first {size} records are not those of the checkpoint: it was written anew"),
            );
        }
        wanted.retain(|seq, _| *seq < checkpoint.size);
        Ok(Some((checkpoint.size, wanted)))
    }

    /// Goes through the ledger's events of a range; gives how many there are.
    fn compare(
        &self,
        (source, format, range): (&Source, &str, &Range<u64>),
        stored: &mut HashMap<String, Stored>,
        findings: &mut Findings,
        tally: &mut Tally,
    ) -> Result<u64, Failure> {
        let (mut compared, mut suspects) = (0, HashMap::new());
        let query = format!("&format={format}{}", self.filter.query());
        pages(source, &query, range.start, |body| {
            for line in body.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
                let event = parse(line).ok_or_else(|| Failure::unable("an event of the ledger is no JSON object"))?;
                let Some((uid, seq, _)) = named(&event).filter(|(_, seq, _)| *seq < range.end) else {
                    return Ok(false);
                };
                let uid = uid.to_owned();
                compared += 1;
                tally.ours.extend(mapping(&event));
                match stored.get_mut(&uid) {
                    None => {
                        tally.first_missing.get_or_insert(seq);
                        findings.add("missing", uid);
                    }
                    Some(found) => {
                        found.known = true;
                        if found.is_varied || found.digest != digest(&event) {
                            suspects.insert(uid, event);
                        }
                    }
                }
            }
            if suspects.len() >= SUSPECTS_MAX {
                self.look_again(&suspects, findings, tally)?;
                suspects.clear();
            }
            Ok(true)
        })?;
        self.look_again(&suspects, findings, tally)?;
        Ok(compared)
    }

    /// Reads the suspects again: members that the SIEM added are no alteration.
    fn look_again(
        &self,
        suspects: &HashMap<String, Value>,
        findings: &mut Findings,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        if suspects.is_empty() {
            return Ok(());
        }
        for path in &self.files {
            each_line(path, |line| {
                let Some(event) = parse(line) else { return };
                let Some((uid, _, format)) = named(&event) else { return };
                let Some(truth) = suspects.get(uid) else { return };
                match beside(truth, &event, format) {
                    Err(member) => findings.add("altered", format!("{uid}: {member} is not what the ledger has")),
                    Ok(beside) => tally.take(beside, mapping(&event)),
                }
            })?;
        }
        Ok(())
    }

    fn tell(
        &self,
        (stored, compared): (usize, u64),
        range: &Range<u64>,
        findings: &Findings,
        tally: &Tally,
    ) -> Result<(), Failure> {
        let last = range.end.checked_sub(1);
        let (verdict, words) = match (findings.is_empty(), tally.is_plain()) {
            (true, true) => ("complete", "complete"),
            (true, false) => ("partly_compared", "nothing is wrong, but not all could be compared"),
            (false, _) => ("incomplete", "incomplete"),
        };
        if self.json {
            let seqs = json!({"from_seq": range.start, "to_seq": last});
            let mut result = json!({
                "verdict": verdict, "stored": stored, "in_ledger": compared, "range": seqs,
                "checkpoint": self.checkpoint.is_some(), "findings": findings.to_json(),
            });
            if let (Some(result), Value::Object(tally)) = (result.as_object_mut(), tally.to_json()) {
                result.extend(tally);
            }
            print(&format!("{result}\n"))?;
        } else {
            findings.print()?;
            tally.lines().iter().try_for_each(|line| print(&format!("{line}\n")))?;
            let seqs = last.map_or_else(|| "no records".into(), |last| format!("seqs {} to {last}", range.start));
            print(&format!("{seqs}: {} in the ledger, {stored} stored: {words}\n", counted(compared, "event")))?;
        }
        match findings.is_empty() {
            true => Ok(()),
            false => Err(Failure::wrong("what is stored is not what the ledger has")),
        }
    }
}

/// The stored record hashes against what the checkpoint commits to.
fn hashes(stored: &HashMap<String, Stored>, commitments: &HashMap<u64, Hash>, findings: &mut Findings) {
    for (uid, event) in stored {
        let (Some(hash), Some(commitment)) = (&event.record_hash, commitments.get(&event.seq)) else { continue };
        if *hash != const_hex::encode(commitment) {
            findings.add("altered", format!("{uid}: record_hash is not what the checkpoint commits to"));
        }
    }
}

/// The keys of a file, one a line.
pub(super) fn keys(path: &Path) -> Result<Vec<VerifierKey>, Failure> {
    let text = text(path)?;
    let keys = text.lines().filter(|line| !line.trim().is_empty()).map(VerifierKey::parse);
    keys.collect::<Result<_, _>>().map_err(Failure::unable)
}

fn text(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    read.map(|_| text).map_err(|e| Failure::unable(format!("{} cannot be read: {e}", path.display())))
}
