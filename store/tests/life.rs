//! What happens to a log over its years: content erased, keys changed, clocks gone
//! wrong, backups restored. The log verifies through all of it.

#[path = "life/large.rs"]
mod large;
#[path = "life/parts.rs"]
mod parts;
mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use custody_store::bundle::{Export, check_bundle, seal_line};
use custody_store::proof::Proof;
use custody_store::system::{SeqSet, event};
use custody_store::verify::{self, Summary, Verdict, verify};
use custody_store::{
    Cause, Clock, Durability, Erased, Erasure, ErrorKind, Hold, KeySource, Options, Reader, Writer, backup, open,
};
use proptest::prelude::*;
use support::{logs, open_log, span, traces};

fn sound(dir: &Path) -> Summary {
    match verify(dir, &verify::Options::default(), |_, _| ()).unwrap() {
        Verdict::Sound(summary) => *summary,
        Verdict::Tampered(finding) => panic!("seq {}: {}", finding.seq, finding.reason),
    }
}

fn erasure(seqs: &str) -> Erasure {
    Erasure {
        seqs: SeqSet::parse(seqs).unwrap(),
        cause: Cause::Erasure,
        reason: "a request under article 17".into(),
        actor: "privacy@example.com".into(),
        identity: "uid:1000".into(),
    }
}

fn erase(writer: &mut Writer, seqs: &str) -> Erased {
    let erased = writer.erase(&erasure(seqs)).unwrap();
    writer.reader().purge().unwrap();
    writer.checkpoint().unwrap();
    erased
}

/// Whether any file below a directory holds these bytes.
fn is_on_disk(dir: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return is_on_disk(&path, needle);
        }
        std::fs::read(&path).unwrap().windows(needle.len()).any(|w| w == needle)
    })
}

/// Opens a log that does not compress, so that what is in its files can be found there.
fn open_plain(dir: &Path) -> (Writer, Reader) {
    open(dir, Options { compression: false, ..Options::default() }).unwrap()
}

/// A text of its own for each number.
fn marker(n: u64) -> String {
    let noise = |i: u64| (n * 7919 + i * 104_729).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    (0..40).map(|i| letters[noise(i) as usize] as char).collect()
}

#[test]
fn an_erased_record_is_in_no_file_and_its_neighbours_are_proved_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open_plain(dir.path());
    let spans = (1..=6).map(|n| span(n, &marker(n))).collect();
    writer.append(vec![traces(spans), logs(&[&marker(7), &marker(8)])]).unwrap();
    writer.checkpoint().unwrap();
    let before = reader.proof(2, true).unwrap();
    assert!(is_on_disk(dir.path(), marker(3).as_bytes()), "the marker is found before");
    let erased = erase(&mut writer, "3,7");
    assert_eq!((erased.records, erased.before, erased.said_by.len()), (2, 0, 1));
    for n in [3, 7] {
        assert!(!is_on_disk(dir.path(), marker(n).as_bytes()), "marker {n} is still in a file");
    }
    for n in [1, 2, 4, 5, 6, 8] {
        assert!(is_on_disk(dir.path(), marker(n).as_bytes()), "marker {n} is gone");
    }
    // The proof that somebody made before still holds, content and all.
    before.check(&reader.keys()).unwrap();
    let after = reader.proof(4, true).unwrap();
    after.check(&reader.keys()).unwrap();
    assert_eq!(reader.proof(3, true).unwrap().shown.content, None);
    let there: Vec<bool> = reader.record_lengths(1).unwrap().unwrap().iter().map(Option::is_some).collect();
    assert_eq!(there, [true, true, false, true, true, true]);
    drop((writer, reader));
    let summary = sound(dir.path());
    assert_eq!((summary.erased, summary.records), (2, 10));
    open_plain(dir.path());
}

