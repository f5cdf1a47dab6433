//! `custody events check --export`: the chain of digests of an export, and the objects that they name,
//! with no ledger at hand but its keys.
//!
//! Each digest must be signed by the log, begin where the one before ended (in time and in seqs), and
//! name its hash; each object must be there with the bytes that its digest says. What the chain cannot say
//! is that it has not been cut off at its end: the last period and seq are told, to be held against the
//! ledger.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;

use clap::Args;
use custody_query::serve::events::Shelf;
use custody_store::digest::HEADER;
use custody_store::note::{Note, VerifierKey};
use serde_json::{Value, json};

use super::check::{Findings, keys};
use crate::s3::sha256;
use crate::{Failure, print};

/// Which export, and how to hold it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Export")]
pub struct Chain {
    /// Check the digests and objects of an export instead: a directory, or s3://BUCKET/PREFIX. Needs no
    /// ledger, but --vkey.
    #[arg(long, value_name = "PLACE", conflicts_with = "files", requires = "vkey")]
    export: Option<String>,
    /// The address of an object store that is not AWS's [default: AWS_ENDPOINT_URL_S3, or AWS].
    #[arg(long, value_name = "URL", requires = "export")]
    s3_endpoint: Option<String>,
    /// Begin with this period, such as 20261121T090000Z: older ones were taken away.
    #[arg(long, value_name = "PERIOD", requires = "export")]
    from_period: Option<String>,
}

/// What a digest says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Digest {
    origin: String,
    begin: String,
    end: String,
    format: String,
    first: u64,
    next: u64,
    /// How many records its checkpoint covers.
    size: u64,
    previous: String,
    objects: Vec<Named>,
}

/// An object, as its digest has it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Named {
    name: String,
    bytes: u64,
    sha256: String,
    first: u64,
    last: u64,
    events: u64,
}

impl Digest {
    /// Reads the text that was signed; `None` if it is not in the layout of docs/events.md.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        (lines.next()? == HEADER).then_some(())?;
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let origin = field("origin")?.to_owned();
        let (begin, end) = field("period")?.split_once(' ')?;
        let format = field("format")?.to_owned();
        let (first, next) = field("seqs")?.split_once(' ')?;
        let (size, _root) = field("checkpoint")?.split_once(' ')?;
        let previous = field("previous")?.to_owned();
        let (first, next, size) = (first.parse().ok()?, next.parse().ok()?, size.parse().ok()?);
        let objects = lines.map(|line| Named::parse(line.strip_prefix("object ")?)).collect::<Option<_>>()?;
        Some(Self { origin, begin: begin.into(), end: end.into(), format, first, next, size, previous, objects })
    }
}

impl Named {
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, bytes, sha256, first, last, events] = words[..] else { return None };
        // Nothing outside of the export is read, whatever a digest says.
        let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
        let sound = name.starts_with("events/") && name.chars().all(in_name) && !name.contains("..");
        sound.then_some(Self {
            name: name.to_owned(),
            bytes: bytes.parse().ok()?,
            sha256: sha256.to_owned(),
            first: first.parse().ok()?,
            last: last.parse().ok()?,
            events: events.parse().ok()?,
        })
    }
}

/// What was found on the way.
#[derive(Default)]
struct Walk {
    findings: Findings,
    digests: u64,
    objects: u64,
    events: u64,
    /// The last digest, and the hash of its file.
    last: Option<(Digest, String)>,
    first_period: String,
    first_seq: u64,
    named: std::collections::HashSet<String>,
}

impl Chain {
    /// Whether an export is to be checked.
    pub fn is_some(&self) -> bool {
        self.export.is_some()
    }

