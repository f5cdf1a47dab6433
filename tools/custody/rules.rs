//! The checks: the flags of `custody serve` about them, and `custody rules`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use custody_query::checks::{self, Checker, Following, Rule, Tuning};
use custody_query::{Engine, Recorder};
use serde::Deserialize;

use crate::{Failure, counted, print};

/// Whether checks follow what comes in.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Checks {
    /// They do, and their alerts are appended to the log.
    #[default]
    On,
    /// They do not; the table `violations` is computed when it is asked for.
    Off,
}

/// How the checks run.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Checks")]
pub struct CheckFlags {
    /// Whether checks follow what comes in and append an alert for each hit; off: the table
    /// violations is computed when it is asked for [default: on].
    #[arg(long, value_name = "WHETHER")]
    checks: Option<Checks>,
    /// A directory with rules of your own (NAME.sql, NAME.examples.json) and the tuning of all
    /// rules (rules.toml); see `custody rules` [default: none].
    #[arg(long, value_name = "DIR")]
    rules: Option<PathBuf>,
}

impl CheckFlags {
    /// These, and where they are silent those of the file.
    pub fn or(self, file: Self) -> Self {
        Self { checks: self.checks.or(file.checks), rules: self.rules.or(file.rules) }
    }

    /// Plans the rules; none if checks are off. What is wrong with them stops the start.
    pub async fn load(&self) -> Result<Option<Arc<Checker>>, Failure> {
        // A server that cannot start is status 2, whatever is wrong.
        let (rules, tuning) = load(self.rules.as_deref()).map_err(|failure| Failure::unable(failure.message))?;
        match self.checks.unwrap_or_default() {
            Checks::Off => Ok(None),
            Checks::On => Checker::new(rules, tuning).await.map(Some).map_err(Failure::unable),
        }
    }

    /// Has them follow what an engine sees.
    pub fn follow(
        checker: Option<Arc<Checker>>,
        engine: &Engine,
        recorder: Arc<dyn Recorder>,
    ) -> Result<Option<Following>, Failure> {
        let follow = |checker| checks::follow(engine.projection(), checker, recorder).map_err(Failure::unable);
        checker.map(follow).transpose()
    }
}

/// The rules of Custody and those of a directory, and how they are tuned.
fn load(dir: Option<&Path>) -> Result<(Vec<Rule>, Tuning), Failure> {
    let mut rules = checks::built_in();
    let Some(dir) = dir else {
        let tuning = Tuning::of(&rules);
        return Ok((rules, tuning));
    };
    rules.extend(Rule::of_directory(dir).map_err(Failure::wrong)?);
    let file = dir.join("rules.toml");
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Failure::unable(format!("{}: {error}", file.display()))),
    };
    let tuning = Tuning::parse(&rules, &text).map_err(Failure::wrong)?;
    Ok((rules, tuning))
}

/// The rules that checks go by.
#[derive(Subcommand)]
pub enum RulesCommand {
    /// List all rules: what they fire on, how grave a hit is, their settings.
    List(RulesList),
    /// Try the examples of rules: each must hit what it says, and pass its near misses.
    Test(RulesTest),
}

/// `custody rules list`.
#[derive(Args)]
pub struct RulesList {
    /// A directory with rules of your own and a rules.toml, beside those of Custody.
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// One JSON object per rule.
    #[arg(long)]
    json: bool,
}

/// `custody rules test`.
#[derive(Args)]
pub struct RulesTest {
    /// A directory with rules of your own [default: the rules of Custody].
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl RulesCommand {
    /// Does it.
    pub fn run(self) -> Result<(), Failure> {
        match self {
            Self::List(list) => list.run(),
            Self::Test(test) => test.run(),
        }
    }
}

impl RulesList {
    fn run(self) -> Result<(), Failure> {
        let (rules, tuning) = load(self.dir.as_deref())?;
        for rule in rules {
            let (on, severity) = (tuning.is_on(None, &rule.id), tuning.severity(None, &rule.id));
            let setting = |name: &String| tuning.get(None, &rule.id, name).map(checks::shown).unwrap_or_default();
            if self.json {
                let settings = rule
                    .settings
                    .iter()
                    .map(|(name, s)| (name.clone(), serde_json::json!({"value": setting(name), "about": s.about})));
                let json = serde_json::json!({
                    "id": rule.id, "about": rule.about, "enabled": on, "severity": severity, "tags": rule.tags, "on": rule.on,
                    "fires": if rule.waits { "after grace" } else { "at once" }, "needs": rule.needs,
                    "settings": settings.collect::<serde_json::Map<_, _>>(), "file": rule.file,
                });
                print(&format!("{json}\n"))?;
                continue;
            }
            let state = if on { "on " } else { "off" };
            print(&format!("{:<24} {state} {severity:<9} {}\n", rule.id, rule.about))?;
            for (name, s) in &rule.settings {
                print(&format!("{:<24}     {name} = {}  ({})\n", "", setting(name), s.about))?;
            }
        }
        Ok(())
    }
}

impl RulesTest {
    fn run(self) -> Result<(), Failure> {
        let rules = match &self.dir {
            Some(dir) => {
                let (_, tuning) = load(Some(dir))?;
                drop(tuning);
                Rule::of_directory(dir).map_err(Failure::wrong)?
            }
            None => checks::built_in(),
        };
        if rules.is_empty() {
            return Err(Failure::wrong("there is no rule (a file NAME.sql) in this directory"));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::unable)?;
        let tried = runtime.block_on(checks::try_rules(&rules));
        let mut failed = 0;
        for one in &tried {
            match &one.problem {
                None if one.hits == 0 => print(&format!("ok    {}: {} (near miss)\n", one.rule, one.example))?,
                None => print(&format!("ok    {}: {} ({})\n", one.rule, one.example, counted(one.hits, "hit")))?,
                Some(problem) => {
                    failed += 1;
                    print(&format!("FAIL  {}: {}: {problem}\n", one.rule, one.example))?;
                }
            }
        }
        match failed {
            0 => {
                let (rules, examples) = (counted(rules.len(), "rule"), counted(tried.len(), "example"));
                print(&format!("{rules}, {examples}: all as they should be\n"))
            }
            n => Err(Failure::wrong(format!("{n} of {} not as they should be", counted(tried.len(), "example")))),
        }
    }
}
