//! The life of an alert as its people meet it: by HTTP with an identity, by the command line beside the
//! data directory, and claimed over OTLP.

mod support;

use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use custody_query::serve::observe::Unobserved;
use custody_query::serve::{Served, router};
use custody_query::{
    ActorType, Caller, Engine, Error, ErrorKind, Follower, Projection, QueryLimits, Recorder, Role, Said,
};
use custody_query::{Roles, SegmentLimits};
use custody_store::system::{Attribute, SystemRecord};
use custody_store::{Options, Writer, open};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use support::{CUSTODY, Server, verify};

/// A log of this process, served to whoever is named.
struct Desk {
    runtime: tokio::runtime::Runtime,
    served: Served,
    _follower: Follower,
    _folder: tempfile::TempDir,
}

struct Direct(Arc<Mutex<Writer>>);

impl Recorder for Direct {
    fn append(&self, said: Vec<Said>) -> BoxFuture<'static, Result<Vec<u64>, Error>> {
        let writer = Arc::clone(&self.0);
        async move {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
            let prepared = said.iter().map(|s| s.record.prepare_as(&s.identity, now).unwrap()).collect();
            let done = writer.lock().unwrap().append(prepared);
            let done = done.map_err(|e| Error::new(ErrorKind::Unavailable, e.to_string()))?;
            Ok(done.iter().map(|receipt| receipt.first_seq).collect())
        }
        .boxed()
    }
}

fn raised(id: &str) -> SystemRecord {
    SystemRecord::new("security.alert")
        .with("security.alert.id", id)
        .with("security_rule.name", "outside_actions")
        .with("security.alert.severity", "high")
        .with("security.alert.evidence", Attribute::Texts(vec!["0".into()]))
        .with("tenant.id", "acme")
}

impl Desk {
    fn new(alerts: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (writer, reader) = open(folder.path(), Options::default()).unwrap();
        let recorder: Arc<dyn Recorder> = Arc::new(Direct(Arc::new(Mutex::new(writer))));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let said = alerts.iter().map(|id| Said { identity: "system:checks".into(), record: raised(id) }).collect();
        let seqs = runtime.block_on(recorder.append(said)).unwrap();
        let (projection, follower) = Projection::follow(reader, SegmentLimits::default()).unwrap();
        let mut visible = projection.visible();
        runtime.block_on(visible.wait_for(|size| *size > *seqs.last().unwrap())).unwrap();
        let served = Served::new(Engine::new(projection).unwrap(), QueryLimits::default(), Arc::new(Unobserved));
        Self { runtime, served: served.with_recorder(recorder), _follower: follower, _folder: folder }
    }

    /// The address of the API for one caller.
    fn for_caller(&self, caller: Caller) -> String {
        let app = router(self.served.clone()).layer(axum::Extension(caller));
        let listener = self.runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        self.runtime.spawn(axum::serve(listener, app).into_future());
        format!("http://{address}/api/v1/alerts")
    }
}

fn person(name: &str) -> Caller {
    Caller { identity: format!("jwt:idp#{name}").into(), actor: ActorType::Human, ..Caller::local(None) }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).build().new_agent()
}

fn post(url: &str, body: &str, key: Option<&str>) -> (u16, Value) {
    let request = agent().post(url).header("Content-Type", "application/json");
    let request = if let Some(key) = key { request.header("Idempotency-Key", key) } else { request };
    let mut answer = request.send(body).unwrap();
    let body = answer.body_mut().read_to_string().unwrap();
    (answer.status().as_u16(), serde_json::from_str(&body).unwrap())
}

fn get(url: &str) -> (u16, Value) {
    let mut answer = agent().get(url).call().unwrap();
    let body = answer.body_mut().read_to_string().unwrap();
    (answer.status().as_u16(), serde_json::from_str(&body).unwrap())
}

