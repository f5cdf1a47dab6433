//! The control socket: how commands that change the log reach a running server.
//!
//! `<data-dir>/control.sock` is a Unix socket that only the directory's owner may
//! open; who asks is known by the kernel (`uid:1000`), and that is what the log
//! records. A request is one line of JSON, the answer another; behind the answer to
//! an export comes the bundle. Without a server the command opens the log itself.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use custody_ingest::Sequencer;
use custody_query::Projection;
use custody_query::serve::Served;
use custody_store::bundle::{Export, Exporting, seal_line};
use custody_store::system::SeqSet;
use custody_store::{Cause, Erasure, Error, ErrorKind, Hold, KeySource, Options, Reader, Writer, open};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Failure;

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// Where the server listens.
    Info,
    /// Erase the content of records.
    Erase { seqs: String, reason: String, actor: String },
    /// Erase the content of records taken before a time, in ns since the Unix epoch.
    Retain { before: u64, reason: String, actor: String },
    /// Place or release a legal hold.
    Hold { id: String, seqs: String, place: bool, reason: String, actor: String },
    /// Sign with other keys from now on: those of a file, or new ones.
    Rotate { file: Option<PathBuf>, reason: String, actor: String },
    /// Write an evidence bundle.
    Export { seqs: String, all: bool, query: String, reason: String, attached: Value },
    /// A COSE receipt of a record.
    Cose { seq: u64 },
    /// Add a backup to a directory.
    Backup { to: PathBuf, with_keys: bool, keep: Option<usize> },
    /// Sign a checkpoint of all that is durable.
    Checkpoint,
    /// Sign the digest of exported events.
    SignDigest { text: String },
    /// Sign a token for a script.
    Token { wanted: crate::auth::own::Wanted },
    /// Do something about an alert, as the user who asks.
    Alert(crate::alerts::Wanted),
    /// Say whose word counts for people.
    Speakers(crate::alerts::Speaking),
    /// Make the projected rows again from the log: all, or those that are damaged.
    Rebuild { check: bool },
}

/// Where the socket of a data directory is.
fn socket_of(dir: &Path) -> PathBuf {
    dir.join("control.sock")
}

/// Changes the log of a data directory: through its server, or directly.
pub enum Control {
    Live(PathBuf),
    Own(Box<Writer>, Reader),
}

impl Control {
    /// Connects to the server of a data directory, or opens it.
    pub fn of(dir: &Path) -> Result<Self, Failure> {
        let socket = socket_of(dir);
        if UnixStream::connect(&socket).is_ok() {
            return Ok(Self::Live(socket));
        }
        if !dir.join("FORMAT").exists() {
            return Err(Failure::unable(format!(
                "{} is not a Custody data directory; name it with --data-dir",
                dir.display()
            )));
        }
        let keys = std::env::var("CUSTODY_SIGNING_KEY").map_or(KeySource::Directory, KeySource::Text);
        let (writer, reader) = open(dir, Options { keys, ..Options::default() }).map_err(Failure::unable)?;
        Ok(Self::Own(Box::new(writer), reader))
    }

    /// The URL of the server's API, if there is one.
    pub fn url(&mut self) -> Result<Option<String>, Failure> {
        match self {
            Self::Own(..) => Ok(None),
            Self::Live(_) => {
                let info = self.ask(&Request::Info, &mut std::io::sink())?;
                Ok(info["http"].as_str().map(|address| format!("http://{address}")))
            }
        }
    }

    /// Asks; gives the answer. What an export writes goes to `out`.
    pub fn ask(&mut self, request: &Request, out: &mut dyn Write) -> Result<Value, Failure> {
        match self {
            Self::Live(socket) => ask(socket, request, out),
            Self::Own(writer, reader) => {
                let identity = format!("uid:{}", own_uid());
                answer_directly(writer, reader, request, &identity, out).map_err(failure)
            }
        }
    }
}

fn failure(error: Error) -> Failure {
    match error.kind() {
        ErrorKind::Invalid => Failure::wrong(error),
        _ => Failure::unable(error),
    }
}

/// The user that runs this process, as the owner of what it makes.
fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").or_else(|_| std::fs::metadata(".")).map_or(u32::MAX, |data| data.uid())
}

fn ask(socket: &Path, request: &Request, out: &mut dyn Write) -> Result<Value, Failure> {
    let fail = |e: std::io::Error| Failure::unable(format!("the server at {} does not answer: {e}", socket.display()));
    let mut stream = UnixStream::connect(socket).map_err(fail)?;
    let line = serde_json::to_string(request).map_err(Failure::unable)?;
    stream.write_all(format!("{line}\n").as_bytes()).map_err(fail)?;
    let mut answer = BufReader::new(stream);
    let mut first = String::new();
    answer.read_line(&mut first).map_err(fail)?;
    let json: Value = serde_json::from_str(&first)
        .map_err(|_| Failure::unable(format!("the server at {} broke off; see its log", socket.display())))?;
    if let Some(message) = json["error"].as_str() {
        let is_wrong = json["kind"] == "invalid";
        return Err(if is_wrong { Failure::wrong(message) } else { Failure::unable(message) });
    }
    std::io::copy(&mut answer, out).map_err(fail)?;
    Ok(json)
}