#[test]
fn copies_of_an_erased_record_in_later_requests_go_too() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open_plain(dir.path());
    let [a, b, c] = [1, 2, 3].map(|n| span(n, &marker(n)));
    writer.append(vec![traces(vec![a.clone(), b.clone()])]).unwrap();
    // Retries in other company, in one batch and in another, and twice in one request.
    writer.append(vec![traces(vec![a.clone(), c.clone()]), traces(vec![span(4, "x"), b.clone(), a.clone()])]).unwrap();
    writer.append(vec![traces(vec![span(5, "y"), a.clone(), a.clone()])]).unwrap();
    assert_eq!(reader.head().size, 6);
    drop((writer, reader));
    assert_eq!(sound(dir.path()).erased, 0);
    let (mut writer, reader) = open_plain(dir.path());
    erase(&mut writer, "1");
    assert!(!is_on_disk(dir.path(), marker(1).as_bytes()), "a copy of the record is still there");
    assert!(is_on_disk(dir.path(), marker(2).as_bytes()));
    // Sent again, it cannot be recognised: it is appended as a record of its own.
    let receipts = writer.append(vec![traces(vec![a])]).unwrap();
    assert_eq!((receipts[0].appended, receipts[0].conflicts), (1, 0));
    erase(&mut writer, "2-5");
    drop((writer, reader));
    assert_eq!(sound(dir.path()).erased, 5);
}

#[test]
fn what_must_not_be_erased_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open_log(dir.path());
    writer.append(vec![logs(&["a", "b", "c", "d"])]).unwrap();
    let refused = |writer: &mut Writer, seqs: &str, words: &str| {
        let error = writer.erase(&erasure(seqs)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(&mut writer, "0", "record 0 is the ledger's own");
    refused(&mut writer, "2-9", "there is no record 9");
    let hold = Hold { id: "case 7".into(), seqs: SeqSet::parse("2-3").unwrap(), reason: "suit".into(), placed_by: 0 };
    let placed = writer.hold(&hold, true, "counsel", "uid:1").unwrap();
    assert!(writer.hold(&hold, true, "counsel", "uid:1").is_err());
    refused(&mut writer, "1-2", "record 2 is under the legal hold \"case 7\" (suit)");
    assert_eq!(reader.holds().unwrap(), [Hold { placed_by: placed, ..hold.clone() }]);
    // Retention leaves out what is held and what is the ledger's own, and says nothing of it.
    let old = Erasure { cause: Cause::Retention, seqs: SeqSet::parse("0-5").unwrap(), ..erasure("1") };
    assert_eq!(writer.erase(&old).unwrap().records, 2);
    writer.hold(&hold, false, "counsel", "uid:1").unwrap();
    assert_eq!(erase(&mut writer, "1-4").records, 2);
    assert_eq!(erase(&mut writer, "1-4"), Erased { before: 4, ..Erased::default() });
    drop((writer, reader));
    assert_eq!(sound(dir.path()).erased, 4);
}

#[test]
fn a_gap_that_no_record_explains_is_missing_not_erased() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open_log(dir.path());
    writer.append(vec![logs(&["a", "b"]), logs(&["c"])]).unwrap();
    erase(&mut writer, "1");
    drop((writer, reader));
    let db = rocksdb::DB::open_cf(&rocksdb::Options::default(), dir.path().join("log"), custody_store::format::cf::ALL)
        .unwrap();
    for family in ["payloads", "blocks"] {
        db.delete_cf(db.cf_handle(family).unwrap(), 3u64.to_be_bytes()).unwrap();
    }
    drop(db);
    let Verdict::Tampered(finding) = verify(dir.path(), &Default::default(), |_, _| ()).unwrap() else {
        panic!("a missing record was taken for an erased one");
    };
    assert_eq!(finding.seq, 3);
    assert!(finding.reason.contains("no record says that it was erased"), "{}", finding.reason);
}

