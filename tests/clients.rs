//! Real clients against the built binary: OpenTelemetry's Python SDK over gRPC and
//! HTTP, curl, and the captured requests of agent frameworks.

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::{Server, python};

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; run `make test`, which installs it"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn the_python_sdk_in_its_default_configuration() {
    let mut server = Server::start();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/sdk.py");
    for (protocol, endpoint) in
        [("grpc", format!("http://{}", server.grpc)), ("http", format!("http://{}", server.otlp_http))]
    {
        for compression in [None, Some("gzip")] {
            let mut command = Command::new(python());
            command.args([script, protocol]).env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
            command.envs(compression.map(|c| ("OTEL_EXPORTER_OTLP_COMPRESSION", c)));
            assert_eq!(run(&mut command), "ok\n", "{protocol} {compression:?}");
        }
    }
    let rows = server.sql(
        "SELECT json_get_str(attributes, 'protocol') AS protocol, count(*) AS spans, count(DISTINCT trace_id) AS traces, \
         min(duration_ns) AS shortest, max(status_message) AS message FROM spans GROUP BY 1 ORDER BY 1",
    );
    assert_eq!(rows.len(), 2);
    for (row, protocol) in rows.iter().zip(["grpc", "http"]) {
        assert_eq!(
            row,
            &json!({"protocol": protocol, "spans": 1200, "traces": 2, "shortest": 1_000_000, "message": "refused"})
        );
    }
    let logs = server.sql("SELECT body, severity_text, event_name, trace_id IS NOT NULL AS traced FROM logs WHERE event_name = 'authz.request' LIMIT 1");
    assert_eq!(
        logs[0],
        json!({"body": "please pay", "severity_text": "INFO", "event_name": "authz.request", "traced": true})
    );
    let calls = server.sql("SELECT tool, arguments, initiator_id, count(*) AS n FROM tool_calls GROUP BY 1, 2, 3");
    assert_eq!(
        calls,
        [json!({"tool": "send_money", "arguments": "{\"to\": \"ünïcode\"}", "initiator_id": "emma", "n": 4})]
    );
    let metrics = server.sql(
        "SELECT type, json_get_bool(points, 'is_monotonic') AS up, json_get_int(points, 'data_points', 0, 'value') AS n,
         count(*) AS times FROM metrics WHERE name = 'calls' GROUP BY 1, 2, 3",
    );
    assert!(metrics[0]["times"].as_u64() >= Some(2), "both protocols sent it: {metrics:?}");
    assert_eq!((&metrics[0]["type"], &metrics[0]["up"], &metrics[0]["n"]), (&json!("sum"), &json!(true), &json!(1)));
    let recorded = "SELECT count(*) = (SELECT count(*) FROM metrics) AS whole FROM ledger WHERE kind = 'metric'";
    assert_eq!(server.sql(recorded), [json!({"whole": true})]);
    // More than a batch of logs, each once from each of the four runs, in its span.
    let steps = "SELECT count(*) AS n, count(DISTINCT body) AS steps, count(trace_id) AS traced FROM logs WHERE severity_number = 5";
    assert_eq!(server.sql(steps), [json!({"n": 4 * 598, "steps": 598, "traced": 4 * 598})]);
    // A counter and a histogram, of each run at least once.
    let metrics = server.sql("SELECT count(*) >= 8 AS recorded FROM ledger WHERE kind = 'metric'");
    assert_eq!(metrics, [json!({"recorded": true})]);
    server.stop_and_verify();
}

/// The driver of Arrow, as BI tools have it; it is no package of Python's or ours, so it is named for this test.
#[test]
#[ignore = "needs a JVM, and the path of flight-sql-jdbc-driver.jar in CUSTODY_TEST_JDBC"]
fn jdbc_over_flight_sql() {
    let jar = std::env::var("CUSTODY_TEST_JDBC").unwrap();
    let mut server = Server::start();
    server.send_grpc(support::recorded_requests());
    server.wait_until_visible();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/Jdbc.java");
    let mut java = Command::new("java");
    java.args(["--add-opens=java.base/java.nio=ALL-UNNAMED", "-cp", &jar, source, &server.flight_sql.to_string()]);
    assert_eq!(run(&mut java), "ok\n");
    server.stop_and_verify();
}

