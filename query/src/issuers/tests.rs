//! Signatures by the examples of the RFCs, and by keys made here.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::json;

use super::*;

/// RFC 8037, appendix A.4: a JWS by Ed25519.
#[test]
fn the_example_of_rfc_8037() {
    let mut issuers = Issuers::default();
    let jwks = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    assert_eq!(issuers.add(None, jwks).unwrap(), 1);
    let token = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.\
        hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    assert_eq!(issuers.check(token).0, TokenState::Verified);
    assert_eq!(issuers.check(&token.replace("RXhh", "RXhi")).0, TokenState::Invalid);
}

/// RFC 7515, appendix A.3: a JWS by ECDSA over P-256.
#[test]
fn the_example_of_rfc_7515() {
    let jwks = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
    let token = "eyJhbGciOiJFUzI1NiJ9.\
        eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
        DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    let mut issuers = Issuers::default();
    issuers.add(Some("joe"), jwks).unwrap();
    assert_eq!(issuers.check(token).0, TokenState::Verified);
    let mut others = Issuers::default();
    others.add(Some("jane"), jwks).unwrap();
    assert_eq!(others.check(token).0, TokenState::Unverified, "keys of another issuer say nothing of joe");
}

struct Signer {
    pair: EcdsaKeyPair,
    issuers: Issuers,
}

impl Signer {
    fn new() -> Self {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).unwrap();
        let point = pair.public_key().as_ref()[1..].to_vec();
        let part = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        let jwks = json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "k1", "x": part(0..32), "y": part(32..64)}]});
        let mut issuers = Issuers::default();
        issuers.add(Some("https://as.example.com"), &jwks.to_string()).unwrap();
        Self { pair, issuers }
    }

    fn token(&self, head: Json, claims: Json) -> String {
        let part = |value: &Json| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&head), part(&claims));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    /// The state of this token on the record of grant g1, which ends at 2000.
    fn state(&self, token: &str) -> TokenState {
        let row = EventRow { grant_id: Some("g1".into()), ..EventRow::default() };
        let said =
            json!({"authz.grant.issuer": "https://as.example.com", "authz.grant.expires_at": "1970-01-01T00:33:20Z"});
        judge(&self.issuers, token, &row, said.as_object().unwrap())
    }
}

#[test]
fn a_token_vouches_only_for_what_it_says() {
    let signer = Signer::new();
    let head = json!({"alg": "ES256", "kid": "k1"});
    let claims = |more: Json| {
        let mut claims = json!({"iss": "https://as.example.com", "jti": "g1", "exp": 2000});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    };
    let state = |head: &Json, more: Json| signer.state(&signer.token(head.clone(), claims(more)));
    assert_eq!(state(&head, json!({})), TokenState::Verified);
    assert_eq!(state(&head, json!({"jti": "another"})), TokenState::Invalid, "a token of another grant");
    assert_eq!(state(&head, json!({"exp": 1999})), TokenState::Invalid, "the record says a later end than the token");
    assert_eq!(state(&head, json!({"nbf": 1})), TokenState::Invalid, "the record leaves a limit out");
    assert_eq!(state(&head, json!({"jti": null})), TokenState::Unverified, "it names no grant");
    assert_eq!(
        state(&json!({"alg": "ES256", "kid": "k2"}), json!({})),
        TokenState::Invalid,
        "not a key of this issuer"
    );
    assert_eq!(state(&head, json!({"iss": "https://evil.example.com"})), TokenState::Unverified, "nobody we know");
    assert_eq!(state(&json!({"alg": "none"}), json!({})), TokenState::Invalid);
    assert_eq!(state(&json!({"alg": "ES256", "kid": "k1", "crit": ["b64"]}), json!({})), TokenState::Invalid);
    for text in ["", "a.b.c", "eyJ.eyJ.", "....", "not a token"] {
        assert_eq!(signer.state(text), TokenState::Invalid, "{text}");
    }
    let unsigned = signer.token(head, claims(json!({})));
    assert_eq!(signer.state(unsigned.rsplit_once('.').unwrap().0), TokenState::Invalid);
}

#[test]
fn key_sets_that_are_none_are_refused() {
    for (text, why) in
        [("[]", "keys"), ("{", "JWK"), (r#"{"keys":[]}"#, "none"), (r#"{"keys":[{"kty":"oct","k":"AA"}]}"#, "none")]
    {
        let error = Issuers::default().add(None, text).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(Issuers::load(&["/nowhere/keys.json".into()]).unwrap_err().to_string().contains("/nowhere/keys.json"));
}
