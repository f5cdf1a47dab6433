//! A log of records with known tenants, workspaces and words, and ways to ask for them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use arrow_flight::sql::client::FlightSqlServiceClient;
use custody_proto::{Limits, Signal, json, scan};
use custody_query::serve::observe::Unobserved;
use custody_query::serve::{Served, flight, router};
use custody_query::{Caller, Engine, Error, Projection, QueryLimits, RowFilter, SegmentLimits, format};
use custody_store::{Encoding, Options, Prepared, Writer, open};
use futures::TryStreamExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Who sends.
pub const SENDER: &str = "cert:sender";

/// 2026-11-20T09:00:00Z, in ns.
const START: u64 = 1_795_165_200_000_000_000;

/// Kinds of records.
pub const KINDS: u8 = 9;

/// A record to be made.
#[derive(Clone, Debug)]
pub struct Made {
    pub kind: u8,
    pub tenant: Option<&'static str>,
    pub workspace: Option<&'static str>,
    /// Whether its resource says whose it is, and not the record itself.
    pub in_resource: bool,
    pub trace: u64,
    pub grant: u64,
}

impl Made {
    /// A tool call.
    pub fn span() -> Self {
        Self { kind: 0, tenant: None, workspace: None, in_resource: true, trace: 0, grant: 0 }
    }

    fn word(i: usize) -> String {
        format!("wordof{i}x")
    }

