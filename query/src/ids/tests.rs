//! The index against looking through the rows: in memory, in files, merged, erased, damaged.

use custody_store::system::SeqSet;
use custody_store::{Options, Writer, open};

use super::{Finder, Kind, Role, Run};
use crate::event::EventRow;
use crate::lookup::RECORDS_MAX;
use crate::projection::{AsOf, Projection, Snapshot};
use crate::replay::{self, Named};
use crate::rows::Time;
use crate::segments::{SegmentLimits, Table, Wanted, test_requests::append};

struct Log {
    dir: tempfile::TempDir,
    writer: Writer,
    reader: custody_store::Reader,
}

impl Log {
    fn new(requests: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, reader) = open(dir.path(), Options::default()).unwrap();
        append(&mut writer, 0..requests);
        Self { dir, writer, reader }
    }

    fn projection(&self) -> Projection {
        let projection = Projection::open_own(self.reader.clone(), SegmentLimits::default()).unwrap();
        while projection.step().unwrap() {}
        projection
    }

    fn files(&self) -> Vec<std::path::PathBuf> {
        let mut files: Vec<_> =
            std::fs::read_dir(self.dir.path().join("index")).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        files
    }
}

/// What the rows say of every id, and what the index says.
fn assert_same(snapshot: &Snapshot) {
    let mut events = Vec::new();
    snapshot
        .read(&Wanted::all(Table::Events), |batch| {
            events.extend(EventRow::read(batch));
            Ok(true)
        })
        .unwrap();
    assert!(!events.is_empty());
    let finder = Finder::new(snapshot, AsOf::Now).unwrap();
    for n in 0..8 {
        let id = format!("grant-{n}");
        let of = |role: Role, kind: &str| {
            let said: Vec<u64> = events
                .iter()
                .filter(|e| e.kind == kind && e.grant_id.as_deref() == Some(id.as_str()))
                .map(|e| e.seq)
                .collect();
            assert_eq!(finder.seqs(Kind::Grant, &id, &[role]).unwrap(), said, "{id} {role:?}");
        };
        of(Role::Use, "tool_call");
        of(Role::Given, "grant_issued");
    }
    let agent = events.iter().find_map(|e| e.agent_id.clone()).unwrap();
    let said: Vec<u64> = events.iter().filter(|e| e.agent_id.as_ref() == Some(&agent)).map(|e| e.seq).collect();
    assert_eq!(finder.seqs(Kind::Agent, &agent, &[Role::Other]).unwrap(), said);
    assert_eq!(finder.find(Kind::Agent, "nobody").unwrap(), []);
    // An agent of this name is no grant.
    assert_eq!(finder.find(Kind::Grant, &agent).unwrap(), []);
    let early = Finder::new(snapshot, AsOf::Seq(7)).unwrap();
    assert!(early.find(Kind::Grant, "grant-1").unwrap().iter().all(|p| p.seq() <= 7));
}

#[test]
fn the_index_finds_what_the_rows_say() {
    let mut log = Log::new(40);
    let projection = log.projection();
    assert_same(&projection.snapshot());
    projection.close_index();
    assert_eq!(log.files().len(), 0, "little is not worth a file");
    projection.write_all_for_test();
    assert_eq!(log.files().len(), 1);
    append(&mut log.writer, 40..60);
    while projection.step().unwrap() {}
    assert_same(&projection.snapshot());
    projection.write_all_for_test();
    drop(projection);
    // The next one takes the files over; nothing is lacking.
    let projection = log.projection();
    assert_eq!(projection.snapshot().ids.runs().iter().filter(|r| matches!(r, Run::File(_))).count(), 2);
    assert!(projection.snapshot().ids.gaps(300).is_empty());
    assert_same(&projection.snapshot());
}

