//! What authority covers, and whether one grant lies inside another.
//!
//! A pattern is a literal in which `*` stands for any run of characters. For such
//! patterns inclusion is decidable: put a character that neither uses for each
//! `*` of the child; the child lies inside the parent exactly when the parent
//! matches that text. What is not decidable (a regex in a regex, a missing field)
//! is `Undecidable`, and never reads as narrowed.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use serde_json::Value as Json;

use crate::grants::GrantRow;

/// A character for each `*` of a child pattern: a noncharacter of Unicode.
const ANY: char = '\u{10FFFF}';

/// Whether a pattern matches a value.
pub fn matches(pattern: &str, value: &str) -> bool {
    let (pattern, value): (Vec<char>, Vec<char>) = (pattern.chars().collect(), value.chars().collect());
    let (mut p, mut v) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while v < value.len() {
        if pattern.get(p) == Some(&'*') {
            back = Some((p + 1, v));
            p += 1;
        } else if pattern.get(p) == Some(&value[v]) {
            p += 1;
            v += 1;
        } else if let Some((after_star, from)) = back {
            p = after_star;
            v = from + 1;
            back = Some((after_star, v));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Whether one of the patterns matches a value.
pub fn covers(patterns: &[String], value: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern, value))
}

/// Whether all that `child` matches, `parent` matches too.
pub fn pattern_inside(child: &str, parent: &str) -> bool {
    let clear = !parent.contains(ANY) && !child.contains(ANY);
    if clear { matches(parent, &child.replace('*', ANY.encode_utf8(&mut [0; 4]))) } else { parent == child }
}

/// How one dimension of a derived grant stands to its parent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The same.
    Equal,
    /// Narrower.
    Inside,
    /// Beyond it.
    Widened,
    /// It cannot be told from the evidence.
    Undecidable,
}

/// The verdict of every dimension.
pub fn narrowing(parent: &GrantRow, child: &GrantRow) -> Vec<(&'static str, Verdict)> {
    vec![
        ("actions", lists(&parent.actions, &child.actions)),
        ("resources", optional(parent.resources.as_ref(), child.resources.as_ref(), |p, c| lists(p, c))),
        ("constraints", optional(parent.constraints.as_ref(), child.constraints.as_ref(), |p, c| constraints(p, c))),
        ("audience", names(parent.audience.as_deref(), child.audience.as_deref(), Verdict::Widened)),
        ("not_before", optional(parent.not_before.as_ref(), child.not_before.as_ref(), |p, c| ordered(c, p))),
        ("expires_at", optional(parent.expires_at.as_ref(), child.expires_at.as_ref(), ordered)),
        ("max_uses", optional(parent.max_uses.as_ref(), child.max_uses.as_ref(), ordered)),
        ("max_depth", optional(parent.max_depth.as_ref(), child.max_depth.as_ref(), ordered)),
        ("purpose", names(parent.purpose.as_deref(), child.purpose.as_deref(), Verdict::Undecidable)),
    ]
}

/// The names of the dimensions that have a verdict.
pub fn dimensions(verdicts: &[(&'static str, Verdict)], wanted: Verdict) -> Vec<String> {
    verdicts.iter().filter(|(_, v)| *v == wanted).map(|(name, _)| (*name).to_owned()).collect()
}

/// A bound that may be absent, which means: not limited.
fn optional<T: ?Sized>(parent: Option<&T>, child: Option<&T>, both: impl Fn(&T, &T) -> Verdict) -> Verdict {
    match (parent, child) {
        (None, None) => Verdict::Equal,
        (None, Some(_)) => Verdict::Inside,
        (Some(_), None) => Verdict::Widened,
        (Some(parent), Some(child)) => both(parent, child),
    }
}

/// A name that may be absent, which means: unknown.
fn names(parent: Option<&str>, child: Option<&str>, differ: Verdict) -> Verdict {
    match (parent, child) {
        (None, None) => Verdict::Equal,
        (None, Some(_)) => Verdict::Inside,
        (Some(_), None) => Verdict::Undecidable,
        (Some(parent), Some(child)) if parent == child => Verdict::Equal,
        _ => differ,
    }
}

fn ordered<T: Ord>(high: &T, low: &T) -> Verdict {
    match low.cmp(high) {
        Ordering::Less => Verdict::Inside,
        Ordering::Equal => Verdict::Equal,
        Ordering::Greater => Verdict::Widened,
    }
}

fn lists(parent: &[String], child: &[String]) -> Verdict {
    if !child.iter().all(|c| parent.iter().any(|p| pattern_inside(c, p))) {
        return Verdict::Widened;
    }
    let (p, c): (BTreeSet<_>, BTreeSet<_>) = (parent.iter().collect(), child.iter().collect());
    if p == c { Verdict::Equal } else { Verdict::Inside }
}

/// Constraints are a JSON object from parameter to what it may be.
fn constraints(parent: &str, child: &str) -> Verdict {
    if parent == child {
        return Verdict::Equal;
    }
    let (Ok(Json::Object(parent)), Ok(Json::Object(child))) =
        (serde_json::from_str(parent), serde_json::from_str(child))
    else {
        return Verdict::Undecidable;
    };
    let each = parent.iter().map(|(name, bound)| match child.get(name) {
        None => Verdict::Widened,
        Some(own) => constraint(bound, own),
    });
    let more = if child.len() > parent.len() { Verdict::Inside } else { Verdict::Equal };
    each.chain([more]).max_by_key(|v| rank(*v)).unwrap_or(Verdict::Equal)
}

/// A widened dimension is worse than an undecidable one.
fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Equal => 0,
        Verdict::Inside => 1,
        Verdict::Undecidable => 2,
        Verdict::Widened => 3,
    }
}

