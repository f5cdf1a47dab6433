//! A run of the index in a file.
//!
//! ```text
//! magic       "custody ids 1\n\0\0"
//! blocks      each of whole keys: key u64, postings u32, bytes u32, then the postings,
//!             each as a LEB128 of its distance to the one before
//! fences      of each block: first key u64, offset u64, BLAKE3 of it (8 bytes)
//! tail        from, to, erased_to, entries, fences: u64 each; mapping version u32, 0 u32;
//!             origin and root at `to`: 32 bytes each; BLAKE3 of fences and tail up to here
//! ```
//! All numbers are little-endian. A file never changes; it is replaced by one of another name.

use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use custody_store::system::SeqSet;

use super::{Posting, Run};
use crate::Error;
use crate::mapping::MAPPING_VERSION;
use crate::segments::failed;

const MAGIC: &[u8; 16] = b"custody ids 1\n\0\0";
const FENCE_BYTES: usize = 24;
const TAIL_BYTES: usize = 5 * 8 + 2 * 4 + 3 * 32;

/// A block is ended with the key that makes it this long.
const BLOCK_BYTES: usize = 4096;

/// What a run is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) range: Range<u64>,
    /// Erasures that records below this seq tell of are done in it.
    pub(crate) erased_to: u64,
    /// BLAKE3 of the log's name.
    pub(crate) origin: [u8; 32],
    /// The tree's root at the range's end.
    pub(crate) root: [u8; 32],
}

struct Fence {
    first: u64,
    offset: u64,
    check: [u8; 8],
}

/// A run in a file that is open.
pub(crate) struct FileRun {
    pub(crate) path: PathBuf,
    pub(crate) about: About,
    pub(crate) entries: u64,
    file: File,
    fences: Vec<Fence>,
    end: u64,
}

impl std::fmt::Debug for FileRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileRun").field("path", &self.path).field("entries", &self.entries).finish_non_exhaustive()
    }
}

fn damaged(path: &Path) -> Error {
    failed(&format!("the index file {}", path.display()), "it is damaged")
}

fn check(bytes: &[u8]) -> [u8; 8] {
    let mut out = [0; 8];
    out.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    out
}

impl FileRun {
    /// Opens a file and reads its fences.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let fail = |e| failed(&format!("the index file {} cannot be read", path.display()), e);
        let file = File::open(path).map_err(fail)?;
        let size = file.metadata().map_err(fail)?.len();
        let mut tail = [0; TAIL_BYTES];
        let tail_at = size.checked_sub(TAIL_BYTES as u64).ok_or_else(|| damaged(path))?;
        file.read_exact_at(&mut tail, tail_at).map_err(fail)?;
        let number = |i: usize| u64::from_le_bytes(tail[8 * i..8 * i + 8].try_into().unwrap_or_default());
        let [from, to, erased_to, entries, fences_at] = [0, 1, 2, 3, 4].map(number);
        let version = u32::from_le_bytes(tail[40..44].try_into().unwrap_or_default());
        let length = tail_at.checked_sub(fences_at).filter(|n| n % FENCE_BYTES as u64 == 0 && *n <= size);
        let mut bytes = vec![0; length.ok_or_else(|| damaged(path))? as usize];
        file.read_exact_at(&mut bytes, fences_at).map_err(fail)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes).update(&tail[..TAIL_BYTES - 32]);
        if hasher.finalize().as_bytes()[..] != tail[TAIL_BYTES - 32..] || version != MAPPING_VERSION || from >= to {
            return Err(damaged(path));
        }
        let hash = |at: usize| -> [u8; 32] { tail[at..at + 32].try_into().unwrap_or_default() };
        let fence = |bytes: &[u8]| {
            let number = |at: usize| -> [u8; 8] { bytes[at..at + 8].try_into().unwrap_or_default() };
            Fence { first: u64::from_le_bytes(number(0)), offset: u64::from_le_bytes(number(8)), check: number(16) }
        };
        let about = About { range: from..to, erased_to, origin: hash(48), root: hash(80) };
        let fences = bytes.chunks_exact(FENCE_BYTES).map(fence).collect();
        Ok(Self { path: path.to_owned(), about, entries, file, fences, end: fences_at })
    }

    pub(crate) fn range(&self) -> Range<u64> {
        self.about.range.clone()
    }

    fn block(&self, i: usize) -> Result<Vec<u8>, Error> {
        let fence = &self.fences[i];
        let end = self.fences.get(i + 1).map_or(self.end, |next| next.offset);
        let length = end.checked_sub(fence.offset).ok_or_else(|| damaged(&self.path))?;
        let mut bytes = vec![0; length as usize];
        let fail = |e| failed(&format!("the index file {} cannot be read", self.path.display()), e);
        self.file.read_exact_at(&mut bytes, fence.offset).map_err(fail)?;
        if check(&bytes) == fence.check { Ok(bytes) } else { Err(damaged(&self.path)) }
    }

    /// Adds the postings of a key.
    pub(crate) fn find(&self, key: u64, out: &mut Vec<Posting>) -> Result<(), Error> {
        let Some(i) = self.fences.partition_point(|fence| fence.first <= key).checked_sub(1) else { return Ok(()) };
        let bytes = self.block(i)?;
        let mut rest = bytes.as_slice();
        while let Some((found, postings, after)) = list(rest) {
            if found == key {
                return read(postings, out).ok_or_else(|| damaged(&self.path));
            }
            if found > key {
                return Ok(());
            }
            rest = after;
        }
        if rest.is_empty() { Ok(()) } else { Err(damaged(&self.path)) }
    }
}

