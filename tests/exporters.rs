//! Exporters that we did not write, unchanged and with nothing configured but the environment:
//! OpenTelemetry's SDKs for Node.js and Rust (Python's is in clients.rs), and agent frameworks
//! under their usual instrumentations. What they emitted must be there, each span exactly once,
//! and be the events that an investigator asks for.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::trace::{Span as _, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{LogExporter, MetricExporter, SpanExporter};
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::{Value, json};
use support::{Server, python};

const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/exporters");

/// Runs a program that sends to this server, and gives back what it told of its spans.
fn run(command: &mut Command, endpoint: &str) -> Vec<String> {
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{endpoint}"));
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; run `make test`, which installs it"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{command:?}: {e}: {}{stderr}", String::from_utf8_lossy(&output.stdout)))
}

/// Runs one of the Python programs over OTLP/HTTP, the default of Python's exporters.
fn python_program(server: &Server, args: &[&str]) -> Vec<String> {
    let mut command = Command::new(python());
    command.arg(format!("{HERE}/{}", args[0])).args(&args[1..]).env("OTEL_SERVICE_NAME", "exporters");
    run(&mut command, &server.otlp_http)
}

/// All spans that were emitted are there, no other, and each exactly once.
fn assert_exactly_once(server: &Server, emitted: &[String]) {
    let rows = server.sql("SELECT concat(trace_id, ':', span_id) AS id, count(*) AS n FROM spans GROUP BY 1");
    let found: BTreeMap<_, _> = rows.iter().map(|r| (r["id"].as_str().unwrap(), r["n"].as_u64().unwrap())).collect();
    let wanted: BTreeMap<_, _> = emitted.iter().map(|id| (id.as_str(), 1)).collect();
    assert_eq!(wanted.len(), emitted.len(), "the program emitted each id once");
    assert!(!emitted.is_empty() && found == wanted, "emitted {wanted:?}, found {found:?}");
}

/// The events, in an order that does not depend on the batches: (kind, agent, tool, status).
fn events(server: &Server) -> Vec<Value> {
    let rows =
        server.sql("SELECT kind, agent_name, tool, status FROM events ORDER BY kind, agent_name, tool, event_time");
    rows.iter().map(|r| json!([r["kind"], r["agent_name"], r["tool"], r["status"]])).collect()
}

#[test]
fn the_node_sdk_over_three_protocols() {
    if let Ok(why) = std::fs::read_to_string(Path::new(HERE).join("node/node_modules/.skipped")) {
        eprintln!("SKIPPED: the Node.js exporters: {why}");
        return;
    }
    let mut server = Server::start();
    let mut emitted = Vec::new();
    for protocol in [None, Some("grpc"), Some("http/json")] {
        let mut command = Command::new("node");
        command.arg(format!("{HERE}/node/exporter.js")).env("OTEL_SERVICE_NAME", protocol.unwrap_or("default"));
        command.envs(protocol.map(|p| ("OTEL_EXPORTER_OTLP_PROTOCOL", p)));
        let endpoint = if protocol == Some("grpc") { &server.grpc } else { &server.otlp_http };
        emitted.extend(run(&mut command, endpoint));
    }
    assert_eq!(emitted.len(), 3 * 1002);
    assert_exactly_once(&server, &emitted);
    let calls = server.sql("SELECT service, tool, tool_call_id, arguments, status FROM tool_calls ORDER BY service");
    for (call, service) in calls.iter().zip(["default", "grpc", "http/json"]) {
        let want = json!({"service": service, "tool": "send_money", "tool_call_id": "call-1", "arguments": "{\"to\":\"ünïcode\"}", "status": "error"});
        assert_eq!(call, &want);
    }
    // The log belongs to the span in which it was written.
    let requests = server.sql(
        "SELECT e.service, e.initiator_id, s.name FROM events e JOIN spans s USING (trace_id, span_id) WHERE e.kind = 'request' ORDER BY 1",
    );
    assert_eq!(requests.len(), 3);
    assert_eq!(requests[0], json!({"service": "default", "initiator_id": "emma", "name": "invoke_agent teller"}));
    let metrics = server.sql("SELECT count(*) >= 3 AS recorded FROM ledger WHERE kind = 'metric'");
    assert_eq!(metrics, [json!({"recorded": true})]);
    server.stop_and_verify();
}

