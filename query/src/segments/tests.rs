//! Sealing against the same rows in memory: after every step of it, damage, erasure.

mod erasure;
mod scans;
mod splicing;

use std::path::Path as StdPath;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use custody_store::system::SeqSet;
use custody_store::{Cause, Erasure, Options, Reader, Writer, open};
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::test_requests::append;
use super::{Place, SegmentLimits, Table, Wanted};
use crate::event::EventRow;
use crate::mapping::MAPPING_VERSION;
use crate::projection::{AsOf, Projection, Snapshot};
use crate::{Engine, QueryLimits};

fn limits(records_max: u64, merged_records_max: u64) -> SegmentLimits {
    SegmentLimits { records_max, merged_records_max, ..SegmentLimits::default() }
}

/// All rows of all tables, as text, each table in seq order.
fn rows(snapshot: &Snapshot) -> Vec<String> {
    let mut out = Vec::new();
    for table in Table::ALL {
        snapshot
            .read(&Wanted::all(table), |batch| {
                out.extend(
                    crate::format::rows(std::slice::from_ref(batch))?.iter().map(|row| format!("{table:?} {row:?}")),
                );
                Ok(true)
            })
            .unwrap();
    }
    out
}

/// The rows of a log without any segments.
fn expected(reader: &Reader) -> Vec<String> {
    let whole = Projection::empty(reader.clone(), SegmentLimits::default(), None);
    while whole.step().unwrap() {}
    assert!(whole.snapshot().segments.is_empty());
    rows(&whole.snapshot())
}

/// Follows a log to its end, sealing whenever it is time.
fn sealed(reader: &Reader, limits: SegmentLimits) -> Projection {
    let projection = Projection::open_own(reader.clone(), limits).unwrap();
    follow(&projection).unwrap();
    projection
}

fn follow(projection: &Projection) -> Result<(), crate::Error> {
    // Step by step, so that each request may be sealed.
    loop {
        let (from, size) = (projection.snapshot().size, projection.reader.head().size);
        if from >= size {
            return Ok(());
        }
        let mut rows = projection.room(1);
        let mut next = Snapshot::clone(&projection.snapshot());
        next.tail.to = projection.project(&mut rows, from, from + 1)?;
        projection.keep(rows, 1, &mut next.tail);
        next.size = next.tail.to;
        projection.set(next);
        if projection.freeze(|tail| tail.is_full(&projection.limits)) {
            projection.seal()?;
        }
    }
}

fn files(dir: &StdPath) -> Vec<String> {
    let names = std::fs::read_dir(dir.join("segments")).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Whether the ranges follow on each other, and nothing else lies in the folder.
fn assert_whole(dir: &StdPath, projection: &Projection) {
    let snapshot = projection.snapshot();
    let mut to = 0;
    let mut named = vec!["manifest.json".to_owned()];
    for segment in snapshot.segments.iter() {
        assert_eq!(segment.from, to);
        to = segment.to;
        named.extend(segment.files.iter().map(|file| file.entry.path.clone()));
    }
    assert_eq!(snapshot.in_memory().next().unwrap().from, to);
    projection.sweep().unwrap();
    named.sort();
    assert_eq!(files(dir), named);
}

struct Log {
    dir: tempfile::TempDir,
    writer: Writer,
    reader: Reader,
}

impl Log {
    fn new(requests: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, reader) = open(dir.path(), Options::default()).unwrap();
        append(&mut writer, 0..requests);
        Self { dir, writer, reader }
    }

    fn erase(&mut self, seqs: &[u64]) {
        let erasure = Erasure {
            seqs: SeqSet::of_seqs(seqs.iter().copied()),
            cause: Cause::Erasure,
            reason: "test".into(),
            actor: "test".into(),
            identity: "test".into(),
        };
        self.writer.erase(&erasure).unwrap();
        self.reader.purge().unwrap();
    }

    /// Whether any file of the segments has a text: as it is (in statistics), or in its rows.
    fn holds(&self, text: &str) -> bool {
        let dir = self.dir.path().join("segments");
        files(self.dir.path()).iter().any(|name| {
            let bytes = std::fs::read(dir.join(name)).unwrap();
            let rows = || {
                let file = std::fs::File::open(dir.join(name)).unwrap();
                let rows = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
                rows.into_iter().any(|batch| format!("{:?}", crate::format::rows(&[batch.unwrap()])).contains(text))
            };
            bytes.windows(text.len()).any(|window| window == text.as_bytes()) || name.ends_with(".parquet") && rows()
        })
    }
}

