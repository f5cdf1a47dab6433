//! A rule: one SQL file whose head says what it is. The same file serves the evaluator that
//! follows the log and a run over everything. docs/rules.md has the shape for people.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Error;

/// How bad a hit may be, from mild to grave.
pub const SEVERITIES: [&str; 5] = ["informational", "low", "medium", "high", "critical"];

/// A knob of a rule: its default, and what it does.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Its default.
    pub value: toml::Value,
    /// What it does.
    pub about: String,
}

/// One check.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its stable id: the name of its file.
    pub id: String,
    /// What it fires on, in words.
    pub about: String,
    /// How bad a hit is, unless the tuning says otherwise.
    pub severity: String,
    /// The frameworks' names for what it finds (OWASP Agentic, MITRE ATLAS).
    pub tags: Vec<String>,
    /// Kinds of event that a hit can be about; `span` for spans.
    pub on: Vec<String>,
    /// Whether later evidence can take a hit back, so that it waits for the grace time.
    pub waits: bool,
    /// Whether it runs unless the tuning says otherwise.
    pub enabled: bool,
    /// Attributes that it needs, for people: without them it stays silent.
    pub needs: Vec<String>,
    /// Its knobs.
    pub settings: BTreeMap<String, Setting>,
    /// Its definition.
    pub sql: String,
    /// Records and the hits that they must give, JSON.
    pub examples: Option<String>,
    /// The file; none if it comes with Custody.
    pub file: Option<PathBuf>,
}

impl Rule {
    /// Reads the head of a rule's text.
    ///
    /// # Errors
    ///
    /// Says which line is wrong and what would be right.
    pub fn parse(id: &str, sql: &str) -> Result<Self, Error> {
        let wrong = |what: String| Error::invalid(format!("rule {id}: {what}"));
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
            return Err(wrong("its file must be named in lowercase letters, digits and _".into()));
        }
        let mut rule = Self {
            id: id.to_owned(),
            about: String::new(),
            severity: String::new(),
            tags: Vec::new(),
            on: Vec::new(),
            waits: false,
            enabled: true,
            needs: Vec::new(),
            settings: BTreeMap::new(),
            sql: sql.to_owned(),
            examples: None,
            file: None,
        };
        for (i, line) in sql.lines().take_while(|line| line.starts_with("--")).enumerate() {
            rule.head(line[2..].trim()).map_err(|what| wrong(format!("line {}: {what}", i + 1)))?;
        }
        let missing = [("description", rule.about.is_empty()), ("`severity:`", rule.severity.is_empty())];
        let missing = missing.into_iter().chain([("`on:`", rule.on.is_empty()), ("`tags:`", rule.tags.is_empty())]);
        match missing.filter(|(_, is)| *is).map(|(what, _)| what).next() {
            Some(what) => Err(wrong(format!("its head has no {what}; docs/rules.md has an example"))),
            None => Ok(rule),
        }
    }

    /// Reads one line of the head.
    fn head(&mut self, line: &str) -> Result<(), String> {
        let list = |value: &str| value.split(", ").map(|v| v.trim().to_owned()).filter(|v| !v.is_empty()).collect();
        let one_of = |value: &str, yes: &str, no: &str| match value {
            v if v == yes => Ok(true),
            v if v == no => Ok(false),
            _ => Err(format!("{value} is neither {yes} nor {no}")),
        };
        match line.split_once(": ") {
            Some(("severity", value)) if SEVERITIES.contains(&value) => self.severity = value.to_owned(),
            Some(("severity", value)) => return Err(format!("{value} is none of {}", SEVERITIES.join(", "))),
            Some(("tags", value)) => self.tags = list(value),
            Some(("on", value)) => self.on = list(value),
            Some(("needs", value)) => self.needs = list(value),
            Some(("fires", value)) => self.waits = one_of(value, "after grace", "at once")?,
            Some(("default", value)) => self.enabled = one_of(value, "on", "off")?,
            Some((key, value)) if key.starts_with("setting ") => {
                let (default, about) =
                    value.split_once(" | ").ok_or("a setting reads `setting name: default | what it does`")?;
                let parsed: toml::Table =
                    format!("v = {default}").parse().map_err(|_| format!("{default} is no value"))?;
                let value = parsed.get("v").cloned().ok_or("a setting needs a default")?;
                if value.as_float().is_some_and(|number| !number.is_finite()) {
                    return Err(format!("{default} is no number that anything can be compared with"));
                }
                self.settings.insert(key["setting ".len()..].to_owned(), Setting { value, about: about.to_owned() });
            }
            _ => {
                let space = if self.about.is_empty() { "" } else { " " };
                self.about = format!("{}{space}{line}", self.about);
            }
        }
        Ok(())
    }

    /// The rules of a directory: each `<id>.sql`, with `<id>.examples.json` beside it.
    ///
    /// # Errors
    ///
    /// If the directory or a rule cannot be read, or a rule has the id of one that comes with Custody.
    pub fn of_directory(dir: &Path) -> Result<Vec<Self>, Error> {
        let unread = |e: std::io::Error| Error::invalid(format!("rules in {}: {e}", dir.display()));
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(unread)? {
            files.push(entry.map_err(unread)?.path());
        }
        files.retain(|file| file.extension().is_some_and(|e| e == "sql"));
        files.sort();
        let mut out = Vec::new();
        for file in files {
            let id = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
            let sql = std::fs::read_to_string(&file).map_err(unread)?;
            let mut rule = Self::parse(id, &sql)?;
            if super::BUILT_IN.iter().any(|(own, ..)| *own == id) {
                return Err(Error::invalid(format!("rule {id}: a check of Custody has this name; rename the file")));
            }
            rule.examples = std::fs::read_to_string(file.with_extension("examples.json")).ok();
            rule.file = Some(file);
            out.push(rule);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_is_wrong_says_where() {
        let say = |sql: &str| Rule::parse("x", sql).unwrap_err().message;
        assert_eq!(
            say("-- about\n-- severity: bad\nSELECT 1"),
            "rule x: line 2: bad is none of informational, low, medium, high, critical"
        );
        assert!(say("-- about\nSELECT 1").contains("no `severity:`"));
        assert!(say("-- about\n-- severity: low\n-- on: tool_call\n-- fires: never").contains("line 4"));
        assert!(Rule::parse("A b", "").unwrap_err().message.contains("lowercase"));
        let rule = "-- What\n-- it is.\n-- severity: low\n-- tags: T1, T2\n-- on: tool_call\n-- fires: after grace\n-- setting skew: 1.5 | how far\nSELECT";
        let rule = Rule::parse("x", rule).unwrap();
        assert_eq!((rule.about.as_str(), rule.tags.len(), rule.waits, rule.enabled), ("What it is.", 2, true, true));
        assert_eq!(rule.settings["skew"].value.as_float(), Some(1.5));
    }
}
