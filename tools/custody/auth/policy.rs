//! The policy file: who may do what, and which rows he sees. docs/security.md has a worked file.
//!
//! Rules are read from the top, and the first one that speaks of a caller decides; whom none speaks
//! of may do nothing. A file that has a mistake is refused whole, with its line and the mend.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use custody_proto::seen::{is_name, is_unseen};
use custody_query::{ActorType, Role, Roles, RowFilter};
use serde::Deserialize;
use serde_json::Value;
use toml::Spanned;

use super::key::Algorithm;

/// Whose tokens are believed, as the file says it.
#[derive(Clone, Debug, PartialEq)]
pub struct IssuerSettings {
    /// The claim `iss`, exactly.
    pub issuer: String,
    /// What the claim `aud` must name one of.
    pub audience: Vec<String>,
    /// Where its keys are.
    pub keys: KeysAt,
    /// The authorities of the HTTPS server with the keys, instead of the usual ones.
    pub ca_file: Option<PathBuf>,
    /// With which algorithms its tokens may be signed.
    pub algorithms: Vec<Algorithm>,
    /// How far clocks may be apart.
    pub leeway_seconds: u64,
    /// How often the keys are fetched again.
    pub refresh_seconds: u64,
    /// If there are any: its tokens come in `X-Pomerium-Jwt-Assertion`, from these identities only.
    pub proxies: Vec<Pattern>,
}

/// Where the keys of an issuer are.
#[derive(Clone, Debug, PartialEq)]
pub enum KeysAt {
    /// A file, read again when it changes.
    File(PathBuf),
    /// An HTTPS URL (HTTP on loopback).
    Url(String),
}

/// A text in which `*` stands for any run of characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    #[cfg(test)]
    pub fn of(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Whether a text is like it.
    pub fn matches(&self, text: &str) -> bool {
        // In a certificate's subject a star stays within one value: else a name could pass for its neighbours.
        let is_subject = self.0.starts_with("cert:");
        let fits = |run: &str| !is_subject || !run.contains([',', '\\', '+', '=']);
        matches(&self.0, text, &fits)
    }
}

