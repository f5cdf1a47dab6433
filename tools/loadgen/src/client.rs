//! Connections: one attempt to send one request, over gRPC or HTTP.
//!
//! gRPC is five bytes in front of a message on HTTP/2, and a status in the
//! trailers, so that both protocols go over the same HTTP library, and bytes that
//! are ready are not copied again.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use crate::answer::{self, Answer};
use crate::options::{Options, Protocol};
use crate::traffic::{Signal, Traffic};

/// Bytes in front of a gRPC message.
const FRAME: usize = 5;

/// Where requests go, and how.
pub struct Target {
    address: String,
    protocol: Protocol,
    gzip: bool,
    headers: HeaderMap,
    timeout: Duration,
    traces: Uri,
    logs: Uri,
}

impl Target {
    /// Reads it from the command line.
    pub fn new(options: &Options) -> Result<Self, String> {
        let grpc = options.protocol == Protocol::Grpc;
        let default = if grpc { "http://127.0.0.1:4317" } else { "http://127.0.0.1:4318" };
        let text = options.target.as_deref().unwrap_or(default);
        let url: Uri = text.parse().map_err(|_| format!("{text} is not a URL such as {default}"))?;
        let authority = match (url.scheme_str(), url.authority()) {
            (Some("http"), Some(authority)) => authority,
            (Some("https"), _) => return Err("https is not spoken here: put a proxy that adds TLS in front".into()),
            _ => return Err(format!("{text} is not a URL such as {default}")),
        };
        let port = authority.port_u16().unwrap_or(if grpc { 4317 } else { 4318 });
        let uri = |path: &str| format!("http://{authority}{path}").parse().map_err(|e| format!("{text}: {e}"));
        let path = |signal: &str, name: &str| match grpc {
            true => uri(&format!("/opentelemetry.proto.collector.{signal}.v1.{name}Service/Export")),
            false => uri(&format!("{}/v1/{signal}", url.path().trim_end_matches('/'))),
        };
        let (traces, logs) = match grpc {
            true => (path("trace", "Trace")?, path("logs", "Logs")?),
            false => (path("traces", "")?, path("logs", "")?),
        };
        Ok(Self {
            address: format!("{}:{port}", authority.host()),
            protocol: options.protocol,
            gzip: options.gzip,
            headers: headers(options)?,
            timeout: options.timeout,
            traces,
            logs,
        })
    }

    /// Request `n` as a body: framed, and compressed if that is wanted.
    pub fn body(&self, traffic: &Traffic, n: u64) -> Result<Bytes, String> {
        let ahead = if self.protocol == Protocol::Grpc { FRAME } else { 0 };
        let mut body = traffic.request(n, ahead);
        if self.gzip {
            let mut out = vec![0; ahead];
            let mut encoder = flate2::write::GzEncoder::new(&mut out, flate2::Compression::fast());
            encoder.write_all(&body[ahead..]).and_then(|()| encoder.finish().map(drop)).map_err(|e| e.to_string())?;
            body = out;
        }
        if ahead > 0 {
            let len = u32::try_from(body.len() - FRAME).map_err(|_| "a request is larger than 4 GiB")?;
            body[0] = u8::from(self.gzip);
            body[1..FRAME].copy_from_slice(&len.to_be_bytes());
        }
        Ok(body.into())
    }

    fn request(&self, signal: Signal, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        let uri = if signal == Signal::Traces { &self.traces } else { &self.logs };
        *request.headers_mut() = self.headers.clone();
        *request.uri_mut() = uri.clone();
        if self.protocol == Protocol::Http {
            // HTTP/1.1 names the host in a header and the path alone in its first line.
            let path = uri.path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
            *request.uri_mut() = path.into();
        }
        request
    }
}

