//! Tokens: what is believed, and what is forged.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};

use crate::harness::{ISSUER, Issuer, ORIGIN, Running, Site, claims, now, token};

/// HMAC with SHA-256, as a forger would.
fn hs256(secret: &[u8], message: &[u8]) -> Vec<u8> {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    aws_lc_rs::hmac::sign(&key, message).as_ref().to_vec()
}

/// The token is refused, with these words, and without a word of its own.
fn refused(running: &Running<'_>, token: &str, why: &str) {
    let (status, body) = running.ask(&running.anonymous(), Some(token));
    assert_eq!(status, 401, "{why}: {body}");
    assert!(body.contains(why), "{why}: {body}");
    let tail = token.rsplit('.').next().unwrap();
    assert!(tail.len() < 10 || !body.contains(tail), "the answer repeats the token");
}

#[test]
fn tokens_of_every_algorithm_that_is_allowed_are_believed() {
    let (site, good) = (Site::new(), [("ES256", "ec"), ("RS256", "rsa"), ("PS256", "rsa"), ("EdDSA", "ed")]);
    let running = site.start();
    for (algorithm, kid) in good {
        let token = site.issuer.token(&json!({"alg": algorithm, "kid": kid, "typ": "JWT"}), &claims());
        let (status, body) = running.ask(&running.anonymous(), Some(&token));
        assert_eq!(status, 200, "{algorithm}: {body}");
    }
    for change in [
        json!({"aud": ["other", "custody"]}),
        json!({"aud": "custody-test"}),
        json!({"exp": now() - 2}),
        json!({"nbf": now() + 3}),
        json!({"exp": now() as f64 + 60.5}),
    ] {
        let token = site.issuer.ann(|claims| merge(claims, &change));
        assert_eq!(
            running.ask(&running.anonymous(), Some(&token)).0,
            200,
            "{change}: within the leeway, or as RFC 7519 has it"
        );
    }
    let without_kid = site.issuer.token(&json!({"alg": "ES256"}), &claims());
    assert_eq!(running.ask(&running.anonymous(), Some(&without_kid)).0, 200);
}

fn merge(claims: &mut Value, change: &Value) {
    for (name, value) in change.as_object().unwrap() {
        claims[name] = value.clone();
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        }
    }
}

#[test]
fn a_signature_is_that_of_the_issuers_key_or_it_is_none() {
    let site = Site::new();
    let (running, issuer, other) = (site.start(), &site.issuer, Issuer::new());
    let (ec, good) = (json!({"alg": "ES256", "kid": "ec"}), claims());
    // alg none, in its spellings, with and without a signature.
    for none in ["none", "None", "NONE", "nOnE", ""] {
        let header = json!({"alg": none, "kid": "ec"});
        refused(&running, &token(&header, &good, |_| vec![]), "an algorithm that is not taken");
        refused(&running, &token(&header, &good, |m| issuer.sign("ES256", m)), "an algorithm that is not taken");
    }
    // Key confusion: the public key, which everybody has, as a shared secret.
    let ed: &[u8] = aws_lc_rs::signature::KeyPair::public_key(&issuer.ed).as_ref();
    let jwks = issuer.jwks("").to_string();
    let secrets: [&[u8]; 5] = [&issuer.modulus(), ed, jwks.as_bytes(), b"", b"a secret that is shared with all"];
    for secret in secrets {
        for kid in ["rsa", "ed", "shared"] {
            let forged = token(&json!({"alg": "HS256", "kid": kid}), &good, |m| hs256(secret, m));
            refused(&running, &forged, "an algorithm that is not taken");
        }
    }
    // The right algorithm of the wrong key, the wrong algorithm of the right key.
    refused(&running, &other.token(&ec, &good), "signature is not that of its issuer");
    refused(&running, &issuer.token(&json!({"alg": "RS256", "kid": "ec"}), &good), "an algorithm that is not taken");
    refused(
        &running,
        &issuer.token(&json!({"alg": "RS256", "kid": "for-encryption"}), &good),
        "issuer does not publish",
    );
    refused(&running, &token(&json!({"alg": "RS512", "kid": "rsa"}), &good, |m| issuer.sign("RS256", m)), "not taken");
    // A signature in DER instead of r and s; an empty one; one of zeros (CVE-2022-21449).
    for signature in [vec![0x30, 6, 2, 1, 1, 2, 1, 1], vec![], vec![0; 64]] {
        refused(&running, &token(&ec, &good, |_| signature), "signature is not that of its issuer");
    }
    // The words of another token under the signature of this one.
    let (mine, theirs) = (issuer.ann(|_| ()), issuer.ann(|claims| claims["sub"] = "eve".into()));
    let (mine, theirs): (Vec<&str>, Vec<&str>) = (mine.split('.').collect(), theirs.split('.').collect());
    refused(&running, &format!("{}.{}.{}", mine[0], theirs[1], mine[2]), "signature is not that of its issuer");
}

