//! What the demo does to a copy: one byte, changed as an operator could who knows
//! RocksDB, with its checksums right afterwards.

use std::path::Path;

use crate::Failure;

/// Copies a data directory and flips one byte of the record with this seq, within
/// its arguments if it has any. Says what was changed.
pub fn flip_one_byte(from: &Path, to: &Path, seq: u64) -> Result<String, Failure> {
    copy(from, to).map_err(Failure::unable)?;
    let at = custody_store::tamper::find(to, seq, b"\"amount\": ").map_err(Failure::unable)?;
    let (before, after) = custody_store::tamper::flip(to, &at).map_err(Failure::unable)?;
    Ok(format!("seq {seq}: {before:?} becomes {after:?}"))
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
