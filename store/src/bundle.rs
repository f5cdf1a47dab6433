//! Evidence bundles: records with all that proves them, in one file.
//!
//! A bundle is JSON, an object a line (docs/format.md, "Bundles"): the manifest, a
//! checkpoint, the records that name keys, those asked for, those that say what was
//! erased, and last a note over the digest of all lines before, signed by the log.
//! Who has it needs nothing else, and no trust in where it came from.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use custody_proto::{Entry, Hash};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::checkpoint::Checkpoint;
use crate::note::{Note, VerifierKey};
use crate::proof::{Shown, View, check_inclusion};
use crate::system::{SYSTEM_IDENTITY, SeqSet, SystemRecord, event};
use crate::tree::{Frontier, leaf_hash};
use crate::writer::Writer;
use crate::{Error, Reader, rotate};

/// Longest line of a bundle that is read: a record of 64 MiB in base64, and room.
const LINE_BYTES_MAX: usize = 128 << 20;

/// What is exported, and what the log says about it.
#[derive(Clone, Debug)]
pub struct Export {
    /// The records.
    pub seqs: SeqSet,
    /// How they were chosen, in words.
    pub query: String,
    /// Why.
    pub reason: String,
    /// Who asked for it, as authenticated.
    pub identity: String,
    /// More for the manifest: results of a query, and the like.
    pub attached: Value,
}

/// A bundle that may be written: its export is in the log and signed.
#[derive(Clone, Debug)]
pub struct Exporting {
    export: Export,
    exported_seq: u64,
    time: u64,
    note: String,
}

impl Writer {
    /// Says in the log what is exported, and signs it.
    pub fn export(&mut self, export: Export) -> Result<Exporting, Error> {
        let size = self.head_size();
        if let Some(range) = export.seqs.ranges().last().filter(|range| range.end > size) {
            return Err(Error::invalid(format!("there is no record {}; the log ends at {}", range.end - 1, size - 1)));
        }
        let record = SystemRecord::new(event::EXPORT)
            .with("custody.export.query", export.query.as_str())
            .with("custody.export.records", export.seqs.count())
            .with("custody.export.seqs", export.seqs.to_string())
            .with("custody.export.reason", export.reason.as_str())
            .with("custody.export.identity", export.identity.as_str());
        let exported_seq = self.append_system(&record)?;
        self.checkpoint()?;
        let note = self.reader().checkpoint()?.ok_or_else(|| Error::corrupt("the checkpoint is missing"))?;
        Ok(Exporting { export, exported_seq, time: self.now(), note })
    }

    /// Signs the last line of a bundle.
    pub fn sign_bundle(&mut self, lines: u64, digest: &Hash) -> Result<String, Error> {
        let text = seal(self.reader().origin(), lines, digest);
        Ok(self.keys.sign_text(text)?.to_string())
    }
}

fn seal(origin: &str, lines: u64, digest: &Hash) -> String {
    format!("custody bundle v1\n{origin}\nlines {lines}\nsha256 {}\n", const_hex::encode(digest))
}

/// Why a record is in a bundle.
fn why(event: &str) -> &'static str {
    match event {
        event::ERASURE => "erasure",
        event::EXPORT => "export",
        _ => "keys",
    }
}

