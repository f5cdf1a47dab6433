//! Our own traces, exported by OTLP over HTTP (protobuf), off the path of requests; and
//! never into ourselves.

use std::env;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, Request, Response, Uri};
use bytes::Bytes;
use custody_ingest::{NOT_EXPORTED, OWN};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{TraceContextExt as _, TraceId};
use opentelemetry::{Context, KeyValue, global};
use opentelemetry_http::{HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter as Otlp, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    IdGenerator as _, RandomIdGenerator, Sampler, SdkTracerProvider, SpanData, SpanExporter,
};

use crate::Failure;

/// Of OTLP requests this part is traced, unless something else is asked for.
const INGEST_RATIO: f64 = 0.01;

/// How long the last spans may take at the end.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Which requests are traced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Of OTLP requests.
    pub ingest: f64,
    /// Of other requests whose caller does not trace.
    others: f64,
    /// Whether a caller's decision holds.
    parent_based: bool,
}

/// Where traces go, as configured.
#[derive(Clone, Debug)]
pub struct Settings {
    endpoint: Uri,
    /// What in the configuration names the endpoint.
    source: &'static str,
    /// Marks what is our own.
    pub instance: String,
    /// Which requests are traced.
    pub sampling: Sampling,
}

/// Exports until [`Self::stop`].
pub struct Exporting(SdkTracerProvider);

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Reads the flags, and OpenTelemetry's own environment variables where they are silent.
/// `None`: nothing is exported.
pub fn settings(endpoint: Option<&str>, ratio: Option<f64>) -> Result<Option<Settings>, Failure> {
    let (all, traces) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    let off = variable("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"))
        || variable("OTEL_TRACES_EXPORTER").is_some_and(|v| v == "none");
    if let Some(ratio) = ratio.filter(|ratio| !(0.0..=1.0).contains(ratio)) {
        return Err(Failure::unable(format!("--trace-ratio {ratio} is not between 0 and 1")));
    }
    let (source, url) = match (endpoint, variable(traces), variable(all)) {
        (Some(url), _, _) => ("--trace-endpoint", url.to_owned()),
        (None, _, _) if off => return Ok(None),
        (None, Some(url), _) => (traces, url),
        (None, None, Some(url)) => (all, format!("{}/v1/traces", url.trim_end_matches('/'))),
        (None, None, None) => return Ok(None),
    };
    // Where no URL can be read, it cannot be told what of it is a secret.
    let no_url = |e| Failure::unable(format!("{source}: this is no URL: {e}"));
    let mut uri: Uri = url.parse().map_err(no_url)?;
    let shown = shown(&uri);
    let wrong = |why: &str| Failure::unable(format!("{source} {shown}: {why}"));
    if uri.scheme_str() != Some("http") || uri.host().is_none() {
        return Err(wrong("this version exports over http:// only: name a collector or proxy on this machine"));
    }
    if source == "--trace-endpoint" && uri.path() == "/" {
        let whole = match url.split_once(['?', '#']) {
            Some((base, _)) => {
                let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
                format!("{}/v1/traces{query}", base.trim_end_matches('/'))
            }
            None => format!("{}/v1/traces", url.trim_end_matches('/')),
        };
        uri = whole.parse().map_err(no_url)?;
    }
    let protocol = variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| variable("OTEL_EXPORTER_OTLP_PROTOCOL"));
    if protocol.as_deref().is_some_and(|p| p != "http/protobuf") && source != "--trace-endpoint" {
        return Err(wrong(
            "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf, the one protocol that custody exports by",
        ));
    }
    let sampling = sampling(variable("OTEL_TRACES_SAMPLER"), variable("OTEL_TRACES_SAMPLER_ARG"), ratio)?;
    Ok(Some(Settings { endpoint: uri, source, instance: instance(), sampling }))
}

/// Scheme, host, port and path: user, password and query are for the server there only.
fn shown(uri: &Uri) -> String {
    let scheme = uri.scheme_str().map(|scheme| format!("{scheme}://")).unwrap_or_default();
    let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}{}{port}{}", uri.host().unwrap_or_default(), uri.path())
}

