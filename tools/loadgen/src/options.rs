//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use http::HeaderValue;

use crate::records::{BYTES_MAX, BYTES_MIN};
use crate::traffic::{Shape, Signals};

/// Send the traffic of agents over OTLP, measure, and check that a ledger has it exactly once.
///
/// Trees of agents, model calls, retrievals and tool calls, with the grants under which they act, from several
/// services, as spans and log records; some spans late, some requests sent twice. The same seed and options give the
/// same bytes. Latency is measured until the acknowledgement: in a closed loop (--concurrency) from the first attempt,
/// in an open loop (--rate, --steps) from the time at which the request was due, so that a server that stalls is
/// charged for all who wait.
///
/// Exit status: 0 all acknowledged records are in the ledger exactly once (or, without --check, something was
/// acknowledged); 1 some are missing or doubled, and named; 2 could not tell.
#[derive(Clone, Debug, Parser)]
#[command(name = "custody-loadgen", version, after_help = EXAMPLES)]
pub struct Options {
    /// Where to send: a URL with a port, such as http://127.0.0.1:4317 [default: 127.0.0.1, on the protocol's port].
    #[arg(long, value_name = "URL")]
    pub target: Option<String>,
    /// OTLP over gRPC, or over HTTP with protobuf bodies.
    #[arg(long, value_enum, default_value_t = Protocol::Grpc)]
    pub protocol: Protocol,
    /// Compress requests.
    #[arg(long)]
    pub gzip: bool,
    /// Send `Authorization: Bearer TOKEN`; @FILE reads the token from a file.
    #[arg(long, value_name = "TOKEN")]
    pub bearer: Option<String>,
    /// Connections over which gRPC requests are spread; over HTTP each request under way has one.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub connections: u16,

    /// Closed loop: so many requests under way at once [default: 8].
    #[arg(long, value_name = "N", conflicts_with_all = ["rate", "steps"], value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub concurrency: Option<u16>,
    /// Open loop: records a second, such as 50k.
    #[arg(long, value_name = "RATE", value_parser = rate, conflicts_with = "steps")]
    pub rate: Option<f64>,
    /// Open loop in steps: records a second, such as 10k,50k,100k.
    #[arg(long, value_name = "RATES", value_parser = rate, value_delimiter = ',')]
    pub steps: Vec<f64>,
    /// How long each of the steps lasts.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    pub step_seconds: f64,
    /// How long to send: 30s, 5m, 1h [default: 10s, unless there is --count].
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "steps")]
    pub duration: Option<Duration>,
    /// How many records to send (rounded up to whole requests).
    #[arg(long, value_name = "N", value_parser = count, conflicts_with = "steps")]
    pub count: Option<u64>,
    /// Open loop: most requests under way at once; more that are due wait, and the wait is counted.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub max_in_flight: u16,

    /// Records of each request.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub batch: u64,
    /// The encoded size of a record: the median, or all of them with --spread 0.
    #[arg(long, value_name = "BYTES", default_value_t = 500, value_parser = record_bytes)]
    pub payload_bytes: usize,
    /// How far sizes spread: the standard deviation of their logarithm (log-normal); 0: all alike.
    #[arg(long, value_name = "SIGMA", default_value_t = 1.0, value_parser = spread)]
    pub spread: f64,
    /// Spans, log records, or both: two requests of spans for one of log records.
    #[arg(long, value_enum, default_value_t = Signals::Both)]
    pub signals: Signals,
    /// The seed of all that is random.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// The time of the first span in seconds since the epoch; a thousand spans are a second.
    #[arg(long, value_name = "SECONDS", default_value_t = 1_767_225_600, value_parser = clap::value_parser!(u64).range(100_000_000..=5_000_000_000))]
    pub base_time: u64,
    /// The share of spans that come late.
    #[arg(long, value_name = "SHARE", default_value_t = 0.02, value_parser = share)]
    pub late: f64,
    /// How much later than the rest of its trace a late span comes, in the time of the spans.
    #[arg(long, value_name = "TIME", default_value = "3m", value_parser = duration)]
    pub late_by: Duration,
    /// The share of requests that are sent twice, as after a lost acknowledgement.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = share)]
    pub resend: f64,

    /// Give up an attempt after this long.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub timeout: Duration,
    /// Give up a request after trying it for this long.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub retry_for: Duration,
    /// Threads that make and send requests.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub threads: u8,

    /// Have so many readers of the ledger's events meanwhile: a run for each number, such as 0,100.
    ///
    /// They follow by pages with long polls, by server-sent events, or over gRPC (--readers-by). Each must see every
    /// event that the ledger took since it began, once and in order.
    #[arg(long, value_name = "N,...", value_delimiter = ',', conflicts_with = "steps", value_parser = clap::value_parser!(u16).range(0..=10_000))]
    pub readers: Vec<u16>,
    /// The share of readers that are slow: they take a thousand events a second, and no more.
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share, requires = "readers")]
    pub slow: f64,
    /// How readers read, as many of them by each of these ways.
    #[arg(
        long,
        value_name = "WAY,...",
        value_enum,
        value_delimiter = ',',
        default_value = "pages,sse",
        requires = "readers"
    )]
    pub readers_by: Vec<ReaderWay>,
    /// What readers take: pages, streams and messages compressed so, or as they are.
    ///
    /// A stream of server-sent events comes as gzip with zstd, too. What one reader has inflated and looked at, another one
    /// that is given the very same bytes does not look at again; each looks at whether it joins with what he has.
    #[arg(long, value_name = "CODING", value_enum, default_value = "zstd", requires = "readers")]
    pub readers_encoding: ReaderEncoding,
    /// Readers ask for events of these kinds alone.
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', value_parser = kind, requires = "readers")]
    pub reader_kinds: Vec<String>,
    /// The HTTP API that readers ask [default: that of --check, else http://127.0.0.1:4680].
    #[arg(long, value_name = "URL", requires = "readers")]
    pub events: Option<String>,

    /// Ask the HTTP API of this ledger whether every acknowledged record is there exactly once.
    #[arg(long, value_name = "URL")]
    pub check: Option<String>,
    /// How long records may take to become visible to queries.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub check_wait: Duration,
    /// Read CPU time and memory of the server, a process on this machine.
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// Write the result as JSON; - is standard output.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Send nothing: make the requests, and print how fast, and a digest of their bytes.
    #[arg(long)]
    pub dry_run: bool,
}

