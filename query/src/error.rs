//! The one error of this crate: what a person who asked is told.

use std::fmt;

use datafusion::error::DataFusionError;

/// What kind of trouble, and so what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The question is wrong: mend it.
    Invalid,
    /// It took longer than allowed.
    Timeout,
    /// It needed more memory than allowed.
    Resources,
    /// It asked to change something; the log is read-only.
    ReadOnly,
    /// The caller lacks a role.
    Forbidden,
    /// Too many queries run already: ask again.
    Busy,
    /// The log cannot be read.
    Unavailable,
    /// Our fault.
    Internal,
}

impl ErrorKind {
    /// The code in machine-readable answers.
    pub fn code(self) -> &'static str {
        match self {
            Self::Invalid => "invalid_query",
            Self::Timeout => "timeout",
            Self::Resources => "resources_exhausted",
            Self::ReadOnly => "read_only",
            Self::Forbidden => "forbidden",
            Self::Busy => "too_many_queries",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub struct Error {
    /// What kind of trouble.
    pub kind: ErrorKind,
    /// What is wrong, and the mend.
    pub message: String,
    /// Line and column in the query, both from 1.
    pub position: Option<(u64, u64)>,
}

impl Error {
    /// An error without a position.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), position: None }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    pub(crate) fn store(error: custody_store::Error) -> Self {
        Self::new(ErrorKind::Unavailable, error.to_string())
    }

    /// A segment file that cannot be read: it was deleted from under the query, or is damaged.
    pub(crate) fn segment(file: &str, why: impl fmt::Display) -> Self {
        let message = format!(
            "{file} cannot be read ({why}); if content was erased just now, ask again; if the file is damaged, \
             `custody rebuild --check` makes it again"
        );
        Self::new(ErrorKind::Unavailable, message)
    }

    /// What DataFusion says, for a person.
    pub(crate) fn query(error: &DataFusionError) -> Self {
        if let DataFusionError::External(own) = error.find_root()
            && let Some(own) = own.downcast_ref::<Self>()
        {
            return own.clone();
        }
        let message = error.strip_backtrace();
        if matches!(error.find_root(), DataFusionError::ObjectStore(_) | DataFusionError::ParquetError(_)) {
            return Self::segment("a segment file", &message);
        }
        let kind = match error.find_root() {
            DataFusionError::ResourcesExhausted(_) => ErrorKind::Resources,
            // It is the question's, and no fault within.
            DataFusionError::Internal(said) if said.contains(TOO_LARGE) => {
                let at = said.find(TOO_LARGE).unwrap_or_default();
                let said = said[at..].lines().next().unwrap_or(TOO_LARGE);
                return Self::invalid(format!("{said} Write a shorter one"));
            }
            DataFusionError::Internal(_) => ErrorKind::Internal,
            _ if message.contains("not supported: ") && message.contains("Statement") => ErrorKind::ReadOnly,
            _ => ErrorKind::Invalid,
        };
        let span = error.diagnostic().and_then(|d| d.span);
        let position = span.map(|s| (s.start.line, s.start.column)).or_else(|| position_in(&message));
        Self { kind, message: tidy(&message), position }
    }
}

/// How DataFusion calls a pattern that it was given, and that the regex crate refuses, a fault of its own.
const TOO_LARGE: &str = "Regular expression did not compile";

/// Takes what DataFusion and the parser say about themselves off a message.
fn tidy(message: &str) -> String {
    const PREFIXES: [&str; 9] = [
        "Error during planning: ",
        "SQL error: ",
        "Schema error: ",
        "Execution error: ",
        "External error: ",
        "Arrow error: ",
        "Parser error: ",
        "Cast error: ",
        "type_coercion\ncaused by\n",
    ];
    let mut rest = message;
    loop {
        let inner = PREFIXES.iter().find_map(|prefix| rest.strip_prefix(prefix));
        let by_rule = rest.strip_prefix("Optimizer rule '").and_then(|r| r.split_once("' failed\ncaused by\n"));
        match inner.or(by_rule.map(|(_, inner)| inner)) {
            Some(inner) => rest = inner,
            None => break,
        }
    }
    let quoted = ["ParserError(\"", "TokenizerError(\""].iter().find_map(|kind| rest.strip_prefix(kind));
    if let Some(inner) = quoted.and_then(|r| r.strip_suffix("\")")) {
        return inner.replace("\\\"", "\"");
    }
    rest.to_owned()
}

/// Finds "Line: 1, Column: 8" in a parser's message.
fn position_in(message: &str) -> Option<(u64, u64)> {
    let number = |after: &str| {
        let rest = &message[message.find(after)? + after.len()..];
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    Some((number("Line: ")?, number("Column: ")?))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.position {
            Some((line, column)) if !self.message.contains("Column: ") => {
                write!(f, " (line {line}, column {column})")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
