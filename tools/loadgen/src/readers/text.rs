//! What comes as text: lines, however they are cut, and what is compressed and looked at as a whole.

use http::{HeaderMap, header};

use super::grpc;
use super::known::Coding;
use super::trail::{self, Batch};

/// How an answer is compressed.
pub fn coding(headers: &HeaderMap) -> Result<Option<Coding>, String> {
    let Some(name) = headers.get(header::CONTENT_ENCODING) else { return Ok(None) };
    let coding = name.to_str().ok().and_then(Coding::named);
    coding.map(Some).ok_or_else(|| format!("nobody asked for the coding {name:?}"))
}

/// What an answer tells: its events, and what comes after them; or what is wrong with it.
pub type Told = Result<(Batch, Option<String>), String>;

/// The events of a page of lines.
pub fn read_lines(text: &[u8]) -> Told {
    let mut batch = Batch::default();
    for line in utf8(text)?.lines() {
        batch.take(line)?;
    }
    Ok((batch, None))
}

/// The events of a part of a stream, and the cursor with which it ends.
pub fn read_stream(text: &[u8]) -> Told {
    let (mut batch, mut cursor, mut is_open) = (Batch::default(), None, false);
    for line in utf8(text)?.lines() {
        if let Some(event) = line.strip_prefix("data: ") {
            batch.take(event)?;
            is_open = true;
        } else if let Some(id) = line.strip_prefix("id: ") {
            (cursor, is_open) = (Some(id.to_owned()), false);
        } else if let Some(name) = line.strip_prefix("event: ") {
            return Err(format!("the stream tells of {}", trail::clip(name)));
        }
    }
    match is_open || !text.ends_with(b"\n\n") {
        true => Err("a part of the stream does not end with an event and its cursor".into()),
        false => Ok((batch, cursor)),
    }
}

/// The events that a message shares with others.
pub fn read_message(message: &[u8]) -> Told {
    let mut batch = Batch::default();
    let told = grpc::read(message, |seq, body| match batch.take(body)? {
        same if same == seq => Ok(()),
        other => Err(format!("a message has the event of {other} as one of {seq}")),
    });
    match told.ok_or("a message is no StreamEventsResponse")?? {
        told if told == grpc::Told::default() => Ok((batch, None)),
        _ => Err("what many have says whose it is".into()),
    }
}

fn utf8(text: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(text).map_err(|_| "an event is not UTF-8".into())
}

/// Where the first line ends.
fn line_end(data: &[u8]) -> Option<usize> {
    const BLOCK: usize = 64;
    // All bytes of a block are looked at, whatever they are: the compiler makes a few wide instructions of that.
    let has_end = |block: &[u8]| block.iter().fold(false, |found, byte| found | (*byte == b'\n'));
    let from = data.chunks_exact(BLOCK).take_while(|block| !has_end(block)).count() * BLOCK;
    data[from..].iter().position(|byte| *byte == b'\n').map(|at| from + at)
}

/// Bytes as they come, line by line.
#[derive(Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    pub fn take<E: From<String>>(&mut self, data: &[u8], mut each: impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        let mut data = data;
        while let Some(end) = line_end(data) {
            let line = &data[..end];
            data = &data[end + 1..];
            let whole = match self.rest.is_empty() {
                true => line,
                false => {
                    self.rest.extend_from_slice(line);
                    &self.rest
                }
            };
            each(utf8(whole)?)?;
            self.rest.clear();
        }
        self.rest.extend_from_slice(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_are_cut() {
        let long = "long ".repeat(40);
        let text = format!("one\ntwo and more\n\n{long}\nlast\n");
        for size in 1..=text.len() {
            let (mut lines, mut got) = (Lines::default(), Vec::new());
            for part in text.as_bytes().chunks(size) {
                let taken = lines.take(part, |line| {
                    got.push(line.to_owned());
                    Ok::<_, String>(())
                });
                assert!(taken.is_ok());
            }
            assert_eq!(got, ["one", "two and more", "", &long, "last"], "in pieces of {size}");
        }
    }

    #[test]
    fn a_part_of_a_stream_ends_with_an_event_and_its_cursor() {
        let line = |seq: u64| {
            let uid = format!("{{\"metadata\":{{\"uid\":\"log:{seq}:alert\",\"sequence\":{seq}}}");
            format!("data: {uid},\"ingest_time\":\"1970-01-01T00:00:01Z\"}}\n")
        };
        let two = format!("{}\n{}id: cu\n\n:\n\nid: cv\n\n", line(1), line(1));
        let (batch, cursor) = read_stream(two.as_bytes()).unwrap();
        assert_eq!((batch.events, cursor.as_deref()), (2, Some("cv")));
        assert_eq!(read_stream(b":\n\n").unwrap(), (Batch::default(), None));
        for wrong in [&two[..two.len() - 1], &format!("{two}{}\n", line(2)), "event: gone\ndata: {}\n\n", "data: 1\n\n"]
        {
            assert!(read_stream(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let lines = [line(4), line(5)].concat().replace("data: ", "");
        assert_eq!(read_lines(lines.as_bytes()).unwrap().0.events, 2);
    }
}
