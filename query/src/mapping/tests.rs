//! From raw OTLP to rows: what real clients sent (tests/fixtures/captures), and records in the
//! shapes that their producers document, as OTLP/JSON.

use custody_proto::scan::Range;
use custody_proto::{Limits, Signal, json, scan};
use serde_json::{Value, json};

use super::*;

/// The context of a record of this resource and scope.
pub(super) fn context<'a>(resource: &'a Resource<'a>, scope: &'a InstrumentationScope<'a>) -> RecordContext<'a> {
    RecordContext { seq: 7, record_hash: "", ingest_time: Time(9), submitter: "test", resource, scope }
}

/// The rows of all spans and log records of a request.
pub(super) fn rows(signal: Signal, bytes: &[u8]) -> Vec<EventRow> {
    let found = scan(signal, bytes, &Limits::default()).unwrap();
    let at = |range: Range| {
        let (at, len) = (range.at as usize, range.len as usize);
        at.checked_sub(bytes.len()).map_or_else(|| &bytes[at..at + len], |at| &found.annex[at..at + len])
    };
    let mut rows = Vec::new();
    for record in &found.records {
        let group = &found.groups[record.group as usize];
        let resource = Resource::read(at(group.resource)).unwrap();
        let scope = InstrumentationScope::read(at(group.scope)).unwrap();
        let context = context(&resource, &scope);
        rows.extend(match signal {
            Signal::Traces => map_span(&context, &Span::read(at(record.range)).unwrap()),
            _ => map_log(&context, &LogRecord::read(at(record.range)).unwrap()),
        });
    }
    rows.iter().for_each(crate::ocsf::tests::assert_sound);
    rows
}

/// Attributes as OTLP/JSON has them.
fn attributes(values: &Value) -> Value {
    let value = |v: &Value| match v {
        Value::String(s) => json!({"stringValue": s}),
        Value::Bool(b) => json!({"boolValue": b}),
        other => json!({"intValue": other.to_string()}),
    };
    values.as_object().unwrap().iter().map(|(k, v)| json!({"key": k, "value": value(v)})).collect()
}

/// The one row of a log record; none if it is no event.
fn log(scope: &str, values: Value) -> Option<EventRow> {
    let body = json!({"resourceLogs": [{
        "resource": {"attributes": attributes(&json!({"service.name": "s", "service.version": "2.1"}))},
        "scopeLogs": [{"scope": {"name": scope}, "logRecords": [
            {"timeUnixNano": "5000000000", "body": {"stringValue": "words"}, "attributes": attributes(&values)}]}]}]});
    let bytes = json::transcode(Signal::Logs, body.to_string().as_bytes()).unwrap();
    rows(Signal::Logs, &bytes).pop()
}

/// The one row of a span; none if it is no event.
fn span(values: Value) -> Option<EventRow> {
    let body = json!({"resourceSpans": [{"scopeSpans": [{"spans": [{
        "traceId": "01010101010101010101010101010101", "spanId": "0101010101010101", "name": "its name",
        "startTimeUnixNano": "1000", "endTimeUnixNano": "3000", "status": {"code": 1}, "attributes": attributes(&values)}]}]}]});
    let bytes = json::transcode(Signal::Traces, body.to_string().as_bytes()).unwrap();
    rows(Signal::Traces, &bytes).pop()
}

fn some(text: &str) -> Option<String> {
    Some(text.into())
}

/// (kind, tool, decision, status): what most assertions are about.
fn told(row: &EventRow) -> (&str, Option<&str>, Option<&str>, Option<&str>) {
    (&row.kind, row.tool.as_deref(), row.decision.as_deref(), row.status.as_deref())
}

/// The rows of a captured request, which is protobuf or OTLP/JSON.
fn capture(name: &str) -> Vec<EventRow> {
    let path = format!("{}/../tests/fixtures/captures/{name}", env!("CARGO_MANIFEST_DIR"));
    let signal = if name.contains("logs") { Signal::Logs } else { Signal::Traces };
    let bytes = std::fs::read(path).unwrap();
    if name.ends_with(".json") { rows(signal, &json::transcode(signal, &bytes).unwrap()) } else { rows(signal, &bytes) }
}

#[test]
fn openai_agents_by_openinference() {
    let rows = capture("oai/0001_v1_traces.pb");
    let kinds: Vec<_> = rows.iter().map(|r| (r.kind.as_str(), r.tool.as_deref().or(r.agent_name.as_deref()))).collect();
    let want = [
        ("guardrail", None),
        ("tool_call", Some("handoff to payments")),
        ("agent_invocation", Some("triage")),
        ("tool_call", Some("get_balance")),
        ("tool_call", Some("send_money")),
        ("agent_invocation", Some("payments")),
        ("agent_invocation", Some("Agent workflow")),
    ];
    assert_eq!(kinds, want);
    assert!(rows.iter().all(|r| r.source == "openinference" && r.status == some("ok") && r.tool_call_id.is_none()));
}

