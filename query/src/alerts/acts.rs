//! What a person does about an alert: who may, what is asked, and the record that says it.
//!
//! Everything here is decided before anything is written; the record is appended under the
//! person's own authenticated identity. docs/alerts.md lists the rules.

use std::sync::Arc;

use custody_store::system::SystemRecord;

use super::history::{HistoryRow, row};
use super::speakers::{Speakers, name};
use super::{AlertRow, alert};
use crate::caller::{ActorType, Caller, Role};
use crate::projection::{AsOf, Snapshot};
use crate::recorder::Said;
use crate::{Error, ErrorKind};

/// The attribute with the key by which a repeated request is known.
pub(super) const KEY: &str = "custody.idempotency_key";

/// How a closed alert may turn out to have been.
pub const DISPOSITIONS: [&str; 4] = ["true_positive", "false_positive", "benign", "undetermined"];

/// Longest texts, in characters.
const ID_MAX: usize = 256;
const NOTE_MAX: usize = 4096;
const DECISION_MAX: usize = 256;
const KEY_MAX: usize = 128;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// A person noticed.
    Acknowledge,
    /// A person begins to look into it, or begins again.
    Investigate,
    /// A person says something about it.
    Note,
    /// A person is done with it.
    Close,
    /// A person decided about containment.
    Contain,
}

impl Act {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Acknowledge, Self::Investigate, Self::Note, Self::Close, Self::Contain];

    /// Its name in paths and commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Acknowledge => "acknowledge",
            Self::Investigate => "investigate",
            Self::Note => "note",
            Self::Close => "close",
            Self::Contain => "contain",
        }
    }

    /// The act of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|act| act.name() == name)
    }

    /// What a history calls it.
    const fn done(self) -> &'static str {
        match self {
            Self::Acknowledge => "acknowledged",
            Self::Investigate => "opened",
            Self::Note => "note",
            Self::Close => "closed",
            Self::Contain => "contained",
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Which alert.
    pub alert_id: String,
    /// Whose, where several tenants have one of this id.
    pub tenant: Option<String>,
    /// What is done.
    pub act: Act,
    /// In words.
    pub note: Option<String>,
    /// Of a closing.
    pub disposition: Option<String>,
    /// Of a containment.
    pub decision: Option<String>,
    /// Whether a closing is one of many that were not looked at one by one.
    pub bulk: bool,
    /// By which a repeated request is known.
    pub key: Option<String>,
}

/// Why it is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// As HTTP says it.
    pub status: u16,
    /// For programs.
    pub code: &'static str,
    /// For people: what is wrong, and the mend.
    pub message: String,
}

impl Refusal {
    fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request", message)
    }

    fn conflict(message: impl Into<String>) -> Self {
        Self::new(409, "conflict", message)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = if error.kind == ErrorKind::Internal { 500 } else { 503 };
        Self::new(status, error.kind.code(), error.message)
    }
}

/// What is to be done about what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Planned {
    /// These records are appended; the last one is the act.
    Append(Vec<Said>),
    /// It was done before, by this record.
    Done(u64),
}

/// Whether a caller may do anything about an alert: only a person may, with the role for it.
///
/// # Errors
///
/// 403, with the mend.
pub fn may(caller: &Caller) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::new(403, "forbidden", message));
    if !caller.may(Role::Investigate) {
        return refuse(format!("this needs the role investigate, which {} does not have", caller.identity));
    }
    match caller.actor {
        ActorType::Human => Ok(()),
        ActorType::Unknown => refuse(
            "this needs a person's authenticated identity, and nobody is authenticated at this address: on the \
             server's machine use `custody alerts ... --data-dir DIR`, where the system says who you are; elsewhere \
             configure identities and sign in"
                .into(),
        ),
        actor => refuse(format!(
            "only a person may do this, and {} is authenticated as {}; sign in as a person, or have the policy call \
             this identity a human",
            caller.identity,
            actor.name()
        )),
    }
}

/// Decides about what is asked, over what the caller may see.
///
/// # Errors
///
/// 403 who may not, 400 what is not well asked, 404 what is not there, 409 what does not go now.
pub fn plan(snapshot: &Arc<Snapshot>, caller: &Caller, ask: &Ask) -> Result<Planned, Refusal> {
    may(caller)?;
    check(ask)?;
    let mut alerts = alert(snapshot, (&ask.alert_id, ask.tenant.as_deref()), AsOf::Now)?;
    if alerts.len() > 1 {
        let whose: Vec<&str> = alerts.iter().map(|(a, _)| a.tenant.as_deref().unwrap_or("(none)")).collect();
        let message = format!("alerts of several tenants have this id: say which, by tenant ({})", whose.join(", "));
        return Err(Refusal::conflict(message));
    }
    let Some((found, events)) = alerts.pop() else {
        return Err(Refusal::new(404, "not_found", "there is no alert with this id that you may see"));
    };
    let speakers = Speakers::of(snapshot, AsOf::Now)?;
    if speakers.withdrew(&caller.identity) {
        let message =
            format!("the word of {} was withdrawn (`custody alerts speakers`): it acts for nobody", caller.identity);
        return Err(Refusal::new(403, "forbidden", message));
    }
    let own: Vec<HistoryRow> = events
        .iter()
        .filter(|e| *e.submitter == *caller.identity)
        .map(|e| row(e, &ask.alert_id, &speakers))
        .filter(|step| step.counts)
        .collect();
    if let Some(before) = own.iter().find(|step| ask.key.is_some() && step.idempotency_key == ask.key) {
        if before.act != ask.act.done() {
            return Err(Refusal::conflict(format!("this Idempotency-Key was used before, to say: {}", before.act)));
        }
        return Ok(Planned::Done(before.seq));
    }
    if let Some(seq) = allowed(&found, ask, &own)? {
        return Ok(Planned::Done(seq));
    }
    let mut said = Vec::new();
    if !speakers.names(&caller.identity) {
        // From here on the log knows that this identity is a person's; the act behind it counts by that.
        said.push(name(&caller.identity, true, Some(caller.actor)));
    }
    said.push(Said { identity: Arc::clone(&caller.identity), record: record(&found, caller, ask) });
    Ok(Planned::Append(said))
}