/// Takes the shortest run for each star, and never comes back to it: patterns are the operator's, texts
/// are not, and with going back three stars over a long claim take minutes. Nothing is missed by it: of
/// two places where the text between two stars can stand, the first leaves the next star what the
/// second one would have given to the former, which is made of characters that fit a star.
fn matches(pattern: &str, text: &str, fits: &dyn Fn(&str) -> bool) -> bool {
    let Some((before, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(before) else { return false };
    let (between, after) = rest.rsplit_once('*').map_or(("", rest), |(between, after)| (between, after));
    for part in between.split('*').filter(|part| !part.is_empty()) {
        let Some(at) = text.find(part) else { return false };
        if !fits(&text[..at]) {
            return false;
        }
        text = &text[at + part.len()..];
    }
    text.strip_suffix(after).is_some_and(fits)
}

/// Of whom a rule speaks.
#[derive(Clone, Debug)]
enum Who {
    Identity(Pattern),
    Claims { issuer: String, claims: Vec<(String, Vec<Pattern>)> },
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Where it stands in the file.
    pub line: usize,
    who: Who,
    /// What its callers are.
    pub actor: ActorType,
    /// What they may do.
    pub roles: Roles,
    /// What they see.
    pub rows: RowFilter,
}

/// Who is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// His identity.
    pub identity: &'a str,
    /// Whose token he has, and what it says.
    pub token: Option<(&'a str, &'a Value)>,
}

/// All rules of a file.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whose tokens are believed.
    pub issuers: Vec<IssuerSettings>,
    /// Where each of them stands in the file.
    pub issuer_lines: Vec<usize>,
    /// From the top.
    pub rules: Vec<Rule>,
    /// BLAKE3 of the file: which policy it is, in the log.
    pub digest: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    issuer: Vec<Spanned<RawIssuer>>,
    #[serde(default)]
    allow: Vec<Spanned<RawRule>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIssuer {
    issuer: Spanned<String>,
    audience: Spanned<Vec<String>>,
    jwks_url: Option<Spanned<String>>,
    jwks_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    algorithms: Option<Spanned<Vec<String>>>,
    leeway_seconds: Option<Spanned<u64>>,
    refresh_seconds: Option<Spanned<u64>>,
    proxies: Option<Spanned<Vec<Spanned<String>>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    identity: Option<Spanned<String>>,
    issuer: Option<Spanned<String>>,
    #[serde(default)]
    claims: std::collections::BTreeMap<String, Spanned<OneOrMore>>,
    actor: Option<Spanned<String>>,
    roles: Spanned<Vec<String>>,
    tenants: Option<Spanned<Vec<String>>>,
    workspaces: Option<Spanned<Vec<String>>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// What is wrong, and where.
struct Wrong(usize, String);

fn wrong<T>(at: &Spanned<T>, what: impl Into<String>) -> Wrong {
    Wrong(at.span().start, what.into())
}

impl Policy {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// One line: file, line, key and mend.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text =
            std::fs::read_to_string(path).map_err(|e| format!("the policy {} cannot be read: {e}", path.display()))?;
        Self::parse(&text, path)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, String> {
        let place = path.display();
        let line = |at: usize| text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
        let file: File = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(1, |span| line(span.start));
            format!("{place}:{line}: {}", e.message().replace('\n', " "))
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let told = |Wrong(at, what): Wrong| format!("{place}:{}: {what}", line(at));
        let issuer_lines = file.issuer.iter().map(|raw| line(raw.span().start)).collect();
        let mut issuers: Vec<IssuerSettings> = Vec::new();
        for raw in file.issuer {
            let name = raw.get_ref().issuer.span().start;
            let read = issuer(raw, folder).and_then(|read| alone(name, read, &issuers));
            issuers.push(read.map_err(told)?);
        }
        let rules = file.allow.into_iter().map(|raw| {
            let at = line(raw.span().start);
            rule(raw, &issuers).map(|rule| Rule { line: at, ..rule })
        });
        let rules = rules.collect::<Result<Vec<_>, _>>().map_err(told)?;
        let digest = blake3::hash(text.as_bytes()).to_hex().to_string();
        Ok(Self { issuers, issuer_lines, rules, digest })
    }

    /// The claims of an issuer's tokens that rules look at.
    pub fn claims_of<'a>(&'a self, issuer: &'a str) -> impl Iterator<Item = &'a str> {
        self.rules.iter().flat_map(move |rule| match &rule.who {
            Who::Claims { issuer: of, claims } if of == issuer => {
                claims.iter().map(|(name, _)| name.as_str()).collect()
            }
            _ => Vec::new(),
        })
    }

    /// The rule that decides about somebody, if one speaks of him.
    pub fn decide(&self, subject: Subject<'_>) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.who.speaks_of(subject))
    }
}

impl Who {
    fn speaks_of(&self, subject: Subject<'_>) -> bool {
        match (self, subject.token) {
            (Self::Identity(pattern), _) => pattern.matches(subject.identity),
            (Self::Claims { issuer, claims }, Some((theirs, said))) => {
                issuer == theirs
                    && claims.iter().all(|(name, patterns)| {
                        said.get(name).is_some_and(|value| patterns.iter().any(|pattern| holds(value, pattern)))
                    })
            }
            (Self::Claims { .. }, None) => false,
        }
    }
}

/// Whether a claim, or one value of it, is like a pattern.
fn holds(value: &Value, pattern: &Pattern) -> bool {
    match value {
        Value::String(text) => pattern.matches(text),
        Value::Bool(_) | Value::Number(_) => pattern.matches(&value.to_string()),
        Value::Array(values) => values.iter().any(|value| !value.is_array() && holds(value, pattern)),
        Value::Null | Value::Object(_) => false,
    }
}

fn issuer(raw: Spanned<RawIssuer>, folder: &Path) -> Result<IssuerSettings, Wrong> {
    let at = raw.span().start;
    let raw = raw.into_inner();
    let name = raw.issuer.get_ref();
    if !is_name(name) || name.contains('#') {
        return Err(wrong(&raw.issuer, "issuer: give the claim iss of its tokens, without a # and all of it seen"));
    }
    if raw.audience.get_ref().is_empty() {
        return Err(wrong(&raw.audience, "audience: name what its tokens are made for, such as [\"custody\"]"));
    }
    let keys = match (raw.jwks_url, raw.jwks_file) {
        (Some(url), None) => {
            super::jwks::check_url(url.get_ref()).map_err(|e| wrong(&url, format!("jwks_url: {e}")))?;
            KeysAt::Url(url.into_inner())
        }
        (None, Some(file)) => KeysAt::File(folder.join(file)),
        _ => return Err(Wrong(at, "an issuer has either jwks_url or jwks_file".into())),
    };
    let algorithms = match &raw.algorithms {
        None => Algorithm::ALL.to_vec(),
        Some(list) if list.get_ref().is_empty() => {
            return Err(wrong(
                list,
                "algorithms: name one, such as [\"ES256\"], or leave it out for all that are taken",
            ));
        }
        Some(list) => {
            let read = |name: &String| {
                let all = Algorithm::ALL.map(Algorithm::name).join(", ");
                let found = Algorithm::of_name(name);
                found.ok_or_else(|| wrong(list, format!("algorithms: {name:?} is not taken; there are {all}")))
            };
            list.get_ref().iter().map(read).collect::<Result<_, _>>()?
        }
    };
    let bounded = |value: Option<Spanned<u64>>, name: &str, default: u64, range: std::ops::RangeInclusive<u64>| {
        let Some(value) = value else { return Ok(default) };
        let (min, max) = (range.start(), range.end());
        let mend = format!("{name}: between {min} and {max}");
        range.contains(value.get_ref()).then(|| *value.get_ref()).ok_or_else(|| wrong(&value, mend))
    };
    if let Some(list) = raw.proxies.as_ref().filter(|list| list.get_ref().is_empty()) {
        return Err(wrong(list, "proxies: name one, or leave it out: then its tokens come from their bearers"));
    }
    let proxies = raw.proxies.iter().flat_map(|list| list.get_ref()).map(|proxy| {
        check_identity(proxy.get_ref()).map_err(|e| wrong(proxy, format!("proxies: {e}")))?;
        Ok(Pattern(proxy.get_ref().clone()))
    });
    let proxies = proxies.collect::<Result<_, Wrong>>()?;
    Ok(IssuerSettings {
        proxies,
        audience: raw.audience.into_inner(),
        keys,
        ca_file: raw.ca_file.map(|file| folder.join(file)),
        algorithms,
        leeway_seconds: bounded(raw.leeway_seconds, "leeway_seconds", 60, 0..=300)?,
        refresh_seconds: bounded(raw.refresh_seconds, "refresh_seconds", 300, 1..=86_400)?,
        issuer: raw.issuer.into_inner(),
    })
}

/// Refuses a second issuer of one name: of two the first is asked, and the other never. One may come through proxies, the
/// other directly: those are two ways, and each token comes by one of them.
fn alone(at: usize, one: IssuerSettings, others: &[IssuerSettings]) -> Result<IssuerSettings, Wrong> {
    let same =
        |other: &IssuerSettings| one.issuer == other.issuer && one.proxies.is_empty() == other.proxies.is_empty();
    match others.iter().any(same) {
        true => {
            let way = if one.proxies.is_empty() { "without" } else { "with" };
            let mend =
                format!("issuer: there is an [[issuer]] {:?} {way} proxies already; make one of the two", one.issuer);
            Err(Wrong(at, mend))
        }
        false => Ok(one),
    }
}

fn rule(raw: Spanned<RawRule>, issuers: &[IssuerSettings]) -> Result<Rule, Wrong> {
    let at = raw.span().start;
    let raw = raw.into_inner();
    let who = who(at, &raw, issuers)?;
    let is_peer = matches!(&who, Who::Identity(pattern) if pattern.0.starts_with("peer:"));
    let read = |name: &String| {
        let all = Role::ALL.map(Role::name).join(", ");
        Role::of_name(name).ok_or_else(|| wrong(&raw.roles, format!("roles: {name:?} is none; there are {all}")))
    };
    let roles: Roles = raw.roles.get_ref().iter().map(read).collect::<Result<Vec<_>, _>>()?.into_iter().collect();
    let actor = match &raw.actor {
        None if is_peer || raw.roles.get_ref().is_empty() => ActorType::Unknown,
        None => return Err(Wrong(at, "actor: say what it is: human, agent, workload or automation".into())),
        Some(actor) if is_peer => return Err(wrong(actor, "actor: nobody knows who is at an address; leave it out")),
        Some(actor) => super::actor(actor.get_ref()).map_err(|e| wrong(actor, format!("actor: {e}")))?,
    };
    let sees = [Role::Read, Role::Investigate, Role::Export, Role::Stream].into_iter().any(|role| roles.has(role));
    if sees && raw.tenants.is_none() {
        let mend = "tenants: name those whose rows these roles show, or [\"*\"] for all of them";
        return Err(Wrong(at, mend.into()));
    }
    let list = |list: &Option<Spanned<Vec<String>>>, name: &str| -> Result<Option<Arc<[String]>>, Wrong> {
        let Some(spanned) = list else { return Ok(None) };
        let names = spanned.get_ref();
        match names.iter().position(|name| name.contains('*')) {
            None => Ok(Some(names.clone().into())),
            Some(_) if names.len() == 1 && names[0] == "*" => Ok(None),
            Some(_) => Err(wrong(spanned, format!("{name}: [\"*\"] alone means all of them; there are no patterns"))),
        }
    };
    let rows = RowFilter { tenants: list(&raw.tenants, "tenants")?, workspaces: list(&raw.workspaces, "workspaces")? };
    Ok(Rule { line: 0, who, actor, roles, rows })
}

fn who(at: usize, raw: &RawRule, issuers: &[IssuerSettings]) -> Result<Who, Wrong> {
    match (&raw.identity, &raw.issuer) {
        (Some(identity), None) if raw.claims.is_empty() => {
            check_identity(identity.get_ref()).map_err(|e| wrong(identity, format!("identity: {e}")))?;
            Ok(Who::Identity(Pattern(identity.get_ref().clone())))
        }
        (None, Some(issuer)) => {
            if issuers.iter().all(|known| known.issuer != *issuer.get_ref()) {
                let mend = format!("issuer: there is no [[issuer]] with issuer = {:?}", issuer.get_ref());
                return Err(wrong(issuer, mend));
            }
            let claims = raw.claims.iter().map(|(name, values)| {
                let patterns = match values.get_ref() {
                    OneOrMore::One(value) => vec![Pattern(value.clone())],
                    OneOrMore::More(all) if all.is_empty() => {
                        let mend =
                            format!("claims: {name}: name a value, or leave the claim out; an empty list is of nobody");
                        return Err(wrong(values, mend));
                    }
                    OneOrMore::More(all) => all.iter().cloned().map(Pattern).collect(),
                };
                Ok((name.clone(), patterns))
            });
            Ok(Who::Claims { issuer: issuer.get_ref().clone(), claims: claims.collect::<Result<_, Wrong>>()? })
        }
        _ => Err(Wrong(at, "a rule has either identity, or issuer and, if wanted, claims".into())),
    }
}

/// Whether a pattern can be of identities: the part that an authority answers for has no stars.
fn check_identity(pattern: &str) -> Result<(), String> {
    if pattern.contains(is_unseen) {
        return Err("it has a character that is not seen, and no identity has one".into());
    }
    if let Some(rest) = pattern.strip_prefix("spiffe://") {
        let domain = rest.split('/').next().unwrap_or_default();
        return match domain.is_empty() || domain.contains('*') {
            true => Err("name the trust domain, without a star: spiffe://example.com/...".into()),
            false => Ok(()),
        };
    }
    if let Some(rest) = pattern.strip_prefix("jwt:") {
        return match rest.split_once('#') {
            Some((issuer, subject)) if !issuer.is_empty() && !issuer.contains('*') && !subject.is_empty() => Ok(()),
            _ => Err("name issuer and subject: jwt:https://idp.example.com#subject (a star only behind the #)".into()),
        };
    }
    if let Some(address) = pattern.strip_prefix("peer:") {
        let address = address.parse::<std::net::IpAddr>();
        return match address.is_ok_and(|address| address.is_loopback()) {
            true => Ok(()),
            false => {
                Err("peer: takes 127.0.0.1 or ::1; an address of the network says nothing about who is there".into())
            }
        };
    }
    match pattern.strip_prefix("cert:") {
        Some(subject) if !subject.trim_matches('*').is_empty() => Ok(()),
        _ => Err("identities are spiffe://..., cert:SUBJECT, jwt:ISSUER#SUBJECT or peer:127.0.0.1".into()),
    }
}
