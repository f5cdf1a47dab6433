//! OTLP/HTTP: `POST /v1/traces`, `/v1/logs` and `/v1/metrics`, as protobuf or
//! JSON, over HTTP/1.1 and HTTP/2. Errors carry a `google.rpc.Status` in the
//! request's own encoding.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use custody_proto::Signal;
use custody_proto::otlp::collector_trace::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use custody_store::Encoding;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use prost::Message as _;

use crate::admission::Client;
use crate::body::{self, Compression};
use crate::receive::{Core, Outcome, Sender};
use crate::stats::Transport;
use crate::status::{self, Refusal};

/// The body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

pub(crate) fn signal_of(path: &str) -> Option<Signal> {
    match path {
        "/v1/traces" => Some(Signal::Traces),
        "/v1/logs" => Some(Signal::Logs),
        "/v1/metrics" => Some(Signal::Metrics),
        _ => None,
    }
}

/// Answers one request, and lets a page read the answer if it may send.
pub(crate) async fn handle(core: &Core, client: &Arc<Client>, mut request: Request<Incoming>) -> Response<Body> {
    let mut response = respond(core, client, &mut request).await;
    if !response.status().is_success() {
        hear_out(&mut request).await;
    }
    core.cors.mark(request.headers().get(header::ORIGIN), response.headers_mut());
    response
}

/// Lets a client that is refused send on for a moment, so that it comes to read why. HTTP/2
/// resets a stream alone; and who asks first (`Expect`) has sent nothing yet.
pub(crate) async fn hear_out(request: &mut Request<Incoming>) {
    let alone = request.version() >= http::Version::HTTP_2 || request.headers().contains_key(header::EXPECT);
    if !alone {
        body::discard(request.body_mut()).await;
    }
}

async fn respond(core: &Core, client: &Arc<Client>, request: &mut Request<Incoming>) -> Response<Body> {
    let encoding = content_type(request.headers());
    // What cannot be told in the request's encoding is told in JSON.
    let told_in = *encoding.as_ref().unwrap_or(&Encoding::Json);
    let refuse = |status, code, message: &str| {
        core.refused(Transport::Http, &Refusal::Unsupported(message.to_owned()));
        answer(status, told_in, status::body(code, message, told_in))
    };
    let (method, path) = (request.method(), request.uri().path());
    let Some(signal) = signal_of(path) else {
        let message = match crate::grpc::signal_of(path) {
            Some(_) => "this port speaks OTLP/HTTP; OTLP/gRPC has another (4317 by default)".to_owned(),
            None => format!("{path} is not a path of OTLP/HTTP; post to /v1/traces, /v1/logs or /v1/metrics"),
        };
        return refuse(StatusCode::NOT_FOUND, tonic::Code::NotFound, &message);
    };
    if !core.cors.allows(request.headers()) {
        let message = "pages of this origin may not send; allow it with --cors-origin";
        return refuse(StatusCode::FORBIDDEN, tonic::Code::PermissionDenied, message);
    }
    if let Some(preflight) = core.cors.preflight(request) {
        return preflight;
    }
    if method != Method::POST {
        let message = format!("{method} is not allowed here; use POST");
        let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, tonic::Code::Unimplemented, &message);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    let encoding = match encoding {
        Ok(encoding) => encoding,
        Err(refusal) => {
            let mut response = refused(core, &refusal, Encoding::Json);
            let spoken = HeaderValue::from_static("application/x-protobuf, application/json");
            response.headers_mut().insert(header::ACCEPT, spoken);
            return response;
        }
    };
    match export(core, signal, encoding, client, request).await {
        Ok(outcome) => {
            let mut response = accepted(signal, encoding, &outcome);
            outcome.put_receipt(response.headers_mut());
            response
        }
        Err(refusal) => {
            let mut response = refused(core, &refusal, encoding);
            if let Refusal::Unsupported(_) = refusal {
                // RFC 9110, section 12.5.3: in a 415 it says that the encoding was the matter.
                let spoken = HeaderValue::from_static("gzip, zstd, identity");
                response.headers_mut().insert(header::ACCEPT_ENCODING, spoken);
            }
            response
        }
    }
}