impl Reader {
    /// Writes all of a bundle but its last line; gives the number of lines and their digest.
    pub fn write_bundle(&self, exporting: &Exporting, out: impl Write) -> Result<(u64, Hash), Error> {
        let size = Checkpoint::parse_unverified(&exporting.note)?.size;
        let export = &exporting.export;
        let mut writing = Writing { out, lines: 0, digest: Sha256::new(), view: None, size };
        let vkeys: Vec<String> = rotate::keys_at(self, size)?.iter().map(ToString::to_string).collect();
        let policy: String = vkeys.iter().map(|key| format!("log {key}\n")).collect();
        let complete = export.seqs == SeqSet::of(std::iter::once(0..exporting.exported_seq));
        writing.line(&json!({
            "type": "custody-bundle", "version": 1, "origin": self.origin(), "vkeys": vkeys,
            "policy": format!("{policy}quorum none\n"), "size": size, "records": export.seqs.count(),
            "seqs": export.seqs.to_string(), "complete": complete, "query": export.query, "reason": export.reason,
            "exported_by": export.identity, "exported_time": exporting.time, "exported_seq": exporting.exported_seq,
            "attached": export.attached,
        }))?;
        writing.line(&json!({"type": "checkpoint", "note": exporting.note}))?;
        if let Some(kept) = self.newest_witnessed()? {
            writing.line(&json!({"type": "checkpoint", "note": kept.note}))?;
        }
        let erasures = self.erasures()?;
        let erased_by = |seq| erasures.iter().find(|(_, set)| set.contains(seq)).map(|(by, _)| *by);
        if complete {
            // In order and without gaps: the tree is computed from the entries, no paths are needed.
            for seq in 0..size {
                writing.record(self, seq, None, "asked", erased_by(seq))?;
            }
            return Ok((writing.lines, writing.digest.finalize().into()));
        }
        let own = self.system_records(&[event::GENESIS, event::KEYS, event::EXPORT])?;
        let own = own
            .into_iter()
            .filter(|(seq, record)| *seq < size && (record.event != event::EXPORT || *seq == exporting.exported_seq));
        let mut done = BTreeSet::new();
        for (seq, record) in own {
            writing.record(self, seq, Some(size), why(&record.event), None)?;
            done.insert(seq);
        }
        let mut needed = BTreeSet::new();
        for seq in export.seqs.seqs() {
            needed.extend(erased_by(seq));
            if !done.contains(&seq) {
                writing.record(self, seq, Some(size), "asked", erased_by(seq))?;
            }
        }
        for seq in needed.difference(&done).filter(|seq| !export.seqs.contains(**seq)) {
            writing.record(self, *seq, Some(size), why(event::ERASURE), None)?;
        }
        Ok((writing.lines, writing.digest.finalize().into()))
    }
}

/// A bundle in the making.
struct Writing<W> {
    out: W,
    lines: u64,
    digest: Sha256,
    /// The block of the last record.
    view: Option<View>,
    /// The size of the tree under which all is proved.
    size: u64,
}

impl<W: Write> Writing<W> {
    fn line(&mut self, line: &Value) -> Result<(), Error> {
        let text = format!("{line}\n");
        self.digest.update(&text);
        self.lines += 1;
        self.out
            .write_all(text.as_bytes())
            .map_err(|e| Error::unavailable(format!("the bundle cannot be written: {e}")))
    }

    fn record(
        &mut self,
        reader: &Reader,
        seq: u64,
        proved_at: Option<u64>,
        why: &str,
        erased_by: Option<u64>,
    ) -> Result<(), Error> {
        let view = match self.view.take().filter(|view| view.holds(seq)) {
            Some(view) => view,
            None => reader.view(seq)?,
        };
        let shown = view.shown(seq, true)?;
        if shown.content.is_none() && erased_by.is_none_or(|by| by >= self.size) {
            return Err(Error::unavailable(format!("record {seq} was erased meanwhile; export again")));
        }
        self.view = Some(view);
        let mut line = json!({"type": "record", "seq": seq, "why": why});
        if let Some(by) = erased_by.filter(|_| shown.content.is_none()) {
            line["erased_by"] = by.into();
        }
        if let Some(size) = proved_at {
            let path = reader.inclusion(seq, size)?;
            line["path"] = path.iter().map(|hash| STANDARD.encode(hash)).collect::<Vec<_>>().into();
        }
        if let (Some(line), Value::Object(shown)) = (line.as_object_mut(), shown.to_json()) {
            line.extend(shown);
        }
        self.line(&line)
    }
}

/// The last line of a bundle.
pub fn seal_line(note: &str) -> String {
    format!("{}\n", json!({"type": "signature", "note": note}))
}

/// What a bundle proves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// The manifest, whose signature verifies.
    pub manifest: Value,
    /// The checkpoint under which everything is proved.
    pub checkpoint: String,
    /// Keys from the first record on.
    pub vkeys: Vec<String>,
    /// Records whose content is proved.
    pub verified: u64,
    /// Records that were erased, each by a record that is proved too.
    pub erased: u64,
    /// Whether the bundle holds the whole log, entry by entry.
    pub complete: bool,
}