/// The first list of a block: its key, its postings' bytes, and what follows.
fn list(bytes: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<16>()?;
    let key = u64::from_le_bytes(head[..8].try_into().ok()?);
    let length = u32::from_le_bytes(head[12..].try_into().ok()?) as usize;
    let (postings, after) = rest.split_at_checked(length)?;
    Some((key, postings, after))
}

fn read(mut bytes: &[u8], out: &mut Vec<Posting>) -> Option<()> {
    let mut at = 0u64;
    while !bytes.is_empty() {
        let (mut value, mut shift) = (0u64, 0);
        loop {
            let (byte, rest) = bytes.split_first()?;
            bytes = rest;
            value |= u64::from(byte & 127).checked_shl(shift)?;
            shift += 7;
            if byte & 128 == 0 {
                break;
            }
        }
        at = at.checked_add(value)?;
        out.push(Posting(at));
    }
    Some(())
}

fn leb(mut value: u64, out: &mut Vec<u8>) {
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The lists of a run, key by key.
pub(super) struct Lists<'a> {
    run: &'a Run,
    /// The next block of a file, or the next entry in memory.
    next: usize,
    block: Vec<u8>,
    at: usize,
    /// The list that comes next.
    pub(super) head: Option<(u64, Vec<Posting>)>,
}

impl<'a> Lists<'a> {
    pub(super) fn of(run: &'a Run) -> Result<Self, Error> {
        let mut lists = Self { run, next: 0, block: Vec::new(), at: 0, head: None };
        lists.advance()?;
        Ok(lists)
    }

    pub(super) fn advance(&mut self) -> Result<Option<(u64, Vec<Posting>)>, Error> {
        let next = match self.run {
            Run::Memory(run) => run.entries.get(self.next).map(|(key, _)| {
                let list: Vec<Posting> = run.of_key(*key).iter().map(|(_, posting)| *posting).collect();
                self.next += list.len();
                (*key, list)
            }),
            Run::File(run) => {
                while self.at >= self.block.len() && self.next < run.fences.len() {
                    (self.block, self.at) = (run.block(self.next)?, 0);
                    self.next += 1;
                }
                match list(&self.block[self.at..]) {
                    None if self.at == self.block.len() => None,
                    None => return Err(damaged(&run.path)),
                    Some((key, postings, after)) => {
                        self.at = self.block.len() - after.len();
                        let mut list = Vec::new();
                        read(postings, &mut list).ok_or_else(|| damaged(&run.path))?;
                        Some((key, list))
                    }
                }
            }
        };
        Ok(std::mem::replace(&mut self.head, next))
    }
}

