//! Who comes in: from the certificate or token of a request to a [`Caller`], by the policy.
//!
//! The order is fixed: an assertion of a trusted proxy, then a bearer token, then the client
//! certificate, then the address if the policy names it. What is shown must be good: a bad token is
//! never made up for by a good certificate. Without a policy nothing of this is here, and who reaches
//! the port (of loopback) is [`Caller::local`].

pub mod audit;
pub mod command;
mod denied;
mod jwks;
mod key;
pub mod layer;
pub mod own;
pub mod policy;
pub mod reload;
mod senders;
#[cfg(test)]
mod tests;
mod token;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use custody_ingest::{Admitting, Guard, Peer, Refusal};
use custody_query::{ActorType, Caller, Role, Roles, RowFilter};
use custody_store::Reader;
use custody_store::measure::{Family, Value};
use http::{HeaderMap, HeaderName, header};

use audit::Audit;
use denied::Denied;
use jwks::Issuer;
pub use jwks::check_url;
use policy::{KeysAt, Policy, Rule, Subject};
use senders::Senders;
use token::{Demands, Flaw, Unverified};

/// Pomerium's proof of who is behind it.
const ASSERTION: HeaderName = HeaderName::from_static("x-pomerium-jwt-assertion");

/// So many verified tokens are remembered.
const REMEMBERED_MAX: usize = 4096;

/// Whom a request is from, and until when that can be said.
#[derive(Clone, Debug)]
pub struct Login {
    /// Who.
    pub caller: Caller,
    /// In seconds since the Unix epoch; a token ends.
    until: u64,
    /// Whether a key of the log vouches for it, which may be rotated at any time.
    own: bool,
}

/// The policy, with its issuers as they are at work.
struct InForce {
    policy: Policy,
    issuers: Vec<Arc<Issuer>>,
}

/// A verified token, as it was under one generation of policy and keys.
struct Remembered {
    generation: u64,
    login: Arc<Login>,
}

/// Knows who comes in.
pub struct Auth {
    path: PathBuf,
    reader: Reader,
    in_force: RwLock<Arc<InForce>>,
    /// Goes up with each change of policy, keys and certificates.
    generation: AtomicU64,
    remembered: Mutex<HashMap<[u8; 32], Remembered>>,
    audit: Arc<Audit>,
    senders: Senders,
    counts: Mutex<HashMap<(&'static str, &'static str), u64>>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("policy", &self.path).finish_non_exhaustive()
    }
}

/// What kind of actor a name says.
pub fn actor(name: &str) -> Result<ActorType, String> {
    let all = [ActorType::Human, ActorType::Agent, ActorType::Workload, ActorType::Automation];
    let found = all.into_iter().find(|actor| actor.name() == name);
    found.ok_or_else(|| format!("{name:?} is none; there are human, agent, workload and automation"))
}

