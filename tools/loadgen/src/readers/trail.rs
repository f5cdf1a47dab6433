//! What one reader has seen: a sum of hashes for each block of seqs, so that a hundred readers of
//! millions of events are held against the ledger in little memory.
//!
//! A sum does not depend on order within a block; order is looked at as events come. An event that
//! is missing, doubled or another one changes the sum of its block.

use crate::random::mix2;

/// Seqs of a block: what is wrong is named as closely as this.
pub const BLOCK: u64 = 1024;

/// One event of so many is timed: a hundred readers that look for a time in each would be the load.
pub const TIMED: u64 = 8;

/// An event as a number; the same for the same record and kind, whoever tells of it.
pub fn event(seq: u64, kind: &str) -> u64 {
    // FNV-1a, then scattered: sums of it do not cancel out by chance.
    let kind = kind.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    mix2(seq, kind)
}

/// Sums of events, by block, from a seq on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    first: u64,
    sums: Vec<u64>,
}

impl Sums {
    /// Of events from this seq on.
    pub fn new(begin: u64) -> Self {
        Self { first: begin / BLOCK, sums: Vec::new() }
    }

    pub fn add(&mut self, seq: u64, event: u64) {
        let at = (seq / BLOCK - self.first) as usize;
        if at >= self.sums.len() {
            self.sums.resize(at + 1, 0);
        }
        self.sums[at] = self.sums[at].wrapping_add(event);
    }

    /// The sum of the block of this seq.
    pub fn of(&self, seq: u64) -> u64 {
        let at = (seq / BLOCK).checked_sub(self.first).map(|at| at as usize);
        at.and_then(|at| self.sums.get(at)).copied().unwrap_or(0)
    }

    /// The first seq of each whole block below `end`.
    pub fn blocks(&self, end: u64) -> impl Iterator<Item = u64> + use<> {
        (self.first..end / BLOCK).map(|block| block * BLOCK)
    }
}

/// Events one behind the other, as many readers are given them together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    first: u64,
    pub events: u64,
    /// The last seq in a block, and the sum of what is in it.
    blocks: Vec<(u64, u64)>,
    /// When the ledger took one record of so many, in ns since the Unix epoch.
    pub times: Vec<u64>,
}

impl Batch {
    /// Takes a line of the format `raw`, and gives its seq; the error is what is wrong with it.
    pub fn take(&mut self, line: &str) -> Result<u64, String> {
        let (seq, kind) = read(line).ok_or_else(|| format!("this is no event: {}", clip(line)))?;
        let (event, last) = (event(seq, kind), self.blocks.last_mut());
        match last {
            Some((last, _)) if seq < *last => {
                return Err(format!("the event {seq}:{kind} came after those below {last}"));
            }
            Some((last, sum)) if *last / BLOCK == seq / BLOCK => (*last, *sum) = (seq, sum.wrapping_add(event)),
            other => {
                if other.is_none() {
                    self.first = seq;
                }
                self.blocks.push((seq, event));
            }
        }
        if self.events.is_multiple_of(TIMED) {
            let time = ingest_ns(line);
            self.times.push(time.ok_or_else(|| format!("this has no ingest_time: {}", clip(line)))?);
        }
        self.events += 1;
        Ok(seq)
    }
}

/// What a reader has taken, up to where.
#[derive(Clone, Debug)]
pub struct Trail {
    /// All events below are taken.
    pub position: u64,
    pub sums: Sums,
    pub events: u64,
    /// Events of the page, or of the record, that has not ended: sums, each with the last seq that is in it.
    pending: Vec<(u64, u64)>,
    pending_events: u64,
}

impl Trail {
    pub fn new(begin: u64) -> Self {
        Self { position: begin, sums: Sums::new(begin), events: 0, pending: Vec::new(), pending_events: 0 }
    }

    /// Takes a line of the format `raw`, and gives its seq; the error is what is wrong with it.
    pub fn take(&mut self, line: &str) -> Result<u64, String> {
        let (seq, kind) = read(line).ok_or_else(|| format!("this is no event: {}", clip(line)))?;
        let least = self.pending.last().map_or(self.position, |(seq, _)| *seq);
        if seq < least {
            return Err(format!("the event {seq}:{kind} came after those below {least}"));
        }
        self.pending.push((seq, event(seq, kind)));
        self.pending_events += 1;
        Ok(seq)
    }

