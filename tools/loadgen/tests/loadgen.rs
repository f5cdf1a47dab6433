//! The command line of the load generator, without a server.

use std::process::{Command, Output};

fn loadgen(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_custody-loadgen")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The lines that do not tell how fast it was.
fn bytes_of(args: &[&str]) -> Vec<String> {
    let output = loadgen(args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().filter(|line| !line.contains("CPU us")).map(str::to_owned).collect()
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_one_others() {
    let first = bytes_of(&["--dry-run", "--count", "20k", "--seed", "5"]);
    assert!(first.last().unwrap().starts_with("FNV-1a of the first 40 requests: "), "{first:?}");
    assert_eq!(bytes_of(&["--dry-run", "--count", "20k", "--seed", "5", "--threads", "4"]), first);
    assert_ne!(bytes_of(&["--dry-run", "--count", "20k", "--seed", "6"]), first);
    assert_ne!(bytes_of(&["--dry-run", "--count", "20k", "--seed", "5", "--payload-bytes", "501"]), first);
}

#[test]
fn what_cannot_be_done_is_said_in_words() {
    for (args, expected) in [
        (&["--rate", "fast"][..], "a rate is records a second"),
        (&["--payload-bytes", "100"], "a record has 200 to"),
        (&["--rate", "10", "--steps", "20"], "cannot be used with"),
        (&["--target", "https://example.com:4317"], "https is not spoken here"),
        (&["--target", "localhost"], "is not a URL such as http://127.0.0.1:4317"),
        (&["--server-pid", "4294967295"], "there is no process 4294967295"),
    ] {
        let output = loadgen(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains(expected), "{args:?}: {}", text(&output.stderr));
    }
}

#[test]
fn without_a_server_nothing_can_be_told() {
    // Port 9 of loopback, discard: nobody listens.
    let args = ["--target", "http://127.0.0.1:9", "--count", "10", "--batch", "10", "--retry-for", "100ms"];
    let output = loadgen(&args);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).contains("connection"), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("nothing was acknowledged"), "{}", text(&output.stderr));
    // Who is to be asked afterwards is asked before.
    let output = loadgen(&[&args[..], &["--check", "http://127.0.0.1:9"]].concat());
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""));
    assert!(text(&output.stderr).contains("--check: http://127.0.0.1:9 does not answer"), "{}", text(&output.stderr));
}
