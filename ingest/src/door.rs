//! The door of a listener: how many come in, what their connections may do, and how
//! long they may be silent. It knows HTTP and no OTLP, so every listener can use it.
//!
//! Who is turned away is told why: 503 over HTTP/1.1, UNAVAILABLE to what gRPC calls.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version, header};
use http_body_util::Empty;
use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Refusal;
use crate::identity::Peer;
use crate::pulse::{Answer, Pulse, Timer, Watched};
use crate::tls::{Stream, Tls};

/// Bounds on connections and on what one may do.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionLimits {
    /// Most connections.
    pub connections_max: usize,
    /// Most connections from one address.
    pub connections_per_peer_max: usize,
    /// Most concurrent requests on one HTTP/2 connection.
    pub streams_max: u32,
    /// Most bytes of a request's headers.
    pub header_bytes_max: u32,
    /// Most headers of a request.
    pub headers_max: usize,
    /// A connection whose first request's headers, or the next one's once begun, are not
    /// there after this long is closed.
    pub header_timeout: Duration,
    /// A connection without requests is closed after this long.
    pub idle_timeout: Duration,
    /// A connection whose client takes nothing of an answer that waits for it, for this long, is closed.
    pub write_timeout: Duration,
    /// An HTTP/2 client is pinged, and TCP asks whether the peer lives, this often.
    pub keep_alive_interval: Duration,
    /// A ping must be answered within this.
    pub keep_alive_timeout: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            connections_per_peer_max: 1024,
            streams_max: 256,
            header_bytes_max: 64 << 10,
            headers_max: 100,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            write_timeout: Duration::from_secs(60),
            keep_alive_interval: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(20),
        }
    }
}

/// In which words a client is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tongue {
    /// HTTP/1.1: a status and a JSON body.
    Http,
    /// gRPC: UNAVAILABLE to every call.
    Grpc,
}

/// hyper answers 431 above this many by itself, without an allocation for each request.
const HEADERS_DEFAULT: usize = 100;

/// Streams that a client reset before we came to them: more at once is the "rapid reset" attack.
const PENDING_RESETS_MAX: usize = 20;

/// Streams that we reset for a client's errors, before the connection is closed.
const ERROR_RESETS_MAX: usize = 1024;

/// Connections that are told why they are turned away, at once; above that they are only closed.
const FAREWELLS_MAX: usize = 64;

/// While connections are turned away, the server's log says so this often.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// How long one that is turned away has to take it in.
const FAREWELL: Duration = Duration::from_millis(500);

/// Why a connection is turned away, as `/metrics` has it: the limit, or that the server stops.
#[derive(Clone, Copy)]
enum Why {
    Connections,
    PerPeer,
    Stopping,
}

impl Why {
    const NAMES: [&str; 3] = ["connections_max", "connections_per_peer_max", "draining"];
}

/// Counts the connections of one or more listeners, and serves them.
pub struct Door {
    limits: ConnectionLimits,
    /// How many connections were turned away, by [`Why`].
    turned_away: [AtomicU64; Why::NAMES.len()],
    open: Mutex<Open>,
    farewells: AtomicUsize,
    closing: watch::Sender<bool>,
    /// What its connections begin with, if they are encrypted.
    tls: Option<Arc<Tls>>,
    /// Whether who has sent all and says so (shuts down his side) is still answered.
    answers_half_closed: bool,
}

#[derive(Default)]
struct Open {
    all: usize,
    /// When it was last said that connections are turned away, and how many have been since.
    said: Option<Instant>,
    silently: u64,
    by_peer: HashMap<IpAddr, usize>,
}

impl Door {
    /// A door that nobody has come through yet.
    pub fn new(limits: ConnectionLimits, tls: Option<Arc<Tls>>) -> Arc<Self> {
        Self::made(limits, tls, false)
    }

    /// The same for those who send: who shuts down his side behind a request is still told what became of it. (Who
    /// asks and goes has his question ended, which is known by just that.)
    pub(crate) fn of_receivers(limits: ConnectionLimits, tls: Option<Arc<Tls>>) -> Arc<Self> {
        Self::made(limits, tls, true)
    }

    fn made(limits: ConnectionLimits, tls: Option<Arc<Tls>>, answers_half_closed: bool) -> Arc<Self> {
        let closing = watch::channel(false).0;
        Arc::new(Self {
            limits,
            turned_away: Default::default(),
            open: Mutex::default(),
            farewells: AtomicUsize::new(0),
            closing,
            tls,
            answers_half_closed,
        })
    }

    /// How many connections were turned away since the start, and why.
    pub fn turned_away(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Why::NAMES.into_iter().zip(&self.turned_away).map(|(why, count)| (why, count.load(Ordering::Relaxed)))
    }

