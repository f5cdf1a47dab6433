//! The checks: each a SQL file whose head names its severity, its tags and its knobs. They follow
//! what comes in, and tell each hit once by a record of the log; docs/checks.md lists them,
//! docs/rules.md says how to write more.

mod ends;
mod evaluator;
mod examples;
mod fields;
mod follow;
mod functions;
mod habits;
mod here;
mod hit;
mod judged;
#[cfg(test)]
mod pairs_tests;
mod process;
mod relations;
mod rule;
mod run;
mod running;
mod sequences;
mod span_ids;
mod spared;
mod state;
mod tally;
#[cfg(test)]
mod tenants_tests;
#[cfg(test)]
mod tests;
mod touched;
mod tuning;
mod uses;
mod violations;
mod withheld;

pub use ends::{EndedBuilder, EndedRow};
pub use examples::{Tried, try_rules};
pub use follow::{Following, Live, follow};
pub use habits::{HabitBuilder, HabitRow};
pub(crate) use hit::tells_details;
pub use hit::{HitBuilder, HitRow};
pub use rule::{Rule, SEVERITIES, Setting};
pub use run::Checker;
pub use running::{FinishedBuilder, FinishedRow};
pub use sequences::{NumberedBuilder, NumberedRow};
pub use span_ids::{SpanIdBuilder, SpanIdRow};
pub use tuning::{Tuning, shown};
pub use uses::{UseBuilder, UseRow};
pub(crate) use violations::register;

macro_rules! checks {
    ($($id:literal),+ $(,)?) => {
        /// The checks that come with Custody: id, definition, examples.
        pub(crate) const BUILT_IN: &[(&str, &str, &str)] = &[$((
            $id,
            include_str!(concat!("checks/", $id, ".sql")),
            include_str!(concat!("checks/", $id, ".examples.json")),
        )),+];
    };
}

checks!(
    "no_grant",
    "unknown_grant",
    "expired_grant",
    "not_yet_valid",
    "revoked_grant",
    "outside_actions",
    "outside_resources",
    "outside_constraints",
    "wrong_subject",
    "over_used",
    "widened_delegation",
    "too_deep",
    "broken_lineage",
    "conflicting_grant",
    "denied_then_executed",
    "approval_missing",
    "self_approved",
    "shared_identity",
    "replayed_grant",
    "bad_signature",
    "lethal_trifecta",
    "unattributed",
    "missing_hop",
    "conflicting_span",
    "sequence_gap",
    "silent_source",
    "clock_skew",
    "wrong_audience",
    "purpose_drift",
    "untrusted_issuer",
    "grant_without_evaluation",
    "policy_drift",
    "excess_lifetime",
    "unused_authority",
    "spliced",
    "wrong_delegator",
    "derived_after_end",
    "initiator_changed",
    "inherited",
    "uncascaded_revocation",
    "sod_conflict",
    "approved_other",
    "stale_approval",
    "late_approval",
    "rubber_stamp",
    "mode_bypass",
    "identity_flap",
    "confused_deputy",
    "executor_bypass",
    "params_mismatch",
    "call_without_result",
    "result_without_call",
    "after_session_end",
    "uncertified_skill",
    "tool_schema_changed",
    "process_violation",
    "probing",
    "untrusted_to_write",
    "overclassified",
    "memory_taint",
    "orphan_span",
    "backdated",
    "future_event",
    "self_reported_only",
    "truncated",
    "sampled_trace",
);

/// The checks that come with Custody.
pub fn built_in() -> Vec<Rule> {
    let rule = |(id, sql, examples): &(&str, &str, &str)| {
        let rule = Rule::parse(id, sql).ok()?;
        Some(Rule { examples: Some((*examples).to_owned()), ..rule })
    };
    BUILT_IN.iter().filter_map(rule).collect()
}

impl crate::Projection {
    /// The checks that follow it, if any do.
    pub fn checks(&self) -> Option<&std::sync::Arc<Live>> {
        self.checks.get()
    }
}
