//! How it is installed: the systemd unit, the container, what may be built in, and the script that asks for advisories.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/packaging").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap()
}

/// The values of a setting of the unit.
fn settings(name: &str) -> Vec<String> {
    let unit = text("custody.service");
    let of = |line: &str| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
    unit.lines().filter_map(of).collect()
}

#[test]
fn the_unit_leaves_the_process_one_directory_and_no_privilege() {
    for (name, value) in [
        ("DynamicUser", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("PrivateDevices", "yes"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("AmbientCapabilities", ""),
        ("MemoryDenyWriteExecute", "yes"),
        ("RestrictNamespaces", "yes"),
        ("SystemCallArchitectures", "native"),
        ("StateDirectory", "custody"),
        ("StateDirectoryMode", "0700"),
        ("UMask", "0077"),
        ("LimitCORE", "0"),
        ("Restart", "on-failure"),
    ] {
        assert_eq!(settings(name), [value], "{name}");
    }
    assert_eq!(settings("SystemCallFilter")[0], "@system-service");
    assert!(settings("SystemCallFilter")[1].starts_with('~'));
    assert!(settings("ReadWritePaths").is_empty(), "the state directory alone");
    // What the documentation says of it, where the tool is here.
    let mut rate = Command::new("systemd-analyze");
    match rate.args(["security", "--offline=true", "--threshold=14"]).arg(file("custody.service")).output() {
        Err(_) => println!("there is no systemd-analyze here: the unit is not rated"),
        Ok(rated) => assert!(rated.status.success(), "above 1.4: {}", String::from_utf8_lossy(&rated.stdout)),
    }
}

#[test]
fn the_container_has_no_shell_and_no_root_and_the_compiler_that_the_workspace_asks_for() {
    let container = text("Containerfile");
    let lines: Vec<&str> = container.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    let last = lines.iter().rposition(|line| line.starts_with("FROM ")).unwrap();
    assert!(lines[last].contains("/distroless/") && lines[last].ends_with(":nonroot"), "{}", lines[last]);
    assert!(lines[last..].contains(&"USER nonroot:nonroot"));
    assert!(!lines[last..].iter().any(|line| line.starts_with("RUN ")), "there is nothing to run it with");
    for port in ["4317", "4318", "4680", "4681"] {
        assert!(lines[last..].iter().any(|line| line.starts_with("EXPOSE ") && line.contains(port)), "{port}");
    }
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    assert!(lines[0].contains(&format!("/rust:{version}-")), "{} builds with {version}", lines[0]);
    for name in ["target", ".git"] {
        let left_out = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/.dockerignore")).unwrap();
        assert!(left_out.lines().any(|line| line == name), "{name} is not copied into it");
    }
}

/// Whether an SPDX expression can be met with these licenses.
fn allows(allowed: &BTreeSet<String>, expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let met = any(allowed, &words, &mut at);
    met && at == words.len()
}

fn any(allowed: &BTreeSet<String>, words: &[&str], at: &mut usize) -> bool {
    let mut met = all(allowed, words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all(allowed, words, at);
    }
    met
}

fn all(allowed: &BTreeSet<String>, words: &[&str], at: &mut usize) -> bool {
    let mut met = one(allowed, words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(allowed, words, at);
    }
    met
}

fn one(allowed: &BTreeSet<String>, words: &[&str], at: &mut usize) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let met = any(allowed, words, at);
        *at += 1;
        return met;
    }
    match words.get(*at) {
        Some(&"WITH") => {
            *at += 2;
            allowed.contains(&format!("{word} WITH {}", words[*at - 1]))
        }
        _ => allowed.contains(*word),
    }
}

#[test]
fn expressions_of_licenses_are_read_as_they_are_meant() {
    let allowed: BTreeSet<String> =
        ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into_iter().collect();
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR GPL-3.0) AND Apache-2.0", true),
        ("MIT AND (GPL-3.0 OR AGPL-3.0)", false),
        ("GPL-3.0 OR Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0 WITH other-exception", false),
        ("", false),
        ("MIT MIT", false),
    ] {
        assert_eq!(allows(&allowed, expression), met, "{expression}");
    }
}

/// The rules of deny.toml that need no advisories, held against what is built in, also where cargo-deny is not.
#[test]
fn what_is_built_in_has_an_allowed_license_and_comes_from_where_it_may() {
    let rules: toml::Table = toml::from_str(&text("deny.toml")).unwrap();
    let names = |of: &toml::Value| -> BTreeSet<String> {
        of.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    let allowed = names(&rules["licenses"]["allow"]);
    let banned: Vec<&str> =
        rules["bans"]["deny"].as_array().unwrap().iter().map(|ban| ban["crate"].as_str().unwrap()).collect();
    let bill = Command::new(crate::support::python()).arg(file("sbom.py")).output().unwrap();
    assert!(bill.status.success(), "{}", String::from_utf8_lossy(&bill.stderr));
    let bill: Value = serde_json::from_slice(&bill.stdout).unwrap();
    let components = bill["components"].as_array().unwrap();
    assert!(components.len() > 200, "{}", components.len());
    for component in components {
        let name = component["name"].as_str().unwrap();
        let expression = component["licenses"][0]["expression"].as_str().unwrap_or_default();
        assert!(allows(&allowed, expression), "{name} is under {expression:?}, which deny.toml does not allow");
        assert!(!banned.contains(&name), "deny.toml bans {name}");
        // What is not ours has the hash of the registry.
        let is_own = name.starts_with("custody");
        assert_eq!(component["hashes"].is_array(), !is_own, "{name}");
    }
    let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
    let sources: BTreeSet<&str> = lock.lines().filter_map(|line| line.strip_prefix("source = ")).collect();
    assert_eq!(sources.into_iter().collect::<Vec<_>>(), ["\"registry+https://github.com/rust-lang/crates.io-index\""]);
}

/// The script, where these are all the programs that there are.
fn audit(programs: &Path) -> Output {
    Command::new("/bin/sh").arg(file("audit.sh")).env("PATH", programs).output().unwrap()
}

#[test]
fn an_audit_without_a_tool_is_no_success_and_with_one_it_is_its_word() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    // `dirname` is all that the script needs besides.
    put("dirname", "#!/bin/sh\necho \"${1%/*}\"\n");
    let nothing = audit(folder.path());
    assert_eq!(nothing.status.code(), Some(2), "{nothing:?}");
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("nothing was looked at"));
    put("cargo", "#!/bin/sh\necho \"asked: $*\"; exit 7\n");
    for (tool, asked) in
        [("cargo-audit", "asked: audit"), ("cargo-deny", "asked: deny --config tools/packaging/deny.toml check")]
    {
        put(tool, "#!/bin/sh\n");
        let told = audit(folder.path());
        assert_eq!(told.status.code(), Some(7), "what it found is what the script says: {told:?}");
        assert_eq!(String::from_utf8_lossy(&told.stdout).trim(), asked);
    }
}
