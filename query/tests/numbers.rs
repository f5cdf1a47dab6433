//! Numbers that leave their type are an error, and never another number; all others are what DataFusion gives.

use custody_query::pieces::Format;
use custody_query::{Answer, Caller, Engine, Error, ErrorKind, Projection, QueryLimits, format};
use custody_store::{Options, open};
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;

/// An engine over a log with only its first records.
fn engine() -> (Engine, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (_, reader) = open(dir.path(), Options::default()).unwrap();
    (Engine::new(Projection::of(reader).unwrap()).unwrap(), dir)
}

async fn ask(engine: &Engine, sql: &str) -> Result<Answer, Error> {
    engine.sql(&Caller::local(None), sql, vec![], QueryLimits::default()).await
}

/// The largest number, one, and one less than none.
const V: &str = "(VALUES (9223372036854775807, 'a'), (1, 'a'), (NULL, 'b')) t(v, g)";

/// The same, of numbers without a sign.
const U: &str = "(SELECT CAST(c AS BIGINT UNSIGNED) AS u FROM (VALUES ('18446744073709551615'), ('1'), ('0')) t(c))";

/// Two times three hundred years apart, twice.
const T: &str = "(SELECT to_timestamp('2261-01-01') - to_timestamp('1990-01-01') AS d FROM (VALUES (1), (2)) t(n))";

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_leaves_its_type_is_an_error() {
    let (engine, _dir) = engine();
    let wrong = [
        format!("SELECT sum(v) FROM {V}"),
        format!("SELECT g, sum(v) AS s FROM {V} GROUP BY g"),
        format!("SELECT g, sum(v) FILTER (WHERE v > 0) AS s FROM {V} GROUP BY g"),
        format!("SELECT sum(DISTINCT v), count(DISTINCT g) FROM {V}"),
        format!("SELECT sum(v) OVER () FROM {V}"),
        format!("SELECT sum(v) OVER (ORDER BY v) FROM {V}"),
        format!("SELECT sum(v) OVER (ORDER BY v ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM {V}"),
        format!("SELECT sum(DISTINCT v) OVER (ORDER BY v ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM {V}"),
        format!("SELECT sum(v + 1) FROM {V}"),
        format!("SELECT sum(u) FROM {U}"),
        format!("SELECT sum(d) FROM {T}"),
        format!("SELECT v + 1 FROM {V}"),
        format!("SELECT 1 + v FROM {V}"),
        format!("SELECT v * 2 FROM {V}"),
        format!("SELECT -1 - v - 1 FROM {V}"),
        format!("SELECT -(-v - 1) FROM {V}"),
        format!("SELECT count(*) FROM {V} WHERE v + v > 5"),
        format!("SELECT count(*) FROM {V} GROUP BY v * v"),
        format!("SELECT a.v FROM {V} CROSS JOIN (VALUES (2)) a(v) WHERE t.v * a.v > 1"),
        format!("SELECT u - CAST(1 AS BIGINT UNSIGNED) FROM {U}"),
        format!("SELECT u + u FROM {U}"),
        format!("SELECT -u FROM {U}"),
        "SELECT 9223372036854775807 + 1".to_owned(),
        "SELECT 4611686018427387904 * 2".to_owned(),
        "SELECT -9223372036854775807 - 2".to_owned(),
        "SELECT CAST(2147483647 AS INT) + CAST(1 AS INT)".to_owned(),
        "SELECT (SELECT max(x) * 2 FROM (VALUES (9223372036854775807)) t(x))".to_owned(),
        "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n * 1000 FROM t WHERE n > 0) SELECT max(n) FROM t"
            .to_owned(),
        "SELECT 9223372036854775807 / 0".to_owned(),
        "SELECT abs(-9223372036854775807 - v) FROM (VALUES (1)) t(v)".to_owned(),
        "SELECT factorial(21)".to_owned(),
        "SELECT lcm(9223372036854775807, 9223372036854775806)".to_owned(),
        "SELECT to_timestamp_seconds(9223372036854775807) - INTERVAL '300000000 years'".to_owned(),
    ];
    let mut silent = Vec::new();
    for sql in wrong {
        match ask(&engine, &sql).await {
            Ok(answer) => silent.push((sql, format::rows(&answer.batches).unwrap())),
            Err(error) => assert_eq!(error.kind, ErrorKind::Invalid, "{sql}: {error}"),
        }
    }
    assert!(silent.is_empty(), "{silent:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_tells_the_numbers_and_the_mend() {
    let (engine, _dir) = engine();
    for (sql, told) in [
        (
            format!("SELECT v + 1 FROM {V}"),
            "9223372036854775807 + 1 is no Int64; CAST(x AS DECIMAL(38, 0)) or CAST(x AS DOUBLE) has room for it",
        ),
        (
            format!("SELECT a.u - b.u FROM {U} a CROSS JOIN {U} b WHERE a.u < b.u AND b.u = 1"),
            "0 - 1 is no UInt64; CAST(x AS BIGINT) has numbers below 0, CAST(x AS DECIMAL(38, 0)) larger ones",
        ),
        (
            format!("SELECT sum(v) FROM {V}"),
            "a sum is larger than Int64 has room for; CAST(x AS DECIMAL(38, 0)) or CAST(x AS DOUBLE) has room for it",
        ),
    ] {
        assert_eq!(ask(&engine, &sql).await.unwrap_err().message, told, "{sql}");
    }
    let sql = format!("SELECT CAST(sum(CAST(v AS DECIMAL(38, 0))) AS VARCHAR) AS s FROM {V}");
    let answer = ask(&engine, &sql).await.unwrap();
    assert_eq!(format::rows(&answer.batches).unwrap()[0]["s"], "9223372036854775808", "the mend is one");
}

/// What leaves its type on the way and comes back does not depend on the order, nor on the threads.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_sum_itself_needs_room() {
    let (engine, _dir) = engine();
    for values in ["(9223372036854775807), (1), (-1)", "(1), (-1), (9223372036854775807)"] {
        for sql in ["sum(v) AS s", "sum(v) FILTER (WHERE v <> 5) AS s"] {
            let sql = format!("SELECT {sql} FROM (VALUES {values}) t(v)");
            let answer = ask(&engine, &sql).await.unwrap();
            assert_eq!(format::rows(&answer.batches).unwrap()[0]["s"], 9_223_372_036_854_775_807_i64, "{sql}");
        }
    }
    let sql = format!("SELECT avg(d) = max(d) AS same FROM {T}");
    let answer = ask(&engine, &sql).await.unwrap();
    assert_eq!(format::rows(&answer.batches).unwrap()[0]["same"], true, "of durations, too");
}

