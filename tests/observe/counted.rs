//! Counts of what leaves no other trace: who repeats the records of others, and who does not come in.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use prost::Message as _;
use socket2::{Domain, Socket, Type};

use crate::support::Server;
use crate::{Metrics, post_spans, request, span};

/// A connection from 127.0.0.2, which is another client than 127.0.0.1.
fn from_another_address(to: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
    socket.connect(&to.parse::<SocketAddr>().unwrap().into()).unwrap();
    TcpStream::from(socket)
}

/// POST by HTTP/1.1: the whole answer.
fn post_from_another_address(server: &Server, body: &[u8]) -> String {
    let mut stream = from_another_address(&server.otlp_http);
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-protobuf\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn records_that_somebody_else_had_sent_are_counted_and_stay_his() {
    let mut server = Server::start();
    let foreign = |server: &Server| {
        let metrics = Metrics::of(server);
        let of = |kind| metrics.get(&format!("custody_ingest_foreign_duplicate_records_total{{identity={kind}}}"));
        ["peer", "spiffe", "cert", "jwt"].map(of)
    };
    let sent = request(vec![span(1, 1, "a"), span(1, 2, "b")]);
    assert_eq!(post_spans(&server, &sent), 200);
    assert_eq!(post_spans(&server, &sent), 200, "a retry");
    assert_eq!(foreign(&server), [0.0; 4], "his own are no others'");
    // The same request, then one of its spans beside a new one.
    let batch = request(vec![span(1, 2, "b"), span(2, 1, "new")]);
    for body in [&sent, &batch] {
        let answer = post_from_another_address(&server, &body.encode_to_vec());
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    assert_eq!(foreign(&server), [3.0, 0.0, 0.0, 0.0]);
    assert_eq!(Metrics::of(&server).get("custody_ingest_duplicate_records_total{signal=span}"), 5.0);
    let senders = server.sql("SELECT submitter, count(*) AS n FROM spans GROUP BY 1 ORDER BY 1");
    let row = |submitter, n| serde_json::json!({"submitter": submitter, "n": n});
    assert_eq!(senders, [row("peer:127.0.0.1", 2), row("peer:127.0.0.2", 1)]);
    server.stop_and_verify();
}

#[test]
fn connections_that_are_turned_away_are_counted() {
    let server = Server::start_in(tempfile::tempdir().unwrap(), &["--connections-per-peer-max", "2"]);
    let away = |ports, reason| {
        let name = format!("custody_turned_away_connections_total{{ports={ports},reason={reason}}}");
        Metrics::of(&server).get(&name)
    };
    assert_eq!(away("otlp", "connections_per_peer_max"), 0.0);
    let mut inside = [&server.otlp_http; 2].map(|address| from_another_address(address));
    for one in &mut inside {
        // Once it is answered it is in.
        one.write_all(b"GET /v1/traces HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        one.read_exact(&mut [0; 12]).unwrap();
    }
    let mut told = String::new();
    from_another_address(&server.otlp_http).read_to_string(&mut told).unwrap();
    assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("--connections-per-peer-max 2"), "{told}");
    drop(inside);
    assert_eq!(away("otlp", "connections_per_peer_max"), 1.0);
    for (ports, reason) in [("otlp", "connections_max"), ("otlp", "draining"), ("api", "connections_per_peer_max")] {
        assert_eq!(away(ports, reason), 0.0, "{ports} {reason}");
    }
}