#[test]
fn keys_change_and_every_checkpoint_is_by_the_keys_of_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open_log(dir.path());
    writer.append(vec![logs(&["a"])]).unwrap();
    writer.checkpoint().unwrap();
    let (first, old_note) = (reader.keys(), reader.checkpoint().unwrap().unwrap());
    let old_proof = reader.proof(1, true).unwrap();
    let seq = writer.rotate(&KeySource::Directory, "yearly", "ops").unwrap();
    assert_ne!(reader.keys(), first);
    let both = reader.checkpoint().unwrap().unwrap();
    for keys in [&first, &reader.keys()] {
        custody_store::Checkpoint::verify(&both, keys).unwrap();
    }
    writer.append(vec![logs(&["b"])]).unwrap();
    writer.checkpoint().unwrap();
    assert!(custody_store::Checkpoint::verify(&reader.checkpoint().unwrap().unwrap(), &first).is_err());
    old_proof.check(&first).unwrap();
    let second = reader.keys();
    drop((writer, reader));
    let options = verify::Options { trusted: Some(old_note), keys: first.clone(), ..Default::default() };
    let Verdict::Sound(summary) = verify(dir.path(), &options, |_, _| ()).unwrap() else { panic!("not sound") };
    assert_eq!(summary.checkpoints, 2);
    let (_, reader) = open_log(dir.path());
    assert_eq!(reader.keys(), second);
    let records = reader.system_records(&[event::KEYS]).unwrap();
    assert_eq!((records.len(), records[0].0), (1, seq));
}

#[test]
fn a_rotation_that_a_crash_broke_off_is_finished_or_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, reader) = open_log(dir.path());
    let before = reader.keys();
    // A crash before the record: the new file is there, the log names the old keys.
    let (other, text) = custody_store::keys::SigningKeys::generate("example.com/test").unwrap();
    drop((writer, reader));
    custody_store::keys::write_secret(&dir.path().join("keys/log.key.next"), text.as_bytes()).unwrap();
    let (mut writer, reader) = open_log(dir.path());
    assert_eq!(reader.keys(), before);
    assert!(!dir.path().join("keys/log.key.next").exists());
    // A crash after it: the file was not yet renamed.
    let old = std::fs::read(dir.path().join("keys/log.key")).unwrap();
    let vkeys = std::fs::read(dir.path().join("log.vkey")).unwrap();
    let note = std::fs::read(dir.path().join("checkpoint")).unwrap();
    writer.rotate(&KeySource::Directory, "", "").unwrap();
    let after = reader.keys();
    drop((writer, reader));
    std::fs::rename(dir.path().join("keys/log.key"), dir.path().join("keys/log.key.next")).unwrap();
    std::fs::write(dir.path().join("keys/log.key"), old).unwrap();
    std::fs::write(dir.path().join("log.vkey"), vkeys).unwrap();
    std::fs::write(dir.path().join("checkpoint"), note).unwrap();
    let (writer, reader) = open_log(dir.path());
    assert_eq!(reader.keys(), after);
    drop((writer, reader));
    sound(dir.path());
    // Other keys than those that the log names are refused.
    std::fs::write(dir.path().join("keys/log.key"), text).unwrap();
    assert_ne!(other.verifiers(), after);
    let error = open(dir.path(), Options::default()).err().unwrap();
    assert!(error.to_string().contains("not those that the log names"), "{error}");
}