/// The same columns, types and rows as without any of this.
#[tokio::test(flavor = "multi_thread")]
async fn all_else_is_as_datafusion_has_it() {
    let (engine, _dir) = engine();
    let numbers = (0..3000).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    let x = format!(
        "SELECT CASE WHEN n % 11 = 0 THEN NULL ELSE n * 7919777 % 1000003 - 500000 END AS v, n, \
         concat('g', n % 37) AS g FROM (SELECT unnest([{numbers}]) AS n)"
    );
    let plain = SessionContext::new();
    for sql in [
        "SELECT v + 1, v - n, v * n, -v, v + n * 2 - -n, (v + n) * 2, v / 3, v % 7, v + 0.5 FROM x ORDER BY n",
        "SELECT sum(v), sum(v + n), sum(v * 1.5), avg(v), count(v) FROM x",
        "SELECT sum(CAST(v AS DECIMAL(20, 3))), sum(CAST(n AS DECIMAL(5, 1))) FROM x",
        "SELECT g, sum(v), sum(n) FILTER (WHERE v > 0), sum(v) FILTER (WHERE v > 100000000) FROM x GROUP BY g ORDER BY g",
        "SELECT g, sum(DISTINCT v), sum(DISTINCT n % 10), count(DISTINCT v) FROM x GROUP BY g ORDER BY g",
        "SELECT n, sum(v) OVER (ORDER BY n), sum(v) OVER (PARTITION BY g ORDER BY n ROWS BETWEEN 3 PRECEDING AND 2 FOLLOWING), \
         sum(v) OVER (PARTITION BY g), sum(DISTINCT v) OVER (ORDER BY n ROWS BETWEEN 3 PRECEDING AND CURRENT ROW), \
         sum(v) OVER (ORDER BY n ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) FROM x ORDER BY n",
        "SELECT sum(v) FROM x WHERE v > 1000000000 HAVING true",
        "SELECT v + n AS s, count(*) FROM x GROUP BY v + n HAVING sum(v) + 1 > 5 ORDER BY s LIMIT 5 + 5",
        "SELECT arrow_typeof(v + 1), arrow_typeof(sum(v)), arrow_typeof(-v) FROM x GROUP BY v ORDER BY v LIMIT 1",
        "SELECT a.n FROM x a JOIN x b ON a.n + 1 = b.n * 2 ORDER BY a.n",
        "SELECT CASE WHEN n > 0 THEN v * n ELSE 0 END FROM x ORDER BY n",
        "SELECT avg(to_timestamp_seconds(n) - to_timestamp_seconds(v)), sum(to_timestamp_seconds(n) - to_timestamp_seconds(7)) FROM x",
    ] {
        let sql = format!("WITH x AS ({x}) {sql}");
        let own = ask(&engine, &sql).await.unwrap_or_else(|e| panic!("{}: {e}", &sql[sql.len() - 120..]));
        let frame = plain.sql(&sql).await.unwrap();
        let names = |schema: &datafusion::arrow::datatypes::Schema| {
            schema.fields().iter().map(|f| (f.name().clone(), f.data_type().clone())).collect::<Vec<_>>()
        };
        let tail = &sql[sql.len() - 120..];
        assert_eq!(names(&own.schema), names(frame.schema().inner()), "{tail}");
        let theirs = frame.collect().await.unwrap();
        assert_eq!(format::rows(&own.batches).unwrap(), format::rows(&theirs).unwrap(), "{tail}");
        assert!(own.rows > 0, "{tail}");
    }
}

