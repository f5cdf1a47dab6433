//! Tokens that the log signs for those who may ask it (RFC 7519).
//!
//! They are signed by the same Ed25519 key as notes are. Neither passes for the other: what is
//! signed of a note ends with a line feed (C2SP signed-note), and what is signed of a token has none.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::{Error, Writer};

/// The type of these tokens (RFC 8725, section 3.11): nobody else's have it.
pub const TOKEN_TYPE: &str = "custody+jwt";

impl Writer {
    /// A JSON Web Token with these claims, an object of JSON, signed by the log's Ed25519 key.
    ///
    /// # Errors
    ///
    /// If the signer is elsewhere and does not answer.
    pub fn sign_token(&self, claims: &str) -> Result<String, Error> {
        let Some(key) = self.keys.all().first() else { return Err(Error::invalid("the log has no signing key")) };
        let id = key.verifier().id();
        let header = format!(r#"{{"alg":"EdDSA","typ":"{TOKEN_TYPE}","kid":"{id:08x}"}}"#);
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        assert!(!message.contains('\n'), "what is signed of a token is no text of a note");
        let signature = key.sign_raw(message.as_bytes())?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
