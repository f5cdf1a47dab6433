//! Clients that we did not write, and our own commands, with TLS and identities.

use std::process::{Command, Output};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;

use crate::harness::{Identity, Running, Site};
use crate::support::{CUSTODY, python};

const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

fn ok(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{}", String::from_utf8_lossy(&output.stderr));
}

/// Calls a method over HTTP/2 with TLS: status and headers of the answer.
fn call(
    site: &Site,
    address: &str,
    path: &str,
    identity: Option<&Identity>,
    headers: &[(&str, &str)],
) -> http::HeaderMap {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(site.authority.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some(identity) => {
            let chain = vec![CertificateDer::from_pem_slice(identity.chain.as_bytes()).unwrap()];
            config
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap())
                .unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut request =
        http::Request::post(format!("https://{address}{path}")).header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.header("te", "trailers").body(Full::new(Bytes::from_static(&[0; 5]))).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        assert_eq!(stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200, "gRPC tells it in its own status");
        let (head, body) = answer.into_parts();
        let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_default();
        head.headers.into_iter().chain(trailers).filter_map(|(name, value)| Some((name?, value))).collect()
    })
}

#[test]
fn grpc_calls_are_refused_in_the_words_of_grpc() {
    let site = Site::new();
    let running = site.start();
    let export = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
    let get = "/arrow.flight.protocol.FlightService/ListFlights";
    let (agent, reader) = (site.authority.workload("spiffe://example.com/agents/a"), site.authority.named("reader"));
    let (grpc, flight) = (running.server.grpc.as_str(), running.server.flight_sql.as_str());
    let status = |found: &http::HeaderMap| found["grpc-status"].to_str().unwrap().to_owned();
    let sent = call(&site, grpc, export, Some(&agent), &[]);
    assert_eq!(status(&sent), "0", "{sent:?}");
    let stream = "/custody.v1.Events/Stream";
    for (address, path) in [(grpc, export), (flight, get), (flight, stream)] {
        let refused = call(&site, address, path, None, &[]);
        assert_eq!(status(&refused), "16", "UNAUTHENTICATED: {refused:?}");
        assert_eq!(refused["www-authenticate"], "Bearer realm=\"custody\"");
        let refused = call(&site, address, path, Some(&site.authority.named("nobody")), &[]);
        assert_eq!(status(&refused), "7", "PERMISSION_DENIED: {refused:?}");
        let bearer = format!("Bearer {}", site.issuer.ann(|claims| claims["exp"] = 1.into()));
        let refused = call(&site, address, path, Some(&agent), &[("authorization", &bearer)]);
        assert_eq!(status(&refused), "16", "a good certificate does not make up for it: {refused:?}");
    }
    let refused = call(&site, grpc, export, Some(&reader), &[]);
    assert_eq!(status(&refused), "7", "it has no role write: {refused:?}");
}

/// Writes a client's files; gives their paths.
fn files(site: &Site, identity: &Identity) -> [String; 3] {
    let ca = site.path("ca.pem").to_str().unwrap().to_owned();
    [ca, site.write("client.pem", &identity.chain), site.write("client.key", &identity.key)]
}

#[test]
fn the_python_sdk_with_a_certificate_and_with_a_token() {
    let site = Site::new();
    let running = site.start();
    let [ca, certificate, key] = files(&site, &site.authority.workload("spiffe://example.com/agents/python"));
    let token = running.token(&["--identity", "python", "--role", "write"]);
    for (protocol, address) in [("grpc", &running.server.grpc), ("http", &running.server.otlp_http)] {
        let mut command = Command::new(python());
        command.args([&format!("{HERE}/sdk.py"), protocol]);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("https://{address}"));
        command.env("OTEL_EXPORTER_OTLP_CERTIFICATE", &ca);
        // Python's requests would heed these before the exporter's own setting.
        command.env_remove("REQUESTS_CA_BUNDLE").env_remove("CURL_CA_BUNDLE");
        let mut with_token = Command::new(command.get_program());
        with_token.args(command.get_args()).envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        with_token.env_remove("REQUESTS_CA_BUNDLE").env_remove("CURL_CA_BUNDLE");
        with_token.env("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization=Bearer%20{token}"));
        command.env("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &certificate).env("OTEL_EXPORTER_OTLP_CLIENT_KEY", &key);
        ok(&mut command);
        ok(&mut with_token);
    }
    let sql = "SELECT submitter, json_get_str(attributes, 'protocol') AS p, count(*) AS n FROM spans GROUP BY 1, 2 ORDER BY 1, 2";
    let expected =
        ["jwt:example.com/log#python", "spiffe://example.com/agents/python"].into_iter().flat_map(|submitter| {
            ["grpc", "http"].map(|protocol| json!({"submitter": submitter, "p": protocol, "n": 600}))
        });
    assert_eq!(running.rows(sql), expected.collect::<Vec<_>>());
}

