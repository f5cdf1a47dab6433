//! A witness of other logs (C2SP tlog-witness): it cosigns the newest checkpoint of
//! each log that it knows, if that extends the one it cosigned before.
//!
//! ```text
//! <state>/lock                       held while a witness runs: two would roll each other back
//! <state>/keys/witness.key           Ed25519 (type 04) and ML-DSA-44 (type 06), mode 0600
//! <state>/logs/<sha256 of origin>    the newest checkpoint of a log, with our cosignatures
//! <state>/evidence/                  signed checkpoints that contradict what was cosigned
//! ```
//!
//! What was cosigned is durable before anybody hears of it: a crash before that
//! forgets a cosignature that nobody has. Check and set are under one lock. After a
//! failed write nothing is cosigned until the witness is started again. It knows no
//! socket and no clock.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use custody_proto::Hash;
use tlog_tiles::tlog;

use crate::Error;
use crate::checkpoint::{Checkpoint, replace_file};
use crate::keys::{SigningKey, write_secret};
use crate::note::{Algorithm, Line, Note, VerifierKey, sha256_hex};

/// Most bytes of a submission: room for a dozen ML-DSA-44 signatures.
pub const SUBMISSION_BYTES_MAX: usize = 64 << 10;

/// Most lines of a consistency proof.
const PROOF_LINES_MAX: usize = 63;

/// Of each kind, this many pieces of evidence are kept.
const EVIDENCE_MAX: usize = 100;

/// The body of `add-checkpoint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// The size that the proof begins at.
    pub old: u64,
    /// The consistency proof from there to the checkpoint.
    pub proof: Vec<Hash>,
    /// The signed checkpoint.
    pub note: Note,
    /// What it says.
    pub checkpoint: Checkpoint,
}

impl Submission {
    /// Reads a body; the error says what is wrong with it.
    pub fn parse(body: &str) -> Result<Self, String> {
        if body.len() > SUBMISSION_BYTES_MAX {
            return Err(format!("the body is longer than {SUBMISSION_BYTES_MAX} bytes"));
        }
        let (head, note) = body.split_once("\n\n").ok_or("no empty line ends the proof")?;
        let mut lines = head.split('\n');
        let old = lines.next().and_then(|line| line.strip_prefix("old ")).and_then(decimal);
        let old = old.ok_or("the first line is not `old` and a size")?;
        let hash = |line: &str| STANDARD.decode(line).ok().and_then(|hash| hash.try_into().ok());
        let proof: Option<Vec<Hash>> = lines.map(hash).collect();
        let proof = proof.ok_or("a line of the proof is not 32 bytes in base64")?;
        if proof.len() > PROOF_LINES_MAX {
            return Err(format!("the proof has more than {PROOF_LINES_MAX} lines"));
        }
        let note = Note::parse(note).map_err(|e| format!("the checkpoint: {e}"))?;
        let checkpoint = Checkpoint::parse_text(&note.text).map_err(|e| e.to_string())?;
        Ok(Self { old, proof, note, checkpoint })
    }
}

impl fmt::Display for Submission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "old {}", self.old)?;
        self.proof.iter().try_for_each(|hash| writeln!(f, "{}", STANDARD.encode(hash)))?;
        write!(f, "\n{}", self.note)
    }
}

/// Reads a size as C2SP writes it: decimal, no sign, no leading zeros.
pub fn decimal(text: &str) -> Option<u64> {
    text.parse().ok().filter(|n: &u64| n.to_string() == text)
}

/// Why a checkpoint is not cosigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The body is no submission, or its old size is above that of the checkpoint.
    Malformed(String),
    /// No log of this origin is known.
    UnknownOrigin(String),
    /// No trusted key of the log signed it.
    NotSigned(String),
    /// The newest cosigned checkpoint has this size, not the old one.
    OtherSize(u64),
    /// It has the size of the newest cosigned checkpoint, and another root: a fork.
    OtherRoot(u64),
    /// The consistency proof does not lead from the cosigned checkpoint to this one.
    NotConsistent(String),
    /// The witness cannot keep its state.
    Failed(String),
}

