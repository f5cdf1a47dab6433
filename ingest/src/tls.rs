//! TLS 1.3 in front of the listeners: its files, read again when they change, and what a client showed.
//!
//! A connection outlives the files that it was accepted by. So the chain that a client showed is kept
//! and verified again, once the files changed or a minute has passed, before its identity is given
//! out: an authority that was taken away, a certificate that was revoked or has ended counts from the
//! next request on.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use custody_store::measure::{Family, Value};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::certificate;

/// A client's chain is verified again after this long, on a connection that stays.
const VERIFY_AGAIN: Duration = Duration::from_secs(60);

/// The first byte of a TLS connection: a handshake record (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 0x16;

/// Whether a client must show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// It may; a token does as well.
    #[default]
    Optional,
    /// Without one there is no connection.
    Required,
}

/// Where the keys and authorities of TLS are, as PEM.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// The server's certificate, followed by those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of client certificates; without them none is asked for.
    pub client_ca: Option<PathBuf>,
    /// Lists of client certificates that were revoked.
    pub client_crl: Option<PathBuf>,
    /// Whether clients must show one.
    pub client_auth: ClientAuth,
}

/// What the files say at present.
struct Current {
    config: Arc<ServerConfig>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    not_after: Option<u64>,
}

/// TLS for one or more listeners.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<Current>>,
    generation: AtomicU64,
    accepted: AtomicU64,
    failed: AtomicU64,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

/// What signs and encrypts: the same library that signs checkpoints.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// One line that names the file and what is wrong with it.
    pub fn new(files: TlsFiles) -> Result<Arc<Self>, String> {
        let current = RwLock::new(Arc::new(read(&files)?));
        let (generation, accepted, failed) = Default::default();
        Ok(Arc::new(Self { files, current, generation, accepted, failed }))
    }

    /// The files that it is read from.
    pub fn paths(&self) -> Vec<PathBuf> {
        let files = &self.files;
        let optional = [&files.client_ca, &files.client_crl].into_iter().flatten().cloned();
        [files.certificate.clone(), files.key.clone()].into_iter().chain(optional).collect()
    }

    /// Reads the files again; if that fails, what was read before stays.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn reload(&self) -> Result<(), String> {
        let new = Arc::new(read(&self.files)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        self.generation.fetch_add(1, Release);
        Ok(())
    }

    /// Whether clients can show certificates.
    pub fn knows_clients(&self) -> bool {
        self.files.client_ca.is_some()
    }

    /// What there is to say in metrics.
    pub fn families(&self) -> Vec<Family> {
        let counts = [&self.accepted, &self.failed].map(|count| count.load(Relaxed));
        families(counts, self.now().not_after.unwrap_or(0))
    }

    fn now(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Shakes hands, and remembers in the session what the client showed. Who speaks something
    /// else is told so.
    pub(crate) async fn accept(self: &Arc<Self>, stream: TcpStream, session: &Session) -> io::Result<Stream> {
        // It may be dropped on the way, when the time is over: then it failed, too.
        let failing = Failing(Some(&self.failed));
        let stream = self.shake(stream, session).await?;
        failing.not();
        self.accepted.fetch_add(1, Relaxed);
        Ok(stream)
    }

    async fn shake(self: &Arc<Self>, stream: TcpStream, session: &Session) -> io::Result<Stream> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE {
            return crate::door::refuse_plain(stream).await;
        }
        let config = Arc::clone(&self.now().config);
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let shown = match chain.first() {
            None => None,
            Some(first) => {
                let identity = certificate::identity(first);
                let identity = identity.map_err(|e| io::Error::other(format!("the client's certificate: {e}")))?;
                let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
                Some(Shown { chain, identity, verified: Mutex::default() })
            }
        };
        let _ = session.0.set((Arc::clone(self), shown));
        Ok(Stream::Tls(Box::new(stream)))
    }
}

/// What there is to say in metrics of a server without TLS.
pub fn no_families() -> Vec<Family> {
    families([0, 0], 0)
}

