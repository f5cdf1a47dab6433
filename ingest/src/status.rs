//! The only table from refusals to what gRPC and HTTP clients are told (OTLP
//! specification, sections "Failures" of OTLP/gRPC and OTLP/HTTP).
//!
//! Never INTERNAL: clients may not retry that, and drop the data.

use std::time::Duration;

use bytes::Bytes;
use custody_store::Encoding;
use http::{HeaderValue, StatusCode};
use prost::Message;

/// Why a request was refused, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It can never be accepted.
    Invalid,
    /// A content type or encoding that is not spoken here, a path or method that is not served, a
    /// page that may not send.
    Unsupported,
    /// Larger than the limit.
    TooLarge,
    /// Too many bytes wait for the log.
    Memory,
    /// Too many requests are under way.
    Requests,
    /// The body broke off or stopped coming.
    Body,
    /// The server is stopping.
    Draining,
    /// The log failed.
    LogFailed,
    /// The disk is nearly full.
    DiskLow,
    /// This server's own traces came back to it.
    OwnTraces,
    /// Not now, for another reason.
    Unavailable,
    /// Nobody knows who sends it.
    Unauthenticated,
    /// Who sends it may not.
    Forbidden,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::Invalid,
        Self::Unsupported,
        Self::TooLarge,
        Self::Memory,
        Self::Requests,
        Self::Body,
        Self::Draining,
        Self::LogFailed,
        Self::DiskLow,
        Self::OwnTraces,
        Self::Unavailable,
        Self::Unauthenticated,
        Self::Forbidden,
    ];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::TooLarge => "too_large",
            Self::Memory => "memory",
            Self::Requests => "requests",
            Self::Body => "body",
            Self::Draining => "draining",
            Self::LogFailed => "log_failed",
            Self::DiskLow => "disk_low",
            Self::OwnTraces => "own_traces",
            Self::Unavailable => "unavailable",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
        }
    }
}

/// Why a request was refused whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It can never be accepted: mend it.
    Invalid(String),
    /// It is larger than this limit in bytes: send smaller batches.
    TooLarge(usize),
    /// A content type or encoding that is not spoken here.
    Unsupported(String),
    /// It carries this server's own traces; to keep them would make more of them.
    Own,
    /// Nobody knows who sends it: there is no certificate or token, or it is not good.
    Unauthenticated(String),
    /// Who sends it may not.
    Forbidden(String),
    /// Not now: try again after this long.
    Unavailable {
        /// What is the matter.
        message: String,
        /// When to try again.
        retry_after: Duration,
        /// As what it is counted.
        reason: Reason,
    },
}

impl Refusal {
    /// For the client: what is wrong, and the mend.
    pub fn message(&self) -> String {
        match self {
            Self::Invalid(message)
            | Self::Unsupported(message)
            | Self::Unauthenticated(message)
            | Self::Forbidden(message)
            | Self::Unavailable { message, .. } => message.clone(),
            Self::TooLarge(limit) => {
                format!(
                    "the request is larger than the limit of {limit} bytes after decompression (--request-bytes-max); send smaller batches"
                )
            }
            Self::Own => "these are this server's own traces; export them to another one (--trace-endpoint)".into(),
        }
    }

