//! Tokens of grants: whether a JWS (RFC 7515) was signed by its issuer.
//!
//! The issuers' keys come from files (JWK sets, RFC 7517) when the server starts. A state is
//! decided when a record is mapped; after keys were added, `custody rebuild` decides anew. Rows
//! never hold a token that somebody could use: its signature part is replaced by a digest.

use std::sync::OnceLock;

use aws_lc_rs::signature as sig;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value as Json};

use crate::Error;
use crate::attributes::{Attributes, TOKEN, parse_time};
use crate::event::EventRow;
use crate::mapping::capability;

/// The attribute in rows that says whether it was checked. What a sender calls so is dropped.
pub(crate) const STATE: &str = "authz.grant.token.state";

static CONFIGURED: OnceLock<Issuers> = OnceLock::new();

/// The keys of issuers.
#[derive(Debug, Default)]
pub struct Issuers {
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    /// Whose it is; `None` for keys of a file that names no issuer.
    issuer: Option<String>,
    id: Option<String>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
    Rsa { n: Vec<u8>, e: Vec<u8> },
}

/// What is known of a token's signature.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenState {
    /// Signed by a key of its issuer, and it says what the record says.
    Verified,
    /// Not signed by its issuer, or it says something else than the record.
    Invalid,
    /// No keys of its issuer are configured, or it names no grant.
    Unverified,
}

impl TokenState {
    /// Its name in rows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Invalid => "invalid",
            Self::Unverified => "unverified",
        }
    }
}

impl Issuers {
    /// Adds the keys of a JWK set, of one issuer if it is named. Keys of unknown kinds are left
    /// out, as RFC 7517 section 5 wants it; a set without any usable key is an error.
    pub fn add(&mut self, issuer: Option<&str>, jwks: &str) -> Result<usize, Error> {
        let set: Json = serde_json::from_str(jwks).map_err(|e| Error::invalid(format!("it is no JWK set: {e}")))?;
        let keys = set.get("keys").and_then(Json::as_array);
        let keys = keys.ok_or_else(|| Error::invalid("it is no JWK set: it has no list `keys`".to_owned()))?;
        let before = self.keys.len();
        for key in keys {
            if key.get("use").and_then(Json::as_str).is_some_and(|purpose| purpose != "sig") {
                continue;
            }
            let Some(material) = material(key) else { continue };
            let id = key.get("kid").and_then(Json::as_str).map(str::to_owned);
            self.keys.push(Key { issuer: issuer.map(str::to_owned), id, material });
        }
        match self.keys.len() - before {
            0 => {
                Err(Error::invalid("none of its keys can be used; EC P-256 and P-384, Ed25519 and RSA are".to_owned()))
            }
            added => Ok(added),
        }
    }

    /// Reads files as the command line names them: `ISSUER=FILE`, or `FILE` for any issuer.
    pub fn load(named: &[String]) -> Result<Self, Error> {
        let mut out = Self::default();
        for one in named {
            // An issuer is a URL and may hold `=`; a file's name seldom does.
            let (issuer, file) =
                one.rsplit_once('=').map_or((None, one.as_str()), |(issuer, file)| (Some(issuer), file));
            let read = std::fs::read_to_string(file).map_err(|e| Error::invalid(format!("{file}: {e}")))?;
            out.add(issuer, &read).map_err(|e| Error::invalid(format!("{file}: {e}")))?;
        }
        Ok(out)
    }

    /// Puts these in force, for the life of the process. Only the first call counts.
    pub fn put_in_force(self) {
        let _ = CONFIGURED.set(self);
    }

    /// Whether a token was signed by its issuer. `claims` is its payload.
    fn check(&self, token: &str) -> (TokenState, Option<Json>) {
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return (TokenState::Invalid, None);
        };
        let json = |part: &str| serde_json::from_slice::<Json>(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
        let (Some(head), Ok(signature)) = (json(header), URL_SAFE_NO_PAD.decode(signature)) else {
            return (TokenState::Invalid, None);
        };
        let claims = json(payload);
        let issuer = claims.as_ref().and_then(|c| c.get("iss")).and_then(Json::as_str);
        let text = |name: &str| head.get(name).and_then(Json::as_str);
        let (algorithm, id) = (text("alg").unwrap_or("none"), text("kid"));
        // RFC 7515 section 4.1.11: what must be understood and is not makes a token invalid.
        if head.get("crit").is_some() {
            return (TokenState::Invalid, claims);
        }
        let own = self.keys.iter().filter(|key| key.issuer.is_some() && key.issuer.as_deref() == issuer).count();
        let fits = |key: &&Key| {
            (key.issuer.is_none() || key.issuer.as_deref() == issuer)
                && (id.is_none() || key.id.is_none() || key.id.as_deref() == id)
        };
        let signed = token.rsplit_once('.').map_or("", |(signed, _)| signed);
        let mut tried = false;
        for key in self.keys.iter().filter(fits) {
            tried = true;
            if key.material.verifies(algorithm, signed.as_bytes(), &signature) {
                return (TokenState::Verified, claims);
            }
        }
        // An issuer whose keys are configured signs with no others.
        (if tried || own > 0 { TokenState::Invalid } else { TokenState::Unverified }, claims)
    }
}