/// What only the writer can do.
fn act(writer: &mut Writer, request: &Request, identity: &str) -> Result<Value, Error> {
    let set = |text: &str| SeqSet::parse(text).ok_or_else(|| invalid("seqs are numbers and ranges, rising: 7,9-12"));
    let erasure = |seqs, cause, reason: &String, actor: &String| Erasure {
        seqs,
        cause,
        reason: reason.clone(),
        actor: actor.clone(),
        identity: identity.to_owned(),
    };
    match request {
        Request::Erase { seqs, reason, actor } => erase(writer, &erasure(set(seqs)?, Cause::Erasure, reason, actor)),
        Request::Retain { before, reason, actor } => {
            let old = SeqSet::of(std::iter::once(0..writer.reader().first_at(*before)?));
            erase(writer, &erasure(old, Cause::Retention, reason, actor))
        }
        Request::Hold { id, seqs, place, reason, actor } => {
            let hold = Hold { id: id.clone(), seqs: set(seqs)?, reason: reason.clone(), placed_by: 0 };
            let seq = writer.hold(&hold, *place, actor, identity)?;
            Ok(json!({"said_by": [seq], "records": hold.seqs.count()}))
        }
        Request::Rotate { file, reason, actor } => {
            let source = file.clone().map_or(KeySource::Directory, KeySource::File);
            let seq = writer.rotate(&source, reason, actor)?;
            let keys: Vec<String> = writer.reader().keys().iter().map(ToString::to_string).collect();
            Ok(json!({"said_by": [seq], "vkeys": keys}))
        }
        Request::Cose { seq } => {
            let receipt = writer.cose_receipt(*seq)?;
            Ok(json!({"receipt": receipt}))
        }
        Request::Checkpoint => writer.checkpoint().map(|_| json!({})),
        Request::SignDigest { text } => crate::export_events::sign(writer, text, identity),
        Request::Token { wanted } => crate::auth::own::make(writer, wanted, identity),
        Request::Info
        | Request::Export { .. }
        | Request::Backup { .. }
        | Request::Alert(_)
        | Request::Speakers(_)
        | Request::Rebuild { .. } => Err(invalid("this needs no writer")),
    }
}

fn invalid(message: &str) -> Error {
    Error::invalid(message)
}

fn erase(writer: &mut Writer, erasure: &Erasure) -> Result<Value, Error> {
    let erased = writer.erase(erasure)?;
    writer.checkpoint()?;
    Ok(json!({
        "records": erased.records, "before": erased.before, "bytes": erased.bytes, "said_by": erased.said_by,
    }))
}

fn export_of(request: &Request, identity: &str, size: u64) -> Option<Export> {
    let Request::Export { seqs, all, query, reason, attached } = request else { return None };
    let seqs = if *all { SeqSet::of(std::iter::once(0..size)) } else { SeqSet::parse(seqs)? };
    Some(Export {
        seqs,
        query: query.clone(),
        reason: reason.clone(),
        identity: identity.to_owned(),
        attached: attached.clone(),
    })
}

fn answer_directly(
    writer: &mut Writer,
    reader: &Reader,
    request: &Request,
    identity: &str,
    out: &mut dyn Write,
) -> Result<Value, Error> {
    match request {
        Request::Export { .. } => {
            let export =
                export_of(request, identity, writer.head_size()).ok_or_else(|| invalid("seqs are not readable"))?;
            let exporting = writer.export(export)?;
            let (lines, digest) = reader.write_bundle(&exporting, &mut *out)?;
            let note = writer.sign_bundle(lines, &digest)?;
            out.write_all(seal_line(&note).as_bytes()).map_err(|e| Error::unavailable(e.to_string()))?;
            Ok(json!({"lines": lines}))
        }
        Request::Backup { to, with_keys, keep } => backup(reader, to, *with_keys, *keep),
        Request::Rebuild { check } => {
            crate::segments::rebuild_directly(reader, *check, out)?;
            Ok(json!({}))
        }
        Request::Alert(wanted) => crate::alerts::act_directly(writer, reader, wanted, identity),
        Request::Speakers(speaking) => crate::alerts::speak_directly(writer, reader, speaking),
        other => {
            let answer = act(writer, other, identity)?;
            reader.purge()?;
            if matches!(request, Request::Erase { .. } | Request::Retain { .. }) {
                crate::segments::forget_directly(reader)?;
            }
            Ok(answer)
        }
    }
}

fn backup(reader: &Reader, to: &Path, with_keys: bool, keep: Option<usize>) -> Result<Value, Error> {
    let made = reader.backup(to, with_keys, keep)?;
    Ok(json!({"id": made.id, "bytes": made.bytes, "records": reader.head().size}))
}

/// The server's side.
pub struct Server {
    pub sequencer: Sequencer,
    pub projection: Arc<Projection>,
    pub info: Value,
    pub served: Served,
}

