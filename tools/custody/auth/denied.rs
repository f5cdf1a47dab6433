//! Why somebody does not come in, and what he is told.

use std::time::Duration;

use custody_ingest::{Reason, Refusal};

use super::token::Flaw;

/// Why somebody does not come in.
#[derive(Clone, Debug)]
pub enum Denied {
    /// What he shows is not good, or he shows nothing.
    Unknown {
        /// As what it is counted and recorded.
        reason: &'static str,
        /// For himself.
        message: String,
    },
    /// It is known who he is, and no rule lets him in.
    Stranger {
        /// Who.
        identity: String,
    },
    /// Keys are needed that could not be fetched yet.
    Unavailable(String),
    /// The same, and they should be fetched: which issuer's.
    Keys(usize, Flaw),
}

impl Denied {
    pub(super) fn unknown(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Unknown { reason, message: message.into() }
    }

    /// As what it is counted.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Unknown { reason, .. } => reason,
            Self::Stranger { .. } => "no_rule",
            Self::Unavailable(_) => "keys_unavailable",
            Self::Keys(_, flaw) => flaw.name(),
        }
    }

    /// What he is told, in the words of the receivers.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Unknown { message, .. } => Refusal::Unauthenticated(message.clone()),
            Self::Stranger { identity } => Refusal::Forbidden(format!("no rule of the policy lets {identity} in")),
            Self::Unavailable(message) => Refusal::Unavailable {
                message: message.clone(),
                retry_after: Duration::from_secs(5),
                reason: Reason::Unavailable,
            },
            Self::Keys(_, flaw) => Refusal::Unauthenticated(flaw.message()),
        }
    }
}
