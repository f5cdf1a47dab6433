//! Redaction at the door: what the rules name is in no file, no answer and no metric; the
//! log says which rules are in force; and everything else goes on as without them.

mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use support::{CUSTODY, Server, python};

/// Put together here, so that no scanner takes them for real ones.
fn token() -> String {
    ["ghp_", "16C7e42F292c6912E7710c838347Ae178B4a"].concat()
}

fn secrets() -> Vec<String> {
    let words =
        ["hunter2-attribute", "hunter2-header", "hunter2-url", "hunter2-json", "hunter2-body", "hunter2-nested"];
    words.iter().map(|word| (*word).to_owned()).chain([token(), "q1w2e3r4t5y6u7i8o9p0bearer".into()]).collect()
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(files(&path));
        } else if path.is_file() {
            out.push(path);
        }
    }
    out
}

fn is_in(text: &[u8], word: &str) -> bool {
    text.windows(word.len()).any(|window| window == word.as_bytes())
}

/// No file of the directory has any of them.
fn assert_in_no_file(dir: &Path, secrets: &[String]) {
    for file in files(dir) {
        // A running server replaces files: the new one has its own name, or comes under the old.
        let bytes = match std::fs::read(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.unwrap(),
        };
        for secret in secrets {
            assert!(!is_in(&bytes, secret), "{secret} is in {}", file.display());
        }
    }
}

