//! What is refused for having more spans than an answer may, and what is recorded of a question in several steps.

use std::sync::{Arc, Mutex};

use custody_store::{Options, open};
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::asker::Asker;
use super::find::{self, Search};
use super::summaries;
use crate::caller::ActorType;
use crate::error::ErrorKind;
use crate::recorder::{Recorder, Said};
use crate::segments::test_requests::append;
use crate::serve::{Served, observe};
use crate::{Audit, AuditMode, Caller, Engine, Error, Projection, QueryLimits};

/// Keeps what is recorded.
#[derive(Default)]
struct Kept(Mutex<Vec<Said>>);

impl Recorder for Kept {
    fn append(&self, said: Vec<Said>) -> BoxFuture<'static, Result<Vec<u64>, Error>> {
        let seqs = (0..said.len() as u64).collect();
        self.0.lock().unwrap().extend(said);
        async { Ok(seqs) }.boxed()
    }
}

/// Two traces of five spans each, of 1970.
fn served(audit: Audit) -> (Served, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = open(dir.path(), Options::default()).unwrap();
    append(&mut writer, 0..6);
    let engine = Engine::new(Projection::of(reader).unwrap()).unwrap().with_audit(audit);
    (Served::new(engine, QueryLimits::default(), Arc::new(observe::Unobserved)), dir)
}

fn everything() -> Search {
    Search { from: 0, to: find::now(), limit: 10, ..Search::default() }
}

fn trace(byte: u8) -> String {
    const_hex::encode([byte; 16])
}

#[tokio::test(flavor = "multi_thread")]
async fn more_spans_than_an_answer_may_have_are_refused() {
    let (served, _dir) = served(Audit::default());
    let caller = Caller::local(None);
    let asker = |spans_max| Asker::new(&served, &caller).with_spans(spans_max);
    let found = find::search(&asker(10), &everything()).await.unwrap();
    assert_eq!(found.iter().map(|found| found.seqs.len()).collect::<Vec<_>>(), [5, 5]);
    assert_eq!(summaries::of(&asker(10), &everything()).await.unwrap().len(), 2);
    let both = [trace(1), trace(4)];
    let told = [
        find::search(&asker(9), &everything()).await.unwrap_err(),
        find::named(&asker(9), &both).await.unwrap_err(),
        summaries::of(&asker(9), &everything()).await.unwrap_err(),
        find::trace(&asker(4), &trace(4), None, None).await.unwrap_err(),
    ];
    for (error, most) in told.iter().zip([9, 9, 9, 4]) {
        assert_eq!(error.kind, ErrorKind::Resources, "{error}");
        assert!(error.message.contains(&format!("more than {most} spans; ask for ")), "{error}");
    }
    assert_eq!(find::named(&asker(5), &both[1..]).await.unwrap()[0].seqs.len(), 5);
    assert_eq!(find::trace(&asker(5), &trace(4), None, None).await.unwrap().unwrap().seqs.len(), 5);
}

/// A search is one question to an auditor, however it is found out.
#[tokio::test(flavor = "multi_thread")]
async fn a_search_is_one_record_with_the_spans_that_it_gave() {
    let kept = Arc::new(Kept::default());
    let (served, _dir) = served(Audit::new(kept.clone(), AuditMode::Identified));
    let caller = Caller { identity: "jwt:idp#emma".into(), actor: ActorType::Human, ..Caller::local(None) };
    let asker = Asker::new(&served, &caller);
    let last = || {
        let mut said = kept.0.lock().unwrap();
        assert_eq!(said.len(), 1, "{said:?}");
        let record = said.remove(0).record;
        let rows = record.attributes.iter().find(|(key, _)| key == "custody.audit.rows").unwrap().1.clone();
        let text = |key: &str| record.text(&format!("custody.audit.{key}")).unwrap().to_owned();
        assert_eq!(text("identity"), "jwt:idp#emma");
        (text("text"), text("outcome"), rows)
    };
    // From 1970 on, in more than one step.
    find::search(&asker, &everything()).await.unwrap();
    let (text, outcome, rows) = last();
    assert!(
        text.starts_with("/* Jaeger: search */ SELECT trace_id") && text.contains("to_timestamp_nanos(0)"),
        "{text}"
    );
    assert_eq!((outcome.as_str(), rows), ("ok", 10u64.into()));
    summaries::of(&asker, &everything()).await.unwrap();
    assert_eq!(last().2, 10u64.into());
    find::named(&asker, &[trace(1)]).await.unwrap();
    let (text, _, rows) = last();
    assert!(text.starts_with("/* Jaeger: traces */ SELECT trace_id, seq FROM spans WHERE"), "{text}");
    assert_eq!(rows, 5u64.into());
    find::trace(&asker, &trace(1), None, None).await.unwrap();
    assert_eq!(last().2, 5u64.into());
    find::search(&asker.with_spans(1), &everything()).await.unwrap_err();
    assert_eq!(last().1, "resources_exhausted");
}