/// Answers of curl: the HTTP status and the body.
fn curl(args: &[&str]) -> (u16, String) {
    let text = run(Command::new("curl").args(["-sS", "-w", "\n%{http_code}"]).args(args));
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

fn fixture(path: &str) -> String {
    format!("@{}/tests/fixtures/{path}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn curl_with_the_examples_of_opentelemetry() {
    let mut server = Server::start();
    let url = |signal: &str| format!("http://{}/v1/{signal}", server.otlp_http);
    let json = "Content-Type: application/json";
    for (signal, file) in [("traces", "trace"), ("logs", "logs"), ("logs", "events"), ("metrics", "metrics")] {
        let body = fixture(&format!("otlp/{file}.json"));
        assert_eq!(curl(&["-H", json, "--data-binary", &body, &url(signal)]), (200, "{}".into()), "{file}");
        // An exporter that lost the answer sends again: nothing is doubled.
        assert_eq!(curl(&["-H", json, "--data-binary", &body, &url(signal)]).0, 200);
    }
    let span = server.sql("SELECT name, kind, trace_id, duration_ns FROM spans");
    let want = json!({"name": "I'm a server span", "kind": "server", "trace_id": "5b8efff798038103d269b633813fc60c", "duration_ns": 1_000_000_000});
    assert_eq!(span, [want]);
    let ledger =
        server.sql("SELECT kind, count(*) AS n, min(flags[1]) AS flag FROM ledger WHERE seq > 0 GROUP BY 1 ORDER BY 1");
    assert_eq!(ledger.iter().map(|r| r["flag"].as_str().unwrap()).collect::<Vec<_>>(), ["json", "json", "json"]);
    let metrics = server.sql("SELECT name, type, unit, service_name, points FROM metrics ORDER BY seq");
    let told: Vec<_> = metrics.iter().map(|m| (m["name"].as_str().unwrap(), m["type"].as_str().unwrap())).collect();
    let want = [
        ("my.counter", "sum"),
        ("my.gauge", "gauge"),
        ("my.histogram", "histogram"),
        ("my.exponential.histogram", "exponential_histogram"),
    ];
    assert_eq!(told, want);
    let points: Value = serde_json::from_str(metrics[0]["points"].as_str().unwrap()).unwrap();
    let want = json!({"description": "I am a Counter", "aggregation_temporality": "delta", "is_monotonic": true,
        "data_points": [{"start_time_unix_nano": "1544712660300000000", "time_unix_nano": "1544712660300000000",
                         "attributes": {"my.counter.attr": "some value"}, "value": 5.0}]});
    assert_eq!(points, want);
    let wrong = curl(&["-H", json, "--data-binary", "{\"resourceSpans\": 7}", &url("traces")]);
    assert_eq!(wrong.0, 400);
    assert!(wrong.1.contains("resourceSpans"), "{wrong:?}");
    let id = r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"00","spanId":"01"}]}]}]}"#;
    let partial = curl(&["-H", json, "--data-binary", id, &url("traces")]);
    let partial = (partial.0, serde_json::from_str::<Value>(&partial.1).unwrap());
    assert_eq!((partial.0, &partial.1["partialSuccess"]["rejectedSpans"]), (200, &json!("1")));
    assert_eq!(curl(&["-H", "Content-Type: text/plain", "--data-binary", "x", &url("traces")]).0, 415);
    assert_eq!(curl(&[&url("traces")]).0, 405);
    assert_eq!(curl(&["-X", "POST", &url("nothing")]).0, 404);
    server.stop_and_verify();
}

