//! Asks the ledger whether every acknowledged record is there exactly once.
//!
//! Each record carries its number. The ledger is read in pages of seqs; a page's
//! answer says which numbers of each 32 are in it, and how many rows they have.
//! What is kept here is a bit a record, so that the answer is exact: missing and
//! doubled records are named, whatever their order.

use std::time::{Duration, Instant};

use http::HeaderValue;
use serde_json::json;

use crate::acked::Bits;
use crate::traffic::{Signal, Traffic};

/// Seqs of a page: no answer has more rows, and so many rows the API gives.
const PAGE: u64 = 1_000_000;

/// How many missing and doubled records are named.
const NAMED: usize = 10;

/// What the ledger has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Records that were acknowledged, and are asked for.
    pub acknowledged: u64,
    /// How many of them are there.
    pub present: u64,
    pub missing: u64,
    /// Records of the run, acknowledged or not, that are there more than once.
    pub doubled: u64,
    /// Records that were sent, not acknowledged, and are there: allowed, once.
    pub unacknowledged_present: u64,
    /// The first missing and doubled ones, in words.
    pub named: Vec<String>,
    /// The size of the log that was looked at.
    pub log_size: u64,
    pub seconds: f64,
}

/// The records that were found, each as a bit.
#[derive(Debug, Default)]
struct Seen {
    once: Bits,
    twice: Bits,
    /// Groups of 32 in which the rows are more than the records, in one page.
    crowded: Vec<u64>,
}

impl Seen {
    /// Takes a row: of the records `32 * word ..`, those in `bits` have `rows` rows.
    fn row(&mut self, word: u64, rows: u64, bits: u64) {
        for bit in (0..32).filter(|bit| bits & (1 << bit) != 0) {
            if self.once.insert(word * 32 + bit) {
                self.twice.insert(word * 32 + bit);
            }
        }
        if rows > u64::from(bits.count_ones()) {
            self.crowded.push(word);
        }
    }

    fn weigh(&self, traffic: &Traffic, sent: u64, acked: &Bits) -> Found {
        let mut found = Found { doubled: self.twice.len(), ..Found::default() };
        for n in 0..sent {
            let records = n * traffic.batch()..(n + 1) * traffic.batch();
            let present = records.clone().filter(|record| self.once.contains(*record)).count() as u64;
            if !acked.contains(n) {
                found.unacknowledged_present += present;
                continue;
            }
            found.acknowledged += traffic.batch();
            found.present += present;
            for record in records.filter(|record| !self.once.contains(*record)) {
                found.missing += 1;
                if found.named.len() < NAMED {
                    found.named.push(format!("missing: {}", name(traffic, record)));
                }
            }
        }
        let doubled = (0..sent * traffic.batch()).filter(|record| self.twice.contains(*record));
        found.named.extend(doubled.take(NAMED).map(|record| format!("doubled: {}", name(traffic, record))));
        found
    }
}

/// A record in words that help to look for it.
fn name(traffic: &Traffic, record: u64) -> String {
    let place = traffic.place(record);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (trace, span) = (hex(&place.trace_id), hex(&place.span_id));
    let what = match place.signal {
        Signal::Traces => format!("span {span}"),
        Signal::Logs => format!("log record of span {span}"),
    };
    format!("record {record}, a {what} in trace {trace}, sent in request {}", place.request)
}

/// Looks for everything; an error when that is not possible.
pub fn check(api: &Api, traffic: &Traffic, sent: u64, acked: &Bits, wait: Duration) -> Result<Found, String> {
    if acked.len() == 0 {
        return Err("nothing was acknowledged, so there is nothing to look for".into());
    }
    let start = Instant::now();
    let log_size = api.wait(start + wait)?;
    let mut seen = Seen::default();
    for from in (0..log_size).step_by(PAGE as usize) {
        for table in ["spans", "logs"] {
            api.page(table, from..log_size.min(from + PAGE), traffic, sent, &mut seen)?;
        }
    }
    for word in std::mem::take(&mut seen.crowded) {
        for table in ["spans", "logs"] {
            api.crowd(table, word, traffic, &mut seen)?;
        }
    }
    let found = seen.weigh(traffic, sent, acked);
    Ok(Found { log_size, seconds: start.elapsed().as_secs_f64(), ..found })
}

