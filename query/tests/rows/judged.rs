//! Checks look at the whole log, and what they find may lie in records of others. In no interface does an alert show a
//! caller a word, or cite a record, that he may not see; who may see all of it is told all of it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use custody_query::checks::{Checker, Tuning, built_in, follow};
use custody_query::{Caller, Error, ErrorKind, Recorder, RowFilter, Said};
use custody_store::Writer;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::case::{self, Case, Made};
use super::{QUERIES, every_table, others};

/// When alerts are raised, in ns.
const RAISED: u64 = 1_795_165_800_000_000_000;

/// Kinds of [`Made`].
const CALL: u8 = 0;
const GRANT: u8 = 2;
const DERIVED: u8 = 3;
const REFUSED: u8 = 9;

struct Direct(Arc<Mutex<Writer>>);

impl Recorder for Direct {
    fn append(&self, said: Vec<Said>) -> BoxFuture<'static, Result<Vec<u64>, Error>> {
        let writer = Arc::clone(&self.0);
        async move {
            let prepared = said.iter().map(|s| s.record.prepare_as(&s.identity, RAISED).unwrap()).collect();
            let done = writer.lock().unwrap().append(prepared);
            let done = done.map_err(|e| Error::new(ErrorKind::Unavailable, e.to_string()))?;
            Ok(done.iter().map(|receipt| receipt.first_seq).collect())
        }
        .boxed()
    }
}

