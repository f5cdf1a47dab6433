//! What a row's attributes tell that OCSF has a place for, under the names that each source uses;
//! and the rest, which goes to `unmapped` as it stands.

use std::borrow::Cow;

use super::json::{Members, Writer, is_plain_object, text_of, without_controls};
use crate::event::EventRow;
use crate::mapping::call_attributes;

/// The values of the attributes that are looked for, as JSON text.
#[derive(Default)]
pub(super) struct Told<'a> {
    /// The whole object, or the text that should have been one.
    object: Option<Cow<'a, str>>,
    lost: Option<&'a str>,
    found: [Option<(usize, usize)>; Field::COUNT],
}

/// What is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Model,
    ModelAnswered,
    Provider,
    PromptTokens,
    CompletionTokens,
    TotalTokens,
    ErrorType,
    ErrorMessage,
    HttpStatus,
    GrantActions,
    GrantIssuer,
    GrantAudience,
    GrantNotBefore,
    GrantExpires,
    AlertTitle,
    AlertRule,
    AlertSeverity,
    AlertEvidence,
    AlertDetails,
    AlertTags,
    Verdict,
    Disposition,
    Note,
    Arguments,
    Result,
}

impl Field {
    const COUNT: usize = Self::Result as usize + 1;

    /// The field of an attribute, by its name in any of the sources.
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "gen_ai.request.model" | "llm.model_name" | "embedding.model_name" | "llm.request.model" => Self::Model,
            "model" | "model_name" => Self::Model,
            "gen_ai.response.model" => Self::ModelAnswered,
            "gen_ai.provider.name" | "gen_ai.system" | "llm.provider" | "llm.system" | "provider" => Self::Provider,
            "gen_ai.usage.input_tokens" | "gen_ai.usage.prompt_tokens" | "llm.token_count.prompt" => Self::PromptTokens,
            "llm.usage.prompt_tokens" | "input_tokens" | "input_token_count" => Self::PromptTokens,
            "gen_ai.usage.output_tokens" | "gen_ai.usage.completion_tokens" => Self::CompletionTokens,
            "llm.token_count.completion" | "llm.usage.completion_tokens" => Self::CompletionTokens,
            "output_tokens" | "output_token_count" => Self::CompletionTokens,
            "llm.usage.total_tokens" | "llm.token_count.total" | "total_token_count" => Self::TotalTokens,
            "gen_ai.usage.total_tokens" => Self::TotalTokens,
            "error.type" | "exception.type" | "error_type" => Self::ErrorType,
            "error.message" | "exception.message" | "error" => Self::ErrorMessage,
            "http.response.status_code" | "status_code" => Self::HttpStatus,
            "authz.grant.actions" => Self::GrantActions,
            "authz.grant.issuer" => Self::GrantIssuer,
            "authz.grant.audience" => Self::GrantAudience,
            "authz.grant.not_before" => Self::GrantNotBefore,
            "authz.grant.expires_at" => Self::GrantExpires,
            "security.alert.title" => Self::AlertTitle,
            "security_rule.name" => Self::AlertRule,
            "security.alert.severity" => Self::AlertSeverity,
            "security.alert.evidence" => Self::AlertEvidence,
            "security.alert.details" => Self::AlertDetails,
            "security.alert.tags" | "security_rule.tags" => Self::AlertTags,
            "security.alert.verdict" => Self::Verdict,
            "security.investigation.disposition" => Self::Disposition,
            "security.note" => Self::Note,
            _ => return None,
        })
    }

    /// Whether it is written in full to a field of its own, and so need not stand in `unmapped` too.
    fn moves(self) -> bool {
        matches!(self, Self::Arguments | Self::Result)
    }
}

