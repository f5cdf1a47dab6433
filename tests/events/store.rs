//! Exports to an object store, which loses answers and refuses requests as real ones do; and the chain
//! of their digests, checked with nothing but the log's key.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use super::get;
use crate::support::{CUSTODY, Server, python, recorded_requests, until};

/// What the store in tests/clients/s3.py knows.
const ENVIRONMENT: [(&str, &str); 6] = [
    ("AWS_CA_BUNDLE", ""),
    ("AWS_ACCESS_KEY_ID", "AKIDTEST"),
    ("AWS_SECRET_ACCESS_KEY", "a/secret+key"),
    ("AWS_SESSION_TOKEN", "a session/token+"),
    ("AWS_REGION", "eu-test-1"),
    ("CUSTODY_LOG", "trace"),
];

const PLACE: &str = "s3://events-bucket/logs/one";

/// A running store.
struct Store {
    child: Child,
    folder: tempfile::TempDir,
    endpoint: String,
}

impl Store {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/s3.py");
        let mut child = Command::new(python()).arg(script).arg(folder.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { child, folder, endpoint: format!("http://127.0.0.1:{}", port.trim()) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The objects whose names have this in them.
    fn objects(&self, part: &str) -> Vec<PathBuf> {
        let (mut found, mut folders) = (Vec::new(), vec![self.path("objects")]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_dir() { folders.push(entry) } else { found.push(entry) }
            }
        }
        found.retain(|path| path.to_str().unwrap().contains(part));
        found.sort();
        found
    }

    fn log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.path("requests.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Runs a command that knows the store.
    fn custody(&self, args: &[&str]) -> Output {
        let mut command = Command::new(CUSTODY);
        command.args(args).envs(ENVIRONMENT).env_remove("CUSTODY_LOG");
        command.env("AWS_ENDPOINT_URL_S3", &self.endpoint).output().unwrap()
    }

    /// `custody events check --export`: the exit status and the result.
    fn check(&self, place: &str, server: &Server, more: &[&str]) -> (i32, Value) {
        let key = server.data_dir().join("log.vkey");
        let args = ["events", "check", "--json", "--export", place, "--vkey", key.to_str().unwrap()];
        let output = self.custody(&[&args[..], more].concat());
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| json!({"error": told}));
        (output.status.code().unwrap(), json)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(server: &Server) -> u64 {
    server.sql("SELECT max(seq) + 1 AS n FROM ledger")[0]["n"].as_u64().unwrap()
}

/// Up to which seq the newest digest goes.
fn covered(store: &Store) -> u64 {
    let digests = store.objects(".digest");
    let seqs = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("seqs ")).unwrap_or("0 0").to_owned();
        line.split_once(' ').unwrap().1.parse().unwrap()
    };
    digests.last().map_or(0, seqs)
}

#[test]
fn an_export_to_a_bad_store_loses_doubles_and_overwrites_nothing_over_a_kill() {
    let store = Store::start();
    let to = ["--export-events-to", PLACE, "--s3-endpoint", &store.endpoint, "--export-events-every", "2"];
    let environment: Vec<(&str, &str)> = ENVIRONMENT.to_vec();
    // It dies when its objects are there and their digest is not.
    std::fs::write(store.path("stall"), "").unwrap();
    let mut server = Server::start_with(tempfile::tempdir().unwrap(), &to, &environment);
    server.send_grpc(recorded_requests().into_iter().take(60).collect());
    until(|| store.path("stalled").exists());
    let folder = server.kill();
    std::fs::remove_file(store.path("stall")).unwrap();
    let before: Vec<(PathBuf, Vec<u8>)> =
        store.objects("/events/").into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();

    let mut server = Server::start_with(folder, &to, &environment);
    server.send_grpc(recorded_requests().into_iter().skip(60).take(40).collect());
    server.wait_until_visible();
    let all = size(&server);
    until(|| covered(&store) == all);
    let (status, told) = store.check(PLACE, &server, &["--s3-endpoint", &store.endpoint]);
    assert_eq!((status, &told["verdict"]), (0, &json!("sound")), "{told}");
    assert_eq!(told["range"], json!({"from_seq": 0, "to_seq": all - 1}), "{told}");
    for (path, bytes) in before {
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{path:?} was written over");
    }

    // What a digest names is each event once, as the API gives them.
    let stored = store.path("all.ndjson");
    let mut lines = String::new();
    for digest in store.objects(".digest") {
        for object in std::fs::read_to_string(digest).unwrap().lines().filter_map(|line| line.strip_prefix("object ")) {
            let bytes = std::fs::read(store.path("objects/logs/one").join(object.split(' ').next().unwrap())).unwrap();
            std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut lines).unwrap();
        }
    }
    assert_eq!(lines, get(&server, "/api/v1/events?limit=10000", &[]).2);
    std::fs::write(&stored, &lines).unwrap();
    assert!(server.custody_output(&["events", "check", stored.to_str().unwrap()]).status.success());

