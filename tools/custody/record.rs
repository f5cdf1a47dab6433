//! Appends what the query side has to say, among the requests that come in.

use custody_ingest::{Sequencer, SubmitError};
use custody_query::{Error, ErrorKind, Exporter, Recorder, Said};
use custody_store::bundle::{Export, Exporting};
use futures::FutureExt as _;
use futures::future::BoxFuture;

/// The way from the query side to the log.
#[derive(Clone)]
pub struct Appender(pub Sequencer);

impl Recorder for Appender {
    fn append(&self, said: Vec<Said>) -> BoxFuture<'static, Result<Vec<u64>, Error>> {
        let sequencer = self.0.clone();
        async move {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let now = now.map_or(0, |since| since.as_nanos() as u64);
            let mut waiting = Vec::with_capacity(said.len());
            for said in said {
                let request = said.record.prepare_as(&said.identity, now);
                let request = request.map_err(|e| Error::new(ErrorKind::Invalid, e.to_string()))?;
                waiting.push(sequencer.submit(request, ()));
            }
            let receipts = futures::future::join_all(waiting).await;
            receipts.into_iter().map(|receipt| receipt.map(|r| r.first_seq).map_err(|e| refused(&e))).collect()
        }
        .boxed()
    }
}

impl Exporter for Appender {
    fn export(&self, export: Export) -> BoxFuture<'static, Result<Exporting, Error>> {
        let sequencer = self.0.clone();
        async move { commanded(sequencer.command(move |writer| writer.export(export)).await) }.boxed()
    }

    fn sign(&self, lines: u64, digest: [u8; 32]) -> BoxFuture<'static, Result<String, Error>> {
        let sequencer = self.0.clone();
        async move { commanded(sequencer.command(move |writer| writer.sign_bundle(lines, &digest)).await) }.boxed()
    }
}

/// What came of a command to the writer.
fn commanded<T>(done: Result<Result<T, custody_store::Error>, SubmitError>) -> Result<T, Error> {
    done.map_err(|e| refused(&e))?.map_err(|e| {
        let kind = match e.kind() {
            custody_store::ErrorKind::Invalid => ErrorKind::Invalid,
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, e.to_string())
    })
}

fn refused(error: &SubmitError) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the log takes no record: {error:?}"))
}
