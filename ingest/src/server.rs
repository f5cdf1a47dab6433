//! The listeners: bound, served, drained.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use custody_proto::Limits;
use custody_store::Encoding;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use opentelemetry::context::FutureExt as _;
use tokio::net::TcpListener;

use crate::admission::{Begun, Client, InFlight};
use crate::cors::Cors;
use crate::door::{ConnectionLimits, Door, Tongue, check_host};
use crate::http::Body;
use crate::identity::{Guard, Peer};
use crate::pulse::Tail;
use crate::receive::{Core, Rules};
use crate::redact::Redactor;
use crate::sequencer::{Log, Sequencer, Settings};
use crate::stats::{Stats, Transport};
use crate::status::Refusal;
use crate::tls::Tls;
use crate::trace::{self, Sampler};
use crate::{Gate, grpc, http as otlp_http};

/// How to receive. Every bound has a default.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where OTLP/gRPC is served.
    pub grpc: SocketAddr,
    /// Where OTLP/HTTP is served.
    pub http: SocketAddr,
    /// Bounds on a single request.
    pub limits: Limits,
    /// Bounds on what is in flight.
    pub in_flight: InFlight,
    /// Bounds on connections.
    pub connections: ConnectionLimits,
    /// How requests are grouped and signed.
    pub sequencer: Settings,
    /// The origins whose pages may send over OTLP/HTTP.
    pub cors: Cors,
    /// Rules that replace what must not be kept, in every request.
    pub redactor: Option<Arc<Redactor>>,
    /// How long a stopping server waits for requests that have begun.
    pub drain_timeout: Duration,
    /// What keeps requests out that are sound in themselves.
    pub gate: Arc<Gate>,
    /// The part of requests that are traced: 0 none, 1 all.
    pub trace_ratio: f64,
    /// TLS in front of both listeners.
    pub tls: Option<Arc<Tls>>,
    /// Who may send; everybody who reaches the port if there is none.
    pub guard: Option<Arc<dyn Guard>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            grpc: SocketAddr::from(([127, 0, 0, 1], 4317)),
            http: SocketAddr::from(([127, 0, 0, 1], 4318)),
            limits: Limits::default(),
            in_flight: InFlight::default(),
            connections: ConnectionLimits::default(),
            sequencer: Settings::default(),
            cors: Cors::default(),
            redactor: None,
            drain_timeout: Duration::from_secs(10),
            gate: Arc::default(),
            trace_ratio: 0.0,
            tls: None,
            guard: None,
        }
    }
}

/// The addresses that were bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Of OTLP/gRPC.
    pub grpc: SocketAddr,
    /// Of OTLP/HTTP.
    pub http: SocketAddr,
}

/// Bound listeners over a started sequencer.
pub struct Receivers {
    core: Arc<Core>,
    grpc: TcpListener,
    http: TcpListener,
    drain_timeout: Duration,
    door: Arc<Door>,
    sampler: Arc<Sampler>,
    guard: Option<Arc<dyn Guard>>,
}

impl Receivers {
    /// Binds the listeners and starts the sequencer, which owns the log from now on.
    /// Nothing is accepted before [`Self::run`].
    pub async fn bind(config: Config, log: impl Log) -> std::io::Result<Self> {
        let grpc = bind("OTLP/gRPC", "--otlp-grpc", config.grpc).await?;
        let http = bind("OTLP/HTTP", "--otlp-http", config.http).await?;
        let stats = Arc::new(Stats::default());
        let sequencer = Sequencer::start(log, config.sequencer, Arc::clone(&stats))?;
        let rules = Rules { limits: config.limits, redactor: config.redactor, gate: config.gate };
        let core = Arc::new(Core::new(rules, config.in_flight, sequencer, stats).with_cors(config.cors));
        let sampler = Arc::new(Sampler::new(config.trace_ratio));
        let door = Door::of_receivers(config.connections, config.tls);
        Ok(Self { core, grpc, http, drain_timeout: config.drain_timeout, door, sampler, guard: config.guard })
    }

    /// The addresses that were bound.
    pub fn bound(&self) -> std::io::Result<Bound> {
        Ok(Bound { grpc: self.grpc.local_addr()?, http: self.http.local_addr()? })
    }

