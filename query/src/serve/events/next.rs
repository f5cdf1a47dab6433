//! What a reader is given next: where he may go on, and the sheet from there, made for him or found.
//!
//! Who follows the log stops where all others stop who follow it (`steps.rs`), so that one sheet is made for
//! all of them. Who only asks what there is gets all of it.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use tokio::time::Instant;

use super::coding::Coding;
use super::filter::{Place, Position};
use super::kept::Key;
use super::marks::Marks;
use super::page::{self, PAGE_BYTES, Wish};
use super::recent::NEAR;
use super::sealed;
use super::sheet::{Form, Sheet};
use super::steps::{End, STEP};
use super::{Request, Served, WAIT_MAX};
use crate::error::Error;

/// Events, and bytes of them, that a stream holds at a time.
pub(super) const STREAM_EVENTS: usize = 2_000;
const STREAM_BYTES: usize = 1 << 20;

/// So long somebody waits for a sheet that another caller makes, before he makes his own.
const PATIENCE: Duration = Duration::from_millis(250);

/// A page of fewer bytes is written at once; it takes less time than to hand it to another thread.
const SMALL_BYTES: usize = 64 << 10;

/// The same of one that is compressed.
const SMALL_CODED_BYTES: usize = 16 << 10;

/// Where somebody goes on who brings a cursor.
///
/// # Errors
///
/// If the log is another one there: so it is after it was restored from a backup, or rolled back, and whoever
/// went on would miss what came between.
pub(crate) fn known(served: &Served, place: Place) -> Result<Position, Error> {
    let (reader, position) = (served.engine.projection().reader(), place.position);
    let there = position.seq <= reader.head().size;
    match place.mark.filter(|_| there) {
        Some(mark) if mark != Marks::new(reader).at(position.seq)? => Err(Error::invalid(format!(
            "this cursor was given out by this log when its record {} was another one: the log was restored or rolled \
             back since; compare its checkpoint with one that you kept, and begin again",
            position.seq.saturating_sub(1)
        ))),
        _ => Ok(match place.horizon {
            None => position,
            Some(horizon) => {
                let erased = served.events.seals.erased(served.engine.projection())?;
                Position { known: erased.known_at(horizon), ..position }
            }
        }),
    }
}

/// Where to begin. The answer is 410 if retention has erased since what the reader had still to see.
///
/// # Errors
///
/// If the place is beyond the end of the log: whoever waited there would miss all that comes until then. So
/// it is after the log was restored from a backup, or rolled back.
pub(crate) fn start(
    served: &Served,
    request: &Request,
    position: Option<Position>,
) -> Result<Result<Position, Response>, Error> {
    let projection = served.engine.projection();
    let (asked, size) = (position.map_or(request.begin, |position| position.seq), projection.reader().head().size);
    if asked > size {
        let what = if position.is_some() { "the place to go on from" } else { "from_seq" };
        return Err(Error::invalid(format!(
            "{what} is beyond the end of this log, which has {size} records; if it was given out by this log, the log was \
             restored or rolled back since: compare its checkpoint with one that you kept, and begin again"
        )));
    }
    let known = served.events.seals.erased(projection)?.known();
    let Some(position) = position else { return Ok(Ok(Position { seq: request.begin, known })) };
    Ok(match missed(served, request, position, u64::MAX)? {
        Some(gone) => Err(gone),
        None => Ok(Position { known: known.max(position.known), ..position }),
    })
}

/// The answer 410, if retention erased below a seq what somebody at a place had still to see, and he does not know it.
/// It is asked before a page is made, and again behind it: what is erased meanwhile is not in it.
pub(crate) fn missed(
    served: &Served,
    request: &Request,
    position: Position,
    below: u64,
) -> Result<Option<Response>, Error> {
    let projection = served.engine.projection();
    let erased = served.events.seals.erased(projection)?;
    let Some(lost) = erased.unknown(position, below) else { return Ok(None) };
    let go_on = Position { seq: erased.earliest(position.seq), known: erased.known() };
    let body = serde_json::json!({
        "code": "gone",
        "message": format!(
            "retention erased records from {lost} on before this cursor reached them; go on with next_cursor"
        ),
        "position": null,
        "earliest_seq": go_on.seq,
        "next_cursor": request.cursors.encode(go_on, Marks::new(projection.reader()).at(go_on.seq)?),
    });
    let headers = [(header::CONTENT_TYPE, "application/json")];
    Ok(Some((StatusCode::GONE, headers, body.to_string()).into_response()))
}

