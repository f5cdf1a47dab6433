//! The ledger's own tokens: for scripts, minutes to a day, signed by the log's Ed25519 key.
//!
//! Their issuer is the log's origin and their type is one that no other issuer's tokens may have, so
//! that neither passes for the other. What the log signs else are notes, whose text ends with a line
//! feed: no token's does.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use custody_query::{ActorType, Role, Roles, RowFilter};
use custody_store::note::Algorithm as NoteAlgorithm;
use custody_store::system::{AUDIT_IDENTITY, Attribute, SystemRecord};
use custody_store::{Error, Reader, TOKEN_TYPE, Writer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::audit::CONFIG;
use super::key::{Algorithm, Key};
use super::token::{Demands, Flaw, Unverified, is_subject};

/// The shortest and the longest life of a token.
pub const TTL_SECONDS: std::ops::RangeInclusive<u64> = 60..=86_400;

/// Clocks are the same: the server signs and verifies.
const LEEWAY_SECONDS: u64 = 5;

/// What a token shall say.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wanted {
    /// For whom: a name for the script.
    pub identity: String,
    /// What it is: agent, workload or automation.
    pub actor: String,
    /// What it may do.
    pub roles: Vec<String>,
    /// Which tenants' rows it sees; all, if `None`.
    pub tenants: Option<Vec<String>>,
    /// Which workspaces'.
    pub workspaces: Option<Vec<String>>,
    /// How long it lives.
    pub ttl_seconds: u64,
}

/// What a token of ours proves.
#[derive(Clone, Debug)]
pub struct Granted {
    /// For whom it was made.
    pub subject: String,
    /// What he is.
    pub actor: ActorType,
    /// What he may do.
    pub roles: Roles,
    /// What he sees.
    pub rows: RowFilter,
    /// Until when.
    pub until: u64,
}

/// An age as people write it, as the life of a token.
pub fn ttl(text: &str) -> Result<Duration, String> {
    let age = crate::keep::age(text)?;
    match TTL_SECONDS.contains(&age.as_secs()) {
        true => Ok(age),
        false => Err("a token lives 60s at least and 24h at most".into()),
    }
}

impl Wanted {
    /// The claims of such a token, or what is wrong with it.
    pub fn claims(&self, origin: &str, now: u64, id: &str) -> Result<Value, String> {
        if self.identity.len() > 256 || !is_subject(&self.identity) {
            return Err("--identity: give the script a name of at most 256 bytes, all of which are seen".into());
        }
        if matches!(super::actor(&self.actor)?, ActorType::Human) {
            return Err("--actor: a person comes with a token of his own issuer; this is for scripts".into());
        }
        if self.roles.is_empty() {
            return Err("--role: name at least one".into());
        }
        for name in &self.roles {
            let all = Role::ALL.map(Role::name).join(", ");
            Role::of_name(name).ok_or_else(|| format!("--role: {name:?} is none; there are {all}"))?;
        }
        if !TTL_SECONDS.contains(&self.ttl_seconds) {
            return Err("--ttl: 60s at least and 24h at most".into());
        }
        let mut claims = json!({
            "iss": origin, "aud": origin, "sub": self.identity, "iat": now, "nbf": now, "exp": now + self.ttl_seconds,
            "jti": id, "actor": self.actor, "roles": self.roles,
        });
        for (name, list) in [("tenants", &self.tenants), ("workspaces", &self.workspaces)] {
            if let Some(list) = list {
                claims[name] = json!(list);
            }
        }
        Ok(claims)
    }
}

/// Makes a token, and says in the log that it was made; `identity` is who asked for it.
pub fn make(writer: &mut Writer, wanted: &Wanted, identity: &str) -> Result<Value, Error> {
    let mut id = [0; 16];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| Error::unavailable("the system gives no random bytes"))?;
    let id = const_hex::encode(id);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let claims = wanted.claims(writer.reader().origin(), time.as_secs(), &id).map_err(Error::invalid)?;
    let token = writer.sign_token(&claims.to_string())?;
    let mut record = SystemRecord::new(CONFIG)
        .with("custody.audit.action", "token")
        .with("custody.audit.identity", identity)
        .with("custody.audit.token_id", id)
        .with("custody.audit.subject", wanted.identity.as_str())
        .with("custody.audit.actor", wanted.actor.as_str())
        .with("custody.audit.roles", Attribute::Texts(wanted.roles.clone()))
        .with("custody.audit.seconds", wanted.ttl_seconds);
    for (name, list) in [("tenants", &wanted.tenants), ("workspaces", &wanted.workspaces)] {
        if let Some(list) = list {
            record = record.with(&format!("custody.audit.{name}"), Attribute::Texts(list.clone()));
        }
    }
    // Said before it is given out: there is no token that the log does not know.
    let request = record.prepare_as(AUDIT_IDENTITY, time.as_nanos() as u64)?;
    writer.append(vec![request])?;
    Ok(json!({"token": token, "expires": time.as_secs() + wanted.ttl_seconds}))
}

/// Verifies a token of this log.
pub fn verify(reader: &Reader, token: Unverified<'_>, now: u64) -> Result<Granted, Flaw> {
    if token.typ.as_deref() != Some(TOKEN_TYPE) {
        return Err(Flaw::Claim("typ"));
    }
    let keys = reader.keys();
    let keys = keys.iter().filter(|key| key.algorithm() == NoteAlgorithm::Ed25519);
    let keys: Vec<Key> = keys.map(|key| Key::ed25519(format!("{:08x}", key.id()), key.public())).collect();
    let audience = [reader.origin().to_owned()];
    let algorithms = [Algorithm::EdDsa];
    let demands = Demands { audience: &audience, algorithms: &algorithms, leeway_seconds: LEEWAY_SECONDS, now };
    let proven = token.verify(&keys, &demands)?;
    let list = |name: &'static str| -> Result<Option<Vec<String>>, Flaw> {
        let Some(value) = proven.claims.get(name) else { return Ok(None) };
        let texts = value.as_array().map(|all| all.iter().map(|v| v.as_str().map(str::to_owned)).collect());
        texts.flatten().ok_or(Flaw::Claim(name)).map(Some)
    };
    let roles = list("roles")?.ok_or(Flaw::Claim("roles"))?;
    let roles = roles.iter().map(|name| Role::of_name(name).ok_or(Flaw::Claim("roles"))).collect::<Result<_, _>>()?;
    let actor = proven.claims.get("actor").and_then(Value::as_str).ok_or(Flaw::Claim("actor"))?;
    let actor = super::actor(actor).ok().filter(|actor| *actor != ActorType::Human).ok_or(Flaw::Claim("actor"))?;
    let rows = RowFilter { tenants: list("tenants")?.map(Into::into), workspaces: list("workspaces")?.map(Into::into) };
    Ok(Granted { subject: proven.subject, actor, roles, rows, until: proven.until })
}
