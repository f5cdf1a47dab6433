//! Witnesses: two installations that witness each other, k of n, restarts and crashes,
//! every refusal of C2SP tlog-witness, and a log that was forked or rolled back.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use custody_store::note::{Note, VerifierKey};
use custody_store::policy::Policy;
use custody_store::system::SystemRecord;
use custody_store::witness::Submission;
use custody_store::{Checkpoint, Options, Reader, Writer};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use serde_json::{Value, json};
use support::{Request, Server};

/// A running `custody witness`.
struct Witness {
    child: Child,
    folder: tempfile::TempDir,
    name: String,
    logs: Vec<PathBuf>,
    http: String,
    vkeys: Vec<VerifierKey>,
}

impl Witness {
    fn start(name: &str, logs: &[PathBuf]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), name, logs, "127.0.0.1:0")
    }

    fn start_in(folder: tempfile::TempDir, name: &str, logs: &[PathBuf], listen: &str) -> Self {
        let ready = folder.path().join("ready.json");
        let _ = std::fs::remove_file(&ready);
        let mut child = Command::new(support::CUSTODY)
            .args(["witness", "--name", name, "--listen", listen, "--state"])
            .arg(folder.path().join("state"))
            .args(logs.iter().flat_map(|log| [Path::new("--log"), log.as_path()]))
            .arg("--ready-file")
            .arg(&ready)
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("stderr.log")).unwrap())
            .spawn()
            .unwrap();
        let json: Value = until("the witness is ready", || {
            let ended = child.try_wait().unwrap().is_some();
            assert!(!ended, "{}", std::fs::read_to_string(folder.path().join("stderr.log")).unwrap());
            std::fs::read(&ready).ok().map(|text| serde_json::from_slice(&text).unwrap())
        });
        let text = std::fs::read_to_string(folder.path().join("state/witness.vkey")).unwrap();
        let vkeys = text.lines().map(|line| VerifierKey::parse(line).unwrap()).collect();
        let http = json["http"].as_str().unwrap().to_owned();
        Self { child, folder, name: name.into(), logs: logs.to_vec(), http, vkeys }
    }

    /// kill -9.
    fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Starts again on the same state and address.
    fn restart(&mut self) {
        self.kill();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        let (name, logs, http) = (self.name.clone(), self.logs.clone(), self.http.clone());
        *self = Self::start_in(folder, &name, &logs, &http);
    }

    /// Lines of a policy: both keys at its address, and a group `name` of both.
    fn policy(&self, name: &str) -> String {
        let [ed25519, ml_dsa] = &self.vkeys[..] else { panic!("two keys") };
        let url = format!("http://{}/", self.http);
        format!(
            "witness {name}-ed {ed25519} {url}\nwitness {name}-pq {ml_dsa} {url}\ngroup {name} all {name}-ed {name}-pq\n"
        )
    }

    /// POST add-checkpoint: status, content type, body.
    fn submit(&self, body: &str) -> (u16, String, String) {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut answer = agent.post(format!("http://{}/add-checkpoint", self.http)).send(body.as_bytes()).unwrap();
        let content_type = answer.headers()["content-type"].to_str().unwrap().to_owned();
        (answer.status().as_u16(), content_type, answer.body_mut().read_to_string().unwrap())
    }

    /// The newest cosigned checkpoint, as monitors get it.
    fn newest(&self, origin: &str) -> Option<Checkpoint> {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let hash = sha256(origin);
        let mut answer = agent.get(format!("http://{}/{hash}/checkpoint", self.http)).call().unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        (answer.status() == 200).then(|| Checkpoint::parse_unverified(&text).unwrap())
    }

    fn evidence(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("state/evidence")).unwrap().count()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks until there is an answer.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + support::PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "not after {:?}: {what}", support::PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As coreutils has it, so that not our own code names what our own code asks for.
fn sha256(text: &str) -> String {
    let command = format!("printf %s '{text}' | sha256sum");
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

fn request(id: u64) -> Request {
    let span = Span {
        trace_id: [&[2; 8][..], &(id + 1).to_be_bytes()].concat(),
        span_id: (id + 1).to_be_bytes().to_vec(),
        name: format!("step {id}"),
        ..Default::default()
    };
    let scope_spans = vec![ScopeSpans { spans: vec![span], ..Default::default() }];
    Request::Traces(ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { scope_spans, ..Default::default() }],
    })
}

