//! Hygiene at the door: what the operator's rules name is replaced in a request before
//! anything of it is hashed, chained or stored. Off unless it is turned on.
//!
//! The rules see every text of a request and the keys of its attributes. What a rule
//! replaces is never in the log, in no index and in no answer; that something stood
//! there is. Equal requests become equal bytes, so retries are still known; and what
//! was redacted is not changed when it is redacted again.

mod files;
mod marker;
mod note;
mod rule;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aho_corasick::{AhoCorasick, MatchKind};
use custody_proto::rewrite::{At, Editor, Value, rewrite};
use custody_proto::{Invalid, Limits, Signal};
use custody_store::measure::Family;
use regex::RegexSet;

use files::Set;
pub use marker::Action;
use marker::{Names, marker};
use rule::Rule;

/// The name of the built-in rules.
pub const BUILT_IN: &str = "secrets";

/// A text that still changes after so many rounds is replaced whole.
const ROUNDS_MAX: usize = 8;

/// How many different attribute paths of one request are remembered with their rules.
const PATHS_MAX: usize = 4096;

/// The rules in force. Applied to requests of all connections at once.
pub struct Redactor {
    rules: Vec<Rule>,
    names: Names,
    sets: Vec<String>,
    /// The rules that name a key, by their place in `key_rules`.
    keys: RegexSet,
    key_rules: Vec<usize>,
    /// Finds the keywords of all rules at once.
    keywords: AhoCorasick,
    /// For each keyword the rules that have it.
    keyword_rules: Vec<Vec<usize>>,
    /// Rules with a value and no keyword: always tried.
    always: Vec<usize>,
    secret: [u8; 32],
    counts: Vec<AtomicU64>,
    requests: AtomicU64,
}

/// What would be replaced, for somebody who tries his rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The record, counted from 0; `None` in what several share.
    pub record: Option<usize>,
    /// Where in it: message, field, and path of an attribute.
    pub place: String,
    /// The rule.
    pub rule: String,
    /// What stands there.
    pub before: String,
    /// What would stand there.
    pub after: String,
}

/// A rule, for a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is for.
    pub description: &'a str,
    /// What it does.
    pub action: Action,
    /// The regex of keys, if it has one.
    pub key: Option<&'a str>,
    /// The regex of values, if it has one.
    pub value: Option<&'a str>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the secret.
        f.debug_struct("Redactor").field("sets", &self.sets).field("rules", &self.rules.len()).finish_non_exhaustive()
    }
}

impl Redactor {
    /// Reads rules: [`BUILT_IN`], or the path of a rule file. An error says which file,
    /// which rule, and how to mend it.
    pub fn load(sources: &[String]) -> Result<Self, String> {
        let mut sets = Vec::new();
        for source in sources {
            if source == BUILT_IN {
                sets.extend(files::built_in()?);
                continue;
            }
            let text = std::fs::read_to_string(Path::new(source));
            let text = text.map_err(|e| {
                format!("{source}: {e}; name a rule file, or {BUILT_IN:?} for the rules that come with custody")
            })?;
            sets.push(files::own(source, &text)?);
        }
        Self::of(sets)
    }

    fn of(sets: Vec<Set>) -> Result<Self, String> {
        let says = sets.iter().map(|set| set.says.clone()).collect();
        let rules: Vec<Rule> = sets.into_iter().flat_map(|set| set.rules).collect();
        let names = Names::new(rules.iter().map(|rule| (rule.name.as_str(), rule.action)));
        let names =
            names.map_err(|name| format!("two rules have the name {name:?}; rename one, or give the file once"))?;
        let key_rules: Vec<usize> = (0..rules.len()).filter(|i| rules[*i].key.is_some()).collect();
        let keys = RegexSet::new(key_rules.iter().filter_map(|i| rules[*i].key.as_ref()));
        let keys = keys.map_err(|e| format!("the keys of the rules are too many or too large together: {e}"))?;
        let (mut words, mut keyword_rules, mut always) = (Vec::<String>::new(), Vec::<Vec<usize>>::new(), Vec::new());
        for (i, rule) in rules.iter().enumerate() {
            let Some(matcher) = &rule.value else { continue };
            if matcher.keywords.is_empty() {
                always.push(i);
            }
            for word in matcher.keywords.iter().map(|word| word.to_ascii_lowercase()) {
                match words.iter().position(|known| *known == word) {
                    Some(at) => keyword_rules[at].push(i),
                    None => {
                        words.push(word);
                        keyword_rules.push(vec![i]);
                    }
                }
            }
        }
        let mut keywords = AhoCorasick::builder();
        keywords.ascii_case_insensitive(true).match_kind(MatchKind::Standard);
        let keywords = keywords.build(&words).map_err(|e| format!("the rules have too many keywords: {e}"))?;
        let counts = rules.iter().map(|_| AtomicU64::new(0)).collect();
        let (secret, requests) = ([0; 32], AtomicU64::new(0));
        Ok(Self {
            rules,
            names,
            sets: says,
            keys,
            key_rules,
            keywords,
            keyword_rules,
            always,
            secret,
            counts,
            requests,
        })
    }

