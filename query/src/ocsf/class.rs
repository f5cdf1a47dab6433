//! Which class and activity of OCSF 1.8.0 an event is, how severe, and what was decided. The table
//! in docs/ocsf.md says why.

use super::told::{Field, Told};
use crate::event::EventRow;

/// Which attributes a class has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// API Activity 6003.
    Api,
    /// Datastore Activity 6005.
    Datastore,
    /// Authorize Session 3003.
    Session,
    /// Entity Management 3004.
    Entity,
    /// Detection Finding 2004.
    Finding,
    /// Event Log Activity 1008.
    EventLog,
    /// Base Event 0.
    Base,
}

impl Shape {
    /// (class, its name, category, its name).
    pub(super) fn class(self) -> (u32, &'static str, u32, &'static str) {
        match self {
            Self::Api => (6003, "API Activity", 6, "Application Activity"),
            Self::Datastore => (6005, "Datastore Activity", 6, "Application Activity"),
            Self::Session => (3003, "Authorize Session", 3, "Identity & Access Management"),
            Self::Entity => (3004, "Entity Management", 3, "Identity & Access Management"),
            Self::Finding => (2004, "Detection Finding", 2, "Findings"),
            Self::EventLog => (1008, "Event Log Activity", 1, "System Activity"),
            Self::Base => (0, "Base Event", 0, "Uncategorized"),
        }
    }

    /// The classes that the profile `ai_operation` adds to.
    pub(super) fn is_ai(self) -> bool {
        matches!(self, Self::Api | Self::Datastore)
    }
}

/// What an event is.
pub(super) struct Class<'a> {
    pub(super) shape: Shape,
    pub(super) activity: u32,
    /// The activity's name: OCSF's own, or for 99 ours.
    pub(super) name: &'a str,
    /// Its caption in OCSF: that of 99 is Other.
    pub(super) caption: &'a str,
}

impl<'a> Class<'a> {
    pub(super) fn of(row: &'a EventRow, told: &Told<'_>) -> Self {
        let known = |shape, activity, name| Self { shape, activity, name, caption: name };
        let other = |shape, name| Self { shape, activity: 99, name, caption: "Other" };
        match row.kind.as_str() {
            "tool_call" => match row.action.as_deref().unwrap_or_default() {
                "create" => known(Shape::Api, 1, "Create"),
                "read" => known(Shape::Api, 2, "Read"),
                "update" | "write" => known(Shape::Api, 3, "Update"),
                "delete" => known(Shape::Api, 4, "Delete"),
                _ => match row.effect.as_deref() {
                    Some("read") => known(Shape::Api, 2, "Read"),
                    Some("write") => known(Shape::Api, 3, "Update"),
                    Some("external_send") => other(Shape::Api, "Send"),
                    _ => other(Shape::Api, "Invoke"),
                },
            },
            "tool_result" => other(Shape::Api, "Result"),
            "executor_decision" => other(Shape::Api, "Decide Execution"),
            "grant_used" => other(Shape::Api, "Use Grant"),
            "model_call" => other(Shape::Api, "Infer"),
            "model_result" => other(Shape::Api, "Infer Result"),
            "agent_invocation" => other(Shape::Api, "Invoke Agent"),
            "skill_invocation" => other(Shape::Api, "Invoke Skill"),
            "request" => other(Shape::Api, "Request"),
            "output" => other(Shape::Api, "Output"),
            "guardrail" => other(Shape::Api, "Guard"),
            "policy_evaluation" => other(Shape::Api, "Evaluate Policy"),
            "approval" => other(Shape::Api, "Approve"),
            "system_update" => known(Shape::Api, 3, "Update"),
            "context_retrieval" => known(Shape::Datastore, 4, "Query"),
            "grant_issued" | "grant_derived" | "grant_denied" => known(Shape::Session, 1, "Assign Privileges"),
            "grant_revoked" => other(Shape::Session, "Revoke Privileges"),
            "authority_change" => known(Shape::Entity, 3, "Update"),
            // The details of one that was told without them.
            "alert" if told.text(Field::AlertDetails).as_deref() == Some("told") => known(Shape::Finding, 2, "Update"),
            "alert" => known(Shape::Finding, 1, "Create"),
            "alert_acknowledged" | "alert_superseded" | "containment_decision" => known(Shape::Finding, 2, "Update"),
            "investigation" if row.decision.as_deref() == Some("closed") => known(Shape::Finding, 3, "Close"),
            "investigation" => known(Shape::Finding, 2, "Update"),
            "erasure" => known(Shape::EventLog, 2, "Delete"),
            "" => other(Shape::Base, "unknown"),
            kind => other(Shape::Base, kind),
        }
    }
}

