//! The listeners: bound, served, drained.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use custody_proto::Limits;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use opentelemetry::context::FutureExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::http::Body;
use crate::receive::Core;
use crate::sequencer::{Log, Sequencer, Settings};
use crate::stats::{Stats, Transport};
use crate::trace::{self, Sampler};
use crate::{Gate, grpc, http as otlp_http, identity};

/// How to receive. Every bound has a default.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where OTLP/gRPC is served.
    pub grpc: SocketAddr,
    /// Where OTLP/HTTP is served.
    pub http: SocketAddr,
    /// Bounds on a single request.
    pub limits: Limits,
    /// Most bytes received and not yet durable, over all requests.
    pub in_flight_bytes_max: u64,
    /// How requests are grouped and signed.
    pub sequencer: Settings,
    /// How long a stopping server waits for requests that have begun.
    pub drain_timeout: Duration,
    /// What keeps requests out that are sound in themselves.
    pub gate: Arc<Gate>,
    /// The part of requests that are traced: 0 none, 1 all.
    pub trace_ratio: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            grpc: SocketAddr::from(([127, 0, 0, 1], 4317)),
            http: SocketAddr::from(([127, 0, 0, 1], 4318)),
            limits: Limits::default(),
            in_flight_bytes_max: 256 << 20,
            sequencer: Settings::default(),
            drain_timeout: Duration::from_secs(10),
            gate: Arc::default(),
            trace_ratio: 0.0,
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
    active: Arc<Active>,
    sampler: Arc<Sampler>,
}

/// Requests that have begun and are not yet answered.
#[derive(Default)]
struct Active {
    count: AtomicUsize,
    ended: Notify,
}

/// One request; it ends when this is dropped.
struct Begun(Arc<Active>);

impl Active {
    fn begin(self: &Arc<Self>) -> Begun {
        self.count.fetch_add(1, Ordering::SeqCst);
        Begun(Arc::clone(self))
    }

    /// Resolves when no request has been under way for a moment: long enough for
    /// answers to be written and for what was on the wire to begin. A client that
    /// merely keeps its connection open holds nobody up.
    async fn idle(&self) {
        loop {
            while self.count.load(Ordering::SeqCst) > 0 {
                let _ = tokio::time::timeout(Duration::from_millis(50), self.ended.notified()).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            if self.count.load(Ordering::SeqCst) == 0 {
                return;
            }
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        self.0.ended.notify_waiters();
    }
}

impl Receivers {
    /// Binds the listeners and starts the sequencer, which owns the log from now on.
    /// Nothing is accepted before [`Self::run`].
    pub async fn bind(config: Config, log: impl Log) -> std::io::Result<Self> {
        let grpc = bind("OTLP/gRPC", "--otlp-grpc", config.grpc).await?;
        let http = bind("OTLP/HTTP", "--otlp-http", config.http).await?;
        let stats = Arc::new(Stats::default());
        let sequencer = Sequencer::start(log, config.sequencer, Arc::clone(&stats))?;
        let core = Arc::new(Core::new(config.limits, config.in_flight_bytes_max, sequencer, stats, config.gate));
        let sampler = Arc::new(Sampler::new(config.trace_ratio));
        Ok(Self { core, grpc, http, drain_timeout: config.drain_timeout, active: Arc::default(), sampler })
    }

    /// The addresses that were bound.
    pub fn bound(&self) -> std::io::Result<Bound> {
        Ok(Bound { grpc: self.grpc.local_addr()?, http: self.http.local_addr()? })
    }

    /// The counters.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.core.stats)
    }

    /// The one that appends, for what the ledger itself has to say.
    pub fn sequencer(&self) -> Sequencer {
        self.core.sequencer.clone()
    }

    /// Serves until `stop` resolves or the log fails, then drains: no new
    /// connections, requests that have begun are finished, and the sequencer
    /// appends and signs what it has accepted. Gives the log's error if it failed.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), String> {
        let graceful = GracefulShutdown::new();
        let sequencer = self.core.sequencer.clone();
        let watched = sequencer.clone();
        let failed = watched.failed();
        tokio::pin!(stop, failed);
        loop {
            let (accepted, is_grpc) = tokio::select! {
                accepted = self.grpc.accept() => (accepted, true),
                accepted = self.http.accept() => (accepted, false),
                () = &mut stop => break,
                _ = &mut failed => break,
            };
            match accepted {
                Ok((stream, peer)) => self.serve(stream, peer, is_grpc, &graceful),
                Err(error) => {
                    // Out of file descriptors, most likely: wait for some to be given back.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop((self.grpc, self.http));
        let drained = async {
            tokio::select! {
                () = graceful.shutdown() => {}
                () = self.active.idle() => {}
            }
        };
        if tokio::time::timeout(self.drain_timeout, drained).await.is_err() {
            tracing::warn!("requests that had begun did not end in time; their clients will send them again");
        }
        let finish = tokio::task::spawn_blocking(move || sequencer.finish()).await;
        finish.unwrap_or_else(|e| Err(e.to_string()))
    }

    /// Serves one connection in its own task.
    fn serve(&self, stream: TcpStream, peer: SocketAddr, is_grpc: bool, graceful: &GracefulShutdown) {
        let _ = stream.set_nodelay(true);
        let (core, active, sampler) = (Arc::clone(&self.core), Arc::clone(&self.active), Arc::clone(&self.sampler));
        let transport = if is_grpc { Transport::Grpc } else { Transport::Http };
        let connected = core.stats.connected(transport);
        let service = service_fn(move |request| {
            let begun = (active.begin(), core.stats.begin(transport));
            let span = sampler.begin(transport, &request);
            let answer = answer(Arc::clone(&core), peer, is_grpc, request);
            async move {
                let answer = match span {
                    None => answer.await,
                    Some(span) => {
                        let answer = answer.with_context(span.clone()).await;
                        let _ = answer.as_ref().inspect(|answer| trace::end(&span, transport, answer));
                        answer
                    }
                };
                drop(begun);
                answer
            }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(1 << 20)
            .max_concurrent_streams(256)
            .keep_alive_interval(Duration::from_secs(60))
            .keep_alive_timeout(Duration::from_secs(20));
        builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let _connected = connected;
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "a connection ended early");
            }
        });
    }
}

async fn bind(what: &str, flag: &str, address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        let message =
            format!("{what} cannot listen on {address}: {e}; choose another address with {flag} (port 0: any)");
        std::io::Error::new(e.kind(), message)
    })
}

async fn answer(
    core: Arc<Core>,
    peer: SocketAddr,
    is_grpc: bool,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let identity = identity::of_peer(peer);
    Ok(if is_grpc {
        grpc::handle(&core, identity, request).await
    } else {
        otlp_http::handle(&core, identity, request).await
    })
}
