//! The one error of this crate. Its kind says what the caller must do.

use std::fmt;

/// What the caller must do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The input is wrong: mend it.
    Invalid,
    /// Not now (in use by another process, no space): try again.
    Unavailable,
    /// The evidence is damaged: run `custody verify`.
    Corrupt,
    /// A write or a sync failed: stop, and recover by opening again.
    Fatal,
}

/// Why the log could not do what was asked.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    /// What the caller must do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The input is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Invalid, message: message.into() }
    }

    /// Not now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Unavailable, message: message.into() }
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Corrupt, message: message.into() }
    }

    pub(crate) fn fatal(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Fatal, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<rocksdb::Error> for Error {
    fn from(error: rocksdb::Error) -> Self {
        use rocksdb::ErrorKind as K;
        let message = format!("storage: {error}");
        match error.kind() {
            K::Corruption => Self::corrupt(message),
            K::Busy | K::TimedOut | K::TryAgain => Self::unavailable(message),
            _ => Self::fatal(message),
        }
    }
}
