//! The table `violations`: what the checks say as of now.
//!
//! Where checks follow the log, that is what their records say, and what they found and did not
//! record yet. Elsewhere all of it is computed when it is asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use custody_store::system::CHECKS_IDENTITY;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::prelude::SessionContext;
use tokio::sync::OnceCell;

use super::follow::Live;
use super::hit::HitRow;
use super::run::Entries;
use super::withheld::Cited;
use super::{Checker, Tuning, built_in};
use crate::catalog::Lazy;
use crate::projection::{AsOf, Projection, Snapshot};
use crate::rows::Time;
use crate::{Error, alerts};

/// How long a query waits for checks that are behind.
const WAIT: Duration = Duration::from_secs(20);

/// Puts the table in.
pub(crate) fn register(
    context: &SessionContext,
    projection: &Projection,
    snapshot: &Arc<Snapshot>,
    now: Time,
) -> datafusion::common::Result<()> {
    let (live, reader) = (projection.checks.get().cloned(), projection.reader().clone());
    let snapshot = Arc::clone(snapshot);
    // It runs on a thread that may block, of the runtime that asked.
    let make = move || {
        let runtime = tokio::runtime::Handle::current();
        runtime.block_on(async {
            let hits = match &live {
                Some(live) => followed(live, &snapshot).await?,
                None => computed(&snapshot, &Entries::Log(reader.clone()), now).await?,
            };
            Ok::<RecordBatch, Error>(HitRow::batch(&hits))
        })
    };
    context.register_table("violations", Arc::new(Lazy::new(HitRow::schema(), make)))?;
    Ok(())
}

/// The checks that come with Custody, untuned.
async fn usual() -> Result<Arc<Checker>, Error> {
    static USUAL: OnceCell<Arc<Checker>> = OnceCell::const_new();
    let checker = USUAL.get_or_try_init(|| async {
        let rules = built_in();
        let tuning = Tuning::of(&rules);
        Checker::new(rules, tuning).await
    });
    checker.await.cloned()
}

/// All hits of a snapshot, each with the alert that cites its record and names its check.
async fn computed(snapshot: &Arc<Snapshot>, entries: &Entries, now: Time) -> Result<Vec<HitRow>, Error> {
    let mut hits = usual().await?.everything(snapshot, entries, now).await?;
    let of = Arc::clone(snapshot);
    let alerts = blocking(move || alerts::alerts(&of, AsOf::Now)).await?;
    let mut ids: HashMap<(&str, u64), &str> = HashMap::new();
    for alert in &alerts {
        for (rule, seq) in alert.evidence.iter().filter_map(|seq| Some((alert.rule.as_deref()?, *seq))) {
            let id = ids.entry((rule, seq)).or_insert(&alert.alert_id);
            *id = (*id).min(&alert.alert_id);
        }
    }
    for hit in &mut hits {
        hit.alert_id = ids.get(&(hit.check_id.as_str(), hit.seq)).map(|id| (*id).to_owned());
    }
    Ok(hits)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::internal(format!("the table cannot be made: {e}")))?
}

/// What checks that follow the log say about the records of a snapshot.
async fn followed(live: &Live, snapshot: &Arc<Snapshot>) -> Result<Vec<HitRow>, Error> {
    let mut done = live.done();
    let size = snapshot.size;
    if *done.borrow_and_update() < size {
        live.want();
    }
    // Checks that are far behind say what they know; the metric tells by how much.
    let _ = tokio::time::timeout(WAIT, done.wait_for(|done| *done >= size)).await;
    let (unsaid, checker) = (live.unsaid(), Arc::clone(live.checker()));
    let of = Arc::clone(snapshot);
    blocking(move || {
        let mut hits = BTreeMap::new();
        for event in of.events_of(&["alert", "alert_superseded"], AsOf::Now)? {
            let Some(hit) = HitRow::of_alert(&event).filter(|_| event.submitter == CHECKS_IDENTITY) else { continue };
            match event.kind.as_str() {
                "alert" => drop(hits.insert(hit.key(), hit)),
                _ => drop(hits.remove(&hit.key())),
            }
        }
        // Of what is not recorded yet, only what is about records that the asker may see.
        let seqs: BTreeSet<u64> = unsaid.iter().map(|hit| hit.seq).collect();
        let seen: BTreeSet<u64> = of.events_at(&seqs)?.iter().map(|event| event.seq).collect();
        let mut unsaid: Vec<HitRow> = unsaid.iter().filter(|hit| seen.contains(&hit.seq)).cloned().collect();
        if !of.visible().is_open() {
            let cited = Cited::of(&of, unsaid.iter())?;
            let shown = unsaid.into_iter().map(|hit| {
                let about = checker.about(&hit.check_id);
                cited.shown(hit, about)
            });
            unsaid = shown.collect();
        }
        for hit in unsaid {
            hits.entry(hit.key()).or_insert(hit);
        }
        Ok(hits.into_values().collect())
    })
    .await
}
