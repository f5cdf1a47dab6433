//! Looking over, once after a start, whether the files of segments are still what was written. A start itself looks at sizes
//! and footers only, and a bit that turned on the disk can decompress to another value without any error.
//!
//! It reads slowly and aside from all else, so that queries do not wait for it: nothing is locked until a file is found
//! that is not sound.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use datafusion::object_store::path::Path;
use datafusion::object_store::{Error as StoreError, ObjectStoreExt as _};
use futures::StreamExt as _;

use super::{Place, Segment, lock};
use crate::Error;
use crate::projection::Projection;

/// After so many bytes...
const STRETCH_BYTES: u64 = 1 << 20;
/// ...it waits for so long: some 60 MB a second at most.
const REST: Duration = Duration::from_millis(16);

impl Projection {
    /// Reads every file that there is now once, and makes those segments again that are not what was written; gives how
    /// many those were.
    pub(crate) fn look_over(&self) -> Result<usize, Error> {
        let segments = Arc::clone(&self.snapshot().segments);
        // An object store keeps checksums of its own, and lets itself be paid for what is read.
        if !segments.iter().flat_map(|segment| &segment.files).all(|file| file.place.is_local()) {
            return Ok(0);
        }
        let ranges: Vec<_> = segments.iter().map(|segment| segment.from..segment.to).collect();
        // Not held: files that are replaced meanwhile are deleted when nothing has them.
        drop(segments);
        let mut made = 0;
        for range in ranges {
            let segments = Arc::clone(&self.snapshot().segments);
            // One that was merged meanwhile was looked at for that, or its rows were read.
            let Some(segment) = segments.iter().find(|s| s.from == range.start && s.to == range.end) else { continue };
            if self.is_well() && !is_sound(segment, &self.stop) && self.make_again(segment)? {
                made += 1;
            }
        }
        self.sweep()?;
        Ok(made)
    }

    /// Makes a segment again, if it is still there; false if not.
    fn make_again(&self, segment: &Segment) -> Result<bool, Error> {
        let _rewriting = lock(&self.rewriting);
        let is_same = |other: &Segment| {
            let paths = |segment: &Segment| segment.files.iter().map(|f| f.entry.path.clone()).collect::<Vec<_>>();
            other.from == segment.from && other.to == segment.to && paths(other) == paths(segment)
        };
        if !self.is_well() || !self.snapshot().segments.iter().any(is_same) {
            return Ok(false);
        }
        let (from, to) = (segment.from, segment.to);
        tracing::warn!(from, to, "a segment is not what was written; it is made again from the log");
        let made = self.build(from..to, &mut |_| {})?;
        self.replace(from..to, made)?;
        Ok(true)
    }
}

/// Whether all files of a segment are what was written; also if there was no time to find out.
fn is_sound(segment: &Segment, stop: &AtomicBool) -> bool {
    segment.files.iter().all(|file| match digest(&file.place, &file.path(), stop) {
        Ok(Some(digest)) => digest == file.entry.digest,
        Ok(None) => true,
        // Deleted under it when it was replaced, or lost: whether it is still wanted is seen before it is made again.
        Err(error) => {
            tracing::warn!(%error, path = %file.entry.path, "a segment file cannot be read");
            false
        }
    })
}

/// BLAKE3 of a file, hex, read slowly; `None` if it is to stop.
fn digest(place: &Place, path: &Path, stop: &AtomicBool) -> Result<Option<String>, StoreError> {
    place.wait(async {
        let mut stream = place.store().get(path).await?.into_stream();
        let (mut hasher, mut since) = (blake3::Hasher::new(), 0);
        while let Some(bytes) = stream.next().await {
            let bytes = bytes?;
            hasher.update(&bytes);
            since += bytes.len() as u64;
            if since >= STRETCH_BYTES {
                since = 0;
                tokio::time::sleep(REST).await;
                if stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
            }
        }
        Ok(Some(hasher.finalize().to_hex().to_string()))
    })
}
