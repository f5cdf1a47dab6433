//! In front of the HTTP API and Flight SQL: each request gets its [`Caller`], or is refused.
//!
//! An answer may take long: a stream of events, a large result. Before each piece of it goes out it
//! is asked again whether the caller may still have it; when his token has ended, his certificate was
//! revoked or his rights were changed, the stream breaks off. What there is at once goes out with the
//! headers, or not at all: whoever loses his rights while a short answer is made is refused in words.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use custody_ingest::{Peer, Refusal, Tongue, check_host};
use custody_query::{ActorType, Caller, Roles, RowFilter};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use super::{ASSERTION, Auth, Login, now};

/// Whether the server lives is for everybody to ask: load balancers have no token.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];

/// The page and the description of the API hold nothing of anybody's, and a browser has no token before
/// it has a page.
const PLAIN: [&str; 2] = ["/", "/openapi.json"];

/// The services of a listener's connections: this layer over a router.
pub fn over(auth: Option<Arc<Auth>>, router: Router, tongue: Tongue) -> impl Fn(Peer) -> Over {
    move |peer| Over { auth: auth.clone(), peer, router: router.clone(), tongue }
}

/// The service of one connection.
pub struct Over {
    auth: Option<Arc<Auth>>,
    peer: Peer,
    router: Router,
    tongue: Tongue,
}

impl Service<Request<Incoming>> for Over {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let is_head = request.method() == Method::HEAD;
        let answer = serve(self.auth.clone(), self.peer.clone(), self.router.clone(), self.tongue, request);
        // HTTP/1.1 would leave the body out by itself; on HTTP/2 it would break the stream.
        Box::pin(async move { answer.await.map(|answer| if is_head { answer.map(|_| Body::empty()) } else { answer }) })
    }
}

/// A token of the log is verified again after this long: no generation tells that its key was rotated.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Answers one request.
async fn serve(
    auth: Option<Arc<Auth>>,
    peer: Peer,
    router: Router,
    tongue: Tongue,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    if let Err(refusal) = check_host(&request) {
        return Ok(refused(&refusal, tongue));
    }
    let is_named_here = tongue == Tongue::Grpc || OPEN.contains(&request.uri().path()) || is_named_here(&request);
    let Some(auth) = auth else {
        if !is_named_here {
            return Ok(refused(&misnamed(), tongue));
        }
        request.extensions_mut().insert(Caller::local(Some(peer.address())));
        return TowerToHyperService::new(router).call(request).await;
    };
    if tongue == Tongue::Http && OPEN.contains(&request.uri().path()) {
        return Ok(open(&auth, &peer, router, request).await);
    }
    if tongue == Tongue::Http && PLAIN.contains(&request.uri().path()) {
        request.extensions_mut().insert(nobody(&peer));
        return TowerToHyperService::new(router).call(request).await;
    }
    // What is gRPC is told so in its own words, on whichever port.
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let is_grpc = content_type.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let tongue = if is_grpc { Tongue::Grpc } else { tongue };
    let generation = auth.generation.load(Acquire);
    match auth.login(&peer, request.headers()).await {
        Err(denied) => Ok(refused(&denied.refusal(), tongue)),
        Ok(login) if login.caller.actor == ActorType::Unknown && !is_named_here => Ok(refused(&misnamed(), tongue)),
        Ok(login) => {
            let mut headers = HeaderMap::new();
            for name in [header::AUTHORIZATION, ASSERTION] {
                if let Some(value) = request.headers().get(&name) {
                    headers.insert(name, value.clone());
                }
            }
            request.extensions_mut().insert(login.caller.clone());
            let mut standing = Standing { auth, peer, headers, login, generation, asked: Instant::now() };
            let (parts, mut body) = TowerToHyperService::new(router).call(request).await?.into_parts();
            let first = match poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await {
                Poll::Ready(first) => First::Here(first),
                Poll::Pending => First::Gone,
            };
            if !standing.holds() {
                return Ok(refused(&standing.lost().await, tongue));
            }
            Ok(Response::from_parts(parts, Body::new(Watched { body, first, standing })))
        }
    }
}

/// Whether a request asks for this machine by its address, or by a name for which no name server of the Internet
/// answers. A page in a browser whose own name was made to lead here (DNS rebinding) asks under that name, and where
/// nobody must say who he is it would be taken for a program of this machine.
fn is_named_here<B>(request: &Request<B>) -> bool {
    let header = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = request.uri().authority().map(Authority::as_str).or(header);
    let host = host.map(|host| host.parse::<Authority>().map(|host| host.host().to_lowercase()).unwrap_or_default());
    let Some(host) = host else { return true };
    let inner = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    let is_private = !inner.contains('.') || [".localhost", ".internal"].iter().any(|end| inner.ends_with(end));
    inner.parse::<IpAddr>().is_ok() || (is_private && !inner.is_empty())
}

fn misnamed() -> Refusal {
    let why = "nobody must say here who he is, so only requests to this machine's address or to localhost are answered, and \
               none to another name: a page in a browser could have sent it (DNS rebinding). Come with an identity \
               (docs/security.md), or have a proxy in between send Host: localhost";
    Refusal::Forbidden(why.into())
}

