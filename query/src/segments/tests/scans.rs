//! What a query that groups rows shows is what it would show over texts as they are.

use super::*;
use crate::rows::Time;
use crate::{Answer, Caller};

/// Rows of it are looked up, pruned, joined, united, cut and counted.
const GROUPING: [&str; 22] = [
    "SELECT kind, count(*) AS n FROM events GROUP BY kind",
    "SELECT DISTINCT name FROM spans",
    "SELECT DISTINCT ON (grant_id) grant_id, tool FROM events ORDER BY grant_id, seq",
    "SELECT count(DISTINCT name), min(name), max(trace_id), count(*) FROM spans",
    "SELECT trace_id, service_name, max(name) AS name FROM spans GROUP BY 1, 2 HAVING max(name) LIKE 'secret-%-4'",
    "SELECT g.agent_id, count(*) AS n FROM events c JOIN events g ON g.grant_id = c.grant_id \
     WHERE c.kind = 'tool_call' AND g.kind IN ('grant_issued', 'grant_derived') GROUP BY g.agent_id",
    "SELECT s.name, count(e.tool) FROM spans s LEFT JOIN events e ON s.span_id = e.span_id AND e.kind = 'tool_call' \
     GROUP BY 1",
    "SELECT t, count(*) FROM (SELECT name AS t FROM spans UNION ALL SELECT name FROM metrics UNION ALL SELECT 'x') \
     GROUP BY t",
    "SELECT name FROM metrics UNION SELECT event_name FROM logs UNION SELECT grant_id FROM grants",
    "WITH c AS (SELECT grant_id, count(*) AS n FROM events GROUP BY 1) \
     SELECT a.grant_id, b.n FROM c a JOIN c b USING (grant_id)",
    "SELECT upper(coalesce(grant_id, 'none')) AS g, CASE WHEN kind = 'tool_call' THEN tool ELSE kind END AS k, \
     count(*) FROM events GROUP BY 1, 2",
    "SELECT concat(kind, '-', source) AS what, string_to_array(max(trace_id), '0') AS parts FROM events GROUP BY 1",
    "SELECT json_get_str(attributes, 'gen_ai.tool.name') AS tool, attributes->>'authz.grant.id' AS g, count(*) \
     FROM spans GROUP BY 1, 2",
    "SELECT kind, first_value(grant_id ORDER BY seq) AS first, last_value(tool ORDER BY seq) AS last FROM events \
     GROUP BY 1",
    "SELECT grant_id, n, rank() OVER (ORDER BY n DESC, grant_id) \
     FROM (SELECT grant_id, count(*) AS n FROM events GROUP BY 1)",
    "SELECT count(*) FROM events WHERE grant_id IN (SELECT grant_id FROM events WHERE kind = 'grant_issued')",
    "SELECT kind, count(*) FROM events WHERE seq < (SELECT avg(seq) FROM events WHERE grant_id = 'grant-1') \
     GROUP BY kind",
    "SELECT grant_id, count(*) FROM events WHERE trace_id = repeat_('0a') GROUP BY 1",
    "SELECT tool, arguments, count(*) FROM tool_calls GROUP BY 1, 2",
    "SELECT date_trunc('hour', event_time) AS hour, authority_covers(make_array('pa*'), tool) AS covered, count(*) \
     FROM events GROUP BY 1, 2",
    "SELECT CAST(name AS VARCHAR) AS name, submitter = 'peer:test' AS own, kind \
     FROM (SELECT name, submitter, max(kind) AS kind FROM spans GROUP BY 1, 2)",
    "SELECT e.grant_id, g.state, count(*) FROM events e JOIN grants g ON e.grant_id = g.grant_id GROUP BY 1, 2",
];

/// Queries that tell of types, or were given them when they were read: they are run as ever.
const BOUND: [&str; 4] = [
    "SELECT arrow_typeof(name) AS kind, count(*) FROM spans GROUP BY 1",
    "SELECT kind, array_agg(grant_id ORDER BY seq) AS all_of_it FROM events GROUP BY kind",
    "SELECT count(*) FROM spans s WHERE EXISTS (SELECT 1 FROM events e WHERE e.span_id = s.span_id AND e.tool = 'pay')",
    "SELECT name FROM spans",
];

async fn ask(engine: &Engine, query: &str) -> Answer {
    let answer = engine.sql(&Caller::local(None), &written(query), vec![], QueryLimits::default()).await;
    answer.unwrap_or_else(|e| panic!("{query}: {e}"))
}

fn told(answer: &Answer) -> Vec<String> {
    let mut rows: Vec<_> = crate::format::rows(&answer.batches).unwrap().iter().map(|row| format!("{row:?}")).collect();
    rows.sort();
    rows
}

/// Whether it is run over texts as views.
async fn is_viewed(engine: &Engine, query: &str) -> bool {
    let context = engine.session(&engine.projection().snapshot(), &QueryLimits::default()).await.unwrap();
    let state = context.state();
    let plan = state.create_logical_plan(&written(query)).await.unwrap();
    crate::text_views::of_plan(&state, &plan).is_some()
}

fn written(query: &str) -> String {
    query.replace("repeat_('0a')", &format!("'{}'", "0a".repeat(16)))
}