#[test]
fn sealed_rows_are_the_same_rows() {
    let log = Log::new(30);
    let want = expected(&log.reader);
    assert_eq!(want.len(), 1 + 50 * 5, "the log's own first record, metrics, and spans and logs with an event each");
    for records_max in [1, 7, 40, 1000] {
        let projection = sealed(&log.reader, limits(records_max, 0));
        assert_eq!(rows(&projection.snapshot()), want, "{records_max}");
        assert_whole(log.dir.path(), &projection);
        std::fs::remove_dir_all(log.dir.path().join("segments")).unwrap();
    }
}

#[test]
fn a_restart_projects_only_the_tail() {
    let mut log = Log::new(12);
    let before = sealed(&log.reader, limits(20, 0));
    let (segments, names) = (before.snapshot().segments.len(), files(log.dir.path()));
    assert!(segments >= 2);
    drop(before);
    append(&mut log.writer, 12..14);
    let opened = Projection::open_own(log.reader.clone(), limits(20, 0)).unwrap();
    let snapshot = opened.snapshot();
    let sealed_to = snapshot.segments.last().unwrap().to;
    assert!(sealed_to > 40 && snapshot.size == sealed_to, "nothing is projected yet");
    assert_eq!(snapshot.segments.len(), segments);
    assert_eq!(files(log.dir.path()), names, "no file is written anew");
    follow(&opened).unwrap();
    assert_eq!(rows(&opened.snapshot()), expected(&log.reader));
}

#[test]
fn a_crash_after_any_step_doubles_and_loses_nothing() {
    crash_after_any_step(limits(10, 30));
}

fn crash_after_any_step(limits: SegmentLimits) {
    let log = Log::new(9);
    let want = expected(&log.reader);
    let mut crashes = 0;
    loop {
        let _ = std::fs::remove_dir_all(log.dir.path().join("segments"));
        let place = Place::folder(&log.dir.path().join("segments")).unwrap();
        place.steps_left.store(crashes, Ordering::SeqCst);
        let work = || {
            let projection = Projection::open_at(log.reader.clone(), limits, Arc::clone(&place))?;
            follow(&projection)?;
            while projection.merge()? {}
            projection.rebuild(false, &mut |_, _| {}).map(drop)
        };
        let done = work();
        let opened = Projection::open_own(log.reader.clone(), limits).unwrap();
        assert_whole(log.dir.path(), &opened);
        follow(&opened).unwrap();
        assert_eq!(rows(&opened.snapshot()), want, "after {crashes} steps");
        if done.is_ok() {
            break;
        }
        crashes += 1;
    }
    assert!(crashes > 25, "{crashes} steps were tried");
}

#[test]
fn what_is_damaged_or_lost_is_made_again() {
    let log = Log::new(20);
    let want = expected(&log.reader);
    let folder = log.dir.path().join("segments");
    type Damage = fn(&StdPath);
    let first = |folder: &StdPath| {
        let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
        names.sort();
        names.into_iter().find(|name| name.to_string_lossy().contains("events-")).unwrap()
    };
    static FIRST: std::sync::OnceLock<fn(&StdPath) -> std::path::PathBuf> = std::sync::OnceLock::new();
    FIRST.get_or_init(|| first);
    let damages: [(&str, Damage); 7] = [
        ("a file is gone", |folder| std::fs::remove_file(FIRST.get().unwrap()(folder)).unwrap()),
        ("a file is cut", |folder| {
            let file = std::fs::OpenOptions::new().write(true).open(FIRST.get().unwrap()(folder)).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }),
        ("a footer is overwritten", |folder| {
            let path = FIRST.get().unwrap()(folder);
            let mut bytes = std::fs::read(&path).unwrap();
            let end = bytes.len();
            bytes[end - 60..end - 8].fill(0xff);
            std::fs::write(path, bytes).unwrap();
        }),
        ("a file is another's", |folder| {
            let other = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path());
            let other = other.into_iter().find(|p| p.to_string_lossy().contains("spans-")).unwrap();
            std::fs::copy(other, FIRST.get().unwrap()(folder)).unwrap();
        }),
        ("the manifest is gone", |folder| std::fs::remove_file(folder.join("manifest.json")).unwrap()),
        ("the manifest is cut", |folder| std::fs::write(folder.join("manifest.json"), "{\"version\": 1").unwrap()),
        ("another mapping made it", |folder| {
            let path = folder.join("manifest.json");
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains("\"mapping_version\": "));
            std::fs::write(
                path,
                text.replace(&format!("\"mapping_version\": {MAPPING_VERSION}"), "\"mapping_version\": 0"),
            )
            .unwrap();
        }),
    ];
    for (what, damage) in damages {
        let _ = std::fs::remove_dir_all(&folder);
        drop(sealed(&log.reader, limits(10, 0)));
        damage(&folder);
        let looked = Projection::of(log.reader.clone()).unwrap();
        assert_eq!(rows(&looked.snapshot()), want, "{what}: for a visitor");
        drop(looked);
        let opened = Projection::open_own(log.reader.clone(), limits(10, 0)).unwrap();
        assert_whole(log.dir.path(), &opened);
        follow(&opened).unwrap();
        assert_eq!(rows(&opened.snapshot()), want, "{what}");
        let told = opened.rebuild(true, &mut |_, _| {}).unwrap().made;
        assert!(!what.starts_with("a f") || told == 1, "{what}: who looks for damage is told of it");
    }
}