/// How much a reader wants, and how.
struct Want {
    limit: usize,
    bytes: usize,
    form: Form,
    coding: Coding,
    /// He takes whatever comes, and no certain number of events.
    streams: bool,
}

/// The page of a request; waits for one that is not empty, up to a time.
pub(crate) async fn page(
    served: &Served,
    request: &Request,
    from: u64,
    limit: usize,
    (form, coding): (Form, Coding),
) -> Result<Arc<Sheet>, Error> {
    let want = Want { limit, bytes: PAGE_BYTES, form, coding, streams: false };
    if request.proof {
        // It is compressed with its proof, which is made for this reader.
        let want = Want { coding: Coding::Identity, ..want };
        return provable(served, request, &want, from).await;
    }
    if request.wait.is_zero() {
        return share(served, request, &want, from..u64::MAX).await;
    }
    follow(served, request, &want, from, Instant::now() + request.wait).await
}

/// What comes next in a stream; without `waits` it may be empty.
pub(crate) async fn stream(
    served: &Served,
    request: &Request,
    from: u64,
    (limit, form, coding): (usize, Form, Coding),
    waits: bool,
) -> Result<Arc<Sheet>, Error> {
    let want = Want { limit, bytes: STREAM_BYTES, form, coding, streams: true };
    match waits {
        true => follow(served, request, &want, from, Instant::now() + WAIT_MAX).await,
        false => share(served, request, &want, from..u64::MAX).await,
    }
}

/// A page of no more records than a proof may have.
async fn provable(served: &Served, request: &Request, want: &Want, from: u64) -> Result<Arc<Sheet>, Error> {
    let until = Instant::now() + request.wait;
    let projection = served.engine.projection();
    let mut visible = projection.visible();
    loop {
        visible.borrow_and_update();
        let size = projection.snapshot().size;
        let sheet = share(served, request, want, from..from.saturating_add(sealed::PROOF_RECORDS)).await?;
        if sheet.matched > 0 || sheet.next < size || Instant::now() >= until {
            return Ok(sheet);
        }
        let _ = tokio::time::timeout_at(until, visible.changed()).await;
        // Records come in many small steps; a reader takes a few of them at once.
        tokio::time::sleep_until(until.min(Instant::now() + STEP / 2)).await;
    }
}

/// The next sheet with an event, step by step; at the end of the time, what there is.
async fn follow(
    served: &Served,
    request: &Request,
    want: &Want,
    from: u64,
    until: Instant,
) -> Result<Arc<Sheet>, Error> {
    let projection = served.engine.projection();
    let steps = &projection.recent.steps;
    let all = want.streams && request.filter.kinds.is_empty();
    let mut visible = projection.visible();
    let mut at = from;
    loop {
        visible.borrow_and_update();
        let size = projection.snapshot().size;
        if Instant::now() >= until {
            return share(served, request, want, at..u64::MAX).await;
        }
        if let Some(to) = steps.stop(at, size, all) {
            let sheet = share(served, request, want, at..to).await?;
            if sheet.matched > 0 {
                return Ok(sheet);
            }
            if sheet.next > at {
                at = sheet.next;
                continue;
            }
        }
        match steps.end(at, size, Instant::now()) {
            End::Ended => {}
            End::At(time) => tokio::time::sleep_until(time.min(until)).await,
            End::More => {
                let _ = tokio::time::timeout_at(until, visible.changed()).await;
            }
        }
    }
}

