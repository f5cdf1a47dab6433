//! Asking: rows as they come, all of them at once, or as a bundle of evidence.

use std::cell::Cell;
use std::io::{BufReader, Read, Write};
use std::sync::PoisonError;
use std::time::Duration;

use custody_query::Answer;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::ipc::reader::StreamReader;
use datafusion::arrow::record_batch::RecordBatch;
use serde_json::Value;

use super::{LOOKS_MAX, Source, told};
use crate::Failure;

/// The longest footer behind an answer.
const FOOTER_BYTES_MAX: u64 = 1 << 20;

/// What an answer is made of, in this order.
pub enum Part {
    /// Its columns, once.
    Columns(SchemaRef),
    /// Some of its rows.
    Rows(RecordBatch),
}

/// What is known of an answer at its end.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// How many rows came.
    pub rows: usize,
    /// Whether there were more than allowed.
    pub truncated: bool,
    /// The query saw all records below this seq, and none other.
    pub log_size: u64,
    /// What is to be said of it.
    pub notes: Vec<String>,
}

/// Takes the parts of an answer as they come.
pub type Each<'a> = dyn FnMut(Part) -> Result<(), Failure> + 'a;

impl Source {
    /// Runs a query. `id` goes in as `$1` where the text has it. Beside a running server a
    /// file of a directory may be merged away while it is read: then the directory is looked
    /// at anew.
    pub fn sql(&self, query: &Value) -> Result<(SchemaRef, Vec<RecordBatch>, bool), Failure> {
        let answer = self.answer(query)?;
        Ok((answer.schema, answer.batches, answer.truncated))
    }

    /// The same, with all that is known of the answer.
    pub fn answer(&self, query: &Value) -> Result<Answer, Failure> {
        let (mut schema, mut batches): (SchemaRef, Vec<RecordBatch>) = (Schema::empty().into(), Vec::new());
        let mut keep = |part| {
            match part {
                // Also when it is asked anew.
                Part::Columns(columns) => (schema, batches) = (columns, Vec::new()),
                Part::Rows(rows) => batches.push(rows),
            }
            Ok(())
        };
        let ended = self.asked(query, true, &mut keep)?;
        let Ended { rows, truncated, log_size, notes } = ended;
        Ok(Answer { schema, batches, rows, truncated, as_of_size: log_size, elapsed: Duration::ZERO, notes })
    }

    /// Runs a query, and gives its rows as they come.
    pub fn sql_each(&self, query: &Value, each: &mut Each<'_>) -> Result<Ended, Failure> {
        self.asked(query, false, each)
    }

    /// The same; when a file was merged away meanwhile it begins anew, with the columns.
    pub fn sql_again(&self, query: &Value, each: &mut Each<'_>) -> Result<Ended, Failure> {
        self.asked(query, true, each)
    }