/// The samplers of OpenTelemetry's specification ("Environment Variable Specification").
fn sampling(name: Option<String>, argument: Option<String>, ratio: Option<f64>) -> Result<Sampling, Failure> {
    let wrong = |what: String| Failure::unable(format!("{what} is not between 0 and 1"));
    let argument = match argument {
        None => 1.0,
        Some(text) => text
            .parse()
            .ok()
            .filter(|r| (0.0..=1.0).contains(r))
            .ok_or_else(|| wrong(format!("OTEL_TRACES_SAMPLER_ARG {text}")))?,
    };
    let parent_based = name.as_deref().is_none_or(|name| name.starts_with("parentbased_"));
    let part = match name.as_deref().map(|name| name.trim_start_matches("parentbased_")) {
        None => None,
        Some("always_on") => Some(1.0),
        Some("always_off") => Some(0.0),
        Some("traceidratio") => Some(argument),
        Some(_) => {
            return Err(Failure::unable(format!(
                "OTEL_TRACES_SAMPLER {} is not known here; there are always_on, always_off and traceidratio, each also \
                 with parentbased_ before it",
                name.unwrap_or_default()
            )));
        }
    };
    if let Some(ratio) = ratio.filter(|ratio| !(0.0..=1.0).contains(ratio)) {
        return Err(wrong(format!("--trace-ratio {ratio}")));
    }
    let ingest = ratio.or(part).unwrap_or(INGEST_RATIO);
    Ok(Sampling { ingest, others: part.unwrap_or(1.0), parent_based })
}

/// A random id in the form of a UUID, which `service.instance.id` should have.
fn instance() -> String {
    let mut bytes = RandomIdGenerator::default().new_trace_id().to_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = const_hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

impl Sampling {
    /// If a request with these headers shall be traced: the context that it belongs to.
    pub fn traced(&self, headers: &HeaderMap) -> Option<Context> {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let caller = parent.span().span_context().clone();
        let sampled = match caller.is_valid() {
            true if self.parent_based => caller.is_sampled(),
            true => self.hits(caller.trace_id()),
            false => self.hits(RandomIdGenerator::default().new_trace_id()),
        };
        sampled.then_some(parent)
    }

    /// By the low half of the trace id, so that all who use this ratio choose the same traces.
    fn hits(&self, trace: TraceId) -> bool {
        let [.., a, b, c, d, e, f, g, h] = trace.to_bytes();
        let low = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1;
        self.others >= 1.0 || (low as f64) < self.others * (1u64 << 63) as f64
    }
}

impl Settings {
    /// Fails if the endpoint is one of these listeners, which are this server's own.
    pub fn refuse_self(&self, listeners: &[SocketAddr]) -> Result<(), Failure> {
        let host = self.endpoint.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = self.endpoint.port_u16().unwrap_or(80);
        // What does not resolve now is no address of this machine; the exporter will say so.
        let addresses = (host, port).to_socket_addrs().into_iter().flatten();
        for address in addresses {
            if let Some(own) = listeners.iter().find(|own| is_same(address, **own)) {
                return Err(Failure::unable(format!(
                    "{} {} is this server itself ({own}): traces of itself would make more of themselves without end; \
                     name another server, or another port for this one",
                    self.source,
                    shown(&self.endpoint)
                )));
            }
        }
        Ok(())
    }

    /// Starts to export.
    pub fn start(&self) -> Result<Exporting, Failure> {
        let endpoint = shown(&self.endpoint);
        let unable = |e: &dyn std::fmt::Display| Failure::unable(format!("{} {endpoint}: {e}", self.source));
        let failure = Failed::default();
        let client =
            Client::new(&self.instance, self.endpoint.clone(), Arc::clone(&failure)).map_err(|e| unable(&e))?;
        let exporter = Otlp::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            // It logs where it could not send to; the client knows the whole.
            .with_endpoint(endpoint.as_str())
            .build()
            .map_err(|e| unable(&e))?;
        let mut resource = Resource::builder();
        if variable("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("custody");
        }
        let resource = resource
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", self.instance.clone()))
            .build();
        let provider = SdkTracerProvider::builder()
            // What is not traced has no span to begin with.
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource)
            .with_batch_exporter(Ours { exporter, endpoint: endpoint.clone(), failure })
            .build();
        global::set_tracer_provider(provider.clone());
        let instance = self.instance.as_str();
        tracing::info!(endpoint, instance, ingest_ratio = self.sampling.ingest, "traces of this server are exported");
        Ok(Exporting(provider))
    }
}

