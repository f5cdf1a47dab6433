//! One small incident, told as OTLP, and what an investigator gets out of it.

#[path = "incident/asked.rs"]
mod asked;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use custody_proto::{Limits, Signal, json, scan};
use custody_query::{Answer, Caller, Engine, ErrorKind, Projection, QueryLimits, SegmentLimits};
use custody_store::{Clock, Encoding, Options, Prepared, open};
use datafusion::arrow::util::pretty::pretty_format_batches;
use serde_json::{Value, json};

/// 2026-11-20T09:00:00Z, in seconds.
const START: u64 = 1_795_165_200;

struct Ticks(AtomicU64);

impl Clock for Ticks {
    fn now(&self) -> u64 {
        (START + 1000) * 1_000_000_000 + self.0.fetch_add(1_000_000_000, Ordering::Relaxed)
    }
}

fn attributes(attributes: Value) -> Value {
    let value = |v: &Value| match v {
        Value::String(s) => json!({"stringValue": s}),
        Value::Number(n) => json!({"intValue": n}),
        Value::Array(a) => {
            let items: Vec<Value> = a
                .iter()
                .map(|i| if i.is_number() { json!({"intValue": i}) } else { json!({"stringValue": i}) })
                .collect();
            json!({"arrayValue": {"values": items}})
        }
        other => panic!("no such attribute: {other}"),
    };
    let all = attributes.as_object().unwrap().iter().map(|(k, v)| json!({"key": k, "value": value(v)}));
    all.collect()
}

const TRACE: &str = "5b8efff798038103d269b633813fc60c";

fn log(at: u64, name: &str, fields: Value) -> Value {
    json!({"timeUnixNano": ((START + at) * 1_000_000_000).to_string(), "eventName": name, "traceId": TRACE,
           "attributes": attributes(fields)})
}

fn span(at: u64, id: u64, parent: u64, name: &str, fields: Value) -> Value {
    let hex = |n: u64| if n == 0 { String::new() } else { format!("{n:016x}") };
    json!({"traceId": TRACE, "spanId": hex(id), "parentSpanId": hex(parent), "name": name,
           "startTimeUnixNano": ((START + at) * 1_000_000_000).to_string(),
           "endTimeUnixNano": ((START + at + 1) * 1_000_000_000).to_string(), "attributes": attributes(fields)})
}

fn tool(at: u64, id: u64, parent: u64, agent: &str, tool: &str, resource: &str, grant: &str) -> Value {
    let fields = json!({"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool, "authz.action": format!("bank.{tool}"),
        "authz.resource": resource, "authz.grant.id": grant, "gen_ai.agent.id": agent, "gen_ai.agent.name": agent,
        "gen_ai.tool.call.id": format!("call-{id}"), "gen_ai.tool.call.arguments": "{\"amount\": 30000}",
        "gen_ai.tool.call.result": "sent\u{1b}[2J"});
    span(at, id, parent, &format!("execute_tool {tool}"), fields)
}

/// A user asks for a bill to be paid; the bill hijacks the agent.
fn story() -> Vec<(Signal, Value)> {
    let issued = json!({"authz.grant.id": "g1", "authz.grant.issuer": "authority", "authz.grant.subject": "assistant",
        "authz.grant.initiator.type": "user", "authz.grant.initiator.id": "emma",
        "authz.grant.actions": ["bank.read_file", "bank.send_money"], "authz.grant.resources": ["file:bill.txt", "account:UK1*"],
        "authz.grant.expires_at": "2026-11-20T10:00:00Z", "authz.grant.max_depth": 1});
    let derived = json!({"authz.grant.id": "g2", "authz.grant.parent_id": "g1", "authz.grant.issuer": "assistant",
        "authz.grant.subject": "payments", "authz.grant.initiator.id": "emma",
        "authz.grant.actions": ["bank.send_money"], "authz.grant.resources": ["account:UK1*", "account:US133"],
        "authz.grant.expires_at": "2026-11-20T10:00:00Z", "authz.grant.max_depth": 0});
    let denied = json!({"authz.grant.subject": "payments", "authz.grant.actions": ["bank.send_money"],
        "authz.grant.resources": ["account:US133"], "authz.reasons": ["recipient is not in the bill"],
        "authz.policy.id": "payments", "authz.policy.version": "3"});
    let logs = vec![
        log(0, "authz.request", json!({"authz.initiator.type": "user", "authz.initiator.id": "emma"})),
        log(
            1,
            "authz.policy.evaluation",
            json!({"authz.decision": "allow", "authz.policy.id": "payments", "authz.policy.version": "3"}),
        ),
        log(2, "authz.grant.issued", issued),
        log(10, "authz.grant.derived", derived),
        log(19, "authz.grant.denied", denied),
        log(40, "authz.grant.revoked", json!({"authz.grant.id": "g1", "authz.revoked_by": "authority"})),
    ];
    let agent = |name: &str| json!({"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.id": name, "gen_ai.agent.name": name});
    let spans = vec![
        span(3, 1, 0, "invoke_agent assistant", agent("assistant")),
        tool(5, 2, 1, "assistant", "read_file", "file:bill.txt", "g1"),
        span(11, 3, 1, "invoke_agent payments", agent("payments")),
        tool(12, 4, 3, "payments", "send_money", "account:UK12", "g2"),
        tool(20, 5, 3, "payments", "send_money", "account:US133", "g2"),
        tool(50, 6, 99, "payments", "send_money", "account:UK12", "g2"),
        tool(51, 7, 1, "assistant", "delete_user", "file:bill.txt", "g1"),
        tool(52, 8, 1, "assistant", "read_file", "file:bill.txt", "g404"),
    ];
    vec![(Signal::Logs, logs.into()), (Signal::Traces, spans.into())]
}

