//! What one query can do to the server: the known ways around a memory pool, planning without
//! end, callers who go away, too many at once; and that each is written down.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow_flight::sql::client::FlightSqlServiceClient;
use custody_query::serve::observe::Unobserved;
use custody_query::serve::{Served, flight, router};
use custody_query::{
    ActorType, Audit, AuditMode, Caller, Concurrency, Engine, Error, ErrorKind, Projection, QueryLimits, Recorder,
    Said, everybody,
};
use custody_store::{Options, open};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use tokio::io::AsyncWriteExt as _;

/// An engine over a log with only its first records.
fn engine() -> (Engine, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (_, reader) = open(dir.path(), Options::default()).unwrap();
    (Engine::new(Projection::of(reader).unwrap()).unwrap(), dir)
}

fn limits(millis: u64) -> QueryLimits {
    QueryLimits { timeout: Duration::from_millis(millis), memory_bytes_max: 64 << 20, ..QueryLimits::default() }
}

/// A million rows out of nothing.
fn million() -> String {
    let thousand = (0..1000).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    format!(
        "(SELECT a.n AS n, b.n AS m FROM (SELECT unnest([{thousand}]) AS n) a CROSS JOIN (SELECT unnest([{thousand}]) AS n) b)"
    )
}

/// Pairs of those: as many as nobody waits for.
fn endless() -> String {
    format!("SELECT count(*) FROM {0} a JOIN {0} b ON a.n + b.n > 0 AND a.m * b.m >= 0", million())
}

/// The most memory that this process had since it was last asked, in MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10;
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    peak
}

