//! What a log holds, read anew, and what it must hold.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use custody_proto::Hash;
use custody_store::tree::leaf_hash;
use custody_store::verify::{Verdict, verify};
use custody_store::{Checkpoint, Options, Reader, Writer, open};
use sha2::{Digest as _, Sha256};

use crate::inject::Said;
use crate::stream::Request;

/// All that a log holds.
pub struct Held {
    /// How often each record is there, by its bytes; without the ledger's own.
    pub records: HashMap<Vec<u8>, u32>,
    pub payloads: HashSet<Vec<u8>>,
    pub times: Vec<u64>,
    leaves: Vec<Hash>,
}

impl Held {
    pub fn read(reader: &Reader) -> Self {
        let size = reader.head().size;
        let mut held =
            Self { records: HashMap::new(), payloads: HashSet::new(), times: Vec::new(), leaves: leaves(reader, size) };
        let mut seq = 0;
        while seq < size {
            let block = reader.block_at(seq).unwrap().unwrap();
            let content = block.content.unwrap();
            held.times.push(block.commitments.ingest_time);
            if content.identity() != "system:custody" {
                held.payloads.insert(content.payload().to_vec());
                (0..content.records()).for_each(|i| *held.records.entry(content.record(i).to_vec()).or_default() += 1);
            }
            seq = block.commitments.end_seq();
        }
        held
    }

    /// The root of the first `size` entries; `None` where the log is shorter.
    pub fn root(&self, size: u64) -> Option<Hash> {
        self.leaves.get(..size as usize).map(root)
    }

    pub fn has(&self, request: &Request) -> bool {
        request.records.iter().all(|record| self.records.get(record) == Some(&1))
    }
}

fn leaves(reader: &Reader, size: u64) -> Vec<Hash> {
    let mut leaves = Vec::new();
    while (leaves.len() as u64) < size {
        let (index, width) = (leaves.len() as u64 / 256, (size - leaves.len() as u64).min(256));
        let bundle = reader.entry_bundle(index, width as u16).unwrap().unwrap();
        leaves.extend(bundle.chunks_exact(114).map(|entry| leaf_hash(entry[2..].try_into().unwrap())));
    }
    leaves
}

/// RFC 6962, section 2.1, as it is written there.
fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Sha256::digest([]).into(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            Sha256::new().chain_update([1]).chain_update(root(left)).chain_update(root(right)).finalize().into()
        }
    }
}

/// Everything that children promised over one data directory.
#[derive(Debug, Default)]
pub struct Promised {
    pub acks: HashSet<u64>,
    pub checkpoints: HashSet<(u64, String)>,
}

impl Promised {
    /// Takes up what a child said, and the file it left: whoever reads it has seen it.
    /// One size has one root, whoever signed it and whenever.
    pub fn take(&mut self, said: Said, dir: &Path) {
        self.acks.extend(said.acks);
        self.checkpoints.extend(said.checkpoints);
        if let Ok(note) = std::fs::read_to_string(dir.join("checkpoint")) {
            let checkpoint = Checkpoint::parse_unverified(&note).unwrap();
            self.checkpoints.insert((checkpoint.size, const_hex::encode(checkpoint.root)));
        }
        let sizes: HashSet<u64> = self.checkpoints.iter().map(|(size, _)| *size).collect();
        assert_eq!(sizes.len(), self.checkpoints.len(), "two roots for one size: {:?}", self.checkpoints);
    }
}

pub fn reopen(dir: &Path) -> (Writer, Reader) {
    open(dir, Options::default()).unwrap_or_else(|e| panic!("the log does not open by itself: {e}"))
}

/// Opens the log without faults: the promises hold, a resend of all yields each once.
pub fn check(dir: &Path, promised: &Promised, sent: &[Request]) {
    let (mut writer, reader) = reopen(dir);
    let held = Held::read(&reader);
    for request in sent.iter().filter(|r| promised.acks.contains(&r.id)) {
        assert!(held.has(request), "request {} was acknowledged and is not there once", request.id);
    }
    nothing_else(&held, sent);
    for batch in sent.chunks(8) {
        writer.append(batch.iter().map(Request::prepare).collect()).unwrap();
    }
    writer.checkpoint().unwrap();
    let held = Held::read(&reader);
    for request in sent {
        assert!(held.has(request), "request {} is not there once after a resend", request.id);
    }
    nothing_else(&held, sent);
    assert!(held.times.is_sorted(), "ingest times decrease");
    for (size, root) in &promised.checkpoints {
        let now = held.root(*size).map(const_hex::encode);
        assert_eq!(now.as_ref(), Some(root), "the checkpoint of size {size} is not a prefix of the log");
    }
    drop((writer, reader));
    sound(dir);
}

/// No record and no request that was never sent.
pub fn nothing_else(held: &Held, sent: &[Request]) {
    let payloads: HashSet<&[u8]> = sent.iter().map(|r| &r.payload[..]).collect();
    assert!(held.payloads.iter().all(|p| payloads.contains(&p[..])), "a request that was never sent is there");
    let records: HashSet<&[u8]> = sent.iter().flat_map(|r| &r.records).map(|r| &r[..]).collect();
    for (record, count) in &held.records {
        assert!(records.contains(&record[..]), "a record that was never sent is there");
        assert_eq!(*count, 1, "a record is there {count} times");
    }
}

pub fn sound(dir: &Path) {
    let verdict = verify(dir, &Default::default(), |_, _| ()).unwrap();
    assert!(matches!(verdict, Verdict::Sound(_)), "{verdict:?}");
}
