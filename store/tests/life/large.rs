//! What happens to requests that are kept compressed.

use custody_store::format::cf;

use super::support::{span, traces};
use super::{erase, is_on_disk, marker, open_plain, sound};

/// Large requests are kept compressed: what was the whole frame is in no file afterwards.
#[test]
fn an_erased_record_of_a_large_request_is_in_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open_plain(dir.path());
    writer.append(vec![traces((1..=300).map(|n| span(n, &marker(n))).collect())]).unwrap();
    writer.checkpoint().unwrap();
    drop((writer, reader));
    let frame = {
        let db =
            rocksdb::DB::open_cf_for_read_only(&Default::default(), dir.path().join("log"), cf::ALL, false).unwrap();
        db.get_cf(db.cf_handle(cf::PAYLOADS).unwrap(), 1u64.to_be_bytes()).unwrap().unwrap()
    };
    assert_eq!(frame[..4], [0x28, 0xb5, 0x2f, 0xfd], "the magic number of zstd");
    let inside = &frame[frame.len() / 2..][..64];
    assert!(is_on_disk(dir.path(), inside), "the frame is found before");
    let (mut writer, reader) = open_plain(dir.path());
    erase(&mut writer, "150");
    assert!(!is_on_disk(dir.path(), inside), "the frame with what was erased is still in a file");
    let content = reader.block_at(1).unwrap().unwrap().content.unwrap();
    let holds = |n: u64| content.payload().windows(40).any(|w| w == marker(n).as_bytes());
    assert!(holds(149) && !holds(150) && holds(151));
    drop((writer, reader));
    assert_eq!(sound(dir.path()).erased, 1);
}
