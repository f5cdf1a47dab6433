//! HTTP/1.1, HTTP/2 (cleartext, prior knowledge) and gRPC framing by hand, so that a test
//! sees every header, trailer and byte of an answer.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::Value;
use tokio::runtime::Runtime;

pub const PROTOBUF: &str = "application/x-protobuf";
pub const JSON: &str = "application/json";

/// An answer with all that belongs to it.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub trailers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// A header or trailer; the empty text if there is none.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).or_else(|| self.trailers.get(name));
        value.map_or("", |v| v.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// `grpc-status`, wherever it stands.
    pub fn grpc_status(&self) -> tonic::Code {
        assert_eq!((self.status, self.header("content-type")), (200, "application/grpc"), "{self:?}");
        tonic::Code::from_bytes(self.header("grpc-status").as_bytes())
    }

    /// `grpc-status-details-bin`.
    pub fn grpc_details(&self) -> RpcStatus {
        use base64::Engine as _;
        let text = self.header("grpc-status-details-bin").trim_end_matches('=');
        RpcStatus::decode(&base64::engine::general_purpose::STANDARD_NO_PAD.decode(text).unwrap()[..]).unwrap()
    }

    /// The `google.rpc.Status` in the body, in the encoding that the answer names: code and message.
    pub fn problem(&self) -> (i64, String) {
        match self.header("content-type") {
            PROTOBUF => {
                let status = RpcStatus::decode(&self.body[..]).unwrap();
                (status.code.into(), status.message)
            }
            JSON => (self.json()["code"].as_i64().unwrap(), self.json()["message"].as_str().unwrap().to_owned()),
            other => panic!("a Status as {other}: {self:?}"),
        }
    }

    /// The one message of a successful gRPC answer.
    pub fn message<M: Message + Default>(&self) -> M {
        assert_eq!(self.grpc_status(), tonic::Code::Ok, "{self:?}");
        assert_eq!(self.body[0], 0, "not compressed");
        assert_eq!(u32::from_be_bytes(self.body[1..5].try_into().unwrap()) as usize, self.body.len() - 5);
        M::decode(&self.body[5..]).unwrap()
    }
}

/// `google.rpc.Status`, read here from what is on the wire.
#[derive(Clone, PartialEq, Message)]
pub struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

/// One connection.
pub struct Client {
    runtime: Runtime,
    sender: Sender,
    authority: String,
}

impl Client {
    pub fn http1(address: &str) -> Self {
        let runtime = runtime();
        let sender = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            sender
        });
        Self { runtime, sender: Sender::One(sender), authority: address.to_owned() }
    }

    /// HTTP/1.1 from another address of this machine: to the server, another peer.
    pub fn http1_from(source: &str, address: &str) -> Self {
        let runtime = runtime();
        let sender = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
            let stream = socket.connect(address.parse().unwrap()).await.unwrap();
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            sender
        });
        Self { runtime, sender: Sender::One(sender), authority: address.to_owned() }
    }

    pub fn http2(address: &str) -> Self {
        let runtime = runtime();
        let sender = runtime.block_on(connect2(address));
        Self { runtime, sender: Sender::Two(sender), authority: address.to_owned() }
    }

    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let mut request = Request::builder().method(method);
        request = match &self.sender {
            Sender::One(_) => request.uri(path).header("host", &self.authority),
            Sender::Two(_) => request.uri(format!("http://{}{path}", self.authority)),
        };
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let Self { runtime, sender, .. } = self;
        runtime.block_on(async {
            let response = match sender {
                Sender::One(sender) => {
                    sender.ready().await.unwrap();
                    sender.send_request(request).await
                }
                Sender::Two(sender) => sender.send_request(request).await,
            };
            let (head, body) = response.unwrap().into_parts();
            let body = body.collect().await.unwrap();
            let trailers = body.trailers().cloned().unwrap_or_default();
            Answer { status: head.status.as_u16(), headers: head.headers, trailers, body: body.to_bytes() }
        })
    }

    /// POST with a content type and more headers.
    pub fn post(&mut self, path: &str, content_type: &str, more: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        self.send("POST", path, &[&[("content-type", content_type)], more].concat(), body)
    }

    /// A unary gRPC call with the bytes of its message, compressed as `encoding` says.
    pub fn call(&mut self, method: &str, encoding: &str, message: &[u8]) -> Answer {
        let packed = pack(encoding, message);
        let headers = [("te", "trailers"), ("grpc-encoding", encoding)];
        let headers = if encoding.is_empty() { &headers[..1] } else { &headers[..] };
        self.post(method, "application/grpc", headers, frame(!encoding.is_empty() && encoding != "identity", &packed))
    }
}

/// An HTTP/2 connection on the current runtime.
pub async fn connect2(address: &str) -> http2::SendRequest<Full<Bytes>> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A gRPC message with its prefix.
pub fn frame(compressed: bool, message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.len());
    out.put_u8(u8::from(compressed));
    out.put_u32(message.len() as u32);
    out.put_slice(message);
    out.freeze()
}

/// Compresses as a content or message encoding says; what it does not know stays as it is.
pub fn pack(encoding: &str, bytes: &[u8]) -> Vec<u8> {
    match encoding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        "zstd" => zstd::bulk::compress(bytes, 1).unwrap(),
        _ => bytes.to_vec(),
    }
}

/// The head of an HTTP/1.1 POST of a protobuf body, for what a client library would not send.
pub fn head(path: &str, length: usize) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {PROTOBUF}\r\nContent-Length: {length}\r\n\r\n").into()
}

/// Reads an HTTP/1.1 answer's head from a raw connection.
pub fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&head)),
        }
    }
    String::from_utf8(head).unwrap()
}
