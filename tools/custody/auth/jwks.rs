//! The keys of an issuer: read from a file, or fetched from the one URL that was configured.
//!
//! A token that names a key which is not known makes the keys be fetched again, but no more often
//! than every [`AGAIN_AFTER`], so that nobody who invents key names can make this server a
//! hammer. No redirect is followed and no proxy of the environment is used: the address that is
//! asked is the operator's choice alone, never a token's.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Mutex;

use super::key::Key;
use super::policy::{IssuerSettings, KeysAt, Policy};

/// The least time between two fetches that tokens ask for.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Keys that could not be fetched again for so long are not believed any more.
const STALE_AFTER: Duration = Duration::from_secs(24 * 3600);

/// How long a fetch may take, and how much may come.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const BYTES_MAX: u64 = 1 << 20;

/// More keys than this are no issuer's.
const KEYS_MAX: usize = 100;

/// An issuer, with its keys as they are at present.
pub struct Issuer {
    /// As the policy has it.
    pub settings: IssuerSettings,
    /// File and line of the policy, for errors.
    place: String,
    agent: ureq::Agent,
    keys: RwLock<Option<(Arc<[Key]>, Instant)>>,
    asked: Mutex<Option<Instant>>,
    /// When they were loaded last, or when that was tried.
    tried: std::sync::Mutex<Option<Instant>>,
    /// Fetches that succeeded, and that failed.
    pub fetches: [AtomicU64; 2],
}

impl Issuer {
    /// The issuers of a policy, without keys yet.
    pub fn all(policy: &Policy, path: &Path) -> Result<Vec<Arc<Self>>, String> {
        let all = policy.issuers.iter().zip(&policy.issuer_lines);
        all.map(|(settings, line)| Self::new(settings.clone(), format!("{}:{line}", path.display()))).collect()
    }

    fn new(settings: IssuerSettings, place: String) -> Result<Arc<Self>, String> {
        let roots = match &settings.ca_file {
            Some(path) => crate::credentials::roots(path).map_err(|e| format!("{place}: ca_file: {e}"))?,
            None => ureq::tls::RootCerts::WebPki,
        };
        let tls = crate::credentials::tls().root_certs(roots).build();
        let config =
            ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0).max_redirects_will_error(false);
        let agent = config.proxy(None).timeout_global(Some(FETCH_TIMEOUT)).tls_config(tls).build().new_agent();
        let (keys, asked, tried, fetches) = Default::default();
        Ok(Arc::new(Self { settings, place, agent, keys, asked, tried, fetches }))
    }

    /// Its keys; `None` if there never were any, or they are too old.
    pub fn keys(&self) -> Option<Arc<[Key]>> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let fresh = keys.as_ref().filter(|(_, at)| self.is_file() || at.elapsed() < STALE_AFTER);
        fresh.map(|(keys, _)| Arc::clone(keys))
    }

    /// Whether its keys are in a file.
    pub fn is_file(&self) -> bool {
        matches!(self.settings.keys, KeysAt::File(_))
    }

    /// Takes over the keys of the same issuer, as it was configured before.
    pub fn inherit(&self, other: &Self) {
        if self.settings == other.settings {
            let keys = other.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
            *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        }
    }

    /// Whether it is time to fetch them again: soon, if there are none.
    pub fn is_due(&self) -> bool {
        let tried = *self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let every = Duration::from_secs(self.settings.refresh_seconds);
        let every = if self.keys().is_some() { every } else { every.min(AGAIN_AFTER) };
        !self.is_file() && tried.is_none_or(|at| at.elapsed() >= every)
    }

    /// Reads or fetches the keys now. Gives whether they are others than before.
    pub fn load(&self) -> Result<bool, String> {
        *self.tried.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let text = match &self.settings.keys {
            KeysAt::File(path) => read_file(path),
            KeysAt::Url(url) => self.fetch(url),
        };
        let keys = text.and_then(|text| parse(&text));
        self.fetches[usize::from(keys.is_err())].fetch_add(1, Relaxed);
        let new: Arc<[Key]> = keys.map_err(|e| format!("the keys of {}: {e}", self.settings.issuer))?.into();
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let changed = keys.as_ref().is_none_or(|(old, _)| *old != new);
        *keys = Some((new, Instant::now()));
        Ok(changed)
    }

    /// Reads the keys now that are in a file, which must be right; nothing, if they are behind a URL.
    pub fn load_file(&self) -> Result<(), String> {
        match self.is_file() {
            true => self.load().map(drop).map_err(|e| format!("{}: jwks_file: {e}", self.place)),
            false => Ok(()),
        }
    }

    /// Loads the keys again for a token that needs another one, unless that was done just now.
    /// Who comes meanwhile waits for the same answer.
    pub async fn again(self: &Arc<Self>) -> bool {
        let mut asked = self.asked.lock().await;
        if asked.is_some_and(|at| at.elapsed() < AGAIN_AFTER) {
            return false;
        }
        let issuer = Arc::clone(self);
        let loaded = tokio::task::spawn_blocking(move || issuer.load()).await;
        *asked = Some(Instant::now());
        match loaded {
            Ok(Ok(changed)) => changed,
            Ok(Err(error)) => {
                tracing::warn!(error, "an issuer's keys could not be fetched");
                false
            }
            Err(_) => false,
        }
    }

    fn fetch(&self, url: &str) -> Result<String, String> {
        let told = |e: ureq::Error| format!("{url}: {e}");
        let mut answer = self.agent.get(url).header("Accept", "application/json").call().map_err(told)?;
        if answer.status() != 200 {
            return Err(format!("{url}: status {} (redirects are not followed)", answer.status().as_u16()));
        }
        answer.body_mut().with_config().limit(BYTES_MAX).read_to_string().map_err(told)
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let told = |e: std::io::Error| format!("{}: {e}", path.display());
    if std::fs::metadata(path).map_err(told)?.len() > BYTES_MAX {
        return Err(format!("{}: it is larger than {BYTES_MAX} bytes", path.display()));
    }
    std::fs::read_to_string(path).map_err(told)
}

/// The keys of a set (RFC 7517, section 5) that are of use here; others are passed over.
fn parse(text: &str) -> Result<Vec<Key>, String> {
    let set: Value = serde_json::from_str(text).map_err(|e| format!("no JWK set: {e}"))?;
    let keys = set.get("keys").and_then(Value::as_array).ok_or("no JWK set: it has no list `keys`")?;
    let found: Vec<Key> = keys.iter().filter_map(Key::read).take(KEYS_MAX).collect();
    // An issuer that withdraws all its keys publishes an empty list, and means it.
    if found.is_empty() && !keys.is_empty() {
        return Err("no key in it can be used (RSA, P-256, P-384, Ed25519; use sig)".into());
    }
    Ok(found)
}

/// Whether keys may be fetched from a URL: HTTPS, or HTTP from this machine.
pub fn check_url(url: &str) -> Result<(), String> {
    let uri: http::Uri = url.parse().map_err(|e| format!("not a URL: {e}"))?;
    let host = uri.host().unwrap_or_default();
    let inner = host.trim_start_matches('[').trim_end_matches(']');
    let is_local = host == "localhost" || inner.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("a URL with a user in it is not fetched".into());
    }
    match uri.scheme_str() {
        Some("https") if !host.is_empty() => Ok(()),
        Some("http") if is_local => Ok(()),
        _ => Err("https:// is needed (http:// only to this machine)".into()),
    }
}