fn send(server: &mut Server, ids: std::ops::Range<u64>) {
    server.send_grpc(ids.map(request).collect());
}

/// A log that has been started once, so that its keys are known.
fn new_log() -> tempfile::TempDir {
    let mut server = Server::start();
    let (status, text) = server.get("/checkpoint/witnessed");
    assert!(status == 404 && text.contains("--witness-policy"), "{status} {text}");
    server.stop();
    server.kill()
}

fn vkey_file(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("data/log.vkey")
}

fn copy(folder: &tempfile::TempDir) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    let done = Command::new("cp").arg("-r").arg(folder.path().join("data")).arg(to.path()).status().unwrap();
    assert!(done.success());
    to
}

/// Starts a server that submits by this policy.
fn serve(folder: tempfile::TempDir, policy: &str) -> Server {
    let path = folder.path().join("witnesses.policy");
    std::fs::write(&path, policy).unwrap();
    let path = path.to_str().unwrap().to_owned();
    Server::start_in(folder, &["--witness-policy", &path, "--witness-interval", "0.2"])
}

/// Has a server stand still, or go on.
fn signal(server: &Server, name: &str) {
    assert!(Command::new("kill").args([name, &server.pid().to_string()]).status().unwrap().success());
}

/// Waits for a witnessed checkpoint of at least this size.
fn witnessed(server: &Server, size: u64) -> (Checkpoint, Note) {
    until(&format!("a witnessed checkpoint of size {size}"), || {
        let (status, text) = server.get("/checkpoint/witnessed");
        if status == 404 {
            return None;
        }
        let note = Note::parse(&text).unwrap();
        let checkpoint = Checkpoint::parse_text(&note.text).unwrap();
        (checkpoint.size >= size).then_some((checkpoint, note))
    })
}

fn log_keys(server: &Server) -> Vec<VerifierKey> {
    let text = std::fs::read_to_string(server.data_dir().join("log.vkey")).unwrap();
    text.lines().map(|line| VerifierKey::parse(line).unwrap()).collect()
}

fn size(server: &Server) -> u64 {
    server.sql("SELECT count(*) AS n FROM ledger")[0]["n"].as_u64().unwrap()
}

fn alerts(server: &Server) -> Vec<Value> {
    server.sql("SELECT alert_id, rule, severity FROM alerts")
}

/// The Python of the test clients: what `make test` names, or the venv it makes.
fn python() -> String {
    std::env::var("CUSTODY_TEST_PYTHON").unwrap_or_else(|_| format!("{}/.venv/bin/python", env!("CARGO_MANIFEST_DIR")))
}

