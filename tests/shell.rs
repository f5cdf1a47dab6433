//! The shell of `custody sql` on a pseudo-terminal, as a person uses it (tests/clients/shell.py), and what it is not
//! where there is no terminal.

mod support;

use std::io::Write as _;
use std::process::{Command, Stdio};

use support::{CUSTODY, Server};

/// What never ends.
fn endless() -> String {
    let thousand = (0..1000).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let numbers = format!("(SELECT unnest([{thousand}]) AS n)");
    let million = format!("(SELECT a.n AS n, b.n AS m FROM {numbers} a CROSS JOIN {numbers} b)");
    format!("SELECT count(*) FROM {million} a JOIN {million} b ON a.n + b.n > 0 AND a.m * b.m >= 0;\n")
}

#[test]
fn a_person_asks_at_a_terminal() {
    let mut server = Server::start();
    server.send_grpc(support::recorded_requests().into_iter().take(40).collect());
    server.wait_until_visible();
    let url = format!("http://{}", server.http);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("endless.sql"), endless()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/shell.py");
    let mut python = Command::new(support::python());
    python.arg(script).arg(CUSTODY).arg(&url).arg(server.data_dir()).arg(folder.path());
    let told = python.stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(told.status.success() && out.ends_with("ok\n"), "{out}\n{err}");
    server.stop_and_verify();
}

#[test]
fn without_a_terminal_there_is_no_shell_and_no_pager() {
    let mut server = Server::start();
    let url = format!("http://{}", server.http);
    let mut piped = Command::new(CUSTODY)
        .args(["sql", "--url", &url])
        .env("PAGER", "sed s/^/PAGED/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let many = (0..200).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    piped.stdin.take().unwrap().write_all(format!("SELECT unnest([{many}]) AS n;\n").as_bytes()).unwrap();
    let out = String::from_utf8(piped.wait_with_output().unwrap().stdout).unwrap();
    assert!(out.ends_with("200 rows\n") && !out.contains("PAGED") && !out.contains("custody=>"), "{out}");
    server.stop_and_verify();
}