/// Each is known to go around a memory pool, most of them while a query is only being planned.
fn around_the_pool() -> Vec<String> {
    let million = million();
    let long = "x".repeat(100_000);
    let doubled = (0..20).fold("SELECT 'xxxxxxxx' AS s".to_owned(), |sql, i| {
        format!("SELECT {} AS s FROM ({sql}) AS t{i}", ["concat(s, s)", "s || s"][i % 2])
    });
    let lists = (0..20).fold("SELECT [1, 2] AS s".to_owned(), |sql, i| {
        format!("SELECT {} AS s FROM ({sql}) AS t{i}", ["array_concat(s, s)", "s || s", "[s, s]"][i % 2])
    });
    let ctes = (1..40).fold("WITH c0 AS (SELECT 1 AS x)".to_owned(), |sql, i| {
        format!("{sql}, c{i} AS (SELECT * FROM c{0} UNION ALL SELECT * FROM c{0})", i - 1)
    });
    let mut out = vec![
        "SELECT repeat('x', 2000000000)".to_owned(),
        "EXPLAIN SELECT repeat('x', 2000000000)".to_owned(),
        "SELECT lpad('x', 2000000000), rpad('x', 2000000000, 'ab')".to_owned(),
        "EXPLAIN SELECT lpad('x', 2000000000)".to_owned(),
        "SELECT replace(repeat('x', 1000000), 'x', repeat('y', 100000))".to_owned(),
        "EXPLAIN SELECT replace(repeat('x', 1000000), '', repeat('y', 100000))".to_owned(),
        "SELECT regexp_replace(repeat('x', 1000000), 'x', repeat('y', 100000), 'g')".to_owned(),
        "SELECT overlay(repeat('x', 60000000) placing repeat('y', 60000000) from 1)".to_owned(),
        "SELECT concat_ws(repeat(',', 10000000), 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j')".to_owned(),
        "SELECT array_to_string([1,2,3,4,5,6,7,8,9], repeat(',', 10000000))".to_owned(),
        format!("SELECT max(length(s)) FROM (SELECT repeat('x', n * 1000) AS s FROM {million})"),
        format!("SELECT max(length(to_char(now(), '{long}'))), max(n) FROM {million}"),
        format!("SELECT max(a), max(b), max(c) FROM (SELECT '{long}' AS a, '{long}1' AS b, n AS c FROM {million})"),
        format!("SELECT count(*) FROM (SELECT array_agg(concat(n, '{long}', m)) FROM {million})"),
        format!("SELECT count(*) FROM (SELECT concat(n, '{long}', m) AS s FROM {million} ORDER BY s DESC)"),
        format!("SELECT count(DISTINCT concat(n, '{long}', m)) FROM {million}"),
        "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t".to_owned(),
        "WITH RECURSIVE t AS (SELECT 'x' AS s UNION ALL SELECT s || s FROM t) SELECT max(s) FROM t".to_owned(),
        "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT a.n FROM t a CROSS JOIN (SELECT unnest([1, 2]))) \
         SELECT count(*) FROM t"
            .to_owned(),
        format!("{ctes} SELECT count(*) FROM c39"),
        format!("EXPLAIN {ctes} SELECT count(*) FROM c39"),
        doubled.clone(),
        format!("EXPLAIN {doubled}"),
        lists,
        format!("SELECT {}1{}", "(".repeat(20_000), ")".repeat(20_000)),
        format!("SELECT {}", vec!["1"; 60_000].join("+")),
        format!("SELECT 1 WHERE 1 IN ({})", vec!["7"; 100_000].join(",")),
        format!("SELECT {}", vec!["abs("; 5_000].concat()),
        format!("SELECT '{}'", "x".repeat(1 << 20)),
    ];
    out.push(format!("SELECT max(length(to_char(now(), concat(repeat('%c', 1000), n, m)))) FROM {million}"));
    out.push("SELECT to_char(now(), repeat('%c', 400000))".to_owned());
    out.push(format!("SELECT max(array_length(x)) FROM (SELECT array_agg(n) OVER (ORDER BY m) AS x FROM {million})"));
    out.push(format!(
        "SELECT max(x), max(s) FROM (SELECT count(*) OVER () AS x, s FROM \
         (SELECT concat(repeat('x', 1000), n, m) AS s FROM {million}))"
    ));
    let many = (0..15).map(|i| format!("n + {i}")).collect::<Vec<_>>().join(", ");
    out.push(format!("SELECT count(*) FROM {million} GROUP BY CUBE ({many})"));
    out.push(format!(
        "EXPLAIN SELECT count(*) FROM {million} GROUP BY CUBE (n, m, n + m), ROLLUP (n, m), CUBE (m, n + 1)"
    ));
    out.push(format!("SELECT count(*) FROM {million} GROUP BY CUBE (n, m, n + m, n * m, n - m, n % 7)"));
    // One long text among many short ones, which a window gives to every row.
    let one_long =
        format!("(SELECT repeat('x', CASE WHEN n = 5 AND m = 5 THEN 1000000 ELSE 1 END) AS s, n, m FROM {million})");
    for over in [
        "max(s) OVER ()",
        "max(s) OVER (ORDER BY n)",
        "first_value(s) OVER (ORDER BY length(s) DESC)",
        "last_value(s) OVER (PARTITION BY n ORDER BY length(s) ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)",
        "nth_value(s, 1) OVER (ORDER BY length(s) DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 5000 FOLLOWING)",
        "first_value([s, s]) OVER (ORDER BY length(s) DESC)",
    ] {
        out.push(format!("SELECT count(x) FROM (SELECT {over} AS x FROM {one_long})"));
    }
    for over in ["lead(s, 2000000000)", "lag(s, 2000000000)", "lag(s, -9223372036854775807)", "lead(s, 1000 * 1000)"] {
        out.push(format!("SELECT count(x) FROM (SELECT {over} OVER (ORDER BY n) AS x FROM {one_long})"));
    }
    // What waits for rows behind it.
    out.push(format!(
        "SELECT count(x) FROM (SELECT count(s) OVER (ORDER BY n ROWS BETWEEN CURRENT ROW AND 900000 FOLLOWING) AS x \
         FROM (SELECT concat(repeat('x', 1000), m) AS s, n FROM {million}))"
    ));
    out.push(format!("SELECT max(array_length(string_to_array(repeat('x,', 3000 + n), ','))) FROM {million}"));
    out.push(format!("SELECT max(array_length(string_to_array(repeat('xy', 3000 + n), NULL))) FROM {million}"));
    for gone in ["string_agg(name, ',')", "array_repeat(1, 2000000000)", "array_resize([1], 2000000000)"] {
        out.push(format!("SELECT {gone} FROM spans"));
    }
    for gone in ["range(0, 2000000000)", "generate_series(0, 2000000000)"] {
        out.extend([format!("SELECT {gone}"), format!("SELECT count(*) FROM {gone}")]);
    }
    out
}