/// Checks a bundle with nothing else. `keys`: the public keys that the caller trusts,
/// which are those of genesis or of any rotation since: what comes after is signed by
/// them. If there are none, those that the log's first record names, and the caller must
/// compare them. `each` hears every record that was asked for, once it is proved.
pub fn check_bundle(
    input: impl BufRead,
    keys: &[VerifierKey],
    each: impl FnMut(&Entry, &Shown),
) -> Result<Evidence, Error> {
    Checking::default().run(input, keys, each)
}

#[derive(Default)]
struct Checking {
    manifest: Value,
    notes: Vec<String>,
    digest: Sha256,
    lines: u64,
    /// The keys in force from a seq on, rising.
    keys: Vec<(u64, Vec<VerifierKey>)>,
    checkpoint: Option<Checkpoint>,
    /// Records with content missing, and the seq that says why.
    gaps: BTreeMap<u64, u64>,
    erasures: BTreeMap<u64, SeqSet>,
    asked: SeqSet,
    seen: BTreeSet<u64>,
    verified: u64,
    whole: Frontier,
    chain: Hash,
    time: u64,
    /// How many records each submitter has, if the bundle is the whole log.
    counters: BTreeMap<[u8; 16], u64>,
    /// Whether the record was there that says of this export.
    exported: bool,
}

fn bad(what: impl Into<String>) -> Error {
    Error::corrupt(what)
}

impl Checking {
    fn run(
        mut self,
        mut input: impl BufRead,
        trusted: &[VerifierKey],
        mut each: impl FnMut(&Entry, &Shown),
    ) -> Result<Evidence, Error> {
        let mut sealed = None;
        while let Some(line) = read_line(&mut input)? {
            if sealed.is_some() {
                return Err(bad("the bundle goes on after its signature"));
            }
            let json: Value = serde_json::from_str(&line)
                .map_err(|e| bad(format!("line {} of the bundle is not JSON: {e}", self.lines + 1)))?;
            if json["type"] == "signature" {
                sealed = Some(json["note"].as_str().unwrap_or_default().to_owned());
                continue;
            }
            self.digest.update(&line);
            self.lines += 1;
            self.line(&json, &mut each).map_err(|e| bad(format!("line {} of the bundle: {e}", self.lines)))?;
        }
        let sealed = sealed.ok_or_else(|| bad("the bundle has no signature: it is cut off"))?;
        self.finish(&sealed, trusted)
    }

    fn line(&mut self, json: &Value, each: &mut impl FnMut(&Entry, &Shown)) -> Result<(), Error> {
        match json["type"].as_str() {
            Some("custody-bundle") if self.lines == 1 => self.manifest(json),
            Some("checkpoint") if self.lines > 1 => {
                self.notes.push(json["note"].as_str().unwrap_or_default().to_owned());
                if self.checkpoint.is_none() {
                    self.checkpoint = Some(Checkpoint::parse_unverified(&self.notes[0])?);
                }
                Ok(())
            }
            Some("record") => self.record(json, each),
            _ => Err(bad("it is of no kind that belongs here")),
        }
    }

    fn manifest(&mut self, json: &Value) -> Result<(), Error> {
        if json["version"] != 1 {
            return Err(bad("the bundle is of another version; use a newer custody"));
        }
        if !json["complete"].is_boolean() {
            return Err(bad("it does not say whether it is the whole log"));
        }
        self.asked = json["seqs"].as_str().and_then(SeqSet::parse).ok_or_else(|| bad("it names no records"))?;
        self.manifest = json.clone();
        Ok(())
    }

