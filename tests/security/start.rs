//! What a start refuses, and in which words; what `custody policy check` says.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use crate::harness::{Authority, POLICY, Site};
use crate::support::{CUSTODY, FREE_PORTS, Server};

/// A start that must come to nothing: its status and its one line.
fn refused(flags: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(CUSTODY);
    command.arg("serve").args(FREE_PORTS.chunks(2).filter(|pair| !flags.contains(&pair[0])).flatten());
    let output = command.args(["--data-dir"]).arg(folder.path().join("data")).args(flags).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{flags:?}: {output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr.strip_prefix("custody serve: ").unwrap().trim_end().to_owned()
}

#[test]
fn other_addresses_than_loopback_need_tls_and_a_policy() {
    let site = Site::new();
    let path = |name: &str| site.path(name).to_str().unwrap().to_owned();
    let (certificate, key, policy) = (path("server.pem"), path("server.key"), path("policy.toml"));
    for flag in ["--otlp-grpc", "--otlp-http", "--http", "--flight-sql"] {
        let open = [flag, "0.0.0.0:0"];
        let tls = ["--tls-cert", &certificate, "--tls-key", &key];
        let both = "--tls-cert, --tls-key and --policy (who may do what)";
        let cases: [(&[&str], &str); 3] =
            [(&[], both), (&tls, "--policy (who may do what)"), (&["--policy", &policy], "--tls-cert and --tls-key")];
        for (more, missing) in cases {
            let said = refused(&[&open[..], more].concat());
            let expected = format!(
                "{flag} 0.0.0.0:0 is not a loopback address: set {missing}, or use 127.0.0.1 (docs/security.md)"
            );
            assert_eq!(said, expected);
        }
    }
    let running = site.start_with(&["--http", "0.0.0.0:0", "--otlp-grpc", "0.0.0.0:0"]);
    let port = running.server.http.strip_prefix("0.0.0.0:").unwrap();
    let asked = running.anonymous().get(format!("https://127.0.0.1:{port}/healthz")).call().unwrap();
    assert_eq!(asked.status(), 200);
}

#[test]
fn files_that_are_not_right_are_named() {
    let site = Site::new();
    let other = Authority::new("other").server();
    let wrong = site.write("other.key", &other.key);
    let empty = site.write("empty.pem", "nothing\n");
    let path = |name: &str| site.path(name).to_str().unwrap().to_owned();
    let (certificate, key, ca, policy) = (path("server.pem"), path("server.key"), path("ca.pem"), path("policy.toml"));
    let tls = ["--tls-cert", certificate.as_str(), "--tls-key", key.as_str()];
    let broken = site.write("broken.toml", &POLICY.replace("actor = \"agent\"", "actor = \"robot\""));
    let own = site.write("own.toml", &POLICY.replace("https://idp.example.com", "example.com/log"));
    let no_keys = site.write("no_keys.toml", &POLICY.replace("jwks.json", "not-there.json"));
    let cases: [(&[&str], &str); 11] = [
        (&["--tls-cert", &certificate], "--tls-cert and --tls-key go together"),
        (&["--tls-cert", "not-there", "--tls-key", &key], "not-there: No such file"),
        (&["--tls-cert", &empty, "--tls-key", &key], "empty.pem: there is no certificate in it"),
        (&["--tls-cert", &certificate, "--tls-key", &wrong], "do not go together"),
        (&["--tls-client-ca", &ca], "--tls-client-ca needs --tls-cert and --tls-key"),
        (&[&tls[..], &["--tls-client-ca", &ca]].concat(), "--tls-client-ca needs --policy"),
        (&[&tls[..], &["--tls-client-auth", "required"]].concat(), "need --tls-client-ca"),
        (&["--policy", "not-there"], "the policy not-there cannot be read: No such file"),
        (&["--policy", &broken], "broken.toml:22: actor: \"robot\" is none"),
        (&["--policy", &own, "--origin", "example.com/log"], "example.com/log is this log itself"),
        (&["--policy", &no_keys], "not-there.json: No such file"),
    ];
    for (flags, why) in cases {
        let said = refused(flags);
        assert!(said.contains(why), "{flags:?}: {said}");
    }
    assert!(refused(&[&tls[..], &["--tls-client-ca", &empty, "--policy", &policy]].concat()).contains("empty.pem"));
}

#[test]
fn the_configuration_file_has_the_same_settings_and_no_core_is_dumped() {
    let site = Site::new();
    let path = |name: &str| site.path(name).display().to_string();
    let config = format!(
        "[security]\ntls_cert = {:?}\ntls_key = {:?}\ntls_client_ca = {:?}\ntls_client_auth = \"required\"\npolicy = {:?}\n",
        path("server.pem"),
        path("server.key"),
        path("ca.pem"),
        path("policy.toml"),
    );
    let config = site.write("custody.toml", &config);
    let server = Server::start_in(tempfile::tempdir().unwrap(), &["--config", &config]);
    let reader = crate::harness::client(&site.authority.pem(), Some(&site.authority.named("reader")));
    let asked = reader.get(format!("https://{}/checkpoint", server.http)).call().unwrap();
    assert_eq!(asked.status(), 200);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let cores: Vec<&str> =
        limits.lines().find(|line| line.starts_with("Max core file size")).unwrap().split_whitespace().collect();
    assert_eq!(cores[4..6], ["0", "0"], "{cores:?}");
}

/// Who reads the files passes by the policy; that they can be read may be meant, and is said.
#[test]
fn a_data_directory_that_others_can_enter_is_warned_of_once() {
    let begun = |mode: Option<u32>| {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        if let Some(mode) = mode {
            std::fs::create_dir(&data).unwrap();
            std::fs::set_permissions(&data, Permissions::from_mode(mode)).unwrap();
        }
        let mut server = Server::start_in(folder, &[]);
        server.stop();
        let said = std::fs::read_to_string(server.path().join("stderr.log")).unwrap();
        let warnings = said.lines().filter(|line| line.contains(&format!("chmod 700 {}", data.display()))).count();
        (warnings, std::fs::metadata(&data).unwrap().permissions().mode() & 0o777)
    };
    assert_eq!(begun(None), (0, 0o700));
    assert_eq!(begun(Some(0o700)), (0, 0o700));
    assert_eq!(begun(Some(0o755)), (1, 0o755));
    assert_eq!(begun(Some(0o750)), (1, 0o750));
}

fn check(args: &[&str]) -> Output {
    Command::new(CUSTODY).args(["policy", "check"]).args(args).output().unwrap()
}

#[test]
fn policy_check_says_what_a_file_grants() {
    let site = Site::new();
    let policy = site.path("policy.toml").display().to_string();
    let told = |args: &[&str]| {
        let output = check(&[&[policy.as_str()], args].concat());
        let text = if output.status.success() { output.stdout } else { output.stderr };
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    };
    let (status, text) = told(&[]);
    assert_eq!((status, text.lines().count()), (0, 6), "{text}");
    assert!(
        text.starts_with(&format!("{policy}: sound, 5 rules, 2 issuers\nline 15: write, actor workload,")),
        "{text}"
    );
    let (status, text) = told(&["--identity", "spiffe://example.com/agents/a"]);
    assert_eq!(
        (status, text.as_str()),
        (0, "spiffe://example.com/agents/a: line 20: write, actor agent, all tenants, all workspaces\n")
    );
    let ann = "jwt:https://idp.example.com#ann";
    let (status, text) = told(&["--identity", ann, "--claim", "groups=x", "--claim", "groups=security"]);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("read, investigate, stream, witness, actor human"), "{text}");
    for nobody in
        [&["--identity", ann][..], &["--identity", "peer:127.0.0.1"], &["--identity", ann, "--claim", "groups=x"]]
    {
        let (status, text) = told(nobody);
        assert_eq!(status, 1, "{text}");
        assert!(text.contains("no rule speaks of him"), "{text}");
    }
    // The files that it names are read, and the server says the same of them.
    let tls = ["--tls-cert", "server.pem", "--tls-key", "server.key"].map(|word| match word.starts_with("--") {
        true => word.to_owned(),
        false => site.path(word).display().to_string(),
    });
    site.write("rubbish.json", "{}");
    let wrong = [
        (POLICY.replacen("jwks.json", "not-there.json", 1), ":2: jwks_file: the keys of https://idp.example.com: "),
        (POLICY.replacen("jwks.json", "rubbish.json", 1), ":2: jwks_file: the keys of https://idp.example.com: "),
        (POLICY.replacen("leeway_seconds = 5", "leeway_seconds = 5\nca_file = \"not-there.pem\"", 1), ":2: ca_file: "),
        (POLICY.replace("https://pomerium.example.com", "https://idp.example.com"), ""),
    ];
    for (text, why) in wrong {
        let wrong = site.write("wrong.toml", &text);
        let output = check(&[&wrong]);
        let said = String::from_utf8(output.stderr).unwrap();
        if why.is_empty() {
            assert!(output.status.success(), "by proxies and directly are two ways: {said}");
            continue;
        }
        assert!(
            output.status.code() == Some(1) && said.starts_with(&format!("custody policy: {wrong}{why}")),
            "{said}"
        );
        let mut flags: Vec<&str> = tls.iter().map(String::as_str).collect();
        flags.extend(["--policy", &wrong]);
        assert_eq!(format!("custody policy: {}", refused(&flags)), said.trim_end());
    }
    let broken = site.write("broken.toml", "[[allow]]\nidentity = \"ann\"\nroles = []\n");
    let output = check(&[&broken]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with(&format!("custody policy: {broken}:2: identity: identities are spiffe://")), "{said}");
}

