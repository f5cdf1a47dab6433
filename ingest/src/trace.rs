//! Spans of our own about requests and commits. Whether a request is traced is decided
//! before anything else is done for it, so that what is not traced costs one atomic
//! addition, and nothing at all while tracing is off.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use custody_proto::grpc;
use http::{HeaderMap, Request, Response};
use opentelemetry::trace::{
    Link, Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, global};

use crate::stats::Transport;

/// The attribute of a span about a request that carried spans of our own: it is not exported.
pub const NOT_EXPORTED: &str = "custody.own";

/// Chooses which requests are traced: an even part of them, without a lock.
#[derive(Debug)]
pub(crate) struct Sampler {
    /// A request is traced if its number is below this.
    below: u64,
    state: AtomicU64,
}

impl Sampler {
    /// Traces this part of all requests: 0 none, 1 all.
    pub(crate) fn new(ratio: f64) -> Self {
        let below = if ratio >= 1.0 { u64::MAX } else { (ratio.max(0.0) * u64::MAX as f64) as u64 };
        Self { below, state: AtomicU64::new(0) }
    }

    fn hits(&self) -> bool {
        if self.below == 0 {
            return false;
        }
        // SplitMix64: numbers that are spread evenly, from a counter.
        let mut z = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) <= self.below
    }

    /// Begins the span of a request, if it is to be traced.
    pub(crate) fn begin<B>(&self, transport: Transport, request: &Request<B>) -> Option<Context> {
        if !self.hits() {
            return None;
        }
        // Only known paths: anybody can send others.
        let path = request.uri().path();
        let known = crate::grpc::signal_of(path).is_some() || crate::http::signal_of(path).is_some();
        let path = if known { path } else { "_OTHER" };
        let (name, attributes) = match transport {
            Transport::Grpc => {
                let method = path.trim_start_matches('/').to_owned();
                let attributes =
                    vec![KeyValue::new("rpc.system.name", "grpc"), KeyValue::new("rpc.method", method.clone())];
                (method, attributes)
            }
            Transport::Http => {
                let method = match request.method().as_str() {
                    "POST" => "POST",
                    _ => "_OTHER",
                };
                let name = format!("{method} {path}");
                let attributes =
                    vec![KeyValue::new("http.request.method", method), KeyValue::new("http.route", path.to_owned())];
                (name, attributes)
            }
        };
        let tracer = tracer();
        let span = tracer.span_builder(name).with_kind(SpanKind::Server).with_attributes(attributes);
        Some(Context::new().with_span(span.start_with_context(&tracer, &Context::new())))
    }
}

/// Ends the span of a request with what was answered.
pub(crate) fn end<B>(context: &Context, transport: Transport, response: &Response<B>) {
    let span = context.span();
    let failed = match transport {
        Transport::Grpc => {
            let code = grpc_status(response.headers());
            span.set_attribute(KeyValue::new("rpc.response.status_code", grpc::status_name(code)));
            grpc::is_server_error(code)
        }
        Transport::Http => {
            let code = response.status().as_u16();
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(code)));
            code >= 500
        }
    };
    if failed {
        span.set_status(Status::error(""));
    }
    span.end();
}

fn grpc_status(headers: &HeaderMap) -> i32 {
    headers.get("grpc-status").and_then(|code| code.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// The span of the request that is being handled, if it is traced.
pub(crate) fn current() -> Option<SpanContext> {
    Context::map_current(|context| context.has_active_span().then(|| context.span().span_context().clone()))
}

/// Says something of the request that is being handled, if it is traced.
pub(crate) fn note(attributes: impl FnOnce() -> Vec<KeyValue>) {
    Context::map_current(|context| {
        if context.has_active_span() {
            context.span().set_attributes(attributes());
        }
    });
}

/// Tells of a commit, under the first traced request of its group; the others are linked.
pub(crate) fn committed(requests: &[SpanContext], begun: SystemTime, commit: &crate::stats::Committed) {
    let Some((first, others)) = requests.split_first() else { return };
    let parent = Context::new().with_remote_span_context(first.clone());
    let mut attributes = vec![
        KeyValue::new("custody.commit.requests", commit.requests as i64),
        KeyValue::new("custody.commit.records", commit.records as i64),
    ];
    attributes.extend(commit.write_nanos.map(|ns| KeyValue::new("custody.commit.fsync_seconds", ns as f64 * 1e-9)));
    let tracer = tracer();
    let span = tracer
        .span_builder("custody.commit")
        .with_start_time(begun)
        .with_kind(SpanKind::Internal)
        .with_attributes(attributes)
        .with_links(others.iter().map(|other| Link::with_context(other.clone())).collect());
    span.start_with_context(&tracer, &parent).end();
}

fn tracer() -> global::BoxedTracer {
    global::tracer_provider().tracer("custody")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_that_is_asked_for_is_traced() {
        for (ratio, low, high) in [(0.0, 0, 0), (0.01, 50, 150), (0.5, 4_800, 5_200), (1.0, 10_000, 10_000)] {
            let sampler = Sampler::new(ratio);
            let hits = (0..10_000).filter(|_| sampler.hits()).count();
            assert!((low..=high).contains(&hits), "{ratio}: {hits}");
        }
    }
}
