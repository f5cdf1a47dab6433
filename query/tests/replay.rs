//! Replays of what is hard to tell: ids that cross, links, clocks that lie, evidence that is
//! late, lost, looped, or deeper than any stack.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use custody_proto::{Limits, Signal, json, scan};
use custody_query::grants::Grants;
use custody_query::replay::{StepRow, replay};
use custody_query::rows::Time;
use custody_query::{AsOf, Projection, SegmentLimits};
use custody_store::{Clock, Encoding, Options, Prepared, open};
use serde_json::{Value, json};

const START: u64 = 1_795_165_200;
const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

struct Ticks(AtomicU64);

impl Clock for Ticks {
    fn now(&self) -> u64 {
        (START + 1000) * 1_000_000_000 + self.0.fetch_add(1_000_000_000, Ordering::Relaxed)
    }
}

fn attributes(attributes: Value) -> Value {
    let value = |v: &Value| match v {
        Value::Array(a) => {
            let items: Vec<Value> = a.iter().map(|i| json!({"stringValue": i})).collect();
            json!({"arrayValue": {"values": items}})
        }
        Value::Number(n) => json!({"intValue": n}),
        text => json!({"stringValue": text}),
    };
    attributes.as_object().unwrap().iter().map(|(k, v)| json!({"key": k, "value": value(v)})).collect()
}

fn nanos(at: u64) -> String {
    ((START + at) * 1_000_000_000).to_string()
}

fn log(trace: &str, at: u64, name: &str, fields: Value) -> Value {
    json!({"timeUnixNano": nanos(at), "eventName": name, "traceId": trace, "attributes": attributes(fields)})
}

fn span(trace: &str, at: u64, id: u64, parent: u64, fields: Value) -> Value {
    let hex = |n: u64| if n == 0 { String::new() } else { format!("{n:016x}") };
    json!({"traceId": trace, "spanId": hex(id), "parentSpanId": hex(parent), "name": format!("span {id}"),
           "startTimeUnixNano": nanos(at), "endTimeUnixNano": nanos(at + 1), "attributes": attributes(fields)})
}

fn agent(trace: &str, at: u64, id: u64, parent: u64, name: &str) -> Value {
    let fields = json!({"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.id": name, "gen_ai.agent.name": name});
    span(trace, at, id, parent, fields)
}

fn tool(trace: &str, at: u64, id: u64, parent: u64, more: Value) -> Value {
    let mut fields = json!({"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": format!("tool-{id}"),
        "gen_ai.tool.call.id": format!("call-{id}"), "gen_ai.agent.id": "worker"});
    let fields_of = fields.as_object_mut().unwrap();
    fields_of.extend(more.as_object().unwrap().clone());
    fields_of.retain(|_, value| !value.is_null());
    span(trace, at, id, parent, fields)
}

fn grant(trace: &str, at: u64, id: &str, parent: Option<&str>) -> Value {
    let mut fields = json!({"authz.grant.id": id, "authz.grant.subject": "worker", "authz.grant.issuer": "authority",
        "authz.grant.actions": ["*"]});
    if let Some(parent) = parent {
        fields["authz.grant.parent_id"] = parent.into();
    }
    log(trace, at, if parent.is_some() { "authz.grant.derived" } else { "authz.grant.issued" }, fields)
}

struct Case {
    projection: Arc<Projection>,
    writer: custody_store::Writer,
    _dir: tempfile::TempDir,
    _follower: custody_query::Follower,
}

