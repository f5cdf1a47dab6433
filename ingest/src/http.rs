//! OTLP/HTTP: `POST /v1/traces`, `/v1/logs` and `/v1/metrics`, as protobuf or
//! JSON, over HTTP/1.1 and HTTP/2. Errors carry a `google.rpc.Status` in the
//! request's own encoding.

use std::convert::Infallible;

use bytes::Bytes;
use custody_proto::Signal;
use custody_proto::otlp::collector_trace::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use custody_store::Encoding;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use prost::Message as _;

use crate::body::{self, Compression, Held};
use crate::receive::{Core, Outcome, Sender};
use crate::stats::Transport;
use crate::status::Refusal;

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

/// Answers one request.
pub(crate) async fn handle(core: &Core, identity: String, request: Request<Incoming>) -> Response<Body> {
    let Some(signal) = signal_of(request.uri().path()) else {
        let message =
            format!("{} is not a path of OTLP/HTTP; post to /v1/traces, /v1/logs or /v1/metrics", request.uri().path());
        return answer(StatusCode::NOT_FOUND, Encoding::Json, Refusal::Invalid(message).json());
    };
    if request.method() != Method::POST {
        let refusal = Refusal::Invalid(format!("{} is not allowed here; use POST", request.method()));
        let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, Encoding::Json, refusal.json());
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    let encoding = match content_type(request.headers()) {
        Ok(encoding) => encoding,
        Err(refusal) => return refused(core, &refusal, Encoding::Json),
    };
    match export(core, signal, encoding, identity, request).await {
        Ok(outcome) => {
            let mut response = accepted(signal, encoding, &outcome);
            outcome.put_receipt(response.headers_mut());
            response
        }
        Err(refusal) => refused(core, &refusal, encoding),
    }
}

fn content_type(headers: &http::HeaderMap) -> Result<Encoding, Refusal> {
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
    identity: String,
    request: Request<Incoming>,
) -> Result<Outcome, Refusal> {
    core.gate.admit(request.headers())?;
    let mut held = Held::new(core.stats.clone(), core.in_flight_bytes_max);
    let sender = Sender::new(Transport::Http, identity, request.headers());
    let body = whole_body(core, request, &mut held).await?;
    core.receive(signal, encoding, body, sender, held).await
}

async fn whole_body(core: &Core, request: Request<Incoming>, held: &mut Held) -> Result<Bytes, Refusal> {
    let named = request.headers().get(header::CONTENT_ENCODING).map_or(Ok(""), |v| v.to_str());
    let compression = named.ok().and_then(Compression::named);
    let compression =
        compression.ok_or_else(|| Refusal::Unsupported("Content-Encoding must be gzip, zstd or identity".into()))?;
    let max = core.limits.body_bytes_max;
    let body = body::read(request.into_body(), max, held).await?;
    body::decompressed(body, compression, max, held).await
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
fn refused(core: &Core, refusal: &Refusal, encoding: Encoding) -> Response<Body> {
    core.refused(Transport::Http, refusal);
    let body = match encoding {
        Encoding::Protobuf => refusal.protobuf(),
        Encoding::Json => refusal.json(),
    };
    let mut response = answer(refusal.http_status(), encoding, body);
    if let Some(seconds) = refusal.retry_after() {
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}

fn answer(status: StatusCode, encoding: Encoding, body: Bytes) -> Response<Body> {
    let content_type = match encoding {
        Encoding::Protobuf => "application/x-protobuf",
        Encoding::Json => "application/json",
    };
    let mut response = Response::new(Full::new(body).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
