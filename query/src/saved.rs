//! Saved queries: the questions that investigators ask first, each a documented `.sql` file.
//!
//! A file begins with its title, what it shows, its parameters and its columns; docs/queries.md is
//! made of the same lines.

use std::sync::LazyLock;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::Error;

macro_rules! files {
    ($($name:ident),+ $(,)?) => {
        &[$((stringify!($name), include_str!(concat!("saved/", stringify!($name), ".sql")))),+]
    };
}

/// In the order in which they are asked.
const FILES: &[(&str, &str)] = files![
    agents,
    outside_authority,
    refused_then_done,
    who_authorised,
    grant_chain,
    what_happened,
    read_before_sent,
    agent_touched,
    resource_touched,
    reach,
    refusals,
    approvals,
    in_force,
    policy_changes,
    authority_changes,
    shared_credentials,
    unnoticed_alerts,
    alert_life,
    dwell_by_rule,
    missing_evidence,
    not_understood,
    late_arrivals,
];

/// A saved query.
#[derive(Clone, Debug, Serialize)]
pub struct SavedQuery {
    /// Its name.
    pub name: &'static str,
    /// The question.
    pub title: &'static str,
    /// What the answer shows.
    pub shows: &'static str,
    /// What has to be said.
    pub params: Vec<SavedParam>,
    /// What the columns hold.
    pub columns: Vec<SavedColumn>,
    /// The query, with `$name` for a parameter.
    pub sql: &'static str,
}

/// A parameter of a saved query.
#[derive(Clone, Debug, Serialize)]
pub struct SavedParam {
    /// Its name.
    pub name: &'static str,
    /// text, seq, number, time or moment: a seq or a time.
    pub r#type: &'static str,
    /// What it is if it is not given; a parameter without one must be.
    pub default: Option<&'static str>,
    /// What it is for.
    pub description: &'static str,
}

/// A column of a saved query.
#[derive(Clone, Debug, Serialize)]
pub struct SavedColumn {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub description: &'static str,
}

/// All of them.
pub fn all() -> &'static [SavedQuery] {
    static ALL: LazyLock<Vec<SavedQuery>> =
        LazyLock::new(|| FILES.iter().map(|(name, text)| SavedQuery::parse(name, text)).collect());
    &ALL
}

/// One of them; `-` and `_` are the same in a name.
pub fn find(name: &str) -> Option<&'static SavedQuery> {
    let name = name.replace('-', "_");
    all().iter().find(|query| query.name == name)
}