    fn count(&self, why: Why) {
        self.turned_away[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Its limits.
    pub fn limits(&self) -> &ConnectionLimits {
        &self.limits
    }

    /// Accepts connections until it is dropped; `make` makes the service of each. Hands are
    /// shaken before the first request comes to it.
    pub async fn accept<S, B>(
        self: &Arc<Self>,
        listener: &TcpListener,
        tongue: Tongue,
        make: impl Fn(Peer) -> S,
    ) -> Infallible
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + Sync + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        loop {
            match listener.accept().await {
                Ok((stream, _)) if *self.closing.borrow() => {
                    self.count(Why::Stopping);
                    self.turn_away(stream, tongue, "the server is stopping");
                }
                Ok((stream, peer)) => match self.admit(ip(peer)) {
                    Ok(pass) => {
                        let peer = Peer::new(peer);
                        self.serve(stream, peer.clone(), pass, make(peer));
                    }
                    Err(why) => self.turn_away(stream, tongue, &why),
                },
                Err(error) => {
                    // Out of file descriptors, most likely: wait for some to be given back.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Tells all connections to finish what they have begun (GOAWAY, `Connection: close`);
    /// resolves when all that were open are closed.
    pub async fn close(&self) {
        self.closing.send_replace(true);
        self.closing.closed().await;
    }

    fn admit(self: &Arc<Self>, peer: IpAddr) -> Result<Pass, String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let why = match self.room(&mut open, peer) {
            Ok(()) => return Ok(Pass { door: Arc::clone(self), peer }),
            Err((reason, why)) => {
                self.count(reason);
                why
            }
        };
        open.silently += 1;
        if open.said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
            tracing::warn!(why, connections = open.silently, "connections are turned away");
            (open.said, open.silently) = (Some(Instant::now()), 0);
        }
        Err(why)
    }

    /// Counts one more connection, or says which limit is in its way.
    fn room(&self, open: &mut Open, peer: IpAddr) -> Result<(), (Why, String)> {
        if open.all >= self.limits.connections_max {
            let max = self.limits.connections_max;
            return Err((Why::Connections, format!("there are too many connections (--connections-max {max})")));
        }
        let of_peer = open.by_peer.entry(peer).or_default();
        if *of_peer >= self.limits.connections_per_peer_max {
            let max = self.limits.connections_per_peer_max;
            let why = format!("there are too many connections from {peer} (--connections-per-peer-max {max})");
            return Err((Why::PerPeer, why));
        }
        *of_peer += 1;
        open.all += 1;
        Ok(())
    }

    /// Says why, and closes.
    fn turn_away(self: &Arc<Self>, stream: TcpStream, tongue: Tongue, why: &str) {
        tracing::debug!(why, "a connection is turned away");
        if self.tls.is_some() {
            // To shake hands only to say no would cost more than it is worth; clients try again.
            return;
        }
        if self.farewells.fetch_add(1, Ordering::Relaxed) >= FAREWELLS_MAX {
            self.farewells.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let (door, refusal) = (Arc::clone(self), Refusal::unavailable(&format!("{why}; try again"), 1));
        tokio::spawn(async move {
            let _ = match tongue {
                Tongue::Http => tokio::time::timeout(FAREWELL, refuse_http(stream, &refusal)).await,
                Tongue::Grpc => tokio::time::timeout(FAREWELL * 2, door.refuse_grpc(stream, refusal)).await,
            };
            door.farewells.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// Answers calls with UNAVAILABLE, for a moment. (A bare GOAWAY would do by the
    /// specification, but there are clients that make INTERNAL of it, and do not retry that.)
    async fn refuse_grpc(&self, stream: TcpStream, refusal: Refusal) -> std::io::Result<()> {
        let service = service_fn(move |_: Request<Incoming>| {
            let answer = refusal.grpc().into_http::<Empty<Bytes>>();
            async { Ok::<_, Infallible>(answer) }
        });
        let mut builder = self.builder();
        // Nothing that it sends is read.
        builder.http2().initial_stream_window_size(64 << 10).initial_connection_window_size(64 << 10);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service).into_owned());
        if tokio::time::timeout(FAREWELL, connection.as_mut()).await.is_err() {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
        Ok(())
    }

    /// Shakes hands, if that is asked for; `None` if it comes to nothing in time.
    async fn begin(&self, stream: TcpStream, peer: &Peer) -> Option<Stream> {
        let Some(tls) = &self.tls else { return Some(Stream::Plain(stream)) };
        let mut closing = self.closing.subscribe();
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(self.limits.header_timeout, tls.accept(stream, peer.session())) => shaken,
            _ = closing.wait_for(|closing| *closing) => return None,
        };
        match shaken {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => tracing::debug!(?peer, %error, "a TLS handshake failed"),
            Err(_) => tracing::debug!(?peer, "a TLS handshake did not end in time (--header-timeout)"),
        }
        None
    }

    /// Serves one connection in its own task.
    fn serve<S, B>(self: &Arc<Self>, stream: TcpStream, peer: Peer, pass: Pass, service: S)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + Sync + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let _ = stream.set_nodelay(true);
        let probes = socket2::TcpKeepalive::new().with_time(self.limits.keep_alive_interval);
        let probes = probes.with_interval(self.limits.keep_alive_interval);
        let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&probes);
        let pulse = Arc::<Pulse>::default();
        let counted = Arc::clone(&pulse);
        let service = service_fn(move |request| {
            let beat = Pulse::begin(&counted);
            let answer = service.call(request);
            async move { answer.await.map(|answer| answer.map(|body| Answer::new(body, beat))) }
        });
        let door = Arc::clone(self);
        let mut closing = self.closing.subscribe();
        tokio::spawn(async move {
            // While this lives the connection is open: [`Self::close`] waits for it.
            let _open = (pass, closing.clone());
            let Some(stream) = door.begin(stream, &peer).await else { return };
            let stream = TokioIo::new(Watched::new(stream, Arc::clone(&pulse)));
            let connection = door.builder().serve_connection(stream, service).into_owned();
            let mut timer = Timer::new(pulse, &door.limits);
            let mut connection = pin!(connection);
            let mut closed = pin!(async move { closing.wait_for(|closing| *closing).await.map(drop) });
            let mut is_leaving = false;
            let ended: Result<(), String> = poll_fn(|cx| {
                if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                    return Poll::Ready(ended.map_err(|e| e.to_string()));
                }
                let asked = match timer.poll(cx) {
                    Poll::Ready(Err(late)) => return Poll::Ready(Err(late.to_owned())),
                    Poll::Ready(Ok(())) => true,
                    Poll::Pending => false,
                };
                if !is_leaving && (asked || closed.as_mut().poll(cx).is_ready()) {
                    is_leaving = true;
                    connection.as_mut().graceful_shutdown();
                    return connection.as_mut().poll(cx).map_err(|e| e.to_string());
                }
                Poll::Pending
            })
            .await;
            if let Err(error) = ended {
                tracing::debug!(?peer, %error, "a connection ended early");
            }
        });
    }

    fn builder(&self) -> Builder<TokioExecutor> {
        let limits = &self.limits;
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(1 << 20)
            .max_concurrent_streams(limits.streams_max)
            .max_header_list_size(limits.header_bytes_max)
            .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
            .max_local_error_reset_streams(ERROR_RESETS_MAX)
            .keep_alive_interval(limits.keep_alive_interval)
            .keep_alive_timeout(limits.keep_alive_timeout);
        // The timer of the connection is ours: it tells silence from headers that trickle.
        let mut http1 = builder.http1();
        http1.timer(TokioTimer::new()).header_read_timeout(None).half_close(self.answers_half_closed);
        http1.max_buf_size((limits.header_bytes_max as usize).max(8 << 10));
        if limits.headers_max != HEADERS_DEFAULT {
            http1.max_headers(limits.headers_max);
        }
        builder
    }
}

/// A connection that was let in; it is out when this is dropped.
struct Pass {
    door: Arc<Door>,
    peer: IpAddr,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut open = self.door.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        if let Some(of_peer) = open.by_peer.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                open.by_peer.remove(&self.peer);
            }
        }
    }
}