/// The sheet of a range, as far as it goes: one that others have, or that is made for all who ask for it.
async fn share(served: &Served, request: &Request, want: &Want, seqs: Range<u64>) -> Result<Arc<Sheet>, Error> {
    let projection = served.engine.projection();
    let size = projection.snapshot().size;
    let bytes = served.events.holding.fair(want.limit).min(want.bytes);
    let (from, to, limit, form, coding) = (seqs.start, seqs.end, want.limit, want.form, want.coding);
    let key = Key { shape: Arc::clone(&request.shape), form, coding, from, to, limit, bytes };
    let is_near = from.saturating_add(NEAR) >= size;
    let who = &request.filter.who;
    let slot = projection.recent.slot(is_near, &key, who);
    let is_own = AtomicBool::new(false);
    let begin = || {
        is_own.store(true, Relaxed);
        make(served, request, &key)
    };
    let mut getting = pin!(slot.sheet.get_or_try_init(begin));
    let got = match tokio::time::timeout(PATIENCE, &mut getting).await {
        Ok(got) => got,
        // He who makes it may wait for long behind all else that he asks for.
        Err(_) if !is_own.load(Relaxed) && slot.who != *who => return make(served, request, &key).await,
        Err(_) => getting.await,
    };
    let (sheet, is_own) = (Arc::clone(got?), is_own.load(Relaxed));
    // What was cut by the end of the log grows with it.
    let is_final = sheet.full || to <= size;
    if is_own {
        projection.recent.made(is_near, key.clone(), &slot, is_final);
    } else if !is_final && sheet.next < size {
        return make(served, request, &key).await;
    }
    Ok(sheet)
}

async fn make(served: &Served, request: &Request, key: &Key) -> Result<Arc<Sheet>, Error> {
    let projection = Arc::clone(served.engine.projection());
    let (from, to, limit, bytes, form) = (key.from, key.to, key.limit, key.bytes, (key.form, key.coding));
    let wish = Wish { from, to, limit, bytes, filter: Arc::clone(&request.filter), format: request.format };
    served.engine.stats().page_made();
    let held = served.events.holding.hold(bytes);
    let page = page::page(&projection, &wish).await?;
    let is_coded = key.coding != Coding::Identity;
    let is_small = page.bytes <= if is_coded { SMALL_CODED_BYTES } else { SMALL_BYTES };
    let own = Arc::clone(&projection);
    let write = move || Sheet::make(own.reader(), &page, form, held).map(Arc::new);
    if is_small {
        return write();
    }
    let _turn = match is_coded {
        true => Some(projection.recent.packing.take(&request.filter.who).await?),
        false => None,
    };
    let written = tokio::task::spawn_blocking(write).await;
    written.map_err(|e| Error::internal(format!("the events cannot be written: {e}")))?
}

#[cfg(test)]
mod tests {
    use custody_store::system::SeqSet;
    use custody_store::{Cause, Erasure, Options, open};

    use super::super::Asked;
    use super::*;
    use crate::segments::test_requests::append;
    use crate::serve::observe::Unobserved;
    use crate::{Caller, Engine, Projection, QueryLimits};

    /// Between the moment at which a reader is let in and the one at which his page is sent, records of it may be
    /// erased: before they are read, or after.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_erased_while_a_page_is_made_is_told() {
        for is_made_before in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (mut writer, reader) = open(dir.path(), Options::default()).unwrap();
            append(&mut writer, 0..4);
            let projection = Projection::of(reader.clone()).unwrap();
            let engine = Engine::new(Arc::clone(&projection)).unwrap();
            let served = Served::new(engine, QueryLimits::default(), Arc::new(Unobserved));
            let asked = Asked { limit: Some(4), ..Asked::default() };
            let request = asked.read(&served, &Caller::local(None)).unwrap();
            let position = start(&served, &request, Some(Position { seq: 1, known: 0 })).unwrap().unwrap();
            let sheet = async || {
                let form = (Form::Lines, Coding::Identity);
                page(&served, &request, position.seq, request.limit, form).await.unwrap()
            };
            let before = if is_made_before { Some(sheet().await) } else { None };
            let retention = Erasure {
                seqs: SeqSet::of_seqs([2, 3]),
                cause: Cause::Retention,
                reason: "test".into(),
                actor: "test".into(),
                identity: "test".into(),
            };
            writer.erase(&retention).unwrap();
            reader.purge().unwrap();
            projection.forget().unwrap();
            let made = match before {
                Some(made) => made,
                None => sheet().await,
            };
            assert!(made.next > 3, "the page goes on behind what was erased");
            let gone = missed(&served, &request, position, made.next).unwrap();
            let gone = gone.expect("the page stands for records that it has not");
            assert_eq!(gone.status(), StatusCode::GONE);
            assert!(missed(&served, &request, position, 2).unwrap().is_none(), "nothing below was erased");
            let fresh = start(&served, &request, None).unwrap().unwrap();
            assert!(missed(&served, &request, fresh, u64::MAX).unwrap().is_none(), "who begins never had it");
        }
    }
}
