//! Power cuts by hand: the write-ahead log ends anywhere behind what was synced,
//! or goes on with rubbish. What was acknowledged by then is there.

use std::fs;
use std::path::{Path, PathBuf};

use custody_store::{Options, open};
use tempfile::TempDir;

use crate::check::{Held, nothing_else, reopen, sound};
use crate::damage::{copy, files};
use crate::stream::{Draws, Request, Step, Stream};

/// The moment after an acknowledgement.
struct Moment {
    /// The directory as it was, with the checkpoint of that time.
    dir: TempDir,
    /// How many of the requests were acknowledged.
    acknowledged: usize,
    /// How long the write-ahead log was.
    wal: usize,
}

/// A log in one opening, its requests in order, and all its moments.
struct Recorded {
    sent: Vec<Request>,
    moments: Vec<Moment>,
    wal: Vec<u8>,
}

fn wal_of(dir: &Path) -> PathBuf {
    files(dir, "log").pop().expect("a log has a write-ahead log")
}

impl Recorded {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _reader) = reopen(dir.path());
        let (mut sent, mut moments) = (Vec::new(), Vec::new());
        let mut stream = Stream::new(seed);
        for step in stream.life().into_iter().chain(stream.life()) {
            match step {
                Step::Append(batch) => {
                    writer.append(batch.iter().map(Request::prepare).collect()).unwrap();
                    sent.extend(batch);
                }
                Step::Checkpoint | Step::Reopen => writer.checkpoint().unwrap(),
            }
            let copied = tempfile::tempdir().unwrap();
            copy(dir.path(), copied.path());
            let wal = fs::metadata(wal_of(dir.path())).unwrap().len() as usize;
            moments.push(Moment { dir: copied, acknowledged: sent.len(), wal });
        }
        let wal = fs::read(wal_of(dir.path())).unwrap();
        Self { sent, moments, wal }
    }

    /// The directory of a moment, with this as its write-ahead log.
    fn cut(&self, moment: &Moment, wal: &[u8], rubbish: bool, what: &str) {
        let dir = tempfile::tempdir().unwrap();
        copy(moment.dir.path(), dir.path());
        fs::write(wal_of(dir.path()), wal).unwrap();
        if rubbish {
            heed(dir.path());
        }
        let (mut writer, reader) = reopen(dir.path());
        let held = Held::read(&reader);
        for request in &self.sent[..moment.acknowledged] {
            assert!(held.has(request), "{what}: request {} was acknowledged and is gone", request.id);
        }
        nothing_else(&held, &self.sent);
        // Goes on behind the torn end, and reads over it the next time.
        let late = crate::damage::request(9_000_000);
        writer.append(vec![late.prepare()]).unwrap();
        writer.checkpoint().unwrap();
        drop((writer, reader));
        sound(dir.path());
        let (_writer, reader) = reopen(dir.path());
        let again = Held::read(&reader);
        assert!(again.has(&late), "{what}: what came after is gone");
        assert_eq!(again.records.len(), held.records.len() + late.records.len(), "{what}");
    }
}

/// Rubbish that RocksDB could not get past is refused with what to do; does that.
fn heed(dir: &Path) {
    let Err(error) = open(dir, Options::default()) else { return };
    let text = error.to_string();
    let (_, advice) = text.split_once("(truncate -s ").unwrap_or_else(|| panic!("not refused so: {text}"));
    let (len, rest) = advice.split_once(' ').unwrap();
    let path = wal_of(dir);
    assert!(rest.starts_with(&format!("{})", path.display())), "{text}");
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len.parse().unwrap()).unwrap();
}

fn slow() -> bool {
    std::env::var_os("CUSTODY_SLOW_TESTS").is_some()
}

fn seeds() -> u64 {
    if slow() { 40 } else { 1 }
}

#[test]
fn a_write_ahead_log_cut_anywhere_behind_an_acknowledgement_holds_what_was_acknowledged() {
    for seed in 0..seeds() {
        let log = Recorded::new(seed);
        let mut draws = Draws::new(seed);
        for (i, moment) in log.moments.iter().enumerate().skip(seed as usize % 2).step_by(if slow() { 1 } else { 2 }) {
            let next = log.moments.get(i + 1).map_or(log.wal.len(), |m| m.wal);
            let inside = moment.wal + draws.below((next - moment.wal) as u64 + 1) as usize;
            for end in [moment.wal, inside, next.saturating_sub(1).max(moment.wal)] {
                log.cut(moment, &log.wal[..end], false, &format!("seed {seed}, moment {i}, cut at {end}"));
            }
        }
    }
}

#[test]
fn rubbish_behind_what_was_synced_is_never_taken_for_records() {
    for seed in 100..100 + seeds() {
        let log = Recorded::new(seed);
        let mut draws = Draws::new(seed);
        for (i, moment) in log.moments.iter().enumerate() {
            let behind = log.wal.len() - moment.wal;
            let at = moment.wal + draws.below(behind as u64 + 1) as usize;
            let kind = i % 3;
            let mut wal = log.wal.clone();
            match kind {
                0 => wal[at..].fill(0),
                1 => wal[at..].iter_mut().for_each(|byte| *byte = draws.next() as u8),
                _ => wal.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 0x40),
            }
            log.cut(moment, &wal, true, &format!("seed {seed}, moment {i}, rubbish {kind} from {at}"));
        }
    }
}