fn constraint(parent: &Json, child: &Json) -> Verdict {
    if same(parent, child) {
        return Verdict::Equal;
    }
    let has = |of: &[Json], one: &Json| of.iter().any(|own| same(own, one));
    match (parent, child) {
        (Json::Array(parent), Json::Array(child)) => {
            let (inside, whole) = (child.iter().all(|c| has(parent, c)), parent.iter().all(|p| has(child, p)));
            if !inside {
                Verdict::Widened
            } else if whole {
                Verdict::Equal
            } else {
                Verdict::Inside
            }
        }
        (Json::Array(parent), one) if !one.is_object() => {
            if has(parent, one) {
                Verdict::Inside
            } else {
                Verdict::Widened
            }
        }
        (Json::Object(parent), Json::Object(child)) if is_range(parent) && is_range(child) => range(parent, child),
        _ => Verdict::Undecidable,
    }
}

/// Whether an object is nothing but a numeric `min` and `max`.
fn is_range(of: &serde_json::Map<String, Json>) -> bool {
    !of.is_empty() && of.iter().all(|(name, bound)| (name == "min" || name == "max") && bound.is_number())
}

/// As the calls' arguments are held against them: what passes as narrowed must not allow a number more.
fn range(parent: &serde_json::Map<String, Json>, child: &serde_json::Map<String, Json>) -> Verdict {
    let bound = |name: &str, inside: Ordering| match (parent.get(name), child.get(name)) {
        (None, None) => Verdict::Equal,
        (None, Some(_)) => Verdict::Inside,
        (Some(_), None) => Verdict::Widened,
        (Some(own), Some(other)) => match compare(own, other) {
            Some(Ordering::Equal) => Verdict::Equal,
            Some(how) if how == inside => Verdict::Inside,
            Some(_) => Verdict::Widened,
            None => Verdict::Undecidable,
        },
    };
    let (min, max) = (bound("min", Ordering::Less), bound("max", Ordering::Greater));
    if rank(min) < rank(max) { max } else { min }
}

/// A number, whole ones exactly; a text that is one counts: callers write amounts either way, and a limit
/// that held for the one only would be none.
fn numeric(value: &Json) -> Option<(Option<i128>, f64)> {
    let written = match value {
        Json::Number(number) => number.to_string(),
        Json::String(text) => text.trim().to_owned(),
        _ => return None,
    };
    let number: f64 = written.parse().ok().filter(|number: &f64| number.is_finite())?;
    let whole =
        written.parse().ok().or_else(|| (number.fract() == 0.0 && number.abs() < 1e15).then_some(number as i128));
    Some((whole, number))
}

/// How a limit stands to a value; `None` if one of them is no number.
pub(crate) fn compare(limit: &Json, value: &Json) -> Option<Ordering> {
    match (numeric(limit)?, numeric(value)?) {
        ((Some(limit), _), (Some(value), _)) => Some(limit.cmp(&value)),
        ((_, limit), (_, value)) => limit.partial_cmp(&value),
    }
}