/// Seconds since the Unix epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Auth {
    /// Reads the policy. Keys are loaded by [`Self::load_keys`].
    ///
    /// # Errors
    ///
    /// One line that names file, line, key and mend.
    pub fn new(path: &Path, reader: Reader, audit: Arc<Audit>) -> Result<Arc<Self>, String> {
        let in_force = RwLock::new(Arc::new(in_force(path, &reader, None)?));
        let senders = Senders::open(reader.dir())?;
        let (generation, remembered, counts) = Default::default();
        Ok(Arc::new(Self { path: path.to_owned(), reader, in_force, generation, remembered, audit, senders, counts }))
    }

    fn in_force(&self) -> Arc<InForce> {
        Arc::clone(&self.in_force.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The policy file and the key files that it names.
    pub fn paths(&self) -> Vec<PathBuf> {
        let files = self
            .in_force()
            .issuers
            .iter()
            .flat_map(|issuer| {
                let keys = match &issuer.settings.keys {
                    KeysAt::File(path) => Some(path.clone()),
                    KeysAt::Url(_) => None,
                };
                keys.into_iter().chain(issuer.settings.ca_file.clone())
            })
            .collect::<Vec<_>>();
        [self.path.clone()].into_iter().chain(files).collect()
    }

    /// Which policy is in force.
    pub fn digest(&self) -> String {
        self.in_force().policy.digest.clone()
    }

    /// Which tenants a sender may speak for, by the rules in force: those that name his identity, and
    /// those of claims by what his token said when he came in last.
    pub fn bindings(self: &Arc<Self>) -> custody_query::Bindings {
        let auth = Arc::clone(self);
        Arc::new(move |identity| {
            let in_force = auth.in_force();
            let claims = auth.senders.claims(identity);
            let issuer = identity.strip_prefix("jwt:").and_then(|rest| rest.split_once('#')).map(|(issuer, _)| issuer);
            let token = issuer.zip(claims.as_ref());
            in_force.policy.decide(Subject { identity, token })?.rows.tenants.clone()
        })
    }

    /// Loads the keys of all issuers; those of files must be there.
    pub fn load_keys(&self) -> Result<(), String> {
        load_keys(&self.in_force())
    }

    /// Reads the policy and its files again; if anything is wrong with them, the former stays.
    pub fn reload(&self) -> Result<(), String> {
        let new = in_force(&self.path, &self.reader, Some(&self.in_force()))?;
        // Keys behind URLs that are here already are fetched again later: an issuer that does not answer
        // must not put off what the new policy takes away.
        load_keys(&new)?;
        *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        self.changed();
        Ok(())
    }

    /// What was found out about anybody must be found out anew.
    pub fn changed(&self) {
        self.generation.fetch_add(1, Release);
    }

    /// Makes durable what there is to remember.
    pub fn save(&self) {
        self.senders.save();
    }

    /// Fetches the keys behind URLs again that are due.
    pub fn refresh(&self) {
        for issuer in self.in_force().issuers.iter().filter(|issuer| issuer.is_due()) {
            match issuer.load() {
                Ok(true) => self.changed(),
                Ok(false) => {}
                Err(error) => tracing::warn!(error, "an issuer's keys could not be fetched"),
            }
        }
    }

    /// Who sends a request with these headers over this connection.
    pub async fn login(&self, peer: &Peer, headers: &HeaderMap) -> Result<Arc<Login>, Denied> {
        let mut tried = self.attempt(peer, headers);
        if let Err(Denied::Keys(index, _)) = &tried {
            let issuer = self.in_force().issuers.get(*index).cloned();
            if let Some(issuer) = issuer
                && !issuer.is_file()
            {
                if issuer.again().await {
                    self.changed();
                }
                tried = self.attempt(peer, headers);
                if tried.is_err() && issuer.keys().is_none() {
                    let name = &issuer.settings.issuer;
                    tried = Err(Denied::Unavailable(format!("the keys of {name} could not be fetched; try again")));
                }
            }
        }
        let outcome = match &tried {
            Ok(_) => ("allowed", ""),
            Err(denied @ (Denied::Unknown { .. } | Denied::Keys(..))) => ("unauthenticated", denied.reason()),
            Err(denied @ Denied::Stranger { .. }) => ("forbidden", denied.reason()),
            Err(denied @ Denied::Unavailable(_)) => ("unavailable", denied.reason()),
        };
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(outcome).or_default() += 1;
        match &tried {
            Ok(login) => tracing::trace!(identity = %login.caller.identity, ?peer, "somebody came in"),
            Err(denied) => self.note(denied, peer),
        }
        tried
    }

    /// A failure is logged, and put into the log of the ledger.
    fn note(&self, denied: &Denied, peer: &Peer) {
        let (reason, from) = (denied.reason(), peer.identity());
        let identity = match denied {
            Denied::Stranger { identity } => Some(identity.as_str()),
            _ => None,
        };
        tracing::debug!(reason, peer = from, identity, "somebody could not come in");
        if !matches!(denied, Denied::Unavailable(_)) {
            self.audit.failed(reason, &from, identity);
        }
    }

    /// The same, with the keys that are there.
    fn attempt(&self, peer: &Peer, headers: &HeaderMap) -> Result<Arc<Login>, Denied> {
        let certificate = peer
            .certificate()
            .map_err(|e| Denied::unknown("certificate", format!("the client certificate is not good any more: {e}")))?;
        // First the generation, then what is in force: what is found out under an old policy must not be
        // remembered as of the new one.
        let generation = self.generation.load(Acquire);
        let in_force = self.in_force();
        if let Some(assertion) = only(headers, &ASSERTION)? {
            let address = peer.identity();
            let proxy = certificate.unwrap_or(&address);
            let trusted = |issuer: &Issuer| issuer.settings.proxies.iter().any(|trusted| trusted.matches(proxy));
            if !in_force.issuers.iter().any(|issuer| trusted(issuer)) {
                let why = "X-Pomerium-Jwt-Assertion is believed from a configured proxy only";
                return Err(Denied::unknown("forged_assertion", why));
            }
            return self.by_token((generation, &in_force), assertion, &trusted, false);
        }
        if let Some(value) = only(headers, &header::AUTHORIZATION)? {
            let bearer = value.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
            let Some((_, token)) = bearer else {
                return Err(Denied::unknown("scheme", "Authorization must be: Bearer TOKEN"));
            };
            let believes = |issuer: &Issuer| issuer.settings.proxies.is_empty();
            return self.by_token((generation, &in_force), token.trim(), &believes, true);
        }
        let address = peer.identity();
        let subject = Subject { identity: certificate.unwrap_or(&address), token: None };
        match in_force.policy.decide(subject) {
            Some(rule) => admit(rule, subject.identity, u64::MAX).map(Arc::new),
            None if certificate.is_some() => Err(Denied::Stranger { identity: subject.identity.to_owned() }),
            None => Err(Denied::unknown("missing", "come with a client certificate or a bearer token")),
        }
    }

    /// Who a token says one is, which an issuer that is believed here signed, or the log itself
    /// (no proxy brings tokens of ours). What was verified is remembered by the token's digest.
    fn by_token(
        &self,
        (generation, in_force): (u64, &InForce),
        token: &str,
        believes: &dyn Fn(&Issuer) -> bool,
        or_own: bool,
    ) -> Result<Arc<Login>, Denied> {
        let now = now();
        let kind = in_force.issuers.iter().map(|issuer| u8::from(believes(issuer))).collect::<Vec<u8>>();
        let digest = *blake3::Hasher::new().update(&kind).update(b"/").update(token.as_bytes()).finalize().as_bytes();
        {
            let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = remembered.get(&digest)
                && known.generation == generation
                && now < known.login.until
            {
                return Ok(Arc::clone(&known.login));
            }
        }
        let login = Arc::new(self.verify(in_force, token, believes, or_own)?);
        if login.own {
            return Ok(login);
        }
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, known| known.generation == generation && now < known.login.until);
            if remembered.len() >= REMEMBERED_MAX {
                remembered.clear();
            }
        }
        remembered.insert(digest, Remembered { generation, login: Arc::clone(&login) });
        Ok(login)
    }

    fn verify(
        &self,
        in_force: &InForce,
        token: &str,
        believes: &dyn Fn(&Issuer) -> bool,
        or_own: bool,
    ) -> Result<Login, Denied> {
        let now = now();
        let flawed = |flaw: Flaw| Denied::unknown(flaw.name(), flaw.message());
        let token = Unverified::read(token).map_err(flawed)?;
        let issuer = token.issuer().unwrap_or_default().to_owned();
        let known = in_force.issuers.iter().enumerate();
        let mut known = known.filter(|(_, issuer_at)| issuer_at.settings.issuer == issuer && believes(issuer_at));
        let Some((index, issuer_at)) = known.next() else {
            let is_own =
                or_own && issuer == self.reader.origin() && token.typ.as_deref() == Some(custody_store::TOKEN_TYPE);
            return match is_own {
                true => self.own(in_force, token, now),
                false => Err(flawed(Flaw::UnknownIssuer)),
            };
        };
        if token.typ.as_deref() == Some(custody_store::TOKEN_TYPE) {
            return Err(flawed(Flaw::Claim("typ")));
        }
        let settings = &issuer_at.settings;
        let Some(keys) = issuer_at.keys() else {
            return match issuer_at.is_file() {
                true => Err(Denied::Unavailable(format!("the keys of {issuer} are not there"))),
                false => Err(Denied::Keys(index, Flaw::UnknownKey)),
            };
        };
        let demands = Demands {
            audience: &settings.audience,
            algorithms: &settings.algorithms,
            leeway_seconds: settings.leeway_seconds,
            now,
        };
        let proven = token.verify(&keys, &demands).map_err(|flaw| match flaw {
            Flaw::UnknownKey => Denied::Keys(index, flaw),
            flaw => flawed(flaw),
        })?;
        let identity = format!("jwt:{issuer}#{}", proven.subject);
        let subject = Subject { identity: &identity, token: Some((&issuer, &proven.claims)) };
        let Some(rule) = in_force.policy.decide(subject) else { return Err(Denied::Stranger { identity }) };
        if rule.roles.has(Role::Write) {
            self.senders.came(&identity, &proven.claims, in_force.policy.claims_of(&issuer), now);
        }
        admit(rule, &identity, proven.until)
    }

    /// A token of this log says itself what it is for; a rule that speaks of its bearer can only take away.
    fn own(&self, in_force: &InForce, token: Unverified<'_>, now: u64) -> Result<Login, Denied> {
        let flawed = |flaw: Flaw| Denied::unknown(flaw.name(), flaw.message());
        let granted = own::verify(&self.reader, token, now).map_err(flawed)?;
        let identity = format!("jwt:{}#{}", self.reader.origin(), granted.subject);
        let (mut roles, mut rows) = (granted.roles, granted.rows);
        if let Some(rule) = in_force.policy.decide(Subject { identity: &identity, token: None }) {
            roles = both(roles, rule.roles);
            rows = RowFilter {
                tenants: common(rows.tenants, rule.rows.tenants.clone()),
                workspaces: common(rows.workspaces, rule.rows.workspaces.clone()),
            };
        }
        if roles == Roles::default() {
            return Err(Denied::Stranger { identity });
        }
        let caller = Caller { identity: identity.into(), actor: granted.actor, roles, rows };
        Ok(Login { caller, until: granted.until, own: true })
    }

    /// What there is to say in metrics.
    pub fn families(auth: Option<&Self>) -> Vec<Family> {
        let mut rows: Vec<_> = OUTCOMES
            .iter()
            .map(|outcome| {
                let counts = auth.map(|auth| auth.counts.lock().unwrap_or_else(PoisonError::into_inner));
                let of = |counts: &HashMap<(&str, &str), u64>| -> u64 {
                    counts.iter().filter(|((name, _), _)| name == outcome).map(|(_, count)| count).sum()
                };
                let count = counts.map_or(0, |counts| of(&counts));
                (vec![("outcome", (*outcome).to_owned())], Value::Counter(count as f64))
            })
            .collect();
        let logins = Family { name: "custody_auth_requests", help: "Requests by what became of their login", rows };
        rows = [false, true]
            .into_iter()
            .map(|failed| {
                let count = auth.map_or(0, |auth| {
                    let issuers = &auth.in_force().issuers;
                    issuers.iter().map(|issuer| issuer.fetches[usize::from(failed)].load(Relaxed)).sum()
                });
                let outcome = if failed { "failed" } else { "ok" };
                (vec![("outcome", outcome.to_owned())], Value::Counter(count as f64))
            })
            .collect();
        let keys = Family { name: "custody_auth_key_loads", help: "Times that issuers' keys were loaded", rows };
        vec![logins, keys]
    }
}

