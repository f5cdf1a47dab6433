//! Sources by what their own libraries and programs exported: tests/data/sources, a folder each,
//! with the script that recorded it.

use std::path::PathBuf;

use custody_proto::scan::Range;
use custody_proto::{Limits, Signal, json as otlp, scan};
use serde_json::{Value, json};

use super::tests::rows;
use super::*;

fn place(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/sources").join(name)
}

fn recorded(name: &str) -> Vec<EventRow> {
    let signal = if name.ends_with("logs.pb") { Signal::Logs } else { Signal::Traces };
    rows(signal, &std::fs::read(place(name)).unwrap())
}

fn json_of(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(place(name)).unwrap()).unwrap()
}

/// The rows of a log record, as OTLP/JSON.
fn of_log(record: &Value) -> Vec<EventRow> {
    let request = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]});
    rows(Signal::Logs, &otlp::transcode(Signal::Logs, request.to_string().as_bytes()).unwrap())
}

/// The one row of a document in a log's body.
fn of_body(document: &Value) -> Option<EventRow> {
    of_log(&json!({"body": {"stringValue": document.to_string()}})).pop()
}

fn some(text: &str) -> Option<String> {
    Some(text.into())
}

#[test]
fn claude_code_with_its_beta_traces() {
    let (spans, logs) = (recorded("claude_code/traces.pb"), recorded("claude_code/logs.pb"));
    let of_call = |rows: &[EventRow], kind: &str, id: &str| -> Vec<EventRow> {
        rows.iter().filter(|r| r.kind == kind && r.tool_call_id.as_deref() == Some(id)).cloned().collect()
    };
    // Each call that ran is one call: by its log. Its spans tell the same id, and no call again.
    for id in ["toolu_agent", "toolu_ls", "toolu_mcp", "toolu_skill"] {
        assert_eq!(of_call(&logs, "tool_call", id).len(), 1, "{id}");
        assert_eq!(of_call(&spans, "tool_result", id).len(), 2, "{id}: the call, and its execution");
    }
    assert!(spans.iter().all(|row| row.kind != "tool_call"));
    assert_eq!(logs.iter().filter(|row| row.kind == "tool_call").count(), 4);
    // What nobody allowed is in no log: its spans alone say that it was asked for, and refused.
    assert!(logs.iter().all(|row| row.tool_call_id.as_deref() != Some("toolu_rm")));
    let asked = of_call(&spans, "tool_result", "toolu_rm");
    assert_eq!((asked.len(), asked[0].tool.as_deref(), asked[0].status.as_deref()), (1, Some("Bash"), Some("unset")));
    let refused: Vec<_> = spans.iter().filter(|row| row.kind == "policy_evaluation").collect();
    assert_eq!((refused.len(), &refused[0].decision), (1, &some("deny")));
    assert_eq!(refused[0].parent_span_id, asked[0].span_id);
    // The sub-agent has an id, and the main session none.
    let listed = &of_call(&spans, "tool_result", "toolu_ls")[0];
    assert!(spans.iter().any(|row| row.kind == "model_result" && row.agent_id == listed.agent_id));
    // A request to the model is counted once, by its log, which has the cost; its span is a result beside it.
    let requests: Vec<_> = spans.iter().filter(|row| row.kind == "model_result").collect();
    assert_eq!((requests.len(), spans.iter().filter(|row| row.kind == "model_call").count()), (4, 0));
    let with_agent = spans.iter().filter(|row| row.agent_id.is_some()).count();
    assert_eq!(with_agent, 3, "its call and its two requests");
    let server = spans.iter().find(|row| row.tool.as_deref() == Some("get_weather")).unwrap();
    assert_eq!(server.resource, some("mcp:weather"));
    let turn: Vec<_> = spans.iter().filter(|row| row.kind == "agent_invocation").collect();
    assert_eq!((turn.len(), &turn[0].agent_name, &turn[0].agent_version), (1, &some("claude-code"), &some("2.1.197")));
    // Both signals are joined by trace and session.
    let conversations: Vec<_> = spans.iter().chain(&logs).map(|row| &row.conversation_id).collect();
    assert!(conversations.iter().all(|id| id.is_some() && *id == conversations[0]));
    let call = &of_call(&logs, "tool_call", "toolu_ls")[0];
    assert_eq!((&call.trace_id, call.agent_id.is_none()), (&turn[0].trace_id, true));
    let count = |kind: &str| logs.iter().filter(|row| row.kind == kind).count();
    assert_eq!(["authority_change", "skill_invocation", "agent_invocation", "model_call"].map(count), [2, 1, 1, 4]);
    // By its name a sub-agent is told in the logs, too: for what it spends.
    let by =
        |name: &str| logs.iter().filter(|r| r.kind == "model_call" && r.agent_name.as_deref() == Some(name)).count();
    assert_eq!((by("claude-code"), by("general-purpose")), (2, 2));
}

