//! No interface shows a row or a value that a row filter hides: over random records of random
//! tenants and workspaces, random filters, and every table, view, function, message and endpoint.
//!
//! Every record carries a word of its own in every place that it has for text. Nothing that a
//! caller gets may hold the word of a record that is hidden from him; everything that is shown
//! to him must be counted.

#[path = "rows/case.rs"]
mod case;
#[path = "rows/judged.rs"]
mod judged;
#[path = "rows/others.rs"]
mod others;

use case::{Case, Made};
use custody_query::{Caller, ErrorKind, QueryLimits, RowFilter};
use proptest::prelude::*;

const TENANTS: [&str; 3] = ["acme", "globex", "initech"];
const WORKSPACES: [&str; 2] = ["red", "blue"];

/// Queries over everything at once. `$N` is the number of records.
const QUERIES: [&str; 22] = [
    "SELECT min(attributes), max(attributes), min(name), max(name) FROM spans",
    "SELECT tenant, workspace, count(*), array_agg(name), sum(seq) FROM spans GROUP BY 1, 2",
    "SELECT a.*, b.body FROM spans a JOIN logs b ON a.trace_id = b.trace_id",
    "SELECT a.name, b.name FROM spans a CROSS JOIN spans b",
    "SELECT a.seq, b.attributes FROM events a LEFT JOIN events b ON a.seq <> b.seq",
    "SELECT * FROM events e WHERE EXISTS (SELECT 1 FROM spans s WHERE s.trace_id = e.trace_id)",
    "SELECT (SELECT max(body) FROM logs), (SELECT array_agg(points) FROM metrics)",
    "SELECT name FROM spans UNION SELECT body FROM logs UNION SELECT name FROM metrics",
    "SELECT name, lag(name) OVER (ORDER BY seq), first_value(name) OVER (ORDER BY seq) FROM spans",
    "SELECT * FROM spans ORDER BY seq LIMIT 1",
    "SELECT * FROM spans ORDER BY name DESC LIMIT 2",
    "SELECT * FROM logs WHERE seq = 3 OR seq IN (1, 2, 5, 8)",
    "SELECT DISTINCT submitter, tenant FROM logs",
    "SELECT l.seq, payload(CAST(l.seq AS BIGINT)), proof(CAST(l.seq AS BIGINT)) FROM ledger l",
    "SELECT payload(n), proof(n) FROM (SELECT unnest([0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20]) AS n)",
    "WITH RECURSIVE up AS (SELECT span_id, name FROM spans UNION SELECT s.span_id, s.name FROM spans s \
     JOIN up ON s.parent_span_id = up.span_id) SELECT * FROM up",
    "SELECT * FROM foreign_claims",
    "SELECT * FROM audit",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM information_schema.columns",
    "EXPLAIN SELECT count(*), max(name) FROM spans WHERE name > 'a'",
    "EXPLAIN SELECT * FROM spans s JOIN logs l ON s.trace_id = l.trace_id WHERE s.seq < 5 LIMIT 3",
];

/// Queries that fail, or would fail if they were tried on what is hidden.
const TRAPS: [&str; 6] = [
    "SELECT CAST(name AS BIGINT) FROM spans",
    "SELECT * FROM spans WHERE CAST(name AS BIGINT) = 1",
    "SELECT * FROM logs WHERE CAST(body AS BIGINT) > 0 AND tenant IS NOT NULL",
    "SELECT count(*) FROM spans s JOIN logs l ON CAST(s.name AS BIGINT) = CAST(l.body AS BIGINT)",
    "SELECT sum(CAST(name AS BIGINT)) FROM metrics",
    "SELECT arrow_typeof(CAST(attributes AS DATE)) FROM events",
];

fn filters() -> impl Strategy<Value = RowFilter> {
    let some = |of: &'static [&'static str]| {
        proptest::option::of(proptest::sample::subsequence(of, 0..=of.len()))
            .prop_map(|some| some.map(|some| some.into_iter().map(str::to_owned).collect::<Vec<_>>().into()))
    };
    (some(&TENANTS), some(&WORKSPACES)).prop_map(|(tenants, workspaces)| RowFilter { tenants, workspaces })
}

fn records() -> impl Strategy<Value = Vec<Made>> {
    let one = |of: &'static [&'static str]| proptest::option::of(proptest::sample::select(of));
    let record = (0..case::KINDS, one(&TENANTS), one(&WORKSPACES), any::<bool>(), 0..4u64, 0..4u64);
    let record = record.prop_map(|(kind, tenant, workspace, in_resource, trace, grant)| Made {
        kind,
        tenant,
        workspace,
        in_resource,
        trace,
        grant,
    });
    proptest::collection::vec(record, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, max_shrink_iters: 10, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_interface_shows_what_is_hidden(records in records(), filter in filters(), sealed in 0..4u64) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(check(&Case::of(records, sealed), &filter));
    }
}

