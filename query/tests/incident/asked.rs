//! What a person writes first, in the words of other databases and with ids as other tools show them: it is answered,
//! or refused with what to write instead, and never answered as another question.

use custody_query::{Answer, Caller, Error, ErrorKind, QueryLimits, format};
use serde_json::{Value, json};

use super::{Case, TRACE};

async fn asked(case: &Case, sql: &str) -> Result<Answer, Error> {
    case.visible().await;
    case.engine.sql(&Caller::local(None), sql, vec![], QueryLimits::default()).await
}

async fn rows(case: &Case, sql: &str) -> Vec<Value> {
    let answer = asked(case, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    format::rows(&answer.batches).unwrap().into_iter().map(Value::Object).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_found_in_any_spelling() {
    let case = Case::new();
    let count = async |sql: String| rows(&case, &sql).await[0]["n"].as_u64().unwrap();
    let spans = count(format!("SELECT count(*) AS n FROM spans WHERE trace_id = '{TRACE}'")).await;
    let uuid = format!("{}-{}-{}-{}-{}", &TRACE[..8], &TRACE[8..12], &TRACE[12..16], &TRACE[16..20], &TRACE[20..]);
    for id in [TRACE.to_uppercase(), format!("0x{TRACE}"), uuid] {
        for (sql, want) in [
            (format!("SELECT count(*) AS n FROM spans WHERE trace_id = '{id}'"), spans),
            (format!("SELECT count(*) AS n FROM spans WHERE '{id}' = trace_id AND seq >= 0"), spans),
            (format!("SELECT count(*) AS n FROM spans AS s WHERE s.trace_id IN ('none', '{id}')"), spans),
            (format!("SELECT count(*) AS n FROM spans WHERE trace_id <> '{id}'"), 0),
            (format!("SELECT count(*) AS n FROM spans WHERE trace_id NOT IN ('{id}')"), 0),
            (
                format!(
                    "SELECT count(*) AS n FROM spans WHERE seq IN (SELECT seq FROM events WHERE trace_id = '{id}')"
                ),
                8,
            ),
            (format!("SELECT max(CASE WHEN trace_id = '{id}' THEN 7 END) AS n FROM spans"), 7),
        ] {
            assert_eq!(count(sql.clone()).await, want, "{sql}");
        }
        let steps = rows(&case, &format!("SELECT * FROM replay('{id}')")).await.len();
        assert_eq!(steps, rows(&case, &format!("SELECT * FROM replay('{TRACE}')")).await.len(), "{id}");
        assert!(steps > 8);
    }
    // What is written is still looked for: a column may have the name of another.
    let own = format!(
        "SELECT count(*) AS n FROM (SELECT upper(trace_id) AS trace_id FROM spans) WHERE trace_id = '{}'",
        TRACE.to_uppercase()
    );
    assert_eq!(count(own).await, spans);
    let name = format!("SELECT trace_id = '0x{TRACE}' AS is_it FROM spans LIMIT 1");
    assert_eq!(rows(&case, &name).await, [json!({"is_it": true})]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_has_a_form_in_every_format() {
    let case = Case::new();
    let sql = "SELECT attributes -> 'gen_ai.tool.name' AS tool, json_get(attributes, 'none') AS nothing, \
               attributes ->> 'gen_ai.tool.name' AS text FROM spans WHERE name = 'execute_tool delete_user'";
    let want = json!({"tool": "\"delete_user\"", "nothing": null, "text": "delete_user"});
    assert_eq!(rows(&case, sql).await, [want]);
    let joined = "SELECT * FROM spans s JOIN events e ON e.seq = s.seq ORDER BY s.seq LIMIT 1";
    let row = &rows(&case, joined).await[0];
    assert!(row["seq"] == row["seq_2"] && row["span_id"] == row["span_id_2"], "no column hides another: {row}");
    for sql in [sql, joined] {
        let answer = asked(&case, sql).await.unwrap();
        for kind in ["json", "ndjson", "csv", "arrow", "parquet"] {
            let kind = serde_json::from_value(json!(kind)).unwrap();
            format::bytes(&answer, kind).unwrap_or_else(|error| panic!("{kind:?} {sql}: {error}"));
        }
    }
    let cited = rows(&case, "SELECT check_id FROM violations WHERE array_has(evidence, seq) LIMIT 1").await;
    assert_eq!(cited.len(), 1);
    for sql in [
        "SELECT * FROM violations WHERE array_has(evidence, 12)",
        "SELECT array_position(evidence, 12), array_has_any(evidence, [1, 12]) FROM violations",
    ] {
        asked(&case, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    // Joins within a recursion, which is run again and again.
    let up = "WITH RECURSIVE up AS (SELECT grant_id, parent_grant_id, 0 AS d FROM grants WHERE grant_id = 'g2' UNION ALL \
              SELECT g.grant_id, g.parent_grant_id, d + 1 FROM grants g JOIN up ON g.grant_id = up.parent_grant_id) \
              SELECT grant_id, d FROM up ORDER BY d";
    let chain = [json!({"grant_id": "g2", "d": 0}), json!({"grant_id": "g1", "d": 1})];
    assert_eq!(rows(&case, up).await, chain);
    assert_eq!(
        rows(&case, "SELECT array_has([1, 2], 2) AS a, array_has(['x'], 'y') AS b").await,
        [json!({"a": true, "b": false})]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn describe_tells_what_columns_hold() {
    let case = Case::new();
    let told = rows(&case, "DESCRIBE public.Events").await;
    let kind = told.iter().find(|row| row["column_name"] == "seq").unwrap();
    assert_eq!(kind["description"], "Place of the record in the log.");
    assert!(rows(&case, "DESCRIBE delegation_chain").await.iter().any(|row| row["column_name"] == "widened_by"));
    assert_eq!(rows(&case, "DESCRIBE information_schema.tables").await[0]["column_name"], "table_catalog");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_writes_is_refused_as_writing_however_it_is_written() {
    let case = Case::new();
    for sql in [
        "INSERT INTO spans VALUES (1)",
        "-- innocent\nDROP TABLE spans",
        "COPY spans TO '/tmp/x'",
        "EXPLAIN INSERT INTO spans VALUES (1)",
        "SELECT 1 INTO x",
        "BEGIN",
        "COMMIT",
        "USE other",
        "DELETE FROM nowhere",
        "UPDATE spans SET x = 1",
        "PREPARE p AS SELECT 1",
        "TRUNCATE spans",
        "SET x = 1",
        "RESET x",
    ] {
        let error = asked(&case, sql).await.expect_err(sql);
        assert_eq!(error.kind, ErrorKind::ReadOnly, "{sql}: {error}");
        assert!(!error.message.starts_with("--") && !error.message.starts_with("SELECT is"), "{sql}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_what_to_write_instead() {
    let case = Case::new();
    for (sql, instead) in [
        ("SELECT count(*) FROM spans TABLESAMPLE (10)", "use LIMIT"),
        ("SELECT seq FROM spans WHERE name SIMILAR TO '%send%'", "use LIKE"),
        ("SELECT * FROM delegation_chain('g2') AS OF 3", "delegation_chain('<id>', 120)"),
        ("SELECT array_agg(name) OVER (ORDER BY seq) FROM spans", "use GROUP BY"),
        ("SELECT name, count(*) FROM spans GROUP BY name WITH ROLLUP", "GROUP BY ROLLUP (a, b)"),
        ("SELECT * FROM replay('g2', 1763629380)", "seq 1763629380 is none of them yet"),
        ("SELECT * FROM spans_as_of(4000)", "seq 4000 is none of them yet"),
        ("SELECT * FROM grants_as_of('5000')", "a time is written"),
        ("SELECT replay('g2')", "SELECT * FROM replay('<id>')"),
        ("SELECT * FROM payload(7)", "SELECT payload(77)"),
        ("SELECT * FROM read_csv('/etc/passwd')", "custody_tables"),
        ("SELECT string_agg(name, ',') FROM spans", "array_to_string(array_agg(x), ', ')"),
        ("SELECT seq FROM spans WHERE start_time > 'yesterday'", "'2026-11-20T09:00:00Z'"),
        ("SELECT seq FROM spans WHERE start_time > 1763629380", "to_timestamp_seconds"),
        ("SELECT seq FROM spans WHERE duration_ns > INTERVAL '1 second'", "1000000000 is a second"),
        ("SELECT * FROM pg_catalog.pg_tables", "no other schema than public"),
        ("SELECT \"Name\" FROM spans", "Names in double quotes are looked for as they are written"),
        ("SELECT 'open", "Unterminated string literal"),
    ] {
        let error = asked(&case, sql).await.expect_err(sql);
        assert_eq!(error.kind, ErrorKind::Invalid, "{sql}: {error}");
        assert!(error.message.contains(instead), "{sql}: {error}");
        for noise in ["Optimizer rule", "caused by", "Arrow error", "enable_ident_normalization", "TokenizerError"] {
            assert!(!error.message.contains(noise), "{sql}: {error}");
        }
    }
}

/// What the order is made of is memory of the query: a replay of more steps than that is refused before it is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_has_no_more_memory_than_its_query() {
    let case = Case::new();
    case.visible().await;
    let asked = async |id: &str, memory_bytes_max: usize| {
        let limits = QueryLimits { memory_bytes_max, ..QueryLimits::default() };
        case.engine.sql(&Caller::local(None), &format!("SELECT * FROM replay('{id}')"), vec![], limits).await
    };
    for id in [TRACE, "g1"] {
        let error = asked(id, 200).await.expect_err(id);
        assert_eq!(error.kind, ErrorKind::Resources, "{error}");
        assert!(error.message.contains("ask for a trace") && error.message.contains("--query-memory-max"), "{error}");
        assert!(asked(id, 1 << 20).await.is_ok());
    }
}
