//! Attributes of an event that speaks of a grant, read out of their JSON.

use serde_json::Value as Json;

use crate::attributes::parse_time;
use crate::event::EventRow;
use crate::rows::Time;

/// Attributes of an event, parsed from its JSON.
pub(super) struct Fields(Json);

impl Fields {
    pub(super) fn of(event: &EventRow) -> Self {
        Self(serde_json::from_str(&event.attributes).unwrap_or_default())
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        match self.0.get(name)? {
            Json::String(s) if !s.is_empty() => Some(s.clone()),
            Json::Number(n) => Some(n.to_string()),
            Json::Object(o) => Some(Json::Object(o.clone()).to_string()),
            _ => None,
        }
    }

    /// Whatever stands there, as it is written; nothing of null and of an empty text.
    pub(super) fn written(&self, name: &str) -> Option<String> {
        match self.0.get(name)? {
            Json::Null => None,
            Json::String(s) => Some(s.clone()).filter(|s| !s.is_empty()),
            other => Some(other.to_string()),
        }
    }

    pub(super) fn list(&self, name: &str) -> Option<Vec<String>> {
        match self.0.get(name)? {
            Json::Array(items) => {
                Some(items.iter().map(|i| i.as_str().map_or_else(|| i.to_string(), str::to_owned)).collect())
            }
            Json::String(one) => Some(vec![one.clone()]),
            Json::Null => None,
            // What is no list of patterns allows nothing; it must not read as "not limited".
            _ => Some(Vec::new()),
        }
    }

    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.text(name)?.parse().ok()
    }

    /// What parameters may be, JSON: an object, or a list, which no comparison decides. An error if it is neither, which
    /// must not read as "not limited".
    pub(super) fn constraints(&self) -> Result<Option<String>, &'static str> {
        const NAME: &str = "authz.grant.constraints";
        let is_read = |text: &str| matches!(serde_json::from_str(text), Ok(Json::Object(_) | Json::Array(_)));
        match self.0.get(NAME) {
            None | Some(Json::Null) => Ok(None),
            Some(Json::String(text)) if text.is_empty() => Ok(None),
            Some(Json::String(text)) if is_read(text) => Ok(Some(text.clone())),
            Some(own @ (Json::Object(_) | Json::Array(_))) => Ok(Some(own.to_string())),
            Some(_) => Err("authz.grant.constraints cannot be read as JSON"),
        }
    }

    pub(super) fn time(&self, name: &str) -> Option<Time> {
        parse_time(&self.text(name)?)
    }
}
