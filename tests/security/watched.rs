//! Tokens with two meanings, patterns that take for ever, what is open to everybody; and that the
//! log knows who polled, who was refused and who could not come in, also over a stop.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};

use crate::harness::{ISSUER, Issuer, POLICY, Running, Site, now};
use crate::support::until;

/// A token of the issuer with this header and these claims, as text.
fn raw(issuer: &Issuer, header: &str, claims: &str) -> String {
    let message = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
    format!("{message}.{}", BASE64.encode(issuer.sign("ES256", message.as_bytes())))
}

#[test]
fn a_token_that_two_readers_could_read_otherwise_is_none() {
    let site = Site::new();
    let running = site.start();
    let header = r#"{"alg":"ES256","kid":"ec"}"#;
    let claims = |more: &str| {
        let exp = now() + 600;
        format!(r#"{{"iss":"{ISSUER}","sub":"ann","aud":"custody","exp":{exp},"groups":["security"]{more}}}"#)
    };
    let ask = |token: &str| running.ask(&running.anonymous(), Some(token));
    assert_eq!(ask(&raw(&site.issuer, header, &claims(""))).0, 200);
    // A name twice within what nobody looks at is nobody's concern.
    assert_eq!(ask(&raw(&site.issuer, header, &claims(r#","more":{"a":1,"a":2}"#))).0, 200);
    let two = "a name twice";
    for (header, claims, why) in [
        (header, claims(r#","sub":"eve""#), two),
        (header, claims(r#","iss":"https://evil.example.com""#), two),
        (header, claims(r#","groups":[]"#), two),
        (r#"{"alg":"none","alg":"ES256","kid":"ec"}"#, claims(""), two),
        (r#"{"alg":"ES256","kid":"rsa","kid":"ec"}"#, claims(""), two),
        (r#"{"alg":"ES256","kid":7}"#, claims(""), "no text where one belongs"),
        (r#"{"alg":"ES256","kid":null}"#, claims(""), "no text where one belongs"),
        (r#"{"alg":["ES256"],"kid":"ec"}"#, claims(""), "no text where one belongs"),
        (r#"{"alg":"ES256","kid":"ec","typ":"Logout+JWT"}"#, claims(""), "claim typ"),
        (r#"{"alg":"ES256","kid":"ec","typ":"application/secevent+jwt"}"#, claims(""), "claim typ"),
        (r#"{"alg":"ES256","kid":"ec","typ":"CUSTODY+JWT"}"#, claims(""), "claim typ"),
    ] {
        let (status, body) = ask(&raw(&site.issuer, header, &claims));
        assert!(status == 401 && body.contains(why), "{header} {claims}: {status} {body}");
    }
    for sub in [
        "an\u{202e}n",
        "ann\u{200b}",
        "\u{feff}ann",
        "a\u{2066}nn",
        "an\u{ad}n",
        "an\u{61c}n",
        "an\u{180e}n",
        "ann\u{3164}",
        "ann\u{fe0f}",
        "an\u{2028}n",
        "ann\u{e0041}",
        "an\u{9b}n",
        "",
        "  ",
        "ann ",
    ] {
        let (status, body) = ask(&site.issuer.ann(|claims| claims["sub"] = json!(sub)));
        assert!(status == 401 && body.contains("claim sub"), "{sub:?}: {status} {body}");
    }
}

#[test]
fn no_claim_makes_a_pattern_take_long() {
    let site = Site::new();
    let rule = "[[allow]]\nissuer = \"https://idp.example.com\"\nclaims = { team = \"*a*b*a*c*d\" }\nactor = \"human\"\n\
                roles = [\"witness\"]\n";
    site.write("policy.toml", &format!("{POLICY}\n{rule}"));
    let running = site.start();
    let with = |team: String| {
        site.issuer.ann(|claims| {
            claims["groups"] = json!([]);
            claims["team"] = json!(team);
        })
    };
    let begun = Instant::now();
    for team in ["ab".repeat(5_500), "a".repeat(11_000), "abc".repeat(3_600), format!("{}d", "abac".repeat(2_700))] {
        let good = team.ends_with("cd");
        let status = running.ask(&running.anonymous(), Some(&with(team))).0;
        assert_eq!(status, if good { 200 } else { 403 });
    }
    // It took minutes when stars went back.
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn the_page_and_the_description_are_for_everybody_and_nothing_else_is() {
    let site = Site::new();
    let running = site.start();
    let anonymous = running.anonymous();
    let get = |path: &str, token: Option<&str>| {
        let mut request = anonymous.get(running.url(path));
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let mut answer = request.call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    let (status, page) = get("/", None);
    assert!(status == 200 && page.contains("<html"), "{status} {page}");
    let (status, description) = get("/openapi.json", Some("rubbish"));
    assert!(status == 200 && serde_json::from_str::<Value>(&description).unwrap()["openapi"].is_string());
    assert_eq!(get("/healthz", None), (200, "ok\n".into()));
    let others =
        ["/metrics", "/checkpoint", "/api/v1/events", "/api/v1/queries", "//", "/index.html", "/openapi.json/", "/%2f"];
    for path in others {
        assert_eq!(get(path, None).0, 401, "{path}");
    }
}

/// The records of one action, as their attributes.
fn said(running: &Running<'_>, action: &str) -> Vec<Value> {
    running.audit(&format!("custody.audit.{action}"))
}

#[test]
fn who_polls_and_who_is_refused_is_in_the_log_once_and_then_counted() {
    let site = Site::new();
    let mut running = site.start();
    let reader = running.with(&site.authority.named("reader"));
    let agent = running.with(&site.authority.workload("spiffe://example.com/agents/support"));
    let get = |client: &ureq::Agent, path: &str| {
        let mut answer = client.get(running.url(path)).call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    for _ in 0..40 {
        assert_eq!(get(&reader, "/api/v1/events?limit=1").0, 200);
        let (status, body) = get(&agent, "/api/v1/events");
        assert!(status == 403 && body.contains("the role stream"), "{status} {body}");
    }
    let next = reader.post(running.url("/api/v1/consumers/siem/next")).send_empty().unwrap();
    assert_eq!(next.status(), 200);
    // Before the answer, so at once.
    let begun = said(&running, "poll_begin");
    assert_eq!(begun.len(), 2, "{begun:?}");
    assert_eq!(begun[0]["custody.audit.identity"], "cert:CN=reader");
    assert!(begun[1]["custody.audit.text"].as_str().unwrap().starts_with("events of the consumer siem, filter"));
    until(|| said(&running, "refused").len() == 1);
    // Those of the last second are not lost by a stop, nor who could not come in.
    assert_eq!(running.ask(&running.anonymous(), Some("rubbish")).0, 401);
    let size = running.rows("SELECT max(seq) AS n FROM ledger")[0]["n"].as_u64();
    running.server.stop();
    let polled = said(&running, "polled");
    // A record a minute, and one at the stop.
    let is_page = |record: &&Value| record["custody.audit.text"].as_str().unwrap().starts_with("events, ");
    let events: Vec<&Value> = polled.iter().filter(is_page).collect();
    let sum = |name: &str| events.iter().map(|record| record[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("custody.audit.count"), &events[0]["custody.audit.first_seq"]), (40, &json!(0)), "{polled:?}");
    assert!(size.is_some() && sum("custody.audit.rows") == 40, "a page of one event: {events:?}");
    let refused = said(&running, "refused");
    let counts: u64 = refused.iter().map(|record| record["custody.audit.count"].as_u64().unwrap()).sum();
    assert!((2..5).contains(&refused.len()) && counts == 40, "{refused:?}");
    assert!(refused[0]["custody.audit.text"].as_str().unwrap().contains("spiffe://example.com/agents/support"));
    let failed = said(&running, "login_failed");
    assert!(
        failed.iter().any(|record| record["custody.audit.reasons"].to_string().contains("unreadable")),
        "{failed:?}"
    );
}

#[test]
fn a_sender_by_claims_is_bound_to_the_tenants_of_the_rule_in_force() {
    let site = Site::new();
    let rule = |tenant: &str| {
        let rule = format!(
            "[[allow]]\nissuer = \"https://idp.example.com\"\nclaims = {{ team = \"shop\" }}\nactor = \"agent\"\n\
             roles = [\"write\"]\ntenants = [\"{tenant}\"]\n"
        );
        site.write("policy.toml", &format!("{rule}\n{POLICY}"));
    };
    rule("acme");
    let running = site.start();
    let token = site.issuer.ann(|claims| {
        claims["sub"] = json!("bot");
        claims["team"] = json!("shop");
    });
    let send = |running: &Running<'_>, tenant: &str| {
        let url = format!("https://{}/v1/logs", running.server.otlp_http);
        let attributes = json!([{"key": "tenant.id", "value": {"stringValue": tenant}}]);
        let records =
            json!([{"timeUnixNano": now().to_string(), "attributes": attributes, "body": {"stringValue": tenant}}]);
        let body = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}).to_string();
        let request = running.anonymous().post(&url).header("Content-Type", "application/json");
        let answer = request.header("Authorization", format!("Bearer {token}")).send(body.as_bytes()).unwrap();
        assert_eq!(answer.status(), 200);
    };
    send(&running, "acme");
    send(&running, "globex");
    let reader = running.with(&site.authority.named("reader"));
    let foreign = |running: &Running<'_>| {
        let sql =
            json!({"sql": "SELECT tenant, bound_to[1] AS bound FROM foreign_claims WHERE submitter LIKE '%#bot'"});
        let url = running.url("/api/v1/sql");
        let request = reader.post(&url).header("Content-Type", "application/json");
        let mut answer = request.send(sql.to_string().as_bytes()).unwrap();
        let answer: Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
        answer["rows"].clone()
    };
    until(|| foreign(&running) == json!([{"tenant": "globex", "bound": "acme"}]));
    // Another policy: what it says counts for what was sent before, too.
    rule("globex");
    until(|| foreign(&running) == json!([{"tenant": "acme", "bound": "globex"}]));
    // And a restart forgets nobody.
    let Running { mut server, .. } = running;
    server.stop();
    let flags = site.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let running = Running { site: &site, server: server.restart_with(&flags) };
    until(|| foreign(&running) == json!([{"tenant": "acme", "bound": "globex"}]));
    let kept = std::fs::read_to_string(running.server.data_dir().join("senders.json")).unwrap();
    assert!(kept.contains("#bot") && !kept.contains("exp"), "{kept}");
}

/// That nobody guards a log any more is as much a change as any other.
#[test]
fn a_start_without_guards_is_in_the_log_of_a_log_that_had_some() {
    let site = Site::new();
    let Running { mut server, .. } = site.start_with(&["--audit", "off"]);
    let config = |server: &crate::support::Server| -> Vec<(String, bool, String)> {
        let sql = "SELECT attributes FROM logs WHERE event_name = 'custody.audit.config' ORDER BY seq";
        let mut command = std::process::Command::new(crate::support::CUSTODY);
        let output =
            command.args(["sql", sql, "--format", "json", "--data-dir"]).arg(server.data_dir()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let rows = String::from_utf8(output.stdout).unwrap();
        let read = |line: &str| {
            let row: Value = serde_json::from_str(line).unwrap();
            let said: Value = serde_json::from_str(row["attributes"].as_str().unwrap()).unwrap();
            let text = |name: &str| said[name].as_str().unwrap_or("none").to_owned();
            (text("custody.audit.tls"), said["custody.audit.policy_blake3"].is_string(), text("custody.audit.mode"))
        };
        rows.lines().map(read).collect()
    };
    let guarded = |mode: &str| ("on".to_owned(), true, mode.to_owned());
    let open = ("off".to_owned(), false, "identified".to_owned());
    server.stop();
    assert_eq!(config(&server), [guarded("off")]);
    // Twice without: said once.
    for _ in 0..2 {
        server = server.restart_with(&[]);
        server.stop();
        assert_eq!(config(&server), [guarded("off"), open.clone()]);
    }
    let flags = site.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    server = server.restart_with(&flags);
    server.stop();
    assert_eq!(config(&server), [guarded("off"), open, guarded("all")]);
}
