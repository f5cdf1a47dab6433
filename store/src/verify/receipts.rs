//! Omission shows: signed receipts that an exporter kept, against the log.

use std::collections::BTreeMap;

use crate::note::{Note, VerifierKey, sha256_hex};
use crate::{Error, Reader, rotate};

/// What the receipts of one submitter prove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceiptVerdict {
    /// Receipts that were read, their signatures verified.
    pub receipts: u64,
    /// Records that they speak of, all of which are in the log.
    pub records: u64,
    /// Records that the log has of these submitters, receipts or not.
    pub of_submitters: u64,
    /// What is wrong, one line for each receipt that the log does not bear out.
    pub wrong: Vec<String>,
}

/// The lines of a receipt.
struct Stated {
    submitter: [u8; 16],
    first_seq: u64,
    counter: u64,
    appended: u64,
    ingest_time: u64,
    /// SHA-256 of the payload, in hexadecimal.
    request: String,
}

impl Stated {
    fn parse(text: &str, origin: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != "custody receipt v1" {
            return None;
        }
        let fields: BTreeMap<&str, &str> = lines.filter_map(|line| line.split_once(' ')).collect();
        if *fields.get("origin")? != origin {
            return None;
        }
        let number = |name| fields.get(name).and_then(|n: &&str| n.parse().ok());
        Some(Self {
            submitter: const_hex::decode_to_array(fields.get("submitter")?).ok()?,
            first_seq: number("first-seq")?,
            counter: number("counter")?,
            appended: number("appended")?,
            ingest_time: number("ingest-time")?,
            request: (*fields.get("request-sha256")?).to_owned(),
        })
    }
}

/// Checks receipts (notes, one after another) against a log that was verified: each
/// must be signed by keys of the log, and the log must have what it says. The log's
/// own counters, which `verify` checks, show that nothing between is missing.
pub fn verify_receipts(reader: &Reader, receipts: &str) -> Result<ReceiptVerdict, Error> {
    let keys: Vec<VerifierKey> = rotate::all_keys(reader)?;
    let mut verdict = ReceiptVerdict::default();
    let mut counted = BTreeMap::new();
    for (n, text) in split_notes(receipts).into_iter().enumerate() {
        verdict.receipts += 1;
        let mut wrong = |what: String| verdict.wrong.push(format!("receipt {}: {what}", n + 1));
        let Ok(note) = Note::parse(&text) else {
            wrong("it is not a signed note".into());
            continue;
        };
        if !keys.iter().any(|key| matches!(key.find(&note), Ok(Some(_)))) {
            wrong("it is not signed by a key of this log".into());
            continue;
        }
        let Some(stated) = Stated::parse(&note.text, reader.origin()) else {
            wrong(format!("it is not a receipt of {}", reader.origin()));
            continue;
        };
        match check(reader, &stated)? {
            Some(what) => wrong(what),
            None => {
                verdict.records += stated.appended;
                counted.insert(stated.submitter, reader.submitted(&stated.submitter)?);
            }
        }
    }
    verdict.of_submitters = counted.values().sum();
    Ok(verdict)
}

fn check(reader: &Reader, stated: &Stated) -> Result<Option<String>, Error> {
    let first = stated.first_seq;
    let last = first.saturating_add(stated.appended.max(1) - 1);
    let Some(block) = reader.commitments_at(first)? else {
        return Ok(Some(format!("the log ends before seq {first}: the records were removed")));
    };
    if last >= block.end_seq() {
        return Ok(Some(format!("the log has fewer records at seq {first} than it says")));
    }
    let counter = block.counter + (first - block.first_seq);
    let same =
        block.submitter == stated.submitter && counter == stated.counter && block.ingest_time == stated.ingest_time;
    let what = || format!("the log has other records at seq {first} to {last}");
    if !same {
        return Ok(Some(what()));
    }
    // Of a retry the request is not the one that is stored; of an erased one nothing is left to compare.
    let stored = reader.block_at(first)?.and_then(|block| block.content).filter(|c| !c.is_partly_erased());
    let differs = stored.is_some_and(|content| stated.appended > 0 && sha256_hex(content.payload()) != stated.request);
    Ok(differs.then(what))
}

/// Notes that stand one after another in a file.
fn split_notes(text: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for line in text.lines() {
        if line == "custody receipt v1" || out.is_empty() {
            if line.is_empty() {
                continue;
            }
            out.push(String::new());
        }
        if let Some(last) = out.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    // A blank line between two receipts belongs to neither.
    out.into_iter().map(|note| format!("{}\n", note.trim_end())).collect()
}