#[test]
fn a_header_says_which_key_and_nothing_else() {
    let site = Site::new();
    let (running, issuer, evil) = (site.start(), &site.issuer, Issuer::new());
    // Where keys are is the operator's to say; who forges brings his own.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    let key = evil.jwks("")["keys"][0].clone();
    for (name, value) in [("jku", json!(url)), ("x5u", json!(url)), ("jwk", key), ("x5c", json!(["MIIB"]))] {
        let mut header = json!({"alg": "ES256", "kid": "ec"});
        header[name] = value;
        refused(&running, &evil.token(&header, &claims()), "signature is not that of its issuer");
        let (status, body) = running.ask(&running.anonymous(), Some(&issuer.token(&header, &claims())));
        assert_eq!(status, 200, "{name} is passed over: {body}");
    }
    assert!(listener.accept().is_err(), "nobody fetched what a token names");
    // kid is a name: no path, no query, no URL.
    let kids = ["../../../../dev/null", "/etc/passwd", "ec' OR '1'='1", "ec\u{0}", &url, "", "EC", &"k".repeat(9000)];
    for kid in kids {
        refused(&running, &evil.token(&json!({"alg": "ES256", "kid": kid}), &claims()), "issuer does not publish");
    }
    for extension in [json!({"alg": "ES256", "crit": ["exp"]}), json!({"alg": "ES256", "b64": false})] {
        refused(&running, &issuer.token(&extension, &claims()), "asks for an extension");
    }
}

#[test]
fn claims_are_what_they_must_be() {
    let site = Site::new();
    let running = site.start();
    let cases = [
        (json!({"exp": now() - 10}), "has expired"),
        (json!({"exp": null}), "claim exp"),
        (json!({"exp": "tomorrow"}), "claim exp"),
        (json!({"exp": -1}), "claim exp"),
        (json!({"exp": 1e300}), "claim exp"),
        (json!({"nbf": now() + 60}), "not valid yet"),
        (json!({"nbf": "now"}), "claim nbf"),
        (json!({"aud": "another"}), "another audience"),
        (json!({"aud": null}), "another audience"),
        (json!({"aud": []}), "another audience"),
        (json!({"aud": {"custody": true}}), "another audience"),
        (json!({"iss": "https://idp.example.com/"}), "issuer is not one"),
        (json!({"iss": "https://evil.example.com"}), "issuer is not one"),
        (json!({"iss": [ISSUER]}), "issuer is not one"),
        (json!({"iss": null}), "issuer is not one"),
        (json!({"iss": ORIGIN}), "issuer is not one"),
        (json!({"sub": null}), "claim sub"),
        (json!({"sub": ""}), "claim sub"),
        (json!({"sub": 7}), "claim sub"),
        (json!({"sub": "ann\n{\"forged\": 1}"}), "claim sub"),
    ];
    for (change, why) in cases {
        refused(&running, &site.issuer.ann(|claims| merge(claims, &change)), why);
    }
    for broken in ["", "a", "a.b", "a.b.c.d", "..", "e30.e30.", "!.!.!", &"a".repeat(20_000), "W10.W10.W10"] {
        let (status, body) = running.ask(&running.anonymous(), Some(broken));
        assert_eq!(status, 401, "{broken}: {body}");
    }
    // It is Ann, and no rule speaks of her.
    let (status, body) =
        running.ask(&running.anonymous(), Some(&site.issuer.ann(|claims| claims["groups"] = json!([]))));
    assert_eq!(status, 403, "{body}");
    assert!(body.contains("no rule of the policy lets jwt:https://idp.example.com#ann in"), "{body}");
    // Only a proxy brings tokens of the proxy's issuer.
    let pomerium = |claims: &mut Value| {
        merge(claims, &json!({"iss": "https://pomerium.example.com", "aud": "custody.example.com"}))
    };
    refused(&running, &site.issuer.ann(pomerium), "issuer is not one");
}