#[test]
fn a_flipped_byte_is_found_by_its_digest_and_made_again() {
    let log = Log::new(20);
    let projection = sealed(&log.reader, limits(10, 0));
    let file = Arc::clone(&projection.snapshot().segments[1].files[0]);
    let path = log.dir.path().join("segments").join(&file.entry.path);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let rebuilt = projection.rebuild(true, &mut |_, _| {}).unwrap();
    assert_eq!((rebuilt.made, rebuilt.segments), (1, projection.snapshot().segments.len()));
    drop(file);
    assert_whole(log.dir.path(), &projection);
    assert_eq!(rows(&projection.snapshot()), expected(&log.reader));
}

#[test]
fn a_start_looks_every_file_over_and_makes_a_damaged_one_again() {
    let log = Log::new(20);
    drop(sealed(&log.reader, limits(10, 0)));
    let opened = Projection::open_own(log.reader.clone(), limits(10, 0)).unwrap();
    assert_eq!(opened.look_over().unwrap(), 0, "what is sound is left as it is");
    let file = Arc::clone(&opened.snapshot().segments[1].files[0]);
    let path = log.dir.path().join("segments").join(&file.entry.path);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    drop((file, opened));
    // Neither its size nor its footer tells.
    let opened = Projection::open_own(log.reader.clone(), limits(10, 0)).unwrap();
    assert!(opened.snapshot().segments[1].files.iter().any(|file| file.sound().is_err()));
    assert_eq!(opened.look_over().unwrap(), 1);
    assert!(opened.snapshot().segments.iter().all(|segment| segment.files.iter().all(|file| file.sound().is_ok())));
    assert_whole(log.dir.path(), &opened);
    assert_eq!(rows(&opened.snapshot()), expected(&log.reader));
}

#[test]
fn segments_of_another_history_are_not_taken() {
    let (one, mut other) = (Log::new(20), Log::new(0));
    drop(sealed(&one.reader, limits(10, 0)));
    append(&mut other.writer, 3..23);
    let copy = other.dir.path().join("segments");
    std::fs::create_dir(&copy).unwrap();
    for name in files(one.dir.path()) {
        let from = one.dir.path().join("segments").join(&name);
        let text = std::fs::read(&from).unwrap();
        let text = match name.as_str() {
            "manifest.json" => {
                String::from_utf8(text).unwrap().replace(one.reader.origin(), other.reader.origin()).into()
            }
            _ => text,
        };
        std::fs::write(copy.join(name), text).unwrap();
    }
    let opened = sealed(&other.reader, limits(10, 0));
    assert_whole(other.dir.path(), &opened);
    assert_eq!(rows(&opened.snapshot()), expected(&other.reader));
}

#[test]
fn merging_keeps_rows_and_readers_of_old_files() {
    let log = Log::new(40);
    let projection = sealed(&log.reader, limits(5, 60));
    let before = projection.snapshot();
    while projection.merge().unwrap() {}
    let after = projection.snapshot();
    assert!(after.segments.len() * 4 < before.segments.len(), "{} of {}", after.segments.len(), before.segments.len());
    assert!(after.segments.iter().all(|s| s.records() <= 60));
    let want = expected(&log.reader);
    assert_eq!(rows(&after), want);
    projection.sweep().unwrap();
    assert_eq!(rows(&before), want, "an old snapshot keeps its files");
    drop(before);
    assert_whole(log.dir.path(), &projection);
}