impl Exporting {
    /// Sends what is left. Blocks.
    pub fn stop(self) {
        if let Err(error) = self.0.shutdown_with_timeout(SHUTDOWN) {
            tracing::warn!(%error, "the last traces of this server were not exported");
        }
    }
}

/// Whether who connects to `target` reaches the listener `own`.
fn is_same(target: SocketAddr, own: SocketAddr) -> bool {
    let (to, at) = (target.ip().to_canonical(), own.ip().to_canonical());
    // To connect to no address in particular is to connect to this machine, and who listens
    // on one loopback address is taken to listen on all: `localhost` may be either.
    let here = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    let same = to == at || here(to) && here(at) || at.is_unspecified() && is_local(to);
    target.port() == own.port() && same
}

/// Whether an address is one of this machine's: only those can be bound.
fn is_local(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// Why the last attempt to send came to nothing. The SDK's own error says "network error" only.
type Failed = Arc<Mutex<Option<String>>>;

/// Sends by ureq, from the exporter's own thread, with our mark.
#[derive(Debug)]
struct Client {
    agent: ureq::Agent,
    endpoint: Uri,
    mark: axum::http::HeaderValue,
    failure: Failed,
}

impl Client {
    fn new(instance: &str, endpoint: Uri, failure: Failed) -> Result<Self, axum::http::header::InvalidHeaderValue> {
        let timeout = variable("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT").or_else(|| variable("OTEL_EXPORTER_OTLP_TIMEOUT"));
        let timeout = timeout.and_then(|ms| ms.parse().ok()).map_or(Duration::from_secs(10), Duration::from_millis);
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(timeout));
        // A redirection could lead anywhere, also here.
        let agent = config.max_redirects(0).max_redirects_will_error(false).build().new_agent();
        Ok(Self { agent, endpoint, mark: instance.parse()?, failure })
    }

    /// Keeps why it did not work.
    fn failed(&self, why: impl std::fmt::Display) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_string());
    }
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        request.headers_mut().insert(OWN, self.mark.clone());
        *request.uri_mut() = self.endpoint.clone();
        let (head, body) = request.into_parts();
        let answer = self.agent.run(Request::from_parts(head, body.to_vec())).inspect_err(|e| self.failed(e))?;
        if !answer.status().is_success() {
            self.failed(format!("the answer is {}", answer.status()));
        }
        let (head, body) = answer.into_parts();
        let body = body.into_with_config().limit(1 << 20).read_to_vec()?;
        Ok(Response::from_parts(head, body.into()))
    }
}

/// Leaves out spans about requests that carried spans of our own, and says what was not exported.
#[derive(Debug)]
struct Ours {
    exporter: Otlp,
    /// Where to, as it may be shown.
    endpoint: String,
    failure: Failed,
}

