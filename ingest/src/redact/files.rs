//! Rule files: our own format, and that of gitleaks, whose rules come with Custody.

use custody_proto::Signal;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::marker::{Action, NAME_BYTES_MAX, is_name};
use super::rule::{ALL_SIGNALS, Allow, Matcher, Part, Pattern, Rule, Target, Words, bit};

/// gitleaks' rules (MIT; see `ingest/rules/README.md`), unchanged.
pub(super) const GITLEAKS: &str = include_str!("../../rules/gitleaks.toml");

/// Which version of them.
pub(super) const GITLEAKS_VERSION: &str = "8.30.1";

/// Our own part of the built-in rules.
const SECRETS: &str = include_str!("../../rules/secrets.toml");

/// Rules of gitleaks that are not taken, and why.
pub(super) const NOT_TAKEN: [(&str, &str); 2] = [
    ("jwt", "our rule jwt-signature replaces the signature only: the claims are evidence"),
    ("pkcs12-file", "it knows a file by its name, and a request has no files"),
];

/// What markers may stand between: quotes of JSON and Python, and of JSON inside of JSON.
const QUOTES: [&str; 3] = ["\"", "'", "\\\""];

/// Most bytes of a rule file.
const FILE_BYTES_MAX: usize = 1 << 20;

/// Some rules, and what the log says of where they come from.
pub(super) struct Set {
    /// Name, version and SHA-256 of the file.
    pub says: String,
    pub rules: Vec<Rule>,
}

fn says(name: &str, version: &str, text: &str) -> String {
    let version = if version.is_empty() { String::new() } else { format!(" {version}") };
    format!("{name}{version} sha256:{}", const_hex::encode(Sha256::digest(text)))
}