/// The number that a record carries.
const RECORD: &str = "TRY_CAST(json_get_str(attributes, 'loadgen.record') AS BIGINT)";

/// The HTTP API of the ledger.
pub struct Api {
    url: String,
    agent: ureq::Agent,
    bearer: Option<HeaderValue>,
    patience: Duration,
}

/// Between two tries to reach it.
const PAUSE: Duration = Duration::from_millis(200);

impl Api {
    /// At this URL, with this value of `Authorization`. It may be away for as long as `patience`.
    pub fn new(url: &str, bearer: Option<HeaderValue>, patience: Duration) -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let agent = config.timeout_global(Some(Duration::from_secs(660))).build().new_agent();
        Self { url: url.trim_end_matches('/').to_owned(), agent, bearer, patience }
    }

    /// Whether it is there and can be asked: better known before a run than after it.
    pub fn answers(&self) -> Result<(), String> {
        match self.url.starts_with("http://") || self.url.starts_with("https://") {
            true => self.sizes(None).map(drop).map_err(|e| format!("--check: {e}")),
            false => Err(format!("--check {}: give a URL, such as http://127.0.0.1:4680", self.url)),
        }
    }

    /// Waits until queries see all that is in the log now; gives its size.
    pub fn wait(&self, until: Instant) -> Result<u64, String> {
        let mut size = None;
        loop {
            let lagging = match self.sizes(size) {
                Ok((size, visible)) if visible >= size => return Ok(size),
                Ok((now, visible)) => {
                    size = Some(now);
                    format!("queries see {visible} of the {now} records of the log")
                }
                Err(error) => error,
            };
            if Instant::now() > until {
                return Err(lagging);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The size of the log, once known, and how much of it queries see.
    fn sizes(&self, size: Option<u64>) -> Result<(u64, u64), String> {
        let size = match size {
            Some(size) => size,
            None => {
                let request = self.agent.get(format!("{}/metrics", self.url));
                let metrics = self.read(self.authorized(request).call())?.0;
                let value = metrics.lines().find_map(|line| line.strip_prefix("custody_log_records "));
                let value = value.and_then(|v| v.trim().parse().ok());
                value.ok_or_else(|| format!("{}/metrics does not say the size of a log", self.url))?
            }
        };
        Ok((size, self.sql("SELECT 1")?.1))
    }

    fn page(
        &self,
        table: &str,
        seqs: std::ops::Range<u64>,
        traffic: &Traffic,
        sent: u64,
        seen: &mut Seen,
    ) -> Result<(), String> {
        let sql = format!(
            "SELECT record / 32 AS word, count(*) AS n, bit_or(CAST(1 AS BIGINT) << (record % 32)) AS bits \
             FROM (SELECT {RECORD} AS record FROM {table} WHERE seq >= {} AND seq < {} AND {}) \
             WHERE record >= 0 AND record < {} GROUP BY 1",
            seqs.start,
            seqs.end,
            of_run(traffic),
            sent * traffic.batch(),
        );
        for row in self.rows(&sql)? {
            let [word, rows, bits] = row[..] else { return Err("the answer does not have three columns".into()) };
            seen.row(word, rows, bits);
        }
        Ok(())
    }

    /// Which of 32 records are there more than once.
    fn crowd(&self, table: &str, word: u64, traffic: &Traffic, seen: &mut Seen) -> Result<(), String> {
        let sql = format!(
            "SELECT record, count(*) AS n FROM (SELECT {RECORD} AS record FROM {table} WHERE {}) \
             WHERE record / 32 = {word} GROUP BY 1 HAVING count(*) > 1",
            of_run(traffic)
        );
        for row in self.rows(&sql)? {
            seen.twice.insert(row[0]);
        }
        Ok(())
    }

    fn rows(&self, sql: &str) -> Result<Vec<Vec<u64>>, String> {
        // A server that is started again meanwhile has lost nothing.
        let until = Instant::now() + self.patience;
        let text = loop {
            match self.sql(sql) {
                Err(_) if Instant::now() < until && self.sizes(None).is_err() => std::thread::sleep(PAUSE),
                answer => break answer?.0,
            }
        };
        let number = |cell: &str| cell.parse::<u64>().map_err(|_| format!("the answer has {cell} for a number"));
        text.lines().skip(1).map(|line| line.split(',').map(number).collect()).collect()
    }

    /// The answer as CSV, and the size of the log that it is about.
    pub fn sql(&self, sql: &str) -> Result<(String, u64), String> {
        let ask =
            json!({"sql": sql, "format": "csv", "max_rows": PAGE, "timeout_ms": 600_000, "stream": false}).to_string();
        let request = self.agent.post(format!("{}/api/v1/sql", self.url)).header("Content-Type", "application/json");
        let (text, headers) = self.read(self.authorized(request).send(ask.as_bytes()))?;
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if header("x-truncated") != Some("false") {
            return Err("the API does not say that its answer is whole".into());
        }
        let size = header("x-log-size").and_then(|size| size.parse().ok());
        Ok((text, size.ok_or("the API does not say what its answer is about")?))
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.bearer {
            Some(bearer) => request.header("Authorization", bearer.clone()),
            None => request,
        }
    }

    fn read(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<(String, http::HeaderMap), String> {
        let answer = answer.map_err(|e| format!("{} does not answer: {e}", self.url))?;
        let (parts, body) = answer.into_parts();
        let text = body.into_with_config().limit(u64::MAX).read_to_string();
        let text = text.map_err(|e| format!("{} broke off: {e}", self.url))?;
        if !parts.status.is_success() {
            return Err(format!("{} answers {}: {}", self.url, parts.status, text.trim()));
        }
        Ok((text, parts.headers))
    }
}

/// Records of this run: the prefix is quick, the name is sure.
fn of_run(traffic: &Traffic) -> String {
    format!(
        "starts_with(trace_id, '{}') AND json_get_str(resource, 'loadgen.run') = '{}'",
        traffic.trace_prefix(),
        traffic.run()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::{Shape, Signals};

    fn traffic() -> Traffic {
        Traffic::new(Shape {
            seed: 1,
            signals: Signals::Both,
            batch: 10,
            record_bytes: 300,
            spread: 0.0,
            late: 0.0,
            late_ns: 0,
            base_ns: 0,
        })
    }

    fn seen(records: impl Iterator<Item = u64>) -> Seen {
        let mut seen = Seen::default();
        records.for_each(|record| seen.row(record / 32, 1, 1 << (record % 32)));
        seen
    }

    #[test]
    fn all_there_once_is_all_there_once() {
        let mut acked = Bits::default();
        (0..10).for_each(|n| assert!(!acked.insert(n)));
        let found = seen(0..100).weigh(&traffic(), 10, &acked);
        assert_eq!((found.acknowledged, found.present, found.missing, found.doubled), (100, 100, 0, 0));
        assert!(found.named.is_empty());
    }

    #[test]
    fn one_missing_and_one_doubled_do_not_make_up_for_each_other() {
        let mut acked = Bits::default();
        [0, 2].into_iter().for_each(|n| assert!(!acked.insert(n)));
        let there = (0..30).filter(|record| *record != 25).chain([24, 13]);
        let found = seen(there).weigh(&traffic(), 3, &acked);
        assert_eq!((found.acknowledged, found.present, found.missing), (20, 19, 1));
        assert_eq!((found.doubled, found.unacknowledged_present), (2, 10));
        let names = ["missing: record 25,", "doubled: record 13,", "doubled: record 24,"];
        for (named, expected) in found.named.iter().zip(names) {
            assert!(named.starts_with(expected), "{named}");
        }
        assert!(found.named[0].ends_with("sent in request 2"), "{}", found.named[0]);
    }

    #[test]
    fn rows_beyond_the_records_of_a_page_are_looked_at_again() {
        let mut seen = Seen::default();
        seen.row(3, 3, 0b101);
        seen.row(4, 2, 0b101);
        assert_eq!(seen.crowded, [3]);
        assert_eq!(seen.twice.len(), 0);
    }
}
