//! Where a verification got to: kept, it need not begin at the beginning again.
//!
//! Whoever can change the kept state can make the rest look verified: keep it where
//! the log's operator cannot write.

use std::collections::HashMap;

use custody_proto::Hash;

use crate::Error;
use crate::format::Head;
use crate::note::VerifierKey;
use crate::system::SeqSet;
use crate::tree::Frontier;

/// All that joining the next block needs.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(super) origin: String,
    pub(super) head: Head,
    pub(super) last_time: u64,
    pub(super) frontier: Frontier,
    /// Keys, and the seq of the record that names them.
    pub(super) keys: Vec<(u64, Vec<VerifierKey>)>,
    pub(super) counters: HashMap<[u8; 16], u64>,
    pub(super) gaps: SeqSet,
    pub(super) erased: SeqSet,
    /// Whole blocks that hold copies, and of which records.
    pub(super) copies: Vec<(u64, SeqSet)>,
    /// Blocks without a gap whose frame is erased, and which of whose copies may be why.
    pub(super) frames: Vec<(u64, SeqSet)>,
    /// The ledger's own records.
    pub(super) own: Vec<u64>,
    pub(super) blocks: u64,
    pub(super) bytes: u64,
    pub(super) nodes: u64,
    pub(super) checkpoints: u64,
}

impl State {
    /// How many records are verified.
    pub fn size(&self) -> u64 {
        self.head.size
    }

    /// Payload bytes that were hashed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The keys that sign a tree of this size.
    pub(super) fn keys_at(&self, size: u64) -> &[VerifierKey] {
        self.keys.iter().rev().find(|(seq, _)| *seq < size).map(|(_, keys)| keys.as_slice()).unwrap_or_default()
    }

    /// As text, a line for each field.
    pub fn to_text(&self) -> String {
        let mut out = String::from("custody verify state 1\n");
        let mut line = |name: &str, value: String| out.push_str(&format!("{name} {value}\n"));
        line("origin", self.origin.clone());
        line("size", self.head.size.to_string());
        line("chain", const_hex::encode(self.head.chain));
        line("time", self.last_time.to_string());
        line("counts", format!("{} {} {} {}", self.blocks, self.bytes, self.nodes, self.checkpoints));
        for tile in self.frontier.levels() {
            line("tile", const_hex::encode(tile.as_flattened()));
        }
        for (seq, keys) in &self.keys {
            keys.iter().for_each(|key| line("key", format!("{seq} {key}")));
        }
        for (submitter, count) in &self.counters {
            line("counter", format!("{} {count}", const_hex::encode(submitter)));
        }
        line("gaps", self.gaps.to_string());
        line("erased", self.erased.to_string());
        line("own", SeqSet::of_seqs(self.own.iter().copied()).to_string());
        self.copies.iter().for_each(|(first, set)| line("copies", format!("{first} {set}")));
        self.frames.iter().for_each(|(first, set)| line("frame", format!("{first} {set}")));
        line("end", String::new());
        out
    }

    /// Reads what [`Self::to_text`] wrote.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut state = Self::default();
        let mut lines = text.lines();
        let bad = |what: &str| Error::invalid(format!("the state of an earlier verification is not readable: {what}"));
        if lines.next() != Some("custody verify state 1") {
            return Err(bad("its first line is not `custody verify state 1`"));
        }
        let mut levels = Vec::new();
        let mut ended = false;
        for line in lines {
            let (name, value) = line.split_once(' ').unwrap_or((line, ""));
            ended = name == "end";
            state.field(name, value, &mut levels).ok_or_else(|| bad(line))?;
        }
        state.frontier = Frontier::of(state.head.size, levels).ok_or_else(|| bad("its tree does not fit its size"))?;
        if ended { Ok(state) } else { Err(bad("it is cut off")) }
    }

    fn field(&mut self, name: &str, value: &str, levels: &mut Vec<Vec<Hash>>) -> Option<()> {
        match name {
            "origin" => self.origin = value.to_owned(),
            "size" => self.head.size = value.parse().ok()?,
            "chain" => self.head.chain = const_hex::decode_to_array(value).ok()?,
            "time" => self.last_time = value.parse().ok()?,
            "counts" => {
                let numbers: Vec<u64> = value.split(' ').map(|n| n.parse().ok()).collect::<Option<_>>()?;
                let [blocks, bytes, nodes, checkpoints] = numbers[..] else { return None };
                (self.blocks, self.bytes, self.nodes, self.checkpoints) = (blocks, bytes, nodes, checkpoints);
            }
            "tile" => {
                let bytes = const_hex::decode(value).ok()?;
                levels.push(bytes.chunks(32).map(|hash| hash.try_into().ok()).collect::<Option<_>>()?);
            }
            "key" => {
                let (seq, key) = value.split_once(' ')?;
                let (seq, key) = (seq.parse().ok()?, VerifierKey::parse(key).ok()?);
                match self.keys.last_mut().filter(|(last, _)| *last == seq) {
                    Some((_, keys)) => keys.push(key),
                    None => self.keys.push((seq, vec![key])),
                }
            }
            "counter" => {
                let (submitter, count) = value.split_once(' ')?;
                self.counters.insert(const_hex::decode_to_array(submitter).ok()?, count.parse().ok()?);
            }
            "gaps" => self.gaps = SeqSet::parse(value)?,
            "erased" => self.erased = SeqSet::parse(value)?,
            "own" => self.own = SeqSet::parse(value)?.seqs().collect(),
            "copies" | "frame" => {
                let (first, set) = value.split_once(' ')?;
                let pair = (first.parse().ok()?, SeqSet::parse(set)?);
                if name == "copies" { self.copies.push(pair) } else { self.frames.push(pair) }
            }
            "end" => {}
            _ => return None,
        }
        Some(())
    }
}
