//! Sent again, sent late, and sent wrong.

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::{Span, span::Link};
use prost::Message as _;
use serde_json::json;

use crate::requests::{SIGNALS, START, Signal, log, logs, span, traces};
use crate::support::Server;
use crate::wire::{Client, JSON, PROTOBUF, RpcStatus, pack};

/// Known Limitations, Duplicate Data: a client that lost the acknowledgement sends again. The
/// specification lets a server record that twice; this one does not, whatever the retry comes by.
#[test]
fn a_retry_is_acknowledged_again_and_recorded_once() {
    let mut server = Server::start();
    for signal in SIGNALS {
        let body = signal.protobuf(1);
        for encoding in ["identity", "gzip", "zstd"] {
            let told = Client::http2(&server.grpc).call(signal.method(), encoding, &body);
            told.message::<RpcStatus>();
            for mut http in [Client::http1(&server.otlp_http), Client::http2(&server.otlp_http)] {
                let encoded = [("content-encoding", encoding)];
                let told = http.post(signal.path(), PROTOBUF, &encoded, pack(encoding, &body));
                assert_eq!((told.status, told.body.len()), (200, 0));
                let told = http.post(signal.path(), JSON, &encoded, pack(encoding, signal.json(1).as_bytes()));
                assert_eq!((told.status, &told.body[..]), (200, &b"{}"[..]));
            }
        }
    }
    // The same span in another batch is the same span; a span id with other content is not.
    let mut grpc = Client::http2(&server.grpc);
    let batch = traces(vec![span(1), span(2), Span { name: "changed".into(), ..span(1) }]);
    grpc.call(Signal::Traces.method(), "", &batch.encode_to_vec()).message::<RpcStatus>();
    server = server_again(server);
    let mut grpc = Client::http2(&server.grpc);
    grpc.call(Signal::Traces.method(), "", &batch.encode_to_vec()).message::<RpcStatus>();
    let kinds = server.sql("SELECT kind, count(*) AS n FROM ledger WHERE seq > 0 GROUP BY 1 ORDER BY 1");
    let row = |kind, n| json!({"kind": kind, "n": n});
    assert_eq!(kinds, [row("log", 1), row("metric", 1), row("span", 3)]);
    let spans = server.sql(
        "SELECT s.name, array_has(l.flags, 'conflicting_span') AS conflicting FROM spans s JOIN ledger l USING (seq) ORDER BY seq",
    );
    let row = |name, conflicting| json!({"name": name, "conflicting": conflicting});
    assert_eq!(spans, [row("span 1", false), row("span 2", false), row("changed", true)]);
    server.stop_and_verify();
}

/// ProtoJSON: a number is the same in both encodings, to its last bit, and so is a list of numbers: a retry in the
/// other encoding is no other version.
#[test]
fn numbers_are_the_same_in_both_encodings() {
    let mut server = Server::start();
    let value = 0.9452706955539223;
    let json = format!(
        r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174",
           "attributes":[{{"key":"v","value":{{"doubleValue":{value}}}}}]}}]}}]}}]}}"#
    );
    let attribute = KeyValue {
        key: "v".into(),
        value: Some(AnyValue { value: Some(Value::DoubleValue(value)) }),
        ..KeyValue::default()
    };
    let same = Span {
        trace_id: 0x5b8e_fff7_9803_8103_d269_b633_813f_c60c_u128.to_be_bytes().to_vec(),
        span_id: 0xeee1_9b7e_c3c1_b174_u64.to_be_bytes().to_vec(),
        attributes: vec![attribute],
        ..Span::default()
    };
    let mut http = Client::http1(&server.otlp_http);
    assert_eq!(http.post("/v1/traces", JSON, &[], json).status, 200);
    assert_eq!(http.post("/v1/traces", PROTOBUF, &[], traces(vec![same]).encode_to_vec()).status, 200);
    let rows =
        server.sql("SELECT json_get_float(s.attributes, 'v') AS v, l.flags FROM spans s JOIN ledger l USING (seq)");
    assert_eq!(rows, [json!({"v": value, "flags": ["json"]})]);
    let asked =
        json!({"sql": "SELECT count(*) AS n FROM spans WHERE json_get_float(attributes, 'v') = $1", "params": [value]});
    let told = Client::http1(&server.http).post("/api/v1/sql", JSON, &[], asked.to_string());
    let told: serde_json::Value = serde_json::from_slice(&told.body).unwrap();
    assert_eq!(told["rows"][0]["n"], 1, "{told}");
    server.stop_and_verify();
}

/// kill -9, and the same folder again: an acknowledgement may be lost with the server, too.
fn server_again(server: Server) -> Server {
    Server::start_in(server.kill(), &[])
}