#[test]
fn codex_as_it_was_captured() {
    let rows = capture("codex/0003_v1_logs.pb");
    let count = |kind: &str| rows.iter().filter(|r| r.kind == kind).count();
    let kinds = ["agent_invocation", "request", "model_call", "model_result", "policy_evaluation", "tool_call"];
    assert_eq!(kinds.map(count), [1, 1, 4, 4, 3, 3]);
    // The end of an answer has the tokens, and is the call; that the request was taken is told beside it.
    let tokens =
        |kind: &str| rows.iter().filter(|r| r.kind == kind && r.attributes.contains("input_token_count")).count();
    assert_eq!((tokens("model_call"), tokens("model_result")), (4, 0));
    assert_eq!(rows.len(), 16, "what is an event is one of these");
    let call = rows.iter().find(|r| r.kind == "tool_call").unwrap();
    assert_eq!(told(call), ("tool_call", Some("exec_command"), None, Some("ok")));
    assert_eq!((&call.tool_call_id, &call.agent_id, &call.resource), (&some("call_0"), &some("/home"), &None));
    assert_eq!(call.conversation_id, some("01a1fc46-dca4-71c2-a682-e14863640db2"));
    assert_eq!(call.end_time.unwrap().0 - call.event_time.0, 62_000_000, "it began before its log was written");
    let decision = rows.iter().find(|r| r.kind == "policy_evaluation").unwrap();
    assert_eq!((&decision.decision, &decision.policy_id), (&some("allow"), &some("Config")));
    assert!(decision.event_time < call.end_time.unwrap());
    assert!(rows.iter().all(|r| r.event_time.0 > 1_795_233_864_000_000_000), "the time is in an attribute");
    for file in ["codex/0001_v1_traces.pb", "codex/0002_v1_traces.pb"] {
        assert_eq!(capture(file).len(), 0, "its spans are no events");
    }
}

#[test]
fn codex_decisions_of_a_person() {
    for (said, want) in [("approved_for_session", "approved"), ("denied", "rejected"), ("abort", "rejected")] {
        let row = log(
            "codex_otel",
            json!({"event.name": "codex.tool_decision", "tool_name": "exec_command",
            "decision": said, "source": "User", "user.account_id": "acct"}),
        )
        .unwrap();
        assert_eq!(told(&row), ("approval", Some("exec_command"), Some(want), None));
        assert_eq!((row.initiator_id, row.policy_id), (some("acct"), None));
    }
    let failed = json!({"event.name": "codex.api_request", "http.response.status_code": 429, "duration_ms": "5"});
    assert_eq!(told(&log("codex_otel", failed).unwrap()), ("model_call", None, None, Some("error")));
    // Pieces of an answer are none, and that it broke off is told by its end.
    let piece = |kind: &str, more: Value| {
        let mut said = json!({"event.name": "codex.sse_event", "event.kind": kind});
        said.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        log("codex_otel", said)
    };
    for kind in ["response.created", "response.completed"] {
        assert!(piece(kind, json!({})).is_none());
    }
    assert!(piece("response.failed", json!({"error.message": "overloaded"})).is_none(), "told again at the end");
    let broken = piece("response.completed", json!({"error.message": "stream closed before response.completed"}));
    assert_eq!(told(&broken.unwrap()), ("model_call", None, None, Some("error")));
    let whole = piece("response.completed", json!({"input_token_count": "100", "output_token_count": "20"})).unwrap();
    assert_eq!(told(&whole), ("model_call", None, None, Some("ok")));
}

/// Gemini CLI's spans tell of what its logs tell, whatever they call it.
#[test]
fn gemini_cli_is_counted_by_its_logs() {
    for operation in ["llm_call", "tool_call", "generate_content", "execute_tool"] {
        let body = json!({"resourceSpans": [{"scopeSpans": [{"scope": {"name": "gemini-cli"}, "spans": [{
            "traceId": "01".repeat(16), "spanId": "01".repeat(8), "name": operation, "startTimeUnixNano": "1000",
            "attributes": attributes(&json!({"gen_ai.operation.name": operation, "gen_ai.agent.name": "gemini-cli",
                "gen_ai.conversation.id": "s-1", "gen_ai.usage.input_tokens": 7}))}]}]}]});
        let bytes = json::transcode(Signal::Traces, body.to_string().as_bytes()).unwrap();
        assert_eq!(rows(Signal::Traces, &bytes).len(), 0, "{operation}");
    }
}

