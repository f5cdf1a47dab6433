//! A server that is abused, and raw ways to talk to it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use socket2::{Domain, Socket, Type};

use crate::support::Server;

/// Nothing here takes so long unless it hangs.
pub const HANGS: Duration = Duration::from_secs(300);

/// Above this the server's memory counts as unbounded. The requests of these tests are
/// at most 64 MiB, which is held once as it came and once decompressed.
const MEMORY_MIB_MAX: u64 = 512;

/// A server that is abused.
pub struct Target {
    pub server: Server,
    /// Records that must be in the log in the end.
    pub records: u64,
}

impl Target {
    pub fn start(flags: &[&str]) -> Self {
        // The first record is the log's own.
        Self { server: Server::start_in(tempfile::tempdir().unwrap(), flags), records: 1 }
    }

    /// The most memory that the server ever had.
    pub fn peak_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.server.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }

    /// Sends one good record from another address; it must be acknowledged.
    pub fn serves_another(&mut self) {
        let address = self.server.otlp_http.clone();
        let answer = post_from(2, &address, PROTOBUF, &request(1 << 60 | self.records, 1));
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{answer:?}");
        self.records += 1;
    }

    /// POST /v1/traces as protobuf.
    pub fn post(&self, headers: &str, body: &[u8]) -> Answer {
        post_from(1, &self.server.otlp_http, headers, body)
    }

    /// Sends bytes to the HTTP receiver, and reads until it closes the connection.
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = connect(1, &self.server.otlp_http);
        // It may have answered and closed before all was sent.
        let _ = stream.write_all(bytes);
        read_to_end(&mut stream)
    }

    /// Serves another client, and after SIGTERM the log is sound and has what was acknowledged.
    pub fn finish(mut self) {
        self.serves_another();
        let peak = self.peak_mib();
        assert!(peak < MEMORY_MIB_MAX, "the server took {peak} MiB");
        assert_eq!(self.server.stop_and_verify()["records"], self.records);
    }
}

pub const PROTOBUF: &str = "Content-Type: application/x-protobuf\r\n";

/// An answer over HTTP/1.1.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn parse(bytes: &[u8]) -> Self {
        let split = bytes.windows(4).position(|w| w == b"\r\n\r\n");
        let split = split.unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8_lossy(&bytes[..split]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap();
        Self { status, head, body: bytes[split + 4..].to_vec() }
    }

    /// The body as far as it is text: the message of a status.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Refused whole, for good, with this in the message.
    pub fn is_invalid(&self, says: &str) {
        assert_eq!(self.status, 400, "{self:?}");
        assert!(self.text().contains(says), "{self:?}");
    }

    /// Refused for now, with this in the message.
    pub fn is_unavailable(&self, says: &str) {
        assert_eq!(self.status, 503, "{self:?}");
        assert!(self.head.contains("retry-after: 1"), "{self:?}");
        assert!(self.text().contains(says), "{self:?}");
    }

    /// One record refused by partial success, with this in the message.
    pub fn is_rejected(&self, says: &str) {
        assert_eq!(self.status, 200, "{self:?}");
        let partial = ExportTraceServiceResponse::decode(&self.body[..]).unwrap().partial_success.unwrap();
        assert_eq!(partial.rejected_spans, 1);
        assert!(partial.error_message.contains(says), "{partial:?}");
    }
}

/// A client in a thread of its own.
pub fn spawn<T: Send + 'static>(client: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
    std::thread::Builder::new().name("client".into()).spawn(client).unwrap()
}

/// Connects from 127.0.0.`from`: to the server, another client.
pub fn connect(from: u8, to: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, from], 0)).into()).unwrap();
    socket.connect(&to.parse::<SocketAddr>().unwrap().into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(HANGS)).unwrap();
    stream.set_write_timeout(Some(HANGS)).unwrap();
    stream
}

/// What comes until the server closes. A reset is an end too; silence is not.
pub fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut out = Vec::new();
    if let Err(error) = stream.read_to_end(&mut out) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the server neither answers nor closes");
    }
    out
}

/// The head of a POST to /v1/traces.
pub fn head(headers: &str, length: usize) -> String {
    format!("POST /v1/traces HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n")
}

/// POST /v1/traces from 127.0.0.`from`.
pub fn post_from(from: u8, to: &str, headers: &str, body: &[u8]) -> Answer {
    let mut stream = connect(from, to);
    // A refusal may come, and the connection close, before the body was sent.
    let _ = stream.write_all(head(headers, body.len()).as_bytes()).and_then(|()| stream.write_all(body));
    Answer::parse(&read_to_end(&mut stream))
}

/// A span with ids of its own.
pub fn span(id: u64) -> Span {
    let trace_id = [[7; 8], id.to_be_bytes()].concat();
    Span { trace_id, span_id: (id + 1).to_be_bytes().to_vec(), name: format!("step {id}"), ..Default::default() }
}

pub fn request_of(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let scope_spans = vec![ScopeSpans { spans, ..Default::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..Default::default() }] }
}

/// A request of `count` spans, each of another trace, numbered from `first`.
pub fn request(first: u64, count: u64) -> Vec<u8> {
    request_of((first..first + count).map(span).collect()).encode_to_vec()
}

pub fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

/// Frames of HTTP/2, by hand: what a well-behaved client library would not send.
pub mod frames {
    /// The preface and an empty SETTINGS.
    pub fn opening() -> Vec<u8> {
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(4, 0, 0, &[])].concat()
    }

    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let len = (payload.len() as u32).to_be_bytes();
        [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// A header as HPACK writes it without any table.
    pub fn header(name: &str, value: &str) -> Vec<u8> {
        assert!(name.len() < 127 && value.len() < 127);
        [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    }

    /// The headers of an Export call.
    pub fn call() -> Vec<u8> {
        let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        [
            header(":method", "POST"),
            header(":scheme", "http"),
            header(":path", path),
            header(":authority", "x"),
            header("content-type", "application/grpc"),
            header("te", "trailers"),
        ]
        .concat()
    }

    /// A message as gRPC frames it.
    pub fn message(flag: u8, length: u32, bytes: &[u8]) -> Vec<u8> {
        [&[flag], &length.to_be_bytes()[..], bytes].concat()
    }

    /// The frames in what came: kind, stream and payload.
    pub fn parse(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
        let mut out = Vec::new();
        while let [a, b, c, kind, _, s0, s1, s2, s3, rest @ ..] = bytes {
            let len = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let payload = &rest[..len.min(rest.len())];
            out.push((*kind, u32::from_be_bytes([*s0, *s1, *s2, *s3]), payload.to_vec()));
            bytes = &rest[payload.len()..];
        }
        out
    }

    pub const GOAWAY: u8 = 7;

    /// The error code and debug text of the GOAWAY in what came.
    pub fn goaway(bytes: &[u8]) -> (u32, String) {
        let goaway = parse(bytes).into_iter().rev().find(|(kind, ..)| *kind == GOAWAY);
        let payload = goaway.unwrap_or_else(|| panic!("no GOAWAY in {bytes:x?}")).2;
        let code = u32::from_be_bytes(payload[4..8].try_into().unwrap());
        (code, String::from_utf8_lossy(&payload[8..]).into_owned())
    }
}