    /// Checks it.
    pub fn run(&self, vkey: Option<&PathBuf>, as_json: bool) -> Result<(), Failure> {
        let place = self.export.as_deref().unwrap_or_default();
        let keys = vkey.map_or(Ok(Vec::new()), |path| keys(path))?;
        if keys.is_empty() {
            return Err(Failure::unable("--vkey names no key; without one nobody knows whose the digests are"));
        }
        let is_there = place.contains("://") || std::path::Path::new(place).is_dir();
        if !is_there {
            return Err(Failure::unable(format!("--export {place}: it is not a directory")));
        }
        let shelf = crate::export_events::shelf(place, self.s3_endpoint.as_deref());
        let shelf = shelf.map_err(|e| Failure::unable(format!("--export: {e}")))?;
        let walk = self.walk(&*shelf, &keys).map_err(|e| Failure::unable(e.message))?;
        if walk.digests == 0 {
            return Err(Failure::unable(format!("{place}: there are no digests to check")));
        }
        let stored = shelf.names("events/").map_err(|e| Failure::unable(e.message))?;
        let unnamed = stored.iter().filter(|name| !walk.named.contains(*name)).count() as u64;
        tell(place, &walk, unnamed, as_json)
    }

    fn walk(&self, shelf: &dyn Shelf, keys: &[VerifierKey]) -> Result<Walk, custody_query::Error> {
        let mut walk = Walk::default();
        let from = self.from_period.as_ref().map(|period| format!("digests/{period}.digest"));
        let names = shelf.names("digests/")?.into_iter().filter(|name| name.ends_with(".digest"));
        let names: Vec<String> = names.filter(|name| from.as_ref().is_none_or(|from| name >= from)).collect();
        if let Some(from) = from.as_ref().filter(|from| names.first() != Some(from)) {
            // What is left out is told by its period, so that nobody leaves out more than he says.
            walk.findings.add("missing", from.clone());
        }
        for name in names {
            let Some(bytes) = shelf.read(&name)? else {
                walk.findings.add("missing", format!("{name}: it was there, and is no more"));
                continue;
            };
            walk.digests += 1;
            match read(&bytes, keys) {
                Err(why) => walk.findings.add("signature", format!("{name}: {why}")),
                Ok(digest) => {
                    walk.join(&name, &digest, from.is_some());
                    for object in &digest.objects {
                        walk.object(shelf, &digest, object)?;
                    }
                    walk.last = Some((digest, const_hex::encode(sha256(&bytes))));
                }
            }
        }
        Ok(walk)
    }
}

/// A digest that the log signed.
fn read(bytes: &[u8], keys: &[VerifierKey]) -> Result<Digest, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is no text")?;
    let note = Note::parse(text).map_err(|_| "it is no signed note")?;
    if note.signed_by(keys).is_empty() {
        return Err("it is not signed by these keys");
    }
    Digest::parse(&note.text).ok_or("it is signed, and no digest of exported events")
}

impl Walk {
    /// Whether a digest goes on where the one before ended.
    fn join(&mut self, name: &str, digest: &Digest, begins_later: bool) {
        let mut wrong = |why: String| self.findings.add("chain", format!("{name}: {why}"));
        if name != format!("digests/{}.digest", digest.begin) {
            wrong(format!("it is the digest of the period {}", digest.begin));
        }
        if digest.next < digest.first || digest.size < digest.next {
            wrong(format!("its checkpoint covers {} records, its seqs end at {}", digest.size, digest.next));
        }
        match &self.last {
            None if !begins_later && (digest.previous != "none" || digest.first != 0) => {
                wrong(format!(
                    "it is the first one here, and begins at seq {}; --from-period says that older ones are gone",
                    digest.first
                ));
            }
            None => {}
            Some((last, hash)) => {
                if last.origin != digest.origin {
                    wrong(format!("it is of {}, the one before of {}", digest.origin, last.origin));
                }
                if last.end != digest.begin {
                    wrong(format!("it begins at {}, the one before ended at {}", digest.begin, last.end));
                }
                if last.next != digest.first {
                    wrong(format!("it begins at seq {}, the one before ended at {}", digest.first, last.next));
                }
                if *hash != digest.previous {
                    wrong("it names another digest as the one before".into());
                }
            }
        }
        if self.last.is_none() {
            (self.first_period, self.first_seq) = (digest.begin.clone(), digest.first);
        }
    }