#[test]
fn claude_code_and_gemini_cli_as_they_were_captured() {
    let rows = capture("claude_code/0001_v1_logs.pb");
    let all: Vec<_> = rows.iter().map(told).collect();
    let want = [
        ("request", None, None, None),
        ("policy_evaluation", Some("Bash"), Some("allow"), None),
        ("model_call", None, None, Some("ok")),
        ("tool_call", Some("Bash"), None, Some("ok")),
        ("model_call", None, None, Some("ok")),
    ];
    assert_eq!(all, want);
    assert_eq!((&rows[1].tool_call_id, &rows[1].policy_id), (&rows[3].tool_call_id, &some("config")));
    assert!(rows[1].event_time <= rows[3].event_time, "it was decided before it ran");
    let rows = capture("gemini/0002_v1_logs.json");
    let all: Vec<_> = rows.iter().map(told).collect();
    let want = [
        ("request", None, None, None),
        ("model_call", None, None, Some("ok")),
        ("tool_call", Some("run_shell_command"), Some("allow"), Some("ok")),
        ("model_call", None, None, Some("ok")),
    ];
    assert_eq!(all, want);
    assert!(rows.iter().all(|r| r.conversation_id == rows[0].conversation_id && r.initiator_id.is_none()));
}

const CLAUDE: &str = "com.anthropic.claude_code.events";