    /// Gives the secret under which values are hashed.
    pub fn with_secret(mut self, secret: [u8; 32]) -> Self {
        self.secret = secret;
        self
    }

    /// The rules in their order.
    pub fn rules(&self) -> impl Iterator<Item = RuleInfo<'_>> {
        self.rules.iter().map(|rule| RuleInfo {
            name: &rule.name,
            description: &rule.description,
            action: rule.action,
            key: rule.key.as_deref(),
            value: rule.value.as_ref().map(|value| value.pattern.text()),
        })
    }

    /// The request with everything replaced that a rule names; `None` if there is nothing.
    /// It was scanned before, and what comes back is to be scanned again.
    pub fn apply(&self, signal: Signal, request: &[u8], limits: &Limits) -> Result<Option<Vec<u8>>, Invalid> {
        let new = rewrite(signal, request, limits, &mut Pass::new(self, signal, None))?;
        self.requests.fetch_add(u64::from(new.is_some()), Relaxed);
        Ok(new)
    }

    /// What would be replaced in a request, in its order.
    pub fn findings(&self, signal: Signal, request: &[u8], limits: &Limits) -> Result<Vec<Finding>, Invalid> {
        let mut pass = Pass::new(self, signal, Some(vec![]));
        rewrite(signal, request, limits, &mut pass)?;
        Ok(pass.findings.unwrap_or_default())
    }

    /// Its counters.
    pub fn families(&self) -> Vec<Family> {
        let counts = self.rules.iter().zip(&self.counts).filter(|(_, count)| count.load(Relaxed) > 0);
        vec![
            Family::counter(
                "custody_redacted_requests",
                "Requests in which something was replaced before they were stored",
                &self.requests,
            ),
            Family::counters(
                "custody_redactions",
                "What was replaced, by rule; rules that never matched are left out",
                "rule",
                counts.map(|(rule, count)| (rule.name.as_str(), count)),
            ),
        ]
    }

    /// The rules whose key matches a path.
    fn rules_of(&self, path: &str) -> Box<[usize]> {
        self.keys.matches(path).into_iter().map(|at| self.key_rules[at]).collect()
    }
}

/// One request under the rules.
struct Pass<'a> {
    redactor: &'a Redactor,
    signal: Signal,
    /// Paths that came before, with the rules whose key matches.
    paths: HashMap<Box<str>, Arc<[usize]>>,
    /// The rules to try on a text; all false between two texts.
    tried: Vec<bool>,
    findings: Option<Vec<Finding>>,
}

/// What a rule replaces in a text.
type Hit = (Range<usize>, usize);

impl<'a> Pass<'a> {
    fn new(redactor: &'a Redactor, signal: Signal, findings: Option<Vec<Finding>>) -> Self {
        Self { redactor, signal, paths: HashMap::new(), tried: vec![false; redactor.rules.len()], findings }
    }

    fn rules_of(&mut self, path: &str) -> Arc<[usize]> {
        if path.is_empty() || self.redactor.key_rules.is_empty() {
            return Arc::default();
        }
        if let Some(known) = self.paths.get(path) {
            return Arc::clone(known);
        }
        let rules: Arc<[usize]> = self.redactor.rules_of(path).into();
        if self.paths.len() < PATHS_MAX {
            self.paths.insert(path.into(), Arc::clone(&rules));
        }
        rules
    }

    /// What the rules replace in a text, in order and apart. `of_key` are the rules
    /// whose key matches where it stands.
    fn hits(&mut self, of_key: &[usize], text: &[u8]) -> Vec<Hit> {
        let redactor = self.redactor;
        for rule in &redactor.always {
            self.tried[*rule] = true;
        }
        let mut any = !redactor.always.is_empty();
        for word in redactor.keywords.find_overlapping_iter(text) {
            for rule in &redactor.keyword_rules[word.pattern().as_usize()] {
                self.tried[*rule] = true;
                any = true;
            }
        }
        if !any {
            return vec![];
        }
        let mut hits: Vec<Hit> = Vec::new();
        for (i, rule) in redactor.rules.iter().enumerate().filter(|(i, _)| self.tried[*i]) {
            let Some(matcher) = rule.value.as_ref().filter(|_| rule.is_of(self.signal)) else { continue };
            if rule.key.is_none() || of_key.contains(&i) {
                matcher.find(text, |range| hits.push((range, i)));
            }
        }
        self.tried.fill(false);
        joined(hits)
    }

