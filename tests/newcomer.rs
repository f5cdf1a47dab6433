//! What a new user meets: the demo is what the README shows, and wrong input is answered by what is
//! wrong and how to mend it.

mod support;

use std::path::Path;
use std::process::{Command, Output};

use support::CUSTODY;

const README: &str = include_str!("../README.md");

fn custody(args: &[&str]) -> Output {
    // Neither a log of the folder that this is run in nor a server on the usual ports is meant.
    let output = Command::new(CUSTODY).args(args).env("CUSTODY_LOG", "warn").output();
    output.unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

/// Exit status and standard error of a command that is wrong.
fn refused(args: &[&str]) -> (i32, String) {
    let output = custody(args);
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// Standard output of a command that is right.
fn told(args: &[&str]) -> String {
    let output = custody(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A line without what is random in each log: its name, its keys, its root, its signatures.
fn settled(line: &str) -> String {
    let (before, rest) = line.split_once("custody.local/").unwrap_or((line, ""));
    let is_root = before.trim().len() == 44 && before.ends_with('=');
    match (is_root, rest.is_empty()) {
        (true, _) => "a root".to_owned(),
        (false, true) => line.to_owned(),
        (false, false) => format!("{before}a log"),
    }
}

/// The demo, and the ledger that it keeps: everything below asks it, so that it is made once.
#[test]
fn the_readme_shows_what_the_demo_shows_and_wrong_input_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("ledger");
    let dir = dir.to_str().unwrap();
    let shown = told(&["demo", "--keep", dir]);
    let block = README.split_once("```text\n──").and_then(|(_, rest)| rest.split_once("```\n")).unwrap().0;
    let from = shown.find("── Which authority").expect("the demo tells of violations");
    let upto = shown.find("── That was").expect("the demo ends");
    let mut real = shown[from..upto].trim_end().lines().map(settled);
    let readme = format!("──{block}");
    for line in readme.trim_end().lines().map(settled) {
        assert_eq!(Some(line), real.next(), "README.md shows something else than the demo: put its output there");
    }
    assert_eq!(real.next(), None, "the demo says more than README.md shows");

    let epilogue: Vec<&str> = shown[upto..].lines().filter(|line| line.starts_with("custody ")).collect();
    assert!(epilogue.len() > 4, "{epilogue:?}");
    for line in epilogue.iter().filter(|line| line.contains("--data-dir")) {
        let output = Command::new("sh").args(["-c", &line.replacen("custody", CUSTODY, 1)]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!output.stdout.is_empty(), "{line} says nothing");
    }
    wrong_words(dir);
    wrong_files(dir, folder.path());
    backups(dir, folder.path());
}

fn wrong_words(dir: &str) {
    for (args, status, says) in [
        (&["demo", "--keep", dir][..], 1, "is not empty"),
        (&["alerts", "list", "--state", "openn", "--data-dir", dir], 2, "acknowledged"),
        (&["replay", "--trace", "x", "--as-of", "yesterday", "--data-dir", dir], 1, "--as-of"),
        (&["replay", "--trace", "x", "--as-of", "5", "--data-dir", dir], 1, "known by the id x (as trace) as of 5"),
        (&["serve", "--http", "localhost:4680", "--data-dir", dir], 2, "such as 127.0.0.1:4317"),
        (&["serve", "--trace-ratio", "2", "--data-dir", dir], 2, "--trace-ratio 2 is not between 0 and 1"),
        (&["serve", "--policy", "/none", "--data-dir", dir], 2, "the policy /none cannot be read"),
        (&["serve", "--rules", "/none", "--data-dir", dir], 2, "rules in /none"),
        (&["events", "--limit", "0", "--data-dir", dir], 2, "0 is not a whole number from 1 on"),
        (&["backup", "--to", "x", "--keep", "0", "--data-dir", dir], 2, "0 is not a whole number from 1 on"),
        (&["erase", "--seq", "1", "--reason", " ", "--actor", "a", "--data-dir", dir], 2, "it is blank"),
        (
            &["hold", "place", "--id", "", "--seq", "1", "--reason", "r", "--actor", "a", "--data-dir", dir],
            2,
            "it is blank",
        ),
        (&["sql", "SELECT 1; SELECT 2", "--data-dir", dir], 1, "these are several statements"),
    ] {
        let (code, text) = refused(args);
        assert_eq!(code, status, "{args:?}: {text}");
        assert!(text.contains(says), "{args:?}: {text}");
    }
    let open = told(&["alerts", "list", "--state", "open,closed", "--data-dir", dir]);
    assert!(open.contains("alert-77"), "{open}");
}

/// A file that is something else proves nothing, and accuses nobody.
fn wrong_files(dir: &str, folder: &Path) {
    let other = folder.join("shopping-list");
    std::fs::write(&other, "milk\n").unwrap();
    let other = other.to_str().unwrap();
    let (code, text) = refused(&["verify", "--data-dir", dir, "--trusted", other]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("cannot tell") && text.contains("is no checkpoint"), "{text}");
    let (code, text) = refused(&["check", other]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("cannot tell") && text.contains("no bundle"), "{text}");
    std::fs::write(folder.join("mine.sql"), "SELECT 1").unwrap();
    let (code, text) = refused(&["rules", "list", folder.to_str().unwrap()]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("rule mine: its head has no description"), "{text}");
}

fn backups(dir: &str, folder: &Path) {
    let to = folder.join("backups");
    let to = to.to_str().unwrap();
    told(&["backup", "--to", to, "--data-dir", dir]);
    let list = told(&["restore", "--list", "--from", to]);
    let time = list.trim_end().rsplit('\t').next().unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z') && time.len() == 24, "{list}");
    let (code, text) = refused(&["restore", "--from", to]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("--data-dir"), "{text}");
    // No terminal is there to be told what to do.
    let output = custody(&["rebuild", "--check", "--data-dir", dir]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// Options stand under the heading that they belong to.
#[test]
fn help_puts_only_credentials_under_security() {
    for command in ["sql", "replay", "events", "verify"] {
        let help = told(&[command, "-h"]);
        let security = help.split_once("\nSecurity:\n").unwrap_or_else(|| panic!("{help}")).1;
        let flags: Vec<&str> = security.split_whitespace().filter(|word| word.starts_with("--")).collect();
        assert_eq!(flags, ["--ca", "--cert", "--key", "--token-file"], "custody {command}");
    }
}

/// The file in docs/operations.md starts a server, and says what it is said to.
#[test]
fn the_documented_configuration_file_works() {
    let documented = include_str!("../docs/operations.md");
    let text = documented.split_once("# custody.toml\n").and_then(|(_, rest)| rest.split_once("```")).unwrap().0;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("custody.toml");
    std::fs::write(&file, text).unwrap();
    let mut server = support::Server::start_in(folder, &["--config", file.to_str().unwrap()]);
    let genesis = server.get("/checkpoint").1;
    assert!(genesis.starts_with("logs.example.com/agents\n"), "{genesis}");
    let metrics = server.get("/metrics").1;
    assert!(metrics.contains("\ncustody_redacted_requests_total 0\n"), "redaction is on: {metrics}");
    server.stop();
}