/// What can become of a login.
const OUTCOMES: [&str; 4] = ["allowed", "unauthenticated", "forbidden", "unavailable"];

impl Guard for Auth {
    fn admit<'a>(&'a self, peer: &'a Peer, headers: &'a HeaderMap) -> Admitting<'a> {
        Box::pin(async move {
            let login = self.login(peer, headers).await.map_err(|denied| denied.refusal())?;
            match login.caller.may(Role::Write) {
                true => Ok(Arc::clone(&login.caller.identity)),
                false => {
                    let identity = &login.caller.identity;
                    self.audit.failed("no_role_write", &peer.identity(), Some(identity));
                    Err(Refusal::Forbidden(format!("{identity} may not send: it has no role write")))
                }
            }
        })
    }
}

/// The one value of a header; two of them are somebody's trick.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Denied> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let text = value.to_str().map_err(|_| Denied::unknown("unreadable", format!("{name} is not readable")))?;
            Ok(Some(text))
        }
        (Some(_), Some(_)) => Err(Denied::unknown("two_headers", format!("there are two headers {name}"))),
    }
}

fn admit(rule: &Rule, identity: &str, until: u64) -> Result<Login, Denied> {
    if rule.roles == Roles::default() {
        return Err(Denied::Stranger { identity: identity.to_owned() });
    }
    let caller = Caller { identity: identity.into(), actor: rule.actor, roles: rule.roles, rows: rule.rows.clone() };
    Ok(Login { caller, until, own: false })
}