    /// A text with all replaced that the rules name, over and over until they name nothing.
    fn redact(&mut self, at: &At<'_>, original: &[u8], is_text: bool) -> Option<Vec<u8>> {
        let of_key = self.rules_of(at.path);
        let mut text: Option<Vec<u8>> = None;
        for round in 0.. {
            let now = text.as_deref().unwrap_or(original);
            let hits = self.hits(&of_key, now);
            if hits.is_empty() {
                break;
            }
            let hits = outside_of_markers(whole_characters(hits, now, is_text), &self.redactor.names.markers(now));
            let Some((_, first)) = hits.first() else { break };
            let whole = hits.iter().find(|(_, rule)| self.redactor.rules[*rule].action == Action::Drop);
            let whole = whole.map(|(_, rule)| *rule).or((round >= ROUNDS_MAX).then_some(*first));
            if let Some(rule) = whole {
                return Some(self.replace(at, rule, original).into_bytes());
            }
            let mut new = Vec::with_capacity(now.len() + 32 * hits.len());
            let mut copied = 0;
            for (range, rule) in hits {
                new.extend_from_slice(&now[copied..range.start]);
                let quote = self.redactor.rules[rule].quote.as_bytes();
                new.extend_from_slice(quote);
                new.extend_from_slice(self.replace(at, rule, &now[range.clone()]).as_bytes());
                new.extend_from_slice(quote);
                copied = range.end;
            }
            new.extend_from_slice(&now[copied..]);
            text = Some(new);
        }
        text
    }

    /// The marker for what a rule matched; counts it, and notes it if somebody asked.
    fn replace(&mut self, at: &At<'_>, rule: usize, what: &[u8]) -> String {
        let redactor = self.redactor;
        let marker = marker(redactor.rules[rule].action, &redactor.rules[rule].name, what, &redactor.secret);
        match &mut self.findings {
            None => drop(redactor.counts[rule].fetch_add(1, Relaxed)),
            Some(findings) => {
                let path = if at.path.is_empty() { String::new() } else { format!(" {}", at.path) };
                findings.push(Finding {
                    record: at.record,
                    place: format!("{} {}{path}", at.message, at.field),
                    rule: redactor.rules[rule].name.clone(),
                    before: String::from_utf8_lossy(what).into_owned(),
                    after: marker.clone(),
                });
            }
        }
        marker
    }
}

impl Editor for Pass<'_> {
    fn value(&mut self, at: &At<'_>, value: Value<'_>) -> Option<String> {
        let of_key = self.rules_of(at.path);
        let redactor = self.redactor;
        let mut rules = of_key.iter().copied();
        let rule = rules.find(|i| redactor.rules[*i].is_of_key() && redactor.rules[*i].is_of(self.signal))?;
        match value.text {
            Some(text) if redactor.names.is_marker(text.as_bytes()) => None,
            Some(text) => Some(self.replace(at, rule, text.as_bytes())),
            None => Some(self.replace(at, rule, value.wire)),
        }
    }

    fn text(&mut self, at: &At<'_>, text: &[u8], is_text: bool) -> Option<Vec<u8>> {
        self.redact(at, text, is_text)
    }
}

/// Hits in order; those that overlap become one, by the rule that comes first.
fn joined(mut hits: Vec<Hit>) -> Vec<Hit> {
    hits.sort_by_key(|(range, rule)| (range.start, *rule));
    let mut out: Vec<Hit> = Vec::with_capacity(hits.len());
    for (range, rule) in hits {
        match out.last_mut() {
            Some((last, by)) if range.start < last.end => {
                last.end = last.end.max(range.end);
                *by = (*by).min(rule);
            }
            _ => out.push((range, rule)),
        }
    }
    out
}

/// A hit inside a character of a text takes all of it.
fn whole_characters(mut hits: Vec<Hit>, text: &[u8], is_text: bool) -> Vec<Hit> {
    let inside = |at: usize| text.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    for (range, _) in hits.iter_mut().filter(|_| is_text) {
        while range.start > 0 && inside(range.start) {
            range.start -= 1;
        }
        while inside(range.end) {
            range.end += 1;
        }
    }
    joined(hits)
}

/// What of the hits is not a marker already.
fn outside_of_markers(hits: Vec<Hit>, markers: &[Range<usize>]) -> Vec<Hit> {
    if markers.is_empty() {
        return hits;
    }
    let mut out = Vec::with_capacity(hits.len());
    let mut next = 0;
    for (range, rule) in hits {
        let mut at = range.start;
        while markers.get(next).is_some_and(|marker| marker.end <= at) {
            next += 1;
        }
        for marker in markers[next..].iter().take_while(|marker| marker.start < range.end) {
            if marker.start > at {
                out.push((at..marker.start, rule));
            }
            at = marker.end;
        }
        if at < range.end {
            out.push((at..range.end, rule));
        }
    }
    out
}
