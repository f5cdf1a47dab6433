//! Where segment files are: an object store, and what reading and writing it needs.
//!
//! By default that is the folder `segments` of the data directory. Files there are
//! synced before anything names them. Another store needs another constructor and
//! nothing else: all reading and writing of segments goes through here.

use std::fmt;
use std::path::{Path as StdPath, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::{CachedParquetFileReaderFactory, ParquetFileReaderFactory as _};
use datafusion::execution::cache::cache_manager::{CacheManager, CacheManagerConfig, FileMetadataCache};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::object_store::local::LocalFileSystem;
use datafusion::object_store::path::Path;
use datafusion::object_store::{Error as StoreError, ObjectStore, ObjectStoreExt as _};
use datafusion::parquet::arrow::async_reader::AsyncFileReader;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::runtime::Runtime;

use crate::Error;

/// Bytes of footers and page indexes that are kept in memory: of about 70 million records those of one table.
/// Where a scan needs more, each is read and decoded anew by every query.
const METADATA_BYTES_MAX: usize = 64 << 20;

/// Where segment files are.
pub(crate) struct Place {
    store: Arc<dyn ObjectStore>,
    url: ObjectStoreUrl,
    /// The folder, if it is one.
    dir: Option<PathBuf>,
    footers: Arc<FileMetadataCache>,
    readers: CachedParquetFileReaderFactory,
    io: Io,
    doomed: Mutex<Vec<Path>>,
    /// Counts down the steps after which a crash is feigned.
    #[cfg(test)]
    pub(crate) steps_left: std::sync::atomic::AtomicI64,
    /// Deleted with this.
    _scratch: Option<tempfile::TempDir>,
}

/// Threads for reading and writing segments outside of queries.
struct Io(Option<Runtime>);

impl Drop for Io {
    fn drop(&mut self) {
        // The last holder may be a query's task, where no runtime may be waited for.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("url", &self.url.as_str()).finish_non_exhaustive()
    }
}

pub(crate) fn failed(what: &str, error: impl fmt::Display) -> Error {
    Error::new(crate::ErrorKind::Unavailable, format!("{what}: {error}"))
}

impl Place {
    /// Whether it is a folder of this machine.
    pub(super) fn is_local(&self) -> bool {
        self.dir.is_some()
    }

    /// The folder of a data directory; made if it is not there.
    pub(crate) fn folder(dir: &StdPath) -> Result<Arc<Self>, Error> {
        custody_store::make_dir(dir).map_err(|e| failed(&format!("{} cannot be made", dir.display()), e))?;
        Self::of_folder(dir, "segments://own", None)
    }

    /// The folder of a data directory, only to be read.
    pub(crate) fn existing(dir: &StdPath) -> Result<Option<Arc<Self>>, Error> {
        if dir.is_dir() { Self::of_folder(dir, "segments://own", None).map(Some) } else { Ok(None) }
    }

    /// A folder that is deleted with this.
    pub(crate) fn scratch() -> Result<Arc<Self>, Error> {
        let scratch = tempfile::tempdir().map_err(|e| failed("no temporary folder for rows", e))?;
        let dir = scratch.path().to_owned();
        Self::of_folder(&dir, "segments://scratch", Some(scratch))
    }

    fn of_folder(dir: &StdPath, url: &str, scratch: Option<tempfile::TempDir>) -> Result<Arc<Self>, Error> {
        let store = LocalFileSystem::new_with_prefix(dir);
        let store = store.map_err(|e| failed(&format!("{} cannot be opened", dir.display()), e))?;
        Self::new(Arc::new(store), url, Some(dir.to_owned()), scratch)
    }

    fn new(
        store: Arc<dyn ObjectStore>,
        url: &str,
        dir: Option<PathBuf>,
        scratch: Option<tempfile::TempDir>,
    ) -> Result<Arc<Self>, Error> {
        let caches = CacheManagerConfig::default().with_metadata_cache_limit(METADATA_BYTES_MAX);
        let caches = CacheManager::try_new(&caches).map_err(|e| failed("no cache of footers", e))?;
        let footers = caches.get_file_metadata_cache();
        let mut io = tokio::runtime::Builder::new_multi_thread();
        let io = io.worker_threads(1).thread_name("segments").enable_all().build();
        let io = io.map_err(|e| failed("the threads for segments do not start", e))?;
        Ok(Arc::new(Self {
            readers: CachedParquetFileReaderFactory::new(Arc::clone(&store), Arc::clone(&footers)),
            url: ObjectStoreUrl::parse(url).map_err(|e| Error::internal(e.to_string()))?,
            store,
            dir,
            footers,
            io: Io(Some(io)),
            doomed: Mutex::default(),
            #[cfg(test)]
            steps_left: std::sync::atomic::AtomicI64::new(i64::MAX),
            _scratch: scratch,
        }))
    }

    pub(crate) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    pub(crate) fn url(&self) -> &ObjectStoreUrl {
        &self.url
    }

    /// Footers and page indexes that were read before.
    pub(crate) fn footers(&self) -> &Arc<FileMetadataCache> {
        &self.footers
    }

    /// Waits for work on the store. In asynchronous code only where a runtime of several threads can spare this
    /// one for it, as that of the checks.
    pub(crate) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        match &self.io.0 {
            Some(runtime) => tokio::task::block_in_place(|| runtime.handle().block_on(work)),
            None => unreachable!("the threads end with the last holder"),
        }
    }

    /// A reader of a file.
    pub(crate) fn reader(&self, path: &str, bytes: u64) -> Result<Box<dyn AsyncFileReader>, Error> {
        let file = PartitionedFile::new(path, bytes);
        let reader = self.readers.create_reader(0, file, Some(64 << 10), &ExecutionPlanMetricsSet::new());
        let reader = reader.map(|reader| reader as Box<dyn AsyncFileReader>);
        reader.map_err(|e| failed(&format!("the segment file {path} cannot be read"), e))
    }

    /// A step behind which a crash may leave things; tests feign one there.
    pub(crate) fn step(&self) -> Result<(), Error> {
        #[cfg(test)]
        if self.steps_left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) <= 0 {
            return Err(Error::internal("a crash, feigned"));
        }
        Ok(())
    }

    /// Makes a file durable that was written.
    pub(crate) fn sync(&self, path: &Path) -> Result<(), Error> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let file = dir.join(path.as_ref());
        let synced = std::fs::File::open(&file).and_then(|file| file.sync_all());
        synced.map_err(|e| failed(&format!("{} cannot be synced", file.display()), e))
    }

    /// Makes names durable.
    fn sync_folder(&self) -> Result<(), Error> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let synced = std::fs::File::open(dir).and_then(|folder| folder.sync_all());
        synced.map_err(|e| failed(&format!("{} cannot be synced", dir.display()), e))
    }

    /// Writes a small file: it is there whole and durable, or as it was.
    pub(crate) fn put(&self, name: &str, text: &str) -> Result<(), Error> {
        let fail = |e: &dyn fmt::Display| failed(&format!("{name} of the segments cannot be written"), e);
        let Some(dir) = &self.dir else {
            let put = self.wait(self.store.put(&Path::from(name), text.to_owned().into()));
            return put.map(drop).map_err(|e| fail(&e));
        };
        use std::io::Write as _;
        let new = dir.join(format!("{name}.new"));
        let mut file = std::fs::File::create(&new).map_err(|e| fail(&e))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| fail(&e))?;
        self.step()?;
        std::fs::rename(&new, dir.join(name)).map_err(|e| fail(&e))?;
        self.sync_folder()
    }

    /// Reads a small file; `None` if it is not there.
    pub(crate) fn get(&self, name: &str) -> Result<Option<String>, Error> {
        let fail = |e: StoreError| failed(&format!("{name} of the segments cannot be read"), e);
        let got = self.wait(async { self.store.get(&Path::from(name)).await?.bytes().await });
        match got {
            Err(StoreError::NotFound { .. }) => Ok(None),
            got => Ok(Some(String::from_utf8_lossy(&got.map_err(fail)?).into_owned())),
        }
    }

    /// The size of a file; `None` if it is not there or not readable.
    pub(crate) fn size(&self, path: &str) -> Option<u64> {
        self.wait(self.store.head(&Path::from(path))).ok().map(|meta| meta.size)
    }

    /// BLAKE3 of a whole file, hex.
    pub(crate) fn digest(&self, path: &str) -> Result<String, Error> {
        let fail = |e: StoreError| failed(&format!("the segment file {path} cannot be read"), e);
        let digest = self.wait(async {
            let mut stream = self.store.get(&Path::from(path)).await?.into_stream();
            let mut hasher = blake3::Hasher::new();
            while let Some(bytes) = stream.next().await {
                hasher.update(&bytes?);
            }
            Ok(hasher.finalize().to_hex().to_string())
        });
        digest.map_err(fail)
    }

    /// Deletes all files but some: what a crash left, and what no manifest names.
    pub(crate) fn keep_only(&self, keep: &dyn Fn(&str) -> bool) -> Result<(), Error> {
        if let Some(dir) = &self.dir {
            // The listing of the store hides unfinished uploads; they are files all the same.
            let fail = |e| failed(&format!("{} cannot be cleared", dir.display()), e);
            for file in std::fs::read_dir(dir).map_err(fail)? {
                let file = file.map_err(fail)?;
                if !keep(&file.file_name().to_string_lossy()) && file.file_type().is_ok_and(|kind| kind.is_file()) {
                    std::fs::remove_file(file.path()).map_err(fail)?;
                }
            }
            return self.sync_folder();
        }
        let listed = self.wait(self.store.list(None).map_ok(|meta| meta.location).try_collect::<Vec<_>>());
        let listed = listed.map_err(|e| failed("the segments cannot be listed", e))?;
        self.delete(listed.into_iter().filter(|path| !keep(path.as_ref())).collect())
    }

    /// Deletes files; one that is gone already is no error.
    pub(crate) fn delete(&self, paths: Vec<Path>) -> Result<(), Error> {
        if paths.is_empty() {
            return Ok(());
        }
        for path in paths {
            self.footers.remove(&path);
            match self.wait(self.store.delete(&path)) {
                Ok(()) | Err(StoreError::NotFound { .. }) => {}
                Err(e) => return Err(failed(&format!("the segment file {path} cannot be deleted"), e)),
            }
        }
        self.sync_folder()
    }

    /// Notes a file that no snapshot has any more.
    pub(crate) fn doom(&self, path: Path) {
        self.doomed.lock().unwrap_or_else(PoisonError::into_inner).push(path);
    }

    /// Deletes the files that no snapshot has any more.
    pub(crate) fn sweep(&self) -> Result<(), Error> {
        let doomed = std::mem::take(&mut *self.doomed.lock().unwrap_or_else(PoisonError::into_inner));
        self.delete(doomed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(dir) = &self.dir else { return };
        // What the last snapshot of all had to keep: who reads the folder after a stop finds each row once.
        for path in std::mem::take(&mut *self.doomed.lock().unwrap_or_else(PoisonError::into_inner)) {
            let _ = std::fs::remove_file(dir.join(path.as_ref()));
        }
    }
}
