//! `custody events check`: holds what a SIEM stored of the events against the ledger, and the
//! ledger against a checkpoint that was kept elsewhere.
//!
//! What was stored is read twice: once for digests, and a second time for those events alone whose
//! digest is another, to see whether a member differs or the SIEM only added some.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use clap::Args;
use custody_proto::{ENTRY_BYTES, Entry, Hash};
use custody_query::serve::tiles::TilePath;
use custody_store::Checkpoint;
use custody_store::note::VerifierKey;
use custody_store::tree::{Frontier, TILE_WIDTH, leaf_hash};
use serde_json::{Value, json};

use super::chain::Chain;
use super::{Filters, pages};
use crate::source::{From, Source};
use crate::{Failure, counted, print};

/// Findings of a kind that are printed one by one.
const SHOWN_MAX: usize = 20;

/// Say whether stored events are complete and unaltered.
///
/// Reads files of events, one JSON object a line (gzip too), as they were pulled: raw, ocsf or ecs.
/// Says what is missing, doubled, altered, unknown to the ledger or outside of the filter. With
/// --checkpoint the ledger itself is held against a checkpoint that you kept.
///
/// Exit status: 0 all there and as it was; 1 not; 2 it could not be told.
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

/// What was stored of one event.
struct Stored {
    seq: u64,
    digest: [u8; 16],
    record_hash: Option<String>,
    copies: u64,
    known: bool,
}