impl Refusal {
    /// The HTTP status, as the specification has it.
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::NotSigned(_) => 403,
            Self::UnknownOrigin(_) => 404,
            Self::OtherSize(_) | Self::OtherRoot(_) => 409,
            Self::NotConsistent(_) => 422,
            Self::Failed(_) => 503,
        }
    }

    /// The size to answer with, as `text/x.tlog.size`.
    pub fn size(&self) -> Option<u64> {
        match self {
            Self::OtherSize(size) | Self::OtherRoot(size) => Some(*size),
            _ => None,
        }
    }

    /// Whether a log's own signature stands under what contradicts what it showed before.
    pub fn is_inconsistent(&self) -> bool {
        matches!(self, Self::OtherRoot(_) | Self::NotConsistent(_))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) | Self::Failed(what) => f.write_str(what),
            Self::UnknownOrigin(origin) => write!(f, "no log of the origin {origin} is known here"),
            Self::NotSigned(origin) => write!(f, "no trusted key of {origin} signed this checkpoint"),
            Self::OtherSize(size) => write!(f, "the newest cosigned checkpoint has size {size}"),
            Self::OtherRoot(size) => write!(f, "another root was cosigned at size {size}: the log forked"),
            Self::NotConsistent(what) => write!(f, "the checkpoint is not proven to extend the cosigned one: {what}"),
        }
    }
}

/// A witness and its state.
pub struct Witness {
    dir: PathBuf,
    keys: Vec<SigningKey>,
    /// Trusted keys by origin.
    logs: BTreeMap<String, Vec<VerifierKey>>,
    state: Mutex<State>,
    /// Held as long as the witness lives.
    _lock: fs::File,
}

struct State {
    /// By origin.
    newest: HashMap<String, Cosigned>,
    /// A write failed: what is on disk is not known.
    failed: bool,
}

/// The newest cosigned checkpoint of a log.
#[derive(Clone)]
struct Cosigned {
    checkpoint: Checkpoint,
    note: String,
}

impl Witness {
    /// Opens the state in `dir`, and makes it if it is not there. `logs` are the keys
    /// of the logs to cosign, several for one origin if it has several. `key` is a file
    /// of note signer keys; by default `keys/witness.key`, made if it is not there.
    pub fn open(dir: &Path, name: &str, key: Option<&Path>, logs: Vec<VerifierKey>) -> Result<Self, Error> {
        let fail = |e: std::io::Error| Error::invalid(format!("the state {} cannot be written: {e}", dir.display()));
        fs::create_dir_all(dir.join("logs")).map_err(fail)?;
        fs::create_dir_all(dir.join("evidence")).map_err(fail)?;
        let lock = fs::File::create(dir.join("lock")).map_err(fail)?;
        lock.try_lock().map_err(|_| {
            Error::unavailable(format!("the state {} is in use by another witness; stop that one", dir.display()))
        })?;
        let mut by_origin: BTreeMap<String, Vec<VerifierKey>> = BTreeMap::new();
        for key in logs {
            if key.algorithm() == Algorithm::Ed25519Cosignature {
                return Err(Error::invalid(format!("the key of {} is a witness's (type 04), not a log's", key.name())));
            }
            by_origin.entry(key.name().to_owned()).or_default().push(key);
        }
        let keys = open_keys(dir, name, key)?;
        let mut newest = HashMap::new();
        for origin in by_origin.keys() {
            if let Some(cosigned) = Cosigned::read(&dir.join("logs").join(file_of(origin)), origin, &keys)? {
                newest.insert(origin.clone(), cosigned);
            }
        }
        // The directories themselves must survive a power cut, too.
        for made in [Some(dir), dir.parent().filter(|parent| !parent.as_os_str().is_empty())].into_iter().flatten() {
            fs::File::open(made).and_then(|d| d.sync_all()).map_err(fail)?;
        }
        let state = Mutex::new(State { newest, failed: false });
        Ok(Self { dir: dir.to_owned(), keys, logs: by_origin, state, _lock: lock })
    }

    /// The public keys that it cosigns with, Ed25519 first.
    pub fn verifiers(&self) -> Vec<VerifierKey> {
        self.keys.iter().map(|key| key.verifier().clone()).collect()
    }