/// What views and saved queries reckon with is what senders say: no record makes them fail.
#[tokio::test(flavor = "multi_thread")]
async fn no_time_that_a_sender_claims_breaks_a_view() {
    let (engine, _dir) = engine();
    let claims = "(VALUES (-9223372036854775808, 9223372036854775807), (1, 3), (5, NULL)) t(a, b)";
    // As tool_calls has it.
    let sql = format!(
        "SELECT CASE WHEN CAST(event_time AS BIGINT) >= 0 AND CAST(end_time AS BIGINT) >= 0 \
         THEN CAST(end_time AS BIGINT) - CAST(event_time AS BIGINT) END AS duration_ns FROM \
         (SELECT to_timestamp_nanos(a) AS event_time, to_timestamp_nanos(b) AS end_time FROM {claims})"
    );
    let own = include_str!("../src/tool_calls.sql").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(own.contains(&sql[7..sql.find(" FROM ").unwrap()]), "{own}");
    let rows = format::rows(&ask(&engine, &sql).await.unwrap().batches).unwrap();
    let told: Vec<_> = rows.iter().map(|row| row.get("duration_ns").and_then(|ns| ns.as_i64())).collect();
    assert_eq!(told, [None, Some(2), None]);
}

/// Keys of JSON and places in the past can be parameters, whether their values are known yet or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_can_be_a_key_of_json_and_a_place_in_the_past() {
    let (engine, _dir) = engine();
    let sql = "SELECT attributes->>$1 AS a, json_get_str(attributes, $1) AS b FROM events_as_of($2)";
    let (columns, parameters) =
        engine.prepare(&Caller::local(None), sql, QueryLimits::default()).await.expect("it is prepared");
    assert_eq!((columns.fields().len(), parameters.fields().len()), (2, 2));
    let values = vec![ScalarValue::from("k"), ScalarValue::from(0_i64)];
    engine.sql(&Caller::local(None), sql, values, QueryLimits::default()).await.expect("it answers");
    let found = "SELECT ('{\"k\": \"v\"}')->>$1 AS a, json_get_int('[5, 7]', $2) AS b";
    let values = vec![ScalarValue::from("k"), ScalarValue::from(1_i64)];
    let found = engine.sql(&Caller::local(None), found, values, QueryLimits::default()).await.unwrap();
    let rows = format::rows(&found.batches).unwrap();
    assert_eq!(serde_json::Value::Object(rows[0].clone()), serde_json::json!({"a": "v", "b": 7}));
}

/// Nothing among the values is the text of an error.
#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_no_calendar_has_is_an_error_and_no_value() {
    let (engine, _dir) = engine();
    for time in ["from_unixtime(9223372036854775807)", "to_timestamp_millis(-9223372036854775807)"] {
        let answer = ask(&engine, &format!("SELECT {time} AS t")).await.unwrap();
        for format in [Format::Json, Format::Ndjson, Format::Csv] {
            let error = format::bytes(&answer, format).unwrap_err();
            assert!(error.kind == ErrorKind::Invalid && error.message.contains("column t"), "{error}");
        }
        format::bytes(&answer, Format::Arrow).expect("as a number it can be told");
    }
    for (time, text) in [
        ("from_unixtime(8210266876799)", "+262142-12-31T23:59:59"),
        ("from_unixtime(-8334601228800)", "-262143-01-01T00:00:00"),
    ] {
        let answer = ask(&engine, &format!("SELECT {time} AS t")).await.unwrap();
        let json = String::from_utf8(format::bytes(&answer, Format::Json).unwrap()).unwrap();
        assert!(json.contains(text), "{json}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_that_is_too_large_is_the_questions_fault() {
    let (engine, _dir) = engine();
    let pattern = "'((((a{1,100}){1,100}){1,100}){1,100})'";
    for sql in [
        format!("SELECT 'a' ~ {pattern}"),
        format!("SELECT regexp_like('a', {pattern})"),
        format!("SELECT count(*) FROM spans WHERE name ~ {pattern}"),
        format!("SELECT count(*) FROM ledger WHERE regexp_like(record_hash, {pattern})"),
        format!("SELECT count(*) FROM ledger WHERE regexp_count(record_hash, {pattern}) > 0"),
        format!(
            "SELECT count(*) FROM ledger WHERE record_hash NOT IN (SELECT record_hash FROM ledger WHERE record_hash ~ {pattern})"
        ),
    ] {
        match ask(&engine, &sql).await {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind, ErrorKind::Invalid, "{sql}: {error}"),
        }
    }
}
