//! How this command shows who it is to a server, and makes sure of the server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsConfigBuilder};

use crate::Failure;

/// The environment variable with a token.
const TOKEN: &str = "CUSTODY_TOKEN";

/// The longest answer to a request takes so long.
const TIMEOUT: Duration = Duration::from_secs(660);

/// With what to come to a server that wants TLS and an identity.
#[derive(Args, Clone, Debug, Default)]
pub struct Credentials {
    /// The authorities that the server's certificate must be from (PEM) [default: the public ones].
    #[arg(long, value_name = "FILE", help_heading = "Security")]
    ca: Option<PathBuf>,
    /// The client certificate, and those between it and its authority (PEM).
    #[arg(long, value_name = "FILE", help_heading = "Security", requires = "key")]
    cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, value_name = "FILE", help_heading = "Security", requires = "cert")]
    key: Option<PathBuf>,
    /// A file with a bearer token, read again for each request [default: the token in the
    /// environment variable CUSTODY_TOKEN, if there is one].
    #[arg(long, value_name = "FILE", help_heading = "Security")]
    token_file: Option<PathBuf>,
}

/// TLS by the library that this program signs with.
pub fn tls() -> TlsConfigBuilder {
    TlsConfig::builder().unversioned_rustls_crypto_provider(custody_ingest::tls::provider())
}

/// The authorities in a file.
pub fn roots(path: &Path) -> Result<RootCerts, String> {
    let found = certificates(path)?;
    Ok(RootCerts::new_with_certs(&found))
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let told = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let bytes = std::fs::read(path).map_err(|e| told(&e))?;
    let found = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>().map_err(|e| told(&e))?;
    if found.is_empty() {
        return Err(told(&"there is no certificate in it (PEM)"));
    }
    Ok(found.iter().map(|der| Certificate::from_der(der).to_owned()).collect())
}

impl Credentials {
    /// What speaks to servers.
    pub fn agent(&self) -> Result<ureq::Agent, Failure> {
        let mut builder = tls();
        if let Some(path) = &self.ca {
            builder = builder.root_certs(roots(path).map_err(Failure::unable)?);
        }
        if let (Some(certificate), Some(key)) = (&self.cert, &self.key) {
            let chain = certificates(certificate).map_err(Failure::unable)?;
            let wrong = |e: &dyn std::fmt::Display| Failure::unable(format!("{}: no private key: {e}", key.display()));
            PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(&e))?;
            let pem = std::fs::read(key).map_err(|e| wrong(&e))?;
            let key = PrivateKey::from_pem(&pem).map_err(|e| wrong(&e))?;
            builder = builder.client_cert(Some(ClientCert::new_with_certs(&chain, key)));
        }
        // A redirection could lead a token elsewhere.
        let config = ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0);
        let config = config.max_redirects_will_error(false).timeout_global(Some(TIMEOUT));
        Ok(config.tls_config(builder.build()).build().new_agent())
    }

    /// The value of `Authorization` for a URL, if there is a token. It never goes over a network
    /// in the clear.
    pub fn authorization(&self, url: &str) -> Result<Option<String>, Failure> {
        let token = match &self.token_file {
            Some(path) => {
                let text = std::fs::read_to_string(path);
                Some(text.map_err(|e| Failure::unable(format!("--token-file {}: {e}", path.display())))?)
            }
            None => std::env::var(TOKEN).ok(),
        };
        let Some(token) = token.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failure::wrong("the token has characters that no token has"));
        }
        if !url.starts_with("https://") && crate::auth::check_url(url).is_err() {
            return Err(Failure::wrong(format!("a token is not sent to {url} in the clear; use https://")));
        }
        Ok(Some(format!("Bearer {token}")))
    }
}
