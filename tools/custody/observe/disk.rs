//! Room on the disk of the log: measured, and the gate shut before it is used up.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use custody_ingest::Gate;

/// How often the free space is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Bytes that can still be written, for one that is not root.
pub fn free(dir: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(dir).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Bytes of the files that the log consists of.
pub fn used(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir.join("log")).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).filter(|found| found.is_file()).map(|found| found.len()).sum()
}

/// Shuts the gate while less than `needed` is free: at once, and then as long as the
/// future is polled, which never ends.
pub fn guard(dir: Arc<Path>, needed: u64, gate: Arc<Gate>) -> impl Future<Output = ()> {
    let mut was_low = false;
    let mut look = move || {
        let Some(free) = free(&dir) else { return };
        let low = free < needed;
        gate.set_disk_low(low);
        if low && !was_low {
            tracing::error!(
                free,
                needed,
                "the disk of the log is nearly full: requests are refused until there is room"
            );
        } else if was_low && !low {
            tracing::info!(free, needed, "there is room on the disk of the log again");
        }
        was_low = low;
    };
    look();
    async move {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            look();
        }
    }
}