fn families([accepted, failed]: [u64; 2], end: u64) -> Vec<Family> {
    let row = |outcome: &str, count: u64| (vec![("outcome", outcome.to_owned())], Value::Counter(count as f64));
    let rows = vec![row("accepted", accepted), row("failed", failed)];
    let handshakes = Family { name: "custody_tls_handshakes", help: "TLS connections begun", rows };
    let help = "When the server's certificate ends, since unix epoch; 0 without TLS";
    vec![handshakes, Family::gauge("custody_tls_certificate_end_timestamp_seconds", help, end as f64)]
}

/// Counts a failure when it is dropped.
struct Failing<'a>(Option<&'a AtomicU64>);

impl Failing<'_> {
    fn not(mut self) {
        self.0 = None;
    }
}

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.0 {
            count.fetch_add(1, Relaxed);
        }
    }
}

/// A chain that a client showed.
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    identity: String,
    /// Of which generation of files, and when it was verified last.
    verified: Mutex<Option<(u64, Instant)>>,
}

/// What is known of a connection once hands were shaken.
#[derive(Default)]
pub(crate) struct Session(OnceLock<(Arc<Tls>, Option<Shown>)>);

impl Session {
    /// Whether it is encrypted.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.0.get().is_some()
    }

    /// Who the client is by its certificate, if it showed one and that is good now.
    pub(crate) fn identity(&self) -> Result<Option<&str>, String> {
        let Some((tls, Some(shown))) = self.0.get() else { return Ok(None) };
        let generation = tls.generation.load(Acquire);
        let mut verified = shown.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.is_none_or(|(of, at)| of != generation || at.elapsed() >= VERIFY_AGAIN) {
            let current = tls.now();
            let verifier = current.verifier.as_ref().ok_or("client certificates are not taken any more")?;
            let (first, rest) = shown.chain.split_first().ok_or("it is empty")?;
            verifier.verify_client_cert(first, rest, UnixTime::now()).map_err(|e| e.to_string())?;
            *verified = Some((generation, Instant::now()));
        }
        Ok(Some(&shown.identity))
    }
}

fn read(files: &TlsFiles) -> Result<Current, String> {
    let certificates = pem::<CertificateDer<'static>>(&files.certificate, "certificate")?;
    let key = &files.key;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| format!("{}: no private key: {e}", key.display()))?;
    let not_after = certificates.first().and_then(certificate::not_after);
    let verifier = verifier(files)?;
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13]);
    let builder = builder.map_err(|e| e.to_string())?;
    let builder = match &verifier {
        Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
        None => builder.with_no_client_auth(),
    };
    let config = builder.with_single_cert(certificates, private);
    let mut config = config
        .map_err(|e| format!("{} and {} do not go together: {e}", files.certificate.display(), files.key.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Current { config: Arc::new(config), verifier, not_after })
}

/// What verifies client certificates.
fn verifier(files: &TlsFiles) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
    let Some(path) = &files.client_ca else { return Ok(None) };
    let mut roots = RootCertStore::empty();
    for authority in pem::<CertificateDer<'static>>(path, "certificate")? {
        roots.add(authority).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    if let Some(path) = &files.client_crl {
        let lists = pem::<CertificateRevocationListDer<'static>>(path, "revocation list")?;
        // An authority without a list has revoked nothing that we know of.
        builder = builder.with_crls(lists).allow_unknown_revocation_status();
    }
    if files.client_auth == ClientAuth::Optional {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map(Some).map_err(|e| format!("{}: {e}", path.display()))
}

fn pem<T: PemObject>(path: &PathBuf, what: &str) -> Result<Vec<T>, String> {
    let place = path.display();
    let bytes = std::fs::read(path).map_err(|e| format!("{place}: {e}"))?;
    let found: Vec<T> = T::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|e| format!("{place}: {e}"))?;
    if found.is_empty() { Err(format!("{place}: there is no {what} in it (PEM)")) } else { Ok(found) }
}

/// A connection, with TLS or without.
pub(crate) enum Stream {
    /// Without: on loopback.
    Plain(TcpStream),
    /// With.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, parts),
        }
    }
}