#[test]
fn a_person_answers_an_alert_by_http_and_nobody_else_can() {
    let desk = Desk::new(&["a/1", "a2"]);
    let ada = desk.for_caller(person("ada"));
    for actor in [ActorType::Agent, ActorType::Workload, ActorType::Automation, ActorType::Unknown] {
        let other = desk.for_caller(Caller { actor, ..person("bot") });
        let (status, body) = post(&format!("{other}/a2/acknowledge"), "{}", None);
        assert_eq!((status, body["code"].as_str()), (403, Some("forbidden")), "{actor:?}");
        assert!(body["message"].as_str().unwrap().contains("person"), "{body}");
    }
    let reader = desk.for_caller(Caller { roles: [Role::Read].into_iter().collect::<Roles>(), ..person("eve") });
    let (status, body) = post(&format!("{reader}/a2/close"), "{}", None);
    assert!(status == 403 && body["message"].as_str().unwrap().contains("investigate"), "{body}");
    assert_eq!(get(&reader).0, 200);

    let (status, body) = post(&format!("{ada}/a%2F1/acknowledge"), r#"{"note":"seen"}"#, None);
    assert_eq!((status, &body["appended"]), (201, &json!(true)), "{body}");
    assert_eq!(
        (&body["alert"]["state"], &body["alert"]["acknowledged_by"]),
        (&json!("acknowledged"), &json!("jwt:idp#ada"))
    );
    let (status, again) = post(&format!("{ada}/a%2F1/acknowledge"), "", None);
    assert_eq!((status, &again["appended"], &again["seq"]), (200, &json!(false), &body["seq"]));
    let (status, body) = post(&format!("{ada}/a%2F1/close"), r#"{"disposition":"benign"}"#, None);
    assert!(status == 409 && body["message"].as_str().unwrap().contains("investigate it first"), "{body}");
    assert_eq!(post(&format!("{ada}/a%2F1/investigate"), "{}", None).0, 201);
    let note = |key| post(&format!("{ada}/a%2F1/note"), r#"{"note":"calls at night"}"#, key).0;
    assert_eq!([note(Some("k1")), note(Some("k1")), note(Some("k2"))], [201, 200, 201]);
    assert_eq!(post(&format!("{ada}/a%2F1/contain"), r#"{"decision":"revoke_grant"}"#, None).0, 201);
    assert_eq!(post(&format!("{ada}/a%2F1/close"), r#"{"disposition":"true_positive"}"#, None).0, 201);

    let (status, shown) = get(&format!("{ada}/a%2F1"));
    assert_eq!(status, 200);
    let acts: Vec<&str> = shown["history"].as_array().unwrap().iter().map(|s| s["act"].as_str().unwrap()).collect();
    assert_eq!(acts, ["raised", "acknowledged", "opened", "note", "note", "contained", "closed"]);
    assert!(
        shown["history"].as_array().unwrap()[1..]
            .iter()
            .all(|s| s["submitter"] == "jwt:idp#ada" && s["counts"] == true)
    );
    assert_eq!(shown["alert"]["tenant"], "acme");
    let (_, open) = get(&format!("{ada}?state=open,acknowledged"));
    assert_eq!(open["alerts"].as_array().unwrap().len(), 1);
    assert_eq!(open["alerts"][0]["alert_id"], "a2");
    for (path, body, want) in [
        ("none/acknowledge", "{}", 404),
        ("a2/forget", "{}", 404),
        ("a2/close", r#"{"disposition":"fine"}"#, 400),
        ("a2/note", r#"{"text":"x"}"#, 400),
        ("a2/acknowledge", r#"{"bulk":true}"#, 400),
    ] {
        assert_eq!(post(&format!("{ada}/{path}"), body, None).0, want, "{path} {body}");
    }
    assert_eq!(agent().post(format!("{ada}/a2/acknowledge")).send("{}").unwrap().status(), 415);
    assert_eq!((get(&format!("{ada}?state=odd")).0, get(&format!("{ada}/none")).0), (400, 404));
}

/// However many press the button at once: one record.
#[test]
fn the_same_act_at_the_same_time_is_one_record() {
    let desk = Desk::new(&["a1"]);
    let url = format!("{}/a1/acknowledge", desk.for_caller(person("ada")));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let url = url.clone();
            std::thread::Builder::new().spawn(move || post(&url, "{}", None)).unwrap()
        })
        .collect();
    let answers: Vec<(u16, Value)> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    assert_eq!(answers.iter().filter(|(status, _)| *status == 201).count(), 1, "{answers:?}");
    assert!(answers.iter().all(|(_, body)| body["seq"] == answers[0].1["seq"]));
}

fn command(server: &Server, args: &[&str]) -> Output {
    Command::new(CUSTODY).args(args).arg("--data-dir").arg(server.data_dir()).output().unwrap()
}

fn told(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].iter().map(|bytes| String::from_utf8_lossy(bytes)).collect()
}

/// A log record over OTLP/HTTP, as any tool sends it.
fn send(server: &Server, name: &str, attributes: &[(&str, &str)]) {
    let attributes: Vec<Value> =
        attributes.iter().map(|(key, value)| json!({"key": key, "value": {"stringValue": value}})).collect();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos().to_string();
    let record = json!({"timeUnixNano": now, "eventName": name, "attributes": attributes});
    let body = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]});
    let request = agent().post(format!("http://{}/v1/logs", server.otlp_http));
    let answer = request.header("Content-Type", "application/json").send(body.to_string()).unwrap();
    assert_eq!(answer.status(), 200);
}

fn state(server: &Server, id: &str) -> Value {
    let sql = format!(
        "SELECT state, acknowledged_by, claimed_by, closed_how, disposition FROM alerts WHERE alert_id = '{id}'"
    );
    server.sql(&sql).remove(0)
}

#[test]
fn beside_the_data_directory_the_system_says_who_acts() {
    let mut server = Server::start();
    send(
        &server,
        "security.alert",
        &[
            ("security.alert.id", "a1"),
            ("security_rule.name", "r"),
            ("security.alert.title", "\u{1b}[2J\n| forged\u{202e}"),
        ],
    );
    // Over loopback nobody is authenticated: the answer says what to do.
    let refused = server.custody_output(&["alerts", "ack", "a1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(told(&refused).contains("--data-dir"), "{}", told(&refused));
    server.wait_until_visible();
    let acked = command(&server, &["alerts", "ack", "a1", "--note", "on it"]);
    assert!(acked.status.success() && told(&acked).contains("a1: acknowledged"), "{}", told(&acked));
    assert!(told(&command(&server, &["alerts", "ack", "a1"])).contains("said before"));
    let closed = command(&server, &["alerts", "close", "a1", "--disposition", "benign"]);
    assert!(closed.status.code() == Some(1) && told(&closed).contains("investigate it first"), "{}", told(&closed));
    let missing = command(&server, &["alerts", "investigate", "none"]);
    assert!(missing.status.code() == Some(1) && told(&missing).contains("there is no alert"), "{}", told(&missing));
    assert!(command(&server, &["alerts", "investigate", "a1"]).status.success());
    let who = server.sql("SELECT DISTINCT submitter FROM events WHERE kind IN ('alert_acknowledged', 'investigation')");
    let who = who[0]["submitter"].as_str().unwrap().to_owned();
    assert!(who.starts_with("os:") && who.len() > 3, "{who}");
    assert_eq!(state(&server, "a1")["acknowledged_by"], json!(who));
    let attribution = server.sql("SELECT invalid_reasons FROM events WHERE kind = 'authority_change'");
    assert_eq!(attribution, [json!({"invalid_reasons": []})], "the person is named once, by the server");

    for args in [&["alerts", "list"][..], &["alerts", "show", "a1"], &["sql", "SELECT title FROM alerts"]] {
        let shown = server.custody(args);
        assert!(shown.contains("forged"), "{shown}");
        assert!(!shown.chars().any(|c| c == '\u{1b}' || c == '\u{202e}'), "{shown:?}");
        assert!(!shown.lines().any(|line| line.starts_with("| forged")), "{shown}");
    }

    // The server is gone: the same command opens the log itself.
    server.stop();
    let closed = command(&server, &["alerts", "close", "a1", "--disposition", "true_positive", "--format", "json"]);
    assert!(closed.status.success(), "{}", told(&closed));
    let closed: Value = serde_json::from_slice(&closed.stdout).unwrap();
    assert_eq!((&closed["alert"]["state"], &closed["alert"]["closed_how"]), (&json!("closed"), &json!("single")));
    let listed = command(&server, &["alerts", "list", "--state", "closed", "--format", "json"]);
    assert_eq!(serde_json::from_slice::<Value>(&listed.stdout).unwrap()["disposition"], "true_positive");
    verify(&server.data_dir());
}

#[test]
fn what_is_claimed_over_otlp_counts_only_from_those_whose_word_does() {
    let server = Server::start();
    for id in ["a1", "a2", "a3"] {
        send(&server, "security.alert", &[("security.alert.id", id), ("security_rule.name", "r")]);
    }
    let claim = |id: &str| {
        let actor = [("security.actor.id", "bob"), ("security.actor.type", "human")];
        send(&server, "security.alert.acknowledged", &[&[("security.alert.id", id)][..], &actor].concat());
    };
    claim("a1");
    assert_eq!(state(&server, "a1")["acknowledged_by"], "bob", "without identities everybody is believed");
    let speak = |args: &[&str]| {
        let output = command(&server, &[&["alerts", "speakers"][..], args].concat());
        assert!(output.status.success(), "{}", told(&output));
        told(&output)
    };
    assert_eq!(speak(&[]), "mode open; named: nobody\n");
    assert_eq!(speak(&["--mode", "named"]), "mode named; named: nobody\n");
    claim("a2");
    let row = state(&server, "a2");
    assert_eq!(
        (&row["state"], &row["claimed_by"], &row["acknowledged_by"]),
        (&json!("open"), &json!("bob"), &Value::Null)
    );
    let why = server.sql("SELECT counts, why_not FROM alert_history('a2') WHERE act = 'acknowledged'");
    assert!(why[0]["counts"] == false && why[0]["why_not"].as_str().unwrap().contains("peer:127.0.0.1"), "{why:?}");
    // Saying it in the server's own words does not help.
    let own = [("security.speaker.identity", "peer:127.0.0.1"), ("security.speaker.state", "named")];
    send(&server, "security.speaker", &own);
    claim("a2");
    assert_eq!(state(&server, "a2")["state"], "open");
    assert_eq!(speak(&["--allow", "peer:127.0.0.1"]), "mode named; named: peer:127.0.0.1\n");
    claim("a3");
    assert_eq!(state(&server, "a3")["state"], "acknowledged");
    assert_eq!(state(&server, "a2")["state"], "open", "what was a claim stays one");
    assert_eq!(state(&server, "a1")["state"], "acknowledged", "what counted goes on to count");
    let dwell = "SELECT ended, still_open FROM dwell_time WHERE rule IS NULL AND measure = 'acknowledge'";
    assert_eq!(server.sql(dwell), [json!({"ended": 2, "still_open": 1})]);
    for (limit, says) in [("2", "there are more than these 2"), ("3", "")] {
        let list = command(&server, &["alerts", "list", "--limit", limit, "--format", "json"]);
        assert_eq!(list.stdout.iter().filter(|byte| **byte == b'\n').count().to_string(), limit);
        let said = String::from_utf8(list.stderr).unwrap();
        assert!(said.contains(says) && said.is_empty() == says.is_empty(), "{said}");
    }
    // An owner of the directory whose word was withdrawn does not act either.
    let who = command(&server, &["alerts", "ack", "a2", "--format", "json"]);
    let who: Value = serde_json::from_slice(&who.stdout).unwrap();
    let who = who["alert"]["acknowledged_by"].as_str().unwrap().to_owned();
    speak(&["--withdraw", &who]);
    let refused = command(&server, &["alerts", "investigate", "a2"]);
    assert!(refused.status.code() == Some(1) && told(&refused).contains("withdrawn"), "{}", told(&refused));
}