#[test]
fn flight_sql_with_a_token_and_not_without() {
    let site = Site::new();
    let running = site.start();
    let token = site.issuer.ann(|_| ());
    let [ca, ..] = files(&site, &site.authority.named("x"));
    let script = format!("{HERE}/adbc_tls.py");
    let url = format!("grpc+tls://{}", running.server.flight_sql);
    ok(Command::new(python()).args([&script, &url, &ca, &token]));
    let refused = Command::new(python()).args([&script, &url, &ca, "a.b.c"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).to_lowercase();
    assert!(!refused.status.success() && said.contains("unauthenticated"), "{said}");
}

/// A command of ours against the server.
fn custody(running: &Running<'_>, args: &[&str], credentials: &[&str]) -> Output {
    let url = format!("https://{}", running.server.http);
    let mut command = Command::new(CUSTODY);
    command.env_remove("CUSTODY_TOKEN").args(args).args(["--url", &url]).args(credentials).output().unwrap()
}

#[test]
fn our_commands_come_with_certificates_and_tokens() {
    let site = Site::new();
    let running = site.start();
    let [ca, certificate, key] = files(&site, &site.authority.named("reader"));
    let token = site.write("token", &format!("{}\n", site.issuer.ann(|_| ())));
    let agent = running.with(&site.authority.workload("spiffe://example.com/agents/a"));
    assert_eq!(running.send(&agent, None).0, 200);
    let vkey = running.server.data_dir().join("log.vkey").to_str().unwrap().to_owned();
    let by_certificate = ["--ca", &ca, "--cert", &certificate, "--key", &key];
    let by_token = ["--ca", &ca, "--token-file", &token];
    let commands: [&[&str]; 4] = [
        &["sql", "SELECT count(*) AS n FROM logs", "--format", "json"],
        &["events"],
        &["verify", "--vkey", &vkey],
        &["alerts", "list"],
    ];
    for credentials in [&by_certificate[..], &by_token] {
        for args in commands {
            let output = custody(&running, args, credentials);
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        // What changes something comes with the same identity: there is no such alert, or he may not.
        let acted = custody(&running, &["alerts", "ack", "no-such-alert"], credentials);
        let said = String::from_utf8_lossy(&acted.stderr);
        assert!(!acted.status.success() && !said.contains("come with a client certificate"), "{said}");
        let output = custody(&running, &["replay", "--trace", "0123"], credentials);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("no provenance event"), "it was answered: {said}");
    }
    let said = |output: Output| {
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let sql = ["sql", "SELECT 1"];
    assert!(said(custody(&running, &sql, &["--ca", &ca])).contains("come with a client certificate or a bearer token"));
    assert!(said(custody(&running, &sql, &by_token[2..])).contains("does not answer"), "the authority is not known");
    assert!(said(custody(&running, &sql, &by_certificate[..4])).contains("--key"));
    // A token is not for everybody on the way to read.
    let clear =
        Command::new(CUSTODY).args(["sql", "SELECT 1", "--url", "http://192.0.2.1:1"]).args(&by_token[2..]).output();
    assert!(said(clear.unwrap()).contains("is not sent to http://192.0.2.1:1 in the clear"));
    // What goes through the control socket reads the directory, and needs no token.
    let export = Command::new(CUSTODY)
        .args(["export", "--sql", "SELECT seq FROM logs WHERE body = 'sent'", "--reason", "test", "-o"])
        .arg(site.path("evidence.custody"))
        .arg("--data-dir")
        .arg(running.server.data_dir())
        .output()
        .unwrap();
    assert!(export.status.success(), "{}", String::from_utf8_lossy(&export.stderr));
}
