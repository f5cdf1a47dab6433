//! gRPC messages whose events are written already: the bytes of a sheet, which many calls share, and behind
//! them what is each call's own.

use std::sync::Arc;

use bytes::BufMut as _;
use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic_prost::ProstCodec;

use super::generated::StreamEventsRequest;
use super::sheet::Sheet;

/// A `StreamEventsResponse`: protobuf lets its fields come in pieces, in any order.
#[derive(Debug)]
pub struct Message {
    /// Its field `events`.
    pub(super) sheet: Arc<Sheet>,
    /// All other fields.
    pub(super) rest: Vec<u8>,
}

/// Writes messages, and reads requests as prost does.
#[derive(Debug, Default)]
pub(super) struct Sheets;

impl Codec for Sheets {
    type Encode = Message;
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
    type Item = Message;
    type Error = Status;

    fn encode(&mut self, message: Message, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(message.sheet.bytes + message.rest.len());
        message.sheet.parts.iter().for_each(|part| out.put_slice(part));
        out.put_slice(&message.rest);
        Ok(())
    }
}