#[test]
fn reading_by_column_value_and_seq_is_the_same_sealed_and_not() {
    let log = Log::new(40);
    let whole = Projection::empty(log.reader.clone(), SegmentLimits::default(), None);
    while whole.step().unwrap() {}
    let projection = sealed(&log.reader, limits(33, 70));
    while projection.merge().unwrap() {}
    let (a, b) = (whole.snapshot(), projection.snapshot());
    assert!(b.segments.len() > 1 && b.tail.rows() > 0);
    let same = |what: &dyn Fn(&Snapshot) -> Vec<EventRow>| {
        let want = what(&a);
        assert!(!want.is_empty());
        assert_eq!(what(&b), want);
    };
    same(&|s| s.events_of(&["tool_call"], AsOf::Now).unwrap());
    same(&|s| s.events_of(&["tool_call", "grant_issued"], AsOf::Seq(77)).unwrap());
    same(&|s| s.events_where("grant_id", ["grant-3", "nothing"], AsOf::Now).unwrap());
    same(&|s| s.events_where("trace_id", ["0a".repeat(16)], AsOf::Now).unwrap());
    same(&|s| s.events_at(&[3, 46, 47, 90, 160].into()).unwrap());
    assert!(b.events_where("trace_id", ["ff".repeat(16)], AsOf::Now).unwrap().is_empty());
    let none: [&str; 0] = [];
    assert!(b.events_where("trace_id", none, AsOf::Now).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_is_the_same_sealed_and_not() {
    let log = Log::new(40);
    let whole = Projection::empty(log.reader.clone(), SegmentLimits::default(), None);
    while whole.step().unwrap() {}
    let reader = log.reader.clone();
    let projection = tokio::task::spawn_blocking(move || sealed(&reader, limits(33, 70))).await.unwrap();
    assert!(projection.snapshot().segments.len() > 2);
    let engines = [whole, projection].map(|p| Engine::new(Arc::new(p)).unwrap());
    let queries = [
        "SELECT count(*) FROM spans",
        "SELECT count(*), min(seq), max(seq) FROM events",
        "SELECT * FROM spans ORDER BY seq",
        "SELECT * FROM logs ORDER BY seq",
        "SELECT * FROM metrics ORDER BY seq",
        "SELECT * FROM events ORDER BY seq",
        "SELECT name FROM spans WHERE span_id = '0000000000000386'",
        "SELECT name FROM spans WHERE trace_id IN (repeat_('0a'), 'x') ORDER BY seq",
        "SELECT seq, name FROM spans WHERE seq BETWEEN 40 AND 60 ORDER BY seq",
        "SELECT seq FROM spans ORDER BY seq DESC LIMIT 3",
        "SELECT kind, count(*), sum(seq) FROM events GROUP BY kind ORDER BY kind",
        "SELECT e.seq FROM events e JOIN spans s ON s.seq = e.seq WHERE s.name LIKE '%-3' ORDER BY 1",
        "SELECT grant_id, uses, state, issued_seq FROM grants ORDER BY 1",
        "SELECT check_id, seq, detail FROM violations ORDER BY 1, 2",
        "SELECT grant_id, uses FROM delegation_chain('grant-1')",
        "SELECT step, kind, seq FROM replay('grant-1') ORDER BY 1",
        "SELECT count(*) FROM spans WHERE name = 'nothing'",
    ];
    for query in queries {
        let query = query.replace("repeat_('0a')", &format!("'{}'", "0a".repeat(16)));
        let mut answers = Vec::new();
        for engine in &engines {
            let answer = engine.sql(&crate::Caller::local(None), &query, vec![], QueryLimits::default()).await;
            let answer = answer.unwrap_or_else(|e| panic!("{query}: {e}"));
            answers.push(crate::format::rows(&answer.batches).unwrap());
        }
        assert!(!answers[0].is_empty(), "{query}");
        assert_eq!(answers[1], answers[0], "{query}");
    }
}

/// An id that is in no file is told by bloom filters, without reading a page.
#[tokio::test(flavor = "multi_thread")]
async fn bloom_filters_leave_out_what_statistics_cannot() {
    let log = Log::new(40);
    let reader = log.reader.clone();
    let projection = tokio::task::spawn_blocking(move || sealed(&reader, limits(150, 0))).await.unwrap();
    assert_eq!(projection.snapshot().segments.len(), 1);
    let engine = Engine::new(Arc::new(projection)).unwrap();
    for (id, kept) in [(80, 0), (1, 1)] {
        let query = format!("EXPLAIN ANALYZE SELECT name FROM spans WHERE span_id = '{id:016x}'");
        let answer = engine.sql(&crate::Caller::local(None), &query, vec![], QueryLimits::default()).await.unwrap();
        let plan = format!("{:?}", crate::format::rows(&answer.batches).unwrap());
        let wanted = format!("row_groups_pruned_bloom_filter=1 total \u{2192} {kept} matched");
        assert!(plan.contains(&wanted), "{plan}");
    }
}

/// What the log or the index finds is read off the log: no segment is opened, and none is missed.
#[tokio::test(flavor = "multi_thread")]
async fn few_rows_are_found_without_opening_a_segment() {
    let log = Log::new(40);
    let reader = log.reader.clone();
    let projection = tokio::task::spawn_blocking(move || sealed(&reader, limits(20, 0))).await.unwrap();
    assert!(projection.snapshot().segments.len() > 5);
    let engine = Engine::new(Arc::new(projection)).unwrap();
    let trace = "0a".repeat(16);
    let found = [
        (format!("spans WHERE trace_id = '{trace}'"), format!("spans WHERE concat(trace_id, '') = '{trace}'"), 5),
        (format!("events WHERE trace_id = '{trace}'"), format!("events WHERE concat(trace_id, '') = '{trace}'"), 5),
        (
            "tool_calls WHERE grant_id IN ('grant-0', 'grant-2')".into(),
            "tool_calls WHERE concat(grant_id, '') IN ('grant-0', 'grant-2')".into(),
            35,
        ),
        ("events WHERE agent_id = 'agent-7'".into(), "events WHERE concat(agent_id, '') = 'agent-7'".into(), 5),
        ("grants WHERE grant_id = 'grant-3'".into(), "grants WHERE concat(grant_id, '') = 'grant-3'".into(), 1),
    ];
    for (lookup, scan, rows) in found {
        let mut answers = Vec::new();
        for (from, opens) in [(&lookup, false), (&scan, true)] {
            let column = if from.starts_with("grants") { "issued_seq" } else { "seq" };
            let explain = format!("EXPLAIN SELECT {column} FROM {from}");
            let plan = engine.sql(&crate::Caller::local(None), &explain, vec![], QueryLimits::default()).await;
            let plan = format!("{:?}", crate::format::rows(&plan.unwrap().batches).unwrap());
            assert!(from.starts_with("grants") || plan.contains(".parquet") == opens, "{from}: {plan}");
            let query = format!("SELECT * FROM {from} ORDER BY {column}");
            let answer = engine.sql(&crate::Caller::local(None), &query, vec![], QueryLimits::default()).await.unwrap();
            answers.push(crate::format::rows(&answer.batches).unwrap());
        }
        assert_eq!(answers[0].len(), rows, "{lookup}");
        assert_eq!(answers[0], answers[1], "{lookup}");
    }
}

/// Who only looks at a log without segments keeps memory bounded, too, and leaves nothing there.
#[test]
fn a_visitor_seals_to_a_temporary_folder() {
    let log = Log::new(20);
    let looking = Projection::open_to_look(log.reader.clone(), limits(10, 0)).unwrap();
    follow(&looking).unwrap();
    let snapshot = looking.snapshot();
    assert!(snapshot.segments.len() > 3);
    assert_eq!(rows(&snapshot), expected(&log.reader));
    assert!(!log.dir.path().join("segments").exists());
}

/// A file that goes away from under a query, or is damaged: it says so and what to do, and
/// answers nothing wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_read_is_told_with_the_mend() {
    for is_damaged in [false, true] {
        let log = Log::new(40);
        let reader = log.reader.clone();
        let projection = tokio::task::spawn_blocking(move || sealed(&reader, limits(33, 0))).await.unwrap();
        let snapshot = projection.snapshot();
        let engine = Engine::new(Arc::new(projection)).unwrap();
        for file in snapshot.segments.iter().flat_map(|segment| &segment.files) {
            let path = log.dir.path().join("segments").join(&file.entry.path);
            if !is_damaged {
                std::fs::remove_file(&path).unwrap();
                continue;
            }
            let mut bytes = std::fs::read(&path).unwrap();
            let end = bytes.len() - 4096.min(bytes.len() / 2);
            bytes[4..end].fill(0);
            std::fs::write(&path, bytes).unwrap();
        }
        for query in ["SELECT max(name) FROM spans", "SELECT count(*) FROM grants", "SELECT * FROM replay('grant-1')"] {
            let error =
                engine.sql(&crate::Caller::local(None), query, vec![], QueryLimits::default()).await.unwrap_err();
            assert_eq!(error.kind, crate::ErrorKind::Unavailable, "{query}: {error}");
            assert!(error.message.contains("custody rebuild --check"), "{query}: {error}");
        }
    }
}
