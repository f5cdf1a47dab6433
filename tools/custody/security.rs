//! The flags of `custody serve` about TLS and identities, and what they come to.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use clap::{Args, ValueEnum};
use custody_ingest::tls::{ClientAuth, Tls, TlsFiles};
use custody_store::Reader;
use serde::Deserialize;

use crate::Failure;
use crate::auth::Auth;
use crate::auth::audit::Audit;
use crate::auth::reload::Guards;
use crate::queries::QueryFlags;

/// Whether a client must show a certificate.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificate {
    /// It may; a token does as well.
    Optional,
    /// Without one there is no connection.
    Required,
}

/// TLS and identities, as flags and as the table `[security]` of the configuration file.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Security")]
pub struct SecurityFlags {
    /// The server's certificate, and those between it and its authority (PEM): TLS on all ports.
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// The authorities of client certificates (PEM): clients may then show one.
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// Revocation lists of client certificates (PEM).
    #[arg(long, value_name = "FILE")]
    tls_client_crl: Option<PathBuf>,
    /// Whether each client must show a certificate [default: optional].
    #[arg(long, value_name = "WHETHER")]
    tls_client_auth: Option<ClientCertificate>,
    /// The policy file: who may do what. Without one, everybody who reaches the ports may do
    /// everything, and they are on loopback only. All these files are read again when they
    /// change, and on SIGHUP.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

impl SecurityFlags {
    /// These, and where they are silent those of the file.
    pub fn or(self, file: Self) -> Self {
        Self {
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            tls_client_ca: self.tls_client_ca.or(file.tls_client_ca),
            tls_client_crl: self.tls_client_crl.or(file.tls_client_crl),
            tls_client_auth: self.tls_client_auth.or(file.tls_client_auth),
            policy: self.policy.or(file.policy),
        }
    }

    /// Refuses an address that others than this machine's programs can reach, unless they must
    /// say who they are and nobody can listen.
    pub fn admits(&self, flag: &str, address: SocketAddr) -> Result<(), Failure> {
        if address.ip().is_loopback() {
            return Ok(());
        }
        let missing = match (self.tls_cert.is_some() && self.tls_key.is_some(), self.policy.is_some()) {
            (true, true) => return Ok(()),
            (true, false) => "--policy (who may do what)",
            (false, true) => "--tls-cert and --tls-key",
            (false, false) => "--tls-cert, --tls-key and --policy (who may do what)",
        };
        Err(Failure::unable(format!(
            "{flag} {address} is not a loopback address: set {missing}, or use 127.0.0.1 (docs/security.md)"
        )))
    }

    /// TLS, if it is asked for.
    pub fn tls(&self) -> Result<Option<Arc<Tls>>, Failure> {
        let unable = |what: &str| Err(Failure::unable(what));
        let (certificate, key) = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            (None, None) if self.tls_client_ca.is_some() => {
                return unable("--tls-client-ca needs --tls-cert and --tls-key");
            }
            (None, None) => return Ok(None),
            _ => return unable("--tls-cert and --tls-key go together; one of them is missing"),
        };
        if self.tls_client_ca.is_none() && (self.tls_client_auth.is_some() || self.tls_client_crl.is_some()) {
            return unable("--tls-client-auth and --tls-client-crl need --tls-client-ca");
        }
        if self.tls_client_ca.is_some() && self.policy.is_none() {
            return unable("--tls-client-ca needs --policy, which says what the bearers of certificates may do");
        }
        let files = TlsFiles {
            certificate,
            key,
            client_ca: self.tls_client_ca.clone(),
            client_crl: self.tls_client_crl.clone(),
            client_auth: match self.tls_client_auth {
                Some(ClientCertificate::Required) => ClientAuth::Required,
                _ => ClientAuth::Optional,
            },
        };
        Tls::new(files).map(Some).map_err(Failure::unable)
    }

    /// What guards the listeners of this log; no file was read before `begun`.
    pub async fn guards(
        &self,
        tls: Option<Arc<Tls>>,
        reader: &Reader,
        begun: SystemTime,
        queries: &QueryFlags,
    ) -> Result<Guards, Failure> {
        let audit = Arc::<Audit>::default();
        let auth = match &self.policy {
            None => None,
            Some(path) => {
                let auth = Auth::new(path, reader.clone(), Arc::clone(&audit)).map_err(Failure::unable)?;
                let loading = Arc::clone(&auth);
                let loaded = tokio::task::spawn_blocking(move || loading.load_keys()).await;
                loaded.map_err(Failure::unable)?.map_err(Failure::unable)?;
                Some(auth)
            }
        };
        let (watched, dir) = (queries.audit_mode(auth.is_some()), reader.dir().to_owned());
        Ok(Guards { tls, auth, audit, reloads: Arc::default(), begun, watched, dir })
    }
}

/// Says so where others may read the log past the policy and unrecorded. No refusal: a group may be meant.
pub fn warn_of_readers(dir: &Path) {
    let mode = std::fs::metadata(dir).map_or(0, |data| data.permissions().mode() & 0o777);
    if mode & 0o077 != 0 {
        let (dir, mode) = (dir.display(), format!("{mode:04o}"));
        tracing::warn!(
            mode,
            "the data directory {dir} is open to other users, who can read the log past the policy and unrecorded; if they \
             should not: chmod 700 {dir}"
        );
    }
}

/// A dump of this process's memory would hold signing keys and tokens.
pub fn no_core_dumps() {
    if let Err(error) = rlimit::setrlimit(rlimit::Resource::CORE, 0, 0) {
        tracing::warn!(%error, "core dumps could not be turned off");
    }
}