#[test]
fn nested_sub_agents_are_a_chain() {
    let span = json!({"resourceSpans": [{"scopeSpans": [{"scope": {"name": "com.anthropic.claude_code.tracing"}, "spans": [
        {"traceId": "01".repeat(16), "spanId": "01".repeat(8), "name": "claude_code.tool", "startTimeUnixNano": "1000",
         "attributes": [{"key": "agent_id", "value": {"stringValue": "a2"}}, {"key": "parent_agent_id", "value": {"stringValue": "a1"}},
                        {"key": "gen_ai.tool.call.id", "value": {"stringValue": "toolu_1"}},
                        {"key": "tool_name", "value": {"stringValue": "Read"}}, {"key": "file_path", "value": {"stringValue": "/etc/hosts"}}]},
        {"traceId": "01".repeat(16), "spanId": "02".repeat(8), "name": "claude_code.tool.blocked_on_user", "startTimeUnixNano": "1000",
         "attributes": [{"key": "decision", "value": {"stringValue": "reject"}}, {"key": "source", "value": {"stringValue": "user_reject"}}]},
        {"traceId": "01".repeat(16), "spanId": "03".repeat(8), "name": "claude_code.tool.blocked_on_user", "startTimeUnixNano": "1000",
         "attributes": [{"key": "decision", "value": {"stringValue": "accept"}}, {"key": "source", "value": {"stringValue": "user_temporary"}}]}]}]}]});
    let rows = rows(Signal::Traces, &otlp::transcode(Signal::Traces, span.to_string().as_bytes()).unwrap());
    let [call, refusal] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((call.actor_chain.as_slice(), &call.agent_id), (&["a2".to_owned(), "a1".to_owned()][..], &some("a2")));
    assert_eq!((&call.tool_call_id, &call.resource), (&some("toolu_1"), &some("/etc/hosts")));
    assert_eq!((refusal.kind.as_str(), &refusal.decision), ("approval", &some("rejected")), "and an approval is none");
}

#[test]
fn openinference_by_its_library() {
    let rows = recorded("openinference/traces.pb");
    let told: Vec<_> = rows
        .iter()
        .map(|r| (r.kind.as_str(), r.tool.as_deref().or(r.agent_name.as_deref()), r.status.as_deref().unwrap()))
        .collect();
    let want = [
        ("context_retrieval", None, "ok"),
        ("guardrail", None, "ok"),
        ("model_call", None, "ok"),
        ("model_call", None, "ok"),
        ("tool_call", Some("send_money"), "error"),
        ("tool_call", Some("get_weather"), "ok"),
        ("agent_invocation", Some("planner"), "ok"),
    ];
    assert_eq!(told, want);
    let emma = some("emma");
    assert!(
        rows.iter().all(|r| r.initiator_id == emma && r.conversation_id == some("s-1") && r.source == "openinference")
    );
}

#[test]
fn openllmetry_by_its_library() {
    let rows = recorded("openllmetry/traces.pb");
    let told: Vec<_> = rows
        .iter()
        .map(|r| (r.kind.as_str(), r.tool.as_deref(), r.agent_name.as_deref(), r.status.as_deref()))
        .collect();
    let want = [
        ("tool_call", Some("send_money"), Some("payments"), Some("error")),
        ("tool_call", Some("get_balance"), Some("payments"), Some("unset")),
        ("agent_invocation", None, Some("payments"), Some("unset")),
        ("agent_invocation", None, Some("refund"), Some("unset")),
    ];
    assert_eq!(told, want);
    assert!(rows.iter().all(|r| r.initiator_id == some("emma") && r.conversation_id == some("s-1")));
}

