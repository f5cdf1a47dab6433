//! Saved queries: each is asked on the demo's ledger, as an investigator asks it, and must tell what
//! happened there; docs/queries.md is made of the same files.

mod support;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use custody_query::saved::{self, SavedQuery};
use serde_json::{Value, json};
use support::{CUSTODY, Server};

/// The call of the incident that the demo tells, and its trace.
const TRACE: &str = "883c22c093025b0b7742ea634260c547";
const AGENT: &str = "payments-agent-39dae3f9";

/// A server on the ledger that `custody demo` leaves, with what the demo does not have: a credential of
/// two agents, a person's approval, a change of authority, an alert that nobody noticed, a record that
/// nothing understands, and a grant that is still in force.
fn server() -> Server {
    let folder = tempfile::tempdir().unwrap();
    let demo = Command::new(CUSTODY).args(["demo", "--keep"]).arg(folder.path().join("data")).output().unwrap();
    assert!(demo.status.success(), "{}", String::from_utf8_lossy(&demo.stderr));
    let server = Server::start_in(folder, &[]);
    let log = |name: &str, attributes: &[(&str, &str)]| {
        let attributes: Vec<Value> =
            attributes.iter().map(|(k, v)| json!({"key": k, "value": {"stringValue": v}})).collect();
        json!({"eventName": name, "timeUnixNano": "1795255200000000000", "attributes": attributes})
    };
    let uses = |agent| log("authz.tool.call", &[("gen_ai.agent.id", agent), ("authz.credential.id", "cred-1")]);
    let records = [
        uses("agent-a"),
        uses("agent-b"),
        log("authz.approval", &[("authz.approval.state", "approved"), ("authz.approval.by", "ada@example.com")]),
        log(
            "authz.authority_change",
            &[("authz.change.what", "role"), ("authz.change.new", "admin"), ("authz.change.by", "eve")],
        ),
        log("security.alert", &[("security.alert.id", "alert-open"), ("security_rule.name", "probing")]),
        log("acme.unheard_of", &[]),
        log(
            "authz.grant.issued",
            &[
                ("authz.grant.id", "grant-live"),
                ("authz.grant.subject", "agent-a"),
                ("authz.grant.issuer", "trust-authority"),
                ("authz.grant.expires_at", "2099-01-01T00:00:00Z"),
            ],
        ),
    ];
    let body = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}).to_string();
    let url = format!("http://{}/v1/logs", server.otlp_http);
    let answer = ureq::post(url).header("Content-Type", "application/json").send(body).unwrap();
    assert_eq!(answer.status(), 200);
    server.wait_until_visible();
    server
}

fn ask(server: &Server, query: &SavedQuery, given: &[&str]) -> Vec<Value> {
    // All checks at once, in a build for tests, on a busy machine: the default of 30 s is for people.
    let mut args = vec!["sql", "--run", query.name, "--format", "json", "--timeout-ms", "300000"];
    args.extend(given.iter().flat_map(|p| ["-p", p]));
    let rows: Vec<Value> = server.custody(&args).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let columns: Vec<&str> = query.columns.iter().map(|c| c.name).collect();
    for row in &rows {
        let names: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, columns, "{} documents its columns", query.name);
    }
    rows
}

