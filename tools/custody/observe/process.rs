//! This process as Linux shows it in /proc, by the names that Prometheus' own client
//! libraries use. What cannot be read is left out.

use std::fs;
use std::sync::OnceLock;

use custody_store::measure::{Family, Value};

/// Memory, processor time, files, start.
pub fn families() -> Vec<Family> {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let seconds = |ticks: u64| ticks as f64 / ticks_per_second();
    // Behind the name, which may hold anything, fields are counted from the third.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |n: usize| fields.get(n - 3).and_then(|field| field.parse::<u64>().ok());
    let gauge = |value: Option<f64>, name, help| value.map(|value| Family::gauge(name, help, value));
    let cpu = field(14).zip(field(15)).map(|(user, system)| seconds(user + system));
    let start = field(22).zip(boot_time()).map(|(ticks, boot)| boot + seconds(ticks));
    let found = [
        cpu.map(|cpu| {
            Family::one("process_cpu_seconds", "Total user and system CPU time spent in seconds", Value::Counter(cpu))
        }),
        gauge(start, "process_start_time_seconds", "Start time of the process since unix epoch in seconds"),
        gauge(kib(&status, "VmRSS:"), "process_resident_memory_bytes", "Resident memory size in bytes"),
        gauge(kib(&status, "VmSize:"), "process_virtual_memory_bytes", "Virtual memory size in bytes"),
        gauge(open_fds(), "process_open_fds", "Number of open file descriptors"),
        gauge(max_fds(), "process_max_fds", "Maximum number of open file descriptors"),
        gauge(field(20).map(|n| n as f64), "process_threads", "Number of threads"),
    ];
    found.into_iter().flatten().collect()
}

/// A line such as `VmRSS:    123 kB`, in bytes.
fn kib(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}

fn open_fds() -> Option<f64> {
    // One is the directory that is being read.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

fn max_fds() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// The unit of times in /proc/self/stat: AT_CLKTCK of the auxiliary vector.
fn ticks_per_second() -> f64 {
    const AT_CLKTCK: usize = 17;
    static TICKS: OnceLock<f64> = OnceLock::new();
    *TICKS.get_or_init(|| {
        let vector = fs::read("/proc/self/auxv").unwrap_or_default();
        let words: Vec<usize> = vector
            .chunks_exact(size_of::<usize>())
            .filter_map(|word| Some(usize::from_ne_bytes(word.try_into().ok()?)))
            .collect();
        let found = words.chunks_exact(2).find(|pair| pair[0] == AT_CLKTCK).map(|pair| pair[1] as f64);
        found.filter(|ticks| *ticks > 0.0).unwrap_or(100.0)
    })
}