impl Server {
    /// Listens until the process ends. The socket is the owner's alone.
    pub fn start(self, dir: &Path) -> Result<(), Failure> {
        let socket = socket_of(dir);
        // The lock on the log says that no other server is alive: a socket is left from one that died.
        let _ = std::fs::remove_file(&socket);
        let fail = |e: std::io::Error| {
            Failure::unable(format!(
                "the control socket {} cannot be made: {e}; a shorter --data-dir may help (its path must be below 100 bytes)",
                socket.display()
            ))
        };
        let listener = UnixListener::bind(&socket).map_err(fail)?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        let listener = tokio::net::UnixListener::from_std(listener).map_err(fail)?;
        let server = Arc::new(self);
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    // Out of file descriptors, most likely: wait for some to be given back.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                };
                let identity = stream.peer_cred().map_or_else(|_| "uid:unknown".into(), |c| format!("uid:{}", c.uid()));
                let Ok(stream) = stream.into_std() else { continue };
                let (server, runtime) = (Arc::clone(&server), tokio::runtime::Handle::current());
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = server.serve(stream, &identity, &runtime) {
                        tracing::debug!(%error, "a control connection ended early");
                    }
                });
            }
        });
        Ok(())
    }

    /// Takes the socket away.
    pub fn stop(dir: &Path) {
        let _ = std::fs::remove_file(socket_of(dir));
    }

    fn serve(&self, stream: UnixStream, identity: &str, runtime: &tokio::runtime::Handle) -> std::io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
        let mut line = String::new();
        BufReader::new(Read::take(&stream, 64 << 20)).read_line(&mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        let mut out = &stream;
        let answered = match serde_json::from_str(&line) {
            Ok(request) => self.answer(&request, identity, runtime, &mut out),
            Err(e) => Err(invalid(&format!("the request is not readable: {e}"))),
        };
        match answered {
            Ok(None) => Ok(()),
            Ok(Some(json)) => out.write_all(format!("{json}\n").as_bytes()),
            Err(error) => {
                let kind = if error.kind() == ErrorKind::Invalid { "invalid" } else { "unable" };
                out.write_all(format!("{}\n", json!({"error": error.to_string(), "kind": kind})).as_bytes())
            }
        }
    }

    fn command<T: Send + 'static>(
        &self,
        runtime: &tokio::runtime::Handle,
        work: impl FnOnce(&mut Writer) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let done = runtime.block_on(self.sequencer.command(work));
        done.unwrap_or_else(|e| Err(Error::unavailable(format!("the server is stopping ({e:?})"))))
    }

    fn answer(
        &self,
        request: &Request,
        identity: &str,
        runtime: &tokio::runtime::Handle,
        out: &mut &UnixStream,
    ) -> Result<Option<Value>, Error> {
        let reader = self.projection.reader();
        match request {
            Request::Info => Ok(Some(self.info.clone())),
            Request::Backup { to, with_keys, keep } => backup(reader, to, *with_keys, *keep).map(Some),
            Request::Export { .. } => self.export(request, identity, runtime, out).map(|()| None),
            Request::Alert(wanted) => runtime.block_on(crate::alerts::act(&self.served, wanted, identity)).map(Some),
            Request::Speakers(speaking) => runtime.block_on(crate::alerts::speak(&self.served, speaking)).map(Some),
            Request::Rebuild { check } => {
                let begun = out.write_all(format!("{}\n", json!({"rebuild": true})).as_bytes());
                begun.map_err(|e| Error::unavailable(e.to_string()))?;
                crate::segments::rebuild(&self.projection, *check, out).map(|()| None)
            }
            other => {
                let (other, identity) = (other.clone(), identity.to_owned());
                let answer = self.command(runtime, move |writer| act(writer, &other, &identity))?;
                if matches!(request, Request::Erase { .. } | Request::Retain { .. }) {
                    reader.purge()?;
                    crate::segments::forget(&self.projection)?;
                }
                Ok(Some(answer))
            }
        }
    }

    fn export(
        &self,
        request: &Request,
        identity: &str,
        runtime: &tokio::runtime::Handle,
        out: &mut &UnixStream,
    ) -> Result<(), Error> {
        let (request, identity) = (request.clone(), identity.to_owned());
        let exporting: Exporting = self.command(runtime, move |writer| {
            let export = export_of(&request, &identity, writer.head_size());
            writer.export(export.ok_or_else(|| invalid("seqs are not readable"))?)
        })?;
        let broken = |e: std::io::Error| Error::unavailable(e.to_string());
        out.write_all(format!("{}\n", json!({"bundle": true})).as_bytes()).map_err(broken)?;
        let mut buffered = std::io::BufWriter::new(*out);
        let (lines, digest) = self.projection.reader().write_bundle(&exporting, &mut buffered)?;
        let note = self.command(runtime, move |writer| writer.sign_bundle(lines, &digest))?;
        buffered.write_all(seal_line(&note).as_bytes()).map_err(broken)?;
        buffered.flush().map_err(broken)
    }
}
