//! Every parser of outside bytes, fed with what was right once and is changed at random.
//!
//! The seeds are the vectors in tests/data/log-v1. Nothing may panic, and nothing that was
//! changed may pass for what it was.

#[path = "../../tests/support/dice.rs"]
mod dice;

use std::path::PathBuf;

use custody_store::bundle::check_bundle;
use custody_store::cose::check_cose;
use custody_store::note::{Line, Note, VerifierKey};
use custody_store::policy::Policy;
use custody_store::proof::Proof;
use custody_store::system::{SeqSet, SystemRecord};
use custody_store::{Checkpoint, verify};

/// Rounds of each target in a normal run.
const ROUNDS: u64 = 1500;

fn vector(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/log-v1").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn keys() -> Vec<VerifierKey> {
    let text = String::from_utf8(vector("log.vkey")).unwrap();
    text.lines().map(|line| VerifierKey::parse(line).unwrap()).collect()
}

/// Runs a target over changed seeds; it is told whether one stayed as it was.
fn fuzz(seeds: &[Vec<u8>], mut target: impl FnMut(&[u8], bool)) {
    dice::fuzz(ROUNDS, seeds, |input, seed| target(input, input == seed));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn bundles() {
    let keys = keys();
    let small: Vec<u8> = vector("selective.custody");
    fuzz(&[small], |input, same| {
        let evidence = check_bundle(input, &keys, |_, _| ());
        if evidence.is_ok() && !same {
            // The last line is no part of what it signs: how its JSON is written is free, what it says is not.
            let seal = |bytes: &[u8]| {
                let text = text(bytes);
                let (rest, last) = text.trim_end().rsplit_once('\n').unwrap().to_owned();
                let note = serde_json::from_str::<serde_json::Value>(last).unwrap()["note"].clone();
                (rest.to_owned(), note)
            };
            assert_eq!(seal(input), seal(&vector("selective.custody")), "a changed bundle holds");
        }
    });
}

#[test]
fn proofs() {
    let keys = keys();
    let seeds = ["record-2.tlog-proof", "record-7.tlog-proof", "record-18.tlog-proof"].map(vector);
    fuzz(&seeds, |input, same| {
        if let Ok(proof) = Proof::parse(&text(input)) {
            // What is shown is no part of what the proof proves: it may be left out, but not be another.
            let holds = proof.check(&keys).is_ok();
            let sound = seeds.iter().filter_map(|seed| Proof::parse(&text(seed)).ok()).any(|seed| {
                let content = proof.shown.content.is_none() || proof.shown.content == seed.shown.content;
                content && proof.shown.entry == seed.shown.entry
            });
            assert!(!holds || same || sound, "a changed proof holds");
        }
    });
}

#[test]
fn notes_keys_checkpoints_and_policies() {
    let keys = keys();
    let proof = text(&vector("record-7.tlog-proof"));
    let note = proof.split_once("\n\n").unwrap().1.to_owned();
    let vkey = vector("log.vkey");
    let policy = format!("log {}\nwitness w {}\ngroup g 1 w\nquorum g\n", keys[0], keys[1]);
    fuzz(&[note.clone().into_bytes(), vkey, policy.into_bytes()], |input, _| {
        let input = text(input);
        if let Ok(read) = Note::parse(&input) {
            assert_eq!(Note::parse(&read.to_string()).unwrap(), read);
        }
        if let Ok(checkpoint) = Checkpoint::verify(&input, &keys) {
            assert_eq!(checkpoint, Checkpoint::verify(&note, &keys).unwrap(), "a changed checkpoint verifies");
        }
        let _ = Line::parse(&input);
        if let Ok(key) = VerifierKey::parse(input.lines().next().unwrap_or_default()) {
            assert_eq!(VerifierKey::parse(&key.to_string()).unwrap(), key);
        }
        let _ = Policy::parse(&input);
    });
}

#[test]
fn states_seqs_receipts_and_the_ledgers_own_records() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = custody_store::open(dir.path(), custody_store::Options::default()).unwrap();
    for n in 0..300u64 {
        writer.append_system(&SystemRecord::new("custody.test").with("n", n)).unwrap();
    }
    writer.checkpoint().unwrap();
    let mut state = String::new();
    verify::verify(dir.path(), &Default::default(), |s, _| state = s.to_text()).unwrap();
    let record = reader.block_at(0).unwrap().unwrap().content.unwrap().record(0).to_vec();
    let receipt = b"custody receipt v1\norigin o\nsubmitter 00\nfirst-seq 1\ncounter 0\nappended 4\n\n\xe2\x80\x94 o AAAAAAAAAAAA\n";
    fuzz(&[state.into_bytes(), record, b"7,9-12,40".to_vec(), receipt.to_vec()], |input, _| {
        let words = text(input);
        if let Ok(state) = verify::State::parse(&words) {
            assert!(state.size() < u64::MAX);
        }
        if let Some(set) = SeqSet::parse(&words) {
            assert_eq!(set.to_string(), words);
        }
        let _ = SystemRecord::decode(input);
        assert!(verify::verify_receipts(&reader, &words).is_ok_and(|verdict| verdict.records == 0));
    });
}

#[test]
fn cose_receipts() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = custody_store::open(dir.path(), custody_store::Options::default()).unwrap();
    let receipt = writer.cose_receipt(0).unwrap();
    let (entry, key) = (reader.shown(0, false).unwrap().entry, reader.keys()[0].clone());
    fuzz(&[receipt], |input, _| {
        if let Ok(proved) = check_cose(input, &entry, &key) {
            assert_eq!(proved, (0, 1), "a changed receipt proves another place");
        }
    });
}
