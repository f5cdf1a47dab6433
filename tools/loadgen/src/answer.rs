//! What an answer to an OTLP request means (OTLP specification, "Failures").

use std::time::Duration;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderMap;
use prost::Message;

/// What became of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// All records are acknowledged.
    Acknowledged,
    /// So many records were refused for good; not said which.
    Partial(i64),
    /// Try again, after this long if it was said.
    Retry(String, Option<Duration>),
    /// Never.
    Refused(String),
}

/// `Export{Trace,Logs}ServiceResponse`; both have the same fields.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

/// `google.rpc.Status`, with the details that are read here.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<RetryDelay>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct RetryDelay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

fn accepted(body: &[u8]) -> Answer {
    match Response::decode(body) {
        Ok(Response { partial_success: Some(partial) }) if partial.rejected > 0 => Answer::Partial(partial.rejected),
        Ok(_) => Answer::Acknowledged,
        Err(_) => Answer::Refused("answer is not OTLP".into()),
    }
}

/// The answer over HTTP.
pub fn http(status: http::StatusCode, headers: &HeaderMap, body: &[u8]) -> Answer {
    let retry_after = headers.get("retry-after").and_then(|v| v.to_str().ok()?.trim().parse().ok());
    match status.as_u16() {
        200 => accepted(body),
        code @ (429 | 502 | 503 | 504) => Answer::Retry(format!("HTTP {code}"), retry_after.map(Duration::from_secs)),
        code => Answer::Refused(told(&format!("HTTP {code}"), &message_of(body))),
    }
}

/// What the body of an error says: `google.rpc.Status` in protobuf or JSON, or text.
fn message_of(body: &[u8]) -> String {
    let json = serde_json::from_slice::<serde_json::Value>(body).ok();
    match json.as_ref().and_then(|json| json.get("message")?.as_str()) {
        Some(message) => message.to_owned(),
        None => match Status::decode(body) {
            Ok(status) if !status.message.is_empty() => status.message,
            _ => String::from_utf8_lossy(body).into_owned(),
        },
    }
}

/// A code with the first of what the server says about it. Answers are counted by this text.
fn told(code: &str, message: &str) -> String {
    const CHARS_MAX: usize = 160;
    let message: String = message.chars().filter(|c| !c.is_control()).take(CHARS_MAX).collect();
    if message.is_empty() { code.to_owned() } else { format!("{code}: {message}") }
}

/// The names of gRPC's status codes.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The answer over gRPC: the status of the trailers (or of headers alone) and the
/// framed message.
pub fn grpc(trailers: &HeaderMap, body: &[u8]) -> Answer {
    let code = trailers.get("grpc-status").and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    let Some(name) = code.and_then(|code| CODES.get(code)) else {
        return Answer::Retry("no gRPC status".into(), None);
    };
    let delay = retry_delay(trailers);
    match (*name, delay) {
        // One byte says whether the message is compressed, which nobody asked for; four are its length.
        ("OK", _) => accepted(body.get(5..).unwrap_or_default()),
        ("CANCELLED" | "DEADLINE_EXCEEDED" | "ABORTED" | "OUT_OF_RANGE" | "UNAVAILABLE" | "DATA_LOSS", _)
        | ("RESOURCE_EXHAUSTED", Some(_)) => Answer::Retry((*name).into(), delay),
        _ => Answer::Refused(told(name, &grpc_message(trailers))),
    }
}