#[test]
fn each_saved_query_tells_what_happened() {
    let mut server = server();
    let find = format!(
        "SELECT v.seq, c.grant_id FROM violations v JOIN tool_calls c ON c.seq = v.seq \
         WHERE v.check_id = 'denied_then_executed' AND v.trace_id = '{TRACE}'"
    );
    let incident = &server.sql(&find)[0];
    let call = format!("call={}", incident["seq"]);
    let grant = format!("grant={}", incident["grant_id"].as_str().unwrap());
    let (agent, subject) = (format!("agent={AGENT}"), format!("subject={AGENT}"));
    let (trace, id) = (format!("trace={TRACE}"), format!("id={TRACE}"));
    let alert = format!("alert=alert-{}", incident["seq"]);
    let mut asked = BTreeSet::new();
    let mut told = |name: &'static str, given: &[&str], is_so: &dyn Fn(&[Value]) -> bool| {
        asked.insert(name);
        let rows = ask(&server, saved::find(name).unwrap(), given);
        assert!(is_so(&rows), "{name} {given:?}: {rows:#?}");
    };
    let any = |rows: &[Value], column: &str, value: &str| rows.iter().any(|row| row[column] == value);
    told("agents", &[], &|r| r.iter().any(|r| r["agent_id"] == AGENT && r["violations"].as_u64() > Some(0)));
    told("outside_authority", &[&trace], &|r| r.len() == 2 && r[0]["check_id"] == "widened_delegation");
    told("outside_authority", &[&trace, "agent=nobody"], &<[Value]>::is_empty);
    told("refused_then_done", &[], &|r| r.len() == 72 && any(r, "agent_id", AGENT));
    told("who_authorised", &[&call], &|r| {
        r.len() == 1 && r[0]["issuer"].is_string() && r[0]["initiator_id"].is_string() && r[0]["depth"] == 1
    });
    told("grant_chain", &[&grant], &|r| r.len() == 2 && r[1]["widened_by"] == json!(["resources"]));
    told("what_happened", &[&id], &|r| any(r, "tool", "send_money") && r.iter().any(|r| r["note"].is_string()));
    told("what_happened", &[&id, "as_of=70"], &|r| !r.is_empty() && !any(r, "tool", "send_money"));
    told("read_before_sent", &[&call], &|r| !r.is_empty() && r.iter().all(|r| r["sent_before"].as_i64() > Some(0)));
    told("agent_touched", &[&agent], &|r| r[0]["tool"] == "send_money" && r[0]["calls"] == 1);
    told("agent_touched", &[&agent, "to=2026-11-20T00:00:00Z"], &<[Value]>::is_empty);
    told("resource_touched", &["resource=account:%"], &|r| any(r, "agent_id", AGENT));
    told("reach", &[&subject], &|r| r[0]["reached_tools"] == json!(["send_money"]));
    told("refusals", &[&agent], &|r| !r.is_empty() && r.iter().all(|r| r["reason"].is_string()));
    told("approvals", &[], &|r| r.len() == 1 && r[0]["decided_by"] == "ada@example.com");
    told("in_force", &[], &|r| r.len() == 1 && r[0]["grant_id"] == "grant-live");
    told("in_force", &["at=2026-11-20T10:00:00Z"], &|r| r.len() > 50 && !any(r, "grant_id", "grant-live"));
    told("policy_changes", &[], &|r| r.len() == 2 && r.iter().all(|r| r["refused"].as_u64() > Some(0)));
    told("authority_changes", &[], &|r| r.len() == 1 && r[0]["initiator_id"] == "eve" && r[0]["decision"] == "admin");
    told("shared_credentials", &[], &|r| r.len() == 1 && r[0]["agents"] == json!(["agent-a", "agent-b"]));
    told("unnoticed_alerts", &[], &|r| r.len() == 1 && r[0]["alert_id"] == "alert-open");
    told("alert_life", &[&alert], &|r| r.len() == 4 && any(r, "actor", "ada@example.com"));
    told("dwell_by_rule", &[], &|r| r[0]["rule"].is_null() && r[0]["ended"] == 1);
    told("missing_evidence", &[], &|r| any(r, "check_id", "broken_lineage"));
    told("not_understood", &[], &|r| r.iter().any(|r| r["not_understood"].to_string().contains("acme.unheard_of")));
    told("late_arrivals", &["seconds=60"], &|r| r.len() > 1000 && r[0]["late_seconds"].as_i64() >= Some(60));
    let all: BTreeSet<&str> = saved::all().iter().map(|q| q.name).collect();
    assert_eq!(asked, all, "each saved query is asked here");
    the_other_ways_to_ask(&server);
    an_answer_comes_with_its_evidence(&server);
    server.stop_and_verify();
}