    fn asked(&self, query: &Value, again: bool, each: &mut Each<'_>) -> Result<Ended, Failure> {
        let once = |source: &Self, each: &mut Each<'_>| {
            let mut query = query.clone();
            query["format"] = "arrow".into();
            let request = source.agent().post(format!("{}/api/v1/sql", source.url)).header("X-Footer", "true");
            let request = request.header("Content-Type", "application/json");
            let request = match source.authorization()? {
                Some(value) => request.header("Authorization", value),
                None => request,
            };
            source.rows(request.send(query.to_string().as_bytes()), each)
        };
        self.looking_anew(again, each, &once)
    }

    /// The steps of a replay as they come, a batch at a time: of an id, and what it is.
    pub fn replay(
        &self,
        (id, of): (&str, &str),
        as_of: Option<&str>,
        each: &mut dyn FnMut(RecordBatch) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let once = |source: &Self, each: &mut Each<'_>| {
            let request = source.agent().get(format!("{}/api/v1/replay", source.url)).header("X-Footer", "true");
            let mut request = request.query("format", "arrow").query("id", id).query("of", of);
            if let Some(as_of) = as_of {
                request = request.query("as_of", as_of);
            }
            if let Some(value) = source.authorization()? {
                request = request.header("Authorization", value);
            }
            source.rows(request.call(), each)
        };
        let mut rows = |part| match part {
            Part::Columns(_) => Ok(()),
            Part::Rows(batch) => each(batch),
        };
        self.looking_anew(false, &mut rows, &once).map(drop)
    }

    /// Has a query answered with a bundle of evidence, and writes that.
    pub fn evidence(&self, query: &Value, out: &mut dyn Write) -> Result<(), Failure> {
        let request = self.agent().post(format!("{}/api/v1/evidence", self.url));
        let request = request.header("Content-Type", "application/json");
        let request = match self.authorization()? {
            Some(value) => request.header("Authorization", value),
            None => request,
        };
        let answer = request.send(query.to_string().as_bytes());
        let answer = answer.map_err(|e| Failure::unable(format!("{} does not answer: {e}", self.url)))?;
        if !answer.status().is_success() {
            return self.read(Ok(answer)).map(drop);
        }
        let mut body = answer.into_body().into_with_config().limit(u64::MAX).reader();
        let copied = std::io::copy(&mut body, out);
        copied.map(drop).map_err(|e| Failure::unable(format!("{} broke off: {e}", self.url)))
    }

    /// Breaks off what is being asked: the connections close, and the server ends the queries.
    pub fn interrupt(&self) -> Result<(), Failure> {
        let fresh = self.credentials.agent()?;
        let mut agent = self.agent.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *agent, fresh).shutdown();
        Ok(())
    }

    /// Asks once more when a file of the directory was merged away: if nothing was given yet, or if whoever takes it
    /// can begin `again`.
    fn looking_anew(
        &self,
        again: bool,
        each: &mut Each<'_>,
        once: &dyn Fn(&Self, &mut Each<'_>) -> Result<Ended, Failure>,
    ) -> Result<Ended, Failure> {
        let begun = Cell::new(false);
        let mut each = |part| {
            begun.set(true);
            each(part)
        };
        let mut done = once(self, &mut each);
        for _ in 0..LOOKS_MAX {
            match (&done, &self.dir) {
                (Err(error), Some(dir)) if error.is_about_a_segment() && (again || !begun.get()) => {
                    done = once(&Self::of_directory(dir)?, &mut each);
                }
                _ => break,
            }
        }
        done
    }

    /// Reads an answer in Arrow, and what stands behind it.
    fn rows(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
        each: &mut Each<'_>,
    ) -> Result<Ended, Failure> {
        let answer = answer.map_err(|e| Failure::unable(format!("{} does not answer: {e}", self.url)))?;
        if !answer.status().is_success() {
            return self.read(Ok(answer)).map(|_| Ended::default());
        }
        let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let has_footer = header("x-footer").as_deref() == Some("true");
        let truncated = header("x-truncated").as_deref() == Some("true");
        let log_size = header("x-log-size").and_then(|size| size.parse().ok()).unwrap_or_default();
        let mut ended = Ended { truncated, log_size, ..Ended::default() };
        let broken = |e: &dyn std::fmt::Display| Failure::unable(format!("{} broke off: {e}", self.url));
        let mut body = Unbroken(BufReader::new(answer.into_body().into_with_config().limit(u64::MAX).reader()));
        let mut batches = StreamReader::try_new(&mut body, None).map_err(|e| broken(&e))?;
        each(Part::Columns(batches.schema()))?;
        for batch in &mut batches {
            let batch = batch.map_err(|e| broken(&e))?;
            ended.rows += batch.num_rows();
            each(Part::Rows(batch))?;
        }
        drop(batches);
        let mut footer = String::new();
        body.0.take(FOOTER_BYTES_MAX).read_to_string(&mut footer).map_err(|e| broken(&e))?;
        if !has_footer {
            return Ok(ended);
        }
        let footer: Value = serde_json::from_str(&footer).map_err(|_| broken(&"its end is missing"))?;
        if footer["error"].is_object() {
            let is_unable = matches!(footer["error"]["code"].as_str(), Some("unavailable" | "internal"));
            return Err(told(&footer["error"], is_unable));
        }
        ended.truncated = footer["stats"]["truncated"] == true;
        let notes = footer["stats"]["notes"].as_array().into_iter().flatten();
        ended.notes = notes.filter_map(Value::as_str).map(str::to_owned).collect();
        Ok(ended)
    }
}