/// `grpc-message`, which is percent-encoded (gRPC over HTTP/2, "Status-Message").
fn grpc_message(trailers: &HeaderMap) -> String {
    let mut bytes = trailers.get("grpc-message").map_or(&b""[..], |v| v.as_bytes());
    let mut out = Vec::with_capacity(bytes.len());
    while let Some((&byte, rest)) = bytes.split_first() {
        let digits = rest.get(..2).filter(|_| byte == b'%').and_then(|d| std::str::from_utf8(d).ok());
        let decoded = digits.and_then(|d| u8::from_str_radix(d, 16).ok());
        out.push(decoded.unwrap_or(byte));
        bytes = if decoded.is_some() { &rest[2..] } else { rest };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `RetryInfo` out of the status in `grpc-status-details-bin`.
fn retry_delay(trailers: &HeaderMap) -> Option<Duration> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let base64 = GeneralPurpose::new(&base64::alphabet::STANDARD, config);
    let details = base64.decode(trailers.get("grpc-status-details-bin")?.as_bytes()).ok()?;
    let status = Status::decode(details.as_slice()).ok()?;
    let info = status.details.into_iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(info.value.as_slice()).ok()?.retry_delay?;
    Some(Duration::new(u64::try_from(delay.seconds).ok()?, u32::try_from(delay.nanos).ok()?.min(999_999_999)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trailers(code: &str, delay: Option<RetryDelay>) -> HeaderMap {
        let mut out = HeaderMap::new();
        out.insert("grpc-status", code.parse().unwrap());
        if delay.is_some() {
            let value = RetryInfo { retry_delay: delay }.encode_to_vec();
            let any = Any { type_url: "type.googleapis.com/google.rpc.RetryInfo".into(), value };
            let details = Status { details: vec![any], ..Status::default() }.encode_to_vec();
            let text = base64::engine::general_purpose::STANDARD_NO_PAD.encode(details);
            out.insert("grpc-status-details-bin", text.parse().unwrap());
        }
        out
    }

    #[test]
    fn what_may_be_tried_again_is_as_the_specification_says() {
        let delay = Some(RetryDelay { seconds: 2, nanos: 500_000_000 });
        let after = Some(Duration::from_millis(2_500));
        assert_eq!(grpc(&trailers("0", None), &[0, 0, 0, 0, 0]), Answer::Acknowledged);
        assert_eq!(grpc(&trailers("14", None), &[]), Answer::Retry("UNAVAILABLE".into(), None));
        assert_eq!(grpc(&trailers("14", delay), &[]), Answer::Retry("UNAVAILABLE".into(), after));
        assert_eq!(grpc(&trailers("8", delay), &[]), Answer::Retry("RESOURCE_EXHAUSTED".into(), after));
        assert_eq!(grpc(&trailers("8", None), &[]), Answer::Refused("RESOURCE_EXHAUSTED".into()));
        assert_eq!(grpc(&trailers("3", None), &[]), Answer::Refused("INVALID_ARGUMENT".into()));
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "7".parse().unwrap());
        let seven = Some(Duration::from_secs(7));
        assert_eq!(http(http::StatusCode::SERVICE_UNAVAILABLE, &headers, b""), Answer::Retry("HTTP 503".into(), seven));
        assert_eq!(http(http::StatusCode::BAD_REQUEST, &headers, b""), Answer::Refused("HTTP 400".into()));
    }

    #[test]
    fn what_the_server_says_is_shown() {
        let mut refused = trailers("3", None);
        refused.insert("grpc-message", "50%25 of it%0A is %zz".parse().unwrap());
        assert_eq!(grpc(&refused, &[]), Answer::Refused("INVALID_ARGUMENT: 50% of it is %zz".into()));
        let status = Status { message: "a span is wrong".into(), ..Status::default() }.encode_to_vec();
        for body in [status.as_slice(), br#"{"code": 3, "message": "a span is wrong"}"#, b"a span is wrong"] {
            let answer = http(http::StatusCode::BAD_REQUEST, &HeaderMap::new(), body);
            assert_eq!(answer, Answer::Refused("HTTP 400: a span is wrong".into()));
        }
    }

    #[test]
    fn records_that_were_rejected_are_not_acknowledged() {
        let partial_success = Some(PartialSuccess { rejected: 3, error_message: "no".into() });
        let body = Response { partial_success }.encode_to_vec();
        assert_eq!(http(http::StatusCode::OK, &HeaderMap::new(), &body), Answer::Partial(3));
        // A warning alone (OTLP: rejected 0 and a message) rejects nothing.
        let warning = Some(PartialSuccess { rejected: 0, error_message: "slow down".into() });
        let body = Response { partial_success: warning }.encode_to_vec();
        assert_eq!(http(http::StatusCode::OK, &HeaderMap::new(), &body), Answer::Acknowledged);
        assert_eq!(accepted(b"<html>"), Answer::Refused("answer is not OTLP".into()));
    }
}
