//! The witness against logs that behave and logs that do not.

use super::*;
use crate::keys::SigningKeys;
use crate::tree::{leaf_hash, subtree};
use proptest::prelude::*;

const NAME: &str = "w.example/1";
const ORIGIN: &str = "example.com/log";

/// A log in memory: `fork` makes other leaves from a size on.
struct Log {
    keys: SigningKeys,
    fork: Option<u64>,
}

impl Log {
    fn new() -> Self {
        Self { keys: SigningKeys::generate(ORIGIN).unwrap().0, fork: None }
    }

    fn leaves(&self, range: std::ops::Range<u64>) -> Vec<Hash> {
        let leaf = |i: u64| leaf_hash(&[if self.fork.is_some_and(|at| i >= at) { 255 } else { i as u8 }; 112]);
        range.map(leaf).collect()
    }

    fn note(&self, size: u64) -> Note {
        let root = subtree(&self.leaves(0..size));
        self.keys.sign_checkpoint(&Checkpoint { origin: ORIGIN.into(), size, root }, 7).unwrap()
    }

    /// RFC 6962, section 2.1.2, by its definition.
    fn proof(&self, old: u64, new: u64) -> Vec<Hash> {
        fn sub(m: u64, leaves: &[Hash], whole: bool) -> Vec<Hash> {
            let n = leaves.len() as u64;
            if m == n {
                return if whole { vec![] } else { vec![subtree(leaves)] };
            }
            let k = n.next_power_of_two() / 2;
            let (left, right) = leaves.split_at(k as usize);
            let (mut proof, last) =
                if m <= k { (sub(m, left, whole), subtree(right)) } else { (sub(m - k, right, false), subtree(left)) };
            proof.push(last);
            proof
        }
        if old == 0 { vec![] } else { sub(old, &self.leaves(0..new), true) }
    }

    fn submission(&self, old: u64, new: u64) -> Submission {
        let note = self.note(new);
        let checkpoint = Checkpoint::parse_text(&note.text).unwrap();
        Submission { old, proof: self.proof(old.min(new), new), note, checkpoint }
    }

    fn body(&self, old: u64, new: u64) -> String {
        self.submission(old, new).to_string()
    }
}

fn witness(dir: &Path, log: &Log) -> Witness {
    Witness::open(dir, NAME, None, log.keys.verifiers()).unwrap()
}

fn evidence(dir: &Path) -> usize {
    fs::read_dir(dir.join("evidence")).unwrap().count()
}

#[test]
fn a_log_that_grows_is_cosigned_by_both_keys_and_remembered_over_restarts() {
    let (dir, log) = (tempfile::tempdir().unwrap(), Log::new());
    let mut keys = vec![];
    for (old, new) in [(0, 0), (0, 1), (1, 1), (1, 5), (5, 8), (8, 77)] {
        let witness = witness(dir.path(), &log);
        if keys.is_empty() {
            keys = witness.verifiers();
        }
        assert_eq!(witness.verifiers(), keys, "made once");
        assert!(Witness::open(dir.path(), NAME, None, vec![]).is_err(), "one witness at a time");
        let answer = witness.add_checkpoint(&log.body(old, new), 1000 + new).unwrap();
        let mut note = log.note(new);
        note.merge(answer.lines().map(|line| Line::parse(line).unwrap()));
        assert_eq!(keys.len(), 2);
        for key in &keys {
            assert_eq!(key.find(&note).unwrap().unwrap().time, Some(1000 + new));
        }
        let newest = Note::parse(&witness.newest(&sha256_hex(ORIGIN.as_bytes())).unwrap()).unwrap();
        assert_eq!((newest.lines.len(), newest.signed_by(&keys).len()), (4, 2));
        assert_eq!(witness.logs(), [(ORIGIN.to_owned(), new)]);
    }
    assert_eq!(evidence(dir.path()), 0);
}

