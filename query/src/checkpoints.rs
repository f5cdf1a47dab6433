//! The table `checkpoints`: what the log signed and still has, and what witnesses cosigned.

use custody_store::note::{Line, Note};
use custody_store::{Checkpoint, Reader};

use crate::Error;
use crate::rows::{Time, table};

table! {
    /// Checkpoints of the log: the newest one, and those that witnesses were asked to cosign.
    CheckpointRow, CheckpointBuilder {
        /// Number of records that it covers.
        size: u64,
        /// Root of the RFC 6962 tree over their entries, hex.
        root: String,
        /// When the log signed it, as its ML-DSA-44 signature says; null if it has none.
        time: Option<Time>,
        /// The log's own signatures that verify: key id and algorithm.
        signatures: Vec<String>,
        /// Signatures of others, as `name+key id` and, where it says so, the second in which it was made. Whether they
        /// verify is for whoever has the witnesses' keys: `custody check`, `custody verify`.
        cosignatures: Vec<String>,
        /// Whether the root is that of the log's own tree of this size.
        consistent: bool,
    }
}

/// Sizes of the log that are looked through at once: notes are large, and rows are not.
const SIZES: u64 = 1 << 20;

/// All checkpoints that there are, by size.
///
/// # Errors
///
/// If the log cannot be read.
pub fn checkpoints(reader: &Reader) -> Result<Vec<CheckpointRow>, Error> {
    let mut rows = Vec::new();
    let end = reader.head().size;
    let mut from = 0;
    while from <= end {
        let to = from.saturating_add(SIZES - 1);
        for kept in reader.witnessed(from, to).map_err(Error::store)? {
            rows.push(row(reader, &kept.note)?);
        }
        from = to.saturating_add(1);
    }
    if let Some(note) = reader.checkpoint().map_err(Error::store)? {
        let newest = row(reader, &note)?;
        // One that witnesses have, too, has more signatures there.
        if rows.iter().all(|row| row.size != newest.size) {
            rows.push(newest);
        }
    }
    rows.sort_by_key(|row| row.size);
    Ok(rows)
}

fn row(reader: &Reader, note: &str) -> Result<CheckpointRow, Error> {
    let note = Note::parse(note).map_err(Error::store)?;
    let checkpoint = Checkpoint::parse_text(&note.text).map_err(Error::store)?;
    let keys = reader.keys();
    let own = note.signed_by(&keys);
    let algorithm = |line: &Line| keys.iter().find(|key| key.id() == line.id).map(|key| key.algorithm().to_string());
    let time = own.iter().filter_map(signed_at).max();
    let others = note.lines.iter().filter(|line| line.name != checkpoint.origin);
    Ok(CheckpointRow {
        size: checkpoint.size,
        root: const_hex::encode(checkpoint.root),
        time: time.map(|seconds| Time(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000_000))),
        signatures: own.iter().map(|l| format!("{:08x} {}", l.id, algorithm(l).unwrap_or_default())).collect(),
        cosignatures: others.map(cosignature).collect(),
        consistent: reader.root_at(checkpoint.size).is_ok_and(|root| root == checkpoint.root),
    })
}

/// The second in which a signature was made, where its kind says it: a cosignature (Ed25519, 64 bytes) or an
/// ML-DSA-44 signature (2420 bytes), each behind a time.
fn signed_at(line: &Line) -> Option<u64> {
    let (time, signature) = line.signature.split_first_chunk::<8>()?;
    matches!(signature.len(), 64 | 2420).then(|| u64::from_be_bytes(*time))
}

fn cosignature(line: &Line) -> String {
    let at = signed_at(line).map_or_else(String::new, |seconds| format!(" at {seconds}"));
    format!("{}+{:08x}{at}", line.name, line.id)
}
