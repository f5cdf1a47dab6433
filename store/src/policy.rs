//! C2SP tlog-policy: which logs sign, which witnesses there are, and how many of
//! them must have cosigned a checkpoint before it is taken.
//!
//! Members of a group are defined on the lines before it, so one pass over the
//! groups in order decides; there are no circles and no recursion. This reader
//! demands that the file is UTF-8, which the specification only recommends.

use std::collections::HashMap;
use std::fmt;

use crate::Error;
use crate::note::{Algorithm, Note, VerifierKey};

/// A log that a policy names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyLog {
    /// Its key; the key's name is the origin.
    pub key: VerifierKey,
    /// Where it is, if the policy says so.
    pub url: Option<String>,
}

/// A witness that a policy names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyWitness {
    /// What the policy calls it.
    pub name: String,
    /// The key that it cosigns with.
    pub key: VerifierKey,
    /// Its submission prefix, if the policy says so.
    pub url: Option<String>,
}

/// Who can witness: a witness or a group, by its place among those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    Witness(usize),
    Group(usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    name: String,
    /// How many members it takes.
    needed: usize,
    members: Vec<Member>,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    logs: Vec<PolicyLog>,
    witnesses: Vec<PolicyWitness>,
    groups: Vec<Group>,
    /// `None` is `quorum none`.
    quorum: Option<Member>,
}

impl Policy {
    /// Reads a policy file.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut draft = Draft::default();
        for (n, line) in text.split('\n').enumerate() {
            let wrong = |what: String| Error::invalid(format!("line {} of the policy: {what}", n + 1));
            if let Some(c) = line.chars().find(|c| c.is_ascii_control() && *c != '\t') {
                return Err(wrong(format!("the control character {c:?} is not allowed; end lines with \\n alone")));
            }
            // Only space and tab are white space here, whatever Unicode says.
            let words: Vec<&str> = line.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
            draft.line(&words).map_err(wrong)?;
        }
        let missing = || Error::invalid("the policy has no quorum line; `quorum none` asks for no cosignature");
        let quorum = draft.quorum.ok_or_else(missing)?;
        Ok(Self { logs: draft.logs, witnesses: draft.witnesses, groups: draft.groups, quorum })
    }

    /// The policy as a file.
    pub fn to_text(&self) -> String {
        self.to_string()
    }

    /// The logs that it names.
    pub fn logs(&self) -> &[PolicyLog] {
        &self.logs
    }

    /// The witnesses that it names.
    pub fn witnesses(&self) -> &[PolicyWitness] {
        &self.witnesses
    }

    /// Whether enough witnesses have cosigned this note. It says nothing about who
    /// signed for the log: see [`Self::is_signed_by_log`].
    pub fn is_met(&self, note: &Note) -> bool {
        let Some(quorum) = self.quorum else { return true };
        let cosigned: Vec<bool> =
            self.witnesses.iter().map(|w| !note.signed_by(std::slice::from_ref(&w.key)).is_empty()).collect();
        self.decide(quorum, &cosigned)
    }

    /// Whether one of the policy's logs signed this note, under its own name.
    pub fn is_signed_by_log(&self, note: &Note) -> bool {
        let origin = note.text.lines().next();
        let of_origin = self.logs.iter().filter(|log| Some(log.key.name()) == origin);
        of_origin.into_iter().any(|log| !note.signed_by(std::slice::from_ref(&log.key)).is_empty())
    }

    fn decide(&self, quorum: Member, cosigned: &[bool]) -> bool {
        let mut met: Vec<bool> = Vec::with_capacity(self.groups.len());
        let has = |member: Member, met: &[bool]| match member {
            Member::Witness(at) => cosigned[at],
            Member::Group(at) => met[at],
        };
        for group in &self.groups {
            let count = group.members.iter().filter(|member| has(**member, &met)).count();
            met.push(count >= group.needed);
        }
        has(quorum, &met)
    }

    fn name(&self, member: Member) -> &str {
        match member {
            Member::Witness(at) => &self.witnesses[at].name,
            Member::Group(at) => &self.groups[at].name,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = |url: &Option<String>| url.as_ref().map(|url| format!(" {url}")).unwrap_or_default();
        for log in &self.logs {
            writeln!(f, "log {}{}", log.key, url(&log.url))?;
        }
        for witness in &self.witnesses {
            writeln!(f, "witness {} {}{}", witness.name, witness.key, url(&witness.url))?;
        }
        for group in &self.groups {
            write!(f, "group {} {}", group.name, group.needed)?;
            group.members.iter().try_for_each(|member| write!(f, " {}", self.name(*member)))?;
            writeln!(f)?;
        }
        writeln!(f, "quorum {}", self.quorum.map_or("none", |member| self.name(member)))
    }
}

/// A policy in the making.
#[derive(Default)]
struct Draft {
    logs: Vec<PolicyLog>,
    witnesses: Vec<PolicyWitness>,
    groups: Vec<Group>,
    quorum: Option<Option<Member>>,
    names: HashMap<String, Member>,
    /// Names that are a member of a group already.
    taken: Vec<Member>,
}

