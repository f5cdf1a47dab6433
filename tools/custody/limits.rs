//! The flags and settings of admission: what a client may send, how much, how fast.
//!
//! One struct is both the flags and the table `[limits]` of the configuration file, so
//! that no limit can be in one and not in the other. docs/operations.md has the table.

use std::time::Duration;

use clap::Args;
use custody_ingest::{Config, ConnectionLimits, InFlight};
use custody_proto::Limits;
use serde::Deserialize;

use crate::Failure;

/// What of the limits is set.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Limits")]
pub struct LimitFlags {
    /// Most records in one request [default: 524288].
    #[arg(long, value_name = "N")]
    request_records_max: Option<usize>,
    /// Most bytes of a request's records with the resource and scope of each [default: 268435456].
    #[arg(long, value_name = "BYTES")]
    request_expanded_bytes_max: Option<u64>,
    /// Largest record, resource or scope in bytes [default: 33554432].
    #[arg(long, value_name = "BYTES")]
    record_bytes_max: Option<usize>,
    /// Most values (attributes, list elements, events, links, points) in a record [default: 262144].
    #[arg(long, value_name = "N")]
    record_values_max: Option<usize>,
    /// Most requests under way, over all clients [default: 8192].
    #[arg(long, value_name = "N")]
    requests_max: Option<u64>,
    /// The part of --requests-max and --in-flight-bytes-max, in percent, that one client may have while no
    /// other has anything [default: 75].
    #[arg(long, value_name = "PERCENT")]
    client_share: Option<u64>,
    /// Most connections to the OTLP receivers, and to the HTTP API and Flight SQL [default: 4096].
    #[arg(long, value_name = "N")]
    connections_max: Option<usize>,
    /// Most connections from one address [default: 1024].
    #[arg(long, value_name = "N")]
    connections_per_peer_max: Option<usize>,
    /// Most concurrent requests on one HTTP/2 connection [default: 256].
    #[arg(long, value_name = "N")]
    streams_max: Option<u32>,
    /// Most bytes of a request's headers [default: 65536].
    #[arg(long, value_name = "BYTES")]
    header_bytes_max: Option<u32>,
    /// Most headers of a request [default: 100].
    #[arg(long, value_name = "N")]
    headers_max: Option<usize>,
    /// A connection is closed when a request's headers do not come within this [default: 10].
    #[arg(long, value_name = "SECONDS")]
    header_timeout: Option<f64>,
    /// A request is refused when its body is silent for this long [default: 30].
    #[arg(long, value_name = "SECONDS")]
    body_timeout: Option<f64>,
    /// ... or takes longer than that and a second for each so many bytes [default: 8192].
    #[arg(long, value_name = "BYTES")]
    body_rate_min: Option<u64>,
    /// A connection without requests is closed after this [default: 300].
    #[arg(long, value_name = "SECONDS")]
    idle_timeout: Option<f64>,
    /// A connection whose client takes nothing of an answer for this long is closed [default: 60].
    #[arg(long, value_name = "SECONDS")]
    write_timeout: Option<f64>,
    /// HTTP/2 pings and TCP keep-alive probes are sent this often [default: 30].
    #[arg(long, value_name = "SECONDS")]
    keep_alive_interval: Option<f64>,
    /// A connection is closed when a ping is not answered within this [default: 20].
    #[arg(long, value_name = "SECONDS")]
    keep_alive_timeout: Option<f64>,
    /// A stopping server waits this long for requests that have begun [default: 10].
    #[arg(long, value_name = "SECONDS")]
    drain_timeout: Option<f64>,
    /// While queries see records later than this after their acknowledgement, requests are taken more slowly, by
    /// at most five times, until they see them sooner [default: 1]; 0 never.
    #[arg(long, value_name = "SECONDS")]
    freshness: Option<f64>,
}

/// Says which of two is set; the flag wins.
macro_rules! either {
    ($flags:ident, $file:ident, [$($name:ident),* $(,)?]) => {
        LimitFlags { $($name: $flags.$name.or($file.$name)),* }
    };
}

impl LimitFlags {
    /// These, and where they are silent those of the file.
    pub fn or(self, file: Self) -> Self {
        either!(
            self,
            file,
            [
                request_records_max,
                request_expanded_bytes_max,
                record_bytes_max,
                record_values_max,
                requests_max,
                client_share,
                connections_max,
                connections_per_peer_max,
                streams_max,
                header_bytes_max,
                headers_max,
                header_timeout,
                body_timeout,
                body_rate_min,
                idle_timeout,
                write_timeout,
                keep_alive_interval,
                keep_alive_timeout,
                drain_timeout,
                freshness,
            ]
        )
    }

    /// Puts them into the receivers' configuration.
    pub fn apply(&self, config: &mut Config) -> Result<(), Failure> {
        self.records(&mut config.limits)?;
        self.in_flight(&mut config.in_flight)?;
        set_time("--drain-timeout", self.drain_timeout, &mut config.drain_timeout)?;
        config.connections = self.connections(open_files())?;
        Ok(())
    }

    /// How late queries may see records before requests are slowed down; `None` if it does not matter.
    pub fn freshness(&self) -> Result<Option<Duration>, Failure> {
        let mut freshness = Duration::from_secs(1);
        if self.freshness == Some(0.0) {
            return Ok(None);
        }
        set_time("--freshness", self.freshness, &mut freshness)?;
        Ok(Some(freshness))
    }

