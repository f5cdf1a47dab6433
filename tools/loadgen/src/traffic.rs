//! The traffic: request `n` as bytes, a pure function of the shape and `n`.
//!
//! Requests are encoded once, as templates with holes, and copied and filled for
//! each use. Nothing here knows of time, connections or what was sent before, so
//! the same seed and shape give the same bytes at any speed and concurrency.
//!
//! Of three requests one has the log records of the cycles whose spans are in the
//! other two. A late span takes the slot of the same place in a later cycle, whose
//! own span there is late by as much: each is sent once.

use crate::piece::{Hole, Piece};
use crate::random::{Random, mix, mix2, within};
use crate::records::{self, SERVICES};
use crate::story::{self, CYCLE_NS, LOGS, SPANS, TRACES};

/// Changes when the bytes of a seed do.
const VERSION: u64 = 1;

/// What templates may take in memory, for each signal.
const TEMPLATE_BYTES_MAX: usize = 48 << 20;

/// What requests carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Signals {
    /// Spans alone.
    Traces,
    /// Log records alone.
    Logs,
    /// Both: of three requests one has log records.
    Both,
}

/// The kind of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Traces,
    Logs,
}

/// All that the bytes depend on.
#[derive(Clone, Debug)]
pub struct Shape {
    pub seed: u64,
    pub signals: Signals,
    /// Records of a request.
    pub batch: u64,
    /// The size of a record, or the median of sizes.
    pub record_bytes: usize,
    /// Standard deviation of the logarithm of sizes; 0: all of one size.
    pub spread: f64,
    /// The share of spans that are late, and by how much, in ns.
    pub late: f64,
    pub late_ns: u64,
    /// The time of the first cycle, in ns since the epoch.
    pub base_ns: u64,
}

/// The place of a record in the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub request: u64,
    pub signal: Signal,
    pub trace_id: [u8; 16],
    /// Its own, or of a log record the one that it belongs to.
    pub span_id: [u8; 8],
}

struct Template {
    bytes: Vec<u8>,
    records: Vec<Filling>,
}

/// Where the holes of one record are.
struct Filling {
    /// Place in the request, counted over the order of the cycle.
    position: u64,
    slot: u8,
    holes: Vec<(u32, Hole)>,
}

/// Traffic of one shape.
pub struct Traffic {
    shape: Shape,
    run: u64,
    late_cycles: u64,
    spans: Vec<Template>,
    logs: Vec<Template>,
    cycle: story::Cycle,
}

impl Traffic {
    /// Encodes the templates.
    pub fn new(shape: Shape) -> Self {
        let numbers = [
            shape.signals as u64,
            shape.batch,
            shape.record_bytes as u64,
            shape.spread.to_bits(),
            shape.late.to_bits(),
            shape.late_ns,
            shape.base_ns,
        ];
        let run = numbers.into_iter().fold(mix2(VERSION, shape.seed), mix2);
        let late_cycles = (shape.late_ns / CYCLE_NS).max(1);
        let mut traffic = Self { shape, run, late_cycles, spans: vec![], logs: vec![], cycle: story::cycle() };
        if traffic.shape.signals != Signals::Logs {
            traffic.spans = traffic.templates(Signal::Traces);
        }
        if traffic.shape.signals != Signals::Traces {
            traffic.logs = traffic.templates(Signal::Logs);
        }
        traffic
    }

    /// The run's name: the start of its trace ids, and `loadgen.run` of its resources.
    pub fn run(&self) -> String {
        format!("{:016x}", self.run)
    }

    /// The trace ids of the run, and of hardly any other, start with this.
    pub fn trace_prefix(&self) -> String {
        format!("{:08x}", (self.run >> 32) as u32)
    }

    /// Records of a request.
    pub fn batch(&self) -> u64 {
        self.shape.batch
    }

    /// As many templates as it takes until a request starts where a cycle does;
    /// more, up to a hundred or so cycles, while there is memory: sizes and texts
    /// differ from one to the next.
    fn templates(&self, signal: Signal) -> Vec<Template> {
        let slots = if signal == Signal::Traces { SPANS } else { LOGS } as u64;
        let period = slots / gcd(slots, self.shape.batch);
        let mut out = Vec::new();
        let mut bytes = 0;
        while out.len() < period as usize || (out.len() as u64 * self.shape.batch) < 128 * slots {
            for _ in 0..period {
                let template = self.template(signal, out.len() as u64, slots);
                bytes += template.bytes.len();
                out.push(template);
            }
            if bytes > TEMPLATE_BYTES_MAX {
                break;
            }
        }
        out
    }