impl Draft {
    fn line(&mut self, words: &[&str]) -> Result<(), String> {
        match *words {
            [] => Ok(()),
            [first, ..] if first.starts_with('#') => Ok(()),
            ["log", vkey] => self.log(vkey, None),
            ["log", vkey, url] => self.log(vkey, Some(url)),
            ["witness", name, vkey] => self.witness(name, vkey, None),
            ["witness", name, vkey, url] => self.witness(name, vkey, Some(url)),
            ["group", name, needed, ref members @ ..] => self.group(name, needed, members),
            ["quorum", name] => self.quorum(name),
            [word, ..] => Err(format!(
                "{word:?} is not `log VKEY [URL]`, `witness NAME VKEY [URL]`, `group NAME all|any|K NAME...` or \
                 `quorum NAME`"
            )),
        }
    }

    fn log(&mut self, vkey: &str, url: Option<&str>) -> Result<(), String> {
        let key = VerifierKey::parse(vkey).map_err(|e| e.to_string())?;
        if key.algorithm() == Algorithm::Ed25519Cosignature {
            return Err(format!(
                "the log {} has a key for cosignatures (type 04); give its own (01 or 06)",
                key.name()
            ));
        }
        if self.logs.iter().any(|log| log.key.public() == key.public()) {
            return Err(format!("the key of the log {} was named before", key.name()));
        }
        self.logs.push(PolicyLog { key, url: url.map(str::to_owned) });
        Ok(())
    }

    fn witness(&mut self, name: &str, vkey: &str, url: Option<&str>) -> Result<(), String> {
        let key = VerifierKey::parse(vkey).map_err(|e| format!("witness {name}: {e}"))?;
        if key.algorithm() == Algorithm::Ed25519 {
            return Err(format!("the key of witness {name} is not one for cosignatures (type 04 or 06)"));
        }
        if let Some(other) = self.witnesses.iter().find(|w| w.key.public() == key.public()) {
            return Err(format!("witness {name} has the same key as {}", other.name));
        }
        self.define(name, Member::Witness(self.witnesses.len()))?;
        self.witnesses.push(PolicyWitness { name: name.to_owned(), key, url: url.map(str::to_owned) });
        Ok(())
    }

    fn group(&mut self, name: &str, needed: &str, members: &[&str]) -> Result<(), String> {
        let members: Vec<Member> = members.iter().map(|member| self.find(member)).collect::<Result<_, _>>()?;
        let needed = match needed {
            "any" => 1,
            "all" => members.len(),
            number => {
                decimal(number).ok_or_else(|| format!("group {name} takes `all`, `any` or a number: {number:?}"))?
            }
        };
        if needed == 0 || needed > members.len() {
            return Err(format!("group {name} has {} members and asks for {needed}; ask for 1 to all", members.len()));
        }
        for &member in &members {
            if self.taken.contains(&member) {
                return Err(format!("group {name} has a member that a group has already; list each name once"));
            }
            self.taken.push(member);
        }
        self.define(name, Member::Group(self.groups.len()))?;
        self.groups.push(Group { name: name.to_owned(), needed, members });
        Ok(())
    }

    fn quorum(&mut self, name: &str) -> Result<(), String> {
        if self.quorum.is_some() {
            return Err("there is a quorum line already; leave one".into());
        }
        self.quorum = Some(if name == "none" { None } else { Some(self.find(name)?) });
        Ok(())
    }

    fn find(&self, name: &str) -> Result<Member, String> {
        let found = self.names.get(name).copied();
        found.ok_or_else(|| format!("{name:?} is no witness and no group of the lines before; define it first"))
    }

    fn define(&mut self, name: &str, member: Member) -> Result<(), String> {
        if name == "none" || self.names.contains_key(name) {
            return Err(format!("the name {name:?} has a meaning already; choose another"));
        }
        self.names.insert(name.to_owned(), member);
        Ok(())
    }
}

