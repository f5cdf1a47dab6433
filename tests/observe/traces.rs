//! Traces of our own: to another server, and never into ourselves.

use std::io::Write as _;
use std::process::Command;

use custody_store::Reader;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use serde_json::{Value, json};

use crate::support::{self, Request, Server};
use crate::{Metrics, PROTOBUF, post, post_spans, read_request, request, span, under};

/// A server that traces everything, to another one; with the id that its traces carry.
fn traced(second: &Server) -> (Server, String) {
    let endpoint = format!("http://{}", second.otlp_http);
    let flags = ["--trace-endpoint", &endpoint, "--trace-ratio", "1", "--log-format", "json", "--log-level", "info"];
    let server = Server::start_in(tempfile::tempdir().unwrap(), &flags);
    let log = std::fs::read_to_string(server.path().join("stderr.log")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let found = lines.filter_map(|line| line["fields"]["instance"].as_str().map(str::to_owned)).next();
    (server, found.expect("the instance is logged"))
}

#[test]
fn one_custody_shows_the_traces_of_another() {
    let second = Server::start();
    let (mut first, instance) = traced(&second);
    first.send_grpc(vec![Request::Traces(request(vec![span(1, 1, "a"), span(1, 2, "b")]))]);
    assert_eq!(post_spans(&first, &request(vec![span(2, 1, "c")])), 200);
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let ask = |caller: &str, sql: &str| {
        let asked = agent.post(format!("http://{}/api/v1/sql", first.http)).header("traceparent", caller);
        asked.header("Content-Type", "application/json").send(json!({"sql": sql}).to_string()).unwrap().status()
    };
    assert_eq!(ask(caller, "SELECT 'a secret'"), 200);
    assert_eq!(ask(&caller.replace("-01", "-00"), "SELECT 2"), 200, "a caller that is not traced");
    let flight = format!(
        "import adbc_driver_flightsql.dbapi as a\nwith a.connect('grpc://{}') as c, c.cursor() as q:\n  \
         q.execute('SELECT 3'); print(q.fetchall())",
        first.flight_sql
    );
    let told = Command::new(support::python()).args(["-c", &flight]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout), "[(3,)]\n", "{}", String::from_utf8_lossy(&told.stderr));
    assert_eq!(first.get("/api/v1/events").0, 200);
    assert_eq!(first.get("/healthz").0, 200);
    // What is left is exported at the end.
    first.stop();

    let spans = second.sql(
        "SELECT name, kind, status_code, service_name, service_instance_id, trace_id, span_id, parent_span_id, attributes \
         FROM spans ORDER BY start_time, seq",
    );
    assert!(spans.iter().all(|s| s["service_name"] == "custody" && s["service_instance_id"] == instance), "{spans:#?}");
    let named = |name: &str| {
        let found: Vec<&Value> = spans.iter().filter(|span| span["name"] == name).collect();
        assert_eq!(found.len(), 1, "{name}: {spans:#?}");
        let attributes: Value = serde_json::from_str(found[0]["attributes"].as_str().unwrap()).unwrap();
        (found[0], attributes)
    };
    let (grpc, attributes) = named("opentelemetry.proto.collector.trace.v1.TraceService/Export");
    assert_eq!(grpc["kind"], "server");
    assert_eq!((&attributes["rpc.system.name"], &attributes["custody.request.records"]), (&json!("grpc"), &json!(2)));
    let (http, attributes) = named("POST /v1/traces");
    assert_eq!(
        (&attributes["http.route"], &attributes["http.response.status_code"]),
        (&json!("/v1/traces"), &json!(200))
    );
    let commits: Vec<&Value> = spans.iter().filter(|span| span["name"] == "custody.commit").collect();
    let parents: Vec<&Value> = commits.iter().map(|commit| &commit["parent_span_id"]).collect();
    assert_eq!(parents, [&grpc["span_id"], &http["span_id"]], "each request was a group of its own");
    let (sql, attributes) = named("POST /api/v1/sql");
    assert_eq!(sql["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(
        (&sql["parent_span_id"], &attributes["http.request.method"]),
        (&json!("b7ad6b7169203331"), &json!("POST"))
    );
    let (flight, attributes) = named("arrow.flight.protocol.FlightService/DoGet");
    assert_eq!(attributes["rpc.response.status_code"], "OK");
    let queries: Vec<&Value> = spans.iter().filter(|span| span["name"] == "custody.query").collect();
    let parents: Vec<&Value> = queries.iter().map(|query| &query["parent_span_id"]).collect();
    assert_eq!(parents, [&sql["span_id"], &flight["span_id"]]);
    assert!(queries[0]["attributes"].as_str().unwrap().contains("\"db.response.returned_rows\":1"), "{queries:?}");
    named("GET /api/v1/events");
    assert_eq!(spans.len(), 9, "health checks are not traced: {spans:#?}");
    assert!(!format!("{spans:?}").contains("a secret"), "the text of queries is not told");
}

#[test]
fn our_own_traces_are_never_taken() {
    let second = Server::start();
    let (mut first, instance) = traced(&second);
    let spans = request(vec![span(1, 1, "export")]).encode_to_vec();
    let (status, body) = post(&first, "/v1/traces", &[PROTOBUF, ("custody-self", &instance)], &spans);
    assert_eq!(status, 400, "a proxy that leads back");
    assert!(String::from_utf8_lossy(&body).contains("own traces"), "{body:?}");
    // The mark of another server is no reason: that is how traces are meant to go.
    assert_eq!(post(&first, "/v1/traces", &[PROTOBUF, ("custody-self", "another")], &spans).0, 200);
    let own = || under("service.instance.id", &instance, vec![span(2, 1, "export")]);
    let collected = ExportTraceServiceRequest { resource_spans: vec![own()] };
    assert_eq!(post_spans(&first, &collected), 400, "a collector that leads back takes the header away");
    let others = under("service.name", "app", vec![span(3, 1, "of somebody else")]);
    let mixed = ExportTraceServiceRequest { resource_spans: vec![own(), others] };
    assert_eq!(post_spans(&first, &mixed), 200, "what is of others is not lost");
    let name = "custody_ingest_refused_requests_total{reason=own_traces,transport=http}";
    assert_eq!(Metrics::of(&first).get(name), 2.0);
    first.stop();
    let exported = second.sql("SELECT name, count(*) AS n FROM spans GROUP BY 1 ORDER BY 1");
    let expected = [json!({"name": "POST /v1/traces", "n": 1}), json!({"name": "custody.commit", "n": 1})];
    assert_eq!(exported, expected, "only what had none of our own in it is traced");
    assert_eq!(Reader::open(&first.data_dir()).unwrap().head().size, 4);
}

#[test]
fn an_endpoint_that_is_this_server_is_refused() {
    for (listen, variable, host) in [
        ("--otlp-http", None, "localhost"),
        ("--otlp-grpc", None, "127.0.0.1"),
        ("--http", Some("OTEL_EXPORTER_OTLP_ENDPOINT"), "0.0.0.0"),
        ("--flight-sql", Some("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), "[::ffff:127.0.0.1]"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("http://{host}:{port}");
        let mut command = Command::new(support::CUSTODY);
        command.arg("serve").arg("--data-dir").arg(folder.path().join("data"));
        for flag in support::FREE_PORTS.chunks(2) {
            let address = if flag[0] == listen { format!("127.0.0.1:{port}") } else { flag[1].to_owned() };
            command.args([flag[0], &address]);
        }
        match variable {
            Some(variable) => command.env(variable, &url),
            None => command.args(["--trace-endpoint", &url]),
        };
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{listen}: {stderr}");
        let named = variable.unwrap_or("--trace-endpoint");
        assert!(stderr.contains("is this server itself") && stderr.contains(named), "{listen}: {stderr}");
    }
}

#[test]
fn what_cannot_be_exported_by_is_refused_at_the_start() {
    let start = |arguments: &[&str], variables: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(support::CUSTODY);
        command.arg("serve").args(support::FREE_PORTS).arg("--data-dir").arg(folder.path().join("data"));
        let output = command.args(arguments).envs(variables.iter().copied()).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9");
    for (arguments, variables, what) in [
        (&["--trace-endpoint", "https://example.com"][..], &[][..], "over http:// only"),
        (&["--trace-endpoint", "nonsense"], &[], "over http:// only"),
        (&["--trace-endpoint", "https://u:hunter2@h/p?token=hunter2"], &[], "--trace-endpoint https://h/p: "),
        (&["--trace-endpoint", "http://u:hunter2@h /"], &[], "--trace-endpoint: this is no URL"),
        (&["--trace-endpoint", "http://127.0.0.1:9", "--trace-ratio", "2"], &[], "between 0 and 1"),
        (&[], &[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], "must be http/protobuf"),
        (&[], &[endpoint, ("OTEL_TRACES_SAMPLER", "xray")], "is not known here"),
    ] {
        let stderr = start(arguments, variables);
        assert!(stderr.contains(what) && stderr.lines().count() == 1, "{what}: {stderr}");
        assert!(!stderr.contains("hunter2"), "{stderr}");
    }
}

#[test]
fn secrets_in_the_endpoint_are_sent_and_not_logged() {
    let collector = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = collector.local_addr().unwrap();
    let endpoint = format!("http://emma:hunter2@{address}/in?token=hunter3");
    let flags = ["--trace-endpoint", &endpoint, "--trace-ratio", "1", "--log-format", "json", "--log-level", "debug"];
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &flags);
    assert_eq!(post_spans(&server, &request(vec![span(1, 1, "a")])), 200);
    let asked = std::thread::Builder::new().name("collector".into()).spawn(move || {
        let (mut stream, _) = collector.accept().unwrap();
        let line = read_request(&mut stream);
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        line
    });
    server.stop();
    assert_eq!(asked.unwrap().join().unwrap(), "POST /in?token=hunter3 HTTP/1.1");
    let log = std::fs::read_to_string(server.path().join("stderr.log")).unwrap();
    assert!(log.contains(&format!("\"http://{address}/in\"")), "{log}");
    assert!(!log.contains("hunter") && !log.contains("emma"), "{log}");
    let lost = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let lost: Vec<Value> = lost.filter(|line| line["level"] != "DEBUG" && line["level"] != "INFO").collect();
    let told = |line: &&Value| line["message"].as_str().unwrap().contains("could not be exported");
    let told = lost.iter().find(told).unwrap_or_else(|| panic!("nobody says that traces are lost: {lost:#?}"));
    assert_eq!(told["fields"]["error"], "the answer is 400 Bad Request");
    assert_eq!(told["fields"]["endpoint"], format!("http://{address}/in"));
    assert!(lost.iter().all(|line| line["message"] != ""), "a line that says nothing: {lost:#?}");
}
