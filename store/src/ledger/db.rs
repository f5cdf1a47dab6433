//! The database of a log: its settings, and how it is opened.

use std::fs;
use std::path::Path;

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompactionStyle, DBCompressionType,
    LruCacheOptions, Options as DbOptions,
};

use super::dir::in_use;
use crate::format::cf;
use crate::format::payload::ZSTD_LEVEL;
use crate::{Error, wal};

/// How often a read beside a running server is begun again.
const READ_TRIES: u32 = 20;

/// Opens the database for reading. A server that writes it meanwhile removes files
/// that it no longer needs: what it removed was no damage if its MANIFEST has grown.
pub(super) fn open_db_to_read(dir: &Path) -> Result<DB, Error> {
    for _ in 1..READ_TRIES {
        let before = manifest(dir);
        match open_db(dir, true, true) {
            Err(_) if manifest(dir) != before => {}
            result => return result,
        }
    }
    open_db(dir, true, true)
}

/// The name and length of the MANIFEST in use.
fn manifest(dir: &Path) -> Option<(String, u64)> {
    let name = fs::read_to_string(dir.join("log/CURRENT")).ok()?;
    let len = fs::metadata(dir.join("log").join(name.trim())).ok()?.len();
    Some((name, len))
}

pub(super) fn open_db(dir: &Path, read_only: bool, compression: bool) -> Result<DB, Error> {
    let path = dir.join("log");
    wal::check(&path)?;
    let cache = block_cache();
    let families = cf::ALL.map(|name| ColumnFamilyDescriptor::new(name, family_options(name, &cache, compression)));
    let options = db_options(read_only);
    let opened = if read_only {
        DB::open_cf_descriptors_read_only(&options, &path, families, false)
    } else {
        DB::open_cf_descriptors(&options, &path, families)
    };
    opened.map_err(|e| {
        let text = e.to_string().replace('\n', " ");
        if text.contains("lock") && !read_only {
            return in_use(dir);
        }
        if text.contains("olumn family not found") {
            // Logs that were made before format 1 was settled have fewer of them.
            return Error::invalid(format!(
                "the log in {} has not all column families: it was made by a development version, before log format 1 \
                 was settled, or its making was broken off; start a new data directory with --data-dir",
                dir.display()
            ));
        }
        Error::corrupt(format!(
            "the log in {} cannot be opened: {text}; restore the directory from a copy",
            dir.display()
        ))
    })
}

/// Bytes of blocks that are kept in memory.
const BLOCK_CACHE_BYTES: usize = 64 << 20;

/// Bytes of a memtable. What writes one to a file takes a processor from those who take records for as long: with
/// 32 MiB the p99 of acknowledgements is twice as long. Large payloads are compressed before they are here, so that
/// files of this size are not many.
const MEMTABLE_BYTES: usize = 8 << 20;

/// Sorted runs of ids that may lie side by side: a look-up asks the filter of each.
const ID_RUNS: i32 = 8;

/// Files of the log that are open at once, at most.
const OPEN_FILES: i32 = 4096;

/// In commands that read: they have what a shell allows, often 1,024 files for all.
const OPEN_FILES_TO_READ: i32 = 512;

/// Log files that nothing needs any more and that are kept to be written over. Of what was erased nothing is left in them:
/// `wal::cut`.
const RECYCLED_LOGS: usize = 2;

/// RocksDB's own default; zlib alone goes by it.
const ZSTD_WINDOW_BITS: i32 = -14;

fn db_options(read_only: bool) -> DbOptions {
    let mut options = DbOptions::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // One writes memtables to files; the others merge: what is small need not wait for what is large.
    options.set_max_background_jobs(3);
    options.set_db_write_buffer_size(128 << 20);
    options.set_max_total_wal_size(256 << 20);
    options.set_bytes_per_sync(1 << 20);
    // A file that is written over keeps its length and its places on the disk: to sync it, no journal of the file system
    // has to be written, which waits for all else that is being written.
    options.set_recycle_log_file_num(RECYCLED_LOGS);
    // What is written passes through this on its way to the kernel: in RocksDB's megabyte it would leave the
    // processor's cache in between, which costs a quarter of all that a span costs.
    options.set_writable_file_max_buffer_size(64 << 10);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(4 << 20);
    // A log of terabytes has tens of thousands of files; by default all of them are open all the time.
    options.set_max_open_files(if read_only { OPEN_FILES_TO_READ } else { OPEN_FILES });
    // By default RocksDB starts sixteen threads a column family to open files.
    options.set_max_file_opening_threads(2);
    options
}

/// What all column families share. In few shards: a block that is larger than a shard is not kept.
fn block_cache() -> Cache {
    let mut options = LruCacheOptions::default();
    options.set_capacity(BLOCK_CACHE_BYTES);
    options.set_num_shard_bits(2);
    Cache::new_lru_cache_opts(&options)
}

/// For keys that come once and in no order: files of about one size are merged with each other. By levels, what four
/// memtables hold would be merged with all ids there are, again and again, until those have 256 MB.
fn merge_by_size(options: &mut DbOptions) {
    options.set_compaction_style(DBCompactionStyle::Universal);
    options.set_level_zero_file_num_compaction_trigger(ID_RUNS);
    options.set_level_zero_slowdown_writes_trigger(ID_RUNS * 6);
    options.set_level_zero_stop_writes_trigger(ID_RUNS * 12);
}

fn family_options(name: &str, cache: &Cache, compression: bool) -> DbOptions {
    let mut options = DbOptions::default();
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_format_version(5);
    if matches!(name, cf::IDS | cf::REQUESTS | cf::SUBMITTERS) {
        table.set_bloom_filter(10.0, false);
        // The filter of a file of 64 MiB of ids is 3 MB: in one piece each look-up of a request would need all of
        // it, for each file. In parts of a block each, only those of the request's own traces are read and kept.
        table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
        table.set_partition_filters(true);
        table.set_pin_top_level_index_and_filter(true);
    }
    if matches!(name, cf::IDS | cf::REQUESTS) {
        // What is looked for is nearly always new: a filter answers without a walk through the memtable.
        options.set_memtable_whole_key_filtering(true);
        options.set_memtable_prefix_bloom_ratio(0.1);
        merge_by_size(&mut options);
    }
    options.set_block_based_table_factory(&table);
    let (hot, cold) = match name {
        // Hashes: nothing makes them smaller.
        cf::ENTRIES | cf::NODES => (DBCompressionType::None, DBCompressionType::None),
        _ if !compression => (DBCompressionType::None, DBCompressionType::None),
        cf::IDS | cf::REQUESTS => (DBCompressionType::Lz4, DBCompressionType::Lz4),
        // Keys only grow: files go down the levels as they are when they are compressed once for all.
        _ => (DBCompressionType::Zstd, DBCompressionType::Zstd),
    };
    options.set_compression_type(hot);
    // Any level above 0 makes LZ4 its slow variant, LZ4HC.
    let level = if hot == DBCompressionType::Lz4 { 0 } else { ZSTD_LEVEL };
    options.set_compression_options(ZSTD_WINDOW_BITS, level, 0, 0);
    options.set_bottommost_compression_options(ZSTD_WINDOW_BITS, level, 0, 0, true);
    options.set_bottommost_compression_type(cold);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options
}