    /// The counters.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.core.stats)
    }

    /// The door of both listeners.
    pub fn door(&self) -> Arc<Door> {
        Arc::clone(&self.door)
    }

    /// The rules that replace what must not be kept, if there are any.
    pub fn redactor(&self) -> Option<Arc<Redactor>> {
        self.core.rules.redactor.clone()
    }

    /// The one that appends, for what the ledger itself has to say.
    pub fn sequencer(&self) -> Sequencer {
        self.core.sequencer.clone()
    }

    /// Serves until `stop` resolves or the log fails, then drains: new connections
    /// are told to go elsewhere, requests that have begun are finished, and the sequencer
    /// appends and signs what it has accepted. Gives the log's error if it failed.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), String> {
        let sequencer = self.core.sequencer.clone();
        let (watched, finishing) = (sequencer.clone(), sequencer);
        let this = &self;
        let accept = |is_grpc| {
            let listener = if is_grpc { &this.grpc } else { &this.http };
            let tongue = if is_grpc { Tongue::Grpc } else { Tongue::Http };
            this.door.accept(listener, tongue, move |peer| this.service(peer, is_grpc))
        };
        let stopped = async {
            tokio::select! {
                () = stop => {}
                _ = watched.failed() => {}
            }
            let drained = async {
                tokio::select! {
                    () = self.door.close() => {}
                    () = self.core.admission.idle() => {}
                }
            };
            if tokio::time::timeout(self.drain_timeout, drained).await.is_err() {
                tracing::warn!(
                    "requests that had begun did not end in time (--drain-timeout); their clients will send them again"
                );
            }
        };
        tokio::select! {
            never = accept(true) => match never {},
            never = accept(false) => match never {},
            () = stopped => {}
        }
        drop((self.grpc, self.http));
        let finish = tokio::task::spawn_blocking(move || finishing.finish()).await;
        finish.unwrap_or_else(|e| Err(e.to_string()))
    }

    /// What answers one connection's requests.
    fn service(
        &self,
        peer: Peer,
        is_grpc: bool,
    ) -> impl Service<Request<Incoming>, Response = Response<Answer>, Error = Infallible, Future: Send> + Send + Sync + use<>
    {
        let core = Arc::clone(&self.core);
        let client = match &self.guard {
            None => Sent::By(core.admission.client(peer.identity())),
            Some(guard) => Sent::Unknown(Arc::clone(guard), peer),
        };
        let (headers_max, sampler) = (self.door.limits().headers_max, Arc::clone(&self.sampler));
        let transport = if is_grpc { Transport::Grpc } else { Transport::Http };
        let connected = core.stats.connected(transport);
        service_fn(move |request| {
            let _ = &connected;
            let timed = core.stats.begin(transport);
            let span = sampler.begin(transport, &request);
            let answer = answer(Arc::clone(&core), client.clone(), is_grpc, headers_max, request);
            async move {
                let answer = match span {
                    None => answer.await,
                    Some(span) => {
                        let answer = answer.with_context(span.clone()).await;
                        let _ = answer.as_ref().inspect(|answer| trace::end(&span, transport, answer));
                        answer
                    }
                };
                drop(timed);
                answer
            }
        })
    }
}

/// Who the requests of a connection are from.
#[derive(Clone)]
enum Sent {
    /// The same client, all of them.
    By(Arc<Client>),
    /// Each must say it.
    Unknown(Arc<dyn Guard>, Peer),
}

impl Sent {
    async fn by(self, core: &Core, request: &Request<Incoming>) -> Result<Arc<Client>, Refusal> {
        match self {
            Self::By(client) => Ok(client),
            // A browser asks first, without credentials, and brings no records with that.
            Self::Unknown(_, peer) if request.method() == Method::OPTIONS => Ok(core.admission.client(peer.identity())),
            Self::Unknown(guard, peer) => {
                let identity = guard.admit(&peer, request.headers()).await?;
                Ok(core.admission.client(identity.as_ref().to_owned()))
            }
        }
    }
}

/// The body of an answer. The request ends when it has been sent.
type Answer = Tail<Body, Option<Begun>>;

async fn bind(what: &str, flag: &str, address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        let message =
            format!("{what} cannot listen on {address}: {e}; choose another address with {flag} (port 0: any)");
        std::io::Error::new(e.kind(), message)
    })
}

async fn answer(
    core: Arc<Core>,
    sent: Sent,
    is_grpc: bool,
    headers_max: usize,
    mut request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let is_head = request.method() == Method::HEAD;
    let sound = match request.headers().len() {
        headers if headers > headers_max => Err(Refusal::Invalid(format!(
            "the request has {headers} headers, more than the limit of {headers_max} (--headers-max)"
        ))),
        _ => check_host(&request),
    };
    let known = match sound {
        Ok(()) => sent.by(&core, &request).await,
        Err(refusal) => Err(refusal),
    };
    let begun = known.and_then(|client| client.begin().map(|begun| (client, begun)));
    let (answer, begun) = match begun {
        Ok((client, begun)) if is_grpc => (grpc::handle(&core, &client, request).await, Some(begun)),
        Ok((client, begun)) => (otlp_http::handle(&core, &client, request).await, Some(begun)),
        Err(refusal) if is_grpc => (grpc::refused(&core, &refusal), None),
        Err(refusal) => {
            let encoding = otlp_http::content_type(request.headers()).unwrap_or(Encoding::Json);
            otlp_http::hear_out(&mut request).await;
            let mut answer = otlp_http::refused(&core, &refusal, encoding);
            core.cors.mark(request.headers().get(header::ORIGIN), answer.headers_mut());
            (answer, None)
        }
    };
    // HTTP/1.1 would leave the body out by itself; on HTTP/2 it would break the stream.
    let answer = if is_head { answer.map(|_| Empty::new().boxed_unsync()) } else { answer };
    Ok(answer.map(|body| Tail::new(body, begun)))
}