const EXAMPLES: &str = "Examples:
  custody-loadgen --check http://127.0.0.1:4680
  custody-loadgen --steps 10k,50k,100k --step-seconds 30 --server-pid PID --json -
  custody-loadgen --protocol http --gzip --concurrency 16 --duration 5m
  custody-loadgen --rate 20k --duration 60s --readers 0,100,0,100 --check http://127.0.0.1:4680
  custody-loadgen --signals traces --payload-bytes 2048 --spread 0 --batch 1 --rate 2k
  custody-loadgen --dry-run --count 5m --payload-bytes 500 --spread 0";

/// How OTLP is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    Grpc,
    Http,
}

/// How a reader reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum ReaderWay {
    /// Pages, with long polls.
    Pages,
    /// A stream of server-sent events.
    Sse,
    /// A stream of gRPC messages.
    Grpc,
}

impl ReaderWay {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pages => "pages",
            Self::Sse => "sse",
            Self::Grpc => "grpc",
        }
    }
}

/// What a reader takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReaderEncoding {
    /// zstd, or gzip where there is no zstd.
    Zstd,
    /// gzip.
    Gzip,
    /// As it is.
    Identity,
}

impl ReaderEncoding {
    /// The value of `Accept-Encoding`.
    pub fn of_pages(self) -> &'static str {
        match self {
            Self::Zstd => "zstd, gzip;q=0.5",
            Self::Gzip => "gzip",
            Self::Identity => "identity",
        }
    }

    /// The value of `grpc-accept-encoding`.
    pub fn of_calls(self) -> Option<&'static str> {
        match self {
            Self::Zstd => Some("zstd,gzip,identity"),
            Self::Gzip => Some("gzip,identity"),
            Self::Identity => None,
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Identity => "identity",
        }
    }
}

impl Options {
    /// What the bytes depend on.
    pub fn shape(&self) -> Shape {
        Shape {
            seed: self.seed,
            signals: self.signals,
            batch: self.batch,
            record_bytes: self.payload_bytes,
            spread: self.spread,
            late: self.late,
            late_ns: self.late_by.as_nanos() as u64,
            base_ns: self.base_time * 1_000_000_000,
        }
    }