fn material(key: &Json) -> Option<Material> {
    let text = |name: &str| key.get(name).and_then(Json::as_str);
    let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?.trim_end_matches('=')).ok();
    let point = |length: usize| {
        let (x, y) = (bytes("x")?, bytes("y")?);
        (x.len() == length && y.len() == length).then(|| [&[4][..], &x, &y].concat())
    };
    match (text("kty")?, text("crv")) {
        ("EC", Some("P-256")) => point(32).map(Material::P256),
        ("EC", Some("P-384")) => point(48).map(Material::P384),
        ("OKP", Some("Ed25519")) => bytes("x").filter(|x| x.len() == 32).map(Material::Ed25519),
        ("RSA", _) => Some(Material::Rsa { n: bytes("n")?, e: bytes("e")? }),
        _ => None,
    }
}

impl Material {
    /// Whether a signature by this algorithm (RFC 7518, RFC 8037) is of this key.
    fn verifies(&self, algorithm: &str, signed: &[u8], signature: &[u8]) -> bool {
        let plain = |how: &'static dyn sig::VerificationAlgorithm, key: &[u8]| {
            sig::UnparsedPublicKey::new(how, key).verify(signed, signature).is_ok()
        };
        match (self, algorithm) {
            (Self::P256(key), "ES256") => plain(&sig::ECDSA_P256_SHA256_FIXED, key),
            (Self::P384(key), "ES384") => plain(&sig::ECDSA_P384_SHA384_FIXED, key),
            (Self::Ed25519(key), "EdDSA" | "Ed25519") => plain(&sig::ED25519, key),
            (Self::Rsa { n, e }, name) => {
                let how = match name {
                    "RS256" => &sig::RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &sig::RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &sig::RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &sig::RSA_PSS_2048_8192_SHA256,
                    "PS384" => &sig::RSA_PSS_2048_8192_SHA384,
                    "PS512" => &sig::RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                sig::RsaPublicKeyComponents { n, e }.verify(how, signed, signature).is_ok()
            }
            _ => false,
        }
    }
}

/// Writes into a row's attributes what is known of the token that came with the record.
pub(crate) fn stamp(said: &mut Map<String, Json>, row: &EventRow, attributes: Attributes<'_>) {
    said.remove(STATE);
    let Some(token) = attributes.text(TOKEN) else { return };
    // Tokens of other formats than JWS are read, and never checked: their keys are not configured.
    let is_jws = token.trim_start_matches("Bearer ").starts_with("eyJ");
    if !is_jws && capability::read(&token).is_some() {
        said.insert(STATE.to_owned(), TokenState::Unverified.name().into());
        return;
    }
    let none = Issuers::default();
    let state = judge(CONFIGURED.get().unwrap_or(&none), &token, row, said);
    said.insert(STATE.to_owned(), state.name().into());
}

/// A token that was signed vouches only for what it says: it must name this grant, and nothing
/// that both say may differ.
fn judge(issuers: &Issuers, token: &str, row: &EventRow, said: &Map<String, Json>) -> TokenState {
    let (state, claims) = issuers.check(token.strip_prefix("Bearer ").unwrap_or(token));
    let (TokenState::Verified, Some(Json::Object(claims))) = (state, claims) else {
        return if state == TokenState::Verified { TokenState::Unverified } else { state };
    };
    let claim = |name: &str| claims.get(name).and_then(Json::as_str);
    let Some(id) = claim("jti").or_else(|| claim("txn")) else { return TokenState::Unverified };
    let time = |value: &Json| match value {
        Json::String(text) => parse_time(text).map(|time| time.0 / 1_000_000_000),
        other => other.as_i64(),
    };
    let differs = |name: &str, attribute: &str| match (claims.get(name), said.get(attribute)) {
        (Some(claim), Some(value)) => time(claim) != time(value),
        // A limit that the token sets and the record leaves out is a wider grant than was signed.
        (Some(_), None) => true,
        _ => false,
    };
    let issuer = said.get("authz.grant.issuer").and_then(Json::as_str);
    let other = row.grant_id.as_deref() != Some(id)
        || (issuer.is_some() && claim("iss").is_some() && issuer != claim("iss"))
        || differs("exp", "authz.grant.expires_at")
        || differs("nbf", "authz.grant.not_before");
    if other { TokenState::Invalid } else { TokenState::Verified }
}

#[cfg(test)]
mod tests;