/// Refuses a request that names two hosts, of which one reader takes the first and another the last, or none where
/// HTTP/1.1 must (RFC 9112, section 3.2).
///
/// # Errors
///
/// Then.
pub fn check_host<B>(request: &Request<B>) -> Result<(), Refusal> {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    let (is_sound, what) = match request.version() {
        Version::HTTP_11 => (hosts == 1, "exactly one"),
        _ => (hosts <= 1, "at most one"),
    };
    match is_sound {
        true => Ok(()),
        false => Err(Refusal::Invalid(format!("the request has {hosts} headers Host; send {what}"))),
    }
}

/// The address as one peer has it: an IPv4 address may come mapped into IPv6.
pub(crate) fn ip(peer: SocketAddr) -> IpAddr {
    peer.ip().to_canonical()
}

/// An answer before anything was asked. Then it waits for the client to read it: to
/// close with unread bytes would reset the connection, and the answer with it.
async fn refuse_http(mut stream: TcpStream, refusal: &Refusal) -> std::io::Result<()> {
    let body = refusal.json();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    stream.shutdown().await?;
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// An answer to who speaks HTTP/1.1, or the preface of HTTP/2, where TLS is spoken.
pub(crate) async fn refuse_plain(mut stream: TcpStream) -> std::io::Result<Stream> {
    let why = "this port speaks TLS; use https://";
    let head = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n";
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{why}\n", why.len() + 1).as_bytes()).await?;
    stream.shutdown().await?;
    let mut rest = [0; 1024];
    while tokio::time::timeout(FAREWELL, stream.read(&mut rest)).await.is_ok_and(|read| read.is_ok_and(|n| n > 0)) {}
    Err(std::io::Error::other("its client does not speak TLS"))
}