#[test]
fn a_bundle_proves_its_records_and_nothing_of_their_neighbours() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open_log(dir.path());
    writer.append(vec![traces((1..=5).map(|n| span(n, &marker(n))).collect())]).unwrap();
    erase(&mut writer, "4");
    let bundle = |writer: &mut Writer, seqs: SeqSet| {
        let export = Export {
            seqs,
            query: "by hand".into(),
            reason: "a test".into(),
            identity: "uid:1".into(),
            attached: serde_json::Value::Null,
        };
        let exporting = writer.export(export).unwrap();
        let mut out = Vec::new();
        let (lines, digest) = writer.reader().clone().write_bundle(&exporting, &mut out).unwrap();
        out.extend(seal_line(&writer.sign_bundle(lines, &digest).unwrap()).bytes());
        String::from_utf8(out).unwrap()
    };
    let text = bundle(&mut writer, SeqSet::parse("2,4").unwrap());
    let mut seen = Vec::new();
    let evidence = check_bundle(text.as_bytes(), &reader.keys(), |entry, _| seen.push(entry.seq)).unwrap();
    assert_eq!((evidence.verified, evidence.erased, seen), (1, 1, vec![2, 4]));
    let decoded = |n| marker(n);
    let is_told = |n: u64| {
        use base64::Engine as _;
        let records = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let contents = records.filter_map(|json| json["content"]["record"][0].as_str().map(str::to_owned));
        contents
            .filter_map(|c| base64::engine::general_purpose::STANDARD.decode(c).ok())
            .any(|bytes| bytes.windows(40).any(|w| w == decoded(n).as_bytes()))
    };
    assert_eq!((1..=5).filter(|n| is_told(*n)).collect::<Vec<_>>(), [2]);
    // The whole log: chain and tree.
    let all = bundle(&mut writer, SeqSet::of(std::iter::once(0..reader.head().size)));
    let evidence = check_bundle(all.as_bytes(), &[], |_, _| ()).unwrap();
    assert!(evidence.complete);
    let lines: Vec<&str> = all.lines().collect();
    for at in 0..lines.len() {
        let mut cut = lines.clone();
        cut.remove(at);
        assert!(check_bundle(cut.join("\n").as_bytes(), &[], |_, _| ()).is_err(), "line {at} is not missed");
    }
}

/// A clock that the test sets: wall and monotonic time.
#[derive(Default)]
struct Hands(AtomicU64, AtomicU64);

impl Hands {
    fn turn(&self, wall: i64, monotonic: u64) {
        self.0.store(self.0.load(Ordering::SeqCst).wrapping_add_signed(wall), Ordering::SeqCst);
        self.1.fetch_add(monotonic, Ordering::SeqCst);
    }
}

impl Clock for Hands {
    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> u64 {
        self.1.load(Ordering::SeqCst)
    }
}

#[test]
fn a_clock_that_goes_back_or_jumps_is_in_the_log_and_times_never_fall() {
    const SECOND: u64 = 1_000_000_000;
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(Hands(AtomicU64::new(1_700_000_000 * SECOND), AtomicU64::new(0)));
    let options = || Options { clock: Arc::clone(&clock) as Arc<dyn Clock>, ..Options::default() };
    let (mut writer, reader) = open(dir.path(), options()).unwrap();
    let jumps = |reader: &Reader| reader.system_records(&[event::CLOCK]).unwrap().len();
    writer.append(vec![logs(&["a"])]).unwrap();
    clock.turn(60 * SECOND as i64, 60 * SECOND);
    writer.append(vec![logs(&["b"])]).unwrap();
    assert_eq!(jumps(&reader), 0, "a minute passed on both");
    clock.turn(-3600 * SECOND as i64, SECOND);
    writer.append(vec![logs(&["c"])]).unwrap();
    assert_eq!(jumps(&reader), 1, "an hour back");
    clock.turn(7200 * SECOND as i64, SECOND);
    writer.append(vec![logs(&["d"])]).unwrap();
    assert_eq!(jumps(&reader), 2, "two hours on");
    drop((writer, reader));
    clock.turn(-86_400 * SECOND as i64, SECOND);
    let (mut writer, reader) = open(dir.path(), options()).unwrap();
    writer.append(vec![logs(&["e"])]).unwrap();
    assert_eq!(jumps(&reader), 3, "a day back between two runs");
    let times: Vec<u64> =
        (0..reader.head().size).map(|seq| reader.commitments_at(seq).unwrap().unwrap().ingest_time).collect();
    assert!(times.is_sorted());
    drop((writer, reader));
    // The newest records have no checkpoint yet, which is no defect.
    assert_eq!(sound(dir.path()).unsigned, 2);
}