#[test]
fn an_oversized_body_is_refused_and_the_server_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let big = folder.path().join("big");
    std::fs::write(&big, vec![b'x'; 70_000]).unwrap();
    let mut server = Server::start_in(folder, &["--request-bytes-max", "65536"]);
    let url = format!("http://{}/v1/traces", server.otlp_http);
    let body = format!("@{}", big.display());
    let (status, text) = curl(&["-H", "Content-Type: application/json", "--data-binary", &body, &url]);
    assert_eq!(status, 413);
    assert!(text.contains("65536"), "{text}");
    assert_eq!(server.stop_and_verify()["records"], 1);
}

#[test]
fn captured_requests_of_agent_frameworks_go_in_as_they_are() {
    let mut server = Server::start();
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/captures");
    let mut files = walk(&captures);
    files.retain(|p| !p.ends_with("README.md") && !p.to_string_lossy().ends_with(".headers.json"));
    files.sort();
    assert_eq!(files.len(), 9);
    for file in &files {
        let name = file.to_string_lossy();
        let signal = ["logs", "metrics", "traces"].into_iter().find(|s| name.contains(s)).unwrap();
        let url = format!("http://{}/v1/{signal}", server.otlp_http);
        let (content_type, answer) =
            if name.ends_with(".json") { ("application/json", "{}") } else { ("application/x-protobuf", "") };
        let content_type = format!("Content-Type: {content_type}");
        let (status, text) = curl(&["-H", &content_type, "--data-binary", &format!("@{name}"), &url]);
        assert_eq!((status, text.as_str()), (200, answer), "{name}");
    }
    let spans = server.sql("SELECT scope_name, count(*) AS n FROM spans GROUP BY 1 ORDER BY 1");
    let want = [("codex_exec", 794), ("openinference.instrumentation.openai_agents", 11), ("pydantic-ai", 16)];
    let got: Vec<_> = spans.iter().map(|r| (r["scope_name"].as_str().unwrap(), r["n"].as_u64().unwrap())).collect();
    assert_eq!(got, want);
    let calls = server.sql("SELECT agent_name, tool, arguments FROM tool_calls WHERE tool = 'delete_file' LIMIT 1");
    assert_eq!(calls, [json!({"agent_name": "cleaner", "tool": "delete_file", "arguments": "{\"path\":\"a\"}"})]);
    // Each of them yields events; none of its calls is without a tool.
    let events = server.sql("SELECT source, count(*) AS n, sum(CASE WHEN kind = 'tool_call' AND tool IS NOT NULL THEN 1 ELSE 0 END) AS calls FROM events GROUP BY 1 ORDER BY 1");
    let source = |name: &str, n: u32, calls: u32| json!({"source": name, "n": n, "calls": calls});
    let want = [source("claude_code", 5, 1), source("codex", 16, 3), source("gemini", 4, 1)];
    assert_eq!(
        events,
        want.into_iter().chain([source("openinference", 7, 3), source("otel_genai", 16, 5)]).collect::<Vec<_>>()
    );
    let calls = server.sql("SELECT tool, tool_call_id, arguments LIKE '%\"ls\"%' AS ls, status FROM tool_calls WHERE source IN ('claude_code', 'gemini') ORDER BY source");
    let call = |tool: &str, id: Value| json!({"tool": tool, "tool_call_id": id, "ls": true, "status": "ok"});
    assert_eq!(calls, [call("Bash", json!("toolu_1")), call("run_shell_command", Value::Null)]);
    let commands = server.sql("SELECT arguments, result LIKE '%exited with code 1%' AS failed, status FROM tool_calls WHERE source = 'codex' ORDER BY event_time");
    let command = |arguments: &str, failed: bool| json!({"arguments": arguments, "failed": failed, "status": "ok"});
    let want = [
        command("{\"cmd\":\"ls -la\"}", false),
        command("{\"cmd\":\"echo hello > note.txt\"}", false),
        command("{\"cmd\":\"cat /nope\"}", true),
    ];
    assert_eq!(commands, want, "Codex calls a command that failed a success");
    server.stop_and_verify();
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries.flat_map(|p| if p.is_dir() { walk(&p) } else { vec![p] }).collect()
}