/// The built-in rules: our own first, so that theirs is the name where both match.
pub(super) fn built_in() -> Result<Vec<Set>, String> {
    Ok(vec![own("secrets", SECRETS)?, gitleaks(GITLEAKS)?])
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnFile {
    #[serde(default)]
    name: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    rule: Vec<OwnRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnRule {
    name: String,
    #[serde(default)]
    description: String,
    key: Option<String>,
    value: Option<String>,
    action: Option<Action>,
    signals: Option<Vec<String>>,
    keywords: Option<Vec<String>>,
    entropy: Option<f64>,
    #[serde(default)]
    quote: String,
}

/// Reads a file of our own format. An error names the file, the rule and the mend.
pub(super) fn own(place: &str, text: &str) -> Result<Set, String> {
    if text.len() > FILE_BYTES_MAX {
        return Err(format!("{place}: it is larger than {FILE_BYTES_MAX} bytes; split it"));
    }
    let file: OwnFile = toml::from_str(text).map_err(|e| format!("{place}: {}", e.to_string().trim_end()))?;
    if file.rule.is_empty() {
        return Err(format!("{place}: it has no rules; write at least one [[rule]]"));
    }
    let name = if file.name.is_empty() { place.rsplit('/').next().unwrap_or(place) } else { &file.name };
    let rules = file.rule.into_iter().map(|rule| {
        let name = rule.name.clone();
        own_rule(rule).map_err(|e| format!("{place}: rule {name:?}: {e}"))
    });
    Ok(Set { says: says(name, &file.version, text), rules: rules.collect::<Result<_, _>>()? })
}

fn own_rule(rule: OwnRule) -> Result<Rule, String> {
    if !is_name(&rule.name) {
        return Err(format!(
            "a name has letters, digits, '.', '-' and '_' only, begins with a letter or digit, and is at most \
             {NAME_BYTES_MAX} bytes long"
        ));
    }
    if rule.key.is_none() && rule.value.is_none() {
        return Err("it has neither key nor value; give it at least one of the two regexes".into());
    }
    if rule.value.is_none() && (rule.keywords.is_some() || rule.entropy.is_some()) {
        return Err("keywords and entropy are for a value; give it one, or leave them out".into());
    }
    let is_whole = rule.value.is_none() || rule.action == Some(Action::Drop);
    if !rule.quote.is_empty() && (is_whole || !QUOTES.contains(&rule.quote.as_str())) {
        return Err(format!(
            "quote is one of {QUOTES:?}, for a rule that replaces a part of a text; mend it or leave it out"
        ));
    }
    let key = rule.key.map(checked_key).transpose().map_err(|e| format!("key: {e}"))?;
    let matcher = |value: String| {
        let pattern = Pattern::checked(&value).map_err(|e| format!("value: {e}"))?;
        let regex = pattern.compile()?;
        let group = regex.capture_names().position(|name| name == Some("secret"));
        let keywords = rule.keywords.unwrap_or_default();
        if keywords.iter().any(|word| word.is_empty() || !word.is_ascii()) {
            return Err("keywords are words in ASCII; mend or leave out the others".to_owned());
        }
        let entropy = rule.entropy.unwrap_or(-1.0);
        if !(-1.0..8.0).contains(&entropy) {
            return Err(format!("entropy {entropy} is not between 0 and 8 bits a character"));
        }
        Ok(Matcher { pattern, part: Part::Group(group.unwrap_or(0)), keywords, entropy, allow: vec![] })
    };
    let value = rule.value.map(matcher).transpose()?;
    Ok(Rule {
        name: rule.name,
        description: rule.description,
        action: rule.action.unwrap_or(Action::Redact),
        signals: rule.signals.map_or(Ok(ALL_SIGNALS), |names| signals(&names))?,
        key,
        value,
        quote: rule.quote,
    })
}

fn checked_key(key: String) -> Result<String, String> {
    let regex = regex::Regex::new(&key).map_err(|e| e.to_string())?;
    if regex.is_match("") {
        return Err("it matches the empty text, and so every key; make it match at least one character".into());
    }
    Ok(key)
}

fn signals(names: &[String]) -> Result<u8, String> {
    let mut bits = 0;
    for name in names {
        bits |= match name.as_str() {
            "traces" => bit(Signal::Traces),
            "logs" => bit(Signal::Logs),
            "metrics" => bit(Signal::Metrics),
            other => return Err(format!("{other:?} is no signal; they are \"traces\", \"logs\" and \"metrics\"")),
        };
    }
    if bits == 0 { Err("signals is empty; leave it out for all of them".into()) } else { Ok(bits) }
}

#[derive(Deserialize)]
struct GitleaksFile {
    allowlist: GitleaksAllow,
    rules: Vec<GitleaksRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GitleaksRule {
    pub id: String,
    #[serde(default)]
    description: String,
    regex: Option<String>,
    #[serde(default)]
    entropy: f64,
    #[serde(default)]
    secret_group: usize,
    #[serde(default)]
    keywords: Vec<String>,
    #[serde(default)]
    allowlists: Vec<GitleaksAllow>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct GitleaksAllow {
    condition: String,
    paths: Vec<String>,
    regexes: Vec<String>,
    regex_target: String,
    stopwords: Vec<String>,
}

/// Reads gitleaks' configuration. What it says of files and commits has no meaning for
/// a request: a rule that also asks for a file's name is taken without, and an allowlist
/// that needs one allows nothing.
pub(super) fn gitleaks(text: &str) -> Result<Set, String> {
    let file: GitleaksFile = toml::from_str(text).map_err(|e| format!("gitleaks.toml: {e}"))?;
    let mut rules: Vec<Rule> = file.rules.iter().filter_map(|rule| gitleaks_rule(rule, &file.allowlist)).collect();
    // Where a generic rule and another match the same, the other says more.
    rules.sort_by_key(|rule| rule.name.contains("generic"));
    Ok(Set { says: says("gitleaks", GITLEAKS_VERSION, text), rules })
}

fn gitleaks_rule(rule: &GitleaksRule, global: &GitleaksAllow) -> Option<Rule> {
    let regex = rule.regex.as_ref()?;
    if NOT_TAKEN.iter().any(|(name, _)| *name == rule.id) {
        return None;
    }
    let matcher = Matcher {
        pattern: Pattern::lazy(&re2(regex)),
        part: if rule.secret_group > 0 { Part::Group(rule.secret_group) } else { Part::FirstGroup },
        keywords: rule.keywords.clone(),
        entropy: if rule.entropy > 0.0 { rule.entropy } else { -1.0 },
        allow: rule.allowlists.iter().chain([global]).filter_map(gitleaks_allow).collect(),
    };
    Some(Rule {
        name: rule.id.clone(),
        description: rule.description.clone(),
        action: Action::Redact,
        signals: ALL_SIGNALS,
        key: None,
        value: Some(matcher),
        quote: String::new(),
    })
}

fn gitleaks_allow(allow: &GitleaksAllow) -> Option<Allow> {
    let needs_path = allow.condition.eq_ignore_ascii_case("and") && !allow.paths.is_empty();
    if needs_path || allow.regexes.is_empty() && allow.stopwords.is_empty() {
        return None;
    }
    let target = match allow.regex_target.as_str() {
        "match" => Target::Match,
        "line" => Target::Line,
        _ => Target::Secret,
    };
    let patterns = allow.regexes.iter().map(|regex| Pattern::lazy(&re2(regex))).collect();
    Some(Allow { target, patterns, words: Words::new(&allow.stopwords) })
}

/// Spells an RE2 pattern as the regex crate wants it: a brace that begins no repetition,
/// and a bracket inside a class, stand for themselves in RE2.
fn re2(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern;
    let mut in_class = false;
    while let Some(c) = rest.chars().next() {
        // What is taken over as it is: an escaped character, a named class, a class's beginning.
        let whole = match c {
            '\\' => rest.chars().take(2).map(char::len_utf8).sum(),
            '[' if in_class && rest.starts_with("[:") => rest.find(":]").map_or(1, |end| end + 2),
            '[' if !in_class => ["[^]", "[]", "[^"].iter().find(|open| rest.starts_with(**open)).map_or(1, |o| o.len()),
            _ => c.len_utf8(),
        };
        if in_class && rest.starts_with('[') && whole == 1 || !in_class && c == '{' && !is_repetition(&rest[1..]) {
            out.push('\\');
        }
        in_class = if c == '[' { true } else { in_class && c != ']' };
        out.push_str(&rest[..whole]);
        rest = &rest[whole..];
    }
    out
}

/// Whether what stands behind a brace makes it one of `{2}`, `{2,}`, `{2,3}`.
fn is_repetition(rest: &str) -> bool {
    let Some((inside, _)) = rest.split_once('}') else { return false };
    let (low, high) = inside.split_once(',').unwrap_or((inside, ""));
    let digits = |text: &str| text.bytes().all(|c| c.is_ascii_digit());
    !low.is_empty() && digits(low) && digits(high)
}
