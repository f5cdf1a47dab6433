//! Forgeries in the name of an erasure, each of which verification finds.

use super::*;
use crate::verify::{Finding, Verdict, verify};

/// A log with one block of two records, of which one is about to be changed by
/// somebody who has the database but not the keys.
fn forged(change: impl FnOnce(&mut Edited, &Reader)) -> Finding {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = crate::open(dir.path(), crate::Options::default()).unwrap();
    writer.append_system(&SystemRecord::new("custody.test").with("text", "a secret")).unwrap();
    writer.checkpoint().unwrap();
    let content = reader.block_at(1).unwrap().unwrap().content.unwrap();
    let mut edited = Edited::new(&content);
    change(&mut edited, &reader);
    let shared = reader.shared();
    shared.db.put_cf(shared.cf(cf::BLOCKS), seq_key(1), edited.layout.encode()).unwrap();
    shared.db.put_cf(shared.cf(cf::PAYLOADS), seq_key(1), &edited.payload).unwrap();
    drop((writer, reader));
    match verify(dir.path(), &Default::default(), |_, _| ()).unwrap() {
        Verdict::Tampered(finding) => finding,
        Verdict::Sound(_) => panic!("it was taken for sound"),
    }
}

#[test]
fn a_frame_that_was_erased_for_no_reason_is_found() {
    let finding = forged(|edited, _| edited.erase(&[]));
    assert_eq!(finding.seq, 1);
    assert!(finding.reason.contains("nothing in it that may be"), "{}", finding.reason);
}

#[test]
fn a_sender_cannot_be_changed_under_the_name_of_an_erasure() {
    let finding = forged(|edited, _| {
        edited.erase(&[]);
        edited.layout.identity = "peer:10.9.9.9".into();
    });
    assert_eq!(finding.seq, 1);
    assert!(finding.reason.contains("not what its entry commits to"), "{}", finding.reason);
}

#[test]
fn a_resource_or_identity_that_a_record_needs_cannot_be_erased() {
    for part in [Layout::IDENTITY, 2, 3] {
        let finding = forged(|edited, _| {
            edited.erase(&[]);
            let Salts::Partly { parts, .. } = &mut edited.layout.salts else { panic!("it is whole") };
            parts[part - 1] = None;
        });
        assert!(finding.reason.contains("not in the format's layout"), "{}", finding.reason);
    }
}

#[test]
fn content_beside_what_was_erased_is_found() {
    let finding = forged(|edited, _| {
        edited.erase(&[]);
        edited.payload[0] = 7;
    });
    assert!(finding.reason.contains("in the place of something erased") || finding.reason.contains("frame"));
}

#[test]
fn a_frame_cannot_be_wiped_by_inventing_a_copy() {
    let finding = forged(|edited, _| {
        edited.erase(&[]);
        let range = custody_proto::scan::Range { at: 0, len: 0 };
        edited.layout.copies.push(crate::format::Copied { range, seq: 0 });
    });
    assert_eq!(finding.seq, 1);
    assert!(finding.reason.contains("not what its entry commits to"), "{}", finding.reason);
}

#[test]
fn a_block_that_keeps_no_record_keeps_nothing() {
    let finding = forged(|edited, _| edited.erase(&[0]));
    assert!(finding.reason.contains("not in the format's layout"), "{}", finding.reason);
}

/// Who has the database but not the keys adds a record behind the last checkpoint, and
/// removes the content of record 1.
fn tail(record: &SystemRecord) -> Finding {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = crate::open(dir.path(), crate::Options::default()).unwrap();
    writer.append_system(&SystemRecord::new("custody.test")).unwrap();
    writer.checkpoint().unwrap();
    writer.append_system(&SystemRecord::new("custody.test")).unwrap();
    writer.append_system(record).unwrap();
    let shared = reader.shared();
    for family in [cf::PAYLOADS, cf::BLOCKS] {
        shared.db.delete_cf(shared.cf(family), seq_key(1)).unwrap();
    }
    drop((writer, reader));
    match verify(dir.path(), &Default::default(), |_, _| ()).unwrap() {
        Verdict::Tampered(finding) => finding,
        Verdict::Sound(_) => panic!("it was taken for sound"),
    }
}

#[test]
fn an_erasure_that_no_key_signed_erases_nothing() {
    let finding = tail(&SystemRecord::new(event::ERASURE).with("custody.erasure.seqs", "1"));
    assert!(finding.reason.contains("not signed by the log's keys"), "{}", finding.reason);
}

#[test]
fn keys_that_a_record_behind_the_last_checkpoint_names_are_not_trusted() {
    let (victim, _) = crate::keys::SigningKeys::generate("example.com/victim").unwrap();
    let options = crate::verify::Options { keys: victim.verifiers(), ..Default::default() };
    // The forger's own log, whose last record names the victim's keys and is signed by his own.
    let dir = tempfile::tempdir().unwrap();
    let origin = Some("example.com/victim".to_owned());
    let (mut writer, reader) = crate::open(dir.path(), crate::Options { origin, ..Default::default() }).unwrap();
    let before = std::fs::read(dir.path().join("checkpoint")).unwrap();
    let (_, text) = crate::keys::SigningKeys::generate("example.com/victim").unwrap();
    let file = dir.path().join("victim.keys");
    std::fs::write(&file, text).unwrap();
    writer.rotate(&crate::KeySource::File(file), "", "").unwrap();
    let named = reader.keys();
    drop((writer, reader));
    std::fs::write(dir.path().join("checkpoint"), before).unwrap();
    let trusted = crate::verify::Options { keys: named, ..Default::default() };
    for options in [options, trusted] {
        let Verdict::Tampered(finding) = verify(dir.path(), &options, |_, _| ()).unwrap() else {
            panic!("it was taken for the victim's log");
        };
        assert!(finding.reason.contains("keys that you trust"), "{}", finding.reason);
    }
}
