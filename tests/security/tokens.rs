//! Tokens and rules, on loopback.

use std::process::Command;

use crate::support::{CUSTODY, Server};

const POLICY: &str = "[[allow]]\nidentity = \"jwt:example.com/log#nobody\"\nroles = []\n";

fn server(policy: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.toml");
    std::fs::write(&path, policy).unwrap();
    Server::start_in(folder, &["--origin", "example.com/log", "--policy", path.to_str().unwrap()])
}

#[test]
fn a_script_comes_in_by_a_token_of_the_log_and_nobody_without() {
    let server = server(POLICY);
    assert_eq!(server.get("/checkpoint").0, 401);
    assert_eq!(server.get("/healthz").0, 200);
    let made = Command::new(CUSTODY)
        .args(["token", "--identity", "nightly", "--role", "read", "--tenant", "*", "--ttl", "10m", "--data-dir"])
        .arg(server.data_dir())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let token = String::from_utf8(made.stdout).unwrap();
    let url = format!("http://{}", server.http);
    let asked = Command::new(CUSTODY)
        .args(["sql", "SELECT count(*) AS n FROM ledger", "--format", "json", "--url", &url])
        .env("CUSTODY_TOKEN", token.trim())
        .output()
        .unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
}
