//! `custody export --to`: events as objects, in a directory or an object store, as `custody serve
//! --export-events-to` does it all the time, once and now.
//!
//! The rows are read off the data directory by this process, which alone knows the store's
//! credentials; the digests are signed by the log's key, which the running server has. That it signed one
//! is a record in the log.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use custody_query::serve::Served;
use custody_query::serve::events::{Directory, Events, Export, Format, PAGES_PER_MINUTE, Shelf, Signer};
use custody_query::serve::observe::Unobserved;
use custody_query::{Engine, Error, ErrorKind, Projection, QueryLimits};
use custody_store::system::{AUDIT_IDENTITY, SystemRecord};
use custody_store::{Reader, Writer};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use crate::control::{Control, Request};
use crate::{Failure, print};

/// Which events, and where to.
#[derive(Args, Debug)]
#[command(next_help_heading = "Events")]
pub struct To {
    /// Export events instead, in all periods that are over, to s3://BUCKET/PREFIX or a directory; goes on
    /// where the export there ends (docs/events.md).
    #[arg(long, value_name = "PLACE", conflicts_with_all = ["output", "all"])]
    to: Option<String>,
    /// The address of an object store that is not AWS's [default: AWS_ENDPOINT_URL_S3, or AWS].
    #[arg(long, value_name = "URL", requires = "to")]
    s3_endpoint: Option<String>,
    /// How the events are written: raw, or what docs/events.md lists [default: raw].
    #[arg(long, value_name = "FORMAT", requires = "to")]
    format: Option<String>,
    /// The length of a period, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, requires = "to",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    every: u64,
}

/// A place by its name: s3://bucket/prefix, or a directory.
pub fn shelf(place: &str, endpoint: Option<&str>) -> Result<Arc<dyn Shelf>, String> {
    if place.contains("://") {
        return Ok(Arc::new(crate::s3::S3::open(place, endpoint)?));
    }
    std::fs::create_dir_all(place).map_err(|e| format!("{place}: {e}"))?;
    Ok(Arc::new(Directory(place.into())))
}

impl To {
    /// Whether events are to be exported at all.
    pub fn is_some(&self) -> bool {
        self.to.is_some()
    }

    /// Exports what is over.
    pub fn run(&self, data_dir: &std::path::Path) -> Result<(), Failure> {
        let place = self.to.as_deref().unwrap_or_default();
        let shelf = shelf(place, self.s3_endpoint.as_deref()).map_err(|e| Failure::wrong(format!("--to: {e}")))?;
        let format = Format::parse(self.format.as_deref()).map_err(|e| Failure::wrong(format!("--format: {e}")))?;
        let mut control = Control::of(data_dir)?;
        control.ask(&Request::Checkpoint, &mut std::io::sink())?;
        // What is read below was in the log by now, so later periods are for another time.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let reader = match &control {
            Control::Live(_) => Reader::open(data_dir).map_err(Failure::unable)?,
            Control::Own(_, reader) => reader.clone(),
        };
        let engine = Engine::new(Projection::of(reader).map_err(Failure::unable)?).map_err(Failure::unable)?;
        let events = Events::new(PAGES_PER_MINUTE).with_signer(Arc::new(ControlSigner(Arc::new(Mutex::new(control)))));
        let served = Served::new(engine, QueryLimits::default(), Arc::new(Unobserved)).with_events(events);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let export = Export { shelf, format, every: Duration::from_secs(self.every) };
        let periods = runtime.map_err(Failure::unable)?.block_on(export.all_until(&served, now));
        let periods = periods.map_err(|error| match error.kind {
            ErrorKind::Invalid => Failure::wrong(error.message),
            _ => Failure::unable(error.message),
        })?;
        let key = data_dir.join("log.vkey").display().to_string();
        let endpoint = self.s3_endpoint.as_deref().map(|url| format!(" --s3-endpoint {}", word(url)));
        let check = format!(
            "custody events check --export {} --vkey {}{}",
            word(place),
            word(&key),
            endpoint.unwrap_or_default()
        );
        print(&format!("{place}: {periods} periods exported; check them with: {check}\n"))
    }
}

/// A text as one word of a shell.
fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._~/:@%+,=".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// Signs through the running server, or with the key of the directory.
struct ControlSigner(Arc<Mutex<Control>>);

impl ControlSigner {
    fn ask(&self, request: Request) -> BoxFuture<'static, Result<Value, Error>> {
        let control = Arc::clone(&self.0);
        let ask = move || control.lock().unwrap_or_else(PoisonError::into_inner).ask(&request, &mut std::io::sink());
        async move {
            let asked = tokio::task::spawn_blocking(ask).await;
            let asked = asked.map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
            asked.map_err(|failure| Error::new(ErrorKind::Unavailable, failure.message))
        }
        .boxed()
    }
}

impl Signer for ControlSigner {
    fn checkpoint(&self) -> BoxFuture<'static, Result<(), Error>> {
        self.ask(Request::Checkpoint).map(|done| done.map(drop)).boxed()
    }

    fn digest(&self, text: String) -> BoxFuture<'static, Result<String, Error>> {
        let none = || Error::new(ErrorKind::Unavailable, "the server signed no digest");
        let asked = self.ask(Request::SignDigest { text });
        async move { asked.await?["note"].as_str().map(str::to_owned).ok_or_else(none) }.boxed()
    }
}

/// Signs the digest of a period for who may open the control socket, and says so in the log first.
pub fn sign(writer: &mut Writer, text: &str, identity: &str) -> Result<Value, custody_store::Error> {
    let note = writer.sign_events_digest(text)?;
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    let record = SystemRecord::new("custody.audit.export")
        .with("custody.audit.action", "export")
        .with("custody.audit.identity", identity)
        .with("custody.audit.text", format!("events, period {}, seqs {}", field("period "), field("seqs ")))
        .with("custody.audit.digest_sha256", const_hex::encode(crate::s3::sha256(note.as_bytes())));
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    writer.append(vec![record.prepare_as(AUDIT_IDENTITY, time)?])?;
    Ok(json!({"note": note}))
}

#[cfg(test)]
mod tests {
    use super::word;

    #[test]
    fn a_command_that_is_told_can_be_typed() {
        assert_eq!(word("s3://bucket/a-b_c"), "s3://bucket/a-b_c");
        assert_eq!(word("/tmp/it's here"), "'/tmp/it'\\''s here'");
        assert_eq!(word(""), "''");
    }
}