#[test]
fn the_bill_of_materials_names_what_is_built_in() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/packaging/sbom.py");
    let output = Command::new(crate::support::python()).arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bill: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((bill["bomFormat"].as_str(), bill["specVersion"].as_str()), (Some("CycloneDX"), Some("1.6")));
    assert_eq!(bill["metadata"]["component"]["name"], "custody");
    let components = bill["components"].as_array().unwrap();
    let named = |name: &str| components.iter().find(|component| component["name"] == name);
    for name in ["rustls", "aws-lc-rs", "librocksdb-sys", "datafusion", "custody-store"] {
        assert!(named(name).is_some(), "{name}");
    }
    assert!(named("rcgen").is_none(), "what only tests need is not built in");
    // Cargo.lock has them as optional dependencies of others, which nothing turns on.
    for name in ["ring", "openssl-sys", "reqwest", "pyo3"] {
        assert!(named(name).is_none(), "{name} is not built in");
    }
    let rustls = named("rustls").unwrap();
    assert!(rustls["purl"].as_str().unwrap().starts_with("pkg:cargo/rustls@0.23."), "{rustls}");
    assert_eq!(rustls["hashes"][0]["content"].as_str().unwrap().len(), 64, "{rustls}");
    assert!(components.iter().all(|component| component["licenses"].is_array()), "each has its license");
    let refs: std::collections::BTreeSet<&str> = components.iter().map(|c| c["bom-ref"].as_str().unwrap()).collect();
    assert_eq!(refs.len(), components.len());
}