    // Each request was signed, each put had its condition, and the store was as bad as it is meant to be.
    let log = store.log();
    assert!(log.iter().all(|line| line.contains(" signed ")), "{log:#?}");
    assert!(log.iter().filter(|line| line.starts_with("PUT ")).all(|line| line.ends_with(" *")), "{log:#?}");
    assert!(
        log.iter().any(|line| line.contains(" 503 ")) && log.iter().any(|line| line.contains(" lost ")),
        "{log:#?}"
    );
    // Nothing of what signs is in a log line, however many there are.
    let told = std::fs::read_to_string(server.path().join("stderr.log")).unwrap();
    for secret in ["a/secret+key", "a session/token", "a%20session", "X-Amz-Signature"] {
        assert!(!told.contains(secret), "{secret} is in a log line");
    }
    server.stop_and_verify();
}

#[test]
fn an_export_by_hand_goes_on_where_the_last_one_ended_and_its_chain_shows_every_change() {
    let store = Store::start();
    let local = tempfile::tempdir().unwrap();
    let mut server = super::filled(60, &[]);
    let dir = server.data_dir();
    let export = |to: &str| {
        let data = dir.to_str().unwrap();
        let output = store.custody(&["export", "--to", to, "--every", "1", "--format", "ocsf", "--data-dir", data]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let first = size(&server);
    let local_place = local.path().to_str().unwrap();
    for place in [local_place, PLACE] {
        until(|| {
            export(place);
            store.check(place, &server, &[]).1["range"]["to_seq"].as_u64().is_some_and(|last| last + 1 >= first)
        });
        let (status, told) = store.check(place, &server, &[]);
        assert_eq!((status, &told["verdict"]), (0, &json!("sound")), "{told}");
        // The command that it tells works as it stands.
        let said = export(place);
        let (_, command) = said.trim().split_once("check them with: custody ").unwrap();
        let checked = store.custody(&command.split(' ').collect::<Vec<_>>());
        assert!(checked.status.success(), "{command}: {}", String::from_utf8_lossy(&checked.stderr));
    }
    // The server signed, and says so in the log. Then without a server, too.
    let said = server.sql("SELECT identity, text FROM audit WHERE action = 'export'");
    assert!(said[0]["identity"].as_str().unwrap().starts_with("uid:"), "{said:?}");
    assert!(said[0]["text"].as_str().unwrap().starts_with("events, period "), "{said:?}");
    server.send_grpc(recorded_requests().into_iter().skip(60).take(20).collect());
    let more = size(&server);
    server.stop_and_verify();
    until(|| {
        export(PLACE);
        covered(&store) >= more
    });
    assert_eq!(store.check(PLACE, &server, &[]).0, 0);

    // Another log's events do not go into the same place.
    let other = super::filled(5, &[]);
    let data = other.data_dir();
    let refused = store.custody(&["export", "--to", PLACE, "--every", "1", "--data-dir", data.to_str().unwrap()]);
    assert!(refused.status.code() == Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("another log"), "{refused:?}");

    let found = |kind: &str| {
        let (status, told) = store.check(PLACE, &server, &[]);
        assert_eq!(status, 1, "{told}");
        told["findings"][kind].as_array().unwrap_or_else(|| panic!("{told}")).len()
    };
    let (objects, digests) = (store.objects("/events/"), store.objects(".digest"));
    let changed = |path: &PathBuf, change: &dyn Fn(&Path), kind: &str| {
        let bytes = std::fs::read(path).unwrap();
        change(path);
        assert!(found(kind) >= 1, "{path:?}");
        std::fs::write(path, bytes).unwrap();
    };
    let remove = |path: &Path| std::fs::remove_file(path).unwrap();
    let flip = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    changed(&objects[0], &remove, "missing");
    changed(&objects[0], &flip, "altered");
    changed(&digests[1], &flip, "signature");
    changed(&digests[1], &remove, "chain");
    changed(&digests[0], &remove, "chain");
    let replace = |path: &Path| assert!(std::fs::copy(&digests[0], path).is_ok());
    changed(&digests[1], &replace, "chain");
    assert_eq!(store.check(PLACE, &server, &[]).0, 0, "it is as it was");
    // Older ones were taken away by the bucket's own rules: that is told, and then no fault.
    let period = digests[1].file_stem().unwrap().to_str().unwrap();
    std::fs::remove_file(&digests[0]).unwrap();
    assert_eq!(store.check(PLACE, &server, &["--from-period", period]).0, 0);
    // From when on is said by a digest that is there: nothing more is left out than is told.
    let (status, told) = store.check(PLACE, &server, &["--from-period", "20000101T000000Z"]);
    assert!(status == 1 && told["findings"]["missing"][0] == "digests/20000101T000000Z.digest", "{told}");
    // Another log's key, a place with nothing, and one that is none.
    let (status, told) = store.check(PLACE, &other, &["--from-period", period]);
    assert!(status == 1 && told["findings"]["signature"].is_array(), "{told}");
    assert_eq!(store.check("s3://events-bucket/nothing", &server, &[]).0, 2);
    assert_eq!(store.check("s3://no/bucket", &server, &[]).0, 2);
    assert!(store.log().iter().all(|line| line.contains(" signed ")));
}