    fn record(&mut self, json: &Value, each: &mut impl FnMut(&Entry, &Shown)) -> Result<(), Error> {
        let shown = Shown::from_json(json).ok_or_else(|| bad("its record is not readable"))?;
        let entry = shown.check()?;
        if json["seq"] != entry.seq || json.get("content").is_none() {
            return Err(bad(format!("it does not say of record {} what its entry does", entry.seq)));
        }
        let checkpoint = self.checkpoint.clone().ok_or_else(|| bad("a record comes before the checkpoint"))?;
        let hash = |line: &Value| STANDARD.decode(line.as_str()?).ok().and_then(|h| Hash::try_from(h).ok());
        // Without a path the whole tree must come out at the end.
        if self.manifest["complete"] != true || !json["path"].is_null() {
            let path: Option<Vec<Hash>> = json["path"].as_array().and_then(|path| path.iter().map(hash).collect());
            let path = path.ok_or_else(|| bad("its path is not readable"))?;
            check_inclusion(&path, &checkpoint, entry.seq, &shown.entry)?;
        }
        if !self.seen.insert(entry.seq) {
            return Err(bad(format!("record {} is there twice", entry.seq)));
        }
        if !self.whole(&entry, &shown) && json["path"].is_null() {
            return Err(bad(format!("record {} does not follow from the one before it", entry.seq)));
        }
        let own = shown.content.as_ref().filter(|content| content.identity.0 == SYSTEM_IDENTITY);
        if let Some(record) = own.and_then(|content| SystemRecord::decode(&content.record.0)) {
            self.own_record(entry.seq, &record)?;
        }
        match (&shown.content, json["erased_by"].as_u64()) {
            (Some(_), _) => self.verified += u64::from(self.asked.contains(entry.seq)),
            (None, Some(by)) => drop(self.gaps.insert(entry.seq, by)),
            (None, None) => return Err(bad(format!("the content of record {} is missing", entry.seq))),
        }
        if self.asked.contains(entry.seq) {
            each(&entry, &shown);
        }
        Ok(())
    }

    /// If the bundle is the whole log, in order: chain, time, counters and tree.
    fn whole(&mut self, entry: &Entry, shown: &Shown) -> bool {
        let counter = self.counters.entry(entry.submitter).or_default();
        let next = entry.seq == self.whole.size() && entry.previous == self.chain;
        let joins = next && entry.counter == *counter && entry.ingest_time >= self.time;
        if joins {
            *counter += 1;
            self.whole.push(leaf_hash(&shown.entry), |_| ());
            self.chain = entry.chain();
            self.time = entry.ingest_time;
        }
        joins
    }

