//! What the server says of itself: `/healthz`, `/readyz`, `/metrics`, and spans of our
//! own about requests. What there is to say comes from an [`Observer`].

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use custody_proto::grpc;
use opentelemetry::context::FutureExt as _;
use opentelemetry::trace::{SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue, global};

use super::Served;

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsFormat {
    /// Prometheus' own text format, 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

/// Knows how the whole server is.
pub trait Observer: Send + Sync + 'static {
    /// All metrics, as text.
    fn metrics(&self, format: MetricsFormat) -> String;

    /// Whether requests should be sent here, and the state of each part.
    fn readiness(&self) -> (bool, serde_json::Value);

    /// If a request with these headers shall be traced: the context that it belongs to.
    fn traced(&self, headers: &HeaderMap) -> Option<Context>;
}

/// For a server that nobody watches: the one that a command starts for itself.
pub struct Unobserved;

impl Observer for Unobserved {
    fn metrics(&self, _: MetricsFormat) -> String {
        String::new()
    }

    fn readiness(&self) -> (bool, serde_json::Value) {
        (true, serde_json::json!({"ready": true}))
    }

    fn traced(&self, _: &HeaderMap) -> Option<Context> {
        None
    }
}

/// The state of each part as JSON; 503 while requests should go elsewhere.
pub(super) async fn ready(State(served): State<Served>) -> Response {
    let asked = tokio::task::spawn_blocking(move || served.observer.readiness()).await;
    let (ready, state) = asked.unwrap_or_else(|_| (false, serde_json::json!({"ready": false})));
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, format!("{state:#}\n")).into_response()
}

pub(super) async fn metrics(State(served): State<Served>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (format, content_type) = match accept.contains("application/openmetrics-text") {
        true => (MetricsFormat::OpenMetrics, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        false => (MetricsFormat::Prometheus, "text/plain; version=0.0.4; charset=utf-8"),
    };
    let asked = tokio::task::spawn_blocking(move || served.observer.metrics(format)).await;
    match asked {
        Ok(text) => ([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))], text).into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// The route of a path: few names, whatever is asked for.
fn route(path: &str) -> &'static str {
    const ROUTES: [&str; 16] = [
        "/",
        "/api/v1/sql",
        "/api/v1/evidence",
        "/api/v1/events",
        "/api/services",
        "/api/traces",
        "/api/dependencies",
        "/api/v3/services",
        "/api/v3/traces",
        "/api/v3/trace-summaries",
        "/checkpoint",
        "/checkpoint/witnessed",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
    ];
    match ROUTES.into_iter().find(|route| *route == path) {
        Some(route) => route,
        None if path.starts_with("/api/traces/") || path.starts_with("/api/v3/traces/") => "/api/traces/{id}",
        None if path.starts_with("/tile/") => "/tile/{path}",
        None if path.starts_with("/api/v1/consumers") => "/api/v1/consumers/{name}",
        None if path.starts_with("/custody.v1.Events/") => "/custody.v1.Events/{method}",
        None => "_OTHER",
    }
}

/// Puts a span around a request, under that of the caller (W3C Trace Context) if he
/// has one. Health checks and scrapes are not traced.
pub(super) async fn trace(State(served): State<Served>, request: Request, next: Next) -> Response {
    let route = route(request.uri().path());
    if matches!(route, "/healthz" | "/readyz" | "/metrics") {
        return next.run(request).await;
    }
    let Some(parent) = served.observer.traced(request.headers()) else { return next.run(request).await };
    let method = match request.method().as_str() {
        method @ ("GET" | "HEAD" | "POST") => method.to_owned(),
        _ => "_OTHER".to_owned(),
    };
    let attributes = [KeyValue::new("http.request.method", method.clone()), KeyValue::new("http.route", route)];
    let tracer = global::tracer_provider().tracer("custody");
    let span = tracer.span_builder(format!("{method} {route}")).with_kind(SpanKind::Server).with_attributes(attributes);
    let context = parent.with_span(span.start_with_context(&tracer, &parent));
    let response = next.run(request).with_context(context.clone()).await;
    let span = context.span();
    span.set_attribute(KeyValue::new("http.response.status_code", i64::from(response.status().as_u16())));
    if response.status().is_server_error() {
        span.set_status(Status::error(""));
    }
    span.end();
    response
}

/// Puts a span around a gRPC call.
pub(super) async fn call<T>(
    method: &'static str,
    parent: &Context,
    work: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, tonic::Status> {
    let attributes = [KeyValue::new("rpc.system.name", "grpc"), KeyValue::new("rpc.method", method)];
    let tracer = global::tracer_provider().tracer("custody");
    let span = tracer.span_builder(method).with_kind(SpanKind::Server).with_attributes(attributes);
    let context = parent.with_span(span.start_with_context(&tracer, parent));
    let done = work.with_context(context.clone()).await;
    let code = done.as_ref().map_or_else(tonic::Status::code, |_| tonic::Code::Ok);
    let span = context.span();
    span.set_attribute(KeyValue::new("rpc.response.status_code", grpc::status_name(code as i32)));
    if grpc::is_server_error(code as i32) {
        span.set_status(Status::error(""));
    }
    span.end();
    done
}

/// Begins a span under the request that is being handled, if that is traced.
pub(crate) fn child(name: &'static str) -> Option<Context> {
    let context = Context::current();
    if !context.has_active_span() {
        return None;
    }
    let tracer = global::tracer_provider().tracer("custody");
    let span = tracer.span_builder(name).with_kind(SpanKind::Internal).start_with_context(&tracer, &context);
    Some(context.with_span(span))
}
