//! The flags and settings of the events API: how often it may be asked, and where events are exported to.
//!
//! One struct is both the flags and the table `[events]` of the configuration file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use custody_ingest::Sequencer;
use custody_query::serve::Served;
use custody_query::serve::events::{Consumers, Events, Export, Format, PAGES_PER_MINUTE, Signer};
use custody_query::{Error, ErrorKind};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::Deserialize;
use std::sync::Arc;

use crate::Failure;

/// What of the events API is set.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Events")]
pub struct EventFlags {
    /// Requests for events of one caller in a minute; above it he is told to come again
    /// [default: 6000].
    #[arg(long, value_name = "N")]
    event_requests_per_minute: Option<u32>,
    /// Write events to this directory, gzipped, with a signed digest for each period
    /// (docs/events.md) [default: none].
    #[arg(long, value_name = "DIR")]
    export_events_dir: Option<PathBuf>,
    /// Put them into an object store instead, s3://BUCKET/PREFIX. Credentials and region are those of
    /// the environment: AWS_ACCESS_KEY_ID, AWS_REGION and so on (docs/events.md).
    #[arg(long, value_name = "PLACE", conflicts_with = "export_events_dir")]
    export_events_to: Option<String>,
    /// The address of an object store that is not AWS's: MinIO, Ceph, R2 and the like
    /// [default: AWS_ENDPOINT_URL_S3, or AWS].
    #[arg(long, value_name = "URL")]
    s3_endpoint: Option<String>,
    /// How exported events are written: raw, or what docs/events.md lists [default: raw].
    #[arg(long, value_name = "FORMAT")]
    export_events_format: Option<String>,
    /// The length of a period of the export, in seconds [default: 3600].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    export_events_every: Option<u64>,
}

impl EventFlags {
    /// These, and those of a file where these say nothing.
    pub fn or(self, file: Self) -> Self {
        // A place that is named here is meant instead of the one in the file, of whichever kind.
        let (export_events_dir, export_events_to) = match (self.export_events_dir, self.export_events_to) {
            (None, None) => (file.export_events_dir, file.export_events_to),
            named => named,
        };
        Self {
            event_requests_per_minute: self.event_requests_per_minute.or(file.event_requests_per_minute),
            export_events_dir,
            export_events_to,
            s3_endpoint: self.s3_endpoint.or(file.s3_endpoint),
            export_events_format: self.export_events_format.or(file.export_events_format),
            export_events_every: self.export_events_every.or(file.export_events_every),
        }
    }

    /// What the API needs.
    pub fn events(&self, dir: &Path, sequencer: Sequencer) -> Result<Events, Failure> {
        let consumers = Consumers::open(dir).map_err(Failure::unable)?;
        let events = Events::new(self.event_requests_per_minute.unwrap_or(PAGES_PER_MINUTE).max(1));
        Ok(events.with_signer(Arc::new(LogSigner(sequencer))).with_consumers(consumers))
    }

    /// Begins the export, if there is one.
    pub fn export(&self, served: &Served) -> Result<Option<tokio::task::JoinHandle<()>>, Failure> {
        let place = match (&self.export_events_dir, &self.export_events_to) {
            (None, None) => return Ok(None),
            (Some(dir), _) => dir.display().to_string(),
            (None, Some(place)) => place.clone(),
        };
        let wrong = |e| Failure::unable(format!("--export-events-format: {e}"));
        let format = Format::parse(self.export_events_format.as_deref()).map_err(wrong)?;
        let flag = if self.export_events_dir.is_some() { "--export-events-dir" } else { "--export-events-to" };
        let shelf = crate::export_events::shelf(&place, self.s3_endpoint.as_deref());
        let shelf = shelf.map_err(|e| Failure::unable(format!("{flag}: {e}")))?;
        let every = Duration::from_secs(self.export_events_every.unwrap_or(3600));
        Ok(Some(tokio::spawn(Export { shelf, format, every }.run(served.clone()))))
    }
}

/// Signs between the requests that come in.
struct LogSigner(Sequencer);

impl Signer for LogSigner {
    fn checkpoint(&self) -> BoxFuture<'static, Result<(), Error>> {
        let sequencer = self.0.clone();
        async move { told(sequencer.command(custody_store::Writer::checkpoint).await) }.boxed()
    }

    fn digest(&self, text: String) -> BoxFuture<'static, Result<String, Error>> {
        let sequencer = self.0.clone();
        async move { told(sequencer.command(move |writer| writer.sign_events_digest(&text)).await) }.boxed()
    }
}

fn told<T>(answer: Result<Result<T, custody_store::Error>, custody_ingest::SubmitError>) -> Result<T, Error> {
    match answer {
        Ok(done) => done.map_err(|e| Error::new(ErrorKind::Unavailable, e.to_string())),
        Err(error) => Err(Error::new(ErrorKind::Unavailable, format!("the log signs nothing: {error:?}"))),
    }
}
