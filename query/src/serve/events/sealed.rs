//! What stands beside a page: the checkpoint that covers it, the proof of its range, and what
//! retention has erased.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use custody_proto::ENTRY_BYTES;
use custody_store::system::{SeqSet, event};
use custody_store::{Checkpoint, Reader};
use futures::future::BoxFuture;
use serde_json::{Value as Json, json};

use super::Position;
use crate::error::Error;
use crate::projection::Projection;

/// Signs for the query side, which has no keys.
pub trait Signer: Send + Sync {
    /// Signs and publishes a checkpoint of all that is durable.
    fn checkpoint(&self) -> BoxFuture<'static, Result<(), Error>>;

    /// Signs the text of a digest of exported events as a C2SP note; gives the whole note.
    fn digest(&self, text: String) -> BoxFuture<'static, Result<String, Error>>;
}

/// Checkpoints are signed for readers at most so often; another one comes each second anyway.
const SIGN_PAUSE: Duration = Duration::from_millis(200);

/// A page does not wait longer for its checkpoint: a signer elsewhere may not answer.
const SIGN_WAIT: Duration = Duration::from_secs(2);

/// Records of a range with a proof, at most: the entries of all of them are in it.
pub(crate) const PROOF_RECORDS: u64 = 8_192;

/// What pages of one server share.
#[derive(Default)]
pub(crate) struct Seals {
    pub(crate) signer: Option<Arc<dyn Signer>>,
    signed: tokio::sync::Mutex<Option<Instant>>,
    /// What retention erased, as of an epoch of erasures.
    erased: Mutex<Option<(u64, Arc<Erasures>)>>,
}

impl Seals {
    pub(crate) fn with(signer: Arc<dyn Signer>) -> Self {
        Self { signer: Some(signer), ..Self::default() }
    }

    /// The newest checkpoint, which covers the first `size` records unless they cannot be signed now.
    pub(crate) async fn covering(&self, reader: &Reader, size: u64) -> Result<Option<String>, Error> {
        if let (Some(signer), false) = (&self.signer, covers(reader, size)?) {
            let sign = async {
                let mut signed = self.signed.lock().await;
                if !covers(reader, size)? {
                    if let Some(last) = *signed {
                        tokio::time::sleep(SIGN_PAUSE.saturating_sub(last.elapsed())).await;
                    }
                    *signed = Some(Instant::now());
                    signer.checkpoint().await?;
                }
                Ok::<_, Error>(())
            };
            if let Ok(Err(error)) = tokio::time::timeout(SIGN_WAIT, sign).await {
                tracing::debug!(%error, "no checkpoint covers the newest events yet");
            }
        }
        reader.checkpoint().map_err(Error::store)
    }

    /// The records whose content retention erased.
    pub(crate) fn erased(&self, projection: &Projection) -> Result<Arc<Erasures>, Error> {
        let epoch = projection.recent.epoch();
        let mut kept = self.erased.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, set)) = kept.as_ref().filter(|(of, _)| *of == epoch) {
            return Ok(Arc::clone(set));
        }
        let mut told = Vec::new();
        for (seq, record) in projection.reader().system_records(&[event::ERASURE]).map_err(Error::store)? {
            if record.text("custody.erasure.cause") == Some("retention")
                && let Some(set) = record.text("custody.erasure.seqs").and_then(SeqSet::parse)
            {
                told.push((seq, set));
            }
        }
        let all = Arc::new(Erasures::of(told));
        *kept = Some((epoch, Arc::clone(&all)));
        Ok(all)
    }
}

/// What retention erased. It does not only go on from where it was: what a legal hold kept is erased when
/// the hold is released, behind readers who know of what was erased around it.
#[derive(Debug, Default)]
pub(crate) struct Erasures {
    /// The seq of each record that tells of some, in their order.
    told: Vec<(u64, SeqSet)>,
    all: SeqSet,
}

impl Erasures {
    fn of(told: Vec<(u64, SeqSet)>) -> Self {
        let all = SeqSet::of(told.iter().flat_map(|(_, set)| set.ranges().iter().cloned()));
        Self { told, all }
    }

    /// What somebody knows who is told of all of it now.
    pub(crate) fn known(&self) -> u64 {
        self.told.last().map_or(0, |(seq, _)| seq + 1)
    }

