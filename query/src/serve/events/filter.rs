//! Which events a reader wants, and the cursors that are bound to it.
//!
//! A cursor says: everything below this seq that matched this filter was delivered. It also says
//! which erasures by retention the log told of when it was given, so that what was erased since shows, and has a
//! mark of the log below it, so that another log under the same name shows.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::lines::{Line, SEVERITIES};
use super::marks::Mark;
use crate::caller::RowFilter;
use crate::mapping::KINDS;

/// Values of a parameter, at most.
const WORDS_MAX: usize = 1_000;

/// Which events are wanted; the lists are in order, and an empty one is no restriction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Kinds of events.
    pub(crate) kinds: Vec<String>,
    /// Names of severities.
    pub(crate) severities: Vec<String>,
    /// Ids or names of agents.
    pub(crate) agents: Vec<String>,
    /// Names of services.
    pub(crate) services: Vec<String>,
    /// Workspaces.
    pub(crate) workspaces: Vec<String>,
    /// What the caller may see: no part of the cursor, but enforced on every page.
    pub(crate) rows: RowFilter,
    /// Who asks: nobody holds up others by asking for much at once. No part of the cursor either.
    pub(crate) who: Arc<str>,
}

/// The words of a list with commas between, in order and once each.
pub(crate) fn words(text: Option<&str>) -> Vec<String> {
    tidy(text.unwrap_or_default().split(',').map(str::to_owned).collect())
}

pub(crate) fn tidy(words: Vec<String>) -> Vec<String> {
    let mut words: Vec<String> = words.into_iter().map(|w| w.trim().to_owned()).filter(|w| !w.is_empty()).collect();
    words.sort_unstable();
    words.dedup();
    words
}

impl Filter {
    /// The lists by the names of their parameters.
    pub(crate) fn lists(&self) -> [(&'static str, &Vec<String>); 5] {
        [
            ("kind", &self.kinds),
            ("severity", &self.severities),
            ("agent", &self.agents),
            ("service", &self.services),
            ("workspace", &self.workspaces),
        ]
    }

    /// Whether there is such a kind and severity: of one that there is not no event would ever come, and who asks
    /// would take that for peace. Other values are the senders'.
    pub(crate) fn check(&self) -> Result<(), String> {
        let known: [(&str, &[String], &[&str]); 2] =
            [("kind", &self.kinds, &KINDS), ("severity", &self.severities, &SEVERITIES)];
        for (name, wanted) in self.lists() {
            if wanted.len() > WORDS_MAX {
                return Err(format!("{name} has {} values; there may be {WORDS_MAX}", wanted.len()));
            }
        }
        for (name, wanted, there_are) in known {
            if let Some(wrong) = wanted.iter().find(|wanted| !there_are.contains(&wanted.as_str())) {
                return Err(format!("{name} {wrong:?} is none of {}", there_are.join(", ")));
            }
        }
        Ok(())
    }

    /// Text that is the same for the same filter, and for no other. Not who asks.
    pub(crate) fn key(&self) -> String {
        serde_json::to_string(&self.lists()).unwrap_or_default()
    }

    /// Whether an event is wanted, and may be shown.
    pub(crate) fn admits(&self, line: &Line) -> bool {
        // In order, as `tidy` leaves them: a long list must not cost each event a walk through it.
        let any = |list: &[String], value: Option<&str>| {
            let is_wanted = |value: &str| list.binary_search_by(|wanted| wanted.as_str().cmp(value)).is_ok();
            list.is_empty() || value.is_some_and(is_wanted)
        };
        let may = |list: &Option<Arc<[String]>>, value: Option<&str>| match list {
            None => true,
            Some(list) => value.is_some_and(|value| list.iter().any(|allowed| allowed == value)),
        };
        any(&self.kinds, Some(&line.kind))
            && any(&self.severities, Some(line.severity))
            && (any(&self.agents, line.agent_id.as_deref()) || any(&self.agents, line.agent_name.as_deref()))
            && any(&self.services, line.service.as_deref())
            && any(&self.workspaces, line.workspace.as_deref())
            && may(&self.rows.tenants, line.tenant.as_deref())
            && may(&self.rows.workspaces, line.workspace.as_deref())
    }
}

/// A place in the log, for a reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The next seq to look at.
    pub(crate) seq: u64,
    /// What retention erased by the word of records below this seq the reader knows to be gone.
    pub(crate) known: u64,
}

/// What a cursor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub(crate) position: Position,
    /// What cursors of before have instead of what is known: the end of all that retention had erased.
    pub(crate) horizon: Option<u64>,
    /// The mark of its seq; the first cursors had none.
    pub(crate) mark: Option<Mark>,
}

