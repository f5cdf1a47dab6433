//! OTLP/gRPC: unary `Export` of the three services.
//!
//! The framing is read here and not by a generated service, because what is kept
//! and hashed is the message as it came, and because decompression must stop at
//! the limit. (gRPC over HTTP/2, "PROTOCOL-HTTP2.md".)

use std::convert::Infallible;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use custody_proto::Signal;
use custody_store::Encoding;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;

use crate::admission::{Client, Held};
use crate::body::{self, Compression};
use crate::http::{Body, partial_success};
use crate::receive::{Core, Outcome, Sender};
use crate::stats::Transport;
use crate::status::{self, Refusal};

/// The bytes in front of every gRPC message: a flag and the length.
const PREFIX_BYTES: usize = 5;

/// The encodings that a client may use (gRPC "Compression", PROTOCOL-HTTP2 "Responses").
const ACCEPTED: &str = "identity,gzip,zstd";

/// The method of a signal's collector service.
pub(crate) fn signal_of(path: &str) -> Option<Signal> {
    let name = path.strip_prefix("/opentelemetry.proto.collector.")?;
    match name {
        "trace.v1.TraceService/Export" => Some(Signal::Traces),
        "logs.v1.LogsService/Export" => Some(Signal::Logs),
        "metrics.v1.MetricsService/Export" => Some(Signal::Metrics),
        _ => None,
    }
}

/// Answers one call.
pub(crate) async fn handle(core: &Core, client: &Arc<Client>, request: Request<Incoming>) -> Response<Body> {
    if let Some((response, why)) = not_grpc(&request) {
        core.refused(Transport::Grpc, &Refusal::Unsupported(why));
        return response;
    }
    let Some(signal) = signal_of(request.uri().path()) else {
        let path = request.uri().path();
        let why = format!(
            "{path} is not a method of this server; it serves Export of OTLP's TraceService, LogsService and MetricsService"
        );
        core.refused(Transport::Grpc, &Refusal::Unsupported(why.clone()));
        return error(&tonic::Status::unimplemented(why));
    };
    match export(core, signal, client, request).await {
        Ok(outcome) => {
            let mut response = success(&partial_success(&outcome));
            outcome.put_receipt(response.headers_mut());
            response
        }
        Err(refusal) => refused(core, &refusal),
    }
}

/// What speaks no gRPC is told so in HTTP: most often an OTLP/HTTP exporter that was given
/// the wrong port. HTTP/1.1 has no trailers that count, and is what a browser would speak. Gives the answer, and why.
fn not_grpc(request: &Request<Incoming>) -> Option<(Response<Body>, String)> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let content_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let (status, what) = match content_type.as_str() {
        "application/grpc" | "application/grpc+proto" if request.version() != Version::HTTP_2 => {
            (StatusCode::HTTP_VERSION_NOT_SUPPORTED, "gRPC needs HTTP/2")
        }
        "application/grpc" | "application/grpc+proto" if request.method() != Method::POST => {
            (StatusCode::METHOD_NOT_ALLOWED, "gRPC calls are POST")
        }
        "application/grpc" | "application/grpc+proto" => return None,
        other if other.starts_with("application/grpc+") => {
            let why = format!("{other} is not spoken here; use protobuf");
            return Some((error(&tonic::Status::unimplemented(&why)), why));
        }
        _ => {
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, "this port speaks OTLP/gRPC; OTLP/HTTP has another (4318 by default)")
        }
    };
    let encoding = if content_type == "application/x-protobuf" { Encoding::Protobuf } else { Encoding::Json };
    let body = status::body(tonic::Code::InvalidArgument, what, encoding);
    let mut response = crate::http::answer(status, encoding, body);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
    }
    Some((response, what.to_owned()))
}

/// Counts a refusal, and tells it.
pub(crate) fn refused(core: &Core, refusal: &Refusal) -> Response<Body> {
    core.refused(Transport::Grpc, refusal);
    let mut response = error(&refusal.grpc());
    if let Some(challenge) = refusal.challenge() {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

async fn export(
    core: &Core,
    signal: Signal,
    client: &Arc<Client>,
    request: Request<Incoming>,
) -> Result<Outcome, Refusal> {
    core.rules.gate.admit(request.headers())?;
    let mut held = client.hold();
    let sender = Sender::new(Transport::Grpc, client.identity().to_owned(), request.headers());
    let message = message(core, request, &mut held).await?;
    core.receive(signal, Encoding::Protobuf, message, sender, held).await
}

/// The one message of a unary call.
async fn message(core: &Core, mut request: Request<Incoming>, held: &mut Held) -> Result<Bytes, Refusal> {
    let named = request.headers().get("grpc-encoding").map_or(Ok(""), |v| v.to_str());
    let compression = named.ok().and_then(Compression::named);
    let compression =
        compression.ok_or_else(|| Refusal::Unsupported("grpc-encoding must be identity, gzip or zstd".into()))?;
    let max = core.rules.limits.body_bytes_max;
    let read = body::read(request.body_mut(), max + PREFIX_BYTES, held).await;
    if read.is_err() {
        body::discard(request.body_mut()).await;
    }
    let body = read.map_err(|refusal| match refusal {
        Refusal::TooLarge(_) => Refusal::TooLarge(max),
        other => other,
    })?;
    match unframe(body, compression)? {
        (message, false) => Ok(message),
        (message, true) => body::decompressed(message, compression, max, held).await,
    }
}

/// The one message of a call's body, and whether it is compressed.
pub(crate) fn unframe(mut body: Bytes, compression: Compression) -> Result<(Bytes, bool), Refusal> {
    if body.len() < PREFIX_BYTES {
        return Err(Refusal::Invalid("the call has no message".into()));
    }
    let prefix = body.split_to(PREFIX_BYTES);
    let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if len != body.len() {
        return Err(Refusal::Invalid(format!(
            "the message's length is given as {len} bytes, but {} came; Export takes one message",
            body.len()
        )));
    }
    match prefix[0] {
        0 => Ok((body, false)),
        1 if compression == Compression::None => {
            Err(Refusal::Invalid("the message is marked as compressed, but the call has no grpc-encoding".into()))
        }
        1 => Ok((body, true)),
        _ => Err(Refusal::Invalid("the message's compressed flag is neither 0 nor 1".into())),
    }
}

fn success(message: &[u8]) -> Response<Body> {
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    let trailers = async {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Some(Ok::<_, Infallible>(trailers))
    };
    let body = Full::new(frame.freeze()).with_trailers(trailers).boxed_unsync();
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-accept-encoding", HeaderValue::from_static(ACCEPTED));
    response
}

fn error(status: &tonic::Status) -> Response<Body> {
    let mut response = status.clone().into_http::<Empty<Bytes>>().map(|_| Empty::new().boxed_unsync());
    let headers = response.headers_mut();
    headers.insert("grpc-accept-encoding", HeaderValue::from_static(ACCEPTED));
    response
}
