//! What a log promises: dense seqs, exactly once, durable heads, signed trees.

mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use custody_proto::otlp::trace::Span;
use custody_proto::{Limits, Signal, scan};
use custody_store::verify::{Verdict, verify};
use custody_store::{Checkpoint, Encoding, ErrorKind, Options, Prepared, Reader, Receipt, backup, open};
use prost::Message as _;
use support::{logs, open_log, span, trace_request, traces};

#[test]
fn a_new_log_begins_with_a_signed_genesis_record() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, reader) = open_log(dir.path());
    assert_eq!(writer.head_size(), 1);
    let note = reader.checkpoint().unwrap().unwrap();
    let checkpoint = Checkpoint::verify(&note, &reader.keys()).unwrap();
    assert_eq!((checkpoint.size, checkpoint.origin.as_str()), (1, "example.com/test"));
    let genesis = reader.block_at(0).unwrap().unwrap().content.unwrap();
    assert_eq!(genesis.identity(), "system:custody");
    let text = String::from_utf8_lossy(genesis.record(0)).into_owned();
    assert!(text.contains("custody.log.genesis") && text.contains(&reader.vkey()));
    assert_eq!(mode(&dir.path().join("keys/log.key")), 0o600);
}

/// A checkpoint that cannot be read accuses nobody; what stands there and is none, does.
#[test]
fn a_checkpoint_that_cannot_be_read_is_no_evidence() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, reader) = open_log(dir.path());
    drop((writer, reader));
    let file = dir.path().join("checkpoint");
    std::fs::remove_file(&file).unwrap();
    // To itself: nobody can read it, whatever their rights are.
    std::os::unix::fs::symlink("checkpoint", &file).unwrap();
    let error = verify(dir.path(), &Default::default(), |_, _| ()).unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("cannot be read"), "{error}");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let verdict = verify(dir.path(), &Default::default(), |_, _| ()).unwrap();
    assert!(matches!(&verdict, Verdict::Tampered(finding) if finding.reason.contains("is a directory")), "{verdict:?}");
}

fn mode(path: &Path) -> u32 {
    std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(path).unwrap()) & 0o777
}

/// Every directory below one, with itself.
fn directories(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let below = entries.filter(|path| path.is_dir()).flat_map(|path| directories(&path));
    below.chain([dir.to_owned()]).collect()
}

/// The umask of a test is what it is; with the usual one, 022, a directory that is made without a mode is 0755.
#[test]
fn what_is_made_is_for_its_owner_alone_and_what_was_there_keeps_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    let (_writer, reader) = open_log(&place("above/log"));
    for name in ["above", "above/log", "above/log/log", "above/log/keys"] {
        assert_eq!(mode(&place(name)), 0o700, "{name}");
    }
    reader.backup(&place("backups"), true, None).unwrap();
    for name in ["backups", "backups/db", "backups/1"] {
        assert_eq!(mode(&place(name)), 0o700, "{name}");
    }
    backup::restore(&place("backups"), None, &place("restored")).unwrap();
    for name in ["restored", "restored/log", "restored/keys"] {
        assert_eq!(mode(&place(name)), 0o700, "{name}");
    }
    // Whoever made a directory for a group meant it; what is made in it is still its owner's.
    std::fs::create_dir(place("shared")).unwrap();
    std::fs::set_permissions(place("shared"), Permissions::from_mode(0o750)).unwrap();
    let (_writer, reader) = open_log(&place("shared"));
    reader.backup(&place("shared_backups"), false, None).unwrap();
    assert_eq!(mode(&place("shared")), 0o750);
    assert!(directories(&place("shared")).iter().all(|made| *made == place("shared") || mode(made) == 0o700));
}

