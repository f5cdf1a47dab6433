//! What befell others (docs/threat-model.md, "What befell others"), tried here.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::{POLICY, Running, Site, now};
use crate::support::{Server, until};

/// One request as it stands here: status, head and body of the answer.
fn raw(address: &str, request: &str, body: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    let length = body.len();
    write!(stream, "{request}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), head.to_lowercase(), body.to_owned())
}

fn get(server: &Server, path: &str) -> (u16, String, String) {
    raw(&server.http, &format!("GET {path} HTTP/1.1\r\nHost: x"), "")
}

fn high_water_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// CVE-2026-21728 (Tempo): memory was reserved for as many results as a request asked for.
#[test]
fn who_asks_for_much_is_given_what_there_is_or_told_the_bound() {
    let server = Server::start();
    server.send_span_of("acme");
    server.wait_until_visible();
    let most = u64::MAX;
    let begun = Instant::now();
    for (path, wanted) in [
        (format!("/api/v1/events?limit={most}"), 400),
        (format!("/api/v1/events?limit={most}0"), 400),
        (format!("/api/v1/events?from_seq={most}"), 400),
        (format!("/api/v1/alerts?limit={most}"), 400),
        (format!("/api/traces?service=x&limit={most}"), 400),
        (format!("/api/traces?service=x&limit={}", i32::MAX), 400),
        (format!("/tile/entries/x999/x999/x999/x999/x999/x999/999.p/{most}"), 404),
        ("/tile/63/x999/x999/x999/x999/x999/999".into(), 404),
    ] {
        let (status, _, body) = get(&server, &path);
        assert!(status == wanted || (wanted == 400 && status == 200), "{path}: {status} {body}");
        assert!(body.len() < 1 << 16, "{path}: {} bytes", body.len());
    }
    let ask = |body: Value| {
        let head = "POST /api/v1/sql HTTP/1.1\r\nHost: x\r\nContent-Type: application/json";
        raw(&server.http, head, &body.to_string())
    };
    let (status, head, body) = ask(json!({"sql": "SELECT 1 AS n", "max_rows": most, "timeout_ms": most}));
    assert_eq!(status, 200, "{body}");
    assert!(!head.contains(&format!("x-rows-max: {most}")), "{head}");
    // A consumer that would keep its batch for ever keeps it as long as there are times.
    let next =
        |query: &str| raw(&server.http, &format!("POST /api/v1/consumers/a/next?{query} HTTP/1.1\r\nHost: x"), "");
    assert_eq!(next(&format!("lease={most}")).0, 200);
    let (status, head, _) = next("");
    assert!(status == 200 && head.contains("x-consumer-state: leased"), "{head}");
    assert!(begun.elapsed() < crate::support::PATIENCE, "{:?}", begun.elapsed());
    let memory = high_water_bytes(server.pid());
    assert!(memory < 512 << 20, "{} MiB", memory >> 20);
}

/// CVE-2026-28377 (Tempo): a page with the configuration had a key in it.
#[test]
fn no_page_has_the_configuration_and_no_path_leads_to_a_file() {
    let secrets = ["a-secret-key-of-a-store", "a-session-token-of-a-store"];
    let environment =
        [("AWS_SECRET_ACCESS_KEY", secrets[0]), ("AWS_SESSION_TOKEN", secrets[1]), ("CUSTODY_LOG", "trace")];
    let server = Server::start_with(tempfile::tempdir().unwrap(), &[], &environment);
    let key = std::fs::read_to_string(server.data_dir().join("keys/log.key")).unwrap();
    // The end of a line is a piece of the key itself, and not of its name.
    let own: Vec<&str> = key.lines().filter(|line| line.len() > 60).map(|line| &line[line.len() - 20..]).collect();
    assert!(!own.is_empty(), "{} lines", key.lines().count());
    let innocent = |what: &str, told: &str| {
        for secret in own.iter().chain(&secrets) {
            assert!(!told.contains(secret), "{what} shows a secret");
        }
        assert!(!told.contains("root:x:0:0"), "{what} shows a file");
    };
    for path in [
        "/config",
        "/status",
        "/status/config",
        "/api/status/config",
        "/api/v1/status/config",
        "/api/v1/config",
        "/debug/pprof/",
        "/debug/vars",
        "/env",
        "/.env",
        "/actuator/env",
        "/keys/log.key",
        "/../keys/log.key",
        "/tile/../keys/log.key",
        "/tile/%2e%2e/keys/log.key",
        "/tile/entries/../../keys/log.key",
        "/tile/entries/..%2f..%2fkeys%2flog.key",
        "/tile//etc/passwd",
        "/checkpoint/../keys/log.key",
        "/api/v1/consumers/..%2f..%2fkeys%2flog.key",
        "//etc/passwd",
        "/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/..\\..\\keys\\log.key",
    ] {
        let (status, _, body) = get(&server, path);
        assert!(matches!(status, 400 | 404), "{path}: {status} {body}");
        innocent(path, &body);
    }
    for path in ["/metrics", "/readyz", "/healthz", "/openapi.json", "/", "/api/v1/queries", "/checkpoint"] {
        let (status, _, body) = get(&server, path);
        assert_eq!(status, 200, "{path}: {body}");
        innocent(path, &body);
    }
    innocent("the log", &std::fs::read_to_string(server.path().join("stderr.log")).unwrap());
}

/// CVE-2026-47735 (Arc) and CVE-2026-27876 (Grafana): SQL read files past a list of what is forbidden, and ran
/// programs. Here there is a list of what is allowed.
#[test]
fn sql_reads_no_file_and_runs_nothing() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("written.csv");
    let file = file.to_str().unwrap();
    for sql in [
        "SELECT * FROM '/etc/passwd'".to_owned(),
        "SELECT * FROM \"/etc/passwd\"".into(),
        "SELECT * FROM 'file:///etc/passwd'".into(),
        "SELECT * FROM read_csv('/etc/passwd')".into(),
        "SELECT * FROM read_text('/etc/passwd')".into(),
        "SELECT * FROM READ_PARQUET ( '/etc/passwd' )".into(),
        "SELECT * FROM glob('/etc/*')".into(),
        "SELECT pg_read_file('/etc/passwd')".into(),
        "SELECT * FROM \"s3://bucket/key\"".into(),
        "SELECT * FROM \"http://127.0.0.1:1/x\"".into(),
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'".into(),
        "EXPLAIN CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'".into(),
        format!("COPY (SELECT 1) TO '{file}'"),
        format!("EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}'"),
        format!("SELECT 1 INTO OUTFILE '{file}'"),
        "SELECT 1; DROP TABLE spans".into(),
        "INSTALL shellfs".into(),
        "LOAD 'x.so'".into(),
        "CREATE FUNCTION f AS 'x' LANGUAGE c".into(),
        "SET datafusion.execution.target_partitions = 1".into(),
        "ATTACH '/etc/passwd' AS x".into(),
    ] {
        let head = "POST /api/v1/sql HTTP/1.1\r\nHost: x\r\nContent-Type: application/json";
        let (status, _, body) = raw(&server.http, head, &json!({"sql": sql}).to_string());
        assert!(matches!(status, 400 | 403), "{sql}: {status} {body}");
        assert!(!body.contains("root:x"), "{sql}: {body}");
    }
    assert!(!std::path::Path::new(file).exists());
    assert_eq!(get(&server, "/healthz").0, 200);
}