/// Whether two values are the same; 100 and 100.0 are.
pub(crate) fn same(one: &Json, other: &Json) -> bool {
    one == other || (one.is_number() && other.is_number() && compare(one, other) == Some(Ordering::Equal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// What lies inside matches whatever the child matches.
        #[test]
        fn inside_means_every_match_of_the_child(child in "[ab*]{0,6}", parent in "[ab*]{0,6}", fill in "[ab]{0,3}") {
            let value = child.replace('*', &fill);
            prop_assert!(matches(&child, &value));
            if pattern_inside(&child, &parent) {
                prop_assert!(matches(&parent, &value));
            }
        }

        /// What does not lie inside has a counterexample: the fresh characters.
        #[test]
        fn not_inside_has_a_counterexample(child in "[ab*]{0,6}", parent in "[ab*]{0,6}") {
            let value = child.replace('*', "z");
            prop_assert_eq!(pattern_inside(&child, &parent), matches(&parent, &value));
        }
    }

    #[test]
    fn patterns_match_as_written() {
        assert!(matches("account:*", "account:DE89") && !matches("account:*", "accounts:DE89"));
        assert!(matches("*", "") && matches("a*c", "abbc") && !matches("a*c", "abbd"));
        assert!(pattern_inside("account:DE*", "account:*") && !pattern_inside("account:*", "account:DE*"));
    }

    fn grant(edit: impl FnOnce(&mut GrantRow)) -> GrantRow {
        let mut grant = GrantRow {
            actions: vec!["bank.*".into()],
            resources: Some(vec!["account:1".into(), "account:2".into()]),
            constraints: Some(r#"{"amount":{"max":100},"currency":["EUR","USD"]}"#.into()),
            max_uses: Some(3),
            ..GrantRow::default()
        };
        edit(&mut grant);
        grant
    }

    #[test]
    fn each_dimension_is_judged_on_its_own() {
        let parent = grant(|_| ());
        let widened = |edit: fn(&mut GrantRow)| dimensions(&narrowing(&parent, &grant(edit)), Verdict::Widened);
        assert_eq!(widened(|_| ()), Vec::<String>::new());
        assert_eq!(widened(|g| g.actions = vec!["bank.read".into()]), Vec::<String>::new());
        assert_eq!(widened(|g| g.actions = vec!["*".into()]), ["actions"]);
        assert_eq!(widened(|g| g.resources = None), ["resources"]);
        assert_eq!(widened(|g| g.resources = Some(vec!["account:3".into()])), ["resources"]);
        assert_eq!(
            widened(|g| g.constraints = Some(r#"{"amount":{"max":101},"currency":["EUR"]}"#.into())),
            ["constraints"]
        );
        assert_eq!(widened(|g| g.constraints = Some(r#"{"amount":{"max":10}}"#.into())), ["constraints"]);
        assert_eq!(
            widened(|g| g.constraints = Some(r#"{"amount":{"max":10},"currency":"EUR"}"#.into())),
            Vec::<String>::new()
        );
        assert_eq!(widened(|g| g.max_uses = None), ["max_uses"]);
        let regex = narrowing(
            &parent,
            &grant(|g| g.constraints = Some(r#"{"amount":{"regex":"1"},"currency":["EUR"]}"#.into())),
        );
        assert_eq!(dimensions(&regex, Verdict::Undecidable), ["constraints"]);
        let text = narrowing(
            &parent,
            &grant(|g| {
                g.constraints = Some(r#"{"amount":{"max":"1000"},"currency":["EUR"]}"#.into());
            }),
        );
        assert_eq!(dimensions(&text, Verdict::Undecidable), ["constraints"]);
        let of = |constraints: &str| grant(|g| g.constraints = Some(constraints.into()));
        let told = |parent: &str, child: &str| {
            let all = narrowing(&of(parent), &of(child));
            all.iter().find(|(name, _)| *name == "constraints").map(|(_, verdict)| *verdict).unwrap()
        };
        let most = r#"{"n":{"max":9007199254740992}}"#;
        assert_eq!(
            told(most, r#"{"n":{"max":9007199254740993}}"#),
            Verdict::Widened,
            "floating point sees no difference"
        );
        assert_eq!(told(most, r#"{"n":{"max":9007199254740992.0}}"#), Verdict::Equal);
        assert_eq!(told(most, r#"{"n":{"max":9007199254740991,"min":1}}"#), Verdict::Inside);
        assert_eq!(told(r#"{"n":{"min":2}}"#, r#"{"n":{"min":1.5}}"#), Verdict::Widened);
        assert_eq!(told(r#"{"n":[100]}"#, r#"{"n":[100.0]}"#), Verdict::Equal, "the same number");
        assert_eq!(told(r#"{"n":[100,200]}"#, r#"{"n":100.0}"#), Verdict::Inside);
        assert!(!pattern_inside("*", "\u{10FFFF}") && pattern_inside("\u{10FFFF}", "\u{10FFFF}"));
    }
}