    fn own_record(&mut self, seq: u64, record: &SystemRecord) -> Result<(), Error> {
        match record.event.as_str() {
            event::GENESIS | event::KEYS => {
                let origin = self.manifest["origin"].as_str().unwrap_or_default().to_owned();
                if self.keys.last().is_some_and(|(last, _)| *last >= seq) {
                    return Err(bad("the records that name keys are not in order"));
                }
                let former = self.keys.last().map_or(&[][..], |(_, keys)| keys);
                let keys = rotate::follow(former, &origin, seq, record)?;
                self.keys.push((seq, keys));
            }
            event::ERASURE => {
                let set = record.text("custody.erasure.seqs").and_then(SeqSet::parse);
                let set = set.ok_or_else(|| bad("an erasure record names no records"))?;
                let origin = self.manifest["origin"].as_str().unwrap_or_default();
                let text = rotate::erasure_statement(origin, seq, &set.to_string());
                let lines = record.texts("custody.erasure.signatures").unwrap_or_default();
                if !rotate::is_signed(&text, lines, self.keys_at(seq)) {
                    return Err(bad(format!("erasure record {seq} is not signed by the log's keys")));
                }
                // Else content that is still to come could be left out at will.
                if set.ranges().last().is_some_and(|range| range.end > seq) {
                    return Err(bad(format!("record {seq} erases what is not before it")));
                }
                self.erasures.insert(seq, set);
            }
            event::EXPORT if self.manifest["exported_seq"] == seq => {
                let said = [("query", "query"), ("reason", "reason"), ("identity", "exported_by")];
                let differs = |(key, of): &(&str, &str)| {
                    record.text(&format!("custody.export.{key}")) != self.manifest[of].as_str()
                };
                if let Some((_, of)) = said.iter().find(|said| differs(said)) {
                    return Err(bad(format!("`{of}` of the bundle is not what record {seq} of the log says")));
                }
                self.exported = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// The keys in force for a checkpoint of this size.
    fn keys_at(&self, size: u64) -> &[VerifierKey] {
        self.keys.iter().rev().find(|(from, _)| *from < size).map_or(&[], |(_, keys)| keys)
    }

    /// What is gone is what the erasure records here name, and nothing else.
    fn erasures_hold(&self) -> Result<(), Error> {
        for (seq, by) in &self.gaps {
            if !self.erasures.get(by).is_some_and(|set| set.contains(*seq)) {
                return Err(bad(format!("record {by} does not say that record {seq} was erased")));
            }
        }
        for (by, range) in self.erasures.iter().flat_map(|(by, set)| set.ranges().iter().map(move |range| (by, range)))
        {
            if let Some(seq) = self.seen.range(range.clone()).find(|seq| !self.gaps.contains_key(seq)) {
                return Err(bad(format!("record {by} says that record {seq} was erased, but its content is there")));
            }
        }
        Ok(())
    }

    /// The first line says what the log says.
    fn first_line_holds(&self) -> Result<(), Error> {
        if !self.exported {
            return Err(bad("the record is missing that says of the export"));
        }
        let size = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.size);
        let in_force: Vec<_> = self.keys_at(size).iter().map(ToString::to_string).collect();
        if self.manifest["records"] != self.asked.count() {
            return Err(bad("the bundle's first line states another number of records than it names"));
        }
        if self.manifest["size"] != size || self.manifest["vkeys"] != json!(in_force) {
            return Err(bad("the bundle's first line states another size or other keys than it proves"));
        }
        Ok(())
    }

    fn finish(self, sealed: &str, trusted: &[VerifierKey]) -> Result<Evidence, Error> {
        let Some((0, first_keys)) = self.keys.first() else {
            return Err(bad("the bundle does not hold the log's first record, which names its keys"));
        };
        if !self.keys.iter().any(|(_, keys)| trusted.iter().all(|key| keys.contains(key))) {
            return Err(bad("neither the log's first record nor a rotation names the keys that you trust"));
        }
        let origin = self.manifest["origin"].as_str().unwrap_or_default();
        for note in &self.notes {
            let checkpoint = Checkpoint::parse_unverified(note)?;
            // A witnessed checkpoint may be older than the last rotation of keys.
            Checkpoint::verify(note, self.keys_at(checkpoint.size))?;
            if checkpoint.origin != origin {
                return Err(bad("a checkpoint of the bundle is of another log"));
            }
        }
        let digest: Hash = self.digest.clone().finalize().into();
        let note = Note::parse(sealed).map_err(|_| bad("the bundle's signature is not a signed note"))?;
        if note.text != seal(origin, self.lines, &digest) {
            return Err(bad("the bundle is not the one that was signed: a line was changed, added or taken out"));
        }
        let signer =
            self.keys.last().and_then(|(_, keys)| keys.first()).map(|key| key.find(&note)).transpose()?.flatten();
        if signer.is_none() {
            return Err(bad("the bundle is not signed by the log's key"));
        }
        self.erasures_hold()?;
        self.first_line_holds()?;
        if let Some(missing) = self.asked.seqs().find(|seq| !self.seen.contains(seq)) {
            return Err(bad(format!("record {missing} is missing from the bundle")));
        }
        let checkpoint = self.checkpoint.ok_or_else(|| bad("the bundle has no checkpoint"))?;
        let complete = self.whole.size() == checkpoint.size && self.whole.root() == checkpoint.root;
        if self.manifest["complete"] == true && !complete {
            return Err(bad("the bundle says that it is the whole log, but its chain or tree is not"));
        }
        Ok(Evidence {
            checkpoint: self.notes.first().cloned().unwrap_or_default(),
            vkeys: first_keys.iter().map(ToString::to_string).collect(),
            erased: self.gaps.keys().filter(|seq| self.asked.contains(**seq)).count() as u64,
            verified: self.verified,
            manifest: self.manifest,
            complete,
        })
    }
}

/// The next line with its newline, within bounds.
fn read_line(input: &mut impl BufRead) -> Result<Option<String>, Error> {
    let mut line = Vec::new();
    let fail = |e: std::io::Error| Error::unavailable(format!("the bundle cannot be read: {e}"));
    let mut limited = std::io::Read::take(input, LINE_BYTES_MAX as u64);
    limited.read_until(b'\n', &mut line).map_err(fail)?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => String::from_utf8(line).map(Some).map_err(|_| bad("the bundle is not text")),
        Some(_) => Err(bad("a line of the bundle is cut off, or longer than 128 MiB")),
    }
}
