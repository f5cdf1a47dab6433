//! How much memory queries have, unless it is said: more on a machine that has more.

use std::path::Path;

/// What they have at least, also where the machine does not say what it has.
const LEAST: u64 = 1 << 30;
/// And at most.
const MOST: u64 = 16 << 30;

/// Memory of all queries together, in bytes, unless it is said: an eighth of what the machine, or the control
/// group that this process is in, has; one GiB at least, 16 at most.
pub fn memory_for_queries() -> usize {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let all = machine(&read).into_iter().chain(group(&read)).min().unwrap_or(0);
    usize::try_from((all / 8).clamp(LEAST, MOST)).unwrap_or(LEAST as usize)
}

/// What the machine has, as Linux tells it.
fn machine(read: &impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let text = read(Path::new("/proc/meminfo"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the control group may have, or one above it: a container, or a unit with `MemoryMax`.
fn group(read: &impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let own = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    // Of version 2 there is one line, without a controller's name. A container sees itself as the root.
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let place = Path::new("/sys/fs/cgroup").join(own);
    let above = place.ancestors().take_while(|place| place.starts_with("/sys/fs/cgroup"));
    let limits = above.filter_map(|place| read(&place.join("memory.max"))?.trim().parse().ok());
    limits
        .chain(read(Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes")).and_then(|t| t.trim().parse().ok()))
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_of_what_the_machine_and_the_groups_have_counts() {
        let files = [
            ("/proc/meminfo", "MemTotal:       32768000 kB\nMemFree: 1 kB\n"),
            ("/proc/self/cgroup", "0::/system.slice/custody.service\n"),
            ("/sys/fs/cgroup/system.slice/custody.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/system.slice/memory.max", "17179869184\n"),
        ];
        let read = |path: &Path| files.iter().find(|(of, _)| Path::new(of) == path).map(|(_, text)| (*text).to_owned());
        assert_eq!((machine(&read), group(&read)), (Some(32_768_000 * 1024), Some(16 << 30)));
        let none = |_: &Path| None;
        assert_eq!((machine(&none), group(&none)), (None, None));
        let odd = |_: &Path| Some("MemTotal: many\n0::\n".to_owned());
        assert_eq!((machine(&odd), group(&odd)), (None, None));
    }

    #[test]
    fn it_is_never_less_than_it_was_nor_without_bound() {
        let bytes = memory_for_queries() as u64;
        assert!((LEAST..=MOST).contains(&bytes), "{bytes}");
    }
}
