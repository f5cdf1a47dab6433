//! JSON Web Tokens (RFC 7519) as RFC 8725 wants them verified.
//!
//! The header is believed in nothing but which of the issuer's keys to try: `jku`, `x5u`, `jwk` and
//! `x5c` are not looked at, `kid` is compared and never a path, a query or a URL. Nothing of a token
//! ever goes into a log line but its issuer and subject.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use custody_proto::seen::is_name;
use serde_json::Value;

use super::key::{Algorithm, Key};

/// A token is at most so long: there is more in some, but not for us.
pub const BYTES_MAX: usize = 16 << 10;

/// Longest subject.
const SUBJECT_CHARS_MAX: usize = 512;

/// What issuers sign with the same keys and is no proof of who somebody is: logout tokens and other
/// security events (RFC 8417), proofs of possession (RFC 9449).
const OTHER_TYPES: [&str; 3] = ["logout+jwt", "secevent+jwt", "dpop+jwt"];

/// Why a token is not believed: its name in metrics and records, and the words for its bearer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It is not a token of three parts that can be read.
    Unreadable(&'static str),
    /// Nobody here knows who issued it.
    UnknownIssuer,
    /// Its algorithm is not taken.
    Algorithm,
    /// Its issuer has no such key; perhaps it has by now.
    UnknownKey,
    /// The signature is not that of its issuer.
    Signature,
    /// It is over.
    Expired,
    /// It has not begun.
    NotYet,
    /// It was made for somebody else.
    Audience,
    /// A claim is missing or is not what it must be.
    Claim(&'static str),
}

impl Flaw {
    /// Its name in metrics and records.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYet => "not_yet_valid",
            Self::Audience => "audience",
            Self::Claim(_) => "claim",
        }
    }

    /// For its bearer.
    pub fn message(&self) -> String {
        match self {
            Self::Unreadable(why) => format!("the token is not readable: {why}"),
            Self::UnknownIssuer => "the token's issuer is not one that is believed here".into(),
            Self::Algorithm => "the token is signed with an algorithm that is not taken from its issuer".into(),
            Self::UnknownKey => "the token is signed with a key that its issuer does not publish".into(),
            Self::Signature => "the token's signature is not that of its issuer".into(),
            Self::Expired => "the token has expired; get a new one".into(),
            Self::NotYet => "the token is not valid yet".into(),
            Self::Audience => "the token was made for another audience".into(),
            Self::Claim(name) => format!("the token's claim {name} is missing or not usable"),
        }
    }
}

/// A token that was read, and nothing of it believed yet.
pub struct Unverified<'a> {
    message: &'a str,
    signature: Vec<u8>,
    algorithm: Option<Algorithm>,
    /// Which key, by its issuer's name for it.
    kid: Option<String>,
    /// What kind of token.
    pub typ: Option<String>,
    /// What it says.
    pub claims: Value,
}

/// What must be so, beside the signature.
pub struct Demands<'a> {
    /// One of them must be the audience.
    pub audience: &'a [String],
    /// The algorithms that are taken.
    pub algorithms: &'a [Algorithm],
    /// How far clocks may be apart.
    pub leeway_seconds: u64,
    /// Now, in seconds since the Unix epoch.
    pub now: u64,
}

/// What a token proves.
#[derive(Clone, Debug)]
pub struct Proven {
    /// Whom it is about.
    pub subject: String,
    /// Until when, with the leeway.
    pub until: u64,
    /// All that it says.
    pub claims: Value,
}