/// A decimal without sign or leading zeros.
fn decimal(text: &str) -> Option<usize> {
    text.parse().ok().filter(|n: &usize| n.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::keys::SigningKey;
    use proptest::prelude::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_seed(&format!("w.example/{n}"), Algorithm::Ed25519Cosignature, &[n; 32]).unwrap()
    }

    fn log() -> SigningKey {
        SigningKey::from_seed("example.com/log", Algorithm::Ed25519, &[99; 32]).unwrap()
    }

    fn witnesses(count: u8) -> String {
        (0..count).map(|n| format!("witness w{n} {}\n", key(n).verifier())).collect()
    }

    fn note(cosigners: impl IntoIterator<Item = u8>) -> Note {
        let text = Checkpoint { origin: "example.com/log".into(), size: 9, root: [3; 32] }.body();
        let mut lines = vec![log().sign(&text, 0).unwrap()];
        lines.extend(cosigners.into_iter().map(|n| key(n).sign(&text, 7).unwrap()));
        Note { text, lines }
    }

    #[test]
    fn the_example_of_the_specification() {
        let text = format!(
            "log {} https://example.com/\n\n{}group X 2 w0 w1 w2\n\tgroup Y any w3 w4 w5\ngroup X-and-Y all X Y\n # a comment\n\
             quorum X-and-Y\n",
            log().verifier(),
            witnesses(6)
        );
        let policy = Policy::parse(&text).unwrap();
        assert_eq!(policy.witnesses().len(), 6);
        assert!(policy.is_met(&note([0, 2, 5])) && policy.is_met(&note(0..6)));
        for short in [vec![], vec![0, 1, 2], vec![0, 4], vec![3, 4, 5]] {
            assert!(!policy.is_met(&note(short)));
        }
        assert!(policy.is_signed_by_log(&note([])));
        assert_eq!(Policy::parse(&policy.to_text()).unwrap(), policy);
    }

    #[test]
    fn a_false_cosignature_and_one_of_another_checkpoint_count_for_nothing() {
        let policy = Policy::parse(&format!("{}quorum w0\n", witnesses(1))).unwrap();
        let good = note([0]);
        assert!(policy.is_met(&good));
        let mut changed = good.clone();
        changed.lines[1].signature[20] ^= 1;
        assert!(!policy.is_met(&changed));
        // A good one beside it counts.
        changed.lines.push(good.lines[1].clone());
        assert!(policy.is_met(&changed));
        let mut other = good;
        other.text = other.text.replace('9', "8");
        assert!(!policy.is_met(&other) && !policy.is_signed_by_log(&other));
    }

    #[test]
    fn what_the_specification_forbids_is_refused_with_the_line() {
        let two = witnesses(2);
        let renamed = format!("witness w9 {}\n", key(0).verifier());
        let (ed25519, cosignature) = (log().verifier().to_string(), key(0).verifier().to_string());
        for (text, line, what) in [
            (two.clone(), "", "no quorum"),
            (format!("{two}quorum w0\nquorum w1\n"), "line 4", "already"),
            (format!("quorum w0\n{two}"), "line 1", "define it first"),
            (format!("{two}group g any w2\nquorum g\n"), "line 3", "define it first"),
            (format!("{two}group g any g\nquorum g\n"), "line 3", "define it first"),
            (format!("{two}group g any none\nquorum g\n"), "line 3", "define it first"),
            (format!("{two}group g any w0\ngroup h any w0 w1\nquorum h\n"), "line 4", "each name once"),
            (format!("{two}group g 2 w0 w0\nquorum g\n"), "line 3", "each name once"),
            (format!("{two}group g 3 w0 w1\nquorum g\n"), "line 3", "asks for 3"),
            (format!("{two}group g 0 w0 w1\nquorum g\n"), "line 3", "asks for 0"),
            (format!("{two}group g 02 w0 w1\nquorum g\n"), "line 3", "a number"),
            (format!("{two}group g all\nquorum g\n"), "line 3", "0 members"),
            (format!("{two}{renamed}quorum w0\n"), "line 3", "same key as w0"),
            (format!("{two}group w0 any w1\nquorum w0\n"), "line 3", "already"),
            (format!("witness none {cosignature}\nquorum none\n"), "line 1", "already"),
            (format!("witness a {ed25519}\nquorum a\n"), "line 1", "type 04 or 06"),
            (format!("log {cosignature}\nquorum none\n"), "line 1", "01 or 06"),
            (format!("log {ed25519}\nlog {ed25519} http://x\nquorum none\n"), "line 2", "named before"),
            ("quorum none\r\n".into(), "line 1", "control character"),
            ("quorum\u{a0}none\n".into(), "line 1", "is not"),
            ("witnes a b\n".into(), "line 1", "is not"),
        ] {
            let error = Policy::parse(&text).unwrap_err().to_string();
            assert!(error.contains(line) && error.contains(what), "{text}: {error}");
        }
        assert!(Policy::parse("quorum none").unwrap().is_met(&note([])));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn k_of_n_is_k_of_n(n in 1u8..6, k in 1usize..6, signed in proptest::collection::btree_set(0u8..6, 0..6)) {
            let k = k.min(n.into());
            let members: String = (0..n).map(|i| format!(" w{i}")).collect();
            let policy = Policy::parse(&format!("{}group g {k}{members}\nquorum g\n", witnesses(n))).unwrap();
            let count = signed.iter().filter(|i| **i < n).count();
            prop_assert_eq!(policy.is_met(&note(signed)), count >= k);
            prop_assert_eq!(Policy::parse(&policy.to_text()).unwrap(), policy);
        }

        #[test]
        fn reading_never_panics(text in "((log|witness|group|quorum|#) [a-z0-9+ \t]{0,20}\n){0,6}|\\PC{0,60}") {
            let _ = Policy::parse(&text);
        }
    }
}