impl Case {
    /// With rows sealed in small segments, so that both ways of reading are taken.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { clock: Arc::new(Ticks(AtomicU64::new(0))), ..Options::default() };
        let (writer, reader) = open(dir.path(), options).unwrap();
        let limits = SegmentLimits { records_max: 100, merged_records_max: 0, ..SegmentLimits::default() };
        let (projection, follower) = Projection::follow(reader, limits).unwrap();
        Self { projection, writer, _dir: dir, _follower: follower }
    }

    fn spans(&mut self, records: Vec<Value>) -> u64 {
        let request = json!({"resourceSpans": [{"scopeSpans": [{"spans": records}]}]});
        self.send(Signal::Traces, request)
    }

    fn logs(&mut self, records: Vec<Value>) -> u64 {
        let request = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]});
        self.send(Signal::Logs, request)
    }

    /// The last seq.
    fn send(&mut self, signal: Signal, request: Value) -> u64 {
        let payload = json::transcode(signal, request.to_string().as_bytes()).unwrap();
        let found = scan(signal, &payload, &Limits { records_max: 1 << 20, ..Limits::default() }).unwrap();
        let request = Prepared::new(signal, Encoding::Json, payload.into(), found, "peer:127.0.0.1");
        self.writer.append(vec![request]).unwrap();
        self.writer.head_size() - 1
    }

    fn snapshot(&self) -> Arc<custody_query::Snapshot> {
        let mut visible = self.projection.visible();
        let size = self.writer.head_size();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(visible.wait_for(|seen| *seen >= size)).unwrap();
        self.projection.snapshot()
    }

    fn replay(&self, id: &str) -> Vec<StepRow> {
        self.replay_as_of(id, AsOf::Now)
    }

    fn replay_as_of(&self, id: &str, as_of: AsOf) -> Vec<StepRow> {
        let steps = replay(&self.snapshot(), id, as_of, Time(i64::MAX)).unwrap();
        for (i, step) in steps.iter().enumerate() {
            assert_eq!(step.step, i as u64);
            let parent = step.parent_step.map(|parent| &steps[parent as usize]);
            assert!(step.parent_step.is_none_or(|parent| parent < step.step));
            assert_eq!(step.depth, parent.map_or(0, |parent| parent.depth + 1), "{step:?}");
        }
        steps
    }
}

/// Kind and what it is about, of each step.
fn told(steps: &[StepRow]) -> Vec<String> {
    let what = |s: &StepRow| {
        let named = s.tool.as_ref().or(s.missing.as_ref()).or(s.grant_id.as_ref()).or(s.agent_name.as_ref());
        format!("{} {}", s.kind, named.cloned().unwrap_or_default())
    };
    steps.iter().map(what).collect()
}

fn note<'a>(steps: &'a [StepRow], tool: &str) -> &'a str {
    let step = steps.iter().find(|s| s.tool.as_deref() == Some(tool)).unwrap_or_else(|| panic!("no {tool}"));
    step.note.as_deref().unwrap_or_default()
}

#[test]
fn traces_with_one_span_id_do_not_cross() {
    let mut case = Case::new();
    case.spans(vec![agent(A, 1, 1, 0, "first"), tool(A, 2, 2, 1, json!({}))]);
    case.spans(vec![agent(B, 1, 1, 0, "second"), tool(B, 2, 3, 1, json!({})), tool(B, 3, 4, 2, json!({}))]);
    let steps = case.replay("worker");
    let parent = |tool: &str| {
        let step = steps.iter().find(|s| s.tool.as_deref() == Some(tool)).unwrap();
        step.parent_step.map(|parent| steps[parent as usize].agent_name.clone().unwrap())
    };
    assert_eq!(parent("tool-2").as_deref(), Some("first"));
    assert_eq!(parent("tool-3").as_deref(), Some("second"));
    // Span 2 is one of the other trace: here it was never received.
    assert_eq!(parent("tool-4"), None);
    assert!(told(&steps).contains(&"missing parent span 0000000000000002 was never received".into()));
}

#[test]
fn causes_come_first_whatever_the_clocks_say() {
    let mut case = Case::new();
    // The use, by its clock, is before the grant; the linking span before what it links to.
    let mut linking = tool(A, 3, 4, 1, json!({}));
    linking["links"] = json!([{"traceId": A, "spanId": format!("{:016x}", 3)}]);
    case.spans(vec![
        agent(A, 10, 1, 0, "main"),
        tool(A, 11, 2, 1, json!({"authz.grant.id": "g1"})),
        tool(A, 40, 3, 1, json!({})),
        linking,
    ]);
    case.logs(vec![{
        let mut given = grant(A, 30, "g1", None);
        given["spanId"] = format!("{:016x}", 1).into();
        given
    }]);
    let steps = case.replay(A);
    assert_eq!(
        told(&steps),
        ["agent_invocation main", "tool_call tool-3", "tool_call tool-4", "grant_issued g1", "tool_call tool-2"]
    );
    assert_eq!(note(&steps, "tool-2"), "its clock says that it was done before its authority was given");
    assert!(note(&steps, "tool-4").starts_with(
        "its clock says that it began before its parent; its clock says that it began before what it links to"
    ));
    assert!(steps.iter().filter(|s| s.is_last).count() == 2);
}