/// Has the checks judge all that there is, and say what they find.
async fn judge(case: &Case) {
    let rules = built_in();
    let tuning = Tuning::parse(&rules, "grace_seconds = 1\n").unwrap();
    let checker = Checker::new(rules, tuning).await.unwrap();
    let recorder = Arc::new(Direct(Arc::clone(&case.writer)));
    let following = follow(case.engine.projection(), checker, recorder).unwrap();
    let everybody = Caller::local(None);
    let settled = async {
        loop {
            let unsaid = case.column(&everybody, "SELECT count(*) FROM violations WHERE alert_id IS NULL").await;
            let head = case.writer.lock().unwrap().head_size();
            if unsaid == ["0"] && following.live().judged_to() == head {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(300), settled).await.expect("the checks come to an end");
    drop(following);
    case.writer.lock().unwrap().checkpoint().unwrap();
}

/// A caller who is limited to these; to none where none is named.
fn limited(tenants: &[&str], workspaces: &[&str]) -> Caller {
    let some = |names: &[&str]| -> Option<Arc<[String]>> {
        (!names.is_empty()).then(|| names.iter().map(|name| (*name).to_owned()).collect())
    };
    Caller { rows: RowFilter { tenants: some(tenants), workspaces: some(workspaces) }, ..Caller::local(None) }
}

/// What a caller is told of a call that was refused or is outside of its grant, and what is cited: as a violation and as an alert.
async fn told(case: &Case, caller: &Caller, seq: u64) -> Option<(String, Vec<String>)> {
    let hit = format!(
        "SELECT * FROM violations WHERE check_id IN ('outside_actions', 'denied_then_executed') AND seq = {seq}"
    );
    let alert = format!("SELECT a.title, a.evidence FROM alerts a JOIN ({hit}) v ON v.alert_id = a.alert_id");
    let detail = case.column(caller, &format!("SELECT detail FROM ({hit})")).await;
    assert_eq!(detail, case.column(caller, &format!("SELECT title FROM ({alert})")).await);
    let cited = case.column(caller, &format!("SELECT unnest(evidence) FROM ({hit})")).await;
    assert_eq!(cited, case.column(caller, &format!("SELECT unnest(evidence) FROM ({alert})")).await);
    assert!(detail.len() <= 1, "{detail:?}");
    detail.into_iter().next().map(|detail| (detail, cited))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_tells_nothing_of_what_is_hidden() {
    let made = |kind, tenant, workspace, trace, grant| Made {
        kind,
        tenant: Some(tenant),
        workspace,
        in_resource: false,
        trace,
        grant,
    };
    let case = Case::of(
        vec![
            // An executor that names no tenant refused the call.
            Made { tenant: None, ..made(REFUSED, "acme", None, 0, 1) },
            made(CALL, "acme", None, 0, 0),
            // Derived in one workspace from the grant g3 of another.
            made(GRANT, "acme", Some("red"), 1, 3),
            made(DERIVED, "acme", Some("blue"), 0, 2),
            made(GRANT, "acme", Some("red"), 0, 8),
            made(CALL, "acme", Some("blue"), 0, 8),
            made(GRANT, "acme", Some("blue"), 0, 9),
            made(CALL, "acme", Some("blue"), 0, 9),
        ],
        0,
    );
    judge(&case).await;
    let (seqs, words): (Vec<u64>, Vec<String>) = case.words().unzip();
    let (everybody, acme) = (limited(&[], &[]), limited(&["acme"], &[]));
    let acme_blue = limited(&["acme"], &["blue"]);
    let (blue, both, globex) = (limited(&[], &["blue"]), limited(&["acme", "globex"], &[]), limited(&["globex"], &[]));
    // Who asks, about which call, and whether he sees the refusal, or the grant that it is outside of.
    let wanted = [
        (&everybody, 1, true),
        (&everybody, 5, true),
        (&acme, 1, false),
        (&acme, 5, true),
        (&acme_blue, 5, false),
        (&acme_blue, 7, true),
        (&blue, 5, false),
        (&blue, 7, true),
        // What is in common is shown, and nobody's is not.
        (&both, 1, false),
    ];
    for (caller, call, all) in wanted {
        let (detail, cited) = told(&case, caller, seqs[call]).await.unwrap();
        let what = format!("{:?} is told of {call}: {detail} {cited:?}", caller.rows);
        assert_eq!(detail.contains(&words[call - 1]), all, "{what}");
        assert_eq!(detail.contains("details are withheld"), !all, "{what}");
        let want: Vec<String> = seqs[if all { call - 1 } else { call }..=call].iter().map(u64::to_string).collect();
        assert_eq!(cited, want, "{what}");
    }
    assert_eq!(told(&case, &globex, seqs[1]).await, None);
    let widened = "SELECT unnest(evidence) FROM violations WHERE check_id = 'widened_delegation'";
    assert_eq!(case.column(&everybody, widened).await, [seqs[2].to_string(), seqs[3].to_string()]);
    assert_eq!(case.column(&acme_blue, widened).await, [seqs[3].to_string()]);
    for caller in [&acme_blue, &blue, &both, &globex, &acme] {
        nothing_is_told(&case, caller).await;
    }
    // It exports, and the checks have ended: from here on a query of `violations` would wait for them.
    others::over_others(&case, &acme, &innocent(&case, &acme)).await;
}

/// Looks for words of records that are hidden from a caller.
fn innocent(case: &Case, caller: &Caller) -> impl Fn(&str, &str) {
    let shown = case.shown(&caller.rows);
    let hidden: Vec<(u64, String)> = case.words().filter(|(seq, _)| !shown.contains(seq)).collect();
    move |what, text| {
        for (seq, word) in &hidden {
            assert!(!text.contains(word), "{what} shows {word} of record {seq}:\n{text}");
        }
    }
}

/// Of records that are hidden, in any interface but those that export.
async fn nothing_is_told(case: &Case, caller: &Caller) {
    let (shown, innocent) = (case.shown(&caller.rows), innocent(case, caller));
    for table in ["violations", "alerts"] {
        for cited in case.column(caller, &format!("SELECT DISTINCT unnest(evidence) FROM {table}")).await {
            assert!(shown.contains(&cited.parse().unwrap()), "{table} cites {cited}");
        }
    }
    every_table(case, caller, &innocent).await;
    let ids = case.column(&Caller::local(None), "SELECT alert_id FROM alerts").await;
    assert!(ids.len() >= 4, "{ids:?}");
    let lives = ids.iter().flat_map(|id| ["alert_history", "replay"].map(|of| format!("SELECT * FROM {of}('{id}')")));
    for sql in lives.chain(QUERIES.map(str::to_owned)) {
        match case.ask(caller, &sql).await {
            Ok(told) => innocent(&sql, &told),
            Err(error) => innocent(&sql, &error.message),
        }
    }
    case::over_http(case, caller, &innocent).await;
    case::over_flight(case, caller, &innocent).await;
}