    /// The origins of the logs that it cosigns, each with the size of the newest
    /// cosigned checkpoint.
    pub fn logs(&self) -> Vec<(String, u64)> {
        let state = self.locked();
        let size = |origin: &String| state.newest.get(origin).map_or(0, |c| c.checkpoint.size);
        self.logs.keys().map(|origin| (origin.clone(), size(origin))).collect()
    }

    /// The newest cosigned checkpoint of the log whose origin has this SHA-256, in
    /// lowercase hexadecimal.
    pub fn newest(&self, origin_sha256: &str) -> Option<String> {
        let origin = self.logs.keys().find(|origin| file_of(origin) == origin_sha256)?;
        self.locked().newest.get(origin).map(|cosigned| cosigned.note.clone())
    }

    /// `add-checkpoint`: the cosignature lines, or why there are none. When it gives
    /// lines, the checkpoint is on disk. `now` is in seconds since the Unix epoch.
    pub fn add_checkpoint(&self, body: &str, now: u64) -> Result<String, Refusal> {
        let mut submission = Submission::parse(body).map_err(Refusal::Malformed)?;
        let origin = submission.checkpoint.origin.clone();
        let trusted = self.logs.get(&origin).ok_or_else(|| Refusal::UnknownOrigin(origin.clone()))?;
        submission.note.lines = submission.note.signed_by(trusted);
        if submission.note.lines.is_empty() {
            return Err(Refusal::NotSigned(origin));
        }
        let (old, size) = (submission.old, submission.checkpoint.size);
        if old > size {
            return Err(Refusal::Malformed(format!("the old size {old} is above the checkpoint's {size}")));
        }
        let mut state = self.locked();
        if state.failed {
            return Err(Refusal::Failed("the witness could not keep its state; start it again".into()));
        }
        let held = state.newest.get(&origin).cloned();
        if let Err(refusal) = check(&submission, held.as_ref()) {
            drop(state);
            self.keep_evidence(&refusal, &submission, held.as_ref());
            return Err(refusal);
        }
        let failed = |e: Error| Refusal::Failed(e.to_string());
        let text = &submission.note.text;
        let lines: Vec<Line> = self.keys.iter().map(|k| k.sign(text, now)).collect::<Result<_, _>>().map_err(failed)?;
        let answer: String = lines.iter().map(|line| format!("{line}\n")).collect();
        submission.note.merge(lines);
        let note = submission.note.to_string();
        let path = self.dir.join("logs").join(file_of(&origin));
        // A crash in here leaves the former checkpoint or this one; nobody has heard of this one yet.
        if let Err(error) = replace_file(&path, note.as_bytes()) {
            state.failed = true;
            return Err(failed(error));
        }
        state.newest.insert(origin, Cosigned { checkpoint: submission.checkpoint, note });
        Ok(answer)
    }