#[test]
fn the_durability_level_in_force_is_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let reopen = |durability| open(dir.path(), Options { durability, ..Options::default() }).unwrap();
    let level = |reader: &Reader| {
        let records = reader.system_records(&[event::GENESIS, event::DURABILITY]).unwrap();
        records.iter().map(|(_, r)| r.text("custody.log.durability").unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (durability, said) in [
        (Durability::Fsync, vec!["fsync"]),
        (Durability::Os, vec!["fsync", "os"]),
        (Durability::Os, vec!["fsync", "os"]),
        (Durability::Fsync, vec!["fsync", "os", "fsync"]),
    ] {
        let (mut writer, reader) = reopen(durability);
        assert_eq!(level(&reader), said);
        writer.append(vec![logs(&["a"])]).unwrap();
        writer.checkpoint().unwrap();
    }
    sound(dir.path());
}

#[test]
fn a_backup_restores_to_a_log_that_verifies_and_goes_on() {
    let (dir, backups) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut writer, reader) = open_log(dir.path());
    writer.append(vec![logs(&["a", "b"])]).unwrap();
    writer.checkpoint().unwrap();
    let first = reader.backup(backups.path(), false, None).unwrap();
    writer.append(vec![logs(&["c"])]).unwrap();
    writer.checkpoint().unwrap();
    let second = reader.backup(backups.path(), true, None).unwrap();
    assert_eq!(backup::list(backups.path()).unwrap().len(), 2);
    let target = tempfile::tempdir().unwrap();
    let place = |name: &str| target.path().join(name);
    assert_eq!(backup::restore(backups.path(), Some(first.id), &place("a")).unwrap(), first.id);
    assert_eq!(sound(&place("a")).records, 3);
    // Without its keys a log can be read and verified, but nothing is signed in its name.
    let go_on = || Options { after_restore: true, ..Options::default() };
    let error = open(&place("a"), go_on()).err().unwrap();
    assert!(error.to_string().contains("keys/log.key is missing"), "{error}");
    assert_eq!(backup::restore(backups.path(), None, &place("b")).unwrap(), second.id);
    assert_eq!(Reader::open(&place("b")).unwrap().head(), reader.head());
    let error = open(&place("b"), Options::default()).err().unwrap();
    assert!(error.to_string().contains("--after-restore"), "{error}");
    let (mut writer, restored) = open(&place("b"), go_on()).unwrap();
    assert_eq!(restored.system_records(&[event::RESTORE]).unwrap().len(), 1);
    writer.append(vec![logs(&["d"])]).unwrap();
    writer.checkpoint().unwrap();
    assert!(backup::restore(backups.path(), None, &place("b")).is_err(), "a directory in use is not overwritten");
    reader.backup(backups.path(), false, Some(1)).unwrap();
    assert_eq!(backup::list(backups.path()).unwrap().len(), 1);
    assert!(!backups.path().join(first.id.to_string()).exists());
}