    /// As what it is counted.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Invalid(_) => Reason::Invalid,
            Self::TooLarge(_) => Reason::TooLarge,
            Self::Unsupported(_) => Reason::Unsupported,
            Self::Own => Reason::OwnTraces,
            Self::Unauthenticated(_) => Reason::Unauthenticated,
            Self::Forbidden(_) => Reason::Forbidden,
            Self::Unavailable { reason, .. } => *reason,
        }
    }

    /// The same, counted under a reason of its own.
    pub(crate) fn because(mut self, counted: Reason) -> Self {
        if let Self::Unavailable { reason, .. } = &mut self {
            *reason = counted;
        }
        self
    }

    pub(crate) fn unavailable(message: &str, seconds: u64) -> Self {
        let (retry_after, reason) = (Duration::from_secs(seconds), Reason::Unavailable);
        Self::Unavailable { message: message.into(), retry_after, reason }
    }

    /// The HTTP status (OTLP/HTTP, "Failures").
    pub fn http_status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) | Self::Own => StatusCode::BAD_REQUEST,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unsupported(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The gRPC status code.
    pub fn grpc_code(&self) -> tonic::Code {
        match self {
            Self::Invalid(_) | Self::Own => tonic::Code::InvalidArgument,
            Self::TooLarge(_) => tonic::Code::ResourceExhausted,
            Self::Unsupported(_) => tonic::Code::Unimplemented,
            Self::Unauthenticated(_) => tonic::Code::Unauthenticated,
            Self::Forbidden(_) => tonic::Code::PermissionDenied,
            Self::Unavailable { .. } => tonic::Code::Unavailable,
        }
    }

    /// With what to come again, for `WWW-Authenticate` (RFC 6750, section 3).
    pub fn challenge(&self) -> Option<HeaderValue> {
        matches!(self, Self::Unauthenticated(_)).then(|| HeaderValue::from_static("Bearer realm=\"custody\""))
    }

    /// When to try again, in whole seconds for `Retry-After`.
    pub(crate) fn retry_after(&self) -> Option<HeaderValue> {
        match self {
            Self::Unavailable { retry_after, .. } => Some(retry_after.as_secs().max(1).into()),
            _ => None,
        }
    }

    /// When to try again, or what is bad ("Failures": RetryInfo and BadRequest). Too large
    /// a request has none: a client that finds RetryInfo sends the same one again.
    fn status(&self) -> RpcStatus {
        let details = match self {
            Self::Unavailable { retry_after, .. } => {
                let retry_delay = RpcDuration { seconds: retry_after.as_secs() as i64, nanos: 0 };
                let value = RetryInfo { retry_delay: Some(retry_delay) }.encode_to_vec();
                vec![Any { type_url: RETRY_INFO.into(), value }]
            }
            Self::Invalid(message) => {
                let violation = FieldViolation { field: String::new(), description: message.clone() };
                let value = BadRequest { field_violations: vec![violation] }.encode_to_vec();
                vec![Any { type_url: BAD_REQUEST.into(), value }]
            }
            _ => vec![],
        };
        RpcStatus { code: self.grpc_code() as i32, message: self.message(), details }
    }

    /// The same details, in protobuf's JSON mapping.
    fn details_json(&self) -> serde_json::Value {
        match self {
            Self::Unavailable { retry_after, .. } => {
                serde_json::json!([{"@type": RETRY_INFO, "retryDelay": format!("{}s", retry_after.as_secs())}])
            }
            Self::Invalid(message) => {
                serde_json::json!([{"@type": BAD_REQUEST, "fieldViolations": [{"description": message}]}])
            }
            _ => serde_json::json!([]),
        }
    }

    /// The `google.rpc.Status` body, as protobuf.
    pub(crate) fn protobuf(&self) -> Bytes {
        self.status().encode_to_vec().into()
    }

    /// The `google.rpc.Status` body, as JSON.
    pub(crate) fn json(&self) -> Bytes {
        let details = self.details_json();
        serde_json::json!({"code": self.grpc_code() as i32, "message": self.message(), "details": details})
            .to_string()
            .into()
    }

    /// The gRPC status, with `RetryInfo` where it is retried.
    pub fn grpc(&self) -> tonic::Status {
        let status = self.status();
        if status.details.is_empty() {
            return tonic::Status::new(self.grpc_code(), self.message());
        }
        tonic::Status::with_details(self.grpc_code(), self.message(), status.encode_to_vec().into())
    }
}

/// The body of an answer whose HTTP status says what is wrong before a request is read:
/// a `google.rpc.Status` in the request's encoding.
pub(crate) fn body(code: tonic::Code, message: &str, encoding: Encoding) -> Bytes {
    let status = RpcStatus { code: code as i32, message: message.into(), details: vec![] };
    match encoding {
        Encoding::Protobuf => status.encode_to_vec().into(),
        Encoding::Json => serde_json::json!({"code": status.code, "message": message}).to_string().into(),
    }
}

const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";
const BAD_REQUEST: &str = "type.googleapis.com/google.rpc.BadRequest";

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    pub retry_delay: Option<RpcDuration>,
}

/// `google.rpc.BadRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct BadRequest {
    #[prost(message, repeated, tag = "1")]
    pub field_violations: Vec<FieldViolation>,
}

/// `google.rpc.BadRequest.FieldViolation`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FieldViolation {
    #[prost(string, tag = "1")]
    pub field: String,
    #[prost(string, tag = "2")]
    pub description: String,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct RpcDuration {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}