fn an_answer_comes_with_its_evidence(server: &Server) {
    let file = server.path().join("answer.custody");
    let (path, dir) = (file.to_str().unwrap(), server.data_dir());
    let run = |args: &[&str]| Command::new(CUSTODY).args(args).output().unwrap();
    let evidence = |args: &[&str]| {
        let own = ["--evidence", path, "--timeout-ms", "300000", "--data-dir", dir.to_str().unwrap()];
        run(&[&["sql"][..], args, &own].concat())
    };
    let written = evidence(&["--run", "outside_authority", "-p", &format!("trace={TRACE}")]);
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let checked = run(&["check", path]);
    let told = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success() && told.contains("its answer of 2 rows is the one"), "{told}");
    // The rows are those of the log's own word, and no others.
    let bundle = std::fs::read_to_string(&file).unwrap();
    assert!(bundle.contains("widened_delegation"));
    let changed = server.path().join("changed.custody");
    std::fs::write(&changed, bundle.replacen("widened_delegation", "narrowed_delegation", 1)).unwrap();
    assert_eq!(run(&["check", changed.to_str().unwrap()]).status.code(), Some(1));
    // Groups say which records they are made of, or are refused with the mend.
    let groups = "SELECT agent_id, count(*) AS n FROM tool_calls GROUP BY agent_id";
    let refused = evidence(&[groups]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("array_agg(seq) AS seqs"), "{refused:?}");
    let groups =
        "SELECT agent_id, count(*) AS n, array_agg(seq) AS seqs FROM tool_calls WHERE agent_id = $a GROUP BY 1";
    assert!(evidence(&[groups, "-p", &format!("a={AGENT}")]).status.success());
    assert!(run(&["check", path]).status.success());
}

fn the_other_ways_to_ask(server: &Server) {
    let listed = server.custody(&["sql", "--list"]);
    let (status, json) = server.get("/api/v1/queries");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((status, json["queries"].as_array().unwrap().len()), (200, saved::all().len()));
    assert!(saved::all().iter().all(|query| listed.contains(query.title)), "{listed}");
    let wrong = server.custody_output(&["sql", "--run", "grant_chain"]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("-p grant=..."), "{wrong:?}");
    // Names and places, in table functions too; the position of an error stays that of the text.
    let by_agent = server.sql(
        "SELECT agent_id, count(*) AS n FROM violations \
                               WHERE check_id IN ('denied_then_executed', 'widened_delegation') GROUP BY agent_id",
    );
    assert!(by_agent.len() > 10, "a union of checks can be grouped: {by_agent:?}");
    let named = server.custody(&["sql", "SELECT $a AS a, $b + 1 AS b", "-p", "a=x;y", "-p", "b=2", "--format", "csv"]);
    assert_eq!(named, "a,b\nx;y,3\n");
    let chain = ["sql", "SELECT count(*) AS n FROM delegation_chain($1)", "--param", "grant-live", "--format", "csv"];
    assert_eq!(server.custody(&chain), "n\n1\n");
    let wrong = server.custody_output(&["sql", "SELECT $long, naem FROM spans", "-p", "long=1"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("line 1, column 15"), "{wrong:?}");
    let url = format!("http://{}", server.http);
    let mut piped = Command::new(CUSTODY)
        .args(["sql", "--format", "csv", "--url", &url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    piped.stdin.take().unwrap().write_all(b"SELECT ';' AS a; -- ; two\nSELECT 2 AS b;\n").unwrap();
    let output = piped.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "a\n;\nb\n2\n");
}

#[test]
fn the_docs_are_what_the_files_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/queries.md");
    let want = saved::document();
    if std::env::var_os("CUSTODY_WRITE_DOCS").is_some() {
        std::fs::write(path, &want).unwrap();
    }
    let is = std::fs::read_to_string(path).unwrap_or_default();
    assert!(is == want, "docs/queries.md is not what query/src/saved says: CUSTODY_WRITE_DOCS=1 writes it anew");
}