#[test]
fn a_verification_goes_on_where_an_earlier_one_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open_log(dir.path());
    for n in 0..40u64 {
        writer.append(vec![logs(&[&marker(n), "x", "y"])]).unwrap();
    }
    erase(&mut writer, "5,9-12");
    let mut states = Vec::new();
    let all = verify(dir.path(), &Default::default(), |state, _| states.push(state.to_text())).unwrap();
    let Verdict::Sound(all) = all else { panic!("not sound") };
    let state = verify::State::parse(states.last().unwrap()).unwrap();
    assert_eq!(state.size(), reader.head().size);
    writer.append(vec![logs(&["more"])]).unwrap();
    erase(&mut writer, "30");
    let again = |state| verify(dir.path(), &verify::Options { state: Some(state), ..Default::default() }, |_, _| ());
    // What is erased since, behind the state, is gone and said to be.
    let Verdict::Sound(resumed) = again(state).unwrap() else { panic!("not sound") };
    assert_eq!(resumed.erased, 6);
    writer.append(vec![logs(&["more and more"])]).unwrap();
    writer.checkpoint().unwrap();
    let Verdict::Sound(fresh) = verify(dir.path(), &Default::default(), |s, _| states.push(s.to_text())).unwrap()
    else {
        panic!("not sound")
    };
    writer.append(vec![logs(&["the last"])]).unwrap();
    writer.checkpoint().unwrap();
    let state = verify::State::parse(states.last().unwrap()).unwrap();
    let Verdict::Sound(resumed) = again(state).unwrap() else { panic!("not sound") };
    assert_eq!(resumed.records, fresh.records + 1);
    assert_eq!((resumed.erased, all.erased), (6, 5));
    assert!(verify::State::parse(&states[0][..states[0].len() / 2]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Any records, erased in any order: as many gaps as erasures, all else proved.
    #[test]
    fn any_erasures_leave_a_log_that_verifies(
        sizes in proptest::collection::vec(1usize..6, 1..6),
        picks in proptest::collection::vec((0usize..30, 1usize..4), 0..6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, reader) = open_plain(dir.path());
        let mut n = 0;
        for size in &sizes {
            let spans = (0..*size).map(|_| { n += 1; span(n, &marker(n)) }).collect();
            writer.append(vec![traces(spans)]).unwrap();
        }
        let mut gone = SeqSet::default();
        for (at, len) in picks {
            let first = 1 + at as u64 % n;
            let set = SeqSet::of(std::iter::once(first..(first + len as u64).min(n + 1)));
            writer.erase(&erasure(&set.to_string())).unwrap();
            gone = gone.union(&set);
        }
        reader.purge().unwrap();
        writer.checkpoint().unwrap();
        for seq in 1..=n {
            let proof = reader.proof(seq, true).unwrap();
            proof.check(&reader.keys()).unwrap();
            prop_assert_eq!(proof.shown.content.is_none(), gone.contains(seq));
            prop_assert_eq!(Proof::parse(&proof.to_string()).unwrap(), proof);
            prop_assert_eq!(is_on_disk(dir.path(), marker(seq).as_bytes()), !gone.contains(seq));
        }
        drop((writer, reader));
        prop_assert_eq!(sound(dir.path()).erased, gone.count());
    }
}

#[test]
fn a_hundred_versions_of_one_span_are_kept_found_and_erased() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open_plain(dir.path());
    for n in 0..100u64 {
        let mut version = span(1, "v");
        version.name = format!("version {n} {}", marker(n));
        writer.append(vec![traces(vec![version])]).unwrap();
    }
    let trace: [u8; 16] = span(1, "v").trace_id.try_into().unwrap();
    assert_eq!(reader.trace(&trace).unwrap(), (1..=100).collect::<Vec<_>>());
    let flagged = (1..=100).filter(|seq| reader.commitments_at(*seq).unwrap().unwrap().flags[0] & 1 == 1).count();
    assert_eq!(flagged, 99, "all but the first are flagged");
    let mut again = span(1, "v");
    again.name = format!("version 7 {}", marker(7));
    assert_eq!(writer.append(vec![traces(vec![again])]).unwrap()[0].duplicates, 1);
    erase(&mut writer, "5,90-95");
    assert_eq!(reader.trace(&trace).unwrap().len(), 93);
    drop((writer, reader));
    assert_eq!(sound(dir.path()).erased, 7);
}

#[test]
fn a_receipt_of_a_mere_retry_is_of_the_records_that_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open_log(dir.path());
    writer.append(vec![traces(vec![span(1, "a"), span(2, "b")])]).unwrap();
    // The same spans in another order are no new request of another sender's.
    let retry = traces(vec![span(2, "b"), span(1, "a")]).with_receipt(true);
    let receipts = writer.append(vec![retry, traces(vec![span(3, "c")])]).unwrap();
    let note = receipts[0].signed.clone().unwrap().unwrap();
    assert!(note.contains("first-seq 2\ncounter 1\nappended 0\nduplicates 2\n"), "{note}");
    writer.checkpoint().unwrap();
    let verdict = verify::verify_receipts(&reader, &note).unwrap();
    assert_eq!((verdict.receipts, verdict.wrong), (1, vec![]));
}