    /// Takes what others have looked at.
    pub fn take_batch(&mut self, batch: &Batch) -> Result<(), String> {
        let least = self.pending.last().map_or(self.position, |(seq, _)| *seq);
        if batch.events > 0 && batch.first < least {
            return Err(format!("the event {} came after those below {least}", batch.first));
        }
        self.pending.extend_from_slice(&batch.blocks);
        self.pending_events += batch.events;
        Ok(())
    }

    /// What was taken is whole up to a seq: a page has ended, or a stream has given its cursor.
    pub fn commit(&mut self, position: u64) -> Result<(), String> {
        if let Some((seq, _)) = self.pending.last().filter(|(seq, _)| *seq >= position) {
            return Err(format!("an event of {seq} came in a page that ends at {position}"));
        }
        self.events += std::mem::take(&mut self.pending_events);
        for (seq, event) in self.pending.drain(..) {
            self.sums.add(seq, event);
        }
        self.position = self.position.max(position);
        Ok(())
    }

    /// The same, where nothing but the events says how far it went.
    pub fn commit_events(&mut self) -> Result<(), String> {
        self.commit(self.pending.last().map_or(self.position, |(seq, _)| seq + 1))
    }

    /// What was begun comes again.
    pub fn forget_begun(&mut self) {
        self.pending.clear();
        self.pending_events = 0;
    }
}

/// Seq and kind of an event, from its id, which is the first member of the line: `origin:seq:kind`, and `:2` for
/// the second of a kind. The id and the member `sequence` have to say the same.
fn read(line: &str) -> Option<(u64, &str)> {
    let uid = line.strip_prefix("{\"metadata\":{\"uid\":\"")?;
    let (uid, rest) = uid.split_at(uid.bytes().position(|byte| byte == b'"')?);
    let digits = rest.strip_prefix("\",\"sequence\":")?;
    let digits = &digits[..digits.bytes().position(|byte| !byte.is_ascii_digit())?];
    let (before, last) = uid.rsplit_once(':')?;
    let (before, kind) = match last.bytes().all(|byte| byte.is_ascii_digit()) {
        true => before.rsplit_once(':')?,
        false => (before, last),
    };
    let (_, seq) = before.rsplit_once(':')?;
    (seq == digits).then_some(())?;
    Some((digits.parse().ok()?, kind))
}

/// The time at which the ledger took the record of an event, in ns since the Unix epoch.
pub fn ingest_ns(line: &str) -> Option<u64> {
    const NAME: &str = "\"ingest_time\":\"";
    let text = &line[line.find(NAME)? + NAME.len()..];
    nanos(&text[..text.find('"')?])
}

/// A time such as 2026-11-20T09:00:00.5Z.
fn nanos(text: &str) -> Option<u64> {
    let number = |at: std::ops::Range<usize>| text.get(at)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    // Days of the civil calendar: years begin in March, so that the leap day is their last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day;
    let days = days.checked_sub(719_469)?;
    let seconds = ((days * 24 + number(11..13)?) * 60 + number(14..16)?) * 60 + number(17..19)?;
    let rest = text.get(19..)?.strip_suffix('Z')?;
    let fraction = match rest.strip_prefix('.') {
        None => 0,
        Some(digits) => format!("{digits:0<9}").get(..9)?.parse::<u64>().ok()?,
    };
    Some(seconds * 1_000_000_000 + fraction)
}

