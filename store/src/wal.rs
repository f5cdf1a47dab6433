//! RocksDB's log files (write-ahead log, MANIFEST), looked at before it reads them.
//!
//! Its reader never ends at a record with the type of a recycled file in a file
//! that is none (facebook/rocksdb#13333): one flipped bit, or rubbish that a power
//! cut left, and neither `open` nor `verify` would come back. This finds such a
//! place by the frames alone; whether records are right is for their readers.
//!
//! Files of the write-ahead log are written over when nothing needs them any more, and have an end then that is not that of the
//! file: behind it lies what was there before, which has to go when something is erased ([`cut`]).
//!
//! A log file is blocks of 32 KiB, each of frames that do not cross its end: u32
//! masked CRC-32C of type and bytes ‖ u16 length ‖ u8 type, little-endian, and the bytes. In a file that is written over
//! the u32 number of the file at that time comes before the bytes, of which the length does not tell.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::Error;

const BLOCK: usize = 32 << 10;
const HEADER: usize = 7;
const RECYCLED_HEADER: usize = HEADER + 4;

/// Refuses a database with a log file that RocksDB would read for ever.
pub(crate) fn check(database: &Path) -> Result<(), Error> {
    for path in files(database) {
        let found = match File::open(&path) {
            Ok(file) => trap(file),
            // Removed since it was listed, by the server beside which this reads.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        };
        match found {
            Ok(None) => {}
            Ok(Some(at)) => return Err(damaged(&path, at)),
            Err(e) => return Err(Error::corrupt(format!("{} cannot be read: {e}", path.display()))),
        }
    }
    Ok(())
}

fn damaged(path: &Path, at: u64) -> Error {
    let path = path.display();
    Error::corrupt(format!(
        "{path} is damaged at byte {at}; restore the directory from a copy, or, if it was a power cut, leave out what is \
         behind (truncate -s {at} {path}): the checkpoint will tell whether anything that was signed is lost"
    ))
}

/// The write-ahead logs and the MANIFEST in use. A directory that cannot be listed
/// is for RocksDB to refuse.
fn files(database: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(database).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
    let current = fs::read_to_string(database.join("CURRENT")).unwrap_or_default();
    files.extend(Some(current.trim()).filter(|name| name.starts_with("MANIFEST-")).map(|name| database.join(name)));
    files
}

/// Where RocksDB's reader would stay.
fn trap(mut file: impl io::Read) -> io::Result<Option<u64>> {
    let mut block = Vec::with_capacity(BLOCK);
    let (mut start, mut begun) = (0, false);
    loop {
        block.clear();
        file.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
        let mut at = 0;
        while let Some(frame) = Frame::at(&block, at) {
            if frame.is_recycled() {
                if !begun {
                    // From its first frame on a recycled file, which is read as one.
                    return Ok(None);
                }
                // Behind a frame that is not whole the reader leaves out the rest of the block.
                if frames(&block[..at]).all(|f| f.is_whole()) {
                    return Ok(Some(start + at as u64));
                }
                break;
            }
            if frame.bytes.len() < frame.len || (frame.kind == 0 && frame.len == 0) {
                break;
            }
            // A record that is complete in one frame, or with its last one.
            begun |= matches!(frame.kind, 1 | 4);
            at += HEADER + frame.len;
        }
        if block.len() < BLOCK {
            return Ok(None);
        }
        start += BLOCK as u64;
    }
}

/// Cuts off what is not, or no longer, part of the write-ahead log. `needed`: the number of the first file that is.
/// Whoever calls keeps the database from being written to meanwhile.
pub(crate) fn cut(database: &Path, needed: u64) -> io::Result<()> {
    for path in files(database).into_iter().filter(|path| path.extension().is_some_and(|e| e == "log")) {
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        let Some(number) = number else { continue };
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            // Deleted since it was listed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let (len, end) = (file.metadata()?.len(), if number < needed { 0 } else { end(&file, number)? });
        if end < len {
            file.set_len(end)?;
            file.sync_all()?;
        }
    }
    Ok(())
}

/// Where the frames end that were written to a file since it has its number; the end of a file that is not written over.
fn end(mut file: impl io::Read + io::Seek, number: u64) -> io::Result<u64> {
    let len = file.seek(io::SeekFrom::End(0))?;
    let (mut at, mut header) = (0, [0; RECYCLED_HEADER]);
    loop {
        let left = BLOCK as u64 - at % BLOCK as u64;
        if left < RECYCLED_HEADER as u64 {
            at += left;
            continue;
        }
        if at + RECYCLED_HEADER as u64 > len {
            return Ok(at.min(len));
        }
        file.seek(io::SeekFrom::Start(at))?;
        file.read_exact(&mut header)?;
        let [_, _, _, _, low, high, kind, of @ ..] = header;
        let size = u64::from(u16::from_le_bytes([low, high])) + RECYCLED_HEADER as u64;
        if at == 0 && matches!(kind, 1..=4) {
            return Ok(len);
        }
        let is_own = is_recycled(kind) && u64::from(u32::from_le_bytes(of)) == number & u64::from(u32::MAX);
        if !is_own || size > left || at + size > len {
            return Ok(at);
        }
        at += size;
    }
}

/// The types of frames in files that are written over.
fn is_recycled(kind: u8) -> bool {
    matches!(kind, 5..=8 | 11 | 131)
}

fn frames(block: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let frame = Frame::at(block, at)?;
        at += HEADER + frame.len;
        Some(frame)
    })
}

