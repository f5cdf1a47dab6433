//! `tools/verify.py`, which is the format read a second time and without our code: it and
//! `custody check` agree on the vectors of tests/data, on a live log, on damage and on
//! forgeries that bear the log's own signatures.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use custody_store::format::cf;
use serde_json::json;
use support::{CUSTODY, Server};

fn path(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of)
}

/// The Python of the test clients: what `make test` names, or the venv it makes.
fn python() -> Command {
    Command::new(std::env::var_os("CUSTODY_TEST_PYTHON").unwrap_or_else(|| path(".venv/bin/python").into()))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; run `make test`, which installs it"));
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs verify.py: its status and all that it printed.
fn verify_py(args: &[&str]) -> (i32, String) {
    let output = python().arg(path("tools/verify.py")).args(args).output().unwrap();
    assert!(output.stderr.is_empty(), "{args:?}: {}", text(&output));
    (output.status.code().unwrap(), text(&output))
}

/// Runs `custody check`; it never panics.
fn check(file: &Path, vkey: &Path) -> i32 {
    let output = Command::new(CUSTODY).arg("check").arg(file).arg("--vkey").arg(vkey).output().unwrap();
    let status = output.status.code().expect("it ended by itself");
    assert!((0..=2).contains(&status), "{}: {}", file.display(), text(&output));
    status
}

/// The verdicts of both on every file of a folder: verify.py's status and reason, `custody check`'s status.
fn verdicts(folder: &Path, vkey: &Path) -> BTreeMap<String, (i32, String, i32)> {
    let theirs = python().arg(path("tests/clients/verify_many.py")).arg(folder).arg(vkey).output().unwrap();
    assert!(theirs.status.success() && theirs.stderr.is_empty(), "{}", text(&theirs));
    let lines = String::from_utf8(theirs.stdout).unwrap();
    let verdict = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let name = words.next().unwrap().to_owned();
        let status = words.next().unwrap().parse().unwrap();
        let ours = check(&folder.join(&name), vkey);
        (name, (status, words.next().unwrap_or_default().to_owned(), ours))
    };
    lines.lines().map(verdict).collect()
}

const FILES: [&str; 5] =
    ["complete.custody", "selective.custody", "record-2.tlog-proof", "record-7.tlog-proof", "record-18.tlog-proof"];

#[test]
fn the_vectors_of_format_1_hold_for_both() {
    assert_eq!(verify_py(&["--self-test"]), (0, "sound: file self-test\n".into()));
    let data = path("tests/data/log-v1");
    let vkey = data.join("log.vkey");
    for name in FILES {
        let file = data.join(name);
        let (status, told) = verify_py(&[file.to_str().unwrap(), "--vkey", vkey.to_str().unwrap()]);
        assert_eq!((status, check(&file, &vkey)), (0, 0), "{name}: {told}");
    }
    let hashes = run(python().arg(data.join("make.py")).arg("hashes").arg(&data));
    assert!(hashes == std::fs::read_to_string(data.join("hashes.json")).unwrap(), "hashes.json came out otherwise");
}

#[test]
fn without_its_module_it_says_that_signatures_were_not_verified() {
    let file = path("tests/data/log-v1/complete.custody");
    let without = |more: &[&str]| {
        let output = python().args(["-I", "-S"]).arg(path("tools/verify.py")).arg(&file).args(more).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", text(&output));
        (output.status.code().unwrap(), text(&output))
    };
    let (status, told) = without(&[]);
    assert_eq!(status, 3, "{told}");
    for algorithm in ["Ed25519", "ML-DSA-44"] {
        assert!(told.contains(&format!("signature NOT verified: {algorithm}: ")), "{told}");
    }
    assert_eq!(without(&["--no-signatures"]).0, 0);
    let (status, told) = without(&["--json"]);
    let json: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((status, json["signatures_not_verified"].as_array().unwrap().len()), (3, 2), "{json}");
    assert_eq!(verify_py(&["/nothing/here"]).0, 2);
    // What the asker mixed up accuses nobody.
    let (file, other) = (file.to_str().unwrap(), path("Cargo.toml"));
    let other = other.to_str().unwrap();
    for (args, says) in [(&[file, "--vkey", other][..], "--vkey "), (&[other][..], "is no .tlog-proof and no bundle")] {
        let (status, told) = verify_py(args);
        assert!(status == 2 && told.starts_with("cannot tell: ") && told.contains(says), "{told}");
    }
}

