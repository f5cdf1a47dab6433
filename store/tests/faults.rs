//! Faults of process, disk and operating system: what was promised is kept, and
//! what cannot be kept is said.
//!
//! Children of this test append seeded streams under a shim (`faults/inject.c`)
//! that makes the n-th write boundary fail. A failure prints its seed:
//! `CUSTODY_FAULT_REPLAY=<seed>` runs it alone; `CUSTODY_SLOW_TESTS=1` runs 1,000.

#[path = "faults/check.rs"]
mod check;
#[path = "faults/child.rs"]
mod child;
#[path = "faults/damage.rs"]
mod damage;
#[path = "faults/deaths.rs"]
mod deaths;
#[path = "faults/inject.rs"]
mod inject;
#[path = "faults/power.rs"]
mod power;
#[path = "faults/stream.rs"]
mod stream;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use check::{Promised, check};
use inject::{Fault, counts, data, shim};
use stream::{Draws, Stream};

/// Not a test: what the other tests run under faults.
#[test]
fn child() {
    child::run();
}

const FAULTS: [&str; 9] = ["kill", "torn", "after", "cut", "eio", "eio-once", "enospc", "fsync-eio-once", "cut"];

/// The faults of a seed: one for each life. A dry run tells where they can be.
fn plan(shim: &Path, seed: u64, folder: &Path) -> Vec<Fault> {
    let dry = folder.join("dry");
    assert!(inject::child(shim, &dry, &format!("{seed} 0"), Fault::NONE, seed).ended, "seed {seed}");
    let counts = counts(&dry);
    let mut draws = Draws::new(!seed);
    let lives = 1 + draws.below(3);
    let fault = |life| {
        let name = FAULTS[(seed + 2 * life) as usize % FAULTS.len()];
        let range = if name == "fsync-eio-once" { counts.syncs } else { counts.boundaries };
        // Half of the later lives end while they recover.
        let range = if life > 0 && draws.below(2) == 0 { range.min(40) } else { range };
        Fault { name, at: 1 + draws.below(range) }
    };
    (0..lives).map(fault).collect()
}

/// Lives and dies over one directory; then the reckoning.
fn live(shim: &Path, seed: u64, folder: &Path, faults: &[Fault]) {
    let disk = folder.join("disk");
    let dir = data(&disk);
    let mut promised = Promised::default();
    for (life, fault) in (0..).zip(faults) {
        let said = inject::child(shim, &disk, &format!("{seed} {life}"), *fault, seed + life);
        promised.take(said, &dir);
    }
    check(&dir, &promised, &Stream::requests(seed, faults.len() as u64));
}

fn run_seed(shim: &Path, seed: u64) {
    let folder = tempfile::tempdir().unwrap();
    let faults = plan(shim, seed, folder.path());
    let lived = std::panic::catch_unwind(|| live(shim, seed, folder.path(), &faults));
    assert!(lived.is_ok(), "seed {seed} failed (CUSTODY_FAULT_REPLAY={seed}): {faults:?}");
}

/// The seeds to run: some, many, or one that failed.
fn seeds() -> std::ops::Range<u64> {
    let replay = std::env::var("CUSTODY_FAULT_REPLAY").ok().and_then(|s| s.parse::<u64>().ok());
    match (replay, std::env::var_os("CUSTODY_SLOW_TESTS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(_)) => 0..1000,
        (None, None) => 0..50,
    }
}

#[test]
fn whatever_fails_what_was_acknowledged_is_there_once_and_what_was_signed_stays() {
    let Some(shim) = shim() else { return };
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    std::thread::scope(|scope| {
        let work = || {
            while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|s| seeds.contains(s)) {
                run_seed(shim, seed);
            }
        };
        for _ in 0..2 {
            std::thread::Builder::new().name("seeds".into()).spawn_scoped(scope, work).unwrap();
        }
    });
}