    fn records(&self, limits: &mut Limits) -> Result<(), Failure> {
        set("--request-records-max", self.request_records_max, &mut limits.records_max)?;
        set("--request-expanded-bytes-max", self.request_expanded_bytes_max, &mut limits.expanded_bytes_max)?;
        set("--record-bytes-max", self.record_bytes_max, &mut limits.record_bytes_max)?;
        set("--record-values-max", self.record_values_max, &mut limits.record_values_max)
    }

    fn in_flight(&self, limits: &mut InFlight) -> Result<(), Failure> {
        set("--requests-max", self.requests_max, &mut limits.requests_max)?;
        set("--body-rate-min", self.body_rate_min, &mut limits.body_rate_min)?;
        set_time("--body-timeout", self.body_timeout, &mut limits.body_timeout)?;
        set("--client-share", self.client_share, &mut limits.client_share)?;
        if limits.client_share > 100 {
            return Err(Failure::unable(format!("--client-share {} is more than 100 percent", limits.client_share)));
        }
        Ok(())
    }

    /// The limits of connections, of which no more are taken than the process may have files open.
    pub fn connections(&self, open_files: Option<usize>) -> Result<ConnectionLimits, Failure> {
        let mut limits = ConnectionLimits::default();
        set("--connections-max", self.connections_max, &mut limits.connections_max)?;
        set("--connections-per-peer-max", self.connections_per_peer_max, &mut limits.connections_per_peer_max)?;
        set("--streams-max", self.streams_max, &mut limits.streams_max)?;
        set("--header-bytes-max", self.header_bytes_max, &mut limits.header_bytes_max)?;
        set("--headers-max", self.headers_max, &mut limits.headers_max)?;
        at_most("--headers-max", limits.headers_max, HEADERS_MAX)?;
        set_time("--header-timeout", self.header_timeout, &mut limits.header_timeout)?;
        set_time("--idle-timeout", self.idle_timeout, &mut limits.idle_timeout)?;
        set_time("--write-timeout", self.write_timeout, &mut limits.write_timeout)?;
        set_time("--keep-alive-interval", self.keep_alive_interval, &mut limits.keep_alive_interval)?;
        set_time("--keep-alive-timeout", self.keep_alive_timeout, &mut limits.keep_alive_timeout)?;
        // Two doors take a quarter each: the rest is for the log, whose failure to open a file would stop the server.
        if let Some(files) = open_files
            && limits.connections_max > files / 4
        {
            if self.connections_max.is_some() {
                tracing::warn!(
                    files,
                    taken = files / 4,
                    "--connections-max is more than the open files (ulimit -n) allow"
                );
            }
            limits.connections_max = (files / 4).max(1);
        }
        Ok(limits)
    }
}

/// More header fields than this cannot be kept (the `http` crate's own bound is 24,576).
const HEADERS_MAX: usize = 24_000;

/// A message of gRPC, and a place in a request, has 32 bits for its length.
const REQUEST_BYTES_MAX: usize = u32::MAX as usize - 16;

/// The size of a request, within what its formats can tell.
pub fn set_request_bytes(value: Option<usize>, place: &mut usize) -> Result<(), Failure> {
    set("--request-bytes-max", value, place)?;
    at_most("--request-bytes-max", *place, REQUEST_BYTES_MAX)
}

fn at_most(flag: &str, value: usize, max: usize) -> Result<(), Failure> {
    if value > max {
        return Err(Failure::unable(format!("{flag} {value} is more than {max}, which is the most there can be")));
    }
    Ok(())
}

/// Sets what is given.
pub fn set<T: Copy + PartialOrd + From<u8>>(flag: &str, value: Option<T>, place: &mut T) -> Result<(), Failure> {
    let Some(value) = value else { return Ok(()) };
    if value < T::from(1) {
        return Err(Failure::unable(format!("{flag} 0 would let nothing in; give at least 1")));
    }
    *place = value;
    Ok(())
}

fn set_time(flag: &str, seconds: Option<f64>, place: &mut Duration) -> Result<(), Failure> {
    let Some(seconds) = seconds else { return Ok(()) };
    if !(0.01..=86_400.0).contains(&seconds) {
        return Err(Failure::unable(format!("{flag} {seconds} is not between 0.01 and 86400 seconds")));
    }
    *place = Duration::from_secs_f64(seconds);
    Ok(())
}

/// How many files this process may have open, where the kernel says so.
pub fn open_files() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_log() {
        let taken = |files| LimitFlags::default().connections(files).ok().map(|limits| limits.connections_max);
        assert_eq!(taken(Some(1024)), Some(256));
        assert_eq!(taken(Some(1 << 20)), Some(4096));
        assert_eq!(taken(None), Some(4096));
    }

    #[test]
    fn what_no_request_could_have_is_refused() {
        for (size, mend) in [(0, "give at least 1"), (usize::MAX, "is more than 4294967279")] {
            let refused = set_request_bytes(Some(size), &mut 0).expect_err("it is refused");
            assert!(refused.message.contains(mend) && refused.message.contains("--request-bytes-max"));
        }
        let mut taken = 7;
        set_request_bytes(Some(1 << 30), &mut taken).expect("it is taken");
        set_request_bytes(None, &mut taken).expect("it stays");
        assert_eq!(taken, 1 << 30);
        let many = LimitFlags { headers_max: Some(30_000), ..LimitFlags::default() };
        assert!(many.connections(None).expect_err("it is refused").message.contains("--headers-max 30000"));
    }
}