struct Frame<'a> {
    crc: u32,
    len: usize,
    kind: u8,
    /// Fewer than `len` where the block or the file ends.
    bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    fn at(block: &'a [u8], at: usize) -> Option<Self> {
        let (header, rest) = block.get(at..)?.split_first_chunk::<HEADER>()?;
        let [a, b, c, d, e, f, kind] = *header;
        let len = usize::from(u16::from_le_bytes([e, f]));
        Some(Self { crc: u32::from_le_bytes([a, b, c, d]), len, kind, bytes: &rest[..len.min(rest.len())] })
    }

    fn is_recycled(&self) -> bool {
        is_recycled(self.kind)
    }

    fn is_whole(&self) -> bool {
        let crc = crc32c([self.kind].iter().chain(self.bytes));
        self.bytes.len() == self.len && crc.rotate_right(15).wrapping_add(0xa282_ead8) == self.crc
    }
}

/// CRC-32C, bit by bit: at most a block is ever summed.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    !bytes.fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, bytes: &[u8]) -> Vec<u8> {
        let crc = crc32c([kind].iter().chain(bytes)).rotate_right(15).wrapping_add(0xa282_ead8);
        let len = (bytes.len() as u16).to_le_bytes();
        [&crc.to_le_bytes()[..], &len, &[kind], bytes].concat()
    }

    fn recycled(number: u32, bytes: &[u8]) -> Vec<u8> {
        let mut frame = frame(5, &[&number.to_le_bytes()[..], bytes].concat());
        frame[4..6].copy_from_slice(&(bytes.len() as u16).to_le_bytes());
        frame
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283);
    }

    #[test]
    fn a_frame_of_a_recycled_file_is_a_trap_where_the_reader_gets_to_it() {
        let (full, recycled) = (frame(1, b"record"), frame(5, b"log 4, record"));
        let place = |parts: &[&[u8]]| trap(&parts.concat()[..]).unwrap();
        assert_eq!(place(&[&full, &full]), None);
        assert_eq!(place(&[&full, &recycled]), Some(13));
        assert_eq!(place(&[&recycled, &full]), None, "a recycled file");
        assert_eq!(place(&[&full, &[0; 40], &recycled]), None, "behind zeros");
        let mut broken = full.clone();
        broken[9] ^= 1;
        assert_eq!(place(&[&full, &broken, &recycled]), None, "behind a frame that is not whole");
        let rest = vec![0; BLOCK - full.len()];
        assert_eq!(place(&[&full, &rest, &recycled]), Some(BLOCK as u64), "in the next block");
    }
    #[test]
    fn a_file_that_is_written_over_ends_before_what_was_there() {
        let of = recycled;
        let end = |parts: &[&[u8]]| end(io::Cursor::new(parts.concat()), (1 << 32) + 7).unwrap();
        let (new, old) = (of(7, b"new"), of(4, b"what was there"));
        assert_eq!(new.len(), 14);
        assert_eq!(end(&[]), 0);
        assert_eq!(end(&[&new]), 14);
        assert_eq!(end(&[&new, &new, &old]), 28);
        assert_eq!(end(&[&new, &old[3..], &new]), 14, "in the middle of a frame");
        assert_eq!(end(&[&new, &[0; 40]]), 14);
        assert_eq!(end(&[&new, &new[..9]]), 14, "a torn one");
        assert_eq!(end(&[&old, &new]), 0);
        // A block that has no room for another header is filled with zeros.
        let long = of(7, &vec![1; BLOCK - 11 - 6]);
        assert_eq!(end(&[&long, &[0; 6], &new, &old]), BLOCK as u64 + 14);
        assert_eq!(end(&[&frame(1, b"record"), &old]), 13 + old.len() as u64, "one that is not written over");
    }

    #[test]
    fn what_is_not_of_the_log_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let of = |number: u32| recycled(number, b"secret");
        let write = |number: u32, parts: &[&[u8]]| {
            fs::write(dir.path().join(format!("{number:06}.log")), parts.concat()).unwrap();
        };
        write(4, &[&of(4)]);
        write(5, &[&of(5), &of(2)]);
        write(6, &[&of(6)]);
        fs::write(dir.path().join("LOG"), "no part of it").unwrap();
        cut(dir.path(), 5).unwrap();
        let lens = [4, 5, 6].map(|number| fs::metadata(dir.path().join(format!("{number:06}.log"))).unwrap().len());
        assert_eq!(lens, [0, of(5).len() as u64, of(6).len() as u64]);
        assert_eq!(fs::read_to_string(dir.path().join("LOG")).unwrap(), "no part of it");
    }
    #[test]
    fn the_database_goes_on_behind_a_cut_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = rocksdb::Options::default();
        options.create_if_missing(true);
        options.set_recycle_log_file_num(2);
        let open = || rocksdb::DB::open(&options, dir.path()).unwrap();
        let mut write = rocksdb::WriteOptions::default();
        write.set_sync(true);
        let logs = || {
            let logs = files(dir.path()).into_iter().filter(|path| path.extension().is_some_and(|e| e == "log"));
            logs.map(|path| fs::read(path).unwrap()).collect::<Vec<_>>().concat()
        };
        let holds = |text: &str| logs().windows(text.len()).any(|window| window == text.as_bytes());
        let db = open();
        // Three files in turn, and then again the first, which is written over from its beginning.
        for file in 0..5_u8 {
            let text = format!("what was there in file {file}, ").repeat(10_000);
            db.put_opt([file, 0], text, &write).unwrap();
            db.delete_opt([file, 0], &write).unwrap();
            db.flush().unwrap();
        }
        // Frames of less than a block and of several, up to each place in one.
        let value = |i: u16| vec![i as u8; usize::from(i) * 97 % 70_000];
        for i in 0..300_u16 {
            db.put_opt(i.to_be_bytes(), value(i), &write).unwrap();
            if i % 10 == 0 {
                assert!(i > 0 || holds("what was there"), "the test shows nothing");
                let needed = db.property_int_value(rocksdb::properties::MIN_LOG_NUMBER_TO_KEEP).unwrap().unwrap();
                cut(dir.path(), needed).unwrap();
                assert!(!holds("what was there"));
            }
        }
        drop(db);
        let db = open();
        for i in 0..300_u16 {
            assert_eq!(db.get(i.to_be_bytes()).unwrap(), Some(value(i)), "{i}");
        }
    }
}
