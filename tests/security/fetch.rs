//! Keys behind a URL: fetched when they are needed, and never from anywhere else.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject as _;
use serde_json::json;

use crate::harness::{Authority, Identity, POLICY, Site, claims};

/// A server that gives out what is put into it.
struct Published {
    address: String,
    answer: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
}

impl Published {
    fn start(tls: Option<&Identity>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (answer, asked) = (Arc::<Mutex<String>>::default(), Arc::<AtomicUsize>::default());
        let config = tls.map(|identity| {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let builder =
                rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            let chain = vec![rustls::pki_types::CertificateDer::from_pem_slice(identity.chain.as_bytes()).unwrap()];
            let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
            Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).unwrap())
        });
        let (told, count) = (Arc::clone(&answer), Arc::clone(&asked));
        let serve = move || {
            for stream in listener.incoming() {
                let stream: TcpStream = stream.unwrap();
                let answer = told.lock().unwrap().clone();
                let respond = |stream: &mut dyn ReadWrite| {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        if stream.read(&mut byte).is_ok_and(|n| n == 1) { head.push(byte[0]) } else { return }
                    }
                    count.fetch_add(1, SeqCst);
                    let _ = stream.write_all(answer.as_bytes());
                };
                match &config {
                    None => respond(&mut { stream }),
                    Some(config) => {
                        let session = rustls::ServerConnection::new(Arc::clone(config)).unwrap();
                        let mut stream = rustls::StreamOwned::new(session, stream);
                        respond(&mut stream);
                        stream.conn.send_close_notify();
                        let _ = stream.flush();
                    }
                }
            }
        };
        std::thread::Builder::new().name("published".into()).spawn(serve).unwrap();
        Self { address, answer, asked }
    }

    fn give(&self, status: &str, headers: &str, body: &str) {
        let length = body.len();
        *self.answer.lock().unwrap() =
            format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }
}

trait ReadWrite: std::io::Read + std::io::Write {}
impl<T: std::io::Read + std::io::Write> ReadWrite for T {}

/// A site whose keys are behind a URL.
fn site(url: &str, more: &str) -> Site {
    let site = Site::new();
    let url = format!("jwks_url = {url:?}\n{more}");
    site.write("policy.toml", &POLICY.replacen("jwks_file = \"jwks.json\"", &url, 1));
    site
}

#[test]
fn new_keys_are_fetched_when_a_token_names_one_but_not_for_each() {
    let published = Published::start(None);
    let site = site(&format!("http://{}/keys", published.address), "");
    published.give("200 OK", "", &site.issuer.jwks("").to_string());
    let running = site.start();
    let anonymous = running.anonymous();
    assert_eq!(running.ask(&anonymous, Some(&site.issuer.ann(|_| ()))).0, 200);
    let before = published.asked();
    assert!(before <= 2, "once at the start: {before}");
    // The issuer has new keys: the first token that names one makes them be fetched.
    published.give("200 OK", "", &site.issuer.jwks("-2").to_string());
    let rotated = site.issuer.token(&json!({"alg": "ES256", "kid": "ec-2"}), &claims());
    assert_eq!(running.ask(&anonymous, Some(&rotated)).0, 200);
    assert_eq!(published.asked(), before + 1);
    assert_eq!(running.ask(&anonymous, Some(&site.issuer.ann(|_| ()))).0, 401, "the former key is gone");
    // Who invents names of keys makes nobody fetch, but for once in five seconds.
    let begun = std::time::Instant::now();
    for n in 0..50 {
        let invented = site.issuer.token(&json!({"alg": "ES256", "kid": format!("ec-{n}x")}), &claims());
        assert_eq!(running.ask(&anonymous, Some(&invented)).0, 401);
    }
    let most = 2 + begun.elapsed().as_secs() as usize / 5;
    assert!(published.asked() <= before + 1 + most, "{} fetches for 50 invented names", published.asked() - before - 1);
}