fn sdk(server: &Server, protocol: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/redact.py");
    let endpoint = if protocol == "grpc" { &server.grpc } else { &server.otlp_http };
    let mut command = Command::new(python());
    command.args([script, protocol]).args(secrets()).env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{endpoint}"));
    let output = command.output().unwrap_or_else(|e| panic!("{e}; run `make test`, which installs it"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text, "ok\n", "{protocol}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Posts a request as JSON; gives status, headers and body.
fn post(server: &Server, signal: &str, body: &Value) -> (u16, Option<String>, Value) {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let request = agent.post(format!("http://{}/v1/{signal}", server.otlp_http));
    let request = request.header("Content-Type", "application/json").header("custody-receipt", "1");
    let mut answer = request.send(body.to_string()).unwrap();
    let receipt = answer.headers().get("custody-receipt").map(|v| v.to_str().unwrap().to_owned());
    let text = answer.body_mut().read_to_string().unwrap();
    (answer.status().as_u16(), receipt, serde_json::from_str(&text).unwrap())
}

fn one_span(name: &str, key: &str, value: &str) -> Value {
    let attributes = json!([{"key": key, "value": {"stringValue": value}}]);
    let span = json!({"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174", "name": name,
        "startTimeUnixNano": "1", "endTimeUnixNano": "2", "attributes": attributes});
    json!({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})
}

#[test]
fn secrets_of_the_python_sdk_are_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start_in(folder, &["--redact", "secrets"]);
    sdk(&server, "grpc");
    sdk(&server, "http");
    let everything: String =
        ["SELECT * FROM spans", "SELECT * FROM logs", "SELECT * FROM events", "SELECT * FROM ledger"]
            .iter()
            .flat_map(|sql| server.sql(sql))
            .map(|row| row.to_string())
            .collect();
    let payloads = server.sql("SELECT encode(payload(seq), 'hex') AS p FROM ledger");
    let payloads = payloads.iter().flat_map(|row| const_hex::decode(row["p"].as_str().unwrap()).unwrap());
    let payloads = String::from_utf8_lossy(&payloads.collect::<Vec<_>>()).into_owned();
    assert!(payloads.contains("[redacted: github-pat]"));
    let metrics = server.get("/metrics").1;
    for secret in secrets() {
        for (what, text) in [("an answer", &everything), ("a payload", &payloads), ("the metrics", &metrics)] {
            assert!(!text.contains(&secret), "{secret} is in {what}");
        }
    }
    assert_in_no_file(&server.path().join("data"), &secrets());
    // That something was there is evidence, and what is no secret stays.
    let spans = server.sql(
        "SELECT name, status_message, json_get_str(attributes, 'http.request.header.authorization') AS a, \
         json_get_str(attributes, 'gen_ai.tool.call.arguments') AS j, json_get_str(attributes, 'note') AS n FROM spans \
         WHERE name LIKE 'GET%'",
    );
    assert_eq!(spans.len(), 2);
    for span in spans {
        assert_eq!(span["name"], "GET https://emma:[redacted: url-password]@example.com/");
        assert_eq!(span["status_message"], "token [redacted: github-pat] expired");
        assert_eq!(span["a"], "[redacted: sensitive-attribute]");
        assert_eq!(span["j"], r#"{"to": "ünïcode", "password": "[redacted: secret-in-json]"}"#);
        assert_eq!(span["n"], "no secret");
    }
    let bodies = server.sql("SELECT DISTINCT body FROM logs WHERE body LIKE '%saw%'");
    assert_eq!(bodies, [json!({"body": "saw Authorization: Bearer [redacted: authorization-header]"})]);
    assert!(metrics.contains("custody_redactions_total{rule=\"sensitive-attribute\"} "), "{metrics}");
    server.stop_and_verify();
    assert_in_no_file(&server.data_dir(), &secrets());

    // The control: without rules they are found in files by the same search.
    let mut open = Server::start();
    sdk(&open, "grpc");
    open.stop();
    let found = files(&open.data_dir()).iter().any(|file| is_in(&std::fs::read(file).unwrap(), &token()));
    assert!(found, "the search finds nothing, so it proves nothing");
}

#[test]
fn the_log_says_which_rules_are_in_force_from_when_on() {
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("rules.toml");
    std::fs::write(&rules, "name = 'acme'\n[[rule]]\nname = 'customer'\nkey = '^customer$'\naction = 'hash'\n")
        .unwrap();
    let config = folder.path().join("custody.toml");
    std::fs::write(&config, format!("redact = [\"secrets\", {:?}]\n", rules.display().to_string())).unwrap();
    let said = "SELECT seq, json_get_str(attributes, 'custody.redaction.state') AS state, \
                json_get_array(attributes, 'custody.redaction.sets') AS sets, \
                json_length(attributes, 'custody.redaction.rules') AS rules, \
                json_get_str(attributes, 'custody.redaction.key_id') AS key FROM logs \
                WHERE event_name = 'custody.log.redaction' \
                AND submitter = 'system:custody' ORDER BY seq";
    let flags = ["--config", config.to_str().unwrap()];
    let mut server = Server::start_in(folder, &flags);
    assert_eq!(post(&server, "traces", &one_span("one", "customer", "emma")).0, 200);
    let first = server.sql(said);
    assert_eq!((first.len(), &first[0]["seq"], &first[0]["state"]), (1, &json!(1), &json!("on")));
    let sets = first[0]["sets"].to_string();
    let digest = Command::new("sha256sum").arg(&rules).output().unwrap();
    let digest = String::from_utf8(digest.stdout).unwrap()[..64].to_owned();
    assert!(sets.contains("gitleaks 8.") && sets.contains(&format!("acme sha256:{digest}")), "{sets}");
    assert!(first[0]["rules"].as_u64().unwrap() > 200 && first[0]["key"].as_str().unwrap().len() == 16, "{first:?}");
    let hashed = |server: &Server| {
        let rows = server.sql("SELECT json_get_str(attributes, 'customer') AS c FROM spans ORDER BY seq");
        rows.iter().map(|row| row["c"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let before = hashed(&server);
    assert!(before[0].starts_with("[hashed: customer: "), "{before:?}");
    server.stop();

    // The same rules again: nothing new to say, equal values have equal hashes, and a retry is known.
    let folder = server.kill();
    let mut server = Server::start_in(folder, &flags);
    assert_eq!(post(&server, "traces", &one_span("one", "customer", "emma")).0, 200);
    assert_eq!(post(&server, "traces", &one_span("two", "customer", "emma")).0, 200);
    assert_eq!(server.sql(said), first);
    assert_eq!(hashed(&server), [before[0].as_str(), before[0].as_str()]);
    server.stop();

    // Off, and on with fewer.
    let folder = server.kill();
    let mut server = Server::start_in(folder, &[]);
    assert_eq!(post(&server, "traces", &one_span("three", "customer", "emma")).0, 200);
    assert_eq!(hashed(&server)[2], "emma");
    // A sender can use the name; the submitter tells who said it.
    let fake = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [{"eventName": "custody.log.redaction"}]}]}]});
    assert_eq!(post(&server, "logs", &fake).0, 200);
    server.stop();
    let folder = server.kill();
    let mut server = Server::start_in(folder, &["--redact", "secrets"]);
    let states: Vec<_> = server.sql(said).iter().map(|row| (row["state"].clone(), row["key"].clone())).collect();
    assert_eq!(states.len(), 3, "{states:?}");
    assert_eq!((&states[1], &states[2]), (&(json!("off"), Value::Null), &(json!("on"), Value::Null)));
    server.stop_and_verify();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/verify.py");
    let bundle = server.path().join("all.custody");
    let export = ["export", "--all", "--reason", "test", "-o", bundle.to_str().unwrap(), "--data-dir"];
    let output = Command::new(CUSTODY).args(export).arg(server.data_dir()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let vkey = server.data_dir().join("log.vkey");
    let check = Command::new(python()).arg(script).arg(&bundle).arg("--vkey").arg(vkey).output().unwrap();
    assert!(
        check.status.success(),
        "{}{}",
        String::from_utf8_lossy(&check.stdout),
        String::from_utf8_lossy(&check.stderr)
    );
}

#[test]
fn retries_are_known_and_receipts_signed_across_kills() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start_in(folder, &["--redact", "secrets"]);
    let request = one_span("bearer q1w2e3r4t5y6u7i8o9p0bearer", "password", "hunter2-attribute");
    let receipt = |server: &Server| {
        let (status, receipt, _) = post(server, "traces", &request);
        assert_eq!(status, 200);
        use base64::Engine as _;
        let note = base64::engine::general_purpose::STANDARD.decode(receipt.expect("a receipt")).unwrap();
        let note = String::from_utf8(note).unwrap();
        let line = |name: &str| note.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
        (line("appended"), line("duplicates"), line("request-sha256"), line("first-seq"))
    };
    let first = receipt(&server);
    assert_eq!((first.0.as_str(), first.1.as_str()), ("1", "0"));
    let again = receipt(&server);
    assert_eq!((again.0.as_str(), again.1.as_str(), &again.2, &again.3), ("0", "1", &first.2, &first.3));
    let folder = server.kill();
    server = Server::start_in(folder, &["--redact", "secrets"]);
    assert_eq!(receipt(&server), again);
    assert_eq!(server.sql("SELECT count(*) AS n FROM spans"), [json!({"n": 1})]);
    server.stop_and_verify();
}

