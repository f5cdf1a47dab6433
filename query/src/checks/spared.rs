//! Rules that fail on what some record says: a cast of a text that is no number, a division by a zero that somebody
//! claims. Whoever writes such a record must not blind the other rules by it, nor this one about the records of others:
//! the rule is asked about ever fewer events, until those are found that it fails on. They are hidden from it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use custody_store::system::SeqSet;
use datafusion::execution::session_state::SessionState;
use datafusion::physical_plan::execution_plan::reset_plan_states;

use super::here::Touched;
use super::hit::HitRow;
use super::run::{Checker, Planned, hits};
use crate::{Error, ErrorKind};

/// How often one rule is asked again in one step, at most: enough to find two records among many thousands.
const ASKED_AGAIN_MAX: usize = 64;

/// What rules found, and what they could not be asked.
#[derive(Default)]
pub(crate) struct Ran {
    /// Hits, each with whether its rule waits for late evidence.
    pub(super) hits: Vec<(HitRow, bool)>,
    pub(super) failed: Failed,
}

/// By check, the records that its rule was not shown, or failed on: nothing is known of a hit about them or by
/// their evidence, neither that there is one nor that there is none.
#[derive(Default)]
pub(super) struct Failed(BTreeMap<String, SeqSet>);

impl Failed {
    /// Whether nothing is known of a record and a check.
    pub(super) fn has(&self, (seq, check): &(u64, String)) -> bool {
        self.hides(check, std::slice::from_ref(seq))
    }

    /// Whether any of some records was hidden from a check.
    pub(super) fn hides(&self, check: &str, seqs: &[u64]) -> bool {
        self.0.get(check).is_some_and(|hidden| seqs.iter().any(|seq| hidden.contains(*seq)))
    }
}

/// What is in two sets.
fn both(a: &SeqSet, b: &SeqSet) -> SeqSet {
    a.without(&a.without(b))
}

/// The first half of a set and the second, if it has two.
fn halves(set: &SeqSet) -> Option<[SeqSet; 2]> {
    let (mut left, mut first, mut second) = (set.count() / 2, Vec::new(), Vec::new());
    for range in set.ranges() {
        let taken = left.min(range.end - range.start);
        left -= taken;
        first.push(range.start..range.start + taken);
        second.push(range.start + taken..range.end);
    }
    let parts = [SeqSet::of(first), SeqSet::of(second)];
    (!parts[0].is_empty()).then_some(parts)
}

/// What a rule is not shown in a run.
pub(super) struct Hidden(pub(super) SeqSet);

/// Whether an error is the rule's doing, and not that of a log or rows that cannot be read.
fn is_of_the_rule(error: &Error) -> bool {
    !matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Internal)
}

impl Checker {
    /// Runs one rule for hits about some records.
    ///
    /// # Errors
    ///
    /// If the log or its rows cannot be read: that is not the rule's doing, and the step is taken again.
    pub(super) async fn ask(
        &self,
        planned: &Planned,
        about: &SeqSet,
        state: &SessionState,
        ran: &mut Ran,
    ) -> Result<(), Error> {
        let rule = planned.rule.id.as_str();
        let mut hidden = SeqSet::default();
        match self.hits_in_parts(planned, about, state).await {
            Ok(found) => ran.hits.extend(found),
            Err(error) if !is_of_the_rule(&error) => return Err(error),
            Err(error) => {
                let Suspects { found, also } = self.suspects(planned, state).await?;
                let first = found.ranges().first().map(|range| range.start);
                let mut again = Err(error);
                for more in [found, also] {
                    if again.is_err() && !more.is_empty() {
                        hidden = hidden.union(&more);
                        again = self.hits_without(planned, state, &hidden).await;
                    }
                }
                let error = match again {
                    Ok(hits) => {
                        ran.hits.extend(hits);
                        None
                    }
                    Err(error) if !is_of_the_rule(&error) => return Err(error),
                    Err(error) => {
                        hidden = hidden.union(about);
                        Some(error.to_string())
                    }
                };
                let records = both(about, &hidden).count();
                tracing::error!(
                    rule,
                    records,
                    first,
                    error,
                    "a rule fails on what records say, and does not judge them"
                );
                self.unjudged.fetch_add(records, Relaxed);
                ran.failed.0.insert(rule.to_owned(), hidden);
            }
        }
        Ok(())
    }