    /// Whether an object is there as its digest says.
    fn object(&mut self, shelf: &dyn Shelf, digest: &Digest, object: &Named) -> Result<(), custody_query::Error> {
        let name = &object.name;
        self.objects += 1;
        self.named.insert(name.clone());
        let Some(bytes) = shelf.read(name)? else {
            self.findings.add("missing", name.clone());
            return Ok(());
        };
        if bytes.len() as u64 != object.bytes || const_hex::encode(sha256(&bytes)) != object.sha256 {
            self.findings.add("altered", format!("{name}: these are not the bytes that its digest names"));
            return Ok(());
        }
        match seqs(&bytes, digest.format != "cef") {
            Ok((events, seqs)) => {
                self.events += events;
                let fits = |seqs: &[u64]| {
                    seqs.first() == Some(&object.first)
                        && seqs.last() == Some(&object.last)
                        && seqs.is_sorted()
                        && (digest.first..digest.next).contains(&object.first)
                        && (digest.first..digest.next).contains(&object.last)
                };
                if events != object.events || (digest.format != "cef" && !fits(&seqs)) {
                    self.findings.add("altered", format!("{name}: its events are not those that its digest counts"));
                }
            }
            Err(why) => self.findings.add("altered", format!("{name}: {why}")),
        }
        Ok(())
    }
}

/// How many events an object has, and of which seqs, where lines say that.
fn seqs(bytes: &[u8], is_json: bool) -> Result<(u64, Vec<u64>), String> {
    let (mut events, mut seqs) = (0, Vec::new());
    for line in BufReader::new(flate2::bufread::MultiGzDecoder::new(bytes)).split(b'\n') {
        let line = line.map_err(|e| e.to_string())?;
        events += 1;
        if is_json {
            let event: Value = serde_json::from_slice(&line).map_err(|e| e.to_string())?;
            // ECS has it elsewhere.
            let seq = event["metadata"]["sequence"].as_u64().or_else(|| event["event"]["sequence"].as_u64());
            seqs.push(seq.ok_or("an event has no sequence")?);
        }
    }
    Ok((events, seqs))
}

fn tell(place: &str, walk: &Walk, unnamed: u64, as_json: bool) -> Result<(), Failure> {
    let Walk { findings, digests, objects, events, .. } = walk;
    let (last_period, next) =
        walk.last.as_ref().map_or(("none", walk.first_seq), |(last, _)| (last.end.as_str(), last.next));
    if as_json {
        let verdict = if findings.is_empty() { "sound" } else { "unsound" };
        let period = json!({"from": walk.first_period, "to": last_period});
        let range = json!({"from_seq": walk.first_seq, "to_seq": next.checked_sub(1)});
        print(&format!(
            "{}\n",
            json!({"verdict": verdict, "digests": digests, "objects": objects, "events": events, "period": period,
                   "range": range, "unnamed_objects": unnamed, "findings": findings.to_json()})
        ))?;
    } else {
        findings.print()?;
        let first = &walk.first_period;
        print(&format!(
            "{place}: {digests} digests from {first} to {last_period}, seqs {} up to {next}; \
             {objects} objects with {events} events, {unnamed} that no digest names\n",
            walk.first_seq
        ))?;
    }
    match findings.is_empty() {
        true => Ok(()),
        false => Err(Failure::wrong("what is there is not what the log exported")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "custody events digest v1\norigin log\nperiod 20261120T090000Z 20261120T100000Z\nformat raw\n\
                        seqs 3 17\ncheckpoint 20 cm9vdA==\nprevious none\nobject events/a/b.gz 12 aa 3 16 9\n";

    #[test]
    fn a_digest_is_in_its_one_layout() {
        let digest = Digest::parse(TEXT).unwrap();
        assert_eq!((digest.first, digest.next, digest.size, digest.objects.len()), (3, 17, 20, 1));
        let object =
            Named { name: "events/a/b.gz".into(), bytes: 12, sha256: "aa".into(), first: 3, last: 16, events: 9 };
        assert_eq!(digest.objects, [object]);
        for (from, to) in [
            ("v1\n", "v2\n"),
            ("seqs 3 17", "seqs 3"),
            ("object events/", "object ../events/"),
            ("events/a/b.gz", "events/../../etc/passwd"),
            ("events/a/b.gz", "/etc/passwd"),
            ("previous none\n", ""),
            (" 9\n", " 9"),
            (" 9\n", " 9\nmore\n"),
        ] {
            assert_eq!(Digest::parse(&TEXT.replace(from, to)), None, "{to}");
        }
    }
}