impl<'a> Told<'a> {
    /// Reads a row's attributes once.
    pub(super) fn of(row: &'a EventRow) -> Self {
        let object = if is_plain_object(&row.attributes) {
            Cow::Borrowed(row.attributes.as_str())
        } else {
            match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&row.attributes) {
                Ok(map) => Cow::Owned(without_controls(serde_json::Value::Object(map).to_string())),
                Err(_) => {
                    let lost = Some(row.attributes.as_str()).filter(|text| !text.is_empty());
                    return Self { lost, ..Self::default() };
                }
            }
        };
        let is_call = matches!(row.kind.as_str(), "tool_call" | "tool_result");
        let calls = is_call.then(|| call_attributes(&row.source));
        let mut found = [None; Field::COUNT];
        let base = object.as_ptr() as usize;
        for (key, value) in Members::of(&object) {
            let name = &key[1..key.len() - 1];
            let of_call = |names: &[&[&str]; 2]| {
                [Field::Arguments, Field::Result]
                    .into_iter()
                    .zip(names)
                    .find(|(_, n)| n.contains(&name))
                    .map(|(f, _)| f)
            };
            let field = calls.as_ref().and_then(of_call).or_else(|| Field::of(name));
            if let Some(slot) = field.map(|field| &mut found[field as usize])
                && slot.is_none()
                && value != "null"
            {
                let from = value.as_ptr() as usize - base;
                *slot = Some((from, from + value.len()));
            }
        }
        Self { object: Some(object), lost: None, found }
    }

    /// The value as JSON.
    pub(super) fn json(&self, field: Field) -> Option<&str> {
        let (from, to) = self.found[field as usize]?;
        self.object.as_deref()?.get(from..to)
    }

    /// A text that is not empty, or a number or truth value as text.
    pub(super) fn text(&self, field: Field) -> Option<Cow<'_, str>> {
        text_of(self.json(field)?)
    }

    /// A count.
    pub(super) fn count(&self, field: Field) -> Option<u32> {
        self.text(field)?.parse().ok()
    }

    /// A list of texts; one text is a list of one.
    pub(super) fn list(&self, field: Field) -> Vec<String> {
        let Some(json) = self.json(field) else { return Vec::new() };
        if !json.starts_with('[') {
            return text_of(json).map(Cow::into_owned).into_iter().collect();
        }
        let items: Vec<serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
        let text = |item: serde_json::Value| match item {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        items.into_iter().map(text).collect()
    }

    /// All that has no field of its own. `moved` says of which of the fields that can move it was
    /// written elsewhere.
    pub(super) fn rest(&self, w: &mut Writer<'_>, row: &EventRow, moved: &[Field]) {
        let Some(object) = &self.object else {
            if let Some(lost) = self.lost {
                w.object("unmapped", |w| w.text("attributes", lost));
            }
            return;
        };
        let base = object.as_ptr() as usize;
        let gone =
            |field: &Field, from: usize| field.moves() && self.found[*field as usize].is_some_and(|(at, _)| at == from);
        let mut members = Members::of(object)
            .filter(|(key, value)| {
                let from = value.as_ptr() as usize - base;
                !moved.iter().any(|field| gone(field, from)) && !said(row, &key[1..key.len() - 1], value)
            })
            .peekable();
        if members.peek().is_some() {
            w.object("unmapped", |w| members.for_each(|(key, value)| w.raw_member(key, value)));
        }
    }
}

/// Whether an attribute says what a column of the row says, word for word: that column has a field.
fn said(row: &EventRow, name: &str, json: &str) -> bool {
    let column = match name {
        "gen_ai.agent.id" | "authz.grant.subject" => &row.agent_id,
        "gen_ai.agent.name" => &row.agent_name,
        "gen_ai.agent.version" => &row.agent_version,
        "gen_ai.conversation.id" => &row.conversation_id,
        "gen_ai.tool.name" => &row.tool,
        "gen_ai.tool.call.id" => &row.tool_call_id,
        "authz.grant.id" => &row.grant_id,
        "authz.grant.parent_id" => &row.parent_grant_id,
        "authz.grant.root_id" => &row.root_grant_id,
        "authz.grant.initiator.id" | "authz.initiator.id" | "security.actor.id" => &row.initiator_id,
        "authz.grant.initiator.type" | "authz.initiator.type" | "security.actor.type" => &row.initiator_type,
        "authz.grant.workspace" | "authz.workspace" => &row.workspace,
        "authz.grant.task.id" | "authz.task.id" => &row.task_id,
        "authz.grant.process.id" | "authz.process.id" => &row.process_id,
        "authz.grant.correlation_id" | "authz.correlation_id" | "security.alert.id" => &row.correlation_id,
        "authz.action" => &row.action,
        "authz.resource" => &row.resource,
        "authz.decision" => &row.decision,
        "authz.policy.id" => &row.policy_id,
        "authz.policy.version" => &row.policy_version,
        "skill.id" => &row.skill_id,
        "skill.version" => &row.skill_version,
        "data.classification" => &row.classification,
        "tenant.id" => &row.tenant,
        _ => return false,
    };
    let Some(column) = column else { return false };
    let inside = json.strip_prefix('"').and_then(|j| j.strip_suffix('"'));
    inside == Some(column) && !column.contains('\\')
}

/// JSON text as the value that it holds, if it holds one on one line; else as a string.
pub(super) fn as_value(json: &str) -> Cow<'_, str> {
    match text_of(json) {
        Some(text) if is_plain_object(&text) => Cow::Owned(text.into_owned()),
        _ => Cow::Borrowed(json),
    }
}
