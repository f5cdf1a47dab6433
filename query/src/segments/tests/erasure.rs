//! Erased rows are in no segment.

use super::*;

#[test]
fn erased_rows_are_in_no_file_and_others_stay_as_they_are() {
    let mut log = Log::new(21);
    let projection = sealed(&log.reader, limits(10, 0));
    assert!(log.holds("secret-9-2") && log.holds("secret-9-1"));
    let untouched: Vec<_> = projection.snapshot().segments.iter().filter(|s| s.to <= 40).cloned().collect();
    // Record 0 is the log's own; request n has the seqs from 1 + 5n on. The last is in memory.
    let old = projection.snapshot();
    log.erase(&[1 + 45 + 2, 1 + 5 * 18 + 1]);
    projection.forget().unwrap();
    assert!(!log.holds("secret-9-2"), "although an old snapshot had it");
    assert!(log.holds("secret-9-1"));
    drop(old);
    follow(&projection).unwrap();
    let now = rows(&projection.snapshot());
    assert_eq!(now, expected(&log.reader));
    assert!(!now.iter().any(|row| row.contains("secret-9-2") || row.contains("secret-18-1")));
    for segment in untouched {
        assert!(segment.files.iter().all(|f| files(log.dir.path()).contains(&f.entry.path)), "{segment:?}");
    }
    assert_whole(log.dir.path(), &projection);
    drop(projection);

    // Erased while nobody minded the segments: the next opening sees to it, and so does a command.
    log.erase(&[1 + 45 + 3]);
    assert!(log.holds("secret-9-3"));
    let looked = Projection::of(log.reader.clone()).unwrap();
    assert!(!rows(&looked.snapshot()).iter().any(|row| row.contains("secret-9-3")), "a visitor does not show it");
    Projection::tidy(log.reader.clone()).unwrap();
    assert!(!log.holds("secret-9-3") && log.holds("secret-9-4"));
    log.erase(&[1 + 45 + 4]);
    let opened = Projection::open_own(log.reader.clone(), limits(10, 0)).unwrap();
    assert!(!log.holds("secret-9-4"));
    follow(&opened).unwrap();
    assert_eq!(rows(&opened.snapshot()), expected(&log.reader));
}

#[test]
fn a_crash_within_forgetting_leaves_nothing_erased_after_the_next_start() {
    let mut steps = 0;
    loop {
        let mut log = Log::new(12);
        let projection = sealed(&log.reader, limits(10, 0));
        log.erase(&[1 + 45 + 2]);
        projection.place.get().unwrap().steps_left.store(steps, Ordering::SeqCst);
        let done = projection.forget();
        drop(projection);
        let opened = Projection::open_own(log.reader.clone(), limits(10, 0)).unwrap();
        assert!(!log.holds("secret-9-2"), "after {steps} steps");
        follow(&opened).unwrap();
        assert_eq!(rows(&opened.snapshot()), expected(&log.reader));
        if done.is_ok() {
            break;
        }
        steps += 1;
    }
    assert!(steps >= 3, "{steps}");
}