    /// The steps: a rate, or none in a closed loop; and how many readers, if they are measured.
    pub fn step_plan(&self) -> Vec<(Option<f64>, Option<u16>)> {
        match (self.readers.is_empty(), self.steps.is_empty()) {
            (false, _) => self.readers.iter().map(|readers| (self.rate, Some(*readers))).collect(),
            (true, true) => vec![(self.rate, None)],
            (true, false) => self.steps.iter().map(|rate| (Some(*rate), None)).collect(),
        }
    }

    /// Whether requests are sent when they are due.
    pub fn is_open_loop(&self) -> bool {
        self.rate.is_some() || !self.steps.is_empty()
    }

    /// Where readers ask.
    pub fn events_url(&self) -> String {
        self.events.clone().or_else(|| self.check.clone()).unwrap_or_else(|| "http://127.0.0.1:4680".into())
    }

    /// The value of `Authorization`.
    pub fn bearer(&self) -> Result<Option<HeaderValue>, String> {
        let Some(token) = &self.bearer else { return Ok(None) };
        let token = match token.strip_prefix('@') {
            Some(path) => std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?,
            None => token.clone(),
        };
        let value = HeaderValue::from_str(&format!("Bearer {}", token.trim()));
        value.map(Some).map_err(|_| "the token is not text".into())
    }

    /// How long a step lasts at most.
    pub fn step_time(&self) -> Option<Duration> {
        if !self.steps.is_empty() {
            return Some(Duration::from_secs_f64(self.step_seconds.clamp(0.01, 1e6)));
        }
        self.duration.or(self.count.is_none().then_some(Duration::from_secs(10)))
    }

    /// Requests under way at once.
    pub fn in_flight(&self) -> u16 {
        match self.is_open_loop() {
            true => self.max_in_flight,
            false => self.concurrency.unwrap_or(8),
        }
    }
}

/// A number with k, m or g behind it.
fn scaled(text: &str) -> Option<f64> {
    let text = text.trim().to_ascii_lowercase();
    let (digits, scale) = match text.strip_suffix(['k', 'm', 'g']) {
        Some(digits) if text.ends_with('k') => (digits, 1e3),
        Some(digits) if text.ends_with('m') => (digits, 1e6),
        Some(digits) => (digits, 1e9),
        None => (text.as_str(), 1.0),
    };
    digits.parse().ok().map(|n: f64| n * scale).filter(|n| n.is_finite())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = scaled(text).filter(|rate| (0.001..=1e9).contains(rate));
    rate.ok_or_else(|| "a rate is records a second, such as 500, 10k or 1.5m".into())
}

fn count(text: &str) -> Result<u64, String> {
    let count = scaled(text).filter(|n| (1.0..=1e12).contains(n));
    count.map(|n| n as u64).ok_or_else(|| "a count is a number, such as 5000, 10k or 5m (million)".into())
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => 0.0,
    };
    let seconds = digits.parse().ok().map(|n: f64| n * unit).filter(|s| (0.001..=1e6).contains(s));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "a time has a unit: 500ms, 30s, 5m or 1h".into())
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share is a number from 0 to 1".into())
}

/// It becomes part of a URL and of a query.
fn kind(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    is_name.then(|| text.to_owned()).ok_or_else(|| "a kind is a name such as alert or grant_denied".into())
}

fn spread(text: &str) -> Result<f64, String> {
    let spread = text.parse().ok().filter(|spread| (0.0..=3.0).contains(spread));
    spread.ok_or_else(|| "a spread is a number from 0 to 3".into())
}

fn record_bytes(text: &str) -> Result<usize, String> {
    let bytes = text.parse().ok().filter(|bytes| (BYTES_MIN..=BYTES_MAX).contains(bytes));
    bytes.ok_or_else(|| format!("a record has {BYTES_MIN} to {BYTES_MAX} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_times_are_read_as_people_write_them() {
        assert_eq!((rate("10k"), rate("1.5M"), rate("250")), (Ok(10e3), Ok(1.5e6), Ok(250.0)));
        assert!(rate("fast").is_err() && rate("-1").is_err() && rate("nan").is_err());
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert!(duration("30").is_err() && duration("").is_err() && duration("0s").is_err());
        assert_eq!(count("5m"), Ok(5_000_000));
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Options::command().debug_assert();
    }
}