#[test]
fn no_known_way_leads_around_the_memory_limits() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (engine, _dir) = engine();
    runtime.block_on(async {
        peak_mib();
        let before = peak_mib();
        for sql in around_the_pool() {
            let start = Instant::now();
            let told = engine.sql(&Caller::local(None), &sql, vec![], limits(3000)).await;
            let outcome = told.as_ref().map_or_else(|error| error.kind.code(), |_| "ok");
            let (took, peak) = (start.elapsed(), peak_mib());
            println!("{:>6} ms {:>5} MiB {outcome:<20} {:.90}", took.as_millis(), peak.saturating_sub(before), sql);
            assert!(took < Duration::from_secs(120), "{sql:.90} took {took:?}");
            assert!(peak < before + 600, "{sql:.90} took {} MiB", peak - before);
            if let Err(error) = told {
                assert!(error.kind != ErrorKind::Internal, "{sql:.90}: {error}");
            }
            until(|| engine.stats().running() == 0, &sql).await;
        }
    });
}

async fn until(is_so: impl Fn() -> bool, what: &str) {
    let end = Instant::now() + Duration::from_secs(180);
    while !is_so() {
        assert!(Instant::now() < end, "it did not end within three minutes: {what:.90}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_investigator_needs_of_bounded_functions_is_there() {
    let (engine, _dir) = engine();
    let sql = "SELECT concat(repeat('ab', 2), lpad('7', 3, '0'), rpad('7', 2, '.'), replace('a-b', '-', '+'), \
               array_to_string([1, 2], '/'), regexp_replace('aXb', '[A-Z]', '_'), overlay('abcd' placing 'XY' from 2), \
               'p' || 1 || 'q', concat_ws('-', 'x', NULL, 'y')) AS s, 'a' || NULL AS nothing, [1] || [2] AS list, [1] || 2 AS more";
    let answer = engine.sql(&Caller::local(None), sql, vec![], limits(60_000)).await.unwrap();
    let rows = custody_query::format::rows(&answer.batches).unwrap();
    let want = serde_json::json!({"s": "abab0077.a+b1/2a_baXYdp1qx-y", "list": [1, 2], "more": [1, 2]});
    let mut got = rows[0].clone();
    assert!(got.remove("nothing").is_none_or(|nothing| nothing.is_null()));
    assert_eq!(serde_json::Value::Object(got), want);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_holds_while_planning_and_the_place_is_kept_until_planning_ends() {
    let (engine, _dir) = engine();
    let many = (0..300)
        .map(|n| format!("SELECT count(*) FROM spans WHERE seq % 7 = {n}"))
        .collect::<Vec<_>>()
        .join(" UNION ALL ");
    let start = Instant::now();
    let error = engine.sql(&Caller::local(None), &many, vec![], limits(50)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout, "{error}");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    until(|| engine.stats().running() == 0, "planning").await;
}

/// What is above a join asks for its next batch at once, and a join has no end of them: each of these kept its thread
/// for ever, whoever had gone, and two of them all threads of a small machine.
#[tokio::test(flavor = "multi_thread")]
async fn joins_give_way_to_deadlines_and_to_other_queries() {
    let (engine, _dir) = engine();
    let million = million();
    let few = "(SELECT unnest([1, 2, 3, 4, 5, 6, 7, 8]) AS n)";
    for sql in [
        format!("SELECT a.n FROM {million} a, {million} b, {few} c ORDER BY a.n + b.n + c.n LIMIT 3"),
        format!("SELECT a.m, count(*) FROM {million} a CROSS JOIN {million} b GROUP BY a.m"),
        format!("SELECT sum(a.m + b.m) FROM {million} a JOIN {million} b ON a.n % 2 = b.n % 2"),
        format!("SELECT sum(a.m + b.m) FROM {million} a JOIN {million} b ON a.n + b.n > a.m"),
        format!(
            "SELECT count(DISTINCT a.m + b.m) FROM {million} a JOIN {few} c ON c.n > 0 JOIN {million} b ON b.n < a.n"
        ),
    ] {
        let run = || {
            let (engine, sql) = (engine.clone(), sql.clone());
            tokio::spawn(
                async move { engine.sql(&Caller::local(None), &sql, vec![], limits(400)).await.map(|a| a.rows) },
            )
        };
        // As many as there are threads, and one more.
        let all: Vec<_> = (0..=std::thread::available_parallelism().unwrap().get()).map(|_| run()).collect();
        for one in all {
            let error = one.await.unwrap().expect_err(&sql);
            assert!(matches!(error.kind, ErrorKind::Timeout | ErrorKind::Resources), "{sql:.150}: {error}");
        }
        until(|| engine.stats().running() == 0, &sql).await;
        engine.sql(&Caller::local(None), "SELECT 1", vec![], limits(60_000)).await.unwrap();
    }
}

/// What takes long over one batch of rows is not interrupted: it is not begun.
#[tokio::test(flavor = "multi_thread")]
async fn what_would_take_minutes_for_a_batch_is_refused() {
    let (engine, _dir) = engine();
    let million = million();
    let list = format!("(SELECT array_agg(concat(n, '-', m)) AS a FROM {million} WHERE m < 50)");
    let start = Instant::now();
    for (sql, kind) in [
        ("SELECT levenshtein(repeat('a', 100000), repeat('b', 100000))".to_owned(), ErrorKind::Resources),
        (
            format!("SELECT max(levenshtein(repeat('a', 900 + n), repeat('b', 900 + m))) FROM {million}"),
            ErrorKind::Resources,
        ),
        ("SELECT btrim(repeat('ab', 400000), concat(repeat('c', 400000), 'ab'))".to_owned(), ErrorKind::Resources),
        (
            format!("SELECT max(ltrim(repeat('b', 2000 + n), concat(repeat('a', 2000 + m), 'b'))) FROM {million}"),
            ErrorKind::Resources,
        ),
        (
            format!(
                "SELECT max(x) FROM (SELECT median(m) OVER (ORDER BY n ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) \
                 AS x FROM {million})"
            ),
            ErrorKind::Invalid,
        ),
        (
            format!("SELECT max(x) FROM (SELECT median(m) OVER (PARTITION BY n ORDER BY m) AS x FROM {million})"),
            ErrorKind::Invalid,
        ),
        (
            format!("SELECT count(*) FROM {million} WHERE regexp_like('a', concat(n, '-', m, '(a{{500}}){{500}}'))"),
            ErrorKind::Invalid,
        ),
        (
            format!("SELECT count(*) FROM {million} WHERE 'a' ~ concat(n, '-', m, '(a{{500}}){{500}}')"),
            ErrorKind::Invalid,
        ),
        (
            format!(
                "SELECT count(*) FROM (SELECT concat(n, '-', m) AS p FROM {million}) WHERE regexp_count('a', p) > 0"
            ),
            ErrorKind::Invalid,
        ),
        (format!("SELECT array_has_all(a, array_reverse(a)) FROM {list}"), ErrorKind::Resources),
        (format!("SELECT arrays_overlap(a, array_reverse(a)) FROM {list}"), ErrorKind::Resources),
        (format!("SELECT a @> array_reverse(a) AS x, array_reverse(a) <@ a AS y FROM {list}"), ErrorKind::Resources),
        (format!("SELECT \"array_agg\"(n) OVER () FROM {million}"), ErrorKind::Invalid),
        (format!("SELECT array_agg(n) OVER (ORDER BY m) FROM {million}"), ErrorKind::Invalid),
    ] {
        let error = engine.sql(&Caller::local(None), &sql, vec![], limits(300_000)).await.expect_err(&sql);
        assert_eq!(error.kind, kind, "{sql:.100}: {error}");
    }
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    let params = vec![datafusion::scalar::ScalarValue::from("^b.*")];
    let sql = "SELECT levenshtein('kitten', 'sitting') AS d, regexp_like('abc', $1) AS l, 'abc' ~ concat('b', '$') AS m, \
         array_has_all([1, 2], [2]) AS a, [1, 2] @> [3] AS b, [2] <@ [1, 2] AS c, array_has_any(['x'], ['y', 'x']) AS e";
    let answer = engine.sql(&Caller::local(None), sql, params, limits(60_000)).await.unwrap();
    let rows = custody_query::format::rows(&answer.batches).unwrap();
    assert_eq!(
        serde_json::Value::Object(rows[0].clone()),
        serde_json::json!({"d": 3, "l": false, "m": false, "a": true, "b": false, "c": true, "e": true})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_queries_are_refused_and_nobody_has_all_places() {
    let (engine, _dir) = engine();
    let engine = engine.with_limits(Concurrency { queries_max: 3, per_identity_max: 2 }, 1 << 30);
    let caller = |name: &str| Caller { identity: name.into(), ..Caller::local(None) };
    let run = |name: &str| {
        let (engine, caller) = (engine.clone(), caller(name));
        tokio::spawn(async move { engine.sql(&caller, &endless(), vec![], limits(60_000)).await.map(drop) })
    };
    let tasks = [run("a"), run("a"), run("b")];
    until(|| engine.stats().running() == 3, "to begin").await;
    let refused = async |name: &str| engine.sql(&caller(name), "SELECT 1", vec![], limits(1000)).await.unwrap_err();
    let (a, b) = (refused("a").await, refused("b").await);
    assert_eq!((a.kind, b.kind), (ErrorKind::Busy, ErrorKind::Busy), "{a} {b}");
    assert!(a.message.contains("a has 2 queries") && b.message.contains("there are 3 queries"), "{a} {b}");
    let served = Served::new(engine.clone(), QueryLimits::default(), Arc::new(Unobserved));
    let told = http(router(served).layer(axum::Extension(caller("b"))), "SELECT 1").await;
    assert!(told.starts_with("HTTP/1.1 429") && told.to_lowercase().contains("retry-after: 1"), "{told}");
    tasks.iter().for_each(|task| task.abort());
    until(|| engine.stats().running() == 0, "after all were given up").await;
    engine.sql(&caller("a"), "SELECT 1", vec![], limits(60_000)).await.unwrap();
}

/// Asks over HTTP, and reads the answer to its end.
async fn http(app: axum::Router, sql: &str) -> String {
    let (mut stream, serving) = asked(app, sql).await;
    let mut answer = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await.unwrap();
    serving.abort();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn asked(app: axum::Router, sql: &str) -> (tokio::net::TcpStream, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let body = serde_json::json!({"sql": sql, "timeout_ms": 60000}).to_string();
    let head = "POST /api/v1/sql HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json";
    let request = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    (stream, serving)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_when_whoever_asked_goes() {
    let (engine, _dir) = engine();
    let stats = engine.stats().clone();
    let served = Served::new(engine.clone(), QueryLimits::default(), Arc::new(Unobserved));
    let (stream, serving) = asked(everybody(router(served)), &endless()).await;
    until(|| stats.running() == 1, "to begin over HTTP").await;
    drop(stream);
    until(|| stats.running() == 0, "HTTP").await;
    serving.abort();

    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let service = flight::service(engine, Arc::new(Unobserved), &QueryLimits::default());
    let app = everybody(tonic::service::Routes::new(service).prepare().into_axum_router());
    let serving = tokio::spawn(axum::serve(listener, app).into_future());
    let channel = tonic::transport::Channel::from_shared(url).unwrap().connect().await.unwrap();
    let mut client = FlightSqlServiceClient::new(channel);
    // Before the first row, and amid the rows.
    for sql in [endless(), format!("SELECT a.n, b.m FROM {0} a CROSS JOIN {0} b", million())] {
        let info = client.execute(sql, None).await.unwrap();
        let ticket = info.endpoint[0].ticket.clone().unwrap();
        let mut own = client.clone();
        let asking = tokio::spawn(async move {
            let mut rows = own.do_get(ticket).await.unwrap();
            while rows.next().await.is_some_and(|batch| batch.is_ok()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        until(|| stats.running() == 1, "to begin over Flight").await;
        asking.abort();
        let _ = asking.await;
        until(|| stats.running() == 0, "Flight").await;
    }
    serving.abort();
}

/// Keeps what is said, or refuses it.
#[derive(Default)]
struct Kept {
    said: Mutex<Vec<Said>>,
    is_full: AtomicBool,
}

impl Recorder for Kept {
    fn append(&self, said: Vec<Said>) -> BoxFuture<'static, Result<Vec<u64>, Error>> {
        if self.is_full.load(Ordering::Relaxed) {
            return async { Err(Error::new(ErrorKind::Unavailable, "the disk is full")) }.boxed();
        }
        let seqs = (0..said.len() as u64).collect();
        self.said.lock().unwrap().extend(said);
        async { Ok(seqs) }.boxed()
    }
}

fn person() -> Caller {
    Caller { identity: "jwt:idp#emma".into(), actor: ActorType::Human, ..Caller::local(None) }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_is_recorded_before_it_is_answered_or_is_not_answered() {
    let (engine, _dir) = engine();
    let kept = Arc::new(Kept::default());
    let audit = Audit::new(kept.clone(), AuditMode::Identified)
        .with_redaction(Arc::new(|text: &str| text.replace("hunter2", "[redacted]")));
    let engine = engine.with_audit(audit);
    let last = || kept.said.lock().unwrap().last().cloned().unwrap();
    let text = |key: &str| last().record.text(&format!("custody.audit.{key}")).map(str::to_owned);

    let sql = "SELECT 'hunter2', $1 UNION SELECT 'b', 'c'";
    engine.sql(&person(), sql, vec!["p".into()], limits(60_000)).await.unwrap();
    assert_eq!((last().identity.as_ref(), last().record.event.as_str()), ("system:audit", "custody.audit.query"));
    assert_eq!(text("identity").as_deref(), Some("jwt:idp#emma"));
    assert_eq!(text("text").as_deref(), Some("SELECT '[redacted]', $1 UNION SELECT 'b', 'c'"));
    assert_eq!(text("text.digest"), Some(blake3::hash(sql.as_bytes()).to_hex().to_string()));
    assert_eq!((text("params").as_deref(), text("outcome").as_deref()), (Some("p"), Some("ok")));
    let rows = last().record.attributes.into_iter().find(|(key, _)| key == "custody.audit.rows").unwrap().1;
    assert_eq!(rows, 2u64.into());

    let long = format!("SELECT '{}'", "x".repeat(10_000));
    engine.sql(&person(), &long, vec![], limits(60_000)).await.unwrap();
    assert!(text("text").unwrap().len() < 5000);
    engine.sql(&person(), "SELECT nothing", vec![], limits(60_000)).await.unwrap_err();
    assert_eq!(text("outcome").as_deref(), Some("invalid_query"));

    let (endless, emma) = (endless(), person());
    let gone = tokio::time::timeout(Duration::from_millis(300), engine.sql(&emma, &endless, vec![], limits(60_000)));
    gone.await.unwrap_err();
    until(|| text("outcome").as_deref() == Some("cancelled"), "a record of what was broken off").await;

    let mut streamed = engine.stream(&person(), "SELECT 1 UNION ALL SELECT 2", vec![], limits(60_000)).await.unwrap();
    assert_eq!(text("outcome").as_deref(), Some("streamed"), "before the first row");
    while streamed.next().await.unwrap().is_some() {}
    drop(streamed);
    until(|| last().record.event == "custody.audit.query_end", "the end of the stream").await;
    assert_eq!(text("outcome").as_deref(), Some("ok"));

    let count = kept.said.lock().unwrap().len();
    engine.sql(&Caller::local(None), "SELECT 1", vec![], limits(60_000)).await.unwrap();
    assert_eq!(kept.said.lock().unwrap().len(), count, "nobody was authenticated, and only who was is watched");

    kept.is_full.store(true, Ordering::Relaxed);
    let error = engine.sql(&person(), "SELECT 1", vec![], limits(60_000)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("cannot be appended (the disk is full)"), "{error}");
    assert!(engine.stream(&person(), "SELECT 1", vec![], limits(60_000)).await.is_err());
    engine.sql(&Caller::local(None), "SELECT 1", vec![], limits(60_000)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_bounded_in_bytes() {
    let (engine, _dir) = engine();
    let limits = QueryLimits { answer_bytes_max: 1 << 20, rows_max: 1_000_000, ..limits(20_000) };
    let error = engine.sql(&Caller::local(None), &format!("SELECT * FROM {}", million()), vec![], limits).await;
    assert_eq!(error.unwrap_err().kind, ErrorKind::Resources);
}