fn check(ask: &Ask) -> Result<(), Refusal> {
    let texts = [
        ("the alert's id", Some(&ask.alert_id), ID_MAX),
        ("note", ask.note.as_ref(), NOTE_MAX),
        ("decision", ask.decision.as_ref(), DECISION_MAX),
        ("the Idempotency-Key", ask.key.as_ref(), KEY_MAX),
    ];
    for (what, text, max) in texts {
        let Some(text) = text else { continue };
        if text.trim().is_empty() || text.chars().count() > max {
            return Err(Refusal::invalid(format!("{what} must have 1 to {max} characters")));
        }
        if text.chars().any(|c| c.is_control() && !(what == "note" && matches!(c, '\n' | '\t'))) {
            return Err(Refusal::invalid(format!("{what} must not have control characters")));
        }
    }
    let (is_close, is_contain) = (ask.act == Act::Close, ask.act == Act::Contain);
    let known = ask.disposition.as_deref().is_some_and(|d| DISPOSITIONS.contains(&d));
    let one_of = DISPOSITIONS.join(", ");
    let rules = [
        (ask.act == Act::Note && ask.note.is_none(), "a note needs its text, in note".to_owned()),
        (is_close && !known, format!("closing needs a disposition: {one_of}")),
        (!is_close && ask.disposition.is_some(), "only closing takes a disposition".to_owned()),
        (is_contain && ask.decision.is_none(), "containment needs a decision, such as revoke_grant or none".to_owned()),
        (!is_contain && ask.decision.is_some(), "only containment takes a decision".to_owned()),
        (!is_close && ask.bulk, "only closing can be in bulk: notice and decide one by one".to_owned()),
    ];
    match rules.into_iter().find(|(is_broken, _)| *is_broken) {
        Some((_, message)) => Err(Refusal::invalid(message)),
        None => Ok(()),
    }
}

/// Whether it goes now: `Some` if the same person did the same before.
fn allowed(alert: &AlertRow, ask: &Ask, own: &[HistoryRow]) -> Result<Option<u64>, Refusal> {
    let before = |matches: &dyn Fn(&HistoryRow) -> bool| {
        own.iter().rfind(|step| step.act == ask.act.done() && matches(step)).map(|step| step.seq)
    };
    let is_closed = alert.closed_time.is_some();
    Ok(match ask.act {
        Act::Acknowledge => before(&|_| true),
        // After a closing it is opened again.
        Act::Investigate if is_closed => None,
        Act::Investigate => before(&|_| true),
        // The same words can be said twice; a key tells a repeated request.
        Act::Note => None,
        Act::Close if is_closed => {
            let same = alert.disposition == ask.disposition;
            let seq = before(&|step| same && step.disposition == ask.disposition);
            if seq.is_none() {
                let by = alert.closed_by.as_deref().unwrap_or("somebody");
                let how = alert.disposition.as_deref().unwrap_or("without a disposition");
                let message = format!("it is closed already ({how}, by {by}); investigate it again first");
                return Err(Refusal::conflict(message));
            }
            seq
        }
        Act::Close if alert.investigation_opened_time.is_none() && !ask.bulk => {
            let message =
                "nobody has opened an investigation of it: investigate it first, or say that it is closed in bulk";
            return Err(Refusal::conflict(message));
        }
        Act::Close => None,
        Act::Contain => before(&|step| step.decision == ask.decision && alert.containment == ask.decision),
    })
}

fn record(alert: &AlertRow, caller: &Caller, ask: &Ask) -> SystemRecord {
    let event = match ask.act {
        Act::Acknowledge => "security.alert.acknowledged",
        Act::Investigate | Act::Note | Act::Close => "security.investigation",
        Act::Contain => "security.containment",
    };
    let mut record = SystemRecord::new(event)
        .with("security.alert.id", alert.alert_id.as_str())
        .with("security.actor.id", &*caller.identity)
        .with("security.actor.type", caller.actor.name());
    let state = match ask.act {
        Act::Investigate | Act::Note | Act::Close => Some(ask.act.done()),
        Act::Acknowledge | Act::Contain => None,
    };
    let mode = if ask.bulk { "bulk" } else { "single" };
    let more = [
        ("security.investigation.state", state),
        ("security.investigation.disposition", ask.disposition.as_deref()),
        ("security.investigation.mode", (ask.act == Act::Close).then_some(mode)),
        ("security.containment.action", ask.decision.as_deref()),
        ("security.note", ask.note.as_deref()),
        // So that it is seen by whoever may see the alert, and by nobody else.
        ("tenant.id", alert.tenant.as_deref()),
        ("authz.workspace", alert.workspace.as_deref()),
        (KEY, ask.key.as_deref()),
    ];
    for (key, value) in more {
        if let Some(value) = value {
            record = record.with(key, value);
        }
    }
    record
}

#[cfg(test)]
mod tests;
