//! Long answers go through a pager: `$PAGER`, or else `less -S`, which cuts wide lines and moves sideways.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::{Failure, print_bytes};

/// Shows a text on a terminal of this size; without one there is no paging.
pub fn show(text: &[u8], size: Option<(u16, u16)>) -> Result<(), Failure> {
    let Some(command) = size.filter(|size| !fits(text, *size)).and_then(|_| command()) else {
        return print_bytes(text);
    };
    let mut shell = Command::new("sh");
    let Ok(mut pager) = shell.arg("-c").arg(&command).stdin(Stdio::piped()).spawn() else { return print_bytes(text) };
    if let Some(mut input) = pager.stdin.take() {
        // Who leaves it has seen enough.
        let _ = input.write_all(text);
    }
    let ended = pager.wait().map_err(|e| Failure::unable(format!("{command}: {e}")))?;
    // 127: there is no such program.
    if ended.code() == Some(127) { print_bytes(text) } else { Ok(()) }
}

/// Whether a terminal of so many columns and rows shows all of it, and the next prompt.
fn fits(text: &[u8], (columns, rows): (u16, u16)) -> bool {
    let text = String::from_utf8_lossy(text);
    let mut lines = 0;
    text.lines().all(|line| {
        lines += 1;
        lines < usize::from(rows) && line.chars().count() <= usize::from(columns)
    })
}

/// The pager; `PAGER` that is empty says that none is wanted.
fn command() -> Option<String> {
    match std::env::var("PAGER") {
        Ok(named) if named.trim().is_empty() => None,
        Ok(named) => Some(named),
        Err(_) => {
            let dirs = std::env::var_os("PATH")?;
            std::env::split_paths(&dirs).any(|dir| dir.join("less").is_file()).then(|| "less -S".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn a_text_fits_with_room_for_the_prompt() {
        assert!(fits(b"a\nb\n", (80, 3)) && !fits(b"a\nb\n", (80, 2)), "a row is the prompt's");
        assert!(fits("äöü".as_bytes(), (3, 24)) && !fits(b"abcd", (3, 24)));
        assert!(fits(b"", (80, 24)));
    }
}
