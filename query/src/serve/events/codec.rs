//! gRPC messages whose events are written already: the bytes of a sheet, which many calls share, sent from where they
//! lie, with what is each call's own. tonic would copy them into each call, and compress them there.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::HttpBody;
use axum::http::HeaderMap;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use hyper::body::Frame;
use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic_prost::ProstCodec;

use super::coding::Coding;
use super::generated::StreamEventsRequest;
use super::packed::Packing;
use super::sheet::Sheet;

/// A `StreamEventsResponse`: protobuf lets its fields come in pieces, in any order.
#[derive(Debug)]
pub(super) struct Message {
    /// Its field `events`.
    pub(super) sheet: Arc<Sheet>,
    /// All other fields.
    pub(super) rest: Vec<u8>,
}

impl Message {
    /// Its bytes, behind those by which gRPC frames messages: whether it is compressed, and how long it is.
    fn framed(&self) -> Result<VecDeque<Bytes>, Status> {
        let mut packing = Packing::begin(self.sheet.coding());
        packing.store(&self.rest);
        let mut parts: VecDeque<Bytes> = match &self.sheet.packed {
            Some(packed) => packing.share(packed).into(),
            None => std::iter::once(packing.flush()).chain(self.sheet.parts.iter().cloned()).collect(),
        };
        parts.push_back(packing.end());
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        let bytes = u32::try_from(bytes).map_err(|_| Status::resource_exhausted("a message is too large"))?;
        // One's own first part goes with it: a frame of HTTP/2 for five bytes would be a waste.
        let own = parts.pop_front().unwrap_or_default();
        let mut head = Vec::with_capacity(5 + own.len());
        head.push(u8::from(self.sheet.packed.is_some()));
        head.extend(bytes.to_be_bytes());
        head.extend_from_slice(&own);
        parts.push_front(head.into());
        parts.retain(|part| !part.is_empty());
        Ok(parts)
    }
}

/// The messages of a call, and where they come from.
pub(super) type Messages = BoxStream<'static, Result<Message, Status>>;

/// The body of an answer: messages, and behind them how the call ended.
pub(super) struct Framed {
    /// None when it has ended.
    messages: Option<Messages>,
    parts: VecDeque<Bytes>,
    /// What the parts are of: it counts as held until they are taken.
    sheet: Option<Arc<Sheet>>,
}

impl Framed {
    pub(super) fn new(messages: Messages) -> Self {
        Self { messages: Some(messages), parts: VecDeque::new(), sheet: None }
    }
}

/// How a call ended, for its trailers.
fn ended(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}

impl HttpBody for Framed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(part) = self.parts.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            self.sheet = None;
            let Some(messages) = &mut self.messages else { return Poll::Ready(None) };
            let framed = match ready!(messages.poll_next_unpin(cx)) {
                Some(message) => message.and_then(|message| Ok((message.framed()?, message.sheet))),
                None => Err(Status::ok("")),
            };
            match framed {
                Ok((parts, sheet)) => (self.parts, self.sheet) = (parts, Some(sheet)),
                Err(status) => {
                    self.messages = None;
                    return Poll::Ready(Some(ended(&status)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.messages.is_none() && self.parts.is_empty()
    }
}

/// Reads requests as prost does. What is sent is written by [`Framed`].
#[derive(Debug, Default)]
pub(super) struct Sheets;

/// No message: answers are not written by tonic.
#[derive(Debug)]
pub(super) enum Never {}

impl Codec for Sheets {
    type Encode = Never;
    type Decode = StreamEventsRequest;
    type Encoder = Self;
    type Decoder = <ProstCodec<StreamEventsRequest, StreamEventsRequest> as Codec>::Decoder;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<StreamEventsRequest, StreamEventsRequest>::default().decoder()
    }
}

impl Encoder for Sheets {
    type Item = Never;
    type Error = Status;

    fn encode(&mut self, message: Never, _: &mut EncodeBuf<'_>) -> Result<(), Status> {
        match message {}
    }
}

/// The headers that say how messages are compressed, those that are, and how requests may be.
pub(super) fn says(headers: &mut HeaderMap, coding: Coding) {
    headers.insert("grpc-accept-encoding", axum::http::HeaderValue::from_static("identity,gzip,zstd"));
    if let Some(name) = coding.name() {
        headers.insert("grpc-encoding", axum::http::HeaderValue::from_static(name));
    }
}