#[test]
fn a_redirection_is_not_followed_and_too_much_is_not_read() {
    let (published, elsewhere) = (Published::start(None), Published::start(None));
    let site = site(&format!("http://{}/keys", published.address), "");
    let keys = site.issuer.jwks("").to_string();
    elsewhere.give("200 OK", "", &keys);
    published.give("302 Found", &format!("Location: http://{}/keys\r\n", elsewhere.address), "");
    let running = site.start();
    let (anonymous, token) = (running.anonymous(), site.issuer.ann(|_| ()));
    let (status, body) = running.ask(&anonymous, Some(&token));
    assert_eq!(status, 503, "nobody knows whether it is good; exporters come again: {body}");
    let (status, _, challenge) = running.send(&anonymous, Some(&token));
    assert_eq!((status, challenge), (503, None));
    assert_eq!(elsewhere.asked(), 0, "the redirection was followed");
    assert!(published.asked() > 0);
    let lines = std::fs::read_to_string(running.server.path().join("stderr.log")).unwrap();
    assert!(lines.contains("redirects are not followed"), "{lines}");
    published.give("200 OK", "", &format!("{}{}", &keys, " ".repeat(2 << 20)));
    // After some seconds it is tried again; that is too large, and then it is good.
    let asked = published.asked();
    crate::support::until(|| published.asked() > asked);
    assert_eq!(running.ask(&anonymous, Some(&token)).0, 503);
    published.give("200 OK", "", &keys);
    crate::support::until(|| running.ask(&anonymous, Some(&token)).0 == 200);
}

#[test]
fn keys_over_https_need_the_certificate_of_their_server() {
    let (authority, other) = (Authority::new("keys"), Authority::new("keys"));
    for (trusted, expected) in [(&authority, 200), (&other, 503)] {
        let published = Published::start(Some(&authority.server()));
        let site = site(&format!("https://{}/keys", published.address), "ca_file = \"keys-ca.pem\"\n");
        published.give("200 OK", "", &site.issuer.jwks("").to_string());
        site.write("keys-ca.pem", &trusted.pem());
        let running = site.start();
        let ask = || running.ask(&running.anonymous(), Some(&site.issuer.ann(|_| ()))).0;
        assert_eq!(ask(), expected);
        // The authorities of that server are read again when their file changes.
        site.write("keys-ca.pem", &authority.pem());
        crate::support::until(|| ask() == 200);
    }
}

#[test]
fn a_witness_that_sends_elsewhere_is_not_followed() {
    let (witness, elsewhere) = (Published::start(None), Published::start(None));
    witness.give("307 Temporary Redirect", &format!("Location: http://{}/add-checkpoint\r\n", elsewhere.address), "");
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("witness");
    let key = custody_store::witness::Witness::open(&state, "w.example", None, vec![]).unwrap();
    let policy = folder.path().join("witnesses");
    std::fs::write(&policy, format!("witness w {} http://{}\nquorum w\n", key.verifiers()[0], witness.address))
        .unwrap();
    let flags = ["--witness-policy", policy.to_str().unwrap(), "--witness-interval", "0.1"];
    let _server = crate::support::Server::start_in(tempfile::tempdir().unwrap(), &flags);
    crate::support::until(|| witness.asked() >= 2);
    assert_eq!(elsewhere.asked(), 0);
}

/// A token, or a request that is signed for one store, would be a stranger's with the first redirection that is followed.
#[test]
fn a_token_and_a_signed_request_are_not_led_elsewhere() {
    let (first, elsewhere) = (Published::start(None), Published::start(None));
    let to = format!("Location: http://{}/there\r\n", elsewhere.address);
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "a.b.c\n").unwrap();
    let (token, url) = (token.to_str().unwrap(), format!("http://{}", first.address));
    let vkey = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/log-v1/log.vkey");
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        first.give(status, &to, "");
        for args in [&["events"][..], &["sql", "SELECT 1"], &["verify", "--vkey", vkey], &["alerts", "list"]] {
            let mut command = std::process::Command::new(crate::support::CUSTODY);
            let output = command.args(args).args(["--url", &url, "--token-file", token]).output().unwrap();
            assert!(!output.status.success(), "{args:?}: {output:?}");
        }
        let mut command = std::process::Command::new(crate::support::CUSTODY);
        command.envs([("AWS_ACCESS_KEY_ID", "AKIDTEST"), ("AWS_SECRET_ACCESS_KEY", "a-secret"), ("AWS_REGION", "x")]);
        let check = ["events", "check", "--export", "s3://bucket/prefix", "--vkey", vkey, "--s3-endpoint", &url];
        let output = command.args(check).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    assert!(first.asked() >= 12, "each was asked: {}", first.asked());
    assert_eq!(elsewhere.asked(), 0, "somebody went there");
}