#[test]
fn the_claude_platform_by_its_sdk() {
    let rows = recorded("claude_platform/traces.pb");
    let told: Vec<_> = rows.iter().map(|r| (r.kind.as_str(), r.tool.as_deref(), r.tool_call_id.as_deref())).collect();
    let model = ("model_call", None, None);
    let call = ("tool_call", Some("get_balance"), Some("toolu_1"));
    assert_eq!(told, [model, call, model, ("agent_invocation", None, None)]);
    assert!(rows.iter().all(|r| r.source == "claude_platform" && r.status == some("ok")));
    assert!(rows.iter().all(|r| r.conversation_id == some("conv-1")));
    let [arguments, results] = call_attributes("claude_platform");
    let said: Value = serde_json::from_str(&rows[1].attributes).unwrap();
    let first = |names: &[&str]| names.iter().find_map(|name| said.get(*name)?.as_str()).map(str::to_owned);
    assert_eq!(first(arguments), some(r#"{"account":"a"}"#));
    assert_eq!(first(results), some(r#"[{"type":"text","text":"7"}]"#));
}

#[test]
fn cedar_by_its_engine() {
    let answers = json_of("cedar/records.json");
    let rows: Vec<_> = answers.as_array().unwrap().iter().map(|answer| of_body(answer).unwrap()).collect();
    let told: Vec<_> = rows.iter().map(|r| (r.decision.as_deref().unwrap(), r.policy_id.as_deref())).collect();
    // A policy is told by the name that it was given, and one without by its place.
    let want = [
        ("allow", Some("small-payments")),
        ("deny", None),
        ("deny", Some("no-frozen")),
        ("allow", Some("policy1")),
        ("deny", None),
    ];
    assert_eq!(told, want);
    let (first, read) = (&rows[0], &rows[3]);
    assert_eq!((&first.agent_id, &first.initiator_id, &first.action), (&some("planner"), &None, &some("pay")));
    assert_eq!((&read.agent_id, &read.initiator_id, &read.resource), (&None, &some("emma"), &some("App::Account:a-1")));
    assert_eq!(rows[4].reasons.len(), 1, "the policy that failed: {:?}", rows[4].reasons);
    assert!(rows.iter().all(|r| r.source == "cedar" && r.invalid_reasons.is_empty()));
}

/// What a running OpenFGA says of its decisions: in its request log, line by line, and in the spans that it exports.
#[test]
fn openfga_by_its_server() {
    let text = std::fs::read_to_string(place("openfga/lines.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let rows_of = |line: &Value| of_log(&json!({"body": {"stringValue": line.to_string()}}));
    let of = |method: &str| -> Vec<EventRow> {
        lines.iter().filter(|line| line["grpc_method"] == method).flat_map(rows_of).collect()
    };
    let told = |rows: &[EventRow]| -> Vec<String> {
        let one = |r: &EventRow| {
            let who = r.agent_id.as_deref().or(r.initiator_id.as_deref());
            [r.decision.as_deref(), who, r.action.as_deref(), r.resource.as_deref()].map(Option::unwrap).join(" ")
        };
        rows.iter().map(one).collect()
    };
    let (checks, batch) = (of("Check"), of("BatchCheck"));
    // Two more failed, and decided nothing. The last two came by gRPC.
    let want = [
        "allow planner can_pay tool:pay",
        "deny reader can_pay tool:pay",
        "allow emma can_call tool:pay",
        "allow finance#member can_call tool:pay",
        "allow buyer can_call tool:pay",
        "deny buyer can_call tool:pay",
        "allow new can_call tool:read",
        "allow planner can_pay tool:pay",
        "deny reader can_pay tool:pay",
    ];
    assert_eq!(told(&checks), want);
    assert_eq!(lines.iter().filter(|line| line["grpc_method"] == "Check").count(), want.len() + 2);
    let want = ["allow planner can_pay tool:pay", "deny reader can_pay tool:pay", "allow buyer can_call tool:pay"];
    assert_eq!(told(&batch), want, "and one of the four failed");
    let (one, several) = (of("Evaluation"), of("Evaluations"));
    assert_eq!(told(&one), ["allow planner can_pay tool:pay", "deny reader can_pay tool:pay"]);
    let first_two = ["allow reader can_call tool:read", "deny reader can_call tool:pay"];
    assert_eq!(told(&several[..2]), first_two);
    assert_eq!(told(&several[2..3]), ["deny reader can_fly tool:pay"]);
    assert_eq!(several[2].reasons, ["invalid relation: relation 'tool#can_fly' not found"]);
    assert_eq!(told(&several[3..]), first_two, "and stopped at the first refusal");
    let logged: Vec<EventRow> = [checks.as_slice(), &batch, &one, &several].concat();
    assert_eq!(logged.len(), lines.iter().flat_map(rows_of).count(), "what lists and writes is no event");

    // The spans have the same answers to those that were asked one by one.
    let spans = recorded("openfga/traces.pb");
    let mut asked = told(&[checks.as_slice(), &one, &several[3..]].concat());
    let mut traced = told(&spans);
    asked.sort_unstable();
    traced.sort_unstable();
    assert_eq!(traced, asked);

    // Everything names the store and the model that decided, and is of the trace of who asked.
    let decided = &lines[3];
    let said = |name: &str| decided[name].as_str().map(str::to_owned);
    for row in logged.iter().chain(&spans) {
        assert_eq!((row.kind.as_str(), row.invalid_reasons.len()), ("policy_evaluation", 0), "{row:?}");
        assert!(row.policy_id.is_some() && row.policy_version.is_some(), "{row:?}");
        assert_eq!(row.trace_id.as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
    }
    let versions: std::collections::BTreeSet<_> =
        logged.iter().map(|row| (&row.policy_id, &row.policy_version)).collect();
    assert_eq!(versions.into_iter().collect::<Vec<_>>(), [(&said("store_id"), &said("authorization_model_id"))]);
    let when = crate::attributes::seconds_time(decided["timestamp"].as_f64().unwrap());
    assert_eq!(Some(checks[0].event_time), when);
}

/// One agent, two requests, and three instrumentations that tell of each: in rows they are what was sent, and the view
/// `model_calls` has each once (tests/mapping.rs).
#[test]
fn several_instrumentations_of_one_request() {
    let rows = recorded("twice/traces.pb");
    let calls: Vec<_> = rows.iter().filter(|row| row.kind == "model_call").collect();
    let by = |source: &str| calls.iter().filter(|row| row.source == source).count();
    assert_eq!((calls.len(), by("otel_genai"), by("openinference")), (6, 4, 2));
    let above = |row: &EventRow| calls.iter().filter(|other| other.span_id == row.parent_span_id).count();
    let outermost: Vec<_> = calls.iter().filter(|row| above(row) == 0).map(|row| &row.agent_name).collect();
    assert_eq!(outermost, [&some("teller"), &some("teller")]);
    assert_eq!(rows.iter().filter(|row| row.kind == "tool_call").count(), 1);
}

/// A server that asks back, and a user whom baggage names on either side.
#[test]
fn mcp_where_a_server_asks() {
    let rows = recorded("mcp/asked_traces.pb");
    let mut told: Vec<_> = rows
        .iter()
        .map(|r| (r.kind.as_str(), r.action.as_deref(), r.initiator_id.as_deref(), r.resource.as_deref()))
        .collect();
    told.sort_unstable();
    let call = ("tool_call", Some("delete"), Some("emma"), None);
    let asked = |what| ("request", Some(what), Some("files"), Some("user:emma"));
    assert_eq!(told, [asked("elicitation/create"), asked("sampling/createMessage"), call, call]);
    let server = rows.iter().filter(|r| r.kind == "request").all(|r| {
        let above = rows.iter().find(|call| call.span_id == r.parent_span_id);
        r.initiator_type == some("process") && above.is_some_and(|call| call.kind == "tool_call")
    });
    assert!(server, "it asks while it is called");
}

/// Calls that run as tasks: waited for, asking back, failing, cancelled.
#[test]
fn mcp_where_calls_are_tasks() {
    let rows = recorded("mcp/tasks_traces.pb");
    let of = |kind: &'static str| rows.iter().filter(move |row| row.kind == kind);
    // The client's own span, the SDK's below it, and the server's, which does not say which tool.
    let tools: Vec<_> = of("tool_call").filter(|row| row.parent_span_id.is_none()).map(|row| &row.tool).collect();
    assert_eq!(tools, ["report", "delete", "broken", "endless"].map(some).each_ref());
    assert_eq!(of("tool_call").filter(|row| row.tool.is_none()).count(), 4);
    // The tool runs in the worker: twice, where it waited for an answer. Whether it failed is said by its result alone.
    let mut ran: Vec<_> =
        of("tool_result").map(|row| (row.tool.as_deref().unwrap(), row.links.len(), row.status.as_deref())).collect();
    ran.sort_unstable();
    assert_eq!(ran, ["broken", "delete", "delete", "endless", "report"].map(|tool| (tool, 1, None)));
    let told: Vec<_> = of("request").chain(of("authority_change")).filter(|row| row.resource.is_some()).collect();
    let [answered, cancelled] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((&answered.action, &answered.initiator_id), (&some("tasks/update"), &some("reports")));
    assert_eq!((&cancelled.action, &cancelled.decision), (&some("task"), &some("cancelled")));
    // One task, one id: on the client's side and in the worker.
    let of_tool = |tool| of("tool_result").find(|row| row.tool.as_deref() == Some(tool)).unwrap();
    for (asked, tool) in [(answered, "delete"), (cancelled, "endless")] {
        let ran = of_tool(tool);
        assert!(asked.correlation_id.is_some() && asked.correlation_id == ran.correlation_id, "{asked:?} {ran:?}");
        assert_eq!(asked.resource, asked.correlation_id);
    }
    assert!(rows.iter().all(|row| row.source == "mcp" && row.tool_call_id.as_deref().is_none_or(|id| id.len() < 3)));
}

#[test]
fn a2a_by_its_sdk() {
    let rows = recorded("a2a/traces.pb");
    let told: Vec<_> = rows.iter().map(|r| (r.kind.as_str(), r.source.as_str(), r.action.as_deref())).collect();
    assert_eq!(told, [("agent_invocation", "a2a", Some("SendMessage")); 3]);
    let tasks = json_of("a2a/tasks.json");
    let rows: Vec<_> = tasks.as_array().unwrap().iter().map(of_body).collect();
    let [None, Some(asked), Some(refused)] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!(
        (asked.kind.as_str(), &asked.decision, asked.reasons.as_slice()),
        ("approval", &some("pending"), &["May I pay?".to_owned()][..])
    );
    assert_eq!(asked.task_id.as_deref(), tasks[1]["id"].as_str());
    assert_eq!(asked.conversation_id.as_deref(), tasks[1]["contextId"].as_str());
    assert_eq!((refused.kind.as_str(), &refused.decision), ("executor_decision", &some("deny")));
    assert_eq!(asked.initiator_id, None, "who may authorise it is not told");
}

/// The row of a grant whose record has no more than its token.
fn of_token(name: &str, token: &Value) -> EventRow {
    let attribute = json!({"key": "authz.grant.token", "value": {"stringValue": token}});
    of_log(&json!({"eventName": name, "attributes": [attribute]})).pop().unwrap()
}

#[test]
fn tokens_by_the_libraries_that_make_them() {
    let made = json_of("tokens/made.json");
    let said = |row: &EventRow| serde_json::from_str::<Value>(&row.attributes).unwrap();
    let warrants: Vec<_> =
        made["tenuo"].as_array().unwrap().iter().map(|one| of_token("authz.grant.issued", &one["token"])).collect();
    for (row, one) in warrants.iter().zip(made["tenuo"].as_array().unwrap()) {
        assert_eq!(row.grant_id.as_deref(), one["id"].as_str());
        assert_eq!(row.delegation_depth.map(u64::from), one["depth"].as_u64());
        assert_eq!(row.parent_hash.as_deref(), one["parent_hash"].as_str());
        assert_eq!(said(row)["authz.grant.actions"], one["tools"]);
        assert_eq!(said(row)["authz.grant.token.state"], "unverified");
        assert!(!row.attributes.contains(one["token"].as_str().unwrap()), "it could be used");
        assert_eq!(row.invalid_reasons, Vec::<String>::new());
    }
    // The child names its parent by the digest that the parent has, and its issuer is the parent's holder.
    let [first, second] = [said(&warrants[0]), said(&warrants[1])];
    assert_eq!(first["authz.grant.hash"], second["authz.grant.parent_hash"]);
    assert_eq!(second["authz.grant.issuer"].as_str(), warrants[0].agent_id.as_deref());
    let bounds = |said: &Value| said["authz.grant.constraints"].as_str().unwrap().to_owned();
    assert_eq!(bounds(&first), r#"{"amount":{"max":100.0},"to":["a","b"]}"#);
    assert_eq!(bounds(&second), r#"{"amount":{"max":50.0},"to":["a"]}"#);
    // Of several tools the constraints are a list, which is neither wider nor narrower than anything.
    assert!(bounds(&said(&warrants[2])).starts_with('['));

    // Who has to approve of a call, how many of them, and what data it may touch.
    let asked = said(&warrants[3]);
    let approvers: Vec<_> = asked["authz.grant.approvers"].as_array().unwrap().iter().map(Value::as_str).collect();
    assert_eq!(approvers.len(), 2);
    assert!(approvers.contains(&first["authz.grant.issuer"].as_str()), "{approvers:?}");
    assert_eq!((&asked["authz.grant.min_approvals"], &asked["authz.grant.clearance"]), (&json!(1), &json!(30)));
    assert_eq!(first.get("authz.grant.approvers"), None);

    let biscuits = made["biscuit"].as_array().unwrap();
    let row = of_token("authz.grant.derived", &biscuits[1]["token"]);
    let ids: Vec<_> =
        biscuits[1]["revocation_ids"].as_array().unwrap().iter().map(|id| id.as_str().map(str::to_owned)).collect();
    assert_eq!([&row.root_grant_id, &row.parent_grant_id, &row.grant_id], [&ids[0], &ids[1], &ids[2]]);
    assert_eq!(row.delegation_depth, Some(2));
    // 2027-01-01: the earlier of two ends; what may hold instead of another check is no end.
    assert_eq!(said(&row)["authz.grant.expires_at"], 1_798_761_600);
    assert!(row.invalid_reasons.iter().any(|reason| reason == "the actions of its token cannot be read"));

    for one in made["macaroon"].as_array().unwrap() {
        let row = of_token("authz.grant.issued", &one["token"]);
        assert_eq!(row.grant_id, some("m-1"));
        let said = said(&row);
        assert_eq!(said["authz.grant.caveats"], json!(["action = read", "time < 2027-01-01T00:00:00Z"]));
        assert_eq!(
            (&said["authz.grant.expires_at"], &said["authz.grant.issuer"]),
            (&json!(1_798_761_600), &json!("https://bank.example"))
        );
    }
    let audit: Vec<_> = made["audit"].as_array().unwrap().iter().map(|one| of_body(one).unwrap()).collect();
    let told: Vec<_> =
        audit.iter().map(|r| (r.kind.as_str(), r.source.as_str(), r.decision.as_deref(), r.tool.as_deref())).collect();
    let decided = |decision| ("executor_decision", "tenuo", Some(decision), Some("send_money"));
    assert_eq!(told, [decided("allow"), decided("deny")]);
    assert!(audit.iter().all(|row| row.grant_id == warrants[1].grant_id));
    assert_eq!(audit[1].reasons, ["constraint_violation", "amount above 50"]);
}

/// Records of known sources that are no events: the beginnings of their scopes and names, and why. docs/sources.md
/// says the same.
const NO_EVENTS: [(&str, &str, &str); 24] = [
    ("codex_exec", "", "its spans are its own inner steps; its logs tell of the calls"),
    ("codex_otel", "codex.sse_event", "a piece of an answer"),
    ("codex_otel", "codex.startup_phase", "how long something took"),
    ("codex_otel", "codex.turn_ttft", "how long something took"),
    ("com.anthropic.claude_code", "claude_code.assistant_response", "words to the person at the terminal"),
    ("com.anthropic.claude_code", "claude_code.hook_execution_start", "its end is told too, with the outcome"),
    ("com.anthropic.claude_code", "claude_code.hook_registered", "what is configured, at each start"),
    ("com.anthropic.claude_code", "claude_code.managed_settings_resolved", "what is configured, at each start"),
    ("com.anthropic.claude_code", "claude_code.plugin_loaded", "what is configured, at each start"),
    ("com.anthropic.claude_code", "claude_code.tool.blocked_on_user", "nobody refused; its log tells who allowed"),
    ("docket.docket", "", "the queue of a worker of MCP's tasks; what it runs is told"),
    ("fastmcp", "", "other methods of MCP than calls and reading; how far a task is"),
    ("gemini-cli", "gemini_cli.api_request", "its answer is told too, with the outcome"),
    ("gemini-cli", "gemini_cli.config", "what is configured, at each start"),
    ("gemini-cli", "gemini_cli.model_routing", "which model was chosen"),
    ("gemini-cli", "gemini_cli.plan.approval_mode_duration", "how long something took"),
    ("gemini-cli", "gemini_cli.ripgrep_fallback", "its own search"),
    ("gemini-cli", "gemini_cli.startup_stats", "how long something took"),
    ("gemini-cli", "gen_ai.client.inference.operation.details", "the same request as api_response"),
    ("go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc", "", "OpenFGA's span in it has the answer"),
    ("mcp-python-sdk", "", "other methods of MCP than calls and reading"),
    ("openfga/pkg/server", "", "lists decide nothing, nor does a check that failed; answers of batches are in its log"),
    ("openinference.", "", "CHAIN only holds steps together; RERANKER and EVALUATOR touch nothing new"),
    ("traceloop.tracer", "prepare.task", "a task only holds steps together"),
];

/// Scope and name of each record without a row.
fn not_understood(signal: Signal, bytes: &[u8]) -> Vec<(String, String)> {
    let found = scan(signal, bytes, &Limits::default()).unwrap();
    let at = |range: Range| {
        let (at, len) = (range.at as usize, range.len as usize);
        at.checked_sub(bytes.len()).map_or_else(|| &bytes[at..at + len], |at| &found.annex[at..at + len])
    };
    let mut out = Vec::new();
    for record in &found.records {
        let group = &found.groups[record.group as usize];
        let resource = Resource::read(at(group.resource)).unwrap();
        let scope = InstrumentationScope::read(at(group.scope)).unwrap();
        let context = super::tests::context(&resource, &scope);
        let (is_event, name) = if signal == Signal::Traces {
            let span = Span::read(at(record.range)).unwrap();
            (!map_span(&context, &span).is_empty(), span.name.to_owned())
        } else {
            let log = LogRecord::read(at(record.range)).unwrap();
            (!map_log(&context, &log).is_empty(), event_name(&context, &log).into_owned())
        };
        if !is_event {
            out.push((scope.name.to_owned(), name));
        }
    }
    out
}

fn files(under: &std::path::Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(under).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, out);
        } else {
            out.push(path);
        }
    }
}

/// What real clients sent and is no event wants a reason, and each reason something that it is for.
#[test]
fn what_is_no_event_has_a_reason() {
    let mut all = Vec::new();
    files(&place(""), &mut all);
    files(&place("../../fixtures/captures"), &mut all);
    all.sort();
    let mut used = [false; NO_EVENTS.len()];
    let (mut wrong, mut seen) = (std::collections::BTreeMap::new(), 0);
    for file in all {
        let path = file.to_string_lossy();
        let of = |signal| if path.contains("traces") { Some(Signal::Traces) } else { signal };
        let Some(signal) = of(path.contains("logs").then_some(Signal::Logs)) else { continue };
        let bytes = match path.rsplit_once('.').unwrap().1 {
            "pb" => std::fs::read(&file).unwrap(),
            "json" if !path.ends_with(".headers.json") => {
                otlp::transcode(signal, &std::fs::read(&file).unwrap()).unwrap()
            }
            _ => continue,
        };
        seen += 1;
        for (scope, name) in not_understood(signal, &bytes) {
            let reason = NO_EVENTS.iter().position(|(by, begins, _)| scope.starts_with(by) && name.starts_with(begins));
            match reason {
                Some(at) => used[at] = true,
                None => *wrong.entry((scope, name)).or_insert(0) += 1,
            }
        }
    }
    assert!(seen >= 13, "{seen} files");
    assert!(wrong.is_empty(), "{wrong:#?}");
    let unused: Vec<_> = NO_EVENTS.iter().zip(used).filter(|(_, used)| !used).collect();
    assert!(unused.is_empty(), "{unused:?}");
}
