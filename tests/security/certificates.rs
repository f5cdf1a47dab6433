//! Client certificates: whom they make known, and which are none.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, SanType, date_time_ymd};
use serde_json::json;

use crate::harness::{Authority, Identity, Running, Site, client, uri};
use crate::support::until;

/// What becomes of a client with this certificate: no connection, or the identity it sends under.
fn sends_as(running: &Running<'_>, identity: &Identity) -> Result<String, String> {
    let client = running.with(identity);
    let url = format!("https://{}/v1/logs", running.server.otlp_http);
    let request = client.post(&url).header("Content-Type", "application/json");
    let mut answer = request.send(b"{}".as_slice()).map_err(|e| e.to_string())?;
    let body = answer.body_mut().read_to_string().unwrap();
    if answer.status() == 200 { Ok(body) } else { Err(format!("{} {body}", answer.status().as_u16())) }
}

#[test]
fn a_certificate_says_who_sends_and_a_rule_what_he_may() {
    let site = Site::new();
    let running = site.start();
    let support = site.authority.workload("spiffe://example.com/agents/support");
    let (status, body, _) = running.send(&running.with(&support), None);
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        running.rows("SELECT submitter FROM logs WHERE body = 'sent'"),
        [json!({"submitter": "spiffe://example.com/agents/support"})]
    );
    // It may send, and nothing else that is asked of it is its own: roles are for the handlers. A reader may not send.
    let reader = site.authority.named("reader");
    assert_eq!(running.ask(&running.with(&reader), None).0, 200);
    let (status, body, challenge) = running.send(&running.with(&reader), None);
    assert_eq!((status, challenge), (403, None));
    assert!(body.contains("cert:CN=reader may not send: it has no role write"), "{body}");
    assert!(body.contains("\"code\":7"), "PERMISSION_DENIED in the encoding of the request: {body}");
    let (status, body, challenge) = running.send(&running.anonymous(), None);
    assert_eq!((status, challenge.as_deref()), (401, Some("Bearer realm=\"custody\"")));
    assert!(body.contains("\"code\":16"), "UNAUTHENTICATED: {body}");
    // A good certificate does not make up for a bad token.
    assert_eq!(running.send(&running.with(&support), Some("a.b.c")).0, 401);
    let metrics =
        running.with(&reader).get(running.url("/metrics")).call().unwrap().body_mut().read_to_string().unwrap();
    assert!(
        metrics.contains("custody_ingest_refused_requests_total{transport=\"http\",reason=\"unauthenticated\"} 2\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("custody_ingest_refused_requests_total{transport=\"http\",reason=\"forbidden\"} 1\n"),
        "{metrics}"
    );
    assert!(metrics.contains("custody_auth_requests_total{outcome=\"unauthenticated\"} 2\n"), "{metrics}");
    let end = metrics.lines().find_map(|line| line.strip_prefix("custody_tls_certificate_end_timestamp_seconds "));
    assert_eq!(end, Some("4102444800"), "2100-01-01");
}

#[test]
fn what_no_authority_of_ours_says_now_is_nothing() {
    let site = Site::new();
    let running = site.start();
    let (ours, theirs) = (&site.authority, Authority::new("test"));
    let id = "spiffe://example.com/agents/support";
    let with = |change: fn(&mut CertificateParams)| {
        ours.issue(|params| {
            params.subject_alt_names = vec![uri("spiffe://example.com/agents/support")];
            change(params);
        })
    };
    assert_eq!(sends_as(&running, &ours.workload(id)).as_deref(), Ok("{}"));
    let refused = [
        ("of another authority of the same name", theirs.workload(id)),
        ("expired", with(|params| params.not_after = date_time_ymd(2020, 1, 1))),
        ("not yet valid", with(|params| params.not_before = date_time_ymd(3000, 1, 1))),
        ("of a server", with(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
        ("two ids", with(|params| params.subject_alt_names.push(uri("spiffe://example.com/pomerium")))),
        ("an id and a URL", with(|params| params.subject_alt_names.push(uri("https://example.com")))),
        ("not the one spelling", ours.workload("spiffe://example.com/agents/../pomerium")),
        ("capitals", ours.workload("SPIFFE://example.com/agents/support")),
        ("nobody", ours.issue(|_| ())),
    ];
    for (what, identity) in refused {
        let error = sends_as(&running, &identity).unwrap_err();
        assert!(!error.starts_with("403") && !error.starts_with("401"), "{what}: there is no connection: {error}");
    }
    let strangers = [
        ("another trust domain", ours.workload("spiffe://example.org/agents/support")),
        ("another path", ours.workload("spiffe://example.com/agent/support")),
        ("an id in the subject", ours.named(id)),
        (
            "a host of that name",
            ours.issue(|params| params.subject_alt_names = vec![SanType::DnsName("reader".try_into().unwrap())]),
        ),
        (
            "more behind the name",
            ours.issue(|params| {
                params.distinguished_name.push(DnType::OrganizationName, "x");
                params.distinguished_name.push(DnType::CommonName, "reader");
            }),
        ),
        ("an RDN in the name", ours.named("reader,CN=reader")),
    ];
    for (what, identity) in strangers {
        let error = sends_as(&running, &identity).unwrap_err();
        assert!(error.starts_with("403 "), "{what}: {error}");
        assert!(error.contains("no rule of the policy lets"), "{what}: {error}");
    }
}

#[test]
fn where_certificates_are_required_there_is_no_connection_without_one() {
    let site = Site::new();
    let running = site.start_with(&["--tls-client-auth", "required"]);
    let token = site.issuer.ann(|_| ());
    for path in ["/checkpoint", "/healthz"] {
        let asked =
            running.anonymous().get(running.url(path)).header("Authorization", format!("Bearer {token}")).call();
        assert!(asked.is_err(), "{path}: {asked:?}");
    }
    // With one, the token says who asks.
    let reader = running.with(&site.authority.named("a stranger"));
    assert_eq!(running.ask(&reader, Some(&token)).0, 200);
}

#[test]
fn a_client_makes_sure_of_the_server() {
    let site = Site::new();
    let running = site.start();
    let other = client(&Authority::new("other").pem(), None);
    assert!(other.get(running.url("/healthz")).call().is_err(), "the server's certificate is of another authority");
    let port = running.server.http.rsplit(':').next().unwrap();
    let wrong = running.anonymous().get(format!("https://127.0.0.2:{port}/healthz")).call();
    assert!(wrong.is_err(), "the server's certificate is for another host");
}

#[test]
fn who_speaks_no_tls_is_told_so_and_who_is_silent_goes() {
    let site = Site::new();
    let running = site.start_with(&["--header-timeout", "1"]);
    for address in [&running.server.http, &running.server.otlp_http, &running.server.grpc, &running.server.flight_sql] {
        for said in ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(said.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("this port speaks TLS"), "{answer}");
        }
        for said in [&b""[..], b"\x16\x03\x01", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"] {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
            stream.write_all(said).unwrap();
            let mut answer = Vec::new();
            // It is closed, or reset: it does not stay.
            let ended = stream.read_to_end(&mut answer);
            assert!(!ended.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock), "{said:?}");
        }
    }
    let reader = running.with(&site.authority.named("reader"));
    until(|| {
        let mut answer = reader.get(running.url("/metrics")).call().unwrap();
        answer.body_mut().read_to_string().unwrap().contains("custody_tls_handshakes_total{outcome=\"failed\"} 20\n")
    });
}
