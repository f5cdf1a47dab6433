//! The rules of the house that a program can hold: short files that say what they own, crates that
//! know only whom they may, and documents whose links, paths and tests are there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A longer file has more than one idea.
const LINES_MAX: usize = 500;

/// Files that are still to be split. This list is meant to be empty; who splits one takes it out.
const STILL_LONG: [&str; 0] = [];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files of the repository, as paths below its root; nothing that is built, installed or recorded.
fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let (name, path) = (entry.file_name(), folder.join(entry.file_name()));
            let name = name.to_str().unwrap();
            if !entry.file_type().unwrap().is_dir() {
                found.push(path);
            } else if !(name.starts_with('.') || ["target", "node_modules", "__pycache__"].contains(&name)) {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

fn files_with(extension: &str) -> Vec<(PathBuf, String)> {
    let wanted = files().into_iter().filter(|path| path.extension().is_some_and(|e| e == extension));
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(root().join(&path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (path, text)
    };
    wanted.map(read).collect()
}

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn every_source_file_says_what_it_owns_and_is_short() {
    let sources = files_with("rs");
    assert!(sources.len() > 300, "only {} sources were found", sources.len());
    let mut wrong = Vec::new();
    for (path, text) in &sources {
        let lines = text.lines().count();
        let is_known = STILL_LONG.iter().any(|known| Path::new(known) == path);
        if is_known && lines <= LINES_MAX {
            wrong.push(format!("{} is short now: take it out of STILL_LONG", path.display()));
        }
        if lines > LINES_MAX && !is_known {
            wrong.push(format!("{} has {lines} lines; {LINES_MAX} are enough for one idea", path.display()));
        }
        let is_made = text.lines().any(|line| line.contains("@generated"));
        if !text.starts_with("//!") && !is_made {
            wrong.push(format!("{} does not begin with //! and what it owns", path.display()));
        }
    }
    assert_none("sources that are not as the others", &wrong);
}

/// Of this machine and of nobody else's; and hosts that only it reaches.
#[test]
fn nothing_names_the_machine_that_it_was_made_on() {
    // In two pieces, so that this file names none of them.
    let homes: Vec<String> =
        ["wor", "roo", "hom"].iter().zip(["k/", "t/", "e/"]).map(|(a, b)| format!("/{a}{b}")).collect();
    let read = |path: &PathBuf| std::fs::read_to_string(root().join(path)).ok();
    let mut wrong = Vec::new();
    for path in files() {
        // What was recorded elsewhere says where; a container's own paths are no machine's.
        if path.starts_with("tests/fixtures") || path.starts_with("tests/data") || path.starts_with("ingest/rules") {
            continue;
        }
        let Some(text) = read(&path) else { continue };
        for (at, line) in text.lines().enumerate() {
            for home in &homes {
                // In the middle of a URL or of a longer path it is no folder of a machine.
                let begins =
                    |at: usize| at == 0 || !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-/*".contains(c));
                if line.match_indices(home.as_str()).any(|(at, _)| begins(at)) {
                    wrong.push(format!("{}:{}: {line}", path.display(), at + 1));
                }
            }
        }
        if path.ends_with("Cargo.lock") || path.ends_with("package-lock.json") {
            let hosts = text.lines().filter(|line| line.contains("http"));
            let public = ["https://github.com/", "https://registry.npmjs.org/", "https://opencollective.com/"];
            let others =
                hosts.filter(|line| !public.iter().any(|known| line.contains(known)) && line.contains("resolved"));
            wrong.extend(others.map(|line| format!("{}: {line}", path.display())));
        }
    }
    assert_none("paths and hosts of one machine", &wrong);
}

/// The anchors of a document: its headings as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut in_code = false;
    let mut out = BTreeSet::new();
    for line in text.lines() {
        in_code ^= line.trim_start().starts_with("```");
        let Some(heading) = line.strip_prefix('#').filter(|_| !in_code) else { continue };
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || *c == '_' || *c == '-' || *c == ' ');
        out.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
    }
    out
}

/// The targets of the links of a document: path and anchor.
fn links(text: &str) -> Vec<(String, String)> {
    let ends = text.match_indices("](").map(|(at, _)| &text[at + 2..]);
    let targets = ends.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let own = targets.filter(|target| !target.contains("://") && !target.contains(' ') && !target.contains('\n'));
    own.map(|target| target.split_once('#').unwrap_or((target, "")))
        .map(|(path, at)| (path.into(), at.into()))
        .collect()
}

fn documents() -> Vec<(PathBuf, String)> {
    let all = files_with("md").into_iter();
    all.filter(|(path, _)| !path.starts_with("tests/fixtures") && !path.starts_with("tests/data")).collect()
}

#[test]
fn every_link_of_a_document_leads_somewhere_and_every_page_is_linked_to() {
    let documents = documents();
    assert!(documents.len() > 20, "only {} documents were found", documents.len());
    let (mut wrong, mut linked) = (Vec::new(), BTreeSet::new());
    for (path, text) in &documents {
        for (target, anchor) in links(text) {
            let folder = path.parent().unwrap();
            let file = if target.is_empty() { root().join(path) } else { root().join(folder).join(&target) };
            let Ok(file) = file.canonicalize() else {
                wrong.push(format!("{}: {target} is not there", path.display()));
                continue;
            };
            let is_page = file.extension().is_some_and(|e| e == "md");
            let is_there = || is_page && anchors(&std::fs::read_to_string(&file).unwrap()).contains(&anchor);
            if !anchor.is_empty() && !is_there() {
                wrong.push(format!("{}: {target} has no heading #{anchor}", path.display()));
            }
            linked.insert(file);
        }
    }
    for (path, _) in documents.iter().filter(|(path, _)| path.starts_with("docs")) {
        if !linked.contains(&root().join(path).canonicalize().unwrap()) {
            wrong.push(format!("{}: no page links to it", path.display()));
        }
    }
    assert_none("links", &wrong);
}

/// Words of a document between backticks, and in its code.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || "`(),;|\"'".contains(c)).map(|word| word.trim_end_matches(['.', ':']))
}

#[test]
fn every_file_and_test_that_a_document_names_is_there() {
    let rooms = ["proto/", "store/", "ingest/", "query/", "tools/", "tests/", "benches/", "docs/"];
    let mut wrong = Vec::new();
    for (path, text) in documents() {
        for word in words(&text).filter(|word| rooms.iter().any(|room| word.starts_with(room))) {
            let is_file = word.rsplit('/').next().is_some_and(|name| name.contains('.')) || word.ends_with('/');
            let is_one = !word.contains(['*', '<', '{', '…', '#', '$', '=', '[']);
            if is_file && is_one && !root().join(word).exists() {
                wrong.push(format!("{}: {word} is not there", path.display()));
            }
        }
        let words: Vec<&str> = words(&text).collect();
        for (name, crates) in words
            .windows(2)
            .filter(|pair| pair[0] == "--test")
            .map(|pair| (pair[1], [".", "proto", "store", "ingest", "query"]))
        {
            let is_test = |of: &&str| root().join(of).join("tests").join(format!("{name}.rs")).exists();
            // `custody redact --test FILE` is another flag.
            if !name.contains(['.', '-', '/']) && !crates.iter().any(is_test) {
                wrong.push(format!("{}: there is no test {name}", path.display()));
            }
        }
    }
    assert_none("what documents name", &wrong);
}

/// Tests are listed by hand: one that is not listed would never run.
#[test]
fn every_test_of_the_root_is_listed() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let tests = files().into_iter().filter(|path| path.parent() == Some(Path::new("tests")));
    let tests = tests.filter(|path| path.extension().is_some_and(|e| e == "rs"));
    let unlisted = tests.filter(|path| !manifest.contains(&format!("path = \"{}\"", path.display())));
    let unlisted: Vec<String> = unlisted.map(|path| path.display().to_string()).collect();
    assert_none("tests that Cargo.toml does not list", &unlisted);
}

/// The names that a manifest depends on, its tests' apart.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join(manifest)).unwrap();
    let sections = text.split("\n[").filter(|section| section.starts_with("dependencies]"));
    let lines = sections.flat_map(str::lines).skip(1).filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split(['.', '=', ' ']).next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn crates_know_only_whom_they_may() {
    for (manifest, may, must_not) in [
        ("proto/Cargo.toml", &[][..], &["rocksdb", "tokio", "hyper", "tonic", "datafusion"][..]),
        ("store/Cargo.toml", &["custody-proto"], &["tokio", "hyper", "tonic", "datafusion"]),
        ("ingest/Cargo.toml", &["custody-proto", "custody-store"], &["rocksdb", "datafusion"]),
        ("query/Cargo.toml", &["custody-proto", "custody-store"], &["rocksdb"]),
    ] {
        let known = dependencies(manifest);
        assert!(known.len() > 2, "{manifest}: {known:?}");
        let others: Vec<_> =
            known.iter().filter(|name| name.starts_with("custody-") && !may.contains(&name.as_str())).collect();
        assert!(others.is_empty(), "{manifest} knows {others:?}");
        let banned: Vec<_> = must_not.iter().filter(|name| known.contains(**name)).collect();
        assert!(banned.is_empty(), "{manifest} knows {banned:?}");
    }
}
