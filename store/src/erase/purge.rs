//! Erased content goes from the files, too: memtables, the write-ahead log and table files.

use std::sync::PoisonError;

use rocksdb::properties::MIN_LOG_NUMBER_TO_KEEP;
use rocksdb::{BottommostLevelCompaction, CompactOptions, Direction, IteratorMode, WriteBatch};

use crate::format::{cf, meta, seq_key, seqs};
use crate::ledger::synced;
use crate::{Error, Reader, wal};

impl Reader {
    /// Writes files anew in which erased content may still lie. Blocks the calling
    /// thread, but no appends. Does nothing if nothing was erased since.
    pub fn purge(&self) -> Result<(), Error> {
        let shared = self.shared();
        let _one_at_a_time = shared.purging.lock().unwrap_or_else(PoisonError::into_inner);
        let marks = self.purge_marks()?;
        let Some(from) = marks.iter().map(|(_, from, _)| *from).min() else { return Ok(()) };
        let to = marks.iter().map(|(_, _, to)| *to).max().unwrap_or(from);
        // The write-ahead log held the content too: once every memtable is a file, it is dropped.
        let families: Vec<_> = cf::ALL.iter().map(|name| shared.cf(name)).collect();
        shared.db.flush_cfs_opt(&families, &rocksdb::FlushOptions::default())?;
        let old = self.files_to_rewrite(from, to)?;
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        options.set_exclusive_manual_compaction(false);
        let (first, last) = (seq_key(from), seq_key(to));
        for name in [cf::PAYLOADS, cf::BLOCKS] {
            shared.db.compact_range_cf_opt(shared.cf(name), Some(first), Some(last), &options);
        }
        for name in [cf::IDS, cf::REQUESTS] {
            shared.db.compact_range_cf_opt(shared.cf(name), None::<&[u8]>, None::<&[u8]>, &options);
        }
        // The compaction says nothing when it fails: look whether the files are gone.
        let left = self.files_to_rewrite(from, to)?;
        if let Some(file) = old.iter().find(|file| left.contains(file)) {
            return Err(Error::unavailable(format!(
                "erased content may still lie in the file {file}: the database did not write it anew (is the disk \
                 full?); start the server again to try once more"
            )));
        }
        self.cut_log()?;
        // A crash before this line: the next opening does it again.
        let mut write = WriteBatch::default();
        marks.iter().for_each(|(key, _, _)| write.delete_cf(shared.cf(cf::META), key));
        Ok(shared.write(write, &synced())?)
    }

    /// Cuts off of the write-ahead log what is kept only to be written over.
    fn cut_log(&self) -> Result<(), Error> {
        let shared = self.shared();
        let _nobody_writes = shared.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = shared.db.property_int_value(MIN_LOG_NUMBER_TO_KEEP)?;
        let unknown = || Error::fatal("the database does not tell which of its log files it needs");
        wal::cut(&shared.dir.join("log"), needed.ok_or_else(unknown)?).map_err(|e| {
            let why = "start the server again to try once more";
            Error::unavailable(format!(
                "erased content may still lie in the write-ahead log, which cannot be cut: {e}; {why}"
            ))
        })
    }

    /// The marks of erasures whose content may still lie in files: key, first and last block.
    fn purge_marks(&self) -> Result<Vec<(Vec<u8>, u64, u64)>, Error> {
        let shared = self.shared();
        let mode = IteratorMode::From(meta::PURGE, Direction::Forward);
        let mut marks = Vec::new();
        for row in shared.db.iterator_cf(shared.cf(cf::META), mode) {
            let (key, blocks) = row?;
            if !key.starts_with(meta::PURGE) {
                break;
            }
            let mut blocks = seqs(&blocks);
            let (from, to) = (blocks.next().unwrap_or(0), blocks.next().unwrap_or(u64::MAX));
            marks.push((key.into_vec(), from, to));
        }
        Ok(marks)
    }

    /// The table files that may hold content of blocks in a range, or index rows.
    fn files_to_rewrite(&self, from: u64, to: u64) -> Result<Vec<String>, Error> {
        let (first, last) = (seq_key(from), seq_key(to));
        let holds = |file: &rocksdb::LiveFile| match file.column_family_name.as_str() {
            cf::PAYLOADS | cf::BLOCKS => {
                let starts_after = file.start_key.as_ref().is_some_and(|key| key[..] > last[..]);
                let ends_before = file.end_key.as_ref().is_some_and(|key| key[..] < first[..]);
                !starts_after && !ends_before
            }
            cf::IDS | cf::REQUESTS => true,
            _ => false,
        };
        Ok(self.shared().db.live_files()?.into_iter().filter(holds).map(|file| file.name).collect())
    }
}