/// Writes neighbouring runs as one file, without the postings of erased records. It is
/// durable under its name when this returns.
pub(super) fn write(path: &Path, runs: &[Run], about: &About, erased: &SeqSet) -> Result<FileRun, Error> {
    let fail = |e: std::io::Error| failed(&format!("the index file {} cannot be written", path.display()), e);
    let new = path.with_extension("new");
    let mut out = Writer::new(File::create(&new).map_err(fail)?);
    out.file.write_all(MAGIC).map_err(fail)?;
    let mut inputs = runs.iter().map(Lists::of).collect::<Result<Vec<_>, _>>()?;
    while let Some(key) = inputs.iter().filter_map(|lists| lists.head.as_ref().map(|(key, _)| *key)).min() {
        let mut postings = Vec::new();
        // In seq order, as the runs are.
        for lists in inputs.iter_mut().filter(|lists| lists.head.as_ref().is_some_and(|(k, _)| *k == key)) {
            postings.extend(lists.advance()?.into_iter().flat_map(|(_, list)| list));
        }
        postings.retain(|posting| !erased.contains(posting.seq()));
        out.list(key, &postings).map_err(fail)?;
    }
    out.end(about).map_err(fail)?;
    std::fs::rename(&new, path).map_err(fail)?;
    if let Some(folder) = path.parent() {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)?;
    }
    FileRun::open(path)
}

struct Writer {
    file: std::io::BufWriter<File>,
    block: Vec<u8>,
    first: u64,
    offset: u64,
    entries: u64,
    fences: Vec<u8>,
}

impl Writer {
    fn new(file: File) -> Self {
        let file = std::io::BufWriter::with_capacity(1 << 20, file);
        let offset = MAGIC.len() as u64;
        Self { file, block: Vec::new(), first: 0, offset, entries: 0, fences: Vec::new() }
    }

    fn list(&mut self, key: u64, postings: &[Posting]) -> std::io::Result<()> {
        if postings.is_empty() {
            return Ok(());
        }
        if self.block.is_empty() {
            self.first = key;
        }
        let mut bytes = Vec::with_capacity(postings.len() * 2);
        let mut before = 0;
        for posting in postings {
            leb(posting.0 - before, &mut bytes);
            before = posting.0;
        }
        let too_long = |_| std::io::Error::other("a list of the index is too long");
        self.block.extend(key.to_le_bytes());
        self.block.extend(u32::try_from(postings.len()).map_err(too_long)?.to_le_bytes());
        self.block.extend(u32::try_from(bytes.len()).map_err(too_long)?.to_le_bytes());
        self.block.extend(bytes);
        self.entries += postings.len() as u64;
        if self.block.len() >= BLOCK_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        self.fences.extend(self.first.to_le_bytes());
        self.fences.extend(self.offset.to_le_bytes());
        self.fences.extend(check(&self.block));
        self.offset += self.block.len() as u64;
        self.file.write_all(&self.block)?;
        self.block.clear();
        Ok(())
    }

    fn end(mut self, about: &About) -> std::io::Result<()> {
        self.flush()?;
        let numbers = [about.range.start, about.range.end, about.erased_to, self.entries, self.offset];
        let mut tail: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        tail.extend(MAPPING_VERSION.to_le_bytes());
        tail.extend([0; 4]);
        tail.extend(about.origin);
        tail.extend(about.root);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.fences).update(&tail);
        self.file.write_all(&self.fences)?;
        self.file.write_all(&tail)?;
        self.file.write_all(hasher.finalize().as_bytes())?;
        self.file.flush()?;
        // A crash before the rename leaves a file that nobody reads.
        self.file.get_ref().sync_all()
    }
}
