//! Headers that pretend.

use serde_json::json;

use crate::harness::{Running, Site, claims, now};

/// Asks with the test client's certificate and these headers.
fn asks(running: &Running<'_>, client: &ureq::Agent, headers: &[(&str, String)], status: u16, why: &str) {
    let (found, body) = running.ask_with(client, headers);
    assert_eq!(found, status, "{why}: {body}");
    assert!(body.contains(why), "{why}: {body}");
}

#[test]
fn an_assertion_is_believed_from_the_proxy_alone() {
    let site = Site::new();
    let running = site.start();
    let assertion = |sub: &str| {
        let mut claims = claims();
        claims["iss"] = json!("https://pomerium.example.com");
        claims["aud"] = json!("custody.example.com");
        claims["sub"] = json!(sub);
        ("X-Pomerium-Jwt-Assertion", site.issuer.token(&json!({"alg": "ES256", "kid": "ec"}), &claims))
    };
    let pomerium = running.with(&site.authority.workload("spiffe://example.com/pomerium"));
    assert_eq!(running.ask_with(&pomerium, &[assertion("ann")]).0, 200);
    // Who is behind it counts, not what the proxy may do, nor what a user added.
    let bearer = ("Authorization", format!("Bearer {}", site.issuer.ann(|_| ())));
    assert_eq!(running.ask_with(&pomerium, &[assertion("ann"), bearer.clone()]).0, 200);
    asks(&running, &pomerium, &[assertion("ann"), assertion("eve")], 401, "two headers x-pomerium-jwt-assertion");
    let expired = ("X-Pomerium-Jwt-Assertion", {
        let mut claims = claims();
        claims["iss"] = json!("https://pomerium.example.com");
        claims["aud"] = json!("custody.example.com");
        claims["exp"] = json!(now() - 3600);
        site.issuer.token(&json!({"alg": "ES256", "kid": "ec"}), &claims)
    });
    asks(&running, &pomerium, &[expired], 401, "has expired");
    let own = ("X-Pomerium-Jwt-Assertion", site.issuer.ann(|_| ()));
    asks(&running, &pomerium, &[own], 401, "issuer is not one");
    let nightly = running.token(&["--identity", "nightly", "--role", "read", "--tenant", "*"]);
    asks(&running, &pomerium, &[("X-Pomerium-Jwt-Assertion", nightly)], 401, "issuer is not one");
    // From anybody else the same header is an attempt, whatever else he has.
    let agent = running.with(&site.authority.workload("spiffe://example.com/agents/support"));
    let reader = running.with(&site.authority.named("reader"));
    for client in [&agent, &reader, &running.anonymous()] {
        asks(&running, client, &[assertion("ann")], 401, "from a configured proxy only");
    }
    asks(&running, &reader, &[assertion("ann"), bearer], 401, "from a configured proxy only");
}

#[test]
fn what_a_proxy_would_add_is_not_read() {
    let site = Site::new();
    let running = site.start();
    let id = "spiffe://example.com/pomerium";
    let forged = [
        ("X-Forwarded-Client-Cert", format!("By=spiffe://x;URI={id}")),
        ("X-Forwarded-For", "127.0.0.1".into()),
        ("Forwarded", "for=127.0.0.1;proto=https".into()),
        ("X-Forwarded-User", "ann".into()),
        ("X-Forwarded-Email", "ann@example.com".into()),
        ("X-Real-IP", "127.0.0.1".into()),
        ("X-Client-Cert", "MIIB".into()),
        ("X-SSL-Client-S-DN", "CN=reader".into()),
        ("X-Spiffe-Id", id.into()),
        ("X-Pomerium-Claim-Email", "ann@example.com".into()),
        ("X-Remote-User", "cert:CN=reader".into()),
        ("baggage", format!("identity={id}")),
        ("Cookie", "_pomerium=x".into()),
    ];
    for (name, value) in forged {
        asks(&running, &running.anonymous(), &[(name, value)], 401, "come with a client certificate or a bearer token");
    }
}

#[test]
fn one_authorization_of_one_scheme_and_no_more_than_fits() {
    let site = Site::new();
    let running = site.start();
    let (anonymous, token) = (running.anonymous(), site.issuer.ann(|_| ()));
    let with = |value: String| ("Authorization", value);
    for good in [format!("Bearer {token}"), format!("bearer {token}"), format!("BEARER  {token}")] {
        assert_eq!(running.ask_with(&anonymous, &[with(good.clone())]).0, 200, "RFC 9110: {good:.10}");
    }
    let both = [with(format!("Bearer {token}")), with("Bearer x".into())];
    asks(&running, &anonymous, &both, 401, "two headers authorization");
    let twice = [both[0].clone(), both[0].clone()];
    asks(&running, &anonymous, &twice, 401, "two headers authorization");
    for bad in
        [token.clone(), "Basic YTpi".into(), format!("Token {token}"), "Bearer".into(), format!("Bearer,{token}")]
    {
        asks(&running, &anonymous, &[with(bad)], 401, "Authorization must be: Bearer TOKEN");
    }
    asks(&running, &anonymous, &[with(format!("Bearer {token}, Bearer {token}"))], 401, "the token is not readable");
    let long = site.issuer.ann(|claims| claims["more"] = "x".repeat(13_000).into());
    asks(&running, &anonymous, &[with(format!("Bearer {long}"))], 401, "it is too long");
    let (status, _) = running.ask_with(&anonymous, &[with(format!("Bearer {}", "x".repeat(70_000)))]);
    assert!((400..500).contains(&status), "more than headers may have: {status}");
}