pub(crate) fn content_type(headers: &http::HeaderMap) -> Result<Encoding, Refusal> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "application/x-protobuf" => Ok(Encoding::Protobuf),
        "application/json" => Ok(Encoding::Json),
        _ => Err(Refusal::Unsupported("Content-Type must be application/x-protobuf or application/json".into())),
    }
}

async fn export(
    core: &Core,
    signal: Signal,
    encoding: Encoding,
    client: &Arc<Client>,
    request: &mut Request<Incoming>,
) -> Result<Outcome, Refusal> {
    core.rules.gate.admit(request.headers())?;
    let compression = compression(request.headers())?;
    let mut held = client.hold();
    let sender = Sender::new(Transport::Http, client.identity().to_owned(), request.headers());
    let max = core.rules.limits.body_bytes_max;
    let body = body::read(request.body_mut(), max, &mut held).await?;
    let body = body::decompressed(body, compression, max, &mut held).await?;
    core.receive(signal, encoding, body, sender, held).await
}

fn compression(headers: &http::HeaderMap) -> Result<Compression, Refusal> {
    let mut named = headers.get_all(header::CONTENT_ENCODING).iter();
    let compression = match (named.next(), named.next()) {
        (None, _) => Some(Compression::None),
        (Some(one), None) => one.to_str().ok().and_then(Compression::named),
        (Some(_), Some(_)) => None,
    };
    compression.ok_or_else(|| Refusal::Unsupported("Content-Encoding must be gzip, zstd or identity".into()))
}

/// The protobuf body of a success: `Export*ServiceResponse`, which have the same
/// fields for all signals. Empty unless records were refused.
pub(crate) fn partial_success(outcome: &Outcome) -> Bytes {
    if outcome.rejected == 0 {
        return Bytes::new();
    }
    let partial_success =
        ExportTracePartialSuccess { rejected_spans: outcome.rejected as i64, error_message: outcome.message.clone() };
    ExportTraceServiceResponse { partial_success: Some(partial_success) }.encode_to_vec().into()
}

fn partial_success_json(signal: Signal, outcome: &Outcome) -> Bytes {
    if outcome.rejected == 0 {
        return Bytes::from_static(b"{}");
    }
    let field = match signal {
        Signal::Traces => "rejectedSpans",
        Signal::Logs => "rejectedLogRecords",
        Signal::Metrics => "rejectedDataPoints",
    };
    let rejected = outcome.rejected.to_string();
    serde_json::json!({"partialSuccess": {field: rejected, "errorMessage": outcome.message}}).to_string().into()
}

fn accepted(signal: Signal, encoding: Encoding, outcome: &Outcome) -> Response<Body> {
    let body = match encoding {
        Encoding::Protobuf => partial_success(outcome),
        Encoding::Json => partial_success_json(signal, outcome),
    };
    answer(StatusCode::OK, encoding, body)
}

/// Counts a refusal, and tells it in the request's encoding.
pub(crate) fn refused(core: &Core, refusal: &Refusal, encoding: Encoding) -> Response<Body> {
    core.refused(Transport::Http, refusal);
    let body = match encoding {
        Encoding::Protobuf => refusal.protobuf(),
        Encoding::Json => refusal.json(),
    };
    let mut response = answer(refusal.http_status(), encoding, body);
    if let Some(seconds) = refusal.retry_after() {
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    if let Some(challenge) = refusal.challenge() {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// An answer in one of the two encodings.
pub(crate) fn answer(status: StatusCode, encoding: Encoding, body: Bytes) -> Response<Body> {
    let content_type = match encoding {
        Encoding::Protobuf => "application/x-protobuf",
        Encoding::Json => "application/json",
    };
    let mut response = Response::new(Full::new(body).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