fn headers(options: &Options) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let agent = concat!("custody-loadgen/", env!("CARGO_PKG_VERSION"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
    if options.protocol == Protocol::Grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        if options.gzip {
            headers.insert("grpc-encoding", HeaderValue::from_static("gzip"));
        }
    } else {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let host = options.target.as_deref().unwrap_or("http://127.0.0.1:4318");
        let host = host.parse::<Uri>().ok().and_then(|uri| uri.authority().map(|a| a.as_str().to_owned()));
        let host = host.and_then(|host| HeaderValue::from_str(&host).ok()).ok_or("the target has no host")?;
        headers.insert(header::HOST, host);
        if options.gzip {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
    }
    if let Some(bearer) = options.bearer()? {
        headers.insert(header::AUTHORIZATION, bearer);
    }
    Ok(headers)
}

/// A connection that is made when it is needed, and again after it broke.
pub struct Connection {
    target: Arc<Target>,
    http2: Mutex<Option<http2::SendRequest<Full<Bytes>>>>,
    http1: Mutex<Option<http1::SendRequest<Full<Bytes>>>>,
}

impl Connection {
    /// Connects to nothing yet.
    pub fn new(target: Arc<Target>) -> Self {
        Self { target, http2: Mutex::new(None), http1: Mutex::new(None) }
    }

    /// One attempt.
    pub async fn send(&self, signal: Signal, body: Bytes) -> Answer {
        let request = self.target.request(signal, body);
        let attempt = async {
            match self.target.protocol {
                Protocol::Grpc => self.grpc(request).await,
                Protocol::Http => self.http(request).await,
            }
        };
        match tokio::time::timeout(self.target.timeout, attempt).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Answer::Retry("connection".into(), None),
            Err(_) => Answer::Retry("timeout".into(), None),
        }
    }

    async fn grpc(&self, request: Request<Full<Bytes>>) -> Result<Answer, Broken> {
        let mut sender = self.http2_sender().await?;
        sender.ready().await?;
        let answer = sender.send_request(request).await?;
        let (parts, body) = answer.into_parts();
        if !parts.status.is_success() {
            return Ok(answer::http(parts.status, &parts.headers, b""));
        }
        let body = body.collect().await?;
        let trailers = body.trailers().cloned().unwrap_or(parts.headers);
        Ok(answer::grpc(&trailers, &body.to_bytes()))
    }

    async fn http2_sender(&self) -> Result<http2::SendRequest<Full<Bytes>>, Broken> {
        let mut slot = self.http2.lock().await;
        if let Some(sender) = slot.as_ref().filter(|s| !s.is_closed()) {
            return Ok(sender.clone());
        }
        let io = self.connect().await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new()).handshake(io).await?;
        tokio::spawn(connection);
        *slot = Some(sender.clone());
        Ok(sender)
    }

    /// The lock is held throughout: HTTP/1.1 has one request under way at a time. A
    /// request that is given up takes its connection with it.
    async fn http(&self, request: Request<Full<Bytes>>) -> Result<Answer, Broken> {
        let mut slot = self.http1.lock().await;
        let mut sender = match slot.take().filter(|s| !s.is_closed()) {
            Some(sender) => sender,
            None => {
                let (sender, connection) = http1::handshake(self.connect().await?).await?;
                tokio::spawn(connection);
                sender
            }
        };
        sender.ready().await?;
        let answer: http::Response<Incoming> = sender.send_request(request).await?;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await?.to_bytes();
        *slot = Some(sender);
        Ok(answer::http(parts.status, &parts.headers, &body))
    }

    async fn connect(&self) -> Result<TokioIo<TcpStream>, Broken> {
        let stream = TcpStream::connect(&self.target.address).await?;
        stream.set_nodelay(true)?;
        Ok(TokioIo::new(stream))
    }
}

/// The connection broke; what became of the request is not known.
struct Broken;

impl From<std::io::Error> for Broken {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

impl From<hyper::Error> for Broken {
    fn from(_: hyper::Error) -> Self {
        Self
    }
}