async fn check(case: &Case, filter: &RowFilter) {
    let caller = Caller { rows: filter.clone(), ..Caller::local(None) };
    let shown = case.shown(filter);
    let innocent = |what: &str, text: &str| {
        for (seq, word) in case.words() {
            assert!(shown.contains(&seq) || !text.contains(&word), "{what} shows {word} of record {seq}:\n{text}");
        }
    };
    every_table(case, &caller, &innocent).await;
    let ask = async |sql: &str| case.ask(&caller, sql).await;
    for sql in QUERIES {
        let told = ask(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        innocent(sql, &told);
    }
    for sql in TRAPS {
        match ask(sql).await {
            Ok(told) => innocent(sql, &told),
            Err(error) => innocent(sql, &error.message),
        }
    }
    // What is hidden has no effect either: it would be the only thing to divide by zero.
    let hidden = case.words().filter(|(seq, _)| !shown.contains(seq)).map(|(seq, _)| seq.to_string());
    let hidden = hidden.chain(["999".to_owned()]).collect::<Vec<_>>().join(",");
    for table in ["spans", "logs", "metrics", "events", "tool_calls"] {
        let sql = format!("SELECT * FROM {table} WHERE 1 / (CASE WHEN seq IN ({hidden}) THEN 0 ELSE 1 END) < 2");
        ask(&sql).await.unwrap_or_else(|e| panic!("{sql} tells of what is hidden: {e}"));
    }
    functions(case, &caller, &innocent).await;
    looked_up(case, &caller).await;
    counted(case, &caller, &shown).await;
    case::over_http(case, &caller, &innocent).await;
    case::over_flight(case, &caller, &innocent).await;
    // It exports, so the log has more records behind it.
    others::over_others(case, &caller, &innocent).await;
}

/// Every table and view that there is, as the schema lists them.
async fn every_table(case: &Case, caller: &Caller, innocent: &impl Fn(&str, &str)) {
    let names = case.column(caller, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'");
    let names = names.await;
    assert!(names.len() >= 14, "{names:?}");
    for name in names {
        let told = case.ask(caller, &format!("SELECT * FROM {name}")).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        innocent(&name, &told);
        let told = case.ask(caller, &format!("EXPLAIN SELECT * FROM {name}")).await.unwrap();
        innocent(&name, &told);
    }
    for counting in ["EXPLAIN ANALYZE", "EXPLAIN VERBOSE", "EXPLAIN ANALYZE VERBOSE", "EXPLAIN FORMAT TREE"] {
        let told = case.ask(caller, &format!("{counting} SELECT count(*) FROM spans")).await;
        match (caller.rows.is_open(), told) {
            (false, Err(error)) => assert_eq!(error.kind, ErrorKind::Forbidden, "{error}"),
            (is_open, told) => assert!(is_open && told.is_ok(), "{counting}: {told:?}"),
        }
    }
}

/// The functions that are given an id or a seq, for every id that there is.
async fn functions(case: &Case, caller: &Caller, innocent: &impl Fn(&str, &str)) {
    let replays = case.ids().map(|id| format!("SELECT * FROM replay('{id}')")).collect::<Vec<_>>();
    let chains = (0..5).map(|grant| format!("SELECT * FROM delegation_chain('g{grant}')")).collect::<Vec<_>>();
    for calls in [replays, chains] {
        let sql = calls.join(" UNION ALL ");
        let told = case.ask(caller, &sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        innocent(&sql, &told);
        let shown = case.shown(&caller.rows);
        for seq in case.column(caller, &format!("SELECT DISTINCT seq FROM ({sql}) WHERE seq IS NOT NULL")).await {
            assert!(shown.contains(&seq.parse().unwrap()), "{sql} shows record {seq}");
        }
    }
}

/// What is found by an id is what a look at all rows that he may see finds, to the count of uses.
async fn looked_up(case: &Case, caller: &Caller) {
    let (mut by_id, mut by_rows) = (Vec::new(), Vec::new());
    for n in 0..5 {
        let trace = format!("{n:032x}");
        let grant = format!("g{n}");
        for (what, column, id) in [
            ("spans", "trace_id", &trace),
            ("logs", "trace_id", &trace),
            ("events", "trace_id", &trace),
            ("events", "grant_id", &grant),
            ("grants", "grant_id", &grant),
        ] {
            let row = match what {
                "grants" => "concat(grant_id, ' ', state, ' ', uses, ' ', lineage, ' ', coalesce(purpose, ''))",
                _ => "concat(seq, ' ', attributes)",
            };
            let of = |column: &str| format!("SELECT concat('{what} ', {row}) FROM {what} WHERE {column} = '{id}'");
            by_id.push(of(column));
            by_rows.push(of(&format!("concat({column}, '')")));
        }
    }
    let [mut found, mut wanted] = [
        case.column(caller, &by_id.join(" UNION ALL ")).await,
        case.column(caller, &by_rows.join(" UNION ALL ")).await,
    ];
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
}

/// All that is to be shown is there, once.
async fn counted(case: &Case, caller: &Caller, shown: &std::collections::BTreeSet<u64>) {
    let seqs = async |sql: &str| -> Vec<u64> {
        let mut seqs: Vec<u64> = case.column(caller, sql).await.iter().map(|seq| seq.parse().unwrap()).collect();
        seqs.sort_unstable();
        seqs
    };
    let all: Vec<u64> = shown.iter().copied().collect();
    assert_eq!(seqs("SELECT seq FROM ledger").await, all);
    assert_eq!(
        seqs("SELECT seq FROM spans UNION ALL SELECT seq FROM logs UNION ALL SELECT seq FROM metrics").await,
        all
    );
    for table in ["spans", "logs", "metrics", "events"] {
        let listed = seqs(&format!("SELECT seq FROM {table}")).await.len();
        assert_eq!(case.column(caller, &format!("SELECT count(*) FROM {table}")).await, [listed.to_string()]);
    }
    // A view hides no row that may be seen: it has those of whoever sees all that are shown here.
    let everybody = Caller::local(None);
    for view in ["tool_calls", "model_calls", "decisions", "retrievals", "denials", "alerts"] {
        let sql = format!("SELECT seq FROM {view}");
        let of_all = case.column(&everybody, &sql).await;
        let mut wanted: Vec<u64> =
            of_all.iter().map(|seq| seq.parse().unwrap()).filter(|s| shown.contains(s)).collect();
        wanted.sort_unstable();
        assert_eq!(seqs(&sql).await, wanted, "{view}");
    }
    let of_records = "SELECT CAST(coalesce(sum(records), 0) AS BIGINT) FROM coverage_of_mapping";
    let of_rows = "SELECT count(*) FROM (SELECT seq FROM spans UNION ALL SELECT seq FROM logs)";
    let [told, there] = [of_records, of_rows].map(|sql| case.column(caller, sql));
    let (told, there) = (told.await, there.await);
    assert_eq!(told, there, "coverage_of_mapping");
    let list = (0..case.size()).map(|seq| seq.to_string()).collect::<Vec<_>>().join(",");
    let of = format!("(SELECT unnest([{list}]) AS n)");
    let proved = format!("SELECT n FROM {of} WHERE proof(n) IS NOT NULL AND payload(n) IS NOT NULL");
    assert_eq!(seqs(&proved).await, all);
    let known = format!("SELECT n FROM {of} WHERE proof(n) IS NOT NULL OR payload(n) IS NOT NULL");
    assert_eq!(seqs(&known).await, all);
}

/// Roles: who may not ask is told which role he lacks.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_role_is_told_which() {
    let case = Case::of(vec![], 0);
    let nobody = Caller { roles: custody_query::Roles::default(), ..Caller::local(None) };
    let error = case.engine.sql(&nobody, "SELECT 1", vec![], QueryLimits::default()).await.unwrap_err();
    assert_eq!((error.kind, error.message.contains("role read")), (ErrorKind::Forbidden, true), "{error}");
    assert!(case.engine.describe(&nobody, "SELECT 1", QueryLimits::default()).await.is_err());
}

/// A sender that is bound to a tenant and claims another is seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_claim_is_seen_by_whoever_sees_the_record() {
    let made = |tenant| Made { tenant: Some(tenant), ..Made::span() };
    let mut case = Case::of(vec![made("acme"), made("globex")], 0);
    let bound: std::sync::Arc<[String]> = ["acme".to_owned()].into();
    let bindings = move |submitter: &str| (submitter == case::SENDER).then(|| bound.clone());
    case.engine = case.engine.with_bindings(std::sync::Arc::new(bindings));
    let sql = "SELECT concat(tenant, ' ', submitter, ' ', coalesce(bound_to[1], 'others')) FROM foreign_claims";
    let want = format!("globex {} acme", case::SENDER);
    assert_eq!(case.column(&Caller::local(None), sql).await, [want.as_str()]);
    let rows = |tenant: &str| RowFilter { tenants: Some([tenant.to_owned()].into()), workspaces: None };
    let globex = Caller { rows: rows("globex"), ..Caller::local(None) };
    // But not to whom he is bound.
    assert_eq!(case.column(&globex, sql).await, [format!("globex {} others", case::SENDER)]);
    let acme = Caller { rows: rows("acme"), ..Caller::local(None) };
    assert!(case.column(&acme, sql).await.is_empty());
    // Nor by asking: of other tenants than his own nobody is told.
    let of = |what: &str| {
        format!("SELECT coalesce(CAST({what} AS VARCHAR), 'null')", what = what.replace('$', case::SENDER))
    };
    for (what, by_all, by_globex, by_acme) in [
        ("array_element(tenants_of('$'), 1)", "acme", "null", "acme"),
        ("tenant_claim_holds('$', 'acme')", "true", "null", "true"),
        ("tenant_claim_holds('$', 'globex')", "false", "false", "null"),
    ] {
        for (caller, want) in [(&Caller::local(None), by_all), (&globex, by_globex), (&acme, by_acme)] {
            assert_eq!(case.column(caller, &of(what)).await, [want], "{what}");
        }
    }
}
