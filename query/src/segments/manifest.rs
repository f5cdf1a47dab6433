//! `manifest.json`: which segment files there are, and of what. It is replaced whole,
//! after the files that it names are durable; what it does not name does not exist.

use std::collections::BTreeMap;
use std::sync::Arc;

use custody_store::Reader;
use datafusion::parquet::file::metadata::ParquetMetaData;
use serde::{Deserialize, Serialize};

use super::{Place, Segment, SegmentFile, Table};
use crate::Error;
use crate::mapping::MAPPING_VERSION;

/// Its name in the folder of the segments.
pub(super) const NAME: &str = "manifest.json";

/// The version of the manifest's own layout.
const VERSION: u32 = 1;

/// The whole manifest.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    version: u32,
    /// The log that the segments are of.
    origin: String,
    /// Rises with every manifest; files are named after it.
    pub(crate) generation: u64,
    /// Erasures that records below this seq tell of are done in all segments.
    pub(crate) erased_to: u64,
    segments: Vec<SegmentEntry>,
}

/// One segment.
#[derive(Debug, Serialize, Deserialize)]
struct SegmentEntry {
    from: u64,
    to: u64,
    /// The tree's root at size `to`, hex.
    root: String,
    mapping_version: u32,
    schema_version: String,
    files: Vec<FileEntry>,
}

/// One file of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    /// Name of the table.
    pub(crate) table: String,
    /// Name of the file.
    pub(crate) path: String,
    /// Rows in it.
    pub(crate) rows: u64,
    /// Of events, how many there are of each kind; older files do not say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) kinds: BTreeMap<String, u64>,
    /// Its size.
    pub(crate) bytes: u64,
    /// BLAKE3 of the file, hex.
    pub(crate) digest: String,
}

/// The version of the tables' columns: what they are called and of which types.
pub(crate) fn schema_version() -> &'static str {
    static VERSION: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        let mut hasher = blake3::Hasher::new();
        for table in Table::ALL {
            hasher.update(table.name().as_bytes());
            for field in table.schema().fields() {
                hasher.update(format!("\n{} {} {}", field.name(), field.data_type(), field.is_nullable()).as_bytes());
            }
        }
        hasher.finalize().to_hex()[..16].to_owned()
    });
    &VERSION
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// The segments that can be used, in seq order, perhaps with gaps.
    pub(super) segments: Vec<Segment>,
    pub(super) generation: u64,
    pub(super) erased_to: u64,
    /// How many segments were named and not usable, and of how many records.
    pub(super) left_aside: (usize, u64),
}

impl Manifest {
    /// Replaces the manifest.
    pub(super) fn save(place: &Place, origin: &str, books: (u64, u64), segments: &[Segment]) -> Result<(), Error> {
        let entry = |s: &Segment| SegmentEntry {
            from: s.from,
            to: s.to,
            root: s.root.clone(),
            mapping_version: MAPPING_VERSION,
            schema_version: schema_version().to_owned(),
            files: s.files.iter().map(|file| file.entry.clone()).collect(),
        };
        let manifest = Self {
            version: VERSION,
            origin: origin.to_owned(),
            generation: books.0,
            erased_to: books.1,
            segments: segments.iter().map(entry).collect(),
        };
        let text = serde_json::to_string_pretty(&manifest).map_err(|e| Error::internal(e.to_string()))?;
        place.put(NAME, &(text + "\n"))
    }

