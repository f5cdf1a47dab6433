//! `custody.v1.Events/Stream` as far as a reader needs it: messages off HTTP/2, read where they lie
//! (docs: proto/custody/v1/events.proto of Custody).

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::http::Broken;

/// Bytes that a reader has under way, at most: a message or two.
const WINDOW_BYTES: u32 = 1 << 20;

/// Bytes before a message: whether it is compressed, and its length.
const FRAME: usize = 5;

impl From<hyper::Error> for Broken {
    fn from(_: hyper::Error) -> Self {
        Self
    }
}

/// A call.
pub struct Call {
    /// Events of a message, at most.
    pub limit: u32,
    pub cursor: String,
    pub kinds: Vec<String>,
}

impl Call {
    /// A `StreamEventsRequest` that follows.
    fn encode(&self) -> Vec<u8> {
        let mut message = Vec::new();
        let mut text = |number: u8, text: &str| {
            message.push((number << 3) | 2);
            prost::encoding::encode_varint(text.len() as u64, &mut message);
            message.extend_from_slice(text.as_bytes());
        };
        text(1, &self.cursor);
        self.kinds.iter().for_each(|kind| text(2, kind));
        message.push(9 << 3);
        prost::encoding::encode_varint(self.limit.into(), &mut message);
        message.extend([10 << 3, 1]);
        let mut framed = vec![0];
        framed.extend((message.len() as u32).to_be_bytes());
        framed.extend(message);
        framed
    }

    /// Calls, with these headers; the answer's body is messages.
    pub async fn begin(&self, address: &str, uri: &str, headers: &HeaderMap) -> Result<Response<Incoming>, Broken> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::new(Full::new(Bytes::from(self.encode())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri.parse().map_err(|_| Broken)?;
        *request.headers_mut() = headers.clone();
        request.headers_mut().remove(header::HOST);
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
        sender.ready().await?;
        Ok(sender.send_request(request).await?)
    }
}

/// Bytes as they come, message by message.
#[derive(Default)]
pub struct Messages {
    rest: Vec<u8>,
}

impl Messages {
    /// Takes what came; gives each message that is whole, and whether it is compressed.
    pub fn take<E>(&mut self, data: &[u8], mut each: impl FnMut(bool, &[u8]) -> Result<(), E>) -> Result<(), E> {
        self.rest.extend_from_slice(data);
        let mut from = 0;
        while let Some(head) = self.rest.get(from..from + FRAME) {
            let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let Some(message) = self.rest.get(from + FRAME..from + FRAME + len) else { break };
            each(head[0] != 0, message)?;
            from += FRAME + len;
        }
        self.rest.drain(..from);
        Ok(())
    }
}

/// What a message says of itself, but for its events.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub cursor: String,
    pub from: u64,
    pub to: u64,
    pub matched: u64,
}

/// Reads a `StreamEventsResponse`: gives seq and body of each event. `None` if it is none.
pub fn read<E>(message: &[u8], mut each: impl FnMut(u64, &str) -> Result<(), E>) -> Option<Result<Told, E>> {
    let (mut told, mut failed) = (Told::default(), None);
    fields(message, |number, value| match (number, value) {
        (1, Value::Bytes(event)) => {
            let (mut seq, mut body) = (0, None);
            fields(event, |number, value| {
                match (number, value) {
                    (1, Value::Number(number)) => seq = number,
                    (3, Value::Bytes(bytes)) => body = Some(std::str::from_utf8(bytes).ok()?),
                    _ => {}
                }
                Some(())
            })?;
            if failed.is_none() {
                failed = each(seq, body?).err();
            }
            Some(())
        }
        (2, Value::Bytes(cursor)) => {
            std::str::from_utf8(cursor).ok()?.clone_into(&mut told.cursor);
            Some(())
        }
        (4, Value::Bytes(range)) => fields(range, |number, value| {
            match (number, value) {
                (1, Value::Number(from)) => told.from = from,
                (2, Value::Number(to)) => told.to = to,
                (3, Value::Number(matched)) => told.matched = matched,
                _ => {}
            }
            Some(())
        }),
        _ => Some(()),
    })?;
    Some(failed.map_or(Ok(told), Err))
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message of numbers and stretches of bytes, in order.
fn fields<'a>(mut message: &'a [u8], mut each: impl FnMut(u64, Value<'a>) -> Option<()>) -> Option<()> {
    while !message.is_empty() {
        let key = prost::encoding::decode_varint(&mut message).ok()?;
        let number = prost::encoding::decode_varint(&mut message).ok()?;
        let value = match key & 7 {
            0 => Value::Number(number),
            2 => {
                let (bytes, rest) = message.split_at_checked(usize::try_from(number).ok()?)?;
                message = rest;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        each(key >> 3, value)?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_whole_however_they_are_cut() {
        let event = |seq: u8, body: &str| {
            let mut event = vec![1 << 3, seq, (2 << 3) | 2, 1, b'u', (3 << 3) | 2, body.len() as u8];
            event.extend(body.as_bytes());
            let mut field = vec![(1 << 3) | 2, event.len() as u8];
            field.extend(event);
            field
        };
        let mut message = [event(3, "one"), event(5, "two")].concat();
        message.extend([(2 << 3) | 2, 2, b'c', b'u', (4 << 3) | 2, 6, 1 << 3, 3, 2 << 3, 6, 3 << 3, 2]);
        let mut stream = Vec::new();
        for message in [&message[..], &[], &message] {
            stream.push(0);
            stream.extend((message.len() as u32).to_be_bytes());
            stream.extend(message);
        }
        for size in 1..=stream.len() {
            let (mut messages, mut got, mut told) = (Messages::default(), Vec::new(), Vec::new());
            for part in stream.chunks(size) {
                let taken: Result<(), ()> = messages.take(part, |is_compressed, message| {
                    assert!(!is_compressed);
                    let read = read::<()>(message, |seq, body| {
                        got.push((seq, body.to_owned()));
                        Ok(())
                    });
                    told.push(read.unwrap()?);
                    Ok(())
                });
                assert!(taken.is_ok() && told.len() <= 3);
            }
            assert_eq!(got.len(), 4);
            assert_eq!(got[..2], [(3, "one".to_owned()), (5, "two".to_owned())]);
            assert_eq!(told[0], Told { cursor: "cu".into(), from: 3, to: 6, matched: 2 });
            assert_eq!((&told[1], &told[2]), (&Told::default(), &told[0]));
        }
        assert!(read::<()>(&message[..message.len() - 1], |_, _| Ok(())).is_none());
        assert_eq!(read(&message, |seq, _| Err(seq)), Some(Err(3)));
    }

    #[test]
    fn a_call_is_framed_protobuf() {
        let call = Call { limit: 300, cursor: "c".into(), kinds: vec!["alert".into()] };
        let framed = call.encode();
        let mut taken: Vec<u8> = Vec::new();
        let take = |_: bool, message: &[u8]| {
            taken.extend(message);
            Ok::<_, ()>(())
        };
        Messages::default().take(&framed, take).unwrap();
        assert_eq!(taken, b"\x0a\x01c\x12\x05alert\x48\xac\x02\x50\x01");
    }
}