/// A code of OCSF and the text beside it.
pub(super) type Coded<'a> = (u32, &'a str);

/// What was decided, as `action_id` and `disposition_id` say it.
pub(super) struct Verdict<'a> {
    pub(super) action: Coded<'a>,
    pub(super) disposition: Coded<'a>,
}

impl Verdict<'_> {
    pub(super) fn denies(&self) -> bool {
        self.action.0 == 2
    }
}

/// The verdict of a row, where its decision is one about something that was to be done.
pub(super) fn verdict(row: &EventRow) -> Option<Verdict<'_>> {
    if matches!(
        row.kind.as_str(),
        "alert"
            | "alert_acknowledged"
            | "alert_superseded"
            | "investigation"
            | "containment_decision"
            | "authority_change"
            | "erasure"
    ) {
        return None;
    }
    let said = row.decision.as_deref()?;
    const ALLOWED: Coded<'_> = (1, "Allowed");
    const DENIED: Coded<'_> = (2, "Denied");
    let (action, disposition) = match said.to_ascii_lowercase().as_str() {
        "allow" | "allowed" | "permit" | "accept" | "pass" | "passed" => (ALLOWED, (1, "Allowed")),
        "approved" | "approve" => (ALLOWED, (8, "Approved")),
        "deny" | "denied" | "block" | "blocked" | "forbid" | "refused" => (DENIED, (2, "Blocked")),
        "rejected" | "reject" => (DENIED, (25, "Rejected")),
        "revoked" => (DENIED, (24, "Access Revoked")),
        "modified" | "redacted" | "sanitized" | "masked" => ((4, "Modified"), (11, "Corrected")),
        "observed" | "logged" | "monitor" | "warn" => ((3, "Observed"), (17, "Logged")),
        "pending" => ((0, "Unknown"), (14, "Delayed")),
        _ => ((99, said), (99, said)),
    };
    Some(Verdict { action, disposition })
}

/// How severe.
pub(super) fn severity(row: &EventRow, told: &Told<'_>) -> (u32, String) {
    let plain = |id: u32| {
        let name = ["Unknown", "Informational", "Low", "Medium", "High", "Critical", "Fatal"][id as usize];
        (id, name.to_owned())
    };
    if let Some(said) = told.text(Field::AlertSeverity) {
        return match said.to_ascii_lowercase().as_str() {
            "informational" | "info" => plain(1),
            "low" => plain(2),
            "medium" | "moderate" => plain(3),
            "high" => plain(4),
            "critical" => plain(5),
            "fatal" => plain(6),
            "unknown" => plain(0),
            _ => (99, said.into_owned()),
        };
    }
    let denied = row.kind == "grant_denied" || verdict(row).is_some_and(|v| v.denies());
    plain(match row.kind.as_str() {
        "alert" | "alert_acknowledged" | "alert_superseded" | "investigation" | "containment_decision" => 0,
        _ if !row.invalid_reasons.is_empty() => 3,
        "grant_revoked" => 2,
        _ if denied => 3,
        "erasure" => 3,
        "authority_change" => 2,
        _ if row.status.as_deref() == Some("error") => 2,
        _ => 1,
    })
}

/// Where a finding stands.
pub(super) fn finding_status(row: &EventRow, told: &Told<'_>) -> Option<Coded<'static>> {
    Some(match row.kind.as_str() {
        "alert" => (1, "New"),
        "alert_acknowledged" | "containment_decision" => (2, "In Progress"),
        "investigation" if row.decision.as_deref() == Some("closed") => {
            match told.text(Field::Disposition).as_deref() {
                Some("false_positive" | "benign") => (3, "Suppressed"),
                _ => (4, "Resolved"),
            }
        }
        "investigation" => (2, "In Progress"),
        // It does not stand any more: nobody need look.
        "alert_superseded" => (3, "Suppressed"),
        _ => return None,
    })
}

/// What an investigation found.
pub(super) fn finding_verdict(told: &Told<'_>) -> Option<(u32, String)> {
    let said = told.text(Field::Disposition)?;
    Some(match said.as_ref() {
        "false_positive" => (1, "False Positive".into()),
        "true_positive" => (2, "True Positive".into()),
        "benign" => (5, "Benign".into()),
        "undetermined" => (7, "Insufficient Data".into()),
        _ => (99, said.into_owned()),
    })
}