#[test]
fn what_is_missing_is_marked_and_late_evidence_mends_it() {
    let mut case = Case::new();
    let begun = case.spans(vec![tool(A, 2, 2, 1, json!({"authz.grant.id": "g2"}))]);
    let before = case.logs(vec![
        grant("", 1, "g2", Some("g1")),
        log(
            A,
            2,
            "authz.executor.decision",
            json!({"authz.decision": "allow", "gen_ai.tool.call.id": "call-9", "authz.grant.id": "g2"}),
        ),
    ]);
    let steps = case.replay(A);
    let missing: Vec<_> = steps.iter().filter_map(|s| s.missing.clone()).collect();
    assert_eq!(
        missing,
        [
            "parent grant g1 was never received",
            "the span of call call-9, which was allowed here, was never received",
            "parent span 0000000000000001 was never received",
        ]
    );
    // All of it comes late, the root grant in another trace.
    case.spans(vec![agent(A, 1, 1, 0, "main"), tool(A, 3, 9, 1, json!({}))]);
    case.logs(vec![grant(B, 0, "g1", None)]);
    let steps = case.replay(A);
    assert!(steps.iter().all(|s| s.missing.is_none()), "{:?}", told(&steps));
    assert!(told(&steps).iter().any(|told| told == "grant_issued g1"));
    // And what was known before is told as it was known.
    let as_of: Vec<_> = case.replay_as_of(A, AsOf::Seq(before)).iter().filter_map(|s| s.missing.clone()).collect();
    assert_eq!(as_of, missing);
    let first = case.replay_as_of(A, AsOf::Seq(begun));
    assert_eq!(told(&first).last().unwrap(), "tool_call tool-2");
    let taken = Time(((START + 1000) * 1_000_000_000) as i64);
    let by_time = case.replay_as_of(A, AsOf::Time(Time(taken.0 - 1)));
    assert!(by_time.is_empty(), "nothing was taken before: {:?}", told(&by_time));
}

#[test]
fn loops_give_an_answer() {
    let mut case = Case::new();
    case.spans(vec![tool(A, 1, 1, 3, json!({})), tool(A, 2, 2, 1, json!({})), tool(A, 3, 3, 2, json!({}))]);
    case.logs(vec![grant(A, 4, "x", Some("y")), grant(A, 5, "y", Some("x"))]);
    let steps = case.replay(A);
    assert_eq!(steps.iter().filter(|s| s.kind == "tool_call").count(), 3);
    assert!(note(&steps, "tool-1").contains("its parents are a loop"));
    let chain = Grants::near(&case.snapshot(), ["x"], AsOf::Now, Time(0)).unwrap().chain("x");
    assert!(chain[0].note.as_deref().unwrap().starts_with("cycle"));
    assert_eq!(case.replay("x").len(), 5);
}

#[test]
fn a_chain_of_ten_thousand_is_walked_both_ways() {
    let mut case = Case::new();
    let deep = 10_000;
    let id = |i: u64| format!("g{i}");
    case.logs(vec![grant(A, 0, "g0", None)]);
    // Children before their parents.
    let derived = |i| grant(B, i, &id(i), Some(&id(i - 1)));
    case.logs((1..deep).rev().map(derived).collect());
    case.spans(vec![tool(A, deep + 1, 1, 0, json!({"authz.grant.id": id(deep - 1)}))]);
    let snapshot = case.snapshot();
    let leaf = id(deep - 1);
    let grants = Grants::near(&snapshot, [leaf.as_str()], AsOf::Now, Time(0)).unwrap();
    let chain = grants.chain(&leaf);
    assert_eq!((chain.len() as u64, chain[0].grant_id.as_str()), (deep, "g0"));
    assert_eq!(grants.get(None, &leaf).map(|g| (g.uses, g.depth as u64)), Some((1, deep - 1)));
    // From the root down to the one use.
    let steps = case.replay("g0");
    assert_eq!(steps.iter().filter(|s| s.kind.starts_with("grant_")).count() as u64, deep);
    assert_eq!(told(&steps).last().unwrap(), "tool_call tool-1");
    // Spans as deep as that.
    case.spans((0..deep).map(|i| agent(B, i, i + 1, i, "deeper")).collect());
    let agents = case.replay(B).into_iter().filter(|s| s.kind == "agent_invocation");
    assert_eq!(agents.map(|s| s.depth).max(), Some(deep as u32 - 1));
}

