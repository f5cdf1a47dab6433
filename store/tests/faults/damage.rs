//! Damage to the files of a log: it is named in one line that says what to do, by
//! `open` and by `verify`, every time, and nothing is made to look whole again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use custody_store::verify::{Verdict, verify};
use custody_store::{ErrorKind, Options, Writer, open};
use tempfile::TempDir;

use crate::check::{Held, reopen, sound};
use crate::stream::{Request, span};

/// Copies a directory with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The files of the database that end so, in the order of their numbers.
pub fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(dir.join("log")).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<_> = all.filter(|p| p.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

pub fn request(id: u64) -> Request {
    Request::traces(id, (0..4).map(|i| span(id * 100 + i, format!("span {id} {i} {}", "x".repeat(300)))).collect())
}

fn append(writer: &mut Writer, ids: std::ops::Range<u64>) {
    ids.for_each(|id| drop(writer.append(vec![request(id).prepare()]).unwrap()));
    writer.checkpoint().unwrap();
}

/// A log in three openings of 40 records each, with a copy of each state.
struct Original(Vec<TempDir>);

impl Original {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = |part: u64| {
            append(&mut reopen(dir.path()).0, part * 10..part * 10 + 10);
            let copied = tempfile::tempdir().unwrap();
            copy(dir.path(), copied.path());
            copied
        };
        Self((0..3).map(state).collect())
    }

    fn newest(&self) -> &Path {
        self.0[2].path()
    }

    fn older(&self) -> &Path {
        self.0[1].path()
    }

    /// A copy of the newest state, damaged.
    fn damaged(&self, damage: impl FnOnce(&Path)) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        copy(self.newest(), dir.path());
        damage(dir.path());
        dir
    }

    /// `open` refuses, twice, in one line with these words; `verify` does not say sound.
    fn refused(&self, name: &str, words: &[&str], damage: impl FnOnce(&Path)) {
        let dir = self.damaged(damage);
        refused(name, words, dir.path());
    }
}

fn refused(name: &str, words: &[&str], dir: &Path) {
    let before = evidence(dir);
    not_sound(name, dir);
    for time in ["first", "second"] {
        let error = open(dir, Options::default()).err().unwrap_or_else(|| panic!("{name}: opened the {time} time"));
        let text = error.to_string();
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid), "{name}: {error:?}");
        assert!(words.iter().all(|w| text.contains(w)), "{name}, the {time} time: {text}");
        assert!(text.lines().count() == 1, "{name}: {text}");
        assert!(evidence(dir) == before, "{name}: the {time} opening changed the evidence");
    }
    not_sound(name, dir);
}

/// `verify` says that it is not sound, in one line.
fn not_sound(name: &str, dir: &Path) {
    let text = match verify(dir, &Default::default(), |_, _| ()) {
        Ok(Verdict::Sound(summary)) => panic!("{name}: sound, {summary:?}"),
        Ok(Verdict::Tampered(finding)) => format!("seq {}: {}", finding.seq, finding.reason),
        Err(error) => error.to_string(),
    };
    assert_eq!(text.lines().count(), 1, "{name}: {text}");
}

/// The bytes of everything but RocksDB's diary and locks.
fn evidence(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let folders = [dir.to_owned(), dir.join("log"), dir.join("keys")];
    let entries = folders.iter().filter_map(|f| fs::read_dir(f).ok()).flatten().map(|e| e.unwrap().path());
    let diary = |p: &Path| p.file_name().unwrap().to_string_lossy().starts_with("LO");
    entries.filter(|p| p.is_file() && !diary(p)).map(|p| (p.clone(), fs::read(&p).unwrap())).collect()
}

