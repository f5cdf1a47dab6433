//! How real logs died: by going on after a failed write, by believing a page cache
//! after a failed sync, by signing two trees of one size, by a clock set back.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use custody_store::{Clock, ErrorKind, Options, open};

use crate::check::{Held, Promised, check, sound};
use crate::damage::request;
use crate::inject::{self, Counts, Fault, Said, data, shim};
use crate::stream::Stream;

/// A seed whose stream has many syncs and signatures.
const SEED: u64 = 7;

fn dry_run(shim: &Path, folder: &Path) -> Counts {
    let disk = folder.join("dry");
    assert!(inject::child(shim, &disk, &format!("{SEED} 0"), Fault::NONE, 0).ended);
    inject::counts(&disk)
}

/// One life with this fault, and the reckoning. Gives what the child said.
fn one_death(shim: &Path, fault: Fault) -> Said {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let said = inject::child(shim, &disk, &format!("{SEED} 0"), fault, fault.at);
    let mut promised = Promised::default();
    let failed = Said { failures: said.failures.clone(), ended: said.ended, ..Said::default() };
    promised.take(said, &data(&disk));
    check(&data(&disk), &promised, &Stream::requests(SEED, 1));
    failed
}

fn slow() -> bool {
    std::env::var_os("CUSTODY_SLOW_TESTS").is_some()
}

/// A part of the range, spread over all of it; all of it in the slow tests.
fn spread(range: u64, count: u64) -> impl Iterator<Item = u64> {
    let step = if slow() { 1 } else { (range / count).max(1) };
    (1..=range).step_by(step as usize)
}

/// The child asserts that every later append and checkpoint errs, then opens again
/// in the same process.
#[test]
fn after_a_failed_write_the_writer_takes_nothing_until_the_log_is_opened_again() {
    let Some(shim) = shim() else { return };
    let dry = tempfile::tempdir().unwrap();
    let boundaries = dry_run(shim, dry.path()).boundaries;
    for (name, error) in [("eio-once", "Input/output error"), ("enospc", "No space left on device")] {
        let said: Vec<_> = spread(boundaries, 10).map(|at| one_death(shim, Fault { name, at })).collect();
        let failures: Vec<_> = said.iter().flat_map(|s| &s.failures).collect();
        assert!(failures.len() > 2, "{name}: {failures:?}");
        assert!(failures.iter().any(|f| f.contains(error)), "{name}: {failures:?}");
        assert!(said.iter().any(|s| s.ended), "{name}: some went on after opening again");
    }
}

#[test]
fn a_sync_that_failed_and_dropped_its_pages_acknowledged_nothing() {
    let Some(shim) = shim() else { return };
    let dry = tempfile::tempdir().unwrap();
    let syncs = dry_run(shim, dry.path()).syncs;
    let deaths = spread(syncs, 10).map(|at| one_death(shim, Fault { name: "fsync-eio-once", at }));
    let failures = deaths.flat_map(|said| said.failures).count();
    assert!(failures > 2, "{failures} syncs failed under an append or a checkpoint");
}

#[test]
fn a_slow_disk_changes_nothing() {
    let Some(shim) = shim() else { return };
    assert!(one_death(shim, Fault { name: "slow", at: 0 }).ended);
}

/// Dies around each signature (before and after the file is in place, and before
/// its directory is synced), and goes on with other records.
#[test]
fn no_two_trees_of_one_size_are_ever_signed() {
    let Some(shim) = shim() else { return };
    let dry = tempfile::tempdir().unwrap();
    let signings = dry_run(shim, dry.path()).signings;
    assert!(signings.len() > 3, "{signings:?}");
    for (i, at) in signings.iter().flat_map(|at| [at - 1, *at, at + 1]).enumerate() {
        let all = ["kill", "after", "cut"];
        let some = if slow() { &all[..] } else { &all[(i + i / 3) % 3..][..1] };
        for name in some {
            let one = tempfile::tempdir().unwrap();
            let disk = one.path().join("disk");
            let dir = data(&disk);
            let mut promised = Promised::default();
            let fault = Fault { name, at };
            promised.take(inject::child(shim, &disk, &format!("{SEED} 0"), fault, at), &dir);
            // Life 1 sends other records than life 0 would have.
            promised.take(inject::child(shim, &disk, &format!("{SEED} 1"), Fault::NONE, at), &dir);
            check(&dir, &promised, &Stream::requests(SEED, 2));
        }
    }
}

/// A clock that says what it is told to.
struct Told(AtomicU64);

impl Clock for Told {
    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn ingest_times_do_not_decrease_when_the_clock_does() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(Told(AtomicU64::new(0)));
    for (opening, now) in [5_000, 3_000, 9_000, 0].into_iter().enumerate() {
        clock.0.store(now, Ordering::Relaxed);
        let options = Options { clock: Arc::clone(&clock) as _, ..Options::default() };
        let (mut writer, _) = open(dir.path(), options).unwrap();
        writer.append(vec![request(opening as u64 * 2).prepare()]).unwrap();
        clock.0.fetch_sub(now / 2, Ordering::Relaxed);
        writer.append(vec![request(opening as u64 * 2 + 1).prepare()]).unwrap();
        writer.checkpoint().unwrap();
    }
    let (_writer, reader) = open(dir.path(), Options::default()).unwrap();
    let times = Held::read(&reader).times;
    assert_eq!(times, [5_000, 5_000, 5_000, 5_000, 5_000, 9_000, 9_000, 9_000, 9_000]);
    sound(dir.path());
}

/// What the children do after a failure, without a shim: a disk that refuses.
#[test]
fn a_checkpoint_that_cannot_be_put_in_place_stops_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open(dir.path(), Options::default()).unwrap();
    writer.append(vec![request(1).prepare()]).unwrap();
    let before = reader.checkpoint().unwrap();
    // A directory in the place of the new file.
    std::fs::create_dir(dir.path().join("checkpoint.new")).unwrap();
    let error = writer.checkpoint().unwrap_err();
    assert!(error.to_string().contains("checkpoint cannot be written"), "{error}");
    assert_eq!(writer.append(vec![request(2).prepare()]).unwrap_err().kind(), ErrorKind::Fatal);
    assert_eq!(writer.checkpoint().unwrap_err().kind(), ErrorKind::Fatal);
    assert_eq!(reader.checkpoint().unwrap(), before, "what was not put in place is not shown");
    drop((writer, reader));
    std::fs::remove_dir(dir.path().join("checkpoint.new")).unwrap();
    let (_writer, reader) = open(dir.path(), Options::default()).unwrap();
    assert_eq!(Held::read(&reader).records.len(), 4, "acknowledged before the failure");
}