/// The data model asks for no order: children before parents, days late, each in a request of
/// its own and by another way.
#[test]
fn spans_come_late_and_out_of_order() {
    const DAY: u64 = 86_400_000_000_000;
    let mut server = Server::start();
    let child_of = |n: u64, parent: u64, at: u64| Span {
        parent_span_id: span(parent).span_id,
        start_time_unix_nano: at,
        end_time_unix_nano: at + 1,
        ..span(n)
    };
    let (mut grpc, mut http) = (Client::http2(&server.grpc), Client::http1(&server.otlp_http));
    let grandchild = traces(vec![child_of(3, 2, START + 2 * DAY)]).encode_to_vec();
    grpc.call(Signal::Traces.method(), "", &grandchild).message::<RpcStatus>();
    let orphan = traces(vec![child_of(9, 8, START - 3650 * DAY)]).encode_to_vec();
    assert_eq!(http.post("/v1/traces", PROTOBUF, &[], orphan).status, 200);
    let child = traces(vec![child_of(2, 1, START + 5 * DAY)]).encode_to_vec();
    assert_eq!(http.post("/v1/traces", PROTOBUF, &[], child).status, 200);
    grpc.call(Signal::Traces.method(), "", &Signal::Traces.protobuf(1)).message::<RpcStatus>();
    let rows = server.sql(
        "SELECT s.name, p.name AS parent, s.parent_span_id IS NULL AS root FROM spans s \
         LEFT JOIN spans p ON p.trace_id = s.trace_id AND p.span_id = s.parent_span_id ORDER BY s.seq",
    );
    let row = |name, parent: Option<&str>, root| match parent {
        Some(parent) => json!({"name": name, "parent": parent, "root": root}),
        None => json!({"name": name, "root": root}),
    };
    let rows: Vec<_> = rows.into_iter().map(without_nulls).collect();
    let want = [
        row("span 3", Some("span 2"), false),
        row("span 9", None, false),
        row("span 2", Some("span 1"), false),
        row("span 1", None, true),
    ];
    assert_eq!(rows, want, "in the order in which they came");
    let by_time = server.sql("SELECT name FROM spans ORDER BY start_time");
    let names: Vec<_> = by_time.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["span 9", "span 1", "span 3", "span 2"]);
    server.stop_and_verify();
}

/// trace.proto, `end_time_unix_nano` ("not expected to be zero", but sent while a span runs):
/// accepted; the finished span supersedes it in `spans`, and both records are kept.
#[test]
fn a_running_span_is_superseded_by_the_finished_one() {
    let mut server = Server::start();
    let mut grpc = Client::http2(&server.grpc);
    let running = |n| Span { end_time_unix_nano: 0, ..span(n) };
    let mut send =
        |spans| grpc.call(Signal::Traces.method(), "", &traces(spans).encode_to_vec()).message::<RpcStatus>();
    send(vec![running(1), running(2), span(3)]);
    let rows = |server: &Server| {
        let sql = "SELECT name, end_time IS NULL AS running, duration_ns FROM spans ORDER BY name";
        server.sql(sql).into_iter().map(without_nulls).collect::<Vec<_>>()
    };
    let runs = |name| json!({"name": name, "running": true});
    let ended = |name| json!({"name": name, "running": false, "duration_ns": 5});
    assert_eq!(rows(&server), [runs("span 1"), runs("span 2"), ended("span 3")]);
    send(vec![span(1)]);
    // One that comes late, after the finished one, and the same id in another trace.
    send(vec![running(3), Span { trace_id: vec![9; 16], name: "span 9".into(), ..running(3) }]);
    assert_eq!(rows(&server), [ended("span 1"), runs("span 2"), ended("span 3"), runs("span 9")]);
    let counted = server.sql(
        "SELECT count(*) AS n, count(end_time) AS ended FROM spans WHERE trace_id = '01010101010101010101010101010101'",
    );
    assert_eq!(counted, [json!({"n": 3, "ended": 2})]);
    assert_eq!(server.sql("SELECT seq FROM spans WHERE name = 'span 1' LIMIT 1"), [json!({"seq": 4})]);
    let kept = server.sql("SELECT count(*) AS n, count(payload(seq)) AS bytes FROM ledger WHERE kind = 'span'");
    assert_eq!(kept, [json!({"n": 6, "bytes": 6})]);
    // Somebody else, who knows the ids: he hides nothing.
    let other = traces(vec![Span { name: "span 2".into(), ..span(2) }]).encode_to_vec();
    let mut elsewhere = Client::http1_from("127.0.0.2", &server.otlp_http);
    assert_eq!(elsewhere.post("/v1/traces", PROTOBUF, &[], other).status, 200);
    let both =
        server.sql("SELECT end_time IS NULL AS running, submitter FROM spans WHERE name = 'span 2' ORDER BY seq");
    let row = |running, submitter| json!({"running": running, "submitter": submitter});
    assert_eq!(both, [row(true, "peer:127.0.0.1"), row(false, "peer:127.0.0.2")]);
    // A retry of the running span changes nothing.
    send(vec![running(1), running(2), span(3)]);
    assert_eq!(rows(&server).len(), 5);
    assert_eq!(server.stop_and_verify()["records"], 8);
}