/// Some of it sealed, some in memory.
async fn engine(log: &Log) -> Engine {
    let reader = log.reader.clone();
    let projection = tokio::task::spawn_blocking(move || sealed(&reader, limits(33, 0))).await.unwrap();
    let snapshot = projection.snapshot();
    assert!(snapshot.segments.len() > 2 && snapshot.in_memory().map(|tail| tail.rows()).sum::<usize>() > 0);
    Engine::new(Arc::new(projection)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_as_views_change_neither_rows_nor_types() {
    let log = Log::new(40);
    let engine = engine(&log).await;
    for query in GROUPING {
        assert!(is_viewed(&engine, query).await, "{query}");
        // The same, and a function that keeps it as it is.
        let kept = format!("SELECT * FROM ({query}) WHERE arrow_typeof(1) = 'Int64'");
        assert!(!is_viewed(&engine, &kept).await, "{kept}");
        let (answer, as_ever) = (ask(&engine, query).await, ask(&engine, &kept).await);
        let types = |answer: &Answer| -> Vec<_> {
            answer.schema.fields().iter().map(|field| (field.name().clone(), field.data_type().clone())).collect()
        };
        assert_eq!(types(&answer), types(&as_ever), "{query}");
        assert!(answer.batches.iter().all(|batch| batch.schema().fields() == answer.schema.fields()), "{query}");
        assert!(answer.rows > 0, "{query}");
        assert_eq!(told(&answer), told(&as_ever), "{query}");
    }
    for query in BOUND {
        assert!(!is_viewed(&engine, query).await, "{query}");
        assert!(ask(&engine, query).await.rows > 0, "{query}");
    }
}

/// What hides rows looks at texts as they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_sees_some_rows_is_answered_as_ever() {
    let log = Log::new(40);
    let engine = engine(&log).await;
    let rows = crate::RowFilter { tenants: Some(["nobody".to_owned()].into()), workspaces: None };
    let caller = Caller { rows, ..Caller::local(None) };
    let query = "SELECT kind, count(*) AS n FROM events WHERE kind = 'tool_call' GROUP BY kind";
    let explained = engine.sql(&caller, &format!("EXPLAIN {query}"), vec![], QueryLimits::default()).await.unwrap();
    let explained = told(&explained).concat();
    assert!(explained.contains("VisibleExec") && !explained.contains("Utf8View"), "{explained}");
    assert_eq!(engine.sql(&caller, query, vec![], QueryLimits::default()).await.unwrap().rows, 0);
}

/// A session does not give the cache of footers that all share another bound.
#[tokio::test(flavor = "multi_thread")]
async fn the_bound_of_kept_footers_is_ours() {
    let log = Log::new(40);
    let engine = engine(&log).await;
    let bound = || engine.projection().snapshot().segments[0].files[0].place.footers().cache_limit();
    let before = bound();
    ask(&engine, GROUPING[0]).await;
    assert_eq!(bound(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_before_all_others_can_be_answered() {
    let log = Log::new(40);
    let engine = engine(&log).await;
    engine.warm().unwrap().await.unwrap();
    for text in crate::engine::FIRST {
        assert_eq!(ask(&engine, text).await.rows, 0, "{text}");
    }
}

/// Which side of a join is held in memory does not go by how it is written, but by how many rows there are of a kind.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_holds_the_kind_of_which_there_are_fewer() {
    let mut log = Log::new(6);
    (6..90).step_by(3).for_each(|n| append(&mut log.writer, n..n + 1));
    let reader = log.reader.clone();
    let projection = tokio::task::spawn_blocking(move || sealed(&reader, limits(30, 0))).await.unwrap();
    let snapshot = projection.snapshot();
    let counted = snapshot.segments.iter().filter_map(|segment| segment.file(Table::Events));
    let counted: u64 = counted.filter_map(|file| file.entry.kinds.get("tool_call")).sum();
    let engine = Engine::new(Arc::new(projection)).unwrap();
    let ask = async |query: &str| {
        let answer = engine.sql(&crate::Caller::local(None), query, vec![], QueryLimits::default()).await.unwrap();
        crate::format::rows(&answer.batches).unwrap()
    };
    let few = "(SELECT * FROM events WHERE kind = 'grant_issued') g";
    let many = "(SELECT * FROM events WHERE kind IN ('tool_call', 'model_call')) c";
    let mut answers = Vec::new();
    for (left, right) in [(few, many), (many, few)] {
        let query = format!("SELECT g.seq, c.seq FROM {left} JOIN {right} ON c.grant_id = g.grant_id ORDER BY 1, 2");
        let plan = format!("{:?}", ask(&format!("EXPLAIN {query}")).await);
        let plan = &plan[plan.find("HashJoinExec").expect("a hash join")..];
        let place = |kind: &str| plan.find(kind).unwrap_or(usize::MAX);
        assert!(place("grant_issued") < place("tool_call"), "{plan}");
        answers.push(ask(&query).await);
    }
    assert_eq!(answers[0], answers[1]);
    let to = snapshot.segments.last().unwrap().to;
    let calls = ask(&format!("SELECT count(*) AS n FROM events WHERE kind = 'tool_call' AND seq < {to}")).await;
    assert_eq!(calls[0]["n"], counted, "as the manifest says");
}

/// What had expired as of a seq is what had expired as of the time at which its record was taken.
#[test]
fn the_clock_as_of_a_seq_is_when_its_record_was_taken() {
    let log = Log::new(20);
    let snapshot = sealed(&log.reader, limits(10, 0)).snapshot();
    let taken = log.reader.commitments_at(5).unwrap().unwrap().ingest_time as i64;
    let clock = |as_of, now| snapshot.clock(as_of, Time(now)).unwrap().0;
    assert_eq!(clock(AsOf::Seq(5), i64::MAX), taken);
    assert_eq!(clock(AsOf::Time(Time(taken)), i64::MAX), taken);
    assert_eq!(clock(AsOf::Seq(5), taken - 1), taken - 1, "never later than now");
    assert_eq!(clock(AsOf::Now, 7), 7);
}
