//! An authority, an issuer of tokens and a server that knows both. Certificates are by rcgen, tokens
//! are put together here, so that the server's own code vouches for nothing.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256,
    RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use serde_json::{Value, json};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use crate::support::{CUSTODY, Server};

/// The issuer of the tokens.
pub const ISSUER: &str = "https://idp.example.com";

/// The origin of the log.
pub const ORIGIN: &str = "example.com/log";

/// Seconds since the Unix epoch.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// An authority of certificates.
pub struct Authority(pub CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Identity {
    pub chain: String,
    pub key: String,
    /// Its serial number, to revoke it by.
    pub serial: rcgen::SerialNumber,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate, after something was done to it.
    pub fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let mut serial = [0; 16];
        aws_lc_rs::rand::fill(&mut serial).unwrap();
        let serial = rcgen::SerialNumber::from(serial.to_vec());
        params.serial_number = Some(serial.clone());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        // Python is strict about it.
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity { chain: certificate.pem(), key: key.serialize_pem(), serial }
    }

    /// For a server on this machine.
    pub fn server(&self) -> Identity {
        self.issue(|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.not_after = date_time_ymd(2100, 1, 1);
            params.subject_alt_names = vec![
                SanType::DnsName("localhost".try_into().unwrap()),
                SanType::IpAddress("127.0.0.1".parse().unwrap()),
            ];
        })
    }

    /// An X.509-SVID.
    pub fn workload(&self, id: &str) -> Identity {
        self.issue(|params| params.subject_alt_names = vec![uri(id)])
    }

    /// Known by its subject.
    pub fn named(&self, name: &str) -> Identity {
        self.issue(|params| params.distinguished_name.push(DnType::CommonName, name))
    }

    /// A list that revokes these.
    pub fn revocations(&self, revoked: &[&Identity]) -> String {
        let day = date_time_ymd;
        let revoked = revoked.iter().map(|identity| rcgen::RevokedCertParams {
            serial_number: identity.serial.clone(),
            revocation_time: day(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = rcgen::CertificateRevocationListParams {
            this_update: day(2026, 1, 1),
            next_update: day(4000, 1, 1),
            crl_number: rcgen::SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.0).unwrap().pem().unwrap()
    }
}

pub fn uri(id: &str) -> SanType {
    SanType::URI(id.try_into().unwrap())
}

/// Who issues tokens, with a key of each kind.
pub struct Issuer {
    pub p256: EcdsaKeyPair,
    pub rsa: RsaKeyPair,
    pub ed: Ed25519KeyPair,
}

impl Issuer {
    pub fn new() -> Self {
        Self {
            p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
            ed: Ed25519KeyPair::generate().unwrap(),
        }
    }

    /// The modulus: in DER the key is SEQUENCE { INTEGER n, INTEGER 65537 }.
    pub fn modulus(&self) -> Vec<u8> {
        let der = self.rsa.public_key().as_ref();
        assert_eq!((der.len(), &der[265..]), (270, &[2, 3, 1, 0, 1][..]), "an RSA key of 2048 bits");
        der[9..265].to_vec()
    }

    /// Its keys, as it publishes them; the ids get this ending.
    pub fn jwks(&self, generation: &str) -> Value {
        let point = self.p256.public_key().as_ref();
        json!({"keys": [
            {"kty": "EC", "crv": "P-256", "kid": format!("ec{generation}"), "use": "sig", "alg": "ES256",
             "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..65])},
            {"kty": "RSA", "kid": format!("rsa{generation}"), "use": "sig", "n": BASE64.encode(self.modulus()), "e": "AQAB"},
            {"kty": "OKP", "crv": "Ed25519", "kid": format!("ed{generation}"),
             "x": BASE64.encode(self.ed.public_key().as_ref())},
            {"kty": "RSA", "kid": "for-encryption", "use": "enc", "n": BASE64.encode(self.modulus()), "e": "AQAB"},
            {"kty": "oct", "kid": "shared", "k": BASE64.encode(b"a secret that is shared with all")},
            {"kty": "XX", "kid": "of-the-future"},
        ]})
    }

    /// Signs what is in front of a token's last dot.
    pub fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let rsa = |padding| {
            let mut out = vec![0; 256];
            self.rsa.sign(padding, &random, message, &mut out).unwrap();
            out
        };
        match algorithm {
            "ES256" => self.p256.sign(&random, message).unwrap().as_ref().to_vec(),
            "RS256" => rsa(&RSA_PKCS1_SHA256),
            "PS256" => rsa(&RSA_PSS_SHA256),
            "EdDSA" => self.ed.sign(message).as_ref().to_vec(),
            other => panic!("{other}"),
        }
    }

    /// A token with this header and these claims.
    pub fn token(&self, header: &Value, claims: &Value) -> String {
        let algorithm = header["alg"].as_str().unwrap().to_owned();
        token(header, claims, |message| self.sign(&algorithm, message))
    }

    /// A good token of Ann's, after something was done to its claims.
    pub fn ann(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = claims();
        change(&mut claims);
        self.token(&json!({"alg": "ES256", "kid": "ec"}), &claims)
    }
}

/// What Ann's tokens say.
pub fn claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "ann", "aud": "custody", "iat": now(), "exp": now() + 600, "groups": ["security"],
    })
}