#[test]
fn what_a_file_brings_along_does_not_act_on_the_terminal() {
    let told = "{'file': 'proof', 'origin': 'a\\x1b[31m\\u202eb c', 'keys': ['k\\r\\ntrusted']}";
    let code = format!("import verify; verify.run = lambda *_: {told}; verify.main(['x'])");
    let told = run(python().current_dir(path("tools")).args(["-c", &code]));
    let expected = "sound: file proof, origin a\\x1b[31m\\u202eb c\n\
                    compare these keys with those that the log's operator published:\nk\\r\\ntrusted\n";
    assert_eq!(told, expected);
}

/// xorshift: the same changes in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// One small change of a file.
fn mutate(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
    let (a, b) = (random.below(lines.len()), random.below(lines.len()));
    let other = if a == b { (a + 1) % lines.len() } else { b };
    match random.below(8) {
        0 => drop(lines.remove(a)),
        1 => lines.insert(b, lines[a]),
        2 => lines.swap(a, other),
        3 => return bytes[..random.below(bytes.len())].to_vec(),
        kind => {
            let mut changed = bytes.to_vec();
            // Lines are long, and the first ones small: half of the flips are within a line chosen first.
            let start: usize = lines[..a].iter().map(|line| line.len()).sum();
            let at = if kind == 4 { random.below(bytes.len()) } else { start + random.below(lines[a].len()) };
            changed[at] ^= 1 << random.below(8);
            return changed;
        }
    }
    lines.concat()
}

#[test]
fn both_refuse_whatever_is_changed_in_a_bundle_or_proof() {
    let folder = tempfile::tempdir().unwrap();
    let data = path("tests/data/log-v1");
    let mut random = Random(0x5eed);
    for (name, count) in [("complete.custody", 90), ("selective.custody", 70), ("record-7.tlog-proof", 60)] {
        let bytes = std::fs::read(data.join(name)).unwrap();
        for number in 0..count {
            let changed = mutate(&bytes, &mut random);
            if changed != bytes {
                std::fs::write(folder.path().join(format!("{number:03}-{name}")), changed).unwrap();
            }
        }
    }
    let verdicts = verdicts(folder.path(), &data.join("log.vkey"));
    assert!(verdicts.len() > 200);
    let accepted: Vec<_> = verdicts.iter().filter(|(_, (py, _, ours))| *py == 0 || *ours == 0).collect();
    if !accepted.is_empty() {
        let kept = folder.keep();
        panic!("in {}: {accepted:#?}", kept.display());
    }
}