    /// Keeps what contradicts the cosigned checkpoint, beside that one. A fork proves
    /// itself, while anybody can send a good checkpoint with a false proof; so that
    /// these cannot crowd out those, each kind has its own bound.
    fn keep_evidence(&self, refusal: &Refusal, submission: &Submission, held: Option<&Cosigned>) {
        let kind = match refusal {
            Refusal::OtherRoot(_) => "fork",
            Refusal::NotConsistent(_) => "unproven",
            _ => return,
        };
        let dir = self.dir.join("evidence");
        let path = dir.join(format!("{kind}-{}", sha256_hex(submission.note.text.as_bytes())));
        let of_kind = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(kind);
        let count = fs::read_dir(&dir).map_or(0, |all| all.flatten().filter(of_kind).count());
        if count < EVIDENCE_MAX && !path.exists() {
            let held = held.map(|held| held.note.as_str()).unwrap_or_default();
            // Evidence is a help, and no part of what the witness promises: a failure stops nothing.
            let _ = replace_file(&path, format!("{submission}\n{held}").as_bytes());
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rules about sizes, roots and proofs, in the specification's order.
fn check(submission: &Submission, held: Option<&Cosigned>) -> Result<(), Refusal> {
    let Submission { old, proof, checkpoint, .. } = submission;
    let (held_size, held_root) = held.map_or((0, tlog::EMPTY_HASH.0), |h| (h.checkpoint.size, h.checkpoint.root));
    // A second root at one size is a fork, whatever old size it comes with.
    if checkpoint.size == held_size && checkpoint.root != held_root {
        return Err(Refusal::OtherRoot(held_size));
    }
    if *old != held_size {
        return Err(Refusal::OtherSize(held_size));
    }
    if *old == 0 {
        let empty = proof.is_empty();
        return if empty { Ok(()) } else { Err(Refusal::NotConsistent("a proof from size 0 is empty".into())) };
    }
    let proof = proof.iter().map(|hash| tlog::Hash(*hash)).collect();
    let (new, old_root) = (tlog::Hash(checkpoint.root), tlog::Hash(held_root));
    let checked = tlog::check_tree(&proof, checkpoint.size, new, *old, old_root);
    checked.map_err(|_| Refusal::NotConsistent(format!("the proof from size {old} to {} is wrong", checkpoint.size)))
}

impl Cosigned {
    fn read(path: &Path, origin: &str, keys: &[SigningKey]) -> Result<Option<Self>, Error> {
        let damaged = |what: String| {
            Error::corrupt(format!(
                "{} is damaged: {what}; without it the log could be rolled back, so put it back from a backup",
                path.display()
            ))
        };
        let note = match fs::read_to_string(path) {
            Ok(note) => note,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(damaged(e.to_string())),
        };
        let parsed = Note::parse(&note).map_err(|e| damaged(e.to_string()))?;
        let checkpoint = Checkpoint::parse_text(&parsed.text).map_err(|e| damaged(e.to_string()))?;
        if checkpoint.origin != origin {
            return Err(damaged(format!("it is of {}", checkpoint.origin)));
        }
        for key in keys {
            // Of keys that it had before there is nothing to find.
            key.verifier().find(&parsed).map_err(|e| damaged(e.to_string()))?;
        }
        Ok(Some(Self { checkpoint, note }))
    }
}

/// How a log's file is named, and its checkpoint asked for.
fn file_of(origin: &str) -> String {
    sha256_hex(origin.as_bytes())
}

/// Reads the witness's keys, or makes them.
fn open_keys(dir: &Path, name: &str, key: Option<&Path>) -> Result<Vec<SigningKey>, Error> {
    let own = dir.join("keys/witness.key");
    let path = key.unwrap_or(&own);
    if key.is_none() && !path.exists() {
        let used = fs::read_dir(dir.join("logs")).is_ok_and(|mut files| files.next().is_some());
        if used {
            return Err(Error::invalid(format!(
                "{} is missing, but checkpoints were cosigned here; put the key back, or name it with --key",
                path.display()
            )));
        }
        let (_, a) = SigningKey::generate(name, Algorithm::Ed25519Cosignature)?;
        let (_, b) = SigningKey::generate(name, Algorithm::MlDsa44)?;
        write_secret(path, format!("{a}\n{b}\n").as_bytes())?;
    }
    let text = fs::read_to_string(path).map_err(|e| Error::invalid(format!("{}: {e}", path.display())))?;
    let mut keys = Vec::new();
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |what: &str| Error::invalid(format!("{}, line {}: {what}", path.display(), n + 1));
        let key = SigningKey::parse(line);
        let key = key.ok_or_else(|| wrong("not a note signer key (PRIVATE+KEY+name+id+base64)"))?;
        if key.verifier().algorithm() == Algorithm::Ed25519 {
            return Err(wrong("a witness cosigns with type 04 (Ed25519) and 06 (ML-DSA-44), not with type 01"));
        }
        if key.verifier().name() != name {
            return Err(wrong(&format!("the key is of {}, not of {name}; say so with --name", key.verifier().name())));
        }
        keys.push(key);
    }
    keys.sort_by_key(|key| key.verifier().algorithm() as u8);
    if keys.is_empty() {
        return Err(Error::invalid(format!("{} holds no key", path.display())));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests;