/// What is wrong, by what it is.
#[derive(Default)]
pub(super) struct Findings(BTreeMap<&'static str, Vec<String>>);

/// How an event names itself: its id, its seq, and the format that has them where they stand.
fn named(event: &Value) -> Option<(&str, u64, &'static str)> {
    let at = |of: &str, id: &str| Some((event[of][id].as_str()?, event[of]["sequence"].as_u64()?));
    if let Some((uid, seq)) = at("metadata", "uid") {
        return Some((uid, seq, if event["class_uid"].is_number() { "ocsf" } else { "raw" }));
    }
    // SIEMs give events of their own an `event`, too.
    let (uid, seq) = at("event", "id").filter(|_| event["custody"].is_object())?;
    Some((uid, seq, "ecs"))
}

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
        let mut findings = Findings::default();
        let (mut stored, format) = self.read(&mut findings)?;
        if stored.is_empty() && findings.is_empty() && self.checkpoint.is_none() && self.to_seq.is_none() {
            // The last stored event is where it would end: of nothing nothing is missing.
            return Err(Failure::unable(
                "no event is stored there; say up to where to look, with --checkpoint or --to-seq",
            ));
        }
        let source = self.from.open().map_err(unable)?;
        let commitments = self.commitments(&source, &stored, &mut findings).map_err(unable)?;
        let end = match (self.to_seq, &commitments) {
            (Some(last), _) => last.saturating_add(1),
            (None, Some((size, _))) => *size,
            (None, None) => stored.values().map(|event| event.seq + 1).max().unwrap_or(0),
        };
        let (compared, suspects) = self.compare(&source, format, end, &mut stored, &mut findings).map_err(unable)?;
        self.look_again(&suspects, &mut findings)?;
        strangers(&source, &stored, self.from_seq..end, &mut findings).map_err(unable)?;
        if let Some((_, commitments)) = &commitments {
            hashes(&stored, commitments, &mut findings);
        }
        for (uid, event) in stored.iter().filter(|(_, event)| event.copies > 1) {
            findings.add("doubled", format!("{uid} is there {} times", event.copies));
        }
        self.tell(&stored, compared, end, &findings)
    }

    /// Reads all files; gives the events by their ids, and how they are written.
    fn read(&self, findings: &mut Findings) -> Result<(HashMap<String, Stored>, &'static str), Failure> {
        let mut stored: HashMap<String, Stored> = HashMap::new();
        let mut format = None;
        for path in &self.files {
            let mut number = 0;
            each_line(path, |line| {
                number += 1;
                let Ok(event) = serde_json::from_slice::<Value>(line) else {
                    findings.add("unreadable", format!("{}:{number} is not a JSON object", path.display()));
                    return;
                };
                let Some((uid, seq, written)) = named(&event) else {
                    let names = "metadata.uid and metadata.sequence, or in ecs event.id and event.sequence";
                    findings.add("unreadable", format!("{}:{number} has no {names}", path.display()));
                    return;
                };
                format.get_or_insert(written);
                let digest = digest(&event);
                let event = stored.entry(uid.to_owned()).or_insert_with(|| Stored {
                    seq,
                    digest,
                    // OCSF has it in the extension, ECS beside its own fields.
                    record_hash: [&event["record_hash"], &event["custody"]["record_hash"]]
                        .into_iter()
                        .find_map(|hash| hash.as_str().map(str::to_owned)),
                    copies: 0,
                    known: false,
                });
                event.copies += 1;
                if event.digest != digest {
                    findings.add("altered", format!("{uid} is there in two versions ({}:{number})", path.display()));
                }
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

    /// Goes through the ledger's events; gives how many there are, and those that look otherwise.
    fn compare(
        &self,
        source: &Source,
        format: &str,
        end: u64,
        stored: &mut HashMap<String, Stored>,
        findings: &mut Findings,
    ) -> Result<(u64, HashMap<String, Value>), Failure> {
        let (mut compared, mut suspects) = (0, HashMap::new());
        let query = format!("&format={format}{}", self.filter.query());
        pages(source, &query, self.from_seq, |body| {
            for line in body.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
                let event: Value = serde_json::from_slice(line).map_err(Failure::unable)?;
                let Some((uid, _, _)) = named(&event).filter(|(_, seq, _)| *seq < end) else { return Ok(false) };
                let uid = uid.to_owned();
                compared += 1;
                match stored.get_mut(&uid) {
                    None => findings.add("missing", uid),
                    Some(found) => {
                        found.known = true;
                        if found.digest != digest(&event) {
                            suspects.insert(uid, event);
                        }
                    }
                }
            }
            Ok(true)
        })?;
        Ok((compared, suspects))
    }

    /// Reads the suspects again: members that the SIEM added are no alteration.
    fn look_again(&self, suspects: &HashMap<String, Value>, findings: &mut Findings) -> Result<(), Failure> {
        if suspects.is_empty() {
            return Ok(());
        }
        for path in &self.files {
            each_line(path, |line| {
                let Ok(event) = serde_json::from_slice::<Value>(line) else { return };
                let Some((uid, _, _)) = named(&event) else { return };
                if let Some(member) = suspects.get(uid).and_then(|truth| differs(truth, &event, "")) {
                    findings.add("altered", format!("{uid}: {member} is not what the ledger has"));
                }
            })?;
        }
        Ok(())
    }

    fn tell(
        &self,
        stored: &HashMap<String, Stored>,
        compared: u64,
        end: u64,
        findings: &Findings,
    ) -> Result<(), Failure> {
        let last = end.checked_sub(1);
        if self.json {
            let verdict = if findings.is_empty() { "complete" } else { "incomplete" };
            let range = json!({"from_seq": self.from_seq, "to_seq": last});
            print(&format!(
                "{}\n",
                json!({"verdict": verdict, "stored": stored.len(), "in_ledger": compared, "range": range,
                       "checkpoint": self.checkpoint.is_some(), "findings": findings.to_json()})
            ))?;
        } else {
            findings.print()?;
            let range = last.map_or_else(|| "no records".into(), |last| format!("seqs {} to {last}", self.from_seq));
            let stored = stored.len();
            print(&format!("{range}: {} in the ledger, {stored} stored\n", counted(compared, "event")))?;
        }
        match findings.is_empty() {
            true => Ok(()),
            false => Err(Failure::wrong("what is stored is not what the ledger has")),
        }
    }
}

/// Stored events that the ledger does not give under this filter: whether it has them at all.
fn strangers(
    source: &Source,
    stored: &HashMap<String, Stored>,
    range: std::ops::Range<u64>,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let mut unknown: Vec<(&String, u64)> =
        stored.iter().filter(|(_, event)| !event.known).map(|(uid, event)| (uid, event.seq)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    unknown.sort_unstable();
    let note = source.get("/checkpoint")?.body;
    let origin = String::from_utf8_lossy(&note).lines().next().unwrap_or_default().to_owned();
    for some in unknown.chunks(200) {
        let seqs: Vec<String> = some.iter().map(|(_, seq)| seq.to_string()).collect();
        let sql = format!(
            "SELECT l.seq, e.kind, payload(l.seq) IS NULL AS erased FROM ledger l LEFT JOIN events e ON e.seq = l.seq \
             WHERE l.seq IN ({})",
            seqs.join(",")
        );
        let (_, batches, _) = source.sql(&json!({"sql": sql, "max_rows": 100_000}))?;
        let rows = custody_query::format::rows(&batches).map_err(Failure::unable)?;
        for (uid, seq) in some {
            let ours = |row: &&serde_json::Map<String, Value>| match row["kind"].as_str() {
                // Of several of one kind the later ones have a number behind it.
                Some(kind) => uid.strip_prefix(&format!("{origin}:{seq}:{kind}")).is_some_and(is_number),
                None => uid.starts_with(&format!("{origin}:{seq}:")),
            };
            let row = rows.iter().filter(|row| row["seq"] == *seq).find(ours);
            match row {
                Some(row) if row["erased"] == true => {}
                Some(row) if row["kind"].is_string() && !range.contains(seq) => {}
                Some(row) if row["kind"].is_string() => {
                    findings.add("outside", format!("{uid} does not match the filter"))
                }
                _ => findings.add("unknown", format!("{uid} is no event of this ledger")),
            }
        }
    }
    Ok(())
}

/// What may stand behind the kind in an id: nothing, or `:2` and so on.
fn is_number(rest: &str) -> bool {
    rest.is_empty() || rest.strip_prefix(':').is_some_and(|n| n.parse::<u32>().is_ok_and(|n| n > 1))
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

/// The first member of `truth` that `stored` has not, or has otherwise.
fn differs(truth: &Value, stored: &Value, path: &str) -> Option<String> {
    match (truth, stored) {
        (Value::Object(truth), Value::Object(stored)) => truth.iter().find_map(|(name, value)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match stored.get(name) {
                None if value.is_null() => None,
                None => Some(path),
                Some(stored) => differs(value, stored, &path),
            }
        }),
        _ if truth == stored => None,
        _ => Some(if path.is_empty() { "it".to_owned() } else { path.to_owned() }),
    }
}

/// A digest of an event that does not depend on the order of its members.
fn digest(event: &Value) -> [u8; 16] {
    fn feed(hasher: &mut blake3::Hasher, value: &Value) {
        match value {
            Value::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                members.sort_unstable_by_key(|(name, _)| *name);
                hasher.update(b"{");
                for (name, value) in members {
                    hasher.update(Value::String(name.clone()).to_string().as_bytes()).update(b":");
                    feed(hasher, value);
                }
                hasher.update(b"}");
            }
            Value::Array(items) => {
                hasher.update(b"[");
                items.iter().for_each(|item| {
                    feed(hasher, item);
                    hasher.update(b",");
                });
                hasher.update(b"]");
            }
            plain => {
                hasher.update(plain.to_string().as_bytes());
            }
        }
    }
    let mut hasher = blake3::Hasher::new();
    feed(&mut hasher, event);
    let mut out = [0; 16];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    out
}

/// Each line of a file that is not empty; gzip is known by its first bytes.
fn each_line(path: &Path, mut each: impl FnMut(&[u8])) -> Result<(), Failure> {
    let fail = |e: std::io::Error| Failure::unable(format!("{} cannot be read: {e}", path.display()));
    let mut file = BufReader::new(File::open(path).map_err(fail)?);
    let is_gzip = file.fill_buf().map_err(fail)?.starts_with(&[0x1f, 0x8b]);
    let mut reader: Box<dyn BufRead> = match is_gzip {
        true => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(file))),
        false => Box::new(file),
    };
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(fail)? == 0 {
            return Ok(());
        }
        let trimmed = line.trim_ascii();
        if !trimmed.is_empty() {
            each(trimmed);
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
