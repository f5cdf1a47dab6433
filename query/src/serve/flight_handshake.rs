//! The handshake of Flight: clients that are given a user and a password show them once, as Basic (RFC 7617), and
//! come with what they get for it from then on.
//!
//! There are no passwords here. Who comes this far was let in by what is in front; what he showed as a password, or
//! as a token, is what he gets back, to be looked at again with each request.

use std::pin::Pin;

use arrow_flight::HandshakeResponse;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use futures::stream::{self, Stream};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Response, Status};

/// What a handshake is answered with.
pub(super) type Shaken = Response<Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>>>;

/// Answers the handshake of who came with this metadata.
pub(super) fn shake(shown: &MetadataMap) -> Result<Shaken, Status> {
    let token = token(shown)?;
    let payload = bytes::Bytes::from(token.clone());
    let answer = HandshakeResponse { protocol_version: 0, payload };
    let mut response: Shaken = Response::new(Box::pin(stream::iter([Ok(answer)])));
    let value = MetadataValue::try_from(format!("Bearer {token}"));
    let value =
        value.map_err(|_| Status::invalid_argument("a password that is a token has visible characters only"))?;
    response.metadata_mut().insert("authorization", value);
    Ok(response)
}

/// The token that was shown, as such or as a password; where nobody asks for one, any.
fn token(shown: &MetadataMap) -> Result<String, Status> {
    let Some(value) = shown.get("authorization") else { return Ok("anybody".into()) };
    let wrong = || Status::unauthenticated("Authorization must be: Bearer TOKEN, or Basic with the token as password");
    let (scheme, rest) = value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or_else(wrong)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(wrong());
    }
    // Arrow's own clients leave the padding out.
    let pair = BASE64_STANDARD_NO_PAD
        .decode(rest.trim().trim_end_matches('='))
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = pair.ok_or_else(wrong)?;
    let (_, password) = pair.split_once(':').ok_or_else(wrong)?;
    Ok(if password.is_empty() { "anybody".into() } else { password.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_shown_is_given_back_as_a_token() {
        let shaken = |value: Option<&str>| {
            let mut shown = MetadataMap::new();
            if let Some(value) = value {
                shown.insert("authorization", value.parse().unwrap());
            }
            shake(&shown).map(|r| r.metadata().get("authorization").unwrap().to_str().unwrap().to_owned())
        };
        assert_eq!(shaken(None).unwrap(), "Bearer anybody");
        assert_eq!(shaken(Some("Basic YWRhOmV5LjEuMg==")).unwrap(), "Bearer ey.1.2");
        assert_eq!(shaken(Some("Basic YWRhOmV5LjEuMg")).unwrap(), "Bearer ey.1.2");
        assert_eq!(shaken(Some("bearer ey.1.2")).unwrap(), "Bearer ey.1.2");
        for wrong in ["Basic", "Basic !", "Basic YWRh", "Digest x", "Basic YWRhOgo="] {
            let error = shaken(Some(wrong)).unwrap_err();
            assert!(matches!(error.code(), tonic::Code::Unauthenticated | tonic::Code::InvalidArgument), "{wrong}");
        }
    }
}
