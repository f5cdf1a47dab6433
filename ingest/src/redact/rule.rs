//! One rule: what it looks for, and where in a text it finds it.

use std::ops::Range;
use std::sync::OnceLock;

use aho_corasick::AhoCorasick;
use custody_proto::Signal;
use regex::bytes::{Regex, RegexBuilder};

use super::marker::Action;

/// The most memory a compiled regex may take.
const REGEX_BYTES_MAX: usize = 10 << 20;

/// A rule, as read from a rule file.
#[derive(Debug)]
pub(super) struct Rule {
    pub name: String,
    pub description: String,
    pub action: Action,
    /// A bit for every signal that it applies to.
    pub signals: u8,
    /// What the attribute's path must match.
    pub key: Option<String>,
    /// What must match in the text; without it the key decides.
    pub value: Option<Matcher>,
    /// What stands before and behind its markers in a text: a number in JSON becomes a string.
    pub quote: String,
}

impl Rule {
    pub(super) fn is_of(&self, signal: Signal) -> bool {
        self.signals & bit(signal) != 0
    }

    /// Whether a key alone makes it replace the whole value.
    pub(super) fn is_of_key(&self) -> bool {
        self.value.is_none()
    }
}

pub(super) const ALL_SIGNALS: u8 = 0b111;

pub(super) fn bit(signal: Signal) -> u8 {
    1 << (signal.byte() - 1)
}

/// What a rule looks for in a text.
#[derive(Debug)]
pub(super) struct Matcher {
    pub pattern: Pattern,
    pub part: Part,
    /// One of these must be in the text, in any case, before the regex is tried.
    pub keywords: Vec<String>,
    /// A match must have more Shannon entropy than this, in bits a character.
    pub entropy: f64,
    pub allow: Vec<Allow>,
}

/// Which part of a match is the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The group of that number.
    Group(usize),
    /// The first group without a name that took part, or else all of it.
    FirstGroup,
}

/// What is no secret although the regex matches.
#[derive(Debug, Default)]
pub(super) struct Allow {
    pub target: Target,
    pub patterns: Vec<Pattern>,
    pub words: Words,
}

/// Words that a secret does not contain: gitleaks has 1,400 of them for one rule.
#[derive(Debug, Default)]
pub(super) struct Words {
    words: Vec<String>,
    compiled: OnceLock<Option<AhoCorasick>>,
}

impl Words {
    pub(super) fn new(words: &[String]) -> Self {
        Self { words: words.to_vec(), compiled: OnceLock::new() }
    }

    fn are_in(&self, text: &[u8]) -> bool {
        let build = || AhoCorasick::builder().ascii_case_insensitive(true).build(&self.words).ok();
        let words = if self.words.is_empty() { return false } else { self.compiled.get_or_init(build) };
        words.as_ref().is_some_and(|words| words.is_match(text))
    }
}

/// What the patterns of an [`Allow`] are tried on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Target {
    #[default]
    Secret,
    Match,
    Line,
}

/// A regex that is compiled when it is first needed: most of the 200 rules of a rule
/// set are never tried, as none of their keywords comes.
#[derive(Debug)]
pub(super) struct Pattern {
    text: String,
    unicode: bool,
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    /// A pattern of a rule set that comes with Custody; that all compile is tested.
    pub(super) fn lazy(text: &str) -> Self {
        Self { text: text.to_owned(), unicode: false, compiled: OnceLock::new() }
    }

    /// A pattern from somebody else, checked now.
    pub(super) fn checked(text: &str) -> Result<Self, String> {
        let pattern = Self { text: text.to_owned(), unicode: true, compiled: OnceLock::new() };
        let regex = pattern.compile()?;
        if regex.is_match(b"") {
            return Err("it matches the empty text, and so every text; make it match at least one character".into());
        }
        let _ = pattern.compiled.set(Some(regex));
        Ok(pattern)
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Compiles it. RE2's classes know only ASCII, ours all of Unicode.
    pub(super) fn compile(&self) -> Result<Regex, String> {
        let mut builder = RegexBuilder::new(&self.text);
        let regex = builder.unicode(self.unicode).size_limit(REGEX_BYTES_MAX).build();
        regex.map_err(|e| e.to_string())
    }

    fn regex(&self) -> Option<&Regex> {
        self.compiled.get_or_init(|| self.compile().ok()).as_ref()
    }
}

impl Matcher {
    /// Finds every secret in a text.
    pub(super) fn find(&self, text: &[u8], mut found: impl FnMut(Range<usize>)) {
        let Some(regex) = self.pattern.regex() else { return };
        for groups in regex.captures_iter(text) {
            let Some(whole) = groups.get(0) else { continue };
            let part = match self.part {
                Part::Group(n) => groups.get(n),
                Part::FirstGroup => {
                    let mut named = regex.capture_names().enumerate().skip(1).filter(|(_, name)| name.is_none());
                    named.find_map(|(n, _)| groups.get(n).filter(|group| !group.is_empty()))
                }
            };
            let part = part.unwrap_or(whole);
            let allowed = || self.allow.iter().any(|allow| allow.is_met(text, whole.range(), part.range()));
            if part.is_empty() || entropy(part.as_bytes()) <= self.entropy || allowed() {
                continue;
            }
            found(part.range());
        }
    }
}

impl Allow {
    fn is_met(&self, text: &[u8], whole: Range<usize>, secret: Range<usize>) -> bool {
        let target = match self.target {
            Target::Secret => secret.clone(),
            Target::Match => whole,
            Target::Line => line(text, whole),
        };
        let target = &text[target];
        self.patterns.iter().filter_map(Pattern::regex).any(|regex| regex.is_match(target))
            || self.words.are_in(&text[secret])
    }
}

/// How much of its line is looked at on each side of a match. A text may be one line with a
/// hundred thousand matches: to read all of it for each would take for ever.
const LINE_BYTES_MAX: usize = 256;

/// The lines that a match lies on, as far as they are near.
fn line(text: &[u8], of: Range<usize>) -> Range<usize> {
    let (low, high) = (of.start.saturating_sub(LINE_BYTES_MAX), text.len().min(of.end + LINE_BYTES_MAX));
    let from = text[low..of.start].iter().rposition(|c| *c == b'\n').map_or(low, |at| low + at + 1);
    let to = text[of.end..high].iter().position(|c| *c == b'\n').map_or(high, |at| of.end + at);
    from..to
}

/// Shannon entropy in bits a byte; below zero for nothing, so that no threshold of 0 stops a secret.
fn entropy(text: &[u8]) -> f64 {
    let mut counts = [0u32; 256];
    for byte in text {
        counts[usize::from(*byte)] += 1;
    }
    let all = text.len() as f64;
    let bits = counts.iter().filter(|n| **n > 0).map(|n| f64::from(*n) / all);
    -bits.map(|share| share * share.log2()).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_at_its_breaks_and_not_far_from_the_match() {
        assert_eq!(line(b"ab\ncdef\ngh", 4..6), 3..7);
        assert_eq!(line(b"abc", 1..2), 0..3);
        assert_eq!(line(&[b'a'; 10_000], 5000..5010), 5000 - LINE_BYTES_MAX..5010 + LINE_BYTES_MAX);
    }

    #[test]
    fn entropy_is_that_of_shannon() {
        assert!(entropy(b"aaaa").abs() < 1e-9);
        assert!((entropy(b"abab") - 1.0).abs() < 1e-9);
        assert!((entropy(b"abcd") - 2.0).abs() < 1e-9);
    }
}