#[test]
fn every_refusal_of_the_specification() {
    let (dir, mut log) = (tempfile::tempdir().unwrap(), Log::new());
    let witness = witness(dir.path(), &log);
    let refuse = |body: &str| witness.add_checkpoint(body, 9).unwrap_err();
    assert_eq!(refuse(&log.body(3, 5)), Refusal::OtherSize(0));
    witness.add_checkpoint(&log.body(0, 5), 9).unwrap();
    assert_eq!(refuse(&log.body(0, 8)), Refusal::OtherSize(5));
    assert_eq!(refuse(&log.body(4, 8)).status(), 409);
    assert_eq!(refuse(&log.body(3, 4)), Refusal::OtherSize(5), "rolled back");
    assert_eq!(refuse(&log.body(9, 8)).status(), 400);
    let others = Log::new();
    assert_eq!(refuse(&others.body(5, 8)), Refusal::NotSigned(ORIGIN.into()));
    let elsewhere = log.body(5, 8).replacen(ORIGIN, "example.com/other", 1);
    assert_eq!(refuse(&elsewhere).status(), 404);
    assert_eq!(evidence(dir.path()), 0);
    let mut unproven = log.submission(5, 8);
    unproven.proof.pop();
    assert_eq!(refuse(&unproven.to_string()).status(), 422);
    log.fork = Some(3);
    assert_eq!(refuse(&log.body(5, 5)), Refusal::OtherRoot(5));
    assert_eq!(refuse(&log.body(0, 5)), Refusal::OtherRoot(5), "a fork, whatever the old size");
    assert_eq!(refuse(&log.body(5, 9)).status(), 422);
    assert_eq!(evidence(dir.path()), 3, "the fork once, and two proofs");
    log.fork = None;
    witness.add_checkpoint(&log.body(5, 9), 9).unwrap();
}

#[test]
fn an_empty_tree_has_one_root_and_no_proof() {
    let (dir, log) = (tempfile::tempdir().unwrap(), Log::new());
    let witness = witness(dir.path(), &log);
    let false_root = Checkpoint { origin: ORIGIN.into(), size: 0, root: [1; 32] };
    let note = log.keys.sign_checkpoint(&false_root, 7).unwrap();
    assert_eq!(witness.add_checkpoint(&format!("old 0\n\n{note}"), 9), Err(Refusal::OtherRoot(0)));
    let with_proof = Submission { proof: vec![[1; 32]], ..log.submission(0, 5) };
    assert_eq!(witness.add_checkpoint(&with_proof.to_string(), 9).unwrap_err().status(), 422);
}

#[test]
fn one_trusted_signature_is_enough_and_unknown_or_false_ones_are_not_kept() {
    let (dir, log) = (tempfile::tempdir().unwrap(), Log::new());
    let witness = witness(dir.path(), &log);
    let mut submission = log.submission(0, 5);
    submission.note.lines[1].signature[9] ^= 1;
    submission.note.merge(Log::new().note(5).lines);
    witness.add_checkpoint(&submission.to_string(), 9).unwrap();
    let kept = Note::parse(&witness.newest(&sha256_hex(ORIGIN.as_bytes())).unwrap()).unwrap();
    assert_eq!(kept.lines.len(), 3, "one of the log, two of ours");
    submission.note.lines[0].signature[9] ^= 1;
    assert_eq!(witness.add_checkpoint(&submission.to_string(), 9).unwrap_err().status(), 403);
}

#[test]
fn after_a_failed_write_nothing_is_cosigned_until_a_restart() {
    let (dir, log) = (tempfile::tempdir().unwrap(), Log::new());
    let first = witness(dir.path(), &log);
    first.add_checkpoint(&log.body(0, 5), 9).unwrap();
    // The new file cannot be made where a directory is.
    let blocked = dir.path().join("logs").join(file_of(ORIGIN)).with_extension("new");
    fs::create_dir(&blocked).unwrap();
    assert_eq!(first.add_checkpoint(&log.body(5, 8), 9).unwrap_err().status(), 503);
    fs::remove_dir(&blocked).unwrap();
    assert_eq!(first.add_checkpoint(&log.body(5, 8), 9).unwrap_err().status(), 503);
    drop(first);
    witness(dir.path(), &log).add_checkpoint(&log.body(5, 8), 9).unwrap();
}

#[test]
fn damaged_or_keyless_state_is_not_taken_for_a_new_one() {
    let (dir, log) = (tempfile::tempdir().unwrap(), Log::new());
    witness(dir.path(), &log).add_checkpoint(&log.body(0, 5), 9).unwrap();
    let path = dir.path().join("logs").join(file_of(ORIGIN));
    let good = fs::read_to_string(&path).unwrap();
    let open = || Witness::open(dir.path(), NAME, None, log.keys.verifiers()).map(drop);
    for bad in ["", "text", &good[..good.len() / 2], &good.replacen("\n5\n", "\n4\n", 1)] {
        fs::write(&path, bad).unwrap();
        assert!(open().unwrap_err().to_string().contains("backup"), "{bad:?}");
    }
    fs::write(&path, good).unwrap();
    fs::remove_file(dir.path().join("keys/witness.key")).unwrap();
    assert!(open().unwrap_err().to_string().contains("put the key back"));
}