#[test]
fn records_come_back_byte_for_byte_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let sent = trace_request(vec![span(1, "read"), span(2, "send")]);
    {
        let (mut writer, reader) = open_log(dir.path());
        let receipts = writer.append(vec![traces(vec![span(1, "read"), span(2, "send")]), logs(&["a", "b"])]).unwrap();
        assert_eq!((receipts[0].first_seq, receipts[0].appended), (1, 2));
        assert_eq!((receipts[1].first_seq, receipts[1].appended), (3, 2));
        assert_eq!(reader.head().size, 5);
    }
    let (_writer, reader) = open_log(dir.path());
    let block = reader.block_at(2).unwrap().unwrap();
    let content = block.content.unwrap();
    assert_eq!(content.payload(), &sent);
    assert_eq!(Span::decode(content.record(1)).unwrap(), span(2, "send"));
    assert_eq!(block.commitments.entries().map(|e| e.seq).collect::<Vec<_>>(), [1, 2]);
    let trace: [u8; 16] = span(1, "").trace_id.try_into().unwrap();
    assert_eq!(reader.trace(&trace).unwrap(), [1, 2]);
    assert_eq!(reader.trace(&[9; 16]).unwrap(), [3, 4]);
    assert!(reader.block_at(5).unwrap().is_none());
}

#[test]
fn what_somebody_else_had_sent_is_counted_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let by = |identity: &str, ids: &[u64]| {
        let payload = trace_request(ids.iter().map(|id| span(*id, "a")).collect());
        let found = scan(Signal::Traces, &payload, &Limits::default()).unwrap();
        Prepared::new(Signal::Traces, Encoding::Protobuf, payload.into(), found, identity)
    };
    let (mut writer, _) = open_log(dir.path());
    // In one batch and over two; whole requests and single spans.
    let batch = vec![by("peer:1", &[1, 2]), by("peer:1", &[1, 2]), by("peer:2", &[1, 2]), by("peer:2", &[2, 3])];
    let counts = |receipts: Vec<Receipt>| receipts.iter().map(|r| (r.duplicates, r.foreign)).collect::<Vec<_>>();
    assert_eq!(counts(writer.append(batch).unwrap()), [(0, 0), (2, 0), (2, 2), (1, 1)]);
    let batch = vec![by("peer:2", &[1, 2]), by("peer:2", &[3]), by("peer:1", &[2, 3]), by("peer:1", &[4])];
    // The third is a request of peer:2 as a whole, though one of its spans had come from peer:1 before.
    assert_eq!(counts(writer.append(batch).unwrap()), [(2, 2), (1, 0), (2, 2), (0, 0)]);
    // In another batch it is its spans that count.
    assert_eq!(counts(writer.append(vec![by("peer:1", &[3, 2])]).unwrap()), [(2, 1)]);
}

#[test]
fn a_retry_appends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let request = || traces(vec![span(1, "a"), span(2, "b")]);
    {
        let (mut writer, _) = open_log(dir.path());
        let receipts = writer.append(vec![request(), request(), logs(&["x"]), logs(&["x"])]).unwrap();
        assert_eq!(receipts.iter().map(|r| r.appended).collect::<Vec<_>>(), [2, 0, 1, 0]);
        assert_eq!(writer.append(vec![request()]).unwrap()[0].duplicates, 2);
    }
    let (mut writer, _) = open_log(dir.path());
    let receipts = writer.append(vec![request(), logs(&["x"])]).unwrap();
    assert_eq!((receipts[0].first_seq, receipts[0].duplicates, receipts[1].duplicates), (1, 2, 1));
    assert_eq!(writer.head_size(), 4);
}

#[test]
fn a_retry_in_another_batch_appends_only_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open_log(dir.path());
    writer.append(vec![traces(vec![span(1, "a"), span(2, "b")])]).unwrap();
    let receipt = &writer.append(vec![traces(vec![span(2, "b"), span(3, "c"), span(3, "c")])]).unwrap()[0];
    assert_eq!((receipt.appended, receipt.duplicates, receipt.conflicts), (1, 2, 0));
    let block = reader.block_at(3).unwrap().unwrap();
    let content = block.content.unwrap();
    assert_eq!((content.records(), Span::decode(content.record(0)).unwrap()), (1, span(3, "c")));
    writer.checkpoint().unwrap();
    drop(writer);
    assert!(matches!(verify(dir.path(), &Default::default(), |_, _| ()).unwrap(), Verdict::Sound(_)));
}