    /// Its request, as OTLP/JSON.
    fn request(&self, i: usize) -> (Signal, Value) {
        let word = Self::word(i);
        let mut own = json!({"note": word, "authz.grant.id": format!("g{}", self.grant), "gen_ai.agent.id": format!("a{}", self.trace),
            "gen_ai.agent.name": word, "authz.action": word, "authz.resource": word, "gen_ai.conversation.id": format!("c{}", self.trace)});
        let mut resource = json!({"service.name": word, "service.instance.id": word});
        let place = if self.in_resource || self.kind == 7 { &mut resource } else { &mut own };
        for (key, value) in [("tenant.id", self.tenant), ("authz.workspace", self.workspace)] {
            if let Some(value) = value {
                place[key] = value.into();
            }
        }
        let more = match self.kind {
            0 | 1 => {
                json!({"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": word, "gen_ai.tool.call.arguments": word,
                "gen_ai.tool.call.result": word, "gen_ai.tool.call.id": format!("t{i}")})
            }
            2 => {
                json!({"authz.grant.issuer": word, "authz.grant.subject": format!("a{}", self.trace), "authz.grant.purpose": word,
                "authz.grant.actions": [word], "authz.grant.resources": [word]})
            }
            3 => json!({"authz.grant.parent_id": format!("g{}", self.grant + 1), "authz.grant.issuer": word,
                "authz.grant.subject": format!("a{}", self.trace), "authz.grant.actions": [word]}),
            4 => {
                json!({"authz.grant.subject": format!("a{}", self.trace), "authz.grant.actions": [word], "authz.reasons": [word]})
            }
            5 => {
                json!({"security.alert.id": format!("alert{i}"), "security.alert.rule": word, "security.alert.title": word,
                "security.alert.severity": "high", "security.alert.evidence": [0, 1, 2, 3, 4, 5]})
            }
            // The refusal of a call: `grant` says which record it is.
            9 => json!({"authz.decision": "deny", "gen_ai.tool.call.id": format!("t{}", self.grant)}),
            8 => json!({"gen_ai.operation.name": "chat", "gen_ai.request.model": word, "gen_ai.response.model": word,
                "gen_ai.response.id": word, "gen_ai.usage.input_tokens": 5, "gen_ai.input.messages": word}),
            _ => json!({}),
        };
        own.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let time = (START + i as u64 * 1_000_000_000).to_string();
        let trace = format!("{:032x}", self.trace + 1);
        let log = |name: &str| {
            let record = json!({"timeUnixNano": time, "eventName": name, "traceId": trace, "body": {"stringValue": word},
                "severityText": word, "attributes": attributes(&own)});
            json!({"resourceLogs": [{"resource": {"attributes": attributes(&resource)}, "scopeLogs": [{"logRecords": [record]}]}]})
        };
        match self.kind {
            0 | 1 | 8 => {
                let parent = if self.kind == 1 { format!("{:016x}", i) } else { String::new() };
                let end = (START + i as u64 * 1_000_000_000 + 5).to_string();
                let span = json!({"traceId": trace, "spanId": format!("{:016x}", i + 1), "parentSpanId": parent, "name": word,
                    "startTimeUnixNano": time, "endTimeUnixNano": end, "attributes": attributes(&own)});
                let resource = json!({"attributes": attributes(&resource)});
                (Signal::Traces, json!({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}))
            }
            2 => (Signal::Logs, log("authz.grant.issued")),
            3 => (Signal::Logs, log("authz.grant.derived")),
            4 => (Signal::Logs, log("authz.grant.denied")),
            5 => (Signal::Logs, log("security.alert")),
            6 => (Signal::Logs, log("something.else")),
            9 => (Signal::Logs, log("authz.executor.decision")),
            _ => {
                let points = json!([{"timeUnixNano": time, "asInt": "1", "attributes": attributes(&own)}]);
                let metric = json!({"name": word, "unit": word, "gauge": {"dataPoints": points}});
                let resource = json!({"attributes": attributes(&resource)});
                (
                    Signal::Metrics,
                    json!({"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"metrics": [metric]}]}]}),
                )
            }
        }
    }
}

fn attributes(attributes: &Value) -> Value {
    let value = |v: &Value| match v {
        Value::String(s) => json!({"stringValue": s}),
        Value::Array(a) => {
            let item = |i: &Value| match i {
                Value::String(s) => json!({"stringValue": s}),
                other => json!({"intValue": other}),
            };
            json!({"arrayValue": {"values": a.iter().map(item).collect::<Vec<_>>()}})
        }
        Value::Number(n) => json!({"intValue": n.to_string()}),
        other => panic!("no such attribute: {other}"),
    };
    attributes.as_object().unwrap().iter().map(|(k, v)| json!({"key": k, "value": value(v)})).collect()
}

/// A log and an engine over it.
pub struct Case {
    pub engine: Engine,
    pub writer: Arc<Mutex<Writer>>,
    records: Vec<Made>,
    /// The seq of the first of them: the log begins with records of its own.
    first: u64,
    _follower: custody_query::Follower,
    _dir: tempfile::TempDir,
}

impl Case {
    /// `sealed` records make a segment; 0 for all in memory.
    pub fn of(records: Vec<Made>, sealed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, reader) = open(dir.path(), Options::default()).unwrap();
        let limits = match sealed {
            0 => SegmentLimits::default(),
            records_max => SegmentLimits { records_max: records_max * 3, ..SegmentLimits::default() },
        };
        let (projection, follower) = Projection::follow(reader, limits).unwrap();
        let first = writer.head_size();
        for (i, made) in records.iter().enumerate() {
            let (signal, request) = made.request(i);
            let payload = json::transcode(signal, request.to_string().as_bytes()).unwrap();
            let found = scan(signal, &payload, &Limits::default()).unwrap();
            assert_eq!(found.records.len(), 1, "{request}");
            writer.append(vec![Prepared::new(signal, Encoding::Json, payload.into(), found, SENDER)]).unwrap();
        }
        writer.checkpoint().unwrap();
        let writer = Arc::new(Mutex::new(writer));
        Self { engine: Engine::new(projection).unwrap(), writer, records, first, _follower: follower, _dir: dir }
    }

    pub fn size(&self) -> u64 {
        self.first + self.records.len() as u64
    }

    /// The seqs that a filter lets through.
    pub fn shown(&self, filter: &RowFilter) -> BTreeSet<u64> {
        let within = |allowed: &Option<Arc<[String]>>, value: Option<&str>| match allowed {
            None => true,
            Some(allowed) => value.is_some_and(|value| allowed.iter().any(|a| a == value)),
        };
        let sees = |made: &Made| within(&filter.tenants, made.tenant) && within(&filter.workspaces, made.workspace);
        let own = (0..self.first).filter(|_| filter.tenants.is_none() && filter.workspaces.is_none());
        let sent = self.records.iter().enumerate().filter(|(_, made)| sees(made)).map(|(i, _)| self.first + i as u64);
        own.chain(sent).collect()
    }

    /// Each record's word.
    pub fn words(&self) -> impl Iterator<Item = (u64, String)> {
        (0..self.records.len()).map(|i| (self.first + i as u64, Made::word(i)))
    }

    /// What can be replayed.
    pub fn ids(&self) -> impl Iterator<Item = String> {
        let traces = (0..5).map(|trace| format!("{:032x}", trace));
        let rest = (0..5).flat_map(|i| [format!("a{i}"), format!("g{i}"), format!("c{i}")]);
        let alerts = (0..self.records.len()).map(|i| format!("alert{i}"));
        traces.chain(rest).chain(alerts)
    }

    /// The answer as text: every value of every row, or the error.
    pub async fn ask(&self, caller: &Caller, sql: &str) -> Result<String, Error> {
        let mut visible = self.engine.projection().visible();
        visible.wait_for(|size| *size >= self.size()).await.unwrap();
        let limits = QueryLimits { rows_max: 100_000, ..QueryLimits::default() };
        let answer = self.engine.sql(caller, sql, vec![], limits).await?;
        let rows = format::rows(&answer.batches)?;
        // Bytes come as hex; the words of payloads must be found, too.
        let text = serde_json::to_string(&rows).unwrap();
        let bytes = rows
            .iter()
            .flat_map(|row| row.values())
            .filter_map(Value::as_str)
            .filter_map(|s| const_hex::decode(s).ok());
        let bytes: Vec<String> = bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect();
        Ok(text + &bytes.join("\n"))
    }

    /// The first column as texts.
    pub async fn column(&self, caller: &Caller, sql: &str) -> Vec<String> {
        self.ask(caller, "SELECT 1").await.unwrap();
        let answer = self.engine.sql(caller, sql, vec![], QueryLimits::default()).await;
        let answer = answer.unwrap_or_else(|e| panic!("{sql}: {e}"));
        let rows = format::rows(&answer.batches).unwrap();
        let first = |row: serde_json::Map<String, Value>| match row.into_iter().next() {
            Some((_, Value::String(text))) => text,
            Some((_, value)) => value.to_string(),
            None => String::new(),
        };
        rows.into_iter().map(first).collect()
    }
}

/// The same over HTTP: queries in all formats, and events as pages and as a stream.
pub async fn over_http(case: &Case, caller: &Caller, innocent: &impl Fn(&str, &str)) {
    let served = Served::new(case.engine.clone(), QueryLimits::default(), Arc::new(Unobserved));
    let app = router(served).layer(axum::Extension(caller.clone()));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(axum::serve(listener, app).into_future());
    // A stream of events does not end: it is read until it has told all that it must.
    let get = async |head: &str, must: &[String]| {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{head}\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let (mut answer, wait) = (Vec::new(), std::time::Duration::from_secs(120));
        loop {
            let told = String::from_utf8_lossy(&answer).into_owned();
            if head.contains("event-stream") && told.contains("\r\n\r\n") && must.iter().all(|m| told.contains(m)) {
                return told;
            }
            match tokio::time::timeout(wait, stream.read_buf(&mut answer)).await {
                Ok(Ok(n)) if n > 0 => {}
                _ => return String::from_utf8_lossy(&answer).into_owned(),
            }
        }
    };
    for accept in ["application/x-ndjson", "application/json", "text/event-stream"] {
        let events = case.column(caller, "SELECT seq FROM events").await;
        let must: Vec<String> = events.iter().map(|seq| format!("\"seq\":{seq},")).collect();
        let told = get(&format!("GET /api/v1/events?format=raw HTTP/1.1\r\nAccept: {accept}"), &must).await;
        assert!(told.starts_with("HTTP/1.1 200"), "{told}");
        innocent(accept, &told);
        assert!(must.iter().all(|m| told.contains(m)), "{events:?} {told}");
    }
    for path in [
        "/api/v1/events?kind=tool_call,alert",
        "/api/v1/events?format=ocsf",
        "/api/v1/alerts",
        "/checkpoint",
        "/tile/entries/000.p/1",
        "/openapi.json",
    ] {
        innocent(path, &get(&format!("GET {path} HTTP/1.1"), &[]).await);
    }
    over_jaeger(case, caller, innocent, &get).await;
    for format in ["json", "csv", "arrow", "parquet"] {
        let body = json!({"sql": "SELECT * FROM spans UNION ALL SELECT * FROM spans", "format": format}).to_string();
        let head =
            format!("POST /api/v1/sql HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{head}\r\nHost: x\r\nConnection: close\r\n\r\n{body}").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let told = String::from_utf8_lossy(&answer).into_owned();
        assert!(told.starts_with("HTTP/1.1 200"), "{told}");
        innocent(format, &told);
    }
    serving.abort();
}

/// The same over the query API of Jaeger: every path, each trace by its id, and the words of each record as service,
/// operation and tag. What is hidden is not found either, and what is shown is.
async fn over_jaeger(
    case: &Case,
    caller: &Caller,
    innocent: &impl Fn(&str, &str),
    get: &impl AsyncFn(&str, &[String]) -> String,
) {
    let time = "query.startTimeMin=2026-11-20T08:00:00Z&query.startTimeMax=2026-11-20T10:00:00Z";
    let (start, end) = ((START / 1000).to_string(), (START / 1000 + 3_600_000_000).to_string());
    let mut paths = vec![
        "/api/services".to_owned(),
        "/api/services?lookback=1000000000000".to_owned(),
        "/api/v3/services".to_owned(),
        "/api/dependencies?endTs=1795168800000&lookback=86400000".to_owned(),
        format!("/api/v3/traces?{time}"),
        format!("/api/v3/trace-summaries?{time}"),
        "/api/v3/dependencies?startTime=2026-11-20T08:00:00Z&endTime=2026-11-20T10:00:00Z".to_owned(),
    ];
    let ids = (0..6).map(|trace| format!("{trace:032x}"));
    paths.extend(ids.flat_map(|id| [format!("/api/traces/{id}"), format!("/api/v3/traces/{id}?rawTraces=true")]));
    for (seq, word) in case.words() {
        // Both versions look in the same way: each word is asked of one of them.
        paths.extend(match seq % 2 {
            0 => [
                format!("/api/services/{word}/operations"),
                format!("/api/traces?service={word}&start={start}&end={end}"),
            ],
            _ => [
                format!("/api/v3/operations?service={word}"),
                format!("/api/v3/trace-summaries?{time}&query.attributes=%7B%22note%22%3A%22{word}%22%7D"),
            ],
        });
    }
    let shown = case.column(caller, "SELECT seq FROM spans").await;
    let mut told_of = BTreeSet::new();
    for path in paths {
        let told = get(&format!("GET {path} HTTP/1.1"), &[]).await;
        let status = told.split_whitespace().nth(1).unwrap_or_default().to_owned();
        assert!(status == "200" || status == "404", "{path}: {told}");
        // It says what was asked for nowhere, so a word is that of a record.
        innocent(&path, &told);
        told_of.extend(
            shown
                .iter()
                .filter(|seq| told.contains(&format!("\"custody.seq\",\"type\":\"int64\",\"value\":{seq}}}")))
                .cloned(),
        );
    }
    assert_eq!(told_of, shown.into_iter().collect(), "all that is shown is there");
}

/// The same over Flight SQL: a statement, a prepared one, and the metadata.
pub async fn over_flight(case: &Case, caller: &Caller, innocent: &impl Fn(&str, &str)) {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let service = flight::service(case.engine.clone(), Arc::new(Unobserved), &QueryLimits::default());
    let app = tonic::service::Routes::new(service).prepare().into_axum_router().layer(axum::Extension(caller.clone()));
    let serving = tokio::spawn(axum::serve(listener, app).into_future());
    let channel = tonic::transport::Channel::from_shared(url).unwrap().connect().await.unwrap();
    let mut client = FlightSqlServiceClient::new(channel);
    let mut statement = client.prepare("SELECT * FROM logs".to_owned(), None).await.unwrap();
    let asked =
        [client.execute("SELECT * FROM spans".to_owned(), None).await.unwrap(), statement.execute().await.unwrap()];
    for info in asked {
        let rows = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
        let batches: Vec<_> = rows.try_collect().await.unwrap();
        innocent("Flight SQL", &serde_json::to_string(&format::rows(&batches).unwrap()).unwrap());
    }
    serving.abort();
}