#[test]
fn events_are_pulled_by_cursor_without_gap_across_a_restart() {
    let mut server = Server::start();
    server.send_grpc(support::recorded_requests().into_iter().take(60).collect());
    server.wait_until_visible();
    let mut seqs = Vec::new();
    let mut cursor = String::new();
    for limit in [7, 50, 1] {
        let limit = limit.to_string();
        let mut args = vec!["events", "--limit", &limit];
        if !cursor.is_empty() {
            args.extend(["--after", cursor.as_str()]);
        }
        let output = server.custody_output(&args);
        let lines = String::from_utf8(output.stdout).unwrap();
        seqs.extend(lines.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["seq"].as_u64().unwrap()));
        let tail = String::from_utf8(output.stderr).unwrap();
        cursor = tail.trim().strip_prefix("next cursor: ").unwrap().to_owned();
    }
    assert_eq!(seqs.len(), 58);
    let folder = server.kill();
    let mut server = Server::start_in(folder, &[]);
    server.wait_until_visible();
    let rest = server.custody(&["events", "--after", &cursor]);
    seqs.extend(rest.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["seq"].as_u64().unwrap()));
    let all = server.sql("SELECT seq FROM events ORDER BY seq");
    assert_eq!(seqs, all.iter().map(|r| r["seq"].as_u64().unwrap()).collect::<Vec<_>>());
    let page: Value = {
        let url = format!("http://{}/api/v1/events?limit=2&kind=grant_issued", server.http);
        serde_json::from_str(&curl(&["-H", "Accept: application/json", &url]).1).unwrap()
    };
    assert_eq!(page["data"].as_array().unwrap().len(), 2);
    assert_eq!((&page["has_more"], &page["data"][0]["kind"]), (&json!(true), &json!("grant_issued")));
    let other = format!("/api/v1/events?after={}", page["next_cursor"].as_str().unwrap());
    let (status, text) = server.get(&other);
    assert!(status == 400 && text.contains("another filter"), "{status} {text}");
    server.stop_and_verify();
}

#[test]
fn follow_prints_what_comes() {
    use std::io::{BufRead as _, BufReader};
    let mut server = Server::start();
    let url = format!("http://{}", server.http);
    let mut follow = Command::new(support::CUSTODY)
        .args(["events", "--follow", "--kind", "request", "--url", &url])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    server.send_grpc(support::recorded_requests().into_iter().take(40).collect());
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(first["kind"], "request");
    follow.kill().unwrap();
    follow.wait().unwrap();
    server.stop_and_verify();
}