/// The beginning of a text that may be long.
pub fn clip(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seq: u64, kind: &str, more: &str) -> String {
        format!(
            "{{\"metadata\":{{\"uid\":\"custody.local/ab:{seq}:{kind}{more}\",\"sequence\":{seq}}},\"severity\":\"low\"}}"
        )
    }

    #[test]
    fn a_line_gives_seq_and_kind_and_time() {
        assert_eq!(read(&line(70, "alert", "")), Some((70, "alert")));
        assert_eq!(read(&line(70, "tool_call", ":2")), Some((70, "tool_call")));
        assert_eq!(read("{\"error\":1}"), None);
        for wrong in ["log:70:alert\",\"sequence\":71", "log:70\",\"sequence\":70", "log:170:alert\",\"sequence\":70"] {
            assert_eq!(read(&format!("{{\"metadata\":{{\"uid\":\"{wrong}}},\"kind\":\"alert\"}}")), None, "{wrong}");
        }
        assert_eq!(nanos("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(nanos("2026-11-20T09:00:00.5Z"), Some(1_795_165_200_500_000_000));
        assert_eq!(nanos("2024-02-29T23:59:59.000000001Z"), Some(1_709_251_199_000_000_001));
        assert_eq!(nanos("yesterday"), None);
        assert_eq!(ingest_ns("{\"a\":1,\"ingest_time\":\"1970-01-02T00:00:00Z\"}"), Some(86_400_000_000_000));
    }

    #[test]
    fn sums_tell_of_what_is_missing_doubled_or_another() {
        let trail = |lines: &[(u64, &str)]| {
            let mut trail = Trail::new(5);
            lines.iter().for_each(|(seq, kind)| assert_eq!(trail.take(&line(*seq, kind, "")), Ok(*seq)));
            trail.commit(5000).unwrap();
            trail
        };
        let all = [(5, "alert"), (5, "tool_call"), (7, "alert"), (3000, "alert")];
        let whole = trail(&all);
        assert_eq!((whole.events, whole.position), (4, 5000));
        assert_eq!(trail(&[all[1], all[0], all[2], all[3]]).sums, whole.sums, "one record's events have no order");
        for other in [
            &all[1..],
            &all[..3],
            &[all[0], all[0], all[1], all[2], all[3]],
            &[all[0], all[1], all[2], (3000, "output")],
        ] {
            assert_ne!(trail(other).sums, whole.sums, "{other:?}");
        }
        assert_eq!(whole.sums.blocks(5000).collect::<Vec<_>>(), [0, 1024, 2048, 3072]);
        assert_eq!((whole.sums.of(2048) != 0, whole.sums.of(4096)), (true, 0));
    }

    #[test]
    fn what_comes_out_of_order_is_said_at_once() {
        let mut trail = Trail::new(0);
        trail.take(&line(9, "alert", "")).unwrap();
        assert!(trail.take(&line(8, "alert", "")).unwrap_err().contains("8:alert came after"));
        assert!(trail.commit(9).unwrap_err().contains("ends at 9"));
        trail.commit_events().unwrap();
        assert_eq!(trail.position, 10);
        assert!(trail.take(&line(9, "alert", "")).is_err(), "it was taken before");
        trail.take(&line(10, "alert", "")).unwrap();
        trail.forget_begun();
        trail.take(&line(10, "alert", "")).unwrap();
        trail.commit_events().unwrap();
        assert_eq!(trail.events, 2);
    }

    #[test]
    fn a_batch_is_its_events() {
        let seqs = [(5, "alert"), (5, "tool_call"), (7, "alert"), (2047, "alert"), (2048, "alert"), (9000, "output")];
        let timed = |seq: u64, kind: &str| {
            line(seq, kind, "").replace("low\"", "low\",\"ingest_time\":\"1970-01-01T00:00:01Z\"")
        };
        let (mut one, mut all, mut batch) = (Trail::new(5), Trail::new(5), Batch::default());
        for (seq, kind) in seqs {
            assert_eq!(one.take(&timed(seq, kind)), Ok(seq));
            assert_eq!(batch.take(&timed(seq, kind)), Ok(seq));
        }
        all.take_batch(&batch).unwrap();
        assert!(all.commit(9000).unwrap_err().contains("ends at 9000"));
        all.commit(9001).unwrap();
        one.commit(9001).unwrap();
        assert_eq!((&all.sums, all.events, all.position), (&one.sums, 6, 9001));
        assert_eq!(batch.times, [1_000_000_000]);
        // It does not join twice, nor with what is missing in it, nor out of order.
        assert!(all.take_batch(&batch).unwrap_err().contains("5 came after those below 9001"));
        assert!(batch.take(&timed(8999, "alert")).unwrap_err().contains("8999:alert came after"));
        assert!(Batch::default().take(&line(1, "alert", "")).unwrap_err().contains("ingest_time"));
        all.take_batch(&Batch::default()).unwrap();
    }
}
