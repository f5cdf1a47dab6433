//! What the operator set: which rules run, how grave they are, and their knobs; for everything
//! and, over that, per workspace. The file `rules.toml`; docs/rules.md describes it.

use std::collections::HashMap;

use toml::{Table, Value};

use super::rule::{Rule, SEVERITIES};
use crate::Error;

/// What the events at hand may take by default, and at least.
const MEMORY_BYTES: usize = 48 << 20;
const MEMORY_BYTES_MIN: i64 = 1 << 20;

/// The tuning of all rules.
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    /// How long evidence may come late, in seconds of the log's own time.
    pub grace_seconds: f64,
    /// How long events are kept at hand, in seconds.
    pub window_seconds: f64,
    /// Bytes of events that are kept at hand, at most. A judgement takes several times as much for a moment.
    pub memory_bytes: usize,
    defaults: HashMap<(String, String), Value>,
    everywhere: HashMap<(String, String), Value>,
    workspaces: HashMap<String, HashMap<(String, String), Value>>,
}

impl Tuning {
    /// The defaults of these rules.
    pub fn of(rules: &[Rule]) -> Self {
        let mut defaults = HashMap::new();
        for rule in rules {
            let id = || rule.id.clone();
            defaults.insert((id(), "enabled".into()), Value::Boolean(rule.enabled));
            defaults.insert((id(), "severity".into()), Value::String(rule.severity.clone()));
            for (name, setting) in &rule.settings {
                defaults.insert((id(), name.clone()), setting.value.clone());
            }
        }
        Self { grace_seconds: 10.0, window_seconds: 3600.0, memory_bytes: MEMORY_BYTES, defaults, ..Self::default() }
    }

    /// These rules, as `rules.toml` tunes them.
    ///
    /// # Errors
    ///
    /// Names the key that no rule has, or whose value is of another kind than its default.
    pub fn parse(rules: &[Rule], text: &str) -> Result<Self, Error> {
        let file: Table = text.parse().map_err(|e: toml::de::Error| wrong(e.to_string().replace('\n', " ")))?;
        Self::read(rules, &file)
    }

    pub(crate) fn read(rules: &[Rule], file: &Table) -> Result<Self, Error> {
        let mut out = Self::of(rules);
        for (key, value) in file {
            match (key.as_str(), value) {
                ("grace_seconds", value) => out.grace_seconds = seconds(key, value)?,
                ("window_seconds", value) => out.window_seconds = seconds(key, value)?,
                ("memory_bytes", value) => out.memory_bytes = bytes(key, value)?,
                ("checks", Value::Table(checks)) => out.everywhere = out.of_checks(checks, "checks")?,
                ("workspace", Value::Table(all)) => {
                    for (name, checks) in all {
                        let Value::Table(checks) = checks else {
                            return Err(wrong(format!("workspace.{name} is not a table")));
                        };
                        let own = out.of_checks(checks, &format!("workspace.{name}"))?;
                        out.workspaces.insert(name.clone(), own);
                    }
                }
                _ => {
                    return Err(wrong(format!(
                        "{key} is none of grace_seconds, window_seconds, memory_bytes, checks, workspace"
                    )));
                }
            }
        }
        Ok(out)
    }

    fn of_checks(&self, checks: &Table, place: &str) -> Result<HashMap<(String, String), Value>, Error> {
        let mut out = HashMap::new();
        for (check, settings) in checks {
            let Value::Table(settings) = settings else { return Err(wrong(format!("{place}.{check} is not a table"))) };
            for (name, value) in settings {
                let Some(default) = self.defaults.get(&(check.clone(), name.clone())) else {
                    return Err(wrong(format!(
                        "{place}.{check}.{name}: no check has this setting; `custody rules list` has them"
                    )));
                };
                let both_numbers = number(default).is_some() && number(value).is_some();
                if !both_numbers && !default.same_type(value) {
                    let kind = default.type_str();
                    return Err(wrong(format!(
                        "{place}.{check}.{name} must be of type {kind}, such as {}",
                        shown(default)
                    )));
                }
                if number(value).is_some_and(|number| !number.is_finite()) {
                    return Err(wrong(format!(
                        "{place}.{check}.{name} is no number that anything can be compared with; write one such as {}",
                        shown(default)
                    )));
                }
                if name == "severity" && !value.as_str().is_some_and(|s| SEVERITIES.contains(&s)) {
                    return Err(wrong(format!("{place}.{check}.severity is none of {}", SEVERITIES.join(", "))));
                }
                out.insert((check.clone(), name.clone()), value.clone());
            }
        }
        Ok(out)
    }