    /// What a rule finds about some records. If that needs more memory than there is, it is asked about fewer at a
    /// time: who floods the log must not blind it.
    async fn hits_in_parts(
        &self,
        planned: &Planned,
        about: &SeqSet,
        state: &SessionState,
    ) -> Result<Vec<(HitRow, bool)>, Error> {
        let none = SeqSet::default();
        let (mut left, mut out, mut asked) = (vec![about.clone()], Vec::new(), 0);
        let mut done = Ok(());
        while let Some(part) = left.pop() {
            asked += 1;
            self.judged.set(part.clone());
            match self.hits_without(planned, state, &none).await {
                Ok(found) => out.extend(found),
                Err(error) => match halves(&part) {
                    Some([first, second]) if error.kind == ErrorKind::Resources && asked < ASKED_AGAIN_MAX => {
                        left.extend([second, first]);
                    }
                    _ => {
                        done = Err(error);
                        break;
                    }
                },
            }
        }
        self.judged.set(about.clone());
        done.map(|()| out)
    }

    async fn hits_without(
        &self,
        planned: &Planned,
        state: &SessionState,
        hidden: &SeqSet,
    ) -> Result<Vec<(HitRow, bool)>, Error> {
        let plan = reset_plan_states(Arc::clone(&planned.judged));
        if hidden.is_empty() {
            return hits(&planned.rule, plan, state).await;
        }
        let mut state = state.clone();
        state.config_mut().set_extension(Arc::new(Hidden(hidden.clone())));
        hits(&planned.rule, plan, &state).await
    }

    /// The events at hand that a rule fails on whatever else there is; and those that may be among them, where there
    /// are too many or it fails on several together.
    async fn suspects(&self, planned: &Planned, state: &SessionState) -> Result<Suspects, Error> {
        let all = state.config().get_extension::<Touched>().map_or_else(SeqSet::default, |touched| touched.events());
        match self.hits_without(planned, state, &all).await {
            Ok(_) => {}
            Err(error) if is_of_the_rule(&error) => return Ok(Suspects::default()),
            Err(error) => return Err(error),
        }
        let mut left = vec![all.clone()];
        let (mut found, mut asked) = (SeqSet::default(), 0);
        while asked < ASKED_AGAIN_MAX {
            let Some(shown) = left.pop() else { break };
            asked += 1;
            match self.hits_without(planned, state, &all.without(&shown)).await {
                Ok(_) => {}
                Err(error) if !is_of_the_rule(&error) => return Err(error),
                Err(_) => match halves(&shown) {
                    Some(parts) => left.extend(parts),
                    None => found = found.union(&shown),
                },
            }
        }
        let also = match left.is_empty() {
            false => SeqSet::of(left.iter().flat_map(SeqSet::ranges).cloned()),
            // It fails on some together: the newer half is left out, of which the next step may show more.
            true => halves(&all).map_or_else(SeqSet::default, |[_, newer]| newer),
        };
        Ok(Suspects { found, also })
    }
}

/// What a rule may fail on.
#[derive(Default)]
struct Suspects {
    /// It fails on each of these alone.
    found: SeqSet,
    /// It may fail on these.
    also: SeqSet,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_halved_until_one_is_left() {
        let set = SeqSet::parse("3,7-9,20").unwrap();
        let [first, second] = halves(&set).unwrap();
        assert_eq!((first.seqs().collect::<Vec<_>>(), second.seqs().collect::<Vec<_>>()), (vec![3, 7], vec![8, 9, 20]));
        assert!(halves(&SeqSet::parse("7").unwrap()).is_none() && halves(&SeqSet::default()).is_none());
    }
}
