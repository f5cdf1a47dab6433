//! The shim (inject.c), and children that run under it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A fault: what happens, and at which write boundary (or sync).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub name: &'static str,
    pub at: u64,
}

impl Fault {
    pub const NONE: Self = Self { name: "none", at: 0 };
}

/// What a child said before it died.
#[derive(Debug, Default)]
pub struct Said {
    /// Requests that were acknowledged.
    pub acks: Vec<u64>,
    /// Sizes and roots of checkpoints that were published.
    pub checkpoints: Vec<(u64, String)>,
    /// Writes that failed, and why.
    pub failures: Vec<String>,
    /// It ran to its end.
    pub ended: bool,
}

/// The compiled shim; `None`, and a line that says why, where there can be none.
pub fn shim() -> Option<&'static Path> {
    static SHIM: OnceLock<Option<PathBuf>> = OnceLock::new();
    SHIM.get_or_init(|| compile().map_err(|why| eprintln!("skipped: {why}")).ok()).as_deref()
}

fn compile() -> Result<PathBuf, String> {
    if !cfg!(target_os = "linux") {
        return Err("faults are injected with LD_PRELOAD, which needs Linux".into());
    }
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/inject.c");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let new = folder.join(format!("custody-inject-{}.so", std::process::id()));
    let command = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", source, "-ldl", "-lpthread", "-o"];
    let output = Command::new("cc").args(command).arg(&new).output().map_err(|e| format!("no C compiler, cc: {e}"))?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = folder.join("custody-inject.so");
    fs::rename(new, &path).map_err(|e| e.to_string())?;
    Ok(path)
}

/// The data directory on a test's disk. At first it is not there, nor the one above it.
pub fn data(disk: &Path) -> PathBuf {
    disk.join("new/data")
}

/// Runs the entry `child` of this test binary, with a fault in what happens on `disk`.
pub fn child(shim: &Path, disk: &Path, task: &str, fault: Fault, seed: u64) -> Said {
    fs::create_dir_all(disk).unwrap();
    fs::create_dir_all(disk.with_extension("undo")).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture", "--test-threads=1"])
        .env("CUSTODY_FAULT_CHILD", task)
        .env("CUSTODY_FAULT_DATA", data(disk))
        .env("CUSTODY_FAULT_DIR", disk)
        .env("CUSTODY_FAULT", fault.name)
        .env("CUSTODY_FAULT_AT", fault.at.to_string())
        .env("CUSTODY_FAULT_SEED", seed.to_string())
        .env("CUSTODY_FAULT_REPORT", report(disk))
        .env("LD_PRELOAD", shim)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let killed = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9);
    assert!(killed || output.status.success(), "{fault:?} {task}: {}\n{text}\n{stderr}", output.status);
    said(&text, !killed)
}

fn report(disk: &Path) -> PathBuf {
    disk.with_extension("report")
}

/// What the last child counted that ran to its end.
pub struct Counts {
    pub boundaries: u64,
    pub syncs: u64,
    /// The boundaries that put a new checkpoint in place.
    pub signings: Vec<u64>,
}

pub fn counts(disk: &Path) -> Counts {
    let text = fs::read_to_string(report(disk)).unwrap();
    let numbers: Vec<u64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
    Counts { boundaries: numbers[0], syncs: numbers[1], signings: numbers[2..].to_vec() }
}

fn said(text: &str, ended: bool) -> Said {
    let mut said = Said { ended, ..Said::default() };
    for line in text.split_inclusive('\n').filter_map(|l| l.strip_suffix('\n')) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["ack", id] => said.acks.push(id.parse().unwrap()),
            ["ckpt", size, root] => said.checkpoints.push((size.parse().unwrap(), root.into())),
            ["failed:", ..] => said.failures.push(line.into()),
            _ => {}
        }
    }
    said
}