impl SpanExporter for Ours {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        batch.retain(|span| !span.attributes.iter().any(|attribute| attribute.key.as_str() == NOT_EXPORTED));
        if batch.is_empty() {
            return Ok(());
        }
        let spans = batch.len();
        if let Err(error) = self.exporter.export(batch).await {
            let known = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
            let error = known.unwrap_or_else(|| error.to_string());
            let endpoint = self.endpoint.as_str();
            tracing::warn!(endpoint, spans, %error, "traces of this server could not be exported, and are lost");
        }
        // The SDK would log the same once more, without saying where to or why.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_ourselves_is_found_out() {
        let listeners = ["127.0.0.1:4318", "0.0.0.0:9000", "[::1]:7000"].map(|a| a.parse().unwrap());
        for (url, is_own) in [
            ("http://127.0.0.1:4318/v1/traces", true),
            ("http://localhost:4318/v1/traces", true),
            ("http://0.0.0.0:4318/x", true),
            ("http://[::1]:4318/x", true),
            ("http://[::ffff:127.0.0.1]:4318/x", true),
            ("http://127.0.0.1:9000/x", true),
            ("http://localhost:7000/x", true),
            ("http://127.0.0.1:4319/x", false),
            ("http://192.0.2.1:4318/x", false),
            ("http://192.0.2.1:9000/x", false),
        ] {
            let sampling = sampling(None, None, None).ok().unwrap();
            let settings =
                Settings { endpoint: url.parse().unwrap(), source: "--trace-endpoint", instance: instance(), sampling };
            assert_eq!(settings.refuse_self(&listeners).is_err(), is_own, "{url}");
        }
    }

    #[test]
    fn user_password_and_query_are_not_shown() {
        for (url, want) in [
            ("http://user:pass@host:4318/path?token=X", "http://host:4318/path"),
            ("http://user@[::1]/?token=X", "http://[::1]/"),
            ("user:pass@host:1", "host:1"),
            ("/path?token=X", "/path"),
        ] {
            assert_eq!(shown(&url.parse().unwrap()), want);
        }
        let endpoint = |url| settings(Some(url), None).ok().flatten().unwrap().endpoint.to_string();
        assert_eq!(endpoint("http://u:p@host?token=a/"), "http://u:p@host/v1/traces?token=a/");
        assert_eq!(endpoint("http://host/"), "http://host/v1/traces");
    }

    #[test]
    fn samplers_as_the_specification_names_them() {
        let read = |name: Option<&str>, argument: Option<&str>, ratio| {
            let read = sampling(name.map(str::to_owned), argument.map(str::to_owned), ratio).ok();
            read.map(|s| (s.ingest, s.others, s.parent_based))
        };
        assert_eq!(read(None, None, None), Some((INGEST_RATIO, 1.0, true)));
        assert_eq!(read(None, None, Some(0.5)), Some((0.5, 1.0, true)));
        assert_eq!(read(Some("always_on"), None, None), Some((1.0, 1.0, false)));
        assert_eq!(read(Some("parentbased_always_off"), None, None), Some((0.0, 0.0, true)));
        assert_eq!(read(Some("parentbased_traceidratio"), Some("0.25"), None), Some((0.25, 0.25, true)));
        assert_eq!(read(Some("traceidratio"), Some("2"), None), None);
        assert_eq!(read(Some("jaeger_remote"), None, None), None);
        assert_eq!(read(None, None, Some(-1.0)), None);
    }

    #[test]
    fn a_callers_decision_holds() {
        let sampling = |name: &str| sampling(Some(name.into()), None, None).ok().unwrap();
        let headers = |flags: &str| {
            let value = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
            HeaderMap::from_iter([(axum::http::HeaderName::from_static("traceparent"), value.parse().unwrap())])
        };
        let by_parent = sampling("parentbased_always_off");
        let parent = by_parent.traced(&headers("01")).unwrap();
        assert_eq!(parent.span().span_context().trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(by_parent.traced(&headers("00")).is_none());
        assert!(by_parent.traced(&HeaderMap::new()).is_none());
        assert!(sampling("always_on").traced(&headers("00")).is_some());
        assert!(sampling("always_off").traced(&headers("01")).is_none());
    }

    #[test]
    fn an_instance_is_a_uuid_of_its_own() {
        let (one, two) = (instance(), instance());
        assert_ne!(one, two);
        assert_eq!((one.len(), one.as_bytes()[14]), (36, b'4'));
    }
}