/// Whoever replays a grant must know that something is not shown. Few rows are made from the log itself.
#[test]
fn a_replay_that_lacks_a_row_that_the_index_names_says_which() {
    let log = Log::new(6000);
    let projection = log.projection();
    let replay = |snapshot: &Snapshot| {
        let wanted =
            replay::Wanted { id: "grant-0".into(), named: Named::Grant, as_of: AsOf::Now, now: Time(i64::MAX) };
        let (mut notes, mut steps) = (Vec::new(), 0);
        replay::replay_within(snapshot, &wanted, &mut |_| Ok(()), &mut |note| notes.push(note), &mut |batch| {
            steps += batch.num_rows();
            Ok(true)
        })
        .unwrap();
        (steps, notes)
    };
    let whole = projection.snapshot();
    let seqs = Finder::new(&whole, AsOf::Now).unwrap().seqs(Kind::Grant, "grant-0", &[Role::Use, Role::Given]).unwrap();
    assert!(seqs.len() > RECORDS_MAX, "{}", seqs.len());
    let (steps, notes) = replay(&whole);
    assert!(steps >= seqs.len() && notes.is_empty(), "{steps} {notes:?}");
    let lost = seqs[seqs.len() / 2];
    let mut damaged = Snapshot::clone(&whole);
    damaged.tail.forget(&SeqSet::of_seqs([lost]));
    let (left, notes) = replay(&damaged);
    assert!(left < steps, "{left} of {steps}");
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains(&format!("the index names record {lost}")), "{notes:?}");
    assert!(notes[0].contains("`custody rebuild --check`"), "{notes:?}");
}

#[test]
fn many_files_become_one() {
    let mut log = Log::new(4);
    let projection = log.projection();
    for n in 1..=super::keep::MERGED as u64 {
        append(&mut log.writer, n * 4..n * 4 + 4);
        while projection.step().unwrap() {}
        projection.write_all_for_test();
    }
    projection.tend_index();
    assert_eq!(log.files().len(), 1);
    assert_same(&projection.snapshot());
}

#[test]
fn a_lost_or_damaged_file_costs_time_and_no_answer() {
    let log = Log::new(40);
    let projection = log.projection();
    projection.write_all_for_test();
    // Damaged under an open projection: the rows are looked through.
    let path = log.files().remove(0);
    let whole = std::fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    bytes[40] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_same(&projection.snapshot());
    drop(projection);
    for cut in [0, 5, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let projection = log.projection();
        assert_same(&projection.snapshot());
    }
    assert_eq!(log.files().len(), 0, "what cannot be read is deleted");
    let projection = log.projection();
    projection.tend_index();
    assert!(projection.snapshot().ids.gaps(200).is_empty(), "gaps are filled");
    assert_same(&projection.snapshot());
}

#[test]
fn what_is_erased_leaves_the_index() {
    let mut log = Log::new(40);
    let projection = log.projection();
    projection.write_all_for_test();
    append(&mut log.writer, 40..50);
    while projection.step().unwrap() {}
    let finder = |projection: &Projection| {
        let snapshot = projection.snapshot();
        Finder::new(&snapshot, AsOf::Now).unwrap().find(Kind::Grant, "grant-1").unwrap()
    };
    let before = finder(&projection);
    let (first, last) = (before.first().unwrap().seq(), before.last().unwrap().seq());
    let erasure = custody_store::Erasure {
        seqs: SeqSet::of_seqs([first, last]),
        cause: custody_store::Cause::Erasure,
        reason: "test".into(),
        actor: "test".into(),
        identity: "test".into(),
    };
    log.writer.erase(&erasure).unwrap();
    log.reader.purge().unwrap();
    projection.forget().unwrap();
    let after = finder(&projection);
    assert!(after.iter().all(|p| p.seq() != first && p.seq() != last) && after.len() < before.len());
    drop(projection);
    // Erased while nobody minded the index: the next opening sees to it.
    let erasure = custody_store::Erasure { seqs: SeqSet::of_seqs([after[0].seq()]), ..erasure };
    log.writer.erase(&erasure).unwrap();
    log.reader.purge().unwrap();
    let projection = log.projection();
    assert!(finder(&projection).iter().all(|p| p.seq() != after[0].seq()));
}