/// The story in a log, and an engine over it.
struct Case {
    engine: Engine,
    writer: custody_store::Writer,
    _dir: tempfile::TempDir,
    _follower: custody_query::Follower,
}

impl Case {
    /// Waits until queries see all of it.
    async fn visible(&self) {
        let mut visible = self.engine.projection().visible();
        visible.wait_for(|size| *size >= self.writer.head_size()).await.unwrap();
    }

    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { clock: Arc::new(Ticks(AtomicU64::new(0))), ..Options::default() };
        let (writer, reader) = open(dir.path(), options).unwrap();
        let (projection, follower) = Projection::follow(reader, SegmentLimits::default()).unwrap();
        let mut case = Self { engine: Engine::new(projection).unwrap(), writer, _dir: dir, _follower: follower };
        for (signal, records) in story() {
            case.send(signal, records);
        }
        case
    }

    fn send(&mut self, signal: Signal, records: Value) {
        let request = match signal {
            Signal::Traces => {
                json!({"resourceSpans": [{"resource": {"attributes": attributes(json!({"service.name": "bank-agent"}))},
                "scopeSpans": [{"spans": records}]}]})
            }
            _ => {
                json!({"resourceLogs": [{"resource": {"attributes": attributes(json!({"service.name": "trust-authority"}))},
                "scopeLogs": [{"logRecords": records}]}]})
            }
        };
        let payload = json::transcode(signal, request.to_string().as_bytes()).unwrap();
        let found = scan(signal, &payload, &Limits::default()).unwrap();
        let request = Prepared::new(signal, Encoding::Json, payload.into(), found, "peer:127.0.0.1");
        self.writer.append(vec![request]).unwrap();
    }

    async fn ask(&self, sql: &str) -> Answer {
        self.visible().await;
        self.engine
            .sql(&Caller::local(None), sql, vec![], QueryLimits::default())
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    /// The rows as lines of cells, joined by spaces.
    async fn lines(&self, sql: &str) -> Vec<String> {
        let text = pretty_format_batches(&self.ask(sql).await.batches).unwrap().to_string();
        let rows = text.lines().filter(|l| l.starts_with('|')).skip(1);
        rows.map(|l| l.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>().join(" ")).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_check_finds_its_hit_and_passes_its_near_miss() {
    let case = Case::new();
    let found = case.lines("SELECT check_id, seq, evidence, tags[1] FROM violations ORDER BY check_id, seq").await;
    assert_eq!(
        found,
        [
            "denied_then_executed 11 [5, 11] OWASP ASI01",
            "outside_actions 13 [3, 13] OWASP ASI02",
            "revoked_grant 12 [4, 6, 12] OWASP ASI03",
            "revoked_grant 13 [3, 6, 13] OWASP ASI03",
            "uncascaded_revocation 12 [4, 6, 12] OWASP ASI03",
            "unknown_grant 14 [14] OWASP ASI03",
            "widened_delegation 4 [3, 4] OWASP ASI03",
        ]
    );
    let detail = case.lines("SELECT detail FROM violations WHERE check_id = 'widened_delegation'").await;
    assert_eq!(detail, ["grant g2 exceeds its parent g1 in resources"]);
    let detail = case.lines("SELECT detail FROM violations WHERE check_id = 'denied_then_executed'").await;
    assert!(detail[0].contains("send_money on account:US133 was executed although refused"), "{detail:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_outside_and_orphaned_authority_is_found() {
    let mut case = Case::new();
    let orphan = json!({"authz.grant.id": "g3", "authz.grant.parent_id": "gone", "authz.grant.subject": "x",
        "authz.grant.actions": ["bank.*"], "authz.grant.resources": ["account:A"], "authz.grant.expires_at": START + 100});
    case.send(Signal::Logs, vec![log(60, "authz.grant.derived", orphan)].into());
    let calls = vec![
        tool(61, 20, 1, "x", "pay", "account:A", "g3"),
        tool(62, 21, 1, "x", "pay", "account:B", "g3"),
        tool(101, 22, 1, "x", "pay", "account:A", "g3"),
    ];
    case.send(Signal::Traces, calls.into());
    let found = case.lines("SELECT check_id, seq FROM violations WHERE grant_id = 'g3' ORDER BY check_id").await;
    assert_eq!(found, ["broken_lineage 15", "expired_grant 18", "outside_resources 17"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chain_shows_where_authority_was_widened_and_what_was_known_when() {
    let case = Case::new();
    let chain = "SELECT depth, grant_id, subject, narrowed, widened_by, state, uses FROM delegation_chain('g2')";
    assert_eq!(case.lines(chain).await, ["0 g1 assistant  [] revoked 2", "1 g2 payments false [resources] revoked 3"]);
    let before = "SELECT grant_id, state, revoked_seq FROM delegation_chain('g2', 5)";
    // They end at 10:00, and record 5 was taken before: what the time is now plays no part.
    assert_eq!(case.lines(before).await, ["g1 active ", "g2 active "]);
    assert_eq!(case.lines("SELECT state FROM delegation_chain('nobody')").await, ["missing"]);
    let grants = case.lines("SELECT grant_id, state, depth, root_grant_id, uses FROM grants ORDER BY 1").await;
    assert_eq!(grants, ["g1 revoked 0 g1 2", "g2 revoked 1 g1 3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_replay_is_in_causal_order_and_marks_what_is_missing() {
    let case = Case::new();
    let steps = case.lines(&format!("SELECT step, depth, kind, seq FROM replay('{TRACE}') ORDER BY step")).await;
    let order = [
        "0 0 request 1",
        "1 0 policy_evaluation 2",
        "2 0 grant_issued 3",
        "3 0 agent_invocation 7",
        "4 1 tool_call 8",
        "5 1 grant_derived 4",
        "6 1 agent_invocation 9",
        "7 2 tool_call 10",
        "8 2 grant_denied 5",
        "9 2 tool_call 11",
    ];
    assert_eq!(steps[..10], order);
    let notes =
        case.lines(&format!("SELECT seq, note FROM replay('{TRACE}') WHERE note IS NOT NULL ORDER BY step")).await;
    assert!(notes.contains(&"4 exceeds its parent in resources".to_owned()), "{notes:?}");
    assert!(notes.iter().any(|n| n.starts_with("11 executed although refused at seq 5")), "{notes:?}");
    let missing =
        case.lines(&format!("SELECT missing FROM replay('{TRACE}') WHERE kind = 'missing' ORDER BY step")).await;
    assert_eq!(
        missing,
        ["grant g404 was never issued in this ledger", "parent span 0000000000000063 was never received"]
    );
    for id in ["g2", "payments"] {
        assert_eq!(case.lines(&format!("SELECT count(*) FROM replay('{id}')")).await, ["16"], "{id}");
    }
    let batches = case.ask(&format!("SELECT * FROM replay('{TRACE}')")).await.batches;
    let rows: Vec<_> = batches.iter().flat_map(custody_query::replay::StepRow::read).collect();
    let tree = custody_query::tree::render(&rows, false);
    assert!(tree.contains("└─ tool send_money by payments, grant g2  #11"), "{tree}");
    assert!(tree.contains("!! executed although refused at seq 5"), "{tree}");
    assert!(tree.contains("result sent\u{241b}[2J") && !tree.contains('\u{1b}'), "{tree}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_lives_from_raising_to_a_humans_disposition() {
    let mut case = Case::new();
    let raised = json!({"security.alert.id": "a1", "security_rule.name": "denied_then_executed",
        "security.alert.severity": "critical", "security.alert.evidence": [5, 11]});
    case.send(Signal::Logs, vec![log(80, "security.alert", raised)].into());
    assert_eq!(case.lines("SELECT state, evidence FROM alerts").await, ["open [5, 11]"]);
    assert_eq!(case.lines("SELECT alert_id FROM violations WHERE check_id = 'denied_then_executed'").await, ["a1"]);
    let dwell = "SELECT alerts, still_open, p50_seconds FROM dwell_time WHERE rule IS NULL AND measure = 'dwell'";
    assert_eq!(case.lines(dwell).await, ["1 1 "]);
    let actor =
        |kind: &str| json!({"security.alert.id": "a1", "security.actor.id": "ada", "security.actor.type": kind});
    case.send(Signal::Logs, vec![log(90, "security.alert.acknowledged", actor("automation"))].into());
    assert_eq!(case.lines("SELECT state FROM alerts").await, ["open"], "automation notices nothing");
    let mut closed = actor("human");
    closed["security.investigation.state"] = "closed".into();
    closed["security.investigation.disposition"] = "true_positive".into();
    let answers =
        vec![log(139, "security.alert.acknowledged", actor("human")), log(200, "security.investigation", closed)];
    case.send(Signal::Logs, answers.into());
    assert_eq!(
        case.lines("SELECT state, acknowledged_by, disposition FROM alerts").await,
        ["closed ada true_positive"]
    );
    assert_eq!(case.lines(dwell).await, ["1 0 120.0"], "from the refusal at 19 to the acknowledgement at 139");
    let coverage = "SELECT raised, acknowledged, closed, coverage FROM coverage WHERE rule IS NULL";
    assert_eq!(case.lines(coverage).await, ["1 1 1 1.0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_tables_and_the_ledger_commits_to_them() {
    let case = Case::new();
    assert_eq!(case.lines("SELECT count(*), min(seq), max(seq) FROM ledger").await, ["15 0 14"]);
    assert_eq!(case.lines("SELECT event_name FROM logs WHERE seq = 0").await, ["custody.log.genesis"]);
    let joined = "SELECT count(*) FROM spans s JOIN ledger l ON l.seq = s.seq AND l.record_hash = s.record_hash WHERE l.flags[1] = 'json'";
    assert_eq!(case.lines(joined).await, ["8"]);
    let call = "SELECT tool, resource, arguments, duration_ns, status FROM tool_calls WHERE seq = 11";
    assert_eq!(case.lines(call).await, ["send_money account:US133 {\"amount\": 30000} 1000000000 unset"]);
    assert_eq!(
        case.lines("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'").await,
        ["24"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_are_read_only_and_bounded_and_errors_say_where() {
    let case = Case::new();
    case.visible().await;
    let ask = async |sql: &str, limits: QueryLimits| case.engine.sql(&Caller::local(None), sql, vec![], limits).await;
    for sql in [
        "DROP TABLE spans",
        "INSERT INTO spans SELECT * FROM spans",
        "SET x = 1",
        "CREATE TABLE t AS SELECT 1",
        "COPY (SELECT 1) TO '/tmp/x.csv'",
        "EXPLAIN COPY (SELECT 1) TO '/tmp/x.csv'",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
    ] {
        let error = ask(sql, QueryLimits::default()).await.expect_err(sql);
        assert_eq!(error.kind, ErrorKind::ReadOnly, "{sql}: {error}");
    }
    let error = ask("SELECT nme FROM spans", QueryLimits::default()).await.unwrap_err();
    assert_eq!((error.kind, error.position), (ErrorKind::Invalid, Some((1, 8))), "{error}");
    assert!(error.message.contains("Did you mean 'spans.name'?"), "{error}");
    let error = ask("SELECT * FROM span", QueryLimits::default()).await.unwrap_err();
    assert_eq!(error.position, Some((1, 15)));
    assert!(error.message.contains("there is no table span; there are spans, logs"), "{error}");
    let error = ask("SELECT *\nFROM spans WHERE", QueryLimits::default()).await.unwrap_err();
    assert_eq!(error.position, Some((2, 17)), "{error}");
    let error = ask("SELEC 1", QueryLimits::default()).await.unwrap_err();
    assert!(error.position.is_some(), "{error}");
    for call in [
        "array_repeat(1, 9)",
        "list_repeat(1, 9)",
        "array_resize([1], 9)",
        "range(1, 9)",
        "generate_series(1, 9)",
        "string_agg('x', ',')",
    ] {
        let error = ask(&format!("SELECT {call}"), QueryLimits::default()).await.expect_err(call);
        assert!(error.message.contains("Invalid function"), "{call}: {error}");
    }
    assert!(ask("SELECT * FROM '/etc/passwd'", QueryLimits::default()).await.is_err());
    let few = QueryLimits { rows_max: 3, ..QueryLimits::default() };
    let answer = ask("SELECT * FROM events", few).await.unwrap();
    assert_eq!((answer.rows, answer.truncated), (3, true));
    let brief = QueryLimits { timeout: std::time::Duration::from_millis(1), ..QueryLimits::default() };
    let endless = "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t";
    assert_eq!(ask(endless, brief).await.unwrap_err().kind, ErrorKind::Timeout);
}