/// CVE-2026-25528 (LangSmith): `baggage` named where traces go. CVE-less kin: a host in a header that links repeat.
#[test]
fn no_header_leads_anywhere() {
    let (elsewhere, collector) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    elsewhere.set_nonblocking(true).unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let mut server =
        Server::start_in(tempfile::tempdir().unwrap(), &["--trace-endpoint", &endpoint, "--trace-ratio", "1"]);
    let there = elsewhere.local_addr().unwrap().to_string();
    let headers = [
        format!("Host: {there}"),
        format!("baggage: langsmith-replicas=%5B%7B%22apiUrl%22%3A%22http%3A%2F%2F{there}%22%7D%5D"),
        format!("baggage: otel.exporter.otlp.endpoint=http://{there},custody.endpoint=http://{there}"),
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        format!("tracestate: custody=http://{there}"),
        format!("X-Forwarded-Host: {there}"),
        format!("Forwarded: host={there};proto=http"),
        format!("X-Original-URL: http://{there}/"),
        format!("Referer: http://{there}/"),
        format!("OTEL-Exporter-OTLP-Endpoint: http://{there}"),
    ];
    let sent = headers.join("\r\n");
    // A page's origin alone is a reason to take no record from it.
    let headers = format!("{sent}\r\nOrigin: http://{there}");
    let span = json!({"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "5b8efff798038103d269b633813fc60c",
        "spanId": "00f067aa0ba902b7", "name": "x", "startTimeUnixNano": "1"}]}]}]});
    for (headers, status) in [(&sent, 200), (&headers, 403)] {
        let post = format!("POST /v1/traces HTTP/1.1\r\n{headers}\r\nContent-Type: application/json");
        assert_eq!(raw(&server.otlp_http, &post, &span.to_string()).0, status);
    }
    server.wait_until_visible();
    for path in ["/api/v1/events", "/checkpoint", "/api/services", "/", "/nothing"] {
        let (_, head, body) = raw(&server.http, &format!("GET {path} HTTP/1.1\r\n{headers}"), "");
        assert!(!head.contains(&there) && !body.contains(&there), "{path}: {head}\n{body}");
        assert!(!head.contains("access-control-allow-origin"), "{head}");
    }
    let (_, head, _) = raw(&server.http, &format!("GET /api/v1/events HTTP/1.1\r\n{headers}"), "");
    assert!(head.contains("\r\nlink: </api/v1/events?after="), "a link has no host of its own: {head}");
    // What it exports of itself goes where it was told to by its operator, and nowhere else.
    assert!(collector.accept().is_ok());
    drop(collector);
    server.stop();
    assert!(elsewhere.accept().is_err(), "somebody was led there");
}

