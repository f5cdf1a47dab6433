//! OTLP, line by line, against the built binary over real sockets.
//!
//! Each test names what the OTLP specification (opentelemetry-proto,
//! docs/specification.md, https://opentelemetry.io/docs/specs/otlp/) or a specification
//! under it (gRPC, HTTP, Fetch) asks of a server, and cites the section.

mod support;

#[path = "otlp/answers.rs"]
mod answers;
#[path = "otlp/connections.rs"]
mod connections;
#[path = "otlp/cors.rs"]
mod cors;
#[path = "otlp/json.rs"]
mod json;
#[path = "otlp/limits.rs"]
mod limits;
#[path = "otlp/once.rs"]
mod once;
#[path = "otlp/requests.rs"]
mod requests;
#[path = "otlp/transports.rs"]
mod transports;
#[path = "otlp/values.rs"]
mod values;
#[path = "otlp/wire.rs"]
mod wire;
