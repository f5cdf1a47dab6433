//! Holds what readers saw against the table `events`: the ledger is asked once, for all of them.

use std::collections::HashMap;

use super::reader::Seen;
use super::trail::{BLOCK, Sums, event};
use crate::check::Api;

/// Seqs that are asked for at a time: a record gives few events, and an answer has a million rows.
const PAGE: u64 = 50_000;

/// What was found.
pub struct Judged {
    /// Events of the ledger in what was to be read.
    pub events: u64,
    /// A line for each reader that saw something else.
    pub wrong: Vec<String>,
}

/// What the ledger has: sums of blocks, and for each reader of the block in which he ended, up to there.
struct Truth {
    sums: Sums,
    begun: Vec<u64>,
    ends: HashMap<u64, Vec<usize>>,
    events: u64,
}

impl Truth {
    fn new(begin: u64, seen: &[Seen]) -> Self {
        let mut ends: HashMap<u64, Vec<usize>> = HashMap::new();
        for (i, seen) in seen.iter().enumerate() {
            ends.entry(seen.trail.position / BLOCK).or_default().push(i);
        }
        Self { sums: Sums::new(begin), begun: vec![0; seen.len()], ends, events: 0 }
    }

    fn add(&mut self, seq: u64, kind: &str, seen: &[Seen]) {
        let event = event(seq, kind);
        self.sums.add(seq, event);
        for i in self.ends.get(&(seq / BLOCK)).into_iter().flatten() {
            if seq < seen[*i].trail.position {
                self.begun[*i] = self.begun[*i].wrapping_add(event);
            }
        }
    }

    /// What reader `i` saw otherwise.
    fn differs(&self, i: usize, seen: &Seen) -> Option<String> {
        let (trail, position) = (&seen.trail, seen.trail.position);
        let other = trail.sums.blocks(position).find(|block| trail.sums.of(*block) != self.sums.of(*block));
        if let Some(block) = other {
            return Some(format!("saw other events than the ledger has from seq {block} to {}", block + BLOCK - 1));
        }
        let begun = position - position % BLOCK;
        let differs = trail.sums.of(position) != self.begun[i];
        differs
            .then(|| format!("saw other events than the ledger has from seq {begun} to {}", position.saturating_sub(1)))
    }
}

/// Asks the ledger, and compares.
pub fn judge(api: &Api, kinds: &[String], begin: u64, size: u64, seen: &[Seen]) -> Result<Judged, String> {
    let end = seen.iter().map(|seen| seen.trail.position).max().unwrap_or(0).max(size);
    let mut truth = Truth::new(begin, seen);
    let list: Vec<String> = kinds.iter().map(|kind| format!("'{kind}'")).collect();
    let only = if list.is_empty() { String::new() } else { format!(" AND kind IN ({})", list.join(", ")) };
    for from in (begin..end).step_by(PAGE as usize) {
        let to = end.min(from + PAGE);
        let sql = format!("SELECT seq, kind FROM events WHERE seq >= {from} AND seq < {to}{only}");
        for line in api.sql(&sql)?.0.lines().skip(1) {
            let row = line.split_once(',').and_then(|(seq, kind)| Some((seq.parse().ok()?, kind)));
            let (seq, kind): (u64, &str) = row.ok_or_else(|| format!("the answer has the row {line}"))?;
            truth.events += u64::from(seq < size);
            truth.add(seq, kind, seen);
        }
    }
    let wrong = seen.iter().enumerate().filter_map(|(i, seen)| {
        let what = seen.wrong.clone().or_else(|| truth.differs(i, seen))?;
        let speed = if seen.manner.slow { "slow" } else { "fast" };
        let how = seen.manner.way.name();
        Some(format!("reader {i} ({speed}, {how}): {what}"))
    });
    Ok(Judged { events: truth.events, wrong: wrong.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::ReaderWay;
    use crate::readers::reader::Manner;
    use crate::readers::trail::Trail;

    fn seen(seqs: impl Iterator<Item = u64>, position: u64) -> Seen {
        let mut trail = Trail::new(100);
        for seq in seqs {
            let line = format!("{{\"metadata\":{{\"uid\":\"log:{seq}:alert\",\"sequence\":{seq}}}}}");
            trail.take(&line).unwrap();
        }
        trail.commit(position).unwrap();
        let manner = Manner { way: ReaderWay::Pages, slow: true };
        Seen { manner, trail, wrong: None, bytes: 0, told_to_wait: 0, broken: 0, behind: false }
    }

    #[test]
    fn each_reader_is_judged_up_to_where_he_came() {
        let all = || (100..9000).filter(|seq| seq % 3 == 0);
        let readers = [
            seen(all(), 9000),
            seen(all().filter(|seq| *seq < 2500), 2500),
            seen(std::iter::empty(), 100),
            seen(all().filter(|seq| *seq != 3000), 9000),
            seen(all().filter(|seq| *seq < 2400), 2500),
        ];
        let mut truth = Truth::new(100, &readers);
        all().for_each(|seq| truth.add(seq, "alert", &readers));
        let found: Vec<_> = readers.iter().enumerate().map(|(i, seen)| truth.differs(i, seen)).collect();
        assert_eq!(found[..3], [None, None, None]);
        assert!(found[3].as_ref().unwrap().ends_with("from seq 2048 to 3071"), "{found:?}");
        assert!(found[4].as_ref().unwrap().ends_with("from seq 2048 to 2499"), "{found:?}");
    }
}