/// Scripts in spans (Jaeger UI): what is shown is text, and what is no page is not taken for one.
#[test]
fn nothing_that_a_sender_says_is_a_script_in_the_page() {
    let server = Server::start();
    let (status, head, page) = get(&server, "/");
    assert_eq!(status, 200);
    let policy = head.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).unwrap().to_owned();
    for rule in
        ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"]
    {
        assert!(policy.contains(rule), "{policy}");
    }
    for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc"] {
        assert!(!page.contains(way), "{way} makes text into more");
    }
    let evil = "<script>alert(1)</script><img src=x onerror=alert(1)>";
    let record = json!({"timeUnixNano": "1795165200000000000", "eventName": "authz.request", "attributes": [
        {"key": "authz.initiator.id", "value": {"stringValue": evil}},
        {"key": "authz.initiator.type", "value": {"stringValue": "user"}}]});
    let body = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}).to_string();
    let sent = "POST /v1/logs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json";
    assert_eq!(raw(&server.otlp_http, sent, &body).0, 200);
    server.wait_until_visible();
    let paths = ["raw", "ocsf", "ecs", "cef"].map(|format| format!("/api/v1/events?format={format}"));
    let wrong = [
        "/%3Cscript%3E",
        "/api/v1/alerts/%3Cscript%3E",
        "/api/traces/%3Cscript%3E",
        "/api/v1/events?kind=%3Cscript%3E",
    ];
    for path in paths.iter().map(String::as_str).chain(wrong) {
        let (_, head, body) = get(&server, path);
        assert!(!head.contains("content-type: text/html"), "{path}: {head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{path}: {head}");
        assert!(wrong.contains(&path) || body.contains("alert(1)"), "{path} gives what was sent: {body}");
    }
}

/// Sends a tool call of a tenant, in a trace and under a grant of its own; gives nothing that another tenant knows.
fn call(running: &Running<'_>, client: &ureq::Agent, tenant: &str, trace: &str) {
    let attribute = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    let attributes = json!([
        attribute("gen_ai.operation.name", "execute_tool"),
        attribute("gen_ai.tool.name", &format!("tool-of-{tenant}")),
        attribute("authz.grant.id", &format!("grant-of-{tenant}")),
    ]);
    let time = (now() * 1_000_000_000).to_string();
    let span = json!({"traceId": trace, "spanId": &trace[..16], "name": format!("call of {tenant}"),
        "startTimeUnixNano": time, "endTimeUnixNano": time, "attributes": attributes});
    let resource = json!({"attributes": [attribute("tenant.id", tenant), attribute("service.name", &format!("service-of-{tenant}"))]});
    let body = json!({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}).to_string();
    let url = format!("https://{}/v1/traces", running.server.otlp_http);
    let answer = client.post(&url).header("Content-Type", "application/json").send(body.as_bytes()).unwrap();
    assert_eq!(answer.status(), 200);
}