    /// The same of somebody who was told no more than where the end of it all was. If that leaves a doubt, he
    /// is told again.
    pub(crate) fn known_at(&self, horizon: u64) -> u64 {
        let ends = |(_, set): &(u64, SeqSet)| set.ranges().last().is_some_and(|range| range.end >= horizon);
        match horizon {
            0 => 0,
            _ => self.told.iter().find(|told| ends(told)).map_or_else(|| self.known(), |(seq, _)| seq + 1),
        }
    }

    /// The first record from a place on, and below a seq, that was erased and of which he who is there does not
    /// know that.
    pub(crate) fn unknown(&self, position: Position, below: u64) -> Option<u64> {
        let since = self.told.partition_point(|(seq, _)| *seq < position.known);
        let first = |(_, set): &(u64, SeqSet)| Some(set.within(position.seq..below).next()?.start);
        self.told[since..].iter().filter_map(first).min()
    }

    /// The first seq from `from` on that is not erased.
    pub(crate) fn earliest(&self, from: u64) -> u64 {
        self.all.ranges().iter().find(|range| range.contains(&from)).map_or(from, |range| range.end)
    }
}

fn covers(reader: &Reader, size: u64) -> Result<bool, Error> {
    let Some(note) = reader.checkpoint().map_err(Error::store)? else { return Ok(false) };
    // Only the second line is needed, and this is asked for every page.
    Ok(note.lines().nth(1).and_then(|size| size.parse().ok()).is_some_and(|signed: u64| signed >= size))
}

/// Proves the records `from..next` under a checkpoint: the entries of all of them, and the RFC 6962
/// inclusion paths of the first and the last, from which the root follows.
pub(crate) fn range_proof(reader: &Reader, from: u64, next: u64, note: Option<&str>) -> Result<Json, Error> {
    let unsigned = || Error::new(crate::ErrorKind::Unavailable, "no checkpoint covers this page yet; ask again");
    let size = Checkpoint::parse_unverified(note.ok_or_else(unsigned)?).map_err(Error::store)?.size;
    let next = next.min(size);
    if from >= next {
        return Ok(json!({"tree_size": size, "first": null, "last": null, "entries": []}));
    }
    let path = |seq: u64| {
        let hashes = reader.inclusion(seq, size).map_err(Error::store)?;
        let hashes: Vec<String> = hashes.iter().map(|hash| STANDARD.encode(hash)).collect();
        Ok::<_, Error>(json!({"seq": seq, "inclusion": hashes}))
    };
    let entries = entries(reader, from, next)?;
    Ok(json!({"tree_size": size, "first": path(from)?, "last": path(next - 1)?, "entries": entries}))
}

/// The entries of a range, base64, read by bundles of 256.
fn entries(reader: &Reader, from: u64, next: u64) -> Result<Vec<String>, Error> {
    let mut out = Vec::new();
    for index in from / 256..=(next - 1) / 256 {
        let width = (next - index * 256).min(256) as u16;
        let bundle = reader.entry_bundle(index, width).map_err(Error::store)?.unwrap_or_default();
        let entries = bundle.chunks_exact(ENTRY_BYTES + 2).map(|entry| STANDARD.encode(&entry[2..]));
        out.extend(entries.skip(from.saturating_sub(index * 256) as usize));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_and_is_erased_later_is_not_known_to_who_knew_of_what_is_around_it() {
        let set = |text: &str| SeqSet::parse(text).unwrap();
        // 50 to 99 were under a hold.
        let before = Erasures::of(vec![(200, set("10-49,100-149"))]);
        let told = Position { seq: 50, known: before.known() };
        assert_eq!(before.unknown(told, u64::MAX), None);
        assert_eq!(before.unknown(Position { seq: 5, known: 0 }, u64::MAX), Some(10));
        assert_eq!(before.unknown(Position { seq: 5, known: 0 }, 10), None, "not as far as this");
        assert_eq!((before.earliest(9), before.earliest(10), before.earliest(120)), (9, 50, 150));
        let after = Erasures::of(vec![(200, set("10-49,100-149")), (250, set("50-99"))]);
        assert_eq!(after.unknown(told, u64::MAX), Some(50));
        assert_eq!(after.unknown(Position { seq: 100, ..told }, u64::MAX), None, "he had them all");
        assert_eq!(after.unknown(Position { seq: 60, known: after.known() }, u64::MAX), None);
        assert_eq!(after.earliest(20), 150);
        // Cursors of before say where the end was: what was erased below it later is told.
        let known = after.known_at(150);
        assert_eq!((known, after.unknown(Position { seq: 60, known }, u64::MAX)), (201, Some(60)));
        assert_eq!((after.known_at(0), after.known_at(1_000)), (0, 251));
    }
}
