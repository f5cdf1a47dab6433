//! What was typed in earlier sessions: a file of the user's alone. A line that begins with a space is not kept.

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustyline::Editor;
use rustyline::history::FileHistory;

use super::complete::Helper;

/// Where it is kept, if it is.
pub struct History(Option<PathBuf>);

impl History {
    /// Reads the file. That it cannot be read or made is said, and keeps nobody from asking.
    pub fn open(keeps: bool, editor: &mut Editor<Helper, FileHistory>) -> Self {
        let Some(path) = keeps.then(path).flatten() else { return Self(None) };
        let read = prepare(&path).map_err(|e| e.to_string()).and_then(|is_there| match is_there {
            true => editor.load_history(&path).map_err(|e| e.to_string()),
            false => Ok(()),
        });
        match read {
            Ok(()) => Self(Some(path)),
            Err(error) => {
                eprintln!("no history: {}: {error}", path.display());
                Self(None)
            }
        }
    }

    /// Keeps what was typed, at once: other sessions may be open.
    pub fn add(&self, editor: &mut Editor<Helper, FileHistory>, entry: &str) {
        let entry = entry.trim_end();
        if !matches!(editor.add_history_entry(entry), Ok(true)) {
            return;
        }
        if let Some(path) = &self.0
            && let Err(error) = editor.append_history(path)
        {
            eprintln!("history: {}: {error}", path.display());
        }
    }
}

/// `$XDG_STATE_HOME/custody/sql_history`, by default below `~/.local/state` (XDG Base Directory Specification). Paths
/// there must be absolute; another one is none.
fn path() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("custody/sql_history"))
}

/// Makes the directory, and takes from others what they may do with the file; whether there is one.
fn prepare(path: &Path) -> std::io::Result<bool> {
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    match std::fs::metadata(path) {
        Ok(_) => std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map(|()| true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