    /// What is set for a check in a workspace.
    pub fn get(&self, workspace: Option<&str>, check: &str, name: &str) -> Option<&Value> {
        let key = (check.to_owned(), name.to_owned());
        let own = workspace.and_then(|w| self.workspaces.get(w)).and_then(|own| own.get(&key));
        own.or_else(|| self.everywhere.get(&key)).or_else(|| self.defaults.get(&key))
    }

    /// Whether a check runs in a workspace.
    pub fn is_on(&self, workspace: Option<&str>, check: &str) -> bool {
        self.get(workspace, check, "enabled").and_then(Value::as_bool).unwrap_or(false)
    }

    /// Whether a check runs anywhere.
    pub fn is_on_somewhere(&self, check: &str) -> bool {
        self.is_on(None, check) || self.workspaces.keys().any(|w| self.is_on(Some(w), check))
    }

    /// How grave a hit is in a workspace.
    pub fn severity(&self, workspace: Option<&str>, check: &str) -> String {
        self.get(workspace, check, "severity").and_then(Value::as_str).unwrap_or("medium").to_owned()
    }

    /// A knob that is a number.
    pub(crate) fn number(&self, workspace: Option<&str>, check: &str, name: &str) -> Option<f64> {
        self.get(workspace, check, name).and_then(number)
    }

    /// A knob that is a list of texts.
    pub(crate) fn texts(&self, workspace: Option<&str>, check: &str, name: &str) -> Vec<String> {
        let list = self.get(workspace, check, name).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    }

    /// How long events are kept at hand, in ns.
    pub(crate) fn window(&self) -> i64 {
        (self.window_seconds * 1e9) as i64
    }

    /// The grace time in ns.
    pub(crate) fn grace(&self) -> i64 {
        (self.grace_seconds * 1e9) as i64
    }
}

/// A value as people write it.
pub fn shown(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|n| n as f64))
}

fn seconds(key: &str, value: &Value) -> Result<f64, Error> {
    let seconds = number(value).filter(|s| (0.0..=31_536_000.0).contains(s));
    seconds.ok_or_else(|| wrong(format!("{key} must be a number of seconds up to a year")))
}

fn bytes(key: &str, value: &Value) -> Result<usize, Error> {
    let bytes = value.as_integer().filter(|n| *n >= MEMORY_BYTES_MIN).and_then(|n| usize::try_from(n).ok());
    bytes.ok_or_else(|| wrong(format!("{key} must be a number of bytes, {MEMORY_BYTES_MIN} at least")))
}

fn wrong(what: String) -> Error {
    Error::invalid(format!("rules.toml: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::built_in;

    #[test]
    fn workspaces_win_over_everywhere_and_that_over_defaults() {
        let text = "grace_seconds = 2\nmemory_bytes = 2000000\n[checks.expired_grant]\nclock_skew_seconds = 5\n[workspace.bank.executor_bypass]\nenabled = true\n\
                    [workspace.bank.expired_grant]\nclock_skew_seconds = 0.5\nseverity = \"critical\"\n";
        let tuning = Tuning::parse(&built_in(), text).unwrap();
        assert_eq!((tuning.grace_seconds, tuning.memory_bytes), (2.0, 2_000_000));
        let skew = |w| tuning.number(w, "expired_grant", "clock_skew_seconds");
        assert_eq!((skew(None), skew(Some("bank")), skew(Some("shop"))), (Some(5.0), Some(0.5), Some(5.0)));
        assert_eq!(tuning.severity(Some("bank"), "expired_grant"), "critical");
        assert!(
            tuning.is_on(Some("bank"), "executor_bypass")
                && !tuning.is_on(None, "executor_bypass")
                && tuning.is_on_somewhere("executor_bypass")
        );
    }

    #[test]
    fn what_no_check_has_is_refused_by_name() {
        let say = |text: &str| Tuning::parse(&built_in(), text).unwrap_err().message;
        assert!(
            say("[checks.expired_grant]\nskew = 1").contains("checks.expired_grant.skew: no check has this setting")
        );
        assert!(say("[checks.expired_grant]\nenabled = 1").contains("must be of type boolean"));
        assert!(say("[checks.expired_grant]\nseverity = \"bad\"").contains("none of informational"));
        for value in ["nan", "-nan", "inf", "-inf"] {
            let said = say(&format!("[workspace.bank.no_grant]\ncalls_min = {value}"));
            assert!(said.contains("workspace.bank.no_grant.calls_min is no number that anything can be compared with; write one such as 20"), "{said}");
            assert!(say(&format!("grace_seconds = {value}")).contains("grace_seconds must be a number of seconds"));
        }
        assert!(say("memory_bytes = 5").contains("memory_bytes must be a number of bytes, 1048576 at least"));
        assert!(say("graze_seconds = 1").contains("graze_seconds is none of"));
    }
}