fn without_nulls(mut row: serde_json::Value) -> serde_json::Value {
    row.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    row
}

/// trace.proto, logs.proto ("An ID with all zeroes OR of length other than 16 bytes is
/// considered invalid"): such a span can never be accepted and is refused by count, the rest of
/// its request is taken. A log record may have no ids, and a link none either.
#[test]
fn ids_that_can_never_be_accepted_are_refused_by_count() {
    let mut server = Server::start();
    let mut grpc = Client::http2(&server.grpc);
    let link = |trace: usize, id: usize| Span {
        links: vec![Link { trace_id: vec![7; trace], span_id: vec![7; id], ..Default::default() }],
        ..span(50 + trace as u64 * 20 + id as u64)
    };
    let wrong = [
        (Span { trace_id: vec![], ..span(1) }, "span.trace_id has 0 bytes"),
        (Span { trace_id: vec![1; 15], ..span(1) }, "span.trace_id has 15 bytes"),
        (Span { trace_id: vec![1; 17], ..span(1) }, "span.trace_id has 17 bytes"),
        (Span { trace_id: vec![0; 16], ..span(1) }, "span.trace_id has only zeros"),
        (Span { span_id: vec![], ..span(1) }, "span.span_id has 0 bytes"),
        (Span { span_id: vec![1; 16], ..span(1) }, "span.span_id has 16 bytes"),
        (Span { span_id: vec![0; 8], ..span(1) }, "span.span_id has only zeros"),
        (Span { parent_span_id: vec![1; 7], ..span(1) }, "span.parent_span_id has 7 bytes"),
        (link(15, 8), "Span.Link with an id of the wrong length"),
        (link(16, 4), "Span.Link with an id of the wrong length"),
    ];
    let partial = |answer: crate::wire::Answer| {
        use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
        let response: ExportTraceServiceResponse = answer.message();
        response.partial_success.map(|told| (told.rejected_spans, told.error_message))
    };
    for (span, why) in &wrong {
        let told = partial(grpc.call(Signal::Traces.method(), "", &traces(vec![span.clone()]).encode_to_vec()));
        let (rejected, message) = told.unwrap();
        assert!(rejected == 1 && message.contains(why), "{why}: {rejected} {message}");
    }
    let zeros = Span { parent_span_id: vec![0; 8], name: "root".into(), ..span(20) };
    let all: Vec<Span> = wrong.iter().map(|(span, _)| span.clone()).chain([zeros, link(0, 0), link(16, 8)]).collect();
    let (rejected, message) = partial(grpc.call(Signal::Traces.method(), "", &traces(all).encode_to_vec())).unwrap();
    assert_eq!(rejected, 10);
    assert!(message.contains("span.trace_id has 0 bytes"), "the first of them: {message}");
    let spans = server.sql("SELECT name, parent_span_id IS NULL AS root FROM spans ORDER BY seq");
    assert_eq!(spans.len(), 3, "{spans:?}");
    assert_eq!(spans[0], json!({"name": "root", "root": true}), "no parent, as old exporters say it");

    let with = |n, trace_id: Vec<u8>, span_id: Vec<u8>| LogRecord { trace_id, span_id, ..log(n) };
    let records = vec![
        with(1, vec![], vec![]),
        with(2, vec![0; 16], vec![0; 8]),
        with(3, vec![2; 16], vec![3; 8]),
        with(4, vec![2; 5], vec![]),
        with(5, vec![2; 16], vec![3; 9]),
    ];
    let told = grpc.call(Signal::Logs.method(), "", &logs(records).encode_to_vec());
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
    let told: ExportLogsServiceResponse = told.message();
    assert_eq!(told.partial_success.unwrap().rejected_log_records, 2);
    let rows = server.sql(
        "SELECT body, trace_id IS NULL AS untraced, span_id IS NULL AS alone FROM logs WHERE seq > 0 ORDER BY seq",
    );
    let row = |body, none| json!({"body": body, "untraced": none, "alone": none});
    assert_eq!(rows, [row("log 1", true), row("log 2", true), row("log 3", false)]);
    server.stop_and_verify();
}