/// Ids and places of others, known or guessed, are worth nothing.
#[test]
fn cursors_consumers_and_ids_of_another_tenant_lead_to_nothing_of_his() {
    let site = Site::new();
    let rules: String = ["globex", "acme"]
        .iter()
        .map(|tenant| {
            format!(
                "\n[[allow]]\nidentity = \"cert:CN={tenant}\"\nactor = \"automation\"\n\
                 roles = [\"read\", \"stream\", \"investigate\", \"export\"]\ntenants = [\"{tenant}\"]\n"
            )
        })
        .collect();
    site.write("policy.toml", &format!("{POLICY}{rules}"));
    let running = site.start();
    let agent = running.with(&site.authority.workload("spiffe://example.com/agents/support"));
    let [globex, acme] = ["globex", "acme"].map(|name| running.with(&site.authority.named(name)));
    let traces = ["1".repeat(32), "2".repeat(32)];
    for n in 0..3 {
        call(&running, &agent, "globex", &format!("{n}{}", &traces[0][1..]));
        call(&running, &agent, "acme", &format!("{n}{}", &traces[1][1..]));
    }
    let ask = |client: &ureq::Agent, method: &str, path: &str| {
        let request = ureq::http::Request::builder().method(method).uri(running.url(path)).body(()).unwrap();
        let mut answer = client.run(request).unwrap();
        let cursor = answer.headers().get("x-next-cursor").map(|value| value.to_str().unwrap().to_owned());
        (answer.status().as_u16(), cursor.unwrap_or_default(), answer.body_mut().read_to_string().unwrap())
    };
    let count = |text: &str| text.matches("\"tool\":\"tool-of-acme\"").count();
    until(|| count(&ask(&acme, "GET", "/api/v1/events").2) == 3);
    until(|| ask(&globex, "GET", "/api/v1/events").2.matches("\"tool\":\"tool-of-globex\"").count() == 3);
    let innocent =
        |what: &str, told: &str| assert!(!told.contains("of-acme") && !told.contains("of acme"), "{what}: {told}");

    // A cursor is a place, and what stands behind it is what its bearer may see.
    let (_, cursor, page) = ask(&acme, "GET", "/api/v1/events?limit=1");
    assert_eq!(count(&page), 1);
    let (status, _, told) = ask(&globex, "GET", &format!("/api/v1/events?after={cursor}"));
    assert_eq!(status, 200, "{told}");
    innocent("a cursor of acme", &told);
    assert_eq!(count(&ask(&acme, "GET", &format!("/api/v1/events?after={cursor}")).2), 2);
    // A consumer is found under its owner's identity.
    assert_eq!(count(&ask(&acme, "POST", "/api/v1/consumers/siem/next?limit=1").2), 1);
    for method in ["GET", "DELETE"] {
        assert_eq!(ask(&globex, method, "/api/v1/consumers/siem").0, 404, "{method}");
    }
    assert_eq!(ask(&globex, "GET", "/api/v1/consumers").2, "{\"consumers\":[]}");
    innocent("a consumer of that name", &ask(&globex, "POST", "/api/v1/consumers/siem/next").2);
    assert_eq!(count(&ask(&acme, "POST", "/api/v1/consumers/siem/next").2), 2, "nobody moved it");
    // Ids.
    let theirs = format!("0{}", &traces[1][1..]);
    for (path, mine) in [
        (format!("/api/v1/replay?id={theirs}"), true),
        ("/api/v1/replay?id=grant-of-acme".into(), true),
        (format!("/api/traces/{theirs}"), true),
        (format!("/api/v3/traces/{theirs}"), true),
        ("/api/services/service-of-acme/operations".into(), true),
        ("/api/v1/events?service=service-of-acme".into(), true),
        ("/api/services".into(), true),
        ("/api/v1/alerts".into(), false),
    ] {
        let (status, _, told) = ask(&globex, "GET", &path);
        assert!(status < 500, "{path}: {status} {told}");
        innocent(&path, &told.replace("service-of-acme/", "").replace("grant-of-acme", ""));
        let (_, _, own) = ask(&acme, "GET", &path);
        assert!(!mine || own.contains("of-acme") || own.contains("of acme"), "{path}: its owner finds it: {own}");
    }
    let post = |client: &ureq::Agent, path: &str, sql: &str| {
        let request = client.post(running.url(path)).header("Content-Type", "application/json");
        let mut answer = request.send(json!({"sql": sql}).to_string().as_bytes()).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    let seqs = running.rows("SELECT seq FROM spans WHERE tenant = 'acme' ORDER BY seq");
    let seq = &seqs[0]["seq"];
    let of = format!("SELECT proof({seq}) IS NULL AND payload({seq}) IS NULL AS hidden");
    assert!(post(&globex, "/api/v1/sql", &of).1.contains("\"hidden\":true"));
    assert!(post(&acme, "/api/v1/sql", &of).1.contains("\"hidden\":false"));
    let named = format!("SELECT {seq} AS seq");
    assert_eq!(post(&globex, "/api/v1/evidence", &named).0, 403);
    assert_eq!(post(&acme, "/api/v1/evidence", &named).0, 200);
}

/// DNS rebinding (CVE-2018-5702 and its kin): a page in a browser whose name was made to lead to this machine reads what is
/// there for its programs.
#[test]
fn a_page_whose_name_leads_here_is_no_program_of_this_machine() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.toml");
    std::fs::write(
        &policy,
        "[[allow]]\nidentity = \"peer:127.0.0.1\"\nroles = [\"read\", \"stream\"]\ntenants = [\"*\"]\n",
    )
    .unwrap();
    let by_address = ["--policy", policy.to_str().unwrap()];
    for flags in [&[][..], &by_address] {
        let server = Server::start_in(tempfile::tempdir().unwrap(), flags);
        let ask = |host: &str, path: &str| raw(&server.http, &format!("GET {path} HTTP/1.1\r\nHost: {host}"), "");
        let port = server.http.rsplit(':').next().unwrap();
        for path in ["/checkpoint", "/api/v1/events", "/api/v1/queries"] {
            for host in ["127.0.0.1", "localhost", "[::1]", "custody"] {
                assert_eq!(ask(&format!("{host}:{port}"), path).0, 200, "{host}{path}");
            }
            for host in ["evil.example.com", "127.0.0.1.evil.example.com", "localhost.example.com"] {
                let (status, _, body) = ask(&format!("{host}:{port}"), path);
                assert!(
                    status == 403 && body.contains("DNS rebinding") && body.contains("docs/security.md"),
                    "{host}: {body}"
                );
            }
        }
        let sql = json!({"sql": "SELECT 1"}).to_string();
        let asked =
            format!("POST /api/v1/sql HTTP/1.1\r\nHost: evil.example.com:{port}\r\nContent-Type: application/json");
        assert_eq!(raw(&server.http, &asked, &sql).0, 403);
        assert_eq!(ask("custody.example.com", "/healthz").0, 200, "whoever routes requests asks by any name");
    }
}