/// The roles that are in both.
fn both(one: Roles, other: Roles) -> Roles {
    Role::ALL.into_iter().filter(|role| one.has(*role) && other.has(*role)).collect()
}

/// What both show; `None` shows all.
fn common(one: Option<Arc<[String]>>, other: Option<Arc<[String]>>) -> Option<Arc<[String]>> {
    match (one, other) {
        (one, None) => one,
        (None, other) => other,
        (Some(one), Some(other)) => Some(one.iter().filter(|name| other.contains(name)).cloned().collect()),
    }
}

fn in_force(path: &Path, reader: &Reader, former: Option<&InForce>) -> Result<InForce, String> {
    let policy = Policy::read(path)?;
    if policy.issuers.iter().any(|issuer| issuer.issuer == reader.origin()) {
        return Err(format!("{}: {} is this log itself, which is no issuer", path.display(), reader.origin()));
    }
    let issuers = Issuer::all(&policy, path)?;
    for issuer in &issuers {
        former.iter().flat_map(|former| &former.issuers).for_each(|old| issuer.inherit(old));
    }
    Ok(InForce { policy, issuers })
}

/// Files must be readable; what is behind a URL may come later, and is not asked for if it is here.
fn load_keys(in_force: &InForce) -> Result<(), String> {
    for issuer in &in_force.issuers {
        issuer.load_file()?;
        if issuer.keys().is_none()
            && let Err(error) = issuer.load()
        {
            tracing::warn!(error, "an issuer's keys could not be fetched; it is tried again");
        }
    }
    Ok(())
}