    /// Reads the manifest, and looks at every file that it names: size, footer, what the
    /// footer says the file is of. What does not fit is left out, to be made again.
    ///
    /// A visitor may see a manifest that is ahead of the log that it opened: what lies behind
    /// its log is left out.
    pub(super) fn load(place: &Arc<Place>, reader: &Reader, is_own: bool) -> Result<Loaded, Error> {
        let Some(text) = place.get(NAME)? else { return Ok(Loaded::default()) };
        let damaged = |why: &str| {
            tracing::warn!("the manifest of the segments {why}; they are made again from the log");
            Ok(Loaded::default())
        };
        let Ok(mut manifest) = serde_json::from_str::<Self>(&text) else { return damaged("is not readable") };
        if !is_own {
            manifest.segments.retain(|segment| segment.to <= reader.head().size);
        }
        if manifest.version != VERSION || manifest.origin != reader.origin() {
            return damaged("is of another version or log");
        }
        // A log that was put back from a backup may have another history behind some point.
        if let Some(last) = manifest.segments.last() {
            let root = reader.root_at(last.to).map(const_hex::encode).ok();
            if root.as_deref() != Some(&last.root) {
                return damaged("is of another history of this log");
            }
        }
        let mut loaded = Loaded { generation: manifest.generation, erased_to: manifest.erased_to, ..Loaded::default() };
        let mut to = 0;
        for entry in manifest.segments {
            match entry.open(place, reader.origin(), to) {
                Ok(segment) => {
                    to = segment.to;
                    loaded.segments.push(segment);
                }
                Err(why) => {
                    tracing::warn!(from = entry.from, to = entry.to, %why, "a segment is made again from the log");
                    loaded.left_aside.0 += 1;
                    loaded.left_aside.1 += entry.to.saturating_sub(entry.from);
                }
            }
        }
        Ok(loaded)
    }
}

impl SegmentEntry {
    fn open(&self, place: &Arc<Place>, origin: &str, from_min: u64) -> Result<Segment, String> {
        if self.from < from_min || self.to <= self.from {
            return Err("its range does not fit".into());
        }
        if self.mapping_version != MAPPING_VERSION || self.schema_version != schema_version() {
            return Err("it was made by another version".into());
        }
        let mut files = Vec::new();
        for entry in &self.files {
            let table = Table::of_name(&entry.table).ok_or("it is of an unknown table")?;
            match place.size(&entry.path) {
                None => return Err(format!("the file {} is gone", entry.path)),
                Some(size) if size != entry.bytes => return Err(format!("the file {} has another size", entry.path)),
                Some(_) => {}
            }
            let footer = footer(place, entry).map_err(|e| e.to_string())?;
            let said = |key: &str| said(&footer, key);
            let fits = footer.file_metadata().num_rows() as u64 == entry.rows
                && said(key::ORIGIN).as_deref() == Some(origin)
                && said(key::TABLE).as_deref() == Some(table.name())
                && said(key::FROM) == Some(self.from.to_string())
                && said(key::TO) == Some(self.to.to_string())
                && said(key::ROOT).as_deref() == Some(&self.root);
            if !fits {
                return Err(format!("the footer of {} says something else", entry.path));
            }
            files.push(SegmentFile::new(place, table, entry.clone()));
        }
        Ok(Segment { from: self.from, to: self.to, root: self.root.clone(), files })
    }
}

/// Keys of a file's metadata.
pub(super) mod key {
    /// The log.
    pub const ORIGIN: &str = "custody.origin";
    /// The table.
    pub const TABLE: &str = "custody.table";
    /// First seq.
    pub const FROM: &str = "custody.seq_from";
    /// The seq after the last: also the size of the tree that `ROOT` is the root of.
    pub const TO: &str = "custody.seq_to";
    /// Root of the tree at size `TO`, hex.
    pub const ROOT: &str = "custody.root";
    /// Version of the mapping.
    pub const MAPPING: &str = "custody.mapping_version";
    /// Version of the columns.
    pub const SCHEMA: &str = "custody.schema_version";
}

fn said(footer: &ParquetMetaData, key: &str) -> Option<String> {
    let pairs = footer.file_metadata().key_value_metadata()?;
    pairs.iter().find(|pair| pair.key == key)?.value.clone()
}

/// The footer of a file.
pub(super) fn footer(place: &Place, entry: &FileEntry) -> Result<Arc<ParquetMetaData>, Error> {
    let mut reader = place.reader(&entry.path, entry.bytes)?;
    let footer = place.wait(reader.get_metadata(None));
    footer.map_err(|e| super::place::failed(&format!("the footer of {} is not readable", entry.path), e))
}
