//! Rights end with the next request, also on connections and streams that are open.

use std::io::{BufRead as _, BufReader};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::harness::{Authority, ORIGIN, POLICY, Running, Site, client, now};
use crate::support::until;

/// Sends a record that is an event.
fn event(running: &Running<'_>, client: &ureq::Agent, name: &str) {
    let url = format!("https://{}/v1/logs", running.server.otlp_http);
    let attributes = json!([
        {"key": "authz.initiator.type", "value": {"stringValue": "user"}},
        {"key": "authz.initiator.id", "value": {"stringValue": name}},
    ]);
    let record = json!({"timeUnixNano": (now() * 1_000_000_000).to_string(), "eventName": "authz.request", "attributes": attributes});
    let body = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}).to_string();
    let answer = client.post(&url).header("Content-Type", "application/json").send(body.as_bytes()).unwrap();
    assert_eq!(answer.status(), 200);
}

#[test]
fn a_rule_that_is_taken_away_counts_from_the_next_request_on() {
    let site = Site::new();
    let running = site.start();
    let reader = running.with(&site.authority.named("reader"));
    let (anonymous, token) = (running.anonymous(), site.issuer.ann(|_| ()));
    assert_eq!(running.ask(&reader, None).0, 200);
    assert_eq!(running.ask(&anonymous, Some(&token)).0, 200);
    // Broken, it changes nothing, and that is said.
    site.write("policy.toml", &POLICY.replace("roles = [\"write\"]", "roles = [\"wriet\"]"));
    until(|| {
        running.audit("custody.audit.config").iter().any(|record| {
            record["custody.audit.error"].as_str().is_some_and(|e| e.contains("roles: \"wriet\" is none"))
        })
    });
    assert_eq!(running.ask(&reader, None).0, 200);
    assert_eq!(running.ask(&anonymous, Some(&token)).0, 200);
    // The same client, whose connection is open, and a token that was verified before.
    let denied = "[[allow]]\nidentity = \"jwt:https://idp.example.com#ann\"\nroles = []\n";
    let issuers = POLICY.find("[[allow]]").unwrap();
    let without = POLICY.replace("cert:CN=reader", "cert:CN=nobody");
    site.write("policy.toml", &format!("{}{denied}{}", &without[..issuers], &without[issuers..]));
    until(|| running.ask(&reader, None).0 == 403);
    assert_eq!(running.ask(&anonymous, Some(&token)).0, 403);
    assert_eq!(running.ask(&anonymous, Some(&site.issuer.ann(|claims| claims["sub"] = "bob".into()))).0, 200);
    // And by the signal, which is told apart in the log.
    assert!(Command::new("kill").args(["-HUP", &running.server.pid().to_string()]).status().unwrap().success());
    until(|| running.audit("custody.audit.config").iter().any(|record| record["custody.audit.why"] == "SIGHUP"));
    let digests: std::collections::BTreeSet<String> = running
        .audit("custody.audit.config")
        .iter()
        .map(|record| record["custody.audit.policy_blake3"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(digests.len(), 2, "each policy that was in force, and not the broken one");
}

/// Rights come and go while answers are made: each is whole, or a refusal in words, and no connection breaks.
#[test]
fn a_short_answer_is_whole_or_refused_however_rights_change() {
    let site = Site::new();
    let running = site.start();
    let done = AtomicBool::new(false);
    let hang_up = || {
        let pid = running.server.pid().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    };
    std::thread::scope(|scope| {
        let asking = |_| {
            let client = running.with(&site.authority.named("reader"));
            let (running, done) = (&running, &done);
            scope.spawn(move || {
                let mut counts = [0; 2];
                while !done.load(Ordering::SeqCst) {
                    // It panics if an answer breaks off.
                    let (status, body) = running.ask(&client, None);
                    match status {
                        200 => assert!(body.starts_with(ORIGIN) && body.contains("\n\n\u{2014} "), "{body}"),
                        403 => assert!(body.contains("cert:CN=reader") || body.contains("your rights"), "{body}"),
                        other => panic!("{other}: {body}"),
                    }
                    counts[usize::from(status == 403)] += 1;
                }
                counts
            })
        };
        let readers: Vec<_> = (0..4).map(asking).collect();
        let other = running.with(&site.authority.named("reader"));
        for turn in 0..12 {
            let (policy, want) = match turn % 2 {
                0 => (POLICY.replace("cert:CN=reader", "cert:CN=nobody"), 403),
                _ => (POLICY.to_owned(), 200),
            };
            site.write("policy.toml", &policy);
            hang_up();
            until(|| running.ask(&other, None).0 == want);
        }
        done.store(true, Ordering::SeqCst);
        // One of them may have had no turn while rights were gone.
        let counts: Vec<[u32; 2]> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        assert!((0..2).all(|i| counts.iter().any(|count| count[i] > 0)), "{counts:?}");
    });
}

#[test]
fn a_stream_breaks_off_when_its_readers_rights_end() {
    let site = Site::new();
    let running = site.start();
    let agent = running.with(&site.authority.workload("spiffe://example.com/agents/support"));
    let (anonymous, token) = (running.anonymous(), site.issuer.ann(|_| ()));
    event(&running, &agent, "before");
    let request = anonymous.get(running.url("/api/v1/events")).header("Accept", "text/event-stream");
    let answer = request.header("Authorization", format!("Bearer {token}")).call().unwrap();
    assert_eq!(answer.status(), 200);
    let mut lines = BufReader::new(answer.into_body().into_reader()).lines();
    let first = lines.by_ref().map(Result::unwrap).find(|line| line.starts_with("data:") && line.contains("before"));
    assert!(first.is_some());
    site.write("policy.toml", &POLICY.replace("groups = \"security\"", "groups = \"others\""));
    until(|| running.ask(&anonymous, Some(&token)).0 == 403);
    event(&running, &agent, "behind");
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(!rest.iter().any(|line| line.contains("behind")), "{rest:?}");
}

#[test]
fn a_certificate_that_is_revoked_or_whose_authority_goes_is_nobodys() {
    let site = Site::new();
    let (first, second) = (site.authority.named("reader"), site.authority.named("reader"));
    let list = site.write("revoked.pem", &site.authority.revocations(&[]));
    let running = site.start_with(&["--tls-client-crl", &list]);
    let (one, two) = (running.with(&first), running.with(&second));
    assert_eq!((running.ask(&one, None).0, running.ask(&two, None).0), (200, 200));
    site.write("revoked.pem", &site.authority.revocations(&[&first]));
    // Its connection stays open, and says why; a new one is not made.
    let mut body = String::new();
    until(|| {
        let (status, text) = running.ask(&one, None);
        body = text;
        status == 401
    });
    assert!(body.contains("the client certificate is not good any more") && body.contains("Revoked"), "{body}");
    assert!(running.with(&first).get(running.url("/checkpoint")).call().is_err());
    assert_eq!(running.ask(&two, None).0, 200);
    // Another authority of clients: all that the former vouched for are gone.
    let other = Authority::new("other");
    site.write("ca.pem", &other.pem());
    site.write("revoked.pem", &other.revocations(&[]));
    until(|| running.ask(&two, None).0 == 401);
    // The list of the new authority may be read a moment after it, and those whom no list names do not come in.
    let new = running.with(&other.named("reader"));
    until(|| new.get(running.url("/checkpoint")).call().is_ok_and(|answer| answer.status() == 200));
}

#[test]
fn the_servers_own_certificate_is_exchanged_while_it_runs() {
    let site = Site::new();
    let running = site.start();
    let (before, other) = (running.anonymous(), Authority::new("other"));
    // The body is read, so that the connection stays.
    let lives = |client: &ureq::Agent| {
        let answer = client.get(running.url("/healthz")).call();
        answer.is_ok_and(|mut answer| answer.body_mut().read_to_string().is_ok_and(|body| body == "ok\n"))
    };
    assert!(lives(&before));
    let (new, after) = (other.server(), client(&other.pem(), None));
    assert!(!lives(&after));
    // Between the two files they do not go together: then the former stay.
    site.write("server.key", &new.key);
    until(|| {
        running
            .audit("custody.audit.config")
            .iter()
            .any(|record| record["custody.audit.error"].as_str().is_some_and(|e| e.contains("do not go together")))
    });
    assert!(lives(&running.anonymous()) && lives(&before));
    site.write("server.pem", &new.chain);
    until(|| lives(&after));
    assert!(!lives(&running.anonymous()));
    assert!(lives(&before), "a connection that is open stays");
}

#[test]
fn a_key_that_its_issuer_withdraws_vouches_for_nothing_more() {
    let site = Site::new();
    let running = site.start();
    let (anonymous, token) = (running.anonymous(), site.issuer.ann(|_| ()));
    assert_eq!(running.ask(&anonymous, Some(&token)).0, 200);
    let kept: Vec<Value> = site.issuer.jwks("")["keys"].as_array().unwrap()[1..].to_vec();
    site.write("jwks.json", &json!({"keys": kept}).to_string());
    until(|| running.ask(&anonymous, Some(&token)).0 == 401);
    site.write("jwks.json", "{}");
    until(|| {
        running
            .audit("custody.audit.config")
            .iter()
            .any(|record| record["custody.audit.error"].as_str().is_some_and(|e| e.contains("no list `keys`")))
    });
    let rsa = site.issuer.token(&json!({"alg": "RS256", "kid": "rsa"}), &crate::harness::claims());
    assert_eq!(running.ask(&anonymous, Some(&rsa)).0, 200, "what cannot be read changes nothing");
    // An empty list is no mistake: there is no key any more.
    site.write("jwks.json", "{\"keys\": []}");
    until(|| running.ask(&anonymous, Some(&rsa)).0 == 401);
}

#[test]
fn failures_are_in_the_log_put_together_and_without_what_was_shown() {
    let site = Site::new();
    let running = site.start();
    let anonymous = running.anonymous();
    let expired = site.issuer.ann(|claims| claims["exp"] = json!(now() - 60));
    for _ in 0..300 {
        assert_eq!(running.ask(&anonymous, Some(&expired)).0, 401);
    }
    let stranger = running.with(&site.authority.named("a stranger"));
    assert_eq!(running.send(&stranger, None).0, 403);
    let total =
        |failed: &[Value]| failed.iter().map(|record| record["custody.audit.count"].as_u64().unwrap()).sum::<u64>();
    until(|| total(&running.audit("custody.audit.login_failed")) == 301);
    let failed = running.audit("custody.audit.login_failed");
    assert!(failed.len() < 10, "{} records of 301 failures", failed.len());
    let said = json!(failed).to_string();
    assert!(said.contains("peer:127.0.0.1") && said.contains("expired ") && said.contains("no_rule 1"), "{said}");
    assert!(said.contains("cert:CN=a stranger 1"), "{said}");
    assert!(!said.contains(&expired[..20]), "no token is in the log");
    let lines = std::fs::read_to_string(running.server.path().join("stderr.log")).unwrap();
    assert!(!lines.contains(&expired[..40]), "nor in log lines");
}