/// A stream of Arrow ends with its own mark. A connection that ends before it broke off, which the reader of Arrow
/// would take for an end.
struct Unbroken<R>(R);

impl<R: Read> Read for Unbroken<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(buf) {
            Ok(0) if !buf.is_empty() => Err(std::io::Error::other("the answer ends before its end")),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(std::io::Error::other(e.to_string())),
            read => read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead as _;
    use std::sync::Arc;

    /// A server that answers once, with these bytes, and closes.
    fn answering(bytes: Vec<u8>) -> Source {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serve = move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = BufReader::new(stream.try_clone().unwrap());
            let (mut line, mut length) = (String::new(), 0);
            while request.read_line(&mut line).unwrap() > 2 {
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse::<usize>().unwrap();
                }
                line.clear();
            }
            // To close before all of it was read would break the answer off.
            request.read_exact(&mut vec![0_u8; length]).unwrap();
            stream.write_all(&bytes).unwrap();
        };
        std::thread::Builder::new().spawn(serve).unwrap();
        Source::at(url)
    }

    fn chunked(headers: &str, body: &[u8], last: &str) -> Vec<u8> {
        let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{headers}\r\n{:x}\r\n", body.len());
        [head.as_bytes(), body, b"\r\n", last.as_bytes()].concat()
    }

    /// Three rows in Arrow, with and without the mark at the end.
    fn arrow() -> (Vec<u8>, Vec<u8>) {
        use custody_query::pieces::{Format, Pieces, Stats};
        use datafusion::arrow::array::{ArrayRef, Int64Array};
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
        let batch = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
        let mut pieces = Pieces::new(Format::Arrow, &batch.schema()).unwrap();
        let open = pieces.batch(&batch).unwrap();
        let stats = Stats { rows: 3, ..Stats::default() };
        let whole = [open.clone(), pieces.end(&stats).unwrap()].concat();
        (open, whole)
    }

    #[test]
    fn an_answer_that_breaks_off_is_no_shorter_answer() {
        let (open, whole) = arrow();
        let told = |bytes| answering(bytes).answer(&serde_json::json!({"sql": ""})).map(|a| (a.rows, a.truncated));
        assert_eq!(told(chunked("", &whole, "0\r\n\r\n")).unwrap(), (3, false));
        // The chunk is whole and so is the batch: what is missing is the end, of one or of both.
        for (body, last) in [(&open, ""), (&open, "0\r\n\r\n"), (&whole, "")] {
            let failure = told(chunked("", body, last)).unwrap_err();
            assert!(failure.is_unable() && failure.message.contains("broke off"), "{failure:?}");
        }
        let footer = |line: &str| chunked("x-footer: true\r\n", &[&whole, line.as_bytes()].concat(), "0\r\n\r\n");
        assert_eq!(told(footer("{\"stats\":{\"truncated\":true}}\n")).unwrap(), (3, true));
        assert!(told(footer("")).unwrap_err().message.contains("its end is missing"));
        let failure = told(footer("{\"error\":{\"code\":\"timeout\",\"message\":\"too long\"}}\n")).unwrap_err();
        assert_eq!((failure.message.as_str(), failure.is_unable()), ("too long", false));
    }

    #[test]
    fn how_long_to_wait_is_as_the_server_says() {
        let refused = |head: &str| answering(format!("HTTP/1.1 {head}Content-Length: 0\r\n\r\n").into_bytes());
        for (head, want) in [
            ("429 Too Many Requests\r\nRetry-After: 7\r\n", Some(Duration::from_secs(7))),
            ("503 Service Unavailable\r\nRetry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n", None),
            ("503 Service Unavailable\r\n", None),
        ] {
            let failure = refused(head).get("/api/v1/events").map(|got| got.body).unwrap_err();
            assert_eq!((failure.retry_after, failure.is_unable()), (want, true), "{head}");
        }
    }
}