impl SavedQuery {
    fn parse(name: &'static str, text: &'static str) -> Self {
        let mut query = Self { name, title: "", shows: "", params: vec![], columns: vec![], sql: "" };
        let mut rest = text;
        while let Some((line, after)) = rest.split_once('\n')
            && let Some(line) = line.strip_prefix("-- ")
        {
            let (said, description) = line.split_once(" | ").unwrap_or((line, ""));
            if let Some(title) = line.strip_prefix("title: ") {
                query.title = title;
            } else if let Some(shows) = line.strip_prefix("shows: ") {
                query.shows = shows;
            } else if let Some(param) = said.strip_prefix("param ") {
                let (named, default) = param.split_once(" = ").map_or((param, None), |(p, d)| (p, Some(d)));
                let (name, r#type) = named.split_once(' ').unwrap_or((named, "text"));
                query.params.push(SavedParam { name, r#type, default, description });
            } else if let Some(name) = said.strip_prefix("column ") {
                query.columns.push(SavedColumn { name, description });
            }
            rest = after;
        }
        query.sql = rest.trim_end();
        query
    }

    /// The values of its parameters: what is given, as texts, and what stands for the others.
    ///
    /// # Errors
    ///
    /// One is missing, unknown, or not of its type.
    pub fn bind(&self, given: &[(String, String)]) -> Result<Map<String, Value>, Error> {
        let known = || self.params.iter().map(|p| p.name).collect::<Vec<_>>().join(", ");
        if let Some((name, _)) = given.iter().find(|(name, _)| self.params.iter().all(|p| p.name != name)) {
            let known = if self.params.is_empty() { "none".to_owned() } else { known() };
            return Err(Error::invalid(format!("{} has no parameter {name}; it has {known}", self.name)));
        }
        let mut values = Map::new();
        for param in &self.params {
            let text = given.iter().rev().find(|(name, _)| name == param.name).map(|(_, value)| value.as_str());
            let value = match text.or(param.default) {
                None => {
                    let what = format!("say -p {}=... ({})", param.name, param.description);
                    return Err(Error::invalid(format!("{} needs the parameter {}: {what}", self.name, param.name)));
                }
                Some("null") if text.is_none() => Value::Null,
                Some(text) => param.value(text)?,
            };
            values.insert(param.name.to_owned(), value);
        }
        Ok(values)
    }
}

impl SavedParam {
    fn value(&self, text: &str) -> Result<Value, Error> {
        let number = || Error::invalid(format!("the parameter {} is a {}, and not {text}", self.name, self.r#type));
        Ok(match self.r#type {
            "seq" => text.parse::<i64>().ok().filter(|n| *n >= 0).ok_or_else(number)?.into(),
            "number" => match text.parse::<i64>() {
                Ok(whole) => whole.into(),
                Err(_) => text.parse::<f64>().map_err(|_| number())?.into(),
            },
            // A seq is a number, and everything else a time.
            "moment" => text.parse::<i64>().map_or_else(|_| text.into(), Value::from),
            _ => text.into(),
        })
    }
}

/// docs/queries.md.
pub fn document() -> String {
    let mut out = String::from(
        "# Saved queries\n\n\
         <!-- Generated from query/src/saved/*.sql by `cargo test --workspace --test queries`; CUSTODY_WRITE_DOCS=1 \
         writes it anew. -->\n\n\
         The questions that investigators ask first. `custody sql --list` tells them, `custody sql --run NAME -p \
         name=value` asks one; `GET /api/v1/queries` has them as JSON, \
         with the SQL to start one's own from. Times are UTC, such as `2026-11-20T09:00:00Z`.\n",
    );
    for query in all() {
        out += &format!("\n## {}\n\n**{}** {}\n\n", query.name, query.title, query.shows);
        let given = query.params.iter().filter(|p| p.default.is_none()).map(|p| format!(" -p {}=...", p.name));
        out += &format!("    custody sql --run {}{}\n\n", query.name, given.collect::<String>());
        if !query.params.is_empty() {
            out += "| parameter | type | default | what it is |\n| --- | --- | --- | --- |\n";
            for p in &query.params {
                let default = p.default.map_or("must be given", |d| if d == "null" { "any" } else { d });
                out += &format!("| `{}` | {} | {default} | {} |\n", p.name, p.r#type, p.description);
            }
            out += "\n";
        }
        out += "| column | what it holds |\n| --- | --- |\n";
        for column in &query.columns {
            out += &format!("| `{}` | {} |\n", column.name, column.description);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_says_what_it_is() {
        for query in all() {
            assert!(query.title.ends_with('?') && query.shows.ends_with('.'), "{}", query.name);
            assert!(query.sql.starts_with("SELECT") && !query.sql.contains(';'), "{}", query.name);
            assert!(query.columns.iter().all(|c| !c.description.is_empty()) && !query.columns.is_empty());
            for param in &query.params {
                assert!(query.sql.contains(&format!("${}", param.name)), "{} does not use {}", query.name, param.name);
                assert!(
                    ["text", "seq", "number", "time", "moment"].contains(&param.r#type)
                        && !param.description.is_empty()
                );
            }
        }
    }

    #[test]
    fn parameters_are_checked_before_anything_is_asked() {
        let query = find("who-authorised").unwrap();
        let given = |name: &str, value: &str| query.bind(&[(name.to_owned(), value.to_owned())]);
        assert_eq!(given("call", "77").unwrap()["call"], 77);
        assert!(given("call", "x").unwrap_err().message.contains("seq"));
        assert!(given("cal", "7").unwrap_err().message.contains("it has call"));
        assert!(query.bind(&[]).unwrap_err().message.contains("-p call="));
        assert_eq!(find("in_force").unwrap().bind(&[]).unwrap()["at"], Value::Null);
    }
}