    fn template(&self, signal: Signal, number: u64, slots: u64) -> Template {
        let mut random = Random::new(mix2(self.run ^ signal as u64, number));
        let phase = number * self.shape.batch % slots;
        let mut services: Vec<Vec<(Filling, Piece)>> = SERVICES.iter().map(|_| Vec::new()).collect();
        for position in 0..self.shape.batch {
            let slot = ((phase + position) % slots) as usize;
            let bytes = self.record_bytes(&mut random);
            let (service, piece) = match signal {
                Signal::Traces => {
                    let step = &self.cycle.steps[slot];
                    (records::service(step.trace, step.agent), records::span(step, bytes, &mut random))
                }
                Signal::Logs => {
                    let note = &self.cycle.notes[slot];
                    let expires = self.shape.base_ns / 1_000_000_000 + 10 * 365 * 86_400;
                    (records::AUTHORITY, records::log(note, bytes, expires, &mut random))
                }
            };
            services[service].push((Filling { position, slot: slot as u8, holes: Vec::new() }, piece));
        }
        let mut out = Template { bytes: Vec::new(), records: Vec::new() };
        for (service, records) in services.into_iter().enumerate().filter(|(_, records)| !records.is_empty()) {
            self.put_service(&mut out, service, records);
        }
        out
    }

    fn record_bytes(&self, random: &mut Random) -> usize {
        if self.shape.spread == 0.0 {
            return self.shape.record_bytes;
        }
        let bytes = random.log_normal(self.shape.record_bytes as f64, self.shape.spread) as usize;
        bytes.clamp(records::BYTES_MIN, records::BYTES_MAX)
    }

    /// One `ResourceSpans` or `ResourceLogs`; both have the same fields.
    fn put_service(&self, out: &mut Template, service: usize, records: Vec<(Filling, Piece)>) {
        let name = SERVICES[service];
        let mut resource = Piece::default();
        resource.attribute(1, "service.name", &Piece::of(name));
        resource.attribute(1, "service.instance.id", &Piece::of(&format!("{name}-0")));
        resource.attribute(1, "loadgen.run", &Piece::of(&self.run()));
        let mut scope = Piece::default();
        scope.field(1, &Piece::of("custody-loadgen"));
        scope.field(2, &Piece::of(&VERSION.to_string()));
        let mut scope_records = Piece::default();
        scope_records.field(1, &scope);
        let mut ends = Vec::new();
        let mut fillings = Vec::new();
        for (filling, piece) in records {
            scope_records.field(2, &piece);
            fillings.push(filling);
            ends.push(scope_records.holes.len());
        }
        scope_records.field(3, &Piece::of("https://custody.dev/schemas/1"));
        let mut group = Piece::default();
        group.field(1, &resource);
        group.field(2, &scope_records);
        let mut request = Piece::default();
        request.field(1, &group);
        let at = out.bytes.len();
        let mut holes = request.holes.iter().map(|(offset, hole)| ((at + offset) as u32, *hole));
        let mut taken = 0;
        for (mut filling, end) in fillings.into_iter().zip(ends) {
            filling.holes = holes.by_ref().take(end - taken).collect();
            taken = end;
            out.records.push(filling);
        }
        out.bytes.extend_from_slice(&request.bytes);
    }

    /// Which signal request `n` is of, and which of that signal's requests it is.
    fn place_of(&self, n: u64) -> (Signal, u64) {
        match self.shape.signals {
            Signals::Traces => (Signal::Traces, n),
            Signals::Logs => (Signal::Logs, n),
            Signals::Both => match n % 3 {
                0 => (Signal::Logs, n / 3),
                i => (Signal::Traces, n / 3 * 2 + i - 1),
            },
        }
    }

    /// The kind of request `n`.
    pub fn signal(&self, n: u64) -> Signal {
        self.place_of(n).0
    }