fn custody(args: &[&str], input: &str) -> Output {
    use std::io::Write as _;
    let mut command = Command::new(CUSTODY);
    let mut child =
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn rules_can_be_tried_before_they_are_turned_on() {
    let folder = tempfile::tempdir().unwrap();
    let sample = folder.path().join("sample.json");
    std::fs::write(&sample, one_span("GET https://u:hunter2-url@h/", "Cookie", "hunter2-header").to_string()).unwrap();
    let output = custody(&["redact", "--rules", "secrets", "--test", sample.to_str().unwrap()], "");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], r#"span 0  Span name  url-password: "hunter2-url" -> [redacted: url-password]"#);
    assert_eq!(
        lines[1],
        r#"span 0  Span attributes Cookie  sensitive-attribute: "hunter2-header" -> [redacted: sensitive-attribute]"#
    );
    assert_eq!(lines[2], "2 replaced in a request of 1 span");
    // From standard input, with rules of one's own beside the built-in ones.
    let rules = folder.path().join("rules.toml");
    std::fs::write(&rules, "[[rule]]\nname = 'who'\nvalue = 'emma'\naction = 'hash'\nsignals = ['traces']\n").unwrap();
    let args = ["redact", "--rules", rules.to_str().unwrap(), "--rules", "secrets", "--test", "-"];
    let text = String::from_utf8(custody(&args, &one_span("for emma", "a", "b").to_string()).stdout).unwrap();
    assert!(text.starts_with(r#"span 0  Span name  who: "emma" -> [hashed: who: "#), "{text}");
    let list = String::from_utf8(custody(&args[..5], "").stdout).unwrap();
    assert!(list.contains("who ") && list.contains("aws-access-token ") && list.ends_with(" rules\n"), "{list}");
    let output = custody(&args, "{}");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("none of resourceSpans"));
}

#[test]
fn wrong_rules_stop_the_start_and_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("rules.toml");
    let data = folder.path().join("data");
    std::fs::write(&rules, "[[rule]]\nname = 'iban'\nvalue = '('\n").unwrap();
    for (rules, want) in
        [(rules.to_str().unwrap(), "rule \"iban\": value: regex parse error"), ("nothing.toml", "\"secrets\"")]
    {
        let output = custody(&["serve", "--data-dir", data.to_str().unwrap(), "--redact", rules], "");
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(want) && text.contains(rules), "{text}");
    }
    assert!(!data.exists(), "nothing was made");
}