/// Makes and reads the cursors of one log and filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursors {
    bound: [u8; 8],
}

/// Cursors that say what is known of erasures; those of before with a mark, and without.
const VERSION: u8 = 4;
const VERSION_HORIZON: u8 = 3;
const VERSION_UNMARKED: u8 = 2;
const UNMARKED_BYTES: usize = 25;

impl Cursors {
    pub(crate) fn of(origin: &str, filter: &Filter) -> Self {
        let hash = blake3::hash(format!("{origin}\n{}", filter.key()).as_bytes());
        let mut bound = [0; 8];
        bound.copy_from_slice(&hash.as_bytes()[..8]);
        Self { bound }
    }

    pub(crate) fn encode(&self, position: Position, mark: Mark) -> String {
        let (seq, known) = (position.seq.to_be_bytes(), position.known.to_be_bytes());
        URL_SAFE_NO_PAD.encode([&[VERSION][..], &self.bound, &seq, &known, &mark].concat())
    }

    pub(crate) fn decode(&self, cursor: &str) -> Result<Place, &'static str> {
        const NONE: &str = "this is not a cursor of this API";
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| NONE)?;
        let (bytes, mark) = bytes.split_at_checked(UNMARKED_BYTES).ok_or(NONE)?;
        let mark = match (bytes[0], Mark::try_from(mark)) {
            (VERSION | VERSION_HORIZON, Ok(mark)) => Some(mark),
            (VERSION_UNMARKED, _) if mark.is_empty() => None,
            (VERSION | VERSION_HORIZON | VERSION_UNMARKED, _) => return Err(NONE),
            _ => return Err("this cursor is of another version"),
        };
        if bytes[1..9] != self.bound {
            return Err(
                "this cursor is of another log or another filter; keep one cursor per filter, or begin without one",
            );
        }
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(number)
        };
        let (known, horizon) = match bytes[0] {
            VERSION => (number(17), None),
            _ => (0, Some(number(17))),
        };
        Ok(Place { position: Position { seq: number(9), known }, horizon, mark })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cursors_are_bound_to_log_and_filter(seq: u64, known: u64, mark: Mark, text in "[A-Za-z0-9_-]{0,60}") {
            let position = Position { seq, known };
            let all = Filter::default();
            let alerts = Filter { kinds: vec!["alert".into()], ..Filter::default() };
            let services = Filter { services: vec!["alert".into()], ..Filter::default() };
            let cursors = Cursors::of("log", &all);
            let cursor = cursors.encode(position, mark);
            prop_assert_eq!(cursors.decode(&cursor), Ok(Place { position, horizon: None, mark: Some(mark) }));
            // Those that were given out by servers of before stay valid.
            let mut before = URL_SAFE_NO_PAD.decode(&cursor).unwrap();
            before[0] = VERSION_HORIZON;
            let (position, horizon) = (Position { seq, known: 0 }, Some(known));
            let marked = URL_SAFE_NO_PAD.encode(&before);
            prop_assert_eq!(cursors.decode(&marked), Ok(Place { position, horizon, mark: Some(mark) }));
            before.truncate(UNMARKED_BYTES);
            prop_assert!(cursors.decode(&URL_SAFE_NO_PAD.encode(&before)).is_err());
            before[0] = VERSION_UNMARKED;
            let before = URL_SAFE_NO_PAD.encode(before);
            prop_assert_eq!(cursors.decode(&before), Ok(Place { position, horizon, mark: None }));
            for other in [Cursors::of("log", &alerts), Cursors::of("log", &services), Cursors::of("other", &all)] {
                prop_assert!(other.decode(&cursor).is_err());
            }
            prop_assert!(cursors.decode(&text).is_err());
        }
    }

    #[test]
    fn what_no_event_is_cannot_be_asked_for() {
        let of = |kind: &str, severity: &str| Filter {
            kinds: words(Some(kind)),
            severities: words(Some(severity)),
            ..Filter::default()
        };
        assert_eq!(of("alert,grant_denied", "high").check(), Ok(()));
        let told = of("alert,nope", "").check().unwrap_err();
        assert!(told.starts_with("kind \"nope\" is none of agent_invocation, alert, "), "{told}");
        let many: Vec<String> = (0..1001).map(|n| format!("a{n}")).collect();
        let many = Filter { agents: words(Some(&many.join(","))), ..Filter::default() };
        assert_eq!(many.check().unwrap_err(), "agent has 1001 values; there may be 1000");
        assert!(of("", "severe").check().unwrap_err().starts_with("severity \"severe\" is none of unknown, "));
    }

    #[test]
    fn the_order_of_words_does_not_matter() {
        assert_eq!(words(Some("b, a,,b")), words(Some("a,b")));
        assert!(words(None).is_empty());
    }
}