#[test]
fn a_revocation_holds_from_when_it_says() {
    let mut case = Case::new();
    case.logs(vec![
        grant(A, 0, "g1", None),
        log(
            A,
            50,
            "authz.grant.revoked",
            json!({"authz.grant.id": "g1", "authz.effective_at": "2026-11-20T09:00:20Z"}),
        ),
    ]);
    let snapshot = case.snapshot();
    for grants in [
        Grants::near(&snapshot, ["g1"], AsOf::Now, Time(i64::MAX)).unwrap(),
        Grants::of(&snapshot, AsOf::Now, Time(i64::MAX)).unwrap(),
    ] {
        let row = grants.get(None, "g1").unwrap();
        assert_eq!(row.revoked_time, Some(Time(((START + 20) * 1_000_000_000) as i64)));
        assert_eq!(row.state, "revoked");
    }
}

#[test]
fn what_was_refused_is_known_again_under_another_call_or_by_name_alone() {
    let mut case = Case::new();
    let pay = |more: Value| {
        let mut fields = json!({"authz.action": "pay", "authz.resource": "account:1"});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fields
    };
    let last = case.logs(vec![
        log(A, 1, "authz.executor.decision", pay(json!({"authz.decision": "deny", "gen_ai.agent.id": "worker", "gen_ai.tool.call.id": "call-1"}))),
        log(A, 1, "authz.grant.denied", json!({"gen_ai.agent.name": "Clerk", "authz.grant.actions": ["sign"], "authz.grant.resources": ["paper:*"]})),
    ]);
    let by_name = json!({"gen_ai.agent.id": null, "gen_ai.agent.name": "Clerk", "authz.action": "sign", "authz.resource": "paper:7"});
    case.spans(vec![
        tool(A, 2, 2, 0, pay(json!({}))),
        tool(A, 3, 3, 0, pay(json!({"authz.resource": "account:2"}))),
        tool(A, 4, 4, 0, by_name),
        tool(A, 5, 5, 0, pay(json!({"gen_ai.agent.id": "another"}))),
    ]);
    let retried = format!("executed although refused as call call-1 at seq {}", last - 1);
    let steps = case.replay(A);
    assert_eq!(note(&steps, "tool-2"), retried);
    assert_eq!(note(&steps, "tool-3"), "");
    assert_eq!(note(&steps, "tool-4"), format!("executed although refused at seq {last}"));
    assert_eq!(note(&steps, "tool-5"), "");
    // What was granted after the refusal is refused no more.
    case.logs(vec![grant(A, 1, "late", None)]);
    case.spans(vec![tool(A, 6, 6, 0, pay(json!({})))]);
    assert_eq!(note(&case.replay(A), "tool-6"), retried, "given at the same time");
    case.logs(vec![grant(A, 2, "later", None)]);
    assert_eq!(note(&case.replay(A), "tool-6"), "");
}

#[test]
fn a_span_that_ran_and_then_ended_is_one_step() {
    let mut case = Case::new();
    let mut running = tool(A, 1, 1, 0, json!({}));
    running["endTimeUnixNano"] = "0".into();
    let first = case.spans(vec![running]);
    assert_eq!(note(&case.replay(A), "tool-1"), "no record says that it ended");
    case.spans(vec![tool(A, 1, 1, 0, json!({}))]);
    let steps = case.replay(A);
    assert_eq!((steps.len(), note(&steps, "tool-1")), (1, ""));
    assert_eq!(case.replay_as_of(A, AsOf::Seq(first)).len(), 1);
}

