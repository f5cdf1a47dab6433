//! Changing a log as an operator could who has full access to it: for showing
//! and testing that verification finds it. Nothing else uses this.

use std::path::Path;

use rocksdb::{DB, Options};

use crate::format::payload::{kept, unpack};
use crate::format::{cf, seq_key};
use crate::{Error, Reader};

/// A byte of a stored request.
pub struct At {
    first_seq: u64,
    offset: usize,
    payload_len: usize,
}

/// Finds the byte behind `marker` in the record with this seq; its middle byte if
/// the marker is not in it.
pub fn find(dir: &Path, seq: u64, marker: &[u8]) -> Result<At, Error> {
    let reader = Reader::open(dir)?;
    let missing = || Error::invalid(format!("the log has no record {seq}"));
    let block = reader.block_at(seq)?.ok_or_else(missing)?;
    let content = block.content.ok_or_else(missing)?;
    let first_seq = block.commitments.first_seq;
    let range = content.layout().records[(seq - first_seq) as usize].range;
    let record = content.record((seq - first_seq) as usize);
    let inside = record.windows(marker.len()).position(|w| w == marker).map(|at| at + marker.len());
    let payload_len = content.payload().len();
    Ok(At { first_seq, payload_len, offset: range.at as usize + inside.unwrap_or(record.len() / 2) })
}

/// Flips the lowest bit of a byte, and gives what was there and what is there now,
/// with a few characters around.
pub fn flip(dir: &Path, at: &At) -> Result<(String, String), Error> {
    let db = DB::open_cf(&Options::default(), dir.join("log"), cf::ALL)?;
    let family = db.cf_handle(cf::PAYLOADS).ok_or_else(|| Error::corrupt("the log has no payloads"))?;
    let key = seq_key(at.first_seq);
    let stored = db.get_cf(family, key)?.ok_or_else(|| Error::corrupt("the block has no payload"))?;
    let payload = unpack(stored.into(), at.payload_len).ok_or_else(|| Error::corrupt("the payload is not readable"))?;
    let mut payload = Vec::from(payload);
    let around = |payload: &[u8]| {
        let (from, to) = (at.offset.saturating_sub(10), (at.offset + 4).min(payload.len()));
        String::from_utf8_lossy(&payload[from..to]).into_owned()
    };
    let before = around(&payload);
    payload[at.offset] ^= 1;
    db.put_cf(family, key, kept(&payload))?;
    Ok((before, around(&payload)))
}