/// A token, signed by whatever.
pub fn token(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
    let signature = BASE64.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

/// The policy of most of these tests.
pub const POLICY: &str = r#"
[[issuer]]
issuer = "https://idp.example.com"
audience = ["custody", "custody-test"]
jwks_file = "jwks.json"
algorithms = ["ES256", "RS256", "PS256", "EdDSA"]
leeway_seconds = 5

[[issuer]]
issuer = "https://pomerium.example.com"
audience = ["custody.example.com"]
jwks_file = "jwks.json"
proxies = ["spiffe://example.com/pomerium"]

[[allow]]
identity = "spiffe://example.com/pomerium"
actor = "workload"
roles = ["write"]

[[allow]]
identity = "spiffe://example.com/agents/*"
actor = "agent"
roles = ["write"]

[[allow]]
identity = "cert:CN=reader"
actor = "automation"
roles = ["read", "stream", "witness"]
tenants = ["*"]

[[allow]]
issuer = "https://idp.example.com"
claims = { groups = "security" }
actor = "human"
roles = ["read", "investigate", "stream", "witness"]
tenants = ["*"]

[[allow]]
issuer = "https://pomerium.example.com"
actor = "human"
roles = ["read", "witness"]
tenants = ["*"]
"#;

/// The files of a server with TLS and a policy.
pub struct Site {
    pub folder: tempfile::TempDir,
    pub authority: Authority,
    pub issuer: Issuer,
}

impl Site {
    pub fn new() -> Self {
        let site =
            Self { folder: tempfile::tempdir().unwrap(), authority: Authority::new("test"), issuer: Issuer::new() };
        let server = site.authority.server();
        site.write("server.pem", &server.chain);
        site.write("server.key", &server.key);
        site.write("ca.pem", &site.authority.pem());
        site.write("policy.toml", POLICY);
        site.write("jwks.json", &site.issuer.jwks("").to_string());
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, whole or not at all.
    pub fn write(&self, name: &str, text: &str) -> String {
        let new = self.path(&format!("{name}.new"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, self.path(name)).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The flags of a server with all of it.
    pub fn flags(&self) -> Vec<String> {
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        [
            ("--origin", ORIGIN.to_owned()),
            ("--tls-cert", path("server.pem")),
            ("--tls-key", path("server.key")),
            ("--tls-client-ca", path("ca.pem")),
            ("--policy", path("policy.toml")),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    pub fn start(&self) -> Running<'_> {
        self.start_with(&[])
    }

    pub fn start_with(&self, more: &[&str]) -> Running<'_> {
        let mut flags = self.flags();
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        Running { site: self, server: Server::start_in(tempfile::tempdir().unwrap(), &flags) }
    }
}

/// A client, with a certificate or without.
pub fn client(authority: &str, identity: Option<&Identity>) -> ureq::Agent {
    let roots = Certificate::from_pem(authority.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
    tls = tls.root_certs(RootCerts::new_with_certs(&[roots]));
    if let Some(identity) = identity {
        let chain = [Certificate::from_pem(identity.chain.as_bytes()).unwrap()];
        let key = PrivateKey::from_pem(identity.key.as_bytes()).unwrap();
        tls = tls.client_cert(Some(ClientCert::new_with_certs(&chain, key)));
    }
    let config =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(crate::support::PATIENCE));
    // A connection stays, however slow the machine is: tests ask over those that were made before something changed.
    config.max_idle_age(Duration::from_secs(600)).tls_config(tls.build()).build().new_agent()
}

/// A running server of a site.
pub struct Running<'a> {
    pub site: &'a Site,
    pub server: Server,
}

impl Running<'_> {
    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.server.http)
    }

    /// GET /checkpoint: status and body.
    pub fn ask(&self, client: &ureq::Agent, token: Option<&str>) -> (u16, String) {
        let authorization = token.map(|token| ("Authorization", format!("Bearer {token}")));
        self.ask_with(client, authorization.as_slice())
    }

    pub fn ask_with(&self, client: &ureq::Agent, headers: &[(&str, String)]) -> (u16, String) {
        let mut request = client.get(self.url("/checkpoint"));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let mut answer = request.call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    }

    /// One without a certificate.
    pub fn anonymous(&self) -> ureq::Agent {
        client(&self.site.authority.pem(), None)
    }

    pub fn with(&self, identity: &Identity) -> ureq::Agent {
        client(&self.site.authority.pem(), Some(identity))
    }

    /// Sends an OTLP/HTTP request; gives status, body and the challenge.
    pub fn send(&self, client: &ureq::Agent, token: Option<&str>) -> (u16, String, Option<String>) {
        let url = format!("https://{}/v1/logs", self.server.otlp_http);
        let mut request = client.post(&url).header("Content-Type", "application/json");
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let records = json!([{"timeUnixNano": now().to_string(), "body": {"stringValue": "sent"}}]);
        let body = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}).to_string();
        let mut answer = request.send(body.as_bytes()).unwrap();
        let challenge = answer.headers().get("www-authenticate").map(|v| v.to_str().unwrap().to_owned());
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap(), challenge)
    }

    /// `custody token`.
    pub fn token(&self, args: &[&str]) -> String {
        let output = self.make_token(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn make_token(&self, args: &[&str]) -> Output {
        let dir = self.server.data_dir();
        Command::new(CUSTODY).arg("token").args(args).arg("--data-dir").arg(dir).output().unwrap()
    }

    /// Rows of a query off the data directory.
    pub fn rows(&self, sql: &str) -> Vec<Value> {
        let mut command = Command::new(CUSTODY);
        command.args(["sql", sql, "--format", "json", "--data-dir"]).arg(self.server.data_dir());
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The records of an audit event, as their attributes.
    pub fn audit(&self, event: &str) -> Vec<Value> {
        let rows =
            self.rows(&format!("SELECT attributes, submitter FROM logs WHERE event_name = '{event}' ORDER BY seq"));
        let read = |row: Value| {
            assert_eq!(row["submitter"], "system:audit");
            serde_json::from_str(row["attributes"].as_str().unwrap()).unwrap()
        };
        rows.into_iter().map(read).collect()
    }
}