/// Cross-site request forgery: a page cannot read an answer, but a batch that it takes is gone for the SIEM whose
/// consumer it is.
#[test]
fn a_page_of_another_site_takes_no_batch_from_a_siem() {
    let server = Server::start_in(tempfile::tempdir().unwrap(), &[]);
    let next = |more: &str| {
        let head = format!("POST /api/v1/consumers/siem/next?limit=1 HTTP/1.1\r\nHost: {}{more}", server.http);
        let (status, _, body) = raw(&server.http, &head, "");
        (status, body)
    };
    for more in [
        "\r\nOrigin: https://evil.example.com\r\nContent-Type: text/plain",
        "\r\nOrigin: null",
        "\r\nSec-Fetch-Site: cross-site",
    ] {
        let (status, body) = next(more);
        assert!(status == 403 && body.contains("page of another site"), "{more}: {body}");
    }
    let (_, _, listed) = raw(&server.http, &format!("GET /api/v1/consumers HTTP/1.1\r\nHost: {}", server.http), "");
    assert!(!listed.contains("siem"), "nothing was made: {listed}");
    for more in ["", &format!("\r\nOrigin: http://{}", server.http), "\r\nSec-Fetch-Site: same-origin"] {
        let (status, body) = next(more);
        assert_eq!(status, 200, "{more}: {body}");
    }
}