#[test]
fn two_installations_witness_each_other() {
    let logs = [new_log(), new_log()];
    let witnesses: Vec<Witness> =
        (0..2).map(|i| Witness::start(&format!("w{i}.example"), &[vkey_file(&logs[1 - i])])).collect();
    let mut servers: Vec<Server> = logs
        .into_iter()
        .enumerate()
        .map(|(i, log)| serve(log, &format!("{}quorum other\n", witnesses[1 - i].policy("other"))))
        .collect();
    for (i, server) in servers.iter_mut().enumerate() {
        let by = &witnesses[1 - i];
        send(server, 0..20);
        let (checkpoint, note) = witnessed(server, size(server));
        let keys = log_keys(server);
        Checkpoint::verify(&note.to_string(), &keys).unwrap();
        assert_eq!((keys.len(), by.vkeys.len(), note.lines.len()), (2, 2, 4));
        for key in &by.vkeys {
            assert!(key.find(&note).unwrap().unwrap().time.is_some(), "{} cosigned", key.algorithm());
        }
        assert_eq!(by.newest(keys[0].name()), Some(checkpoint.clone()));
        // The newest checkpoint is that one, so it is served with the cosignatures, too.
        assert_eq!(Note::parse(&server.get("/checkpoint").1).unwrap().signed_by(&by.vkeys).len(), 2);
        let mut script = Command::new(python());
        script.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/cosignature.py"));
        script.args([format!("http://{}/checkpoint/witnessed", server.http), by.vkeys[0].to_string()]);
        let output = script.output().unwrap_or_else(|e| panic!("{e}; run `make test`, which installs it"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{}\n", checkpoint.size));
        assert_eq!(alerts(server), [] as [Value; 0]);
    }
    for (i, server) in servers.iter_mut().enumerate() {
        assert_eq!(witnesses[1 - i].evidence(), 0);
        server.stop_and_verify();
    }
}

#[test]
fn two_of_three_are_enough_and_one_is_not_and_state_survives_restarts() {
    let log = new_log();
    let mut witnesses: Vec<Witness> =
        (0..3).map(|i| Witness::start(&format!("w{i}.example"), &[vkey_file(&log)])).collect();
    let members: String = witnesses.iter().map(|w| w.policy(&w.name)).collect();
    let text = format!("{members}group enough 2 w0.example w1.example w2.example\nquorum enough\n");
    let policy = Policy::parse(&text).unwrap();
    let mut server = serve(log, &text);
    let (first, note) = witnessed(&server, 1);
    assert!(policy.is_met(&note));
    witnesses[0].kill();
    send(&mut server, 0..5);
    let (second, note) = witnessed(&server, size(&server));
    assert!(policy.is_met(&note) && second.size > first.size);
    assert_eq!(note.signed_by(&witnesses[0].vkeys), []);
    witnesses[1].kill();
    send(&mut server, 5..9);
    // The third alone cosigns what is too little to publish.
    let origin = second.origin.clone();
    until("the third witness cosigns", || witnesses[2].newest(&origin).filter(|c| c.size > second.size));
    assert_eq!(witnessed(&server, 1).0, second);
    let warned = || std::fs::read_to_string(server.path().join("stderr.log")).unwrap();
    until("the server says who did not answer", || {
        warned().contains("too few witnesses").then_some(()).filter(|()| warned().contains("does not answer"))
    });
    // Nobody may ask them for a cosignature before we have looked.
    signal(&server, "-STOP");
    for witness in &mut witnesses[..2] {
        let keys = witness.vkeys.clone();
        witness.restart();
        assert_eq!(witness.vkeys, keys);
    }
    assert_eq!(witnesses[1].newest(&origin), Some(second), "the state survived kill -9");
    signal(&server, "-CONT");
    witnessed(&server, size(&server));
    assert_eq!(alerts(&server), [] as [Value; 0]);
    server.stop_and_verify();
}

/// A log in this process, to submit as one likes.
struct Log {
    folder: tempfile::TempDir,
    open: Option<(Writer, Reader)>,
}

impl Log {
    fn open(folder: tempfile::TempDir) -> Self {
        let open = custody_store::open(&folder.path().join("data"), Options::default()).unwrap();
        Self { folder, open: Some(open) }
    }

    /// Appends until the log has this size, and signs.
    fn grow(&mut self, size: u64) {
        let (writer, _) = self.open.as_mut().unwrap();
        while writer.head_size() < size {
            writer.append_system(&SystemRecord::new("custody.log.export")).unwrap();
        }
        writer.checkpoint().unwrap();
    }

    fn fork(&mut self) -> Self {
        self.open = None;
        let other = copy(&self.folder);
        self.open = Some(custody_store::open(&self.folder.path().join("data"), Options::default()).unwrap());
        Self::open(other)
    }

    fn origin(&self) -> String {
        self.open.as_ref().unwrap().1.origin().to_owned()
    }

    /// A good submission of the newest checkpoint.
    fn submission(&self, old: u64) -> Submission {
        let (_, reader) = self.open.as_ref().unwrap();
        let note = Note::parse(&reader.checkpoint().unwrap().unwrap()).unwrap();
        let checkpoint = Checkpoint::parse_text(&note.text).unwrap();
        let proof = reader.consistency(old.min(checkpoint.size), checkpoint.size).unwrap();
        Submission { old, proof, note, checkpoint }
    }
}

#[test]
fn every_answer_of_the_specification() {
    let mut log = Log::open(tempfile::tempdir().unwrap());
    let witness = Witness::start("w.example", &[vkey_file(&log.folder)]);
    let (mut fork, stranger) = (log.fork(), Log::open(tempfile::tempdir().unwrap()));
    let status = |body: &str| witness.submit(body).0;
    let conflict = |size: u64| (409, "text/x.tlog.size".to_owned(), format!("{size}\n"));
    log.grow(5);
    assert_eq!(witness.newest(&log.origin()), None);
    assert_eq!(status(&stranger.submission(0).to_string()), 404);
    assert_eq!(witness.submit(&log.submission(3).to_string()), conflict(0));
    let (good, _, lines) = witness.submit(&log.submission(0).to_string());
    assert_eq!(good, 200);
    assert!(lines.ends_with('\n') && lines.lines().all(|line| line.starts_with("\u{2014} w.example ")), "{lines}");
    let mut note = log.submission(0).note;
    note.lines = lines.lines().map(|line| custody_store::note::Line::parse(line).unwrap()).collect();
    assert_eq!(note.signed_by(&witness.vkeys).len(), 2);
    log.grow(9);
    assert_eq!(witness.submit(&log.submission(0).to_string()), conflict(5));
    assert_eq!(witness.submit(&log.submission(4).to_string()), conflict(5));
    let body = log.submission(5).to_string();
    assert_eq!(status(&body.replacen("old 5", "old 10", 1)), 400);
    for (from, to) in [("old 5", "old 05"), ("old 5", "old +5"), ("old 5", "5"), ("\n\n", "\n"), ("\n9\n", "\nnine\n")]
    {
        assert_eq!(status(&body.replacen(from, to, 1)), 400, "{from:?} {to:?}");
    }
    let extended = body.replacen("\n\n\u{2014}", "\nan extension\n\n\u{2014}", 1);
    assert_eq!(status(&extended), 400);
    assert_eq!(status(&format!("old 5\n{}\n{}", "AAAA\n", &body)), 400);
    assert_eq!(status(&"x".repeat(100_000)), 413);
    let unsigned = body.replacen(&log.origin(), &stranger.origin(), 1);
    assert_eq!(status(&unsigned), 404);
    let mut false_signature = log.submission(5);
    false_signature.note.lines.iter_mut().for_each(|line| line.signature[20] ^= 1);
    assert_eq!(status(&false_signature.to_string()), 403);
    let mut unknown_key = log.submission(5);
    unknown_key.note.lines.iter_mut().for_each(|line| line.id ^= 1);
    assert_eq!(status(&unknown_key.to_string()), 403);
    assert_eq!(witness.evidence(), 0, "none of this is the log's fault");
    let mut unproven = log.submission(5);
    unproven.proof.pop();
    assert_eq!(status(&unproven.to_string()), 422);
    assert_eq!(status(&body), 200);
    fork.grow(9);
    assert_eq!(witness.submit(&fork.submission(9).to_string()), conflict(9));
    fork.grow(12);
    assert_eq!(status(&fork.submission(9).to_string()), 422);
    assert_eq!(witness.evidence(), 3);
    let stderr = std::fs::read_to_string(witness.folder.path().join("stderr.log")).unwrap();
    assert!(stderr.contains("ERROR") && stderr.contains("the log forked"), "{stderr}");
}

#[test]
fn what_was_answered_survives_kill_9_of_the_witness() {
    let mut log = Log::open(tempfile::tempdir().unwrap());
    let mut witness = Witness::start("w.example", &[vkey_file(&log.folder)]);
    let mut old = 0;
    for size in [3, 4, 8, 9] {
        log.grow(size);
        assert_eq!(witness.submit(&log.submission(old).to_string()).0, 200);
        witness.restart();
        assert_eq!(witness.newest(&log.origin()).unwrap().size, size);
        assert_eq!(witness.submit(&log.submission(old).to_string()).2, format!("{size}\n"));
        old = size;
    }
    let status = Command::new("kill").arg(witness.child.id().to_string()).status().unwrap();
    assert!(status.success() && witness.child.wait().unwrap().success(), "SIGTERM ends it well");
}

/// A log, witnessed, of which a copy was taken before it went on by three records.
fn copied() -> (Witness, String, tempfile::TempDir, u64) {
    let log = new_log();
    let witness = Witness::start("w.example", &[vkey_file(&log)]);
    let policy = format!("{}quorum w\n", witness.policy("w"));
    let mut server = serve(log, &policy);
    send(&mut server, 0..5);
    witnessed(&server, size(&server));
    server.stop();
    let log = server.kill();
    let copied = copy(&log);
    let mut server = serve(log, &policy);
    send(&mut server, 5..8);
    let (checkpoint, _) = witnessed(&server, size(&server));
    server.stop();
    (witness, policy, copied, checkpoint.size)
}

fn one_alert(server: &Server, held: u64) {
    let want = json!({
        "alert_id": format!("custody.witness.fork/w.example/{held}"), "rule": "custody.witness.fork", "severity": "critical",
    });
    let found = until("an alert", || Some(alerts(server)).filter(|alerts| !alerts.is_empty()));
    assert_eq!(found, [want]);
}

#[test]
fn a_fork_is_refused_and_raised_as_an_alert_once() {
    let (witness, policy, copied, held) = copied();
    // Without asking witnesses at first, so that it is longer than the other when it does.
    let mut server = Server::start_in(copied, &[]);
    send(&mut server, 100..120);
    server.stop();
    let mut server = serve(server.kill(), &policy);
    one_alert(&server, held);
    assert_eq!(witness.newest(log_keys(&server)[0].name()).unwrap().size, held, "the witness did not move");
    // Refused again and again, here and after a restart, but raised once.
    let refusals = |server: &Server| {
        let text = std::fs::read_to_string(server.path().join("stderr.log")).unwrap();
        text.matches("forked or rolled back").count()
    };
    until("three refusals", || (refusals(&server) >= 3).then_some(()));
    one_alert(&server, held);
    server.stop();
    let mut server = serve(server.kill(), &policy);
    until("two refusals", || (refusals(&server) >= 2).then_some(()));
    one_alert(&server, held);
    assert!(witness.evidence() > 0);
    server.stop_and_verify();
}

#[test]
fn a_log_put_back_from_a_backup_is_noticed_when_it_starts() {
    let (witness, policy, copied, held) = copied();
    let mut server = serve(copied, &policy);
    one_alert(&server, held);
    let stderr = std::fs::read_to_string(server.path().join("stderr.log")).unwrap();
    assert!(stderr.contains("rolled back"), "{stderr}");
    assert_eq!(witness.newest(log_keys(&server)[0].name()).unwrap().size, held);
    server.stop_and_verify();
}

#[test]
fn what_cannot_work_is_refused_at_the_start_in_one_line() {
    let folder = new_log();
    let vkey = vkey_file(&folder);
    let data = folder.path().join("data");
    let policy = folder.path().join("policy");
    let witness = Witness::start("w.example", std::slice::from_ref(&vkey));
    let key = &witness.vkeys[0];
    for (text, what) in [
        (format!("witness w {key}\nquorum w\n"), "has a URL"),
        (format!("witness w {key} https://w.example\nquorum w\n"), "http:// only"),
        (format!("witness w {key} http://w.example\n"), "no quorum"),
        (format!("log {}\nwitness w {key} http://w.example\nquorum w\n", other_log()), "not this one"),
    ] {
        std::fs::write(&policy, text).unwrap();
        let mut command = Command::new(support::CUSTODY);
        command.arg("serve").args(support::FREE_PORTS).env("CUSTODY_LOG", "error");
        let output = command.arg("--data-dir").arg(&data).arg("--witness-policy").arg(&policy).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains(what) && stderr.lines().count() == 1, "{stderr}");
        assert_eq!(output.status.code(), Some(2));
    }
    let state = witness.folder.path().join("state");
    let start = |args: &[&str]| {
        let mut command = Command::new(support::CUSTODY);
        command.args(["witness", "--name", "w.example", "--log"]).arg(&vkey).args(args);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, text) = start(&["--listen", "127.0.0.1:0", "--state", state.to_str().unwrap()]);
    assert!(status == Some(2) && text.contains("in use by another witness"), "{text}");
    let (status, text) = start(&["--listen", "0.0.0.0:0", "--state", state.to_str().unwrap()]);
    assert!(status == Some(2) && text.contains("not a loopback address"), "{text}");
}

/// The key of a log that is not ours.
fn other_log() -> String {
    let log = Log::open(tempfile::tempdir().unwrap());
    log.open.as_ref().unwrap().1.vkey()
}
