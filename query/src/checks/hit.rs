//! A hit of a check: a row of `violations`, and the record that says it in the log.

use custody_store::system::{Attribute, CHECKS_IDENTITY, SystemRecord};
use serde_json::Value as Json;

use crate::event::EventRow;
use crate::recorder::Said;
use crate::rows::table;
use crate::tenancy::Tenancy;

table! {
    /// One hit of a check.
    HitRow, HitBuilder {
        /// The check.
        check_id: String,
        /// proven, probable or undecidable.
        verdict: String,
        /// informational, low, medium, high or critical.
        severity: String,
        /// The record that it is about.
        seq: u64,
        /// Trace of that record.
        trace_id: Option<String>,
        /// Its span.
        span_id: Option<String>,
        /// The grant in question.
        grant_id: Option<String>,
        /// The agent in question.
        agent_id: Option<String>,
        /// What is wrong, in words.
        detail: String,
        /// Seqs of the records that prove it.
        evidence: Vec<u64>,
        /// The frameworks' names for it (OWASP Agentic, MITRE ATLAS).
        tags: Vec<String>,
        /// When the check found it.
        detected_time: crate::rows::Time,
        /// The alert that says so in the log; null while evidence may still come, and where checks are off.
        alert_id: Option<String>,
        /// Workspace of that record.
        workspace: Option<String>,
        /// Its tenant.
        tenant: Option<String>,
    }
}

/// The event of a hit that later evidence took back.
pub(crate) const SUPERSEDED: &str = "security.alert.superseded";

/// Says of an alert of a check whether its details are left out, or whether it tells those of the one before it.
const DETAILS: &str = "security.alert.details";
const WITHHELD: &str = "withheld";
const TOLD: &str = "told";

/// Whose the record is that an alert is about which tells details: its own tenant and workspace say who may see it.
const OF_TENANT: &str = "security.alert.tenant";
const OF_WORKSPACE: &str = "security.alert.workspace";

/// Whether an alert leaves out details, which another record tells.
pub(super) fn withholds_details(event: &EventRow) -> bool {
    details(event).as_deref() == Some(WITHHELD)
}

/// Whether an event tells what an alert of a check before it leaves out.
pub(crate) fn tells_details(event: &EventRow) -> bool {
    event.submitter == CHECKS_IDENTITY && details(event).as_deref() == Some(TOLD)
}

fn details(event: &EventRow) -> Option<String> {
    if event.kind != "alert" || !event.attributes.contains(DETAILS) {
        return None;
    }
    let fields: Json = serde_json::from_str(&event.attributes).ok()?;
    fields.get(DETAILS).and_then(Json::as_str).map(str::to_owned)
}

impl HitRow {
    /// The alert's id: the same for the same check, workspace and record, however often it is found.
    /// Later findings about the same record count up.
    pub(crate) fn id(&self, revision: u32) -> String {
        let workspace = self.workspace.as_deref().unwrap_or_default();
        let key = format!("{}\n{workspace}\n{}", self.check_id, self.seq);
        let hash = const_hex::encode(&blake3::hash(key.as_bytes()).as_bytes()[..8]);
        match revision {
            0 | 1 => format!("check-{}-{}-{hash}", self.check_id, self.seq),
            n => format!("check-{}-{}-{hash}.{n}", self.check_id, self.seq),
        }
    }

    /// The record that says it.
    pub(crate) fn say(&self, supersedes: Option<&str>) -> Said {
        let evidence = Attribute::Texts(self.evidence.iter().map(u64::to_string).collect());
        let mut record = SystemRecord::new("security.alert")
            .within(self.trace_id.as_deref(), self.span_id.as_deref())
            .with("security.alert.id", self.alert_id.as_deref().unwrap_or_default())
            .with("security_rule.name", self.check_id.as_str())
            .with("security.alert.title", self.detail.as_str())
            .with("security.alert.severity", self.severity.as_str())
            .with("security.alert.verdict", self.verdict.as_str())
            .with("security.alert.seq", self.seq);
        record.attributes.push(("security.alert.evidence".into(), evidence));
        record.attributes.push(("security.alert.tags".into(), Attribute::Texts(self.tags.clone())));
        let optional = [
            ("gen_ai.agent.id", &self.agent_id),
            ("authz.grant.id", &self.grant_id),
            ("authz.workspace", &self.workspace),
            ("tenant.id", &self.tenant),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                record = record.with(name, value.as_str());
            }
        }
        if let Some(earlier) = supersedes {
            record = record.with("security.alert.supersedes", earlier);
        }
        Said { identity: CHECKS_IDENTITY.into(), record }
    }

    /// The same, of a hit whose details were left out.
    pub(super) fn say_less(&self, supersedes: Option<&str>) -> Said {
        let Said { identity, record } = self.say(supersedes);
        Said { identity, record: record.with(DETAILS, WITHHELD) }
    }

    /// The record that tells the details, for those who may see what all that it cites has in common.
    pub(super) fn say_details(&self, shared: Tenancy) -> Said {
        let shown = Self { tenant: shared.tenant, workspace: shared.workspace, ..self.clone() };
        let Said { identity, mut record } = shown.say(None);
        record = record.with(DETAILS, TOLD);
        for (name, value) in [(OF_TENANT, &self.tenant), (OF_WORKSPACE, &self.workspace)] {
            if let Some(value) = value {
                record = record.with(name, value.as_str());
            }
        }
        Said { identity, record }
    }

    /// The record that takes it back.
    pub(crate) fn take_back(&self) -> Said {
        let mut record = SystemRecord::new(SUPERSEDED)
            .within(self.trace_id.as_deref(), self.span_id.as_deref())
            .with("security.alert.id", self.alert_id.as_deref().unwrap_or_default())
            .with("security_rule.name", self.check_id.as_str())
            .with("security.alert.seq", self.seq)
            .with("security.alert.title", "evidence that came later takes this back");
        for (name, value) in [("authz.workspace", &self.workspace), ("tenant.id", &self.tenant)] {
            if let Some(value) = value {
                record = record.with(name, value.as_str());
            }
        }
        Said { identity: CHECKS_IDENTITY.into(), record }
    }

    /// Reads an alert of a check back from its event.
    pub(crate) fn of_alert(event: &EventRow) -> Option<Self> {
        let fields: Json = serde_json::from_str(&event.attributes).ok()?;
        let text = |name: &str| fields.get(name).and_then(Json::as_str).map(str::to_owned);
        let texts = |name: &str| -> Vec<String> {
            let list = fields.get(name).and_then(Json::as_array);
            list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        Some(Self {
            check_id: event.action.clone().or_else(|| text("security_rule.name"))?,
            verdict: text("security.alert.verdict").unwrap_or_default(),
            severity: text("security.alert.severity").unwrap_or_default(),
            seq: fields.get("security.alert.seq").and_then(Json::as_u64)?,
            trace_id: event.trace_id.clone(),
            span_id: event.span_id.clone(),
            grant_id: event.grant_id.clone(),
            agent_id: event.agent_id.clone(),
            detail: text("security.alert.title").unwrap_or_default(),
            evidence: texts("security.alert.evidence").iter().filter_map(|s| s.parse().ok()).collect(),
            tags: texts("security.alert.tags"),
            detected_time: event.event_time,
            alert_id: event.correlation_id.clone(),
            workspace: event.workspace.clone().or_else(|| text(OF_WORKSPACE)),
            tenant: event.tenant.clone().or_else(|| text(OF_TENANT)),
        })
    }

    /// What hits are told apart by.
    pub(crate) fn key(&self) -> (u64, String) {
        (self.seq, self.check_id.clone())
    }
}