impl<'a> Unverified<'a> {
    /// Takes a token apart.
    pub fn read(token: &'a str) -> Result<Self, Flaw> {
        if token.len() > BYTES_MAX {
            return Err(Flaw::Unreadable("it is too long"));
        }
        let parts = token.rsplit_once('.').and_then(|(message, signature)| {
            let (header, payload) = message.split_once('.')?;
            (!payload.contains('.')).then_some((message, header, payload, signature))
        });
        let (message, header, payload, signature) = parts.ok_or(Flaw::Unreadable("it has not three parts"))?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Flaw::Unreadable("it is not base64url"));
        let json = |part: &str| object(&decode(part)?);
        let header = json(header)?;
        // RFC 7515, section 4.1.11: what must be understood and is not.
        if header.get("crit").is_some() || header.get("b64").is_some() {
            return Err(Flaw::Unreadable("its header asks for an extension"));
        }
        let text = |name: &str| match header.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(Flaw::Unreadable("its header has what is no text where one belongs")),
        };
        let algorithm = Algorithm::of_name(&text("alg")?.unwrap_or_default());
        // Names of media types know no capitals (RFC 7515, section 4.1.9).
        let typ = text("typ")?.map(|typ| typ.to_ascii_lowercase());
        let typ = typ.map(|typ| typ.strip_prefix("application/").map(str::to_owned).unwrap_or(typ));
        // RFC 8725, section 3.11: an issuer signs other things than proofs of identity.
        if typ.as_deref().is_some_and(|typ| OTHER_TYPES.contains(&typ)) {
            return Err(Flaw::Claim("typ"));
        }
        let (signature, claims) = (decode(signature)?, json(payload)?);
        Ok(Self { message, signature, algorithm, kid: text("kid")?, typ, claims })
    }

    /// Who it says issued it.
    pub fn issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Value::as_str)
    }

    /// Believes it, if one of the issuer's keys signed it and it says what it must.
    pub fn verify(self, keys: &[Key], demands: &Demands<'_>) -> Result<Proven, Flaw> {
        let algorithm = self.algorithm.filter(|alg| demands.algorithms.contains(alg)).ok_or(Flaw::Algorithm)?;
        let named: Vec<&Key> = match &self.kid {
            Some(kid) => keys.iter().filter(|key| key.id.as_ref() == Some(kid)).collect(),
            None => keys.iter().collect(),
        };
        if named.is_empty() {
            return Err(Flaw::UnknownKey);
        }
        let mut fitting = named.into_iter().filter(|key| key.is_for(algorithm)).peekable();
        if fitting.peek().is_none() {
            return Err(Flaw::Algorithm);
        }
        if !fitting.any(|key| key.verifies(algorithm, self.message.as_bytes(), &self.signature)) {
            return Err(Flaw::Signature);
        }
        self.believe(demands)
    }

    /// What it says, once it is known who says it.
    fn believe(self, demands: &Demands<'_>) -> Result<Proven, Flaw> {
        let claims = &self.claims;
        // RFC 7519, section 2: NumericDate may have a fraction.
        let time = |name: &'static str| match claims.get(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(time) if (0.0..1e12).contains(&time) => Ok(Some(time as u64)),
                _ => Err(Flaw::Claim(name)),
            },
        };
        let (now, leeway) = (demands.now, demands.leeway_seconds);
        let until = time("exp")?.ok_or(Flaw::Claim("exp"))?.saturating_add(leeway);
        if now >= until {
            return Err(Flaw::Expired);
        }
        if time("nbf")?.is_some_and(|begin| begin > now + leeway) {
            return Err(Flaw::NotYet);
        }
        let wanted = |value: &Value| value.as_str().is_some_and(|aud| demands.audience.iter().any(|want| want == aud));
        let is_for_us = match claims.get("aud") {
            Some(Value::Array(many)) => many.iter().any(wanted),
            Some(one) => wanted(one),
            None => false,
        };
        if !is_for_us {
            return Err(Flaw::Audience);
        }
        let subject = claims.get("sub").and_then(Value::as_str).ok_or(Flaw::Claim("sub"))?;
        if !is_subject(subject) {
            return Err(Flaw::Claim("sub"));
        }
        Ok(Proven { subject: subject.to_owned(), until, claims: self.claims })
    }
}

/// Whether a text can be a name: it says what is seen of it.
pub fn is_subject(text: &str) -> bool {
    is_name(text) && text.chars().count() <= SUBJECT_CHARS_MAX
}

/// A JSON object that has no name twice: of two values one reader takes the first, and another the
/// last (RFC 7519, section 4, lets us refuse).
fn object(bytes: &[u8]) -> Result<Value, Flaw> {
    let unreadable = |_| Flaw::Unreadable("it is not a JSON object, or has a name twice");
    serde_json::from_slice::<Unique>(bytes).map(|Unique(members)| Value::Object(members)).map_err(unreadable)
}

/// The members of an object, each name once. What stands within them is not looked into.
struct Unique(serde_json::Map<String, Value>);

impl<'de> serde::Deserialize<'de> for Unique {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Unique;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut members: A) -> Result<Unique, A::Error> {
                let mut out = serde_json::Map::new();
                while let Some((name, value)) = members.next_entry::<String, Value>()? {
                    if out.insert(name, value).is_some() {
                        return Err(serde::de::Error::custom("a name twice"));
                    }
                }
                Ok(Unique(out))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}