fn edit(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    edit(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn remove_all(paths: Vec<PathBuf>) {
    assert!(!paths.is_empty());
    paths.iter().for_each(|p| fs::remove_file(p).unwrap());
}

#[test]
fn a_lost_or_shortened_write_ahead_log_is_found_and_left_as_it_is() {
    let log = Original::new();
    let tail = ["checkpoint covers 121 records", "lost its tail", "restore"];
    log.refused("the write-ahead log removed", &tail, |dir| remove_all(files(dir, "log")));
    log.refused("the write-ahead log emptied", &tail, |dir| {
        files(dir, "log").iter().for_each(|f| fs::write(f, "").unwrap());
    });
    for part in 1..4 {
        log.refused("the write-ahead log cut", &tail, |dir| {
            edit(files(dir, "log").last().unwrap(), |v| v.truncate(v.len() * part / 4));
        });
        log.refused("a byte of the write-ahead log changed", &tail, |dir| {
            edit(files(dir, "log").last().unwrap(), |v| {
                let at = v.len() * part / 4;
                v[at] ^= 1;
            });
        });
    }
}

/// RocksDB's reader never ends at such a frame (facebook/rocksdb#13333).
#[test]
fn one_bit_that_makes_a_record_look_recycled_is_named_and_does_not_hang() {
    let log = Original::new();
    // In a file that is written over, such as those of the write-ahead log, it is the other way round.
    let lost = ["checkpoint covers 121 records", "lost its tail", "restore"];
    log.refused("the type of a record in the write-ahead log", &lost, |dir| {
        edit(files(dir, "log").last().unwrap(), |v| {
            let second = 11 + usize::from(u16::from_le_bytes([v[4], v[5]]));
            assert!(matches!(v[second + 6], 5 | 6), "a record begins here");
            v[second + 6] &= !4;
        });
    });
    let words = ["is damaged at byte", "restore", "truncate -s"];
    let flip = |path: &Path| {
        edit(path, |v| {
            let second = 7 + usize::from(u16::from_le_bytes([v[4], v[5]]));
            assert!(matches!(v[second + 6], 1 | 2), "a record begins here");
            v[second + 6] |= 4;
        });
    };
    log.refused("the type of a record in the MANIFEST", &words, |dir| {
        let current = fs::read_to_string(dir.join("log/CURRENT")).unwrap();
        flip(&dir.join("log").join(current.trim()));
    });
}

#[test]
fn a_log_that_lost_all_its_records_is_not_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    append(&mut reopen(dir.path()).0, 0..10);
    let lost = ["checkpoint covers 41 records", "restore"];
    remove_all(files(dir.path(), "log"));
    refused("the only write-ahead log removed", &lost, dir.path());
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    refused("the database removed", &["log", "restore"], dir.path());
}

#[test]
fn a_table_file_that_is_missing_swapped_cut_or_old_is_found() {
    let log = Original::new();
    let largest = |dir: &Path| files(dir, "sst").into_iter().max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap();
    let words = ["cannot be opened", "restore"];
    log.refused("the largest table removed", &words, |dir| fs::remove_file(largest(dir)).unwrap());
    log.refused("all tables removed", &words, |dir| remove_all(files(dir, "sst")));
    log.refused("the largest table cut", &words, |dir| edit(&largest(dir), |v| v.truncate(v.len() / 2)));
    for i in 0..files(log.newest(), "sst").len() - 1 {
        log.refused("two tables swapped", &words, |dir| {
            let tables = files(dir, "sst");
            let first = fs::read(&tables[i]).unwrap();
            fs::copy(&tables[i + 1], &tables[i]).unwrap();
            fs::write(&tables[i + 1], first).unwrap();
        });
    }
    log.refused("a table of the same size but of an older copy", &words, |dir| {
        let (new, old) = (largest(dir), files(log.older(), "sst")[0].clone());
        let len = fs::metadata(&new).unwrap().len() as usize;
        let mut bytes = fs::read(old).unwrap();
        bytes.resize(len, 0);
        fs::write(new, bytes).unwrap();
    });
}

#[test]
fn an_older_copy_under_the_newest_checkpoint_is_found() {
    let log = Original::new();
    for older in &log.0[..2] {
        let words = ["checkpoint covers 121 records", "rolled back", "restore"];
        let dir = tempfile::tempdir().unwrap();
        copy(older.path(), dir.path());
        fs::copy(log.newest().join("checkpoint"), dir.path().join("checkpoint")).unwrap();
        refused("an older copy", &words, dir.path());
    }
}

#[test]
fn a_missing_checkpoint_is_not_signed_anew() {
    let log = Original::new();
    let words = ["checkpoint is missing", "121 records", "restore"];
    log.refused("the checkpoint removed", &words, |dir| fs::remove_file(dir.join("checkpoint")).unwrap());
    log.refused("the checkpoint emptied", &["checkpoint"], |dir| fs::write(dir.join("checkpoint"), "").unwrap());
}

#[test]
fn missing_or_foreign_keys_are_not_replaced() {
    let log = Original::new();
    for name in ["log.key", "submitter.key"] {
        let missing = [name, "is missing", "restore"];
        let dir = log.damaged(|dir| fs::remove_file(dir.join("keys").join(name)).unwrap());
        let error = open(dir.path(), Options::default()).err().expect("refused").to_string();
        assert!(missing.iter().all(|w| error.contains(w)), "{error}");
        assert!(!dir.path().join("keys").join(name).exists(), "no new {name} was made");
        sound(dir.path());
    }
    let dir = log.damaged(|dir| {
        let origin = reopen(dir).1.origin().to_owned();
        let other = tempfile::tempdir().unwrap();
        drop(open(other.path(), Options { origin: Some(origin), ..Options::default() }).unwrap());
        fs::copy(other.path().join("keys/log.key"), dir.join("keys/log.key")).unwrap();
    });
    let error = open(dir.path(), Options::default()).err().expect("refused").to_string();
    assert!(error.contains("not those that the log names"), "{error}");
    sound(dir.path());
}

#[test]
fn what_a_crash_leaves_beside_the_checkpoint_is_harmless() {
    let log = Original::new();
    let dir = log.damaged(|dir| {
        let note = fs::read(dir.join("checkpoint")).unwrap();
        fs::write(dir.join("checkpoint.new"), &note[..note.len() / 2]).unwrap();
    });
    sound(dir.path());
    let (mut writer, reader) = reopen(dir.path());
    append(&mut writer, 30..31);
    assert_eq!(Held::read(&reader).records.len(), 124);
    drop((writer, reader));
    sound(dir.path());
    assert!(!dir.path().join("checkpoint.new").exists());
}

/// Every opening leaves RocksDB tables to merge and files to remove, while others read.
#[test]
fn a_log_that_is_being_written_is_never_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    for part in 0..12 {
        let (mut writer, _reader) = reopen(dir.path());
        append(&mut writer, part..part + 1);
        (0..3).for_each(|_| sound(dir.path()));
    }
}
