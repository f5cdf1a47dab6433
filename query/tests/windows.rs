//! What windows may hold is bounded, and what they give is what DataFusion gives.

use custody_query::{Answer, Caller, Engine, Error, ErrorKind, Projection, QueryLimits, format};
use custody_store::{Options, open};
use datafusion::prelude::SessionContext;

/// An engine over a log with only its first records.
fn engine() -> (Engine, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (_, reader) = open(dir.path(), Options::default()).unwrap();
    (Engine::new(Projection::of(reader).unwrap()).unwrap(), dir)
}

async fn ask(engine: &Engine, sql: &str, memory_mib: usize) -> Result<Answer, Error> {
    // What is slow on a slow machine is not refused here.
    let timeout = std::time::Duration::from_secs(600);
    let limits =
        QueryLimits { timeout, memory_bytes_max: memory_mib << 20, rows_max: 1_000_000, ..QueryLimits::default() };
    engine.sql(&Caller::local(None), sql, vec![], limits).await
}

/// Numbers from nought, with a text and a group of each.
fn numbered(rows: usize) -> String {
    let some = (0..rows.min(5000)).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    let times = (0..rows.div_ceil(5000)).map(|n| (n * 5000).to_string()).collect::<Vec<_>>().join(", ");
    format!(
        "(SELECT b + a AS n, (b + a) % 97 AS g, concat('text ', (b + a) * 7919 % 1009) AS s FROM \
         (SELECT unnest([{some}]) AS a) CROSS JOIN (SELECT unnest([{times}]) AS b))"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_give_what_datafusion_gives() {
    let (engine, _dir) = engine();
    let plain = SessionContext::new();
    let rows = numbered(20_000);
    for over in [
        "max(s) OVER ()",
        "min(s) OVER (PARTITION BY g)",
        "first_value(s) OVER (PARTITION BY g ORDER BY n)",
        "last_value(s) OVER (PARTITION BY g ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)",
        "nth_value(s, 3) OVER (ORDER BY n ROWS BETWEEN 5 PRECEDING AND 4000 FOLLOWING)",
        "lag(s) OVER (ORDER BY n)",
        "lag(s, 10000) OVER (ORDER BY n)",
        "lead(s, 9999, 'none') OVER (PARTITION BY n % 2 ORDER BY n)",
        "lag(s, -3) OVER (PARTITION BY g ORDER BY n)",
        "first_value([s]) OVER (PARTITION BY g ORDER BY n)",
        "median(n) OVER (PARTITION BY g)",
        "sum(n) OVER (PARTITION BY g ORDER BY n)",
        "row_number() OVER (ORDER BY s, n)",
    ] {
        let sql = format!("SELECT n, {over} AS x FROM {rows} ORDER BY n");
        let own = ask(&engine, &sql, 256).await.unwrap_or_else(|e| panic!("{over}: {e}"));
        let theirs = plain.sql(&sql).await.unwrap().collect().await.unwrap();
        assert_eq!(own.rows, 20_000, "{over}");
        assert!(format::rows(&own.batches).unwrap() == format::rows(&theirs).unwrap(), "{over}");
    }
}

/// What is told has the mend, and the mend is one.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_text_for_every_row_is_refused() {
    let (engine, _dir) = engine();
    let rows =
        format!("(SELECT n, g, repeat(s, CASE WHEN n = 7 THEN 20000 ELSE 1 END) AS s FROM {})", numbered(50_000));
    for over in ["max(s) OVER ()", "first_value(s) OVER (ORDER BY length(s) DESC)"] {
        let sql = format!("SELECT sum(length(x)) AS x FROM (SELECT {over} AS x FROM {rows})");
        let error = ask(&engine, &sql, 64).await.expect_err(over);
        assert_eq!(error.kind, ErrorKind::Resources, "{over}: {error}");
        assert!(error.message.contains("would give") && error.message.contains("left(x, 200)"), "{over}: {error}");
        let mended = sql.replace("(s)", "(left(s, 20))");
        ask(&engine, &mended, 64).await.unwrap_or_else(|e| panic!("{over}: {e}"));
    }
    // Only the partition that has it is given it.
    let sql = format!("SELECT sum(length(x)) AS x FROM (SELECT max(s) OVER (PARTITION BY n / 10) AS x FROM {rows})");
    let answer = ask(&engine, &sql, 64).await.unwrap();
    let given = format::rows(&answer.batches).unwrap()[0]["x"].as_i64().unwrap();
    assert!(given > 10 * 20_000 * 5, "{given}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_reaches_too_far_is_refused_however_it_is_written() {
    let (engine, _dir) = engine();
    for call in ["lag(n, 10001)", "lead(n, 100 * 1000)", "lag(n, -20000)", "lead(n, CAST('50000' AS BIGINT))"] {
        let sql = format!("SELECT {call} OVER (ORDER BY n) AS x FROM {}", numbered(10));
        let error = ask(&engine, &sql, 64).await.expect_err(call);
        assert_eq!(error.kind, ErrorKind::Resources, "{call}: {error}");
        assert!(error.message.contains("at most 10000 rows"), "{call}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_median_of_a_frame_that_moves_is_refused_and_of_a_partition_it_is_there() {
    let (engine, _dir) = engine();
    for (over, is_there) in [
        ("PARTITION BY g", true),
        ("PARTITION BY g ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING", true),
        ("ORDER BY n", false),
        ("PARTITION BY g ORDER BY n ROWS BETWEEN 3 PRECEDING AND CURRENT ROW", false),
        ("ORDER BY n ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING", false),
    ] {
        let sql = format!("SELECT median(n) OVER ({over}) AS x FROM {}", numbered(100));
        match ask(&engine, &sql, 64).await {
            Ok(answer) => assert!(is_there && answer.rows == 100, "{over}"),
            Err(error) => {
                assert!(!is_there && error.kind == ErrorKind::Invalid, "{over}: {error}");
                assert!(error.message.contains("a frame that moves is not there"), "{over}: {error}");
            }
        }
    }
}

/// Rows that wait are counted, and those that have gone are not.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_waits_is_counted() {
    let (engine, _dir) = engine();
    let wide = format!("(SELECT n, concat(repeat('x', 1000), s) AS s FROM {})", numbered(300_000));
    let over = |frame: &str| {
        format!("SELECT max(x) AS x FROM (SELECT count(s) OVER (ORDER BY n ROWS BETWEEN {frame}) AS x FROM {wide})")
    };
    // 300 MB pass by, sorted on the disk.
    ask(&engine, &over("UNBOUNDED PRECEDING AND CURRENT ROW"), 64).await.unwrap();
    ask(&engine, &over("3 PRECEDING AND 10 FOLLOWING"), 64).await.unwrap();
    let error = ask(&engine, &over("CURRENT ROW AND 250000 FOLLOWING"), 64).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Resources, "{error}");
}
