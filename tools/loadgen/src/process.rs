//! CPU time and memory of a process on this machine, from /proc.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// CPU seconds (user and system) of a process so far.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may have blanks; the fields behind it have none.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
    // The kernel counts for programs in hundredths of a second on every Linux there is.
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

/// Resident bytes of a process now.
pub fn rss_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// What a process used between two moments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    pub cpu_seconds: f64,
    pub rss_bytes_max: u64,
}

/// Watches a process, ten times a second.
pub struct Watch {
    pid: u32,
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    since: Mutex<f64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watch {
    /// Starts, if the process is there.
    pub fn start(pid: u32) -> Result<Self, String> {
        let since = cpu_seconds(pid).ok_or_else(|| format!("there is no process {pid} to read CPU time from"))?;
        let (peak, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (to, until) = (Arc::clone(&peak), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("watch".into()).spawn(move || {
            while !until.load(Ordering::Relaxed) {
                to.fetch_max(rss_bytes(pid).unwrap_or(0), Ordering::Relaxed);
                std::thread::park_timeout(Duration::from_millis(100));
            }
        });
        let thread = thread.map_err(|e| e.to_string())?;
        Ok(Self { pid, peak, stop, since: Mutex::new(since), thread: Some(thread) })
    }

    /// What was used since the last lap; none if the process has ended.
    pub fn lap(&self) -> Option<Usage> {
        let now = cpu_seconds(self.pid)?;
        let rss = rss_bytes(self.pid).unwrap_or(0);
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *since, now);
        Some(Usage { cpu_seconds: now - before, rss_bytes_max: self.peak.swap(0, Ordering::Relaxed).max(rss) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lap_counts_what_was_used_since_the_last() {
        let watch = Watch::start(std::process::id()).unwrap();
        let mut x = 1u64;
        while cpu_seconds(std::process::id()).unwrap() < *watch.since.lock().unwrap() + 0.1 {
            x = std::hint::black_box(crate::random::mix(x));
        }
        let used = watch.lap().unwrap();
        assert!(used.cpu_seconds >= 0.1 && used.rss_bytes_max > 100_000, "{used:?}");
        assert!(watch.lap().unwrap().cpu_seconds < used.cpu_seconds);
        assert!(Watch::start(u32::MAX).is_err());
    }
}