#[test]
fn conversations_agents_and_alerts_name_their_steps_with_and_without_traces() {
    let mut case = Case::new();
    case.spans(vec![agent(A, 1, 1, 0, "main"), tool(A, 2, 2, 1, json!({"gen_ai.conversation.id": "talk"}))]);
    let cited = case.writer.head_size() - 1;
    // A log without a trace, of the same conversation, and an alert that cites the call.
    case.logs(vec![
        log("", 3, "authz.output", json!({"gen_ai.conversation.id": "talk", "authz.output.destination": "mail"})),
        log(
            "",
            4,
            "security.alert",
            json!({"security.alert.id": "alarm", "security.alert.evidence": [cited.to_string()]}),
        ),
    ]);
    assert_eq!(told(&case.replay("talk")), ["agent_invocation main", "tool_call tool-2", "output "]);
    let alarm = told(&case.replay("alarm"));
    assert_eq!(alarm.len(), 3, "{alarm:?}");
    assert!(alarm.contains(&"tool_call tool-2".into()));
    assert_eq!(case.replay("main").len(), 2);
    assert!(case.replay("nobody").is_empty());
    assert_eq!(case.replay(&A.to_uppercase()).len(), 2);
}

/// Who knows the id of a grant, a conversation or an alert hides its replay behind no trace of that id.
#[test]
fn an_id_that_names_several_things_is_all_of_them() {
    const ID: &str = "6f1c2a52-0d1e-4a57-9d3e-0b6f6ad2c111";
    let trace = ID.replace('-', "");
    let mut case = Case::new();
    case.logs(vec![grant(A, 0, ID, None)]);
    case.spans(vec![tool(A, 1, 1, 0, json!({"authz.grant.id": ID})), tool(B, 2, 2, 0, json!({"authz.grant.id": ID}))]);
    assert_eq!(case.replay(ID).len(), 3);
    case.spans(vec![span(&trace, 3, 3, 0, json!({"noop": "x"}))]);
    assert_eq!(case.replay(ID).len(), 3, "a span that is nothing hides nothing");
    case.spans(vec![tool(&trace, 4, 4, 0, json!({}))]);
    assert_eq!(case.replay(ID).len(), 4, "what the trace tells is told, too");
    assert_eq!(case.replay(&trace).len(), 1, "letter by letter only the trace has this id");
}

/// An alert may cite what no mapping reads; the trace that it is in is told all the same.
#[test]
fn an_alert_tells_the_traces_of_whatever_it_cites() {
    let mut case = Case::new();
    case.spans(vec![tool(A, 1, 1, 0, json!({}))]);
    let plain = case.spans(vec![span(A, 2, 2, 1, json!({"noop": "x"}))]);
    let log = case.logs(vec![log(B, 3, "nothing.known", json!({"a": "b"}))]);
    case.spans(vec![tool(B, 4, 4, 0, json!({}))]);
    for (id, cited, want) in [("al-1", plain, "tool_call tool-1"), ("al-2", log, "tool_call tool-4")] {
        let fields = json!({"security.alert.id": id, "security.alert.evidence": [cited.to_string()]});
        case.logs(vec![self::log("", 5, "security.alert", fields)]);
        let steps = told(&case.replay(id));
        assert!(steps.len() == 2 && steps.contains(&want.into()), "{id}: {steps:?}");
    }
}

/// Both ways of reading rows, by the log and by segments, tell the same.
#[test]
fn a_long_trace_is_told_whole() {
    let mut case = Case::new();
    let count = 6_000;
    for some in (0..count).collect::<Vec<u64>>().chunks(500) {
        case.spans(some.iter().map(|i| tool(A, *i, i + 1, i / 7, json!({}))).collect());
    }
    let steps = case.replay(A);
    assert_eq!(steps.len() as u64, count);
    let seqs: std::collections::BTreeSet<u64> = steps.iter().filter_map(|s| s.seq).collect();
    assert_eq!(seqs.len() as u64, count, "every record once");
}
