//! What a seed sends: lives of steps, over which the requests are numbered on.
//!
//! Every record's bytes are unique to the request that was the first to hold
//! them, so that a record can be counted in the log by its bytes alone.

use bytes::Bytes;
use custody_proto::otlp::collector_logs::ExportLogsServiceRequest;
use custody_proto::otlp::collector_trace::ExportTraceServiceRequest;
use custody_proto::otlp::common::{AnyValue, any_value::Value};
use custody_proto::otlp::logs::{LogRecord, ResourceLogs, ScopeLogs};
use custody_proto::otlp::trace::{ResourceSpans, ScopeSpans, Span};
use custody_proto::{Limits, Signal, scan};
use custody_store::{Encoding, Prepared};
use prost::Message as _;

/// A small seeded generator (SplitMix64).
pub struct Draws(u64);

impl Draws {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// One request, with the bytes of its records.
#[derive(Clone)]
pub struct Request {
    pub id: u64,
    pub payload: Bytes,
    pub records: Vec<Vec<u8>>,
    spans: Vec<Span>,
}

impl Request {
    pub fn traces(id: u64, spans: Vec<Span>) -> Self {
        let records = spans.iter().map(Span::encode_to_vec).collect();
        let scope_spans = vec![ScopeSpans { spans: spans.clone(), ..Default::default() }];
        let resource_spans = vec![ResourceSpans { scope_spans, ..Default::default() }];
        let payload = ExportTraceServiceRequest { resource_spans }.encode_to_vec().into();
        Self { id, payload, records, spans }
    }

    fn logs(id: u64, log_records: Vec<LogRecord>) -> Self {
        let records = log_records.iter().map(LogRecord::encode_to_vec).collect();
        let scope_logs = vec![ScopeLogs { log_records, ..Default::default() }];
        let resource_logs = vec![ResourceLogs { scope_logs, ..Default::default() }];
        let payload = ExportLogsServiceRequest { resource_logs }.encode_to_vec().into();
        Self { id, payload, records, spans: Vec::new() }
    }

    /// Ready to be appended.
    pub fn prepare(&self) -> Prepared {
        let signal = if self.spans.is_empty() { Signal::Logs } else { Signal::Traces };
        let scan = scan(signal, &self.payload, &Limits::default()).expect("the tests send what is valid");
        Prepared::new(signal, Encoding::Protobuf, self.payload.clone(), scan, "peer:127.0.0.1")
    }
}

pub fn span(id: u64, name: String) -> Span {
    Span {
        trace_id: [&(id / 100 + 1).to_be_bytes()[..], &[7; 8]].concat(),
        span_id: (id + 1).to_be_bytes().to_vec(),
        name,
        ..Default::default()
    }
}

/// What a child does next.
pub enum Step {
    Append(Vec<Request>),
    Checkpoint,
    Reopen,
}

/// The steps of a seed, life after life.
pub struct Stream {
    draws: Draws,
    /// All requests so far.
    pub made: Vec<Request>,
}

impl Stream {
    pub fn new(seed: u64) -> Self {
        Self { draws: Draws::new(seed), made: Vec::new() }
    }

    /// The steps of the next life.
    pub fn life(&mut self) -> Vec<Step> {
        let steps = 6 + self.draws.below(10);
        (0..steps).map(|_| self.step()).collect()
    }

    /// All requests of the first `lives` lives.
    pub fn requests(seed: u64, lives: u64) -> Vec<Request> {
        let mut stream = Self::new(seed);
        (0..lives).for_each(|_| drop(stream.life()));
        stream.made
    }

    fn step(&mut self) -> Step {
        match self.draws.below(10) {
            0 | 1 => Step::Checkpoint,
            2 => Step::Reopen,
            _ => Step::Append((0..1 + self.draws.below(5)).map(|_| self.request()).collect()),
        }
    }

    fn request(&mut self) -> Request {
        let roll = self.draws.below(10);
        if let Some(earlier) = self.earlier() {
            match roll {
                0 => return earlier,
                1 if !earlier.spans.is_empty() => return self.rival(&earlier),
                2 if !earlier.spans.is_empty() => return self.partly_new(&earlier),
                _ => {}
            }
        }
        let id = self.made.len() as u64;
        let request = if roll < 6 { self.new_logs(id) } else { Request::traces(id, self.new_spans(id)) };
        self.made.push(request.clone());
        request
    }

    fn earlier(&mut self) -> Option<Request> {
        let count = self.made.len() as u64;
        (count > 0).then(|| self.made[self.draws.below(count) as usize].clone())
    }

    /// The span ids of another request, with other content.
    fn rival(&mut self, earlier: &Request) -> Request {
        let id = self.made.len() as u64;
        let rename = |(i, span): (usize, &Span)| Span { name: format!("rival {id} {i}"), ..span.clone() };
        let request = Request::traces(id, earlier.spans.iter().enumerate().map(rename).collect());
        self.made.push(request.clone());
        request
    }

    /// A retry in another batch: half is in the log, half is not.
    fn partly_new(&mut self, earlier: &Request) -> Request {
        let id = self.made.len() as u64;
        let mut spans = earlier.spans[..earlier.spans.len().div_ceil(2)].to_vec();
        spans.extend(self.new_spans(id));
        let request = Request::traces(id, spans);
        self.made.push(request.clone());
        request
    }

    fn new_spans(&mut self, id: u64) -> Vec<Span> {
        let count = 1 + self.draws.below(6);
        let filler = self.filler();
        (0..count).map(|i| span(id * 100 + i, format!("span {id} {i} {filler}"))).collect()
    }

    fn new_logs(&mut self, id: u64) -> Request {
        let count = 1 + self.draws.below(3);
        let filler = self.filler();
        let body = |i| AnyValue { value: Some(Value::StringValue(format!("log {id} {i} {filler}"))) };
        let record = |i| LogRecord { body: Some(body(i)), trace_id: vec![9; 16], ..Default::default() };
        Request::logs(id, (0..count).map(record).collect())
    }

    /// Mostly nothing; now and then up to 66 KiB for each record.
    fn filler(&mut self) -> String {
        let len = match self.draws.below(16) {
            0 => 32_000 + self.draws.below(34_000),
            1..4 => self.draws.below(5_000),
            _ => 0,
        };
        let words = (0..len / 16).map(|_| format!("{:016x}", self.draws.next()));
        words.collect()
    }
}
