//! Merging by copying row groups: the same rows, found in the same ways, and no damage that gets a new digest.

use super::*;

fn copying(limits: SegmentLimits) -> SegmentLimits {
    SegmentLimits { copied_rows_min: 1, ..limits }
}

fn merged(log: &Log) -> Projection {
    let projection = sealed(&log.reader, copying(limits(5, 60)));
    while projection.merge().unwrap() {}
    projection
}

#[test]
fn copied_rows_are_the_same_rows() {
    let log = Log::new(40);
    let projection = merged(&log);
    let snapshot = projection.snapshot();
    assert!(snapshot.segments.len() <= 8, "{}", snapshot.segments.len());
    assert_eq!(rows(&snapshot), expected(&log.reader));
    assert_whole(log.dir.path(), &projection);
    for file in snapshot.segments.iter().flat_map(|s| &s.files) {
        let path = log.dir.path().join("segments").join(&file.entry.path);
        let footer = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap();
        let footer = footer.metadata();
        // A row group of each request of five records, with all that it had.
        assert_eq!(footer.num_row_groups() as u64, file.entry.rows.div_ceil(5), "{}", file.entry.path);
        assert_eq!(footer.file_metadata().num_rows() as u64, file.entry.rows);
        for column in footer.row_groups().iter().flat_map(|group| group.columns()) {
            let name = column.column_path().string();
            let (is_bloomed, is_ordered) = {
                let name = &name.as_str();
                (file.table.bloomed().contains(name), !file.table.unordered().contains(name))
            };
            assert!(column.offset_index_offset().is_some(), "{name}");
            assert_eq!(column.bloom_filter_offset().is_some(), is_bloomed, "{name}");
            assert_eq!(column.statistics().is_some(), is_ordered, "{name}");
        }
        let kinds: u64 = file.entry.kinds.values().sum();
        assert_eq!(kinds, if file.table == Table::Events { file.entry.rows } else { 0 });
    }
}

#[test]
fn rows_are_found_in_copied_groups_by_their_bloom_filters_and_pages() {
    let log = Log::new(40);
    let projection = merged(&log);
    let whole = Projection::empty(log.reader.clone(), SegmentLimits::default(), None);
    while whole.step().unwrap() {}
    let (a, b) = (whole.snapshot(), projection.snapshot());
    let same = |what: &dyn Fn(&Snapshot) -> Vec<EventRow>| {
        let want = what(&a);
        assert!(!want.is_empty());
        assert_eq!(what(&b), want);
    };
    same(&|s| s.events_of(&["tool_call"], AsOf::Now).unwrap());
    same(&|s| s.events_where("grant_id", ["grant-3", "nothing"], AsOf::Now).unwrap());
    same(&|s| s.events_where("trace_id", ["0a".repeat(16)], AsOf::Now).unwrap());
    same(&|s| s.events_at(&[3, 46, 47, 90, 160].into()).unwrap());
}

#[test]
fn a_crash_after_any_step_of_copying_doubles_and_loses_nothing() {
    crash_after_any_step(copying(limits(10, 30)));
}

#[test]
fn what_is_erased_is_not_copied() {
    let mut log = Log::new(40);
    let projection = merged(&log);
    assert!(log.holds("secret-3-1"));
    // Record 0 is the log's own; request n has the seqs from 1 + 5n on.
    log.erase(&[1 + 15 + 1]);
    projection.forget().unwrap();
    assert!(!log.holds("secret-3-1") && log.holds("secret-3-2"));
    follow(&projection).unwrap();
    assert_eq!(rows(&projection.snapshot()), expected(&log.reader));
}

#[test]
fn what_is_damaged_is_made_again_where_it_would_be_merged() {
    for limits in [copying(limits(5, 60)), limits(5, 60)] {
        let log = Log::new(40);
        let projection = sealed(&log.reader, limits);
        let file = Arc::clone(&projection.snapshot().segments[4].files[0]);
        let path = log.dir.path().join("segments").join(&file.entry.path);
        let mut bytes = std::fs::read(&path).unwrap();
        // In the first data page: the footer says nothing of it.
        bytes[40] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = file.sound().unwrap_err().to_string();
        assert!(error.contains(&file.entry.path) && error.contains("custody rebuild --check"), "{error}");
        drop(file);
        while projection.merge().unwrap() {}
        assert!(projection.snapshot().segments.len() < 10, "all that can be is merged");
        assert_eq!(rows(&projection.snapshot()), expected(&log.reader));
        assert_whole(log.dir.path(), &projection);
    }
}