#[test]
fn the_rust_sdk_over_grpc_and_http() {
    let mut server = Server::start();
    let mut emitted = Vec::new();
    for protocol in ["grpc", "http"] {
        let told = server.path().join(protocol);
        let endpoint = if protocol == "grpc" { &server.grpc } else { &server.otlp_http };
        // This test program again, because the environment is what exporters are configured by.
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "rust_program", "--ignored"])
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{endpoint}"))
            .env("OTEL_SERVICE_NAME", protocol)
            .env("EXPORTERS_PROTOCOL", protocol)
            .env("EXPORTERS_TOLD", &told)
            .output()
            .unwrap();
        assert!(output.status.success(), "{protocol}: {}", String::from_utf8_lossy(&output.stdout));
        emitted.extend(serde_json::from_slice::<Vec<String>>(&std::fs::read(told).unwrap()).unwrap());
    }
    assert_eq!(emitted.len(), 2 * 602);
    assert_exactly_once(&server, &emitted);
    let calls = server.sql("SELECT service, tool, arguments, status FROM tool_calls ORDER BY service");
    let call =
        |service| json!({"service": service, "tool": "send_money", "arguments": "{\"to\":\"b\"}", "status": "error"});
    assert_eq!(calls, [call("grpc"), call("http")]);
    let logs = server.sql("SELECT service_name, body, count(*) AS n FROM logs WHERE seq > 0 AND service_name <> 'custody' GROUP BY 1, 2 ORDER BY 1");
    let log = |service| json!({"service_name": service, "body": "please pay", "n": 1});
    assert_eq!(logs, [log("grpc"), log("http")]);
    let metrics = server.sql("SELECT count(*) >= 2 AS recorded FROM ledger WHERE kind = 'metric'");
    assert_eq!(metrics, [json!({"recorded": true})]);
    server.stop_and_verify();
}

#[test]
#[ignore = "the program that the_rust_sdk_over_grpc_and_http runs"]
fn rust_program() {
    let Ok(protocol) = std::env::var("EXPORTERS_PROTOCOL") else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let inside = runtime.enter();
    let (spans, logs, metrics) = if protocol == "grpc" {
        (
            SpanExporter::builder().with_tonic().build().unwrap(),
            LogExporter::builder().with_tonic().build().unwrap(),
            MetricExporter::builder().with_tonic().build().unwrap(),
        )
    } else {
        drop(inside); // its blocking HTTP client does not want to be made within a runtime
        (
            SpanExporter::builder().with_http().build().unwrap(),
            LogExporter::builder().with_http().build().unwrap(),
            MetricExporter::builder().with_http().build().unwrap(),
        )
    };
    let tracers = SdkTracerProvider::builder().with_batch_exporter(spans).build();
    let loggers = SdkLoggerProvider::builder().with_batch_exporter(logs).build();
    let meters = SdkMeterProvider::builder().with_periodic_exporter(metrics).build();
    let tracer = tracers.tracer("exporters");
    let id = |c: &opentelemetry::trace::SpanContext| format!("{}:{}", c.trace_id(), c.span_id());
    let root = tracer.start("root");
    let mut emitted = vec![id(root.span_context())];
    let context = Context::current_with_span(root);
    for i in 0..601 {
        let mut span = tracer.start_with_context(format!("step {i}"), &context);
        if i == 0 {
            span.set_attribute(KeyValue::new("gen_ai.operation.name", "execute_tool"));
            span.set_attribute(KeyValue::new("gen_ai.tool.name", "send_money"));
            span.set_attribute(KeyValue::new("gen_ai.tool.call.arguments", "{\"to\":\"b\"}"));
            span.set_status(opentelemetry::trace::Status::error("refused"));
        }
        emitted.push(id(span.span_context()));
        span.end();
    }
    context.span().end();
    let logger = loggers.logger("exporters");
    let mut record = logger.create_log_record();
    record.set_severity_number(Severity::Info);
    record.set_body(AnyValue::from("please pay"));
    logger.emit(record);
    meters.meter("exporters").u64_counter("calls").build().add(1, &[]);
    tracers.shutdown().unwrap();
    loggers.shutdown().unwrap();
    meters.shutdown().unwrap();
    std::fs::write(std::env::var("EXPORTERS_TOLD").unwrap(), serde_json::to_vec(&emitted).unwrap()).unwrap();
}

#[test]
fn pydantic_ai_by_its_own_instrumentation() {
    let mut server = Server::start();
    let emitted = python_program(&server, &["pydantic_agent.py"]);
    assert_eq!(emitted.len(), 9);
    assert_exactly_once(&server, &emitted);
    let want = [
        json!(["agent_invocation", "helper", null, "unset"]),
        json!(["agent_invocation", "support", null, "error"]),
        json!(["model_call", "helper", null, "unset"]),
        json!(["model_call", "helper", null, "unset"]),
        json!(["model_call", "support", null, "unset"]),
        json!(["model_call", "support", null, "unset"]),
        json!(["tool_call", "helper", "lookup", "unset"]),
        json!(["tool_call", "support", "ask_helper", "unset"]),
        json!(["tool_call", "support", "refund", "error"]),
    ];
    assert_eq!(events(&server), want);
    let calls = server.sql(
        "SELECT tool, tool_call_id, arguments, result FROM tool_calls WHERE agent_name = 'support' ORDER BY event_time",
    );
    assert_eq!(
        calls,
        [
            json!({"tool": "ask_helper", "tool_call_id": "call-1", "arguments": "{\"question\":\"where is order 7?\"}", "result": "{\"lookup\":\"order 0: shipped\"}"}),
            json!({"tool": "refund", "tool_call_id": "call-2", "arguments": "{\"order\":7,\"amount\":12.5}", "result": null}),
        ]
    );
    // Delegation: the helper ran inside of the tool call that asked it.
    let parent =
        "SELECT p.tool FROM events e JOIN events p ON p.span_id = e.parent_span_id WHERE e.kind = 'agent_invocation'";
    assert_eq!(server.sql(parent), [json!({"tool": "ask_helper"})]);
    server.stop_and_verify();
}

