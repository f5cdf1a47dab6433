//! HTTP/1.1 as far as a reader of events needs it: one GET after the other on a connection, and bodies that
//! are looked at where they lie.
//!
//! A hundred readers of everything are a hundred times the load in bytes: a client that copies each body,
//! and hands each piece of it from task to task, would be what is measured.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Bytes that are read at a time, at most; a head must fit.
const BUFFER_BYTES: usize = 128 << 10;

/// Why an answer ended early: the connection broke, or what came is no HTTP.
pub struct Broken;

impl From<std::io::Error> for Broken {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// After so many bytes.
    Bytes(u64),
    /// In a chunk, with so many bytes to come; a line's end follows.
    Chunk(u64),
    /// Before the size of a chunk.
    Size,
    /// Behind the last chunk; a line's end follows.
    Last,
    Ended,
}

/// A connection, and of the answer under way what has come.
pub struct Connection {
    stream: TcpStream,
    buffer: Box<[u8]>,
    /// What of the buffer was read and not yet looked at.
    from: usize,
    to: usize,
    rest: Rest,
}

impl Connection {
    pub async fn open(address: &str) -> Result<Self, Broken> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; BUFFER_BYTES].into(), from: 0, to: 0, rest: Rest::Ended })
    }

    /// Whether it can be asked again.
    pub fn is_free(&self) -> bool {
        self.rest == Rest::Ended && self.from == self.to
    }

    /// Asks; gives status and headers.
    pub async fn get(&mut self, path: &str, headers: &HeaderMap) -> Result<(StatusCode, HeaderMap), Broken> {
        let mut request = format!("GET {path} HTTP/1.1\r\n").into_bytes();
        for (name, value) in headers {
            request.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        request.extend(b"\r\n");
        self.stream.write_all(&request).await?;
        loop {
            if let Some(len) = find(&self.buffer[self.from..self.to], b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.buffer[self.from..self.from + len]).into_owned();
                self.from += len + 4;
                let (status, headers) = read_head(&head).ok_or(Broken)?;
                let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
                self.rest = match (text("transfer-encoding"), text("content-length")) {
                    (Some("chunked"), _) => Rest::Size,
                    (None, Some(bytes)) => Rest::Bytes(bytes.parse().map_err(|_| Broken)?),
                    _ => return Err(Broken),
                };
                return Ok((status, headers));
            }
            self.more().await?;
        }
    }

    /// The next bytes of the body; none at its end. Given up while it waits, nothing is lost.
    pub async fn piece(&mut self) -> Result<Option<&[u8]>, Broken> {
        loop {
            let here = (self.to - self.from) as u64;
            match self.rest {
                Rest::Bytes(0) => self.rest = Rest::Ended,
                Rest::Ended => return Ok(None),
                Rest::Bytes(left) | Rest::Chunk(left) if left > 0 && here > 0 => {
                    let len = left.min(here);
                    self.rest = match self.rest {
                        Rest::Bytes(_) => Rest::Bytes(left - len),
                        _ => Rest::Chunk(left - len),
                    };
                    let from = self.from;
                    self.from += len as usize;
                    return Ok(Some(&self.buffer[from..self.from]));
                }
                Rest::Bytes(_) | Rest::Chunk(1..) => self.more().await?,
                Rest::Chunk(0) | Rest::Size | Rest::Last => match self.line()? {
                    None => self.more().await?,
                    Some(line) => self.rest = self.rest.after(&line)?,
                },
            }
        }
    }

    /// The next line of what is between chunks, if it is whole.
    fn line(&mut self) -> Result<Option<String>, Broken> {
        let here = &self.buffer[self.from..self.to];
        let Some(len) = find(here, b"\r\n") else { return if here.len() > 100 { Err(Broken) } else { Ok(None) } };
        let line = String::from_utf8_lossy(&here[..len]).into_owned();
        self.from += len + 2;
        Ok(Some(line))
    }

    /// Reads what has come.
    async fn more(&mut self) -> Result<(), Broken> {
        if self.from > 0 {
            self.buffer.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        let read = self.stream.read(&mut self.buffer[self.to..]).await?;
        self.to += read;
        if read == 0 { Err(Broken) } else { Ok(()) }
    }
}

impl Rest {
    /// What follows a line between chunks.
    fn after(self, line: &str) -> Result<Self, Broken> {
        match self {
            Self::Size => match u64::from_str_radix(line.split(';').next().unwrap_or_default(), 16) {
                Ok(0) => Ok(Self::Last),
                Ok(bytes) => Ok(Self::Chunk(bytes)),
                Err(_) => Err(Broken),
            },
            Self::Chunk(0) if line.is_empty() => Ok(Self::Size),
            Self::Last if line.is_empty() => Ok(Self::Ended),
            _ => Err(Broken),
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn read_head(head: &str) -> Option<(StatusCode, HeaderMap)> {
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':')?;
        headers.insert(HeaderName::try_from(name).ok()?, HeaderValue::from_str(value.trim()).ok()?);
    }
    Some((status, headers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    /// A server that answers one request with these bytes, in pieces of a size.
    fn serve(answer: &'static [u8], size: usize) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serve = move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                asked.extend(byte);
            }
            answer.chunks(size).for_each(|piece| stream.write_all(piece).unwrap());
        };
        std::thread::Builder::new().spawn(serve).unwrap();
        address
    }

    async fn ask(address: &str) -> Result<(StatusCode, String, bool), Broken> {
        let mut connection = Connection::open(address).await?;
        let (status, _) = connection.get("/", &HeaderMap::new()).await?;
        let mut body = String::new();
        while let Some(piece) = connection.piece().await? {
            body.push_str(std::str::from_utf8(piece).unwrap());
        }
        Ok((status, body, connection.is_free()))
    }

    #[tokio::test]
    async fn bodies_are_whole_however_they_come_and_are_framed() {
        const LONG: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nX: y\r\n\r\nnine byte";
        const CHUNKED: &[u8] =
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nnine\r\n5;x=y\r\n byte\r\n0\r\n\r\n";
        for answer in [LONG, CHUNKED] {
            for size in [1, 2, 7, 1000] {
                let Ok(got) = ask(&serve(answer, size)).await else { panic!("in pieces of {size}") };
                assert_eq!(got, (StatusCode::OK, "nine byte".to_owned(), true));
            }
        }
        for broken in [&LONG[..LONG.len() - 1], &CHUNKED[..CHUNKED.len() - 2], b"SMTP ready\r\n\r\n"] {
            assert!(ask(&serve(broken, 1000)).await.is_err());
        }
    }
}