/// One who holds the keys says in a bundle what the log does not say.
#[test]
fn both_refuse_what_the_log_itself_does_not_say() {
    let mut server = Server::start();
    server.send_grpc(support::recorded_requests().into_iter().take(5).collect());
    let dir = server.data_dir();
    let file = |name: &str| server.path().join(name);
    let (before, after) = (file("before.custody"), file("after.custody"));
    custody(&server, &["export", "--all", "-o", before.to_str().unwrap()]);
    // With as many digits as what is held, for a forgery that changes one for the other.
    custody(&server, &["erase", "--seq", "10", "--reason", "r", "--actor", "a"]);
    custody(&server, &["hold", "place", "--id", "h", "--seq", "1", "--reason", "r", "--actor", "a"]);
    custody(&server, &["keys", "rotate", "--reason", "r", "--actor", "a"]);
    custody(&server, &["export", "--all", "-o", after.to_str().unwrap()]);
    let out = file("forged");
    std::fs::create_dir(&out).unwrap();
    let script = path("tests/clients/forge.py");
    run(python().arg(script).arg(&after).arg(dir.join("keys/log.key")).arg(&before).arg(&out));
    let mut wrong = Vec::new();
    let verdicts = verdicts(&out, &dir.join("log.vkey"));
    assert_eq!(verdicts.len(), 24);
    for (name, verdict) in verdicts {
        let want = i32::from(!name.starts_with("sound"));
        if (verdict.0, verdict.2) != (want, want) {
            wrong.push((name, verdict));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    server.stop_and_verify();
}

/// The record that says of an erasure proves it, and may be asked for as well: it comes once.
#[test]
fn an_erased_record_and_its_erasure_are_exported_together() {
    let mut server = Server::start();
    server.send_grpc(support::recorded_requests().into_iter().take(1).collect());
    let told = custody(&server, &["erase", "--seq", "1", "--reason", "r", "--actor", "a"]);
    let by = told.trim().rsplit(' ').next().unwrap().to_owned();
    let (file, vkey) = (server.path().join("both.custody"), server.data_dir().join("log.vkey"));
    custody(&server, &["export", "--seq", &format!("1,{by}"), "-o", file.to_str().unwrap()]);
    let (status, told) = verify_py(&[file.to_str().unwrap(), "--vkey", vkey.to_str().unwrap()]);
    assert_eq!((status, check(&file, &vkey)), (0, 0), "{told}");
    assert!(told.contains("records 4, erased 1"), "{told}");
    server.stop_and_verify();
}

/// A `custody` command that works on this server's directory.
fn custody(server: &Server, args: &[&str]) -> String {
    run(Command::new(CUSTODY).args(args).arg("--data-dir").arg(server.data_dir()))
}

#[test]
fn a_live_log_after_an_erasure_and_a_rotation_and_against_an_older_checkpoint() {
    let mut server = Server::start();
    let url = format!("http://{}", server.http);
    let vkey = server.data_dir().join("log.vkey");
    let (old, former) = (server.path().join("old"), server.path().join("former.vkey"));
    std::fs::copy(&vkey, &former).unwrap();
    server.send_grpc(support::recorded_requests().into_iter().take(40).collect());
    custody(&server, &["erase", "--seq", "2-4", "--reason", "r", "--actor", "a"]);
    std::fs::write(&old, server.get("/checkpoint").1).unwrap();
    custody(&server, &["keys", "rotate", "--reason", "r", "--actor", "a"]);
    let ask = |more: &[&Path]| {
        let more: Vec<_> = more.iter().map(|path| path.to_str().unwrap()).collect();
        verify_py(&[&["--url", &url], &more[..]].concat())
    };
    let (flag_vkey, flag_trusted) = (Path::new("--vkey"), Path::new("--trusted"));
    let (status, told) = ask(&[flag_vkey, &vkey, flag_trusted, &old]);
    assert_eq!(status, 0, "{told}");
    assert!(told.starts_with("sound: file log"), "{told}");
    assert_eq!(ask(&[]).0, 3, "no key was given");
    // The first checkpoint of new keys is signed by the former ones too, the next one is not.
    assert_eq!(ask(&[flag_vkey, &former]).0, 0);
    let (_, first) = server.get("/checkpoint");
    custody(&server, &["hold", "place", "--id", "h", "--seq", "1", "--reason", "r", "--actor", "a"]);
    support::until(|| server.get("/checkpoint").1 != first);
    let (status, told) = ask(&[flag_vkey, &former]);
    assert!(status == 1 && told.contains("not signed by"), "{told}");
    // Of the same log, later: this one was rolled back. Or with another root: it was written anew.
    let note = std::fs::read_to_string(&old).unwrap();
    let lines: Vec<&str> = note.split('\n').collect();
    for (line, text) in [(1, "999999"), (2, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="), (0, "example.com/other")] {
        let mut changed = lines.clone();
        changed[line] = text;
        std::fs::write(&old, changed.join("\n")).unwrap();
        let (status, told) = ask(&[flag_vkey, &vkey, flag_trusted, &old]);
        assert_eq!(status, 1, "{told}");
    }
    server.stop_and_verify();
    assert_eq!(ask(&[]).0, 2, "nobody answers");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Not a test: makes new vectors in this folder, if it is set (see tests/data/log-v1/make.py).
#[test]
fn make_the_vectors() {
    let Some(out) = std::env::var_os("CUSTODY_MAKE_VECTORS").map(PathBuf::from) else { return };
    let (folder, make) = (tempfile::tempdir().unwrap(), path("tests/data/log-v1/make.py"));
    let dir = folder.path().join("data");
    run(python().arg(&make).args(["log", CUSTODY]).arg(&dir).arg(&out));
    std::fs::copy(dir.join("log.vkey"), out.join("log.vkey")).unwrap();
    let db = rocksdb::DB::open_cf(&rocksdb::Options::default(), dir.join("log"), cf::ALL).unwrap();
    let family = |name: &str| db.cf_handle(name).unwrap();
    let blocks = db.iterator_cf(family(cf::BLOCKS), rocksdb::IteratorMode::Start).map(|row| {
        let (key, block) = row.unwrap();
        let payload = db.get_cf(family(cf::PAYLOADS), &key).unwrap().unwrap();
        let first = u64::from_be_bytes(key[..].try_into().unwrap());
        json!({"first": first, "block": hex(&block), "payload": hex(&payload)})
    });
    let blocks = serde_json::to_string_pretty(&blocks.collect::<Vec<_>>()).unwrap();
    std::fs::write(out.join("blocks.json"), blocks + "\n").unwrap();
    let hashes = run(python().arg(&make).arg("hashes").arg(&out));
    std::fs::write(out.join("hashes.json"), hashes).unwrap();
}
