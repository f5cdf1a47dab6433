//! The events over gRPC: `custody.v1.Events` of proto/custody/v1/events.proto, on the HTTP port and
//! on that of Flight SQL.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::http;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, stream};
use prost::Message as _;
use tonic::codec::CompressionEncoding;
use tonic::codegen::{Body, Service, StdError};
use tonic::server::{NamedService, ServerStreamingService};
use tonic::{Request, Response, Status};

use super::codec::{self, Framed, Message, Messages, Never, Sheets};
use super::coding::{self, Coding};
use super::generated::{Range, StreamEventsRequest, StreamEventsResponse, events_server};
use super::stream::{Following, Next, Way};
use super::{Asked, Cursors, Filter, LIMIT_DEFAULT, LIMIT_MAX, Position, Served, filter, next, page, start};
use crate::caller::{Caller, Role};
use crate::error::{Error, ErrorKind};

/// The service of one server. It stands in for the generated one, which would make each message anew for
/// each call.
#[derive(Clone)]
pub struct Grpc(Served);

/// The gRPC service of what a server serves.
pub fn service(served: Served) -> Grpc {
    Grpc(served)
}

impl NamedService for Grpc {
    const NAME: &'static str = events_server::SERVICE_NAME;
}

impl<B> Service<http::Request<B>> for Grpc
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let own = self.clone();
        async move {
            Ok(match request.uri().path() {
                "/custody.v1.Events/Stream" => own.answer(request).await,
                path => Status::unimplemented(format!("there is no method {path}")).into_http(),
            })
        }
        .boxed()
    }
}

/// A call that begins. tonic reads the request, and writes the headers and what is refused; what comes then is left
/// here.
struct Call {
    own: Grpc,
    coding: Coding,
    begun: Arc<Mutex<Option<Messages>>>,
}

impl ServerStreamingService<StreamEventsRequest> for Call {
    type Response = Never;
    type ResponseStream = stream::Empty<Result<Never, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<StreamEventsRequest>) -> Self::Future {
        let (own, coding, begun) = (self.own.clone(), self.coding, Arc::clone(&self.begun));
        async move {
            let messages = own.stream(request, coding).await?;
            *begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(messages);
            Ok(Response::new(stream::empty()))
        }
        .boxed()
    }
}

fn status(error: Error) -> Status {
    match error.kind {
        ErrorKind::Invalid => Status::invalid_argument(error.message),
        ErrorKind::Unavailable => Status::unavailable(error.message),
        _ => Status::internal(error.message),
    }
}

impl Grpc {
    async fn answer<B>(self, request: http::Request<B>) -> http::Response<tonic::body::Body>
    where
        B: Body + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        let (coding, begun) = (coding::of_call(request.headers()), Arc::default());
        let call = Call { own: self, coding, begun: Arc::clone(&begun) };
        let mut server = tonic::server::Grpc::new(Sheets);
        for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
            server = server.accept_compressed(encoding);
        }
        let mut response = server.server_streaming(call, request).await;
        let begun = begun.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(messages) = begun {
            codec::says(response.headers_mut(), coding);
            *response.body_mut() = tonic::body::Body::new(Framed::new(messages));
        }
        response
    }

    async fn stream(&self, request: Request<StreamEventsRequest>, coding: Coding) -> Result<Messages, Status> {
        let caller = super::super::called(request.extensions())?;
        if let Err(error) = caller.require(&[Role::Stream], "following the events") {
            self.0.engine.audit().refused(&caller, &error.message);
            return Err(Status::permission_denied(error.message));
        }
        let allowance = self.0.events.limiter.ask(&caller.identity);
        if !allowance.allowed {
            let message = format!("more than {} requests for events in a minute", allowance.limit);
            return Err(Status::resource_exhausted(message));
        }
        let asked = request.into_inner();
        let limit = match asked.limit {
            0 => LIMIT_DEFAULT,
            limit => limit as usize,
        };
        if limit > LIMIT_MAX {
            return Err(Status::invalid_argument("limit must be between 1 and 10000"));
        }
        let understood = understand(&self.0, &caller, &asked)?;
        let position = match asked.after.as_str() {
            "" => None,
            after => {
                let place = understood.cursors.decode(after).map_err(Status::invalid_argument)?;
                Some(next::known(&self.0, place).map_err(status)?)
            }
        };
        let position = start(&self.0, &understood, position).map_err(status)?;
        let position = position.map_err(|_| gone())?;
        let place = self.0.events.waiting.enter(&caller.identity).map_err(Status::unavailable)?;
        let way = Way::Messages { follow: asked.follow, limit, coding };
        let following = Following::begin(self.0.clone(), &caller, understood, position, way, place);
        let following = following.await.map_err(status)?;
        let messages = stream::try_unfold(following, |mut following| async move {
            match following.next().await.map_err(status)? {
                None => Ok(None),
                Some(Next::Gone(_)) => Err(gone()),
                Some(Next::Sheet(sheet)) => Ok(Some((told(&following, sheet).await?, following))),
            }
        });
        Ok(messages.boxed())
    }
}

fn gone() -> Status {
    Status::out_of_range(
        "retention erased records before this cursor reached them; GET /api/v1/events with it tells where to go on",
    )
}

fn understand(served: &Served, caller: &Caller, asked: &StreamEventsRequest) -> Result<super::Request, Status> {
    let plain = Asked { format: Some(asked.format.clone()), ..Asked::default() };
    let mut understood = plain.read(served, caller).map_err(Status::invalid_argument)?;
    let wanted = Filter {
        kinds: filter::tidy(asked.kinds.clone()),
        severities: filter::tidy(asked.severities.clone()),
        agents: filter::tidy(asked.agents.clone()),
        services: filter::tidy(asked.services.clone()),
        workspaces: filter::tidy(asked.workspaces.clone()),
        rows: caller.rows.clone(),
        who: Arc::clone(&caller.identity),
    };
    wanted.check().map_err(Status::invalid_argument)?;
    let reader = served.engine.projection().reader();
    understood.cursors = Cursors::of(reader.origin(), &wanted);
    understood.shape = page::shape(&wanted, understood.format);
    understood.filter = Arc::new(wanted);
    understood.begin = match asked.since_unix_nano {
        0 => 0,
        since => reader.first_at(since).map_err(|e| status(Error::store(e)))?,
    };
    Ok(understood)
}

async fn told(following: &Following, sheet: Arc<super::sheet::Sheet>) -> Result<Message, Status> {
    let (served, position) = (&following.served, following.position);
    let projection = served.engine.projection();
    let checkpoint = served.events.seals.covering(projection.reader(), sheet.next).await.map_err(status)?;
    let rest = StreamEventsResponse {
        events: Vec::new(),
        next_cursor: following.request.cursors.encode(Position { seq: sheet.next, ..position }, sheet.mark),
        has_more: sheet.next < projection.snapshot().size,
        range: Some(Range {
            from_seq: following.from,
            to_seq: sheet.next,
            matched: sheet.matched as u64,
            skipped: sheet.skipped + (sheet.from - following.from),
        }),
        checkpoint: checkpoint.unwrap_or_default(),
    };
    Ok(Message { sheet, rest: rest.encode_to_vec() })
}
