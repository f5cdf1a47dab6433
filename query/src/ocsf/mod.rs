//! Provenance events in the formats that SIEMs read: OCSF 1.8.0, ECS and CEF.
//!
//! A line is a pure function of a row and of the log it is in: the same bytes whenever it is asked
//! for, by whatever page or export of one version of the product, whose number stands in it. No column
//! of a row is lost in OCSF and ECS: what they have no place for stands in `unmapped` and in the extension
//! `custody` (docs/ocsf.md). CEF is a summary.

mod cef;
mod class;
mod ecs;
mod entries;
mod event;
mod json;
mod known;
mod parts;
mod schema;
mod told;
mod validate;

pub use ecs::rfc3339;
pub use entries::EntryHashes;
pub use known::{Place, place};
pub use schema::Schema;
pub use validate::{Fault, Report};

use crate::event::EventRow;

/// The version of OCSF that is written.
pub const VERSION: &str = "1.8.0";

/// A format of events, one line each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Open Cybersecurity Schema Framework, JSON.
    Ocsf,
    /// Elastic Common Schema, JSON.
    Ecs,
    /// ArcSight Common Event Format, text.
    Cef,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ocsf, Self::Ecs, Self::Cef];

    /// Its name in `format=`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ocsf => "ocsf",
            Self::Ecs => "ecs",
            Self::Cef => "cef",
        }
    }

    /// The format of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Whether its lines are JSON objects.
    pub fn is_json(self) -> bool {
        self != Self::Cef
    }

    /// Whether its lines tell [`Context::hashes`].
    pub fn has_hashes(self) -> bool {
        self != Self::Cef
    }
}

/// What an event needs besides its row.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The log's origin, as in its checkpoints.
    pub origin: &'a str,
    /// The hashes of the entry at a seq, if they are at hand.
    pub hashes: Option<&'a dyn Fn(u64) -> Option<EntryHashes>>,
    /// Size and root of a checkpoint that covers the event. Only where it is the same at every
    /// reading, as in an export that names its checkpoint.
    pub checkpoint: Option<(u64, [u8; 32])>,
    /// How many events of this kind the record gave before this one.
    pub nth: u32,
}

impl<'a> Context<'a> {
    /// Of a log, and nothing more.
    pub fn of(origin: &'a str) -> Self {
        Self { origin, hashes: None, checkpoint: None, nth: 0 }
    }
}

/// Appends the line of an event, without a line feed at its end or within.
pub fn encode(format: Format, row: &EventRow, context: &Context<'_>, out: &mut String) {
    match format {
        Format::Ocsf => event::write(row, context, out),
        Format::Ecs => ecs::write(row, context, out),
        Format::Cef => cef::write(row, context, out),
    }
}

/// How severe an event is, as OCSF's `severity_id`: 0 to 6, or 99 for what its source alone knows.
pub(crate) fn severity(row: &EventRow) -> u32 {
    class::severity(row, &told::Told::of(row)).0
}

fn uid(row: &EventRow, context: &Context<'_>) -> String {
    uid_of(context.origin, row.seq, &row.kind, context.nth)
}

/// The stable id of an event, by which a reader drops doubles: `origin:seq:kind`, and of a record
/// that gave several of one kind `origin:seq:kind:2` for the second and so on.
pub(crate) fn uid_of(origin: &str, seq: u64, kind: &str, nth: u32) -> String {
    match nth {
        0 => format!("{origin}:{seq}:{kind}"),
        nth => format!("{origin}:{seq}:{kind}:{}", nth + 1),
    }
}

/// Milliseconds of a time, as OCSF has it.
fn millis(time: crate::rows::Time) -> i64 {
    time.0.div_euclid(1_000_000)
}

/// The version of the product.
const PRODUCT_VERSION: &str = env!("CARGO_PKG_VERSION");

#[cfg(test)]
mod any_tests;
#[cfg(test)]
pub(crate) mod tests;