#[test]
fn tokens_of_the_log_are_for_what_they_say_and_nobody_else_makes_them() {
    let site = Site::new();
    let running = site.start();
    let anonymous = running.anonymous();
    let read = running.token(&["--identity", "nightly", "--role", "read,witness", "--tenant", "*"]);
    assert_eq!(running.ask(&anonymous, Some(&read)).0, 200);
    let (status, body, _) = running.send(&anonymous, Some(&read));
    assert_eq!(status, 403, "{body}");
    assert!(body.contains("jwt:example.com/log#nightly may not send"), "{body}");
    let write = running.token(&["--identity", "importer", "--role", "write", "--ttl", "2m"]);
    assert_eq!(running.send(&anonymous, Some(&write)).0, 200);
    let rows = running.rows("SELECT submitter FROM logs WHERE body = 'sent'");
    assert_eq!(rows, [json!({"submitter": "jwt:example.com/log#importer"})]);
    // What one can make of it without the key.
    let parts: Vec<&str> = write.split('.').collect();
    let said: Value = serde_json::from_slice(&BASE64.decode(parts[1]).unwrap()).unwrap();
    assert_eq!(said["exp"].as_u64().unwrap() - said["iat"].as_u64().unwrap(), 120);
    let (header, mut more) = (BASE64.decode(parts[0]).unwrap(), said.clone());
    let header: Value = serde_json::from_slice(&header).unwrap();
    more["roles"] = json!(["admin"]);
    let signature = BASE64.decode(parts[2]).unwrap();
    refused(&running, &token(&header, &more, |_| signature.clone()), "signature is not that of its issuer");
    refused(&running, &site.issuer.token(&header, &said), "signature is not that of its issuer");
    let mut untyped = header.clone();
    untyped["typ"] = "JWT".into();
    refused(&running, &site.issuer.token(&untyped, &said), "issuer is not one");
    // Another issuer's token cannot have the type of ours.
    let typed = json!({"alg": "ES256", "kid": "ec", "typ": "custody+jwt"});
    refused(&running, &site.issuer.token(&typed, &claims()), "claim typ");
    // A day at most, scripts only, and only roles that there are.
    for (args, why) in [
        (&["--identity", "x", "--role", "write", "--ttl", "25h"][..], "24h at most"),
        (&["--identity", "x", "--role", "write", "--ttl", "59s"], "60s at least"),
        (&["--identity", "x", "--role", "root"], "\"root\" is none"),
        (&["--identity", "x", "--role", "read"], "--tenant"),
        (&["--identity", "x", "--role", "read", "--tenant", "a", "--tenant", "*"], "'*' alone"),
        (&["--identity", "x", "--role", "write", "--workspace", ""], "--workspace: give names"),
        (&["--identity", "x\u{200b}", "--role", "write"], "all of which are seen"),
        (&["--identity", "x", "--role", "write", "--actor", "human"], "this is for scripts"),
    ] {
        let output = running.make_token(args);
        assert!(!output.status.success() && output.stdout.is_empty(), "{args:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(why), "{stderr}");
    }
    let made: Vec<Value> = running.audit("custody.audit.config");
    let made: Vec<&Value> = made.iter().filter(|record| record["custody.audit.action"] == "token").collect();
    assert_eq!(made.len(), 2, "each token that was made is in the log: {made:?}");
    assert_eq!(made[0]["custody.audit.subject"], "nightly");
    assert!(made[0]["custody.audit.identity"].as_str().unwrap().starts_with("uid:"));
    assert!(!made.iter().any(|record| record.to_string().contains(&BASE64.encode(&signature))), "the token is not");
    // Another key of the log, and none of them is worth anything.
    let rotate = ["keys", "rotate", "--reason", "test", "--actor", "test", "--data-dir"];
    let rotated =
        std::process::Command::new(crate::support::CUSTODY).args(rotate).arg(running.server.data_dir()).output();
    assert!(rotated.unwrap().status.success());
    refused(&running, &read, "issuer does not publish");
}