#[test]
fn openai_agents_by_openinference() {
    let mut server = Server::start();
    let emitted = python_program(&server, &["openai_agent.py", "openinference"]);
    assert_eq!(emitted.len(), 12);
    assert_exactly_once(&server, &emitted);
    let want = [
        json!(["agent_invocation", "Agent workflow", null, "ok"]),
        json!(["agent_invocation", "payments", null, "ok"]),
        json!(["agent_invocation", "triage", null, "ok"]),
        json!(["guardrail", null, null, "ok"]),
        json!(["tool_call", null, "get_balance", "ok"]),
        json!(["tool_call", null, "handoff to payments", "ok"]),
        json!(["tool_call", null, "send_money", "error"]),
    ];
    assert_eq!(events(&server), want);
    let calls = server.sql("SELECT tool, arguments, result FROM tool_calls ORDER BY event_time");
    assert_eq!(calls[0], json!({"tool": "handoff to payments", "arguments": "triage", "result": "payments"}));
    assert_eq!(calls[1], json!({"tool": "get_balance", "arguments": "{\"account\": \"a\"}", "result": "100"}));
    assert_eq!(calls[2]["arguments"], "{\"to\": \"b\", \"amount\": 5}");
    let shown = server.custody(&["replay", "--trace", emitted[0].split(':').next().unwrap()]);
    assert!(shown.contains("tool get_balance") && shown.contains("{\"account\": \"a\"}"), "{shown}");
    server.stop_and_verify();
}

#[test]
fn openai_agents_by_openllmetry() {
    let mut server = Server::start();
    let emitted = python_program(&server, &["openai_agent.py", "openllmetry"]);
    assert_eq!(emitted.len(), 6);
    assert_exactly_once(&server, &emitted);
    let want = [
        json!(["agent_invocation", "Agent Workflow", null, "ok"]),
        json!(["agent_invocation", "payments", null, "ok"]),
        json!(["agent_invocation", "triage", null, "ok"]),
        json!(["tool_call", "triage", "handoff", "ok"]),
        json!(["tool_call", null, "get_balance", "ok"]),
        json!(["tool_call", null, "send_money", "error"]),
    ];
    assert_eq!(events(&server), want);
    let calls = server.sql("SELECT arguments, result FROM tool_calls WHERE tool = 'get_balance'");
    assert_eq!(calls, [json!({"arguments": "{\"account\": \"a\"}", "result": "100"})]);
    server.stop_and_verify();
}

#[test]
fn openais_client_by_openinference() {
    let mut server = Server::start();
    let emitted = python_program(&server, &["openai_client.py", "openinference"]);
    assert_eq!(emitted.len(), 4);
    assert_exactly_once(&server, &emitted);
    let want = [
        json!(["agent_invocation", "teller", null, "ok"]),
        json!(["context_retrieval", null, null, "ok"]),
        json!(["model_call", null, null, "ok"]),
        json!(["tool_call", null, "get_balance", "ok"]),
    ];
    assert_eq!(events(&server), want);
    let who = server.sql("SELECT DISTINCT source, initiator_type, initiator_id, conversation_id FROM events");
    let want = json!({"source": "openinference", "initiator_type": "user", "initiator_id": "emma", "conversation_id": "session-1"});
    assert_eq!(who, [want]);
    let calls = server.sql("SELECT arguments, result FROM tool_calls");
    assert_eq!(calls, [json!({"arguments": "{\"account\": \"a\"}", "result": "100"})]);
    server.stop_and_verify();
}

#[test]
fn openais_client_by_openllmetry() {
    let mut server = Server::start();
    let emitted = python_program(&server, &["openai_client.py", "openllmetry"]);
    assert_eq!(emitted.len(), 2);
    assert_exactly_once(&server, &emitted);
    let calls = server.sql(
        "SELECT kind, source, json_get_str(attributes, 'gen_ai.request.model') AS model, json_get_int(attributes, 'gen_ai.usage.output_tokens') AS tokens, \
         json_get_str(attributes, 'gen_ai.output.messages') LIKE '%get_balance%' AS asks FROM events ORDER BY event_time",
    );
    let call =
        |asks| json!({"kind": "model_call", "source": "otel_genai", "model": "gpt-5", "tokens": 7, "asks": asks});
    assert_eq!(calls, [call(true), call(false)]);
    server.stop_and_verify();
}
