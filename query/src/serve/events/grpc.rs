//! The events over gRPC: `custody.v1.Events` of proto/custody/v1/events.proto, on the HTTP port and
//! on that of Flight SQL.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, stream};
use tonic::{Request, Response, Status};

use super::generated::events_server::{Events, EventsServer};
use super::generated::{Event, Range, StreamEventsRequest, StreamEventsResponse};
use super::stream::{Following, Next};
use super::{Asked, Cursors, Filter, LIMIT_DEFAULT, LIMIT_MAX, Page, Position, Served, filter, start};
use crate::caller::{Caller, Role};
use crate::error::{Error, ErrorKind};

/// The service of one server.
pub struct Grpc(Served);

/// The gRPC service of what a server serves.
pub fn service(served: Served) -> EventsServer<Grpc> {
    EventsServer::new(Grpc(served))
}

fn status(error: Error) -> Status {
    match error.kind {
        ErrorKind::Invalid => Status::invalid_argument(error.message),
        ErrorKind::Unavailable => Status::unavailable(error.message),
        _ => Status::internal(error.message),
    }
}

#[tonic::async_trait]
impl Events for Grpc {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<StreamEventsResponse, Status>> + Send>>;

    async fn stream(&self, request: Request<StreamEventsRequest>) -> Result<Response<Self::StreamStream>, Status> {
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
            after => Some(understood.cursors.decode(after).map_err(Status::invalid_argument)?),
        };
        let position = start(&self.0, &understood, position).map_err(status)?;
        let position = position.map_err(|_| gone())?;
        let place = self.0.events.waiting.enter(&caller.identity).map_err(Status::unavailable)?;
        let following = Following::begin(self.0.clone(), &caller, understood, position, asked.follow, place);
        let following = following.await.map_err(status)?;
        let served = self.0.clone();
        let pages =
            stream::try_unfold((following, served), move |(mut following, served): (Following, Served)| async move {
                let Some(next) = following.next(limit).await.map_err(status)? else { return Ok(None) };
                let Next::Page(page) = next else { return Err(gone()) };
                let answer = told(&served, &following, &page).await?;
                Ok(Some((answer, (following, served))))
            });
        Ok(Response::new(Box::pin(pages)))
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
    understood.filter = Arc::new(wanted);
    understood.begin = match asked.since_unix_nano {
        0 => 0,
        since => reader.first_at(since).map_err(|e| status(Error::store(e)))?,
    };
    Ok(understood)
}

async fn told(served: &Served, following: &Following, page: &Page) -> Result<StreamEventsResponse, Status> {
    let reader = served.engine.projection().reader();
    let checkpoint = served.events.seals.covering(reader, page.next).await.map_err(status)?;
    let origin = reader.origin();
    let event =
        |line: &Arc<super::lines::Line>| Event { seq: line.seq, uid: line.uid(origin), body: line.text.clone() };
    Ok(StreamEventsResponse {
        events: page.lines.iter().map(event).collect(),
        next_cursor: following.request.cursors.encode(Position { seq: page.next, ..following.position }),
        has_more: page.has_more,
        range: Some(Range {
            from_seq: page.from,
            to_seq: page.next,
            matched: page.lines.len() as u64,
            skipped: page.skipped(),
        }),
        checkpoint: checkpoint.unwrap_or_default(),
    })
}
