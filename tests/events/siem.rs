//! The loops of docs/siem, run as they stand there.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{filled, get, seqs, seqs_so_far};
use crate::support::{Server, python, recorded_requests, until};

/// The first block of code of a page.
fn block(page: &str, language: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/siem").join(page);
    let text = std::fs::read_to_string(path).unwrap();
    let (_, rest) = text.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("\n```").unwrap().0.to_owned() + "\n"
}

fn all(server: &Server) -> Vec<u64> {
    seqs(&get(server, "/api/v1/events?limit=10000", &[]).2)
}

#[test]
fn the_shell_loop_goes_on_over_a_kill_of_the_server() {
    let server = filled(60, &[]);
    let folder = tempfile::tempdir().unwrap();
    let (script, out) = (folder.path().join("loop.sh"), folder.path().join("events.ndjson"));
    std::fs::write(&script, block("shell-loop.md", "sh")).unwrap();
    // A stop within a write left half a line.
    std::fs::write(&out, "{\"metadata\":{\"ui").unwrap();
    let mut shell = Command::new("sh")
        .arg(&script)
        .env("CUSTODY_URL", format!("http://{}", server.http))
        .env("STATE", folder.path().join("cursor"))
        .env("OUT", &out)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let read = || seqs_so_far(&out);
    let want = all(&server);
    until(|| read() == want);
    let mut server = server.kill_and_restart();
    server.send_grpc(recorded_requests().into_iter().skip(60).take(20).collect());
    server.wait_until_visible();
    let want = all(&server);
    until(|| read() == want);
    shell.kill().unwrap();
    shell.wait().unwrap();
    let checked = server.custody_output(&["events", "check", out.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stdout));
    server.stop_and_verify();
}

#[test]
fn the_python_loop_stores_each_event_once_over_two_runs() {
    let mut server = filled(60, &[]);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("events.ndjson");
    std::fs::write(&out, "{\"metadata\":{\"ui").unwrap();
    let run = |server: &Server| {
        let output = Command::new(python())
            .args(["-c", &block("python.md", "python")])
            .env("CUSTODY_URL", format!("http://{}", server.http))
            .env("STATE", folder.path().join("cursor"))
            .env("OUT", &out)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(&server);
    server.send_grpc(recorded_requests().into_iter().skip(60).take(20).collect());
    server.wait_until_visible();
    run(&server);
    run(&server);
    assert_eq!(seqs(&std::fs::read_to_string(&out).unwrap()), all(&server));
    let checked = server.custody_output(&["events", "check", out.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stdout));
    server.stop_and_verify();
}

/// What cannot be stored is not gone on from.
#[test]
fn the_loops_end_where_nothing_can_be_stored() {
    let mut server = filled(10, &[]);
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("cursor");
    let script = folder.path().join("loop.sh");
    std::fs::write(&script, block("shell-loop.md", "sh")).unwrap();
    let mut shell = Command::new("sh");
    shell.arg(&script);
    let mut reader = Command::new(python());
    reader.args(["-c", &block("python.md", "python")]);
    for mut command in [shell, reader] {
        command.env("CUSTODY_URL", format!("http://{}", server.http)).env("STATE", &state).env("OUT", "/dev/full");
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!state.exists(), "{command:?} went on");
    }
    server.stop_and_verify();
}
