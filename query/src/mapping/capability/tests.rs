//! Tokens read and broken; those that libraries made are in `mapping/recorded_tests.rs`.

use proptest::prelude::*;

use super::*;

/// A delegation of UCAN 1.0 (an envelope of DAG-CBOR), and its CID by another implementation.
const UCAN: (&str, &str) = (
    "glhAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAKJhaEQ07QFxc3VjYW4vZGxnQDEuMC4wLXJjLjGnY2lzc21kaWQ6a2V5Ono2TWtBY2F1ZG1kaWQ6a2V5Ono2TWtCY3N1Ym1kaWQ6a2V5Ono2TWtDY2NtZG0vYWNjb3VudC9yZWFkY3BvbIGDYj09Yy5pZGNhLTFlbm9uY2VCAQJjZXhwGms27IA",
    "bafyreihdz66pj6tq6cyvp72gcnja5tqoxr3yqjxcfiaq6clbwmlnmcnlee",
);

fn jwt(claims: &Json) -> String {
    let part = |value: &Json| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2ln", part(&json!({"alg": "EdDSA"})), part(claims))
}

#[test]
fn a_ucan_of_version_1() {
    let read = read(UCAN.0).unwrap();
    assert_eq!((read.format, read.id.as_deref()), ("ucan", Some(UCAN.1)));
    assert_eq!((read.issuer.as_deref(), read.subject.as_deref()), (Some("did:key:z6MkA"), Some("did:key:z6MkB")));
    assert_eq!(read.actions, ["/account/read", "/account/read/*"]);
    assert_eq!((read.initiator.as_deref(), read.expires_at), (Some("did:key:z6MkC"), Some(1_798_761_600)));
    assert_eq!(read.constraints.as_deref(), Some(r#"[[["==",".id","a-1"]]]"#), "a policy is not decided about");
}

#[test]
fn ucans_of_earlier_versions_are_jwts() {
    let before = json!({"ucv": "0.10.0", "iss": "did:key:a", "aud": "did:key:b", "exp": 100,
        "cap": {"mailto:x@example.com": {"msg/send": [{}], "*": [{}]}}, "prf": ["bafy1"]});
    let read = read(&jwt(&before)).unwrap();
    assert_eq!(
        (read.format, read.parent.as_deref(), read.actions.as_slice()),
        ("ucan", Some("bafy1"), &["msg/send".to_owned()][..])
    );
    assert!(read.id.is_some_and(|id| id.starts_with("bafkrei")), "the CID of a JWT is that of raw bytes");
    let old = json!({"iss": "did:key:a", "aud": "did:key:b", "exp": 100, "att": [{"with": "x", "can": "crud/read"}], "prf": ["eyJh"]});
    let read = super::read(&jwt(&old)).unwrap();
    assert_eq!((read.parent, read.actions), (None, vec!["crud/read".to_owned()]));
}

/// draft-niyikiza-oauth-attenuating-agent-tokens: a chain of two, each child naming the key and the digest of its parent.
#[test]
fn attenuating_agent_tokens() {
    let key = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
    let token = |more: Json| {
        let mut claims = json!({"jti": "t-1", "iss": "https://as.example.com", "iat": 1, "exp": 100, "del_depth": 0, "del_max_depth": 2,
            "cnf": {"jwk": key}, "authorization_details": [{"type": "attenuating_agent_token",
                "tools": {"read_file": {"path": {"type": "one_of", "values": ["/a", "/b"]}, "size": {"type": "range", "max": 10}}}}]});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        jwt(&claims)
    };
    let (first, parent) = (token(json!({})), read(&token(json!({}))).unwrap());
    assert_eq!((parent.format, parent.depth, parent.max_depth), ("aat", Some(0), Some(2)));
    // The thumbprint that RFC 8037, appendix A.3 has for this key.
    let holder = "urn:ietf:params:oauth:jwk-thumbprint:sha-256:kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";
    assert_eq!(parent.subject.as_deref(), Some(holder));
    assert_eq!(parent.constraints.as_deref(), Some(r#"{"path":["/a","/b"],"size":{"max":10}}"#));
    let digest = URL_SAFE_NO_PAD.encode(Sha256::digest(first.rsplit_once('.').unwrap().0));
    let child = read(&token(json!({"jti": "t-2", "iss": holder, "del_depth": 1, "par_hash": digest}))).unwrap();
    assert_eq!((child.parent_hash, child.issuer), (parent.hash, parent.subject));
}

/// One tool's constraint that is not understood stays in its place, and is neither wider nor narrower.
#[test]
fn what_is_not_understood_limits_still() {
    let tools = json!({"read": {"path": {"type": "regex", "pattern": "^/a"}}});
    let said = constraints(tools.as_object().unwrap(), draft_bound);
    assert_eq!(said, r#"{"path":{"unread":"{\"type\":\"regex\",\"pattern\":\"^/a\"}"}}"#);
    assert_eq!(constraints(json!({"read": {}}).as_object().unwrap(), draft_bound), "{}");
    let open = json!([3, {"min": 0, "max": 5, "min_inclusive": false, "max_inclusive": true}]);
    assert_eq!(tenuo_bound(&open), None, "an open end is not our range");
}

#[test]
fn what_is_no_such_token() {
    for token in [
        "",
        "secret",
        "eyJhbGciOiJub25lIn0.e30.x",
        "Bearer abc",
        &"A".repeat(70_000),
        "AgEC",
        "MDAwMA",
        "gwFAgA",
        "EgA",
    ] {
        assert_eq!(read(token), None, "{token}");
    }
    // An ordinary access token is read by its claims elsewhere.
    assert_eq!(read(&jwt(&json!({"sub": "u", "iss": "i", "exp": 1, "scope": "a"}))), None);
}

fn made() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/sources/tokens/made.json");
    let made: Json = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let of = |kind: &str| {
        made[kind].as_array().unwrap().iter().map(|one| one["token"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    [of("tenuo"), of("biscuit"), of("macaroon"), vec![UCAN.0.to_owned()]].concat()
}

#[test]
fn a_token_that_is_cut_is_none() {
    for token in made() {
        let bytes = LENIENT.decode(token.replace('+', "-").replace('/', "_")).unwrap();
        assert!(read(&token).is_some(), "{token}");
        for length in 0..bytes.len() {
            assert_eq!(read(&URL_SAFE_NO_PAD.encode(&bytes[..length])), None, "{length} of {token}");
        }
    }
}

#[test]
fn nesting_and_promises_of_length_cost_nothing() {
    for hostile in [
        vec![0x82; 60_000],
        vec![0x9f; 60_000],
        vec![0x83, 1, 0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        vec![0x82, 0x9b, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        vec![0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    ] {
        assert_eq!(read(&URL_SAFE_NO_PAD.encode(&hostile)), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Bytes that are changed, put in and taken away anywhere panic nowhere.
    #[test]
    fn broken_tokens_panic_nowhere(which in 0usize..8, edits in proptest::collection::vec((any::<u16>(), any::<u8>(), 0u8..3), 0..6)) {
        let tokens = made();
        let mut bytes = LENIENT.decode(tokens[which % tokens.len()].replace('+', "-").replace('/', "_")).unwrap();
        for (at, byte, how) in edits {
            let at = usize::from(at) % bytes.len().max(1);
            match how {
                0 if at < bytes.len() => bytes[at] = byte,
                1 if at < bytes.len() => { bytes.remove(at); }
                _ => bytes.insert(at.min(bytes.len()), byte),
            }
        }
        if let Some(read) = read(&URL_SAFE_NO_PAD.encode(&bytes)) {
            prop_assert!(!read.format.is_empty() && read.caveats.len() <= 256 && read.actions.len() <= 257);
        }
    }

    #[test]
    fn any_bytes_panic_nowhere(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&URL_SAFE_NO_PAD.encode(&bytes));
    }
}