    /// Request `n`, behind as many zero bytes as `ahead` says.
    pub fn request(&self, n: u64, ahead: usize) -> Vec<u8> {
        let (signal, number) = self.place_of(n);
        let (templates, slots) = self.of(signal);
        let template = &templates[(number % templates.len() as u64) as usize];
        let mut out = Vec::with_capacity(ahead + template.bytes.len());
        out.resize(ahead, 0);
        out.extend_from_slice(&template.bytes);
        let body = &mut out[ahead..];
        let mut noise = Random::new(mix2(self.run, n));
        for record in &template.records {
            let cycle = self.cycle_of(signal, (number * self.shape.batch + record.position) / slots, record.slot);
            let own = n * self.shape.batch + record.position;
            for (at, hole) in &record.holes {
                self.fill(&mut body[*at as usize..], *hole, cycle, own, &mut noise);
            }
        }
        out
    }

    fn of(&self, signal: Signal) -> (&[Template], u64) {
        match signal {
            Signal::Traces => (&self.spans, SPANS as u64),
            Signal::Logs => (&self.logs, LOGS as u64),
        }
    }

    /// The cycle that a slot of the cycle `sent` belongs to. Cycles before the run
    /// have numbers too: those of late spans whose traces began before it.
    fn cycle_of(&self, signal: Signal, sent: u64, slot: u8) -> u64 {
        let draw = mix2(self.run ^ u64::from(slot), sent % self.late_cycles);
        let is_late = signal == Signal::Traces && self.shape.late > 0.0 && within(draw, self.shape.late);
        if is_late { sent } else { sent + self.late_cycles }
    }

    fn trace_number(&self, cycle: u64, trace: u8) -> u64 {
        mix((cycle * TRACES + u64::from(trace)) ^ self.run.rotate_left(17))
    }

    fn trace_id(&self, cycle: u64, trace: u8) -> [u8; 16] {
        let number = self.trace_number(cycle, trace);
        let mut id = [0; 16];
        id[..4].copy_from_slice(&((self.run >> 32) as u32).to_be_bytes());
        id[4..8].copy_from_slice(&(mix(number) as u32).to_be_bytes());
        id[8..].copy_from_slice(&number.to_be_bytes());
        id
    }

    fn span_number(&self, cycle: u64, slot: u8) -> u64 {
        // A bijection, so that no two spans of a run share an id.
        mix((cycle * SPANS as u64 + u64::from(slot)) ^ self.run)
    }

    #[inline]
    fn fill(&self, out: &mut [u8], hole: Hole, cycle: u64, own: u64, noise: &mut Random) {
        match hole {
            Hole::TraceId(trace) => out[..16].copy_from_slice(&self.trace_id(cycle, trace)),
            Hole::SpanId(slot) => out[..8].copy_from_slice(&self.span_number(cycle, slot).to_be_bytes()),
            Hole::Time(after) => {
                let base = self.shape.base_ns + cycle * CYCLE_NS - self.late_cycles * CYCLE_NS;
                out[..8].copy_from_slice(&(base + after).to_le_bytes());
            }
            Hole::TraceHex(trace) => put_hex(out, self.trace_number(cycle, trace)),
            Hole::ConversationHex(trace) => put_hex(out, mix2(self.run, cycle / 4 * TRACES + u64::from(trace))),
            Hole::SpanHex(slot) => put_hex(out, self.span_number(cycle, slot)),
            Hole::Record => put_decimal(&mut out[..15], own),
            Hole::Noise => put_hex(out, noise.number()),
        }
    }

    /// Where a record is, for people who look for it.
    pub fn place(&self, record: u64) -> Place {
        let (n, position) = (record / self.shape.batch, record % self.shape.batch);
        let (signal, number) = self.place_of(n);
        let (_, slots) = self.of(signal);
        let index = number * self.shape.batch + position;
        let (slot, cycle) = ((index % slots) as usize, index / slots);
        let cycle = self.cycle_of(signal, cycle, slot as u8);
        let (trace, span) = match signal {
            Signal::Traces => (self.cycle.steps[slot].trace, slot as u8),
            Signal::Logs => (self.cycle.notes[slot].trace, self.cycle.notes[slot].slot),
        };
        let span_id = self.span_number(cycle, span).to_be_bytes();
        Place { request: n, signal, trace_id: self.trace_id(cycle, trace), span_id }
    }
}

/// 16 lowercase hex digits.
fn put_hex(out: &mut [u8], number: u64) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (two, byte) in out[..16].chunks_exact_mut(2).zip(number.to_be_bytes()) {
        two[0] = DIGITS[usize::from(byte >> 4)];
        two[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// Decimal digits, zeros in front.
fn put_decimal(out: &mut [u8], mut number: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