#[test]
fn sql_over_http_in_four_formats_and_its_errors() {
    let mut server = Server::start();
    server.send_grpc(support::recorded_requests().into_iter().take(40).collect());
    server.wait_until_visible();
    let url = format!("http://{}/api/v1/sql", server.http);
    let ask = |body: Value| curl(&["-H", "Content-Type: application/json", "-d", &body.to_string(), &url]);
    let sql = "SELECT tool, count(*) AS n FROM tool_calls WHERE tool <> $1 GROUP BY 1 ORDER BY 1 LIMIT 1";
    let (status, body) = ask(json!({"sql": sql, "params": ["none"]}));
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["columns"][0]), (200, &json!({"name": "tool", "type": "Utf8"})));
    assert_eq!(body["stats"]["truncated"], false);
    let (status, csv) = ask(json!({"sql": "SELECT seq, kind FROM events ORDER BY seq LIMIT 1", "format": "csv"}));
    assert_eq!((status, csv.as_str()), (200, "seq,kind\n1,request\n"));
    for format in ["arrow", "parquet"] {
        let body = json!({"sql": "SELECT * FROM spans", "format": format}).to_string();
        let out = server.path().join(format);
        let args = ["-sS", "-f", "-H", "Content-Type: application/json", "-d", &body, &url, "-o"];
        run(Command::new("curl").args(args).arg(&out));
        let script = "import sys, pyarrow as pa, pyarrow.parquet as pq; f = sys.argv[2]\n\
                      t = pq.read_table(f) if sys.argv[1] == 'parquet' else pa.ipc.open_stream(f).read_all()\n\
                      print(t.num_rows > 0, t.schema.field('start_time').type)";
        let told = run(Command::new(python()).args(["-c", script, format]).arg(&out));
        assert_eq!(told, "True timestamp[ns, tz=UTC]\n", "{format}");
    }
    let (status, problem) = ask(json!({"sql": "SELECT naem FROM spans"}));
    let problem: Value = serde_json::from_str(&problem).unwrap();
    assert_eq!((status, &problem["position"]), (400, &json!({"line": 1, "column": 8})), "{problem}");
    assert!(problem["message"].as_str().unwrap().contains("Did you mean 'spans.name'?"), "{problem}");
    assert_eq!(ask(json!({"sql": "DELETE FROM spans"})).0, 403);
    assert_eq!(ask(json!({"query": "SELECT 1"})).0, 400);
    let endless = "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t";
    assert_eq!(ask(json!({"sql": endless, "timeout_ms": 200})).0, 408);
    assert_eq!(curl(&["-d", "x", &url]).0, 415);
    let offline = server.custody(&["sql", "SELECT count(*) AS n FROM spans", "--format", "csv"]);
    server.stop();
    let dir = server.data_dir();
    let output = run(Command::new(support::CUSTODY)
        .args(["sql", "SELECT count(*) AS n FROM spans", "--format", "csv", "--data-dir"])
        .arg(&dir));
    assert_eq!(output, offline, "a server and its directory answer alike");
    let wrong = Command::new(support::CUSTODY).args(["sql", "SELEC 1", "--data-dir"]).arg(&dir).output().unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("olumn"), "{wrong:?}");
}

/// The log over HTTP, recomputed by a client that shares no code with us.
#[test]
fn tiles_and_checkpoint_are_a_transparency_log() {
    let mut server = Server::start();
    server.send_grpc(support::recorded_requests());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/verify.py");
    // Checkpoints come each second while records arrive; the last one within two.
    server.wait_until_signed(2496);
    let url = format!("http://{}", server.http);
    let told =
        run(Command::new(python()).args([script, "--url", &url, "--vkey"]).arg(server.data_dir().join("log.vkey")));
    // Ten entry bundles, of which the last is partial, and a tile of their roots.
    assert!(told.contains(", size 2496, tiles 11, "), "{told}");
    for wrong in ["/tile/0/999", "/tile/0/0", "/tile/0/009.p/193", "/tile/x/000", "/tile/entries/../000", "/nothing"] {
        assert_eq!(server.get(wrong).0, 404, "{wrong}");
    }
    assert_eq!(server.get("/healthz"), (200, "ok\n".into()));
    assert_eq!(server.get("/readyz").0, 200);
    let openapi: Value = serde_json::from_str(&server.get("/openapi.json").1).unwrap();
    for path in openapi["paths"].as_object().unwrap().keys().filter(|p| !p.contains('{')) {
        // `/checkpoint/witnessed` may have nothing to show; what is not there says something else.
        assert!(!server.get(path).1.contains("there is nothing at"), "{path}");
    }
    server.stop_and_verify();
}

#[test]
fn adbc_over_flight_sql() {
    let mut server = Server::start();
    server.send_grpc(support::recorded_requests());
    server.wait_until_visible();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/adbc.py");
    let told = run(Command::new(python()).args([script, &format!("grpc://{}", server.flight_sql)]));
    assert_eq!(told, "ok\n");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/flight.py");
    let told = run(Command::new(python()).args([script, &format!("grpc://{}", server.flight_sql)]));
    assert_eq!(told, "ok\n");
    // What was cancelled or closed does not go on: its place is free again.
    support::until(|| server.get("/metrics").1.contains("\ncustody_sql_queries_running 0\n"));
    server.stop_and_verify();
}