/// Somebody of whom nothing is known: he may do nothing and sees nothing.
fn nobody(peer: &Peer) -> Caller {
    let (roles, rows) = (Roles::default(), RowFilter { tenants: Some([].into()), workspaces: None });
    Caller { roles, rows, ..Caller::local(Some(peer.address())) }
}

/// Whether the server lives and takes requests: to who is known with its reasons, to others as a status.
async fn open(auth: &Auth, peer: &Peer, router: Router, mut request: Request<Incoming>) -> Response<Body> {
    let known = auth.attempt(peer, request.headers());
    request.extensions_mut().insert(known.as_ref().map_or_else(|_| nobody(peer), |login| login.caller.clone()));
    let Ok(answer) = TowerToHyperService::new(router).call(request).await;
    match known {
        Ok(_) => answer,
        Err(_) => {
            let said = if answer.status().is_success() { "ok\n" } else { "not ready\n" };
            let mut short = Response::new(Body::from(said));
            *short.status_mut() = answer.status();
            short
        }
    }
}

fn refused(refusal: &Refusal, tongue: Tongue) -> Response<Body> {
    let mut answer = match tongue {
        Tongue::Grpc => refusal.grpc().into_http(),
        Tongue::Http => {
            let status = refusal.http_status();
            let code = match status.as_u16() {
                400 => "invalid_request",
                401 => "unauthenticated",
                403 => "forbidden",
                _ => "unavailable",
            };
            let body = serde_json::json!({"code": code, "message": refusal.message(), "position": null}).to_string();
            let mut answer = Response::new(Body::from(body));
            *answer.status_mut() = status;
            answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            answer
        }
    };
    if let Some(challenge) = refusal.challenge() {
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    answer
}

/// With what somebody came in, and what that gave him.
struct Standing {
    auth: Arc<Auth>,
    peer: Peer,
    headers: HeaderMap,
    login: Arc<Login>,
    generation: u64,
    /// When it was found out last.
    asked: Instant,
}

impl Standing {
    /// Whether he would be let in now, with the same rights.
    fn holds(&mut self) -> bool {
        let generation = self.auth.generation.load(Acquire);
        let fresh = generation == self.generation && (!self.login.own || self.asked.elapsed() < ASK_AGAIN);
        if fresh && now() < self.login.until && self.peer.certificate().is_ok() {
            return true;
        }
        self.asked = Instant::now();
        let (had, now) = (&self.login.caller, self.auth.attempt(&self.peer, &self.headers));
        let same = now.is_ok_and(|now| {
            now.caller.identity == had.identity && now.caller.roles == had.roles && now.caller.rows == had.rows
        });
        self.generation = if same { generation } else { self.generation };
        same
    }

    /// What he is told whose rights ended before anything was sent to him.
    async fn lost(&self) -> Refusal {
        match self.auth.login(&self.peer, &self.headers).await {
            Err(denied) => denied.refusal(),
            Ok(_) => Refusal::Forbidden("your rights were changed while this was answered; ask again".into()),
        }
    }
}

/// The first piece of an answer, looked at before its headers went out.
enum First {
    /// It, or that there is none.
    Here(Option<Result<Frame<Bytes>, axum::Error>>),
    /// It went out, or was not there yet.
    Gone,
}

/// The body of an answer, while its reader may have it.
struct Watched {
    body: Body,
    first: First,
    standing: Standing,
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let First::Here(first) = std::mem::replace(&mut self.first, First::Gone) {
            return Poll::Ready(first);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_some() && !self.standing.holds() {
            tracing::info!(identity = %self.standing.login.caller.identity, "an answer breaks off: its reader's rights ended");
            return Poll::Ready(Some(Err(axum::Error::new("the rights of its reader ended"))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.first {
            First::Here(first) => first.is_none(),
            First::Gone => self.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.body.size_hint();
        let First::Here(Some(Ok(first))) = &self.first else { return rest };
        let first = first.data_ref().map_or(0, |data| data.len() as u64);
        let mut whole = SizeHint::new();
        whole.set_lower(rest.lower() + first);
        if let Some(upper) = rest.upper() {
            whole.set_upper(upper + first);
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_somebody_elses_server_answers_for_is_not_ours() {
        let named = |host: &str| is_named_here(&Request::get("/").header("Host", host).body(()).unwrap());
        for host in [
            "127.0.0.1:4680",
            "localhost",
            "LOCALHOST:1",
            "localhost.",
            "[::1]:4680",
            "10.0.0.7",
            "custody",
            "a.localhost:1",
        ] {
            assert!(named(host), "{host}");
        }
        assert!(named("host.docker.internal:4680") && is_named_here(&Request::get("/").body(()).unwrap()));
        for host in [
            "evil.example.com:4680",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "printer.local",
            "a b",
            "",
            "example.com.",
        ] {
            assert!(!named(host), "{host:?}");
        }
        // The target of a request counts before the header beside it.
        let absolute = Request::get("http://evil.example.com/").header("Host", "localhost").body(()).unwrap();
        assert!(!is_named_here(&absolute));
    }
}
