//! The query API of Jaeger on the built binary: what the Jaeger UI and Grafana's data source send is answered as Jaeger
//! answers it; for whom it is, within which limits and with which record, as every query.

#[path = "jaeger/scene.rs"]
mod scene;
mod support;

use scene::{HEALTH, HEALTH_LONG, PAYMENT, Scene, resource_spans, span, tags};
use serde_json::{Value, json};
use support::Server;

/// The Jaeger UI is a static app that asks for paths below its own (interop: Jaeger).
#[test]
fn a_trace_is_as_jaeger_has_it() {
    let mut scene = Scene::start(&[]);
    let answer = scene.get(&format!("/api/traces/{PAYMENT}"));
    let want = json!({"total": 0, "limit": 0, "offset": 0, "errors": null, "data": answer["data"]});
    assert_eq!(answer, want);
    assert_eq!(answer["data"].as_array().unwrap().len(), 1);
    let trace = &answer["data"][0];
    assert_eq!((&trace["traceID"], &trace["warnings"]), (&json!(PAYMENT), &Value::Null));
    let host = json!([{"key": "host.name", "type": "string", "value": "h1"}]);
    assert_eq!(
        trace["processes"],
        json!({"p1": {"serviceName": "frontend", "tags": host}, "p2": {"serviceName": "bank", "tags": host}})
    );
    let spans = trace["spans"].as_array().unwrap();
    assert_eq!(spans.len(), 3);
    let (root, transfer) = (&spans[0], &spans[2]);
    assert_eq!((&root["flags"], &root["references"]), (&json!(1), &json!([])));
    let keys: Vec<String> = tags(&root["tags"]).into_iter().take(4).collect();
    let want = [
        r#"string otel.scope.name="tracer""#,
        r#"string otel.scope.version="1.2""#,
        r#"string span.kind="server""#,
        r#"string otel.status_code="OK""#,
    ];
    assert_eq!(keys, want);

    let reference = |kind: &str, trace: &str, span: &str| json!({"refType": kind, "traceID": trace, "spanID": span});
    let start = scene.start / 1000;
    for (field, want) in [
        ("traceID", json!(PAYMENT)),
        ("spanID", json!("0000000000000003")),
        ("operationName", json!("POST /transfer")),
        ("startTime", json!(start + 20_000)),
        ("duration", json!(50_000)),
        ("processID", json!("p2")),
        ("warnings", Value::Null),
        ("flags", Value::Null),
        (
            "references",
            json!([
                reference("CHILD_OF", PAYMENT, "0000000000000002"),
                reference("FOLLOWS_FROM", HEALTH, "0000000000000009")
            ]),
        ),
    ] {
        assert_eq!(transfer[field], want, "{field}");
    }
    assert_eq!(transfer["logs"][0]["timestamp"], start + 30_000);
    assert_eq!(tags(&transfer["logs"][0]["fields"]), [r#"string event="exception""#, "int64 attempt=2"]);
    let mut told = tags(&transfer["tags"]);
    let (hash, seq) = (told.pop().unwrap(), told.pop().unwrap());
    let want = [
        r#"string otel.scope.name="tracer""#,
        r#"string otel.scope.version="1.2""#,
        "int64 http.status_code=500",
        r#"int64 big="9007199254740993""#,
        "float64 ratio=0.5",
        "bool cached=false",
        r#"binary raw="AQID""#,
        r#"string list="[\"a\",1]""#,
        r#"string nested="{\"in\":true}""#,
        r#"string peer="o'brien \"x\"""#,
        r#"string span.kind="server""#,
        r#"string otel.status_code="ERROR""#,
        "bool error=true",
        r#"string otel.status_description="refused""#,
        r#"string w3c.tracestate="a=b""#,
    ];
    assert_eq!(told, want);
    // From the page to the proof: the tags name the record.
    let seq = seq.strip_prefix("int64 custody.seq=").unwrap();
    let rows = scene.server.sql(&format!("SELECT record_hash FROM ledger WHERE seq = {seq}"));
    assert_eq!(hash, format!("string custody.record_hash={}", rows[0]["record_hash"]));
    assert_eq!(scene.found(&format!("service=bank&tag=custody.seq:{seq}")), [PAYMENT]);

    // As it was sent, and nothing else.
    let raw = scene.get(&format!("/api/traces/{PAYMENT}?raw=true"));
    assert!(!raw.to_string().contains("custody."), "{raw}");
    scene.server.stop_and_verify();
}

#[test]
fn an_id_comes_short_or_in_capitals_and_what_is_not_there_is_said_so() {
    let scene = Scene::start(&[]);
    for id in ["a1f", "A1F", "0000000000000A1F", HEALTH_LONG, "AAAAAAAAAAAAAAAAAAAKHw=="] {
        assert_eq!(scene.get(&format!("/api/traces/{id}"))["data"][0]["traceID"], HEALTH, "{id}");
        let answer = scene.get(&format!("/api/v3/traces/{id}"));
        assert_eq!(answer["result"]["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceId"], HEALTH_LONG, "{id}");
    }
    let none = json!([{"code": 404, "msg": "trace not found"}]);
    let want = json!({"data": null, "total": 0, "limit": 0, "offset": 0, "errors": none});
    assert_eq!(scene.ask("/api/traces/123"), (404, want));
    let want = json!({"error": {"httpCode": 404, "message": "No traces found"}});
    assert_eq!(scene.ask("/api/v3/traces/123"), (404, want));

    // Of some time only; what some versions of Grafana send are milliseconds.
    let (before, after) = (scene.micros(-60), scene.micros(60));
    assert_eq!(scene.ask(&format!("/api/traces/a1f?start={before}&end={after}")).0, 200);
    assert_eq!(scene.ask(&format!("/api/traces/a1f?start={}&end={}", before / 1000, after / 1000)).0, 200);
    assert_eq!(scene.ask(&format!("/api/traces/a1f?start={after}")).0, 404);
    let part = scene.get(&format!("/api/traces/{PAYMENT}?start={}", scene.start / 1000 + 15_000));
    assert_eq!(part["data"][0]["spans"].as_array().unwrap().len(), 1);

    // Several by name, of which some are missing.
    let answer = scene.get(&format!("/api/traces?traceID={PAYMENT}&traceID=fff&traceID=a1f"));
    let ids: Vec<&Value> = answer["data"].as_array().unwrap().iter().map(|trace| &trace["traceID"]).collect();
    assert_eq!(ids, [PAYMENT, HEALTH]);
    assert_eq!(answer["errors"], json!([{"msg": "trace not found", "traceID": format!("{:0>16}", "fff")}]));
}

/// Word for word what the page sends: its `api/jaeger.ts` and `reducers`, up to 2.18.
#[test]
fn what_the_jaeger_ui_sends() {
    for flags in [&[][..], &["--segment-rows-max", "3", "--segment-merge-rows-max", "0"]] {
        let scene = Scene::start(flags);
        let names = |answer: Value| {
            let names: Vec<String> =
                answer["data"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect();
            assert_eq!(answer["total"], names.len());
            names
        };
        assert_eq!(names(scene.get("/api/services")), ["bank", "frontend", "OTLPResourceNoServiceName"]);
        assert_eq!(names(scene.get("/api/services/frontend/operations")), ["GET /health", "GET /pay", "call bank"]);
        assert_eq!(names(scene.get("/api/services/no%20such%2Fservice/operations")), Vec::<String>::new());
        let answer = scene.get("/api/operations?service=frontend&spanKind=server");
        assert_eq!(answer["data"], json!([{"name": "GET /pay", "spanKind": "server"}]));
        let answer = scene.get("/api/operations?service=frontend");
        assert_eq!(answer["data"][0], json!({"name": "GET /health", "spanKind": ""}));

        let (start, end) = (scene.micros(-50), scene.micros(10));
        let search = format!("end={end}&limit=20&lookback=1h&maxDuration&minDuration&service=frontend&start={start}");
        assert_eq!(scene.found(&search), [PAYMENT, HEALTH], "the newest first");
        for (query, want) in [
            ("operation=GET%20%2Fhealth", &[HEALTH][..]),
            ("minDuration=10ms", &[PAYMENT]),
            ("maxDuration=10ms", &[HEALTH]),
            ("minDuration=80ms&maxDuration=1.5s", &[PAYMENT]),
            ("limit=1", &[PAYMENT]),
            ("tags=%7B%22span.kind%22%3A%22server%22%7D", &[PAYMENT]),
            ("tags=%7B%22host.name%22%3A%22h1%22%7D", &[PAYMENT, HEALTH]),
            ("tags=%7B%22error%22%3A%22true%22%7D", &[]),
        ] {
            let query = format!("{query}&end={end}&lookback=custom&service=frontend&start={start}");
            assert_eq!(scene.found(&query), want, "{query}");
        }
        for tag in [
            "error:true",
            "http.status_code:500",
            "cached:false",
            "ratio:0.5",
            "otel.status_code:ERROR",
            "otel.scope.name:tracer",
            "event:exception",
            "attempt:2",
            "w3c.tracestate:a%3Db",
            "peer:o'brien%20%22x%22",
        ] {
            assert_eq!(scene.found(&format!("service=bank&tag={tag}")), [PAYMENT], "{tag}");
        }
        for tag in ["error:false", "http.status_code:200", "attempt:3", "event:other", "nothing:1"] {
            assert_eq!(scene.found(&format!("service=bank&tag={tag}")), [""; 0], "{tag}");
        }
        assert_eq!(scene.found("service=OTLPResourceNoServiceName"), [HEALTH]);
        assert_eq!(scene.found("service=frontend&lookback=20m"), [PAYMENT]);

        let ms = scene.start / 1_000_000 + 60_000;
        let answer = scene.get(&format!("/api/dependencies?endTs={ms}&lookback=604800000"));
        let calls = json!([
            {"parent": "frontend", "child": "OTLPResourceNoServiceName", "callCount": 1},
            {"parent": "frontend", "child": "bank", "callCount": 1},
        ]);
        assert_eq!((&answer["data"], &answer["errors"]), (&calls, &Value::Null));
        let answer = scene.get(&format!("/api/dependencies?endTs={ms}&lookback=120000&service=bank"));
        assert_eq!(answer["data"], json!([{"parent": "frontend", "child": "bank", "callCount": 1}]));
        assert_eq!(scene.get("/api/dependencies?endTs=1000&lookback=1000")["data"], json!([]));
    }
}

/// What it sends from 2.19 on: its `api/v3/client.ts`, in both spellings that it had.
#[test]
fn what_the_jaeger_ui_sends_to_version_three() {
    let scene = Scene::start(&[]);
    let services = scene.get("/api/v3/services");
    assert_eq!(services, json!({"services": ["bank", "frontend", "OTLPResourceNoServiceName"]}));
    let answer = scene.get("/api/v3/operations?service=frontend");
    let one = |name: &str, kind: &str| json!({"name": name, "spanKind": kind});
    let all = [one("GET /health", "internal"), one("GET /pay", "server"), one("call bank", "client")];
    assert_eq!(answer, json!({"operations": all}));
    for name in ["spanKind", "span_kind"] {
        let answer = scene.get(&format!("/api/v3/operations?service=frontend&{name}=client"));
        assert_eq!(answer, json!({"operations": [one("call bank", "client")]}));
    }
    assert_eq!(scene.get("/api/v3/capabilities")["search"]["withoutServiceName"], true);

    let (from, to) = (scene.rfc3339(-50), scene.rfc3339(10));
    let now = format!(
        "query.serviceName=frontend&query.searchDepth=20&query.startTimeMin={}&query.startTimeMax={}",
        from.replace(':', "%3A"),
        to.replace(':', "%3A")
    );
    let before = format!(
        "query.service_name=frontend&query.num_traces=20&query.start_time_min={from}&query.start_time_max={to}"
    );
    let service =
        |name: &str, spans: u64, errors: u64| json!({"name": name, "spanCount": spans, "errorSpanCount": errors});
    let payment = json!({
        "traceId": PAYMENT, "rootServiceName": "frontend", "rootOperationName": "GET /pay",
        "minStartTimeUnixNano": scene.start.to_string(), "maxEndTimeUnixNano": (scene.start + 90_000_000).to_string(),
        "spanCount": 3, "errorSpanCount": 1, "orphanSpanCount": 0,
        "services": [service("bank", 1, 1), service("frontend", 2, 0)],
    });
    for query in [now, before] {
        let summaries = scene.get(&format!("/api/v3/trace-summaries?{query}"))["summaries"].clone();
        assert_eq!((summaries.as_array().unwrap().len(), &summaries[0]), (2, &payment), "{query}");
        assert_eq!(summaries[1]["traceId"], HEALTH_LONG);
        let result = scene.get(&format!("/api/v3/traces?{query}"))["result"].clone();
        assert_eq!(result["resourceSpans"].as_array().unwrap().len(), 4, "{result}");
    }
    let some =
        format!("query.startTimeMin={from}&query.startTimeMax={to}&query.attributes=%7B%22error%22%3A%22true%22%7D");
    let summaries = scene.get(&format!("/api/v3/trace-summaries?{some}&query.durationMin=10ms"))["summaries"].clone();
    assert_eq!(summaries, json!([payment]), "without a service");
    let none = format!("query.serviceName=nobody&query.startTimeMin={from}&query.startTimeMax={to}");
    assert_eq!(scene.get(&format!("/api/v3/trace-summaries?{none}")), json!({"summaries": []}));
    assert_eq!(scene.ask(&format!("/api/v3/traces?{none}")).0, 404);

    let answer = scene.get(&format!("/api/v3/dependencies?startTime={from}&endTime={to}"));
    assert_eq!(answer["dependencies"][1], json!({"parent": "frontend", "child": "bank", "callCount": "1"}));

    // OTLP as it came, to the letter.
    let raw = scene.get(&format!("/api/v3/traces/{PAYMENT}?rawTraces=true"));
    let bank = &raw["result"]["resourceSpans"][1];
    assert_eq!(bank["resource"]["attributes"][0], json!({"key": "service.name", "value": {"stringValue": "bank"}}));
    assert_eq!(bank["scopeSpans"][0]["scope"], json!({"name": "tracer", "version": "1.2"}));
    let span = &bank["scopeSpans"][0]["spans"][0];
    let attribute = |key: &str| {
        let all = span["attributes"].as_array().unwrap();
        all.iter().find(|pair| pair["key"] == key).map(|pair| pair["value"].clone()).unwrap()
    };
    assert_eq!((&span["kind"], &span["status"]), (&json!(2), &json!({"code": 2, "message": "refused"})));
    assert_eq!(
        (attribute("raw"), attribute("big")),
        (json!({"bytesValue": "AQID"}), json!({"intValue": "9007199254740993"}))
    );
    assert_eq!(attribute("list"), json!({"arrayValue": {"values": [{"stringValue": "a"}, {"intValue": "1"}]}}));
    let link = json!({"traceId": HEALTH_LONG, "spanId": "0000000000000009", "traceState": "c=d", "flags": 1});
    assert_eq!(span["links"], json!([link]));
    assert_eq!(span["startTimeUnixNano"], (scene.start + 20_000_000).to_string());
}

/// Word for word what Grafana's data source sends: its `pkg/tsdb/jaeger/client.go` and `grpc_client.go`.
#[test]
fn what_grafana_sends() {
    let scene = Scene::start(&[]);
    assert_eq!(scene.get("/api/services")["data"][0], "bank");
    assert_eq!(scene.get("/api/services/frontend/operations")["total"], 3);
    let tags = "%7B%22error%22%3A%22true%22%2C%22http.status_code%22%3A%22500%22%7D";
    let query = format!("limit=20&maxDuration=1s&minDuration=1ms&operation=POST+%2Ftransfer&service=bank&tags={tags}");
    assert_eq!(scene.found(&query), [PAYMENT]);
    // It says that of a time range it sends microseconds, and sends milliseconds.
    let (from, to) = (scene.micros(-60) / 1000, scene.micros(60) / 1000);
    assert_eq!(scene.get(&format!("/api/traces/{PAYMENT}?end={to}&start={from}"))["data"][0]["traceID"], PAYMENT);
    let answer = scene.get(&format!("/api/dependencies?endTs={to}&lookback=7200000"));
    assert_eq!(answer["data"].as_array().unwrap().len(), 2);

    // Times are not encoded there, so that the sign of a zone comes as a blank.
    let (from, to) = (scene.rfc3339(-60).replace('Z', "+00:00"), scene.rfc3339(60).replace('Z', "+00:00"));
    let answer = scene.get(&format!("/api/v3/traces/{PAYMENT}?start_time={from}&end_time={to}"));
    assert_eq!(answer["result"]["resourceSpans"].as_array().unwrap().len(), 2);
    let query = "query.operation_name=POST+%2Ftransfer&query.service_name=bank";
    let answer = scene.get(&format!("/api/v3/traces?{query}&query.start_time_min={from}&query.start_time_max={to}"));
    assert_eq!(answer["result"]["resourceSpans"].as_array().unwrap().len(), 2);
    let (status, body) = scene.server.get("/api/v3/operations");
    assert!(status == 400 && body.contains("the parameter service is required"), "{body}");
}

#[test]
fn each_refusal_names_the_parameter_and_the_mend() {
    let scene = Scene::start(&[]);
    let time = "query.startTimeMin=2026-11-20T09:00:00Z&query.startTimeMax=2026-11-20T10:00:00Z";
    for (path, want) in [
        ("/api/traces", "the parameter service is required, or else traceID"),
        ("/api/traces?service=a&limit=0", "the parameter limit must be a whole number from 1 to 1500"),
        ("/api/traces?service=a&limit=99999", "the parameter limit must be a whole number from 1 to 1500"),
        ("/api/traces?service=a&start=yesterday", "the parameter start must be microseconds since 1970"),
        ("/api/traces?service=a&start=5&end=4", "the parameter end must not be before start"),
        ("/api/traces?service=a&minDuration=5", "the parameter minDuration must be a duration such as 1.5s"),
        (
            "/api/traces?service=a&minDuration=5s&maxDuration=1s",
            "the parameter maxDuration must not be less than minDuration",
        ),
        ("/api/traces?service=a&tags=error%3Dtrue", "the parameter tags must be a JSON object of texts"),
        ("/api/traces?service=a&tag=error", "the parameter tag must be key:value"),
        ("/api/traces?service=a&lookback=soon", "the parameter lookback must be a duration"),
        ("/api/traces?traceID=xyz", "the parameter traceID must be a trace id: up to 32 hex digits"),
        ("/api/traces/xyz", "the parameter traceID must be a trace id: up to 32 hex digits"),
        ("/api/traces/1?raw=perhaps", "the parameter raw must be true or false"),
        ("/api/operations", "the parameter service is required"),
        (
            "/api/operations?service=a&spanKind=sidecar",
            "the parameter spanKind must be one of internal, server, client",
        ),
        ("/api/dependencies?endTs=x", "the parameter endTs must be milliseconds since 1970"),
        ("/api/dependencies?lookback=1h", "the parameter lookback must be a whole number from 0 to"),
    ] {
        let (status, answer) = scene.ask(path);
        let error = &answer["errors"][0];
        assert_eq!((status, &error["code"], &answer["data"]), (400, &json!(400), &Value::Null), "{path}: {answer}");
        assert!(error["msg"].as_str().unwrap().starts_with(want), "{path}: {error}");
    }
    let filter = format!("/api/v3/traces?{time}&query.filter=%7B%7D");
    let depth = format!("/api/v3/trace-summaries?{time}&query.searchDepth=-1");
    for (path, want) in [
        ("/api/v3/traces", "the parameter query.startTimeMin is required"),
        ("/api/v3/traces?query.start_time_min=now", "the parameter query.start_time_min must be a time such as"),
        (&filter, "the parameter query.filter is not known here; use query.attributes"),
        (&depth, "the parameter query.searchDepth must be a whole number from 1 to 1500"),
        ("/api/v3/traces/xyz", "the parameter trace_id must be a trace id: up to 32 hex digits, or base64"),
        ("/api/v3/traces/1?endTime=7", "the parameter endTime must be a time such as"),
        ("/api/v3/operations", "the parameter service is required"),
        ("/api/v3/dependencies", "the parameter startTime is required"),
        ("/api/v3/dependencies?startTime=2026-11-20T09:00:00Z", "the parameter endTime is required"),
    ] {
        let (status, answer) = scene.ask(path);
        let error = &answer["error"];
        assert_eq!((status, &error["httpCode"]), (400, &json!(400)), "{path}: {answer}");
        assert!(error["message"].as_str().unwrap().starts_with(want), "{path}: {error}");
    }
    for path in ["/api/v3/nothing", "/api/traces/1/2"] {
        assert_eq!(scene.ask(path).0, 404, "{path}");
    }
}

/// What takes too long is said to have: with the status of a gateway, since browsers ask again after a 408.
#[test]
fn what_takes_too_long_says_so() {
    let server = Server::start_in(tempfile::tempdir().unwrap(), &["--query-timeout", "0.01"]);
    let time = "query.startTimeMin=1970-01-01T00:00:00Z&query.startTimeMax=2100-01-01T00:00:00Z";
    // Thirty tags are a hundred and fifty conditions: planning them takes longer than that.
    let asked = |path: String| {
        let mut told = String::new();
        support::until(|| {
            let (status, body) = server.get(&path);
            told = body;
            status == 504
        });
        told
    };
    let tags: Vec<String> = (0..30).map(|i| format!("%22{i}%22%3A%22{i}%22")).collect();
    let tags = format!("%7B{}%7D", tags.join(","));
    let told = asked(format!("/api/traces?service=a&tags={tags}"));
    assert!(told.contains("longer than 0.01 s; ask for a shorter time") && told.contains("\"code\":504"), "{told}");
    let told = asked(format!("/api/v3/trace-summaries?{time}&query.attributes={tags}"));
    assert!(told.contains("longer than 0.01 s; ask for a shorter time") && told.contains("\"httpCode\":504"), "{told}");
}

/// A span that came while it ran is shown until it comes finished; then there is one, without a warning.
#[test]
fn a_span_is_shown_as_it_is_now() {
    let scene = Scene::start(&[]);
    let id = "0000000000000000000000000000beef";
    let mut running = span(id, 1, 0, "long work", scene.start, 7_000_000);
    let ended = running.clone();
    running.as_object_mut().unwrap().remove("endTimeUnixNano");
    let send = |span: &Value| {
        scene.send(&json!({"resourceSpans": [resource_spans(Some("worker"), None, std::slice::from_ref(span))]}));
        scene.server.wait_until_visible();
    };
    send(&running);
    let shown = scene.get("/api/traces/beef")["data"][0]["spans"].clone();
    assert_eq!((shown.as_array().unwrap().len(), &shown[0]["duration"]), (1, &json!(0)));
    assert!(shown[0]["warnings"][0].as_str().unwrap().starts_with("the span had not ended"), "{shown}");
    let span = scene.get("/api/v3/traces/beef")["result"]["resourceSpans"][0]["scopeSpans"][0]["spans"][0].clone();
    assert_eq!(span["endTimeUnixNano"], span["startTimeUnixNano"], "a page draws it");
    send(&ended);
    let shown = scene.get("/api/traces/beef")["data"][0]["spans"].clone();
    assert_eq!((shown.as_array().unwrap().len(), &shown[0]["duration"]), (1, &json!(7_000)));
    assert_eq!(shown[0]["warnings"], Value::Null);
}

/// A trace of many spans comes in pieces, and all of it.
#[test]
fn a_long_trace_is_streamed() {
    let scene = Scene::start(&["--segment-rows-max", "4000", "--segment-merge-rows-max", "0"]);
    let id = "000000000000000000000000000c0de0";
    let (requests, each) = (40u64, 500u64);
    for request in 0..requests {
        let one = |i: u64| {
            let n = request * each + i + 1;
            span(id, n, n / 2, &format!("step {n}"), scene.start + n * 1000, 500)
        };
        let spans: Vec<Value> = (0..each).map(one).collect();
        let service = format!("s{}", request % 4);
        scene.send(&json!({"resourceSpans": [resource_spans(Some(&service), None, &spans)]}));
    }
    scene.server.wait_until_visible();
    let agent = ureq::Agent::config_builder().build().new_agent();
    let fetch = |path: &str| {
        let mut answer = agent.get(format!("http://{}{path}", scene.server.http)).call().unwrap();
        assert!(answer.headers().get("content-length").is_none(), "{path} is streamed");
        let text = answer.body_mut().with_config().limit(1 << 30).read_to_string().unwrap();
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let trace = fetch("/api/traces/c0de0")["data"][0].clone();
    let mut ids: Vec<&str> =
        trace["spans"].as_array().unwrap().iter().map(|span| span["spanID"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len() as u64, requests * each);
    let processes = trace["processes"].as_object().unwrap();
    assert_eq!(processes.len(), 4);
    assert!(processes.values().all(|process| process["serviceName"].as_str().unwrap().starts_with('s')));
    let result = fetch("/api/v3/traces/c0de0")["result"]["resourceSpans"].clone();
    let spans = |one: &Value| one["scopeSpans"][0]["spans"].as_array().unwrap().len() as u64;
    assert_eq!(result.as_array().unwrap().iter().map(spans).sum::<u64>(), requests * each);
    let (from, to) = (scene.rfc3339(-5), scene.rfc3339(5));
    let time = format!("query.startTimeMin={from}&query.startTimeMax={to}&query.serviceName=s1");
    let summary = scene.get(&format!("/api/v3/trace-summaries?{time}"))["summaries"][0].clone();
    assert_eq!((&summary["spanCount"], &summary["orphanSpanCount"]), (&json!(requests * each), &json!(0)));
    assert_eq!(summary["rootOperationName"], "step 1");
}

/// The paths need the role `read`, show the rows of the caller's tenants, and are recorded.
#[test]
fn callers_roles_and_records_are_those_of_sql() {
    let writer = Server::under("roles = [\"write\", \"stream\"]\ntenants = [\"*\"]");
    for path in ["/api/services", "/api/traces/1", "/api/v3/services", "/api/v3/capabilities", "/api/dependencies"] {
        let (status, body) = writer.get(path);
        assert!(status == 403 && body.contains("role read"), "{path}: {body}");
    }

    let mut server = Server::under("roles = [\"write\", \"read\"]\ntenants = [\"acme\"]");
    // What comes second is there when both are.
    server.send_span_of("globex");
    server.send_span_of("acme");
    let shown = || {
        let body = server.get("/api/traces/5b8efff798038103d269b633813fc60c").1;
        let spans = serde_json::from_str::<Value>(&body).unwrap()["data"][0]["spans"].clone();
        let name = |span: &Value| span["operationName"].as_str().unwrap().to_owned();
        spans.as_array().into_iter().flatten().map(name).collect::<Vec<_>>()
    };
    support::until(|| !shown().is_empty());
    assert_eq!(shown(), ["of acme"]);
    let all = "/api/v3/traces?query.startTimeMin=1970-01-01T00:00:00Z&query.startTimeMax=2100-01-01T00:00:00Z";
    let (status, body) = server.get(all);
    assert!(status == 200 && body.contains("of acme") && !body.contains("globex"), "{body}");
    server.stop();

    let scene = Scene::start(&["--audit", "all"]);
    scene.get(&format!("/api/traces/{PAYMENT}"));
    let days =
        format!("start={}&end={}", (scene.start - 86_400_000_000_000) / 1000, (scene.start + 1_000_000_000) / 1000);
    scene.get(&format!("/api/traces?service=bank&{days}"));
    let rows = scene
        .server
        .sql("SELECT text, rows FROM audit WHERE action = 'query' AND contains(text, 'Jaeger:') ORDER BY seq");
    let said: Vec<&str> = rows.iter().map(|row| row["text"].as_str().unwrap()).collect();
    assert!(said[0].starts_with("/* Jaeger: a trace */ SELECT seq FROM spans WHERE trace_id = "), "{said:?}");
    assert_eq!(rows[0]["rows"], 3);
    // A search is asked in several steps, and is one question: with all of its time, and the spans that it gave.
    let [_, search] = said[..] else { panic!("{said:?}") };
    assert!(search.starts_with("/* Jaeger: search */") && search.contains("'bank'"), "{search}");
    assert!(search.contains(&format!("to_timestamp_nanos({})", scene.start - 86_400_000_000_000)), "{search}");
    assert_eq!(rows[1]["rows"], 3);
}