#[test]
fn of_submissions_at_the_same_time_one_wins_and_nothing_is_rolled_back() {
    let (dir, log) = (tempfile::tempdir().unwrap(), Log::new());
    let witness = witness(dir.path(), &log);
    for _ in 0..3 {
        let old = witness.logs()[0].1;
        let bodies: Vec<String> = (1..9).map(|more| log.body(old, old + more)).collect();
        let cosigned = std::thread::scope(|scope| {
            let witness = &witness;
            let all: Vec<_> = bodies.iter().map(|body| scope.spawn(|| witness.add_checkpoint(body, 9))).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).filter(Result::is_ok).count()
        });
        assert_eq!(cosigned, 1);
        assert!(witness.logs()[0].1 > old);
    }
}

#[test]
fn evidence_is_bounded_by_kind() {
    let (dir, mut log) = (tempfile::tempdir().unwrap(), Log::new());
    let witness = witness(dir.path(), &log);
    witness.add_checkpoint(&log.body(0, 5), 9).unwrap();
    for size in 6..(8 + EVIDENCE_MAX as u64) {
        let unproven = Submission { proof: vec![], ..log.submission(5, size) };
        assert_eq!(witness.add_checkpoint(&unproven.to_string(), 9).unwrap_err().status(), 422);
    }
    log.fork = Some(2);
    witness.add_checkpoint(&log.body(5, 5), 9).unwrap_err();
    assert_eq!(evidence(dir.path()), EVIDENCE_MAX + 1, "a fork has its own place");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn only_what_extends_the_cosigned_tree_is_cosigned(steps in proptest::collection::vec((0u64..40, 0u64..40, 0u64..40), 1..10)) {
        let (dir, mut log) = (tempfile::tempdir().unwrap(), Log::new());
        let witness = witness(dir.path(), &log);
        let mut held = 0;
        for (old, new, fork) in steps {
            log.fork = (fork < 20).then_some(fork);
            // A fork behind what is cosigned changes nothing that this witness has seen: it extends the tree.
            let extends = old == held && new >= held && log.fork.is_none_or(|at| at >= held);
            let answer = witness.add_checkpoint(&log.body(old, new), 9);
            prop_assert_eq!(answer.is_ok(), extends, "{} {} {} {:?} {:?}", held, old, new, log.fork, answer);
            if extends {
                // From here on the fork is the log itself to this witness.
                if log.fork.is_some_and(|at| at < new) { return Ok(()); }
                held = new;
            }
        }
    }

    #[test]
    fn submissions_survive_the_round_trip(old in 0u64..30, more in 0u64..30) {
        let submission = Log::new().submission(old, old + more);
        prop_assert_eq!(Submission::parse(&submission.to_string()).unwrap(), submission);
    }

    #[test]
    fn hostile_bodies_are_refused_without_a_panic(
        old in "(old )?[0-9+]{0,22}", proof in "([A-Za-z0-9+/]{43}=\n){0,66}|\\PC{0,40}", text in "\\PC{0,40}|example.com/log\n[0-9]{1,20}\n[A-Za-z0-9+/]{43}=\n",
        size: u64, root: [u8; 32], old_size: u64, hashes in proptest::collection::vec(any::<[u8; 32]>(), 0..64),
    ) {
        let (dir, log) = (tempfile::tempdir().unwrap(), Log::new());
        let witness = witness(dir.path(), &log);
        let body = format!("{old}\n{proof}\n{text}\n\u{2014} example.com/log AAAAAAAA\n");
        prop_assert!(witness.add_checkpoint(&body, 9).is_err());
        witness.add_checkpoint(&log.body(0, 5), 9).unwrap();
        let note = log.keys.sign_checkpoint(&Checkpoint { origin: ORIGIN.into(), size, root }, 7).unwrap();
        let checkpoint = Checkpoint::parse_text(&note.text).unwrap();
        for old in [old_size, 5, size] {
            let hostile = Submission { old, proof: hashes.clone(), note: note.clone(), checkpoint: checkpoint.clone() };
            prop_assert!(witness.add_checkpoint(&hostile.to_string(), 9).is_err());
        }
    }
}
