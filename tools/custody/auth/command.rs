//! `custody policy check` and `custody token`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use custody_query::{Role, RowFilter};
use serde_json::{Map, Value};

use super::jwks::Issuer;
use super::own::{self, Wanted};
use super::policy::{Policy, Rule, Subject};
use crate::control::{Control, Request};
use crate::{Failure, counted, print};

/// The policy file: who may do what.
#[derive(Subcommand)]
pub enum PolicyCommand {
    Check(Check),
}

impl PolicyCommand {
    /// Runs it.
    pub fn run(self) -> Result<(), Failure> {
        let Self::Check(check) = self;
        check.run()
    }
}

/// Read a policy file as `custody serve --policy` would, with the files that it names, and say what it grants. What
/// is behind URLs is not fetched.
///
/// Without --identity it lists the rules. With it, it says which rule decides about that
/// caller; status 1 if none lets him in.
#[derive(Args)]
pub struct Check {
    /// The policy file.
    file: PathBuf,
    /// An identity: spiffe://..., cert:SUBJECT, jwt:ISSUER#SUBJECT or peer:127.0.0.1.
    #[arg(long, value_name = "IDENTITY")]
    identity: Option<String>,
    /// A claim of his token, such as groups=security; repeat it for more.
    #[arg(long = "claim", value_name = "NAME=VALUE", requires = "identity")]
    claims: Vec<String>,
}

impl Check {
    fn run(self) -> Result<(), Failure> {
        let policy = Policy::read(&self.file).map_err(Failure::wrong)?;
        let issuers = Issuer::all(&policy, &self.file).map_err(Failure::wrong)?;
        issuers.iter().try_for_each(|issuer| issuer.load_file()).map_err(Failure::wrong)?;
        let Some(identity) = &self.identity else {
            let (rules, issuers) = (counted(policy.rules.len(), "rule"), counted(policy.issuers.len(), "issuer"));
            print(&format!("{}: sound, {rules}, {issuers}\n", self.file.display()))?;
            return policy.rules.iter().try_for_each(|rule| print(&format!("line {}: {}\n", rule.line, grants(rule))));
        };
        let mut claims = Map::new();
        for claim in &self.claims {
            let (name, value) =
                claim.split_once('=').ok_or_else(|| Failure::wrong(format!("--claim {claim} is not NAME=VALUE")))?;
            let list = claims.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            list.as_array_mut().into_iter().for_each(|list| list.push(value.into()));
        }
        let claims = Value::Object(claims);
        let issuer = identity.strip_prefix("jwt:").and_then(|rest| rest.split_once('#')).map(|(issuer, _)| issuer);
        let token = issuer.map(|issuer| (issuer, &claims));
        match policy.decide(Subject { identity, token }) {
            Some(rule) if Role::ALL.into_iter().any(|role| rule.roles.has(role)) => {
                print(&format!("{identity}: line {}: {}\n", rule.line, grants(rule)))
            }
            Some(rule) => Err(Failure::wrong(format!("{identity}: line {} lets him do nothing", rule.line))),
            None => Err(Failure::wrong(format!("{identity}: no rule speaks of him; he may do nothing"))),
        }
    }
}

/// What a rule grants, in words.
fn grants(rule: &Rule) -> String {
    let roles: Vec<&str> = Role::ALL.into_iter().filter(|role| rule.roles.has(*role)).map(Role::name).collect();
    let roles = if roles.is_empty() { "nothing".to_owned() } else { roles.join(", ") };
    format!("{}, actor {}, {}", roles, rule.actor.name(), shows(&rule.rows))
}

fn shows(rows: &RowFilter) -> String {
    let of = |name: &str, list: &Option<std::sync::Arc<[String]>>| match list {
        None => format!("all {name}"),
        Some(list) if list.is_empty() => format!("no {name}"),
        Some(list) => format!("{name} {}", list.join(", ")),
    };
    format!("{}, {}", of("tenants", &rows.tenants), of("workspaces", &rows.workspaces))
}

/// Make a short-lived token for a script, signed by the log's own key.
///
/// It is asked of the running server through its data directory, which only its owner can
/// open; without a server the directory is opened. The log records that it was made. A policy
/// can take from it, never add to it; `custody keys rotate` ends all of them.
#[derive(Args)]
pub struct Token {
    /// A name for the script; its records and requests are by jwt:ORIGIN#NAME.
    #[arg(long, value_name = "NAME")]
    identity: String,
    /// What it may do: write, read, investigate, export, stream, witness, admin; repeat it for more.
    #[arg(long = "role", value_name = "ROLE", required = true, value_delimiter = ',')]
    roles: Vec<String>,
    /// The tenants whose rows it sees, or *; repeat it for more. Needed for roles that see rows.
    #[arg(long = "tenant", value_name = "NAME")]
    tenants: Vec<String>,
    /// The workspaces whose rows it sees; repeat it for more [default: all].
    #[arg(long = "workspace", value_name = "NAME")]
    workspaces: Vec<String>,
    /// How long it lives: 60s to 24h.
    #[arg(long, value_name = "AGE", default_value = "1h", value_parser = own::ttl)]
    ttl: Duration,
    /// What it is: automation, agent or workload.
    #[arg(long, value_name = "KIND", default_value = "automation")]
    actor: String,
    /// The data directory.
    #[arg(long, default_value = "custody-data", value_name = "DIR")]
    data_dir: PathBuf,
}

impl Token {
    /// Prints the token.
    pub fn run(self) -> Result<(), Failure> {
        let sees = |name: &String| matches!(name.as_str(), "read" | "investigate" | "export" | "stream");
        if self.tenants.is_empty() && self.roles.iter().any(sees) {
            return Err(Failure::wrong("name the tenants whose rows it sees with --tenant, or --tenant '*' for all"));
        }
        let some = |flag: &str, list: Vec<String>| match list.iter().any(|name| name == "*" || name.is_empty()) {
            true if list == ["*"] => Ok(None),
            true => Err(Failure::wrong(format!("{flag}: give names, or '*' alone for all of them"))),
            false => Ok((!list.is_empty()).then_some(list)),
        };
        let wanted = Wanted {
            identity: self.identity,
            actor: self.actor,
            roles: self.roles,
            tenants: some("--tenant", self.tenants)?,
            workspaces: some("--workspace", self.workspaces)?,
            ttl_seconds: self.ttl.as_secs(),
        };
        let answer = Control::of(&self.data_dir)?.ask(&Request::Token { wanted }, &mut std::io::sink())?;
        let token = answer["token"].as_str().ok_or_else(|| Failure::unable("the server made no token"))?;
        print(&format!("{token}\n"))
    }
}