#[test]
fn claude_code_decisions_and_results() {
    let decision = |source: &str, decision: &str| {
        log(CLAUDE, json!({"event.name": "tool_decision", "tool_name": "Bash", "tool_use_id": "toolu_1",
            "decision": decision, "source": source, "user.email": "ada@example.com", "session.id": "s1", "prompt.id": "p1"}))
        .unwrap()
    };
    for (source, said, kind, want) in [
        ("config", "accept", "policy_evaluation", "allow"),
        ("hook", "reject", "policy_evaluation", "deny"),
        ("user_temporary", "accept", "approval", "approved"),
        ("user_reject", "reject", "approval", "rejected"),
    ] {
        let row = decision(source, said);
        assert_eq!(told(&row), (kind, Some("Bash"), Some(want), None), "{source}");
        assert_eq!((&row.initiator_id, &row.conversation_id), (&some("ada@example.com"), &some("s1")));
        assert_eq!((&row.tool_call_id, &row.correlation_id), (&some("toolu_1"), &some("p1")));
    }
    let result = log(
        CLAUDE,
        json!({"event.name": "tool_result", "tool_name": "mcp_tool", "success": "false",
        "duration_ms": "1500", "decision_type": "accept", "decision_source": "config", "tool_use_id": "toolu_2",
        "tool_parameters": r#"{"mcp_server_name":"github","mcp_tool_name":"create_issue"}"#}),
    )
    .unwrap();
    assert_eq!(told(&result), ("tool_call", Some("create_issue"), Some("allow"), Some("error")));
    assert_eq!((result.resource, result.event_time), (some("mcp:github"), Time(3_500_000_000)));
    assert_eq!((result.end_time, result.agent_version), (Some(Time(5_000_000_000)), some("2.1")));
}

#[test]
fn claude_code_under_both_spellings_of_its_names() {
    for name in ["user_prompt", "claude_code.user_prompt"] {
        let row = log(CLAUDE, json!({"event.name": name, "user.id": "u"})).unwrap();
        assert_eq!((row.kind.as_str(), row.initiator_id, row.source.as_str()), ("request", some("u"), "claude_code"));
    }
    // The short name means nothing from anybody else.
    assert!(log("another", json!({"event.name": "user_prompt"})).is_none());
    let kind = |values| log(CLAUDE, values).map(|r| (r.kind, r.decision, r.status));
    let refusal = kind(json!({"event.name": "api_refusal"}));
    assert_eq!(refusal, Some(("model_call".into(), some("refused"), some("error"))));
    let mode =
        kind(json!({"event.name": "permission_mode_changed", "from_mode": "plan", "to_mode": "bypassPermissions"}));
    assert_eq!(mode, Some(("authority_change".into(), some("bypassPermissions"), None)));
    let hook = kind(json!({"event.name": "hook_execution_complete", "hook_event": "PreToolUse", "num_blocking": "1"}));
    assert_eq!(hook, Some(("policy_evaluation".into(), some("deny"), None)));
    let skill = log(CLAUDE, json!({"event.name": "skill_activated", "skill.name": "deploy"})).unwrap();
    assert_eq!((skill.kind.as_str(), skill.skill_id), ("skill_invocation", some("deploy")));
    // What hooks do not block is allowed by nobody.
    let hook = kind(json!({"event.name": "hook_execution_complete", "hook_event": "Stop", "num_blocking": "0"}));
    assert_eq!(hook, Some(("policy_evaluation".into(), None, None)));
    assert!(log(CLAUDE, json!({"event.name": "plugin_loaded"})).is_none());
}

#[test]
fn claude_code_logins_servers_and_plugins() {
    let row = |values| log(CLAUDE, values).unwrap();
    let told = |row: &EventRow| (row.action.clone(), row.decision.clone(), row.status.clone());
    let login = row(json!({"event.name": "auth", "action": "login", "success": "true", "auth_method": "oauth"}));
    assert_eq!(told(&login), (some("auth"), some("login"), some("ok")));
    assert_eq!((login.kind.as_str(), login.resource), ("authority_change", some("oauth")));
    let failed = row(json!({"event.name": "auth", "action": "login", "success": "false", "error_category": "network"}));
    assert_eq!(told(&failed), (some("auth"), some("failed"), some("error")));
    assert_eq!(failed.reasons, ["network"]);
    let server = row(json!({"event.name": "mcp_server_connection", "status": "failed", "transport_type": "http",
        "server_scope": "user", "error_code": "ECONNREFUSED", "server_name": "github", "duration_ms": "5"}));
    assert_eq!(told(&server), (some("mcp_server"), some("failed"), None));
    assert_eq!((server.kind.as_str(), server.resource), ("authority_change", some("mcp:github")));
    let plugin = row(json!({"event.name": "plugin_installed", "plugin.name": "p", "install.trigger": "cli"}));
    assert_eq!((told(&plugin).1, plugin.resource, plugin.reasons), (some("installed"), some("p"), vec!["cli".into()]));
    let agent = row(json!({"event.name": "subagent_completed", "agent_type": "Explore", "duration_ms": 1000}));
    assert_eq!((agent.kind.as_str(), agent.agent_name), ("agent_invocation", some("Explore")));
    assert_eq!((agent.event_time, agent.end_time), (Time(4_000_000_000), Some(Time(5_000_000_000))));
}

#[test]
fn gemini_cli_calls_and_refusals() {
    let call = |more: Value| {
        let mut values = json!({"event.name": "gemini_cli.tool_call", "session.id": "s", "user.email": "ada@example.com",
            "function_name": "run_shell_command", "duration_ms": 1000, "success": true});
        values.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        log("gemini-cli", values).unwrap()
    };
    let row = call(json!({"decision": "auto_accept"}));
    assert_eq!(told(&row), ("tool_call", Some("run_shell_command"), Some("allow"), Some("ok")));
    assert_eq!((row.event_time, row.end_time), (Time(4_000_000_000), Some(Time(5_000_000_000))));
    let row = call(json!({"decision": "reject", "success": false}));
    assert_eq!(told(&row), ("approval", Some("run_shell_command"), Some("rejected"), None));
    assert_eq!(row.end_time, None, "it never ran");
    let row = call(json!({"success": false, "mcp_server_name": "github"}));
    assert_eq!(told(&row), ("tool_call", Some("run_shell_command"), None, Some("error")));
    assert_eq!(row.resource, some("mcp:github"));
    let mode = log(
        "gemini-cli",
        json!({"event.name": "gemini_cli.plan.approval_mode_switch", "from_mode": "default", "to_mode": "yolo"}),
    )
    .unwrap();
    assert_eq!(
        (mode.kind.as_str(), mode.action, mode.decision),
        ("authority_change", some("approval_mode_switch"), some("yolo"))
    );
    let agent = log(
        "gemini-cli",
        json!({"event.name": "gemini_cli.agent.start", "agent_id": "a1", "agent_name": "investigator"}),
    )
    .unwrap();
    assert_eq!(
        (agent.kind.as_str(), agent.agent_id, agent.agent_name),
        ("agent_invocation", some("a1"), some("investigator"))
    );
    assert!(log("gemini-cli", json!({"event.name": "gemini_cli.memory.usage"})).is_none());
}

#[test]
fn openinference_kinds() {
    let row = span(json!({"openinference.span.kind": "TOOL", "tool.name": "pay", "tool.id": "c1", "user.id": "emma", "session.id": "s"})).unwrap();
    assert_eq!(told(&row), ("tool_call", Some("pay"), None, Some("ok")));
    assert_eq!((row.tool_call_id, row.initiator_id, row.initiator_type), (some("c1"), some("emma"), some("user")));
    assert_eq!((row.conversation_id, row.event_time, row.end_time), (some("s"), Time(1000), Some(Time(3000))));
    for (kind, want) in [("LLM", "model_call"), ("RETRIEVER", "context_retrieval"), ("agent", "agent_invocation")] {
        assert_eq!(span(json!({"openinference.span.kind": kind})).unwrap().kind, want);
    }
    for kind in ["CHAIN", "EVALUATOR", "UNKNOWN"] {
        assert!(span(json!({"openinference.span.kind": kind})).is_none(), "{kind}");
    }
    // Who speaks both is read by OpenTelemetry's.
    let both = span(
        json!({"openinference.span.kind": "TOOL", "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "t"}),
    );
    assert_eq!(both.unwrap().source, "otel_genai");
}

#[test]
fn openllmetry_kinds() {
    let row =
        span(json!({"traceloop.span.kind": "tool", "traceloop.entity.name": "pay", "traceloop.workflow.name": "w",
        "traceloop.association.properties.user_id": "emma", "traceloop.association.properties.chat_id": "c"}))
        .unwrap();
    assert_eq!(told(&row), ("tool_call", Some("pay"), None, Some("ok")));
    assert_eq!((row.initiator_id, row.conversation_id), (some("emma"), some("c")));
    let row = span(
        json!({"traceloop.span.kind": "workflow", "traceloop.entity.name": "refunds", "traceloop.entity.version": "3"}),
    )
    .unwrap();
    assert_eq!(
        (row.kind.as_str(), row.agent_name, row.agent_version),
        ("agent_invocation", some("refunds"), some("3"))
    );
    let row = span(
        json!({"traceloop.span.kind": "handoff", "gen_ai.operation.name": "handoff", "gen_ai.agent.name": "triage",
        "gen_ai.handoff.to_agent": "payments"}),
    )
    .unwrap();
    assert_eq!((told(&row).1, &row.agent_name, &row.resource), (Some("handoff"), &some("triage"), &some("payments")));
    assert_eq!(span(json!({"llm.request.type": "chat"})).unwrap().kind, "model_call");
    assert!(span(json!({"llm.request.type": "rerank"})).is_none());
    assert!(span(json!({"traceloop.span.kind": "task"})).is_none());
}

#[test]
fn pomerium_decisions() {
    let check = |more: Value| {
        let mut values = json!({"message": "authorize check", "request-id": "r-1", "session-id": "s", "user": "u-1",
            "email": "emma@example.com", "host": "mcp.example.com", "path": "/mcp", "method": "POST", "route-id": "route",
            "route-checksum": "17", "allow-why-true": "email-ok", "allow-why-false": "email-unauthorized",
            "deny-why-true": "invalid-client-certificate"});
        values.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        log("", values).unwrap()
    };
    let row = check(json!({"allow": true, "deny": false, "mcp-method": "tools/call", "mcp-tool": "send_money"}));
    assert_eq!(told(&row), ("policy_evaluation", Some("send_money"), Some("allow"), None));
    assert_eq!((row.reasons, row.policy_id, row.policy_version), (vec!["email-ok".into()], some("route"), some("17")));
    assert_eq!((row.resource, row.correlation_id), (some("mcp.example.com/mcp"), some("r-1")));
    assert_eq!((row.initiator_id, row.initiator_type), (some("emma@example.com"), some("user")));
    let row = check(json!({"allow": false, "deny": false}));
    assert_eq!(
        (row.decision, row.reasons, row.action),
        (some("deny"), vec!["email-unauthorized".into()], some("POST"))
    );
    let row = check(json!({"allow": true, "deny": true}));
    assert_eq!((row.decision, row.reasons), (some("deny"), vec!["invalid-client-certificate".into()]));
    // Another line, and a check that does not say what it decided.
    assert!(log("", json!({"message": "http-request", "response-code": 200})).is_none());
    assert!(log("", json!({"message": "authorize check"})).is_none());
}

#[test]
fn the_view_of_tool_calls_reads_the_same_attributes() {
    let sql = include_str!("../tool_calls.sql");
    for source in ["openinference", "openllmetry", "claude_code", "claude_platform", "codex", "gemini", "otel_genai"] {
        for name in call_attributes(source).concat() {
            assert!(sql.contains(&format!("json_get_str(attributes, '{name}')")), "{source} {name}");
        }
        let told = if source == "claude_platform" { 1 } else { 2 };
        assert!(source == "otel_genai" || sql.matches(&format!("WHEN '{source}'")).count() == told, "{source}");
    }
}