/// Copies in other batches take no place among the versions that what comes is compared with.
#[test]
fn a_span_that_is_sent_again_and_again_and_then_ends_is_there_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _) = open_log(dir.path());
    let running = || span(1, "running");
    for other in 0..70 {
        let receipt = writer.append(vec![traces(vec![running(), span(100 + other, "other")])]).unwrap().remove(0);
        assert_eq!((receipt.appended, receipt.duplicates), if other == 0 { (2, 0) } else { (1, 1) });
    }
    for other in 0..3 {
        let receipt =
            writer.append(vec![traces(vec![span(1, "ended"), span(200 + other, "other")])]).unwrap().remove(0);
        assert_eq!((receipt.appended, receipt.conflicts), if other == 0 { (2, 1) } else { (1, 0) });
    }
    drop(writer);
    let (mut writer, _) = open_log(dir.path());
    let receipt = writer.append(vec![traces(vec![running(), span(1, "ended"), span(300, "other")])]).unwrap().remove(0);
    assert_eq!((receipt.appended, receipt.duplicates), (1, 2));
}

#[test]
fn the_same_span_id_with_other_content_is_kept_and_flagged() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open_log(dir.path());
    writer.append(vec![traces(vec![span(1, "a")])]).unwrap();
    let receipt = &writer.append(vec![traces(vec![span(1, "forged")])]).unwrap()[0];
    assert_eq!((receipt.appended, receipt.conflicts), (1, 1));
    assert_eq!(reader.commitments_at(2).unwrap().unwrap().flags, [custody_proto::entry::FLAG_CONFLICT]);
    let again = writer.append(vec![traces(vec![span(1, "forged")]), traces(vec![span(1, "a")])]).unwrap();
    assert_eq!(again.iter().map(|r| r.duplicates).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn tiles_and_bundles_are_those_of_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open_log(dir.path());
    for chunk in 0..7u64 {
        writer.append(vec![traces((0..100).map(|i| span(chunk * 100 + i, "t")).collect())]).unwrap();
    }
    assert_eq!(writer.head_size(), 701);
    let bundle = reader.entry_bundle(1, 256).unwrap().unwrap();
    assert_eq!(bundle.len(), 256 * 114);
    let leaves: Vec<u8> =
        bundle.chunks_exact(114).flat_map(|e| custody_store::tree::leaf_hash(e[2..].try_into().unwrap())).collect();
    assert_eq!(reader.tile(0, 1, 256).unwrap().unwrap(), leaves);
    assert_eq!(reader.tile(1, 0, 2).unwrap().unwrap().len(), 64);
    assert!(reader.tile(1, 0, 3).unwrap().is_none());
    assert!(reader.tile(0, 2, 190).unwrap().is_none() && reader.tile(0, 2, 189).unwrap().is_some());
}

#[test]
fn a_directory_in_use_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let (_writer, _) = open_log(dir.path());
    let error = open(dir.path(), Options::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("in use by another process"), "{error}");
    assert_eq!(Reader::open(dir.path()).unwrap().head().size, 1);
}

#[test]
fn a_newer_format_and_a_foreign_directory_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open_log(dir.path()));
    std::fs::write(dir.path().join("FORMAT"), "custody log format 2\n").unwrap();
    for error in [open(dir.path(), Options::default()).err().unwrap(), Reader::open(dir.path()).err().unwrap()] {
        assert!(error.to_string().contains("use a newer custody"), "{error}");
    }
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("notes.txt"), "mine").unwrap();
    let error = open(other.path(), Options::default()).err().unwrap();
    assert!(error.to_string().contains("not a Custody data directory"), "{error}");
}
